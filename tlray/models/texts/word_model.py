"""Texts to vectors by the vectors of their words.

A batch's tokens are found and counted by Arrow, and its vectors added by torch, both without Python's interpreter; what Python
itself does, to look each different token up in the vocabulary, it does once for all the texts of the batch.

Shape legend: B texts, T tokens of all texts, U different tokens, V words of the vocabulary, D dimensions.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tlray.models.texts.text_model import Embedded
from tlray.models.texts.word_vectors import WordVectors
from tlray.recipe.texts import UNKNOWN_FRACTION, TextPool, Tokens

TURN_TEXTS = 512
"""Texts whose tokens are looked up together: the more, the fewer look-ups for each, as texts share most of their words; so many
of a page each have some 200,000 tokens, of which a few MB are held at once."""

BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}_]+"
"""What `words` cuts at: all but letters, marks, digits and `_`. Python's `\\w` would cut before the marks of Indic scripts."""

_HAS_SIGN = re.compile(r"\w")
"""A run of marks alone is no word: emoji are followed by some."""

GOLDEN_TEXTS = 4
GOLDEN_WORDS = 12


@dataclass(frozen=True)
class _Found:
    """The tokens of some texts, and which words they are.

    Attributes:
        words: the different ones, U.
        word_T: of each token, the number of its word.
        text_T: of each token, the number of its text, ascending.
    """

    words: list[str]
    word_T: np.ndarray
    text_T: np.ndarray


