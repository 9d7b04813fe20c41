"""`tlray search` as a job: `ray job submit --working-dir . -- python jobs/search.py --config job.yaml`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
