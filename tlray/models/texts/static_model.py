"""Static embeddings of the package model2vec: a vector a token, and their mean.

Shape legend: B texts, D embedding length.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tlray.errors import WeightsError, first_line
from tlray.extras import require
from tlray.models.texts.sentence_model import GOLDEN_TEXTS
from tlray.models.texts.text_model import Embedded

if TYPE_CHECKING:
    from model2vec import StaticModel as Static

TURN_TEXTS = 512
_FILES = ("model.safetensors", "tokenizer.json", "config.json")


class StaticModel:
    """Embeds texts as model2vec's `StaticModel.encode` does, whole texts of any length; safe in any number of threads.

    Args:
        model: loaded.
        sha256: of its files.
    """

    turn_texts = TURN_TEXTS
    packages: tuple[str, ...] = ("model2vec", "tokenizers")

    def __init__(self, model: "Static", sha256: str) -> None:
        self._model = model
        self.sha256 = sha256
        self.length = int(model.dim)

    def prepare(self, threads: int, device: torch.device) -> None:
        """Nothing is to be done: it is always ready for any number of threads, on the CPU."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts of any length; of one without a known token the vector is zero, as model2vec has it.

        Args:
            texts: B of them.
        """
        found = self._model.encode(list(texts), max_length=None, use_multiprocessing=False)
        return Embedded(np.asarray(found, np.float32).reshape(len(texts), self.length))

    def count_cut(self, texts: Sequence[str]) -> int:  # noqa: ARG002
        """None: all of a text counts."""
        return 0

    def examples(self) -> tuple[str, ...]:
        """Sentences that are the same for every encoder."""
        return GOLDEN_TEXTS


def open_static_model(location: Path | str) -> StaticModel:
    """Load a model of static token embeddings (model2vec).

    Args:
        location: its folder.

    Raises:
        ConfigError: the package is not installed.
        WeightsError: there is no such folder, or it cannot be loaded.
    """
    require("text", "model2vec", what="model2vec:")
    from model2vec import StaticModel as Static

    if not isinstance(location, Path):
        raise WeightsError(f"there is no folder {location}; expected one that model2vec's save_pretrained made")
    missing = [name for name in _FILES if not (location / name).is_file()]
    if missing:
        raise WeightsError(f"{location} has no {', '.join(missing)}; expected a folder that model2vec's save_pretrained made")
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update(f"{name}\n".encode() + (location / name).read_bytes())
    try:
        model = Static.from_pretrained(str(location))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(f"{location} cannot be loaded by model2vec: {first_line(error)}") from error
    return StaticModel(model, digest.hexdigest())
