"""`tlray.Encoder`: the numbers of a table from whatever a user calls an image, and a transformer that scikit-learn accepts."""

import asyncio
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

import tlray
from tests.api.conftest import RECIPE, Made
from tests.photos import plain_embeddings
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, GoldenMismatchError, ImageError, ImageErrorCode, TlrayError
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder import golden

HALF = 2**-11
"""Relative error of storage at 10 mantissa bits."""


@pytest.fixture(scope="module")
def encoder() -> tlray.Encoder:
    return tlray.Encoder(**RECIPE).fit()


def stored(made: Made) -> tuple[list[str], np.ndarray, list[str]]:
    """URIs, vectors and labels of the table, read by Polars."""
    frame = pl.scan_delta(made.table).filter(pl.col("status") == "ok").collect().sort("uri")
    return frame["uri"].to_list(), np.array(frame["embedding"].to_list(), np.float32), frame["label"].to_list()


def test_its_vectors_are_the_tables_within_the_rounding_of_storage(made: Made, encoder: tlray.Encoder) -> None:
    uris, expected_ND, _ = stored(made)
    vectors_ND = encoder(uris)
    assert vectors_ND.dtype == np.float32 and vectors_ND.shape == (24, encoder.dimensions)
    np.testing.assert_allclose(vectors_ND, expected_ND, rtol=HALF, atol=0)
    assert encoder.recipe.recipe_id == tlray.open(made.table).recipe_id


def test_its_vectors_are_those_of_plain_timm(made: Made, encoder: tlray.Encoder) -> None:
    state = resolve_backbone(
        RecipeConfig(backbone=RECIPE["backbone"], weights=RECIPE["weights"]), local_copy
    ).module.state_dict()
    np.testing.assert_allclose(encoder(made.photos), plain_embeddings(made.photos, state), rtol=1e-3, atol=1e-4)


def test_a_pipeline_on_paths_is_the_one_on_the_tables_vectors(made: Made, encoder: tlray.Encoder) -> None:
    uris, vectors_ND, labels = stored(made)
    ours = make_pipeline(encoder, LogisticRegression()).fit(uris, labels)
    theirs = LogisticRegression().fit(vectors_ND, labels)
    np.testing.assert_allclose(ours.predict_proba(uris), theirs.predict_proba(vectors_ND), atol=1e-3)
    assert (ours.predict(uris) == theirs.predict(vectors_ND)).all()


def test_scikit_learn_can_do_with_it_what_it_does_with_transformers(made: Made, encoder: tlray.Encoder) -> None:
    paths, labels = list(map(str, made.photos)), [path.parent.name for path in made.photos]
    pipeline = make_pipeline(encoder, LogisticRegression())
    scores = cross_val_score(pipeline, paths, labels, cv=3, error_score="raise")
    assert len(scores) == 3
    search = GridSearchCV(pipeline, {"encoder__normalize": [False, True]}, cv=2, error_score="raise").fit(paths, labels)
    assert search.best_params_["encoder__normalize"] in (False, True)
    again = pickle.loads(pickle.dumps(pipeline.fit(paths, labels)))
    assert (again.predict(paths) == pipeline.predict(paths)).all()
    assert len(pickle.dumps(encoder)) < 2000
    assert "tlray.Encoder('timm:test_resnet'" in repr(pipeline) and "Encoder" in pipeline._repr_html_()
    assert list(encoder.get_feature_names_out()[:2]) == ["encoder0", "encoder1"]


def test_clones_have_the_same_parameters_and_set_params_checks_them(encoder: tlray.Encoder) -> None:
    copy = clone(encoder)
    assert copy is not encoder and copy.get_params() == encoder.get_params() and repr(copy) == repr(encoder)
    assert eval(repr(copy), {"tlray": tlray}).get_params() == copy.get_params()
    assert copy.set_params(pool="max").recipe.pool == "max" and encoder.recipe.pool == "avg"
    with pytest.raises(ConfigError, match="unknown key poool; did you mean pool"):
        copy.set_params(poool="avg")
    with pytest.raises(ConfigError, match="pool: expected one of avg, max"):
        copy.set_params(pool="median")
    assert copy.get_params()["pool"] == "max"


def picture(mode: str = "RGB") -> Image.Image:
    """A picture that is not symmetric, wider than high."""
    levels = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((120, 90), Image.Resampling.BICUBIC).convert(mode)


