"""OpenVINO behind the encoder: torch's numbers, whatever is cached, and the choice between the two."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.encoder.engines.test_compiled import Untraceable
from tlray.config import RecipeConfig
from tlray.errors import ConfigError, GoldenMismatchError
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder import golden
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines import choice
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.models.encoder.engines.node_files import read_whole
from tlray.models.encoder.golden import make_encoder, make_recipe_file
from tlray.recipe import Compute, Precision, golden_images, least_cosine

can_compute = pytest.importorskip("tlray.models.encoder.engines.openvino.model", exc_type=ImportError).can_compute

NETWORKS = {
    "timm:test_resnet": {},
    "timm:test_vit3": {"taps": ("blocks.0", "norm"), "normalize": True},
    "timm:test_byobnet": {"taps": ("stages.1",), "pool": "gem"},
}


def resolve(name: str, compute: Compute = "fp32", **wishes: object) -> Backbone:
    settings = {"backbone": name, "weights": "random:0", "precision": Precision(compute=compute)} | wishes
    return resolve_backbone(RecipeConfig.model_validate(settings), Path)


def pictures(backbone: Backbone, count: int = 7) -> np.ndarray:
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    return np.concatenate([images_BHWC, images_BHWC[:, ::-1]])[:count]


def opened(backbone: Backbone, folder: Path, **wishes: object) -> Encoder:
    given: dict = {"engine": "openvino", "lanes": 2, "batch_size": 2, "folder": folder} | wishes
    return open_image_encoder(backbone, Wanted(**given))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve("timm:test_resnet")


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the backbone converted in it."""
    folder = tmp_path_factory.mktemp("openvino")
    assert opened(backbone, folder).engine == "openvino"
    return folder


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_torchs_numbers(name: str, compute: Compute, tmp_path: Path) -> None:
    backbone, exact = resolve(name, compute, **NETWORKS[name]), resolve(name, **NETWORKS[name])
    images_BHWC = pictures(backbone)
    expected = Encoder(exact, device="cpu", batch_size=2).encode(images_BHWC)
    encoder = opened(backbone, tmp_path)
    if compute == "bf16" and not can_compute("bf16"):
        pytest.skip("this processor does not compute bf16")
    assert encoder.engine == "openvino"
    found = encoder.encode(images_BHWC)
    assert found.keys() == expected.keys()
    for column, features_BD in found.items():
        assert features_BD.dtype == np.float32 and features_BD.shape == expected[column].shape
        assert least_cosine(features_BD, expected[column]) >= (0.999 if compute == "bf16" else 0.99999)


def test_an_embedding_depends_on_its_image_alone(backbone: Backbone, folder: Path) -> None:
    images_BHWC, encoder = pictures(backbone), opened(backbone, folder)
    together = encoder.encode(images_BHWC)["embedding"]
    for position in (0, 3, 6):
        alone = encoder.encode(images_BHWC[position : position + 1])["embedding"]
        np.testing.assert_array_equal(alone, together[position : position + 1])
    assert encoder.encode(images_BHWC[:0])["embedding"].shape == (0, together.shape[1])
    with encoder.turn():
        np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], together)
    with pytest.raises(ConfigError, match="uint8"):
        encoder.encode(images_BHWC.astype(np.float32))


