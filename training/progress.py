"""What a person sees of a running training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressLine:
    """Step, loss, images per second, share of time spent waiting for data, and time left.

    Rates are means over the steps since the last `show`; the first window, which carries warm-up costs, is not
    used for the time left once a second one exists. When nobody reads any more (a closed pipe or terminal), it falls
    silent; training goes on.
    """

    def __init__(self, *, total: int, start: int, images_per_step: int, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.total, self.images_per_step = total, images_per_step
        self._step, self._time, self._waited = start, time.monotonic(), 0.0
        self._shown, self._seconds_per_step = 0, 0.0
        self._live = None
        if self.console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._live = Progress(*columns, console=self.console, transient=False)
            self._task = self._live.add_task("training", total=total, completed=start, text="")

    def __enter__(self) -> ProgressLine:
        if self._live:
            with self._unread():
                self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._live:
            with self._unread():
                self._live.stop()

    def waited(self, seconds: float) -> None:
        """Add time in which the loop had no batch to work on."""
        self._waited += seconds

    def show(self, step: int, loss: float, paused: float = 0.0) -> dict[str, float]:
        """Print the state after `step` steps; `paused` seconds (evaluation, saving) do not count as training.

        Returns the rates shown, by metric name.
        """
        now = time.monotonic()
        elapsed, steps = max(now - self._time - paused, 1e-9), max(step - self._step, 1)
        current = elapsed / steps
        self._seconds_per_step = current if self._shown < 2 else 0.7 * self._seconds_per_step + 0.3 * current
        self._shown += 1
        rates = {"speed/images_per_second": self.images_per_step / current, "speed/data_wait": self._waited / elapsed}
        left = timedelta(seconds=round((self.total - step) * self._seconds_per_step))
        text = (
            f"step {step}/{self.total} · loss {loss:.4f} · {rates['speed/images_per_second']:.0f} img/s · "
            f"data wait {100 * rates['speed/data_wait']:.0f} % · {left} left"
        )
        self._step, self._time, self._waited = step, now, 0.0
        self._print(step, text)
        return rates

    def say(self, text: str) -> None:
        """One line that stays."""
        with self._unread():
            self.console.print(text, markup=False, soft_wrap=True)

    def _print(self, step: int, text: str) -> None:
        if self._live:
            self._live.update(self._task, completed=step, text=text)
        else:
            self.say(text)

    @contextmanager
    def _unread(self) -> Iterator[None]:
        """Output that fails is given up for good; rich answers a closed pipe with SystemExit."""
        try:
            yield
        except (OSError, SystemExit):
            self.console.quiet = True
