"""Texts to vectors that can be compared with a table's: a text tower that has shown that it computes what it should.

Shape legend: B texts, D embedding length.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from tlray.errors import BackboneError, ConfigError, GoldenMismatchError
from tlray.models.backbones.images import Backbone, load_backbone
from tlray.models.backbones.text_side import find_text_side
from tlray.models.libraries.library import TextSide
from tlray.models.libraries.text_tower import TextTower
from tlray.models.process.device import precision
from tlray.models.texts.backbones import load_text_backbone
from tlray.models.texts.encoder import TextRowEncoder
from tlray.models.weights.spec import FetchFile
from tlray.recipe import GOLDEN_TOLERANCE, NORM_FLOOR, Recipe, RecipeFile, TextRecipe, check_golden, golden_texts, least_cosine

_log = logging.getLogger(__name__)

BATCH_TEXTS = 32
"""Texts in one forward pass: bounds memory; a text tower takes a few dozen tokens of each."""

WITH_TEXT = "openclip:<model>, and hf: of CLIP and SigLIP models (timm's CLIP and SigLIP towers are the image side alone)"
"""Backbones that have a text tower, for messages."""


class TextEncoder:
    """Embeds texts as a table's vectors are: by a text tower, then normalised where the table's recipe says so.

    Args:
        tower: of the table's network.
        normalize: whether each vector is divided by its L2 norm.

    Attributes:
        length: D.
        logit_scale: see `TextTower`.
    """

    def __init__(self, tower: TextTower, *, normalize: bool = False) -> None:
        self._tower = tower
        self._normalize = normalize
        self.length, self.logit_scale = tower.length, tower.logit_scale

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts, any number of them; how many lose their ends is logged.

        Args:
            texts: in natural language.

        Returns:
            features_BD, float32.
        """
        cut = self.count_cut(texts)
        if cut:
            _log.warning("%d of %d texts are longer than the network takes: their ends are left out", cut, len(texts))
        return self.embed(texts)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """As `encode`, without a word on texts that lose their ends."""
        features_BD = np.empty((len(texts), self.length), np.float32)
        with precision(torch.device("cpu"), "fp32"):
            for start in range(0, len(texts), BATCH_TEXTS):
                batch = texts[start : start + BATCH_TEXTS]
                features_BD[start : start + len(batch)] = self._tower.encode(batch)
        if self._normalize:
            features_BD /= np.maximum(np.linalg.norm(features_BD, axis=1, keepdims=True), NORM_FLOOR)
        return features_BD

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of some texts are longer than the network takes, so that their ends do not count."""
        return self._tower.count_cut(texts)


def open_text_encoder(
    document: RecipeFile, column: str, fetch: FetchFile, *, backbone: Backbone | None = None, where: str = "this machine"
) -> TextEncoder:
    """The text encoder of a table's column, which has shown that it embeds the golden texts as when the table was made.

    Of a table of texts it is the encoder that made the table.

    Args:
        document: the table's recipe file.
        column: of embeddings, with which the texts' vectors are to be compared.
        fetch: brings the URI or path of a weights file to a local path.
        backbone: of the recipe, where it is loaded already.
        where: for the message, should the check fail.

    Raises:
        ConfigError: the table's backbone has no text tower, or the column is of another tap than the one whose vectors share
            its space.
        GoldenMismatchError: it computes other vectors.
        WeightsError: the weights changed or are gone.
    """
    if isinstance(document.recipe, TextRecipe):
        return TextEncoder(_RowTower(document, document.recipe, fetch, where))  # which normalises by itself
    # Without golden texts only the hash of the image side shows that the weights are those of the table.
    side = find_text_side(document.recipe, fetch) if backbone is None and document.golden_text is not None else None
    if side is not None:
        encoder = _encoder(document.recipe, side, column)
    else:
        encoder = text_encoder_of(backbone or load_backbone(document.recipe, fetch), column)
    _check(encoder, document, where)
    return encoder


def text_encoder_of(backbone: Backbone, column: str) -> TextEncoder:
    """The text encoder whose vectors are compared with those of a network's column, not yet checked by any table.

    Args:
        backbone: the network.
        column: of its recipe.

    Raises:
        ConfigError: it has no text tower, or the column is of another tap than the one whose vectors share its space.
        WeightsError: the weights are gone.
    """
    recipe = backbone.recipe
    if backbone.text_tower is None or backbone.text_tap is None:
        raise ConfigError(
            f"the backbone {recipe.backbone} has no text tower, so words cannot be compared with its images; "
            f"backbones that have one: {WITH_TEXT}"
        )
    return _encoder(recipe, TextSide(backbone.text_tap, backbone.text_tower), column)


def _encoder(recipe: Recipe, side: TextSide, column: str) -> TextEncoder:
    shared = recipe.columns.get(side.tap)
    if column != shared:
        tap = {name: tap for tap, name in recipe.columns.items()}.get(column, column)
        advice = f"use its column {shared}" if shared else f"extract with recipe.taps {side.tap} to a new table"
        raise ConfigError(
            f"column {column} holds layer {tap} of {recipe.backbone}, whose vectors no text can be compared with; "
            f"those of layer {side.tap} can: {advice}"
        )
    return TextEncoder(side.open(), normalize=recipe.normalize)


def golden_text_of(backbone: Backbone, encoder: TextEncoder | None = None) -> list[list[float]] | None:
    """What a new table keeps of its text tower: the golden texts' vectors; None where texts are not compared with its vectors.

    Args:
        backbone: the network.
        encoder: of its texts, where it is loaded already.

    Raises:
        ConfigError: the text tower cannot be loaded, as one without its tokeniser.
        BackboneError: the vectors are not finite, or all texts have the same.
    """
    if backbone.text_tower is None or backbone.text_tap not in backbone.recipe.taps:
        return None
    try:
        encoder = encoder or TextEncoder(backbone.text_tower(), normalize=backbone.recipe.normalize)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or keep another layer than {backbone.text_tap} (recipe.taps), with whose vectors no texts are compared"
        ) from error
    features_BD, name = encoder.embed(golden_texts()), backbone.recipe.backbone
    if not np.isfinite(features_BD).all():
        raise BackboneError(f"the text tower of {name} gives vectors that are not finite; use other weights")
    if len(np.unique(features_BD, axis=0)) < len(features_BD):
        raise BackboneError(
            f"the text tower of {name} gives the same vector for different texts: its tokeniser may be another model's, as one "
            "that does not end texts with the token that the network reads; bring the whole folder as its authors made it"
        )
    return [[float(value) for value in row] for row in features_BD]


class _RowTower:
    """The encoder of a table of texts, as a text tower."""

    def __init__(self, document: RecipeFile, recipe: TextRecipe, fetch: FetchFile, where: str) -> None:
        backbone = load_text_backbone(recipe, fetch)
        self._model, self._encoder = backbone.model, TextRowEncoder(backbone)
        self.length, self.logit_scale = backbone.model.length, 1.0
        check_golden(document, self._encoder.encode(document.golden_inputs), where=where)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode_queries(texts)

    def count_cut(self, texts: Sequence[str]) -> int:
        return self._model.count_cut(texts)


def _check(encoder: TextEncoder, document: RecipeFile, where: str) -> None:
    """Hold the golden texts' vectors against the table's; they are always computed at fp32, so its tolerance counts."""
    if document.golden_text is None:
        _log.warning("the table keeps no vectors of texts, so its text tower could not be checked")
        return
    ours_BD, theirs_BD = encoder.embed(golden_texts()), np.asarray(document.golden_text, np.float32)
    worst = least_cosine(ours_BD, theirs_BD) if ours_BD.shape == theirs_BD.shape else 0.0
    if not worst >= GOLDEN_TOLERANCE["fp32"]:
        raise GoldenMismatchError(
            f"{where} embeds texts otherwise than when the table was made: least cosine {worst:.6f} over the golden texts, "
            f"expected at least {GOLDEN_TOLERANCE['fp32']}. The table was made with "
            f"{', '.join(f'{name} {version}' for name, version in document.made_with.items())}; use those versions and the "
            "weights and tokeniser of that day, or extract to a new table"
        )
