"""Keras itself, with torch as its backend: importing it, and running it apart from the rest of the process."""

import os
import random
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch

from tlray.errors import ConfigError
from tlray.extras import require
from tlray.models.weights.pickles import READ_ERRORS

Keras = Any
"""The package `keras`, which brings no types."""

_T = TypeVar("_T")

_BACKEND_VARIABLE = "KERAS_BACKEND"
_FAILURES = (*READ_ERRORS, zipfile.BadZipFile, NotImplementedError)

_one_at_a_time = threading.Lock()


class KerasFailure(Exception):  # noqa: N818 - not an error of tlray's own: each caller makes one of it
    """What Keras raised of a file, a download or a size that it cannot have; its text is Keras' own."""


def import_keras(what: str) -> Keras:
    """Keras, computing with torch, whatever the environment and `~/.keras/keras.json` say.

    Keras chooses its backend when it is first imported, by an environment variable, which is set for that moment alone.

    Args:
        what: needs it, as the beginning of a sentence.

    Raises:
        ConfigError: it is not installed, too old, or was imported with another backend before.
    """
    if sys.modules.get("keras") is None:
        with _backend("torch"):
            require("keras", "keras", "h5py", what=what)
    keras = import_module("keras")
    version = str(getattr(keras, "__version__", "0"))
    if int(version.partition(".")[0]) < 3:
        raise ConfigError(f"{what} needs Keras 3, but version {version} is installed: pip install --upgrade keras")
    if (backend := keras.config.backend()) != "torch":
        raise ConfigError(
            f"{what} needs Keras with the backend torch, but this process has imported it with {backend}: set "
            f"{_BACKEND_VARIABLE}=torch before keras is imported, or use tlray in a process of its own"
        )
    return keras


def run_apart(keras: Keras, work: Callable[[], _T], seed: int = 0) -> _T:
    """Run Keras' code so that it neither depends on what the process has set nor changes it.

    In a thread of its own, as Keras counts the names of layers (`conv2d_3`), places tensors and shows progress by thread; on
    the CPU. The type float32, channels last and Python's generator of random numbers, from which Keras draws its seeds, are
    the process's: they are as before when this returns.

    Args:
        keras: of `import_keras`.
        work: builds or loads something.
        seed: that random weights follow from, as after `keras.utils.set_random_seed`.

    Raises:
        KerasFailure: Keras refuses what `work` asks for.
    """
    with _one_at_a_time, ThreadPoolExecutor(1, "keras") as pool:
        future = pool.submit(_as_stated, keras, work, seed)
        error = future.exception()
    if error is None:
        return future.result()
    # Keras raises `Exception` itself where a download fails.
    if type(error) is Exception or isinstance(error, _FAILURES):
        raise KerasFailure(str(error)) from error
    raise error


def _as_stated(keras: Keras, work: Callable[[], _T], seed: int) -> _T:
    config = keras.config
    floatx, data_format, state = config.floatx(), config.image_data_format(), random.getstate()
    try:
        config.set_floatx("float32")
        config.set_image_data_format("channels_last")
        config.disable_interactive_logging()  # which would write to stdout, of this thread alone
        random.seed(seed)
        with keras.device("cpu"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is in an error of ours
            return work()
    finally:
        config.set_floatx(floatx)
        config.set_image_data_format(data_format)
        random.setstate(state)


@contextmanager
def _backend(name: str) -> Iterator[None]:
    before = os.environ.get(_BACKEND_VARIABLE)
    os.environ[_BACKEND_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BACKEND_VARIABLE]
        else:
            os.environ[_BACKEND_VARIABLE] = before
