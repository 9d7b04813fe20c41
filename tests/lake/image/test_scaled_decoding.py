"""Scaled decoding: when it happens, and that nothing but the speed and a few levels of the pixels changes."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor
from torchvision.transforms.v2.functional import resize as resize_tensor

from tests.bench.photos import photo_bytes
from tests.factories import make_recipe
from tests.lake.image.test_images import MAX_PIXELS, STORED_FROM_SHOWN, encoded
from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.image import resize
from tlray.lake.image.decode import DecodedImage, decode_image
from tlray.lake.image.scaled_decoding import MIN_RATIO, decoding_scale
from tlray.recipe import Preprocessing

FULL = Preprocessing(resize=(256, 256), crop=(224, 224), interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
SCALED = FULL.model_copy(update={"scaled_decoding": True})
MOST_LEVELS, MEAN_LEVELS = 24, 1.0
"""Seen on these photos: at most 16 levels of 255 in one value, 0.65 on average."""
WHOLE = {"fit": "squash", "resize": (24, 32), "crop": (24, 32), "interpolation": "bilinear"}
"""The whole picture in 32 x 24 pixels, edges included."""


def decode(data: bytes, preprocessing: Preprocessing) -> DecodedImage:
    return decode_image(data, preprocessing, max_pixels=MAX_PIXELS)


def levels_off(data: bytes, full: Preprocessing = FULL) -> np.ndarray:
    """Levels between scaled and full decoding, HWC; the sizes of the originals agree."""
    ours, theirs = decode(data, full.model_copy(update={"scaled_decoding": True})), decode(data, full)
    assert (ours.width, ours.height) == (theirs.width, theirs.height)
    assert ours.pixels_HWC.flags.c_contiguous and ours.pixels_HWC.shape == theirs.pixels_HWC.shape
    return np.abs(ours.pixels_HWC.astype(int) - theirs.pixels_HWC)


def ramps(width: int, height: int) -> np.ndarray:
    """A smooth picture, another one in every corner and channel, steep enough to show half a pixel's shift."""
    rows_H1, columns_1W = np.mgrid[0:height, 0:width]
    red, green = columns_1W * 255 / width, rows_H1 * 255 / height
    return np.stack([red, green, 255 - (red + green) / 2], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "geometry", "scale"),
    [
        ((512, 384), {}, 1),
        ((1023, 1023), {}, 1),
        ((1024, 1024), {}, 2),
        ((2047, 2047), {}, 2),
        ((2048, 2048), {}, 4),
        ((4000, 3000), {}, 4),
        ((4096, 4096), {}, 8),
        ((65000, 60000), {}, 8),
        ((20000, 1000), {}, 1),  # the side with the least to spare decides
        ((800, 400), {"resize": (100, 200), "fit": "squash"}, 2),
        ((799, 400), {"resize": (100, 200), "fit": "squash"}, 1),
        ((400, 800), {"resize": (100, 200), "fit": "squash"}, 1),
        ((8000, 400), {"resize": (100, 200), "fit": "squash"}, 2),
        ((4000, 400), {"resize": (100, 100), "fit": "contain"}, 8),
        ((65000, 65000), {"resize": None}, 1),
    ],
    ids=str,
)
def test_the_rule(size: tuple[int, int], geometry: dict[str, object], scale: int) -> None:
    assert decoding_scale(*size, SCALED.model_copy(update=geometry)) == scale


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 400), st.integers(1, 400))
def test_the_rule_takes_the_most_that_leaves_enough(width: int, height: int, box_width: int, box_height: int) -> None:
    preprocessing = SCALED.model_copy(update={"resize": (box_height, box_width), "fit": "squash"})
    enough = [n for n in (1, 2, 4, 8) if width >= n * MIN_RATIO * box_width and height >= n * MIN_RATIO * box_height]
    assert decoding_scale(width, height, preprocessing) == max(enough, default=1)


def test_it_is_off_unless_asked_for() -> None:
    assert not FULL.scaled_decoding
    data = photo_bytes(0, (2048, 1536))
    whole_CHW = pil_to_tensor(Image.open(io.BytesIO(data)))
    expected_CHW = center_crop(resize_tensor(whole_CHW, [256], InterpolationMode.BICUBIC, antialias=True), [224])
    np.testing.assert_array_equal(decode(data, FULL).pixels_HWC, expected_CHW.permute(1, 2, 0).numpy())
    assert levels_off(data).any()