class WordModel:
    """Embeds texts by word vectors; safe in any number of threads.

    `avg` is gensim's `KeyedVectors.get_mean_vector(words, pre_normalize=False)`, `max` the largest value of each dimension,
    `sif` the mean of the vectors each times its word's weight. Unknown tokens have no part in any of them. Of a text without a
    known word no vector can be told: it is not a number, and its unknown fraction is 1.

    SIF's second step, to take the common component out, is a property of a whole collection: a row's vector would change
    whenever another row came. It is left to whoever uses the vectors.

    Args:
        vectors: of the words.
        pool: how those of a text become one.
        tokens: how a text is cut.
        weights_V: for `sif`, of each word; float32.
    """

    turn_texts = TURN_TEXTS
    packages: tuple[str, ...] = ("numpy", "pyarrow")

    def __init__(self, vectors: WordVectors, pool: TextPool, tokens: Tokens, weights_V: np.ndarray | None = None) -> None:
        self._vectors, self._pool, self._tokens, self._weights_V = vectors, pool, tokens, weights_V
        self.length = vectors.length

    def prepare(self, threads: int, device: torch.device) -> None:
        """Nothing is to be done: it is always ready for any number of threads, on the CPU."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts of any length by the vectors of their words.

        Args:
            texts: B of them.

        Returns:
            features_BD, and the share of each text's tokens that are unknown; 1 for a text without tokens.
        """
        found = _tokens_of(texts, self._tokens)
        table_UD, known_U, weight_U = self._look_up(found.words)
        known_T = known_U[found.word_T]
        tokens_B = np.bincount(found.text_T, minlength=len(texts))
        known_B = np.bincount(found.text_T[known_T], minlength=len(texts))
        features_BD = self._pooled(table_UD, found.word_T[known_T], weight_U, known_B)
        features_BD[known_B == 0] = np.nan
        unknown_B = 1 - known_B / np.maximum(tokens_B, 1)
        return Embedded(features_BD, {UNKNOWN_FRACTION: unknown_B.astype(np.float32)})

    def count_cut(self, texts: Sequence[str]) -> int:  # noqa: ARG002
        """None: all of a text counts."""
        return 0

    def examples(self) -> tuple[str, ...]:
        """Words of the vocabulary, drawn by SHAKE-256, a dozen a text; each is written as its tokens are found again."""
        words = self._that_are_tokens() or list(self._vectors.words)
        drawn = np.frombuffer(hashlib.shake_256(b"tlray golden texts").digest(8 * GOLDEN_TEXTS * GOLDEN_WORDS), "<u8")
        chosen = [words[int(number % np.uint64(len(words)))] for number in drawn]
        return tuple(" ".join(chosen[at : at + GOLDEN_WORDS]) for at in range(0, len(chosen), GOLDEN_WORDS))

    def _that_are_tokens(self) -> list[str]:
        """The words that are found again where they are a text by themselves; cut all at once, as there are millions."""
        words = self._vectors.words
        found = _tokens_of(words, self._tokens)
        is_alone_T = np.bincount(found.text_T, minlength=len(words))[found.text_T] == 1
        pairs = zip(found.text_T[is_alone_T].tolist(), found.word_T[is_alone_T].tolist(), strict=True)
        return [words[text] for text, token in pairs if words[text] == found.words[token]]

    def _look_up(self, words: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Vectors of different tokens (of unknown ones zeros), whether each is known, and what it weighs."""
        index_U = self._vectors.indexes(words)
        known_U = index_U >= 0
        table_UD = np.zeros((len(words), self.length), np.float32)
        table_UD[known_U] = self._vectors.take(index_U[known_U])
        weight_U = None
        if self._weights_V is not None:
            weight_U = np.zeros(len(words), np.float32)
            weight_U[known_U] = self._weights_V[index_U[known_U]]
        for position in np.flatnonzero(~known_U) if self._vectors.has_parts else ():
            vector_D = self._vectors.from_parts(words[position])
            if vector_D is not None:
                table_UD[position], known_U[position] = vector_D, True
                if weight_U is not None:
                    weight_U[position] = 1  # of a word of probability 0
        return table_UD, known_U, weight_U

    def _pooled(self, table_UD: np.ndarray, word_T: np.ndarray, weight_U: np.ndarray | None, count_B: np.ndarray) -> np.ndarray:
        """Sums are taken in float32, word after word, and divided at the end, as gensim does it."""
        if not len(word_T):
            return np.zeros((len(count_B), self.length), np.float32)
        starts_B = np.cumsum(count_B) - count_B
        weights_T = None if weight_U is None else torch.from_numpy(weight_U[word_T])
        pooled_BD: np.ndarray = torch.nn.functional.embedding_bag(
            torch.from_numpy(word_T),
            torch.from_numpy(table_UD),
            torch.from_numpy(starts_B),
            mode="max" if self._pool == "max" else "sum",
            per_sample_weights=weights_T,
        ).numpy()
        if self._pool != "max":
            pooled_BD /= np.maximum(count_B, 1)[:, None].astype(np.float32)
        return pooled_BD


def _tokens_of(texts: Sequence[str], tokens: Tokens) -> _Found:
    """The tokens of texts, as the recipe cuts them."""
    array = pa.array(texts, pa.large_string())
    cut = pc.utf8_split_whitespace(array) if tokens.split == "whitespace" else pc.split_pattern_regex(array, BETWEEN_WORDS)
    coded = cut.flatten().dictionary_encode()
    words: list[str] = coded.dictionary.to_pylist()
    word_T = coded.indices.to_numpy().astype(np.int64)
    text_T = np.repeat(np.arange(len(texts)), np.diff(cut.offsets.to_numpy()))
    is_token = bool if tokens.split == "whitespace" else _HAS_SIGN.search  # white space at the ends leaves empty ones
    is_token_U = np.array([bool(is_token(word)) for word in words], bool)
    if not is_token_U.all():
        kept_T = is_token_U[word_T]
        word_T, text_T = word_T[kept_T], text_T[kept_T]
    return _Found([word.lower() for word in words] if tokens.lowercase else words, word_T, text_T)


def sif_weights(probability_V: np.ndarray, a: float) -> np.ndarray:
    """The weight of each word, a / (a + p), float32: Arora, Liang and Ma 2017, equation of algorithm 1.

    Args:
        probability_V: of the words, float64.
        a: the paper's parameter, 1e-3 to 1e-4 there.
    """
    return (a / (a + probability_V)).astype(np.float32)
