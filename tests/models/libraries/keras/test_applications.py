"""Keras' applications compute what Keras itself computes, of pixels that Keras itself prepares.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from tests.models.libraries.keras.oracle import application, cosines, enliven, keras, loaded, outputs, preprocess_input, resolve
from tlray.errors import ConfigError, WeightsError
from tlray.lake.image.resize import apply_preprocessing
from tlray.models.backbones.images import load_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.libraries.keras.applications import APPLICATIONS, preparation
from tlray.recipe import golden_images

PENULTIMATE = {
    "VGG16": "fc2",
    "VGG19": "fc2",
    "ResNet50": "avg_pool",
    "InceptionV3": "avg_pool",
    "MobileNetV2": "global_average_pooling2d",
    "DenseNet121": "avg_pool",
    "EfficientNetB0": "avg_pool",
    "Xception": "avg_pool",
    "ConvNeXtTiny": "convnext_tiny_head_layernorm",
    "MobileNetV3Small": "activation_18",
}
"""Of ten applications: the layer before the classifier."""

SMALL = ("MobileNetV2", "EfficientNetB0", "ResNet50")
"""Each of a kind of its own: depthwise, with its rescaling inside, in mode `caffe`; the others are a sweep."""

IS_REFUSED = Version(keras.__version__) < Version("3.16")
"""NASNetMobile: Keras builds it on torch again once its average pooling is TensorFlow's (keras#23177)."""
if not IS_REFUSED:
    PENULTIMATE["NASNetMobile"] = "global_average_pooling2d"


def test_the_table_has_every_application() -> None:
    named = {name for name, value in vars(keras.applications).items() if name[0].isupper() and callable(value)}
    assert set(APPLICATIONS) == named


@pytest.mark.parametrize("name", APPLICATIONS)
def test_values_are_those_of_preprocess_input(name: str) -> None:
    images_BHWC = golden_images(8, 6)
    preprocessing = preparation(APPLICATIONS[name].mode, 8, 6)
    found_BHWC = to_network_input(torch.from_numpy(images_BHWC), preprocessing).permute(0, 2, 3, 1).numpy()
    expected_BHWC = preprocess_input(name)(images_BHWC.astype(np.float32))
    np.testing.assert_allclose(found_BHWC, expected_BHWC, rtol=1e-5, atol=1e-5 * np.abs(expected_BHWC).max())


class SeenError(Exception):
    pass


@pytest.mark.parametrize("name", APPLICATIONS)
def test_sizes_are_keras_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(input_shape: object, default_size: int, **others: object) -> None:
        raise SeenError(default_size)

    if name.startswith("MobileNetV3") or (name == "NASNetMobile" and IS_REFUSED):
        pytest.skip("it has no size of its own, or Keras refuses it")
    monkeypatch.setattr("keras.src.applications.imagenet_utils.obtain_input_shape", stop)
    with pytest.raises(SeenError, match=f"^{APPLICATIONS[name].side}$"):
        getattr(keras.applications, name)(weights=None)


@pytest.mark.parametrize("size", [(640, 427), (90, 130)])
def test_pixels_are_those_of_load_img(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.fromarray(golden_images(size[1], size[0])[1])
    expected_HWC = loaded(tmp_path / "image.png", image, (224, 224))
    np.testing.assert_array_equal(apply_preprocessing(image, preparation("caffe", 224, 224)), expected_HWC)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.sweep) for name in PENULTIMATE])
def test_embeddings_are_keras_own(name: str, tmp_path: Path) -> None:
    model, weights = application(name), "random:0"
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        weights = str(tmp_path / "w.weights.h5")
        enliven(model).save_weights(weights)
    backbone = resolve(f"keras:{name}", weights)
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)[:2]
    inputs_BHWC = preprocess_input(name)(images_BHWC.astype(np.float32))
    kind = PENULTIMATE[name].rstrip("_0123456789")  # Keras numbers layers without a name by all that the thread has made
    last = next(layer.name for layer in reversed(model.layers) if layer.name.startswith(kind))
    expected_BD = outputs(model, [last], inputs_BHWC)[0].reshape(2, -1)
    assert backbone.recipe.taps == (PENULTIMATE[name],)
    found_BD = Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC)["embedding"]
    assert found_BD.shape == expected_BD.shape
    assert cosines(found_BD, expected_BD).min() >= 0.9999
    assert np.abs(found_BD - expected_BD).max() <= 2e-3 * np.abs(expected_BD).max()
    assert cosines(expected_BD[:1], expected_BD[1:]).max() < 0.999  # or it would not show


def test_maps_are_kept_in_keras_order() -> None:
    """The 25,088 numbers of block5_pool are those of Keras' tutorials, one by one."""
    model = application("VGG16", include_top=False, input_shape=(224, 224, 3))
    images_BHWC = golden_images(224, 224)[:1]
    inputs_BHWC = preprocess_input("VGG16")(images_BHWC.astype(np.float32))
    expected_BHWC, early_BHWC = outputs(model, ["block5_pool", "block1_pool"], inputs_BHWC)
    taps = ("block5_pool", "block1_pool")
    backbone = resolve("keras:VGG16", "random:0", taps=taps, pool="flatten")
    assert backbone.shapes == {"embedding_block5_pool": (7, 7, 512), "embedding_block1_pool": (112, 112, 64)}
    found = Encoder(backbone, device="cpu", batch_size=1).encode(images_BHWC)
    for column, expected in (("embedding_block5_pool", expected_BHWC), ("embedding_block1_pool", early_BHWC)):
        np.testing.assert_allclose(found[column], expected.reshape(1, -1), rtol=1e-3, atol=1e-4 * expected.max())
    assert found["embedding_block5_pool"].shape == (1, 25088)


