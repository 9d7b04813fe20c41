"""What Keras exports as ONNX gives the same numbers by the other library: those of Keras.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.models.libraries.keras.oracle import application, cosines, enliven, keras, outputs, preprocess_input, resolve
from tests.models.libraries.keras.test_applications import PENULTIMATE
from tlray.config.sections.presets import LEVELS
from tlray.models.encoder.encoder import Encoder
from tlray.models.libraries.keras.applications import APPLICATIONS
from tlray.recipe import golden_images

pytest.importorskip("onnxruntime")


OF_ONE = ("Xception", "ConvNeXtTiny")
"""Keras' exporter on torch refuses these with a free batch."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "MobileNetV2" else pytest.mark.sweep) for name in PENULTIMATE]
)
def test_an_export_gives_what_the_application_gives(name: str, tmp_path: Path) -> None:
    """The file's layout is Keras', channels last, and its preparation is said by the preset of Keras' mode."""
    side, mode = APPLICATIONS[name].side, APPLICATIONS[name].mode
    model = enliven(application(name, input_shape=(side, side, 3)))
    path, weights = tmp_path / "m.onnx", tmp_path / "w.weights.h5"
    shape = (1 if name in OF_ONE else None, side, side, 3)
    model.export(path, format="onnx", verbose=False, input_signature=[keras.InputSpec(shape=shape, dtype="float32")])
    model.save_weights(weights)
    values = LEVELS if mode == "raw" else {"preset": f"keras:{mode}"}
    preparation = {**values, "resize": side, "fit": "squash", "interpolation": "nearest", "crop": side}
    exported = resolve(f"onnx:{path}", preprocessing=preparation)
    own = resolve(f"keras:{name}", str(weights))
    assert exported.recipe.preprocessing == own.recipe.preprocessing
    images_BHWC = golden_images(side, side)[:2]
    inputs_BHWC = preprocess_input(name)(images_BHWC.astype(np.float32))
    kind = PENULTIMATE[name].rstrip("_0123456789")  # Keras numbers layers without a name by all that the thread has made
    last = next(layer.name for layer in reversed(model.layers) if layer.name.startswith(kind))
    expected_BD = outputs(model, [last], inputs_BHWC)[0].reshape(2, -1)
    for backbone in (exported, own):
        (found_BD,) = Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC).values()
        assert cosines(found_BD, expected_BD).min() >= 0.9999
        np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-2, atol=1e-3 * np.abs(expected_BD).max())
