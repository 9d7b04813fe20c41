"""`tlray predict` as a job: `ray job submit --working-dir . -- python jobs/predict.py --config job.yaml`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
