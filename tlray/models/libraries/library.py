"""What a library of backbones offers."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from tlray.recipe import Preprocessing


class Library(Protocol):
    """What a library of pretrained models offers. An *entry* is one published set of weights: an enum name or a tag."""

    name: str

    def models(self) -> list[str]:
        """Names of all classification models."""
        ...

    def entries(self, model: str) -> list[str]:
        """The weights it publishes for a model; the empty list where there are none."""
        ...

    def default_entry(self, model: str) -> str:
        """The entry whose configuration (classes, input size, preprocessing) a model has unless told otherwise."""
        ...

    def entry_of(self, model: str, text: str) -> str | None:
        """The entry that a user named, in the library's short or its qualified form."""
        ...

    def qualified(self, model: str, entry: str) -> str:
        """The name of an entry in a recipe, `<library>:...`."""
        ...

    def source(self, model: str, entry: str) -> str:
        """Where an entry is downloaded from, for messages."""
        ...

    def build(self, model: str, entry: str) -> nn.Module:
        """The model as the entry needs it, with the weights that its own initialisation draws."""
        ...

    def download(self, model: str, entry: str) -> nn.Module:
        """The model with the entry's weights, through the library's own download and cache."""
        ...

    def preprocessing(self, model: str, entry: str, module: nn.Module) -> Preprocessing:
        """The preprocessing that the entry was evaluated with."""
        ...

    def classifiers(self, module: nn.Module) -> Sequence[nn.Module] | None:
        """The modules of its classifier, empty where it has none, None where the library does not say."""
        ...

    def class_names(self, model: str, entry: str, module: nn.Module) -> Sequence[str] | None:
        """What the outputs of an entry stand for, None where the library does not say."""
        ...
