"""Batches, devices, precision and the recipe file."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import SHARE_IMAGES, Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network.network import Network
from tlray.recipe import Compute, Precision, RecipeFile, check_golden, golden_images


def resolve(compute: Compute = "fp32", **wishes: object) -> Backbone:
    settings = {"backbone": "timm:test_vit", "weights": "random:0", "precision": Precision(compute=compute)} | wishes
    return resolve_backbone(RecipeConfig.model_validate(settings), Path)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve()


@pytest.fixture(scope="module", name="images_BHWC")
def images() -> np.ndarray:
    return np.concatenate([golden_images(160, 160), golden_images(160, 160)[:3, ::-1]])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_any_number_of_images(backbone: Backbone, images_BHWC: np.ndarray, count: int) -> None:
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC[:count].copy()), backbone.recipe.preprocessing)
    ours_BD = Encoder(backbone, device="cpu", batch_size=3).encode(images_BHWC[:count])["embedding"]
    assert (ours_BD.shape, ours_BD.dtype) == ((count, *backbone.shapes["embedding"]), np.float32)
    if count:
        with torch.no_grad():
            oracle_BD = backbone.module.forward_head(backbone.module.forward_features(inputs_BCHW), pre_logits=True)
        np.testing.assert_allclose(ours_BD, oracle_BD.numpy(), rtol=1e-3, atol=1e-5)


def test_every_pass_has_the_batch_size(images_BHWC: np.ndarray) -> None:
    backbone, seen = resolve(), []
    backbone.module.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].shape[0]))
    encoder = Encoder(backbone, device="cpu", batch_size=3)
    seen.clear()
    encoder.encode(images_BHWC)
    assert seen == [3, 3, 3]


def test_a_turn_keeps_others_from_the_core_and_embeds_on_it(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    encoder = Encoder(backbone, device="cpu", batch_size=4, lanes=1)
    assert encoder.turn_images == 32
    expected_BD = encoder.encode(images_BHWC)["embedding"]
    ours, others = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def in_a_turn() -> np.ndarray:
        with encoder.turn():
            waiting = others.submit(encoder.encode, images_BHWC)
            assert not wait([waiting], timeout=0.2).done
            embedding_BD = encoder.encode(images_BHWC)["embedding"]
        np.testing.assert_array_equal(waiting.result(60)["embedding"], expected_BD)
        return embedding_BD

    with ours, others:
        np.testing.assert_array_equal(ours.submit(in_a_turn).result(120), expected_BD)
        np.testing.assert_array_equal(ours.submit(encoder.encode, images_BHWC).result(60)["embedding"], expected_BD)


def test_without_lanes_a_turn_waits_for_nothing(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    encoder = Encoder(backbone, device="cpu", batch_size=4)
    assert encoder.turn_images is None
    with encoder.turn(), encoder.turn():
        assert len(encoder.encode(images_BHWC)["embedding"]) == len(images_BHWC)


def test_read_only_and_strided_images_work_without_warnings(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    encoder = Encoder(backbone, device="cpu", batch_size=4)
    expected = encoder.encode(images_BHWC)["embedding"]
    frozen = np.frombuffer(images_BHWC.tobytes(), np.uint8).reshape(images_BHWC.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(encoder.encode(frozen)["embedding"], expected)
        np.testing.assert_array_equal(
            encoder.encode(images_BHWC[::-1])["embedding"], encoder.encode(images_BHWC[::-1].copy())["embedding"]
        )


@pytest.mark.parametrize(
    ("count", "batch_size", "lanes", "most"), [(64, 1, 7, 10), (64, 2, 7, 6), (72, 1, 8, 10), (9, 4, 2, 2)]
)
def test_lanes_share_a_call_evenly(
    count: int, batch_size: int, lanes: int, most: int, backbone: Backbone, images_BHWC: np.ndarray
) -> None:
    """No lane has much more to do than its part, in batches."""
    encoder = Encoder(backbone, device="cpu", batch_size=batch_size, lanes=lanes)
    share = encoder._share(count)
    rounds = math.ceil(math.ceil(count / share) / lanes)
    assert share % batch_size == 0 and share <= max(SHARE_IMAGES, batch_size)
    assert rounds * share <= most * batch_size
    found = encoder.encode(images_BHWC)["embedding"]
    np.testing.assert_array_equal(
        found, Encoder(backbone, device="cpu", batch_size=batch_size).encode(images_BHWC)["embedding"]
    )


def test_wrong_images_are_refused(backbone: Backbone) -> None:
    for images in (np.zeros((1, 160, 160, 3)), np.zeros((1, 3, 160, 160), np.uint8), np.zeros((160, 160, 3), np.uint8)):
        with pytest.raises(ConfigError, match=r"uint8 \(B, 160, 160, 3\)"):
            Encoder(backbone, device="cpu").encode(images)


def test_l2(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    raw_BD = Encoder(backbone, device="cpu").encode(images_BHWC)["embedding"]
    unit_BD = Encoder(resolve(normalize=True), device="cpu").encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(unit_BD, raw_BD / np.linalg.norm(raw_BD, axis=1, keepdims=True), rtol=1e-5)


def test_several_taps_are_several_columns(images_BHWC: np.ndarray) -> None:
    backbone = resolve(taps=("blocks.0", "norm"), pool="none")
    columns = Encoder(backbone, device="cpu", batch_size=4).encode(images_BHWC)
    assert columns.keys() == backbone.shapes.keys() == {"embedding_blocks_0", "embedding_norm"}
    for name, shape in backbone.shapes.items():
        assert shape == (101, 64)
        assert columns[name].shape == (7, 101 * 64)


class Small(nn.Module):
    """Fails as a device does whose memory holds `room` images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.layer = room, nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if len(images_BCHW) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        out: Tensor = self.layer(images_BCHW.mean((2, 3)))
        return out


