"""Files of Keras models: what is computed of them, and what is refused before any of it is run."""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.models.libraries.keras.oracle import keras, outputs, preprocess_input, resolve
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.open import open_store
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.libraries.names import full_name
from tlray.recipe import Precision, golden_images

L = keras.layers
RAW = {"scale": (0, 255), "mean": (0, 0, 0), "std": (1, 1, 1)}


def small(*first: Any, side: int | None = 32, channels: int = 3, last: str = "softmax") -> Any:
    keras.utils.set_random_seed(3)
    layers = [keras.Input((side, side, channels)), *first, L.Conv2D(8, 3, strides=2, activation="relu", name="conv")]
    layers += [L.GlobalAveragePooling2D(name="pool"), L.Dense(5, activation=last, name="scores")]
    return keras.Sequential(layers)


def saved(model: Any, path: Path) -> str:
    model.save(path)
    return str(path)


def embedded(backbone: Backbone) -> np.ndarray:
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    return Encoder(backbone, device="cpu", batch_size=4).encode(images_BHWC)[next(iter(backbone.shapes))]


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_file_is_a_backbone(name: str, tmp_path: Path) -> None:
    model = small(L.Rescaling(1 / 255))
    path = saved(model, tmp_path / name)
    backbone = resolve(f"keras:{path}")
    recipe = backbone.recipe
    assert (recipe.backbone, recipe.weights, recipe.taps) == ("keras:file", path, ("pool",))
    assert "scales levels by itself (rescaling" in " ".join(backbone.notes)
    (expected,) = outputs(model, ["pool"], golden_images(32, 32).astype(np.float32))
    np.testing.assert_allclose(embedded(backbone), expected, rtol=1e-4, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(embedded(load_backbone(recipe, Path)), embedded(backbone))


def test_the_fingerprint_is_that_of_the_layers_and_weights(tmp_path: Path) -> None:
    model = small(L.Rescaling(1 / 255))
    first = resolve(f"keras:{saved(model, tmp_path / 'a.keras')}").recipe
    (tmp_path / "moved").mkdir()
    moved = resolve(f"keras:{saved(model, tmp_path / 'moved' / 'b.keras')}").recipe
    assert moved.recipe_id == first.recipe_id and moved.weights != first.weights
    model.get_layer("conv").activation = keras.activations.silu
    other = resolve(f"keras:{saved(model, tmp_path / 'c.keras')}").recipe
    assert other.weights_sha256 != first.weights_sha256


def test_preparation_is_said_or_known(tmp_path: Path) -> None:
    path = saved(small(), tmp_path / "m.keras")
    with pytest.raises(
        ConfigError, match=r"m.keras does not say how its images are prepared: give recipe.preprocessing.preset"
    ):
        resolve(f"keras:{path}")
    backbone = resolve(f"keras:{path}", preprocessing={"preset": "keras:caffe"})
    (expected,) = outputs(small(), ["pool"], preprocess_input("VGG16")(golden_images(32, 32).astype(np.float32)))
    np.testing.assert_allclose(embedded(backbone), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert not backbone.notes


def test_the_scale_of_values_is_not_guessed(tmp_path: Path) -> None:
    """A mean of 0 and a deviation of 1 are those of any scale."""
    model = small()
    path, said = saved(model, tmp_path / "m.keras"), {"mean": [0, 0, 0], "std": [1, 1, 1]}
    with pytest.raises(ConfigError, match=r"mean, std and scale \(what 0..255 becomes"):
        resolve(f"keras:{path}", preprocessing=said)
    backbone = resolve(f"keras:{path}", preprocessing=said | {"scale": [0, 1]})
    (expected,) = outputs(model, ["pool"], golden_images(32, 32).astype(np.float32) / 255)
    np.testing.assert_allclose(embedded(backbone), expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("name", ["VGG16", "MobileNetV2"])
def test_preprocess_input_within_the_model_is_seen(name: str, tmp_path: Path) -> None:
    """As Keras' guide to transfer learning has it: augmentation, then the application's scaling, then a network."""
    inputs = keras.Input((32, 32, 3))
    value = keras.Sequential([L.RandomFlip(), L.RandomRotation(0.1)])(inputs)
    value = small(side=32)(preprocess_input(name)(value))
    model = keras.Model(inputs, value)
    backbone = resolve(f"keras:{saved(model, tmp_path / 'm.keras')}")
    assert "scales levels by itself" in backbone.notes[0]
    expected = model.predict(golden_images(32, 32).astype(np.float32), verbose=0)
    own = own_classifier(backbone, keep_embeddings=False)
    scores = Encoder(own.backbone, device="cpu", batch_size=4).encode(golden_images(32, 32))[own.column]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-6)


def test_sizes(tmp_path: Path) -> None:
    path = saved(small(L.Rescaling(1 / 255), side=None), tmp_path / "any.keras")
    with pytest.raises(ConfigError, match=r"any.keras takes images of any size \(\(any, any, 3\)\); say which"):
        resolve(f"keras:{path}")
    assert resolve(f"keras:{path}", preprocessing={"crop": 48, "resize": 48}).recipe.preprocessing.crop == (48, 48)
    path = saved(small(L.Rescaling(1 / 255)), tmp_path / "one.keras")
    with pytest.raises(ConfigError, match=r"one.keras takes images of 32x32, not of crop 48x48"):
        resolve(f"keras:{path}", preprocessing={"crop": 48, "resize": 48})


def test_whole_numbers_as_input(tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(inputs, L.GlobalAveragePooling2D(name="pool")(L.Conv2D(4, 3)(L.Rescaling(1 / 255)(inputs))))
    backbone = resolve(f"keras:{saved(model, tmp_path / 'm.keras')}")
    expected = model.predict(golden_images(32, 32), verbose=0)
    np.testing.assert_allclose(embedded(backbone), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_inputs_that_are_no_images(tmp_path: Path) -> None:
    path = saved(small(channels=1), tmp_path / "grey.keras")
    with pytest.raises(BackboneError, match=r"grey.keras takes \(32, 32, 1\) inputs, expected one of \(height, width, 3\)"):
        resolve(f"keras:{path}")
    a, b = keras.Input((8, 8, 3)), keras.Input((4,))
    model = keras.Model([a, b], L.Concatenate()([L.Flatten()(a), b]))
    with pytest.raises(BackboneError, match=r"takes \(8, 8, 3\), \(4\) inputs"):
        resolve(f"keras:{saved(model, tmp_path / 'two.keras')}")


def test_a_classifier_of_no_classes_gives_no_scores(tmp_path: Path) -> None:
    path = saved(small(L.Rescaling(1 / 255), last="sigmoid"), tmp_path / "labels.keras")
    with pytest.raises(ConfigError, match="keras:file has no classifier that tells classes apart"):
        own_classifier(resolve(f"keras:{path}"), keep_embeddings=False)


def test_sixteen_bits_of_a_file_are_computed_at_the_recipes_precision(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small(L.Rescaling(1 / 255))
    finally:
        keras.config.set_dtype_policy("float32")
    backbone = resolve(f"keras:{saved(model, tmp_path / 'm.keras')}")
    plain = small(L.Rescaling(1 / 255))
    plain.set_weights(model.get_weights())
    (expected,) = outputs(plain, ["pool"], golden_images(32, 32).astype(np.float32))
    np.testing.assert_allclose(embedded(backbone), expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5"])
def test_code_in_a_file_is_not_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    source = f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"
    model = small(L.Lambda(eval(source), output_shape=(32, 32, 3), name="trojan"))
    path = saved(model, tmp_path / name)
    marker.unlink(missing_ok=True)
    with pytest.raises(BackboneError, match=r"layer 'trojan' is a Lambda, Python code inside the file, which is not run.*onnx"):
        resolve(f"keras:{path}", preprocessing=RAW)
    assert not marker.exists()


def edited(path: str, change: Any) -> None:
    """A file whose document of layers is another."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(contents["config.json"])
    change(document)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (contents | {"config.json": json.dumps(document).encode()}).items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("module", "kind", "registered", "message"),
    [
        ("os", "system", None, "is of os.system, which is not Keras' own"),
        (None, "Mine", "mine>Mine", "is of mine>Mine, which is not Keras' own"),
        ("keras.layers", "TFSMLayer", None, "is a TFSMLayer, a SavedModel of TensorFlow, which is not run"),
        ("keras.layers", "TorchModuleWrapper", None, "is a TorchModuleWrapper, a module of torch, pickled"),
    ],
)
def test_classes_of_others_are_refused_by_name(
    module: str | None, kind: str, registered: str | None, message: str, tmp_path: Path
) -> None:
    path = saved(small(L.ReLU(name="theirs")), tmp_path / "m.keras")

    def change(document: dict[str, Any]) -> None:
        (layer,) = [layer for layer in document["config"]["layers"] if layer["config"].get("name") == "theirs"]
        layer.update(module=module, class_name=kind, registered_name=registered)

    edited(path, change)
    with pytest.raises(BackboneError, match=f"layer 'theirs' {message}"):
        resolve(f"keras:{path}", preprocessing=RAW)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    weights = tmp_path / "w.weights.h5"
    small().save_weights(weights)
    with pytest.raises(WeightsError, match=r"w.weights.h5 holds weights alone.*--backbone keras:VGG16 --weights"):
        resolve(f"keras:{weights}")
    for name in ("text.keras", "text.h5"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(WeightsError, match=f"{name} could not be read as a file of Keras"):
            resolve(f"keras:{tmp_path / name}")
    path = Path(saved(small(), tmp_path / "cut.h5"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"cut.h5"):
        resolve(f"keras:{path}", preprocessing=RAW)
    with pytest.raises(WeightsError, match=r"there is no file .*nothing.keras"):
        resolve(f"keras:{tmp_path}/nothing.keras")
    with pytest.raises(WeightsError, match=r"notes.txt has not the name of a file of Keras"):
        (tmp_path / "notes.txt").write_text("x")
        resolve(f"keras:{tmp_path}/notes.txt")
    with pytest.raises(WeightsError, match=r"is a file that has its own weights; leave recipe.weights out"):
        resolve(f"keras:{path}", "random:0")


def test_layers_that_this_version_of_keras_has_not(tmp_path: Path) -> None:
    path = saved(small(L.ReLU(name="old")), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        document = json.loads(file.attrs["model_config"])
        layer = next(layer for layer in document["config"]["layers"] if layer["config"].get("name") == "old")
        layer["class_name"] = "TFOpLambda"
        file.attrs["model_config"] = json.dumps(document)
    with pytest.raises(WeightsError, match=r"m.h5: Keras [\d.]+ cannot load it: .*TFOpLambda.*export it as ONNX"):
        resolve(f"keras:{path}", preprocessing=RAW)


def test_networks_of_tensorflow_and_cntk_are_led_to_onnx(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    for path, command in (
        (f"{tmp_path}/saved", f"python -m tf2onnx.convert --saved-model {tmp_path}/saved"),
        (f"{tmp_path}/graph.pb", "python -m tf2onnx.convert --graphdef"),
        (f"{tmp_path}/net.dnn", "format=cntk.ModelFormat.ONNX"),
    ):
        with pytest.raises(WeightsError, match=command):
            resolve(f"keras:{path}")
    with pytest.raises(BackboneError, match=r"backbone ./m.keras: a file stands after its library: give keras:./m.keras"):
        full_name("./m.keras")


@pytest.mark.s3
def test_a_file_on_s3_is_a_backbone(s3_bucket: str, tmp_path: Path) -> None:
    path = saved(small(L.Rescaling(1 / 255)), tmp_path / "m.keras")
    open_store(s3_bucket).write(f"{s3_bucket}/models/m.keras", Path(path).read_bytes())
    config = RecipeConfig(backbone=f"keras:{s3_bucket}/models/m.keras", precision=Precision(compute="fp32", storage="full"))
    backbone, local = resolve_backbone(config, local_copy), resolve(f"keras:{path}")
    assert backbone.recipe.recipe_id == local.recipe.recipe_id
    np.testing.assert_array_equal(embedded(load_backbone(backbone.recipe, local_copy)), embedded(local))
    with pytest.raises(WeightsError, match="there is no file s3://"):
        resolve_backbone(config.model_copy(update={"backbone": f"keras:{s3_bucket}/models/n.keras"}), local_copy)
    open_store(s3_bucket).write(f"{s3_bucket}/models/saved/saved_model.pb", b"x")
    with pytest.raises(WeightsError, match=f"tf2onnx.convert --saved-model {s3_bucket}/models/saved"):
        resolve_backbone(config.model_copy(update={"backbone": f"keras:{s3_bucket}/models/saved"}), local_copy)
