"""The labelled images that advice is given by: a stratified sample, its pixels, and what can be seen of it without a network.

Shape legend: N images of the sample, H height, W width, C channels, K classes.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import AdviseConfig
from tlray.errors import ConfigError, ExamplesError, SourceError, TooManyFailuresError
from tlray.lake.source.read_images import read_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.source import Source
from tlray.recipe import IMAGE_RULE, Preprocessing
from tlray.scoring import near_duplicate_groups
from tlray.training.examples.examples import Examples, read_examples
from tlray.training.examples.labels import shown
from tlray.training.examples.listed_images import list_images

LEAST_ROWS = 5
"""Images of a class: fewer cannot be trained on, chosen by and measured on at once."""

FOLDS = 4
"""How many folds cross-validation has: three quarters are trained on, and each image is measured on once."""

PIXELS_SIDE = 16
SAME_PIXELS = 0.999
"""Least cosine of centred thumbnails of near-duplicates: re-encoded and resized copies have it, other pictures of one kind of
thing have not."""

_THUMBNAIL = Preprocessing(
    resize=(PIXELS_SIDE, PIXELS_SIDE),
    fit="squash",
    crop=(PIXELS_SIDE, PIXELS_SIDE),
    interpolation="bilinear",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


@dataclass(frozen=True)
class Sample:
    """Labelled images that could be read.

    Attributes:
        source: that they are of.
        items: uri, etag, size_bytes and label of each; N.
        examples: their classes and targets; N. A split is that of the labels file, where it has a column of them.
        labelled: images with a label in the source.
        class_sizes: how many of these each class has.
        pixels_NHWC: uint8, `PIXELS_SIDE` squared, each whole image.
        group_N: int64, near-duplicates have one number.
        folds_N: int64, from 0 below `FOLDS`; near-duplicates are in one.
        failures: images that could not be read, by code; they are in none of these.
    """

    source: Source
    items: pa.Table
    examples: Examples
    labelled: int
    class_sizes: dict[str, int]
    pixels_NHWC: np.ndarray
    group_N: np.ndarray
    folds_N: np.ndarray
    failures: dict[str, int]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def targets(self) -> np.ndarray:
        """The position of each image's class among the classes."""
        return self.examples.targets

    def take(self, rows: np.ndarray) -> "Sample":
        """Some of its images, with the groups and folds that they have."""
        return replace(
            self,
            items=self.items.take(pa.array(rows)),
            examples=take_examples(self.examples, rows),
            pixels_NHWC=self.pixels_NHWC[rows],
            group_N=self.group_N[rows],
            folds_N=self.folds_N[rows],
        )

    def other_folds(self, seed: int) -> np.ndarray:
        """Its images dealt to folds in another way; near-duplicates are in one again."""
        _, first, group_N = np.unique(self.group_N, return_index=True, return_inverse=True)
        return folds(self.targets, first[group_N], seed)

    def first(self, count: int) -> np.ndarray:
        """Positions of about `count` images, of each class the same share and at least `LEAST_ROWS`; ascending."""
        return stratified(self.targets, count)

    def read(self, preprocessing: Preprocessing) -> np.ndarray:
        """The pixels of all images as a network takes them; images_NHWC, uint8.

        Raises:
            SourceError: an image that could be read before cannot be any more.
        """
        images_NHWC, failures, _ = _read(self.items, _spec(self.source, preprocessing))
        if failures:
            raise SourceError(f"{failures.total()} images of {self.source.uri} changed while they were read; run it again")
        return images_NHWC

    def describe(self) -> dict[str, Any]:
        """What of it the result tells."""
        return {
            "images": len(self),
            "labelled": self.labelled,
            "classes": len(self.examples.classes),
            "failed": sum(self.failures.values()),
            "failures": self.failures,
            "left_out": self.examples.left_out,
        }


def take_examples(examples: Examples, rows: np.ndarray) -> Examples:
    """Some of the examples, in the order of `rows`, with all classes."""
    return replace(
        examples,
        uris=examples.uris.take(pa.array(rows)),
        targets=examples.targets[rows],
        splits_N=examples.splits_N[rows],
        rows_N=examples.rows_N[rows],
    )


def take_sample(config: AdviseConfig) -> Sample:
    """List the source, join its labels, draw a sample and read it once, as thumbnails.

    Raises:
        ConfigError: labels and images do not fit together, or a class has too few; nothing was computed.
        TooManyFailuresError: more of the sample cannot be read than allowed.
    """
    if config.task != "single":
        raise ConfigError(f"task is {config.task}, but advice is for one label an image; leave task out")
    source, items, examples = _labelled_images(config)
    sizes_K = np.bincount(examples.targets, minlength=len(examples.classes))
    order = np.random.default_rng(config.seed).permutation(len(examples))
    chosen = order[stratified(examples.targets[order], config.images)]
    kept_items, kept = items.take(pa.array(examples.rows_N[chosen])), take_examples(examples, chosen)
    pixels_NHWC, failures, is_read_N = _read(kept_items, _spec(source, _THUMBNAIL))
    failed = failures.total()
    if failed > config.max_failed_fraction * len(chosen):
        codes = ", ".join(f"{count} {code}" for code, count in failures.items())
        raise TooManyFailuresError(
            f"{failed} of the {len(chosen)} images of the sample cannot be read ({codes}), more than max_failed_fraction "
            f"{config.max_failed_fraction}; mend or exclude them"
        )
    read = np.flatnonzero(is_read_N)
    kept = take_examples(kept, read)
    group_N = near_duplicate_groups(centred(pixels_NHWC), SAME_PIXELS)
    return Sample(
        source=source,
        items=kept_items.take(pa.array(read)),
        examples=kept,
        labelled=len(examples),
        class_sizes=dict(zip(examples.classes, sizes_K.tolist(), strict=True)),
        pixels_NHWC=pixels_NHWC,
        group_N=group_N,
        folds_N=folds(kept.targets, group_N, config.seed),
        failures=dict(failures),
    )


