"""How the page looks: nothing overlaps or sticks out, light and dark, wide and narrow; `--screenshots FOLDER` keeps it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from playwright.sync_api import Browser, expect

from tests.photos import write_photos
from tests.search.service.browser import Shown, choose_label, opened
from tests.search.service.serving import serving
from tests.search.tables import Bench, rows_for

pytestmark = pytest.mark.browser
LONG_LABELS = (
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    " ".join(["a label of many words that does not end"] * 5),
    " ".join(["חתול שחור"] * 18),
)
LABELS = 1000


@pytest.fixture(scope="module")
def address_of_many_labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An index of 1,000 labels, three of them long; its vectors are made up."""
    folder = tmp_path_factory.mktemp("labels")
    uris = [path.as_uri() for path in write_photos(folder / "photos", 1200)]
    names = [f"label {number:03d}" for number in range(LABELS - len(LONG_LABELS))]
    labels = [(*LONG_LABELS, *names)[number % LABELS] for number in range(1200)]
    labels[: 3 * len(LONG_LABELS)] = LONG_LABELS * 3
    bench = Bench(folder, dimensions=32)
    rows = rows_for(range(1200), dimensions=32)
    bench.commit([rows.set_column(0, "uri", pa.array(uris)).set_column(2, "label", pa.array(labels))])
    bench.index(factory="Flat")
    with serving(bench.index_path, images=False) as (client, _):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture
def shown_many_labels(address_of_many_labels: str, browser: Browser) -> Iterator[Shown]:
    with opened(browser, address_of_many_labels) as shown:
        yield shown


# Two texts or controls on the same place, or one that is wider than its container.
OVERLAPS = """() => {
    const all = [...document.querySelectorAll(
        "header h1, header button, header label, header p, header a, #query, #message, #map, #map-state, #map-hint, "
        + "#legend li, .card, footer, main h2, main h3, main table, main pre, main p")];
    const boxes = all.filter((one) => one.checkVisibility() && !one.matches(".unseen"))
        .map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
    const found = [];
    for (const [at, [one, a]] of boxes.entries()) {
        if (a.right > innerWidth + 1 && !one.closest(".scroll, pre")) found.push(["too wide", one.outerHTML.slice(0, 200)]);
        for (const [other, b] of boxes.slice(at + 1)) {
            if (one.contains(other) || other.contains(one)) continue;
            const inHeader = (node) => getComputedStyle(node.closest("header") ?? document.body).position === "sticky";
            if (inHeader(one) !== inHeader(other)) continue; // the page scrolls below its header
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 1 && high > 1) found.push([one.outerHTML.slice(0, 200), other.outerHTML.slice(0, 200)]);
        }
    }
    for (const caption of document.querySelectorAll(".caption")) {
        if (caption.scrollWidth > caption.clientWidth + 1) found.push(["label sticks out", caption.outerHTML.slice(0, 300)]);
    }
    return found;
}"""


def test_a_thousand_labels_and_long_ones(shown_many_labels: Shown, screenshots: Path) -> None:
    page = shown_many_labels.page
    assert page.locator("#labels option").count() == LABELS
    assert page.locator("#label").get_attribute("placeholder") == "all 1,000"
    for number, label in enumerate(LONG_LABELS):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.locator("#random").click()
        expect(page.locator("#message")).to_contain_text("drawn at random")
        choose_label(page, label)
        expect(page.locator("#grid b").first).to_have_text(label)
        page.locator("#grid .card").first.click()
        expect(page.locator("#query")).to_contain_text(label)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate(OVERLAPS) == []
            page.screenshot(path=screenshots / f"long-label-{number}-{width}.png")
    choose_label(page, "label 500")
    expect(page.locator("#message")).to_contain_text("nearest")
    choose_label(page, "no such label")
    expect(page.locator("#message")).to_contain_text("No other row has the label")
    choose_label(page, "")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("#toggle-map").click()
    expect(page.locator("#map-state")).to_contain_text("on the map")
    expect(page.locator("#legend")).to_contain_text("988 more labels")
    assert page.evaluate(OVERLAPS) == []
    page.screenshot(path=screenshots / "many-labels-map.png", full_page=True)
    assert shown_many_labels.errors == []


def test_the_interface_is_described_without_anything_from_elsewhere(shown: Shown, address: str, screenshots: Path) -> None:
    page, asked = shown.page, []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}docs")
    expect(page.locator("#operations section")).to_have_count(7)
    expect(page.locator("#operations")).to_contain_text("queries[].vector")
    assert asked and all(url.startswith((address, "data:", f"blob:{address}")) for url in asked), asked
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OVERLAPS) == []
        page.screenshot(path=screenshots / f"docs-{width}.png")
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
    assert page.evaluate(OVERLAPS) == []
    dark, light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)", scheme == "light"
    assert dark != light
    page.screenshot(path=screenshots / f"{device}-{scheme}.png")
    page.keyboard.press("m")
    expect(page.locator("#legend li")).to_have_count(2)
    assert page.evaluate(OVERLAPS) == []
    page.screenshot(path=screenshots / f"{device}-{scheme}-map.png", full_page=True)
    assert shown.errors == []
