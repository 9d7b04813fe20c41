"""Fixtures that tests of several folders share."""

import contextlib
import os
import secrets
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.ray_cluster import RayCluster
from tlray.cli.command import end_process
from tlray.demo.s3_server import S3Server, find_weed
from tlray.errors import StorageError
from tlray.machine.threads import yield_cores

# Neither an unlucky draw nor a machine that stands still for a while fails a change: examples are the same each time, and take
# what they take. `--hypothesis-profile default` draws others.
settings.register_profile("tlray", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tlray")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="folder to keep the browser's pictures of the page in")


def pytest_configure() -> None:
    """Clusters of this process take no strangers' drivers and jobs: Ray reads the first of these when it is imported.

    Of several test processes each keeps to one core: torch's threads of two of them would fight for all.
    """
    yield_cores()
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


_EXIT_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how the tests went for the end of the process."""
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> Generator[None]:
    """End the process as the commands do it, without taking the interpreter apart.

    With Ray, DuckDB and torch inside, that has ended in a segmentation fault after the last test had passed.
    """
    yield
    if _EXIT_STATUS in config.stash and "PYTEST_XDIST_WORKER" not in os.environ:
        end_process(config.stash[_EXIT_STATUS])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"s3_server", "s3_bucket"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.s3)


@pytest.fixture
def screenshots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder: Path = request.config.getoption("--screenshots", default=None) or tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests; a test that kills it starts its own."""
    try:
        find_weed()
    except StorageError as error:
        pytest.skip(str(error))
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with an environment in which it is all that boto3 and delta-rs know."""
    use_server(s3_server, monkeypatch)
    return s3_server


@pytest.fixture
def s3_bucket(s3_env: S3Server) -> str:
    """URI of a fresh bucket, `s3://test-...`, that the environment's credentials reach."""
    return s3_env.make_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[RayCluster]:
    """One cluster of two CPUs for all tests, whose workers reach the server; a test of other nodes starts its own."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            use_server(s3_server, patch)
            cluster = stack.enter_context(RayCluster(tmp_path_factory.mktemp("ray"), dashboard=True))
        yield cluster


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images or texts each call of the encoder has seen in this process; golden ones are not counted."""
    from tlray.extraction.worker.pieces import encode_piece  # imports torch

    seen: list[int] = []

    def counted(encoder: Any, piece: Any, file: Any) -> Any:
        seen.append(len(piece.content.inputs))
        return encode_piece(encoder, piece, file)

    monkeypatch.setattr("tlray.extraction.worker.unit_worker.encode_piece", counted)
    return seen


def use_server(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server all that boto3 and delta-rs know."""
    forget_aws(monkeypatch)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


def forget_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of AWS in the environment, and nothing to be found in files or on the network."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    isolated = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in isolated.items():
        monkeypatch.setenv(name, value)
