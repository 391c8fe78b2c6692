"""The application: routes and the Gradio page, built in the background behind a small page that says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from apps.language import strings
from apps.security import Guard

if TYPE_CHECKING:
    from fastapi import FastAPI

UPLOAD_LIMIT = "1mb"
GRADIO_SELF_DESCRIPTIONS = (
    *("/openapi.json", "/docs", "/redoc", "/info", "/info/"),
    *("/gradio_api/openapi.json", "/gradio_api/docs", "/gradio_api/info", "/gradio_api/info/"),
)
"""Where Gradio, or FastAPI, would describe routes of its own; ours are in docs/apps.md, and the page has no others."""


def build_app(runs: Path, recorded: bool = False, closing: Callable[[], bool] = lambda: False) -> FastAPI:
    """The FastAPI application over one folder of runs: our routes, and the Gradio page mounted at "/".

    Imports Gradio and PyTorch (seconds). `recorded`: whether to show the examples that ship
    with the workbench; `closing` tells the streams when to end.
    """
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from apps.api import Routes
    from apps.listing import Listing
    from apps.monitor import HEAD, build_page, theme
    from workbench.runs import RECORDED_RUNS

    app = FastAPI(title="Dense Feature Workbench", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(Routes(Listing(runs, RECORDED_RUNS if recorded else None), closing).router)
    app.add_exception_handler(HTTPException, plain_error)
    app.add_exception_handler(RequestValidationError, wrong_value)
    app.add_api_route("/api/{rest:path}", no_route)
    for address in GRADIO_SELF_DESCRIPTIONS:
        app.add_api_route(address, not_described)
    return gr.mount_gradio_app(
        app,
        build_page(),
        path="/",
        theme=theme(),
        head=HEAD,
        footer_links=[],
        run_history=False,
        max_file_size=UPLOAD_LIMIT,
        allowed_paths=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
    )


def plain_json(body: dict, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer in ASCII: the words may quote names of files, which may hold what UTF-8 cannot."""
    return Response(json.dumps(body), status_code, headers, media_type="application/json")


async def plain_error(request: Request, error: Exception) -> Response:
    """Errors of our routes as {"error": code, "message": text}."""
    detail = getattr(error, "detail", None)
    body = detail if isinstance(detail, dict) else {"error": "unknown-address", "message": str(detail or error)}
    return plain_json(body, status_code=getattr(error, "status_code", 400))


async def wrong_value(request: Request, error: Exception) -> Response:
    """A value in the address that is not of its kind, said in words."""
    problems = getattr(error, "errors", list)()
    said = "; ".join(
        f"{problem['loc'][-1]} {str(problem.get('input'))[:40]!r}: {problem['msg']}" for problem in problems
    )
    return plain_json({"error": "wrong-value", "message": said}, status_code=422)


async def no_route(rest: str) -> Response:
    """Unknown addresses under /api are plain 404s and never reach Gradio."""
    message = f"there is nothing at /api/{rest[:80]}; see docs/apps.md for the addresses"
    return plain_json({"error": "unknown-address", "message": message}, status_code=404)


async def not_described() -> Response:
    """The routes describe themselves nowhere but in the documentation."""
    message = "there is no schema here; see docs/apps.md for the addresses"
    return plain_json({"error": "unknown-address", "message": message}, status_code=404)


def waiting_page() -> str:
    """The page shown while the application is being imported, in the languages of the others."""
    words = {language: [table["start.title"], table["start.text"]] for language, table in strings().items()}
    page = files("apps").joinpath("static/starting.html").read_text("utf-8")
    return page.replace("/*WORDS*/{}", json.dumps(words))


class Starter:
    """Answers from the first moment, with a page that waits, while the real application is imported in a thread.

    `failed` holds what went wrong when it could not be built.
    """

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self.build = build
        self.app: FastAPI | None = None
        self.failed: BaseException | None = None
        self.waiting_page = waiting_page()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/starting":
            answer = plain_json({"ready": self.app is not None}, headers={"cache-control": "no-store"})
            await answer(scope, receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        else:
            await self._wait(Request(scope))(scope, receive, send)

    def _wait(self, request: Request) -> Response:
        headers = {"retry-after": "1", "cache-control": "no-store"}
        if request.url.path == "/":
            return HTMLResponse(self.waiting_page, headers=headers)
        message = "the server is starting; try again in a second" if self.failed is None else str(self.failed)
        return plain_json({"error": "starting", "message": message}, status_code=503, headers=headers)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        stopping = asyncio.Event()
        building = asyncio.create_task(self._run(stopping))
        await receive()
        stopping.set()
        await building
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self, stopping: asyncio.Event) -> None:
        """Builds the application and keeps its own lifespan open until the server stops."""
        stopped = asyncio.create_task(stopping.wait())
        built = self._build_aside()
        await asyncio.wait({stopped, built}, return_when=asyncio.FIRST_COMPLETED)
        if not built.done():
            return
        self.failed = built.exception()
        if self.failed is None:
            app = built.result()
            async with app.router.lifespan_context(app):
                self.app = app
                await stopped

    def _build_aside(self) -> asyncio.Future[FastAPI]:
        """The application, built in a daemon thread: a server told to stop does not wait for imports to end."""
        loop = asyncio.get_running_loop()
        built: asyncio.Future[FastAPI] = loop.create_future()

        def work() -> None:
            try:
                tell = partial(built.set_result, self.build())
            except Exception as error:  # the server is told and ends with a message
                tell = partial(built.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell)

        Thread(target=work, daemon=True).start()
        return built


def make_server_app(
    runs: Path, *, host: str, token: str | None, closing: Callable[[], bool], recorded: bool = False
) -> tuple[Guard, Starter]:
    """The guarded application to serve, and its starter (to learn whether building failed)."""
    starter = Starter(lambda: build_app(runs, recorded, closing))
    return Guard(starter, host=host, token=token), starter


def private_folders() -> TemporaryDirectory:
    """A temporary folder of this process for Gradio's files; must be made before Gradio is imported.

    Gradio serves its cache folder to whoever knows a path, and by default all its applications share one.
    """
    folder = TemporaryDirectory(prefix="dfw-apps-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return folder
