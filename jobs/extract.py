"""`tlray extract` as a job: `ray job submit --working-dir . -- python jobs/extract.py --config job.yaml`."""

from tlray.cli import script

if __name__ == "__main__":
    script("extract")
