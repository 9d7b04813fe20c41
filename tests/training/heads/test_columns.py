"""Heads trained on the rows of which a condition holds, with labels, splits and groups out of any column of the table."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.factories import add_columns
from tests.photos import error_of, result_of, tlray
from tests.training.tables import blobs, config_for, write_table
from tlray.columns.column import Column
from tlray.lake.table.carried import with_values
from tlray.lake.table.parts import Change, read_part, write_part
from tlray.lake.table.table import Table
from tlray.training.heads.train_heads import HeadTraining
from tlray.training.model.model import read_card
from tlray.training.model.rerun import with_whole_uris
from tlray.training.train import train

ROWS = 400
COLUMNS = {"species": "text", "weight": "number", "fold": "text", "animal": "integer", "tags": "text[]", "is_wild": "boolean"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Vectors of five classes, which are in `species`, not in the label."""
    features, classes = blobs(ROWS)
    table = write_table(tmp_path / "table", {"embedding": features}, [None] * ROWS)
    add_columns(table, [Column(name=name, type=word) for name, word in COLUMNS.items()])
    changes = []
    for part in table.parts():
        rows = read_part(table.uri, part.path)
        numbers = np.array([int(uri[-9:-4]) for uri in rows["uri"].to_pylist()])
        values = pa.table(
            {
                "species": [None if at % 40 == 7 else f"species {classes[at]}" for at in numbers],
                "weight": features[numbers, 0].astype(np.float64) * 2 + 1,
                "fold": [("train", "train", "validation", "test")[at % 4] for at in numbers],
                "animal": pa.array(numbers // 3, pa.int64()),
                "tags": [[f"tag {classes[at]}", "all"] for at in numbers],
                "is_wild": [bool(classes[at] % 2) for at in numbers],
            }
        )
        changes.append((part, with_values(rows, np.arange(len(rows)), values)))
    recipe_id = table.recipe_file.recipe_id
    parts = [write_part(table.uri, rows, status="ok", stem="with", recipe_id=recipe_id) for _, rows in changes]
    table.commit(Change(parts, [part for part, _ in changes]), app_id="columns", sequence=1, info={})
    return tmp_path


def examples_of(folder: Path, **changes: object) -> HeadTraining:
    training = HeadTraining(with_whole_uris(config_for(folder, **changes)))
    training.prepare()
    return training


def test_labels_come_from_any_column(folder: Path) -> None:
    arguments = ["train", "--table", folder / "table", "--out", folder / "model", "--label-columns", "species"]
    assert "10 images have no label" in error_of(tlray(*arguments))
    result = result_of(tlray(*arguments, "--skip", "unlabelled"))
    assert result["outputs"] == 5 and result["metrics"]["test"]["accuracy"]["value"] > 0.8
    frame = pl.scan_delta(str(folder / "table")).collect()
    card = read_card(f"file://{folder}/model")
    assert sum(card.metrics[name].rows for name in ("train", "validation", "test")) == frame["species"].drop_nulls().len()
    assert card.classes == tuple(sorted(frame["species"].drop_nulls().unique()))


def test_only_rows_of_which_the_condition_holds_are_trained_on(folder: Path) -> None:
    where = "animal >= 40 and species <> 'species 3'"
    frame = pl.scan_delta(str(folder / "table")).collect().filter((pl.col("animal") >= 40) & (pl.col("species") != "species 3"))
    training = examples_of(folder, label_columns=["species"], where=where)
    wanted = dict(frame.select("uri", "species").iter_rows())
    found = [training.examples.classes[at] for at in training.examples.targets]
    assert dict(zip(training.examples.uris.to_pylist(), found, strict=True)) == wanted
    # The vectors are those of these very rows.
    vectors = dict(frame.select("uri", "embedding").iter_rows())
    features_ND = training._data["embedding"].vectors.features_ND  # type: ignore[union-attr]
    for uri, vector in zip(training.examples.uris.to_pylist(), features_ND, strict=True):
        assert np.array_equal(vector, np.array(vectors[uri], np.float32))
    streamed = examples_of(folder, label_columns=["species"], where=where, memory_bytes=2000)
    blocks = list(streamed._data["embedding"].vectors.blocks(np.ones(len(wanted), bool)))
    positions = np.concatenate([at for at, _ in blocks])
    assert sorted(positions.tolist()) == list(range(len(wanted)))
    assert np.array_equal(np.concatenate([block for _, block in blocks])[np.argsort(positions)], features_ND)


def test_splits_groups_numbers_and_lists_come_from_columns(folder: Path) -> None:
    frame = pl.scan_delta(str(folder / "table")).collect().sort("uri")
    training = examples_of(folder, label_columns=["is_wild"], split={"column": "fold"})
    assert training.examples.classes == ("false", "true")
    fold = {0: "train", 1: "validation", 2: "test"}
    assert [fold[at] for at in training.examples.splits_N] == frame["fold"].to_list()
    grouped = examples_of(folder, label_columns=["is_wild"], split={"group": "animal"}).examples
    sides: dict[int, set[int]] = {}
    for animal, side in zip(frame["animal"].to_list(), grouped.splits_N.tolist(), strict=True):
        sides.setdefault(animal, set()).add(side)
    assert all(len(one) == 1 for one in sides.values())
    numbers = examples_of(folder, label_columns=["weight", "animal"], task="regression").examples
    assert np.allclose(numbers.targets, frame.select("weight", "animal").to_numpy())
    several = examples_of(folder, label_columns=["tags"], task="multi").examples
    assert several.classes == ("all", *(f"tag {at}" for at in range(5)))
    assert several.targets[:, 0].all() and (several.targets.sum(axis=1) == 2).all()


def test_another_condition_is_another_model(folder: Path) -> None:
    config = config_for(folder, label_columns=["is_wild"], where="animal > 20")
    assert train(config)["action"] == "trained" and train(config)["action"] == "unchanged"
    other = tlray("train", "--table", folder / "table", "--out", folder / "model", "--label-columns", "is_wild")
    assert "where" in error_of(other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--label-columns", "specie"], "has no column specie to train by; it has uri"),
        (["--label-columns", "embedding"], "has no column embedding to train by"),
        (["--label-columns", "is_wild", "--where", "weight <"], "at character"),
        (["--label-columns", "is_wild", "--where", "wight < 3"], "did you mean weight"),
        (["--label-columns", "is_wild", "--where", "animal < 0"], "no row of"),
        (["--label-columns", "tags"], "several labels"),
        (["--labels", "folder", "--label-columns", "species"], "label_columns"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, more: list[str], said: str) -> None:
    assert said in error_of(tlray("train", "--table", folder / "table", "--out", folder / "model", *more))
    assert not (folder / "model").exists()


def test_a_network_from_images_has_no_columns(tmp_path: Path) -> None:
    arguments = ["train", "--source.uri", tmp_path, "--recipe.backbone", "timm:test_resnet", "--out", tmp_path / "m"]
    arguments += ["--network.freeze", "none", "--local"]
    assert "are of tables" in error_of(tlray(*arguments, "--where", "a < 1"))
    assert "are of tables" in error_of(tlray(*arguments, "--source.columns", "site"))


def test_columns_of_a_table_stay_as_they_are_when_it_is_opened_anew(folder: Path) -> None:
    carried = {column.name: column.type for column in Table.open(f"file://{folder}/table").carried}
    assert carried == COLUMNS
