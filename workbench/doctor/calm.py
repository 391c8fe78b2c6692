"""What looks alarming and is fine: said only where nothing of the same curve is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.collapse import stuck, uniform_loss
from workbench.doctor.dense import DROP, dense_curve
from workbench.doctor.finding import Note, both, number, rule
from workbench.doctor.tree import number_at, steps_at

NOTHING = both("nothing", "无需处理")


def _near_uniform(case: Case) -> Iterator[Note]:
    curve, level = case.curve("loss/dino"), uniform_loss(case)
    if not curve.steps or not level or case.progress >= 0.1 or abs(curve.values[-1] - level) > 0.1 * level:
        return
    yield Note(
        "fine",
        both(
            f"the DINO loss is {number(curve.values[-1])}, close to ln K = {number(level)}. That is where it begins; "
            "it would be wrong only if it stayed within 1 % of it after a tenth of the run.",
            f"DINO 损失为 {number(curve.values[-1])}，接近 ln K = {number(level)}。它就从那里开始；"
            "只有在训练过了十分之一后仍在其 1 % 以内才不对。",
        ),
        NOTHING,
        metric="loss/dino",
        steps=curve.span,
    )


def _early_rise(case: Case) -> Iterator[Note]:
    curve = case.curve("loss/dino")
    early = curve.until(0.3 * (case.total or case.step))
    if len(early.steps) < 3 or stuck(case):
        return
    top = max(early.values)
    peak = early.steps[early.values.index(top)]
    lowest = min(early.values[: early.values.index(top) + 1])
    if top < 1.01 * lowest or (case.progress > 0.5 and curve.values[-1] > 0.995 * top):
        return
    yield Note(
        "fine",
        both(
            f"the DINO loss rose from {number(lowest)} to {number(top)} by step {peak}: while the rate, the teacher's "
            "temperature and its momentum warm up, the targets sharpen faster than the student follows.",
            f"DINO 损失到第 {peak} 步从 {number(lowest)} 升到 {number(top)}：在学习率、教师温度与动量预热期间，"
            "目标变尖锐的速度快于学生跟上的速度。",
        ),
        NOTHING,
        metric="loss/dino",
        steps=(early.steps[early.values.index(lowest)], peak),
    )


def _ramp(case: Case) -> Iterator[Note]:
    """The total rises because a weight does."""
    ramps = {
        "iBOT": steps_at(case.config, "objective.ibot_warmup_steps", case.total),
        "Gram": steps_at(case.config, "objective.gram.weight.shape_steps", case.total)
        or steps_at(case.config, "objective.gram.weight.warmup_steps", case.total),
    }
    total, dino = case.curve("loss/total"), case.curve("loss/dino")
    for name, length in ramps.items():
        if not length or (name == "iBOT" and not number_at(case.config, "objective.ibot_weight")):
            continue
        during = [i for i, step in enumerate(total.steps) if step <= length]
        if len(during) < 3 or len(total.steps) != len(dino.steps):
            continue
        lowest = min(during, key=lambda i: total.values[i])
        highest = max((i for i in during if i >= lowest), key=lambda i: total.values[i])
        if total.values[highest] < 1.01 * total.values[lowest] or dino.values[highest] > dino.values[lowest]:
            continue
        yield Note(
            "fine",
            both(
                f"the total loss rose from {number(total.values[lowest])} to {number(total.values[highest])} while the "
                f"{name} weight grows (its first {length} steps); the DINO part fell meanwhile.",
                f"总损失从 {number(total.values[lowest])} 升到 {number(total.values[highest])}，因为 {name} 权重正在"
                f"增长（前 {length} 步）；同时 DINO 部分在下降。",
            ),
            NOTHING,
            metric="loss/total",
            steps=(total.steps[lowest], total.steps[highest]),
        )


def _v_shape(case: Case) -> Iterator[Note]:
    curve = case.curve("loss/ibot")
    if len(curve.steps) < 10 or stuck(case):
        return
    lowest = min(curve.values)
    at = curve.values.index(lowest)
    if not 0.05 * len(curve.steps) < at < 0.9 * len(curve.steps):
        return
    if max(curve.values[:at]) < 1.05 * lowest or max(curve.values[at:]) < 1.05 * lowest:
        return
    yield Note(
        "fine",
        both(
            f"the iBOT loss fell to {number(lowest)} at step {curve.steps[at]} and rose again to "
            f"{number(curve.values[-1])}: its targets come from a teacher that learns to tell patches apart. Its "
            "authors expect this shape.",
            f"iBOT 损失在第 {curve.steps[at]} 步降到 {number(lowest)}，又升到 {number(curve.values[-1])}："
            "它的目标来自正在学会区分图块的教师。作者认为这种形状是预期的。",
        ),
        NOTHING,
        metric="loss/ibot",
        steps=(curve.steps[at], curve.steps[-1]),
    )


def _queue(case: Case) -> Iterator[Note]:
    filled, loss = case.curve("queue/filled"), case.curve("loss/contrast")
    full = next((step for step, share in zip(*filled, strict=True) if share >= 0.999), None)
    early = [(s, v) for s, v in zip(*loss, strict=True) if full is None or s <= 2 * full]
    if not filled.steps or len(early) < 2:
        return
    top = max(early, key=lambda pair: pair[1])
    if top[1] < 1.02 * early[0][1]:
        return
    yield Note(
        "fine",
        both(
            f"the contrastive loss rose from {number(early[0][1])} to {number(top[1])} by step {top[0]}: the queue was "
            "filling, and real keys are harder to tell apart than the random ones it began with.",
            f"对比损失到第 {top[0]} 步从 {number(early[0][1])} 升到 {number(top[1])}：队列正在填充，"
            "真实的键比开始时的随机键更难区分。",
        ),
        NOTHING,
        metric="loss/contrast",
        steps=(early[0][0], top[0]),
    )


def _flat(case: Case) -> Iterator[Note]:
    curve = case.curve("loss/total").newest(0.5)
    if len(curve.steps) < 5 or stuck(case) or (max(curve.values) - min(curve.values)) > 0.03 * abs(curve.middle):
        return
    for name in ("global/knn", "dense/patch_knn"):
        score = case.score(name).since(curve.steps[0])
        if len(score.values) >= 2 and score.values[-1] - score.values[0] > 0.02:
            yield Note(
                "fine",
                both(
                    f"the loss moved by less than 3 % since step {curve.steps[0]}, and {name} rose from "
                    f"{number(100 * score.values[0])} to {number(100 * score.values[-1])} %. The loss is no measure of "
                    "quality here: its targets move with the teacher.",
                    f"自第 {curve.steps[0]} 步以来损失变化不到 3 %，而 {name} 从 {number(100 * score.values[0])} % "
                    f"升到 {number(100 * score.values[-1])} %。这里损失不能衡量质量：目标随教师移动。",
                ),
                NOTHING,
                metric=name,
                steps=curve.span,
            )
            return


def _negative_koleo(case: Case) -> Iterator[Note]:
    curve = case.curve("loss/koleo")
    if not curve.values or curve.values[-1] >= 0:
        return
    yield Note(
        "fine",
        both(
            f"KoLeo is {number(curve.values[-1])}. It is the negative logarithm of distances on the unit sphere, so "
            "below 0 nearest neighbours are more than 1 apart: the features spread well.",
            f"KoLeo 为 {number(curve.values[-1])}。它是单位球面上距离的负对数，低于 0 表示最近邻相距超过 1："
            "特征散布良好。",
        ),
        NOTHING,
        metric="loss/koleo",
        steps=(curve.steps[-1], curve.steps[-1]),
    )


def _dip(case: Case) -> Iterator[Note]:
    name, curve = dense_curve(case)
    early = [(s, v) for s, v in zip(*curve, strict=True) if 0 < s <= 0.25 * (case.total or 0)]
    if not early or curve.steps[0] != 0 or not case.from_scratch:
        return
    step, low = min(early, key=lambda pair: pair[1])
    start, later = curve.values[0], curve.since(step + 1).values
    newest = later[-1] if later else low
    if low > start - 0.01 or (later and newest <= low + 0.01) or (case.progress > 0.5 and newest < start - DROP):
        return
    yield Note(
        "fine",
        both(
            f"{name} dipped from {number(100 * start)} % to {number(100 * low)} % at step {step}: at warm-up patches "
            "are smoothed before they are told apart. This is not the decline of long runs.",
            f"{name} 在第 {step} 步从 {number(100 * start)} % 降到 {number(100 * low)} %：预热时图块先被抹平，"
            "然后才被区分。这不是长训练的退化。",
        ),
        NOTHING,
        metric=name,
        steps=(0, step),
    )


RULES = (
    rule("loss-near-uniform", "Loss near ln K at first", "起初损失接近 ln K", sources.DINOV2_407, _near_uniform),
    rule("loss-rises-at-warm-up", "Loss rises at warm-up", "预热时损失上升", sources.DINO_246, _early_rise),
    rule("loss-rises-with-a-weight", "Loss rises with a weight", "损失随权重上升", sources.LIGHTLY_442, _ramp),
    rule("ibot-v-shape", "V-shaped iBOT loss", "iBOT 损失呈 V 形", sources.DINOV2_275, _v_shape),
    rule("queue-fills", "Contrastive loss rises as the queue fills", "队列填充时对比损失上升", sources.MOCO_9, _queue),
    rule("loss-flat-scores-rise", "Flat loss, rising scores", "损失不动，指标上升", sources.DINOV2_143, _flat),
    rule("koleo-negative", "KoLeo below zero", "KoLeo 小于零", sources.DINOV2_474, _negative_koleo),
    rule("dense-dip-at-warm-up", "Dense scores dip at warm-up", "预热时密集指标下沉", sources.LOG, _dip),
)
