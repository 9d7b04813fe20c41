"""Sentence encoders of the package sentence-transformers, from a folder, from an installed package, or by a hub's name.

Shape legend: B texts, D embedding length.
"""

import copy
import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlray.errors import BackboneError, WeightsError, first_line
from tlray.extras import require
from tlray.models.process.device import precision, settle_compute
from tlray.models.texts.text_model import Embedded
from tlray.models.weights.digest import hash_weights
from tlray.models.weights.fit import shown
from tlray.recipe import Compute
from tlray.recipe.texts import CUT_FRACTION

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TURN_TEXTS = 256
"""Texts that go through the encoder in one call, which sorts them by length, so that little of a batch is padding."""

BATCH_TEXTS = 32
"""Texts of one forward pass on a GPU, sentence-transformers' own default."""

BATCH_TEXTS_CPU = 8
"""Texts of one forward pass on a core: fewer are no faster, and more are padded to the longest among them
(`tests.bench.text`)."""

_CONFIGURATION = (".json", ".txt", ".model", ".vocab")
"""Endings of the files of a folder that say how texts are cut, pooled and normalised."""

_NOT_OF_NUMBERS = ("README", "LICENSE", "requirements", "config_sentence_transformers")

_NO_LIMIT = 10**9
"""Tokens from which a limit is none: transformers writes 1e30 where a tokeniser has none, sentence-transformers infinity."""

GOLDEN_TEXTS = (
    "A photo of a cat.",
    "A RED bicycle, leaning against the old wall.",
    "Two dogs play in the snow; 1,234 footprints & 56% clouds",
    'Ein Mädchen liest im Café -- "größer"  als das   Zimmer!',
)
"""With capitals, digits, signs and letters that tokenisers treat differently."""


class SentenceModel:
    """Embeds texts as `SentenceTransformer.encode` of sentence-transformers does.

    Each thread has a copy of the modules, since tokenisers keep state; the weights are there once.

    Args:
        model: loaded.
        folder: that it came from; None for one of a hub.
        prompt: put before each text; where it is empty the encoder's own default, if it has one.
        compute: number format of the forward pass.

    Attributes:
        sha256: of the tensors as they are stored, the tokeniser and the configuration.
        length: of a vector.
        prompt: what is put before each text.
        notes: what was changed or left out, for people.
    """

    turn_texts = TURN_TEXTS
    packages: tuple[str, ...] = ("sentence-transformers", "transformers", "tokenizers")

    def __init__(self, model: "SentenceTransformer", folder: Path | None, prompt: str, compute: Compute) -> None:
        self.sha256 = _hash(model, folder)
        self.prompt = prompt or _default_prompt(model)
        self.notes = (*_prompt_notes(model, prompt), *_format_notes(model))
        self._model, self._compute = model.float(), compute
        self._computes = compute
        self.length = int(_dimension(model))
        self._lanes: SimpleQueue[SentenceTransformer] = SimpleQueue()
        self._lanes.put(model)
        self._count = 1
        self._counter = None if self.most_tokens is None else _Counter(model)

    @property
    def architecture(self) -> str:
        """The class of its network, such as `BertModel`."""
        network = getattr(self._model[0], "auto_model", self._model[0])
        return type(network).__name__

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a text that count; None for all."""
        most = self._model.get_max_seq_length()
        return None if most is None or most >= _NO_LIMIT else int(most)

    def empty_unfilled(self) -> list[str]:
        """Make what the files do not fill not a number, so that vectors which depend on it are none either.

        sentence-transformers draws it at random and goes on; only transformers, asked again, says what it was.

        Returns:
            What was emptied, for people.
        """
        network = getattr(self._model[0], "auto_model", None)
        tensors = self._model[0].state_dict() if network is None else network.state_dict()
        missing = [name for name in _missing(network) if name in tensors]
        with torch.no_grad():
            for name in missing:
                tensors[name].fill_(torch.nan)
        return [f"the encoder's files leave without values what embeddings must not need: {shown(missing)}"] if missing else []

    def prepare(self, threads: int, device: torch.device) -> None:
        """Have a copy for each thread, on a device."""
        self._computes = settle_compute(device, self._compute)
        while self._count < (threads if device.type == "cpu" else 1):
            self._lanes.put(_share_copy(self._model))
            self._count += 1
        for _ in range(self._count):
            lane = self._lanes.get()
            lane.to(device)
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
            with precision(lane.device, self._computes):
                features_BD = lane.encode(
                    list(texts),
                    batch_size=BATCH_TEXTS_CPU if lane.device.type == "cpu" else BATCH_TEXTS,
                    prompt=self.prompt or None,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
        finally:
            self._lanes.put(lane)
        features_BD = np.asarray(features_BD, np.float32).reshape(len(texts), self.length)
        return Embedded(features_BD, {} if self._counter is None else {CUT_FRACTION: self._cut_fractions(texts)})

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of some texts have tokens beyond the limit."""
        return int(np.count_nonzero(self._cut_fractions(texts)))

    def _cut_fractions(self, texts: Sequence[str]) -> np.ndarray:
        """The share of each text's tokens that are cut off, float32."""
        most = self.most_tokens
        if self._counter is None or most is None:
            return np.zeros(len(texts), np.float32)
        counts_B = self._counter.count([self.prompt + text for text in texts])
        cut_B: np.ndarray = np.maximum(counts_B - most, 0) / np.maximum(counts_B, 1)
        return cut_B.astype(np.float32)

    def examples(self) -> tuple[str, ...]:
        """Sentences that are the same for every encoder."""
        return GOLDEN_TEXTS