def test_averages_are_over_space() -> None:
    model = application("MobileNet", alpha=1.0)
    images_BHWC = golden_images(224, 224)[:1]
    inputs_BHWC = preprocess_input("MobileNet")(images_BHWC.astype(np.float32))
    expected = outputs(model, ["conv_pw_6_relu", "conv_dw_1_relu"], inputs_BHWC)
    backbone = resolve("keras:MobileNet", "random:0", taps=("conv_pw_6_relu", "conv_dw_1_relu"))
    found = Encoder(backbone, device="cpu", batch_size=1).encode(images_BHWC)
    for rows_BD, maps_BHWC in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(rows_BD, maps_BHWC.mean((1, 2)), rtol=1e-3, atol=1e-4 * maps_BHWC.max())


def test_another_size_is_include_top_false() -> None:
    model = application("MobileNet", include_top=False, pooling="avg", input_shape=(96, 128, 3))
    backbone = resolve("keras:MobileNet", "random:0", preprocessing={"resize": (96, 128), "crop": (96, 128)})
    images_BHWC = golden_images(96, 128)
    expected_BD = model.predict(preprocess_input("MobileNet")(images_BHWC.astype(np.float32)), verbose=0)
    found_BD = Encoder(backbone, device="cpu").encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-3, atol=1e-4 * expected_BD.max())
    assert "built without its classifier: which takes images of 224x224 alone" in " ".join(backbone.notes)
    with pytest.raises(ConfigError, match="keras:MobileNet cannot take images of crop 16x16; expected 224x224"):
        resolve("keras:MobileNet", "random:0", preprocessing={"resize": 16, "crop": 16})


@pytest.mark.skipif(not IS_REFUSED, reason="this version of Keras builds it")
@pytest.mark.parametrize("weights", ["random:0", "default"])
def test_what_keras_refuses_is_refused(weights: str) -> None:
    with pytest.raises(
        ConfigError, match="cannot build keras:NASNetMobile: NASNetMobile is not available with the torch backend"
    ):
        resolve("keras:NASNetMobile", weights)


@pytest.mark.parametrize("kind", ["w.weights.h5", "w.h5", "w.keras"])
@pytest.mark.parametrize("has_top", [True, False])
def test_files_of_weights(kind: str, has_top: bool, tmp_path: Path) -> None:
    model = application("MobileNet", include_top=has_top, input_shape=(224, 224, 3))
    path = tmp_path / kind
    model.save_weights(path) if ".weights." in kind else model.save(path)
    backbone = resolve("keras:MobileNet", str(path))
    notes = " ".join(backbone.notes)
    assert ("is built without its classifier" in notes) is not has_top
    assert "does not say how its images are to be prepared; assumed: as for the published weights" in notes
    kernel = backbone.module.state_dict()["conv_pw_3.weight"].permute(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, keras.ops.convert_to_numpy(model.get_layer("conv_pw_3").kernel))
    assert load_backbone(backbone.recipe, Path).recipe == backbone.recipe


def test_weights_that_are_not_there_or_anothers(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no weights 'imagenet21k'; it has: imagenet"):
        resolve("keras:MobileNet", "imagenet21k")
    with pytest.raises(WeightsError, match=r"there is no file .*nothing.h5; expected a model or weights of Keras"):
        resolve("keras:MobileNet", str(tmp_path / "nothing.h5"))
    path = tmp_path / "other.weights.h5"
    application("MobileNet", alpha=0.5, input_shape=(224, 224, 3)).save_weights(path)
    with pytest.raises(WeightsError, match=r"other.weights.h5 does not fit keras:MobileNet"):
        resolve("keras:MobileNet", str(path))
    whole = tmp_path / "whole.h5"
    application("MobileNet", input_shape=(224, 224, 3)).save(whole)
    with pytest.raises(
        WeightsError, match=r"use weights of this application without its classifier \(_notop\), which it has at 224"
    ):
        resolve("keras:MobileNet", str(whole), preprocessing={"crop": 160, "resize": 160})
    path.write_bytes(path.read_bytes()[:10000])
    with pytest.raises(WeightsError, match=r"other.weights.h5 does not fit keras:MobileNet"):
        resolve("keras:MobileNet", str(path))


def test_published_weights_are_downloaded_by_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub is reached from here: what Keras asks for, and what is said when it does not come, or comes damaged."""
    asked: list[Any] = []

    def get_file(name: str, origin: str, **arguments: Any) -> str:
        asked.append((name, origin, arguments.get("file_hash")))
        raise Exception(f"URL fetch failure on {origin}: None -- no such host")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(WeightsError, match="weights imagenet of keras:MobileNet could not be had: URL fetch failure on https"):
        resolve("keras:MobileNet")
    (name, origin, _), *_ = asked
    assert name == "mobilenet_1_0_224_tf.h5" and origin.endswith(name)
    path = tmp_path / "published.weights.h5"
    application("MobileNet", input_shape=(224, 224, 3)).save_weights(path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    backbone = resolve("keras:MobileNet", "imagenet")
    assert backbone.recipe.weights == "keras:imagenet" and not backbone.notes
    assert backbone.recipe.weights_sha256 == resolve("keras:MobileNet", str(path)).recipe.weights_sha256
    assert load_backbone(backbone.recipe, Path).recipe == backbone.recipe
