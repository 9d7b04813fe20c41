"""The guide's way to a new recipe: its own commands, on a small lake and small networks."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.photos import error_of, frame_of, photo, result_of, tlray

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "backfills.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Of the guide, with local tables and networks that need no download."""
    block = re.search(r"<!-- new recipe -->\n```sh\n(.*?)```", GUIDE, re.DOTALL)
    assert block is not None
    text = block[1].replace("s3://", "").replace("timm:vit_base_patch16_224", "timm:test_vit")
    return [shlex.split(line)[1:] for line in text.splitlines()]


def test_a_table_is_embedded_again_by_slices_and_readers_move_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        path = tmp_path / "photos" / f"{5 + number // 4:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    recipe = {"backbone": "timm:test_resnet", "weights": "random:7", "precision": {"compute": "fp32"}}
    config = {"source": {"uri": "photos"}, "recipe": recipe, "table": "lake/photos-resnet50", "local": True}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    result_of(tlray("extract", "--config", "job.yaml"))
    made, may, rest, both, swapped, shown = (result_of(tlray(*command)) for command in commands())
    assert (made["version"], made["table"]) == (1, f"file://{tmp_path}/lake/photos-resnet50")
    assert [(run["listed"], run["new"], run["deleted"]) for run in (may, rest)] == [(4, 4, 0), (4, 4, 0)]
    assert both["rows"] == {"both": 8, "first": 0, "second": 0, "etag": 0, "label": 0, "failed": 0}
    assert any(line.startswith("backbone: ") for line in both["recipes"])
    assert (swapped["version"], swapped["before"]) == (2, made["table"])
    assert shown["table"] == swapped["table"] == f"file://{tmp_path}/lake/photos-vit"
    assert json.loads((tmp_path / "lake" / "photos").read_text())["table"] == shown["table"]
    assert set(frame_of(tmp_path / "lake" / "photos-vit")["status"]) == {"ok"}
    assert "is at version 2, not at 1" in error_of(tlray("alias", "lake/photos", made["table"], "--if-version", "1"), 1)
    assert "is an alias" in error_of(tlray("extract", "--config", "job.yaml", "--table", "lake/photos"))
