"""Who is refused: foreign hosts and origins, strangers without the token."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from apps.security import CONTENT_POLICY, Guard, host_name, is_loopback


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/config", "/gradio_api/queue/join"])
def test_foreign_requests_are_refused(served, headers, path):
    answer = served.get(path, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (403, "refused")


def test_cross_site_upload_stores_nothing(served):
    answer = httpx.post(
        f"{served.url}/gradio_api/upload", files={"files": b"x"}, headers={"origin": "http://evil.example"}, timeout=30
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers", [{}, {"host": "localhost:1"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}]
)
def test_own_requests_and_links_from_elsewhere_are_served(served, headers):
    answer = served.get("/api/runs", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_own_origin_is_served(served):
    assert served.get("/api/runs", headers={"origin": served.url}).status_code == 200


def guarded(token: str | None, host: str = "0.0.0.0") -> httpx.AsyncClient:
    """A client of a guarded application that answers "seen" to everything."""

    async def seen(request):
        return PlainTextResponse("seen")

    inner = Starlette(routes=[Route("/{rest:path}", seen)])
    transport = httpx.ASGITransport(Guard(inner, host=host, token=token))
    return httpx.AsyncClient(transport=transport, base_url="http://machine.example:7860")


def visit(client: httpx.AsyncClient, *paths: str) -> list[httpx.Response]:
    import asyncio

    async def all_of_them() -> list[httpx.Response]:
        async with client:
            return [await client.get(path) for path in paths]

    return asyncio.run(all_of_them())


def test_a_token_is_asked_for_then_kept_in_a_cookie_and_out_of_the_address():
    before, wrong, entry, after = visit(
        guarded("se cret"), "/", "/?token=secret", "/a?x=1&token=se%20cret", "/api/runs"
    )
    assert (before.status_code, wrong.status_code) == (401, 401)
    assert "se cret" not in before.text
    assert (entry.status_code, entry.headers["location"]) == (303, "/a?x=1")
    assert "HttpOnly" in entry.headers["set-cookie"]
    assert (after.status_code, after.text) == (200, "seen")


def test_the_redirect_stays_on_this_server():
    (answer,) = visit(guarded("s"), "http://machine.example:7860//evil.example/?token=s")
    assert answer.headers["location"] == "/evil.example/"


def test_without_a_token_only_loopback_names_are_served():
    (answer,) = visit(guarded(None, host="127.0.0.1"), "/")
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("machine.example", False), ("", False)],
)  # fmt: skip
def test_what_counts_as_this_machine(host, expected):
    assert is_loopback(host) is expected


def test_host_names_lose_port_and_brackets():
    assert [host_name(text) for text in ("LocalHost:80", "[::1]:80", "a.b", "[::1", "")] == [
        "localhost", "::1", "a.b", "", "",
    ]  # fmt: skip
