"""The URI of an image or text inside a tar file or a table: the file's URI, `#`, and the member's name or row number.

Rows of a table are grouped by that file when they are held against a source.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

MEMBER_PATTERN = r"(?s)^(?P<container>.*?\.(?i:tar|parquet|csv|tsv|jsonl|ndjson))#"
"""The file in a member's URI; the same in Python's and in Arrow's (RE2) dialect."""


def container_of(uri: str) -> str:
    """The file of a member's URI (`s3://b/x.tar#cat.jpg` -> `s3://b/x.tar`); a file's own URI stays."""
    found = re.match(MEMBER_PATTERN, uri)
    return found["container"] if found else uri


def containers_of(uris: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The files of many members' URIs, as `container_of` has them."""
    found = pc.struct_field(pc.extract_regex(uris, MEMBER_PATTERN), "container")
    return pc.coalesce(found, uris)
