"""`tlray predict` as a job: `ray job submit --working-dir . -- python jobs/predict.py --config job.yaml`."""

from tlray.cli import script

if __name__ == "__main__":
    script("predict")
