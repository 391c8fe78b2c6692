"""What the record itself tells: resumes gone wrong, a config that did not run, an end without a word."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import pairwise

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, number, plain, printable, rule
from workbench.doctor.gram import named_step
from workbench.doctor.tree import as_number, count_at, numbers_at, schedule_levels, text_at, value_at

RATES = {
    "rate/lr": "optim.lr",
    "rate/weight_decay": "optim.weight_decay",
    "teacher/momentum": "objective.momentum",
}
"""A metric, and the schedule that decides it."""


def same_command(case: Case) -> dict[str, str]:
    """How a run goes on."""
    phase, recipe = text_at(case.info, "phase"), text_at(case.info, "recipe")
    named = phase.replace("-", "").isalnum() and recipe.replace("_", "").isalnum() and (phase + recipe).isascii()
    start = f"python -m training {phase} {recipe} " if named else "python -m training PHASE RECIPE "
    line = f"{start}--run {shlex.quote(printable(case.path) or 'RUN')}"
    return both(f"{line} with the options it began with", f"{line}，并加上开始时的选项")


def _backwards(case: Case) -> Iterator[Note]:
    steps = [row["step"] for row in case.metrics]
    back = [(a, b) for a, b in pairwise(steps) if b <= a]
    if not back:
        return
    before, after = back[0]
    yield Note(
        "error",
        both(
            f"the record goes back from step {before} to {after} ({len(back)} times): a resume went on from an earlier "
            "step without dropping what came after, or two trainers wrote into one folder.",
            f"记录从第 {before} 步退回到第 {after} 步（{len(back)} 次）：恢复时从较早的步继续却没有删去其后的内容，"
            "或两个训练写进了同一个文件夹。",
        ),
        both(
            "take the curves after the last such step only; train again in a folder of its own (--run NAME)",
            "只采信最后一次退回之后的曲线；换一个独立文件夹重新训练（--run NAME）",
        ),
        metric="loss/total",
        steps=(min(after, before), max(steps)),
    )


def _holes(case: Case) -> Iterator[Note]:
    steps = [row["step"] for row in case.metrics]
    jumps = [b - a for a, b in pairwise(steps)]
    holes = [
        (steps[i], steps[i + 1])
        for i in range(1, len(jumps) - 1)
        if jumps[i] > 2.5 * max(jumps[i - 1], jumps[i + 1], 1) and steps[i + 1] != case.gap
    ]
    if not holes:
        return
    before, after = holes[0]
    yield Note(
        "warn",
        both(
            f"no record between steps {before} and {after} ({len(holes)} such holes): lines were lost, or a resume "
            "began later than the run had come.",
            f"第 {before} 与 {after} 步之间没有记录（共 {len(holes)} 处）：丢了行，或恢复时的起点晚于训练到达之处。",
        ),
        both(
            "do not average over the hole; look at the events around it",
            "不要跨越缺口取平均；请查看前后的事件",
        ),
        metric="loss/total",
        steps=(before, holes[-1][1]),
    )


def _in_circles(case: Case) -> Iterator[Note]:
    resumed = case.event_steps("resumed")
    repeats = max((resumed.count(step) for step in set(resumed[-20:])), default=0)
    if repeats < 3:
        return
    step = max(resumed, key=resumed.count)
    fix = flag("loop.save_every", max((count_at(case.config, "loop.save_every") or 100) // 4, 1))
    yield Note(
        "warn",
        both(
            f"the run was resumed {repeats} times from step {step} without reaching its next checkpoint: something "
            "kills it in between.",
            f"训练从第 {step} 步恢复了 {repeats} 次，都没到下一个检查点：其间有什么在终止它。",
        ),
        both(f"{fix} (a resume may change it)", f"{fix}（恢复时可以更改）"),
        steps=(step, case.step),
    )


def _other_config(case: Case) -> Iterator[Note]:
    for metric, path in RATES.items():
        levels, curve = schedule_levels(case.config, path), case.curve(metric)
        if not levels or not curve.steps:
            continue
        low, high = min(levels), max(levels)
        low = 0.0 if metric != "teacher/momentum" else low
        wrong = [
            (step, value)
            for step, value in zip(*curve, strict=True)
            if value > high * 1.02 + 1e-12 or value < low * 0.98 - 1e-12
        ]
        if wrong:
            step, value = wrong[0]
            yield Note(
                "error",
                both(
                    f"{metric} was {number(value)} at step {step}, but {path} in config.json stays within "
                    f"{number(low)} to {number(high)}: the run was resumed under another config, or the file edited.",
                    f"{metric} 在第 {step} 步为 {number(value)}，但 config.json 的 {path} 只在 {number(low)} 到 "
                    f"{number(high)} 之间：训练曾以别的配置恢复，或文件被改过。",
                ),
                both(
                    "the config on record is not what ran: train again under one config (--run NAME)",
                    "记录的配置并非实际运行的配置：请以同一配置重新训练（--run NAME）",
                ),
                metric=metric,
                steps=(step, wrong[-1][0]),
            )


def _two_stories(case: Case) -> Iterator[Note]:
    """run.json and config.json were written together; where they differ, one was changed afterwards."""
    if not case.info or not case.config:
        return
    pairs = {
        "steps": (count_at(case.info, "steps"), count_at(case.config, "loop.steps")),
        "seed": (count_at(case.info, "seed"), count_at(case.config, "seed")),
        "input.mean": (numbers_at(case.info, "input.mean", 3), numbers_at(case.config, "augment.mean", 3)),
        "input.std": (numbers_at(case.info, "input.std", 3), numbers_at(case.config, "augment.std", 3)),
    }
    fork = named_step(text_at(case.config, "start.fork"))
    if fork:
        pairs["parent.step"] = (count_at(case.info, "parent.step"), fork[1])
    pairs_unlike = {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    unlike = [f"{name} ({_short(a)} | {_short(b)})" for name, (a, b) in pairs_unlike.items()]
    if fork and value_at(case.info, "parent") is None:
        unlike.append(f"parent.step (- | {fork[1]})")
    if not unlike:
        return
    yield Note(
        "error",
        both(
            f"run.json and config.json disagree on {', '.join(unlike)}: one of them was changed after the start, and "
            "whoever normalises images by one gets other features than by the other.",
            f"run.json 与 config.json 在 {', '.join(unlike)} 上不一致：其中之一在开始之后被改过，"
            "按其中一个做归一化得到的特征会与另一个不同。",
        ),
        both("restore both files from a copy", "从副本恢复这两个文件"),
    )


def _short(value: object) -> str:
    return " ".join(map(number, value)) if isinstance(value, tuple) else str(value)


def _other_network(case: Case) -> Iterator[Note]:
    ours, theirs = value_at(case.config, "objective.backbone"), value_at(case.architecture, "config")
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return
    names = ("patch_size", "embed_dim", "depth", "num_heads", "num_registers")
    unlike = [name for name in names if as_number(ours.get(name)) != as_number(theirs.get(name)) and name in theirs]
    if not unlike:
        return
    name = unlike[0]
    yield Note(
        "error",
        both(
            f"the saved backbone has {name} {plain(theirs.get(name))}, the config {plain(ours.get(name))}: weights "
            "and config are of two runs.",
            f"保存的骨干网络 {name} 为 {plain(theirs.get(name))}，配置为 {plain(ours.get(name))}："
            "权重与配置来自两次训练。",
        ),
        both("restore backbones/ and config.json from the same copy", "从同一副本恢复 backbones/ 与 config.json"),
    )


def _ended_badly(case: Case) -> Iterator[Note]:
    failed = [event for event in case.events if event.get("kind") == "failed"][-1:]
    if case.state == "crashed" and not case.event_steps("diverged")[-1:]:
        words = both(
            f"the trainer ended after step {case.step} of {case.total or '?'} without a word: killed, out of memory, "
            "or the machine went down.",
            f"训练在第 {case.step} 步（共 {case.total or '?'} 步）之后无声结束：被终止、内存耗尽，或机器停了。",
        )
        if failed:
            said = plain(failed[0].get("text", ""))
            words = both(
                f"the trainer failed at step {failed[0]['step']}: {said}",
                f"训练在第 {failed[0]['step']} 步失败：{said}",
            )
        yield Note("error", words, same_command(case), steps=(case.step, case.step))
    elif case.state == "silent" and case.progress < 1:
        yield Note(
            "warn",
            both(
                f"nothing was written lately, and the last record is of step {case.step} of {case.total or '?'}; from "
                "here it cannot be seen whether the trainer lives.",
                f"最近没有写入，最后一条记录是第 {case.step} 步（共 {case.total or '?'} 步）；"
                "从这里看不出训练是否还活着。",
            ),
            same_command(case),
            steps=(case.step, case.step),
        )


def _rejected(case: Case) -> Iterator[Note]:
    steps = case.event_steps("checkpoint-rejected")
    if not steps:
        return
    yield Note(
        "warn",
        both(
            f"{len(steps)} resume checkpoints were damaged; the run went on from an older one.",
            f"{len(steps)} 个恢复检查点已损坏；训练从更早的一个继续。",
        ),
        both("check the disk (full? failing?)", "检查磁盘（满了？坏了？）"),
        steps=(steps[0], steps[-1]),
    )


def _damaged(case: Case) -> Iterator[Note]:
    lines = {name: count for name, count in case.damaged.items() if count}
    if not lines and not case.unreadable:
        return
    said = [f"{name}: {count}" for name, count in lines.items()] + [plain(each) for each in case.unreadable]
    yield Note(
        "warn",
        both(
            f"parts of the record cannot be read and are left out (damaged lines by file, or why): {'; '.join(said)}",
            f"记录有无法读取的部分，已略去（各文件的损坏行数或原因）：{'; '.join(said)}",
        ),
        both("restore the file from a copy; a trainer writes whole lines only", "从副本恢复该文件；训练器只写整行"),
    )


def _snapshots(case: Case) -> Iterator[Note]:
    every, log = count_at(case.config, "loop.probe_every"), count_at(case.config, "loop.log_every") or 1
    if not every or not case.metrics:
        return
    due = set(range(0, max(case.step - log, 0) + 1, every)) if case.step / every < 100_000 else set()
    for name, zh, saved in (
        ("probe features", "探针特征", case.probe_steps),
        ("weights", "权重", case.weight_steps),
    ):
        missing = sorted(due - set(saved))
        if not missing:
            continue
        shown = ", ".join(map(str, missing[:4])) + (" …" if len(missing) > 4 else "")
        yield Note(
            "warn" if case.can_fork else "info",  # who hands on a run without its checkpoints means to thin it
            both(
                f"{name} of {len(missing)} of {len(due)} steps are missing ({shown}): those steps can be neither "
                "looked at nor taken as a Gram teacher.",
                f"{len(due)} 个步中缺少 {len(missing)} 个步的{zh}（{shown}）：这些步既看不到，也不能作 Gram 教师。",
            ),
            both(
                "restore the files from a copy; a run from which they were deleted on purpose needs nothing",
                "从副本恢复这些文件；若是有意删除则无需处理",
            ),
            steps=(missing[0], missing[-1]),
        )


RULES = (
    rule("steps-backwards", "The record goes back", "记录倒退", sources.DINOV2_341, _backwards),
    rule("steps-missing", "A hole in the record", "记录有缺口", sources.DINOV2_341, _holes),
    rule("resumed-in-circles", "Resumed again and again", "反复恢复", sources.DEIT_173, _in_circles),
    rule("config-not-what-ran", "The config is not what ran", "配置并非实际运行的", sources.DEIT_173, _other_config),
    rule(
        "run-and-config-differ",
        "run.json against config.json",
        "run.json 与 config.json 不符",
        sources.RUN_FORMAT,
        _two_stories,
    ),
    rule(
        "weights-of-another-run", "Weights of another network", "权重属于别的网络", sources.RUN_FORMAT, _other_network
    ),
    rule("ended-badly", "Ended without a word", "异常结束", sources.RUN_FORMAT, _ended_badly),
    rule("checkpoint-rejected", "Damaged checkpoints", "检查点损坏", sources.DEIT_173, _rejected),
    rule("record-damaged", "Damaged record", "记录损坏", sources.RUN_FORMAT, _damaged),
    rule(
        "snapshots-missing", "Probe features or weights missing", "缺少探针特征或权重", sources.RUN_FORMAT, _snapshots
    ),
)
