"""The ways to name weights: what a user writes as `recipe.weights`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlray.errors import WeightsError

FetchFile = Callable[[str], Path]
"""From the URI or path of a file to a local path; passed in, because the object stores are the lake's. Raises
`tlray.errors.SourceError` where there is no such file, or gives a path at which none is."""

FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".tar")
"""Names of files of weights; `.tar` as in `checkpoint.pth.tar`, which torch wrote long ago and trainers still say."""

_OTHER_SUFFIXES = (
    ".index.json", ".h5", ".hdf5", ".keras", ".npz", ".onnx", ".pb", ".tflite", ".dnn", ".cntk", ".msgpack", ".gguf", ".zip",
)  # fmt: skip
"""Further ones that are meant as files, so that the answer is about the file and not about an entry of a library."""

_OPTIONS = re.compile(r"(.*)#([^#/]*)", re.DOTALL)
_BY_ORDER = "order"
_PARTIAL = "partial"


@dataclass(frozen=True)
class WeightsSpec:
    """What a user's `recipe.weights` means, parsed.

    Attributes:
        kind: `library` (the backbone's library publishes them), `file` (or a folder), `package` or `random`.
        location: the library's name for them (or `default`), the URI or path, `<package>[/<file>]`, or the seed.
        options: what follows a file's `#`, split at commas: `order` (match tensors by position), `partial` (leave out tensors
            that the backbone has no place for), the library's name of the weights, or the place of the weights in the file.
    """

    kind: Literal["library", "file", "package", "random"]
    location: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "WeightsSpec":
        """Parse weights as a user writes them.

        Raises:
            WeightsError: a seed that is not a number, or options on something that is not a file.
        """
        match = _OPTIONS.fullmatch(text)
        location, given = (match[1], match[2]) if match else (text, None)
        options = tuple(option.strip() for option in given.split(",")) if given is not None else ()
        if not all(options):
            raise WeightsError(f"weights {text!r}: expected an option after #, as #order, or no #")
        if location.startswith("package:"):
            return cls("package", location.removeprefix("package:"), options)
        if "/" in location or location.lower().endswith(FILE_SUFFIXES + _OTHER_SUFFIXES):
            return cls("file", location, options)
        if options:
            raise WeightsError(f"weights {text!r}: #{given} is for a file, a folder or a package; leave it out")
        if not location.startswith("random:"):
            return cls("library", location)
        seed = location.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
            raise WeightsError(f"weights {text!r}: expected random:<seed> with a seed of digits, as random:0")
        return cls("random", seed)

    @property
    def by_order(self) -> bool:
        """Whether tensors are matched by position, as the file has other names for them."""
        return _BY_ORDER in self.options

    @property
    def is_partial(self) -> bool:
        """Whether tensors of the file that the backbone has no place for are left out, whatever they are."""
        return _PARTIAL in self.options

    @property
    def names(self) -> tuple[str, ...]:
        """Options that name something: weights of the library, or a place in the file."""
        return tuple(option for option in self.options if option not in (_BY_ORDER, _PARTIAL))

    @property
    def text(self) -> str:
        """The weights as a user writes them; `parse` reads it back."""
        prefix = {"package": "package:", "random": "random:"}.get(self.kind, "")
        return prefix + self.location + (f"#{','.join(self.options)}" if self.options else "")


def is_folder(name: str) -> bool:
    """Whether what follows a library's colon is the address of a folder, and not a model's or repository's name."""
    return "://" in name or name.startswith(("/", "./", "../", "~")) or name in (".", "..")
