"""One typed config a command: a YAML file, overridden by flags, strict about unknown keys."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt
from pydantic_settings import CliPositionalArg

from tlray.recipe import Fit, Interpolation, Pool, Precision

FailureCode = Literal[
    "not_found",
    "empty",
    "too_large",
    "not_an_image",
    "truncated",
    "corrupt",
    "unsupported",
    "bomb",
    "fetch_failed",
    "non_finite",
]
"""The values of `tlray.errors.ImageErrorCode`, as flags take them."""


def _single(value: Any) -> Any:
    """A list of one is that one: flags that may be given twice arrive as lists."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


Side = Annotated[PositiveInt | tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_single)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Section):
    """Where the images are."""

    uri: str = Field(description="prefix, manifest, tar shards or Parquet files: s3://bucket/key or a local path")
    format: Literal["auto", "images", "manifest", "webdataset", "parquet"] = Field(
        "auto", description="auto looks at the names (and at a Parquet file's columns)"
    )
    include: tuple[str, ...] = Field((), description="globs relative to uri, as in .gitignore; default everything")
    exclude: tuple[str, ...] = Field((), description="globs that win over include")
    labels: str = Field("none", description="none, folder (the parent folder's name) or a column of the source")
    column: str | None = Field(None, description="the column of URIs (manifest) or of image bytes (parquet); default: found")
    max_image_bytes: int = Field(256 * 2**20, gt=0, description="larger images are not fetched: too_large")
    max_image_pixels: int = Field(256_000_000, gt=0, description="larger images are not decoded: bomb")


class PreprocessingConfig(_Section):
    """Overrides of what the weights say about preprocessing; what is not given comes from the weights."""

    resize: Side = Field(None, description="a side, or [height, width], of the box that fit refers to")
    fit: Fit | None = Field(None, description="cover (shortest side), contain (longest side) or squash (exactly)")
    crop: Side = Field(None, description="centre crop: a square's side, or [height, width]")
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    scaled_decoding: bool | None = Field(
        None,
        description="shrink JPEGs to 1/2, 1/4 or 1/8 while decoding, to no less than twice the resized size; default false",
    )
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class RecipeConfig(_Section):
    """What the user asks of a recipe; `tlray.models` resolves it against a backbone and its weights."""

    backbone: str = Field(description="torchvision:<model> or timm:<model>")
    weights: str = Field(
        "default",
        description="default, an enum name, a timm tag, a path or URI of safetensors or a state dict, "
        "package:<name>, random:<seed>",
    )
    weights_sha256: str | None = Field(None, description="refuse weights of another hash (as `tlray show` prints it)")
    taps: tuple[str, ...] = Field((), description="layers to keep; default the penultimate")
    pool: Pool = "avg"
    normalize: bool = False
    precision: Precision = Precision()
    preprocessing: PreprocessingConfig = PreprocessingConfig.model_construct()


class PolicyConfig(_Section):
    """What a run does about images that are gone from the source, or are other ones than they were."""

    deleted: Literal["follow", "keep"] = Field("follow", description="follow: their rows go; keep: they stay")
    changed: Literal["follow", "keep"] = Field(
        "follow", description="follow: embedded again when their bytes or label change; keep: as they were first seen"
    )


class ExtractConfig(_Section):
    """`tlray extract`: bring a table of embeddings to where its source is."""

    source: SourceConfig
    recipe: RecipeConfig
    table: str = Field(description="where the table is or is to be: s3://bucket/key or a local path")
    retry_failed: tuple[FailureCode, ...] = Field(
        ("fetch_failed",), description="embed again the images that failed with these codes"
    )
    policy: PolicyConfig = PolicyConfig()
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="more failed images of this run: exit code 3")
    local: bool = Field(False, description="one process, no Ray")
    wait: bool = Field(False, description="where another run holds the table, wait until it is free")
    dry_run: bool = Field(False, description="print the plan and an estimate; write nothing")


class ShowConfig(_Section):
    """`tlray show URI`: what a table is: recipe, counts, failures, size."""

    table: CliPositionalArg[str] = Field(description="URI or path of the table")
    version: int | None = Field(None, ge=0, description="default the newest")


