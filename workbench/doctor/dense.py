"""While it trains: do dense features decline, and which of their diseases shows first?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.analysis.advice import fork_command, without_command
from workbench.doctor import sources
from workbench.doctor.case import Case, Curve
from workbench.doctor.finding import Note, both, flag, number, plain, printable, rule, run_spec
from workbench.doctor.tree import count_at

_STEP = re.compile(r"step[ =](\d{1,15})")
PEAK = "dense-peak"
"""Kind of the event in which onset detection says that dense scores have peaked."""
SCORES = ("dense/patch_knn", "dense/linear_miou")
DROP = 0.03
"""Fall of a score that counts; standard errors of the usual evaluation are about 0.01, of the quick one 0.03."""


def dense_curve(case: Case) -> tuple[str, Curve]:
    """The first dense score that the run evaluates, and its name."""
    for name in SCORES:
        curve = case.score(name)
        if curve.steps:
            return name, curve
    return SCORES[0], Curve([], [])


def peak_of(case: Case) -> int | None:
    """The step that the newest dense-peak event states, else the highest of the curve; None without an event."""
    events = [event for event in case.events if event.get("kind") == PEAK]
    if not events:
        return None
    stated = events[-1].get("peak_step")
    if isinstance(stated, int) and 0 <= stated <= events[-1]["step"]:
        return stated
    named = _STEP.search(plain(events[-1].get("text", "")))
    if named and int(named[1]) <= events[-1]["step"]:
        return int(named[1])
    _, curve = dense_curve(case)
    curve = curve.since(1)
    return curve.steps[curve.values.index(max(curve.values))] if curve.steps else events[-1]["step"]


def _anchor_fix(case: Case, peak: int) -> dict[str, str]:
    """Go on from the newest step with the Gram teacher of the peak: numbers of the run, never words of its files."""
    if not case.can_fork:
        return both(
            f"fork it where it was trained, with the Gram teacher of step {peak}: here it has no resume checkpoints",
            f"请在训练它的地方分叉，以第 {peak} 步作 Gram 教师：此处没有恢复检查点",
        )
    teacher = max((step for step in case.weight_steps if step <= peak), default=peak)
    command = fork_command(printable(case.path) or "RUN", teacher)
    return both(command, command)


def _peaked(case: Case) -> Iterator[Note]:
    """What the onset detector wrote; the numbers of the curve beside its words."""
    peak, (name, curve) = peak_of(case), dense_curve(case)
    if peak is None:
        return
    said = without_command(plain([event.get("text", "") for event in case.events if event.get("kind") == PEAK][-1]))
    seen = ("", "")
    if peak in curve.steps:
        first, last = (number(100 * curve.values[row]) for row in (curve.steps.index(peak), -1))
        seen = (
            f" {name}: {first} % at step {peak}, {last} % at step {curve.steps[-1]}.",
            f" {name}：第 {peak} 步 {first} %，第 {curve.steps[-1]} 步 {last} %。",
        )
    yield Note(
        "warn",
        both(f"onset detection: {said}{seen[0]}", f"起点检测：{said}{seen[1]}"),
        _anchor_fix(case, peak),
        metric=name,
        steps=(peak, max(case.step, peak)),
    )


def _declined(case: Case) -> Iterator[Note]:
    """A plain look at the curve where no detector has spoken."""
    name, curve = dense_curve(case)
    curve = curve.since(1)
    if case.event_steps(PEAK) or len(curve.steps) < 5:
        return
    best = max(curve.values)
    peak = curve.steps[curve.values.index(best)]
    if any(best - value < DROP for value in curve.values[-3:]):
        return
    other = case.score("global/knn").since(peak)
    rising = len(other.values) > 1 and other.values[-1] > other.values[0]
    yield Note(
        "warn",
        both(
            f"{name} was {number(100 * best)} % at step {peak} and is {number(100 * curve.values[-1])} % at step "
            f"{curve.steps[-1]}; its last three evaluations are all {number(100 * DROP)} points or more below the peak"
            + (", while global/knn rose." if rising else ".")
            + " This is a look at the curve, without a confidence.",
            f"{name} 在第 {peak} 步为 {number(100 * best)} %，第 {curve.steps[-1]} 步为 "
            f"{number(100 * curve.values[-1])} %；最近三次评估都比峰值低 {number(100 * DROP)} 个点以上"
            + ("，而 global/knn 上升了。" if rising else "。")
            + "这只是看曲线，没有置信度。",
        ),
        _anchor_fix(case, peak)
        if case.self_distils
        else both(
            f"take the weights of the peak: {run_spec(case.path or 'RUN', peak)}",
            f"取峰值处的权重：{run_spec(case.path or 'RUN', peak)}",
        ),
        metric=name,
        steps=(peak, curve.steps[-1]),
    )


def _below_start(case: Case) -> Iterator[Note]:
    name, curve = dense_curve(case)
    if len(curve.steps) < 3 or curve.steps[0] != 0 or case.progress < 0.5:
        return
    if max(curve.values[-2:]) > curve.values[0] - DROP:
        return
    yield Note(
        "warn",
        both(
            f"{name} is {number(100 * curve.values[-1])} % at step {curve.steps[-1]}, below the "
            f"{number(100 * curve.values[0])} % of the network it started with: so far the run has cost dense "
            "features.",
            f"{name} 在第 {curve.steps[-1]} 步为 {number(100 * curve.values[-1])} %，低于开始时网络的 "
            f"{number(100 * curve.values[0])} %：到目前为止，训练损害了密集特征。",
        ),
        both(
            "compare the maps of both steps; try another objective (recipes cpu_dinov1 to cpu_mocov3); for given "
            f"weights: {flag('optim.backbone_lr_multiplier', 0.1)}",
            "比较两步的图；换一个目标试试（配方 cpu_dinov1 到 cpu_mocov3）；若从已有权重开始："
            f"{flag('optim.backbone_lr_multiplier', 0.1)}",
        ),
        metric=name,
        steps=(0, curve.steps[-1]),
    )


def _summaries(case: Case) -> Iterator[Note]:
    curve = case.score("health/cls_patch_cosine")
    late = curve.since(case.step / 3)
    if len(late.steps) < 4:
        return
    lowest = min(late.values)
    if late.values[-1] - lowest < 0.15 or not late.values[-1] >= late.values[-2] >= late.values[-3]:
        return
    fix = flag("loop.keep_every", count_at(case.config, "loop.save_every") or 100)
    yield Note(
        "warn",
        both(
            f"the cosine of patches to their class token rose from {number(lowest)} to {number(late.values[-1])}: "
            "patches turn into copies of the global summary. In the paper it rises as dense scores fall.",
            f"图块与类别词元的余弦从 {number(lowest)} 升到 {number(late.values[-1])}：图块正变成全局摘要的副本。"
            "论文中它随密集指标下降而上升。",
        ),
        both(f"watch dense/patch_knn; keep what is there: {fix}", f"关注 dense/patch_knn；保留现有的检查点：{fix}"),
        metric="health/cls_patch_cosine",
        steps=(late.steps[late.values.index(lowest)], late.steps[-1]),
    )


def _high_norms(case: Case) -> Iterator[Note]:
    curve = case.score("health/norm_outliers").since(1)
    if len(curve.steps) < 2 or min(curve.values[-2:]) < 0.02:
        return
    registers = count_at(case.config, "objective.backbone.num_registers") or 0
    fix = flag("objective.backbone.num_registers", max(4, registers))
    yield Note(
        "warn",
        both(
            f"{number(100 * curve.values[-1])} % of the patches have a norm far above the rest; the network has "
            f"{registers} registers. These are artefacts, another disease than lost locality.",
            f"{number(100 * curve.values[-1])} % 的图块范数远高于其余；网络有 {registers} 个寄存器。"
            "这是伪影，与丢失局部性不是同一种病。",
        ),
        both(f"{fix}, in a new run", f"{fix}，另起一次训练"),
        metric="health/norm_outliers",
        steps=curve.newest(0.5).span,
    )


def _peak_lost(case: Case) -> Iterator[Note]:
    """A peak was found, but its step cannot be taken up again."""
    peak, every = peak_of(case), count_at(case.config, "loop.keep_every")
    if peak is None:
        return
    save = count_at(case.config, "loop.save_every") or 1
    if (every and peak % every == 0) or peak > case.step - 2 * save:
        return
    there = peak in case.weight_steps
    yield Note(
        "info" if there else "warn",
        both(
            f"the resume checkpoint of the peak, step {peak}, is not kept: no run can go on from there. Its weights "
            + ("are published and can be the Gram teacher." if there else "are not published either."),
            f"峰值第 {peak} 步的恢复检查点没有保留：不能从那里继续。它的权重"
            + ("已公布，可以作 Gram 教师。" if there else "也没有公布。"),
        ),
        both(flag("loop.keep_every", save), flag("loop.keep_every", save)),
        metric="dense/patch_knn",
        steps=(peak, peak),
    )


RULES = (
    rule("dense-peak", "Dense features have peaked", "密集特征已见顶", sources.DINOV3_141, _peaked),
    rule("dense-peak-not-kept", "No checkpoint of the peak", "峰值没有检查点", sources.DINOV3_165, _peak_lost),
    rule("dense-decline", "A dense score has fallen", "密集指标下降", sources.DENSE_DEGRADATION, _declined),
    rule("dense-below-start", "Worse than at the start", "不如开始时", sources.DINOV2_512, _below_start),
    rule(
        "patches-copy-class-token",
        "Patches copy the class token",
        "图块趋同于类别词元",
        sources.DINOV3_DENSE,
        _summaries,
    ),
    rule("norm-outliers", "High-norm patches", "高范数图块", sources.DINOV2_293, _high_norms),
)
