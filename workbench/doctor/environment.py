"""The machine: packages that do not fit each other, a disk that fills up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, plain, rule
from workbench.doctor.tree import count_at, text_at

MIB = 1024 * 1024
LEAST_BYTES = 100 * MIB
LOW_BYTES = 500 * MIB
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
_APART = 15
"""torchvision 0.(n + 15) is built for torch 2.n."""


def _release(version: str) -> tuple[int, int] | None:
    match = _VERSION.match(version)
    return (int(match[1]), int(match[2])) if match else None


def _torchvision(case: Case) -> Iterator[Note]:
    torch, vision = (case.machine.versions.get(name, "") for name in ("torch", "torchvision"))
    ours, theirs = _release(torch), _release(vision)
    if not ours or not theirs or ours[0] != 2 or theirs[0] != 0 or theirs[1] == ours[1] + _APART:
        return
    fix = f"pip install 'torchvision==0.{ours[1] + _APART}.*'"
    yield Note(
        "error",
        both(
            f"torch {plain(torch)} and torchvision {plain(vision)} are not built for each other: operators such as "
            f"nms are missing. This torch goes with torchvision 0.{ours[1] + _APART}.",
            f"torch {plain(torch)} 与 torchvision {plain(vision)} 不是配套构建的：会缺少 nms 之类的算子。"
            f"这个 torch 配 torchvision 0.{ours[1] + _APART}。",
        ),
        both(f"{fix}, or make setup", f"{fix}，或 make setup"),
    )


def _other_torch(case: Case) -> Iterator[Note]:
    then, now = text_at(case.info, "machine.torch"), case.machine.versions.get("torch", "")
    if not _release(then) or not _release(now) or _release(then) == _release(now) or case.state == "ended":
        return
    yield Note(
        "info",
        both(
            f"the run began with torch {plain(then)}, here is {plain(now)}: a resume goes on, but no longer bit for "
            "bit as it would have.",
            f"训练开始时是 torch {plain(then)}，这里是 {plain(now)}：可以恢复，但不再与原来逐位相同。",
        ),
        both("resume with the version it began with where bits matter", "若要求逐位一致，请用开始时的版本恢复"),
    )


def _disk(case: Case) -> Iterator[Note]:
    free, total = case.machine.free_bytes, case.total
    if free is None or case.state == "ended":
        return
    every = count_at(case.config, "loop.probe_every")
    left = (total - case.step) // every + 1 if total and every and total > case.step else 0
    needed = left * case.snapshot_bytes
    if free >= max(LOW_BYTES, needed):
        return
    yield Note(
        "error" if free < LEAST_BYTES else "warn",
        both(
            f"{free // MIB} MiB are free; {left} more snapshots of this run need about {needed // MIB} MiB, resume "
            "checkpoints not counted. A full disk ends the run.",
            f"磁盘剩余 {free // MIB} MiB；本次训练还要写 {left} 份快照，约需 {needed // MIB} MiB，未计恢复检查点。"
            "磁盘写满会终止训练。",
        ),
        both(
            f"free some space, or snapshots less often in a new run: {flag('loop.probe_every', (every or 50) * 4)}",
            f"腾出空间，或在新训练中减少快照：{flag('loop.probe_every', (every or 50) * 4)}",
        ),
    )


RULES = (
    rule(
        "torch-torchvision",
        "torch and torchvision do not fit",
        "torch 与 torchvision 不配套",
        sources.VISION_8985,
        _torchvision,
    ),
    rule(
        "torch-changed", "Another torch than at the start", "torch 版本与开始时不同", sources.RUN_FORMAT, _other_torch
    ),
    rule("disk-full", "Disk nearly full", "磁盘将满", sources.WANDB_1383, _disk),
)
