"""The HTTP routes behind the pages: small JSON, raw arrays, a stream of deltas. A run is named by id, never by path."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse
from safetensors import SafetensorError

from apps.basis import BasisCache
from apps.feed import POLL_SECONDS, Cursor, RunFeed
from apps.findings import FindingsCache
from apps.joint import JointBasisCache
from apps.listing import Listing
from apps.verdicts import VerdictCache
from workbench.runs import RunNotFoundError
from workbench.views.encode import encode_features

HEARTBEAT_SECONDS = 10.0
SUMMARY_POINTS = 2000
MAX_POINTS = 20000
MAX_STEP = 2**53
BINARY = "application/octet-stream"


def error(status: int, code: str, message: str) -> HTTPException:
    """An error for people: `code` is looked up in the page's language, `message` is the English of it."""
    return HTTPException(status, {"error": code, "message": message})


@contextmanager
def reading(identity: str):
    """Turns what reading a run's files may raise into 404 (gone) and 409 (not readable now)."""
    try:
        yield
    except RunNotFoundError:
        raise error(404, "run-gone", f"no run has the id {identity!r}; it was deleted or renamed") from None
    except FileNotFoundError as missing:
        raise error(404, "file-gone", f"the run no longer has {missing.filename or missing}") from None
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, SafetensorError) as bad:
        raise error(409, "run-unreadable", str(bad)) from bad


