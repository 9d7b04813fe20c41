"""What reports say: the numbers of the table as Polars counts them, and of the documents that they are of."""

import html
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.advice.pictures import write_stripes
from tests.photos import RECIPE, error_of, frame_of, result_of, tlray
from tests.reports.conftest import FAILURES, Things
from tlray.reports.place import MAX_BYTES


def words_of(path: Path) -> str:
    """The text of a page, without its marks."""
    text = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def value_of(words: str, name: str) -> str:
    """What stands after a name in the text of a page."""
    found = re.search(rf"{re.escape(name)} ([^ ]+)", words)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("name", ["extract", "train", "index", "advise"])
def test_a_command_writes_one_file_that_needs_nothing(things: Things, name: str) -> None:
    path = things.folder / f"{name}.html"
    text = path.read_text()
    assert path.stat().st_size < MAX_BYTES
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert set(re.findall(r'(?:src|href)="([a-z]+):', text)) <= {"data"}


def test_a_table_is_counted_as_polars_counts_it(things: Things) -> None:
    words, frame = words_of(things.folder / "extract.html"), frame_of(things.table)
    assert f"{len(frame)} rows" in words and f"{frame['error'].is_not_null().sum()} failed" in words
    for code, count in FAILURES.items():
        assert frame.filter(pl.col("error") == code).height == count and f"{code} {count} (" in words
    assert "half & half.png" in words and "<b>half" not in (things.folder / "extract.html").read_text()
    vectors = np.stack(frame.filter(pl.col("error").is_null())["embedding"].to_list())
    assert value_of(words, "dimensions") == str(vectors.shape[1])
    assert value_of(words, "always zero") == str(int((~vectors.any(axis=0)).sum()))
    assert value_of(words, "length of a vector") == f"{np.linalg.norm(vectors, axis=1).mean():.4g},"


def test_a_model_says_what_its_card_says(things: Things) -> None:
    words = words_of(things.folder / "train.html")
    card = json.loads((things.model / "model.json").read_text())
    accuracy = card["metrics"]["test"]["accuracy"]
    assert f"accuracy {accuracy['value']:.4f} {accuracy['low']:.4f} to {accuracy['high']:.4f}" in words
    wrong = sum(map(sum, card["metrics"]["test"]["confusion"])) - np.trace(card["metrics"]["test"]["confusion"])
    assert (f"surest of {wrong} mistakes" in words) == bool(wrong) and "rows cannot be predicted" not in words


@pytest.fixture(scope="module")
def odd_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose labels, splits and a price are columns; rows of a high price are of other classes, and labels err."""
    folder = tmp_path_factory.mktemp("odd")
    write_stripes(folder / "images", 40)
    generator, lines = np.random.default_rng(0), ["uri,kind,part,price"]
    for number, path in enumerate(sorted((folder / "images").rglob("*.png"))):
        price = int(generator.integers(20))
        kind = path.parent.name if generator.random() < 0.7 else "kind-0"
        part = ("train", "train", "validation", "test")[number % 4]
        lines.append(f"{path},{kind if price < 12 else f'other-{number % 2}'},{part},{price}")
    (folder / "images.csv").write_text("\n".join(lines))
    small = [*RECIPE, "--local", "--resize", "32", "--crop", "32", "--source.columns", "kind", "part", "price"]
    result_of(tlray("extract", folder / "images.csv", folder / "table", *small))
    return folder / "table"


@pytest.mark.parametrize(
    "chosen",
    [
        ["--label-columns", "kind", "--where", "price < 12"],
        ["--label-columns", "kind", "--split.column", "part"],
        ["--label-columns", "kind", "--split.column", "part", "--where", "price < 12"],
    ],
)
def test_mistakes_are_those_of_the_rows_that_were_trained_on(odd_table: Path, tmp_path: Path, chosen: list[str]) -> None:
    result_of(tlray("train", odd_table, tmp_path / "model", *chosen, "--report", tmp_path / "report.html"))
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    confusion = np.array(card["metrics"]["test"]["confusion"])
    wrong = int(confusion.sum() - np.trace(confusion))
    assert wrong and f"surest of {wrong} mistakes" in words_of(tmp_path / "report.html")


def test_labels_that_have_changed_are_told_of(things: Things, tmp_path: Path) -> None:
    lines = ["uri,label"]
    lines += [f"{path.resolve().as_uri()},{path.parent.name}" for path in (things.folder / "images").glob("*/0*.png")]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    result_of(tlray("train", things.table, tmp_path / "model", "--labels", labels))
    labels.write_text("\n".join(lines).replace(",kind-2", ",kind-9"))
    result_of(tlray("report", tmp_path / "model", tmp_path / "report.html"))
    words = words_of(tmp_path / "report.html")
    assert "cannot be predicted again" in words and "have changed since the training" in words


def test_an_index_says_what_its_card_says(things: Things) -> None:
    words = words_of(things.folder / "index.html")
    shown = result_of(tlray("show", things.index))
    assert f"recall at 10 {shown['quality']['recall_at_10']:.3f}" in words
    assert value_of(words, "table_version") == str(shown["table_version"])


def test_advice_says_what_the_command_said(things: Things) -> None:
    words, advice = words_of(things.folder / "advise.html"), things.advise
    assert advice["reason"][1:] in words
    for one in advice["strategies"]:
        assert f"{one['expected_accuracy']['value']:.3f}" in words
    for command in advice["recommendation"]["commands"]:
        assert command in words


def test_the_command_reports_on_what_is_there(things: Things, tmp_path: Path) -> None:
    for of, path in (("table", things.table), ("model", things.model), ("index", things.index), ("advice", things.advice)):
        result = result_of(tlray("report", path, tmp_path / "report.html", "--pictures", "3"))
        assert result["of"] == of and result["size_bytes"] == (tmp_path / "report.html").stat().st_size
    result = result_of(tlray("report", things.table, tmp_path / "two.html", "--other", things.other))
    assert result["of"] == "comparison"
    words, frames = words_of(tmp_path / "two.html"), [frame_of(one) for one in (things.table, things.other)]
    both = len(set(frames[0]["uri"]) & set(frames[1]["uri"]))
    assert f"in both {both}" in words and f"in the first alone {len(frames[0]) - both}" in words
    assert "preprocessing.crop" in words


def test_other_commands_write_their_result(things: Things, tmp_path: Path) -> None:
    shown = result_of(tlray("verify", things.table, "--report", tmp_path / "verify.html"))
    words = words_of(tmp_path / "verify.html")
    assert "tlray verify" in words and f"parts {shown['parts']}" in words


def test_what_cannot_be_reported_on(things: Things, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert "nothing is there" in error_of(tlray("report", tmp_path / "none", out))
    assert "no file at" in error_of(tlray("report", tmp_path / "none.json", out))
    (tmp_path / "other.json").write_text("[1]")
    assert "is not advice" in error_of(tlray("report", tmp_path / "other.json", out))
    assert "ends in .html" in error_of(tlray("report", things.table, tmp_path / "report.pdf"))
    assert "is no folder" in error_of(tlray("report", things.table, tmp_path / "none" / "report.html"))
    assert not out.exists()
