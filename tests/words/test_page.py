"""Words on the page, in a real browser. `--screenshots FOLDER` says where to keep pictures of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.search.service.browser import Shown, choose_label, chromium, opened
from tests.search.service.serving import serving
from tests.search.service.test_page_layout import OVERLAPS
from tests.words.conftest import Collection

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with the module: while it runs, no other test can run an event loop of its own."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(collection: Collection) -> Iterator[str]:
    with serving(collection.index) as (client, _):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture
def shown(address: str, browser: Browser) -> Iterator[Shown]:
    with opened(browser, address) as shown:
        yield shown


def test_words_find_pictures(shown: Shown, collection: Collection, screenshots: Path) -> None:
    page, cards, query = shown.page, shown.page.locator("#grid .card"), shown.page.locator("#query")
    page.keyboard.press("/")
    box = page.get_by_role("searchbox", name="Words")
    expect(box).to_be_focused()
    page.keyboard.type("a photo of a purple dog.")
    page.keyboard.press("Enter")
    expect(query).to_contain_text("“a photo of a purple dog.”")
    expect(page.locator("#message")).to_contain_text("nearest")
    expect(cards.first).to_have_attribute("title", collection.uri("purple", "dog"))
    scores = [float(text) for text in page.locator("#grid .caption span").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    expect(cards.nth(20).locator("img")).to_be_visible()
    page.screenshot(path=screenshots / "words.png")
    bookmark = page.url
    assert "text=a+photo+of+a+purple+dog." in bookmark and "purple dog" in page.title()
    choose_label(page, "green")
    expect(page.locator("#grid b", has_text="purple")).to_have_count(0)
    expect(query).to_contain_text("purple dog")
    page.keyboard.press("Escape")
    cards.first.click()
    expect(query).to_contain_text("like this green")
    expect(box).to_have_value("")
    page.go_back()
    expect(query).to_contain_text("purple dog")
    expect(box).to_have_value("a photo of a purple dog.")
    page.goto("about:blank")
    page.goto(bookmark)
    expect(cards.first).to_have_attribute("title", collection.uri("purple", "dog"))
    box.fill("a very long sentence about a red box which goes on and on " * 3)
    page.get_by_role("button", name="Search", exact=True).click()
    expect(query).to_contain_text("its end was left out")
    before = page.url
    box.fill("   ")
    box.press("Enter")
    box.fill('<b>blue</b> & "7"')
    box.press("Enter")
    expect(query).to_contain_text('“<b>blue</b> & "7"”')
    assert page.url != before and shown.errors == []
    for width in (390, 700, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 844})
        page.screenshot(path=screenshots / f"words-{width}.png")
        assert page.evaluate(OVERLAPS) == []
        box_of = page.locator("#words").bounding_box()
        assert box_of is not None and box_of["width"] > 150 and box_of["x"] + box_of["width"] <= width


def test_without_a_text_tower_there_is_no_box(collection: Collection, browser: Browser) -> None:
    with serving(collection.index, text=False) as (client, _), opened(browser, f"http://127.0.0.1:{client.port}/") as shown:
        page = shown.page
        expect(page.get_by_role("searchbox", name="Words")).to_be_hidden()
        page.keyboard.press("/")
        page.goto(f"http://127.0.0.1:{client.port}/#text=a+cat")
        expect(page.locator("#message")).to_contain_text("words cannot be searched by")
