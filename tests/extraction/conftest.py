"""For how long the link of a host is cut."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    # Longer than the 12 s that Ray needs to notice, as the test tells it to.
    parser.addoption("--cut-seconds", type=float, help="for how long test_hosts cuts a link (15)")


@pytest.fixture
def cut_seconds(request: pytest.FixtureRequest) -> float:
    seconds: float | None = request.config.getoption("--cut-seconds", default=None)
    return seconds or 15
