"""What is said of a cluster that loses workers, nodes or its head: messages as Ray 2.60 sent them, and a port that closes."""

import socket

import pytest
from ray._private import worker as ray_worker
from ray.data._internal.util import _annotate_exception_with_retry_context

from tlray.errors import StorageError
from tlray.ray_cluster.errors import own_error
from tlray.ray_cluster.heard import MOST_LETTERS, Heard, heard
from tlray.ray_cluster.watch import FAILURES, _Place

SHORT_OF_MEMORY = """Task code failed due to oom. There are infinite oom retries remaining, so the task will be retried. \
Error: 1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 3addb588) \
was 8.60GB used / 23.54GB limit (0.365207)
OOM kill reason: Memory usage 9221304320B exceeded threshold of 252765104B (1.0% of 25276510208B limit)
Object store memory usage: [- objects spillable: 0"""
DIED = """A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem,\
 check the logs for the dead worker. Lease ID: 03 Worker ID: f2 Node ID: a5 Worker IP address: 192.0.2.2 \
Worker port: 13855 Worker PID: 20368 Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly \
exits with a connection error code 2. End of file."""
GONE = """The node with node id: 26f1 and address: 192.0.2.2 and node name: 192.0.2.2 has been marked dead because the \
detector has missed too many heartbeats from it. This can happen when a (1) raylet crashes unexpectedly"""
RETRIED = "Task _map_task failed. There are infinite retries remaining, so the task will be retried. Error: "


def test_a_kind_is_said_in_a_line_and_not_too_often() -> None:
    said, now = list[str](), [100.0]
    heard = Heard(said.append, lambda: now[0])
    for text in (DIED, RETRIED, DIED, DIED, SHORT_OF_MEMORY, GONE):
        heard.hear(text)
    assert len(said) == 3 and not any("\n" in line for line in said)
    assert said[0].startswith("a worker on 192.0.2.2 died (process 20368): its work is done again;")
    assert said[1].startswith(
        "a worker on 192.0.2.2 was ended by Ray, as the machine's memory is nearly full (8.60GB of 23.54GB):"
    )
    assert said[2].startswith("the node at 192.0.2.2 is gone")
    now[0] += 30
    heard.hear(DIED)
    assert said[3].endswith("(3 times since it was last said)")
    heard.hear(DIED.replace("192.0.2.2", "192.0.2.3"))
    assert said[4].startswith("a worker on 192.0.2.3 died") and len(said) == 5


def test_what_ray_data_adds_to_errors_of_workers_is_left_out() -> None:
    about = {
        "description": "apply UDF transform",
        "attempts": 1,
        "max_attempts": 1,
        "total_backoff_s": 0.0,
        "exception_str": "",
    }
    own = _annotate_exception_with_retry_context(StorageError("the disk is full"), **about)
    others = _annotate_exception_with_retry_context(ValueError("first\nit is odd"), **about)
    assert "To change retry attempts" in str(own) and "To change retry attempts" in str(others)
    assert str(own_error(own)) == "the disk is full" and own_error(own) is own
    assert str(own_error(others)).startswith("the workers failed: it is odd; run")


def test_what_is_unknown_is_said_but_not_all_of_it() -> None:
    said = list[str]()
    Heard(said.append).hear("Something new:\n" + "x" * 1000)
    assert said == [f"Ray says: Something new: {'x' * (MOST_LETTERS - 15)}..."]


def test_a_head_that_does_not_answer_is_said_once_and_again_when_it_does() -> None:
    said = list[str]()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        place = _Place("the head", "127.0.0.1", port, "wait for it")
        place.look(said.append)
    for _ in range(FAILURES + 2):
        place.look(said.append)
    assert said == [f"the head (127.0.0.1:{port}) does not answer: wait for it"]
    with socket.create_server(("127.0.0.1", port)):
        place.look(said.append)
        place.look(said.append)
    assert said[1:] == [f"the head (127.0.0.1:{port}) answers again"]


def test_statistics_that_ray_data_loses_are_told_in_a_line_and_other_errors_as_ray_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    theirs = ray_worker._unhandled_error_handler
    with heard():
        for text in ("ray::_StatsActor.update_execution_metrics() (pid=29214)\nKeyError: 'dataset_0'", "ray::other() failed"):
            ray_worker._unhandled_error_handler(KeyError(text))
    assert ray_worker._unhandled_error_handler is theirs
    lost, other = (record.getMessage() for record in caplog.records)
    assert lost.startswith("Ray Data's statistics for its dashboard are lost") and "\n" not in lost
    assert other.startswith("Unhandled error") and "ray::other() failed" in other
