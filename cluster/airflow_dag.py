"""The nightly backfill as an Airflow 3 DAG; put this file into the folder of DAGs. See README.md beside it.

It runs `tlray extract` on the worker, which joins the Ray cluster that RAY_ADDRESS names. The task's result (its XCom) is the
result's JSON object.
"""

import json
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

COMMAND = ["tlray", "extract", "--config", "/etc/tlray/job.yaml"]
FOR_A_PERSON = {2: "the configuration is wrong", 3: "too many images failed"}


@dag(schedule="30 1 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def tlray_nightly() -> None:
    """One task: all that it has to know are the command's exit code and its line of JSON."""

    @task(retries=3, retry_delay=timedelta(minutes=5))
    def extract() -> dict[str, Any]:
        # Progress goes to stderr, and so into the task's log. Airflow ends a task by signals to its whole process group.
        process = subprocess.run(COMMAND, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if process.returncode in FOR_A_PERSON:
            raise AirflowFailException(f"exit code {process.returncode}: {FOR_A_PERSON[process.returncode]}")
        if process.returncode:
            raise AirflowException(f"exit code {process.returncode}: the next attempt goes on from the last commit")
        result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return result

    extract()


tlray_nightly()
