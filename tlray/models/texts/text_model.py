"""What a backbone of texts is: texts in, vectors out.

Shape legend: B texts, D embedding length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from tlray.recipe.texts import TEXT_TAP, TextRecipe


@dataclass(frozen=True)
class Embedded:
    """What a text model makes of some texts.

    Attributes:
        features_BD: float32.
        measures: by the names of `TextRecipe.measures`, measure_B, float32.
    """

    features_BD: np.ndarray
    measures: dict[str, np.ndarray] = field(default_factory=dict)


class TextModel(Protocol):
    """Word vectors with a rule, or a sentence encoder; safe in as many threads as it was made ready for.

    Attributes:
        length: D.
        turn_texts: texts that a thread works on in one turn on a core.
        packages: whose versions its vectors may depend on.
    """

    length: int
    turn_texts: int
    packages: tuple[str, ...]

    def prepare(self, threads: int, device: torch.device) -> None:
        """Be ready for so many threads at once, one unless it is called.

        Args:
            threads: that embed at once.
            device: where a network computes; word vectors are always looked up on the CPU.
        """
        ...

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts; the vector of each depends on nothing but the text."""
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of some texts are longer than it takes, so that their ends do not count."""
        ...

    def examples(self) -> tuple[str, ...]:
        """A few texts that show whether this model computes what it should: the golden texts of a new table."""
        ...


@dataclass(frozen=True)
class TextBackbone:
    """A text model and all that its embeddings depend on.

    Attributes:
        recipe: complete, with the weights' hash.
        model: loaded.
        notes: what was assumed, left out or changed, for people.
    """

    recipe: TextRecipe
    model: TextModel
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Per table column, the shape of one embedding."""
        return {self.recipe.columns[TEXT_TAP]: (self.model.length,)}
