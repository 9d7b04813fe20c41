"""The head's part of the encoding stage: from features to scores, by the trained head of a table of predictions.

Shape legend: B images, H height, W width, C channels, D embedding length, K outputs.
"""

import hashlib
import time

import numpy as np
import safetensors.torch
import torch

from tlray.errors import TableCorruptError
from tlray.extraction.worker.pieces import TimedEncoder
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.parts import round_to_half
from tlray.models.layers.heads import Head, HeadSpec
from tlray.predictor import HEAD_SCORES
from tlray.recipe import RecipeFile, Storage


class ScoringEncoder:
    """An encoder that gives scores beside its features.

    The head sees what a table of the recipe would hold, rounded as there, so a prediction is the same whether it is made from
    an image or from its row. It runs on the CPU: features are there anyway, and heads are small beside the network
    (2048 x 1000: 2 million multiplications an image; ResNet-50: 4,100 million).

    Args:
        encoder: of the recipe.
        head: in eval mode.
        column: of the features that it takes.
        storage: of the recipe.
    """

    def __init__(self, encoder: TimedEncoder, head: Head, column: str, storage: Storage) -> None:
        self._encoder = encoder
        self._head = head
        self._column = column
        self._storage = storage

    def encode_timed(self, inputs: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Embed images or texts as their encoder does, and add scores_BK under HEAD_SCORES; what is not finite is passed on."""
        features, seconds = self._encoder.encode_timed(inputs)
        began = time.thread_time()
        features_BD = features[self._column]
        if self._storage == "half":
            features_BD = round_to_half(features_BD)
        with torch.inference_mode():
            scores_BK = self._head(torch.from_numpy(features_BD)).numpy()
        return features | {HEAD_SCORES: scores_BK}, seconds + time.thread_time() - began


def with_head(encoder: TimedEncoder, file: RecipeFile, table_uri: str) -> TimedEncoder:
    """The encoder as a table needs it: unchanged, or with the head that the table holds a copy of.

    Raises:
        TableCorruptError: the copy is damaged.
        ObjectNotFoundError: it is gone.
    """
    output = file.output
    if output is None or output.head is None:
        return encoder
    uri = join(table_uri, output.head.name)
    data = open_store(uri).read(uri).data
    digest = hashlib.sha256(data).hexdigest()
    if digest != output.head.sha256:
        raise TableCorruptError(f"{uri} has the sha256 {digest[:12]}; restore it from the model's folder, or name a new table")
    head = Head.to_be_filled(HeadSpec.model_validate_json(output.head.spec_json))
    head.load_state_dict(safetensors.torch.load(data))
    return ScoringEncoder(encoder, head.eval(), output.column, file.recipe.precision.storage)
