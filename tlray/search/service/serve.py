"""`tlray serve`: in this process, or in several under Ray Serve."""

import signal
import threading
from typing import Any

from tlray.config import ServeConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri


def serve(config: ServeConfig) -> dict[str, Any]:
    """Serve until a signal says to stop; requests under way are finished.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: a package of the extra `serve` is missing, or the token, the address or the index cannot be used.
        GoldenMismatchError: this machine embeds images otherwise than the table's.
    """
    try:
        from tlray.search.service.server import serve_here  # its packages are an extra
        from tlray.search.service.web.access import read_token
    except ModuleNotFoundError as error:
        raise ConfigError(_missing(error)) from error
    token = read_token(config.token_file, config.host)
    return serve_here(config, token) if config.replicas == 1 else _serve_replicas(config)


def _serve_replicas(config: ServeConfig) -> dict[str, Any]:
    try:
        from tlray.search.service.replicas import serve_on_ray  # Ray Serve only where it is asked for
    except ImportError as error:
        raise ConfigError(f"replicas is {config.replicas}: {_missing(error)}, or leave --replicas 1") from error
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return serve_on_ray(config, to_uri(config.index), stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _missing(error: ImportError) -> str:
    """What is not installed, and what to install."""
    return (
        f"the package {error.name or error} is not installed; install tlray with its extra: "
        "pip install '.[serve]' in tlray's folder"
    )
