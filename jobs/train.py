"""`tlray train` as a job: `ray job submit --working-dir . -- python jobs/train.py --config job.yaml`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
