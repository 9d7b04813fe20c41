"""Batch norms folded into convolutions: what is folded, what is not, and that the numbers and the original stay."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.models.lively import enliven
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone, with_taps
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network import network
from tlray.models.encoder.network.folding import fold_batch_norms
from tlray.models.encoder.network.pairs import Embed
from tlray.models.layers.pooling import Layout, Pooling
from tlray.models.layers.taps import TapRunner
from tlray.recipe import Precision, golden_images


class Net(nn.Module):
    """Two convolutions with batch norms; `use` may do something to the first one's output that no hook sees."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor] = lambda _before, after: after, *, twice: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8)
        self.use, self.passes = use, 1 + twice

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv1(x)
        x = self.relu(self.use(before, self.bn1(before)))
        for _ in range(self.passes):
            x = self.bn2(self.conv2(x))
        return x


def fold(module: nn.Module, *taps: str, size: int = 16) -> tuple[nn.Module, Tensor]:
    images_BCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    enliven(module, images_BCHW)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=torch.Generator().manual_seed(2))

    def embed(one: nn.Module) -> dict[str, Tensor]:
        return TapRunner(one, taps, Pooling("none", size, size, Layout()))(images_BCHW)

    return fold_batch_norms(module, taps, embed), images_BCHW


def norms(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)]


def test_folds_and_leaves_the_original_as_it_was() -> None:
    module = Net()
    folded, images_BCHW = fold(module, "bn2")
    assert norms(folded) == []
    assert norms(module) == ["bn1", "bn2"]
    with torch.no_grad():
        x = F.batch_norm(
            F.conv2d(images_BCHW, module.conv1.weight, module.conv1.bias, padding=1),
            module.bn1.running_mean, module.bn1.running_var, module.bn1.weight, module.bn1.bias,
        )  # fmt: skip
        x = F.conv2d(x.relu(), module.conv2.weight, padding=1, groups=4)
        oracle = F.batch_norm(x, module.bn2.running_mean, module.bn2.running_var, module.bn2.weight, module.bn2.bias)
        torch.testing.assert_close(folded(images_BCHW), oracle, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(images_BCHW), oracle, rtol=1e-4, atol=1e-5)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in [*module.modules(), *folded.modules()])


@pytest.mark.parametrize("tap", ["conv1", "bn1:input"])
def test_a_tapped_convolution_keeps_its_output(tap: str) -> None:
    folded, _ = fold(Net(), tap, "bn2")
    assert norms(folded) == ["bn1"]


def test_layers_that_run_twice_are_not_folded() -> None:
    assert norms(fold(Net(twice=True), "bn2")[0]) == ["bn2"]


def test_layers_between_are_seen_even_where_they_work_in_place() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    assert norms(fold(module, "2", size=16)[0]) == ["2"]


@pytest.mark.parametrize("use", [lambda before, after: before + after, lambda before, after: after * before.mean()])
def test_uses_that_no_hook_sees_leave_all_as_it_was(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert norms(fold(Net(use), "bn2")[0]) == ["bn1", "bn2"]


class Reading(nn.Module):
    """Needs an attribute that only a batch norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm.eps


def test_a_network_that_reads_its_batch_norms_is_left_alone() -> None:
    assert norms(fold(Reading(), "norm:input", "norm")[0]) == ["norm"]
    assert norms(fold(Reading(), "norm")[0]) == ["norm"]


def test_timms_batch_norm_keeps_its_activation() -> None:
    module = timm.create_model("test_efficientnet").eval()
    folded, images_BCHW = fold(module, "bn2", size=64)
    assert norms(module)
    assert norms(folded) == []
    assert isinstance(folded.get_submodule("bn2.act"), nn.Module)
    with torch.no_grad():
        torch.testing.assert_close(folded(images_BCHW), module(images_BCHW), rtol=1e-3, atol=1e-4)


def test_a_backbone_is_folded_once_for_its_golden_vectors_and_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers of one that is folded anew each time; another layer of it is folded for itself."""
    folds: list[tuple[str, ...]] = []

    def counted(module: nn.Module, taps: Sequence[str], embed: Embed) -> nn.Module:
        folds.append(tuple(taps))
        return fold_batch_norms(module, taps, embed)

    monkeypatch.setattr(network, "fold_batch_norms", counted)
    config = RecipeConfig(backbone="timm:test_efficientnet", weights="random:1", precision=Precision(compute="bf16"))
    anew = resolve_backbone(config, local_copy)
    once = network.FoldedOnce.of(anew)
    images_BHWC = golden_images(*anew.recipe.preprocessing.crop)
    found = []
    for backbone, expected in ((anew, 2), (once, 1)):
        folds.clear()
        file = make_recipe_file(backbone)
        found.append((file, Encoder(backbone, exact_below=file.exact_below, lanes=2).encode(images_BHWC)["embedding"]))
        assert len(folds) == expected
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    Encoder(with_taps(once, ["blocks.0"]))
    assert folds[-1] == ("blocks.0",)