def test_many_threads_at_once(backbone: Backbone, folder: Path) -> None:
    images_BHWC, encoder = pictures(backbone), opened(backbone, folder)
    expected = encoder.encode(images_BHWC)["embedding"]
    found: list[np.ndarray] = []

    def work() -> None:
        for _ in range(5):
            found.append(encoder.encode(images_BHWC)["embedding"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for features_BD in found:
        np.testing.assert_array_equal(features_BD, expected)


def test_it_leaves_the_process_as_it_was(backbone: Backbone, tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        tiny = float(torch.tensor(1e-40) * 1)  # what a flush of small numbers to zero would change
        root = logging.getLogger()
        handlers = (root.level, tuple(root.handlers))
        return (
            os.sched_getaffinity(0),
            torch.get_num_threads(),
            tiny,
            handlers,
            dict(os.environ),
            signal.getsignal(signal.SIGINT),
        )

    before = state()
    opened(backbone, tmp_path).encode(pictures(backbone))
    assert state() == before


def test_nothing_is_told_to_its_makers(backbone: Backbone, tmp_path: Path) -> None:
    """Its import and its converter report over the internet, and make files in the home folder for it."""
    code = """
import sys
from pathlib import Path
from tests.models.encoder.engines.test_openvino import opened, resolve
print(opened(resolve("timm:test_resnet"), Path(sys.argv[1])).engine, "openvino_telemetry" in sys.modules)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home)}
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.stdout == "openvino False\n", done.stderr
    assert not (home / "intel").exists()


def test_what_is_kept_is_used_without_converting(backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlray.models.encoder.engines.openvino import cache

    def refuse(*_arguments: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(cache, "convert", refuse)
    expected = Encoder(backbone, device="cpu").encode(pictures(backbone))["embedding"]
    for lanes in (None, 1, 3):  # streams are chosen where it is opened
        encoder = opened(backbone, folder, lanes=lanes)
        assert encoder.engine == "openvino"
        np.testing.assert_allclose(encoder.encode(pictures(backbone))["embedding"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew_and_said(
    damage: str, backbone: Backbone, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = folder.glob("*.blob")
    content = bytearray(there.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[: len(content) // 2], "changed": content, "empty": b""}[damage]
    (tmp_path / there.name).write_bytes(harmed)
    encoder = opened(backbone, tmp_path)
    assert encoder.engine == "openvino"
    assert "is not what was written there, and is made anew" in caplog.text
    assert read_whole(tmp_path / there.name) is not None
    np.testing.assert_array_equal(
        encoder.encode(pictures(backbone))["embedding"], opened(backbone, folder).encode(pictures(backbone))["embedding"]
    )


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.models.encoder.engines.test_openvino import opened, pictures, resolve
from tlray.models.encoder import node_files
if len(sys.argv) > 2:
    replace = Path.replace
    def stop(self, target):
        print("written", flush=True)
        input()
    Path.replace = stop
backbone = resolve("timm:test_resnet")
encoder = opened(backbone, Path(sys.argv[1]))
print(encoder.engine, float(encoder.encode(pictures(backbone))["embedding"].sum()))
"""


def test_one_that_is_killed_while_it_writes_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path)]
    with subprocess.Popen([*arguments, "stop"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "written\n"
        waiting = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        killed.kill()
    found = [process.communicate(timeout=300)[0].split() for process in waiting]
    assert [engine for engine, _ in found] == ["openvino", "openvino"]
    assert found[0] == found[1]
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".blob"]


def test_a_fork_of_its_process_is_refused(backbone: Backbone, folder: Path) -> None:
    """OpenVINO's threads are not there any more, and it would end the process by a segmentation fault."""
    opened(backbone, folder, lanes=1)
    again = multiprocessing.get_context("fork").Process(target=_ask_in_child)
    again.start()
    again.join(120)
    hung = again.exitcode is None
    again.kill()
    assert not hung and again.exitcode == 0


def _ask_in_child() -> None:
    with pytest.raises(RuntimeError, match="start processes by spawn"):
        can_compute("fp32")


SIGNALLED = """
import os, signal, sys, time
from pathlib import Path
from tests.models.encoder.engines.test_openvino import opened, pictures, resolve
backbone = resolve("timm:test_resnet")
encoders = [opened(backbone, Path(sys.argv[1])) for _ in range(3)]
del encoders[0], encoders[0]  # not in the order in which they were made
encoders[0].encode(pictures(backbone))
def say(number, frame):
    print("taken")
signal.signal(signal.SIGTERM, say)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
"""


def test_a_process_that_used_it_takes_signals(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "taken\n", done.stderr


def test_a_network_that_cannot_be_converted_is_torchs(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    odd = Backbone(recipe, Untraceable().eval(), {"embedding": (3,)})
    encoder = opened(odd, tmp_path)
    assert encoder.engine == "torch"
    assert "torch computes timm:test_resnet, as OpenVINO does not:" in caplog.text
    assert encoder.encode(pictures(backbone))["embedding"].shape == (7, 3)


def test_fp16_is_torchs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert opened(resolve("timm:test_resnet", "fp16"), tmp_path).engine == "torch"
    assert "OpenVINO does not compute fp16" in caplog.text


def test_numbers_that_are_not_the_tables_are_torchs(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_recipe_file(backbone)
    other = opened(resolve("timm:test_resnet", weights="random:1"), tmp_path)
    right = golden.open_image_encoder
    monkeypatch.setattr(
        golden, "open_image_encoder", lambda given, wanted: other if wanted.engine == "openvino" else right(given, wanted)
    )
    encoder = make_encoder(file, Path, where="here", backbone=backbone, engine="openvino")
    assert isinstance(encoder, Encoder) and encoder.engine == "torch"
    assert "torch computes timm:test_resnet: openvino in here computes other embeddings" in caplog.text
    turned = {column: np.roll(rows, 1, axis=0).tolist() for column, rows in file.golden.items()}
    with pytest.raises(GoldenMismatchError, match="here computes other embeddings"):
        make_encoder(file.model_copy(update={"golden": turned}), Path, where="here", backbone=backbone, engine="openvino")


def test_where_it_is_not_installed(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("cache", "model", "imports"):
        monkeypatch.delitem(sys.modules, f"tlray.models.encoder.engines.openvino.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"extra \[openvino\]"):
        open_image_encoder(backbone, Wanted("openvino", folder=tmp_path))
    with caplog.at_level(logging.INFO):
        assert opened(backbone, tmp_path, engine="auto", images=10**9).engine == "torch"
    assert "OpenVINO is not to be had here" in caplog.text


class Paced:
    """Seconds of a call in a trial, by the engine."""

    def __init__(self, torchs: float, openvinos: float) -> None:
        self.seconds, self.trials = {"torch": torchs, "openvino": openvinos}, 0

    def __call__(self, encoder: Encoder, _images_BHWC: np.ndarray) -> float:
        self.trials += 1
        return self.seconds[encoder.engine]


@pytest.mark.parametrize(("torchs", "openvinos", "expected"), [(2.0, 1.0, "openvino"), (1.0, 2.0, "torch")])
def test_auto_takes_the_faster_one_and_remembers(
    torchs: float,
    openvinos: float,
    expected: str,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paced = Paced(torchs, openvinos)
    monkeypatch.setattr(choice, "seconds_of", paced)
    assert opened(backbone, tmp_path, engine="auto").engine == "torch"  # how many images there are is not known
    assert paced.trials == 0
    assert opened(backbone, tmp_path, engine="auto", images=999).engine == "torch"  # too few of them
    assert paced.trials == 0
    paced.seconds["torch"] = 1e-3
    assert opened(backbone, tmp_path, engine="auto", images=1000).engine == "torch"  # too fast
    assert paced.trials == 1 and list(tmp_path.glob("*.json")) == []
    paced.seconds["torch"] = torchs
    with caplog.at_level(logging.INFO):
        assert opened(backbone, tmp_path, engine="auto", images=10**6).engine == expected
    assert f"{expected} computes timm:test_resnet on this machine: torch made" in caplog.text
    tried = paced.trials
    assert opened(backbone, tmp_path, engine="auto").engine == expected
    assert opened(backbone, tmp_path, engine="auto", images=10**6).engine == expected
    assert paced.trials == tried
    assert opened(backbone, tmp_path, engine="torch").engine == "torch"
    (verdict,) = tmp_path.glob("*.json")
    verdict.write_text("{")
    assert opened(backbone, tmp_path, engine="auto", images=10**6).engine == expected
    assert paced.trials > tried


def test_auto_remembers_what_cannot_be_converted(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "seconds_of", Paced(1.0, 1.0))
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    odd = Backbone(recipe, Untraceable().eval(), {"embedding": (3,)})
    assert opened(odd, tmp_path, engine="auto", images=10**6).engine == "torch"
    (verdict,) = tmp_path.glob("*.json")
    began = time.monotonic()
    assert opened(odd, tmp_path, engine="auto", images=10**6).engine == "torch"
    assert time.monotonic() - began < 60 and "OpenVINO does not" in verdict.read_text()
