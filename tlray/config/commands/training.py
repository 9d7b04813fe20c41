"""The configs of `tlray train` and `tlray export`."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tlray.config.identity import NOT_IDENTITY
from tlray.config.sections.recipe import RecipeConfig
from tlray.config.sections.section import Section
from tlray.config.sections.source import SourceConfig
from tlray.config.sections.stores import WithStores

DEFAULT_HIDDEN = (256,)
"""Widths of an MLP's hidden layers where none are given."""


class SplitConfig(Section):
    """Which images are trained on, chosen by and tested on."""

    validation: float = Field(0.15, gt=0, lt=1, description="share of each class that the best head is chosen by")
    test: float = Field(0.15, ge=0, lt=1, description="share of each class that is only measured on")
    column: str | None = Field(
        None, description="column of the labels file or table that says train, validation or test; wins over shares"
    )
    group: str | None = Field(None, description="column of the labels file or table; images of one value stay on one side")
    group_duplicates: float | None = Field(None, gt=0, le=1, description="images of at least this cosine stay on one side")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on; expected a sum under 1"
            )
        return self


class HeadConfig(Section):
    """What is trained on top of the vectors."""

    kind: Literal["linear", "mlp", "ridge"] = Field("linear", description="ridge: least squares in closed form")
    hidden: tuple[PositiveInt, ...] = Field((), description="widths of an MLP's hidden layers; default 256")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")
    solver: Literal["auto", "cg", "adamw"] = Field(
        "auto",
        description="cg: conjugate gradients on all rows at once, for linear heads on vectors that fit in memory; "
        "auto: cg where that is so and no learning rates are given",
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers; none for a head of one layer."""
        return (self.hidden or DEFAULT_HIDDEN) if self.kind == "mlp" else ()


class GridConfig(Section):
    """Heads that are trained together, one for each combination; the best on validation is kept."""

    learning_rates: tuple[float, ...] = Field((), description="of adamw; default 0.0001, 0.001 and 0.01")
    weight_decays: tuple[float, ...] = Field((), description="L2 penalties (adamw: decoupled); default several, by the solver")
    columns: tuple[str, ...] = Field((), description="embedding columns; default the only one")


class NetworkConfig(Section):
    """How a network is trained, from a source's images or from a table of activations; without it only a head is."""

    freeze: str | None = Field(
        None,
        description="a layer's name: it and all before it stay as they are; or how many layers with weights at most (12), or "
        "which share of them (0.5); none; all. Default: none from images, the table's layer from activations",
    )
    start: Literal["weights", "scratch"] = Field("weights", description="scratch: first weights drawn from seed")
    learning_rate: PositiveFloat = Field(1e-3, description="of the head, after warm-up")
    backbone_rate: PositiveFloat | None = Field(
        None, description="the backbone's learning rate, as a factor of the head's; default 0.1, from scratch 1"
    )
    depth_decay: float = Field(1.0, gt=0, le=1, description="factor from each block's learning rate to the one's before it")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, as AdamW has it; none on biases and norms")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which rates rise; then they fall as a cosine")
    unfreeze: int = Field(0, ge=0, description="epochs in which blocks join in one after the other, the last one first")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of a moving average of the weights, which is kept then; 0 for none")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 for any")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: under autocast, weights stay fp32")
    augment: tuple[Literal["crop", "flip"], ...] | None = Field(
        None, description="random crops and mirror images; default both from images; none from activations, where none can be"
    )
    workers: Annotated[PositiveInt, NOT_IDENTITY] = Field(1, description="processes of Ray Train, one GPU or CPU each")
    max_workers: Annotated[PositiveInt | None, NOT_IDENTITY] = Field(
        None, description="take as many as the cluster has, from workers up to these"
    )
    max_failures: Annotated[int, NOT_IDENTITY] = Field(3, ge=0, description="how often lost workers are replaced")
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="images that cannot be read; more end the training")
    checkpoint_every: Annotated[PositiveInt, NOT_IDENTITY] = Field(
        200, description="steps between checkpoints: what a killed run loses at most"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) else value


