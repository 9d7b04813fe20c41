"""The service as a FastAPI application."""

import contextlib
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tlray.config import ServeConfig
from tlray.errors import ConfigError, ImageError, ObjectNotFoundError, QueryError, RecipeMismatchError
from tlray.search.rows.selection import Filter
from tlray.search.service.backend.schema import MAX_FILTERS, Hit, IndexInfo, Point, SearchRequest, SearchResponse, Text
from tlray.search.service.backend.service import Service
from tlray.search.service.web.guard import Guard
from tlray.version import __version__

PAGE = Path(__file__).parent.parent / "page"


Labels = Annotated[tuple[Text, ...], Query(max_length=MAX_FILTERS, description="only rows with one of these labels")]


Prefixes = Annotated[
    tuple[Text, ...], Query(max_length=MAX_FILTERS, description="only rows whose URI begins with one of these")
]


def make_app(service: Service) -> FastAPI:
    """The routes; without the guard."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.watching():
            yield

    app = FastAPI(title="tlray search", version=__version__, lifespan=lifespan, redoc_url=None)
    _add_errors(app)
    _add_api(app, service)
    _add_operations(app, service)
    app.mount("/static", StaticFiles(directory=PAGE))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Not what was sent: it may not even be text.
        problems = [{"where": list(map(repr, one["loc"])), "problem": ascii(one["msg"])} for one in error.errors()[:10]]
        return JSONResponse({"detail": problems}, 422)

    def answer(status: int, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)[:1000]}, status)

    @app.exception_handler(QueryError)
    async def bad_query(_: Request, error: QueryError) -> JSONResponse:
        return answer(422, error)

    @app.exception_handler(ImageError)
    async def bad_image(_: Request, error: ImageError) -> JSONResponse:
        return answer(422, error)

    @app.exception_handler(RecipeMismatchError)
    async def other_recipe(_: Request, error: RecipeMismatchError) -> JSONResponse:
        return answer(409, error)


def _add_api(app: FastAPI, service: Service) -> None:
    @app.get("/api/index")
    async def index() -> IndexInfo:
        """What the index is."""
        return await service.in_thread(service.info)

    @app.post("/api/search")
    async def search(request: SearchRequest) -> SearchResponse:
        """The nearest rows of each query."""
        return await service.in_thread(lambda: service.search(request))

    @app.post(
        "/api/search/image",
        openapi_extra={
            "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def search_image(
        request: Request,
        k: Annotated[int, Query(ge=1)] = 10,
        label: Labels = (),
        prefix: Prefixes = (),
    ) -> SearchResponse:
        """The nearest rows of the image that is the request's body."""
        data = await request.body()
        return await service.in_thread(lambda: service.search_image(data, k, Filter(label, prefix)))

    @app.get("/api/random")
    async def random(
        count: Annotated[int, Query(ge=1, le=200)] = 24,
        label: Labels = (),
        prefix: Prefixes = (),
    ) -> list[Hit]:
        """Some rows, to start from."""
        return await service.in_thread(lambda: service.random(count, Filter(label, prefix)))

    @app.get("/api/map")
    async def map_() -> list[Point]:
        """A sample of rows in two dimensions."""
        return await service.in_thread(service.map)

    @app.get("/api/thumbnail/{row_id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(row_id: Annotated[int, PathParameter(ge=0, lt=2**62)]) -> Response:
        """A small JPEG of a row's image."""
        try:
            data = await service.in_thread(lambda: service.thumbnail(row_id))
        except (QueryError, ImageError, ObjectNotFoundError) as error:
            return JSONResponse({"detail": str(error)[:1000]}, 404)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> JSONResponse:
        status = "stopping" if service.is_stopping else "ready"
        return JSONResponse({"status": status, "version": service.searcher.card.version}, 503 if service.is_stopping else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def guarded(app: FastAPI, service: Service, config: ServeConfig, token: str | None) -> Guard:
    """The routes behind the token and the limits."""
    loopback = frozenset({"127.0.0.1", "localhost", "[::1]", config.host.lower()})
    return Guard(
        app,
        metrics=service.metrics,
        token=token,
        hosts=loopback if _is_loopback(config.host) else None,
        max_body_bytes=config.max_body_bytes,
        max_concurrency=config.max_concurrency,
        timeout_seconds=config.timeout_seconds,
    )


def read_token(config: ServeConfig) -> str | None:
    """The bearer token, or None where there is none.

    Raises:
        ConfigError: the file cannot be read or is empty, or others than this machine could reach a service without one.
    """
    if config.token_file is None:
        if not _is_loopback(config.host):
            raise ConfigError(f"host {config.host} is not loopback, so everybody could search; give --token-file")
        return None
    try:
        lines = Path(config.token_file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --token-file {config.token_file}: {error}") from error
    token = lines[0].strip()
    if not token or not token.isascii():
        raise ConfigError(f"the first line of {config.token_file} is no token; expected ASCII characters")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