def small(backbone: Backbone, room: int) -> Backbone:
    return Backbone(backbone.recipe.model_copy(update={"taps": ("layer",)}), Small(room), {"embedding": (3,)})


def test_out_of_memory_halves_the_batch(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    encoder = Encoder(small(backbone, 2), device="cpu", batch_size=8)
    preprocessing = backbone.recipe.preprocessing
    expected = (images_BHWC / 255 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(encoder.encode(images_BHWC)["embedding"], expected.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert encoder.batch_size == 2
    with pytest.raises(ConfigError, match="160x160"):
        Encoder(small(backbone, 0), device="cpu", batch_size=8).encode(images_BHWC)


def test_not_a_number_is_passed_on(images_BHWC: np.ndarray) -> None:
    backbone = resolve(normalize=True)
    with torch.no_grad():
        backbone.module.norm.bias[0] = float("nan")
    assert np.isnan(Encoder(backbone, device="cpu").encode(images_BHWC)["embedding"]).any()
    with pytest.raises(BackboneError, match="not finite"):
        make_recipe_file(backbone)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta2"])
def test_devices_that_are_not_there(backbone: Backbone, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        Encoder(backbone, device=device)
    with pytest.raises(ConfigError, match="batch_size"):
        Encoder(backbone, device="cpu", batch_size=0)


@pytest.mark.usefixtures("any_arithmetic")
def test_precision_is_the_recipes_whatever_surrounds_it(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    dtypes, noted = [], []

    def note(_module: nn.Module, _arguments: object, output: Tensor) -> None:
        dtypes.append((output.dtype, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    for compute in ("fp32", "bf16", "fp16"):
        one = resolve(compute)
        one.module.blocks[0].attn.register_forward_hook(note)
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        encoder = Encoder(one, device="cpu", batch_size=1, exact_below=0)
        before_encoding = len(dtypes)
        with torch.autocast("cpu", torch.bfloat16):
            encoder.encode(images_BHWC[:1])
        noted += dtypes[before_encoding:]
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert [dtype for dtype, _, _ in noted] == [torch.float32, torch.bfloat16, torch.float16]
    assert noted[0][1:] == ("highest", False)


@pytest.mark.usefixtures("any_arithmetic")
def test_the_first_layers_stay_at_fp32(images_BHWC: np.ndarray) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 1)

        def forward(self, images_BCHW: Tensor) -> Tensor:
            second: Tensor = self.second(self.first(images_BCHW))
            return second

    for compute, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        base = resolve(compute)
        module = Two().eval()
        whole = Backbone(base.recipe.model_copy(update={"taps": ("second",)}), module, {"embedding": (4,)})
        network = Network.of(whole, torch.device("cpu"), exact_below=1)
        dtypes: list[torch.dtype] = []
        for layer in network.module.children():
            layer.register_forward_hook(lambda _layer, _arguments, output, seen=dtypes: seen.append(output.dtype))
        with torch.inference_mode():
            network(torch.from_numpy(images_BHWC[:1]))
        assert dtypes == [torch.float32, expected]
        assert "forward" not in vars(module.first)
        assert module.second.weight.dtype == torch.float32


def test_operations_that_a_precision_lacks(backbone: Backbone, images_BHWC: np.ndarray) -> None:
    class Lacking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images_BCHW: Tensor) -> Tensor:
            raise RuntimeError("\"histogram_cpu\" not implemented for 'Half'")

    lacking = Backbone(backbone.recipe.model_copy(update={"taps": ("layer",)}), Lacking(), {"embedding": (3,)})
    with pytest.raises(ConfigError, match="histogram_cpu"):
        Encoder(lacking, device="cpu").encode(images_BHWC)


def test_recipe_file_is_exact_and_accepts_what_this_machine_computes() -> None:
    backbone = resolve("bf16")
    file = RecipeFile.from_json(make_recipe_file(backbone).to_json(), "recipe.json")
    assert file.recipe == backbone.recipe
    assert file.made_with["torch"] == torch.__version__.partition("+")[0]
    images_BHWC = golden_images(160, 160)
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
    with torch.no_grad():
        oracle_BD = backbone.module.forward_head(backbone.module.forward_features(inputs_BCHW), pre_logits=True)
    np.testing.assert_allclose(file.golden["embedding"], oracle_BD.numpy(), rtol=1e-3, atol=1e-5)
    for compute in ("fp32", "bf16", "fp16"):
        other = replace(backbone, recipe=backbone.recipe.model_copy(update={"precision": Precision(compute=compute)}))
        assert check_golden(file, Encoder(other, device="cpu").encode(images_BHWC), where="this machine") > 0.999
