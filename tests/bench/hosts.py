"""Hosts of one core each: images a second of two against one, and of a run that a second host joins in the middle.

A host is a node of a Ray cluster, all of whose processes keep to one core. The driver, the head and the disk are this
machine's, so on two cores they take their part from both. With `--share` a host gets so much of its core (the `cpu` controller
of control groups, version 1, as root), and what is left serves them, as another machine would. Rates are steady ones, by the
parts that workers write. `joined` is of a run that begins on one host: its rate before the other one is ready, and from
`--settle-seconds` after that on.
"""

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.harness import BACKBONE, WEIGHTS, finish, ratio
from tests.bench.ours import parts_of_table, steady_rate_of_table
from tests.bench.photos import write_photos
from tests.extraction.on_ray.faulty import started
from tests.ray_cluster import RayCluster

LONGEST_SECONDS = 1800.0
PERIOD_MICROSECONDS = 20_000


@contextmanager
def one_core(core: int, share: float) -> Iterator[list[str]]:
    """The beginning of a command whose processes keep to a core, or to a share of it."""
    pinned = ["taskset", "--cpu-list", str(core)]
    if share >= 1:
        yield pinned
        return
    group = Path(f"/sys/fs/cgroup/cpu/tlray-bench-{os.getpid()}-{core}")
    group.mkdir()
    try:
        Path(group, "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_MICROSECONDS)))
        Path(group, "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *pinned]
    finally:
        while Path(group, "cgroup.procs").read_text():  # workers end after their raylet
            time.sleep(0.1)
        group.rmdir()


def extract(photos: Path, folder: Path, hosts: int, share: float, *, join_after: int = 0) -> tuple[Path, float]:
    """The table of a run on so many hosts, and when one more was ready, that joined after so many images."""
    table, ready = folder / "table", 0.0
    arguments = ["--source.uri", str(photos), "--table", str(table), "--recipe.backbone", BACKBONE, "--recipe.weights", WEIGHTS]
    with RayCluster(folder, cpus=0) as cluster, ExitStack() as nodes:
        within = [nodes.enter_context(one_core(core, share)) for core in range(hosts + bool(join_after))]
        for core in range(hosts):
            nodes.enter_context(cluster.node(1, within=within[core]))
        with started(["extract", *arguments], cluster.env, folder / "driver") as command:
            if join_after:
                command.until(lambda: sum(images for _, images in parts_of_table(table)) >= join_after)
                nodes.enter_context(cluster.node(1, within=within[hosts]))
                ready = time.time()
            command.result(LONGEST_SECONDS)
    return table, ready


def joined(photos: Path, folder: Path, images: int, share: float, settle_seconds: float) -> dict[str, Any]:
    """A run that a second host joins when a fifth is done."""
    table, ready = extract(photos, folder, 1, share, join_after=images // 5)
    parts = sorted(parts_of_table(table))
    before = [part for part in parts if part[0] <= ready]
    after = [part for part in parts if part[0] >= ready + settle_seconds]
    rates = {"before": slope(before), "after": slope(after[: -len(after) // 5 or None])}
    return {**rates, "after_to_before": ratio(rates["after"], rates["before"])}


def slope(parts: list[tuple[float, int]]) -> float | None:
    """Images a second between the first and the last of some parts."""
    if len(parts) < 3:
        return None
    return sum(images for _, images in parts[1:]) / (parts[-1][0] - parts[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=9_600)
    parser.add_argument("--photos", type=Path, help="a folder that has so many already, in a folder `photos`")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of its core, that each host gets")
    parser.add_argument("--settle-seconds", type=float, default=30.0)
    parser.add_argument("--only", choices=("scaling", "joined"))
    options = parser.parse_args()
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or write_photos(Path(scratch, "photos"), options.images)
        for turn in range(options.turns if options.only in (None, "scaling") else 0):
            rates = []
            for hosts in (1, 2):
                folder = Path(scratch, f"{turn}-{hosts}")
                folder.mkdir()
                rates.append(steady_rate_of_table(extract(photos, folder, hosts, options.share)[0]))
            rows.append({"one": rates[0], "two": rates[1], "two_to_one": ratio(rates[1], rates[0])})
        if rows:
            result = {"turns": rows, "two_to_one": median(row["two_to_one"] for row in rows)}
        if options.only in (None, "joined"):
            folder = Path(scratch, "joined")
            folder.mkdir()
            result["joined"] = joined(photos, folder, options.images, options.share, options.settle_seconds)
    finish(result, rows or [result["joined"]])


if __name__ == "__main__":
    main()
