"""Finding layers, collecting what they put out, and pooling it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.layers.pooling import Layout, Pooling
from tlray.models.layers.taps import TapRunner, find_default_tap
from tlray.recipe import Pool, Precision, golden_images


def resolve(backbone: str, *taps: str, pool: Pool = "none") -> Backbone:
    config = RecipeConfig(
        backbone=backbone, weights="random:0", taps=taps, pool=pool, precision=Precision(compute="fp32"),
        preprocessing=PreprocessingConfig(crop=(64, 64)) if "resnet18" in backbone else PreprocessingConfig(),
    )  # fmt: skip
    return resolve_backbone(config, Path)


def embed(backbone: Backbone) -> tuple[Tensor, dict[str, np.ndarray]]:
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)[:2]
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
    return inputs_BCHW, Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC)


def pooling(pool: Pool, *, prefix: int = 0, nhwc: bool = False, size: tuple[int, int] = (224, 224)) -> Pooling:
    return Pooling(pool, *size, Layout(prefix, prefix > 0, nhwc))


@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
def test_maps_are_pooled_over_space_in_either_layout(pool: Pool) -> None:
    map_BCHW = torch.randn(2, 5, 7, 7)
    oracle_BC = {
        "avg": lambda: F.adaptive_avg_pool2d(map_BCHW, 1).flatten(1),
        "max": lambda: F.adaptive_max_pool2d(map_BCHW, 1).flatten(1),
        # The authors' own form: F.avg_pool2d(x.clamp(min=eps).pow(p), (H, W)).pow(1 / p).
        "gem": lambda: F.avg_pool2d(map_BCHW.clamp(min=1e-6).pow(3), (7, 7)).pow(1 / 3).flatten(1),
    }[pool]()
    for features in (map_BCHW, map_BCHW.permute(0, 2, 3, 1)):
        torch.testing.assert_close(pooling(pool)("layer", features), oracle_BC)
    torch.testing.assert_close(pooling(pool, prefix=1)("layer", map_BCHW), oracle_BC)


def test_a_map_of_three_equal_sizes_has_the_models_layout() -> None:
    cube = torch.randn(2, 6, 6, 6)
    torch.testing.assert_close(pooling("avg")("layer", cube), cube.mean((2, 3)))
    torch.testing.assert_close(pooling("avg", nhwc=True)("layer", cube), cube.mean((1, 2)))


def test_the_ratio_of_the_input_tells_space_where_it_is_not_square() -> None:
    map_BCHW = torch.randn(2, 16, 16, 12)
    for features in (map_BCHW, map_BCHW.permute(0, 2, 3, 1)):
        torch.testing.assert_close(pooling("avg", size=(1024, 768))("layer", features), map_BCHW.mean((2, 3)))


def test_tokens_are_pooled_without_the_prefix() -> None:
    tokens_BNC = torch.randn(2, 5 + 196, 8)
    torch.testing.assert_close(pooling("avg", prefix=5)("layer", tokens_BNC), tokens_BNC[:, 5:].mean(1))
    torch.testing.assert_close(pooling("max", prefix=5)("layer", tokens_BNC), tokens_BNC[:, 5:].amax(1))
    torch.testing.assert_close(pooling("cls", prefix=5)("layer", tokens_BNC), tokens_BNC[:, 0])
    patches_BNC = tokens_BNC[:, 5:]
    torch.testing.assert_close(pooling("avg", prefix=5)("layer", patches_BNC), patches_BNC.mean(1))
    torch.testing.assert_close(
        pooling("avg", prefix=5, size=(256, 192))("layer", tokens_BNC[:, :192]), tokens_BNC[:, :192].mean(1)
    )


def test_vectors_stay_and_pooling_is_fp32_and_owns_its_memory() -> None:
    vectors_BC = torch.randn(2, 8).bfloat16()
    pooled = pooling("gem")("layer", vectors_BC)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, vectors_BC.float())
    for pool, features in (("none", torch.ones(1, 2, 3, 3)), ("avg", torch.ones(1, 4)), ("cls", torch.ones(1, 5, 4))):
        pooled = pooling(pool, prefix=1)("layer", features)
        features.zero_()
        assert pooled.min() == 1


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        ("cls", (2, 8, 7, 7)),
        ("cls", (2, 196, 8)),
        ("avg", (2, 3, 4, 5)),
        ("avg", (2, 3, 4, 5, 6)),
        ("avg", (2, 512, 49)),  # tokens last, as a mixer's inner layers have them: its 512 channels are no places
    ],
)
def test_pooling_that_does_not_fit(pool: Pool, shape: tuple[int, ...]) -> None:
    with pytest.raises(BackboneError, match="layer"):
        pooling(pool)("layer", torch.zeros(shape))


def test_taps_equal_torchvisions_feature_extractor() -> None:
    taps = ("maxpool", "layer2.0.bn2", "layer3", "avgpool")
    backbone = resolve("torchvision:resnet18", *taps)
    inputs_BCHW, ours = embed(backbone)
    oracle = get_model("resnet18", weights=None)
    oracle.load_state_dict(backbone.module.state_dict())
    for module in oracle.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with torch.no_grad():
        theirs = create_feature_extractor(oracle.eval(), list(taps)).eval()(inputs_BCHW)
    for tap in taps:
        column = backbone.recipe.columns[tap]
        assert backbone.shapes[column] == tuple(theirs[tap].shape[1:])
        np.testing.assert_allclose(ours[column], theirs[tap].flatten(1).numpy(), rtol=1e-3, atol=1e-5)


class Tricky(nn.Module):
    """A shared ReLU, an in-place function after a convolution, a functional tail, a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.classifier, self.unused = nn.Linear(4 * 8 * 8, 5), nn.Linear(1, 1)
        self.passes = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.relu(self.first(x_BCHW))
        x_BCHW = self.relu(self.second(x_BCHW) - 0.1)
        out = self.classifier(x_BCHW.flatten(1))
        self.passes += 1
        return out.relu_()


