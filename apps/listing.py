"""Which runs a folder holds, under ids that are not paths."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from apps.events import told_parent
from apps.feed import RunFeed
from workbench.runs import Run, RunListing, RunNotFoundError, scan_runs

SCAN_SECONDS = 1.0
"""The folder is looked through at most once per this many seconds, however many viewers there are."""


def run_id(name: str) -> str:
    """Stable 12-digit hexadecimal id of a run's folder name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def run_version(run: Run) -> str:
    """Changes when a run folder is deleted and made again under the same name; part of every cached address."""
    return hashlib.sha256(str(run.info.get("created")).encode("utf-8", "replace")).hexdigest()[:8]


def recorded_id(name: str) -> str:
    """The id of a run that ships with the workbench; no run of the user's own folder can have it."""
    return run_id(f"/recorded/{name}")


class Listing:
    """The runs right inside one folder. A client names a run by id only: ids are looked up, never joined to a path.

    `recorded` is a folder of finished runs to show after them, as examples; they are never written.
    """

    def __init__(self, folder: Path, recorded: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.recorded = {recorded_id(run.path.name): run for run in scan_runs(recorded).runs} if recorded else {}
        self._lock = Lock()
        self._feeds: dict[str, RunFeed] = {}
        self._scanned = float("-inf")
        self._found = RunListing([], {})

    def scan(self) -> RunListing:
        """Readable runs and problems; none while the folder does not exist. Links that lead outside are left out."""
        with self._lock:
            if time.monotonic() - self._scanned > SCAN_SECONDS:
                self._found = self._look()
                self._scanned = time.monotonic()
            return self._found

    def _look(self) -> RunListing:
        try:
            found = scan_runs(self.folder)
        except (OSError, ValueError):
            return RunListing([], {})
        return RunListing([run for run in found.runs if run.path.resolve().is_relative_to(self.folder)], found.problems)

    def feed(self, identity: str) -> RunFeed:
        """The shared live reader of one run.

        Raises RunNotFoundError for an id that no run has, ValueError for a run that cannot be opened.
        """
        found = self.scan()
        own = next((run for run in found.runs if run_id(run.path.name) == identity), None)
        run = own or self.recorded.get(identity)
        if run is None:
            self._feeds.pop(identity, None)
            self._explain(found, identity)
        version = run_version(Run(run.path))
        with self._lock:
            feed = self._feeds.get(identity)
            if feed is None or feed.version != version:
                feed = self._feeds[identity] = RunFeed(run.path, identity, version)
            return feed

    def _explain(self, found: RunListing, identity: str) -> NoReturn:
        for name, problem in found.problems.items():
            if run_id(name) == identity:
                raise ValueError(problem)
        raise RunNotFoundError(f"no run has the id {identity[:40]!r}; it was deleted or renamed")

    def table(self) -> list[dict[str, Any]]:
        """One row a run, latest record first; then those that cannot be opened, with the error; then recorded ones."""
        found = self.scan()
        rows = [self._row(run_id(run.path.name), run) for run in found.runs]
        rows.sort(key=lambda row: (row["age"] is None, row["age"] or 0.0, row["name"]))
        unreadable = {"phase": "", "status": "unreadable", "age": None}
        problems = sorted(found.problems.items())
        rows += [{"id": run_id(name), "name": name, **unreadable, "error": error} for name, error in problems]
        return rows + [
            {**self._row(identity, run), "age": None, "recorded": True} for identity, run in self.recorded.items()
        ]

    def _row(self, identity: str, run: Run) -> dict[str, Any]:
        row = {
            "id": identity,
            "name": run.name,
            "phase": str(run.info.get("phase") or ""),
            "parent": told_parent(run.parent),
        }
        try:
            return {**row, "status": run.status(), "age": run.age()}
        except (OSError, ValueError) as error:
            return {**row, "status": "unreadable", "age": None, "error": str(error)}
