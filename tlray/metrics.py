"""Metrics as Prometheus takes them, and a small server for them where Ray's is not."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tlray.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The type of Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""


@dataclass(frozen=True)
class Metric:
    """One metric with its values at a moment.

    Attributes:
        name: as Prometheus has it.
        kind: a counter only grows during a run.
        about: what it counts.
        label: the name of its one label beside the run's; empty for none.
        values: by the label's value.
    """

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    label: str
    values: Mapping[str, float]


def exposition(metrics: Sequence[Metric], run_id: str) -> str:
    """Metrics in Prometheus' text format, with the label `run`."""
    lines, run = [], f'run="{run_id}"'
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.about}", f"# TYPE {metric.name} {metric.kind}"]
        for value, number in sorted(metric.values.items()):
            label = f',{metric.label}="{value}"' if metric.label else ""
            lines.append(f"{metric.name}{{{run}{label}}} {float(number)!r}")
    return "\n".join([*lines, ""])


@contextlib.contextmanager
def served(host: str, port: int, run_id: str, read: Callable[[], list[Metric]]) -> Iterator[str]:
    """Serve a run's metrics while it goes on, at `/metrics`.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        run_id: of the run.
        read: the values of this moment.

    Yields:
        The address.

    Raises:
        ConfigError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition(read(), run_id).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002
            """Say nothing of requests, which would stand between the lines of the run."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"metrics_port {port} of {host} cannot be listened on: {error.strerror}; give another") from error
    with server:
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        try:
            yield f"http://{host}:{server.server_port}/metrics"
        finally:
            server.shutdown()
