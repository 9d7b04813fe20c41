"""Where a model computes, and in what number format."""

import contextlib
import logging
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from tlray.errors import ConfigError
from tlray.models.process.shared_change import SharedChange
from tlray.recipe import Compute

DTYPES: dict[Compute, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of what torch computes itself; int8 is not among it (`tlray.models.encoder.int8`)."""

_log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """CUDA, else Apple's MPS, else the CPU for `auto`; any other name as torch knows it.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}; use auto, cpu, cuda or mps") from error
    return device


def computes_as(device: torch.device, compute: Compute) -> Compute:
    """The number format in which a device computes what is asked for: fp32 where it has no arithmetic for that one of 16 bits.

    Torch would emulate it there, which takes dozens of times as long on a CPU (docs/benchmarks.md). The numbers of fp32 are
    closer to what 16 bits stand for than any rounding of theirs.

    Args:
        device: that computes.
        compute: of the recipe.
    """
    has_arithmetic = {"fp32": lambda _: True, "int8": lambda _: True, "bf16": _has_bf16, "fp16": _has_fp16}
    return compute if has_arithmetic[compute](device) else "fp32"


def settle_compute(device: torch.device, compute: Compute) -> Compute:
    """As `computes_as`; what is computed otherwise is logged."""
    settled = computes_as(device, compute)
    if settled != compute:
        hint = "; new tables are made faster there with --recipe.precision.compute fp16" if device.type == "cuda" else ""
        _log.info("%s has no arithmetic for %s: the network computes at %s%s", device, compute, settled, hint)
    return settled


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return bool(torch.cpu._is_avx512_bf16_supported())  # oneDNN says that it can where it emulates bf16 with AVX-512
    return _has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_fp16(device: torch.device) -> bool:
    return device.type != "cpu" or (_has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()))


def _has_onednn() -> bool:
    """Whether torch was built with it: on Apple's machines it is not, and has no kernels of 16 bits to speak of for CPUs."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a number of images or texts in one forward pass that is none.

    Raises:
        ConfigError: it is under 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")


def threads_of_one_core(count: int, name: str) -> ThreadPoolExecutor:
    """Threads in each of which torch computes on one core; the process's other threads go on as they were.

    Args:
        count: of them.
        name: that theirs begin with.
    """
    pool = ThreadPoolExecutor(count, name, on_one_core)
    are_there = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(are_there.wait)
    are_there.wait()
    torch.set_num_threads(torch.get_num_threads())  # for threads that are yet to come, which begin with what was set last
    return pool


def on_one_core() -> None:
    """Have torch compute on one core in this thread from now on."""
    if torch.get_num_threads() != 1:  # asked first, as torch gives a thread the process's number where it has none of its own
        torch.set_num_threads(1)


def autocast(device: torch.device, compute: Compute) -> torch.autocast:
    """The part of `precision` that belongs to a thread."""
    reduced = compute in ("bf16", "fp16")
    return torch.autocast(device.type, dtype=DTYPES[compute] if reduced else torch.bfloat16, enabled=reduced)


@contextlib.contextmanager
def precision(device: torch.device, compute: Compute) -> Iterator[None]:
    """The recipe's number format, whatever the process has set: fp32 means fp32, without TF32 and without autocast.

    Raises:
        ConfigError: the device lacks an operation at this precision.
    """
    try:
        with _without_tf32, autocast(device, compute):
            yield
    except NotImplementedError as error:
        raise _unsupported(device, compute, error) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not implemented for" not in str(error):
            raise
        raise _unsupported(device, compute, error) from error


@contextlib.contextmanager
def _highest() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


_without_tf32 = SharedChange(_highest)
"""The process's, as torch has it for no thread alone."""


def _unsupported(device: torch.device, compute: Compute, error: Exception) -> ConfigError:
    return ConfigError(
        f"{device} cannot compute this backbone at {compute}: {error}; use recipe.precision.compute fp32 or bf16"
    )
