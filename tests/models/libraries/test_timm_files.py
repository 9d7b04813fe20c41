"""Files of weights as timm's own loader reads them, and folders as the Hugging Face hub gives them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models._builder import build_model_with_cfg
from timm.models._hub import save_for_hf

from tests.models.oracles import check, resolve
from tlray.config import RecipeConfig
from tlray.errors import SourceError, WeightsError
from tlray.models.backbones.images import resolve_backbone
from tlray.models.libraries.timm import Timm
from tlray.models.libraries.timm_files import filter_of

FAMILIES = {timm.model_entrypoint(name).__module__: name for name in timm.list_models()}
SPECIAL = ("flexivit_small", "vit_small_patch16_224", "deit3_small_patch16_224", "crossvit_tiny_240", "sam2_hiera_tiny")


class _Seen(Exception):  # noqa: N818 - a signal
    pass


@pytest.mark.parametrize("name", sorted({*FAMILIES.values(), *SPECIAL}))
def test_the_conversion_is_the_one_that_timm_hands_to_its_builder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def note(kind: type, *_arguments: object, **keywords: object) -> None:
        given.extend([keywords.get("pretrained_filter_fn"), kind])
        raise _Seen

    for module in list(sys.modules.values()):
        if getattr(module, "build_model_with_cfg", None) is build_model_with_cfg:
            monkeypatch.setattr(module, "build_model_with_cfg", note)
    with pytest.raises(_Seen):
        timm.create_model(name)
    expected, kind = given
    found = filter_of(name, kind)
    if getattr(expected, "__qualname__", "").endswith("<locals>.pretrained_filter_fn"):  # CrossViT's
        state = {"pos_embed.0": 1, "cls_token.1": 2, "blocks.0.weight": 3}
        assert found(state) == expected(state)
        return
    ours, theirs = ((getattr(one, "func", one), getattr(one, "keywords", {})) for one in (found, expected))
    if expected is None:
        assert found is None
        return
    assert ours[0] is theirs[0]
    assert {key: value for key, value in theirs[1].items() if value is not None} == dict(ours[1])


def before_classifier(oracle: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What it puts out before its classifier."""
    oracle.eval()
    return lambda images_BCHW: oracle.forward_head(oracle.forward_features(images_BCHW), pre_logits=True)


def loaded_by_timm(name: str, path: Path, **arguments: object) -> Callable[[torch.Tensor], torch.Tensor]:
    return before_classifier(timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **arguments))


def convnext_as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of Meta's own files: what timm's conversion undoes."""
    names = {}
    for key, value in state.items():
        new = key.replace("stem.0.", "downsample_layers.0.0.").replace("stem.1.", "downsample_layers.0.1.")
        for stage in range(4):
            new = new.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
            new = new.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
        new = new.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.")
        names[new.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = value
    return names


@pytest.mark.parametrize("wrapping", ["", "model", "model_ema", "module."])
def test_names_of_the_authors_files(wrapping: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = convnext_as_published(timm.create_model("convnext_atto").state_dict())
    torch.save(state, tmp_path / "plain.pth")
    if wrapping.endswith("."):
        torch.save({f"{wrapping}{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    else:
        torch.save({wrapping: state} if wrapping else state, tmp_path / "w.pth")
    check(resolve("timm:convnext_atto", tmp_path / "w.pth", 64), loaded_by_timm("convnext_atto", tmp_path / "plain.pth"))


@pytest.mark.slow
def test_a_file_of_dinov2_at_another_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2").state_dict()
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")
    backbone = resolve("timm:vit_small_patch14_dinov2", tmp_path / "dinov2_vits14_pretrain.pth", 112)
    check(backbone, loaded_by_timm("vit_small_patch14_dinov2", tmp_path / "dinov2_vits14_pretrain.pth", img_size=112))
    assert any("pos_embed resized from (1, 1370, 384) to (1, 65, 384)" in note for note in backbone.notes)
    assert not any("does not say how" in note for note in backbone.notes)  # the file has the name of the published one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As timm itself saves a network for the hub: ten classes, and a preprocessing of its own."""
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=10, img_size=96)
    data = {
        "input_size": (3, 96, 96),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "crop_pct": 0.8,
    }
    labels = [f"class {index}" for index in range(10)]
    save_for_hf(
        module, tmp_path / "repo", safe_serialization="both", data_config=data, model_config={"label_names": labels}
    )  # fmt: skip
    return tmp_path / "repo"


@pytest.mark.parametrize("location", ["", "/", "/model.safetensors", "/pytorch_model.bin"])
def test_a_folder_of_the_hub(location: str, folder: Path) -> None:
    backbone = resolve("timm:test_vit", f"{folder}{location}")
    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True)
    check(backbone, before_classifier(oracle))
    assert backbone.recipe.preprocessing == Timm().preprocessing("test_vit", "", oracle)
    assert backbone.recipe.preprocessing.mean == (0.1, 0.2, 0.3) and backbone.recipe.preprocessing.crop == (96, 96)
    assert backbone.classes == [f"class {index}" for index in range(10)]
    assert not backbone.notes


def test_a_folder_in_shards(folder: Path) -> None:
    whole = resolve("timm:test_vit", folder).recipe
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    keys = sorted(state)
    names = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(keys)}
    for name in set(names.values()):
        safetensors.torch.save_file({key: state[key] for key in keys if names[key] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert resolve("timm:test_vit", folder).recipe.recipe_id == whole.recipe_id
    assert resolve("timm:test_vit", index).recipe.recipe_id == whole.recipe_id
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002.safetensors, which index.json names, is not there"):
        resolve("timm:test_vit", folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, "../outside.safetensors")}))
    with pytest.raises(WeightsError, match="outside of its folder"):
        resolve("timm:test_vit", folder)


def test_a_folder_on_a_store_is_read_file_by_file(folder: Path) -> None:
    asked = []

    def fetch(uri: str) -> Path:
        asked.append(uri)
        path = folder / uri.removeprefix("s3://bucket/repo").lstrip("/")
        if not path.is_file():
            raise SourceError(f"no file at {uri}")
        return path

    config = RecipeConfig(backbone="timm:test_vit", weights="s3://bucket/repo")
    backbone = resolve_backbone(config, fetch)
    assert backbone.recipe.weights == "s3://bucket/repo"
    assert (
        backbone.recipe.recipe_id == resolve_backbone(config.model_copy(update={"weights": str(folder)}), Path).recipe.recipe_id
    )
    assert set(asked) == {f"s3://bucket/repo{name}" for name in ("", "/model.safetensors", "/config.json")}


def test_folders_that_are_no_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="timm:test_vit, but the backbone is timm:test_resnet; give"):
        resolve("timm:test_resnet", folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"expected one weights file .* found 0"):
        resolve("timm:test_vit", tmp_path / "empty")
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        resolve("timm:test_vit", folder)
    (folder / "config.json").write_text('{"architectures": ["ViTModel"], "model_type": "vit"}')
    assert any("does not say how" in note for note in resolve("timm:test_vit", folder, 96).notes)
