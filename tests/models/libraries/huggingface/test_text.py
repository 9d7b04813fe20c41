"""Text towers of transformers: the vectors and the scores that transformers itself computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from tests.models.libraries.huggingface.test_networks import resolve
from tests.models.libraries.huggingface.tiny import save
from tlray.errors import BackboneError, ConfigError, GoldenMismatchError
from tlray.lake.image.resize import apply_preprocessing
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.text import open_text_encoder
from tlray.recipe import golden_images

TEXTS = ["a photo of a cat", "two dogs playing in the snow!", "red"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


def plain_texts(folder: Path, texts: list[str]) -> np.ndarray:
    """As the model cards do it: CLIP padded with a mask, SigLIP to 64 tokens without one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    is_clip = model.config.model_type == "clip"
    options = {"padding": True} if is_clip else {"padding": "max_length", "max_length": 64}
    tokens = tokenizer(texts, return_tensors="pt", **options)
    inputs = {key: tokens[key] for key in (["input_ids", "attention_mask"] if is_clip else ["input_ids"])}
    with torch.no_grad():
        found = model.get_text_features(**inputs)
    return (found if isinstance(found, torch.Tensor) else found.pooler_output).numpy()


def test_vectors_are_transformers_own(folder: Path) -> None:
    backbone = resolve(folder)
    tower = backbone.text_tower()
    expected = plain_texts(folder, TEXTS)
    assert tower.length == expected.shape[1]
    found = tower.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tower.encode(TEXTS[2:]), expected[2:], rtol=1e-4, atol=1e-5)  # each for itself
    assert tower.encode([]).shape == (0, tower.length)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_scores_of_texts_and_images_are_transformers_own(folder: Path) -> None:
    backbone = resolve(folder)
    images = [Image.fromarray(image_HWC) for image_HWC in golden_images(97, 130)]
    file = make_recipe_file(backbone)
    encoder = open_text_encoder(file, "embedding", Path, backbone=backbone)
    texts_BD = encoder.encode(TEXTS)
    pixels_BHWC = np.stack([apply_preprocessing(image, backbone.recipe.preprocessing) for image in images])
    images_BD = Encoder(backbone, device="cpu", batch_size=2).encode(pixels_BHWC)["embedding"]
    cosines = images_BD @ texts_BD.T / np.linalg.norm(images_BD, axis=1)[:, None] / np.linalg.norm(texts_BD, axis=1)
    model = AutoModel.from_pretrained(folder).eval()
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", max_length=backbone_tokens(model), return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(pixel_values=inputs["pixel_values"], input_ids=tokens["input_ids"]).logits_per_image
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    scale, bias = model.logit_scale.exp().item(), getattr(model, "logit_bias", torch.zeros(())).item()
    np.testing.assert_allclose(cosines, (logits.numpy() - bias) / scale, atol=2e-3)  # pixels differ by a level
    assert np.ptp(cosines, axis=0).max() > 1e-2 and np.ptp(cosines, axis=1).max() > 1e-2


def backbone_tokens(model: torch.nn.Module) -> int:
    return int(model.config.text_config.max_position_embeddings)


def test_texts_are_written_small_for_siglip_alone(tmp_path: Path) -> None:
    for kind, is_same in (("siglip", True), ("clip", False)):
        tower = resolve(save(kind, tmp_path / kind)).text_tower()
        small, large = tower.encode(["a red cat", "A RED cat"])
        assert np.array_equal(small, large) is is_same  # the vocabulary of these folders has small words alone


