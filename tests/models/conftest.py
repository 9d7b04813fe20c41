"""Fixtures of networks."""

import pytest

from tlray.models.process import device


@pytest.fixture
def any_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with arithmetic for every precision; where this one has none, torch emulates it."""
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    monkeypatch.setattr(device, "_has_fp16", lambda _: True)
