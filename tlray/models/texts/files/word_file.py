"""What a file of word vectors holds, and how its vectors are written as they are read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tlray.errors import WeightsError

FileFormat = Literal["word2vec", "fasttext"]
"""word2vec's binary and text files and GloVe's hold the same: words and vectors."""

_BLOCK_FLOATS = 2**22
"""Floats that are checked and written at once."""


@dataclass
class WordFile:
    """What a file of word vectors holds, the vectors apart, which are written elsewhere as they are read.

    Attributes:
        kind: of file.
        words: in the file's order, each once.
        dimensions: of the vectors.
        counts: of the words in their corpus; None where the file does not say.
        part_lengths: characters in the shortest and the longest part of a word that has a vector; None where none has.
        notes: what was left out, for people.
    """

    kind: FileFormat
    words: list[str]
    dimensions: int
    counts: list[int] | None = None
    part_lengths: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)


class VectorWriter:
    """Writes vectors as they are read, and refuses those that are not numbers.

    Args:
        path: of the file to write, of float32, row after row.
        where: the file that is read, for messages.
    """

    def __init__(self, path: Path, where: str) -> None:
        self._file = path.open("wb")
        self._where = where
        self._words: list[str] = []
        self._taken: set[str] = set()
        self._block: list[bytes] = []
        self._floats = 0
        self.repeated: list[str] = []

    def add(self, word: str, vector: bytes) -> None:
        """Take a word's vector, as little-endian float32; of a word that comes again the first one stays."""
        if word in self._taken:
            self.repeated.append(word)
            return
        self._taken.add(word)
        self._words.append(word)
        self._block.append(vector)
        self._floats += len(vector) // 4
        if self._floats >= _BLOCK_FLOATS:
            self._flush()

    def close(self) -> list[str]:
        """Write what is left; the words, in order.

        Raises:
            WeightsError: there are none.
        """
        self._flush()
        self._file.close()
        if not self._words:
            raise WeightsError(f"{self._where} has no word vectors in it; check that it is whole")
        return self._words

    def notes(self) -> list[str]:
        """What was left out, in words."""
        if not self.repeated:
            return []
        return [
            f"{len(self.repeated)} words come more than once in {self._where}, as {self.repeated[0]!r}; the first one counts"
        ]

    def _flush(self) -> None:
        if not self._block:
            return
        data = b"".join(self._block)
        rows = np.frombuffer(data, "<f4").reshape(len(self._block), -1)
        if not (is_finite := np.isfinite(rows).all(axis=1)).all():
            word = self._words[len(self._words) - len(rows) + int(np.argmin(is_finite))]
            raise WeightsError(f"{self._where}: the vector of {word!r} is not finite; restore the file, or take that word out")
        self._file.write(data)
        self._block, self._floats = [], 0
