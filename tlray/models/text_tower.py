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
    """

    length: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as the network's authors do it; safe in several threads.

        Texts that are longer than the network takes are cut at its end; that is logged.

        Args:
            texts: any number of them, in natural language; each alone decides its vector.

        Returns:
            features_BD, float32, at fp32 on the CPU, in the space of the image tower's shared tap; not normalised.
        """
        ...


OpenTextTower = Callable[[], TextTower]
"""Loads a text tower; called only where texts are embedded, never by the workers of an extraction."""
