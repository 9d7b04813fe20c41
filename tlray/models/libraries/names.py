"""Names of backbones: `<library>:<model>`, or a model's name alone where a library has it."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

from tlray.errors import BackboneError
from tlray.models.libraries.library import Library
from tlray.models.weights.foreign import advice
from tlray.recipe.texts import is_of_texts

ENTRY_POINTS = "tlray.backbones"
"""Group of entry points by which an installed package adds a library: `<name> = <module>:<class>`, called without arguments."""

_OURS = {
    "torchvision": "tlray.models.libraries.torchvision:library",
    "timm": "tlray.models.libraries.timm:library",
    "onnx": "tlray.models.libraries.onnx.library:library",
    "keras": "tlray.models.libraries.keras.library:library",
    "hf": "tlray.models.libraries.huggingface.library:library",
    "openclip": "tlray.models.libraries.openclip.library:library",
}
"""Our libraries, as entry points name them. In this order they are asked for a name that comes without its library."""

_ONLY_IN_FULL = ("keras",)
"""Libraries that are not asked for a name that comes without: Keras' names are others' but for their capitals (`ResNet50`)."""

_FILES = {".onnx": "onnx", ".keras": "keras", ".h5": "keras", ".hdf5": "keras"}
"""Endings of files that are backbones, and their libraries."""

_SHOWN = 5


@cache
def library_names() -> tuple[str, ...]:
    """Names of all libraries: tlray's own, then those of installed packages."""
    others = sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - _OURS.keys())
    return (*_OURS, *others)


@cache
def open_library(name: str) -> Library:
    """The library of a name; its packages are imported now.

    Args:
        name: what stands before the colon.

    Raises:
        BackboneError: there is none, or it cannot be imported.
    """
    library: Library
    if name in _OURS:
        module, _, function = _OURS[name].partition(":")
        library = getattr(import_module(module), function)()
        return library
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if len(points) != 1:
        packages = ", ".join(sorted(str(point.dist and point.dist.name) for point in points)) or "none"
        raise BackboneError(
            f"there is no one library of backbones {name!r}: installed packages that have it: {packages}; "
            f"the libraries here: {', '.join(library_names())}"
        )
    try:
        library = points[0].load()()
    except ImportError as error:
        raise BackboneError(f"the library of backbones {name!r} ({points[0].value}) cannot be imported: {error}") from error
    return library


def full_name(text: str) -> str:
    """The whole name of a backbone that a user may have named without its library.

    A name that several libraries have means the first one's, torchvision's before timm's; one with a timm tag means timm's.

    Args:
        text: `torchvision:resnet50`, or `resnet50`.

    Returns:
        `<library>:<model>`; the model is one that the library has, a tag after it is not checked.

    Raises:
        BackboneError: no library has it; the message says what was probably meant.
    """
    prefix, colon, name = text.strip().partition(":")
    if prefix not in library_names():
        _check_path(text.strip())
    if not colon:
        return _with_library(prefix)
    if prefix not in library_names():
        raise _no_library(text, prefix, name)
    if not name or not _has(prefix, name):
        raise BackboneError(f"there is no backbone {text!r}; {_near(name, [prefix])}")
    return f"{prefix}:{name}"


def libraries_with(name: str) -> list[str]:
    """The libraries that have a model of exactly this name, in the order in which they are asked."""
    asked = [open_library(library) for library in library_names() if library not in _ONLY_IN_FULL]
    return [library.name for library in asked if library.models() and library.has(name)]


def split_name(backbone: str) -> tuple[Library, str]:
    """The library of a backbone's full name, and what stands after the colon.

    Raises:
        BackboneError: there is no such library, or no such model in it.
    """
    prefix, _, name = full_name(backbone).partition(":")
    return open_library(prefix), name


def _check_path(text: str) -> None:
    """Say how the path of a file is given, where one stands without its library."""
    foreign = advice(text, Path)
    if foreign is not None:
        raise BackboneError(f"backbone {text}: {foreign}")
    if (library := _FILES.get(PurePosixPath(text).suffix.lower())) is not None:
        raise BackboneError(f"backbone {text}: a file stands after its library: give {library}:{text}")


def _with_library(name: str) -> str:
    found = libraries_with(name)
    if not found:
        libraries = ", ".join(f"{library}:" for library in library_names())
        advice = f"a model of the Hugging Face Hub is hf:{name}" if "/" in name else _near(name, library_names())
        raise BackboneError(
            f"there is no backbone {name!r}: expected one of the libraries {libraries} with a model's name, or a name that one "
            f"of them has; {advice}"
        )
    return f"{found[0]}:{name}"


def _has(library: str, name: str) -> bool:
    models = open_library(library).models()
    return not models or name.partition(".")[0] in models or open_library(library).has(name)


def _no_library(text: str, prefix: str, name: str) -> BackboneError:
    if is_of_texts(text):
        return BackboneError(f"backbone {text!r} embeds texts; a network of images is needed here (heads train on its tables)")
    if prefix.lower() in library_names():
        return BackboneError(f"backbone {text!r}: libraries are written small, as {prefix.lower()}:{name}")
    if found := libraries_with(name):
        advice = f"expected {' or '.join(f'{library}:{name}' for library in found)}"
    else:
        advice = _near(name, library_names())
    return BackboneError(
        f"backbone {text!r}: there is no library {prefix!r}; the libraries here: {', '.join(library_names())}; {advice}"
    )


def _near(name: str, libraries: Sequence[str]) -> str:
    """Models whose names are like one, spelled as the libraries spell them."""
    wanted = _plain(name.partition(".")[0])
    models = [f"{library}:{model}" for library in libraries for model in open_library(library).models()]
    plain = {model: _plain(model.partition(":")[2]) for model in models}
    same = [model for model in models if plain[model] == wanted]
    if same:
        return f"expected {' or '.join(same)}"
    near = difflib.get_close_matches(wanted, sorted(set(plain.values())), n=_SHOWN, cutoff=0.5)
    shown = [model for one in near for model in models if plain[model] == one][:_SHOWN]
    if shown:
        return f"near ones: {', '.join(shown)}"
    return f"see the {len(models)} names of {', '.join(libraries)}"


def _plain(name: str) -> str:
    """A name without what people write differently: case, and signs between its parts."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
