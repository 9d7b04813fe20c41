"""The `tlray` command; the files in jobs/ run the same commands. Imports neither torch nor ray before a command needs them."""

import atexit
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tlray.cli.completion import completion
from tlray.cli.flags import parse, spelling_of
from tlray.cli.help import command_help, overview
from tlray.cli.hints import unknown_command
from tlray.cli.logs import logged
from tlray.cli.summary import summary
from tlray.commands import COMMANDS, Command, check_report, write_report
from tlray.config_reader import read_config, to_yaml
from tlray.errors import DISK_FULL, GO_ON, ConfigError, TlrayError
from tlray.machine.threads import yield_cores
from tlray.models.encoder.memory import keep_freed_memory
from tlray.progress import stamped
from tlray.version import __version__

_HELP = ("--help", "-h", "--help-all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its progress goes to stderr, its result to stdout.

    The result is one line of JSON, or, on a terminal, a few lines for people.

    Args:
        argv: default the process's own arguments.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad configuration, 3 too many failed images, 4 asked to stop.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "help"
    try:
        return _run(name, arguments[1:])
    except TlrayError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        _complain(f"tlray {name}: {type(error).__name__}: {error}{notes}")
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # the last resort of a command
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            place = error.filename or "of this machine, perhaps its temporary folder or standard output,"
            _complain(f"tlray {name}: the disk {place} is full ({error.strerror}); make room there, then {GO_ON}")
            return 1
        traceback.print_exc()
        _complain(f"tlray {name}: an error that tlray does not know, please report it with the lines above")
        return 1
    except KeyboardInterrupt:
        _complain(f"tlray {name}: interrupted; the same command goes on from the last commit")
        return 128 + signal.SIGINT


def script(*command: str) -> NoReturn:
    """Run what the process's own arguments say, after the words of `command`, and end the process."""
    end_process(main([*command, *sys.argv[1:]]))


def end_process(code: int) -> NoReturn:
    """End the process with an exit code, without taking the interpreter apart.

    With torch and Ray inside that takes two seconds, and threads of delta-rs have aborted it, which a scheduler would take for
    a failed command.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(name: str, arguments: list[str]) -> int:
    if name in COMMANDS:
        wish = next((each for each in arguments if each in _HELP), None)
        if wish is None:
            return _run_command(name, COMMANDS[name], arguments)
        _show(command_help(name, COMMANDS[name], everything=wish == "--help-all"))
    elif name in ("help", *_HELP):
        _show(_help_of(arguments[0], everything=name == "--help-all") if arguments[:1] else overview())
    elif name in ("version", "--version", "-V"):
        _show(f"tlray {__version__}")
    elif name == "completion":
        _show(completion(arguments))
    elif name.startswith("-"):
        raise ConfigError(f"{name} stands before a command; a command comes first, e.g. tlray extract {name} ...")
    else:
        raise ConfigError(unknown_command(name))
    return 0


def _help_of(name: str, *, everything: bool) -> str:
    if name not in COMMANDS:
        raise ConfigError(unknown_command(name))
    return command_help(name, COMMANDS[name], everything=everything)


def _run_command(name: str, command: Command, arguments: list[str]) -> int:
    yield_cores()  # first, as checking a report's place imports libraries
    line = parse(name, command, arguments)
    config = read_config(command.config, line.given, file=line.config, spelling=spelling_of(name, command))
    if line.print_config:
        _show(to_yaml(config).rstrip())
        return 0
    if line.report is not None:
        check_report(line.report)
    if command.computes:
        keep_freed_memory()
    # Ray prints what its workers say to stdout; there, nobody but the result may speak.
    with logged(), contextlib.redirect_stdout(sys.stderr):
        result = command.run(config)
        if line.report is not None:
            write_report(name, result, line.report)
    if line.json or not sys.stdout.isatty():
        _show(json.dumps(result))
    else:
        _show(summary(name, result))
        print("--json prints this as one line of JSON, as does a pipe", file=sys.stderr)
    return 0


def _complain(text: str) -> None:
    """The last line on stderr: with its time, except for who sits in front of it."""
    print(text if sys.stderr.isatty() else stamped(text), file=sys.stderr)


def _show(text: str) -> None:
    """Write to stdout; whoever reads it may have had enough (`tlray --help | head -3`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the end has to go somewhere
