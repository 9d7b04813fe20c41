"""A unit's turns on the cores, and the parts that come out of them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.factories import make_recipe_file
from tests.photos import photo
from tlray.config import SourceConfig
from tlray.extraction.plan.plan import Unit
from tlray.extraction.worker.unit_worker import UnitWorker
from tlray.lake.image.decode import decode_image
from tlray.lake.source import read_spec
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.source import PAGE_SCHEMA


class Cores:
    """One core, and an encoder whose vectors are the mean colours of images."""

    turn_images = 16
    computed_by, trial = "torch", "torch by 8 300"

    def __init__(self) -> None:
        self.held, self.turns = threading.Lock(), []

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self.held:
            yield

    def encode_timed(self, images_BHWC: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        assert self.held.locked()
        self.turns.append(len(images_BHWC))
        return {"embedding": mean_colours(images_BHWC)}, 1.0


def mean_colours(images_BHWC: np.ndarray) -> np.ndarray:
    return images_BHWC.reshape(len(images_BHWC), 8 * 8, 3).mean(axis=1, dtype=np.float32)


def test_turns_decode_and_embed_and_pieces_of_whole_turns_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris, datas = [], []
    for number in range(70):
        data = b"no image" if number in (5, 50) else photo(number, (9, 9))
        (tmp_path / f"{number:02}.jpg").write_bytes(data)
        uris.append(f"file://{tmp_path}/{number:02}.jpg")
        datas.append(data)
    cores, file = Cores(), make_recipe_file()
    file = file.model_copy(update={"shapes": {"embedding": (3,)}})

    def decode(*arguments: object, **options: object) -> object:
        assert cores.held.locked()
        return decode_image(*arguments, **options)

    monkeypatch.setattr(read_spec, "decode_image", decode)
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 40 * 8 * 8 * 3)
    spec = ReadSpec(
        kind="images", source=SourceConfig(uri=str(tmp_path)), preprocessing=file.recipe.preprocessing, trust_listing=False
    )
    table_uri = f"file://{tmp_path}/table"
    rows = [{"uri": uri, "etag": "", "size_bytes": 10, "label": None} for uri in uris]
    worker = UnitWorker(cores, cores, spec, table_uri, file, "run")
    pieces = worker.work(Unit(7, pa.Table.from_pylist(rows, PAGE_SCHEMA)))

    assert cores.turns == [15, 16, 16, 15, 6]
    assert [(piece.unit, piece.index, piece.is_last) for piece in pieces] == [(7, 0, False), (7, 1, True)]
    assert [sum(part.rows for part in piece.content.parts) for piece in pieces] == [32, 38]
    assert [piece.content.failures for piece in pieces] == [{"not_an_image": 1}, {"not_an_image": 1}]
    assert [(piece.seconds["encode"], len(piece.notes)) for piece in pieces] == [(2, 1), (3, 1)]
    assert [(piece.computed_by, piece.trial) for piece in pieces] == [("torch", "torch by 8 300")] * 2
    ok = [tmp_path / "table" / part.path for piece in pieces for part in piece.content.parts if part.status == "ok"]
    found = pl.concat([pl.read_parquet(path) for path in ok])
    good = [number for number in range(70) if number not in (5, 50)]
    assert found["uri"].to_list() == [uris[number] for number in good]
    images = [decode_image(datas[number], spec.preprocessing, max_pixels=10**6).pixels_HWC for number in good]
    np.testing.assert_allclose(np.stack(found["embedding"].to_numpy()), mean_colours(np.stack(images)), rtol=1e-3)


def test_a_unit_without_images_is_one_empty_piece(tmp_path: Path) -> None:
    file = make_recipe_file()
    spec = ReadSpec(
        kind="images", source=SourceConfig(uri=str(tmp_path)), preprocessing=file.recipe.preprocessing, trust_listing=False
    )
    cores = Cores()
    (piece,) = UnitWorker(cores, cores, spec, f"file://{tmp_path}/table", file, "run").work(Unit(0, PAGE_SCHEMA.empty_table()))
    assert piece.is_last and not piece.content.parts
