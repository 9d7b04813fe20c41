"""Conditions in requests and on the page: what they let through, and what is said of wrong ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tests.search.service.browser import IMAGES_SHOWN, opened
from tests.search.service.serving import Client, serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """64 photographs: prices 0 to 63, every third without one, at sites A and Zürich in turn."""
    folder = tmp_path_factory.mktemp("where")
    lines = ["file_name,price,site"]
    for at, path in enumerate(write_photos(folder / "photos", 64)):
        lines.append(f"{path.relative_to(folder / 'photos')},{'' if at % 3 == 0 else at},{'Zürich' if at % 2 else 'A'}")
    (folder / "photos/metadata.csv").write_text("\n".join(lines))
    source = ["--source.uri", folder / "photos", "--source.columns", "all"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    with serving(folder / "index", max_k=100) as (client, _):
        yield client


def numbers(hits: list[dict]) -> list[int]:
    return sorted(int(Path(hit["uri"]).stem) for hit in hits)


CHEAP = [at for at in range(10) if at % 3 and at % 2]
WHERE = "price < 10 and site = 'Zürich'"


def test_requests_say_where(client: Client) -> None:
    info = client.json("GET", "/api/index")
    columns = {"uri": "text", "etag": "text", "label": "text", "price": "integer", "site": "text"}
    assert info["columns"] == columns
    query = {"queries": [{"id": 0}, {"id": 1}], "k": 50, "where": WHERE}
    for hits in client.json("POST", "/api/search", query)["answers"]:
        assert set(numbers(hits)) <= set(CHEAP) and len(hits) >= len(CHEAP) - 1
    (hits,) = client.json("POST", f"/api/search/image?k=50&where={quote(WHERE)}", photo(3))["answers"]
    assert numbers(hits) == CHEAP
    assert numbers(client.json("GET", f"/api/random?count=50&where={quote(WHERE)}")) == CHEAP


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("prise < 1", "did you mean price"),
        ("price <", "at character"),
        ("x" * 5000, "at most 4096"),
        ("site = '\ud800'", "hex escape"),
    ],
)
def test_a_wrong_condition_is_422_and_says_why(client: Client, where: str, said: str) -> None:
    body = json.dumps({"queries": [{"id": 0}], "where": where}).encode()
    status, data = client("POST", "/api/search", body, **{"Content-Type": "application/json"})
    assert status == 422 and said in str(json.loads(data)["detail"])
    if len(where) < 100 and where.isascii():
        for method, path, sent in (("POST", "/api/search/image", photo(1)), ("GET", "/api/random", None)):
            status, data = client(method, f"{path}?where={quote(where)}", sent)
            assert status == 422 and said in json.loads(data)["detail"]


@pytest.fixture(scope="module")
def page_address(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}/"


@pytest.mark.browser
def test_the_page_has_a_box_and_keeps_it_in_its_address(page_address: str, browser: Browser) -> None:
    with opened(browser, page_address) as shown:
        page, cards = shown.page, shown.page.locator("#grid .card")
        box = page.get_by_label("Where")
        expect(box).to_be_visible()
        assert "price (integer)" in str(box.get_attribute("title"))
        box.fill(WHERE)
        box.press("Enter")
        expect(cards).to_have_count(len(CHEAP))
        assert "where=" in page.url
        cards.first.click()
        expect(page.locator("#message")).to_contain_text("nearest")
        expect(cards).to_have_count(len(CHEAP) - 1)
        page.reload()
        expect(box).to_have_value(WHERE)
        expect(cards).to_have_count(len(CHEAP) - 1)
        page.go_back()
        expect(cards).to_have_count(len(CHEAP))
        box.fill("price > 1000")
        box.press("Enter")
        expect(page.locator("#message")).to_contain_text("No row fulfils “price > 1000”")
        assert shown.errors == []
        box.fill("prise < 1")
        box.press("Enter")
        expect(page.locator("#message")).to_contain_text("did you mean price")
        page.goto("about:blank")
        page.goto(f"{page_address}#random=1&where=nonsense%20%3C")
        expect(page.locator("#message")).to_contain_text("cannot be read")
        box.fill("")
        box.press("Enter")
        expect(cards).to_have_count(IMAGES_SHOWN)
