"""The text towers of open_clip's models, with open_clip's own tokenisers.

Shape legend: B texts, D embedding length.
"""

import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import LOCAL_DIR_PREFIX

from tlray.errors import ConfigError, first_line
from tlray.extras import require
from tlray.models.libraries.openclip.build import build_text
from tlray.models.libraries.openclip.source import CONFIG, DOWNLOAD_ERRORS, Source, quiet
from tlray.models.weights.fetched import find_file

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model")


class OpenClipText:
    """The text side of a model of open_clip.

    Args:
        model: with the weights of that side, in eval mode.
        tokenizer: open_clip's, which pads and cuts.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a tokeniser keeps what it has met
        self.logit_scale = float(model.logit_scale.exp())
        self.length = self._embed(["a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; see `tlray.models.libraries.text_tower.TextTower.encode`."""
        return self._embed(texts) if texts else np.empty((0, self.length), np.float32)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count texts that are too long; see `tlray.models.libraries.text_tower.TextTower.count_cut`."""
        return sum(self._tokens(text) > self._tokenizer.context_length for text in texts)

    def _tokens(self, text: str) -> int:
        """How many a text has, with the marks around it."""
        with self._lock:
            if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
                return len(self._tokenizer.encode(text)) + 2
            return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text), verbose=False)["input_ids"])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        with self._lock:
            tokens = self._tokenizer(list(texts))
        with torch.inference_mode():
            features_BD: np.ndarray = self._model.encode_text(tokens, normalize=False).float().numpy()
        return features_BD


def open_text_tower(source: Source) -> OpenClipText:
    """Load the text side of a model that was found.

    Raises:
        ConfigError: its tokeniser cannot be had.
        WeightsError: its weights are missing.
    """
    if source.model["text_cfg"].get("hf_tokenizer_name"):
        require("hf", "transformers", what=f"the tokeniser of {source.backbone}")
    return OpenClipText(build_text(source), _tokenizer(source))


def _tokenizer(source: Source) -> Any:
    try:
        if source.files is None:
            with quiet:
                return open_clip.get_tokenizer(source.tokenizer)
        address, fetch = source.files
        with quiet, tempfile.TemporaryDirectory(prefix="tlray-openclip-") as folder:
            for name in (CONFIG, *_TOKENIZER_FILES):
                if (path := find_file(f"{address}/{name}", fetch)) is not None:
                    shutil.copyfile(path, Path(folder) / name)
            return open_clip.get_tokenizer(f"{LOCAL_DIR_PREFIX}{folder}")
    except (*DOWNLOAD_ERRORS, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the tokeniser of {source.backbone} could not be had: {first_line(error)}; check the network, or give a folder "
            "that has its files"
        ) from error
