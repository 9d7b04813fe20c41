"""The configs of the commands around an index: index, search, duplicates, serve."""

from typing import Literal

from pydantic import Field, PositiveInt

from tlray.config.sections.stores import WithStores


class IndexConfig(WithStores):
    """`tlray index`: build an index of a table, or bring it to where the table is."""

    table: str = Field(description="the table of embeddings: s3://bucket/key or a local path")
    out: str = Field(description="the index, made where there is none: s3://bucket/key or a local path")
    column: str | None = Field(None, description="the embedding column; default the only one")
    metric: Literal["cosine", "ip", "l2"] = Field(
        "cosine", description="how nearness is measured; ip: inner product, l2: Euclidean distance"
    )
    factory: str = Field("auto", description="a FAISS factory string; auto chooses by rows, dimensions, memory and recall")
    ef_construction: PositiveInt | None = Field(
        None, description="candidates that a node of an HNSW graph is linked from; default FAISS's 40; more: slower to build"
    )
    recall_target: float = Field(0.95, gt=0, le=1, description="recall at 10 that searches must reach")
    memory_bytes: PositiveInt | None = Field(
        None, description="what the index may take; default half of the machine's or container's"
    )
    rerank: Literal["auto", "always", "never"] = Field(
        "auto", description="keep the vectors beside a compressed index and compare again; auto: where codes miss the target"
    )
    shards: PositiveInt = Field(1, description="pieces of an IVF index that Ray builds in parallel, to be merged into one")
    rebuild: bool = Field(False, description="build anew, whatever is there")
    keep_versions: PositiveInt = Field(2, description="older versions and their files are deleted")
    dry_run: bool = Field(False, description="say what would be done; write nothing")


class SearchConfig(WithStores):
    """`tlray search`: the nearest rows of images, words, rows, vectors or labels."""

    index: str = Field(description="URI or path of the index")
    image: tuple[str, ...] = Field((), description="image files to search by, local or s3://")
    text: tuple[str, ...] = Field((), description="words to search by, where the table's backbone has a text tower")
    uri: tuple[str, ...] = Field((), description="rows of the index to search by")
    by_label: tuple[str, ...] = Field((), description="search by the mean vector of each of these labels")
    vector: str | None = Field(None, description="a .npy file with one vector or rows of them")
    queries: str | None = Field(None, description="a table of the same recipe, each row of which is a query; needs out")
    out: str | None = Field(None, description="write all answers to this Parquet file")
    k: int = Field(10, gt=0, le=10_000, description="answers to each query")
    label: tuple[str, ...] = Field((), description="only rows with one of these labels")
    prefix: tuple[str, ...] = Field((), description="only rows whose URI begins with one of these")
    where: str | None = Field(None, description="only rows of which this holds: price < 10 and site = 'A'")
    columns: tuple[str, ...] = Field((), description="columns of the table to show with each hit; all for each that travelled")
    workers: int = Field(0, ge=0, description="processes on Ray that answer queries; 0: this one, without Ray")


class DuplicatesConfig(WithStores):
    """`tlray duplicates`: groups of rows that are nearly the same, and those that cross splits or labels."""

    index: str = Field(description="URI or path of an index of metric cosine")
    cosine: float = Field(0.97, gt=0, le=1, description="rows at least this near are the same")
    splits: tuple[str, ...] = Field((), description="URI prefixes; a group with rows below two of them is a leak")
    max_groups: PositiveInt = Field(20, description="groups in the result; leaks and the largest first")
    out: str | None = Field(None, description="write all groups to this Parquet file")


class ServeConfig(WithStores):
    """`tlray serve`: an HTTP service and its page over an index."""

    index: str = Field(description="URI or path of the index")
    host: str = Field("127.0.0.1", description="address to listen on; others than loopback need token_file")
    port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    replicas: PositiveInt = Field(1, description="processes that answer; more than one run under Ray Serve")
    token_file: str | None = Field(None, description="file whose first line every request must bring as its bearer token")
    images: bool = Field(True, description="load the network, so that images can be searched by")
    text: bool = Field(True, description="let words be searched by, where there is a text tower; loaded when first needed")
    max_body_bytes: PositiveInt = Field(16 * 2**20, description="larger requests are refused: 413")
    max_image_pixels: PositiveInt = Field(64_000_000, description="larger images are not decoded: 422")
    max_k: PositiveInt = Field(200, description="answers to one query")
    max_batch: PositiveInt = Field(64, description="queries of one request")
    max_concurrency: PositiveInt = Field(64, description="requests at work or waiting; more are refused: 429")
    timeout_seconds: float = Field(20.0, gt=0, description="a request that takes longer is answered with 504")
    reload_seconds: float = Field(5.0, gt=0, description="how often to look for a newer version of the index")
