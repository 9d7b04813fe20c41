"""Word vectors on this machine: read once from their file, then mapped into memory by every process that needs them.

What a file holds is kept in the machine's temporary folder, as one folder for each file as it is at this moment:

    vectors.f32     words x dimensions, float32, little endian
    parts.f32       fastText's vectors of parts of words, where the file has them
    words.arrow     the words, and their counts where the file has them
    about.json      shapes and the hash; written last

Shape legend: V words, M of them, P parts, D dimensions.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlray.models.texts.files.fasttext import fasttext_parts
from tlray.models.texts.files.reading import read_word_file
from tlray.models.texts.files.word_file import FileFormat, WordFile

_ABOUT = "about.json"
_FORMAT = 1
"""The version of the format of such a folder."""


@dataclass(frozen=True)
class WordVectors:
    """A vocabulary and the vectors of its words.

    Attributes:
        kind: of file that they came from.
        words: V, in the file's order.
        vectors_VD: float32, a file mapped into memory.
        counts_V: how often each word came in the corpus; None where the file does not say.
        sha256: of the words and the vectors.
        notes: what was left out when the file was read, for people.
        parts_PD: of parts of words; None where there are none.
        part_lengths: characters in the shortest and the longest part.
    """

    kind: FileFormat
    words: Sequence[str]
    vectors_VD: np.ndarray
    counts_V: np.ndarray | None
    sha256: str
    notes: tuple[str, ...] = ()
    parts_PD: np.ndarray | None = None
    part_lengths: tuple[int, int] = (0, 0)

    @property
    def length(self) -> int:
        """D, the length of a vector."""
        return int(self.vectors_VD.shape[1])

    @property
    def has_parts(self) -> bool:
        """Whether unknown words have vectors, of their parts."""
        return self.parts_PD is not None

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The place of each word in the vocabulary."""
        return dict(zip(self.words, range(len(self.words)), strict=True))

    def indexes(self, words: Sequence[str]) -> np.ndarray:
        """The place of each word in the vocabulary, int64; -1 for unknown ones."""
        get = self.index.get
        return np.fromiter((get(word, -1) for word in words), np.int64, len(words))

    def take(self, index_M: np.ndarray) -> np.ndarray:
        """Vectors_MD of words, by their numbers."""
        taken: np.ndarray = self.vectors_VD[index_M]
        return taken

    def from_parts(self, word: str) -> np.ndarray | None:
        """The vector_D of an unknown word: the mean of its parts'; None where it has none."""
        assert self.parts_PD is not None
        rows = fasttext_parts(word, self.part_lengths, len(self.parts_PD))
        if not len(rows):
            return None
        total_D = np.zeros(self.length, np.float32)
        for row in rows:
            total_D += self.parts_PD[row]
        return total_D / len(rows)

    @property
    def are_lowercase(self) -> bool:
        """Whether no word has a capital letter."""
        return all(word == word.lower() for word in self.words)


def open_word_vectors(path: Path, where: str) -> WordVectors:
    """The vectors of a file; read, checked and kept on this machine the first time.

    Args:
        path: of the file.
        where: how the user named it, for messages.

    Raises:
        WeightsError: it is none of a kind that can be read, or is damaged.
    """
    folder = _folder_of(path)
    if not (folder / _ABOUT).exists():
        _keep(folder, path, where)
    about = json.loads((folder / _ABOUT).read_text())
    words = _read_words(folder / "words.arrow")
    return WordVectors(
        kind=about["kind"],
        words=words["word"].to_pylist(),
        vectors_VD=_mapped(folder / "vectors.f32", about["dimensions"]),
        counts_V=words["count"].to_numpy() if about["has_counts"] else None,
        sha256=about["sha256"],
        notes=tuple(about["notes"]),
        parts_PD=_mapped(folder / "parts.f32", about["dimensions"]) if about["has_parts"] else None,
        part_lengths=tuple(about["part_lengths"]),
    )


def _folder_of(path: Path) -> Path:
    """Where the vectors of a file are kept, for the file as it is now."""
    stat = path.stat()
    key = f"{_FORMAT}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    root = Path(tempfile.gettempdir()) / f"tlray-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root / f"words-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _keep(folder: Path, path: Path, where: str) -> None:
    """Read a file into a folder that is there as a whole or not at all; of two processes that do so the first one's stays."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="reading-") as name:
        made = Path(name) / "made"
        made.mkdir(mode=0o700)
        file: WordFile = read_word_file(path, where, made / "vectors.f32", made / "parts.f32")
        table = pa.table(
            {"word": pa.array(file.words, pa.large_string()), "count": pa.array(file.counts or [0] * len(file.words))}
        )
        with pa.ipc.new_file(made / "words.arrow", table.schema) as writer:
            writer.write_table(table)
        about = {
            "kind": file.kind,
            "dimensions": file.dimensions,
            "has_counts": file.counts is not None,
            "has_parts": file.part_lengths is not None,
            "part_lengths": file.part_lengths or (0, 0),
            "notes": file.notes,
            "sha256": _hash(made, file.words, file.dimensions),
        }
        (made / _ABOUT).write_text(json.dumps(about))
        try:
            made.rename(folder)
        except OSError:
            if not (folder / _ABOUT).exists():
                raise


def _hash(folder: Path, words: Sequence[str], dimensions: int) -> str:
    """Sha256 of dimensions, words and vectors, whatever kind of file they came from."""
    digest = hashlib.sha256(f"{dimensions}\n".encode())
    for word in words:
        digest.update(word.encode() + b"\n")
    for name in ("vectors.f32", "parts.f32"):
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
    return digest.hexdigest()


def _read_words(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _mapped(path: Path, dimensions: int) -> np.ndarray:
    return np.memmap(path, np.dtype("<f4"), "r").reshape(-1, dimensions)
