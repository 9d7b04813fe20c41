"""The whole way of texts, by the commands of images: from a file of documents to heads, predictions, neighbours, duplicates."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from gensim.models import KeyedVectors
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import tlray as library
from tests.photos import error_of, frame_of, result_of, tlray
from tests.texts.documents import documents, source_in

CHANCE_MARGIN = 0.2
"""A linear head must be so much above the share of the largest class, with the lower end of its 95 % interval."""


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    recipe = ["--recipe.backbone", f"gensim:{folder / 'w.bin'}", "--recipe.precision.storage", "full"]
    result = result_of(tlray("extract", "--local", *source_in(folder), "--table", folder / "t", *recipe))
    assert (result["listed"], result["ok"], result["failed"]) == (len(documents()), len(documents()), 0)
    return folder / "t"


@pytest.fixture(scope="module")
def labels(folder: Path, table: Path) -> tuple[Path, np.ndarray]:
    """A labels file that says which document is trained on, and that as an array in the frame's order."""
    frame = frame_of(table)
    sides = np.random.default_rng(0).choice(["train", "validation", "test"], len(frame), p=[0.6, 0.15, 0.25])
    pl.DataFrame({"uri": frame["uri"], "label": frame["label"], "side": sides}).write_csv(folder / "labels.csv")
    return folder / "labels.csv", sides


@pytest.fixture(scope="module")
def model(folder: Path, table: Path, labels: tuple[Path, np.ndarray]) -> dict:
    arguments = ["--labels", labels[0], "--split.column", "side", "--out", folder / "model"]
    return result_of(tlray("train", "--table", table, *arguments))


def test_rows_are_gensims_means_beside_their_texts(folder: Path, table: Path) -> None:
    theirs = KeyedVectors.load_word2vec_format(str(folder / "w.bin"), binary=True)
    frame = frame_of(table)
    texts = {name: (text, topic) for name, text, topic in documents()}
    for row in frame.sample(200, seed=1).iter_rows(named=True):
        text, topic = texts[row["uri"].rpartition("#")[2]]
        assert (row["text"], row["label"], row["width"], row["error"]) == (text, topic, None, None)
        words = re.findall(r"\w+", text.lower())
        expected_D = theirs.get_mean_vector(words, pre_normalize=False).astype(np.float32)
        np.testing.assert_array_equal(np.array(row["embedding"], np.float32), expected_D)
        assert row["unknown_fraction"] == np.float32(sum(word not in theirs for word in words) / len(words))
    assert result_of(tlray("verify", table))["ok"] == len(documents())


def test_a_linear_head_tells_topics_as_scikit_learn_does(table: Path, labels: tuple[Path, np.ndarray], model: dict) -> None:
    frame, sides = frame_of(table), labels[1]
    vectors, topics = np.array(frame["embedding"].to_list(), np.float32), frame["label"].to_numpy()
    of_train, of_validation, of_test = (sides == side for side in ("train", "validation", "test"))
    scaled = StandardScaler().fit(vectors[of_train]).transform(vectors)
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(scaled[of_train], topics[of_train]) for c in (0.01, 0.1, 1, 10)]
    best = max(fitted, key=lambda one: one.score(scaled[of_validation], topics[of_validation]))
    theirs, largest = best.score(scaled[of_test], topics[of_test]), max(np.unique(topics, return_counts=True)[1]) / len(topics)
    ours = model["metrics"]["test"]["accuracy"]
    print(f"test accuracy {ours}, scikit-learn {theirs:.4f}, of {of_test.sum()}; largest class {largest:.4f}")
    assert ours["low"] > largest + CHANCE_MARGIN
    assert ours["value"] > theirs - 0.005


def test_predictions_are_the_heads_of_new_texts(folder: Path, table: Path, model: dict) -> None:
    (folder / "new.jsonl").write_text(
        '{"body": "the graph has nodes and edges, and shortest paths between nodes"}\n{"body": "zzqx"}\n'
        '{"body": "a dataframe with columns and rows, grouped by a column"}\n', encoding="utf-8"
    )  # fmt: skip
    source = ["--source.uri", folder / "new.jsonl", "--source.text", "body", "--max-failed-fraction", "0.5"]
    result = result_of(tlray("predict", "--local", "--model", folder / "model", *source, "--out", folder / "p"))
    assert (result["ok"], result["failures"]) == (2, {"unknown_words": 1})
    frame = frame_of(folder / "p")
    assert frame["prediction"].to_list() == ["graphs", None, "tables"]
    assert frame["text"].to_list()[0].startswith("the graph")
    ours = library.Model(folder / "model").predict(frame["text"].drop_nulls().to_list())
    assert ours.labels.tolist() == ["graphs", "tables"]
    np.testing.assert_allclose(ours.to_pandas()["probability"], frame["probability"].drop_nulls(), rtol=1e-6)


