"""Texts as queries: what a table keeps of a text tower, and what is refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, GoldenMismatchError
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.golden import _versions, make_recipe_file
from tlray.models.encoder.text import BATCH_TEXTS, open_text_encoder
from tlray.recipe import Precision, RecipeFile, golden_texts

LENGTH, LONGEST = 64, 500


class Letters:
    """A tower that counts letters: wrong by any text that is changed, left out or put elsewhere."""

    length = LENGTH
    logit_scale = 100.0

    def __init__(self, start: int = 32) -> None:
        self.start = start
        self.batches: list[int] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(texts))
        return counted(texts, self.start)

    def count_cut(self, texts: Sequence[str]) -> int:
        return sum(len(text) > LONGEST for text in texts)


def counted(texts: Sequence[str], start: int = 32) -> np.ndarray:
    counts = [Counter((ord(letter) - start) % LENGTH for letter in text) for text in texts]
    return np.array([[count[index] for index in range(LENGTH)] for count in counts], np.float32)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    config = RecipeConfig(
        backbone="timm:test_vit", weights="random:0", taps=("head:input", "norm"), precision=Precision(compute="fp32")
    )
    return resolve_backbone(config, Path)


@pytest.fixture
def tower() -> Letters:
    return Letters()


@pytest.fixture
def two_towers(vit: Backbone, tower: Letters) -> Backbone:
    return replace(vit, text_tower=lambda: tower, text_tap="head:input")


@pytest.fixture
def file(two_towers: Backbone) -> RecipeFile:
    return make_recipe_file(two_towers)


def test_texts_come_back_in_their_order_in_batches(two_towers: Backbone, file: RecipeFile, tower: Letters) -> None:
    encoder = open_text_encoder(file, "embedding_head_input", Path, backbone=two_towers)
    texts = [f"photo {index} of {'ab' * index}" for index in range(BATCH_TEXTS + 3)]
    tower.batches.clear()
    found = encoder.encode(texts)
    assert found.dtype == np.float32 and encoder.length == LENGTH
    np.testing.assert_array_equal(found, counted(texts))
    assert tower.batches == [BATCH_TEXTS, 3]
    assert encoder.encode([]).shape == (0, LENGTH)


def test_texts_that_lose_their_ends_are_counted(
    two_towers: Backbone, file: RecipeFile, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = open_text_encoder(file, "embedding_head_input", Path, backbone=two_towers)
    encoder.encode(["short", "x" * (LONGEST + 1)])
    assert "1 of 2 texts are longer" in caplog.text and encoder.count_cut(["short"]) == 0 and encoder.logit_scale == 100


def test_normalised_tables_have_normalised_texts(two_towers: Backbone) -> None:
    recipe = two_towers.recipe.model_copy(update={"normalize": True})
    normalised = replace(two_towers, recipe=recipe)
    found = open_text_encoder(make_recipe_file(normalised), "embedding_head_input", Path, backbone=normalised).encode(
        ["abc", ""]
    )
    expected = counted(["abc"]) / np.sqrt(3)
    np.testing.assert_allclose(found, [expected[0], np.zeros(LENGTH)], rtol=1e-6)  # and nothing is divided by zero


def test_the_golden_texts_are_kept_and_checked(two_towers: Backbone, file: RecipeFile) -> None:
    np.testing.assert_array_equal(np.array(file.golden_text), counted(golden_texts()))
    assert RecipeFile.from_json(file.to_json(), "recipe.json") == file
    other = replace(two_towers, text_tower=lambda: Letters(start=33))
    with pytest.raises(GoldenMismatchError, match="over the golden texts"):
        open_text_encoder(file, "embedding_head_input", Path, backbone=other)


def test_documents_of_networks_without_a_text_tower_are_as_they_were(vit: Backbone, two_towers: Backbone) -> None:
    assert b"golden_text" not in make_recipe_file(vit).to_json()
    other = replace(two_towers, text_tap="blocks")  # a layer that the table does not hold
    assert make_recipe_file(other).golden_text is None


def test_a_tower_that_gives_no_numbers_makes_no_table(two_towers: Backbone) -> None:
    class Empty(Letters):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return counted(texts) * np.nan

    with pytest.raises(BackboneError, match="not finite"):
        make_recipe_file(replace(two_towers, text_tower=Empty))


def test_a_tower_for_which_all_texts_are_alike_makes_no_table(two_towers: Backbone) -> None:
    class Deaf(Letters):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return counted(["a"] * len(texts))

    with pytest.raises(BackboneError, match="same vector for different texts"):
        make_recipe_file(replace(two_towers, text_tower=Deaf))


def test_a_tower_that_cannot_be_had_has_a_way_out(two_towers: Backbone) -> None:
    def missing() -> Letters:
        raise ConfigError("x has no tokeniser")

    with pytest.raises(ConfigError, match=r"has no tokeniser; or keep another layer than head:input \(recipe.taps\)"):
        make_recipe_file(replace(two_towers, text_tower=missing))


def test_versions_are_of_packages_by_any_of_their_names() -> None:
    assert _versions(["numpy", "PIL"]) == {"numpy": version("numpy"), "pillow": version("pillow")}


def test_what_texts_cannot_be_compared_with(vit: Backbone, two_towers: Backbone, file: RecipeFile) -> None:
    with pytest.raises(ConfigError, match=r"timm:test_vit has no text tower.*openclip:"):
        open_text_encoder(file, "embedding_head_input", Path)
    with pytest.raises(
        ConfigError, match=r"embedding_norm holds layer norm .*head:input can: use its column embedding_head_input"
    ):
        open_text_encoder(file, "embedding_norm", Path, backbone=two_towers)
    other = replace(two_towers, text_tap="blocks")
    with pytest.raises(ConfigError, match=r"extract with recipe.taps blocks"):
        open_text_encoder(file, "embedding_norm", Path, backbone=other)


def test_a_table_without_golden_texts_is_used_and_that_is_said(
    two_towers: Backbone, vit: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    open_text_encoder(make_recipe_file(vit), "embedding_head_input", Path, backbone=two_towers)
    assert "could not be checked" in caplog.text
