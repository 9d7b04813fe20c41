"""Geometry and filters against torchvision's and timm's own transforms, pixel by pixel.

The filters that are torch's are exactly torchvision's of uint8 tensors, and Pillow's but for roundings.
"""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import functional as of_tensors

from tests.bench.photos import photo_bytes
from tlray.errors import ConfigError
from tlray.lake.image import resize
from tlray.lake.image.resize import apply_preprocessing, check_preprocessing, resized_size
from tlray.recipe import Preprocessing

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
OF_TORCH = ("bilinear", "bicubic")
ODD_SIZES = ((1, 1), (1, 500), (500, 1), (2, 3), (223, 224), (224, 224), (225, 223), (256, 256), (3, 1999), (1023, 7))


def geometry(**overrides: object) -> Preprocessing:
    given_fields = {"resize": (256, 256), "crop": (224, 224), "interpolation": "bilinear", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return Preprocessing.model_validate(given_fields | overrides)


def assert_pillows(pixels_HWC: np.ndarray, expected_HWC: np.ndarray, name: str, message: str = "") -> None:
    """The very pixels, or, of torch's filters, the same but for roundings; noise shifted by one is several levels off."""
    if name in OF_TORCH:
        assert np.abs(pixels_HWC.astype(int) - expected_HWC).mean() < 1, message
    else:
        np.testing.assert_array_equal(pixels_HWC, expected_HWC, err_msg=message)


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10007 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sizes(count: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(0)
    drawn = np.exp(generator.uniform(0, np.log(900), (count, 2))).astype(int) + 1
    return [*ODD_SIZES, *((int(width), int(height)) for width, height in drawn)]


def test_shortest_side_equals_the_torchvision_preset() -> None:
    for index, (width, height) in enumerate(sizes(100)):
        name = FILTERS[index % len(FILTERS)]
        side, crop = ((256, 224), (232, 224), (64, 96), (50, 50))[index % 4]
        preset = ImageClassification(
            crop_size=crop, resize_size=side, interpolation=InterpolationMode(name), mean=(0.0,) * 3, std=(1.0,) * 3
        )
        image = noise(width, height)
        expected_HWC = (preset(image) * 255).round().byte().permute(1, 2, 0).numpy()
        pixels_HWC = apply_preprocessing(image, geometry(resize=(side, side), crop=(crop, crop), interpolation=name))
        assert_pillows(pixels_HWC, expected_HWC, name, f"{width} x {height}, {name}")


@pytest.mark.parametrize("name", OF_TORCH)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 427)])
def test_torchs_filters_are_pillows_within_two_levels_of_photos(name: str, size: tuple[int, int]) -> None:
    photo = Image.open(io.BytesIO(photo_bytes(0, size)))
    expected_HWC = np.asarray(CenterCrop(224)(Resize(256, InterpolationMode(name))(photo)))
    levels_HWC = np.abs(apply_preprocessing(photo, geometry(interpolation=name)).astype(int) - expected_HWC)
    assert levels_HWC.max() <= 2
    assert np.count_nonzero(levels_HWC) < 0.2 * levels_HWC.size


@pytest.mark.parametrize("name", OF_TORCH)
def test_torchs_filters_are_torchvisions_of_tensors(name: str) -> None:
    large = Image.new("RGB", (2300, 2000), (1, 2, 3))  # Pillow keeps it in pieces
    large.paste(noise(700, 500), (900, 700))
    for image in [*(noise(*size) for size in sizes(40)), large]:
        image_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        expected_CHW = of_tensors.resize(image_CHW, [64], InterpolationMode(name), antialias=True)
        expected_CHW = of_tensors.center_crop(expected_CHW, [56, 50])
        pixels_HWC = apply_preprocessing(image, geometry(resize=(64, 64), crop=(56, 50), interpolation=name))
        np.testing.assert_array_equal(pixels_HWC, expected_CHW.permute(1, 2, 0).numpy(), err_msg=str(image.size))


@pytest.mark.parametrize(("crop_mode", "fit"), [("center", "cover"), ("squash", "squash"), ("border", "contain")])
@pytest.mark.parametrize(("crop", "crop_pct"), [((96, 96), 0.875), ((64, 128), 0.9), ((129, 65), 1.0)])
def test_crop_modes_equal_timm(crop_mode: str, fit: str, crop: tuple[int, int], crop_pct: float) -> None:
    box = tuple(math.floor(side / crop_pct) for side in crop)
    mean = (0.485, 0.456, 0.406)
    fill = tuple(round(255 * level) for level in mean) if crop_mode == "border" else (0, 0, 0)
    transform = transforms_imagenet_eval(
        crop, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bicubic", mean=mean, use_prefetcher=True
    )
    preprocessing = geometry(resize=box, crop=crop, fit=fit, fill=fill, interpolation="bicubic")
    compared = 0
    for width, height in sizes(40):
        image = noise(width, height)
        try:
            expected_CHW = transform(image)
        except ValueError:  # timm rounds the short side of a very long image to nothing
            assert crop_mode == "border"
            assert apply_preprocessing(image, preprocessing).shape == (*crop, 3)
            continue
        compared += 1
        pixels_HWC = apply_preprocessing(image, preprocessing)
        assert_pillows(pixels_HWC, expected_CHW.permute(1, 2, 0).numpy(), "bicubic", f"{width} x {height}")
    assert compared > 30


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
)
def test_any_box_equals_the_libraries(size: tuple[int, int], box: tuple[int, int], crop: tuple[int, int]) -> None:
    image = noise(*size)
    squash = Compose([Resize(box), CenterCrop(crop)])
    assert_pillows(
        apply_preprocessing(image, geometry(resize=box, crop=crop, fit="squash")), np.asarray(squash(image)), "bilinear"
    )
    none = apply_preprocessing(image, geometry(resize=None, crop=crop))
    np.testing.assert_array_equal(none, np.asarray(CenterCrop(crop)(image)))
    if min(round(side / max(size[1] / box[0], size[0] / box[1])) for side in size):
        contain = Compose([ResizeKeepRatio(box, longest=1.0), CenterCropOrPad(crop, fill=(9, 8, 7))])
        assert_pillows(
            apply_preprocessing(image, geometry(resize=box, crop=crop, fit="contain", fill=(9, 8, 7))),
            np.asarray(contain(image)),
            "bilinear",
        )


