"""Torch's modules as documents of ONNX, made without TorchScript."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, AttributeError, KeyError)
"""What `torch.export` and `torch.onnx` raise for networks that they cannot convert."""


def export(
    module: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str] | None = None, *, any_batch: bool = False
) -> "onnx.ModelProto":
    """Convert a torch module to an ONNX model.

    Args:
        module: in eval mode; takes one tensor, and returns one or a tuple.
        example: of its input; two rows or more where `any_batch`.
        input_name: in the document.
        output_names: likewise, one for each; default as torch names them.
        any_batch: whether it takes any number of rows, or as many as the example has.

    Raises:
        Exception: one of EXPORT_ERRORS.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if any_batch else None,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto
