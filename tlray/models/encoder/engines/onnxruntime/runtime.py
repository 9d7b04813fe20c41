"""A network as onnxruntime runs it on a CPU: the torch module with its taps, pooling and preparation of pixels as one document.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

from collections.abc import Sequence

import onnxruntime
import torch
from google.protobuf.message import Error as ProtobufError
from torch import Tensor

from tlray.errors import first_line
from tlray.models.encoder.engines.onnxruntime.export import export
from tlray.models.encoder.lanes import Forward
from tlray.models.encoder.network.network import Network
from tlray.models.libraries.onnx.sessions import RUN_ERRORS, new_session, reason_of
from tlray.recipe import Compute

INPUT = "images"


class OnnxForward:
    """A session, called as a lane calls a network; may be called by several threads.

    Args:
        session: of one input, images_BHWC, and one output a tap.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, images_BHWC: Tensor) -> Sequence[Tensor]:
        """Compute the outputs of one batch."""
        try:
            found = self._session.run(None, {INPUT: images_BHWC.numpy()})
        except RUN_ERRORS as error:
            raise RuntimeError(reason_of(error)) from error
        return [torch.from_numpy(features_BD) for features_BD in found]


class OnnxGraph:
    """An ONNX model as a graph; see `tlray.models.encoder.engines.converted.Graph`."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    def count_layers(self) -> int:
        """None that could be at another precision than fp32."""
        return 0

    def at(self, compute: Compute, exact_below: int) -> bytes:  # noqa: ARG002
        """The document; onnxruntime makes what suits a processor of it when it is opened."""
        return self._document


class OnnxRuntime:
    """The engine onnxruntime; see `tlray.models.encoder.engines.converted.Runtime`."""

    title = "onnxruntime"

    def can_compute(self, compute: Compute) -> bool:
        """At fp32 alone: on CPUs it has no more."""
        return compute == "fp32"

    def convert(self, network: Network, example_BHWC: Tensor) -> OnnxGraph:
        """Convert a network of fp32 for as many images as the example has."""
        try:
            return OnnxGraph(export(network.again().eval(), example_BHWC, INPUT).SerializeToString())
        except ProtobufError as error:  # a document of more than 2 GB
            raise RuntimeError(first_line(error)) from error

    def open(self, content: bytes, compute: Compute, lanes: int) -> Sequence[Forward]:  # noqa: ARG002
        """A session of one thread for all lanes, as each runs it in its own; else one of all cores."""
        try:
            session = new_session(content, 1 if lanes else torch.get_num_threads(), torch.device("cpu"))
        except RUN_ERRORS as error:
            raise RuntimeError(reason_of(error)) from error
        return [OnnxForward(session)] * max(lanes, 1)
