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


class ExtractConfig(_Section):
    """`tlray extract`: bring a table of embeddings to where its source is."""

    source: SourceConfig
    recipe: RecipeConfig
    table: str = Field(description="where the table is or is to be: s3://bucket/key or a local path")
    retry_failed: tuple[FailureCode, ...] = Field(
        ("fetch_failed",), description="embed again the images that failed with these codes"
    )
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="more failed images of this run: exit code 3")
    local: bool = Field(False, description="one process, no Ray")
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