def test_all_forms_of_an_image_are_one(tmp_path: Path, encoder: tlray.Encoder) -> None:
    image = picture()
    path = tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    (expected_D,) = encoder(str(path))
    forms: list[Any] = [
        path,
        path.as_uri(),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        image,
        Image.open(path),
        array,
        torch.from_numpy(array.copy()),
        array[None],
    ]
    for form in forms:
        np.testing.assert_array_equal(encoder(form), expected_D[None], err_msg=str(type(form)))
    grey = np.asarray(picture("L"))
    for form in (grey, grey[..., None], picture("L")):
        np.testing.assert_array_equal(encoder(form), encoder(np.stack([grey] * 3, axis=-1)))


def test_all_ways_to_give_several_are_one(made: Made, encoder: tlray.Encoder) -> None:
    paths = list(map(str, made.photos[:5]))
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    expected_ND = encoder(paths)

    def one_by_one() -> Iterator[str]:
        yield from paths

    def batches() -> Iterator[np.ndarray]:
        yield np.stack(pixels[:2])
        yield np.stack(pixels[2:])

    ways: list[Any] = [
        tuple(made.photos[:5]),
        np.array(paths),
        np.array(paths, dtype=object)[:, None],
        pd.Series(paths),
        pd.DataFrame({"path": paths}),
        pl.Series(paths).to_arrow(),
        one_by_one(),
        map(Path, paths),
        [paths[:3], paths[3:]],
    ]
    for way in ways:
        np.testing.assert_array_equal(encoder(way), expected_ND, err_msg=str(type(way)))
    np.testing.assert_array_equal(encoder(batches()), encoder(pixels))
    assert encoder([]).shape == (0, encoder.dimensions)
    assert encoder(paths[0]).shape == (1, encoder.dimensions)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "LAB", "YCbCr", "HSV", "I", "I;16"])
def test_pictures_of_every_mode_are_read_by_the_rule_of_files(mode: str, tmp_path: Path, encoder: tlray.Encoder) -> None:
    image = picture("L").convert("I") if mode.startswith("I") else picture("RGB").convert(mode)
    if mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / ("a.tif" if mode in ("CMYK", "LAB", "YCbCr", "I") else "a.png")
    (image.convert("RGB") if mode == "HSV" else image).save(path)
    np.testing.assert_array_equal(encoder(image), encoder(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_files_are(orientation: int, tmp_path: Path, encoder: tlray.Encoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    picture().save(path, exif=exif)
    np.testing.assert_array_equal(encoder(Image.open(path)), encoder(path))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: [folder / "ok.png", folder / "nope.jpg"], "not_found: input 1"),
        (lambda folder: folder, "not_found: input 0 .* is not a file"),
        (lambda folder: [folder / "ok.png", b"hello"], "not_an_image: input 1"),
        (lambda folder: [folder / "ok.png", b""], "empty: input 1"),
        (lambda folder: [folder / "cut.jpg"], "truncated: input 0"),
        (lambda folder: [Image.open(folder / "cut.jpg")], "input 0"),
        (lambda folder: [Image.fromarray(np.zeros((4, 4), np.float32))], "unsupported: input 0"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    make: Callable[[Path], Any], expected: str, tmp_path: Path, encoder: tlray.Encoder
) -> None:
    picture().save(tmp_path / "ok.png")
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:-500])
    with pytest.raises(ImageError, match=expected):
        encoder(make(tmp_path))