def test_in_place_layers_change_no_tap_and_shared_layers_keep_their_last_call() -> None:
    module, images_BCHW = Tricky().eval(), torch.randn(2, 3, 8, 8)
    runner = TapRunner(module, ("first", "relu", "classifier", "second:input"), pooling("none", size=(8, 8)))
    with torch.inference_mode():
        first = module.first(images_BCHW)
        last = (module.second(first.relu()) - 0.1).relu()
        for _ in range(2):
            ours = runner(images_BCHW)
            for tap, oracle in {
                "first": first, "relu": last, "second:input": first.relu(), "classifier": module.classifier(last.flatten(1)),
            }.items():  # fmt: skip
                torch.testing.assert_close(ours[tap], oracle)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_the_forward_pass_ends_after_the_last_tap() -> None:
    module, images_BCHW = Tricky().eval(), torch.randn(2, 3, 8, 8)
    runner = TapRunner(module, ("relu", "first"), pooling("none", size=(8, 8)))
    with torch.inference_mode():
        once, twice = runner(images_BCHW), runner(images_BCHW)
    assert module.passes == 1
    torch.testing.assert_close(once, twice)


def test_the_penultimate_layer_by_that_word() -> None:
    default = resolve("timm:test_resnet")
    named = resolve("timm:test_resnet", "layer1", "penultimate", pool="avg")
    assert named.recipe.taps == ("layer1", *default.recipe.taps)
    assert resolve("timm:test_resnet", "penultimate").recipe == default.recipe


def test_default_tap_of_odd_networks() -> None:
    images_BCHW = torch.randn(1, 3, 8, 8)
    tricky = Tricky().eval()
    # A map that is flattened for the classifier would lose its places to pooling: the vector is kept.
    assert find_default_tap(tricky, None, images_BCHW) == "classifier:input"
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5)).eval()
    assert find_default_tap(plain, None, images_BCHW) == "1"
    assert find_default_tap(plain, [plain[4]], images_BCHW) == "1"
    assert find_default_tap(nn.Sequential(*plain[:3], nn.Identity()), [], images_BCHW) == "1"
    with pytest.raises(BackboneError, match=r"recipe\.taps"):
        find_default_tap(Tricky().eval(), [], images_BCHW)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("layer5", "layer4.*8 parts|layer4.*parts: conv1"),
        ("", "no layer ''"),
        ("avgpol:input", "avgpool"),
        ("avgpool:output", "no layer"),
    ],
)
def test_unknown_layers_are_answered_with_near_ones(tap: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        resolve("torchvision:resnet18", tap)


def test_layers_that_cannot_be_tapped() -> None:
    runner = TapRunner(Tricky(), ("unused",), pooling("none"))
    with pytest.raises(BackboneError, match="unused does not run"):
        runner(torch.zeros(1, 3, 8, 8))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Boxed(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"x": x, "none": None}

    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, -1)

    for layer, message in ((Pair(), "2 tensors"), (Windows(), "one row an image")):
        with pytest.raises(BackboneError, match=message):
            TapRunner(nn.Sequential(layer), ("0",), pooling("none"))(torch.zeros(2, 8))
    assert TapRunner(nn.Sequential(Boxed()), ("0",), pooling("none"))(torch.ones(2, 8))["0"].shape == (2, 8)


