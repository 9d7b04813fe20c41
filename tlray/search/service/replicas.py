"""The service in several processes, under Ray Serve."""

import socket
import threading
from typing import Any

from ray import serve

from tlray.config import ServeConfig
from tlray.config.sections.stores import store_access, use_stores
from tlray.progress import say
from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.session import joined
from tlray.search.service.backend.service import Service
from tlray.search.service.web.access import read_token
from tlray.search.service.web.app import guarded_app
from tlray.search.versions.card import read_card

APP = "tlray-search"


def serve_on_ray(config: ServeConfig, index_uri: str, stop: threading.Event) -> dict[str, Any]:
    """Serve by several replicas until told to stop; requests under way are finished.

    Limits count for each replica by itself, and each follows the index on its own: for `reload_seconds` answers may come of two
    versions, each of one alone. `/metrics` are those of the replica that happens to answer. Connections are held by Ray's
    proxy, which waits for a request's head as long as it takes: let others than friends reach it through a reverse proxy.

    Args:
        config: of the command; `token_file` is read by each replica on its own machine.
        index_uri: of the index, which each replica must reach.
        stop: ends it.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: there is no cluster.
        TlrayError: a replica cannot open the index, or computes other numbers.
    """
    with joined(), unwrapped():
        port = config.port or _free_port(config.host)
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        try:
            serve.run(_application(config), name=APP, route_prefix="/")
            address = f"http://{config.host}:{port}/"
            say(f"{config.replicas} replicas answer: {address} (interface: {address}docs)")
            stop.wait()
        finally:
            serve.delete(APP)
    card = read_card(index_uri)
    return {"index": index_uri, "version": card.version, "address": address, "replicas": config.replicas}


def application(keys: dict[str, Any]) -> Any:
    """The service as others run it: KubeRay's RayService and `serve run` take `<this module>:application`.

    Args:
        keys: of the command's config, `index` among them.
    """
    return _application(ServeConfig(**keys))


def _application(config: ServeConfig) -> Any:
    def build() -> Any:
        use_stores([store_access(text) for text in config.stores])  # of the replica, a process of its own
        service = Service(config)
        return guarded_app(
            service,
            token=read_token(config.token_file, config.host),
            host=config.host,
            max_body_bytes=config.max_body_bytes,
            timeout_seconds=config.timeout_seconds,
        )

    return serve.deployment(
        name=APP,
        num_replicas=config.replicas,
        max_ongoing_requests=2 * config.max_concurrency,  # so that the guard answers 429, not the proxy
        graceful_shutdown_timeout_s=config.timeout_seconds,
        ray_actor_options={"num_cpus": 1},
    )(serve.ingress(build)()).bind()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
