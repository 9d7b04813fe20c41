"""Columns of the table in requests and on the page: conditions on them, their values, and what is said of wrong ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tests.search.service.browser import IMAGES_SHOWN, opened
from tests.search.service.serving import Client, serving


def values_of(at: int) -> dict:
    price, site = None if at % 3 == 0 else at, "Zürich" if at % 2 else "A"
    return {"price": price, "site": site, "day": f"2026-01-{at % 28 + 1:02d}", "number": 2**53 + 1 + 2 * at}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """64 photographs: prices 0 to 63, every third without one, at sites A and Zürich in turn, with numbers over 2**53."""
    folder = tmp_path_factory.mktemp("where")
    lines = ["file_name,price,site,day,number"]
    for at, path in enumerate(write_photos(folder / "photos", 64)):
        of = values_of(at)
        values = ["" if of["price"] is None else of["price"], of["site"], of["day"], of["number"]]
        lines.append(",".join(map(str, [path.relative_to(folder / "photos"), *values])))
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
    own = dict.fromkeys(("uri", "etag", "label"), "text")
    assert info["columns"] == {**own, "price": "integer", "site": "text", "day": "date", "number": "integer"}
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


def test_requests_ask_for_columns(client: Client) -> None:
    def expected(hit: dict) -> dict:
        return values_of(int(Path(hit["uri"]).stem))

    query = {"queries": [{"id": 0}, {"label": None, "vector": None, "id": 1}], "k": 50}
    plain = client.json("POST", "/api/search", query)
    assert {tuple(hit) for hits in plain["answers"] for hit in hits} == {("id", "uri", "label", "score")}
    for where in ("", WHERE):
        shown = client.json("POST", "/api/search", {**query, "where": where, "columns": ["all"]})
        hits = [hit for hits in shown["answers"] for hit in hits]
        assert hits and all(hit["columns"] == expected(hit) for hit in [*hits, *shown["queries"]])
        asked = f"columns=day&columns=price&where={quote(where)}"
        (found,) = client.json("POST", f"/api/search/image?k=50&{asked}", photo(3))["answers"]
        drawn = client.json("GET", f"/api/random?count=50&{asked}")
        for hit in [*found, *drawn]:
            assert hit["columns"] == {name: expected(hit)[name] for name in ("day", "price")}
    assert all("columns" not in hit for hit in client.json("GET", "/api/random?count=5"))
    for answer in (
        client("POST", "/api/search", {**query, "columns": ["prise"]}),
        client("POST", "/api/search/image?columns=prise", photo(1)),
        client("GET", "/api/random?columns=prise"),
    ):
        assert answer[0] == 422 and "did you mean price? it has uri (text)" in json.loads(answer[1])["detail"]


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


@pytest.mark.browser
def test_cards_show_columns(page_address: str, browser: Browser, screenshots: Path) -> None:
    with opened(browser, page_address) as shown:
        page, cards = shown.page, shown.page.locator("#grid .card")

        def expect_values(*names: str) -> None:
            expect(cards.first.locator(".value")).to_have_count(len(names))
            for card in cards.all()[:10]:
                of = values_of(int(Path(str(card.get_attribute("title"))).stem))
                wanted = [f"{name} {'–' if of[name] is None else of[name]}" for name in names]
                assert card.locator(".value").all_inner_texts() == wanted
                assert all(text.replace(" ", ": ", 1) in str(card.get_attribute("aria-label")) for text in wanted)

        box = page.get_by_label("Show")
        expect(box).to_have_value("price, site, day")
        assert "show=" not in page.url
        expect_values("price", "site", "day")
        page.screenshot(path=screenshots / "columns.png")
        box.fill("number site")
        box.press("Enter")
        expect(box).to_have_value("number, site")
        expect_values("number", "site")  # to the last digit, which JavaScript's own numbers lose
        cards.first.click()
        expect(page.locator("#query .value")).to_have_count(2)
        expect_values("number", "site")
        page.screenshot(path=screenshots / "columns-like.png")
        page.reload()
        expect(box).to_have_value("number, site")
        expect_values("number", "site")
        box.fill("")
        box.press("Enter")
        expect(cards.first.locator(".value")).to_have_count(0)
        page.reload()
        expect(box).to_have_value("")
        expect(cards.first).to_be_visible()
        expect(cards.first.locator(".value")).to_have_count(0)
        assert shown.errors == []
        box.fill("prise")
        box.press("Enter")
        expect(page.locator("#message")).to_contain_text("did you mean price")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(f"{page_address}#random=1&show=all")
        expect_values("price", "site", "day", "number")
        page.screenshot(path=screenshots / "columns-narrow.png")
