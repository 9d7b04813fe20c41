"""Keras beside the rest of a process: its backend, its settings, and what is said where it is not."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models.libraries.keras.oracle import application, keras, resolve
from tlray.models.libraries.keras.runtime import run_apart

NOT_THERE = """
import sys
sys.modules["keras"] = None
from tlray.cli import main
sys.exit(main(["extract", sys.argv[1], sys.argv[2], "--backbone", "keras:VGG16", "--local"]))
"""

OTHER_BACKEND = """
import os, sys, types
keras = types.ModuleType("keras")
keras.__version__, keras.config = "3.15.1", types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = keras
from tlray.cli import main
sys.exit(main(["extract", sys.argv[1], sys.argv[2], "--backbone", "keras:VGG16", "--local"]))
"""

ENVIRONMENT = """
import os
from tlray.models.libraries.keras.runtime import import_keras
keras = import_keras("a test")
print(keras.config.backend(), os.environ.get("KERAS_BACKEND"))
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (NOT_THERE, "backbone keras:VGG16 needs packages that are not installed: pip install keras"),
        (OTHER_BACKEND, "but this process has imported it with jax: set KERAS_BACKEND=torch before keras is imported"),
    ],
)
def test_without_keras_on_torch(code: str, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    done = run(code, str(tmp_path), str(tmp_path.with_name("table")))
    assert done.returncode == 2, done.stderr
    begun, refused = done.stderr.strip().splitlines()  # what the run is to do, and why it cannot
    assert ", by tlray " in begun and message in refused


def test_the_backend_is_torch_whatever_the_environment_says() -> None:
    assert run(ENVIRONMENT, KERAS_BACKEND="tensorflow").stdout.split() == ["torch", "tensorflow"]


def test_nothing_of_the_process_is_changed() -> None:
    random.seed(1)
    torch.manual_seed(1)
    state, tensors = random.getstate(), torch.get_rng_state()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    try:
        backbone = resolve("keras:MobileNet", "random:0")
        assert (keras.config.image_data_format(), keras.config.floatx()) == ("channels_first", "float16")
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), tensors)
    assert backbone.recipe == resolve("keras:MobileNet", "random:0").recipe  # and names of layers count from the start
    assert backbone.recipe.taps == ("global_average_pooling2d",)


def test_random_weights_are_those_that_keras_draws() -> None:
    ours = resolve("keras:MobileNet", "random:0").module.state_dict()
    theirs = application("MobileNet", input_shape=(224, 224, 3)).get_layer("conv_pw_13").kernel.value
    assert torch.equal(ours["conv_pw_13.weight"], theirs.permute(3, 2, 0, 1))
    assert not torch.equal(
        ours["conv_pw_13.weight"], resolve("keras:MobileNet", "random:1").module.state_dict()["conv_pw_13.weight"]
    )


def test_errors_of_our_own_code_are_not_taken_for_keras() -> None:
    with pytest.raises(ZeroDivisionError):
        run_apart(keras, lambda: 1 / 0)
