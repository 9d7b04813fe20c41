"""Zero-shot prediction: names of classes in place of a trained head, as CLIP is used (Radford et al., 2021, arXiv 2103.00020).

An image belongs to the class whose text is nearest to it, by the network's own text tower. That is a linear head whose weights
are the classes' vectors, so all else is as with a head that was trained.

Shape legend: K classes, D embedding length.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch

from tlray.config import PredictConfig
from tlray.config.commands.extraction import PLACE
from tlray.errors import ConfigError
from tlray.extraction.target import Target
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.models.backbones.any_backbone import image_backbone, resolve_any_backbone
from tlray.models.backbones.images import Backbone, with_taps
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.text import TextEncoder, text_encoder_of
from tlray.models.layers.heads import Head, HeadSpec
from tlray.predictor import HeadFile, Output
from tlray.progress import say
from tlray.scoring import unit_vectors


def zero_shot(config: PredictConfig, table_uri: str) -> Target:
    """What a network of two towers makes of images by the names of classes.

    A table that is there already, of the same names and sentences, goes on with the head that it was made with: text towers of
    two machines differ in their last bits.

    Args:
        config: of the command, with classes.
        table_uri: where the predictions go.

    Raises:
        ConfigError: the backbone has no text tower, or another layer is asked for than the one that texts are compared with.
        BackboneError, WeightsError: there is no such network.
    """
    assert config.recipe is not None
    # The head's scores are cosines of images and texts, so both have unit length.
    recipe = config.recipe.model_copy(update={"normalize": True})
    backbone = image_backbone(resolve_any_backbone(recipe, local_copy))
    if backbone.text_tap is not None and not config.recipe.taps:
        backbone = with_taps(backbone, [backbone.text_tap])
    column, *others = backbone.shapes
    if others:
        raise ConfigError(
            f"recipe.taps names {len(others) + 1} layers; classes are compared with the vectors of one: give none"
        )
    output = Output(
        model=f"{backbone.recipe.backbone} {backbone.recipe.weights}, by words",
        column=column,
        task="single",
        classes=config.classes,
        top_k=min(config.top_k, len(config.classes)),
        threshold=config.threshold,
        embeddings=(column,) if config.embeddings else (),
        templates=config.templates,
    )
    kept = _kept_head(table_uri, backbone, output)
    if kept is not None:
        return Target(backbone, output.model_copy(update={"head": kept}))
    encoder = text_encoder_of(backbone, column)
    vectors_KD = class_vectors(encoder, config.classes, config.templates)
    head = _head(vectors_KD * np.float32(encoder.logit_scale))
    data = safetensors.torch.save(head.state_dict())
    file = HeadFile(sha256=hashlib.sha256(data).hexdigest(), spec_json=head.spec.to_json())
    return Target(backbone, output.model_copy(update={"head": file}), data, make_recipe_file(backbone, encoder))


def class_vectors(encoder: TextEncoder, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """A vector for each class: the mean over the templates of its texts' unit vectors, brought to unit length again.

    As CLIP's authors do it (section 3.1.4, and `Prompt_Engineering_for_ImageNet.ipynb` in their repository).

    Args:
        encoder: of the network.
        classes: their names.
        templates: each with `{}` for the name.

    Returns:
        vectors_KD, float32.
    """
    say(f"embedding {len(classes) * len(templates)} texts: {len(classes)} classes, {len(templates)} templates")
    total_KD = np.zeros((len(classes), encoder.length), np.float32)
    for template in templates:
        total_KD += unit_vectors(encoder.encode([template.replace(PLACE, name) for name in classes]))
    return unit_vectors(total_KD)


def _head(weights_KD: np.ndarray) -> Head:
    """A linear head of given weights, without bias."""
    outputs, inputs = weights_KD.shape
    head = Head.to_be_filled(HeadSpec(kind="linear", inputs=inputs, outputs=outputs))
    with torch.no_grad():
        head.linears[0].weight.copy_(torch.from_numpy(weights_KD))
        head.linears[0].bias.zero_()
    return head


def _kept_head(table_uri: str, backbone: Backbone, output: Output) -> HeadFile | None:
    """The head of the table that is there, where it was made of the same words by the same network."""
    table = Table.open_or_none(table_uri)
    there = table.recipe_file if table else None
    if there is None or there.output is None:
        return None
    recipe_id = backbone.recipe.under_rule_of(there.recipe).recipe_id
    is_same = there.recipe_id == recipe_id and there.output.model_copy(update={"head": None, "model": output.model}) == output
    return there.output.head if is_same else None
