"""What a person does with the page, in a real browser. `--screenshots FOLDER` says where to keep pictures of it."""

import base64
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect

from tests.photos import photo
from tests.search.service.browser import PATIENCE_MILLISECONDS, Shown, choose_label

pytestmark = pytest.mark.browser


def uris_of(page: Page) -> list[str]:
    return page.locator("#grid .card").evaluate_all("all => all.map((one) => one.title)")


def changed(page: Page, before: list[str]) -> list[str]:
    """The cards, once they are others than before: the query is shown before its answers are there."""
    deadline = time.monotonic() + 30
    while (now := uris_of(page)) == before:
        assert time.monotonic() < deadline, "the cards stay as they were"
        page.wait_for_timeout(50)
    return now


def test_more_like_this_filter_back_and_keys(shown: Shown) -> None:
    page, cards = shown.page, shown.page.locator("#grid .card")
    uri = cards.first.get_attribute("title")
    assert uri is not None
    cards.first.click()
    expect(page.locator("#message")).to_contain_text("nearest")
    expect(page.locator("#query")).to_contain_text(uri)
    assert uri not in uris_of(page)
    scores = [float(text) for text in page.locator("#grid .caption span").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    choose_label(page, "cat")
    expect(page.locator("#grid b", has_text="dog")).to_have_count(0)
    expect(page.locator("#grid b", has_text="cat").first).to_be_visible()
    page.locator("#random").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    second = page.evaluate("document.activeElement.title")
    assert second == cards.nth(1).get_attribute("title")
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_contain_text(second)
    page.keyboard.press("Backspace")
    expect(page.locator("#query")).to_contain_text(uri)
    expect(cards.nth(1)).to_be_focused()  # where one was
    page.keyboard.press("r")
    expect(page.locator("#message")).to_contain_text("random")
    assert shown.errors == []


def test_bars_tell_differences(shown: Shown) -> None:
    """From the least to the most similar one of an answer, in the order of the scores, however near all of them are."""
    page = shown.page
    page.locator("#grid .card").first.click()
    expect(page.locator("#message")).to_contain_text("nearest")
    widths = page.locator("#grid .meter i").evaluate_all("all => all.map((one) => parseFloat(one.style.width))")
    assert widths[0] == 100 and widths[-1] == 4 and widths == sorted(widths, reverse=True)
    scale = """async (metric) => {
        const { scaleOf } = await import("/static/cards.js");
        const scale = scaleOf([{ score: 0.99990 }, { score: 0.99988 }, { score: 0.99985 }], metric);
        return [0.99990, 0.99988, 0.99985].map((score) => [scale.text(score), scale.share(score)]);
    }"""
    (best, most), (second, middle), (last, least) = page.evaluate(scale, "cosine")
    assert (most, least) == (1, 0) and 0.3 < middle < 0.9 and len({best, second, last}) == 3
    assert [share for _, share in page.evaluate(scale, "l2")] == pytest.approx([0, 1 - middle, 1])


def test_back_forward_reload_and_bookmarks(shown: Shown, address: str) -> None:
    page, query = shown.page, shown.page.locator("#query")
    drawn = uris_of(page)
    uri = drawn[3]
    page.locator("#grid .card").nth(3).click()
    expect(query).to_contain_text(uri)
    found = changed(page, drawn)
    page.go_back()
    expect(query).to_be_hidden()
    assert changed(page, found) == drawn  # the same random ones
    expect(page.locator("#back")).to_be_disabled()
    page.go_forward()
    expect(query).to_contain_text(uri)
    assert changed(page, drawn) == found
    choose_label(page, "dog")
    expect(page.locator("#grid b", has_text="cat")).to_have_count(0)
    page.locator("#toggle-map").click()
    expect(page.locator("#map-state")).to_contain_text("on the map")
    bookmark, title = page.url, page.title()
    assert "dog" in title and uri.rsplit("/", 1)[1] in title
    filtered = uris_of(page)
    page.goto("about:blank")
    page.goto(bookmark)
    expect(query).to_contain_text(uri)
    expect(page.locator("#map-state")).to_contain_text("on the map")
    assert uris_of(page) == filtered and page.locator("#label").input_value() == "dog"
    page.reload()
    expect(query).to_contain_text(uri)
    assert uris_of(page) == filtered
    page.set_input_files("#file", FilePayload(name="x.jpg", mimeType="image/jpeg", buffer=photo(5)))
    expect(query).to_contain_text("like your image")
    page.keyboard.press("r")
    expect(query).to_be_hidden()
    page.go_back()
    expect(query).to_contain_text("like your image")
    page.reload()
    expect(page.locator("#message")).to_contain_text("choose it again")
    assert shown.errors == []
    page.goto(address + "#like=file%3A%2F%2F%2Fnone.jpg")
    expect(page.locator("#message")).to_contain_text("not in the index")


def test_a_wrong_token_is_told(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    page.goto(address)
    page.get_by_role("textbox", name="This service asks for a token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That token was not accepted.")
    page.keyboard.press("Escape")
    expect(page.locator("#message")).to_contain_text("asks for a token")
    page.close()


def test_an_image_that_is_chosen_pasted_or_dropped(shown: Shown) -> None:
    page = shown.page
    image = base64.b64encode(photo(5)).decode()
    script = """([data, kind]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        transfer.items.add(new File([bytes], "x.jpg", { type: "image/jpeg" }));
        document.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer })
                                                : new DragEvent(kind, { dataTransfer: transfer }));
    }"""
    for kind in ("choose", "paste", "drop"):
        page.keyboard.press("r")
        expect(page.locator("#message")).to_contain_text("random")
        if kind == "choose":
            page.set_input_files("#file", FilePayload(name="x.jpg", mimeType="image/jpeg", buffer=photo(5)))
        else:
            page.evaluate(script, [image, kind])
        expect(page.locator("#query")).to_contain_text("like your image")
        expect(page.locator("#message")).to_contain_text("nearest")
        assert str(page.locator("#grid .card").first.get_attribute("title")).endswith("cat/00005.jpg")
    assert shown.errors == []
    page.evaluate(script, [base64.b64encode(b"no image").decode(), "drop"])
    expect(page.locator("#message")).to_contain_text("not_an_image")
    assert all("422" in error for error in shown.errors)


def test_the_map(shown: Shown, screenshots: Path) -> None:
    page = shown.page
    page.keyboard.press("m")
    expect(page.locator("#map-state")).to_contain_text("on the map")
    page.locator("#grid .card").first.click()
    expect(page.locator("#message")).to_contain_text("nearest")
    page.screenshot(path=screenshots / "map.png")
    canvas = page.locator("#map")
    canvas.scroll_into_view_if_needed()
    assert page.locator("#legend li").all_inner_texts() == ["cat", "dog"]
    box = canvas.bounding_box()
    assert box is not None
    for step in range(400):  # until a point is under the pointer
        page.mouse.move(
            box["x"] + box["width"] * (0.3 + 0.02 * (step % 20)), box["y"] + box["height"] * (0.2 + 0.03 * (step // 20))
        )
        if page.locator("#peek").is_visible():
            break
    expect(page.locator("#peek img")).to_be_visible()
    page.screenshot(path=screenshots / "map-point.png")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#query")).to_contain_text("file://")
    assert shown.errors == []


def test_the_map_by_keys_alone(shown: Shown) -> None:
    page, canvas = shown.page, shown.page.locator("#map")
    page.keyboard.press("m")
    expect(page.locator("#map-state")).to_contain_text("on the map")
    tab_to(page, canvas)
    spoken = page.locator("#map-point")
    expect(spoken).to_have_text(re.compile(r", row \d+$|no dot"))
    pixels = canvas.screenshot()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert canvas.screenshot() != pixels
    for step in range(40):  # to some dot
        if "row" in spoken.inner_text():
            break
        page.keyboard.press(("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown")[step % 5])
    expect(page.locator("#peek")).to_be_visible()
    label = spoken.inner_text().partition(",")[0]
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_contain_text(f"like this {label}")
    assert shown.errors == []


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(20):
        if target.evaluate("one => one === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("it cannot be reached by Tab")


def test_all_by_keys_alone_and_every_control_has_a_name(shown: Shown) -> None:
    page = shown.page
    page.locator("#pick").focus()
    reached = []
    for _ in range(7):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert reached == ["pick", "random", "toggle-map", "label", "card", "card", "card"]
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("nearest")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#back")).to_be_enabled()
    for name in ("Choose image", "Random", "Back", "Map"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("combobox", name="Label")).to_be_visible()
    expect(page.get_by_role("list", name="Results")).to_be_visible()
    first = page.locator("#grid .card").first.get_attribute("aria-label")
    assert first is not None and re.fullmatch(r"(cat|dog), \d{5}\.jpg, similarity \d\.\d+", first)
    page.keyboard.press("m")
    expect(page.get_by_role("application", name="Map of the collection")).to_be_visible()
    nameless = """() => [...document.querySelectorAll("button, input, a, canvas, section, dialog, [role]")].filter((one) => {
        const label = one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.[0]?.textContent
            || one.getAttribute("aria-labelledby") || one.id === "message" || one.role === "alert" || one.role === "status";
        return !label;
    }).map((one) => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert shown.errors == []
