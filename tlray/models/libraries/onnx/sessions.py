"""Sessions of onnxruntime: the cut model, ready to run, shared by all threads that compute with it."""

import logging
import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tlray.errors import BackboneError, first_line
from tlray.models.libraries.onnx.graph import Graph

RUN_ERRORS = (
    state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile, state.NotImplemented,
    state.RuntimeException, state.EPFail, state.EngineError, RuntimeError,
)  # fmt: skip
"""What onnxruntime raises of models that it cannot compute."""

_ERRORS_ALONE = 3
"""Severity of what it writes to stderr by itself."""

_CODES = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")

_log = logging.getLogger(__name__)


def new_session(
    document: bytes, threads: int, device: torch.device, *, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """Make the session of onnxruntime that computes a model.

    Args:
        document: the model.
        threads: that share the work of each layer.
        device: `cpu` or `cuda`, with a number perhaps.
        folder: of the other files that its tensors lie in, where there are any.

    Raises:
        Exception: one of RUN_ERRORS.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ALONE
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(document, options, providers=_providers(device))


class Session:
    """A model that ends at some taps.

    Args:
        graph: of the whole model.
        taps: of its layers.
        threads: that share the work of each layer.
        device: `cpu` or `cuda`, with a number perhaps.

    Raises:
        BackboneError: onnxruntime cannot compute it.
    """

    def __init__(self, graph: Graph, taps: Sequence[str], threads: int, device: torch.device) -> None:
        self.taps = tuple(taps)
        self._names = [graph.output_name(tap) for tap in taps]
        self._input, self._where = graph.image.name, graph.file.where
        try:
            self._session = new_session(graph.end_at(taps), threads, device, folder=graph.file.folder)
        except RUN_ERRORS as error:
            raise BackboneError(
                f"onnxruntime {onnxruntime.__version__} cannot compute {self._where} up to {', '.join(taps)}: "
                f"{reason_of(error)}; export it for operators that this version has"
            ) from error

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the features of the taps for some images.

        Args:
            images: of the input's type and shape.

        Raises:
            RuntimeError: the model cannot compute so many images, or images of this size.
            BackboneError: a tap gives no floats.
        """
        try:
            values: list[np.ndarray] = self._session.run(self._names, {self._input: images})
        except RUN_ERRORS as error:
            raise RuntimeError(f"onnxruntime: {reason_of(error)}") from error
        for tap, value in zip(self.taps, values, strict=True):
            if not (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise BackboneError(f"layer {tap} of {self._where} gives {kind}, expected floats; tap another")
        return values


class Sessions:
    """Sessions of a graph, made when they are first needed; each lives as long as somebody uses it, the newest longer.

    Args:
        graph: of the model.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._lock = threading.Lock()
        self._open: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
        self._newest: Session | None = None

    def get(self, taps: Sequence[str], threads: int, device: torch.device) -> Session:
        """The session of some taps; for threads of one core each, they share one of a single thread."""
        key = (tuple(taps), threads, str(device))
        with self._lock:
            session = self._open.get(key)
            if session is None:
                session = self._open[key] = self._newest = Session(self._graph, taps, threads, device)
            return session


def _providers(device: torch.device) -> list[object]:
    """Where to compute: on a GPU at full precision, without TF32, where onnxruntime is built for it."""
    if device.type == "cuda" and _has_cuda():
        options = {"device_id": str(device.index or 0), "use_tf32": "0"}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


@cache
def _has_cuda() -> bool:
    has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if not has:
        _log.warning("ONNX models are computed on the CPU here: this onnxruntime has no CUDA (pip install onnxruntime-gpu)")
    return has


def reason_of(error: Exception) -> str:
    """An error of onnxruntime without its codes."""
    return _CODES.sub("", first_line(error)).strip()
