"""fastText's binary files: a header that is checked against the file's size, then gensim's reader.

The layout is that of fastText's own `FastText::saveModel`, `Args::save`, `Dictionary::save` and `DenseMatrix::save`.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from tlray.errors import WeightsError, first_line
from tlray.extras import require
from tlray.models.texts.files.word_file import WordFile

_MAGIC = struct.Struct("<ii")
_ARGUMENTS = struct.Struct("<12id")
"""dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t."""
_DICTIONARY = struct.Struct("<iiiqq")
"""Entries, words, labels, tokens of the corpus, entries that were pruned."""
_MATRIX = struct.Struct("<?qq")
_VERSIONS = (11, 12)
_SUPERVISED = 3
_LONGEST_WORD_BYTES = 4096
_COUNT_AND_KIND_BYTES = 9
_ROWS = 65_536


def read_fasttext(path: Path, where: str, vectors: Path, parts: Path) -> WordFile:
    """Read a fastText model; see `tlray.models.texts.files.reading.read_word_file`.

    Raises:
        ConfigError: gensim is not installed.
        WeightsError: the file is damaged, or of a kind without word vectors.
    """
    require("text", "gensim", what=f"fastText's {where}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _check(data, where)
        except struct.error as error:
            raise WeightsError(f"{where} ends within its header; fetch it again") from error
    from gensim.models.fasttext import load_facebook_vectors

    try:
        found = load_facebook_vectors(str(path))
    except (ValueError, AssertionError, NotImplementedError, EOFError, OSError, struct.error, UnicodeError) as error:
        raise WeightsError(f"{where} cannot be read as a fastText file: {first_line(error)}; fetch it again") from error
    _write(vectors, found.vectors, where)
    has_parts = bool(found.bucket) and found.max_n > 0
    if has_parts:
        _write(parts, found.vectors_ngrams, where)
    return WordFile(
        "fasttext",
        list(found.index_to_key),
        int(found.vector_size),
        counts=[int(found.get_vecattr(word, "count")) for word in found.index_to_key],
        part_lengths=(int(found.min_n), int(found.max_n)) if has_parts else None,
    )


def fasttext_parts(word: str, lengths: tuple[int, int], buckets: int) -> list[int]:
    """The rows of a word's parts, by fastText's hash (`gensim.models.fasttext.ft_ngram_hashes`)."""
    from gensim.models.fasttext import ft_ngram_hashes

    rows: list[int] = ft_ngram_hashes(word, *lengths, buckets)
    return rows


def _check(data: mmap.mmap, where: str) -> None:
    """Hold what the header claims against the file's size, before anything of that size is allocated."""
    at, size_bytes = 0, len(data)
    _, version = _MAGIC.unpack_from(data, at)
    dimensions, *_, model, bucket, shortest, longest, _, _ = _ARGUMENTS.unpack_from(data, at := at + _MAGIC.size)
    entries, words, labels, tokens, pruned = _DICTIONARY.unpack_from(data, at := at + _ARGUMENTS.size)
    if version not in _VERSIONS:
        raise WeightsError(
            f"{where} is of fastText's format {version}; expected {_VERSIONS[-1]}: save it again by a newer fastText"
        )
    if model == _SUPERVISED or labels:
        raise WeightsError(f"{where} is a fastText classifier; expected word vectors, of its skipgram or cbow")
    numbers = (dimensions, entries, words, bucket, tokens, shortest, longest)
    if min(numbers) < 0 or not dimensions or not words or entries != words or shortest > longest:
        raise _damaged(where, f"{words} words of {dimensions} dimensions, {bucket} parts")
    # Each word takes 10 bytes or more in the dictionary, and a row in the first matrix; parts have rows there, too.
    if 10 * words + 4 * dimensions * (words + bucket) > size_bytes:
        raise _damaged(
            where, f"{words} words and {bucket} parts of {dimensions} dimensions, more than its {size_bytes} bytes hold"
        )
    at += _DICTIONARY.size
    for _ in range(entries):
        end = data.find(b"\x00", at, at + _LONGEST_WORD_BYTES)
        if end < 0:
            raise _damaged(where, f"a word of more than {_LONGEST_WORD_BYTES} bytes, or beyond its end")
        at = end + 1 + _COUNT_AND_KIND_BYTES
    at += 8 * max(pruned, 0)
    is_packed, rows, columns = _MATRIX.unpack_from(data, at)
    if is_packed:
        raise WeightsError(f"{where} is a quantised fastText file (.ftz), whose vectors are not kept; expected a .bin file")
    if (rows, columns) != (words + bucket, dimensions) or at + _MATRIX.size + 4 * rows * columns > size_bytes:
        raise _damaged(where, f"{rows} vectors of {columns} dimensions for {words} words and {bucket} parts")


def _damaged(where: str, claim: str) -> WeightsError:
    return WeightsError(f"{where} says of itself that it has {claim}: it is damaged; fetch it again")


def _write(path: Path, values: np.ndarray, where: str) -> None:
    with path.open("wb") as file:
        for start in range(0, len(values), _ROWS):
            block = np.ascontiguousarray(values[start : start + _ROWS], "<f4")
            if not np.isfinite(block).all():
                raise WeightsError(f"{where} has vectors that are not finite; restore the file")
            file.write(block.tobytes())
