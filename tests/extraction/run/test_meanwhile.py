"""Runs that waited for a table: what another one has made of it meanwhile counts."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, error_of, frame_of, result_of, tlray, write_photos
from tlray.extraction.run import run as module
from tlray.lake.place.lease import Lease

LOCAL = ("extract", "--local", *RECIPE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 12)
    return tmp_path / "photos"


def meanwhile(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """Have another run come before the next one that takes hold of a table, after that one has looked at it."""
    hold = module.hold

    @contextlib.contextmanager
    def late(*given: Any, **options: Any) -> Iterator[Lease]:
        monkeypatch.setattr(module, "hold", hold)
        if arguments:
            result_of(tlray(*arguments))
        else:
            shutil.rmtree(Path(given[0].removeprefix("file://")))
        with hold(*given, **options) as lease:
            yield lease

    monkeypatch.setattr(module, "hold", late)


@pytest.mark.parametrize(
    ("theirs", "field"),
    [(("--recipe.normalize",), "normalize"), (("--recipe.preprocessing.interpolation", "nearest"), "interpolation")],
)
def test_a_table_of_another_recipe_is_not_gone_on_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: tuple[str, ...], field: str
) -> None:
    """The golden vectors of these two are alike: images come to them resized, and cosines know no length."""
    write_photos(tmp_path / "theirs", 5, first=100)
    meanwhile(monkeypatch, *LOCAL, *theirs, tmp_path / "theirs", tmp_path / "t")
    said = error_of(tlray(*LOCAL, photos, tmp_path / "t", "--wait"))
    assert "RecipeMismatchError" in said and field in said
    assert len(frame_of(tmp_path / "t")) == 5


def test_a_table_of_the_same_recipe_is(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result_of(tlray(*LOCAL, photos, tmp_path / "reference"))
    meanwhile(monkeypatch, *LOCAL, photos, tmp_path / "t", "--source.include", "**/000*0.jpg")
    result = result_of(tlray(*LOCAL, photos, tmp_path / "t", "--wait"))
    assert 0 < result["unchanged"] < 12 and result["unchanged"] + result["new"] == 12
    assert_same(frame_of(tmp_path / "t"), frame_of(tmp_path / "reference"))


def test_a_table_that_was_removed_is_not_made_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result_of(tlray(*LOCAL, photos, tmp_path / "t"))
    meanwhile(monkeypatch)
    assert "was removed while this run began" in error_of(tlray(*LOCAL, photos, tmp_path / "t"), 1)
