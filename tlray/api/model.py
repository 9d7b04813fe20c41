"""`tlray.Model`: what `tlray.train` made, used in Python.

Shape legend: B images, H height, W width, C channels, K outputs, N all images.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from tlray.api.display.html import rows_of
from tlray.api.embedding.networks import CHUNK_IMAGES, Placement, inputs_of
from tlray.api.embedding.running import Inputs, OnError, Runner, check_on_error
from tlray.config import THRESHOLD
from tlray.errors import ConfigError
from tlray.extraction.worker.prediction_columns import prediction_columns
from tlray.lake.storage.uri import to_uri
from tlray.predictor import HEAD_SCORES, Output
from tlray.recipe import AnyRecipe

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_ROWS = 20


class Predictions(Sequence[dict[str, Any]]):
    """What a model says of some images, a row each, in their order; a notebook shows them as a table.

    A row has the columns that `tlray predict` stores: for one label an image `prediction` and `probability`, for several
    `predictions`, both with `top_labels` and `top_probabilities`; for a regression `values`. Where an image could not be used
    (`on_error="nan"`) they are None.

    Args:
        rows: those columns, and `image`: the image's address, or its position.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: Any) -> Any:
        rows = self._rows.to_pylist()
        return rows[position]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.to_pylist())

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, or its list of labels, as an array of N objects.

        Raises:
            ConfigError: the model is a regression, which has `values`.
        """
        name = next((name for name in ("prediction", "predictions") if name in self._rows.column_names), None)
        if name is None:
            raise ConfigError("a regression gives numbers, not labels; see `values`")
        labels = np.empty(len(self), object)
        labels[:] = self._rows[name].to_pylist()
        return labels

    @property
    def values(self) -> np.ndarray:
        """The numbers of a regression, values_NK, float32; NaN where an image could not be used.

        Raises:
            ConfigError: the model gives labels.
        """
        if "values" not in self._rows.column_names:
            raise ConfigError("this model gives labels, not numbers; see `labels`")
        rows = self._rows["values"].to_pylist()
        width = next((len(row) for row in rows if row is not None), 0)
        return np.array([[np.nan] * width if row is None else row for row in rows], np.float32).reshape(len(rows), width)

    def to_arrow(self) -> pa.Table:
        """All columns of the predictions as an Arrow table."""
        return self._rows

    def to_pandas(self) -> "pd.DataFrame":
        """All columns of the predictions as a pandas DataFrame."""
        return self._rows.to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """The predictions as a JSON object: `predictions`, a list of rows."""
        return {"predictions": self._rows.to_pylist()}

    def __repr__(self) -> str:
        return f"<tlray.Predictions of {len(self)} images>"

    def _repr_html_(self) -> str:
        return rows_of(repr(self), self._rows.slice(0, _SHOWN_ROWS).to_pylist())


class Model:
    """A trained model, ready to predict; its network is loaded when it is first needed. May be called from several threads.

    Args:
        uri: URI or path of the folder that `tlray train` made.
        device: `auto` (CUDA, else Apple's MPS, else the CPU) or a name that torch knows.
        batch_size: images of one forward pass; default by the device.

    Raises:
        ModelMissingError: there is none.
        ModelCorruptError: a file is not what the model's card says.
    """

    def __init__(self, uri: str | os.PathLike[str], *, device: str = "auto", batch_size: int | None = None) -> None:
        from tlray.training.model.model import load_model  # imports torch

        self.uri = to_uri(os.fspath(uri))
        self._model = load_model(self.uri)
        self._placement = Placement(device, batch_size)
        self._lock = threading.Lock()
        self._loaded: tuple[Runner, Output] | None = None

    @property
    def task(self) -> str:
        """What it predicts: `single`, one label an image; `multi`, any number of labels; `regression`, numbers."""
        return self._model.card.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's outputs, K of them."""
        return self._model.card.classes

    @property
    def recipe(self) -> AnyRecipe:
        """How the vectors are made that its head takes."""
        return self._model.card.recipe

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured when it was trained, by split."""
        return {split: evaluation.model_dump(mode="json") for split, evaluation in self._model.card.metrics.items()}

    def predict(self, images: Any, *, top_k: int = 5, threshold: float = THRESHOLD, on_error: OnError = "raise") -> Predictions:
        """What the model says of images; the same as `tlray predict` stores.

        Args:
            images: or texts, in any form that `tlray.Encoder` takes.
            top_k: best labels to keep of each image.
            threshold: where an image may have several labels: those of at least this probability.
            on_error: `raise` an ImageError that names the image that cannot be used, or `nan`: a row of None.

        Raises:
            ConfigError: a wrong argument, or something that is no image.
            ImageError: an image cannot be used.
            GoldenMismatchError: this machine computes other numbers than the model was trained on.
        """
        from tlray.prediction.predict import check_threshold

        check_on_error(on_error)
        runner, output = self._load()
        check_threshold(threshold, output)
        changes = {"top_k": min(top_k, len(output.classes)), "threshold": threshold}
        try:
            output = Output.model_validate(output.model_dump() | changes)
        except ValidationError as error:
            raise ConfigError(f"top_k {top_k!r} and threshold {threshold!r}: {error.errors()[0]['msg']}") from error
        names: list[str] = []
        scores_NK = runner.run(_watched(images, names, runner.inputs), on_error)
        ok_N = np.isfinite(scores_NK).all(axis=1)
        columns = pa.table(prediction_columns(scores_NK[ok_N], output))
        positions_N = pa.array(np.cumsum(ok_N) - 1, pa.int64(), mask=~ok_N)
        return Predictions(columns.take(positions_N).add_column(0, "image", pa.array(names, pa.string())))

    def __repr__(self) -> str:
        return f"<tlray.Model {self.uri}, {self.task}, {len(self.classes)} outputs, {self.recipe.backbone}>"

    def _load(self) -> tuple[Runner, Output]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._make()
            return self._loaded

    def _make(self) -> tuple[Runner, Output]:
        from tlray.extraction.worker.scoring_encoder import ScoringEncoder
        from tlray.prediction.predict import trained

        target = trained(self.uri, top_k=1, threshold=THRESHOLD, embeddings=False)
        output, recipe = target.output, target.backbone.recipe
        assert output is not None
        network = self._placement.network(target.backbone, target.known)
        scoring = ScoringEncoder(network, self._model.head, output.column, recipe.precision.storage)

        def scores_of(prepared: np.ndarray) -> np.ndarray:
            return scoring.encode_timed(prepared)[0][HEAD_SCORES]

        chunk = max(CHUNK_IMAGES, 2 * network.batch_size)
        return Runner(recipe, inputs_of(target.backbone), scores_of, len(output.classes), chunk), output


def _watched(images: Any, names: list[str], inputs: Inputs) -> Iterator[Any]:
    """The images or texts, each of which leaves its name as it passes."""
    for position, image in enumerate(inputs.each(images)):
        names.append(inputs.label_of(position, image))
        yield image
