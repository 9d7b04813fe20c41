"""The service's numbers, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ANSWER_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
"""Bounds of the histogram's buckets: from a search of a small index to the default time limit."""


class Metrics:
    """Counters and gauges of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("tlray_requests", "Requests by route and status", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "tlray_request_seconds", "Time to answer", ["route"], buckets=ANSWER_SECONDS, registry=registry
        )
        self.in_flight = Gauge("tlray_requests_in_flight", "Requests being received or answered", registry=registry)
        self.places = Gauge(
            "tlray_places_taken",
            "Requests that work or wait for a thread, and work that goes on for requests that are gone",
            registry=registry,
        )
        self.cut = Counter("tlray_connections_cut", "Connections ended because of their client", ["reason"], registry=registry)
        self.version = Gauge("tlray_index_version", "Version of the index that answers", registry=registry)
        self.table_version = Gauge("tlray_table_version", "Version of the table that the index shows", registry=registry)
        self.rows = Gauge("tlray_index_rows", "Live rows", registry=registry)
        self.reloads = Counter("tlray_index_reloads", "Versions loaded while running", ["outcome"], registry=registry)

    def answered(self) -> int:
        """How many requests were answered, whatever the answer."""
        samples = (sample for metric in self.requests.collect() for sample in metric.samples)
        return sum(int(sample.value) for sample in samples if sample.name == "tlray_requests_total")

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
