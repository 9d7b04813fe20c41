"""Text towers: what maps sentences into the space of a network's images, as CLIP (Radford et al., 2021, arXiv 2103.00020) does.

Shape legend: B texts, D embedding length.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class TextTower(Protocol):
    """The text side of a network of two towers, with its tokeniser.

    Attributes:
        length: D, of its vectors, and of those of the image tower's shared tap.
        logit_scale: what the cosine of an image and a text is multiplied by before a softmax over texts, as it was learned.
    """

    length: int
    logit_scale: float

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as the network's authors do it; safe in several threads.

        Texts that are longer than the network takes lose their ends.

        Args:
            texts: any number of them, in natural language; each alone decides its vector.

        Returns:
            features_BD, float32, at fp32 on the CPU, in the space of the image tower's shared tap; not normalised.
        """
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of some texts are longer than the network takes.

        Args:
            texts: any number of them.
        """
        ...


OpenTextTower = Callable[[], TextTower]
"""Loads a text tower; called only where texts are embedded, never by the workers of an extraction."""
