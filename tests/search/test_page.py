"""The page in a real browser: what a person does, and pictures of it. TLRAY_SCREENSHOTS names a folder to keep them in."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tests.search.browser import Browser, find_chromium
from tests.search.test_service import TOKEN, serving

pytestmark = pytest.mark.browser
CARDS = "document.querySelectorAll('#grid .card').length"
PICTURES = "[...document.querySelectorAll('#grid img')].filter((one) => one.naturalWidth > 0).length"
FIRST = "document.querySelector('#grid .card')"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    write_photos(folder / "photos", 80)
    source = ["--source.uri", folder / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    with serving(folder / "index") as (client, _):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture
def page(address: str) -> Iterator[Browser]:
    """The page after the token was given, with the first random images."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium, or set TLRAY_CHROMIUM")
    with Browser(program) as browser:
        browser.size(1280, 900)
        browser.call("Page.navigate", url=address)
        browser.wait_for("document.getElementById('login')?.open")
        browser.evaluate(f"document.getElementById('token').value = '{TOKEN}'; document.querySelector('#login button').click()")
        browser.wait_for(f"{CARDS} === 60 && {PICTURES} >= 12")
        browser.errors.clear()  # the 401 that asked for the token
        yield browser


def test_more_like_this_filter_back_and_keys(page: Browser) -> None:
    uri = page.evaluate(f"{FIRST}.title")
    page.evaluate(f"{FIRST}.click()")
    page.wait_for("document.querySelector('#message').innerText.includes('nearest')")
    assert uri in page.evaluate("document.querySelector('#query').innerText")
    assert uri not in page.evaluate("[...document.querySelectorAll('#grid .card')].map((one) => one.title)")
    scores = page.evaluate("[...document.querySelectorAll('#grid .caption span')].map((one) => Number(one.innerText))")
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    page.evaluate("const s = document.querySelector('#label'); s.value = 'cat'; s.dispatchEvent(new Event('change'))")
    page.wait_for("[...document.querySelectorAll('#grid b')].every((one) => one.innerText === 'cat')")
    page.key("ArrowRight", 39)
    page.key("ArrowRight", 39)
    second = page.evaluate("document.activeElement.title")
    assert second == page.evaluate("document.querySelectorAll('#grid .card')[1].title")
    page.key("Enter", 13)
    page.wait_for(f"document.querySelector('#query').innerText.includes({second!r})")
    page.key("Backspace", 8)
    page.wait_for(f"document.querySelector('#query').innerText.includes({uri!r})")
    page.key("r", 82)
    page.wait_for("document.querySelector('#message').innerText.includes('random')")
    assert page.errors == []


def test_an_image_that_is_pasted_or_dropped(page: Browser) -> None:
    data = base64.b64encode(photo(5)).decode()
    blob = f"new File([Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))], 'x.jpg', {{ type: 'image/jpeg' }})"
    for event in (
        "new ClipboardEvent('paste', { clipboardData: transfer })",
        "new DragEvent('drop', { dataTransfer: transfer })",
    ):
        page.key("r", 82)
        page.wait_for("document.querySelector('#message').innerText.includes('random')")
        page.evaluate(f"{{ const transfer = new DataTransfer(); transfer.items.add({blob}); document.dispatchEvent({event}) }}")
        page.wait_for("document.querySelector('#query').innerText.includes('like your image')")
        page.wait_for("document.querySelector('#message').innerText.includes('nearest')")
        assert page.evaluate(f"{FIRST}.title").endswith("cat/00005.jpg")
    bad = "new File(['no image'], 'x.jpg', { type: 'image/jpeg' })"
    page.evaluate(
        f"{{ const transfer = new DataTransfer(); transfer.items.add({bad}); "
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer })) }"
    )
    page.wait_for("document.querySelector('#message').innerText.includes('not_an_image')")
    assert all("422" in error for error in page.errors)


def test_the_map_and_pictures_of_it_all(page: Browser, tmp_path: Path) -> None:
    folder = Path(os.environ.get("TLRAY_SCREENSHOTS") or tmp_path)
    page.evaluate(f"{FIRST}.click()")
    page.wait_for("document.querySelector('#message').innerText.includes('nearest')")
    for device, (width, height, phone) in {"desktop": (1280, 900, False), "phone": (390, 844, True)}.items():
        for scheme in ("light", "dark"):
            page.size(width, height, phone=phone, dark=scheme == "dark")
            page.evaluate("window.scrollTo(0, 0)")
            page.wait_for(f"{PICTURES} >= 6")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), device
            page.screenshot(folder / f"{device}-{scheme}.png")
    page.size(1280, 900)
    page.key("m", 77)
    page.wait_for("document.querySelector('#message').innerText.includes('on the map')")
    page.screenshot(folder / "map.png")
    box = page.evaluate(
        "(({ x, y, width, height }) => [x, y, width, height])(document.querySelector('#map').getBoundingClientRect())"
    )
    before = page.evaluate("document.querySelector('#query').innerText")
    for step in range(400):  # until a point is under the pointer
        page.click(box[0] + box[2] * (0.3 + 0.02 * (step % 20)), box[1] + box[3] * (0.2 + 0.03 * (step // 20)))
        if page.evaluate("document.querySelector('#query').innerText") != before:
            break
    page.wait_for("document.querySelector('#query').innerText.includes('row ')")
    assert page.errors == []
    assert all((folder / name).stat().st_size > 10_000 for name in ("desktop-light.png", "phone-dark.png", "map.png"))
