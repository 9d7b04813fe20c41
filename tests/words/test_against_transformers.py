"""A folder as the hub has it, from the command line: what transformers itself says of images and texts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photos import frame_of, result_of, tlray, write_photos

transformers = pytest.importorskip("transformers")
TEXTS = ["a photo of a cat", "two dogs playing in the snow!", "a red bicycle"]
ATOL = 2e-3
"""Of cosines: resized pixels may differ by a level, and stored vectors keep 10 mantissa bits."""
SCALE = 30.0
"""What the models are made to multiply cosines by, so that their probabilities differ."""


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_search_and_zero_shot_are_transformers_own(kind: str, tmp_path: Path) -> None:
    from tests.models.libraries.huggingface.tiny import save  # needs transformers

    folder, paths = save(kind, tmp_path / kind), sorted(write_photos(tmp_path / "photos", 6))
    model = transformers.AutoModel.from_pretrained(folder)
    model.logit_scale.data.fill_(math.log(SCALE))
    model.save_pretrained(folder)
    recipe = ["--backbone", f"hf:{folder}", "--compute", "fp32"]
    logits_NK, bias = plain_logits(folder, paths)
    uris = [path.as_uri() for path in paths]

    result_of(tlray("extract", tmp_path / "photos", tmp_path / "t", "--local", *recipe))
    result_of(tlray("index", tmp_path / "t", tmp_path / "i"))
    answers = result_of(tlray("search", tmp_path / "i", "--text", *TEXTS, "-k", "6"))["answers"]
    for answer, logits_N in zip(answers, logits_NK.T, strict=True):
        cosine_of = dict(zip(uris, (logits_N - bias) / SCALE, strict=True))
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
            [cosine_of[hit["uri"]] for hit in answer["hits"]], abs=ATOL
        )
        assert max(cosine_of, key=cosine_of.__getitem__) == answer["hits"][0]["uri"]

    flags = ["--classes", *TEXTS, "--templates", "{}", "--top-k", "3"]
    result_of(tlray("predict", tmp_path / "photos", tmp_path / "p", "--local", *recipe, *flags))
    frame = frame_of(tmp_path / "p")
    expected_NK = torch.from_numpy(logits_NK).softmax(dim=1).numpy()
    for uri, labels, probabilities in frame.select("uri", "top_labels", "top_probabilities").iter_rows():
        at = [TEXTS.index(label) for label in labels]
        assert np.allclose(probabilities, expected_NK[uris.index(uri)][at], atol=ATOL * SCALE / 4)  # a softmax's slope
    assert np.ptp(expected_NK, axis=0).max() > ATOL * SCALE


def plain_logits(folder: Path, paths: list[Path]) -> tuple[np.ndarray, float]:
    """By the model's own processor and tokeniser: logits_NK, and what is added in them to the cosines."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = [Image.open(path).convert("RGB") for path in paths]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(TEXTS, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits_NK = model(pixel_values=pixels, input_ids=tokens).logits_per_image.numpy()
    return logits_NK, model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
