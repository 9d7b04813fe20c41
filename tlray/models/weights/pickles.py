"""Reading what `torch.save` wrote, without running code that the file may hold."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

READ_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, pickle.UnpicklingError,
)  # fmt: skip
"""What torch's restricted unpickler raises of files that are damaged or were made to harm."""


class _Inert:
    """Stands for an object of a class that is not torch's own: holds nothing, does nothing, imports nothing."""

    def __new__(cls, *_arguments: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _InertMapping:
    """Stands for one of a class of mappings, whose items are read: becomes a plain mapping."""

    def __new__(cls, *_arguments: Any) -> Any:
        return OrderedDict()


def read_pickle(path: Path) -> tuple[object, Sequence[str]]:
    """What a file of `torch.save` holds, on the CPU, mapped into memory where that can be.

    torch's restricted unpickler (`weights_only`) makes tensors and plain containers alone. Training checkpoints hold more (an
    `argparse.Namespace`, NumPy's numbers, settings of a framework): such objects are put in as ones that do nothing, by the
    names of their classes, none of which is imported or called.

    Args:
        path: of the file.

    Returns:
        The document, and the names of the classes and functions whose objects were not made.

    Raises:
        pickle.UnpicklingError: it asks for what even that does not allow.
        READ_ERRORS: it is no file of `torch.save`, or damaged.
    """
    is_zip = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip), ()
    except pickle.UnpicklingError as error:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        for stand_in in (_Inert, _InertMapping) if names else ():
            try:
                with torch.serialization.safe_globals([(stand_in, name) for name in names]):
                    return torch.load(path, map_location="cpu", weights_only=True, mmap=True), sorted(names)
            except READ_ERRORS:
                continue
        raise error
