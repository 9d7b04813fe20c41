"""Names, preprocessing, sizes, and that every family resolves."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.errors import BackboneError, ConfigError
from tlray.lake.image.resize import apply_preprocessing
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.libraries.names import _OURS, full_name
from tlray.models.libraries.timm import Timm
from tlray.models.libraries.torchvision import Torchvision
from tlray.models.libraries.zoo.zoo import Variant
from tlray.recipe import TEXT_LIBRARIES, Preprocessing, golden_images

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
LARGEST_PARAMETERS = 150_000_000

WIDEST_BRANCH = {"timm:crossvit_tiny_240": 192, "timm:efficientvim_m1": 320}
"""Of networks with a classifier for each branch or stage, whose `num_features` is the sum."""

TIMM = [
    "beitv2_base_patch16_224",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "davit_tiny",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientvim_m1",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "halonet_h1",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_v4",
    "inception_next_atto",
    "lcnet_035",
    "levit_128s",
    "mambaout_femto",
    "mixer_s32_224",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "nest_tiny",
    "nf_regnet_b0",
    "pit_ti_224",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "repvit_m0_9",
    "resnest14d",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "volo_d1_224",
    "xception41",
    "xcit_nano_12_p16_224",
]


def resolve(backbone: str, **overrides: object) -> Backbone:
    config = RecipeConfig(
        backbone=backbone, weights="random:0", preprocessing=PreprocessingConfig.model_validate(overrides)
    )  # fmt: skip
    return resolve_backbone(config, Path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-50", "expected torchvision:resnet50 or timm:resnet50"),
        ("ResNet50", "expected torchvision:resnet50 or timm:resnet50"),
        ("torchvision:ResNet50", "expected torchvision:resnet50$"),
        ("Torchvision:resnet50", "as torchvision:resnet50"),
        ("vit-b-16", "expected torchvision:vit_b_16"),
        ("vit_tiny_patch16_225", "near ones: timm:vit_tiny_patch16_224"),
        ("resnet50.nonsense", "no backbone"),
        ("", "expected one of the libraries torchvision:, timm:"),
        ("caffe:resnet50", "expected torchvision:resnet50 or timm:resnet50"),
        ("keras:resnet50", "expected keras:ResNet50$"),
        ("torchvision:resnet51", "torchvision:resnet50"),
        ("torchvision:fcn_resnet50", "no backbone"),
        ("torchvision:resnet50.a1_in1k", "no backbone"),
        ("timm:vit_base_patch16_225", "timm:vit_base_patch16_224"),
        ("timm:resnet50.nonsense", "a1_in1k"),
        ("timm:", "no backbone 'timm:'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        resolve(name)


def check(backbone: Backbone) -> None:
    """One vector an image, of the length that the library says where it says one; eval mode and fp32."""
    (shape,) = backbone.shapes.values()
    assert len(shape) == 1
    expected = getattr(backbone.module, "head_hidden_size", None) or getattr(backbone.module, "num_features", None)
    expected = WIDEST_BRANCH.get(backbone.recipe.backbone, expected)
    if backbone.recipe.backbone.startswith("timm:") and isinstance(expected, int):
        assert shape[0] == expected
    assert not backbone.module.training
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_model_resolves(name: str) -> None:
    entry = torchvision.models.get_model_weights(name).DEFAULT
    if name == "regnet_y_128gf":
        pytest.skip("645 million parameters, and its widths cannot be computed without memory")
    if entry.meta["num_params"] > LARGEST_PARAMETERS:
        with torch.device("meta"):
            module = Torchvision().build(name, entry.name, Variant())
        assert sum(parameter.numel() for parameter in module.parameters()) == entry.meta["num_params"]
        return
    check(resolve(f"torchvision:{name}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_families_resolve(name: str) -> None:
    check(resolve(f"timm:{name}"))


@pytest.mark.parametrize(
    ("name", "tap"),
    [("resnet18", "avgpool"), ("googlenet", "avgpool"), ("alexnet", "classifier.5"), ("densenet121", "classifier:input"),
     ("squeezenet1_1", "classifier.1:input")],
)  # fmt: skip
def test_default_taps(name: str, tap: str) -> None:
    assert resolve(f"torchvision:{name}").recipe.taps == (tap,)


def assert_near(image: Image.Image, preprocessing: Preprocessing, expected_CHW: torch.Tensor) -> None:
    """The library's network input on a Pillow image, but for roundings of its pixels (`tlray.lake.image.resample`)."""
    pixels_BHWC = torch.tensor(apply_preprocessing(image, preprocessing))[None]
    levels_CHW = (
        (to_network_input(pixels_BHWC, preprocessing)[0] - expected_CHW) * torch.tensor(preprocessing.std)[:, None, None] * 255
    )
    assert levels_CHW.abs().max() < 2.01
    assert levels_CHW.abs().mean() < 0.2


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (90, 130)])
@pytest.mark.parametrize(
    "name",
    ["torchvision:resnet18", "torchvision:efficientnet_b1", "timm:resnet10t", "timm:tf_efficientnet_lite0",
     "timm:mobilenetv3_small_050", "timm:test_vit"],
)  # fmt: skip
def test_preprocessing_is_that_of_the_weights(name: str, size: tuple[int, int]) -> None:
    backbone = resolve(name)
    image = Image.fromarray(golden_images(size[1], size[0])[0])
    if name.startswith("timm:"):
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone.module))
    else:
        transform = torchvision.models.get_model_weights(name.removeprefix("torchvision:")).DEFAULT.transforms()
    assert_near(image, backbone.recipe.preprocessing, transform(image))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(3, 96, 96), (3, 128, 96)])
