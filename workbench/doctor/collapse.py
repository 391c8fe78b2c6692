"""While it trains: features or assignments that become one, or nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case, Curve
from workbench.doctor.finding import Note, both, flag, number, rule
from workbench.doctor.tree import count_at, text_at

LATE = 0.1
"""Share of the run before which nothing is called a collapse: all networks begin near one."""
ROWS = 3
"""Rows of the record that must agree."""


def newest(case: Case, name: str) -> Curve | None:
    """The last quarter of a curve, None when the run is too young to judge by it."""
    curve = case.curve(name).newest(0.25)
    return curve if len(curve.steps) >= ROWS and case.progress >= LATE else None


def uniform_loss(case: Case) -> float | None:
    """ln K: the DINO loss of a student that finds all prototypes equally likely."""
    prototypes = count_at(case.config, "objective.dino_head.prototypes")
    return math.log(prototypes) if prototypes and prototypes > 1 else None


def stuck(case: Case) -> Curve | None:
    """The newest DINO loss if all of it is within 1 % of ln K."""
    curve, level = newest(case, "loss/dino"), uniform_loss(case)
    return curve if curve and level and all(abs(v - level) < 0.01 * level for v in curve.values) else None


def _cooler() -> dict[str, str]:
    fix = f"{flag('objective.teacher_temperature.peak', 0.04)} {flag('objective.centering', 'sinkhorn')}"
    return both(f"{fix}, half the learning rate, in a new run", f"{fix}，学习率减半，另起一次训练")


def _uniform(case: Case) -> Iterator[Note]:
    curve = newest(case, "teacher/entropy")
    if not curve or min(curve.values) < 0.97:
        return
    yield Note(
        "error",
        both(
            f"the teacher's assignments have {100 * curve.middle:.1f} % of the entropy of the uniform distribution: "
            "every image is everything, there is nothing to learn.",
            f"教师分配的熵为均匀分布的 {100 * curve.middle:.1f} %：每张图像什么都是，没有可学的东西。",
        ),
        _cooler(),
        metric="teacher/entropy",
        steps=curve.span,
    )


def _one_hot(case: Case) -> Iterator[Note]:
    curve = newest(case, "teacher/entropy")
    if not curve or max(curve.values) > 0.02:
        return
    used = newest(case, "teacher/prototypes_used")
    few = used is not None and used.middle < 0.1
    fix = flag("objective.teacher_temperature.peak", 0.07)
    yield Note(
        "error" if few else "warn",
        both(
            f"the teacher's assignments have {100 * curve.middle:.2f} % of the entropy of the uniform distribution: "
            + ("all images go to the same few prototypes." if few else "each image is one prototype and nothing else."),
            f"教师分配的熵只有均匀分布的 {100 * curve.middle:.2f} %："
            + ("所有图像都归到同样几个原型。" if few else "每张图像只对应一个原型，别无其他。"),
        ),
        both(
            f"{flag('objective.centering', 'sinkhorn')} {fix}" if few else fix,
            f"{flag('objective.centering', 'sinkhorn')} {fix}" if few else fix,
        ),
        metric="teacher/entropy",
        steps=curve.span,
    )


def _dead_prototypes(case: Case) -> Iterator[Note]:
    curve = newest(case, "teacher/prototypes_used")
    if not curve or curve.middle >= 0.3:
        return
    fewer = max((count_at(case.config, "objective.dino_head.prototypes") or 128) // 4, 2)
    fix = flag("objective.dino_head.prototypes", fewer)
    if text_at(case.config, "objective.centering") != "sinkhorn":
        fix = f"{flag('objective.centering', 'sinkhorn')}, {fix}"
    yield Note(
        "warn",
        both(
            f"only {100 * curve.middle:.0f} % of the prototypes that a batch could use are any sample's first choice; "
            "the rest are dead weight, and a partial collapse looks like this.",
            f"一批可用的原型中只有 {100 * curve.middle:.0f} % 是某个样本的首选；其余是死的，部分坍塌就是这个样子。",
        ),
        both(f"{fix}, or a slower teacher at first", f"{fix}，或起初用更慢的教师"),
        metric="teacher/prototypes_used",
        steps=curve.span,
    )


def _stuck_loss(case: Case) -> Iterator[Note]:
    curve, level = stuck(case), uniform_loss(case)
    if not curve or not level:
        return
    yield Note(
        "error",
        both(
            f"the DINO loss stays at {number(curve.middle)}, which is ln K = {number(level)}: the student finds every "
            "prototype equally likely and has stopped learning.",
            f"DINO 损失停在 {number(curve.middle)}，即 ln K = {number(level)}：学生认为所有原型同样可能，已停止学习。",
        ),
        _cooler(),
        metric="loss/dino",
        steps=curve.span,
    )


def _twins(case: Case) -> Iterator[Note]:
    curve = newest(case, "loss/koleo")
    crops = count_at(case.config, "augment.global_crops") or 2
    if not curve or curve.middle < 2.5 * crops:
        return
    distance = math.exp(-min(curve.middle / crops, 700.0))
    yield Note(
        "warn",
        both(
            f"KoLeo is at {number(curve.middle)} over {crops} crops: each image's nearest neighbour in the batch is "
            f"{number(distance)} away on the unit sphere. The class tokens fall together, or the data hold duplicates.",
            f"{crops} 个裁剪的 KoLeo 为 {number(curve.middle)}：批内每张图像与最近邻在单位球面上相距 "
            f"{number(distance)}。类别词元正在聚拢，或数据中有重复图像。",
        ),
        both(
            f"{flag('objective.koleo_weight', 0.1)} or more; remove duplicate images from the data",
            f"{flag('objective.koleo_weight', 0.1)} 或更大；去掉数据中的重复图像",
        ),
        metric="loss/koleo",
        steps=curve.span,
    )


def _contrast_collapse(case: Case) -> Iterator[Note]:
    curve = newest(case, "contrast/spread")
    if not curve or curve.middle >= 0.3:
        return
    fix = f"{flag('optim.lr.warmup_steps', 0.1)} {flag('objective.temperature', 0.2)}"
    yield Note(
        "error",
        both(
            f"embeddings of a batch spread by {number(curve.middle)} of what they could (1: everywhere, 0: all the "
            "same): the views are told apart no more.",
            f"一批嵌入的散布只有可能值的 {number(curve.middle)}（1：遍布各处，0：完全相同）：各视图已无法区分。",
        ),
        both(f"{fix}, half the learning rate, in a new run", f"{fix}，学习率减半，另起一次训练"),
        metric="contrast/spread",
        steps=curve.span,
    )


def _low_rank(case: Case) -> Iterator[Note]:
    curve = case.score("health/effective_rank")
    if len(curve.steps) < 2 or case.progress < LATE or max(curve.values[-2:]) >= 4:
        return
    yield Note(
        "error",
        both(
            f"patch features have an effective rank of {number(curve.values[-1])} ({number(curve.values[0])} at the "
            "start): they lie in a handful of directions. (A high rank, on the other hand, is no sign of good dense "
            "features.)",
            f"图块特征的有效秩为 {number(curve.values[-1])}（开始时 {number(curve.values[0])}）：只剩寥寥几个方向。"
            "（反过来，高秩并不说明密集特征好。）",
        ),
        _cooler(),
        metric="health/effective_rank",
        steps=(curve.steps[-2], curve.steps[-1]),
    )


RULES = (
    rule("entropy-uniform", "Collapse to the uniform distribution", "坍塌为均匀分布", sources.DINO_COLLAPSE, _uniform),
    rule("entropy-one-hot", "Assignments without doubt", "分配毫无犹疑", sources.DINO_COLLAPSE, _one_hot),
    rule("dead-prototypes", "Dead prototypes", "死原型", sources.DINOV2_407, _dead_prototypes),
    rule("loss-stuck", "Loss stuck at ln K", "损失停在 ln K", sources.DINOV3_199, _stuck_loss),
    rule("koleo-high", "Class tokens too close, or duplicates", "类别词元过近或有重复图像", sources.DINOV2_143, _twins),
    rule("contrast-collapse", "Embeddings become one", "嵌入变得相同", sources.SIMSIAM, _contrast_collapse),
    rule("rank-low", "Features in a handful of directions", "特征只剩几个方向", sources.RANKME, _low_rank),
)
