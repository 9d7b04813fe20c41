"""Pictures found by words: from the command line, in Python and through the service, with a network trained here."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch

import tlray as api
from tests.photos import error_of, result_of, tlray, write_photos
from tests.search.service.serving import Client, serving
from tests.words.conftest import Collection
from tests.words.pictures import HELD_OUT, PAIRS
from tests.words.towers import BUCKETS, MOST_WORDS, numbers_of
from tlray.errors import ConfigError, QueryError, WeightsError
from tlray.search.query.searcher import Searcher

CHANCE = 1 / len(PAIRS)
LEAST_RECALL = 0.75
"""Of the pictures of a colour and a name that training never saw together; chance would find one in 96."""


def text_of(pair: tuple[str, str]) -> str:
    return "a photo of a {} {}.".format(*pair)


def plain_texts(collection: Collection, texts: list[str]) -> np.ndarray:
    """The vectors of texts from the tensors of the file alone, in NumPy."""
    state = {name: tensor.double().numpy() for name, tensor in safetensors.torch.load_file(collection.weights).items()}
    mean_BD = np.stack([state["text.words.weight"][numbers_of(text)[:MOST_WORDS]].mean(axis=0) for text in texts])
    hidden = np.maximum(mean_BD @ state["text.layers.0.weight"].T + state["text.layers.0.bias"], 0)
    return hidden @ state["text.layers.2.weight"].T + state["text.layers.2.bias"]


def plain_answers(collection: Collection, texts: list[str], k: int) -> tuple[list[list[str]], np.ndarray]:
    """URIs and cosines of the nearest rows, from what Polars reads."""
    frame = pl.scan_delta(str(collection.table)).collect()
    rows_ND, texts_BD = np.array(frame["embedding"].to_list(), np.float64), plain_texts(collection, texts)
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    cosines_BN = texts_BD @ rows_ND.T / np.linalg.norm(texts_BD, axis=1, keepdims=True)
    order_BK = np.argsort(-cosines_BN, axis=1)[:, :k]
    return [[frame["uri"][int(at)] for at in row] for row in order_BK], np.take_along_axis(cosines_BN, order_BK, axis=1)


def search(collection: Collection, *arguments: object) -> dict:
    return result_of(tlray("search", collection.index, *map(str, arguments)))


@pytest.fixture(scope="module")
def client(collection: Collection) -> Iterator[Client]:
    with serving(collection.index, max_batch=30) as (client, _):
        yield client


def test_words_of_the_vocabulary_do_not_share_a_number() -> None:
    words = {word for pair in PAIRS for word in pair} | {"a", "the", "photo", "picture", "of"}
    assert len({number for word in words for number in numbers_of(word)}) == len(words) < BUCKETS


def test_pictures_that_training_never_saw_are_found(collection: Collection) -> None:
    texts = [text_of(pair) for pair in HELD_OUT]
    answers = search(collection, "--text", *texts, "-k", 5)["answers"]
    assert [answer["query"] for answer in answers] == texts
    found = [[hit["uri"] for hit in answer["hits"]] for answer in answers]
    recall = np.mean([uris[0] == collection.uri(*pair) for uris, pair in zip(found, HELD_OUT, strict=True)])
    print(f"R@1 of {len(HELD_OUT)} unseen pairs among {len(PAIRS)} pictures: {recall:.2f}, chance {CHANCE:.3f}")
    assert recall >= LEAST_RECALL
    uris, cosines_BK = plain_answers(collection, texts, 5)
    assert found == uris
    assert np.allclose([[hit["score"] for hit in answer["hits"]] for answer in answers], cosines_BK, atol=2e-3)


def test_python_and_the_service_answer_as_the_command(collection: Collection, client: Client) -> None:
    texts = [text_of(pair) for pair in HELD_OUT[:20]]
    theirs = [answer["hits"] for answer in search(collection, "--text", *texts, "-k", 4)["answers"]]
    index = api.Index(collection.index)
    ours = index.search(text=texts, k=4)
    assert [answer.query for answer in ours] == texts
    assert [[hit["uri"] for hit in answer["hits"]] for answer in ours.to_dict()["answers"]] == uris_of(theirs)
    assert [hit.uri for hit in index.search(text=texts[0], k=4)[0].hits] == [hit.uri for hit in ours[0].hits]
    assert {hit.label for hit in index.search(text="a red box", k=9, label=["blue", "green"])[0].hits} <= {"blue", "green"}
    queries = [{"text": text} for text in texts]
    answer = client.json("POST", "/api/search", {"queries": queries, "k": 4})
    assert uris_of(answer["answers"]) == uris_of(theirs) and answer["cut_texts"] == 0
    assert answer["queries"] == [None] * len(texts)
    mixed = [{"uri": collection.uri("red", "cat")}, {"text": texts[3]}, {"label": "red"}, {"text": texts[1]}]
    answers = client.json("POST", "/api/search", {"queries": mixed, "k": 4, "labels": []})["answers"]
    assert uris_of([answers[1], answers[3]]) == uris_of([theirs[3], theirs[1]])


def uris_of(answers: list[list[dict]]) -> list[list[str]]:
    return [[hit["uri"] for hit in hits] for hits in answers]


def test_answers_as_a_file(collection: Collection, tmp_path: Path) -> None:
    result = search(collection, "--text", "a red 7", "a blue cat", "-k", 2, "--label", "green", "--out", tmp_path / "a.parquet")
    rows = pl.read_parquet(tmp_path / "a.parquet")
    assert result["queries"] == 2 and rows["query"].to_list() == ["a red 7"] * 2 + ["a blue cat"] * 2
    assert set(rows["label"]) == {"green"}


def test_the_tables_encoder_embeds_texts(collection: Collection) -> None:
    encoder = api.open(collection.table).encoder()
    texts = ["a red cat", "7"]
    vectors_BD = encoder.encode_text(texts)
    assert vectors_BD.dtype == np.float32 and np.allclose(vectors_BD, plain_texts(collection, texts), atol=1e-5)
    assert np.allclose(encoder.encode_text("7"), vectors_BD[1:], atol=1e-5) and encoder.encode_text([]).shape == (0, 64)
    unit = api.Encoder("towers:words", weights=str(collection.weights), normalize=True).encode_text(texts)
    assert np.allclose(unit, vectors_BD / np.linalg.norm(vectors_BD, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ConfigError, match="text: expected text"):
        encoder.encode_text(3)
    with pytest.raises(ConfigError, match="no text tower"):
        api.Encoder("timm:test_resnet", weights="random:1").encode_text("7")
    with pytest.raises(ConfigError, match="layer 9"):
        api.Encoder("towers:words", weights=str(collection.weights), taps=["9"]).encode_text("7")


def test_texts_that_are_empty_long_or_strange(collection: Collection, client: Client) -> None:
    long = "a red cat " * 400
    outcome = tlray("search", collection.index, "--text", long, "a blue dog", "-k", "3")
    answers = result_of(outcome)["answers"]
    assert uris_of([answers[0]["hits"]]) == plain_answers(collection, [long], 3)[0]
    assert "1 of 2 texts" in outcome.stderr
    answer = client.json("POST", "/api/search", {"queries": [{"text": long}, {"text": "a blue dog"}], "k": 3})
    assert answer["cut_texts"] == 1 and uris_of(answer["answers"]) == [[hit["uri"] for hit in one["hits"]] for one in answers]
    for text in ("猫 🐈 \u202e", "!!!", "--flag", "{}", "\x00"):
        assert len(api.Index(collection.index).search(text=text, k=3)[0].hits) == 3
    for text in ("", "  \n"):
        assert "text 1 (from 0) is" in error_of(tlray("search", collection.index, "--text", "cat", text))
        with pytest.raises(QueryError, match="expected words"):
            api.Index(collection.index).search(text=text)
        assert client("POST", "/api/search", {"queries": [{"text": text}]})[0] == 422
    assert client("POST", "/api/search", {"queries": [{"text": "x" * 4097}]})[0] == 422
    assert client("POST", "/api/search", {"queries": [{"text": "x", "id": 1}]})[0] == 422
    assert client("POST", "/api/search", {"queries": [{"text": "x"}] * 31})[0] == 422
    assert client("POST", "/api/search", {"queries": [{"text": "\ud800"}]})[0] == 422
    assert "one kind of query" in error_of(tlray("search", collection.index, "--text", "cat", "--by-label", "red"))


def test_where_words_cannot_be_searched_by(collection: Collection, tmp_path: Path) -> None:
    """Each is said in one line, and which backbones have a text tower."""
    write_photos(tmp_path / "photos", 4)
    recipe = ["--backbone", "timm:test_resnet", "--weights", "random:1"]
    result_of(tlray("extract", tmp_path / "photos", tmp_path / "t", "--local", *recipe))
    result_of(tlray("index", tmp_path / "t", tmp_path / "i"))
    message = error_of(tlray("search", tmp_path / "i", "--text", "a cat"))
    assert "timm:test_resnet has no text tower" in message and "openclip:" in message
    with serving(tmp_path / "i") as (client, _):
        assert client.json("GET", "/api/index")["words"] is False
        status, data = client("POST", "/api/search", {"queries": [{"text": "a cat"}]})
        assert status == 422 and "texts are not compared" in json.loads(data)["detail"]
    result_of(tlray("index", collection.table, tmp_path / "l2", "--metric", "l2"))
    assert "words find images by cosine" in error_of(tlray("search", tmp_path / "l2", "--text", "a cat"))
    assert not Searcher.open(str(tmp_path / "l2")).takes_texts and Searcher.open(str(collection.index)).takes_texts
    taps = ["--taps", "9", "10", "--table", tmp_path / "two"]
    result_of(tlray("extract", collection.pictures / "red", "--local", *collection.recipe, *taps))
    result_of(tlray("index", tmp_path / "two", tmp_path / "of9", "--column", "embedding_9"))
    assert "use its column embedding_10" in error_of(tlray("search", tmp_path / "of9", "--text", "a cat"))
    result_of(tlray("index", tmp_path / "two", tmp_path / "of10", "--column", "embedding_10"))
    assert result_of(tlray("search", tmp_path / "of10", "--text", "a 7"))["answers"][0]["hits"]


def test_the_text_tower_is_loaded_once_and_only_for_words(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tlray")  # says, should it fail, why the tower could not be loaded
    import tlray.models.encoder.text as module

    loaded, plain = [], module.open_text_encoder
    fault: list[Exception] = [WeightsError("the weights are gone")]

    def loading(*arguments: object) -> object:
        loaded.append(1)
        if fault:
            raise fault.pop()
        return plain(*arguments)

    monkeypatch.setattr(module, "open_text_encoder", loading)
    monkeypatch.setattr("tlray.search.service.backend.words.RETRY_SECONDS", 0.0)
    asked = {"queries": [{"text": "a red 7"}]}
    with serving(collection.index, images=False) as (client, service):
        assert client.json("GET", "/api/index")["words"] is True
        client.json("POST", "/api/search", {"queries": [{"label": "red"}]})
        assert loaded == []
        status, data = client("POST", "/api/search", asked)
        assert status == 503 and "service's log" in json.loads(data)["detail"]
        for _ in range(3):
            client.json("POST", "/api/search", asked)
        assert len(loaded) == 2
        assert service.metrics.answered() >= 6
    with serving(collection.index, text=False) as (client, _):
        assert client.json("GET", "/api/index")["words"] is False
        assert "--no-text" in json.loads(client("POST", "/api/search", asked)[1])["detail"]
    assert len(loaded) == 2
