"""A run on a cluster whose nodes join and die at random, ten times each: that its table is exact in the end, by Polars.

Not a measurement, but too long for a test. Nodes of one core each are `ray start`s on this machine; a death is `kill -9` of all
that belongs to one, its raylet and its workers. Photos come slowly enough that work is left for the last of them.
"""

import argparse
import json
import random
import secrets
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import HEALTH, IMAGES, Command, Lake, Way, slow_way, started, stray_lines
from tests.ray_cluster import RayCluster, kill_all_of
from tlray.demo.s3_server import S3Server

MOST_NODES = 4


def churn(
    cluster: RayCluster, command: Command, nodes: ExitStack, rng: random.Random, *, turns: int, pause_seconds: float
) -> None:
    """Let nodes join and die at random, so many of each, while a command runs; one is there at any time."""
    alive = [nodes.enter_context(cluster.node(1)) for _ in range(2)]
    joined = died = 0
    while joined < turns or died < turns:
        time.sleep(rng.uniform(0, pause_seconds))
        if command.process.poll() is not None:
            raise RuntimeError(f"it ended after {joined} joins and {died} deaths: {command.said[-3000:]}")
        if joined < turns and (len(alive) == 1 or (len(alive) < MOST_NODES and rng.random() < 0.5)):
            alive.append(nodes.enter_context(cluster.node(1)))
            joined += 1
        elif len(alive) > 1:
            kill_all_of(alive.pop(rng.randrange(len(alive))))
            died += 1
        print(f"{joined} joined, {died} died, {len(alive)} there", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10, help="joins, and deaths")
    parser.add_argument("--pause-seconds", type=float, default=12.0, help="at most between two of them")
    parser.add_argument("--photo-seconds", type=float, default=0.75, help="each takes, one after the other")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    way = Way(options.photo_seconds)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        server = stack.enter_context(S3Server())
        use_server(server, patch)
        for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            patch.setenv(name, value)
        lake = Lake.make(server.make_bucket("churn"))
        env = stack.enter_context(slow_way(server.endpoint, way))
        cluster = stack.enter_context(RayCluster(scratch, cpus=0, env=HEALTH | env))
        nodes = stack.enter_context(ExitStack())
        command = stack.enter_context(started(lake.arguments("table"), env | cluster.env, scratch / "driver"))
        rng = random.Random(options.seed)
        churn(cluster, command, nodes, rng, turns=options.turns, pause_seconds=options.pause_seconds)
        way.photo_seconds = 0
        result = command.result()
        lake.assert_exact("table")
        said = {verb: command.said.count(f"a node has {verb}: ") for verb in ("joined", "left")}
        print(json.dumps({"images": IMAGES, "ok": result["ok"], "said": said, "stray_lines": len(stray_lines(command.said))}))


if __name__ == "__main__":
    main()