def test_messages_call_texts_texts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"body": "zzqx"}\n', encoding="utf-8")
    source = ["--source.uri", tmp_path / "odd.jsonl", "--source.text", "body"]
    run = ["extract", "--local", *source, "--table", tmp_path / "t", "--recipe.backbone", f"gensim:{folder / 'w.bin'}"]
    tried = tlray(*run, "--dry-run")
    result_of(tried)
    assert "for the texts, of which 1 took" in tried.stderr and "images" not in tried.stderr
    assert "1 of 1 texts failed (1 unknown_words)" in error_of(tlray(*run), 3)


def test_neighbours_duplicates_and_the_encoder(folder: Path, table: Path) -> None:
    result_of(tlray("index", "--table", table, "--out", folder / "i"))
    frame = frame_of(table)
    vectors = np.array(frame["embedding"].to_list())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    at = [
        frame["uri"].to_list().index(f"file://{folder}/documents.csv#{name}")
        for name in ("networkx.pagerank", "torch.nn.Conv2d")
    ]
    answers = library.Index(folder / "i").search(uri=[frame["uri"][number] for number in at], k=5)
    for number, answer in zip(at, answers, strict=True):
        nearest = [each for each in np.argsort(-(vectors @ vectors[number])) if each != number][:5]
        np.testing.assert_allclose([hit.score for hit in answer.hits], (vectors @ vectors[number])[nearest], atol=1e-5)
    encoder = library.open(table).encoder()
    np.testing.assert_array_equal(
        encoder(frame["text"].head(5).to_list()), np.array(frame["embedding"].head(5).to_list(), np.float32)
    )
    by_vector = library.Index(folder / "i").search(vector=encoder("nodes and edges of a graph"), k=10)
    assert sum(hit.label == "graphs" for hit in by_vector[0].hits) >= 8
    assert "graph" in by_vector._repr_html_() and "networkx" in library.open(table)._repr_html_()
    shown = result_of(tlray("search", "--index", folder / "i", "--text", "nodes and edges of a graph", "-k", "3"))["answers"][
        0
    ]["hits"]
    assert [hit["uri"] for hit in shown] == [hit.uri for hit in by_vector[0].hits[:3]]
    texts = dict(zip(frame["uri"], frame["text"], strict=True))
    assert all(hit["text"] == texts[hit["uri"]][:500] for hit in shown)
    report = result_of(tlray("duplicates", "--index", folder / "i", "--cosine", "0.999"))
    assert report["rows"] == len(frame)


def test_a_file_that_changes_is_embedded_again_in_those_rows_alone(folder: Path, tmp_path: Path) -> None:
    def run() -> dict:
        source = ["--source.uri", tmp_path / "x.csv", "--source.text", "text", "--source.id", "id"]
        return result_of(
            tlray(
                "extract",
                "--local",
                *source,
                "--table",
                tmp_path / "t",
                "--recipe.backbone",
                f"gensim:{folder}/w.bin",
            )
        )

    pl.DataFrame({"id": ["a", "b", "c"], "text": ["the mean of values", "nodes", "columns of a table"]}).write_csv(
        tmp_path / "x.csv"
    )
    assert run()["new"] == 3
    pl.DataFrame({"id": ["d", "c", "b"], "text": ["edges", "columns of a table", "rows"]}).write_csv(tmp_path / "x.csv")
    again = run()
    assert {name: again[name] for name in ("new", "changed", "deleted", "unchanged")} == {
        "new": 1, "changed": 1, "deleted": 1, "unchanged": 1,
    }  # fmt: skip
    assert sorted(frame_of(tmp_path / "t")["text"]) == ["columns of a table", "edges", "rows"]
    assert run()["unchanged"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source.text", "text", "--recipe.backbone", "timm:test_resnet", "--recipe.weights", "random:0"], "embeds images"),
        (["--recipe.backbone", "gensim:{w}"], "give source.text"),
        (["--source.text", "nope", "--recipe.backbone", "gensim:{w}"], "no column 'nope' of texts"),
        (["--source.text", "text", "--recipe.backbone", "gensim:/none.bin"], "there is no file /none.bin"),
        (["--source.text", "text", "--recipe.backbone", "gensim:"], "names no weights"),
        (["--source.text", "text", "--recipe.backbone", "gensim:{w}", "--recipe.pool", "gem"], "pool gem"),
        (["--source.text", "text", "--source.encoding", "klingon", "--recipe.backbone", "gensim:{w}"], "source.encoding"),
        (["--source.text", "text", "--recipe.backbone", "model2vec:/none"], "there is no folder /none"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_any_work(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [each.format(w=folder / "w.bin") for each in arguments]
    assert message in error_of(
        tlray("extract", "--local", "--source.uri", folder / "documents.csv", "--table", tmp_path / "t", *given)
    )
    assert not (tmp_path / "t").exists()


def test_images_are_not_searched_by_in_a_table_of_texts(folder: Path, table: Path) -> None:
    result_of(tlray("index", "--table", table, "--out", folder / "i"))
    (folder / "x.jpg").write_bytes(b"x")
    assert "embeds texts" in error_of(tlray("search", "--index", folder / "i", "--image", folder / "x.jpg"))
