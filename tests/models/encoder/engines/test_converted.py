"""OpenVINO and onnxruntime behind the encoder: torch's numbers, whatever is cached, and a process left as it was."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.encoder.engines.opened import opened, pictures, resolve
from tests.models.encoder.engines.test_compiled import Untraceable
from tlray.errors import ConfigError, GoldenMismatchError
from tlray.models.backbones.images import Backbone
from tlray.models.encoder import golden
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines import choice, others
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.models.encoder.golden import make_encoder, make_recipe_file
from tlray.recipe import Compute, least_cosine

NETWORKS = {
    "timm:test_resnet": {},
    "timm:test_vit3": {"taps": ("blocks.0", "norm"), "normalize": True},
    "timm:test_byobnet": {"taps": ("stages.1",), "pool": "gem"},
}


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_torchs_numbers(engine: str, name: str, compute: Compute, tmp_path: Path) -> None:
    backbone, exact = resolve(name, compute, **NETWORKS[name]), resolve(name, **NETWORKS[name])
    images_BHWC = pictures(backbone)
    expected = Encoder(exact, device="cpu", batch_size=2).encode(images_BHWC)
    if not choice.runtime_of(engine).can_compute(compute):
        pytest.skip(f"{engine} does not compute {compute} on this processor")
    encoder = opened(backbone, tmp_path, engine)
    assert encoder.engine == engine
    found = encoder.encode(images_BHWC)
    assert found.keys() == expected.keys()
    for column, features_BD in found.items():
        assert features_BD.dtype == np.float32 and features_BD.shape == expected[column].shape
        assert least_cosine(features_BD, expected[column]) >= (0.999 if compute == "bf16" else 0.99999)


def test_an_embedding_depends_on_its_image_alone(engine: str, backbone: Backbone, folder: Path) -> None:
    images_BHWC, encoder = pictures(backbone), opened(backbone, folder, engine)
    together = encoder.encode(images_BHWC)["embedding"]
    for position in (0, 3, 6):
        alone = encoder.encode(images_BHWC[position : position + 1])["embedding"]
        np.testing.assert_array_equal(alone, together[position : position + 1])
    assert encoder.encode(images_BHWC[:0])["embedding"].shape == (0, together.shape[1])
    with encoder.turn():
        np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], together)
    with pytest.raises(ConfigError, match="uint8"):
        encoder.encode(images_BHWC.astype(np.float32))


def test_many_threads_at_once(engine: str, backbone: Backbone, folder: Path) -> None:
    images_BHWC, encoder = pictures(backbone), opened(backbone, folder, engine)
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


def test_threads_that_take_turns_wait_for_no_other_and_give_the_same(engine: str, backbone: Backbone, folder: Path) -> None:
    """Some keep a lane while others, who keep none, wait for it."""
    images_BHWC, encoder = pictures(backbone), opened(backbone, folder, engine)
    expected = encoder.encode(images_BHWC)["embedding"]

    def in_a_turn(_number: int) -> np.ndarray:
        with encoder.turn():
            time.sleep(0.02)  # the others find no lane
            return encoder.encode(images_BHWC)["embedding"]

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(in_a_turn, number) for number in range(20)]
        asked += [threads.submit(lambda: encoder.encode(images_BHWC)["embedding"]) for _ in range(20)]
        for future in asked:
            np.testing.assert_array_equal(future.result(60), expected)


def test_it_leaves_the_process_as_it_was(engine: str, backbone: Backbone, tmp_path: Path) -> None:
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
    opened(backbone, tmp_path, engine).encode(pictures(backbone))
    assert state() == before


SIGNALLED = """
import os, signal, sys, time
from pathlib import Path
from tests.models.encoder.engines.opened import opened, pictures, resolve
backbone = resolve("timm:test_resnet")
encoders = [opened(backbone, Path(sys.argv[1]), sys.argv[2]) for _ in range(3)]
del encoders[0], encoders[0]  # not in the order in which they were made
encoders[0].encode(pictures(backbone))
def say(number, frame):
    print("taken")
