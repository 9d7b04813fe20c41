"""What a run did, as a frozen object whose `to_dict()` is the JSON object of the command."""

import copy
import difflib
from collections.abc import Iterator
from typing import Any

from tlray.api.display.html import keys_and_values


class Result:
    """The result of a run. Its keys are attributes; a key that this run has nothing to say of is absent, as in the JSON.

    Args:
        document: the JSON object of the command.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.__dict__["_document"] = document

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the command."""
        return copy.deepcopy(self._document)

    def __getattr__(self, name: str) -> Any:
        document = self.__dict__.get("_document", {})
        if name in document:
            return copy.deepcopy(document[name])
        near = difflib.get_close_matches(name, document, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(document)}"
        raise AttributeError(f"this {type(self).__name__} has no {name}{hint}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} says what was done and cannot be changed: {name} = {value!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._document]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._document == self._document

    __hash__ = None  # type: ignore[assignment]  # it holds lists

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._shown())})"

    def _shown(self) -> Iterator[str]:
        for key, value in self._document.items():
            if isinstance(value, (str, int, float)) or value is None:
                yield f"{key}={value!r}"

    def _repr_html_(self) -> str:
        return keys_and_values(type(self).__name__, self._document)


class ExtractResult(Result):
    """What `tlray.extract` did to a table; `seconds` and `images_per_second` are those of the whole call.

    Attributes:
        table: its URI.
        recipe_id: fingerprint of its recipe.
        run: id of the run, which begins the names of the parts that it wrote.
        version: of the table, after the run.
        listed: images of the source.
        new: of them, that the table did not hold.
        changed: of them, whose bytes or label are others than the table held.
        deleted: images of the table that the source has no longer.
        unchanged: images that were left alone.
        ok: images that were embedded.
        failed: images that could not be used.
        failures: their number by code.
        left_out: names of the source that were not taken, by reason.
        unlabelled: images without a label, where labels were asked for.
        bottleneck: the stage that bounded the run.
        advice: what would make it faster.
    """

    table: str
    recipe_id: str
    run: str
    version: int
    listed: int
    new: int
    changed: int
    deleted: int
    unchanged: int
    ok: int
    failed: int
    failures: dict[str, int]
    left_out: dict[str, int]
    unlabelled: int
    seconds: float
    images_per_second: float
    bottleneck: str
    advice: str


class PredictResult(ExtractResult):
    """What `tlray.predict` did to a table of predictions.

    Attributes:
        model_id: fingerprint of recipe and head.
        file: URI of the CSV or Parquet file that was written, or None where `out` names a table.
    """

    model_id: str
    file: str | None


class TrainResult(Result):
    """What one call of `tlray.train` did.

    Attributes:
        model: URI of the model's folder.
        action: `trained`, or `unchanged` where this very model was there.
        recipe_id: fingerprint of the recipe that its vectors are made by.
        task: what is predicted: `single`, `multi` or `regression`.
        outputs: number of classes, or of numbers.
        metrics: by split.
    """

    model: str
    action: str
    recipe_id: str
    task: str
    outputs: int
    metrics: dict[str, Any]


class IndexResult(Result):
    """What one call of `tlray.build_index` did.

    Attributes:
        index: its URI.
        action: what was done.
        version: of the index.
        table: URI of its table.
        table_version: the version of the table that it holds.
        rows: that can be found.
    """

    index: str
    action: str
    version: int
    table: str
    table_version: int
    rows: int


class AdviseResult(Result):
    """What `tlray.advise` found out, and recommends.

    Attributes:
        verdict: `recommended`, `cannot tell` (others are within the error of the recommendation) or `nothing`.
        reason: why, in a sentence.
        recommendation: the strategy, its candidate and layer, the expected accuracy and its interval, the cost, and the
            commands that do it; None for `nothing`.
        strategies: all that were measured, likewise.
        candidates: what was measured of each network, layer by layer.
        scenario: where the task lies on the map of four scenarios.
        data: what is odd about images and labels.
    """

    verdict: str
    reason: str
    recommendation: dict[str, Any] | None
    strategies: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    scenario: dict[str, Any]
    data: dict[str, Any]


class ReportResult(Result):
    """The file that `tlray.report` wrote.

    Attributes:
        report: URI of the file.
        of: what it is of: `table`, `model`, `index`, `advice` or `comparison`.
        size_bytes: of the file.
    """

    report: str
    of: str
    size_bytes: int
