"""What is odd about an image: each word on a picture that is made so, and the measures against Pillow and SciPy."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import laplace
from sklearn.datasets import load_sample_image

from tlray.scoring import image_oddities
from tlray.scoring.image_health import DARK, FLAT, sharpness

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))


def oddities(picture: Image.Image, size: tuple[int, int] | None = None) -> set[str]:
    return set(image_oddities(np.asarray(picture.convert("RGB")), *(size or picture.size)))


def test_a_photograph_is_not_odd() -> None:
    assert oddities(PHOTOGRAPH) == set()


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (PHOTOGRAPH.point(lambda level: level // 16), "dark"),
        (PHOTOGRAPH.point(lambda level: 248 + level // 40), "light"),
        (Image.new("RGB", (100, 80), (120, 90, 60)), "flat"),
        (PHOTOGRAPH.filter(ImageFilter.GaussianBlur(5)), "blurry"),
        (PHOTOGRAPH.convert("L"), "grey"),
    ],
)
def test_each_word_on_a_picture_that_is_so(picture: Image.Image, word: str) -> None:
    assert word in oddities(picture)


def test_shape_is_that_of_the_image_and_not_of_its_small_copy() -> None:
    assert oddities(PHOTOGRAPH, (20, 14)) == {"small"} and oddities(PHOTOGRAPH, (4000, 900)) == {"long"}


def test_the_measures_are_those_of_pillow_and_scipy() -> None:
    grey_HW = np.asarray(PHOTOGRAPH.convert("L"), np.float64) / 255
    assert sharpness(grey_HW) == pytest.approx(float(laplace(grey_HW)[1:-1, 1:-1].var()), rel=1e-9)
    for factor in (0.05, 0.1, 0.2, 0.4):
        dimmed = PHOTOGRAPH.point(lambda level, factor=factor: int(level * factor))
        brightness_HW = np.asarray(dimmed.convert("L"), np.float64) / 255
        if abs(brightness_HW.mean() - DARK) > 0.005:
            assert ("dark" in oddities(dimmed)) == (brightness_HW.mean() < DARK)
        if abs(brightness_HW.std() - FLAT) > 0.003:
            assert ("flat" in oddities(dimmed)) == (brightness_HW.std() < FLAT)
