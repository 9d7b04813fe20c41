"""Devices without arithmetic of 16 bits: what is computed there, and what is chosen for others."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.encoder.engines.opened import resolve
from tlray.models.encoder.encoder import Encoder, at_fp32
from tlray.models.encoder.network import exactness
from tlray.models.process import device as devices
from tlray.models.process.device import autocast, computes_as
from tlray.models.process.sums import SumsAtFp32
from tlray.recipe import golden_images

CPU = torch.device("cpu")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor as most laptops have one."""
    monkeypatch.setattr(devices, "_has_bf16", lambda device: False)
    monkeypatch.setattr(devices, "_has_fp16", lambda device: False)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_what_has_no_arithmetic_is_computed_at_fp32_and_said(compute: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backbone = resolve("timm:test_resnet", compute)
    encoder = Encoder(backbone, device="cpu", batch_size=4)
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], at_fp32(backbone).encode(images_BHWC)["embedding"])
    assert (encoder.computes, encoder.computed_by) == ("fp32", "torch at fp32")
    assert f"cpu has no arithmetic for {compute}: the network computes at fp32" in caplog.text


@pytest.mark.usefixtures("any_arithmetic")
def test_where_there_is_arithmetic_it_is_used() -> None:
    encoder = Encoder(resolve("timm:test_resnet", "bf16"), device="cpu", exact_below=0)
    assert (encoder.computes, encoder.computed_by) == ("bf16", "torch")


def test_torch_as_it_is_built_for_apples_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oneDNN, and so without its operations, those that say what it can among them."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    assert [computes_as(CPU, compute) for compute in ("bf16", "fp16", "fp32")] == ["fp32"] * 3
    assert computes_as(torch.device("mps"), "bf16") == "bf16"


@pytest.mark.parametrize(("flag", "expected"), [(True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_each_kind_of_processor_is_asked_what_tells(
    machine: str, flag: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On x86, where oneDNN also takes bf16 that it emulates, the processor's own flag; on ARM oneDNN's answer."""
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    is_arm = machine == "aarch64"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag and not is_arm)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: flag or not is_arm)
    assert computes_as(CPU, "bf16") == expected


@pytest.mark.parametrize("emulates", [True, False])
def test_a_gpu_that_would_emulate_bf16(
    emulates: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulates)
    assert devices.settle_compute(torch.device("cuda"), "bf16") == ("fp32" if emulates else "bf16")
    assert ("the network computes at fp32; new tables are made faster there" in caplog.text) == emulates
    assert computes_as(torch.device("cuda"), "fp16") == "fp16"  # which every GPU of torch's has
    assert computes_as(torch.device("cuda"), "fp32") == "fp32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_at_fp32_are_exact_sums_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_BCHW, weight_OIKL = torch.randn(2, 8, 9, 9).to(dtype), torch.randn(4, 8, 3, 3).to(dtype)
    with torch.inference_mode(), SumsAtFp32():
        found_BOHW = nn.functional.conv2d(x_BCHW, weight_OIKL)
    assert found_BOHW.dtype == dtype
    exact_BOHW = nn.functional.conv2d(x_BCHW.double(), weight_OIKL.double())
    step = torch.finfo(dtype).eps
    assert ((found_BOHW.double() - exact_BOHW).abs() <= step * exact_BOHW.abs() + 1e-5).all()


def test_attention_is_among_the_sums() -> None:
    torch.manual_seed(0)
    layer, x_BTC = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(2, 5, 16)
    with torch.inference_mode():
        exact_BTC = layer(x_BTC, x_BTC, x_BTC)[0]
        with autocast(CPU, "bf16"), SumsAtFp32():
            found_BTC = layer(x_BTC, x_BTC, x_BTC)[0]
    assert found_BTC.dtype == torch.bfloat16
    torch.testing.assert_close(found_BTC.float(), exact_BTC, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_the_layers_that_stay_exact_are_chosen_as_with_arithmetic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = resolve(name, "bf16")
    seen = []
    monkeypatch.setattr(exactness, "least_cosine", lambda found, expected: seen.append((found, expected)) or 1.0)
    chosen = exactness.choose_exact_below(backbone, CPU)
    (emulated_BD, exact_BD), *_ = seen
    with devices.precision(CPU, "bf16"), torch.inference_mode():
        probes_BHWC = torch.from_numpy(exactness.probe_parts(*backbone.recipe.preprocessing.crop)[-1])
        native_BD = exactness.Folded.of(backbone, packed=True).network(CPU, "bf16", 0)(probes_BHWC)[0].float().numpy()

    def drift(one_BD: np.ndarray, other_BD: np.ndarray) -> float:
        products_B = (one_BD * other_BD).sum(1)
        return float((1 - products_B / np.linalg.norm(one_BD, axis=1) / np.linalg.norm(other_BD, axis=1)).max())

    assert chosen == 0
    assert 0.5 < drift(emulated_BD, exact_BD) / drift(native_BD, exact_BD) < 2  # as far from fp32 as the real one
