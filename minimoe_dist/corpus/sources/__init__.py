"""Readers of raw corpora, all with one interface: files to blocks, blocks to documents."""

from .choosing import (
    INPUT_FORMATS,
    SourceOptions,
    choose_source,
    find_inputs,
)
from .documentation import documentation_folder, python_documentation
from .json_documents import RecordReader
from .json_records import JsonLinesSource, JsonSource
from .source import FORMAT_SUFFIX, Source
from .text import FormatSource, TextFileSource, TextSource
from .tfrecord import TFRecordSource
from .wiki import WikiSource, write_wiki

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
