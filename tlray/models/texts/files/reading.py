"""Reading a file of word vectors of any kind: its content tells which.

gensim's own reader is not used for word2vec's and GloVe's files: of a header that gives too few words it reads these and no
more, what a header claims it allocates, and vectors that are not numbers it takes. Here all of a file counts, and nothing is
allocated but what was read.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from tlray.errors import WeightsError, first_line
from tlray.models.texts.files.fasttext import read_fasttext
from tlray.models.texts.files.word2vec import read_word2vec
from tlray.models.texts.files.word_file import WordFile

_CONVERT = (
    'python -c "import sys; from gensim.models import KeyedVectors as K; v = K.load(sys.argv[1]); '
    "getattr(v, 'wv', v).save_word2vec_format(sys.argv[2], binary=True)\" IN OUT.bin"
)
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")
"""How a fastText model begins (`FASTTEXT_FILEFORMAT_MAGIC_INT32` of its fasttext.cc)."""

_HEAD_BYTES = 512
_COPY_BYTES = 2**24
_MOST_EXPANDED_BYTES = 2**40


def read_word_file(path: Path, where: str, vectors: Path, parts: Path) -> WordFile:
    """Read a file of word vectors.

    Args:
        path: of the file; a gzipped one is unpacked first.
        where: how the user named it, for messages.
        vectors: where to write the words' vectors, float32, row after row.
        parts: likewise those of fastText's parts of words.

    Raises:
        WeightsError: it is of no known kind, is damaged, or claims what it does not hold.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        return _unpacked(path, where, lambda copy: read_word_file(copy, where, vectors, parts))
    if not head:
        raise WeightsError(f"{where} is empty (0 bytes); fetch it again")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise WeightsError(
            f"{where} is a pickle, as gensim saves its own models; reading one can run code, so it is not read. Where you "
            f"trust it, convert it: {_CONVERT}"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{where} is a web page, as servers send in place of a file; fetch the file itself")
    if head.startswith(_FASTTEXT_MAGIC):
        return read_fasttext(path, where, vectors, parts)
    return read_word2vec(path, where, vectors)


def _unpacked(path: Path, where: str, read: Callable[[Path], WordFile]) -> WordFile:
    with tempfile.NamedTemporaryFile(prefix="tlray-") as copy:
        try:
            with gzip.open(path) as packed:
                while block := cast("BinaryIO", packed).read(_COPY_BYTES):
                    copy.write(block)
                    if copy.tell() > _MOST_EXPANDED_BYTES:
                        raise WeightsError(f"{where} unpacks to more than {_MOST_EXPANDED_BYTES} bytes")
        except (EOFError, OSError) as error:
            raise WeightsError(f"{where} is not a whole gzip file: {first_line(error)}; fetch it again") from error
        copy.flush()
        return read(Path(copy.name))
