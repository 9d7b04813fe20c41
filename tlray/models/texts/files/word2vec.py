r"""word2vec's binary and text files (https://code.google.com/archive/p/word2vec), fastText's `.vec` and GloVe's text files.

Text: `word 0.1 -0.2 ...` a line; word2vec and fastText put a line with the numbers of words and of dimensions first.
Binary: such a first line, then for each word its bytes, a space, the dimensions as float32, and perhaps a line feed.
"""

import mmap
import re
from pathlib import Path

import numpy as np

from tlray.errors import WeightsError
from tlray.models.texts.files.word_file import VectorWriter, WordFile

_COUNTS = re.compile(rb"([0-9]{1,18}) ([0-9]{1,9})[ \r]*\n")
_LONGEST_WORD_BYTES = 4096
_LINE_BYTES = 2**20
"""The longest line of text that is read: more than 40,000 dimensions."""


def read_word2vec(path: Path, where: str, vectors: Path) -> WordFile:
    """Read a file of one of these kinds; see `tlray.models.texts.files.reading.read_word_file`."""
    writer = VectorWriter(vectors, where)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        counts = _COUNTS.match(data[:64])
        if counts is None:
            dimensions = _read_text(data, 0, None, None, where, writer)
        else:
            rows, dimensions = int(counts[1]), int(counts[2])
            if not rows or not dimensions:
                raise WeightsError(
                    f"{where} says of itself that it has {rows} words of {dimensions} dimensions; check that it is whole"
                )
            if _is_text(data, counts.end(), dimensions):
                _read_text(data, counts.end(), rows, dimensions, where, writer)
            else:
                _read_binary(data, counts.end(), rows, dimensions, where, writer)
    return WordFile("word2vec", writer.close(), dimensions, notes=writer.notes())


def _is_text(data: mmap.mmap, start: int, dimensions: int) -> bool:
    """Whether a file goes on with a line of text that has a word and as many numbers."""
    end = data.find(b"\n", start, start + _LINE_BYTES)
    parts = data[start : len(data) if end < 0 else end].rstrip(b" \r").rsplit(b" ", dimensions)
    return len(parts) == dimensions + 1 and _floats(b" ".join(parts[1:]), dimensions) is not None


def _read_text(data: mmap.mmap, start: int, rows: int | None, dimensions: int | None, where: str, writer: VectorWriter) -> int:
    """Read lines to the end of the file; the number of dimensions, which the first line tells where nobody says it."""
    count = 0
    data.seek(start)
    while line := data.readline():
        line = line.rstrip(b" \r\n")
        if not line:
            continue
        if dimensions is None:
            dimensions = _dimensions_of(line, where)
        count += 1
        parts = line.rsplit(b" ", dimensions)
        vector = _floats(b" ".join(parts[1:]), dimensions) if len(parts) == dimensions + 1 else None
        if vector is None:
            raise WeightsError(
                f"{where}, word {count}: expected a word and {dimensions} numbers, found "
                f"{line[:60].decode(errors='replace')!r}; check that it is a whole file of word vectors"
            )
        writer.add(_decoded(parts[0], count, where), vector.tobytes())
    if rows is not None and count != rows:
        raise _miscounted(where, rows, count)
    if dimensions is None:
        raise WeightsError(f"{where} has no line of text in it; check that it is a file of word vectors")
    return dimensions


def _dimensions_of(line: bytes, where: str) -> int:
    """The numbers at the end of GloVe's first line; a word may itself be a number, and then has no other before it."""
    parts = line.split(b" ")
    count = 0
    while count < len(parts) - 1 and _floats(parts[-1 - count], 1) is not None:
        count += 1
    if not count:
        raise WeightsError(
            f"{where} is no file of word vectors: expected word2vec's (binary or text), GloVe's or fastText's, whose lines are "
            f"a word and its numbers; it begins with {line[:60].decode(errors='replace')!r}"
        )
    return count


def _read_binary(data: mmap.mmap, at: int, rows: int, dimensions: int, where: str, writer: VectorWriter) -> None:
    size = 4 * dimensions
    if rows * (size + 1) > len(data) - at:
        raise WeightsError(
            f"{where} says of itself that it has {rows} words of {dimensions} dimensions, which take at least "
            f"{rows * (size + 1)} bytes; it has {len(data) - at}: fetch it again"
        )
    for count in range(1, rows + 1):
        space = data.find(b" ", at, at + _LONGEST_WORD_BYTES)
        end = space + 1 + size
        if space < 0 or end > len(data):
            raise WeightsError(f"{where} ends, or is damaged, in word {count} of {rows}; fetch it again")
        writer.add(_decoded(data[at:space].lstrip(b"\n"), count, where), data[space + 1 : end])
        at = end
    if data[at:].strip(b"\n\r\x00 "):
        raise _miscounted(where, rows, None)


def _floats(text: bytes, count: int) -> np.ndarray | None:
    """Numbers between spaces, as many as expected, else None."""
    try:
        values = np.array(text.split(b" "), np.float64)
    except ValueError:
        return None
    return values.astype("<f4") if len(values) == count else None


def _decoded(word: bytes, count: int, where: str) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        raise WeightsError(
            f"{where}: word {count} is not UTF-8 ({word[:40]!r}); where gensim reads it with unicode_errors, save it again "
            "with save_word2vec_format"
        ) from error


def _miscounted(where: str, rows: int, count: int | None) -> WeightsError:
    found = "has more" if count is None else f"has {count}"
    return WeightsError(
        f"{where} says in its first line that it has {rows} words, but {found}; correct the line, or fetch it again"
    )
