"""The commands as functions: keyword arguments are the config's keys, results are objects."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union

from tlray.api.display.results import AdviseResult, ExtractResult, IndexResult, PredictResult, ReportResult, TrainResult
from tlray.api.keywords import config_of
from tlray.config import AdviseConfig, ExtractConfig, IndexConfig, PredictConfig, ReportConfig, TrainConfig
from tlray.config.sections.stores import using

if TYPE_CHECKING:
    from tlray.api.model import Model
    from tlray.api.table import TableView

Place = str | os.PathLike[str]
"""A path or a URI of a table, a model, an index or a source."""


def extract(
    source: Place | Mapping[str, Any] | None = None,
    table: Union[Place, "TableView", None] = None,
    backbone: str | None = None,
    *,
    config: Place | None = None,
    **keys: Any,
) -> ExtractResult:
    """Embed images into a table, or bring a table to where its source is, as `tlray extract` does.

    Run again, it embeds only what is new or changed; killed at any moment, the next call goes on from the last commit.

    Args:
        source: folder, manifest, shards or Parquet files of images; or the whole section, such as
            `{"uri": "s3://photos/", "labels": "folder"}`.
        table: URI or path of the table; made where there is none.
        backbone: `torchvision:<model>`, `timm:<model>`, or the model alone.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray extract`, nested (`recipe={"pool": "max"}`), dotted (`**{"recipe.pool": "max"}`) or by
            its short spelling (`pool="max"`).

    Raises:
        ConfigError: the input is wrong; nothing was started.
        TooManyFailuresError: more images failed than `max_failed_fraction` allows; all that was done is committed.
        TlrayError: the run could not go on; what was committed stays, and the same call goes on from there.
    """
    words = {"source.uri": source, "table": table, "recipe.backbone": backbone}
    given = config_of(ExtractConfig, words, keys, config)
    from tlray.extraction.extract import extract as run

    with using(given.stores):
        return ExtractResult(run(given))


def predict(
    source: Place | Mapping[str, Any] | None = None,
    out: Union[Place, "TableView", None] = None,
    model: Union[Place, "Model", None] = None,
    *,
    config: Place | None = None,
    **keys: Any,
) -> PredictResult:
    """Run a model over images, and bring a table of predictions to where their source is, as `tlray predict` does.

    Args:
        source: of images, see `extract`.
        out: URI or path of the table of predictions; made where there is none.
        model: that `train` made; or give a `backbone`, whose own classifier is used.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray predict`; see `extract`.

    Raises:
        ConfigError, TooManyFailuresError, TlrayError: as `extract`.
    """
    given = config_of(PredictConfig, {"source.uri": source, "out": out, "model": model}, keys, config)
    from tlray.prediction.predict import predict as run

    with using(given.stores):
        return PredictResult(run(given))


def train(
    table: Union[Place, "TableView", None] = None, out: Place | None = None, *, config: Place | None = None, **keys: Any
) -> TrainResult:
    """Train a head on a table's vectors, or a network on images, as `tlray train` does.

    Args:
        table: of embeddings; to train a network on images give `source={"uri": ...}` and a `backbone` instead.
        out: URI or path of the model's folder.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray train`; see `extract`.

    Raises:
        ConfigError: the input is wrong, or another model is there; nothing was written.
        TlrayError: the training could not go on.
    """
    given = config_of(TrainConfig, {"table": table, "out": out}, keys, config)
    from tlray.training.train import train as run

    with using(given.stores):
        return TrainResult(run(given))


def build_index(
    table: Union[Place, "TableView", None] = None, out: Place | None = None, *, config: Place | None = None, **keys: Any
) -> IndexResult:
    """Build an index of a table, or bring an index to where its table is, as `tlray index` does.

    Args:
        table: of embeddings.
        out: URI or path of the index; made where there is none.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray index`; see `extract`.

    Raises:
        ConfigError: the input is wrong; nothing was written.
        TlrayError: the build could not go on.
    """
    given = config_of(IndexConfig, {"table": table, "out": out}, keys, config)
    from tlray.search.build.build_index import index as run

    with using(given.stores):
        return IndexResult(run(given))


def advise(source: Place | Mapping[str, Any] | None = None, *, config: Place | None = None, **keys: Any) -> AdviseResult:
    """Say which network, layer and training suit labelled images, by trying them on a sample, as `tlray advise` does.

    Args:
        source: of labelled images, see `extract`.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray advise`, such as `candidates=[...]` and `minutes=5`; see `extract`.

    Raises:
        ConfigError: the input is wrong, or the minutes are too few for one candidate.
        TlrayError: the sample could not be read.
    """
    given = config_of(AdviseConfig, {"source.uri": source}, keys, config)
    from tlray.advice.advise import advise as run

    with using(given.stores):
        return AdviseResult(run(given))


def report(
    uri: Union[Place, "TableView", "Model", None] = None, out: Place | None = None, *, config: Place | None = None, **keys: Any
) -> ReportResult:
    """Write what a table, a model, an index or advice is as one HTML file, as `tlray report` does.

    Args:
        uri: of a table, a model, an index, or the JSON file that `advise` wrote.
        out: URI or path of the .html file.
        config: path or URI of a YAML file with the same keys; arguments win.
        keys: any other key of `tlray report`, such as `other=` for a second table; see `extract`.

    Raises:
        ConfigError: nothing of tlray's is there, or the file cannot be written.
    """
    given = config_of(ReportConfig, {"uri": uri, "out": out}, keys, config)
    from tlray.reports.report import report_command as run

    with using(given.stores):
        return ReportResult(run(given))
