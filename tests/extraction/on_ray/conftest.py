"""A lake that the tests' Ray cluster reaches, and a slow way to a store."""

import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import Way, slow_way
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server


@pytest.fixture(scope="module")
def lake(s3_server: S3Server, ray_cluster: RayCluster) -> Iterator[str]:
    """A bucket, and a driver's environment for it and for the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        patch.setenv("RAY_ADDRESS", ray_cluster.address)
        yield s3_server.make_bucket(f"on-ray-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def way() -> Way:
    """What happens to requests on their way, which a test may change meanwhile."""
    return Way()


@pytest.fixture
def env(way: Way, s3_server: S3Server) -> Iterator[dict[str, str]]:
    """A driver's environment, whose store is at the end of that way."""
    with slow_way(s3_server.endpoint, way) as env:
        yield env
