"""The page on which people read the API's OpenAPI document. All that it loads is served from here, too.

The viewer is Swagger UI, as the package `offapi` carries it (decision 0022).
"""

import hashlib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.status_codes import HTTP_404_NOT_FOUND

from api.authentication import OPEN
from api.event_document import with_events

PATH = "/docs"
DOCUMENT = "/openapi.json"

YEAR = 365 * 24 * 3600

# Nothing of another origin is loaded or asked, whatever the viewer does. Its style sheet has icons in `data:`.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_START = f"""\
SwaggerUIBundle({{
  url: "{PATH}{DOCUMENT}",
  dom_id: "#viewer",
  deepLinking: true,
  validatorUrl: null,
}});
"""

# The empty icon keeps browsers from asking for /favicon.ico.
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{style}">
</head>
<body>
<div id="viewer"></div>
<noscript>This page needs JavaScript. What it shows is <a href="{document}">{document}</a>.</noscript>
<script src="{viewer}"></script>
<script src="{start}"></script>
</body>
</html>
"""


class Asset(msgspec.Struct, frozen=True):
    """A file that the page loads."""

    name: str
    media_type: str
    content: bytes

    @property
    def path(self) -> str:
        """Where it is served below `PATH`. Another content has another path, so that it may be cached for ever."""
        return f"/assets/{hashlib.sha256(self.content).hexdigest()[:16]}/{self.name}"


class ReferencePage(OpenAPIRenderPlugin):
    """Serves the page at `/docs`, and what it loads below."""

    def __init__(self) -> None:
        """Read the viewer's files.

        Raises:
            PackageNotFoundError: `offapi` is not installed.
        """
        super().__init__(path="/")
        self._style = Asset("swagger-ui.css", "text/css", _packaged("swagger_style.css"))
        self._viewer = Asset("swagger-ui.js", "text/javascript", _packaged("swagger_bundle.js"))
        self._start = Asset("start.js", "text/javascript", _START.encode())

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page."""
        return _PAGE.format(
            title=openapi_schema["info"]["title"],
            document=PATH + DOCUMENT,
            style=PATH + self._style.path,
            viewer=PATH + self._viewer.path,
            start=PATH + self._start.path,
        ).encode()

    def receive_router(self, router: Router) -> None:
        """Serve what the page loads."""
        for asset in (self._style, self._viewer, self._start):
            router.register(_serve(asset))


class Document(JsonRenderPlugin):
    """Serves the document, in the order in which it is read."""

    def __init__(self) -> None:
        """Serve it where the page looks for it."""
        super().__init__(path=DOCUMENT)

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document. Litestar's order within a controller is that of the handlers' names."""
        return super().render(request, with_events({**openapi_schema, "paths": _ordered(openapi_schema["paths"])}))


def _ordered(paths: dict[str, Any]) -> dict[str, Any]:
    """Keep each resource together, the shorter paths first."""
    resources = [path.split("/")[1] for path in paths]
    return dict(sorted(paths.items(), key=lambda item: (resources.index(item[0].split("/")[1]), item[0])))


def reference_router() -> Router:
    """Return the router that Litestar puts the page and the document on."""
    return Router(
        PATH,
        route_handlers=[],
        include_in_schema=False,
        opt=OPEN,
        dto=None,
        return_dto=None,
        response_headers={
            "content-security-policy": POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        },
        cache_control=CacheControlHeader(no_cache=True),
        after_request=_refuse_unknown,
    )


def _refuse_unknown(response: Response[Any]) -> Response[Any]:
    """Answer an unknown path as everywhere else: below its document, Litestar answers with a page of its own."""
    if response.status_code == HTTP_404_NOT_FOUND:
        raise NotFoundException
    return response


def _packaged(name: str) -> bytes:
    # The package is not imported: it would read all that it has into templates of its own.
    return Path(str(distribution("offapi").locate_file(f"offapi/{name}"))).read_bytes()


def _serve(asset: Asset) -> HTTPRouteHandler:
    @get(
        asset.path,
        media_type=asset.media_type,
        cache_control=CacheControlHeader(public=True, max_age=YEAR, immutable=True),
        sync_to_thread=False,
    )
    def serve() -> bytes:
        return asset.content

    return serve
