"""The configs of `tlray extract` and `tlray predict`, which bring a table to where its source is."""

from typing import Literal

from pydantic import Field, PositiveInt

from tlray.config.recipe import RecipeConfig
from tlray.config.section import FailureCode, Section
from tlray.config.source import SourceConfig


class PolicyConfig(Section):
    """What a run does about images that are gone from the source, or are other ones than they were."""

    deleted: Literal["follow", "keep"] = Field("follow", description="follow: their rows go; keep: they stay")
    changed: Literal["follow", "keep"] = Field(
        "follow", description="follow: embedded again when their bytes or label change; keep: as they were first seen"
    )


class RunConfig(Section):
    """What the commands have in common that bring a table to where its source is."""

    source: SourceConfig
    retry_failed: tuple[FailureCode, ...] = Field(
        ("fetch_failed",), description="embed again the images that failed with these codes before"
    )
    policy: PolicyConfig = PolicyConfig()
    max_failed_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of images that may fail, of at least 100, judged when all are done; more, or every one: exit code 3",
    )
    local: bool | None = Field(
        None, description="one process, no Ray; default: where no cluster and no GPU is found, on up to 8 cores"
    )
    wait: bool = Field(False, description="where another run holds the table, wait until it is free")
    lease_seconds: float = Field(
        30.0, ge=2, description="how long a killed run keeps the next one out; a store may be away for less without harm"
    )
    dry_run: bool = Field(False, description="show what would be done and an estimate of its time; write nothing")


class ExtractConfig(RunConfig):
    """`tlray extract`: bring a table of embeddings to where its source is."""

    recipe: RecipeConfig
    table: str = Field(description="the table of embeddings, made where there is none: s3://bucket/key or a local path")


class PredictConfig(RunConfig):
    """`tlray predict`: run a model over images, and bring a table of predictions to where their source is."""

    model: str | None = Field(None, description="folder that `tlray train` made: s3://bucket/key or a local path")
    recipe: RecipeConfig | None = Field(None, description="in place of model: a pretrained network with its own classifier")
    out: str = Field(
        description="the table of predictions, made where there is none: s3://bucket/key or a local path; or the name of a "
        ".csv or .parquet file, which is written from a table beside it"
    )
    top_k: PositiveInt = Field(5, description="best labels to keep of each image")
    threshold: float = Field(0.5, gt=0, lt=1, description="several labels an image: those of at least this probability")
    embeddings: bool = Field(False, description="keep the vectors that the predictions were made from too")
