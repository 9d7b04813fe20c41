"""The command line: its words and flags, help, completion, and what a run shows to people."""

from tlray.cli.command import main, script
from tlray.commands import COMMANDS

__all__ = ["COMMANDS", "main", "script"]
