import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.factories import make_recipe, make_recipe_file
from tlray import errors
from tlray.errors import GoldenMismatchError, ImageError, ImageErrorCode, RecipeMismatchError
from tlray.recipe import Preprocessing, Recipe, RecipeFile, check_golden, golden_images


def test_the_fingerprint_is_that_of_canonical_json() -> None:
    recipe = make_recipe()
    document = json.loads(recipe.model_dump_json())
    del document["weights"]
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert recipe.recipe_id == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [{"backbone": "torchvision:vgg16"}, {"weights_sha256": "1" * 64}, {"taps": ("x",)}, {"pool": "max"}, {"normalize": True}],
    ids=str,
)
def test_what_changes_numbers_changes_the_fingerprint(change: dict) -> None:
    assert make_recipe(**change).recipe_id != make_recipe().recipe_id
    assert make_recipe(**change).differences(make_recipe())[0].startswith(next(iter(change)))


def test_where_weights_lie_does_not() -> None:
    assert make_recipe(weights="s3://elsewhere/w.pth").recipe_id == make_recipe().recipe_id


FORMAT_1 = """{"format":1,"backbone":"torchvision:squeezenet1_1","weights":"random:0",
"weights_sha256":"3572364a84295816c1b58c11f61f46767be585739127e0e1de0bc681d68309f3","taps":["features.3"],"pool":"avg",
"normalize":false,"precision":{"compute":"bf16","storage":"half"},"preprocessing":{"resize":[256,256],"fit":"cover",
"crop":[224,224],"fill":[0,0,0],"interpolation":"bilinear","antialias":true,"scaled_decoding":false,
"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]},"image_rule":2}"""
"""Written by tlray 0.1, which gave it this id:"""
FORMAT_1_ID = "fd5eeeef5daeba88e248d6f33373f6a175ef8e33eff5c998a4140a5e251aae7c"


def test_fields_that_came_later_leave_older_recipes_and_their_ids_as_they_were() -> None:
    recipe = Recipe.model_validate_json(FORMAT_1)
    assert recipe.recipe_id == FORMAT_1_ID
    assert json.loads(recipe.model_dump_json()) == json.loads(FORMAT_1)
    fields = json.loads(FORMAT_1)
    del fields["format"]
    explicit = Preprocessing(**fields.pop("preprocessing"), channels="rgb", scale=(0, 1), crop_offset="round")
    assert Recipe(**fields, preprocessing=explicit).recipe_id == FORMAT_1_ID


@pytest.mark.parametrize("change", [{"channels": "bgr"}, {"scale": (0, 255)}, {"crop_offset": "floor"}])
def test_what_only_format_2_can_say_is_in_its_documents(change: dict) -> None:
    fields = json.loads(FORMAT_1)
    del fields["format"]
    preprocessing = Preprocessing(**fields.pop("preprocessing"), **change)
    recipe = Recipe(**fields, preprocessing=preprocessing)
    assert recipe.format == 2 and recipe.recipe_id != FORMAT_1_ID
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    (key,) = change
    assert recipe.differences(Recipe.model_validate_json(FORMAT_1))[0].startswith(f"preprocessing.{key}: ")


def test_columns_of_taps() -> None:
    assert make_recipe().columns == {"avgpool": "embedding"}
    assert make_recipe(taps=("features.28", "fc:input")).columns == {
        "features.28": "embedding_features_28",
        "fc:input": "embedding_fc_input",
    }


def test_golden_images_never_change() -> None:
    digest = hashlib.sha256(golden_images(224, 224).tobytes() + golden_images(299, 31).tobytes()).hexdigest()
    assert digest == "70afde31e54f03828042fcf580d095b39786525b20bac664d29ab4040b2528c0"
    code = "import hashlib; from tlray.recipe import golden_images as g; "
    code += "print(hashlib.sha256(g(224, 224).tobytes() + g(299, 31).tobytes()).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest


def test_golden_vectors_are_held_against_the_table() -> None:
    expected = make_recipe_file()
    golden = np.array(expected.golden["embedding"])
    assert check_golden(expected, {"embedding": golden * 3}, where="here") == pytest.approx(1)
    turned = golden + 0.2 * golden[::-1]
    with pytest.raises(GoldenMismatchError, match=r"here computes other embeddings.*made with torch 0"):
        check_golden(expected, {"embedding": turned}, where="here")
    with pytest.raises(GoldenMismatchError):
        check_golden(expected, {"embedding": golden * np.nan}, where="here")
    with pytest.raises(GoldenMismatchError, match="shape"):
        check_golden(expected, {"embedding": golden[:, :2]}, where="here")


def test_recipe_files_are_strict() -> None:
    document = json.loads(make_recipe_file().to_json())
    assert RecipeFile.from_json(json.dumps(document).encode(), "uri") == make_recipe_file()
    with pytest.raises(RecipeMismatchError, match=r"recipe\.colour"):
        RecipeFile.from_json(json.dumps(document | {"recipe": document["recipe"] | {"colour": 1}}).encode(), "uri")
    with pytest.raises(RecipeMismatchError, match="was edited"):
        RecipeFile.from_json(json.dumps(document | {"recipe_id": "0"}).encode(), "uri")
    with pytest.raises(RecipeMismatchError):
        RecipeFile.from_json(b"{", "uri")


def test_every_error_can_be_pickled_and_is_in_the_tree() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.TlrayError):
            error = ImageError(ImageErrorCode.EMPTY, "detail") if kind is ImageError else kind("message")
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again), again.exit_code) == (kind, str(error), error.exit_code)
            assert name in errors.__doc__
