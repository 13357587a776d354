"""Reads raw corpora through one interface: files to blocks, blocks to documents."""

from ..blocks import Source
from .archives import ArchiveSource
from .choosing import (
    INPUT_FORMATS,
    SourceOptions,
    choose_source,
    find_inputs,
)
from .documentation import documentation_folder, is_prose, python_documentation
from .json_documents import RecordReader
from .json_records import JsonLinesSource, JsonSource
from .parquet import ParquetSource
from .text import FORMAT_SUFFIX, FormatSource, TextFileSource, TextSource, WrappedSource
from .tfrecord import TFRecordSource
from .wiki import WikiSource, write_wiki

__all__ = [
    "FORMAT_SUFFIX",
    "INPUT_FORMATS",
    "ArchiveSource",
    "FormatSource",
    "JsonLinesSource",
    "JsonSource",
    "ParquetSource",
    "RecordReader",
    "Source",
    "SourceOptions",
    "TFRecordSource",
    "TextFileSource",
    "TextSource",
    "WikiSource",
    "WrappedSource",
    "choose_source",
    "documentation_folder",
    "find_inputs",
    "is_prose",
    "python_documentation",
    "write_wiki",
]
