"""Tables at int8 on a Ray cluster, and after kills: the very rows of one process that nobody disturbs."""

import signal
from pathlib import Path

import polars as pl
import pytest

from tests.extraction.on_ray.faulty import wait_for_objects, workers_killed
from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, SHORT_LEASE, frame_of, photo, result_of, s3_options, start_tlray, tlray
from tests.ray_cluster import RayCluster
from tlray.lake.storage.open import open_store

pytest.importorskip("tlray.models.encoder.int8.document", exc_type=ImportError)
pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

IMAGES = 300


@pytest.fixture(scope="module")
def lake(lake: str) -> str:
    """A bucket with photos."""
    store, photos = open_store(lake), [photo(number, (32, 24)) for number in range(50)]
    for number in range(IMAGES):
        store.write(f"{lake}/photos/{number:05d}.jpg", photos[number % 50])
    return lake


def arguments(lake: str, table: str, *more: str) -> list[str]:
    recipe = [*RECIPE[:-1], "int8", "--recipe.precision.storage", "full"]
    return ["extract", "--source.uri", f"{lake}/photos/", "--table", f"{lake}/{table}", *recipe, *more]


def rows_of(lake: str, table: str) -> pl.DataFrame:
    return frame_of(f"{lake}/{table}", s3_options())


@pytest.fixture(scope="module")
def reference(lake: str, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for what is kept there
        assert result_of(tlray(*arguments(lake, "reference", "--local")))["computed_by"] == {"onnxruntime": IMAGES}
    return rows_of(lake, "reference")


def test_workers_that_are_killed_are_replaced(lake: str, reference: pl.DataFrame, ray_cluster: RayCluster) -> None:
    with workers_killed(ray_cluster, f"{lake}/on-ray", 1) as killed:
        result = result_of(tlray(*arguments(lake, "on-ray", "--no-local")))
    assert killed and result["ok"] == IMAGES and set(result["computed_by"]) == {"onnxruntime"}
    assert_same(rows_of(lake, "on-ray"), reference)
    assert tlray("verify", f"{lake}/on-ray").returncode == 0


def test_a_driver_that_is_killed_goes_on(
    lake: str, reference: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    process = start_tlray(*arguments(lake, "killed", "--local", *SHORT_LEASE))
    wait_for_objects(process, f"{lake}/killed", 6)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = result_of(tlray(*arguments(lake, "killed", "--local", *SHORT_LEASE)))
    assert result["unchanged"] + result["ok"] == IMAGES
    assert_same(rows_of(lake, "killed"), reference)
    assert tlray("verify", f"{lake}/killed").returncode == 0