def test_result_is_contiguous_uint8() -> None:
    for width, height in ((224, 224), (500, 375), (10, 10)):
        pixels_HWC = apply_preprocessing(noise(width, height), geometry())
        assert (pixels_HWC.dtype, pixels_HWC.shape) == (np.uint8, (224, 224, 3))
        assert pixels_HWC.flags.c_contiguous


@pytest.mark.parametrize(("width", "height"), [(500, 375), (97, 301), (31, 20), (256, 256)])
def test_bilinear_without_antialias_is_torch_interpolate(width: int, height: int) -> None:
    image = noise(width, height)
    preprocessing = geometry(resize=(128, 160), crop=(128, 160), fit="squash", antialias=False)
    image_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    expected_CHW = torch.nn.functional.interpolate(image_1CHW, (128, 160), mode="bilinear", antialias=False)[0]
    difference_HWC = apply_preprocessing(image, preprocessing) - expected_CHW.permute(1, 2, 0).numpy()
    assert np.abs(difference_HWC).max() < 1.01
    widened_HWC = apply_preprocessing(image, preprocessing.model_copy(update={"antialias": True}))
    if width > 2 * 160:
        assert np.abs(widened_HWC - expected_CHW.permute(1, 2, 0).numpy()).max() > 10


def test_nearest_is_torch_nearest_exact_with_and_without_antialias() -> None:
    image = noise(313, 201)
    image_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    expected_CHW = torch.nn.functional.interpolate(image_1CHW, (64, 500), mode="nearest-exact")[0]
    for antialias in (True, False):
        pixels_HWC = apply_preprocessing(
            image, geometry(resize=(64, 500), crop=(64, 500), fit="squash", interpolation="nearest", antialias=antialias)
        )
        np.testing.assert_array_equal(pixels_HWC, expected_CHW.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("width", "height"), [(10, 400), (400, 10), (1, 300), (60, 90)])
def test_resampling_the_kept_part_only_gives_the_same_picture(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, antialias: bool
) -> None:
    for fit in ("cover", "contain", "squash"):
        preprocessing = geometry(resize=(64, 64), crop=(48, 56), fit=fit, antialias=antialias)
        whole_HWC = apply_preprocessing(noise(width, height), preprocessing).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
            part_HWC = apply_preprocessing(noise(width, height), preprocessing)
        assert np.abs(whole_HWC - part_HWC).max() <= 2


def test_an_absurd_ratio_does_not_take_the_memory_of_its_resized_size() -> None:
    image = Image.new("RGB", (2, 1_000_000), (10, 20, 30))
    assert resized_size(*image.size, geometry()) == (256, 128_000_000)
    pixels_HWC = apply_preprocessing(image, geometry())
    assert pixels_HWC.shape == (224, 224, 3)
    assert (pixels_HWC == (10, 20, 30)).all()


@pytest.mark.parametrize("name", FILTERS)
def test_check_refuses_filters_that_cannot_go_without_antialias(name: str) -> None:
    check_preprocessing(geometry(interpolation=name))
    if name in ("nearest", "bilinear"):
        check_preprocessing(geometry(interpolation=name, antialias=False))
    else:
        with pytest.raises(ConfigError, match=f"interpolation {name}"):
            check_preprocessing(geometry(interpolation=name, antialias=False))


@pytest.mark.parametrize("sampling", [{"interpolation": "nearest"}, {"antialias": False}], ids=str)
def test_check_refuses_scaled_decoding_of_what_is_sampled(sampling: dict[str, object]) -> None:
    check_preprocessing(geometry(scaled_decoding=True))
    check_preprocessing(geometry(**sampling))
    with pytest.raises(ConfigError, match="scaled_decoding"):
        check_preprocessing(geometry(scaled_decoding=True, **sampling))


@pytest.mark.parametrize("wrong", [{"crop": (0, 224)}, {"resize": (256, -1)}, {"fill": (0, 0, 256)}])
def test_check_refuses_impossible_sides_and_colours(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        check_preprocessing(geometry(**wrong))