def test_crop_modes_and_sizes_of_timm(mode: str, input_size: tuple[int, int, int]) -> None:
    overlay = {"crop_mode": mode, "input_size": input_size, "crop_pct": 0.9, "mean": (0.5, 0.4, 0.3)}
    module = timm.create_model("test_resnet", pretrained_cfg_overlay=overlay)
    preprocessing = Timm().preprocessing("test_resnet", "", module)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    for width, height in ((640, 427), (333, 500)):
        image = Image.fromarray(golden_images(height, width)[1])
        assert_near(image, preprocessing, transform(image))


def test_overrides_replace_single_fields() -> None:
    usual = resolve("torchvision:resnet18").recipe.preprocessing
    ours = resolve("torchvision:resnet18", resize=300, crop=[192, 256], interpolation="bicubic").recipe.preprocessing
    assert ours == usual.model_copy(update={"resize": (300, 300), "crop": (192, 256), "interpolation": "bicubic"})
    assert isinstance(ours, Preprocessing)


def test_scaled_decoding_is_an_override_like_the_others() -> None:
    assert not resolve("torchvision:resnet18").recipe.preprocessing.scaled_decoding
    assert resolve("torchvision:resnet18", scaled_decoding=True).recipe.preprocessing.scaled_decoding


@pytest.mark.parametrize("overrides", [{"crop": 300}, {"resize": 100}, {"std": (0.2, 0.0, 0.2)}])
def test_overrides_that_make_no_sense(overrides: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"padded|positive"):
        resolve("torchvision:resnet18", **overrides)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), ("vgg16", "IMAGENET1K_FEATURES"), ("inception_v3", "IMAGENET1K_V1")],
)
def test_modules_are_built_as_torchvision_builds_them(name: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder is run as far as loading; its module has the shapes of the weights that it asked for."""
    built = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_keywords: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, _state: built.append(self))
    with torch.device("meta"):
        torchvision.models.get_model(name, weights=entry)
        ours = Torchvision().build(name, entry, Variant()).state_dict()
    theirs = {key: value for key, value in built[0].state_dict().items() if not key.startswith("AuxLogits")}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("resnet50", "torchvision:resnet50"),  # both have it
        ("resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("timm:resnet50", "timm:resnet50"),
        (" torchvision:resnet50 ", "torchvision:resnet50"),
    ],
)
def test_a_name_without_its_library_is_completed(text: str, full: str) -> None:
    assert full_name(text) == full


def test_the_recipe_has_the_full_name_and_the_log_says_which_library_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    recipe = resolve("resnet18").recipe
    assert recipe == resolve("torchvision:resnet18").recipe
    assert [record.message for record in caplog.records] == [
        "backbone resnet18 is torchvision:resnet18; there is timm:resnet18, too"
    ]


def test_pooling_that_changes_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that gives a vector has nothing to pool."""
    config = {"backbone": "timm:test_resnet", "weights": "random:0", "pool": "max"}
    idle = resolve_backbone(RecipeConfig.model_validate(config), Path)
    assert "recipe.pool max changes nothing: global_pool.pool gives a vector" in caplog.text and idle.notes
    for wishes in ({"taps": ("layer4",)}, {"taps": ("layer4", "global_pool.pool")}, {"pool": "avg"}, {"pool": "flatten"}):
        assert not resolve_backbone(RecipeConfig.model_validate(config | wishes), Path).notes


def test_keys_of_texts_are_refused_for_images() -> None:
    for name, value in (("lowercase", True), ("a", 0.1), ("prompt", "x"), ("split", "words"), ("frequencies", "f")):
        config = {"backbone": "timm:test_resnet", "weights": "random:0", "tokens": {name: value}}
        with pytest.raises(ConfigError, match=rf"recipe\.tokens\.{name} is about texts, but timm:test_resnet embeds images"):
            resolve_backbone(RecipeConfig.model_validate(config), Path)


def test_the_help_names_all_libraries() -> None:
    description = str(RecipeConfig.model_fields["backbone"].description)
    assert [name for name in (*_OURS, *TEXT_LIBRARIES) if f"{name}:" not in description] == []
