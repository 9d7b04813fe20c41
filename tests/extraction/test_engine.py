"""`engine`: what computes images on CPUs, asked for by a run and told by its result."""

from pathlib import Path

import numpy as np
import pytest

from tests.photos import RECIPE, error_of, frame_of, result_of, tlray, write_photos

pytest.importorskip("tlray.models.encoder.engines.openvino.model", exc_type=ImportError)


def test_a_run_by_openvino_gives_torchs_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # for what is kept there
    write_photos(tmp_path / "photos", 12)
    arguments = ["extract", "--local", "--source.uri", tmp_path / "photos", *RECIPE]
    vectors: dict[str, np.ndarray] = {}
    for engine in ("torch", "openvino"):
        result = result_of(tlray(*arguments, "--table", tmp_path / engine, "--engine", engine))
        assert result["computed_by"] == {engine: 12}
        assert result["stages"]["encode"]["seconds"] > 0
        frame = frame_of(tmp_path / engine).sort("uri")
        vectors[engine] = np.array(frame["embedding"].to_list())
    ours, theirs = vectors["torch"], vectors["openvino"]
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.999
    again = result_of(tlray(*arguments, "--table", tmp_path / "torch", "--engine", "openvino"))  # no part of the recipe
    assert (again["unchanged"], again["computed_by"]) == (12, {})


def test_an_engine_that_there_is_not(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    done = tlray("extract", "--source.uri", tmp_path / "photos", "--table", tmp_path / "t", *RECIPE, "--engine", "tvm")
    assert "engine" in error_of(done, 2)