signal.signal(signal.SIGTERM, say)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
"""


def test_a_process_that_used_it_takes_signals(engine: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(folder), engine], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "taken\n", done.stderr


def test_a_network_that_cannot_be_converted_is_torchs(
    engine: str, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    odd = Backbone(recipe, Untraceable().eval(), {"embedding": (3,)})
    encoder = opened(odd, tmp_path, engine)
    assert encoder.engine == "torch"
    assert f"torch computes timm:test_resnet, as {engine} does not:" in caplog.text
    assert encoder.encode(pictures(backbone))["embedding"].shape == (7, 3)


@pytest.mark.usefixtures("any_arithmetic")
@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_what_it_has_no_arithmetic_for_is_computed_at_fp32(
    engine: str, compute: Compute, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if compute in choice.OTHERS[engine].computes:
        pytest.skip(f"{engine} has arithmetic for {compute}")
    with caplog.at_level(logging.INFO):
        encoder = opened(resolve("timm:test_resnet", compute), tmp_path, engine)
    assert f"{engine} computes timm:test_resnet at fp32: it does not compute {compute}" in caplog.text
    assert encoder.computed_by == f"{engine} at fp32"
    images_BHWC = pictures(resolve("timm:test_resnet"))
    expected = opened(resolve("timm:test_resnet"), tmp_path, engine).encode(images_BHWC)["embedding"]
    np.testing.assert_array_equal(encoder.encode(images_BHWC)["embedding"], expected)


def test_numbers_that_are_not_the_tables_are_torchs(
    engine: str, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_recipe_file(backbone)
    other = opened(resolve("timm:test_resnet", weights="random:1"), tmp_path, engine)
    right = golden.open_image_encoder
    monkeypatch.setattr(
        golden, "open_image_encoder", lambda given, wanted: other if wanted.engine == engine else right(given, wanted)
    )
    encoder = make_encoder(file, Path, where="here", backbone=backbone, engine=engine)
    assert isinstance(encoder, Encoder) and encoder.engine == "torch"
    assert f"torch computes timm:test_resnet: {engine} in here computes other embeddings" in caplog.text
    turned = {column: np.roll(rows, 1, axis=0).tolist() for column, rows in file.golden.items()}
    with pytest.raises(GoldenMismatchError, match="here computes other embeddings"):
        make_encoder(file.model_copy(update={"golden": turned}), Path, where="here", backbone=backbone, engine=engine)


@pytest.mark.parametrize("package", ["openvino", "onnxscript"])
def test_where_it_is_not_installed(package: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name.startswith(package):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(others, "version", version)
    name, extra = {"openvino": ("openvino", "openvino"), "onnxscript": ("onnxruntime", "onnx")}[package]
    with pytest.raises(ConfigError, match=rf"engine {name} needs packages .* {package}; .* extra \[{extra}\]"):
        open_image_encoder(backbone, Wanted(name, folder=tmp_path))


def test_where_it_cannot_be_imported(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("model", "imports"):
        monkeypatch.delitem(sys.modules, f"tlray.models.encoder.engines.openvino.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"extra \[openvino\]"):
        open_image_encoder(backbone, Wanted("openvino", folder=tmp_path))


TWO_NETWORKS = """
import logging, sys
from pathlib import Path
from tests.models.encoder.engines.opened import opened, resolve
logging.basicConfig(level=logging.WARNING)
for name in ("timm:test_resnet", "timm:test_vit3"):
    print(opened(resolve(name), Path(sys.argv[1]), sys.argv[2]).engine)
"""


def test_converting_writes_nothing_to_a_users_screen(engine: str, tmp_path: Path) -> None:
    """Not of the second network either, where OpenVINO's own converter shows a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_NETWORKS, str(tmp_path), engine], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == f"{engine}\n{engine}\n"
    assert done.stderr == ""
