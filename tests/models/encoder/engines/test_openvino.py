"""OpenVINO within a process: what it does beside computing."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tests.models.encoder.engines.opened import opened, pictures, resolve
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder

can_compute = pytest.importorskip("tlray.models.encoder.engines.openvino.model", exc_type=ImportError).can_compute


def test_nothing_is_told_to_its_makers(tmp_path: Path) -> None:
    """Its import and its converter report over the internet, and make files in the home folder for it."""
    code = """
import sys
from pathlib import Path
from tests.models.encoder.engines.opened import opened, resolve
print(opened(resolve("timm:test_resnet"), Path(sys.argv[1]), "openvino").engine, "openvino_telemetry" in sys.modules)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home)}
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.stdout == "openvino False\n", done.stderr
    assert not (home / "intel").exists()


class Antialiased(nn.Module):
    """Has an operation that OpenVINO has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        out: Tensor = self.layer(interpolate(images_BCHW, (2, 2), mode="bicubic", antialias=True).flatten(1))
        return out


def test_an_operation_that_it_does_not_know_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = resolve("timm:test_resnet")
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    encoder = opened(Backbone(recipe, Antialiased().eval(), {"embedding": (12,)}), tmp_path, "openvino")
    assert encoder.engine == "torch"
    assert "as openvino does not: No conversion rule found for operations: aten._upsample_bicubic2d_aa" in caplog.text


def test_a_fork_of_its_process_is_refused(tmp_path: Path) -> None:
    """OpenVINO's threads are not there any more, and it would end the process by a segmentation fault."""
    backbone = resolve("timm:test_resnet")
    encoder = opened(backbone, tmp_path, "openvino")
    again = multiprocessing.get_context("fork").Process(target=_ask_in_child, args=(encoder, pictures(backbone)))
    again.start()
    again.join(120)
    hung = again.exitcode is None
    again.kill()
    assert not hung and again.exitcode == 0


def _ask_in_child(encoder: Encoder, images_BHWC: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="start processes by spawn"):
        can_compute("fp32")
    with encoder.turn(), pytest.raises(RuntimeError, match="start processes by spawn"):
        encoder.encode(images_BHWC)
