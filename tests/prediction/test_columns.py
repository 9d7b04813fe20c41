"""Scores to columns, against torch; and the stages of a run on GPUs, without Ray's processes."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tlray.extraction.worker.prediction_columns import best, prediction_columns
from tlray.lake.table.parts import encode_part, rows_of
from tlray.lake.table.schema import prediction_fields
from tlray.models.layers.heads import HeadSpec
from tlray.predictor import Output, Task
from tlray.scoring import probabilities_of


def output_of(task: Task, classes: int, **changes: object) -> Output:
    names = tuple(f"class {index}" for index in range(classes))
    fields = {"model": "m", "column": "embedding", "task": task, "classes": names, "top_k": min(3, classes), "threshold": 0.5}
    return Output(**(fields | changes))


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_the_best_are_torchs(classes: int) -> None:
    scores_BK = np.random.default_rng(0).standard_normal((50, classes)).astype(np.float32)
    count = min(5, classes)
    assert (best(scores_BK, count) == torch.from_numpy(scores_BK).topk(count).indices.numpy()).all()


def test_large_scores_stay_finite() -> None:
    scores_BK = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], np.float32)
    scores = torch.from_numpy(scores_BK)
    assert np.allclose(probabilities_of(scores_BK, "single"), scores.softmax(dim=1), atol=1e-6)
    assert np.allclose(probabilities_of(scores_BK, "multi"), scores.sigmoid(), atol=1e-6)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_columns_are_as_promised_and_survive_parquet(task: Task) -> None:
    output = output_of(task, 4)
    scores_BK = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32) * 3
    columns = prediction_columns(scores_BK, output)
    fields = prediction_fields(output)
    assert list(columns) == [field.name for field in fields]
    rows = rows_of(encode_part(pa.table(columns), "id"))
    assert [(field.name, field.type) for field in rows.schema] == [(field.name, field.type) for field in fields]
    assert rows.to_pydict() == {name: column.to_pylist() for name, column in columns.items()}
    if task == "multi":
        expected = (torch.from_numpy(scores_BK).sigmoid() >= 0.5).sum(dim=1).tolist()
        assert [len(labels) for labels in columns["predictions"].to_pylist()] == expected and 0 < sum(expected) < 36


class NewerOutput(Output):
    novelty: float = 0.5


class NewerHeadSpec(HeadSpec):
    novelty: bool = False


def test_a_field_that_comes_later_leaves_the_tables_that_exist_what_they_are() -> None:
    """The ids are those of version 0.1."""
    fields = {"model": "m", "column": "embedding", "task": "single", "classes": ("a", "b"), "top_k": 2, "threshold": 0.5}
    kinds = (HeadSpec, NewerHeadSpec)
    spec = {"kind": "mlp", "inputs": 96, "outputs": 2, "hidden": (8,), "dropout": 0.5}
    text = '{"kind":"mlp","inputs":96,"outputs":2,"hidden":[8],"dropout":0.5}'
    assert [kind(**spec).to_json() for kind in kinds] == [text, text] and NewerHeadSpec(**spec, novelty=True).to_json() != text
    head = {"sha256": "a" * 64, "spec_json": text}
    one, newer = Output(**fields, head=head), NewerOutput(**fields, head=head)
    expected = "2b274387701bf1a14f400f8a6c581b12e73b8b805f94ecd084d5f65da00719e3"
    assert one.model_id("r" * 64) == newer.model_id("r" * 64) == expected
    assert NewerOutput(**fields, head=head, novelty=0.7).model_id("r" * 64) != expected


def test_the_model_id_is_of_all_that_changes_the_rows() -> None:
    one = output_of("single", 4)
    assert one.model_id("r") == one.model_copy(update={"model": "moved"}).model_id("r")
    changed = [one.model_copy(update={"top_k": 2}), output_of("multi", 4), output_of("single", 5)]
    assert len({one.model_id("r"), one.model_id("s"), *(other.model_id("r") for other in changed)}) == 5
