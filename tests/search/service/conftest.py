"""Indexes of photographs for all tests of the service, and the page of one of them in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.search.service.browser import Shown, chromium, opened
from tests.search.service.serving import index_of_photos, serving


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, 30 of them, their `table`, and its `index`."""
    folder = tmp_path_factory.mktemp("photos")
    index_of_photos(folder, 30)
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(index_of_photos(tmp_path_factory.mktemp("page"), 80)) as (client, _):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with the module: while it runs, no other test can run an event loop of its own."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def shown(address: str, browser: Browser) -> Iterator[Shown]:
    with opened(browser, address) as shown:
        yield shown
