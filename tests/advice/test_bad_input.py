"""Bad input is said at once, in one line that says what would be enough."""

from pathlib import Path

import pytest

from tests.advice.pictures import CANDIDATES, write_stripes
from tests.photos import error_of, result_of, tlray

SMALL = ("--resize", "32", "--crop", "32", "--layers", "1", "--no-trials")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_stripes(folder / "stripes", 8)
    return folder


def advise(source: Path, *more: str | Path) -> str:
    return error_of(tlray("advise", source, "--candidates", CANDIDATES[0], *SMALL, *more))


def test_no_labels_and_one_class(folder: Path, tmp_path: Path) -> None:
    assert "has a label by labels: 'column'" in advise(folder / "stripes", "--labels", "column")
    write_stripes(tmp_path, 8, classes=1)
    assert "all images have the same label 'kind-0'; expected at least two classes" in advise(tmp_path)


def test_too_few_of_a_class(folder: Path, tmp_path: Path) -> None:
    write_stripes(tmp_path, 8)
    for number in range(4, 8):
        (tmp_path / "kind-1" / f"{number:03d}.png").unlink()
    error = advise(tmp_path)
    assert "1 classes have fewer than 5 images: kind-1 (4)" in error and "5 images of at least two classes" in error
    outcome = tlray("advise", tmp_path, "--candidates", CANDIDATES[0], *SMALL, "--skip", "rare", "--dry-run")
    assert result_of(outcome)["sample"]["left_out"] == {"rare": 1}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet_51", "resnet_51"),
        ("nothing_at_all", "nothing_at_all"),
        ("timm:test_resnet@/no/such/file.pt", "/no/such/file.pt"),
        ("timm:test_resnet@", "is not BACKBONE or BACKBONE@WEIGHTS"),
    ],
)
def test_a_candidate_that_does_not_exist(folder: Path, name: str, said: str) -> None:
    assert said in error_of(tlray("advise", folder / "stripes", "--candidates", name, *SMALL))


def test_candidates_twice_and_minutes_that_are_too_few(folder: Path) -> None:
    assert "names one twice" in advise(folder / "stripes", "--candidates", CANDIDATES[0])
    error = advise(folder / "stripes", "--minutes", "0.0001")
    assert "too little for one candidate: timm:test_resnet@random:1 on 24 images takes" in error and "give --minutes" in error


def test_a_task_and_a_place_that_cannot_be(folder: Path) -> None:
    assert "one label an image" in advise(folder / "stripes", "--task", "multi")
    assert "expected the name of a .json file" in advise(folder / "stripes", "--out", "advice.txt")
    assert "ends in .html" in advise(folder / "stripes", "--report", "report.txt")
    assert "is no folder" in advise(folder / "stripes", "--report", "/no/such/folder/report.html")
