"""While it trains: skipped steps, spikes, data that is late or broken."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, number, plain, rule
from workbench.doctor.tree import count_at

SPIKE = 8.0
"""Times the median of the run so far."""


def _skipped(case: Case) -> Iterator[Note]:
    steps = case.event_steps("nan-skipped")
    diverged = case.event_steps("diverged")
    if not steps and not diverged:
        return
    span = (min(steps + diverged), max(steps + diverged))
    fix = f"half of {flag('optim.lr.peak', 'RATE')}, {flag('optim.lr.warmup_steps', 0.1)}"
    yield Note(
        "error" if diverged else "warn",
        both(
            f"{len(steps)} steps had a loss or gradient that is not finite and changed nothing"
            + (f"; the run gave up at step {diverged[-1]}." if diverged else "."),
            f"{len(steps)} 步的损失或梯度不是有限值，未改变任何权重"
            + (f"；训练在第 {diverged[-1]} 步放弃。" if diverged else "。"),
        ),
        both(
            f"{fix}, {flag('loop.precision', 'fp32')}, in a new run",
            f"{flag('optim.lr.peak', 'RATE')} 减半，{flag('optim.lr.warmup_steps', 0.1)}，"
            f"{flag('loop.precision', 'fp32')}，另起一次训练",
        ),
        metric="loss/total",
        steps=span,
    )


def _null_losses(case: Case) -> Iterator[Note]:
    """What a trainer without a guard leaves behind: null where a loss was NaN or infinite."""
    steps: dict[str, list[int]] = {}
    for row in case.metrics:
        for name, value in row.items():
            if value is None and name.startswith(("loss/", "gradient_norm/")):
                steps.setdefault(name, []).append(row["step"])
    if not steps:
        return
    name, seen = next(iter(steps.items()))
    yield Note(
        "error",
        both(
            f"{plain(name)} and {len(steps) - 1} other metrics were NaN or infinite in {len(seen)} records: the "
            "weights behind them are not to be trusted.",
            f"{plain(name)} 与另外 {len(steps) - 1} 个指标在 {len(seen)} 条记录中为 NaN 或无穷大：其后的权重不可信。",
        ),
        both(
            f"go back to a step before {seen[0]}; {flag('loop.precision', 'fp32')} and half the learning rate",
            f"退回到第 {seen[0]} 步之前；{flag('loop.precision', 'fp32')}，学习率减半",
        ),
        metric=name,
        steps=(seen[0], seen[-1]),
    )


def _spikes(case: Case) -> Iterator[Note]:
    names = sorted({name for row in case.metrics[-1:] for name in row if name.startswith("gradient_norm/")})
    for name in names[:8]:
        curve = case.curve(name)
        curve = curve.since(curve.steps[0] + 0.1 * (curve.steps[-1] - curve.steps[0])) if curve.steps else curve
        if len(curve.steps) < 10 or (middle := curve.middle) <= 0:
            continue
        spikes = [(s, value) for s, value in zip(*curve, strict=True) if value > max(SPIKE * middle, 0.1)]
        if not spikes:
            continue
        highest = max(value for _, value in spikes)
        many = len(spikes) >= 3
        fix = f"{flag('optim.clip_norm', 1.0)}, {flag('optim.betas', (0.9, 0.95))}"
        yield Note(
            "warn" if many else "info",
            both(
                f"{plain(name)} jumps to more than {SPIKE:.0f} times its median {number(middle)} in "
                f"{len(spikes)} of {len(curve.steps)} records, up to {number(highest)}.",
                f"{plain(name)} 在 {len(curve.steps)} 条记录中有 {len(spikes)} 条超过中位数 {number(middle)} 的 "
                f"{SPIKE:.0f} 倍，最高 {number(highest)}。",
            ),
            both(
                f"{fix}, half the learning rate; MoCo v3 saw them start in the patch projection: "
                f"{flag('objective.freeze_patch_embed', '').strip()}",
                f"{fix}，学习率减半；MoCo v3 发现它们始于图块投影层："
                f"{flag('objective.freeze_patch_embed', '').strip()}",
            ),
            metric=name,
            steps=(spikes[0][0], spikes[-1][0]),
        )


def _waiting(case: Case) -> Iterator[Note]:
    curve = case.curve("speed/data_wait").newest(0.5)
    if len(curve.steps) < 3 or case.step < 50 or curve.middle < 0.3:
        return
    workers = count_at(case.config, "batch.workers") or 0
    fix = flag("batch.workers", workers + 2)
    yield Note(
        "warn",
        both(
            f"the trainer waits for data {100 * curve.middle:.0f} % of the time, with {workers} loading processes.",
            f"训练有 {100 * curve.middle:.0f} % 的时间在等数据，加载进程数为 {workers}。",
        ),
        both(
            f"{fix} (a resume may change it; it changes no batch), or smaller images on disk: "
            f"{flag('data.short_side', 256)}",
            f"{fix}（恢复时可以更改，不改变任何批次），或缩小读入的图像：{flag('data.short_side', 256)}",
        ),
        metric="speed/data_wait",
        steps=curve.span,
    )


def _bad_images(case: Case) -> Iterator[Note]:
    events = [event for event in case.events if event.get("kind") == "bad-image"]
    counts = case.curve("data/bad_images")
    count = max(len(events), int(max(counts.values, default=0)))
    if not count:
        return
    first = plain(events[0].get("text", "")) if events else ""
    steps = sorted({event["step"] for event in events} | set(counts.steps))
    yield Note(
        "warn",
        both(
            f"{count} image files could not be read; another image, always the same, stands in for each. {first}",
            f"{count} 个图像文件无法读取；每个都由固定的另一张图像代替。{first}",
        ),
        both(
            "delete or repair the files that the events bad-image name, before a new run (a resume wants the same "
            "data)",
            "在开始新训练之前删除或修复 bad-image 事件所列的文件（恢复训练需要相同的数据）",
        ),
        metric="data/bad_images",
        steps=(steps[0], steps[-1]),
    )


def _slower(case: Case) -> Iterator[Note]:
    curve = case.curve("speed/images_per_second")
    if len(curve.steps) < 20:
        return
    recent, usual = curve.newest(0.1), curve.newest(0.9)
    if len(recent.steps) < 3 or max(recent.values) >= 0.4 * usual.middle:
        return
    yield Note(
        "info",
        both(
            f"training has slowed down to {number(recent.middle)} images a second; {number(usual.middle)} were usual.",
            f"训练已慢到每秒 {number(recent.middle)} 张图像；平常为 {number(usual.middle)}。",
        ),
        both(
            f"look for another process on this machine; {flag('loop.threads', 1)} is faster on shared cores",
            f"看看这台机器上是否有别的进程；在共享的核上 {flag('loop.threads', 1)} 更快",
        ),
        metric="speed/images_per_second",
        steps=recent.span,
    )


RULES = (
    rule("steps-skipped", "Steps skipped for NaN", "因 NaN 跳过的步", sources.DINOV2_492, _skipped),
    rule("losses-null", "NaN or infinity in the record", "记录中有 NaN 或无穷大", sources.DINO_58, _null_losses),
    rule("gradient-spikes", "Spikes of the gradient norm", "梯度范数尖峰", sources.MOCO_V3_23, _spikes),
    rule("data-wait", "Waiting for data", "等待数据", sources.REPVGG_40, _waiting),
    rule("bad-images", "Images that cannot be read", "无法读取的图像", sources.DETECTRON2_143, _bad_images),
    rule("slowed-down", "Slower than before", "比之前慢", sources.LOG, _slower),
)
