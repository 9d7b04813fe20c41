import hashlib

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.factories import DIMENSIONS, make_rows
from tlray.errors import TableCorruptError
from tlray.lake.table.parts import encode_part, read_part, round_to_half, vector_column, vectors_of, write_part


@given(hnp.arrays(np.float32, 20, elements=st.floats(2.0**-14, 60000, width=32)), st.sampled_from([-1, 1]))
def test_rounding_equals_float16_in_its_normal_range(values: np.ndarray, sign: int) -> None:
    values = values * np.float32(sign)
    assert np.array_equal(round_to_half(values), values.astype(np.float16).astype(np.float32))


def test_rounding_keeps_the_range_of_float32() -> None:
    values = np.array([1e-30, 3.0e38, -1e20, 0.0], np.float32)
    assert np.allclose(round_to_half(values), values, rtol=2**-11, atol=0)


def test_half_storage_takes_the_room_of_float16() -> None:
    features = np.random.default_rng(0).standard_normal((2000, 256)).astype(np.float32)
    rows = pa.table({"embedding": vector_column(features, "half")})
    full = pa.table({"embedding": vector_column(features, "full")})
    assert len(encode_part(rows, "r")) < 0.5 * features.nbytes < len(encode_part(full, "r"))


def test_other_engines_read_a_part_as_lists(tmp_path) -> None:
    rows = make_rows([("a", "1", "x"), ("b", "2", None)])
    part = write_part(f"file://{tmp_path}", rows, status="ok", stem="s", recipe_id="r")
    path = tmp_path / part.path
    frame = pl.read_parquet(path, hive_partitioning=False)
    assert frame.schema["embedding"] == pl.List(pl.Float32)
    assert frame["uri"].to_list() == ["a", "b"]
    assert np.array_equal(np.array(frame["embedding"].to_list(), np.float32), vectors_of(rows["embedding"]))
    assert part.rows == 2 and part.size_bytes == path.stat().st_size
    assert part.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_back_gives_the_vectors_bit_for_bit(tmp_path) -> None:
    rows = make_rows([(f"u{index}", "1", None) for index in range(50)])
    part = write_part(f"file://{tmp_path}", rows, status="ok", stem="s", recipe_id="r")
    again = read_part(f"file://{tmp_path}", part.path)
    assert vectors_of(again["embedding"]).shape == (50, DIMENSIONS)
    assert np.array_equal(vectors_of(again["embedding"]), vectors_of(rows["embedding"]))
    assert read_part(f"file://{tmp_path}", part.path, ["label"]).column_names == ["label"]


def test_failed_rows_have_null_vectors(tmp_path) -> None:
    part = write_part(f"file://{tmp_path}", make_rows([("a", "1", None)], "empty"), status="failed", stem="s", recipe_id="r")
    frame = pl.read_parquet(tmp_path / part.path, hive_partitioning=False)
    assert frame["embedding"].to_list() == [None] and frame["error"].to_list() == ["empty"]


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(TableCorruptError):
        vectors_of(pa.chunked_array([pa.array([[1.0, 2.0], [1.0, 2.0, 3.0], [1.0]], pa.list_(pa.float32()))]))
    with pytest.raises(TableCorruptError):
        vectors_of(pa.chunked_array([pa.array([[1.0], None], pa.list_(pa.float32()))]))
