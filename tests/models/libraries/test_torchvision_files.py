"""Files of torchvision's own: known by name and content, with names from before dots were forbidden in them."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import DenseNet121_Weights, ResNet50_Weights

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.libraries.torchvision import Torchvision
from tlray.models.weights.digest import hash_weights


def resolve(weights: object, backbone: str = "torchvision:resnet50", **preprocessing: object) -> Backbone:
    config = RecipeConfig(
        backbone=backbone, weights=str(weights), preprocessing=PreprocessingConfig.model_validate(preprocessing)
    )  # fmt: skip
    return resolve_backbone(config, Path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    return path


def test_a_file_has_the_preprocessing_of_the_weights_that_it_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V1 of ResNet-50 resizes to 256, V2, the default, to 232."""
    first, second = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2
    (assumed,) = resolve(file).notes
    assert assumed.startswith(f"{file} does not say how its images are to be prepared; assumed: as for torchvision:{second}")
    assert "resize 232x232" in assumed and f"{file}#IMAGENET1K_V1" in assumed
    assert resolve(file).recipe.preprocessing.resize == (232, 232)

    named = resolve(f"{file}#IMAGENET1K_V1")
    assert named.recipe.preprocessing.resize == (256, 256) and not named.notes
    assert named.recipe.weights_sha256 == resolve(file).recipe.weights_sha256

    by_name = tmp_path / "resnet50-0676ba61.pth"
    by_name.symlink_to(file)
    (note,) = resolve(by_name).notes
    assert f"the file of torchvision:{first}" in note and resolve(by_name).recipe.preprocessing.resize == (256, 256)

    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    monkeypatch.setitem(first.meta, "_file_size", round(file.stat().st_size / 2**20, 3))
    monkeypatch.setattr(type(first.value), "__getattribute__", renamed(f"https://somewhere/resnet50-{digest[:8]}.pth", first))
    assert resolve(file).recipe.preprocessing.resize == (256, 256)


def renamed(url: str, entry: object) -> object:
    """`Weights.url` is a frozen field: of one entry, another one."""

    def get(self: object, name: str) -> object:
        return url if name == "url" and self is entry.value else object.__getattribute__(self, name)

    return get


def test_nothing_is_assumed_where_all_is_given(file: Path) -> None:
    said = {"resize": 64, "crop": 64, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert not resolve(file, **said).notes


def test_old_names_in_the_published_files_of_densenets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torchvision.models.densenet121(weights=None)
    old = {}
    for key, value in module.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        old[key] = value
    name = DenseNet121_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save({key: value for key, value in old.items() if "num_batches" not in key}, tmp_path / name)
    backbone = resolve(tmp_path / name, "torchvision:densenet121", resize=64, crop=64)
    assert backbone.recipe.weights_sha256 == hash_weights(module)


def test_auxiliary_classifiers_are_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    backbone = resolve(tmp_path / "w.pth", "torchvision:googlenet", resize=96, crop=96)
    assert not any(name.startswith("aux") for name in backbone.module.state_dict())
    assert not any("left out" in note for note in backbone.notes)


def test_layouts() -> None:
    zoo = Torchvision()
    with torch.device("meta"):
        vit, swin, resnet = (torchvision.models.get_model(name) for name in ("vit_b_32", "swin_t", "resnet18"))
    assert zoo.layout(vit).has_class_token and zoo.layout(vit).prefix_tokens == 1
    assert zoo.layout(swin).is_nhwc and not zoo.layout(resnet).prefix_tokens
