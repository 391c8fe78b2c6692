"""How soon does the onset detector see a decline, and how often does it see one that is not there?

    python benchmarks/onset.py RUN [RUN ...]

200 synthetic streams with a known onset, 200 without, 200 of a warm-up dip alone, evaluated row by row as a training
would; noise between the levels measured in the RUNs named (finished runs of any recipe). Prints the tables and writes
them into docs/onset.md between its two marks. `--calibrate` fits the two numbers of `onset.chance` anew instead.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import tyro
from onset_streams import Noise, Stream, measured, middle, streams

from workbench.analysis.onset import OnsetConfig, Verdict, evidence, noise, onset
from workbench.runs import Run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "onset.md"
MARKS = ("<!-- measured by benchmarks/onset.py -->", "<!-- end of measured -->")
LEVELS = (0.003, 0.02)
"""Least and largest noise of a score where no run is named: what the runs of docs/onset.md showed."""
BANDS = ((0.003, 0.006), (0.006, 0.012), (0.012, 0.02))


def main(runs: tuple[Path, ...] = (), /, count: int = 200, page: Path = PAGE, calibrate: bool = False) -> None:
    """Measure, print, and record in `page`."""
    if calibrate:
        return print(calibration(4 * count))
    found = {path.name: measured(Run(path)) for path in runs}
    lines = [*noise_table(found), *detection(count), *quiet(count), *cost()]
    text = "\n".join(lines)
    print(text)
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def noise_table(found: dict[str, dict[str, Noise]]) -> list[str]:
    """What the named runs show, so that the levels of the streams can be judged."""
    lines = ["| run | score | scatter | around a parabola | memory |", "|---|---|---|---|---|"]
    for name, scores in found.items():
        for key, level in scores.items():
            lines.append(f"| {name} | {key} | {level.scatter:.4f} | {level.stray:.4f} | {level.memory:.2f} |")
    return [*lines, ""]


def first_alarm(stream: Stream, after: int = 0) -> tuple[int, Verdict] | None:
    """Row and verdict of the first "peaked" from row `after` on; nothing later is looked at."""
    for row in range(after, len(stream.rows)):
        if (verdict := onset(stream.rows[: row + 1])).state == "peaked":
            return row, verdict
    return None


def first_warning(stream: Stream) -> int | None:
    return next((row for row in range(len(stream.rows)) if onset(stream.rows[: row + 1]).early_warning), None)


def detection(count: int) -> list[str]:
    """Delay from the last row before the decline to the alarm, by noise."""
    lines = [
        "| noise | streams | detected | delay, median (90 %) | of the fall, median | before onset | peak off by |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = []
    for band, group in enumerate(_groups(count, declining=True, seed=0)):
        pairs = [(stream, first_alarm(stream)) for stream in group]
        lines.append(_delays(_name(band), pairs))
        everything += pairs
    lines.append(_delays("all", everything))
    large = [pair for pair in everything if pair[0].drop >= 0.06]
    return [*lines, _delays("all, falls of 6 points and more", large), ""]


def _delays(name: str, pairs: list[tuple[Stream, tuple[int, Verdict] | None]]) -> str:
    early = [alarm for stream, alarm in pairs if alarm and alarm[0] <= (stream.onset or 0)]
    hits = [(stream, *alarm) for stream, alarm in pairs if alarm and alarm[0] > (stream.onset or 0)]
    delays = [row - (stream.onset or 0) for stream, row, _ in hits]
    steps = [_row_of(stream, verdict.peak_step) - (stream.onset or 0) for stream, _, verdict in hits]
    lost = [_true_loss(stream, row) for stream, row, _ in hits]
    late = np.percentile(delays, 90) if delays else float("nan")
    return (
        f"| {name} | {len(pairs)} | {100 * len(hits) / len(pairs):.0f} % | {middle(delays):.0f} ({late:.0f}) | "
        f"{100 * middle(lost):.1f} points | {100 * len(early) / len(pairs):.1f} % | "
        f"{middle([abs(step) for step in steps]):.0f} rows |"
    )


def _row_of(stream: Stream, step: int | None) -> int:
    return next(index for index, row in enumerate(stream.rows) if row["step"] == step)


def _true_loss(stream: Stream, row: int) -> float:
    """What patch k-NN had lost, without noise, at `row`."""
    return stream.drop * min(1.0, (row - (stream.onset or 0)) / stream.length)


def quiet(count: int) -> list[str]:
    """Alarms in whole streams without a decline, and in those that end soon after the warm-up dip."""
    lines = ["| without a decline | streams | false alarms | early warnings |", "|---|---|---|---|"]
    groups = _groups(count, declining=False, seed=100)
    lines += [_alarms(_name(band), group) for band, group in enumerate(groups)]
    lines.append(_alarms("all", [stream for group in groups for stream in group]))
    lines.append(
        _alarms("plateaus from the dip on", streams(count, declining=False, seed=150, scatter=LEVELS, level=True))
    )
    dips = streams(count, declining=False, seed=200, scatter=LEVELS)
    short = [Stream(rows=[row for row in s.rows if row["step"] <= 300], onset=None, drop=0, length=1) for s in dips]
    return [*lines, _alarms("the first 300 steps alone: the warm-up dip", short), ""]


def _groups(count: int, *, declining: bool, seed: int) -> list[list[Stream]]:
    """`count` streams in all, as many of each level of noise."""
    shares = [(count + 2 - band) // 3 for band in range(3)]
    return [streams(n, declining=declining, seed=seed + band, scatter=BANDS[band]) for band, n in enumerate(shares)]


def _name(band: int) -> str:
    return f"noise of {100 * BANDS[band][0]:g} to {100 * BANDS[band][1]:g} points"


def _alarms(name: str, group: list[Stream]) -> str:
    alarms = sum(first_alarm(stream) is not None for stream in group)
    warnings = sum(first_warning(stream) is not None for stream in group)
    total = len(group)
    return (
        f"| {name} | {total} | {alarms} ({100 * alarms / total:.1f} %) | {warnings} ({100 * warnings / total:.1f} %) |"
    )


def cost() -> list[str]:
    """Milliseconds of one verdict by the number of rows, the least of five rounds."""
    stream = streams(1, declining=False, seed=3, scatter=LEVELS)[0]
    lines = ["| rows | one verdict |", "|---|---|"]
    for count in (20, 100, 500):
        rows = [stream.rows[i % len(stream.rows)] | {"step": 100 * i} for i in range(count)]
        times = []
        for _ in range(5):
            started = time.perf_counter()
            onset(rows)
            times.append(time.perf_counter() - started)
        lines.append(f"| {count} | {1000 * min(times):.2f} ms |")
    return lines


def calibration(count: int) -> str:
    """The largest evidence on plateaus of up to 80 rows, judged row by row, while the newest rows are worse than the
    best by what counts; the exponential tail through its 10 % and 1 % quantiles."""
    config = OnsetConfig()
    largest = [_largest(stream, config) for stream in streams(count, declining=False, seed=7, scatter=LEVELS)]
    levels = {chance: float(np.quantile(largest, 1 - chance)) for chance in (0.1, 0.05, 0.025, 0.01)}
    scale = (levels[0.01] - levels[0.1]) / np.log(10)
    shown = ", ".join(f"{100 * chance:g} %: {level:.1f}" for chance, level in levels.items())
    return f"exceeded by chance {shown}; start {levels[0.1] - scale * np.log(10):.2f}, scale {scale:.2f}"


def _largest(stream: Stream, config: OnsetConfig) -> float:
    flat = [row["dense/patch_knn"] - trend for row, trend in zip(stream.rows, stream.course, strict=True)]
    steps, prior = [row["step"] for row in stream.rows], stream.rows[0].get("dense/patch_knn:se", config.typical_noise)
    best, largest = -np.inf, 0.0
    for n in range(2, len(flat) + 1):
        newest = (flat[n - 2] + flat[n - 1]) / 2
        best = max(best, newest)
        if n >= config.min_rows and best - max(flat[n - 2 : n]) >= config.smallest_drop:
            sigma = noise(steps[:n], flat[:n], prior)
            largest = max(largest, evidence(steps[:n], flat[:n], sigma, config.memory_steps)[1])
    return largest


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
