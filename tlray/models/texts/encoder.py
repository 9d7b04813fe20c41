"""The encoder of a table of texts: what an extraction's workers need of a text model.

Shape legend: B texts, D embedding length.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from tlray.errors import QueryError
from tlray.models.process.device import check_batch_size, choose_device, on_one_core, threads_of_one_core
from tlray.models.texts.text_model import Embedded, TextBackbone
from tlray.recipe import NORM_FLOOR
from tlray.recipe.texts import TEXT_TAP


class TextRowEncoder:
    """Embeds texts by a recipe; may be called from several threads.

    Args:
        backbone: of the recipe.
        device: `auto` or a name that torch knows; word vectors and static embeddings are on the CPU whatever it is.
        batch_size: texts that are given to the model at once; default the model's own choice.
        lanes: threads that compute at once, one core each; None for one at a time on all cores.

    Attributes:
        computed_by: no engines to choose from.
        trial: likewise.

    Raises:
        ConfigError: there is no such device, or a batch size under 1.
    """

    computed_by = ""
    trial = ""

    def __init__(
        self, backbone: TextBackbone, *, device: str = "auto", batch_size: int | None = None, lanes: int | None = None
    ) -> None:
        check_batch_size(batch_size)
        backbone.model.prepare(lanes or 1, choose_device(device))
        self._model, self._recipe = backbone.model, backbone.recipe
        self._column = backbone.recipe.columns[TEXT_TAP]
        self._has_lanes = lanes is not None
        self._cores = threading.Semaphore(lanes or 1)
        self._held = threading.local()
        self._pool = threads_of_one_core(lanes, "texts") if lanes is not None else None
        self.batch_size = batch_size or backbone.model.turn_texts

    def encode(self, texts: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Embed texts, any number of them.

        Args:
            texts: a sequence or an array of them.

        Returns:
            Per table column features_BD, float32, and per measure of the recipe one number a text, of shape (B, 1); what is not
            finite is passed on.
        """
        return self.encode_timed(texts)[0]

    def encode_timed(self, texts: Sequence[str] | np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Embed as `encode` does, with the seconds for which a core was busy with it; without lanes, of the clock."""
        starts = range(0, len(texts), self.batch_size)
        if self._pool is None or self._holds_core:
            found = [self._embed(texts, start) for start in starts]
        else:
            found = list(self._pool.map(partial(self._embed, texts), starts))
        features_BD = np.concatenate([np.empty((0, self._model.length), np.float32), *(one.features_BD for one, _ in found)])
        if self._recipe.normalize:
            features_BD /= np.maximum(np.linalg.norm(features_BD, axis=1, keepdims=True), NORM_FLOOR)
        columns = {self._column: features_BD}
        for name in self._recipe.measures:
            columns[name] = np.concatenate([np.empty(0, np.float32), *(one.measures[name] for one, _ in found)])[:, None]
        return columns, sum(seconds for _, seconds in found)

    def _embed(self, texts: Sequence[str] | np.ndarray, start: int) -> tuple[Embedded, float]:
        """The batch that begins there, on a core; and the seconds that it took, with lanes of that core's time."""
        clock = time.thread_time if self._has_lanes else time.perf_counter
        with self._core():
            began = clock()
            found = self._model.embed([str(text) for text in texts[start : start + self.batch_size]])
            return found, clock() - began

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts that the table is searched by.

        Args:
            texts: any number of them.

        Returns:
            features_BD, float32, as the table's rows have them.

        Raises:
            QueryError: one of them has no word that the vectors know.
        """
        features_BD = self.encode(texts)[self._column]
        is_known_B = np.isfinite(features_BD).all(axis=1)
        if not is_known_B.all():
            unknown = texts[int(np.argmin(is_known_B))]
            raise QueryError(f"no word of {unknown!r:.100} is known to {self._recipe.backbone}; use other words")
        return features_BD

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a core, and keep it: for other work of this thread, too. With lanes torch has one in it from then on."""
        if self._has_lanes:
            on_one_core()
        with self._core():
            self._held.core = True
            try:
                yield
            finally:
                del self._held.core

    @property
    def turn_images(self) -> int | None:
        """Texts to work on in a turn."""
        return self.batch_size if self._has_lanes else None

    @property
    def _holds_core(self) -> bool:
        return getattr(self._held, "core", False)

    @contextmanager
    def _core(self) -> Iterator[None]:
        if self._holds_core:
            yield
            return
        with self._cores:
            yield
