"""timm and torchvision, imported without torch's compiler: to be imported before them.

Both ask for it while they are imported, torchvision to learn what it can compile, timm to keep a few methods of one model out
of compiled code. It takes longer to import than torch itself, in each process, and runs nowhere here but where a GPU's network
is compiled. What they ask for is answered when it is first needed. Other threads, which may import the compiler meanwhile,
notice nothing.
"""

import builtins
import contextlib
import importlib
import sys
import threading
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
    """Answer for the compiler in this thread, for a while, where nothing has imported it.

    The stand-in is not put among the process's modules: another thread that imports the compiler at this moment would build
    it upon the stand-in.
    """
    if COMPILER in sys.modules:
        yield
        return
    import_module, disable, utils = builtins.__import__, torch.compiler.disable, _Later(_UTILS)
    asked_by: int | None = threading.get_ident()

    def import_or_answer(name: str, *arguments: Any, **options: Any) -> Any:
        return utils if name == _UTILS and threading.get_ident() == asked_by else import_module(name, *arguments, **options)

    def disable_later(function: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        # The same decorator, as torch itself uses it on its own functions: it imports the compiler at the first call.
        if threading.get_ident() == asked_by:
            return _disable_dynamo(function, recursive)
        return disable(function, recursive, reason=reason)  # type: ignore[no-untyped-call]

    builtins.__import__ = import_or_answer
    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        torch.compiler.disable, builtins.__import__ = disable, import_module
        asked_by = None  # where somebody kept them


with _compiler_left_out():
    import timm
    import torchvision

__all__ = ["timm", "torchvision"]
