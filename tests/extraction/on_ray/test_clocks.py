"""`tlray extract` where clocks are wrong by an hour: a worker's, and the driver's; the S3 server is one that looks at them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import Lake, Way, slow_way, started, stray_lines
from tests.ray_cluster import RayCluster
from tests.wrong_clocks import WrongClocks
from tlray.demo.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

HOUR = 3600


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"clocks-{os.getpid()}"))


def test_a_worker_and_a_driver_of_another_hour_are_named(lake: Lake, s3_server: S3Server, tmp_path: Path) -> None:
    """One worker of two is an hour ahead, which S3 refuses; with a time to be done by it would not even ask. So is a driver."""
    early = WrongClocks(tmp_path).off_by(HOUR)
    way = Way(photo_seconds=0)
    with slow_way(s3_server.endpoint, way) as env, RayCluster(tmp_path, cpus=0, env=env) as cluster, cluster.node(1):
        env |= cluster.env
        with cluster.node(1, env=early):
            with started([*lake.arguments("clocks"), "--budget-hours", "0.5"], env, tmp_path / "budget") as command:
                assert command.end() == 1
            assert re.search(r"clocks differ: that of node \w+ at [\d.]+ is (59|60) min ahead of this machine's", command.said)
            assert "workers began no more units, as by their clocks it is 20" in command.complaint
            assert not stray_lines(command.said)
            with started(lake.arguments("clocks"), env, tmp_path / "skewed") as command:
                assert command.end() in (1, 2)
            assert f"the clock of {gethostname()} is wrong; set it" in command.complaint
            assert not stray_lines(command.said)
        with started(lake.arguments("clocks"), env | early, tmp_path / "driver") as command:
            assert command.end() == 2
        assert "RequestTimeTooSkewed" in command.complaint and f"the clock of {gethostname()} is wrong" in command.complaint
        with started(lake.arguments("clocks"), env, tmp_path / "set") as command:
            assert command.result()["failed"] == 0
        assert "clocks differ" not in command.said
    lake.assert_exact("clocks")
