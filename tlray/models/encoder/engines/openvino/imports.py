"""OpenVINO, imported without its telemetry.

Its import tells its makers that it happened, over the internet, and makes files for that in the home folder; nobody is asked.
Where the package that does so is missing, it goes on without, so it is missing while OpenVINO is imported. A program that has
imported OpenVINO before keeps what it has.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Have imports of a module fail."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # as the import system's documents say
    try:
        yield
    finally:
        del sys.modules[name]


with _missing(_TELEMETRY):
    import openvino
    from openvino.frontend import (
        FrontEndManager,
        GeneralFailure,
        InitializationFailure,
        NotImplementedFailure,
        OpConversionFailure,
        OpValidationFailure,
    )
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

FRONTEND_ERRORS = (GeneralFailure, InitializationFailure, NotImplementedFailure, OpConversionFailure, OpValidationFailure)
"""What its converters raise; none of Python's own kinds."""

__all__ = ["FRONTEND_ERRORS", "FrontEndManager", "TorchFXPythonDecoder", "openvino", "ops_to_not_decompose"]
