"""The page in a real browser: what a person does, and pictures of it. `--screenshots FOLDER` says where to keep them."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tests.search.service.test_service import TOKEN, serving

pytestmark = pytest.mark.browser
PATIENCE_MILLISECONDS = 120_000
"""Playwright's own 5 s are not enough for a machine that stands still for some."""
expect.set_options(timeout=PATIENCE_MILLISECONDS)
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
IMAGES_SHOWN = 60


class Shown(NamedTuple):
    """The page, and what its console said that it should not."""

    page: Page
    errors: list[str]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    write_photos(folder / "photos", 80)
    source = ["--source.uri", folder / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    with serving(folder / "index") as (client, _):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("TLRAY_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium, or set TLRAY_CHROMIUM")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=list(QUIET), timeout=PATIENCE_MILLISECONDS)
        yield chromium
        chromium.close()


@pytest.fixture
def shown(address: str, browser: Browser) -> Iterator[Shown]:
    """The page after the token was given, with the first random images."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    page.goto(address)
    page.fill("#token", TOKEN)
    page.click("#login button")
    expect(page.locator("#grid .card")).to_have_count(IMAGES_SHOWN)
    expect(page.locator("#grid img").nth(11)).to_be_visible()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield Shown(page, errors)
    context.close()


def test_more_like_this_filter_back_and_keys(shown: Shown) -> None:
    page, cards = shown.page, shown.page.locator("#grid .card")
    uri = cards.first.get_attribute("title")
    assert uri is not None
    cards.first.click()
    expect(page.locator("#message")).to_contain_text("nearest")
    expect(page.locator("#query")).to_contain_text(uri)
    assert uri not in cards.evaluate_all("all => all.map((one) => one.title)")
    scores = [float(text) for text in page.locator("#grid .caption span").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    page.select_option("#label", "cat")
    expect(page.locator("#grid b", has_text="dog")).to_have_count(0)
    expect(page.locator("#grid b", has_text="cat").first).to_be_visible()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    second = page.evaluate("document.activeElement.title")
    assert second == cards.nth(1).get_attribute("title")
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_contain_text(second)
    page.keyboard.press("Backspace")
    expect(page.locator("#query")).to_contain_text(uri)
    page.keyboard.press("r")
    expect(page.locator("#message")).to_contain_text("random")
    assert shown.errors == []


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
    expect(page.locator("#message")).to_contain_text("on the map")
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
    expect(page.locator("#query")).to_contain_text("row ")
    canvas.focus()
    pixels = canvas.screenshot()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert canvas.screenshot() != pixels
    assert shown.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_pictures_of_it(device: str, scheme: str, shown: Shown, screenshots: Path) -> None:
    page = shown.page
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    if device == "phone":
        page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#grid .card").nth(3).click()
    expect(page.locator("#message")).to_contain_text("nearest")
    expect(page.locator("#query img")).to_be_visible()
    expect(page.locator("#grid img").nth(5)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark, light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)", scheme == "light"
    assert dark != light
    page.screenshot(path=screenshots / f"{device}-{scheme}.png")
