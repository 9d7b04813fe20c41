"""What a library of backbones is: the seam at which other libraries are added.

A library has a name, which stands before the colon of its backbones, and gives networks with their weights. tlray's own are in
this folder, one file each; a package adds its own by an entry point of the group `tlray.backbones`
(`<name> = <module>:<class>`). `tests/models/conformance.py` has the tests that each of them passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import nn

from tlray.models.layers.pooling import NO_TOKENS, Layout
from tlray.models.libraries.text_tower import OpenTextTower
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Compute, Preprocessing


@dataclass(frozen=True)
class Request:
    """What is asked of a library.

    Attributes:
        model: what follows `<library>:`, as `resnet50` or `resnet50.a1_in1k`.
        weights: as the user, or a recipe, names them; see `tlray.models.weights.spec.WeightsSpec`.
        crop: (height, width) in pixels of the images that the network is to take; None for those of its weights.
        is_prepared: whether it is said how images are prepared, so that nothing has to be assumed about it.
        said: the fields of the preprocessing that are said; what a library returns of them is not used.
    """

    model: str
    weights: str = "default"
    crop: tuple[int, int] | None = None
    is_prepared: bool = False
    said: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights, and what a recipe needs to know of it.

    Attributes:
        backbone: full name, `<library>:<model>`.
        weights: in full; what `Library.load` takes to load the same again.
        weights_sha256: of the tensors, wherever they came from; the same on every machine.
        module: from images_BCHW, float32 and prepared, to anything; in eval mode, fp32, on the CPU. Its layers are what can be
            tapped: by hooks, or as `tlray.models.layers.taps.Tappable` where they are not torch's.
        preprocessing: how images were prepared for these weights.
        layout: where its layers keep class tokens and channels.
        default_tap: the layer whose output is the embedding; None to find the penultimate one.
        classifiers: modules of its classifier, empty where it has none, None where that is not known; helps to find it.
        classes: what its classifier's outputs stand for, where that is known; empty where it has no classifier of classes.
        unfilled: tensors that have no values (they are not numbers), as a classifier that a file leaves out.
        misfit: the message for taps that need these.
        text_tower: loads the network's text side, where it has one.
        text_tap: the layer whose vectors share a space with the text tower's.
        files: small ones, by name, without which weights that are trained from here could not be loaded; kept beside these.
        packages: installed ones that compute it, beside torch, torchvision and timm: their versions are kept with a table. By
            the names that they are installed or imported by.
        compute: the number format that recipes say of it, where it computes as its file says; None where torch computes in any.
        fixed: why it cannot be trained; empty where it can.
        notes: what was assumed, left out or changed, for people; a sentence each.
    """

    backbone: str
    weights: str
    weights_sha256: str
    module: nn.Module
    preprocessing: Preprocessing
    layout: Layout = NO_TOKENS
    default_tap: str | None = None
    classifiers: Sequence[nn.Module] | None = None
    classes: Sequence[str] | None = None
    unfilled: Sequence[str] = ()
    misfit: str = ""
    text_tower: OpenTextTower | None = None
    text_tap: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    packages: Sequence[str] = ()
    compute: Compute | None = None
    fixed: str = ""
    notes: Sequence[str] = ()


class Library(Protocol):
    """What a library of backbones offers: names, and networks with their weights.

    Attributes:
        name: what stands before the colon of its backbones.
    """

    name: str

    def models(self) -> Sequence[str]:
        """Names of all its models, without tags; empty where anything may be one, as a file."""
        ...

    def has(self, model: str) -> bool:
        """Whether a model, or a model and tag, is one of its own."""
        ...

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """A network with its weights; the same for the same request, in every process.

        Args:
            request: what is wanted.
            fetch: brings the URI or path of a file to a local path.

        Raises:
            BackboneError: it has no such model.
            WeightsError: the weights are missing or do not fit.
            ConfigError: the network cannot take images of that size.
        """
        ...


@dataclass(frozen=True)
class TextSide:
    """The text side of a network, found but not loaded.

    Attributes:
        tap: the layer of its image side whose vectors share a space with the texts'.
        open: loads it.
    """

    tap: str
    open: OpenTextTower


@runtime_checkable
class LibraryOfTexts(Library, Protocol):
    """A library that finds the text side of its networks without loading the image side."""

    def text_side(self, request: Request, fetch: FetchFile) -> TextSide | None:
        """That of the network which `load` gives for the same request; None where it has none.

        Raises:
            BackboneError, WeightsError: as `load`.
        """
        ...


OpenLibrary = Callable[[], Library]
"""What an entry point names: a class, or a function that makes one."""
