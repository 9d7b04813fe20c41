"""Zoos: collections of torch modules with published weights. What each of them knows; `torch_library` makes a library of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tlray.models.layers.pooling import Layout
from tlray.models.weights.digest import State
from tlray.recipe import Preprocessing


@dataclass(frozen=True)
class Variant:
    """How a model is built where its usual configuration is not meant.

    Attributes:
        crop: (height, width) in pixels of its images; None for the configuration's.
        outputs: of its classifier; None likewise.
        config: what a hub's folder says of it; None where there is none.
    """

    crop: tuple[int, int] | None = None
    outputs: int | None = None
    config: Mapping[str, object] | None = None


class Zoo(ABC):
    """A collection of models. An *entry* is one published set of weights of a model: an enum name or a tag."""

    name: str

    @abstractmethod
    def models(self) -> Sequence[str]:
        """Names of all models, without tags."""

    @abstractmethod
    def entries(self, model: str) -> list[str]:
        """The weights that are published for a model; the empty list where there are none."""

    @abstractmethod
    def default_entry(self, model: str) -> str:
        """The entry whose configuration (classes, input size, preprocessing) a model has unless told otherwise."""

    @abstractmethod
    def entry_of(self, model: str, text: str) -> str | None:
        """The entry that a user named, in the zoo's short or its qualified form."""

    @abstractmethod
    def qualified(self, model: str, entry: str) -> str:
        """The name of an entry in a recipe, `<library>:...`."""

    @abstractmethod
    def source(self, model: str, entry: str) -> str:
        """Where an entry is downloaded from, for messages."""

    @abstractmethod
    def build(self, model: str, entry: str, variant: Variant) -> nn.Module:
        """The model as the entry needs it, with the weights that its own initialisation draws, or none within `Undrawn`."""

    @abstractmethod
    def download(self, model: str, entry: str) -> nn.Module:
        """The model with the entry's weights, through the zoo's own download and cache."""

    @abstractmethod
    def takes(self, module: nn.Module, crop: tuple[int, int]) -> bool:
        """Whether a module may take images of this size; one that does not is built for them."""

    @abstractmethod
    def convert(self, model: str, state: State, module: nn.Module) -> State:
        """Tensors of other names or sizes, as a file has them, by a module's names and sizes."""

    @abstractmethod
    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:
        """How images are prepared for an entry, or by the configuration that the module was built with."""

    @abstractmethod
    def layout(self, module: nn.Module) -> Layout:
        """Where a module's layers keep class tokens and channels."""

    @abstractmethod
    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:
        """The modules of its classifier, empty where it has none, None where the zoo does not say."""

    @abstractmethod
    def classifier_names(self, module: nn.Module) -> Sequence[str]:
        """Names of the layers that give its scores; empty where it has none."""

    @abstractmethod
    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:
        """What the outputs of an entry stand for, None where the zoo does not say."""

    def published_as(self, model: str, path: Path, name: str) -> str | None:  # noqa: ARG002
        """The entry whose file this is, by its name or its content; None where that cannot be told."""
        return None

    def describes(self, model: str, config: Mapping[str, object]) -> bool:  # noqa: ARG002
        """Whether a hub folder's configuration says how the model is built and how its images are prepared.

        Raises:
            WeightsError: it is that of another model.
        """
        return False