def stratified(targets_N: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first rows of each class, about `count` in all, ascending.

    Each class gives the same share, rounded, and at least `LEAST_ROWS`, so that small ones are there too.
    """
    share = min(1.0, count / max(1, len(targets_N)))
    chosen = []
    for one in np.unique(targets_N):
        rows = np.flatnonzero(targets_N == one)
        chosen.append(rows[: max(LEAST_ROWS, round(len(rows) * share))])
    return np.sort(np.concatenate(chosen))


def folds(targets_N: np.ndarray, group_N: np.ndarray, seed: int) -> np.ndarray:
    """Deal images to folds: groups whole, those of each class in turn; int64, N.

    Args:
        targets_N: a group counts to the class of its first image.
        group_N: the first image of the group that each is in, as `near_duplicate_groups` numbers them.
        seed: of the order.
    """
    heads = np.random.default_rng(seed).permutation(np.unique(group_N))
    heads = heads[np.argsort(targets_N[heads], kind="stable")]
    fold_of = np.zeros(len(targets_N), np.int64)
    fold_of[heads] = np.arange(len(heads)) % FOLDS
    folds_N: np.ndarray = fold_of[group_N]
    return folds_N


def centred(pixels_NHWC: np.ndarray) -> np.ndarray:
    """Thumbnails as vectors without their mean brightness, float32; a picture of one colour is all zeros."""
    flat_ND = pixels_NHWC.reshape(len(pixels_NHWC), -1).astype(np.float32) / 255
    centred_ND: np.ndarray = flat_ND - flat_ND.mean(axis=1, keepdims=True)
    return centred_ND


def _labelled_images(config: AdviseConfig) -> tuple[Source, pa.Table, Examples]:
    """The source, all its items, and those of them that are examples."""
    source, items = list_images(
        config.source, refusal="of which no sample can be drawn without reading all; give single files or a manifest"
    )
    examples = read_examples(items["uri"].combine_chunks(), items["label"].combine_chunks(), config)
    return source, items, _large_classes(examples, may_skip="rare" in config.skip)


def _large_classes(examples: Examples, *, may_skip: bool) -> Examples:
    """Refuse classes of fewer than `LEAST_ROWS` images, or leave them out where that is allowed.

    Raises:
        ExamplesError: names them, and what would be enough.
    """
    sizes_K = np.bincount(examples.targets, minlength=len(examples.classes))
    small_K = sizes_K < LEAST_ROWS
    if not small_K.any():
        return examples
    names = [f"{examples.classes[at]} ({sizes_K[at]})" for at in np.flatnonzero(small_K)]
    enough = f"advice needs {LEAST_ROWS} images of at least two classes"
    if not may_skip:
        raise ExamplesError(
            f"{len(names)} classes have fewer than {LEAST_ROWS} images: {shown(names)}; {enough}: add images, or leave small "
            "classes out and counted with --skip rare"
        )
    if (~small_K).sum() < 2:
        raise ExamplesError(
            f"only {int((~small_K).sum())} class has {LEAST_ROWS} images or more ({shown(names)} less); {enough}"
        )
    kept = np.flatnonzero(~small_K[examples.targets])
    present, targets = np.unique(examples.targets[kept], return_inverse=True)
    counts = Counter(examples.counts) + Counter(rare=len(names))
    taken = take_examples(examples, kept)
    return replace(taken, targets=targets, classes=tuple(examples.classes[at] for at in present), counts=dict(counts))


def _spec(source: Source, preprocessing: Preprocessing) -> ReadSpec:
    return ReadSpec.of(source, preprocessing, IMAGE_RULE)


def _read(items: pa.Table, spec: ReadSpec) -> tuple[np.ndarray, Counter[str], np.ndarray]:
    """Decode images: those that could be read, failures by code, and which could be; bool, in the order of the items."""
    batches = list(read_images(items, spec))
    errors = [batch.rows["error"] for batch in batches]
    failures = Counter[str]()
    for column in errors:
        failures.update(column.drop_null().to_pylist())
    is_read_N = np.concatenate([np.asarray(pc.is_null(column), bool) for column in errors])
    return np.concatenate([batch.inputs for batch in batches]), failures, is_read_N
