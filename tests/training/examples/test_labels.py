"""Labels joined to images: what fits, and what is refused with its counts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.tables import config_for
from tlray.errors import ExamplesError
from tlray.training.examples.examples import Examples, Split, read_examples
from tlray.training.examples.labels import folder_names

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


def test_folders_of_odd_uris() -> None:
    uris = ["file:///a/b/c.jpg", "s3://b/x.tar#cat/1.jpg", "s3://b/1.jpg", "s3://b/dog's\nfolder/ü.jpg"]
    assert folder_names(pa.array(uris)).to_pylist() == ["b", "cat", None, "dog's\nfolder"]


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
        ({"uri": ["s3://other/1.jpg"], "label": ["cat"]}, r"none of the 20 images .*s3://other/1.jpg"),
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
    odd = labels_file(tmp_path, {"uri": URIS, "x": [*range(19), "many"]})
    with pytest.raises(ExamplesError, match=r"1 values of x are not finite numbers \(many\)"):
        read(tmp_path, labels=odd, task="regression", label_columns=("x",))


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
