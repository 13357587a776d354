"""Readers of raw corpora, all with one interface: files to blocks, blocks to documents."""

from minimoe_dist.corpus.sources.choosing import (
    INPUT_FORMATS,
    SourceOptions,
    choose_source,
    find_inputs,
)
from minimoe_dist.corpus.sources.documentation import documentation_folder, python_documentation
from minimoe_dist.corpus.sources.json_documents import RecordReader
from minimoe_dist.corpus.sources.json_records import JsonLinesSource, JsonSource
from minimoe_dist.corpus.sources.source import FORMAT_SUFFIX, Source
from minimoe_dist.corpus.sources.text import FormatSource, TextFileSource, TextSource
from minimoe_dist.corpus.sources.tfrecord import TFRecordSource
from minimoe_dist.corpus.sources.wiki import WikiSource, write_wiki

__all__ = [
    "FORMAT_SUFFIX",
    "INPUT_FORMATS",
    "FormatSource",
    "JsonLinesSource",
    "JsonSource",
    "RecordReader",
    "Source",
    "SourceOptions",
    "TFRecordSource",
    "TextFileSource",
    "TextSource",
    "WikiSource",
    "choose_source",
    "documentation_folder",
    "find_inputs",
    "python_documentation",
    "write_wiki",
]
