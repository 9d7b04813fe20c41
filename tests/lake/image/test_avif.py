"""AVIF's own properties: clean aperture, rotation and mirroring."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lake.image.making import MAX_PIXELS, encoded, exif, gradient, rgb, with_aperture
from tlray.lake.image.decode import decode_image
from tlray.recipe import Preprocessing

WIDTH, HEIGHT = 96, 64


def avif(orientation: int = 1) -> bytes:
    return encoded(Image.fromarray(gradient(WIDTH, HEIGHT)), "AVIF", quality=95, exif=exif(orientation))


def centred(left: int, top: int, right: int, bottom: int) -> tuple[int, ...]:
    """The numbers of an aperture with these edges; its offsets are of its centre from the picture's, here in halves."""
    return (right - left, 1, bottom - top, 1, left + right - WIDTH, 2, top + bottom - HEIGHT, 2)


@pytest.mark.parametrize("edges", [(0, 0, 40, 40), (11, 7, 51, 38), (95, 63, 96, 64), (0, 0, WIDTH, HEIGHT)])
def test_the_clean_aperture_is_what_is_shown(edges: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = edges
    whole_HWC = rgb(avif())
    np.testing.assert_array_equal(rgb(with_aperture(avif(), *centred(*edges))), whole_HWC[top:bottom, left:right])


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 1, 40, 1, 0, 1, 0, 1),
        (40, 0, 40, 1, 0, 1, 0, 1),
        (97, 1, 64, 1, 0, 1, 0, 1),
        (40, 1, 40, 1, 1, 3, 0, 1),
        (40, 1, 40, 1, -(2**31), 1, 0, 1),
        (41, 2, 40, 1, 0, 1, 0, 1),
        (2**32 - 1,) * 4 + (0, 1, 0, 1),
    ],
)
def test_an_aperture_that_cannot_be_is_none(numbers: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(rgb(with_aperture(avif(), *numbers)), rgb(avif()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_aperture_is_cut_out_before_the_picture_is_turned(orientation: int) -> None:
    edges = (10, 4, 70, 44)
    turned = Image.fromarray(rgb(avif())[4:44, 10:70])
    operations = (
        None,
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_270",
        "TRANSVERSE",
        "ROTATE_90",
    )
    if operations[orientation - 1]:
        turned = turned.transpose(Image.Transpose[operations[orientation - 1]])
    np.testing.assert_array_equal(rgb(with_aperture(avif(orientation), *centred(*edges))), np.asarray(turned))


def test_rule_2_shows_the_margins_too() -> None:
    whole = Preprocessing(resize=None, crop=(HEIGHT, WIDTH), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    image = decode_image(with_aperture(avif(), *centred(0, 0, 40, 40)), whole, max_pixels=MAX_PIXELS, image_rule=2)
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(image.pixels_HWC, rgb(avif()))


@pytest.mark.skipif(shutil.which("avifenc") is None, reason="needs avifenc (Debian: libavif-bin)")
@pytest.mark.parametrize(
    "options",
    [["--crop", "11,7,40,31"], ["--crop", "0,0,40,40", "--irot", "1"], ["--irot", "3", "--imir", "1"], ["--imir", "0"]],
)
@pytest.mark.parametrize("count", [1, 3])
def test_files_of_libavifs_own_encoder(tmp_path: Path, options: list[str], count: int) -> None:
    paths = []
    for index in range(count):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(np.roll(gradient(WIDTH, HEIGHT), index, axis=0)).save(paths[-1])
    out = tmp_path / "out.avif"
    subprocess.run(["avifenc", "--min", "0", "--max", "4", "-y", "444", *options, *paths, out], check=True, capture_output=True)
    expected_HWC = gradient(WIDTH, HEIGHT)
    settings = dict(zip(options[::2], options[1::2], strict=True))
    if "--crop" in settings:
        left, top, width, height = map(int, settings["--crop"].split(","))
        expected_HWC = expected_HWC[top : top + height, left : left + width]
    expected_HWC = np.rot90(expected_HWC, int(settings.get("--irot", 0)))  # both count anticlockwise
    if "--imir" in settings:
        expected_HWC = expected_HWC[:, ::-1] if settings["--imir"] == "1" else expected_HWC[::-1]
    actual_HWC = rgb(out.read_bytes())
    assert actual_HWC.shape == expected_HWC.shape
    assert np.abs(actual_HWC.astype(int) - expected_HWC).max() <= 8
