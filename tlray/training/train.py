"""`tlray train`: one flow for a head on a table's vectors and for a network from images or activations."""

import math
import time
from typing import Any, Protocol

from tlray.config import TrainConfig
from tlray.errors import ConfigError
from tlray.lake.place.lease import Lease, hold
from tlray.lake.place.occupant import require_place
from tlray.lake.storage.uri import to_uri
from tlray.progress import say
from tlray.recipe import AnyRecipe
from tlray.training.examples.examples import Examples
from tlray.training.examples.losses import check_class_weights
from tlray.training.model.model import ModelCard, model_exists, read_card
from tlray.training.model.publish import headline, plan_of, result_of
from tlray.training.model.rerun import Identity, action_of, with_whole_uris

_FILE_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".h5", ".keras", ".pkl", ".joblib")
"""Endings of files that other programs keep models in."""


class Training(Protocol):
    """A training that was opened: of heads, or of a network.

    Attributes:
        config: of the command, with whole URIs.
        identity: of the model that it makes.
        examples: that it trains on; there once it is prepared.
    """

    config: TrainConfig
    identity: Identity
    examples: Examples

    @property
    def recipe(self) -> AnyRecipe:
        """The recipe that it begins with."""
        ...

    @property
    def has_leftovers(self) -> bool:
        """Whether a run that ended has left something behind."""
        ...

    def prepare(self) -> dict[str, Any]:
        """Read what is trained on, and check it; nothing is written.

        Returns:
            What a dry run tells besides what it tells of every training.
        """
        ...

    def run(self, lease: Lease) -> ModelCard:
        """Train and write the model; the lease is on its folder."""
        ...

    def clear(self) -> None:
        """Delete what only a training under way needs."""
        ...


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, or say that it is there already.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong, or another model is there; nothing was written.
        TableLockedError: another run trains a model there.
        TooManyFailuresError: more images cannot be read than allowed.
        StorageError: workers or a store failed for good; the same command goes on from the last checkpoint.
    """
    began = time.monotonic()
    _check(config)
    _check_out(config.out)
    training = _open(with_whole_uris(config))
    config, out = training.config, training.config.out
    require_place(out, "model")

    def action_now() -> Any:
        return action_of(out, training.identity, training.recipe, rebuild=config.rebuild)

    action = action_now()  # refuses before anything is read
    if action != "unchanged":
        details = training.prepare()
        say(headline(training.examples))
        if config.dry_run:
            return plan_of(config, training.examples, action, details)
    if action != "unchanged" or training.has_leftovers:
        with hold(out, "train", wait=config.wait, seconds=config.lease_seconds) as lease:
            action = action_now()  # another run may have ended meanwhile
            if action != "unchanged":
                card = training.run(lease)
            training.clear()
    if action == "unchanged":
        say(f"nothing to do: {out} holds the model of this very training")
        card = read_card(out)
    return result_of(out, card, action, time.monotonic() - began)


def _open(config: TrainConfig) -> Training:
    if config.network is not None:
        from tlray.training.network.train_network import NetworkTraining

        return NetworkTraining(config)
    from tlray.training.heads.train_heads import HeadTraining

    return HeadTraining(config)


def _check_out(out: str) -> None:
    """Refuse a name that would be a file's: a model is a folder.

    Raises:
        ConfigError: it is, and no model is there.
    """
    if out.lower().endswith(_FILE_ENDINGS) and not model_exists(to_uri(out)):
        folder = out.rpartition(".")[0]
        raise ConfigError(f"out is {out}, but a model is a folder; name one, such as {folder} (`tlray export` writes .onnx)")


def _check(config: TrainConfig) -> None:
    """Refuse keys that exclude each other.

    Raises:
        ConfigError: names them.
    """
    head, rates = config.head, config.grid.learning_rates
    if head.kind != "mlp" and (head.hidden or head.dropout):
        raise ConfigError(f"head.hidden and head.dropout are of an MLP, but head.kind is {head.kind}; give --head.kind mlp")
    if head.kind != "linear" and head.solver == "cg":
        raise ConfigError(f"head.solver cg is for linear heads, but head.kind is {head.kind}; leave head.solver out")
    if rates and (head.kind == "ridge" or head.solver == "cg"):
        raise ConfigError("grid.learning_rates are of head.solver adamw; the other solvers need none: leave them out")
    if not all(0 < rate < math.inf for rate in rates) or not all(0 <= one < math.inf for one in config.grid.weight_decays):
        raise ConfigError("grid.learning_rates must be over 0 and grid.weight_decays 0 or more")
    check_class_weights(config.class_weights, config.task, head)
