"""Labels joined to images: what fits, and what is refused with its counts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.tables import config_for
from tlray.errors import ConfigError, ExamplesError
from tlray.training.examples.examples import Examples, Split, read_examples

URIS = [f"s3://photos/{'cat' if number % 2 else 'dog'}/{number:02d}.jpg" for number in range(20)]
KINDS = ["cat" if number % 2 else "dog" for number in range(20)]


def read(folder: Path, uris: list[str] = URIS, column: list[str | None] | None = None, **changes: object) -> Examples:
    config = config_for(folder, **changes)
    return read_examples(pa.array(uris), pa.array(column or [None] * len(uris), pa.string()), config)


def labels_file(folder: Path, rows: dict[str, list], name: str = "labels.csv") -> str:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table(rows), path)
    else:
        lines = [",".join(rows)] + [",".join(map(str, cells)) for cells in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def named(examples: Examples) -> dict[str, str]:
    return {uri: examples.classes[at] for uri, at in zip(examples.uris.to_pylist(), examples.targets, strict=True)}


def test_all_ways_give_the_same_labels(tmp_path: Path) -> None:
    expected = dict(zip(URIS, KINDS, strict=True))
    order = np.random.default_rng(0).permutation(20)
    rows = {"label": [KINDS[at] for at in order], "uri": [URIS[at] for at in order]}
    assert named(read(tmp_path, column=KINDS)) == expected
    assert named(read(tmp_path, labels="folder")) == expected
    for name in ("l.csv", "l.parquet"):
        assert named(read(tmp_path, labels=labels_file(tmp_path, rows, name))) == expected


def test_relative_names_are_relative_to_the_file_and_numbers_stay_text(tmp_path: Path) -> None:
    uris = [f"file://{tmp_path}/p/{number}.jpg" for number in range(4)]
    file = labels_file(tmp_path, {"path": [f"p/{number}.jpg" for number in range(4)], "label": ["007", "007", "08", "08"]})
    assert read(tmp_path, uris, labels=file).classes == ("007", "08")


def test_images_without_labels_are_refused_or_counted(tmp_path: Path) -> None:
    column = [None, *KINDS[1:19], "  "]
    with pytest.raises(ExamplesError, match=r"2 images have no label: s3://photos/dog/00.jpg, .*--skip unlabelled"):
        read(tmp_path, column=column)
    examples = read(tmp_path, column=column, skip=("unlabelled",))
    assert examples.counts == {"images": 20, "unlabelled": 2, "labelled": 18}
    assert examples.rows_N.tolist() == list(range(1, 19)) and examples.uris.to_pylist() == URIS[1:19]


def test_labels_without_images_are_refused_or_counted(tmp_path: Path) -> None:
    file = labels_file(tmp_path, {"uri": [*URIS, "s3://photos/gone.jpg"], "label": [*KINDS, "cat"]})
    with pytest.raises(ExamplesError, match=r"1 labels are of images that are not there.*gone.jpg.*--skip missing"):
        read(tmp_path, labels=file)
    assert read(tmp_path, labels=file, skip=("missing",)).counts == {"images": 20, "missing": 1, "labelled": 20}


def test_a_class_of_one_is_refused_or_counted(tmp_path: Path) -> None:
    column = [*KINDS[:19], "emu"]
    with pytest.raises(ExamplesError, match=r"1 classes have one image alone.*: emu;.*--skip rare"):
        read(tmp_path, column=column)
    examples = read(tmp_path, column=column, skip=("rare",))
    assert examples.classes == ("cat", "dog") and examples.counts["rare"] == 1 and len(examples) == 19


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"uri": [URIS[0], URIS[0]], "label": ["cat", "dog"]}, r"different things of 1 images \(s3://photos/dog/00"),
        ({"uri": URIS, "kind": KINDS}, "has no columns label; its columns are uri, kind"),
        ({"where": URIS, "label": KINDS}, "has no column of URIs"),
        (
            {"uri": ["s3://other/1.jpg"], "label": ["cat"]},
            r"none of the 20 images \(such as s3://photos/dog/00.jpg\).*other/1.jpg",
        ),
        ({"uri": [], "label": []}, "has no rows"),
        ({"uri": URIS, "label": ["cat"] * 20}, "all images have the same label 'cat'"),
    ],
)
def test_labels_files_that_do_not_fit(tmp_path: Path, rows: dict[str, list], message: str) -> None:
    with pytest.raises(ExamplesError, match=message):
        read(tmp_path, labels=labels_file(tmp_path, rows))


def test_what_is_no_file_of_labels(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="neither column nor folder nor a file"):
        read(tmp_path, labels="labels.json")
    with pytest.raises(ExamplesError, match="columns of a labels file"):
        read(tmp_path, column=KINDS, split={"column": "split"})


def test_a_row_that_is_repeated_counts_once(tmp_path: Path) -> None:
    assert len(read(tmp_path, labels=labels_file(tmp_path, {"uri": URIS + URIS, "label": KINDS + KINDS}))) == 20


def test_several_labels(tmp_path: Path) -> None:
    texts = ["a; b" if number % 2 else "" for number in range(19)] + ["c;;c"]
    examples = read(tmp_path, labels=labels_file(tmp_path, {"uri": URIS, "label": texts}), task="multi")
    assert examples.classes == ("a", "b", "c")
    assert examples.targets[0].tolist() == [0, 0, 0]
    assert examples.targets[1].tolist() == [1, 1, 0]
    assert examples.targets[19].tolist() == [0, 0, 1]
    lists = [text.replace(" ", "").split(";") if text else [] for text in texts]
    again = read(tmp_path, labels=labels_file(tmp_path, {"uri": URIS, "label": lists}, "l.parquet"), task="multi")
    assert np.array_equal(again.targets, examples.targets)


def test_numbers(tmp_path: Path) -> None:
    file = labels_file(tmp_path, {"uri": URIS, "x": range(20), "y": [f"{at}e-3" for at in range(20)]})
    examples = read(tmp_path, labels=file, task="regression", label_columns=("x", "y"))
    assert examples.classes == ("x", "y") and examples.targets[:, 0].tolist() == list(range(20))
    assert examples.targets.dtype == np.float64
    for odd in ("many", "inf", "1e400", "1_000", "2020-01-01"):
        file = labels_file(tmp_path, {"uri": URIS, "x": [*range(19), odd]})
        with pytest.raises(ExamplesError, match=rf"1 values of x are not finite numbers \({odd}\)"):
            read(tmp_path, labels=file, task="regression", label_columns=("x",))


def test_splits_and_groups_of_the_file(tmp_path: Path) -> None:
    sides = ["train"] * 10 + ["val"] * 6 + ["test"] * 4
    file = labels_file(tmp_path, {"uri": URIS, "label": KINDS, "side": sides, "patient": [f"p{at // 4}" for at in range(20)]})
    examples = read(tmp_path, labels=file, split={"column": "side"})
    assert [len(examples.positions(split)) for split in Split] == [10, 6, 4]
    grouped = read(tmp_path, labels=file, split={"group": "patient"})
    assert all(len(set(grouped.splits_N[at : at + 4])) == 1 for at in range(0, 20, 4))
    lost = labels_file(tmp_path, {"uri": URIS, "label": KINDS, "side": ["train" if one == "cat" else "val" for one in KINDS]})
    with pytest.raises(ExamplesError, match=r"1 classes have no image to train on.*: dog"):
        read(tmp_path, labels=lost, split={"column": "side"})


def test_labels_that_nothing_is_trained_on_are_refused_or_left_out(tmp_path: Path) -> None:
    sides = ["train"] * 10 + ["val"] * 6 + ["test"] * 4
    texts = ["a" if number % 2 else "b" for number in range(18)] + ["a;c", "c"]
    file = labels_file(tmp_path, {"uri": URIS, "label": texts, "side": sides})
    with pytest.raises(ExamplesError, match=r"1 labels have no image to train on.*: c;.*--skip rare"):
        read(tmp_path, labels=file, task="multi", split={"column": "side"})
    examples = read(tmp_path, labels=file, task="multi", split={"column": "side"}, skip=("rare",))
    assert examples.classes == ("a", "b") and examples.counts["rare"] == 1 and len(examples) == 20
    assert examples.targets[-3:].tolist() == [[1, 0], [1, 0], [0, 0]]
    none = labels_file(tmp_path, {"uri": URIS, "label": [""] * 10 + ["a"] * 10, "side": sides})
    with pytest.raises(ExamplesError, match="no image to train on has any of the 1 labels"):
        read(tmp_path, labels=none, task="multi", split={"column": "side"}, skip=("rare",))


def test_a_column_of_splits_that_tears_groups_is_refused(tmp_path: Path) -> None:
    rows = {"uri": URIS, "label": KINDS, "side": ["train"] * 10 + ["val"] * 6 + ["test"] * 4}
    file = labels_file(tmp_path, rows | {"patient": [f"p{at // 4}" for at in range(20)]})
    message = r"1 groups, of 4 images, are in more than one split by the column side: s3://photos/dog/08.jpg \(train\), .*"
    with pytest.raises(ExamplesError, match=message):
        read(tmp_path, labels=file, split={"column": "side", "group": "patient"})
    config = config_for(tmp_path, labels=file, split={"column": "side", "group_duplicates": 0.9})
    groups = np.arange(20) // 4
    with pytest.raises(ExamplesError, match=message):
        read_examples(pa.array(URIS), pa.nulls(20, pa.string()), config, groups_N=groups)
    whole = labels_file(tmp_path, rows | {"patient": [f"p{at // 2}" for at in range(20)]})
    examples = read(tmp_path, labels=whole, split={"column": "side", "group": "patient"})
    assert [len(examples.positions(split)) for split in Split] == [10, 6, 4]


BY_FORMAT = [
    (["1", "2"], pa.array([1, 2], pa.int8()), ("1", "2")),
    (["1.0", "2.0"], pa.array([1.0, 2.0]), ("1", "2")),
    (["True", "False"], pa.array([True, False]), ("false", "true")),
    (["9007199254740993", "9007199254740992"], pa.array([2**53 + 1, 2**53]), ("9007199254740992", "9007199254740993")),
    (["2020-01-01", "2021-06-30"], pa.array(["2020-01-01", "2021-06-30"]).cast(pa.date32()), ("2020-01-01", "2021-06-30")),
    (["1.5", "-2"], pa.array([1.5, -2.0]), ("-2", "1.5")),
    (["007", "7"], pa.array(["007", "7"]).dictionary_encode(), ("007", "7")),
]


@pytest.mark.parametrize(("texts", "values", "classes"), BY_FORMAT)
def test_a_class_does_not_depend_on_the_format_of_the_file(
    tmp_path: Path, texts: list[str], values: pa.Array, classes: tuple[str, ...]
) -> None:
    picked = values.take(pa.array([0, 1] * 10))
    of_csv = read(tmp_path, labels=labels_file(tmp_path, {"uri": URIS, "label": texts * 10}))
    of_parquet = read(tmp_path, labels=labels_file(tmp_path, {"uri": URIS, "label": picked}, "l.parquet"))
    assert of_csv.classes == of_parquet.classes == classes
    assert named(of_csv) == named(of_parquet)
    assert named(read(tmp_path, column=texts * 10)) == named(of_csv)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_what_is_missing_is_no_label(tmp_path: Path, task: str) -> None:
    """NaN as NumPy, Polars and DuckDB have it, and null."""
    values = [float("nan"), None, *(float(at % 3) for at in range(18))]
    file = labels_file(tmp_path, {"uri": URIS, "label": values}, "l.parquet")
    with pytest.raises(ExamplesError, match=r"2 images have no label: s3://photos/dog/00.jpg, s3:.*--skip"):
        read(tmp_path, labels=file, task=task)
    examples = read(tmp_path, labels=file, task=task, skip=("unlabelled",))
    assert examples.counts == {"images": 20, "unlabelled": 2, "labelled": 18}
    assert examples.classes == (("label",) if task == "regression" else ("0", "1", "2"))
    texts = labels_file(tmp_path, {"uri": URIS, "label": ["nan", "<NA>", *(at % 3 for at in range(18))]})
    assert read(tmp_path, labels=texts, task=task, skip=("unlabelled",)).targets.tolist() == examples.targets.tolist()


def test_lists_are_several_labels(tmp_path: Path) -> None:
    lists = [[one] for one in KINDS]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 1)):
        file = labels_file(tmp_path, {"uri": URIS, "label": pa.array(lists, kind)}, "l.parquet")
        for task in ("single", "regression"):
            with pytest.raises(ExamplesError, match=r"--task multi|not finite numbers"):
                read(tmp_path, labels=file, task=task)
        assert read(tmp_path, labels=file, task="multi").targets.sum(axis=1).tolist() == [1] * 20
    numbers = pa.array([[1.0, 2.0], None] + [[float("nan"), 2.0]] * 18)
    file = labels_file(tmp_path, {"uri": URIS, "label": numbers}, "l.parquet")
    examples = read(tmp_path, labels=file, task="multi", skip=("unlabelled", "rare"), split={"test": 0.0})
    assert set(examples.classes) <= {"1", "2"} and len(examples) == 19
    odd = labels_file(tmp_path, {"uri": URIS, "label": [{"name": one} for one in KINDS]}, "l.parquet")
    for task in ("single", "multi"):
        with pytest.raises(ExamplesError, match=r"column label of struct<name: string> cannot be labels of task"):
            read(tmp_path, labels=odd, task=task)


def test_spaces_around_labels_are_taken_off_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, column=KINDS).classes == ("cat", "dog") and not caplog.text
    assert read(tmp_path, column=[" cat", "dog\t", *KINDS[2:]]).classes == ("cat", "dog")
    assert "2 labels have spaces around them, which are taken off: ' cat', 'dog\\t'" in caplog.text
    caplog.clear()
    assert read(tmp_path, column=["Cat", "e\u0301", "\u00e9", *KINDS[3:]], skip=("rare",)).counts["rare"] == 3
    assert "'Cat' and 'cat', 'e\u0301' and '\u00e9'" in caplog.text and "kept apart" in caplog.text


def test_files_as_spreadsheets_save_them(tmp_path: Path) -> None:
    path, rows = tmp_path / "l.csv", zip(URIS, KINDS, strict=True)
    text = "uri,label,catégorie\n" + "".join(f"{uri},{one},x\n" for uri, one in rows)
    expected = dict(zip(URIS, KINDS, strict=True))
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert named(read(tmp_path, labels=str(path))) == expected
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"l.csv .* not UTF-8.* save it as UTF-8"):
        read(tmp_path, labels=str(path))
    path.write_text(text.replace("catégorie", "label"))
    with pytest.raises(ConfigError, match=r"l.csv has 2 columns named 'label'; rename all but one"):
        read(tmp_path, labels=str(path))
    path.write_text(text.replace(",", ";"))
    with pytest.raises(ExamplesError, match=r"has no columns label; .*separated by semicolons"):
        read(tmp_path, labels=str(path))
    path.write_text(text + f'{URIS[0]},"cat,x\n')
    with pytest.raises(ConfigError, match=r"cannot be read: CSV parse error: .*Expected 3 columns"):
        read(tmp_path, labels=str(path))


def test_an_image_without_a_group_is_one_of_its_own_in_every_format(tmp_path: Path) -> None:
    groups = ["a"] * 8 + [None] * 12
    found = []
    for name, none in (("l.csv", ""), ("l.parquet", None)):
        rows = {"uri": URIS, "label": KINDS, "patient": [none if one is None else one for one in groups]}
        examples = read(tmp_path, labels=labels_file(tmp_path, rows, name), split={"group": "patient"})
        found.append(examples.splits_N.tolist())
        assert len(set(found[-1][:8])) == 1 and len(set(found[-1][8:])) == 3
    assert found[0] == found[1]


def test_numbers_of_which_predictions_could_tell_nothing_are_refused(tmp_path: Path) -> None:
    def targets(values: list[float]) -> np.ndarray:
        file = labels_file(tmp_path, {"uri": URIS, "label": values}, "l.parquet")
        return read(tmp_path, labels=file, task="regression").targets[:, 0]

    assert targets([1e5 + at for at in range(20)]).tolist() == [1e5 + at for at in range(20)]
    for values, message in (
        (
            [1.7e9 + 10 * at for at in range(20)],
            r"label lie around 17000.* there are 128 apart; train on the values minus 1700",
        ),
        ([1e39 * at for at in range(20)], "label lie around"),
        ([1e-46 * at for at in range(20)], "label lie around"),
        ([5.0] * 20, r"images to train on have the same value 5 of label; there is nothing to learn"),
    ):
        with pytest.raises(ExamplesError, match=message):
            targets(values)


def test_a_column_is_named_once(tmp_path: Path) -> None:
    file = labels_file(tmp_path, {"uri": URIS, "x": range(20)})
    with pytest.raises(ExamplesError, match="label_columns names a column twice: x, x"):
        read(tmp_path, labels=file, task="regression", label_columns=("x", "x"))
