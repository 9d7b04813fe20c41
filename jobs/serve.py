"""`tlray serve` as a job: `ray job submit --working-dir . -- python jobs/serve.py --config job.yaml`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
