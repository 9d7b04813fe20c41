"""What Keras exports as ONNX gives the same numbers by the other library: those of Keras.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.models.libraries.keras.oracle import application, cosines, enliven, outputs, preprocess_input, resolve
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import golden_images

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_an_export_gives_what_the_application_gives(tmp_path: Path) -> None:
    """The file's layout is Keras', channels last, and its preparation is said by the preset of Keras' mode."""
    model = enliven(application("MobileNetV2", input_shape=(224, 224, 3)))
    path, weights = tmp_path / "m.onnx", tmp_path / "w.weights.h5"
    model.export(path, format="onnx", verbose=False)
    model.save_weights(weights)
    preparation = {"preset": "keras:tf", "resize": 224, "fit": "squash", "interpolation": "nearest"}
    exported = resolve(f"onnx:{path}", preprocessing=preparation)
    own = resolve("keras:MobileNetV2", str(weights))
    assert exported.recipe.preprocessing == own.recipe.preprocessing
    images_BHWC = golden_images(224, 224)[:2]
    inputs_BHWC = preprocess_input("MobileNetV2")(images_BHWC.astype(np.float32))
    name = next(layer.name for layer in model.layers if layer.name.startswith("global_average"))
    expected_BD = outputs(model, [name], inputs_BHWC)[0]
    for backbone in (exported, own):
        (found_BD,) = Encoder(backbone, device="cpu", batch_size=2).encode(images_BHWC).values()
        assert cosines(found_BD, expected_BD).min() >= 0.9999
        np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-2, atol=1e-3 * np.abs(expected_BD).max())
