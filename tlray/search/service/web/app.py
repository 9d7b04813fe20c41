"""The service as a FastAPI application: its routes, and what each of its errors is in HTTP."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tlray.errors import (
    ImageError,
    ObjectNotFoundError,
    QueryError,
    RecipeMismatchError,
    ServiceBusyError,
    ServiceUnavailableError,
)
from tlray.search.rows.selection import Filter
from tlray.search.service.backend.schema import MAX_FILTERS, Hit, IndexInfo, Map, SearchRequest, SearchResponse, Text
from tlray.search.service.backend.service import Service
from tlray.search.service.web.access import Access
from tlray.search.service.web.guard import Guard
from tlray.search.service.web.page_files import PageFile, read_page_files
from tlray.version import __version__

MAX_DETAIL_CHARACTERS = 1000
MAX_PROBLEMS = 10
HEALTH_PATHS = ("/healthz", "/readyz")

Labels = Annotated[tuple[Text, ...], Query(max_length=MAX_FILTERS, description="only rows with one of these labels")]
Prefixes = Annotated[
    tuple[Text, ...], Query(max_length=MAX_FILTERS, description="only rows whose URI begins with one of these")
]
Columns = Annotated[
    tuple[Text, ...],
    Query(max_length=MAX_FILTERS, description="of the table, to show with each row; all for each that travelled"),
]
Where = Annotated[Text, Query(description="only rows of which this holds: price < 10 and site = 'A'")]


def guarded_app(service: Service, *, token: str | None, host: str, max_body_bytes: int, timeout_seconds: float) -> Guard:
    """The whole application: the routes behind access and limits.

    Args:
        service: that answers.
        token: that requests must bring; None lets everybody in.
        host: address that the service listens on.
        max_body_bytes: larger requests are refused.
        timeout_seconds: of a request.
    """
    app = make_app(service)
    return Guard(
        app,
        access=Access(token, host),
        metrics=service.metrics,
        workers=service.workers,
        open_paths=(*read_page_files(), *HEALTH_PATHS, str(app.openapi_url)),
        max_body_bytes=max_body_bytes,
        timeout_seconds=timeout_seconds,
    )


def make_app(service: Service) -> FastAPI:
    """The routes alone: without access and limits."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.watching():
            yield

    # FastAPI's own /docs would load its script from another place, with the token at hand.
    app = FastAPI(title="tlray search", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_search(app, service)
    _add_collection(app, service)
    _add_texts(app, service)
    _add_operations(app, service)
    for path, file in read_page_files().items():
        _add_page_file(app, path, file)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problems(list(error.errors()))

    @app.exception_handler(ValidationError)
    async def invalid_body(_: Request, error: ValidationError) -> JSONResponse:
        count = error.error_count()
        if count > MAX_PROBLEMS:  # to list them all takes their memory again
            return _detail(422, f"the request has {count} faults, each key that is not known being one")
        return _problems(error.errors(include_input=False, include_context=False))

    statuses = {QueryError: 422, ImageError: 422, RecipeMismatchError: 409, ServiceBusyError: 429, ServiceUnavailableError: 503}
    for kind, status in statuses.items():

        @app.exception_handler(kind)
        async def refused(_: Request, error: Exception, status: int = status) -> JSONResponse:
            return _detail(status, str(error))


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/api/search", response_model=SearchResponse, openapi_extra=_body("application/json", _schema_of(SearchRequest)))
    async def search(request: Request) -> Response:
        """The nearest rows of each query."""
        data = await request.body()
        if len(data) > service.max_search_bytes:
            return _detail(413, f"the request has {len(data)} bytes; expected at most {service.max_search_bytes}")
        return _json(await service.search_json(data))

    @app.post(
        "/api/search/image",
        response_model=SearchResponse,
        openapi_extra=_body("image/*", {"type": "string", "format": "binary"}),
    )
    async def search_image(
        request: Request,
        k: Annotated[int, Query(ge=1)] = 10,
        label: Labels = (),
        prefix: Prefixes = (),
        where: Where = "",
        columns: Columns = (),
    ) -> Response:
        """The nearest rows of the image that is the request's body."""
        return _json(await service.search_image(await request.body(), k, Filter(label, prefix, where), columns))


def _add_collection(app: FastAPI, service: Service) -> None:
    @app.get("/api/index")
    async def index() -> IndexInfo:
        """What the index holds, and how it was made."""
        return await service.in_thread(service.info)

    @app.get("/api/random")
    async def random(
        count: Annotated[int, Query(ge=1, le=200)] = 24,
        label: Labels = (),
        prefix: Prefixes = (),
        where: Where = "",
        columns: Columns = (),
        seed: Annotated[int | None, Query(ge=0, lt=2**53, description="the same rows for the same seed and version")] = None,
    ) -> list[Hit]:
        """Some rows drawn at random, to start from."""
        return await service.in_thread(lambda: service.random(count, Filter(label, prefix, where), seed, columns))

    @app.get("/api/map", response_model=Map)
    async def map_() -> Response:
        """A sample of rows in two dimensions: at once by principal components, later by UMAP where that is installed."""
        return _json(await service.map())

    @app.get("/api/thumbnail/{row_id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(row_id: Annotated[int, PathParameter(ge=0, lt=2**62)]) -> Response:
        """A small JPEG of a row's image."""
        try:
            data = await service.thumbnail(row_id)
        except (QueryError, ImageError, ObjectNotFoundError) as error:
            return _detail(404, str(error))
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _add_texts(app: FastAPI, service: Service) -> None:
    @app.get("/api/text/{row_id}")
    async def text(row_id: Annotated[int, PathParameter(ge=0, lt=2**62)]) -> Response:
        """The text of a row, of a table of texts."""
        try:
            return _json(await service.text(row_id))
        except QueryError as error:
            return _detail(404, str(error))


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
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page_file(app: FastAPI, path: str, file: PageFile) -> None:
    @app.get(path, include_in_schema=False)
    async def page_file(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers={"etag": file.etag})
        return Response(file.data, headers=file.headers)


def _body(media_type: str, schema: dict[str, object]) -> dict[str, object]:
    """The part of an OpenAPI operation that says what its body is."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _schema_of(model: type[BaseModel]) -> dict[str, object]:
    """A model's JSON schema, with the models that it is made of in their places: OpenAPI keeps such elsewhere."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def with_parts(value: object) -> object:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            return with_parts(parts[name]) if name else {key: with_parts(one) for key, one in value.items()}
        return [with_parts(one) for one in value] if isinstance(value, list) else value

    inlined = with_parts(schema)
    assert isinstance(inlined, dict)
    return inlined


def _json(answer: BaseModel) -> Response:
    """An answer that is of the route's model as it is, so that it need not be checked against it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _detail(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text[:MAX_DETAIL_CHARACTERS]}, status)


def _problems(errors: list[ErrorDetails]) -> JSONResponse:
    # Not what was sent: it may not even be text.
    problems = [{"where": list(map(repr, one["loc"])), "problem": ascii(one["msg"])} for one in errors[:MAX_PROBLEMS]]
    return JSONResponse({"detail": problems}, 422)
