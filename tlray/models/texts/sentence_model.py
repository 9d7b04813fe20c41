"""Sentence encoders of the package sentence-transformers, from a folder, from an installed package, or by a hub's name.

Shape legend: B texts, D embedding length.
"""

import copy
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.extras import require
from tlray.models.texts.text_model import Embedded
from tlray.models.weights.digest import hash_weights
from tlray.recipe import Compute
from tlray.recipe.texts import CUT_FRACTION

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TURN_TEXTS = 256
"""Texts that go through the encoder in one call, which sorts them by length, so that little of a batch is padding."""

BATCH_TEXTS = 32
"""Of one forward pass, sentence-transformers' own default."""

BATCH_TEXTS_CPU = 8
"""Of one forward pass on a core: fewer are no faster, and more are padded to the longest among them (`tests.bench.text`)."""

_CONFIGURATION = (".json", ".txt", ".model", ".vocab")
"""Endings of the files of a folder that say how texts are cut, pooled and normalised."""

_NOT_OF_NUMBERS = ("README", "LICENSE", "requirements", "config_sentence_transformers")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

GOLDEN_TEXTS = (
    "A photo of a cat.",
    "A RED bicycle, leaning against the old wall.",
    "Two dogs play in the snow; 1,234 footprints & 56% clouds",
    'Ein Mädchen liest im Café -- "größer"  als das   Zimmer!',
)
"""With capitals, digits, signs and letters that tokenisers treat differently."""


class SentenceModel:
    """Embeds texts as `SentenceTransformer.encode` does.

    Each thread has a copy of the modules, since tokenisers keep state; the weights are there once.

    Args:
        model: loaded.
        folder: that it came from; None for one of a hub.
        prompt: put before each text.
        compute: number format of the forward pass.
    """

    turn_texts = TURN_TEXTS
    packages: tuple[str, ...] = ("sentence-transformers", "transformers", "tokenizers")

    def __init__(self, model: "SentenceTransformer", folder: Path | None, prompt: str, compute: Compute) -> None:
        self._model, self._prompt, self._compute = model, prompt, compute
        self.sha256 = _hash(model, folder)
        self.length = int(_dimension(model))
        self._lanes: SimpleQueue[SentenceTransformer] = SimpleQueue()
        self._lanes.put(model)
        self._count = 1
        self._counter = _Counter(model)

    @property
    def architecture(self) -> str:
        """The class of its network, such as `BertModel`."""
        network = getattr(self._model[0], "auto_model", self._model[0])
        return type(network).__name__

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a text that count; None for all."""
        most = self._model.get_max_seq_length()
        return None if most is None else int(most)

    def prepare(self, threads: int, device: str) -> None:
        """Have a copy for each thread, on a device."""
        place = _device(device)
        while self._count < (threads if place.type == "cpu" else 1):
            self._lanes.put(_share_copy(self._model))
            self._count += 1
        for _ in range(self._count):
            lane = self._lanes.get()
            lane.to(place)
            self._lanes.put(lane)

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts; what is beyond the limit of tokens has no part in a vector, and its share is told.

        Args:
            texts: B of them.

        Returns:
            features_BD, as `encode` gives them; and the share of each text's tokens that were cut off, where there is a limit.
        """
        lane = self._lanes.get()
        try:
            with _autocast(lane.device, self._compute):
                features_BD = lane.encode(
                    list(texts),
                    batch_size=BATCH_TEXTS_CPU if lane.device.type == "cpu" else BATCH_TEXTS,
                    prompt=self._prompt or None,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
        finally:
            self._lanes.put(lane)
        features_BD = np.asarray(features_BD, np.float32).reshape(len(texts), self.length)
        most = self.most_tokens
        if most is None:
            return Embedded(features_BD)
        counts_B = self._counter.count([self._prompt + text for text in texts])
        cut_B = np.maximum(counts_B - most, 0) / np.maximum(counts_B, 1)
        return Embedded(features_BD, {CUT_FRACTION: cut_B.astype(np.float32)})

    def examples(self) -> tuple[str, ...]:
        """Sentences that are the same for every encoder."""
        return GOLDEN_TEXTS


class _Counter:
    """Counts the tokens of texts, with those that the model puts around them; safe in many threads."""

    def __init__(self, model: "SentenceTransformer") -> None:
        from tokenizers import Tokenizer

        backend = getattr(model.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BackboneError(
                "the encoder has no fast tokeniser; save it with one (tokenizer.json), as transformers does by default"
            )
        self._tokenizer: Any = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text, int64."""
        return np.array([len(found.ids) for found in self._tokenizer.encode_batch(list(texts))], np.int64)


def open_sentence_model(location: Path | str, prompt: str, compute: Compute) -> SentenceModel:
    """Load an encoder; code that its folder may hold is not run.

    Args:
        location: a folder on this machine, or the name of a model on the hub.
        prompt: see `SentenceModel`.
        compute: likewise.

    Raises:
        ConfigError: the package is not installed.
        WeightsError: it cannot be loaded.
    """
    require("text", "sentence_transformers", what="sentence-transformers:")
    from sentence_transformers import SentenceTransformer

    folder = location if isinstance(location, Path) else None
    try:
        model = SentenceTransformer(
            str(location), device="cpu", local_files_only=folder is not None, trust_remote_code=False, similarity_fn_name=None
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise WeightsError(
            f"{location} cannot be loaded by sentence-transformers: {first_line(error)}; expected a folder that its `save` "
            "made, with modules.json, or the name of a model that the hub has"
        ) from error
    return SentenceModel(model.eval(), folder, prompt, compute)


def _share_copy(model: "SentenceTransformer") -> "SentenceTransformer":
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, tensors)


def _hash(model: "SentenceTransformer", folder: Path | None) -> str:
    """Sha256 of the tensors as loaded, of the tokeniser, and of the files that say how texts are cut, pooled and normalised."""
    digest = hashlib.sha256(hash_weights(model).encode())
    if folder is None:
        digest.update(model.tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _CONFIGURATION and not path.name.startswith(_NOT_OF_NUMBERS):
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _dimension(model: "SentenceTransformer") -> int:
    found = model.get_embedding_dimension()
    if found is None:
        raise BackboneError("the encoder does not say how long its vectors are; save it with its pooling module")
    return int(found)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def _autocast(device: torch.device, compute: Compute) -> Any:
    return nullcontext() if compute == "fp32" else torch.autocast(device.type, dtype=_DTYPES[compute])