class VerifyConfig(_Section):
    """`tlray verify URI`: read every part again and hold it against the log; exit code 1 where it is damaged."""

    table: CliPositionalArg[str] = Field(description="URI or path of the table")
    version: int | None = Field(None, ge=0, description="default the newest")


class VacuumConfig(_Section):
    """`tlray vacuum URI`: list the files that no version within the retention needs; delete them only when told to."""

    table: CliPositionalArg[str] = Field(description="URI or path of the table")
    retention_hours: int = Field(168, ge=0, description="keep what is younger: runs under way, readers of old versions")
    delete: bool = Field(False, description="delete them")


class OptimizeConfig(_Section):
    """`tlray optimize URI`: join small parts into larger ones."""

    table: CliPositionalArg[str] = Field(description="URI or path of the table")


class IndexConfig(_Section):
    """`tlray index`: build an index of a table, or bring it to where the table is."""

    table: str = Field(description="the table of embeddings: s3://bucket/key or a local path")
    out: str = Field(description="where the index is or is to be: s3://bucket/key or a local path")
    column: str | None = Field(None, description="the embedding column; default the only one")
    metric: Literal["cosine", "ip", "l2"] = Field("cosine", description="what near means")
    factory: str = Field("auto", description="a FAISS factory string; auto chooses by rows, dimensions, memory and recall")
    recall_target: float = Field(0.95, gt=0, le=1, description="recall at 10 that searches must reach")
    memory_bytes: PositiveInt | None = Field(None, description="what the index may take; default half of this machine's")
    rerank: Literal["auto", "always", "never"] = Field(
        "auto", description="keep the vectors beside a compressed index and compare again; auto: where codes miss the target"
    )
    rebuild: bool = Field(False, description="build anew, whatever is there")
    keep_versions: PositiveInt = Field(2, description="older versions and their files are deleted")
    dry_run: bool = Field(False, description="say what would be done; write nothing")


class SearchConfig(_Section):
    """`tlray search`: the nearest rows of images, rows, vectors or labels."""

    index: str = Field(description="URI or path of the index")
    image: tuple[str, ...] = Field((), description="image files to search by, local or s3://")
    uri: tuple[str, ...] = Field((), description="rows of the index to search by")
    by_label: tuple[str, ...] = Field((), description="search by the mean vector of each of these labels")
    vector: str | None = Field(None, description="a .npy file with one vector or rows of them")
    queries: str | None = Field(None, description="a table of the same recipe, each row of which is a query; needs out")
    out: str | None = Field(None, description="write all answers to this Parquet file")
    k: int = Field(10, gt=0, le=10_000, description="answers to each query")
    label: tuple[str, ...] = Field((), description="only rows with one of these labels")
    prefix: tuple[str, ...] = Field((), description="only rows whose URI begins with one of these")


class DuplicatesConfig(_Section):
    """`tlray duplicates`: groups of rows that are nearly the same, and those that cross splits or labels."""

    index: str = Field(description="URI or path of an index of metric cosine")
    cosine: float = Field(0.97, gt=0, le=1, description="rows at least this near are the same")
    splits: tuple[str, ...] = Field((), description="URI prefixes; a group with rows below two of them is a leak")
    max_groups: PositiveInt = Field(20, description="groups in the result; leaks and the largest first")
    out: str | None = Field(None, description="write all groups to this Parquet file")


class ServeConfig(_Section):
    """`tlray serve`: an HTTP service and its page over an index."""

    index: str = Field(description="URI or path of the index")
    host: str = Field("127.0.0.1", description="address to listen on; others than loopback need token_file")
    port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    token_file: str | None = Field(None, description="file whose first line every request must bring as its bearer token")
    images: bool = Field(True, description="load the network, so that images can be searched by")
    max_body_bytes: PositiveInt = Field(16 * 2**20, description="larger requests are refused: 413")
    max_image_pixels: PositiveInt = Field(64_000_000, description="larger images are not decoded: 422")
    max_k: PositiveInt = Field(200, description="answers to one query")
    max_batch: PositiveInt = Field(64, description="queries of one request")
    max_concurrency: PositiveInt = Field(64, description="requests at work or waiting; more are refused: 429")
    timeout_seconds: float = Field(20.0, gt=0, description="a request that takes longer is answered with 504")
    reload_seconds: float = Field(5.0, gt=0, description="how often to look for a newer version of the index")
