"""When a trial is given up before its end.

Shape legend: T images that it is measured on.
"""

import math
from collections.abc import Callable

import numpy as np

from tlray.advice.measuring.difference import Difference

LEVEL = 0.05
"""Chance that a trial which would have reached the head is given up, at each look at it."""


class Watch:
    """Ends a trial that cannot reach the head any more.

    The rule: after a third and after two thirds of the epochs it is measured. Accuracy gains less with each further epoch, so
    it is taken to gain, in each third that is left, at most what it gained in the last one; if even that stays behind the head
    by more than chance explains (paired, image by image, one-sided at `LEVEL`), it is given up.

    Args:
        epochs: of the whole trial.
        head_right_T: which of the images that it is measured on the head tells right.
        majority: accuracy of always answering the largest class.

    Attributes:
        given_up: why it is ended; nothing as long as it is not.
        is_behind: whether that is because it cannot reach the head.
    """

    def __init__(self, epochs: int, head_right_T: np.ndarray, majority: float) -> None:
        self._epochs, self._head_right_T, self._last = epochs, head_right_T, majority
        self._left = {math.ceil(epochs * third / 3): 3 - third for third in (1, 2)}
        self.given_up, self.is_behind = "", False

    def end(self, why: str) -> None:
        """End the trial, and keep why."""
        self.given_up = f"given up: {why}"

    def goes_on(self, done: int, right: Callable[[], np.ndarray]) -> bool:
        """Whether the trial is worth another epoch.

        Args:
            done: epochs.
            right: measures which images the trial tells right.
        """
        thirds = self._left.get(done, 0)
        if thirds and not self.given_up and done < self._epochs:
            right_T = right()
            accuracy = float(right_T.mean())
            gain, self._last = max(0.0, accuracy - self._last), accuracy
            if Difference.of(self._head_right_T, right_T).exceeds(LEVEL, thirds * gain):
                self.is_behind = True
                self.end(
                    f"after {done} of {self._epochs} epochs it is right in {accuracy:.3f}, where the best head is in "
                    f"{self._head_right_T.mean():.3f}, and cannot reach that"
                )
        return not self.given_up
