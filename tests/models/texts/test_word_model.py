"""From texts to vectors: gensim's means, the SIF paper's formula, and tokens as Python's own regular expressions find them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from gensim.models.fasttext import load_facebook_vectors
from gensim.test.utils import datapath

from tlray.config import RecipeConfig, TokensConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.lake.storage.local_copy import local_copy
from tlray.models.texts import word_model
from tlray.models.texts.backbones import load_text_backbone, resolve_text_backbone
from tlray.models.texts.encoder import TextRowEncoder
from tlray.models.texts.text_model import TextBackbone
from tlray.recipe import Precision

LEE = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()
"""Three hundred news stories (Lee, Pincombe and Welsh 2005)."""

VECTORS = datapath("word2vec_pre_kv_c")
CRIME = datapath("crime-and-punishment.bin")


@pytest.fixture(autouse=True, scope="module")
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("words")))
        yield


def backbone(path: str = VECTORS, *, frequencies: str | None = None, **keys: object) -> TextBackbone:
    tokens = {name: keys.pop(name) for name in ("split", "lowercase", "a") if name in keys}
    config = RecipeConfig(backbone=f"gensim:{path}", tokens=TokensConfig(frequencies=frequencies, **tokens), **keys)  # type: ignore[arg-type]
    return resolve_text_backbone(config, local_copy)


def vectors_of(found: TextBackbone, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    columns = TextRowEncoder(found).encode(texts)
    return columns["embedding"], columns["unknown_fraction"][:, 0]


@pytest.fixture(scope="module")
def theirs() -> KeyedVectors:
    return KeyedVectors.load_word2vec_format(VECTORS)


def test_the_mean_is_gensims_to_the_last_bit(theirs: KeyedVectors) -> None:
    ours_BD, unknown_B = vectors_of(backbone(), LEE)
    for text, ours_D, unknown in zip(LEE, ours_BD, unknown_B, strict=True):
        words = re.findall(r"\w+", text.lower())
        expected_D = theirs.get_mean_vector(words, pre_normalize=False, ignore_missing=True).astype(np.float32)
        np.testing.assert_array_equal(ours_D, expected_D)
        assert unknown == np.float32(sum(word not in theirs for word in words) / len(words))


def test_the_maximum_is_numpys(theirs: KeyedVectors) -> None:
    ours_BD, _ = vectors_of(backbone(pool="max"), LEE[:50])
    for text, ours_D in zip(LEE[:50], ours_BD, strict=True):
        known = [theirs[word] for word in re.findall(r"\w+", text.lower()) if word in theirs]
        np.testing.assert_array_equal(ours_D, np.max(known, axis=0))


def test_unknown_words_of_fasttext_count_by_their_parts() -> None:
    theirs, texts = load_facebook_vectors(CRIME), ["Raskolnikov walked unheardofly", "zzz"]
    ours_BD, unknown_B = vectors_of(backbone(CRIME, lowercase=False), texts)
    for text, ours_D in zip(texts, ours_BD, strict=True):
        np.testing.assert_array_equal(ours_D, theirs.get_mean_vector(text.split(), pre_normalize=False).astype(np.float32))
    assert unknown_B.tolist() == [0, 0]


@pytest.mark.parametrize("a", [1e-3, 1e-4])
def test_sif_is_the_papers_weighted_mean(tmp_path: Path, theirs: KeyedVectors, a: float) -> None:
    """Arora, Liang and Ma 2017, algorithm 1, line 2: v_s = 1/|s| sum over w in s of a / (a + p(w)) v_w, in plain Python."""
    counts = Counter(word for text in LEE for word in re.findall(r"\w+", text.lower()))
    (tmp_path / "vocab.txt").write_text("".join(f"{word} {count}\n" for word, count in counts.most_common()), encoding="utf-8")
    total = sum(counts.values())
    ours_BD, _ = vectors_of(backbone(pool="sif", frequencies=str(tmp_path / "vocab.txt"), a=a), LEE)
    for text, ours_D in zip(LEE, ours_BD, strict=True):
        known = [word for word in re.findall(r"\w+", text.lower()) if word in theirs]
        expected = [0.0] * 10
        for word in known:
            weight = a / (a + counts[word] / total)
            expected = [sum_ + weight * float(value) / len(known) for sum_, value in zip(expected, theirs[word], strict=True)]
        np.testing.assert_allclose(ours_D, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_sif_takes_the_counts_that_fasttext_keeps() -> None:
    theirs = load_facebook_vectors(CRIME)
    counts = {word: theirs.get_vecattr(word, "count") for word in theirs.index_to_key}
    words = theirs.index_to_key[5:9]
    weights = [1e-3 / (1e-3 + counts[word] / sum(counts.values())) for word in words]
    expected = np.mean([weight * theirs[word] for weight, word in zip(weights, words, strict=True)], axis=0)
    found = backbone(CRIME, pool="sif", split="whitespace", lowercase=False)
    np.testing.assert_allclose(vectors_of(found, [" ".join(words)])[0][0], expected, rtol=1e-5)


def test_sif_without_frequencies_is_refused_not_guessed() -> None:
    with pytest.raises(WeightsError, match=r"recipe\.tokens\.frequencies"):
        backbone(pool="sif")


@pytest.mark.parametrize(
    "text",
    ["a b  c", "don't stop", "naïve café", "語言 模型", "नमस्ते दुनिया", "1,234 3.14 x_1", "", " . ! ", "😀 ok", "⚠️ warning"],
)
def test_tokens_are_runs_of_letters_marks_digits_and_underscores(text: str) -> None:
    import regex

    found = [run for run in regex.findall(r"[\p{L}\p{M}\p{N}_]+", text) if not regex.fullmatch(r"\p{M}+", run)]
    words = sorted(set(found))
    path = _vectors_of_words(words or ["x"])
    _, unknown_B = vectors_of(backbone(path, lowercase=False), [text, f"{text} unknown"])
    assert unknown_B.tolist() == [0 if words else 1, np.float32(1 / (len(found) + 1))]


def _vectors_of_words(words: list[str]) -> str:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "x.txt"
    path.write_text("".join(f"{word} {number} 1\n" for number, word in enumerate(words)), encoding="utf-8")
    return str(path)


def test_lower_case_follows_the_vocabulary_and_is_said() -> None:
    small, mixed = _vectors_of_words(["greece", "οδος", "straße"]), _vectors_of_words(["Greece", "is"])
    found = backbone(small)
    assert found.recipe.tokens.lowercase and "no word" in found.notes[-1]
    assert vectors_of(found, ["GREECE ΟΔΟΣ Straße"])[1].tolist() == [0]  # Python's rule for a final sigma
    assert not backbone(mixed).recipe.tokens.lowercase
    assert backbone(mixed, lowercase=True).recipe.tokens.lowercase


def test_a_text_without_a_known_word_has_no_vector() -> None:
    features_BD, unknown_B = vectors_of(backbone(), ["zzqx qqq", "...", "the zzqx"])
    assert np.isnan(features_BD[:2]).all() and np.isfinite(features_BD[2]).all()
    assert unknown_B.tolist() == [1, 1, 0.5]


def test_golden_texts_are_words_that_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut once, as vocabularies have millions of words."""
    import regex

    words = ["Greece", "new_york", "e-mail", "don't", "...", "naïve", "3d", "नमस्ते", "a b", "x", "⚠️", "l’eau"]
    whole = [word for word in words if regex.fullmatch(r"[\p{L}\p{M}\p{N}_]+", word)]
    calls = []
    cut = word_model._tokens_of
    monkeypatch.setattr(word_model, "_tokens_of", lambda *given: calls.append(len(given[0])) or cut(*given))
    for lowercase, expected in ((False, whole), (True, [word for word in whole if word != "Greece"])):
        calls.clear()
        texts = backbone(_vectors_of_words([word for word in words if " " not in word]), lowercase=lowercase).model.examples()
        assert set(" ".join(texts).split()) == set(expected) and calls == [len(words) - 1]
    spaced = backbone(_vectors_of_words(["e-mail", "Greece"]), split="whitespace", lowercase=False).model.examples()
    assert set(" ".join(spaced).split()) == {"e-mail", "Greece"}


