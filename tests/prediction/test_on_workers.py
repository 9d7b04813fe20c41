"""Predictions on workers: the stages of a run on GPUs without Ray's processes, and a run on a Ray cluster."""

from pathlib import Path

import pytest

from tests.photos import frame_of, result_of, tlray
from tests.ray_cluster import RayCluster
from tests.trained import write_lake
from tlray.config import SourceConfig
from tlray.extraction.on_ray import encoder_actor as ray_encoder
from tlray.extraction.on_ray.tasks import decode, pieces_of, unit_rows, write
from tlray.extraction.plan.plan import Unit
from tlray.lake.source.open import open_source
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.table.parts import read_part
from tlray.lake.table.table import Table


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a model, and the table that one process makes of them."""
    folder = write_lake(tmp_path_factory.mktemp("lake"), 20, b"")
    result_of(tlray(*arguments(folder, "local"), "--local"))
    return folder


def arguments(lake: Path, table: str) -> list[str | Path]:
    return [
        *("predict", "--source.uri", lake / "photos", "--model", lake / "model", "--out", lake / table),
        *("--max-failed-fraction", "0.5", "--embeddings"),
    ]


def test_stages_of_a_gpu_run_make_the_same_rows(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_encoder, "on_this_node", lambda: "here")
    table = Table.open(f"file://{lake}/local")
    config = SourceConfig(uri=str(lake / "photos"))
    preprocessing = table.recipe_file.recipe.preprocessing
    source = open_source(config)
    spec = ReadSpec.of(source, preprocessing)
    (page,) = source.pages()
    actor = ray_encoder.EncoderActor(table.uri, table.recipe_file.recipe.weights, len(page))
    pieces = []
    for row in unit_rows([Unit(0, page)]):
        for piece in decode(row, spec_json=spec.model_dump_json()):
            for encoded in actor(piece):
                written = write(encoded, table_uri=table.uri, recipe_id=table.recipe_file.table_id, run_id="staged")
                pieces += pieces_of(written)
    parts = [part for piece in pieces for part in piece.content.parts]
    for part in parts:
        rows = read_part(table.uri, part.path).sort_by("uri")
        expected = table.read(status=part.status).sort_by("uri").select(rows.schema.names)
        assert len(rows) > 0 and rows.drop(["top_probabilities", "probability", "embedding"]).equals(
            expected.drop(["top_probabilities", "probability", "embedding"])
        )
    assert {part.status for part in parts} == {"ok", "failed"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_makes_the_same_rows(lake: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    result_of(tlray(*arguments(lake, "on-ray")))
    numbers = ["top_probabilities", "probability", "embedding"]
    assert frame_of(lake / "on-ray").drop(numbers).equals(frame_of(lake / "local").drop(numbers))
    result_of(tlray("verify", lake / "on-ray"))
