"""`python -m tlray` is the `tlray` command."""

from tlray.cli import script

script()
