"""Files of word vectors: gensim's own test data, read as gensim reads them; and files that lie, which it takes."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.models.fasttext import load_facebook_vectors
from gensim.test.utils import datapath

from tlray.errors import WeightsError
from tlray.models.texts.word_vectors import WordVectors, open_word_vectors

WORD2VEC = {
    "word2vec_pre_kv_c": {}, "toy-model.vec": {}, "lee_fasttext.vec": {}, "crime-and-punishment.vec": {},
    "high_precision.kv.txt": {}, "EN.1-10.cbow1_wind5_hs0_neg10_size300_smpl1e-05.txt": {},
    "euclidean_vectors.bin": {"binary": True}, "poincare_vectors.bin": {"binary": True},
    "high_precision.kv.bin": {"binary": True},
    "test_glove.txt": {"no_header": True},
}  # fmt: skip
FASTTEXT = ["crime-and-punishment.bin", "toy-model.bin", "toy-model-pretrained.bin", "lee_fasttext_new.bin"]


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def opened(path: Path) -> WordVectors:
    return open_word_vectors(path, path.name)


@pytest.mark.parametrize("name", WORD2VEC)
def test_words_and_vectors_are_exactly_gensims(name: str) -> None:
    theirs = KeyedVectors.load_word2vec_format(datapath(name), **WORD2VEC[name])
    ours = opened(Path(datapath(name)))
    assert list(ours.words) == theirs.index_to_key
    np.testing.assert_array_equal(ours.vectors_VD, theirs.vectors)
    again = opened(Path(datapath(name)))  # now from the machine's own copy
    np.testing.assert_array_equal(again.vectors_VD, theirs.vectors)
    assert again.sha256 == ours.sha256 and isinstance(again.vectors_VD, np.memmap)


@pytest.mark.parametrize("name", FASTTEXT)
def test_fasttext_gives_unknown_words_the_vectors_that_gensim_gives_them(name: str) -> None:
    theirs, ours = load_facebook_vectors(datapath(name)), opened(Path(datapath(name)))
    assert list(ours.words) == theirs.index_to_key
    np.testing.assert_array_equal(ours.vectors_VD, theirs.vectors)
    assert ours.counts_V is not None
    assert ours.counts_V.tolist() == [theirs.get_vecattr(word, "count") for word in theirs.index_to_key]
    for word in ("unheardof", "zzqx", "größe", "语言"):
        assert word not in theirs.key_to_index
        vector = ours.from_parts(word)
        assert vector is not None
        np.testing.assert_array_equal(vector, theirs.get_vector(word))


def test_the_hash_is_of_words_and_vectors_whatever_the_file(tmp_path: Path) -> None:
    vectors = KeyedVectors.load_word2vec_format(datapath("word2vec_pre_kv_c"))
    vectors.save_word2vec_format(str(tmp_path / "x.bin"), binary=True)
    vectors.save_word2vec_format(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress((tmp_path / "x.txt").read_bytes()))
    files = [Path(datapath("word2vec_pre_kv_c")), tmp_path / "x.bin", tmp_path / "x.txt", tmp_path / "x.txt.gz"]
    hashes = {opened(path).sha256 for path in files}
    assert len(hashes) == 1
    vectors.vectors[3, 2] += 1
    vectors.save_word2vec_format(str(tmp_path / "y.bin"), binary=True)
    assert opened(tmp_path / "y.bin").sha256 not in hashes


def binary(header: bytes = b"2 3\n", rows: tuple[bytes, ...] = (b"a", b"b"), values: tuple[float, ...] = (1, 2, 3)) -> bytes:
    return header + b"".join(word + b" " + struct.pack("<3f", *values) + b"\n" for word in rows)


HOSTILE = {
    "a count that is too low, of which gensim reads what it says": (binary(b"1 3\n"), "first line that it has 1 words"),
    "a count that is too high": (binary(b"3 3\n"), "take at least 39 bytes"),
    "a header that claims terabytes": (binary(b"99999999999 300\n"), "take at least"),
    "a header that claims no dimension": (b"2 0\na\nb\n", "0 dimensions"),
    "not a number, which gensim takes": (binary(values=(1, float("nan"), 3)), "'a' is not finite"),
    "an infinity in text": (b"1 2\na 1 inf\n", "'a' is not finite"),
    "text that ends early": (b"3 2\na 1 2\nb 1 2\n", "it has 3 words, but has 2"),
    "text that has more": (b"1 2\na 1 2\nb 1 2\n", "it has 1 words, but has 2"),
    "a line that is too short": (b"2 2\na 1 2\nb 1\n", "word 2: expected a word and 2 numbers"),
    "binary that ends in a vector": (binary()[:-6], "take at least|ends, or is damaged"),
    "a word that is not UTF-8": (b"1 2\n\xff\xfe 1 2\n", "word 1 is not UTF-8"),
    "a pickle, as gensim saves": (b"\x80\x04\x95\x10", "is a pickle.*save_word2vec_format"),
    "a page": (b"<!DOCTYPE html><html>", "is a web page"),
    "prose": (b"the quick brown fox\n", "is no file of word vectors"),
    "nothing": (b"", "is empty"),
    "half a gzip file": (gzip.compress(binary())[:20], "not a whole gzip file"),
    "a gzipped pickle": (gzip.compress(b"\x80\x04\x95\x10"), "is a pickle"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_lies_is_refused(tmp_path: Path, what: str) -> None:
    data, message = HOSTILE[what]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path / "x")
    assert not list(tmp_path.glob("tlray-*/words-*"))


def test_gensim_itself_takes_what_is_refused_here(tmp_path: Path) -> None:
    (tmp_path / "low").write_bytes(binary(b"1 3\n"))
    assert len(KeyedVectors.load_word2vec_format(str(tmp_path / "low"), binary=True)) == 1
    (tmp_path / "nan").write_bytes(binary(values=(1, float("nan"), 3)))
    assert np.isnan(KeyedVectors.load_word2vec_format(str(tmp_path / "nan"), binary=True).vectors).any()


def _changed(name: str, offset: int, value: bytes) -> bytes:
    data = bytearray(Path(datapath(name)).read_bytes())
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, struct.pack("<i", 13), "format 13"),
        (8, struct.pack("<i", 2**30), "it is damaged"),  # dimensions
        (8 + 8 * 4, struct.pack("<i", 2**31 - 1), "it is damaged"),  # buckets
        (8 + 7 * 4, struct.pack("<i", 3), "classifier"),
        (8 + 56, struct.pack("<ii", 2**31 - 1, 2**31 - 1), "it is damaged"),  # words
    ],
)
def test_a_fasttext_header_that_lies_is_refused_before_gensim_allocates(
    tmp_path: Path, offset: int, value: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("gensim was asked")

    monkeypatch.setattr("gensim.models.fasttext.load_facebook_vectors", never)
    (tmp_path / "x.bin").write_bytes(_changed("toy-model.bin", offset, value))
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path / "x.bin")


@pytest.mark.parametrize("size", [3, 20, 80, 110, 400, 2000])
def test_a_cut_fasttext_file_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.bin").write_bytes(Path(datapath("toy-model.bin")).read_bytes()[:size])
    with pytest.raises(WeightsError):
        opened(tmp_path / "x.bin")


def test_words_that_come_twice_and_words_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a 1 2\nnew york 3 4\na 5 6\n7 7 8\n", encoding="utf-8")
    vectors = opened(tmp_path / "x.txt")
    assert list(vectors.words) == ["a", "new york", "7"]
    assert vectors.vectors_VD.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert re.search(r"1 words come more than once", vectors.notes[0])
