"""The service and its page over a table of texts: texts in place of thumbnails, words to search by."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.photos import result_of, tlray
from tests.search.service.browser import IMAGES_SHOWN, PATIENCE_MILLISECONDS, chromium
from tests.search.service.serving import TOKEN, Client, serving
from tests.texts.documents import documents, source_in

TEXTS = {f"#{name}": text for name, text, _ in documents()}


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    place = tmp_path_factory.mktemp("service")
    result_of(
        tlray(
            "extract", "--local", *source_in(folder), "--table", place / "t", "--recipe.backbone", f"gensim:{folder / 'w.bin'}"
        )
    )
    result_of(tlray("index", "--table", place / "t", "--out", place / "i"))
    with serving(place / "i") as (client, _):
        yield client


def text_of(uri: str) -> str:
    return TEXTS[uri[uri.index("#") :]]


def test_rows_have_their_texts_and_words_find_them(client: Client) -> None:
    info = client.json("GET", "/api/index")
    assert (info["texts"], info["images"], info["words"]) == (True, False, True)
    for hit in client.json("GET", "/api/random?count=50"):
        found, whole = client.json("GET", f"/api/text/{hit['id']}"), text_of(hit["uri"])
        assert found == {"text": whole[:2000], "characters": len(whole)}
    found = client.json("POST", "/api/search", {"queries": [{"text": "nodes and edges of a graph"}], "k": 10})
    assert sum(hit["label"] == "graphs" for hit in found["answers"][0]) >= 8
    assert client("GET", "/api/text/99999999")[0] == 404
    assert client("GET", "/api/thumbnail/1")[0] == 404
    status, data = client("POST", "/api/search", {"queries": [{"text": "zzqx"}]})
    assert status == 422 and b"no word of" in data
    assert client("POST", "/api/search/image", b"x")[0] == 422


@pytest.mark.browser
def test_the_page_shows_texts(client: Client, screenshots: Path) -> None:
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        errors: list[str] = []
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.fill("#token", TOKEN)
        page.click("#login button")
        expect(page.locator("#grid .card")).to_have_count(IMAGES_SHOWN)
        page.on("pageerror", lambda error: errors.append(str(error)))
        expect(page.locator("#about")).to_contain_text("texts")
        first = page.locator("#grid .card").first
        uri = first.get_attribute("title")
        assert uri is not None
        expect(first.locator(".words")).to_have_text(text_of(uri)[:2000])
        first.click()
        expect(page.locator("#query .words")).to_have_text(text_of(uri)[:2000])
        expect(page.locator("#message")).to_contain_text("nearest")
        assert not errors
        page.screenshot(path=screenshots / "texts.png")
