"""Reports in a real browser, without a network: nothing overlaps or sticks out, light and dark, wide, on a phone, in print."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.photos import result_of, tlray
from tests.reports.conftest import Things
from tests.search.service.browser import PATIENCE_MILLISECONDS, chromium
from tlray.advice.verdict.scenario import scenario_of

pytestmark = pytest.mark.browser
KINDS = ("extract", "train", "index", "advise", "two", "mapped")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

# Two texts or pictures on the same place, one that is wider than the page, or a text in a chart that sticks out of it.
OVERLAPS = """() => {
    const found = [];
    const boxes = [...document.querySelectorAll("h1, h2, h3, p, dt, dd, pre, .scroll, figure, .headline div, footer")]
        .map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
    for (const [at, [one, a]] of boxes.entries()) {
        if (a.right > innerWidth + 1 || a.left < -1) found.push(["too wide", one.outerHTML.slice(0, 160)]);
        for (const [other, b] of boxes.slice(at + 1)) {
            if (one.contains(other) || other.contains(one)) continue;
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 1 && high > 1) found.push([one.outerHTML.slice(0, 160), other.outerHTML.slice(0, 160)]);
        }
    }
    for (const svg of document.querySelectorAll("svg")) {
        const frame = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll("text:not([transform])")].map((one) => [one, one.getBoundingClientRect()]);
        for (const [at, [one, a]] of texts.entries()) {
            if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.bottom > frame.bottom + 2) {
                found.push(["sticks out", one.textContent]);
            }
            for (const [other, b] of texts.slice(at + 1)) {
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 2 && high > 4) found.push([one.textContent, other.textContent]);
            }
        }
    }
    return found;
}"""
SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll("svg text")].map((one) => {
    const svg = one.closest("svg");
    return 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reports(things: Things) -> Path:
    result_of(tlray("report", things.table, things.folder / "two.html", "--other", things.other))
    likeness = {"value": 0.93, "candidate": "timm:resnet50", "confidence": 0.31, "classes_used": 214.5}
    mapped = things.advise | {"likeness": likeness, "scenario": scenario_of(2300.0, 0.93)}
    (things.folder / "mapped.json").write_text(json.dumps(mapped))
    result_of(tlray("report", things.folder / "mapped.json", things.folder / "mapped.html"))
    return things.folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_is_legible_everywhere(kind: str, reports: Path, browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(viewport=DESKTOP, offline=True)
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto((reports / f"{kind}.html").as_uri())
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
            page.set_viewport_size(size)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (scheme, name)
            assert page.evaluate(OVERLAPS) == [], (scheme, name)
            assert page.evaluate(SMALLEST_TEXT) >= 8.5
            page.screenshot(path=tmp_path / f"{kind}-{scheme}-{name}.png", full_page=True)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots an inch
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(OVERLAPS) == []
    broken = "[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.alt)"
    assert page.evaluate(broken) == []
    assert errors == [] and all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
