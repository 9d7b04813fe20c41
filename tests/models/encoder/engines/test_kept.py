"""What engines beside torch keep on the machine: used again where it is whole, else made anew, or torch computes."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.encoder.engines.opened import opened, pictures
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines import converted, others
from tlray.models.encoder.engines.node_files import read_whole, write_whole


def test_what_is_kept_is_used_without_converting(
    engine: str, backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(converted.ConvertedCache, "_make", refuse)
    expected = Encoder(backbone, device="cpu").encode(pictures(backbone))["embedding"]
    for lanes in (None, 1, 3):  # streams are chosen where it is opened
        encoder = opened(backbone, folder, engine, lanes=lanes)
        assert encoder.engine == engine
        np.testing.assert_allclose(encoder.encode(pictures(backbone))["embedding"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew_and_said(
    damage: str, engine: str, backbone: Backbone, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = folder.glob("*.blob")
    content = bytearray(there.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[: len(content) // 2], "changed": content, "empty": b""}[damage]
    (tmp_path / there.name).write_bytes(harmed)
    encoder = opened(backbone, tmp_path, engine)
    assert encoder.engine == engine
    assert "is not what was written there, and is made anew" in caplog.text
    assert read_whole(tmp_path / there.name) is not None
    np.testing.assert_array_equal(
        encoder.encode(pictures(backbone))["embedding"],
        opened(backbone, folder, engine).encode(pictures(backbone))["embedding"],
    )


def test_what_another_version_made_is_not_read(
    engine: str, backbone: Backbone, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = folder.glob("*.blob")
    write_whole(tmp_path / there.name, b"of another version")
    monkeypatch.setattr(others, "version", lambda package: f"{package} of another year")
    encoder = opened(backbone, tmp_path, engine)
    expected = Encoder(backbone, device="cpu").encode(pictures(backbone))["embedding"]
    np.testing.assert_allclose(encoder.encode(pictures(backbone))["embedding"], expected, rtol=1e-3, atol=1e-4)
    assert encoder.engine == engine and len(list(tmp_path.glob("*.blob"))) == 2


def test_what_the_engine_cannot_open_is_torchs(
    engine: str, backbone: Backbone, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = folder.glob("*.blob")
    write_whole(tmp_path / there.name, b"whole, and no network")
    encoder = opened(backbone, tmp_path, engine)
    assert encoder.engine == "torch" and f"torch computes timm:test_resnet, as {engine} does not" in caplog.text
    assert encoder.encode(pictures(backbone))["embedding"].shape == (7, 96)


@pytest.mark.parametrize("wished", ["itself", "auto"])
def test_where_nothing_can_be_kept_torch_computes(
    wished: str, engine: str, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    encoder = opened(backbone, tmp_path / "taken", engine if wished == "itself" else "auto", images=10**6)
    assert encoder.engine == "torch" and "torch computes timm:test_resnet" in caplog.text
    assert encoder.encode(pictures(backbone))["embedding"].shape == (7, 96)


def test_a_full_disk_keeps_nothing_of_it(
    engine: str, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        encoder = opened(backbone, tmp_path, engine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert encoder.engine == "torch" and "File too large" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.models.encoder.engines.opened import opened, pictures, resolve
if len(sys.argv) > 3:
    def stop(self, target):
        print("written", flush=True)
        input()
    Path.replace = stop
backbone = resolve("timm:test_resnet")
encoder = opened(backbone, Path(sys.argv[1]), sys.argv[2])
print(encoder.engine, float(encoder.encode(pictures(backbone))["embedding"].sum()))
"""


def test_one_that_is_killed_while_it_writes_leaves_nothing_that_is_read(engine: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-X", "faulthandler", "-c", IN_ANOTHER_PROCESS, str(tmp_path), engine]
    with subprocess.Popen([*arguments, "stop"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "written\n"
        waiting = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        killed.kill()
    found = [process.communicate(timeout=300)[0].split() for process in waiting]
    assert [process.returncode for process in waiting] == [0, 0]
    assert [name for name, _ in found] == [engine, engine]
    assert found[0] == found[1]
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".blob"]
