"""The fingerprint of a network's training: names the folder of its checkpoints, so that the same command finds them again.

It is computed as version 0.1 did, byte for byte: from the keys that were there then, and from later ones only where they are
not at their default. A new key with a default therefore loses no checkpoint and no model.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from tlray.config import TrainConfig
from tlray.config.identity import is_identity


def _keys(names: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sections.get(name, {}) for name in names.split()}


_FIRST_KEYS: Mapping[str, Any] = _keys(
    "table table_version source recipe labels label_columns separator task skip split head grid refit epochs patience "
    "batch_size class_weights seed network",
    source=_keys(
        "uri format listing keys_from keys_to include exclude labels column max_image_bytes max_image_pixels",
    ),
    recipe=_keys(
        "backbone weights weights_sha256 taps pool normalize precision preprocessing",
        precision=_keys("compute storage"),
        preprocessing=_keys("resize fit crop interpolation antialias scaled_decoding mean std"),
    ),
    split=_keys("validation test column group group_duplicates"),
    head=_keys("kind hidden dropout solver"),
    grid=_keys("learning_rates weight_decays columns"),
    network=_keys(
        "freeze start learning_rate backbone_rate depth_decay weight_decay warmup unfreeze ema clip precision augment "
        "max_failed_fraction"
    ),
)
"""The keys of version 0.1 that matter, in its order: they are in every fingerprint, whatever their values."""


def fingerprint(config: TrainConfig, recipe_id: str, cut: str | None, table_recipe_id: str, examples: bytes) -> str:
    """Sha256, in hex, of all that the result of a training depends on.

    Args:
        config: of the command, with whole URIs.
        recipe_id: of the network before it is trained.
        cut: up to which it is frozen.
        table_recipe_id: of the table of activations; empty where there is none.
        examples: as they are written for all processes of the training.
    """
    document = to_json(_document(config, _FIRST_KEYS)).decode()
    return hashlib.sha256(f"{document}\n{recipe_id}\n{cut}\n{table_recipe_id}\n".encode() + examples).hexdigest()


def _document(config: BaseModel, first: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that count, sections likewise: those of the first version, then later ones that were given."""
    fields = type(config).model_fields
    document: dict[str, Any] = {}
    for name in (*first, *(name for name in fields if name not in first)):
        value = getattr(config, name)
        is_given = name in first or value != fields[name].get_default(call_default_factory=True)
        if is_identity(fields[name]) and is_given:
            document[name] = _document(value, first.get(name, {})) if isinstance(value, BaseModel) else value
    return document
