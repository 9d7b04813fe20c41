"""Each layer of Keras, translated, computes what Keras computes; what torch has not, Keras computes itself.

Shape legend: B images, H height, W width, C channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.libraries.keras.oracle import keras
from tlray.errors import BackboneError
from tlray.models.encoder.network.folding import share_copy
from tlray.models.libraries.keras.translation import translate as translation
from tlray.models.libraries.keras.translation.translate import translate

L = keras.layers

IMAGES_BHWC = np.random.default_rng(0).standard_normal((2, 13, 10, 3)).astype(np.float32)
"""Sides that are odd and even, so that padding on one side shows."""


def drawn(model: Any) -> Any:
    """A model all of whose variables are other than their initial ones."""
    generator = np.random.default_rng(1)
    for variable in model.variables:
        if "seed" not in variable.path:
            values = generator.standard_normal(variable.shape).astype(np.float32)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def model_of(*layers: Callable[[Any], Any]) -> Any:
    inputs = value = keras.Input(IMAGES_BHWC.shape[1:])
    for layer in layers:
        value = layer(value)
    return drawn(keras.Model(inputs, value))


def prepared() -> torch.Tensor:
    return torch.from_numpy(IMAGES_BHWC).permute(0, 3, 1, 2)


def found_by_torch(model: Any, by_keras: int = 0) -> np.ndarray:
    translated = translate(keras, model, prepared())
    assert len(translated.by_keras) == by_keras, translated.by_keras
    with torch.no_grad():
        value = share_copy(translated.module)(prepared())
    return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()


def same(model: Any, by_keras: int = 0) -> None:
    expected = model.predict(IMAGES_BHWC, verbose=0)
    np.testing.assert_allclose(found_by_torch(model, by_keras), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "silu", "gelu", "hard_silu", "hard_sigmoid", "sigmoid", "tanh"])
def test_activations(activation: str | None) -> None:
    same(
        model_of(L.Conv2D(4, 3, activation=activation), L.Activation(activation or "linear"), L.Dense(3, activation=activation))
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [1, 2, 3, (5, 2)])
@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
def test_convolutions(padding: str, size: object, strides: object) -> None:
    same(model_of(L.Conv2D(6, size, strides, padding)))
    same(model_of(L.Conv2D(6, size, strides, padding, groups=3, use_bias=False)))
    if not isinstance(strides, tuple):
        same(model_of(L.DepthwiseConv2D(size, strides, padding, depth_multiplier=2)))
        same(model_of(L.SeparableConv2D(5, size, strides, padding, depth_multiplier=2, activation="relu")))
    if strides == 1:
        same(model_of(L.Conv2D(6, size, padding=padding, dilation_rate=2)))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [2, 3, (2, 3)])
@pytest.mark.parametrize("strides", [1, 2, (3, 1), None])
def test_pooling(padding: str, size: object, strides: object) -> None:
    same(model_of(L.MaxPooling2D(size, strides, padding)))
    is_even = padding == "valid" or (strides == 1 and size == 3)
    same(model_of(L.AveragePooling2D(size, strides, padding)), by_keras=0 if is_even else 1)


OTHERS = {
    "batch norm": (L.BatchNormalization(epsilon=0.01),),
    "batch norm without scale": (L.BatchNormalization(scale=False, center=False),),
    "batch norm of vectors": (L.Flatten(), L.BatchNormalization()),
    "layer norm": (L.LayerNormalization(),),
    "layer norm of vectors": (L.GlobalAveragePooling2D(), L.LayerNormalization(center=False)),
    "global": (L.GlobalMaxPooling2D(keepdims=True), L.Conv2D(4, 1), L.Reshape((4,))),
    "padding": (L.ZeroPadding2D(((1, 2), (0, 3))), L.Cropping2D(((0, 4), (2, 1)))),
    "dense on maps": (L.Dense(7), L.Flatten(), L.Dense(5)),
    "dense on rows": (L.Reshape((13, 30)), L.Dense(7, activation="softmax")),
    "reshape to a map": (L.Flatten(), L.Reshape((10, -1, 3)), L.Conv2D(2, 3)),
    "leaky": (L.LeakyReLU(0.3), L.ReLU(6.0), L.ReLU()),
    "rescaling": (L.Rescaling(0.5, offset=-1.0), L.Rescaling([0.1, 0.2, 0.3])),
    "normalization": (L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),),
    "nothing": (L.RandomFlip(), L.RandomRotation(0.2), L.Dropout(0.5), L.SpatialDropout2D(0.5), L.Conv2D(2, 3)),
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=OTHERS)
def test_other_layers(layers: tuple[Any, ...]) -> None:
    same(model_of(*layers))


def test_values_that_are_joined() -> None:
    inputs = keras.Input(IMAGES_BHWC.shape[1:])
    a, b = L.Conv2D(3, 3, padding="same")(inputs), L.Conv2D(3, 1)(inputs)
    gate = L.GlobalAveragePooling2D(keepdims=True)(b)
    joined = [layer([a, b]) for layer in (L.Add(), L.Subtract(), L.Multiply(), L.Average(), L.Maximum(), L.Minimum())]
    value = L.Concatenate()([*joined, a * gate, (a + 3.0) / 2.0 - b, 1.0 - a])
    same(drawn(keras.Model(inputs, L.Concatenate(axis=1)([value, value]))))


def test_shared_layers_and_models_within_models() -> None:
    shared = L.Conv2D(3, 3, padding="same", name="shared")
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(inner_input, shared(L.ReLU(name="relu")(inner_input)), name="inner")
    inputs = keras.Input(IMAGES_BHWC.shape[1:])
    outer = keras.Model(inputs, keras.Sequential([L.Conv2D(3, 1), inner], name="tail")(shared(inner(inputs))))
    same(drawn(outer))
    names = dict(translate(keras, outer, prepared()).module.named_modules())
    assert {"inner.relu", "inner.shared", "shared", "tail.inner.shared"} <= set(names)


def test_what_torch_has_not_is_computed_by_keras() -> None:
    inputs = keras.Input(IMAGES_BHWC.shape[1:])
    value = L.Conv2DTranspose(4, 3, strides=2)(inputs)  # with weights
    value = L.UpSampling2D(interpolation="bilinear")(keras.ops.roll(value, 1, axis=1)) + np.arange(4, dtype=np.float32)
    rows = L.MultiHeadAttention(2, 4)(*[L.Reshape((-1, 4))(L.AveragePooling2D(8)(value))] * 2)
    same(drawn(keras.Model(inputs, L.GlobalAveragePooling1D()(rows))), by_keras=6)


def test_a_layer_of_keras_has_its_weights_as_parameters() -> None:
    model = model_of(L.Conv2DTranspose(2, 3))
    module = translate(keras, model, prepared()).module
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(3, 3, 2, 3), (2,)]
    with torch.no_grad():
        before = module(prepared())
        next(module.parameters()).mul_(2)
        assert not torch.allclose(module(prepared()), before)


def test_channels_first_are_refused() -> None:
    with pytest.raises(BackboneError, match="layer 'first' has channels first"):
        found_by_torch(model_of(L.Permute((3, 1, 2)), L.MaxPooling2D(2, data_format="channels_first", name="first")))


def test_a_translation_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "make", lambda *_, **__: torch.nn.Identity())
    with pytest.raises(BackboneError, match="torch's layers do not compute what Keras computes of the model 'mine'"):
        inputs = keras.Input(IMAGES_BHWC.shape[1:])
        translate(keras, keras.Model(inputs, L.ReLU()(inputs), name="mine"), prepared())


def test_models_without_a_graph_and_names_that_torch_uses() -> None:
    class Mine(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(BackboneError, match=r"'own' is code of a class \(Mine\), not a graph of layers"):
        translate(keras, Mine(name="own"), prepared())
    with pytest.raises(BackboneError, match=r"has a layer of a name that torch's modules have a use for .*train"):
        translate(keras, model_of(L.Conv2D(2, 3, name="train")), prepared())
    assert "a_b" in dict(translate(keras, model_of(L.ReLU(name="a.b")), prepared()).module.named_modules())


@pytest.mark.parametrize(("activation", "units"), [("softmax", 5), ("sigmoid", 1), (None, 5)])
def test_scores_are_such_that_their_softmax_is_keras_probabilities(activation: str | None, units: int) -> None:
    model = model_of(L.GlobalAveragePooling2D(), L.Dense(units, name="scores"), L.Activation(activation or "linear"))
    translated = translate(keras, model, prepared())
    assert translated.has_classes and translated.ending.tap.startswith("global_average_pooling2d")
    with torch.no_grad():
        found = translated.module(prepared())
    expected = model.predict(IMAGES_BHWC, verbose=0)
    if activation is None:
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    else:
        np.testing.assert_allclose(found.softmax(1).numpy()[:, -units:], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "layers",
    [
        (L.GlobalAveragePooling2D(name="last"),),
        (L.Flatten(), L.Dense(4, activation="relu", name="last")),
        (L.Conv2D(4, 3, name="last"),),
    ],
)
def test_a_model_without_classifier_ends_with_its_embedding(layers: tuple[Any, ...]) -> None:
    translated = translate(keras, model_of(*layers), prepared())
    assert not translated.has_classes and translated.ending.tap == "last"


def test_many_labels_are_no_classes() -> None:
    translated = translate(keras, model_of(L.Flatten(name="flat"), L.Dense(4, activation="sigmoid")), prepared())
    assert not translated.has_classes and translated.ending.tap == "flat"
