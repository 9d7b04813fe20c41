"""Random crops and mirror images."""

import numpy as np
import pytest

from tests.photos import photo
from tlray.lake.image.decode import decode_image
from tlray.recipe import Preprocessing
from tlray.training.network.inputs.augment import augment, canvas_of, centre


@pytest.mark.parametrize("size", [(97, 64), (64, 101), (80, 80), (33, 47)])
@pytest.mark.parametrize(
    ("resize", "crop", "fit"), [(40, 32, "cover"), (39, 30, "cover"), (37, 32, "squash"), (32, 32, "cover")]
)
def test_a_canvas_has_the_usual_crop_at_its_centre(size: tuple[int, int], resize: int, crop: int, fit: str) -> None:
    preprocessing = Preprocessing(
        resize=(resize, resize), crop=(crop, crop), fit=fit, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    canvas = canvas_of(preprocessing, ("crop",))
    assert resize - 4 < canvas.crop[0] <= max(resize, crop)
    usual, wide = (decode_image(photo(3, size), one, max_pixels=10**6).pixels_HWC for one in (preprocessing, canvas))
    np.testing.assert_array_equal(centre(wide[None], (crop, crop))[0], usual)
    assert canvas_of(preprocessing, ("flip",)) == preprocessing


def test_augmentation_depends_on_the_image_and_the_epoch_alone() -> None:
    rows_H, columns_W = np.mgrid[0:40, 0:48].astype(np.uint8)
    canvas_HWC = np.stack([rows_H, columns_W, rows_H], axis=2)
    canvases_BHWC = np.stack([canvas_HWC] * 200)
    numbers_B = np.arange(200)
    result_BHWC = augment(canvases_BHWC, numbers_B, (32, 40), ("crop", "flip"), seed=1, epoch=2)
    again_BHWC = augment(canvases_BHWC[:50], numbers_B[150:], (32, 40), ("crop", "flip"), seed=1, epoch=2)
    np.testing.assert_array_equal(result_BHWC[150:], again_BHWC)
    assert not np.array_equal(result_BHWC, augment(canvases_BHWC, numbers_B, (32, 40), ("crop", "flip"), seed=1, epoch=3))
    tops, lefts = result_BHWC[:, 0, 0, 0], result_BHWC[:, 0, :, 1].min(axis=1)
    assert set(tops) == set(range(9)) and set(lefts) == set(range(10))
    mirrored = np.count_nonzero(result_BHWC[:, 0, 0, 1] > result_BHWC[:, 0, -1, 1])
    assert 60 < mirrored < 140
    plain_BHWC = augment(canvases_BHWC, numbers_B, (32, 40), (), seed=1, epoch=2)
    np.testing.assert_array_equal(plain_BHWC, centre(canvases_BHWC, (32, 40)))
