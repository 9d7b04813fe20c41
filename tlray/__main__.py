"""`python -m tlray` is the `tlray` command."""

import sys

from tlray.cli import main

sys.exit(main())
