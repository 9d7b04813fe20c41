"""timm and torchvision, imported without torch's compiler: to be imported before them.

Both ask for it while they are imported, torchvision to learn what it can compile, timm to keep a few methods of one model out
of compiled code. It takes longer to import than torch itself, in each process, and runs nowhere here but where a GPU's network
is compiled. What they ask for is answered when it is first needed.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

COMPILER = "torch._dynamo"
_UTILS = f"{COMPILER}.utils"


class _Later(ModuleType):
    """Stands in for a module, whose functions import it when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for some
            raise AttributeError(name)

        def later(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return later


@contextlib.contextmanager
def _compiler_left_out() -> Iterator[None]:
    """Answer for the compiler, for a while, where nothing has imported it."""
    if COMPILER in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    sys.modules[_UTILS] = _Later(_UTILS)
    # The same decorator, as torch itself uses it on its own functions: it imports the compiler at the first call.
    torch.compiler.disable = _disable_dynamo  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if isinstance(sys.modules.get(_UTILS), _Later):
            del sys.modules[_UTILS]


with _compiler_left_out():
    import timm
    import torchvision

__all__ = ["timm", "torchvision"]
