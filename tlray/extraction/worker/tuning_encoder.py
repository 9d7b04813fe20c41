"""An encoder for GPUs that turns to compiled code in the middle of its work, where that pays."""

import logging
import threading

import numpy as np

from tlray.errors import GoldenMismatchError
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import load_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.compiled import CompiledCache, pays
from tlray.models.encoder.golden import check_encoder, make_encoder
from tlray.models.encoder.network.network import Network
from tlray.models.process.device import choose_device
from tlray.recipe import RecipeFile, of_images

_log = logging.getLogger(__name__)

SAMPLE_IMAGES = 64
"""Images whose embedding was timed before that decides anything."""


class TuningEncoder:
    """Embeds as `Encoder` does; may be called from several threads.

    Compiled code that is on this machine already is used from the start, and the network's own is not even loaded. Otherwise
    the encoder measures itself, and once it knows that compiling pays for what is left, one process of the machine compiles
    while the others go on, and all use what it made.

    Args:
        expected: the table's recipe file.
        where: for messages.
        images: that this encoder will get, about.

    Raises:
        GoldenMismatchError, WeightsError: see `make_encoder`.
    """

    def __init__(self, expected: RecipeFile, *, where: str, images: int) -> None:
        self._expected = expected
        self._where = where
        self._left = images
        self._timed_images, self._timed_seconds = 0, 0.0
        self._lock = threading.Lock()
        self._cache = CompiledCache(expected, choose_device("auto"))
        self._settled = False
        made = self._load_compiled() or make_encoder(expected, local_copy, where=where)
        assert isinstance(made, Encoder)  # texts are never compiled
        self._encoder = made

    def encode_timed(self, inputs: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Embed images as `Encoder.encode_timed` does, with compiled code once that pays."""
        if not self._settled and self._lock.acquire(blocking=False):
            try:
                self._tune()
            finally:
                self._lock.release()
        features, seconds = self._encoder.encode_timed(inputs)
        self._left -= len(inputs)
        self._timed_images += len(inputs)
        self._timed_seconds += seconds
        return features, seconds

    def _tune(self) -> None:
        if not self._cache.is_made:
            if self._timed_images < SAMPLE_IMAGES or not pays(self._left, self._timed_seconds / self._timed_images):
                return
            backbone = load_backbone(of_images(self._expected.recipe), local_copy)
            outcome = self._cache.compile(Network.of(backbone, self._encoder.device, self._expected.exact_below))
            self._settled = outcome == "failed"
            if outcome != "made":
                return
        self._encoder = self._load_compiled() or self._encoder
        self._settled = True

    def _load_compiled(self) -> Encoder | None:
        encoder = self._cache.load()
        if encoder is None:
            return None
        self._settled = True  # for better or worse
        try:
            check_encoder(encoder, self._expected, where=f"compiled code in {self._where}")
        except GoldenMismatchError as error:
            _log.warning("compiled code is not used: %s", error)
            self._cache.drop()
            return None
        return encoder
