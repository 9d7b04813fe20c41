"""A table that was begun under an older image rule goes on with it; a new one takes the newest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lake.image.making import encoded, gradient, with_aperture
from tests.lake.image.test_avif import centred
from tests.photos import RECIPE, error_of, frame_of, result_of, tlray
from tlray.lake.image.decode import decode_image
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.models.encoder.golden import make_encoder
from tlray.recipe import IMAGE_RULE, RecipeFile

MAX_PIXELS = 1_000_000


def extract(source: Path, table: Path, *more: str) -> dict:
    return result_of(tlray("extract", "--local", "--source.uri", source, "--table", table, *RECIPE, *more))


def test_a_table_goes_on_under_the_rule_that_it_was_begun_by(tmp_path: Path) -> None:
    photos, old_uri = tmp_path / "photos", f"file://{tmp_path}/old"
    photos.mkdir()
    (photos / "0.png").write_bytes(encoded(Image.fromarray(gradient()), "PNG"))
    extract(photos, tmp_path / "new")
    newest = Table.open(f"file://{tmp_path}/new").recipe_file
    assert newest.recipe.image_rule == IMAGE_RULE
    old_recipe = newest.recipe.under_rule(2)
    Table.create(old_uri, newest.model_copy(update={"recipe": old_recipe, "recipe_id": old_recipe.recipe_id}))
    data = with_aperture(encoded(Image.fromarray(gradient()), "AVIF", quality=95), *centred(40, 30, 60, 50))
    (photos / "1.avif").write_bytes(data)
    result = extract(photos, tmp_path / "old")
    assert (result["ok"], result["failed"], result["recipe_id"]) == (2, 0, old_recipe.recipe_id)
    assert extract(photos, tmp_path / "old")["unchanged"] == 2
    extract(photos, tmp_path / "new")
    sizes = {name: frame_of(tmp_path / name)["width"].to_list() for name in ("old", "new")}
    assert sizes == {"old": [96, 96], "new": [96, 20]}
    for name in ("old", "new"):
        there: RecipeFile = Table.open(f"file://{tmp_path}/{name}").recipe_file
        rule, preprocessing = there.recipe.image_rule, there.recipe.preprocessing
        pixels_HWC = decode_image(data, preprocessing, max_pixels=MAX_PIXELS, image_rule=rule).pixels_HWC
        expected_D = make_encoder(there, local_copy, where="here").encode(pixels_HWC[None])["embedding"][0]
        np.testing.assert_allclose(frame_of(tmp_path / name)["embedding"][1].to_numpy(), expected_D, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("change", [("--recipe.normalize", "true")])
def test_another_recipe_is_still_refused(tmp_path: Path, change: tuple[str, ...]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes(encoded(Image.fromarray(gradient()), "PNG"))
    extract(photos, tmp_path / "table")
    arguments = ["extract", "--local", "--source.uri", photos, "--table", tmp_path / "table", *RECIPE, *change]
    assert "image_rule" not in error_of(tlray(*arguments))
