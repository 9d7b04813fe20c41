"""The page in a real browser, as tests of it use it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.search.service.serving import TOKEN

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


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; the test is skipped where there is none."""
    program = os.environ.get("TLRAY_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium, or set TLRAY_CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(QUIET), timeout=PATIENCE_MILLISECONDS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Shown]:
    """The page after the token was given, with its first images."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    page.goto(address)
    page.fill("#token", TOKEN)
    page.click("#login button")
    expect(page.locator("#grid .card")).to_have_count(IMAGES_SHOWN)
    expect(page.locator("#grid img").nth(5)).to_be_visible()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    yield Shown(page, errors)
    context.close()


def choose_label(page: Page, label: str) -> None:
    page.fill("#label", label)
    page.press("#label", "Enter")