def test_long_texts_are_cut_at_the_end_and_counted(folder: Path) -> None:
    tower = resolve(folder).text_tower()
    tokens = tower._tokens
    marks = 2 if tokens == 77 else 1  # <start> and <end>; <end> alone
    whole = ["cat dog red"] * ((tokens - marks) // 3) + ["a"] * ((tokens - marks) % 3)
    fits, longer = " ".join(whole), " ".join([*whole, "snow"])
    same, other = tower.encode([fits, longer])
    np.testing.assert_array_equal(same, other)
    assert tower.count_cut([fits, longer, "red", longer]) == 2 and tower.count_cut([]) == 0
    assert np.abs(same - tower.encode(["cat dog red"])[0]).max() > 1e-3


def test_the_table_keeps_golden_texts_and_other_towers_are_refused(folder: Path, tmp_path: Path) -> None:
    backbone = resolve(folder)
    file = make_recipe_file(backbone)
    assert {"transformers", "tokenizers"} <= file.made_with.keys()
    assert open_text_encoder(file, "embedding", Path).encode(TEXTS).shape == (3, backbone.shapes["embedding"][0])
    other = resolve(save(backbone.recipe.backbone.removeprefix("hf:"), tmp_path, seed=1))
    with pytest.raises(GoldenMismatchError, match="embeds texts otherwise"):
        open_text_encoder(file, "embedding", Path, backbone=other)
    inner = make_recipe_file(resolve(folder, taps=("last_hidden_state",)))
    assert inner.golden_text is None
    with pytest.raises(ConfigError, match=r"holds layer last_hidden_state .* those of layer (image_embeds|pooler_output) can"):
        open_text_encoder(inner, "embedding", Path)


def test_texts_are_embedded_without_building_the_image_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden texts show that the weights are those of the table; without them the image side's hash has to."""
    file = make_recipe_file(resolve(folder))
    expected = open_text_encoder(file, "embedding", Path, backbone=resolve(folder)).encode(TEXTS)

    def build(*_: object) -> None:
        raise AssertionError("the image side was built")

    monkeypatch.setattr("tlray.models.libraries.huggingface.load.build", build)
    np.testing.assert_array_equal(open_text_encoder(file, "embedding", Path).encode(TEXTS), expected)
    with pytest.raises(ConfigError, match=r"embedding_x holds layer embedding_x .* use its column embedding"):
        open_text_encoder(file, "embedding_x", Path)
    with pytest.raises(AssertionError, match="image side was built"):
        open_text_encoder(file.model_copy(update={"golden_text": None}), "embedding", Path)


def test_a_folder_without_a_tokeniser(tmp_path: Path) -> None:
    folder = save("clip", tmp_path)
    for path in folder.glob("*token*"):
        path.unlink()
    backbone = resolve(folder, taps=("last_hidden_state",))  # images alone need none
    with pytest.raises(ConfigError, match="has no tokeniser"):
        backbone.text_tower()
    with pytest.raises(ConfigError, match=r"has no tokeniser.* or keep another layer than image_embeds"):
        make_recipe_file(resolve(folder))


def test_a_tokeniser_of_another_model(tmp_path: Path) -> None:
    folder = save("clip", tmp_path)
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["horse", "car"])
    larger.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"has a tokeniser of 21 tokens, but the text side knows 19"):
        resolve(folder).text_tower()


def test_networks_of_images_alone_have_no_text_tower(tmp_path: Path) -> None:
    backbone = resolve(save("vit", tmp_path))
    assert backbone.text_tower is None and backbone.text_tap is None


def test_the_weights_of_a_text_tower_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, reads = resolve(save("clip", tmp_path)), []
    load = safetensors.torch.load_file
    monkeypatch.setattr(safetensors.torch, "load_file", lambda path: reads.append(path) or load(path))
    expected = load(tmp_path / "model.safetensors")["logit_scale"].exp().item()
    assert backbone.text_tower().logit_scale == pytest.approx(expected) and len(reads) == 1


def test_a_tokeniser_without_padding(tmp_path: Path) -> None:
    folder = save("clip", tmp_path)
    plain = AutoTokenizer.from_pretrained(folder)
    plain.pad_token = None
    plain.save_pretrained(folder)
    with pytest.raises(ConfigError, match="tokeniser without a token of padding"):
        resolve(folder).text_tower()


def test_a_tokeniser_that_does_not_end_texts(tmp_path: Path) -> None:
    """CLIP's vector is that of the end token: without one, that of the first token, which is the same for all texts."""
    folder = save("clip", tmp_path)
    other = AutoTokenizer.from_pretrained(folder)
    other.pad_token = "<unk>"  # and not the end token, as in CLIP's own, which would end them
    other.save_pretrained(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["post_processor"]["single"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BackboneError, match="same vector for different texts"):
        make_recipe_file(resolve(folder))