def test_a_callers_threads_stay_as_they_were() -> None:
    found, before = backbone(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        encoder = TextRowEncoder(found, lanes=2, batch_size=4)
        for texts in (LEE[:1], LEE[:9]):
            np.testing.assert_array_equal(encoder.encode(texts)["embedding"], vectors_of(found, texts)[0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("keys", "message"), [({"batch_size": 0}, "batch_size is 0"), ({"device": "tpu9"}, "device 'tpu9' cannot be used")]
)
def test_where_and_how_many_at_once(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextRowEncoder(backbone(), **keys)


def test_a_vector_does_not_depend_on_the_other_texts() -> None:
    found = backbone()
    together_BD, _ = vectors_of(found, LEE * 3)
    alone_BD = np.concatenate([vectors_of(found, [text])[0] for text in LEE[:20]])
    np.testing.assert_array_equal(together_BD[:20], alone_BD)
    np.testing.assert_array_equal(together_BD[:300], together_BD[600:])


def test_a_recipe_is_loaded_again_and_refuses_other_vectors(tmp_path: Path) -> None:
    made = backbone(normalize=True)
    again = load_text_backbone(made.recipe, local_copy)
    np.testing.assert_array_equal(vectors_of(again, LEE[:9])[0], vectors_of(made, LEE[:9])[0])
    np.testing.assert_allclose(np.linalg.norm(vectors_of(made, LEE[:9])[0], axis=1), 1, rtol=1e-6)
    moved = made.recipe.model_copy(update={"weights": _vectors_of_words(["the", "of"])})
    with pytest.raises(WeightsError, match="but the recipe says"):
        load_text_backbone(moved, local_copy)


def test_the_recipe_id_does_not_depend_on_where_files_are(tmp_path: Path) -> None:
    (tmp_path / "moved").write_bytes(Path(VECTORS).read_bytes())
    package = "package:gensim/test/test_data/word2vec_pre_kv_c"
    ids = {backbone(path).recipe.recipe_id for path in (VECTORS, str(tmp_path / "moved"), package)}
    assert len(ids) == 1
    assert backbone(pool="max").recipe.recipe_id not in ids and backbone(split="whitespace").recipe.recipe_id not in ids


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"pool": "gem"}, ConfigError, "pool gem"),
        ({"taps": ("x",)}, ConfigError, "taps"),
        ({"preprocessing": {"crop": 224}}, ConfigError, r"preprocessing\.crop"),
        ({"precision": Precision(compute="bf16")}, ConfigError, "at fp32"),
        ({"weights": "other.bin"}, BackboneError, "give one"),
        ({"weights_sha256": "0" * 64}, WeightsError, "has the hash"),
        ({"frequencies": "x"}, ConfigError, r"tokens.frequencies \(of pool sif"),
        ({"a": 0.01}, ConfigError, r"tokens.a \(of pool sif"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(keys: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        backbone(**keys)  # type: ignore[arg-type]