class _Seeded(Section):
    seed: int = Field(0, ge=0, description="of splits, first weights and order")


class ExamplesConfig(_Seeded):
    """Which images are examples, what each is an example of, and on which side of the split it is."""

    labels: str = Field("column", description="column (the table's or source's own), folder, or a .csv, .tsv or .parquet file")
    label_columns: tuple[str, ...] = Field(
        ("label",), description="columns of the labels file, or of the table; several for a regression"
    )
    separator: str = Field(";", min_length=1, description="between the labels of one image; for task multi")
    task: Literal["single", "multi", "regression"] = Field("single", description="one label an image, any number, or numbers")
    skip: tuple[Literal["unlabelled", "missing", "rare"], ...] = Field(
        (),
        description="leave out and count, instead of refusing: unlabelled (images without label), missing (labels without "
        "image), rare (classes of a single image)",
    )
    split: SplitConfig = SplitConfig.model_construct()


class FitConfig(_Seeded):
    """How long and in which steps heads and networks are trained, and how much each example counts."""

    epochs: PositiveInt = Field(100, description="passes over the training rows at most")
    patience: PositiveInt = Field(5, description="epochs without a better validation loss before a head stops")
    batch_size: PositiveInt = Field(256, description="rows a step, of adamw")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: each class (multi: each label's two sides) counts the same"
    )


class TrainConfig(ExamplesConfig, FitConfig, WithStores):
    """`tlray train`: a head on a table's vectors, or a network from a source's images."""

    table: str | None = Field(None, description="table of embeddings to train on: s3://bucket/key or a local path")
    table_version: int | None = Field(None, ge=0, description="default the newest")
    where: str | None = Field(None, description="only rows of the table of which this holds: price < 10 and site = 'A'")
    source: SourceConfig | None = Field(None, description="images to train a network on, instead of table")
    recipe: RecipeConfig | None = Field(None, description="the network that is trained; needed with source")
    out: Annotated[str, NOT_IDENTITY] = Field(description="folder of the model: s3://bucket/key or a local path")
    head: HeadConfig = HeadConfig.model_construct()
    grid: GridConfig = GridConfig.model_construct()
    refit: bool = Field(False, description="train the best head again on the validation rows too; not for network")
    memory_bytes: Annotated[PositiveInt | None, NOT_IDENTITY] = Field(
        None, description="what vectors or images may take on each machine; more are streamed, or go to its disk; default half"
    )
    loggers: Annotated[tuple[Literal["tensorboard", "mlflow"], ...], NOT_IDENTITY] = Field(
        (), description="where the curves go besides the model folder"
    )
    logs: Annotated[str, NOT_IDENTITY] = Field("tensorboard", description="local folder of TensorBoard's files")
    rebuild: Annotated[bool, NOT_IDENTITY] = Field(False, description="train anew, whatever model is there")
    wait: Annotated[bool, NOT_IDENTITY] = Field(
        False, description="where another run trains this model, wait until it has ended"
    )
    lease_seconds: Annotated[float, NOT_IDENTITY] = Field(
        30.0, ge=2, description="how long a killed run keeps the next one out"
    )
    dry_run: Annotated[bool, NOT_IDENTITY] = Field(
        False, description="check the input and say what would be trained; write nothing"
    )
    network: NetworkConfig | None = Field(None, description="train the network too, not only a head on its vectors")
    local: Annotated[bool, NOT_IDENTITY] = Field(False, description="one process, no Ray; heads always train so")


class ExportConfig(WithStores):
    """`tlray export`: write a trained model as ONNX, and check that it computes the same."""

    model: str = Field(description="folder that `tlray train` made: s3://bucket/key or a local path")
    network: bool = Field(False, description="the whole network with its head, from pixels to scores; default the head alone")
    out: str | None = Field(None, description="the file to write; default head.onnx or model.onnx in the model's folder")
