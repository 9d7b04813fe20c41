"""What the config says of heads, checked and with its defaults."""

from tlray.config import TrainConfig
from tlray.errors import ConfigError

DEFAULT_HIDDEN = (256,)


def check_head(config: TrainConfig) -> None:
    """Refuse settings of `head` and `grid` that exclude each other.

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
    if any(not rate > 0 for rate in rates) or any(not decay >= 0 for decay in config.grid.weight_decays):
        raise ConfigError("grid.learning_rates must be over 0 and grid.weight_decays 0 or more")


def hidden_of(config: TrainConfig) -> tuple[int, ...]:
    """Widths of the hidden layers."""
    return (config.head.hidden or DEFAULT_HIDDEN) if config.head.kind == "mlp" else ()
