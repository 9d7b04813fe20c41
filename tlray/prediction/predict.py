"""`tlray predict`: extraction whose table holds what a model makes of the vectors."""

import math
from typing import TYPE_CHECKING, Any

from tlray.config import THRESHOLD, PredictConfig
from tlray.errors import ConfigError, RecipeMismatchError
from tlray.extraction.extract import bring_up_to_date
from tlray.extraction.run.process import own_process
from tlray.extraction.run.stop import Stop
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join, to_uri
from tlray.prediction.predictions_file import PredictionsFile
from tlray.predictor import HeadFile, Output
from tlray.progress import say
from tlray.recipe import AnyRecipe, RecipeFile

if TYPE_CHECKING:
    from tlray.extraction.target import Target
    from tlray.training.model.model import Model


def predict_command(config: PredictConfig) -> dict[str, Any]:
    """`predict` in a process of its own: SIGTERM ends it in good order."""
    with own_process() as stop:
        return predict(config, stop)


def predict(config: PredictConfig, stop: Stop | None = None) -> dict[str, Any]:
    """Bring a table of predictions to where its source is; or a file, which is written from a table beside it.

    Args:
        config: of the command.
        stop: asks the run to end.

    Returns:
        The command's JSON object: that of `extract`, with the model's id; of a file with its URI as `file`, too.

    Raises:
        ConfigError: neither or both of model and recipe, a model that is not there, or as `extract`.
        PlaceTakenError: `out` is a file that `predict` did not write.
        RecipeMismatchError: the table holds predictions of another model, or was asked for otherwise.
        TlrayError: as `extract`.
    """
    if (config.model is None) == (config.recipe is None):
        raise ConfigError(
            "expected one of --model (a folder that `tlray train` made) and --recipe.backbone (a pretrained network with its "
            f"own classifier, or --classes to choose from), given {'neither' if config.model is None else 'both'}"
        )
    file = PredictionsFile.of(config)
    table_uri = file.table_uri if file else to_uri(config.out)

    def prepare() -> "Target":
        target = _prepare(config, table_uri)
        assert target.output is not None
        check_threshold(config.threshold, target.output)
        if file is not None:
            file.check(target.output)
        return target

    result = bring_up_to_date(config, table_uri, prepare, stop)
    if file is None or config.dry_run:
        return {**result, "file": file.uri if file else None}
    rows = file.write()
    say(f"wrote {rows} rows to {file.uri}; the predictions stay in {file.table_uri}, from which the next run goes on")
    return {**result, "file": file.uri}


def _prepare(config: PredictConfig, table_uri: str) -> "Target":
    if config.classes:
        from tlray.prediction.zero_shot import zero_shot  # imports torch

        return zero_shot(config, table_uri)
    if config.model is None:
        return _as_it_came(config)
    return trained(to_uri(config.model), top_k=config.top_k, threshold=config.threshold, embeddings=config.embeddings)


def trained(model_uri: str, *, top_k: int, threshold: float, embeddings: bool) -> "Target":
    """What a trained model makes of images: its recipe, and the head that was trained on the recipe's vectors.

    Args:
        model_uri: of the model's folder.
        top_k: labels kept of each image, at most.
        threshold: of the probability, where an image may have several labels.
        embeddings: whether the vectors are kept too.

    Raises:
        ModelMissingError, ModelCorruptError: there is no model, or it is damaged.
        RecipeMismatchError: its head does not fit its recipe.
    """
    from tlray.extraction.target import Target
    from tlray.models.backbones.any_backbone import load_any_backbone
    from tlray.training.model.model import HEAD_NAME, NETWORK_NAME, load_model

    model = load_model(model_uri)
    card = model.card
    recipe = card.recipe
    if NETWORK_NAME in card.files:  # beside the card, wherever the folder was when the recipe was written
        recipe = recipe.model_copy(update={"weights": join(model_uri, NETWORK_NAME)})
    backbone = load_any_backbone(recipe, local_copy, [card.tap])
    (column,) = backbone.shapes
    length = math.prod(backbone.shapes[column])
    if length != card.head.inputs:
        raise RecipeMismatchError(
            f"the head of {model_uri} takes {card.head.inputs} numbers, but {card.tap} of its recipe gives {length}; "
            "train it anew"
        )
    output = Output(
        model=model_uri,
        column=column,
        head=HeadFile(sha256=card.files[HEAD_NAME], spec_json=card.head.to_json()),
        task=card.task,
        classes=card.classes,
        top_k=min(top_k, len(card.classes)),
        threshold=threshold,
        embeddings=(column,) if embeddings else (),
    )
    head = open_store(model_uri).read(join(model_uri, HEAD_NAME)).data
    return Target(backbone, output, head, _known(model, backbone.recipe))


def check_threshold(threshold: float, output: Output) -> None:
    """Refuse a threshold that nothing would come of: of one label an image, and of numbers.

    Raises:
        ConfigError: it is not the default, and an image does not have several labels.
    """
    if output.task != "multi" and threshold != THRESHOLD:
        gives = "gives an image one label" if output.task == "single" else "gives numbers"
        raise ConfigError(
            f"threshold is {threshold}, but {output.model} {gives}, and a threshold is for several labels an image: leave it "
            "out, and choose rows by their probability"
        )


def _known(model: "Model", recipe: AnyRecipe) -> RecipeFile | None:
    """The golden vectors that the head was trained beside, for a recipe of the head's tap alone."""
    there = model.recipe_file
    if there is None or there.recipe_id != model.card.recipe_id:
        return None
    column = there.recipe.columns[model.card.tap]
    (name,) = recipe.columns.values()
    rounding = there.quantization
    changes = {
        "recipe_id": recipe.recipe_id,
        "recipe": recipe,
        "shapes": {name: there.shapes[column]},
        "golden": {name: there.golden[column]},
        "quantization": rounding and rounding.model_copy(update={"golden": {name: rounding.golden[column]}}),
    }
    return there.model_copy(update=changes)


def _as_it_came(config: PredictConfig) -> "Target":
    """A pretrained network with its own classifier."""
    from tlray.extraction.target import Target
    from tlray.models.backbones.classifier import own_classifier
    from tlray.models.backbones.images import resolve_backbone

    assert config.recipe is not None
    of_embeddings = [*(["taps"] if config.recipe.taps else []), *(["pool"] if config.recipe.pool != "avg" else [])]
    if of_embeddings and not config.embeddings:
        raise ConfigError(
            f"recipe.{of_embeddings[0]} is of embeddings, but only the scores of {config.recipe.backbone} are kept; leave it "
            "out, or give --embeddings"
        )
    own = own_classifier(resolve_backbone(config.recipe, local_copy), keep_embeddings=config.embeddings)
    output = Output(
        model=f"{own.backbone.recipe.backbone} {own.backbone.recipe.weights}",
        column=own.column,
        task="single",
        classes=own.classes,
        top_k=min(config.top_k, len(own.classes)),
        threshold=config.threshold,
        embeddings=own.embeddings,
    )
    return Target(own.backbone, output)
