"""The configs of `tlray extract` and `tlray predict`, which bring a table to where its source is."""

from datetime import date, datetime, time
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from tlray.config.sections.recipe import RecipeConfig
from tlray.config.sections.section import FailureCode, Section
from tlray.config.sections.source import SourceConfig
from tlray.config.sections.stores import WithStores

Engine = Literal["auto", "torch", "openvino", "onnxruntime"]
"""What computes networks of images on CPUs."""


MOST_HOURS = 24 * 366
"""A year: who gives more means no budget, or minutes."""


class PolicyConfig(Section):
    """What a run does about images that are gone from the source, or are other ones than they were."""

    deleted: Literal["follow", "keep"] = Field("follow", description="follow: their rows go; keep: they stay")
    changed: Literal["follow", "keep"] = Field(
        "follow", description="follow: embedded again when their bytes or label change; keep: as they were first seen"
    )


def moment_of(by: str) -> time | datetime:
    """What a text such as 06:00 or 2026-12-01T06:00+01:00 names.

    Raises:
        ValueError: neither a time of the day nor a date.
    """
    try:
        return time.fromisoformat(by) if by[2:3] == ":" else datetime.fromisoformat(by)
    except ValueError as error:
        raise ValueError(
            "expected a time of the day such as 06:00, or a date with one such as 2026-12-01T06:00+01:00"
        ) from error


class RunConfig(WithStores):
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
    gpus: bool | None = Field(
        None,
        description="on Ray: embed on GPUs, which an autoscaler may start from none, or on cores alone; default: on GPUs where "
        "the cluster has some",
    )
    max_workers: PositiveInt | None = Field(
        None,
        description="on Ray: at most so many workers at once, which is also what an autoscaler is asked for; default: as "
        "many as have enough to do",
    )
    wait: bool = Field(False, description="where another run holds the table, wait until it is free")
    engine: Engine = Field(
        "auto",
        description="what computes on CPUs: torch, openvino or onnxruntime (extras openvino, onnx), or auto: the fastest, by a "
        "trial where that pays, at fp32 where 16 bits are no faster",
    )
    lease_seconds: float = Field(
        30.0, ge=2, description="how long a killed run keeps the next one out; a store may be away for less without harm"
    )
    by: str | None = Field(
        None,
        description="be done by then: the next 06:00 of the driver's clock, or 2026-12-01T06:00+01:00; says in time whether it "
        "will be; from then on no unit is begun, and the run ends with exit code 4",
    )
    budget_hours: float | None = Field(None, gt=0, le=MOST_HOURS, description="the same, so many hours after the run's start")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="serve the run's metrics for Prometheus here (0: a free port), without Ray too"
    )
    metrics_host: str = Field("127.0.0.1", description="address that metrics_port listens on; 0.0.0.0 for all")
    dry_run: bool = Field(False, description="show what would be done and an estimate of its time; write nothing")

    @field_validator("by", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML makes a date of one, and Python has times of the day."""
        return value.isoformat() if isinstance(value, (date, time)) else value

    @field_validator("by")
    @classmethod
    def _is_a_time(cls, by: str | None) -> str | None:
        if by is not None:
            moment_of(by)
        return by


class ExtractConfig(RunConfig):
    """`tlray extract`: bring a table of embeddings to where its source is."""

    recipe: RecipeConfig
    table: str = Field(description="the table of embeddings, made where there is none: s3://bucket/key or a local path")


PLACE = "{}"
"""Where a template has the class's name."""

DEFAULT_TEMPLATES = (f"a photo of a {PLACE}.",)
"""What CLIP's authors put class names into where they know nothing else (Radford et al., 2021, arXiv 2103.00020, 3.1.4)."""


THRESHOLD = 0.5
"""Probability from which on an image has a label, where it may have several."""


class PredictConfig(RunConfig):
    """`tlray predict`: run a model over images, and bring a table of predictions to where their source is."""

    model: str | None = Field(None, description="folder that `tlray train` made: s3://bucket/key or a local path")
    recipe: RecipeConfig | None = Field(None, description="in place of model: a pretrained network with its own classifier")
    classes: tuple[str, ...] = Field(
        (),
        description="with recipe: names of classes to choose from by words, where the backbone has a text tower; several, or "
        "one text with commas between them",
    )
    templates: tuple[str, ...] = Field(
        DEFAULT_TEMPLATES,
        description="sentences that each class's name is put into, in place of {}; their vectors are averaged",
    )
    out: str = Field(
        description="the table of predictions, made where there is none: s3://bucket/key or a local path; or the name of a "
        ".csv or .parquet file, which is written from a table beside it"
    )
    top_k: PositiveInt = Field(5, description="best labels to keep of each image")
    threshold: float = Field(THRESHOLD, gt=0, lt=1, description="several labels an image: those of at least this probability")
    embeddings: bool = Field(False, description="keep the vectors that the predictions were made from too")

    @field_validator("classes", mode="before")
    @classmethod
    def _apart(cls, value: Any) -> Any:
        """Commas part the names of a single text, as one class alone is no choice; several texts are literal."""
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], str) and "," in texts[0]:
            return [name.strip() for name in texts[0].split(",")]
        return value

    @field_validator("classes")
    @classmethod
    def _are_a_choice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) == 1 or len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
            raise ValueError("expected two names or more, none of them empty or twice")
        return classes

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or not all(PLACE in template for template in templates):
            raise ValueError(f"expected sentences with a place for the class's name, such as {DEFAULT_TEMPLATES[0]!r}")
        return templates

    @model_validator(mode="after")
    def _has_one_model(self) -> "PredictConfig":
        if self.templates != DEFAULT_TEMPLATES and not self.classes:
            raise ValueError("templates are sentences around the names of classes: give classes too, or leave them out")
        if self.classes and (self.model is not None or self.recipe is None):
            raise ValueError("classes are chosen from by a pretrained network's text tower: give recipe.backbone, and no model")
        return self
