"""The `tlray` command; the files in jobs/ run the same commands. Imports neither torch nor ray before a command needs them."""

import argparse
import atexit
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel

from tlray import __version__
from tlray.config import (
    AliasConfig,
    DuplicatesConfig,
    ExportConfig,
    ExtractConfig,
    IndexConfig,
    OptimizeConfig,
    PredictConfig,
    SearchConfig,
    ServeConfig,
    ShowConfig,
    TrainConfig,
    VacuumConfig,
    VerifyConfig,
)
from tlray.config_reader import load_config, to_yaml
from tlray.errors import DISK_FULL, GO_ON, ConfigError, TlrayError


class Command(NamedTuple):
    """A command's config, and where the function is that carries it out."""

    config: type[BaseModel]
    function: str

    def run(self, config: BaseModel) -> dict[str, Any]:
        """Carry it out and return its JSON object."""
        module, _, name = self.function.partition(":")
        function: Callable[[BaseModel], dict[str, Any]] = getattr(import_module(module), name)
        return function(config)


COMMANDS = {
    "extract": Command(ExtractConfig, "tlray.extraction.extract:extract_command"),
    "train": Command(TrainConfig, "tlray.training.train:train"),
    "predict": Command(PredictConfig, "tlray.prediction.predict:predict_command"),
    "export": Command(ExportConfig, "tlray.training.model.export:export"),
    "show": Command(ShowConfig, "tlray.table_commands:show"),
    "alias": Command(AliasConfig, "tlray.table_commands:alias"),
    "verify": Command(VerifyConfig, "tlray.table_commands:verify"),
    "vacuum": Command(VacuumConfig, "tlray.table_commands:vacuum"),
    "optimize": Command(OptimizeConfig, "tlray.table_commands:optimize"),
    "index": Command(IndexConfig, "tlray.search.build.build_index:index"),
    "search": Command(SearchConfig, "tlray.search.query.search:search"),
    "duplicates": Command(DuplicatesConfig, "tlray.search.query.duplicates:duplicates"),
    "serve": Command(ServeConfig, "tlray.search.service.server:serve"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its progress goes to stderr, its result as one line of JSON to stdout.

    Args:
        argv: default the process's own arguments.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad configuration, 3 too many failed images, 4 asked to stop.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments or ["--help"])
        return 2
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
        return _run(name, COMMANDS[name], rest)
    except TlrayError as error:
        print(f"tlray {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # the last resort of a command
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            place = error.filename or "of this machine, perhaps its temporary folder or standard output,"
            print(f"tlray {name}: the disk {place} is full ({error.strerror}); make room there, then {GO_ON}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print(f"tlray {name}: an error that tlray does not know, please report it with the lines above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tlray {name}: interrupted; the same command goes on from the last commit", file=sys.stderr)
        return 128 + signal.SIGINT


def script(*command: str) -> NoReturn:
    """Run what the process's own arguments say, after the words of `command`, and end the process.

    Without taking the interpreter apart: with torch and Ray inside that takes two seconds, and threads of delta-rs have aborted
    it, which a scheduler would take for a failed command.
    """
    code = main([*command, *sys.argv[1:]])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(name: str, command: Command, arguments: list[str]) -> int:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", type=Path)
    own.add_argument("--print-config", action="store_true")
    ours, rest = own.parse_known_args(arguments)
    config = load_config(command.config, rest, file=ours.config, program=f"tlray {name}")
    if ours.print_config:
        print(to_yaml(config), end="")
        return 0
    # Ray prints what its workers say to stdout; there, nobody but the result may speak.
    with contextlib.redirect_stdout(sys.stderr):
        result = command.run(config)
    print(json.dumps(result), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tlray",
        description="Turn a lake of images into a table of embeddings that can be trusted, kept up to date and reused.",
        epilog="commands: " + ", ".join(COMMANDS) + ". `tlray COMMAND --help` lists a command's keys; each can stand in the "
        "YAML file given by --config, or be a flag. --print-config shows the result.",
    )
    parser.add_argument("--version", action="version", version=f"tlray {__version__}")
    parser.add_argument("command", nargs="?")
    return parser
