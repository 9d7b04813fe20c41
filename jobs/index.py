"""`tlray index` as a job: `ray job submit --working-dir . -- python jobs/index.py --config job.yaml`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
