"""The web page of a server: files that ship with the package, read once, served at `/` and below `/page/`.

The page is plain HTML, CSS and ES modules of our own. What it may do is in its headers: it loads nothing from
elsewhere, runs no script but those files, sends to this server alone, and is shown in no other page's frame.

Does not: know a model, or keep anything of a visitor; conversations stay in the browser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openhearth.server.exchange import to_json

PAGE_PREFIX = "/page/"
"""Paths of the page's files; they say nothing about models or use and need no key."""

SERVED = "served.json"
"""What the page asks first: paths that this server has, so that it asks for no other."""

_FOLDER = Path(__file__).with_name("page")
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
                ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'"))
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin", "cache-control": "no-cache"}


def page_routes(paths: Sequence[str], *, needs_key: bool) -> list[Route]:
    """Return the routes of the page. paths: what else is served. needs_key: requests for that need a key."""
    served = to_json({"version": version("openhearth"), "needs_key": needs_key, "paths": sorted(set(paths))})
    files = {path.relative_to(_FOLDER).as_posix(): (path.read_bytes(), _MEDIA_TYPES[path.suffix])
             for path in sorted(_FOLDER.rglob("*")) if path.suffix in _MEDIA_TYPES}
    files[SERVED] = (served, "application/json")
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, (content, _) in files.items()}

    async def send_file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise HTTPException(404)
        headers = {**_HEADERS, "etag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        content, media_type = files[name]
        return Response(content, headers={**headers, "content-type": media_type})

    return [Route("/", send_file, methods=["GET"]),
            Route(f"{PAGE_PREFIX}{{name:path}}", send_file, methods=["GET"])]
