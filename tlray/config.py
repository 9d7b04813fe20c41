"""One typed config a command: a YAML file, overridden by flags, strict about unknown keys."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
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
    listing: str | None = Field(
        None,
        description="instead of listing uri: an S3 Inventory's manifest.json, a .csv, .tsv or .parquet file with a column of "
        "names, or a text file with one name a line",
    )
    keys_from: str | None = Field(None, description="only names from this one on, relative to uri")
    keys_to: str | None = Field(None, description="only names before this one, relative to uri")
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


class RunConfig(_Section):
    """What the commands have in common that bring a table to where its source is."""

    source: SourceConfig
    retry_failed: tuple[FailureCode, ...] = Field(
        ("fetch_failed",), description="embed again the images that failed with these codes"
    )
    policy: PolicyConfig = PolicyConfig()
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="more failed images of this run: exit code 3")
    local: bool | None = Field(
        None, description="one process, no Ray; default: where no cluster and no GPU is found, on up to 8 cores"
    )
    wait: bool = Field(False, description="where another run holds the table, wait until it is free")
    lease_seconds: float = Field(
        30.0, ge=2, description="how long a killed run keeps the next one out; a store may be away for less without harm"
    )
    dry_run: bool = Field(False, description="print the plan and an estimate; write nothing")


class ExtractConfig(RunConfig):
    """`tlray extract`: bring a table of embeddings to where its source is."""

    recipe: RecipeConfig
    table: str = Field(description="where the table is or is to be: s3://bucket/key or a local path")


class PredictConfig(RunConfig):
    """`tlray predict`: run a model over images, and bring a table of predictions to where their source is."""

    model: str | None = Field(None, description="folder that `tlray train` made: s3://bucket/key or a local path")
    recipe: RecipeConfig | None = Field(None, description="in place of model: a pretrained network with its own classifier")
    out: str = Field(description="where the table of predictions is or is to be: s3://bucket/key or a local path")
    top_k: PositiveInt = Field(5, description="best labels to keep of each image")
    threshold: float = Field(0.5, gt=0, lt=1, description="several labels an image: those of at least this probability")
    embeddings: bool = Field(False, description="keep the vectors that the predictions were made from too")


class ExportConfig(_Section):
    """`tlray export`: write a trained model as ONNX, and check that it computes the same."""

    model: CliPositionalArg[str] = Field(description="folder that `tlray train` made: s3://bucket/key or a local path")
    network: bool = Field(False, description="the whole network with its head, from pixels to scores; default the head alone")
    out: str | None = Field(None, description="the file to write; default head.onnx or model.onnx in the model's folder")


class ShowConfig(_Section):
    """`tlray show URI [OTHER]`: what a table is: recipe, counts, failures, size; or how two tables differ."""

    table: CliPositionalArg[str] = Field(description="URI or path of the table")
    other: CliPositionalArg[str | None] = Field(None, description="a second table, to be compared with the first")
    version: int | None = Field(None, ge=0, description="of the first table; default the newest")


class AliasConfig(_Section):
    """`tlray alias URI [TABLE]`: make an alias name a table, or say which it names."""

    alias: CliPositionalArg[str] = Field(description="URI or path of the alias")
    table: CliPositionalArg[str | None] = Field(None, description="table that it is to name from now on")
    if_version: int | None = Field(None, ge=0, description="only where the alias is at this version; 0: only if it is new")


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
    shards: PositiveInt = Field(1, description="pieces of an IVF index that Ray builds in parallel, to be merged into one")
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
    workers: int = Field(0, ge=0, description="processes on Ray that answer queries; 0: this one, without Ray")


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
    replicas: PositiveInt = Field(1, description="processes that answer; more than one run under Ray Serve")
    token_file: str | None = Field(None, description="file whose first line every request must bring as its bearer token")
    images: bool = Field(True, description="load the network, so that images can be searched by")
    max_body_bytes: PositiveInt = Field(16 * 2**20, description="larger requests are refused: 413")
    max_image_pixels: PositiveInt = Field(64_000_000, description="larger images are not decoded: 422")
    max_k: PositiveInt = Field(200, description="answers to one query")
    max_batch: PositiveInt = Field(64, description="queries of one request")
    max_concurrency: PositiveInt = Field(64, description="requests at work or waiting; more are refused: 429")
    timeout_seconds: float = Field(20.0, gt=0, description="a request that takes longer is answered with 504")
    reload_seconds: float = Field(5.0, gt=0, description="how often to look for a newer version of the index")


class SplitConfig(_Section):
    """Which images are trained on, chosen by and tested on."""

    validation: float = Field(0.15, gt=0, lt=1, description="share of each class that the best head is chosen by")
    test: float = Field(0.15, ge=0, lt=1, description="share of each class that is only measured on")
    column: str | None = Field(
        None, description="column of the labels file that says train, validation or test; wins over shares"
    )
    group: str | None = Field(None, description="column of the labels file; images of one value stay on one side")
    group_duplicates: float | None = Field(None, gt=0, le=1, description="images of at least this cosine stay on one side")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on; expected a sum under 1"
            )
        return self


class HeadConfig(_Section):
    """What is trained on top of the vectors."""

    kind: Literal["linear", "mlp", "ridge"] = Field("linear", description="ridge: least squares in closed form")
    hidden: tuple[PositiveInt, ...] = Field((), description="widths of an MLP's hidden layers; default 256")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")
    solver: Literal["auto", "cg", "adamw"] = Field(
        "auto",
        description="cg: conjugate gradients on all rows at once, for linear heads on vectors that fit in memory; "
        "auto: cg where that is so and no learning rates are given",
    )


class GridConfig(_Section):
    """Heads that are trained together, one for each combination; the best on validation is kept."""

    learning_rates: tuple[float, ...] = Field((), description="of adamw; default 0.0001, 0.001 and 0.01")
    weight_decays: tuple[float, ...] = Field((), description="L2 penalties (adamw: decoupled); default several, by the solver")
    columns: tuple[str, ...] = Field((), description="embedding columns; default the only one")


class NetworkConfig(_Section):
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
    workers: PositiveInt = Field(1, description="processes of Ray Train, one GPU or CPU each")
    max_workers: PositiveInt | None = Field(None, description="take as many as the cluster has, from workers up to these")
    max_failures: int = Field(3, ge=0, description="how often lost workers are replaced")
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="images that cannot be read; more end the training")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints: what a killed run loses at most")

    @field_validator("freeze", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) else value


class TrainConfig(_Section):
    """`tlray train`: a head on a table's vectors, or a network from a source's images."""

    table: str | None = Field(None, description="table of embeddings to train on: s3://bucket/key or a local path")
    table_version: int | None = Field(None, ge=0, description="default the newest")
    source: SourceConfig | None = Field(None, description="images to train a network on, instead of table")
    recipe: RecipeConfig | None = Field(None, description="the network that is trained; needed with source")
    out: str = Field(description="folder of the model: s3://bucket/key or a local path")
    labels: str = Field("column", description="column (the table's or source's own), folder, or a .csv, .tsv or .parquet file")
    label_columns: tuple[str, ...] = Field(("label",), description="columns of the labels file; several for a regression")
    separator: str = Field(";", min_length=1, description="between the labels of one image; for task multi")
    task: Literal["single", "multi", "regression"] = Field("single", description="one label an image, any number, or numbers")
    skip: tuple[Literal["unlabelled", "missing", "rare"], ...] = Field(
        (), description="leave out and count, instead of refusing: images without label, labels without image, too rare classes"
    )
    split: SplitConfig = SplitConfig.model_construct()
    head: HeadConfig = HeadConfig.model_construct()
    grid: GridConfig = GridConfig.model_construct()
    refit: bool = Field(False, description="train the best head again on the validation rows too; not for network")
    epochs: PositiveInt = Field(100, description="passes over the training rows at most")
    patience: PositiveInt = Field(5, description="epochs without a better validation loss before a head stops")
    batch_size: PositiveInt = Field(256, description="rows a step, of adamw")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: each class (multi: each label's two sides) counts the same"
    )
    seed: int = Field(0, ge=0, description="of splits, first weights and order")
    memory_bytes: PositiveInt | None = Field(
        None, description="what vectors or images may take on each machine; more are streamed, or go to its disk; default half"
    )
    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (), description="where the curves go besides the model folder"
    )
    logs: str = Field("tensorboard", description="local folder of TensorBoard's files")
    rebuild: bool = Field(False, description="train anew, whatever model is there")
    wait: bool = Field(False, description="where another run trains this model, wait until it has ended")
    lease_seconds: float = Field(30.0, ge=2, description="how long a killed run keeps the next one out")
    dry_run: bool = Field(False, description="check the input and say what would be trained; write nothing")
    network: NetworkConfig | None = Field(None, description="train the network too, not only a head on its vectors")
    local: bool = Field(False, description="one process, no Ray; heads always train so")
