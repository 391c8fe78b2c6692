"""Who may talk to the server: an allow-list of Host names, same-origin requests only, an optional token.

A server on 127.0.0.1 is reachable by every web page the person has open. DNS rebinding (an unknown Host) and
cross-site requests (a foreign Origin) are therefore refused before any route sees them.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "dfw_token"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
# The page needs eval (Gradio compiles templates), blobs (our modules) and data URLs; nothing from another origin.
CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; frame-ancestors 'self'; form-action 'self'"
)


def is_loopback(host: str) -> bool:
    """Whether binding to `host` (name or address) is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str:
    """The name in a Host header or URL authority, lower case, without port and brackets; "" if malformed."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").lower()
    except ValueError:
        return ""


def origin_authority(origin: str) -> str | None:
    """Name and port of an Origin header, lower case; None if malformed, which equals no Host."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def refusal(headers: Headers, allowed_hosts: frozenset[str] | None) -> str | None:
    """Why a request with these headers is refused, or None. `allowed_hosts` None accepts every Host name."""
    authority = headers.get("host", "")
    if allowed_hosts is not None and host_name(authority) not in allowed_hosts:
        return f"Host {authority[:80]!r} is not this server; open it as http://127.0.0.1 or http://localhost"
    origin = headers.get("origin")
    if origin is not None and origin_authority(origin) != authority.lower():
        return f"Origin {origin[:80]!r} is another site; only pages of this server may call it"
    navigates = headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site") in {"cross-site", "same-site"} and not navigates:
        return "the request was made by another site; only pages of this server may call it"
    return None


class Guard:
    """ASGI middleware: refuses foreign hosts and origins (403) and a missing or wrong token (401).

    With a token every Host name is accepted: the token's cookie belongs to one name, so a rebound one has none.
    `?token=…` is answered with a cookie and a redirect to the same address without it, so that it is not shared on.
    """

    def __init__(self, app: ASGIApp, *, host: str, token: str | None = None) -> None:
        self.app = app
        self.token = token
        self.allowed_hosts = None if token else LOOPBACK_NAMES | {host.strip("[]").lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no page of ours opens one
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._answer(Request(scope))
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))

    def _answer(self, request: Request) -> Response | None:
        reason = refusal(request.headers, self.allowed_hosts)
        if reason is not None:
            return JSONResponse({"error": "refused", "message": reason}, status_code=403)
        if self.token is None or self._matches(request.cookies.get(COOKIE)):
            return None
        if self._matches(request.query_params.get("token")):
            return self._remember(request)
        message = "this server asks for a token: open the address that was printed in its terminal (…/?token=…)"
        return JSONResponse({"error": "token", "message": message}, status_code=401)

    def _matches(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _remember(self, request: Request) -> Response:
        kept = [(key, value) for key, value in parse_qsl(request.url.query) if key != "token"]
        target = request.url.path + (f"?{urlencode(kept)}" if kept else "")
        answer = RedirectResponse("/" + target.lstrip("/"), status_code=303)
        answer.set_cookie(COOKIE, self.token or "", httponly=True, samesite="lax")
        return answer


def _with_headers(send: Send) -> Send:
    """Adds the protective headers to every response."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("referrer-policy", "same-origin")
            headers.setdefault("content-security-policy", CONTENT_POLICY)
        await send(message)

    return wrapped
