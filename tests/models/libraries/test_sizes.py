"""Networks that are built for one size of images, at another one: as their own libraries do it."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.models.oracles import check, resolve
from tlray.errors import ConfigError


def random_state(name: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("test_vit", (96, 128)),
        ("vit_tiny_patch16_224", (128, 128)),
        ("vit_tiny_patch16_224", (112, 448)),  # as many patches as at 224 x 224, at other places
        ("swin_tiny_patch4_window7_224", (112, 112)),
        ("xcit_nano_12_p16_224", (96, 96)),  # takes any size
        pytest.param("vit_small_patch14_dinov2", (112, 112), marks=pytest.mark.slow),
        pytest.param("eva02_tiny_patch14_224", (112, 112), marks=pytest.mark.slow),
        pytest.param("beit_base_patch16_224", (112, 112), marks=pytest.mark.slow),
    ],
)
def test_as_timm_does_it(name: str, crop: tuple[int, int], tmp_path: Path) -> None:
    """`timm.create_model(..., pretrained=True, img_size=...)`, which is given a file in place of a download."""
    safetensors.torch.save_file(random_state(name), tmp_path / "w.safetensors")
    oracle = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")},
        img_size=crop,
    )
    oracle.eval()
    of_file = resolve(f"timm:{name}", tmp_path / "w.safetensors", crop)
    check(of_file, oracle)
    random = resolve(f"timm:{name}", "random:1", crop)
    check(random, oracle)
    assert of_file.recipe.weights_sha256 == random.recipe.weights_sha256
    assert any("resized" in note for note in random.notes) == (name not in ("test_vit", "xcit_nano_12_p16_224"))


def test_the_hash_of_weights_is_that_of_any_size() -> None:
    """Resizing need not give the same last bits on every machine; the hash must."""
    hashes = {resolve("timm:test_vit", "random:1", crop).recipe.weights_sha256 for crop in (None, (96, 96), (160, 160))}
    assert len(hashes) == 1


def test_a_file_of_the_size_that_is_asked_for_is_not_resized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = timm.create_model("test_vit", img_size=(224, 224))
    torch.save(large.state_dict(), tmp_path / "w.pth")
    backbone = resolve("timm:test_vit", tmp_path / "w.pth", (224, 224))
    assert torch.equal(backbone.module.pos_embed, large.pos_embed)
    assert not any("resized" in note for note in backbone.notes)
    large.reset_classifier(0)
    check(backbone, large.eval())


@pytest.mark.slow
def test_as_torchvision_does_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.vit_b_32(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    oracle = torchvision.models.vit_b_32(weights=None, image_size=128)
    oracle.load_state_dict(interpolate_embeddings(128, 32, dict(state)))
    oracle.heads = nn.Identity()
    check(resolve("torchvision:vit_b_32", tmp_path / "w.pth", (128, 128)), oracle.eval())


@pytest.mark.parametrize(
    ("name", "crop", "message"),
    [
        ("torchvision:vit_b_32", (128, 160), "cannot take images of crop 128x160; expected 224x224.*square"),
        ("torchvision:vit_b_32", (100, 100), "cannot take images of crop 100x100; expected 224x224.*indivisible"),
        ("timm:vit_tiny_patch16_224", (8, 8), "cannot take images of crop 8x8: .* expected 224x224"),
        ("timm:levit_128s", (8, 8), "cannot take images of crop 8x8: .* expected 224x224"),
    ],
)
def test_sizes_that_cannot_be(name: str, crop: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name, "random:0", crop)
