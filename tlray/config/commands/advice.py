"""The configs of `tlray advise` and `tlray report`."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tlray.config.commands.training import ExamplesConfig
from tlray.config.sections.recipe import PreprocessingConfig
from tlray.config.sections.source import SourceConfig
from tlray.config.sections.stores import WithStores


class AdviseConfig(ExamplesConfig, WithStores):
    """`tlray advise`: which network and which way to train it, for labelled images, by trying them on a sample."""

    source: SourceConfig
    labels: str = Field("folder", description="folder, column (the source's own), or a .csv, .tsv or .parquet file")
    candidates: tuple[str, ...] = Field(
        (),
        description="networks to compare: BACKBONE or BACKBONE@WEIGHTS; default some known ones whose weights can be had here",
    )
    skip: tuple[Literal["unlabelled", "missing", "rare"], ...] = Field(
        (),
        description="leave out and count, instead of refusing: unlabelled (images without label), missing (labels without "
        "image), rare (classes of fewer than 5 images; `tlray train` leaves out those of a single one)",
    )
    preprocessing: PreprocessingConfig = PreprocessingConfig.model_construct()
    images: int = Field(2000, ge=20, description="of the sample at most; drawn from each class alike")
    layers: int = Field(6, ge=1, le=32, description="of each network that are tried as features, the penultimate included")
    minutes: PositiveFloat = Field(
        10.0,
        description="that all of it may take, by estimates: candidates, images and trials that do not fit are left out, and "
        "said; scores and the learning curve come before trials, and a trial ends when the minutes do",
    )
    trials: bool = Field(True, description="also train networks on the sample, where the minutes allow it")
    epochs: PositiveInt = Field(
        12, description="of each network that is trained, in a trial and in the command that is advised"
    )
    max_failed_fraction: float = Field(0.05, ge=0, le=1, description="share of the sample that may be unreadable")
    dry_run: bool = Field(False, description="say what it would cost; try nothing")
    out: str | None = Field(None, description="write the result to this .json file too, for `tlray report`")


class ReportConfig(WithStores):
    """`tlray report URI OUT`: what happened, as one HTML file that needs nothing else."""

    uri: str = Field(description="a table, a model, an index, or the .json file that advise wrote: a URI or a local path")
    out: str = Field(description="the .html file to write: s3://bucket/key or a local path")
    other: str | None = Field(None, description="a second table, to be compared with the first")
    pictures: int = Field(24, ge=0, le=200, description="images that it shows of each kind at most")
