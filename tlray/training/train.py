"""Training: a head on a table's vectors, or a network from images or activations."""

from typing import Any

from tlray.config import TrainConfig
from tlray.training.heads.train_heads import train_head


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, or say that it is there already.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong, or another model is there; nothing was written.
        TableLockedError: another run trains a model there.
    """
    if config.network is not None:
        from tlray.training.network.train_network import train_network

        return train_network(config)
    return train_head(config)
