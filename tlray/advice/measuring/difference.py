"""How much more of the same images one way tells right than another, and what chance explains of it.

Shape legend: N images.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Difference:
    """How much more of the same images one way tells right than another.

    Attributes:
        mean: share of images.
        error: its standard error.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, right_N: np.ndarray, other_N: np.ndarray) -> "Difference":
        """Compare image by image. The error is that of one more image on each side, so that it is never 0.

        Args:
            right_N: whether each image is told right, or in which share of several cross-validations.
            other_N: likewise, by the other way.
        """
        difference_N = right_N.astype(np.float64) - other_N
        rows, mean = len(difference_N), float(difference_N.mean())
        variance = (float(np.square(difference_N).sum()) + 2) / rows - mean**2
        return cls(mean, math.sqrt(max(variance, 0.0) / rows))

    def exceeds(self, level: float, least: float = 0.0) -> bool:
        """Whether it is over a least one by more than chance explains at a one-sided level."""
        return self.mean - least > NormalDist().inv_cdf(1 - level) * self.error
