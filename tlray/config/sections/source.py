"""The section `source`: where images or texts are and which of them are taken."""

from typing import Literal

from pydantic import Field

from tlray.config.sections.section import Section


class SourceConfig(Section):
    """Where the images or texts are, and which of them count."""

    uri: str = Field(
        description="a folder, manifest, tar shards or Parquet files of images, or texts (--text): a local path, or s3://, "
        "gs://, az://, hf://datasets/, https://"
    )
    format: Literal["auto", "images", "manifest", "webdataset", "parquet"] = Field(
        "auto", description="auto looks at the names (and at a Parquet file's columns)"
    )
    text: str | None = Field(
        None,
        description="embed texts: the column of a .csv, .tsv, .parquet or .jsonl file, or the ending of text files (txt) in a "
        "folder or in tar shards",
    )
    id: str | None = Field(None, description="a column that names each text, in place of its row's number")
    encoding: str = Field("utf-8", description="of texts, as Python names it (latin-1); those with a byte order mark say it")
    listing: str | None = Field(
        None,
        description="instead of listing uri: an S3 Inventory's manifest.json, a .csv, .tsv or .parquet file with a column of "
        "names, or a text file with one name a line",
    )
    keys_from: str | None = Field(None, description="only names from this one on, relative to uri")
    keys_to: str | None = Field(None, description="only names before this one, relative to uri")
    include: tuple[str, ...] = Field((), description="globs of names to take, relative to uri, as in .gitignore; default all")
    exclude: tuple[str, ...] = Field((), description="globs of names to leave out; they win over include")
    also: tuple[Literal["hidden", "underscore", "any_ending"], ...] = Field(
        (), description="take names left out by default: a leading dot, a leading underscore, endings of no image (.txt)"
    )
    match_case: bool = Field(False, description="include and exclude tell *.jpg from *.JPG")
    labels: str = Field("none", description="none, folder (the parent folder's name) or a column of the source")
    columns: tuple[str, ...] = Field(
        (),
        description="columns of the source that go into the table: names, each perhaps with its type (price::number), or all",
    )
    column: str | None = Field(None, description="the column of URIs (manifest) or of image bytes (parquet); default: found")
    max_image_bytes: int = Field(256 * 2**20, gt=0, description="larger images are not fetched: too_large")
    max_image_pixels: int = Field(256_000_000, gt=0, description="larger images are not decoded: bomb")

    @property
    def things(self) -> str:
        """What it holds, as messages call it."""
        return "images" if self.text is None else "texts"