def test_it_is_part_of_the_recipe() -> None:
    recipe = make_recipe()
    preprocessing = recipe.preprocessing.model_copy(update={"scaled_decoding": True})
    assert make_recipe(preprocessing=preprocessing).recipe_id != recipe.recipe_id


@pytest.mark.parametrize(("size", "scale"), [((1031, 1027), 2), ((2055, 2051), 4), ((4103, 4098), 8)])
def test_it_is_pillows_draft_and_an_exact_resize(size: tuple[int, int], scale: int) -> None:
    data = photo_bytes(1, size)
    whole = SCALED.model_copy(update={"fit": "squash", "crop": (256, 256)})
    image = Image.open(io.BytesIO(data))
    image.draft(None, (size[0] // scale, size[1] // scale))
    assert image.size == (-(-size[0] // scale), -(-size[1] // scale))
    box = (0, 0, size[0] / scale, size[1] / scale)
    expected_HWC = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC, box))
    np.testing.assert_array_equal(decode(data, whole).pixels_HWC, expected_HWC)


@pytest.mark.parametrize("size", [(1100, 1300), (2048, 1536), (4000, 3000)], ids=str)
def test_photos_change_by_a_few_levels(size: tuple[int, int]) -> None:
    levels_HWC = levels_off(photo_bytes(2, size))
    assert 0 < levels_HWC.max() <= MOST_LEVELS
    assert levels_HWC.mean() <= MEAN_LEVELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_stay_in_place(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # One pixel more than eighths fill: what is stored last is the eighth part of a pixel, on another side each time.
    stored = Image.fromarray(np.ascontiguousarray(STORED_FROM_SHOWN[orientation](ramps(513, 385))))
    data = encoded(stored, "JPEG", quality=98, subsampling=0, exif=exif.tobytes())
    full = FULL.model_copy(update=WHOLE)
    image = decode(data, full.model_copy(update={"scaled_decoding": True}))
    assert (image.width, image.height) == (513, 385)
    assert levels_off(data, full).max() <= 2


def test_only_the_kept_part_of_a_turned_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 7
    stored = Image.fromarray(np.ascontiguousarray(STORED_FROM_SHOWN[7](ramps(513, 385))))
    data = encoded(stored, "JPEG", quality=98, subsampling=0, exif=exif.tobytes())
    part = SCALED.model_copy(update=WHOLE | {"crop": (15, 17)})
    whole_HWC = decode(data, part).pixels_HWC.astype(int)
    monkeypatch.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
    assert np.abs(decode(data, part).pixels_HWC - whole_HWC).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_other_colours_and_progressive_files(mode: str, progressive: bool) -> None:
    picture = Image.open(io.BytesIO(photo_bytes(3, (1200, 1100)))).convert(mode)
    data = encoded(picture, "JPEG", quality=90, progressive=progressive)
    levels_HWC = levels_off(data)
    assert 0 < levels_HWC.max() <= MOST_LEVELS
    assert levels_HWC.mean() <= MEAN_LEVELS
    pixels_HWC = decode(data, SCALED).pixels_HWC
    assert (mode == "L") == (pixels_HWC == pixels_HWC[:, :, :1]).all()


def test_small_photos_and_other_formats_are_untouched() -> None:
    assert not levels_off(photo_bytes(4, (1360, 1020))).any()
    picture = Image.open(io.BytesIO(photo_bytes(4, (1400, 1050))))
    assert levels_off(encoded(picture, "JPEG")).any()
    for image_format in ("PNG", "WEBP", "BMP"):
        assert not levels_off(encoded(picture, image_format)).any()
    assert not levels_off(encoded(picture, "TIFF", compression="jpeg")).any()


def test_failures_are_those_of_full_decoding() -> None:
    data = photo_bytes(5, (1400, 1050))
    for broken, code in ((data[: len(data) // 2], "truncated"), (data[:-20], "truncated"), (b"\xff\xd8\xff\xd9", "corrupt")):
        for preprocessing in (FULL, SCALED):
            with pytest.raises(ImageError) as caught:
                decode(broken, preprocessing)
            assert caught.value.code == ImageErrorCode(code)
    with pytest.raises(ImageError) as caught:
        decode_image(data, SCALED, max_pixels=1400 * 1050 - 1)
    assert caught.value.code == ImageErrorCode.BOMB
