"""Documents in a file, and word vectors that gensim learned from them, for all tests of this folder."""

import csv
from pathlib import Path

import pytest
from gensim.models import Word2Vec
from gensim.utils import simple_preprocess

from tests.texts.documents import documents


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`documents.csv` with name, text and topic of each, and `w.bin`, word2vec's binary format."""
    folder = tmp_path_factory.mktemp("texts")
    rows = documents()
    with (folder / "documents.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "text", "topic"), *rows])
    words = [simple_preprocess(text, max_len=30) for _, text, _ in rows]
    vectors = Word2Vec(words, vector_size=64, min_count=2, epochs=5, seed=1, workers=1).wv
    vectors.save_word2vec_format(str(folder / "w.bin"), binary=True)
    return folder