def test_or_its_row_is_nan_and_the_log_counts_it(made: Made, encoder: tlray.Encoder, caplog: pytest.LogCaptureFixture) -> None:
    lenient = clone(encoder).set_params(on_error="nan")
    vectors_ND = lenient([made.photos[0], b"", made.photos[1], "/nowhere.jpg"])
    assert np.isnan(vectors_ND).all(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(vectors_ND[[0, 2]], encoder(made.photos[:2]))
    assert "2 of 4 images could not be used, their rows are NaN: input 1: empty" in caplog.text
    assert "input 3 (/nowhere.jpg): not_found" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (7, "int is no image"),
        (None, "NoneType is no image"),
        ({"a": 1}, "dict is no image"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 is given, whose white level nobody knows; expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), "where channels come first"),
        (np.zeros((5, 8, 8), np.uint8), "of grey batches"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "where channels come first"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"a data frame of 2 columns is given \(a, b\)"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, expected: str, encoder: tlray.Encoder) -> None:
    with pytest.raises(ConfigError, match=expected):
        encoder(given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "expected one of backbone .* and table .*, given neither"),
        ({"backbone": "a", "table": "t"}, "given both"),
        ({"backbone": "a", "bakbone": "b"}, "unknown key bakbone; did you mean backbone"),
        ({"backbone": "a", "compute": "fp8"}, "precision.compute: expected one of fp32, bf16, fp16, int8, given 'fp8'"),
        ({"backbone": "a", "crop": "large"}, "preprocessing.crop: expected a whole number or two whole numbers, given 'large'"),
        ({"backbone": "a", "compute": "fp32", "precision": {"compute": "bf16"}}, "precision.compute is given twice"),
        ({"backbone": 5}, "backbone: expected text, given 5"),
        ({"backbone": "a", "on_error": "skip"}, "on_error: expected one of raise, nan, given 'skip'"),
        ({"backbone": "a", "column": "embedding"}, "column 'embedding' is a table's; give taps"),
        ({"table": "t", "pool": "max"}, "pool: the table says so"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        tlray.Encoder(**arguments)


def test_a_backbone_that_is_not_there_is_told_when_it_is_needed() -> None:
    encoder = tlray.Encoder("torchvision:resnet5")
    with pytest.raises(BackboneError, match="resnet50"):
        encoder.fit()
    assert issubclass(BackboneError, TlrayError)


def test_several_taps_follow_one_another(made: Made) -> None:
    both = tlray.Encoder(taps=["layer3", "layer4"], **RECIPE)(made.photos[0])
    each = [tlray.Encoder(taps=[tap], **RECIPE)(made.photos[0]) for tap in ("layer3", "layer4")]
    np.testing.assert_array_equal(both, np.concatenate(each, axis=1))


def test_a_tables_encoder_is_checked_by_its_golden_vectors(made: Made, tmp_path: Path) -> None:
    uris, expected_ND, _ = stored(made)
    encoder = tlray.open(made.table).encoder(on_error="nan")
    np.testing.assert_allclose(encoder(uris), expected_ND, rtol=HALF, atol=0)
    assert clone(encoder).get_params() == encoder.get_params()
    tlray.extract(made.folder / "photos" / "dog", tmp_path / "other", local=True, **RECIPE)
    recipe = tmp_path / "other" / "recipe.json"
    document = json.loads(recipe.read_text())
    document["golden"]["embedding"] = [row[::-1] for row in document["golden"]["embedding"]]
    recipe.write_text(json.dumps(document))
    with pytest.raises(GoldenMismatchError):
        tlray.open(tmp_path / "other").encoder()


def test_a_tables_numbers_are_shown_by_what_every_run_shows_them_by(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes torch in place of an engine that computes others; which engine they choose from is the config's default."""
    asked: list[dict[str, Any]] = []

    def shown(*arguments: Any, **options: Any) -> golden.AnyEncoder:
        asked.append(options)
        return make_encoder(*arguments, **options)

    make_encoder = golden.make_encoder
    monkeypatch.setattr(golden, "make_encoder", shown)
    encoder = tlray.open(made.table).encoder(batch_size=2, device="cpu")
    tlray.Model(made.model).predict(made.photos[:1])
    assert [(each["batch_size"], each["device"], each["engine"]) for each in asked] == [
        (2, "cpu", "auto"),
        (None, "auto", "auto"),
    ]
    uris, expected_ND, _ = stored(made)
    np.testing.assert_allclose(encoder(uris[:1]), expected_ND[:1], rtol=HALF, atol=0)


def test_pickles_name_it_as_users_do(encoder: tlray.Encoder) -> None:
    data = pickle.dumps(encoder)
    assert b"tlray.api" not in data and pickle.loads(data).get_params() == encoder.get_params()


def test_it_works_inside_a_running_event_loop(made: Made, encoder: tlray.Encoder) -> None:
    async def cell() -> np.ndarray:
        return encoder(made.photos[:2])

    np.testing.assert_array_equal(asyncio.run(cell()), encoder(made.photos[:2]))


def test_it_can_be_called_from_several_threads(made: Made) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder = tlray.Encoder(**RECIPE)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda path: encoder(path), made.photos[:8]))
    np.testing.assert_array_equal(np.concatenate(found), encoder(made.photos[:8]))


def test_the_code_of_an_image_error_is_kept(encoder: tlray.Encoder) -> None:
    with pytest.raises(ImageError) as caught:
        encoder("/nowhere.jpg")
    assert caught.value.code is ImageErrorCode.NOT_FOUND
