"""Before the start: temperatures, the EMA teacher, rates over the run, what weights bring along, what is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, number, plain, rule
from workbench.doctor.tree import count_at, number_at, schedule_levels, steps_at, text_at

SCHEDULES = ("optim.lr", "optim.weight_decay", "objective.teacher_temperature", "objective.momentum")
HOTTEST = 0.07
"""Teacher temperature that published recipes end at."""


def _temperature(case: Case) -> Iterator[Note]:
    levels = schedule_levels(case.config, "objective.teacher_temperature")
    student = number_at(case.config, "objective.student_temperature")
    if not levels or not student:
        return
    path, hottest = "objective.teacher_temperature", max(levels)
    peak = levels[0]
    start = number_at(case.config, f"{path}.start") if number_at(case.config, f"{path}.warmup_steps") else None
    fix = f"{flag(f'{path}.start', 0.04)} {flag(f'{path}.peak', HOTTEST)} {flag(f'{path}.warmup_steps', 0.3)}"
    if hottest >= student:
        yield Note(
            "error",
            both(
                f"the teacher's temperature reaches {number(hottest)}, the student's is {number(student)}: the targets "
                "are no sharper than the answers, and all drift to the uniform distribution (loss ln K).",
                f"教师温度达到 {number(hottest)}，学生为 {number(student)}：目标不比答案更尖锐，一切都会漂向均匀分布"
                "（损失为 ln K）。",
            ),
            both(fix, fix),
            metric="teacher/entropy",
        )
    elif hottest > HOTTEST + 1e-9 or (start is not None and start > peak):
        yield Note(
            "warn",
            both(
                f"the teacher's temperature starts at {number(peak if start is None else start)} and reaches "
                f"{number(hottest)}; published recipes warm up from 0.04 and stop at 0.07. To sharpen, lower it.",
                f"教师温度从 {number(peak if start is None else start)} 开始，达到 {number(hottest)}；"
                "已发表的配方从 0.04 升到 0.07 为止。要更尖锐，请降低它。",
            ),
            both(fix, fix),
            metric="teacher/entropy",
        )


def _momentum(case: Case) -> Iterator[Note]:
    levels, total = schedule_levels(case.config, "objective.momentum"), case.total
    if not levels or not total or text_at(case.config, "objective.method") == "simclr":
        return
    end = levels[-1] if number_at(case.config, "objective.momentum.end") is not None else levels[0]
    horizon = 1 / max(1 - min(levels), 1e-9)
    fix = f"{flag('objective.momentum.start', 0.9)} {flag('objective.momentum.peak', 0.99)}"
    fix += f" {flag('objective.momentum.warmup_steps', 0.05)}"
    if case.from_scratch and horizon > total / 2 and total > 10:
        left = 100 * math.exp(-total / horizon)
        yield Note(
            "warn",
            both(
                f"the teacher averages over at least {horizon:.0f} steps (momentum {number(min(levels))}) of a run of "
                f"{total}: at its end {left:.0f} % or more of the teacher are still the random weights of step 0.",
                f"教师至少对 {horizon:.0f} 步取平均（动量 {number(min(levels))}），而训练只有 {total} 步："
                f"结束时教师至少还有 {left:.0f} % 是第 0 步的随机权重。",
            ),
            both(fix, fix),
            metric="teacher/momentum",
        )
    elif end < 0.9:
        yield Note(
            "warn",
            both(
                f"the EMA momentum ends at {number(end)}: the teacher is the student of {1 / max(1 - end, 1e-9):.1f} "
                "steps ago, and no steadier than it.",
                f"EMA 动量最终为 {number(end)}：教师只是 {1 / max(1 - end, 1e-9):.1f} 步前的学生，并不比它更稳。",
            ),
            both(fix, fix),
            metric="teacher/momentum",
        )


def _ended_early(case: Case) -> Iterator[Note]:
    total, path = case.total, "optim.lr"
    peak, end = number_at(case.config, f"{path}.peak"), number_at(case.config, f"{path}.end")
    shape = steps_at(case.config, f"{path}.shape_steps", total)
    if not total or not peak or end is None or shape is None or text_at(case.config, f"{path}.shape") == "constant":
        return
    last = (steps_at(case.config, f"{path}.warmup_steps", total) or 0) + shape
    if last > 0.9 * total or end > 0.1 * peak:
        return
    fix = flag(f"{path}.shape_steps", None)
    yield Note(
        "warn",
        both(
            f"the learning rate is at its end, {number(end)}, from step {last} of {total} on: the last "
            f"{total - last} steps change next to nothing.",
            f"学习率从第 {last} 步（共 {total} 步）起已是终值 {number(end)}：最后 {total - last} 步几乎什么也不改变。",
        ),
        both(fix, fix),
        metric="rate/lr",
        steps=(last, total),
    )


def _other_length(case: Case) -> Iterator[Note]:
    total = count_at(case.config, "loop.steps")
    lengths = {path: count_at(case.config, f"{path}.total_steps") for path in SCHEDULES}
    wrong = {path: length for path, length in lengths.items() if length is not None and total and length != total}
    if not wrong or not total:
        return
    path, length = next(iter(wrong.items()))
    yield Note(
        "warn",
        both(
            f"{len(wrong)} schedules are laid out for another length than the run's {total} steps, the first is "
            f"{path} ({length}): they end before the run or are cut off.",
            f"{len(wrong)} 个调度是按别的长度而不是本次的 {total} 步安排的，第一个是 {path}（{length}）："
            "它们会提前结束或被截断。",
        ),
        both(
            f"start from the recipe with {flag('loop.steps', total)}; schedules given as fractions follow it",
            f"从配方开始并加上 {flag('loop.steps', total)}；以分数给出的调度会自动跟随",
        ),
        metric="rate/lr",
    )


def _no_warmup(case: Case) -> Iterator[Note]:
    peak = number_at(case.config, "optim.lr.peak")
    if not peak or number_at(case.config, "optim.lr.warmup_steps") != 0 or not case.from_scratch:
        return
    if number_at(case.config, "optim.lr.start") is None or (case.total or 0) < 100:
        return
    fix = flag("optim.lr.warmup_steps", 0.1)
    yield Note(
        "warn",
        both(
            f"the learning rate is at {number(peak)} from the first step of random weights; transformers trained so "
            "spike or collapse. Published recipes warm up over a tenth of the run.",
            f"随机权重的第一步学习率就是 {number(peak)}；这样训练的 Transformer 会出现尖峰或坍塌。"
            "已发表的配方用十分之一的步数预热。",
        ),
        both(fix, fix),
        metric="rate/lr",
    )


def _headless_weights(case: Case) -> Iterator[Note]:
    weights = text_at(case.config, "start.weights")
    frozen = number_at(case.config, "optim.freeze_backbone_steps")
    slower = number_at(case.config, "optim.backbone_lr_multiplier")
    if not weights or frozen or (slower is not None and slower <= 0.3):
        return
    fix = f"{flag('optim.freeze_backbone_steps', 0.25)} {flag('optim.backbone_lr_multiplier', 0.1)}"
    yield Note(
        "warn",
        both(
            f"start.weights ({plain(weights)}) brings a backbone without its DINO and iBOT heads; new heads pull at it "
            "from the first step. One user saw k-NN fall from 80 to 25 and 10 % within 20,000 images.",
            f"start.weights（{plain(weights)}）只带来骨干网络，没有 DINO 与 iBOT 头；新的头从第一步起就拉扯它。"
            "一位用户在两万张图像内看到 k-NN 从 80 % 降到 25 % 再到 10 %。",
        ),
        both(
            f"{fix}, or fork a run with its heads: {flag('start.fork', 'run:PATH@step=N')}",
            f"{fix}，或连同头一起分叉：{flag('start.fork', 'run:PATH@step=N')}",
        ),
        metric="global/knn",
    )


def _looked_at_rarely(case: Case) -> Iterator[Note]:
    total, every = case.total, count_at(case.config, "loop.evaluate_every")
    if not total or not every or total / every >= 8 or total < 200:
        return
    fix = flag("loop.evaluate_every", max(total // 20, 1))
    yield Note(
        "info",
        both(
            f"{total // every} evaluations in {total} steps: too few to tell a peak of the dense scores from noise, or "
            "to choose a Gram teacher by.",
            f"{total} 步中只有 {total // every} 次评估：不足以把密集指标的峰值与噪声分开，也不足以据此选 Gram 教师。",
        ),
        both(fix, fix),
        metric="dense/patch_knn",
    )


def _nothing_kept(case: Case) -> Iterator[Note]:
    total, every = case.total, count_at(case.config, "loop.keep_every")
    save = count_at(case.config, "loop.save_every")
    if not total or every != 0 or not save or total < 1000 or case.state in ("ended", "crashed"):
        return
    fix = flag("loop.keep_every", max(total // 10 // save * save, save))
    yield Note(
        "info",
        both(
            "only the two newest resume checkpoints are kept: should the dense scores peak earlier, there is nothing "
            f"left to fork from (published weights of every {count_at(case.config, 'loop.probe_every') or 0} steps "
            "can still be Gram teachers).",
            "只保留最新的两个恢复检查点：若密集指标在更早处见顶，就没有可分叉之处（每 "
            f"{count_at(case.config, 'loop.probe_every') or 0} 步公布的权重仍可作 Gram 教师）。",
        ),
        both(f"{fix} (a resume may change it)", f"{fix}（恢复时可以更改）"),
        metric="dense/patch_knn",
    )


RULES = (
    rule("temperature-hot", "Teacher temperature too hot", "教师温度过高", sources.DINO_43, _temperature),
    rule("momentum", "EMA momentum against the run's length", "EMA 动量与训练长度不符", sources.DINO_246, _momentum),
    rule("rate-ended", "Learning rate ended before the run", "学习率先于训练结束", sources.DINOV3_102, _ended_early),
    rule(
        "schedule-length", "Schedules of another run's length", "调度属于另一个长度", sources.DINOV3_102, _other_length
    ),
    rule("no-warm-up", "No warm-up of the learning rate", "学习率没有预热", sources.DINO_287, _no_warmup),
    rule("heads-missing", "Weights without their heads", "权重没有投影头", sources.DINOV2_204, _headless_weights),
    rule(
        "evaluations-rare",
        "Evaluated too rarely to see a peak",
        "评估太少，看不出峰值",
        sources.DINOV3_DENSE,
        _looked_at_rarely,
    ),
    rule("nothing-kept", "No checkpoint to fork from", "没有可分叉的检查点", sources.DINOV3_165, _nothing_kept),
)
