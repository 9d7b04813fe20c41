"""`ray job submit` of every command, to a cluster of three hosts with their own addresses and a token; and without the token.

As README beside the manifests says: from a checkout that is uploaded, from a machine that is none of the cluster's head. The
head has no cores; what work there is goes to the other two hosts.
"""

import json
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.cluster.schemas import ROOT
from tests.extraction.test_in_process import assert_same
from tests.forwarder import PassingForwarder
from tests.hosts import Hosts, RayHosts, why_not
from tests.photos import RECIPE, frame_of, photo, result_of, s3_options, tlray
from tlray.demo.s3_server import S3Server
from tlray.lake.storage.open import open_store

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

IMAGES = 200
LAPTOP = 2
"""The host from which jobs are submitted: not the head."""


@dataclass
class Submitter:
    """Submits commands of tlray to a cluster, as somebody does who has a checkout and perhaps the token."""

    hosts: Hosts
    cluster: RayHosts
    folder: Path

    def submit(self, name: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """One job, to its end; its output is what the person sees."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        command = [
            *(str(Path(sysconfig.get_path("scripts")) / "ray"), "job", "submit"),
            *("--address", f"http://{self.hosts.addresses[0]}:8265", "--working-dir", str(ROOT)),
            *("--", sys.executable, f"jobs/{name}.py", *arguments),
        ]
        process = self.hosts.start(LAPTOP, command, env=env or self.cluster.env, log=log)
        process.wait(600)
        said = log.read_text()
        print("\n".join(line[:300] for line in said.splitlines()))
        return subprocess.CompletedProcess(command, process.returncode, said, "")

    def result(self, name: str, *arguments: str) -> dict[str, Any]:
        """Of a job that must succeed."""
        process = self.submit(name, *arguments)
        while "No available agent" in process.stdout:  # a cluster starts them last
            time.sleep(1)
            process = self.submit(name, *arguments)
        assert process.returncode == 0, process.stdout
        return json.loads([line for line in process.stdout.splitlines() if line.startswith("{")][-1])


@contextmanager
def cluster_of(hosts: Hosts, server: S3Server, folder: Path) -> Iterator[Submitter]:
    host, _, port = server.endpoint.removeprefix("http://").rpartition(":")
    with (
        PassingForwarder(hosts.listen(), (host, int(port))) as way,
        RayHosts(hosts, cpus=2, env={"AWS_ENDPOINT_URL": way.endpoint}, dashboard=True) as cluster,
    ):
        yield Submitter(hosts, cluster, folder)


@pytest.mark.timeout(1800)
def test_every_command_is_submitted_to_hosts_that_take_only_the_token(s3_env: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    lake, store = s3_bucket, open_store(s3_bucket)
    for number in range(IMAGES):
        store.write(f"{lake}/photos/{('cat', 'dog')[number % 2]}/{number:05d}.jpg", photo(number, (32, 24)))
    source = ("--source.uri", f"{lake}/photos/", "--source.labels", "folder")
    result_of(tlray("extract", "--local", *source, "--table", f"{lake}/reference", *RECIPE))
    with Hosts(3) as hosts, cluster_of(hosts, s3_env, tmp_path) as at:
        assert at.result("extract", *source, "--table", f"{lake}/table", *RECIPE)["ok"] == IMAGES
        assert_same(frame_of(f"{lake}/table", s3_options()), frame_of(f"{lake}/reference", s3_options()))

        tokenless = {name: value for name, value in at.cluster.env.items() if not name.startswith("RAY_AUTH")}
        tokenless["HOME"] = str(tmp_path)  # where there is no ~/.ray/auth_token
        for stranger in (tokenless, {**tokenless, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            refused = at.submit("extract", *source, "--table", f"{lake}/never", *RECIPE, env=stranger)
            assert refused.returncode != 0 and re.search(r"\b401\b|[Uu]nauthenticated|Unauthorized", refused.stdout), (
                refused.stdout
            )
        assert not any(map(len, store.list(f"{lake}/never/")))

        assert at.result("train", "--table", f"{lake}/table", "--out", f"{lake}/model")["model"] == f"{lake}/model"
        predicted = at.result("predict", *source[:2], "--model", f"{lake}/model", "--out", f"{lake}/predictions")
        assert predicted["ok"] == IMAGES
        predictions = frame_of(f"{lake}/predictions", s3_options())
        assert predictions["uri"].n_unique() == len(predictions) == IMAGES and set(predictions["prediction"]) <= {"cat", "dog"}

        at.result("index", "--table", f"{lake}/table", "--out", f"{lake}/index", "--shards", "2", "--factory", "IVF4,Flat")
        answers = f"{lake}/answers.parquet"
        query = ("--index", f"{lake}/index", "--queries", f"{lake}/table", "--out", answers, "--workers", "2", "-k", "1")
        assert at.result("search", *query)["queries"] == IMAGES
        frame = pl.read_parquet(answers, storage_options=s3_options())
        assert len(frame) == IMAGES and (frame["query"] == frame["uri"]).all()
    for made in ("table", "predictions"):
        assert tlray("verify", f"{lake}/{made}").returncode == 0