def test_taps_that_share_a_column_are_refused() -> None:
    with pytest.raises(ConfigError, match="share a column"):
        resolve("torchvision:resnet18", "layer1.0", "layer1.0")


def test_cls_needs_a_class_token() -> None:
    vit = resolve("timm:test_vit", "blocks.1", pool="cls")
    inputs_BCHW, ours = embed(vit)
    with torch.no_grad():
        tokens_BNC = vit.module.forward_intermediates(
            inputs_BCHW, indices=[1], return_prefix_tokens=True, intermediates_only=True
        )
    np.testing.assert_allclose(ours["embedding"], tokens_BNC[0][1][:, 0].numpy(), rtol=1e-3, atol=1e-5)
    for backbone, tap in (("torchvision:resnet18", "layer4"), ("timm:test_vit", "patch_embed")):
        if backbone == "timm:test_vit":
            assert resolve(backbone, tap, pool="avg").shapes["embedding"] == (vit.module.embed_dim,)
            continue
        with pytest.raises(BackboneError, match="cls"):
            resolve(backbone, tap, pool="cls")


def test_swin_stages_are_pooled_over_space() -> None:
    backbone = resolve("torchvision:swin_t", "features.1", "permute", pool="avg")
    assert backbone.shapes == {"embedding_features_1": (96,), "embedding_permute": (768,)}


CLASS_TOKENS = [
    ("coat_lite_tiny", "serial_blocks4.1", 1),
    ("volo_d1_224", "post_network.1", 1),
    ("pit_ti_224", "transformers.2.blocks.3", 1),
    ("pit_ti_distilled_224", "transformers.2.blocks.3", 2),
    ("crossvit_tiny_240", "norm.1", 1),
    ("deit_tiny_distilled_patch16_224", "blocks.11", 2),
    ("convit_tiny", "blocks.11", 1),
    ("xcit_nano_12_p16_224", "cls_attn_blocks.1", 1),
    ("mvitv2_small_cls", "norm", 1),
    ("eva02_tiny_patch14_224", "blocks.11", 1),
    ("vit_small_patch16_dinov3", "blocks.11", 5),
    ("tnt_s_patch16_224", "norm", 1),
]


def output_of(module: nn.Module, tap: str, inputs_BCHW: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = module.get_submodule(tap).register_forward_hook(lambda _layer, _inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        module(inputs_BCHW)
    handle.remove()
    return seen[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tap", "prefix"), CLASS_TOKENS)
def test_class_tokens_of_every_family_are_found(name: str, tap: str, prefix: int) -> None:
    backbone = resolve(f"timm:{name}", tap, pool="avg")
    preprocessing = backbone.recipe.preprocessing
    inputs_BCHW = to_network_input(torch.from_numpy(golden_images(*preprocessing.crop)[:1]), preprocessing)
    tokens_BNC = output_of(backbone.module, tap, inputs_BCHW)
    oracle = {"avg": tokens_BNC[:, prefix:].mean(1), "cls": tokens_BNC[:, 0]}
    for pool, expected in oracle.items():
        one = Pooling(pool, *preprocessing.crop, backbone.layout)
        with torch.inference_mode():
            torch.testing.assert_close(TapRunner(backbone.module, [tap], one)(inputs_BCHW)[tap], expected)


def test_layers_that_give_class_tokens_alone() -> None:
    one, two = torch.randn(2, 1, 8), torch.randn(2, 2, 8)
    for pool in ("avg", "cls", "max"):
        torch.testing.assert_close(pooling(pool, prefix=1)("layer", one), one[:, 0])
    torch.testing.assert_close(pooling("cls", prefix=2)("layer", two), two[:, 0])
    with pytest.raises(BackboneError, match="2 tokens, all of them class tokens"):
        pooling("avg", prefix=2)("layer", two)


def test_registers_alone_are_no_class_token() -> None:
    tokens_BNC = torch.randn(2, 4 + 196, 8)
    without = Pooling("cls", 224, 224, Layout(prefix_tokens=4))
    with pytest.raises(BackboneError, match="no class token"):
        without("layer", tokens_BNC)
    average = Pooling("avg", 224, 224, Layout(prefix_tokens=4))
    torch.testing.assert_close(average("layer", tokens_BNC), tokens_BNC[:, 4:].mean(1))
