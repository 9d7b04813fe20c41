"""Images or texts in any form through a network, chunk by chunk: while one is embedded, the next one is decoded.

Shape legend: B images, H height, W width, C channels, D length of a vector, N all images.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, get_args

import numpy as np

from tlray.errors import ConfigError, ImageError, ImageErrorCode
from tlray.machine.capacity import usable_cores
from tlray.recipe import AnyRecipe, kind_of

OnError = Literal["raise", "nan"]
"""What becomes of an image that cannot be used: an ImageError that names it, or a row of NaN."""

_SHOWN_FAILURES = 3
_log = logging.getLogger("tlray")


def check_on_error(on_error: str) -> None:
    """Refuse what is none of OnError's values.

    Raises:
        ConfigError: it is.
    """
    if on_error not in get_args(OnError):
        raise ConfigError(f"on_error: expected one of {', '.join(get_args(OnError))}, given {on_error!r}")


class Inputs(Protocol):
    """What a runner needs to know of the things that it runs; images' are `ImageInputs`, texts' `TextInputs`."""

    def each(self, given: Any) -> Iterator[Any]:
        """The single ones of anything that holds some, in order."""
        ...

    def name_of(self, position: int, one: Any) -> str:
        """One of them, as a message names it."""
        ...

    def label_of(self, position: int, one: Any) -> str:
        """One of them, as a table of predictions names it."""
        ...

    def prepare(self, one: Any) -> Any:
        """One of them, as the network takes it."""
        ...

    def join(self, prepared: list[Any]) -> np.ndarray:
        """Several prepared ones, as the network takes them together."""
        ...


@dataclass
class Runner:
    """Runs images or texts through a network, a chunk at a time.

    Attributes:
        recipe: of the network.
        inputs: how they are taken apart and prepared.
        network: from images_BHWC, uint8, or texts_B, objects, to vectors_BD, float32.
        length: D.
        chunk_images: images or texts that are prepared before they go through the network together.
    """

    recipe: AnyRecipe
    inputs: Inputs
    network: Callable[[np.ndarray], np.ndarray]
    length: int
    chunk_images: int

    def run(self, images: Any, on_error: OnError) -> np.ndarray:
        """What the network makes of images or texts.

        Args:
            images: see `tlray.api.embedding.images.each_image` and `tlray.api.embedding.texts.TextInputs.each`.
            on_error: see OnError.

        Returns:
            vectors_ND, float32; for `nan`, rows of NaN where an image cannot be used, which the log counts.

        Raises:
            ConfigError: something that is no image.
            ImageError: an image cannot be used, and on_error is `raise`; the message names it.
        """
        vectors, failures, position = [np.empty((0, self.length), np.float32)], list[str](), 0
        for chunk in self._decoded(self.inputs.each(images)):
            vectors_BD = self._run_chunk(chunk, position, on_error, failures)
            vectors.append(vectors_BD)
            position += len(vectors_BD)
        if failures:
            more = "; ..." if len(failures) > _SHOWN_FAILURES else ""
            shown = "; ".join(failures[:_SHOWN_FAILURES])
            what = kind_of(self.recipe)
            _log.warning("%d of %d %s could not be used, their rows are NaN: %s%s", len(failures), position, what, shown, more)
        return np.concatenate(vectors)

    def _decoded(self, images: Iterator[Any]) -> Iterator[list[tuple[Any, "Future[Any]"]]]:
        """Chunks of images and their pixels, of which the next one is under way."""
        with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as threads:

            def chunk() -> list[tuple[Any, Future[Any]]]:
                return [(each, threads.submit(self.inputs.prepare, each)) for each in islice(images, self.chunk_images)]

            try:
                upcoming = chunk()
                while upcoming:
                    current, upcoming = upcoming, chunk()
                    yield current
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _run_chunk(
        self, chunk: "list[tuple[Any, Future[Any]]]", first: int, on_error: OnError, failures: list[str]
    ) -> np.ndarray:
        pixels, rows = [], []
        vectors_BD = np.full((len(chunk), self.length), np.nan, np.float32)

        def fail(row: int, error: ImageError) -> None:
            name = self.inputs.name_of(first + row, chunk[row][0])
            if on_error == "raise":
                raise ImageError(error.code, f"{name}: {error.detail}") from error
            failures.append(f"{name}: {error}")

        for row, (_, future) in enumerate(chunk):
            try:
                pixels.append(future.result())
                rows.append(row)
            except ImageError as error:
                fail(row, error)
        if rows:
            found_BD = self.network(self.inputs.join(pixels))
            for row, vector_D in zip(rows, found_BD, strict=True):
                if np.isfinite(vector_D).all():
                    vectors_BD[row] = vector_D
                else:
                    fail(row, ImageError(ImageErrorCode.NON_FINITE, "the network's output is not finite"))
        return vectors_BD
