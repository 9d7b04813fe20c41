"""The model folder: complete or not there, every byte checked."""

import json
from pathlib import Path

import pytest
import torch

from tests.factories import make_recipe, make_recipe_file
from tlray.errors import ModelCorruptError, ModelMissingError
from tlray.models.layers.heads import Head, HeadSpec
from tlray.training.model.model import RECIPE_NAME, ModelCard, load_model, model_exists, now, save_model

SPEC = HeadSpec(kind="mlp", inputs=4, outputs=3, hidden=(5,), dropout=0.5)


def make_card(**changes: object) -> ModelCard:
    recipe = make_recipe()
    fields = {
        "created": now(),
        "task": "single",
        "classes": ("a", "b", "c"),
        "head": SPEC,
        "recipe": recipe,
        "recipe_id": recipe.recipe_id,
        "tap": "avgpool",
        "table": "s3://lake/t",
        "table_version": 3,
        "source": None,
        "training": {"epochs": 2},
        "metrics": {},
        "config": {},
        "versions": {"torch": "0"},
    }
    return ModelCard(**(fields | changes))


def make_head() -> Head:
    torch.manual_seed(0)
    head = Head.of(SPEC)
    head.mean_D.copy_(torch.arange(4))
    head.scale_D.fill_(0.5)
    return head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save_model(f"file://{path}", make_card(), make_head(), files={RECIPE_NAME: make_recipe_file().to_json()})
    return path


def test_what_was_saved_is_what_is_loaded(folder: Path) -> None:
    model, head = load_model(f"file://{folder}"), make_head().eval()
    features = torch.randn(7, 4)
    expected = head.layers((features - torch.arange(4)) * 0.5)
    assert torch.equal(model.head(features), expected) and not model.head.training
    assert model.card.classes == ("a", "b", "c") and model.card.head == SPEC
    assert model.recipe_file == make_recipe_file()
    assert set(model.card.files) == {"head.safetensors", "recipe.json"}


def test_a_network_travels_with_it(tmp_path: Path) -> None:
    tied = torch.randn(3, 3)
    card = save_model(f"file://{tmp_path}/m", make_card(), make_head(), {"a": tied, "b": tied, "c": tied.T})
    assert "network.safetensors" in card.files
    assert load_model(f"file://{tmp_path}/m").card == card


def test_a_folder_without_its_card_is_no_model(folder: Path) -> None:
    uri = f"file://{folder}"
    assert model_exists(uri)
    (folder / "model.json").unlink()
    assert not model_exists(uri)
    with pytest.raises(ModelMissingError, match="no model at"):
        load_model(uri)


def test_a_model_that_is_replaced_is_never_half_of_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DiesError(Exception):
        pass

    def dies(*_: object, **__: object) -> None:
        raise DiesError

    monkeypatch.setattr("tlray.lake.storage.local.LocalStore.write", dies)
    with pytest.raises(DiesError):
        save_model(f"file://{folder}", make_card(), make_head())
    assert not model_exists(f"file://{folder}")


@pytest.mark.parametrize("name", ["head.safetensors", "recipe.json"])
def test_damage_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ModelCorruptError, match="has the sha256"):
        load_model(f"file://{folder}")
    (folder / name).unlink()
    with pytest.raises(ModelCorruptError, match="is gone"):
        load_model(f"file://{folder}")


@pytest.mark.parametrize("change", [{"format": 2}, {"odd": 1}, {"head": None}])
def test_a_card_of_another_kind_is_refused(folder: Path, change: dict) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelCorruptError, match="is not a model's card"):
        load_model(f"file://{folder}")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "model.json"
    card = json.loads(path.read_text())
    card["head"]["inputs"] = 6
    path.write_text(json.dumps(card))
    with pytest.raises(ModelCorruptError, match="does not fit its card"):
        load_model(f"file://{folder}")