class Routes:
    """The endpoints over one folder of runs. `closing` ends the streams when the server shuts down."""

    def __init__(self, listing: Listing, closing: Callable[[], bool] = lambda: False) -> None:
        self.listing, self.closing = listing, closing
        self.bases = BasisCache()
        self.joint_bases = JointBasisCache(self.bases)
        self.doctor = FindingsCache()
        self.verdicts = VerdictCache()
        self.router = APIRouter(prefix="/api")
        add = self.router.add_api_route
        add("/runs", self.runs)
        add("/runs/{identity}/summary", self.summary)
        add("/runs/{identity}/metrics", self.metrics)
        add("/runs/{identity}/images/{index}.png", self.image)
        add("/runs/{identity}/probes/{step}", self.probes)
        add("/runs/{identity}/basis", self.basis)
        add("/runs/{identity}/basis/{other}", self.joint_basis)
        add("/runs/{identity}/findings", self.findings)
        add("/runs/{identity}/diseases/{step}/{image}", self.diseases)
        add("/runs/{identity}/stream", self.stream)

    def runs(self) -> Response:
        """The runs list: id, name, phase, status, age of the last record in seconds."""
        exists = self.listing.folder.is_dir()
        return fresh({"folder": str(self.listing.folder), "exists": exists, "runs": self.listing.table()})

    def summary(self, identity: str, points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = SUMMARY_POINTS) -> Response:
        """Everything but arrays: the run, its probes, its steps, thinned series, events, and the stream's cursor."""
        with reading(identity):
            feed = self.listing.feed(identity)
            feed.refresh()
            return fresh(feed.summary(points))

    def metrics(self, identity: str, points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = SUMMARY_POINTS) -> Response:
        """Columns of every series, thinned to about `points` records each; least and greatest values survive."""
        with reading(identity):
            feed = self.listing.feed(identity)
            feed.refresh()
            return fresh(feed.curves(points))

    def image(self, identity: str, index: int, v: str = "", if_none_match: Annotated[str, Header()] = "") -> Response:
        """One probe image as PNG, the pixels the backbone sees."""
        with reading(identity):
            feed = self.listing.feed(identity)
            content = feed.pictures.png(feed.run, index)
        if content is None:
            raise error(404, "image-gone", f"this run has no probe image {index}")
        return lasting(content, "image/png", feed.version, v, f"{feed.version}-i{index}", if_none_match)

    def probes(
        self,
        identity: str,
        step: int,
        dtype: Literal["int8", "float16"] = "int8",
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        """Dense features of the probe images at one step, as safetensors bytes (docs/apps.md)."""
        with reading(identity):
            feed = self.listing.feed(identity)
            if not 0 <= step <= MAX_STEP or step not in feed.run.probe_steps():
                raise error(404, "step-gone", f"this run has no probe features at step {step}")
            stamp = "-".join(map(str, feed.run.probe_stamp(step)))  # a resumed writer may write a step once more
            content = encode_features(feed.run.probe_features(step), dtype)
        return lasting(content, BINARY, feed.version, "", f"{feed.version}-s{step}-{dtype}-{stamp}", if_none_match)

    def basis(self, identity: str) -> Response:
        """The PCA basis all steps share: safetensors bytes, and {"steps", "explained"} in the header X-Basis."""
        with reading(identity):
            feed = self.listing.feed(identity)
            steps = list(feed.run.probe_steps())
            if not steps:
                raise error(404, "no-probes", "this run has written no probe features yet")
            content, about = self.bases.encoded(feed, steps)
        return Response(content, media_type=BINARY, headers={"x-basis": json.dumps(about), "cache-control": "no-store"})

    def joint_basis(self, identity: str, other: str) -> Response:
        """One PCA basis for all steps of two runs: bytes as of `basis`, and {"steps": {id: …}, "explained"}."""
        with reading(identity):
            feed = self.listing.feed(identity)
        with reading(other):
            content, about = self.joint_bases.encoded(feed, self.listing.feed(other))
        return Response(content, media_type=BINARY, headers={"x-basis": json.dumps(about), "cache-control": "no-store"})

    def findings(self, identity: str) -> Response:
        """What the run doctor says: {"findings": [{rule, level, title, text, fix, metric, steps, source}]}."""
        with reading(identity):
            feed = self.listing.feed(identity)
            feed.refresh()
            return fresh(self.doctor.of(feed))

    def diseases(self, identity: str, step: int, image: int, patch: str = "") -> Response:
        """The four diseases on one probe image: pictures as safetensors bytes, the verdicts in the header X-Verdicts.

        `patch` is "row,column" from 0, the query of the similarity maps; the middle of the image where it is absent.
        """
        query = patch_of(patch)
        with reading(identity):
            feed = self.listing.feed(identity)
            feed.refresh()
            if not 0 <= step <= MAX_STEP or step not in feed.run.probe_steps():
                raise error(404, "step-gone", f"this run has no probe features at step {step}")
            content, about = self.verdicts.encoded(feed, step, image, query)
        headers = {"x-verdicts": json.dumps(about, allow_nan=False), "cache-control": "no-store"}
        return Response(content, media_type=BINARY, headers=headers)

    async def stream(
        self, request: Request, identity: str, cursor: str = "", last_event_id: Annotated[str, Header()] = ""
    ) -> Response:
        """Server-sent deltas from `cursor` on (or from the last event a reconnecting viewer got)."""
        with reading(identity):
            feed = await asyncio.to_thread(self.listing.feed, identity)
            await feed.follow()
        start = Cursor.parse(last_event_id or cursor)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._deltas(request, feed, start), media_type="text/event-stream", headers=headers)

    async def _deltas(self, request: Request, feed: RunFeed, seen: Cursor) -> AsyncIterator[str]:
        told: tuple | None = None
        yield "retry: 500\n\n"
        spoke = 0.0
        while not self.closing() and not await request.is_disconnected():
            try:
                with reading(feed.identity):
                    if await asyncio.to_thread(self.listing.feed, feed.identity) is not feed:
                        return  # made anew under the same name: the viewer reconnects and is told to read all
                    await feed.follow()
                    state = feed.state()
                    new = await asyncio.to_thread(feed.delta, seen) if (feed.cursor, state) != (seen, told) else None
            except HTTPException as gone:
                yield f"event: gone\ndata: {json.dumps(gone.detail)}\n\n"
                return
            if new:
                seen, text = new
                yield f"id: {seen}\ndata: {text}\n\n"
                told, spoke = state, time.monotonic()
            elif time.monotonic() - spoke > HEARTBEAT_SECONDS:
                yield ": still here\n\n"
                spoke = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)


def patch_of(text: str) -> tuple[int, int] | None:
    """(row, column) of "row,column", None of an empty text; 422 for anything else."""
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise error(422, "wrong-value", f"patch {text[:40]!r} is not 'row,column', counted from 0")
    return int(parts[0]), int(parts[1])


def fresh(content: dict) -> Response:
    """A JSON answer that is never cached. In ASCII: names of files may hold what UTF-8 cannot."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json", headers={"cache-control": "no-store"})


def lasting(content: bytes, kind: str, version: str, asked: str, tag: str, known: str) -> Response:
    """Bytes that never change: cached for good when the address names the run's version, else revalidated by tag."""
    etag = f'"{tag}"'
    keep = "private, max-age=31536000, immutable" if asked == version else "private, no-cache"
    headers = {"etag": etag, "cache-control": keep}
    if known == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
