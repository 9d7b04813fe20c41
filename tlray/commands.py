"""All commands: the name of each, the config that it takes, and the function that carries it out; imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from tlray.config import (
    AdviseConfig,
    AliasConfig,
    DuplicatesConfig,
    ExportConfig,
    ExtractConfig,
    IndexConfig,
    OptimizeConfig,
    PredictConfig,
    ReportConfig,
    SearchConfig,
    ServeConfig,
    ShowConfig,
    TrainConfig,
    VacuumConfig,
    VerifyConfig,
)
from tlray.config.sections.stores import using
from tlray.extras import require


@dataclass(frozen=True)
class Command:
    """A command, as the command line and Python know it.

    Attributes:
        config: of the command.
        function: `module:name` of what carries it out: a function of the config that returns a JSON object.
        summary: what it does, in a line.
        words: keys that may be given as plain words after the command's name, in this order.
        common: keys that its short help shows, besides the required ones.
        example: the arguments of a useful call.
        computes: whether it runs or trains networks, for which its process keeps the memory that they use again and again.
        extra: the optional packages that it is installed with, by their name in pyproject.toml; most need none.
        packages: modules of that extra.
    """

    config: type[BaseModel]
    function: str
    summary: str
    words: tuple[str, ...]
    common: tuple[str, ...]
    example: str
    computes: bool = False
    extra: str = ""
    packages: tuple[str, ...] = ()

    def run(self, config: BaseModel) -> dict[str, Any]:
        """Carry it out and return its JSON object.

        Raises:
            ConfigError: the packages of its extra are not installed; or as its function.
        """
        if self.extra:
            require(self.extra, *self.packages, what=f"tlray {self.extra}")
        module, _, name = self.function.partition(":")
        function: Callable[[BaseModel], dict[str, Any]] = getattr(import_module(module), name)
        with using(getattr(config, "stores", ())):
            return function(config)


_OF_IMAGES = ("source.labels", "source.include", "source.exclude")
_OF_RUNS = ("max_failed_fraction", "local", "dry_run")

COMMANDS = {
    "extract": Command(
        ExtractConfig,
        "tlray.extraction.extract:extract_command",
        "embed images into a table, or bring a table to where its source is",
        words=("source.uri", "table"),
        common=(
            *_OF_IMAGES,
            "recipe.weights",
            "recipe.taps",
            "recipe.pool",
            "recipe.normalize",
            "recipe.precision.compute",
            *_OF_RUNS,
        ),
        example="~/Pictures photos-table --backbone resnet50",
        computes=True,
    ),
    "train": Command(
        TrainConfig,
        "tlray.training.train:train",
        "train a head on a table's vectors, or a network on images",
        words=("table", "out"),
        common=(
            "labels",
            "label_columns",
            "task",
            "split.group",
            "head.kind",
            "source.uri",
            "recipe.backbone",
            "network.freeze",
            "epochs",
            "class_weights",
            "rebuild",
            "dry_run",
        ),
        example="photos-table cats-model --labels labels.csv",
        computes=True,
    ),
    "predict": Command(
        PredictConfig,
        "tlray.prediction.predict:predict_command",
        "run a trained model, a network's own classifier, or class names, over images",
        words=("source.uri", "out"),
        common=("model", "recipe.backbone", "classes", "source.include", "top_k", "threshold", "embeddings", *_OF_RUNS),
        example="~/Pictures photos-cats --model cats-model",
        computes=True,
    ),
    "export": Command(
        ExportConfig,
        "tlray.training.export:export",
        "write a trained model as ONNX, and check that it computes the same",
        words=("model",),
        common=("network", "out"),
        example="cats-model --network",
    ),
    "advise": Command(
        AdviseConfig,
        "tlray.advice.advise:advise",
        "say which network, layer and training suit labelled images, by trying them",
        words=("source.uri",),
        common=(
            "labels",
            "candidates",
            "minutes",
            "images",
            "layers",
            "trials",
            "preprocessing.resize",
            "preprocessing.crop",
            "skip",
            "out",
            "dry_run",
        ),
        example="~/Pictures --labels folder --minutes 10",
        computes=True,
    ),
    "index": Command(
        IndexConfig,
        "tlray.search.build.build_index:index",
        "build an index of a table, or bring an index to where its table is",
        words=("table", "out"),
        common=("metric", "recall_target", "memory_bytes", "factory", "shards", "rebuild", "dry_run"),
        example="photos-table photos-index",
    ),
    "search": Command(
        SearchConfig,
        "tlray.search.query.search:search",
        "find the nearest images to an image, words, a row, a label or a vector",
        words=("index",),
        common=("image", "text", "uri", "by_label", "vector", "queries", "k", "label", "prefix", "where", "columns", "out"),
        example="photos-index --image cat.jpg -k 5",
        computes=True,
    ),
    "duplicates": Command(
        DuplicatesConfig,
        "tlray.search.query.duplicates:duplicates",
        "group images that are nearly the same, and name those that cross splits or labels",
        words=("index",),
        common=("cosine", "splits", "max_groups", "out"),
        example="photos-index --cosine 0.98",
    ),
    "serve": Command(
        ServeConfig,
        "tlray.search.service.serve:serve",
        "answer searches over HTTP, with a page to look at",
        words=("index",),
        common=("host", "port", "token_file", "replicas", "images"),
        example="photos-index --port 8080",
        computes=True,
        extra="serve",
        packages=("fastapi", "uvicorn", "prometheus_client"),
    ),
    "report": Command(
        ReportConfig,
        "tlray.reports.report:report_command",
        "write what a table, model, index or advice is as one HTML file, with pictures",
        words=("uri", "out"),
        common=("other", "pictures"),
        example="photos-table photos.html",
    ),
    "show": Command(
        ShowConfig,
        "tlray.table_commands:show",
        "say what a table is: recipe, counts, failures, size; or how two differ",
        words=("table", "other"),
        common=("version",),
        example="photos-table",
    ),
    "alias": Command(
        AliasConfig,
        "tlray.table_commands:alias",
        "make an alias name a table, or say which table it names",
        words=("alias", "table"),
        common=("if_version",),
        example="photos photos-table",
    ),
    "verify": Command(
        VerifyConfig,
        "tlray.table_commands:verify",
        "read every part of a table again and hold it against the log",
        words=("table",),
        common=("version",),
        example="photos-table",
    ),
    "vacuum": Command(
        VacuumConfig,
        "tlray.table_commands:vacuum",
        "list the files that no version of a table needs; delete them when told to",
        words=("table",),
        common=("retention_hours", "delete"),
        example="photos-table",
    ),
    "optimize": Command(
        OptimizeConfig,
        "tlray.table_commands:optimize",
        "join the small parts of a table into larger ones",
        words=("table",),
        common=(),
        example="photos-table",
    ),
}


def check_report(place: str) -> None:
    """Refuse a place where no report can be written, before a command does its work.

    Raises:
        ConfigError: says why.
    """
    import_module("tlray.reports.place").check_place(place)


def write_report(name: str, result: dict[str, Any], place: str) -> None:
    """Write what a command did as one HTML file.

    Args:
        name: of the command.
        result: its JSON object.
        place: URI or path of the file.
    """
    import_module("tlray.reports.report").report_of_result(name, result, place)
