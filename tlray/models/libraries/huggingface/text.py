"""The text towers of transformers' models, with the tokenisers that come with them.

Shape legend: B texts, D embedding length.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tlray.errors import ConfigError, WeightsError, first_line
from tlray.models.libraries.huggingface.checkpoint.build import Built, build
from tlray.models.libraries.huggingface.checkpoint.files import CONFIG
from tlray.models.libraries.huggingface.checkpoint.source import READ_ERRORS, Source, quiet
from tlray.models.libraries.huggingface.towers import TWO_TOWERS, Towers, text_class

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
"""What the tokenisers of these models are kept in; each has some of them."""

_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})
"""Files of vocabularies, of which one has to be there whole: transformers makes an empty tokeniser where there is none."""


class HuggingFaceText:
    """The text side of a model of two towers.

    Args:
        model: that side, in eval mode.
        tokenizer: of the model.
        towers: how its texts are prepared, and which output is in the common space.
        logit_scale: see `tlray.models.libraries.text_tower.TextTower`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, towers: Towers, logit_scale: float) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._towers = towers
        self._tokens: int = model.config.max_position_embeddings
        self._lock = threading.Lock()  # a tokeniser keeps its padding in itself
        self.logit_scale = logit_scale
        self.length = self._embed(["a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; see `tlray.models.libraries.text_tower.TextTower.encode`."""
        return self._embed(self._cased(texts)) if texts else np.empty((0, self.length), np.float32)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count texts that are too long; see `tlray.models.libraries.text_tower.TextTower.count_cut`."""
        if not texts:
            return 0
        with self._lock:
            rows = self._tokenizer(self._cased(texts), verbose=False)["input_ids"]
        return sum(len(row) > self._tokens for row in rows)

    def _cased(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._towers.is_lower else list(texts)

    def _embed(self, texts: list[str]) -> np.ndarray:
        with self._lock:
            tokens = self._tokenizer(texts, padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt")
        masks = {"attention_mask": tokens["attention_mask"]} if self._towers.is_masked else {}
        with torch.inference_mode():
            outputs = self._model(input_ids=tokens["input_ids"], return_dict=True, **masks)
        features_BD: np.ndarray = outputs[self._towers.shared_text].float().numpy()
        return features_BD


def open_text_tower(source: Source) -> HuggingFaceText:
    """Load the text side of a network that was found.

    Raises:
        ConfigError: it has no tokeniser, or one that needs code of its own.
        WeightsError: its weights are missing.
    """
    tokenizer = _tokenizer(source)
    side, config = text_class(source.config)
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"{source.weights} has a tokeniser of {len(tokenizer)} tokens, but the text side knows {config.vocab_size}: it is "
            "another model's; give the whole folder as the hub has it"
        )
    tokenizer.padding_side = "right"  # as all of these were trained, whatever the class of the tokeniser does by itself
    built = build(source, side, config)
    if built.unfilled:
        raise WeightsError(built.misfit)
    return HuggingFaceText(built.model, tokenizer, TWO_TOWERS[source.config.model_type], _logit_scale(source, built))


def _logit_scale(source: Source, built: Built) -> float:
    """The logit scale, e to the parameter; where the weights have none, as the configuration starts it (1 / 0.07 in CLIP)."""
    if built.logit_scale is not None:
        return float(built.logit_scale.float().exp())
    return math.exp(getattr(source.config, "logit_scale_init_value", math.log(1 / 0.07)))


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    said = "give the whole folder as the hub has it"
    if source.files is None:
        raise ConfigError(
            f"{source.backbone} with weights {source.weights} has no tokeniser, so texts cannot be embedded; {said}"
        )
    with source.files.copied((*TOKENIZER_FILES, CONFIG)) as folder, quiet:
        names = {path.name for path in folder.iterdir()}
        if not any(files <= names for files in _VOCABULARIES):
            raise ConfigError(f"{source.weights} has no tokeniser ({TOKENIZER_FILES[0]}), so texts cannot be embedded; {said}")
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except READ_ERRORS as error:
            raise ConfigError(
                f"{source.weights} has a tokeniser that transformers cannot read: {first_line(error)}; {said}"
            ) from error
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"{source.weights} has a tokeniser without a token of padding, with which texts are brought to one length; {said}"
        )
    return tokenizer