class _Counter:
    """Counts the tokens of texts, with those that the model puts around them; safe in many threads."""

    def __init__(self, model: "SentenceTransformer") -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(_tokenizer_of(model))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens each text has, int64."""
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
        # What the files do not fill is drawn, without an error: from one seed, so that the hash is the same on every machine.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = SentenceTransformer(
                str(location),
                device="cpu",
                local_files_only=folder is not None,
                trust_remote_code=False,
                similarity_fn_name=None,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise WeightsError(
            f"{location} cannot be loaded by sentence-transformers: {first_line(error)}; expected a folder that its `save` "
            "made, with modules.json, or the name of a model that the hub has"
        ) from error
    if hasattr(model.tokenizer, "pad_token") and model.tokenizer.pad_token is None:
        raise BackboneError(
            f"{location} has a tokeniser without a token of padding, so texts of several lengths cannot be embedded together; "
            "set one (model.tokenizer.pad_token = model.tokenizer.eos_token, where padding is masked) and save it again"
        )
    return SentenceModel(model.eval(), folder, prompt, compute)


def _share_copy(model: "SentenceTransformer") -> "SentenceTransformer":
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, tensors)


def _hash(model: "SentenceTransformer", folder: Path | None) -> str:
    """Sha256 of the tensors as loaded, of the tokeniser, and of the files that say how texts are cut, pooled and normalised."""
    digest = hashlib.sha256(hash_weights(model).encode())
    if folder is None:
        digest.update(_tokenizer_of(model).encode())
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


def _tokenizer_of(model: "SentenceTransformer") -> str:
    """The document of a tokeniser of the package tokenizers, which that of transformers holds one of."""
    backend = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    if not hasattr(backend, "to_str"):
        raise BackboneError(
            "the encoder has no fast tokeniser; save it with one (tokenizer.json), as transformers does by default"
        )
    document: str = backend.to_str()
    return document


def _missing(network: Any) -> list[str]:
    """Tensors of a network of transformers that its files do not fill; none where it cannot be asked."""
    from transformers import PreTrainedModel

    if not isinstance(network, PreTrainedModel) or not Path(network.name_or_path).is_dir():
        return []
    _, report = type(network).from_pretrained(
        network.name_or_path, config=network.config, output_loading_info=True, local_files_only=True
    )
    return sorted(report["missing_keys"])


def _default_prompt(model: "SentenceTransformer") -> str:
    """What `encode` puts before texts where nobody gives a prompt."""
    return (model.prompts or {}).get(model.default_prompt_name or "") or ""


def _prompt_notes(model: "SentenceTransformer", given: str) -> list[str]:
    """Which prompts an encoder brings, where the user gives none: vectors without them may be far worse."""
    prompts = {name: text for name, text in (model.prompts or {}).items() if text}
    if given or not prompts:
        return []
    shown = ", ".join(f"{name} {text!r}" for name, text in prompts.items())
    default = _default_prompt(model)
    before = f"its default, {default!r}, is put before each text" if default else "none of them is put before texts"
    return [f"the encoder has prompts ({shown}): {before}; another one is given as recipe.tokens.prompt"]


def _format_notes(model: "SentenceTransformer") -> list[str]:
    """What the tensors are stored as, where it is not what they are computed with."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters() if tensor.is_floating_point()}
    other = sorted(kinds - {"float32"})
    return [f"the encoder is stored as {', '.join(other)}, computed with as float32"] if other else []
