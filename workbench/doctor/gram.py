"""Before the start: Gram anchoring told in words. Which teacher, which crops, when, how much."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.crops import crop_sizes
from workbench.doctor.finding import Note, both, flag, number, plain, rule
from workbench.doctor.tree import count_at, number_at, numbers_at, steps_at, text_at, value_at

_SPEC = re.compile(r"run:(?P<path>.+?)@step=(?P<step>\d{1,15})", re.DOTALL)
LIVE = "ema"


def anchored(case: Case) -> bool:
    """Whether the objective has a Gram teacher."""
    return isinstance(value_at(case.config, "objective.gram"), dict)


def named_step(spec: str) -> tuple[str, int] | None:
    """(path, step) of run:PATH@step=N, with a role behind it or not."""
    match = _SPEC.match(spec)
    return (match["path"], int(match["step"])) if match else None


def _never_weighed(case: Case) -> Iterator[Note]:
    if not anchored(case):
        return
    weight, total = "objective.gram.weight", case.total
    peak, end = number_at(case.config, f"{weight}.peak"), number_at(case.config, f"{weight}.end")
    if peak is None:
        return
    warmup = steps_at(case.config, f"{weight}.warmup_steps", total) or 0
    frozen = steps_at(case.config, f"{weight}.freeze_steps", total) or 0
    late = max(warmup if not number_at(case.config, f"{weight}.start") else 0, frozen)
    fix = flag(f"{weight}.peak", 2.0)
    if not peak and not end:
        words = both(
            "the Gram loss has weight 0 throughout: nothing is anchored, and the Gram teacher costs a forward pass.",
            "Gram 损失的权重始终为 0：什么也没有锚定，Gram 教师却要多算一次前向。",
        )
    elif total and late >= total:
        words = both(
            f"the Gram weight is still at its warm-up or frozen when the run ends at step {total} (it lasts {late}): "
            "the released settings of the 7B model count from step 0 of pretraining, a fork here counts from 0.",
            f"训练在第 {total} 步结束时 Gram 权重仍在预热或冻结（要 {late} 步）：7B 模型公布的设置从预训练第 0 步"
            "算起，而这里的分叉从 0 计步。",
        )
        fix = f"{flag(f'{weight}.warmup_steps', 0)} {flag(f'{weight}.freeze_steps', 0)}"
    else:
        return
    yield Note("warn", words, both(fix, fix), metric="gram/weight")


def _small_gram_crops(case: Case) -> Iterator[Note]:
    if not anchored(case) or text_at(case.config, "objective.gram.teacher") == LIVE:
        return
    choices = value_at(case.config, "resolutions.choices")
    pairs = [numbers_at({"choice": each}, "choice", 4) for each in (choices[:100] if isinstance(choices, list) else [])]
    sizes = [(int(pair[0]), int(pair[2])) for pair in pairs if pair]
    sizes = sizes or [
        (count_at(case.config, "augment.global_size") or 0, count_at(case.config, "augment.gram_size") or 0)
    ]
    for large, gram in sizes:
        if 0 < gram < large:
            options = flag("augment.gram_size", 2 * large)
            yield Note(
                "warn",
                both(
                    f"the Gram teacher sees crops of {gram} pixels, the student {large}: its map of similarities is "
                    "coarser than the one it is to correct. Published: twice the student's size.",
                    f"Gram 教师看到 {gram} 像素的裁剪，学生看到 {large}：它的相似度图比要纠正的还粗。"
                    "论文用学生的两倍大小。",
                ),
                both(options, options),
                metric="loss/gram",
            )
        elif not gram and large:
            options = flag("augment.gram_size", 2 * large)
            yield Note(
                "info",
                both(
                    f"no Gram crops: the Gram teacher sees the student's own crops of {large} pixels, distortions "
                    "included. The paper gains 2 points of ADE20k mIoU (53.6 to 55.7) with twice the size.",
                    f"没有 Gram 裁剪：Gram 教师看到学生自己的 {large} 像素裁剪，连同其失真。论文用两倍大小多得 "
                    "2 个点的 ADE20k mIoU（53.6 到 55.7）。",
                ),
                both(options, options),
                metric="loss/gram",
            )


def _stray_gram_crops(case: Case) -> Iterator[Note]:
    size = count_at(case.config, "augment.gram_size")
    unused = not anchored(case) or text_at(case.config, "objective.gram.teacher") == LIVE
    if not size or not unused or not case.self_distils:
        return
    yield Note(
        "error",
        both(
            f"Gram crops of {size} pixels are cut, but no Gram teacher looks at them: "
            + (
                "it is the live EMA teacher, on the global crops."
                if anchored(case)
                else "the objective has no Gram term."
            ),
            f"切出了 {size} 像素的 Gram 裁剪，却没有 Gram 教师看它们："
            + ("它是实时的 EMA 教师，看的是全局裁剪。" if anchored(case) else "训练目标没有 Gram 项。"),
        ),
        both(flag("augment.gram_size", None), flag("augment.gram_size", None)),
    )


def _refreshes(case: Case) -> Iterator[Note]:
    if not anchored(case):
        return
    gram, total = "objective.gram", case.total
    every = steps_at(case.config, f"{gram}.refresh_every", total)
    first = steps_at(case.config, f"{gram}.first_refresh", total) or 0
    most = count_at(case.config, f"{gram}.max_refreshes")
    live = text_at(case.config, f"{gram}.teacher") == LIVE
    fix = f"{flag(f'{gram}.first_refresh', 0.25)} {flag(f'{gram}.refresh_every', 0.25)}"
    level = "warn"
    if live and every:
        level, fix = "error", flag(f"{gram}.refresh_every", 0)
        words = both(
            f"the Gram teacher is the live EMA teacher, always fresh, and is to be refreshed every {every} steps "
            "besides; one excludes the other.",
            f"Gram 教师就是实时的 EMA 教师，始终最新，却又要每 {every} 步刷新；两者不能并存。",
        )
    elif not every and first:
        words = both(
            f"the first refresh of the Gram teacher is set to step {first}, but refresh_every is 0: there is none.",
            f"Gram 教师的首次刷新设在第 {first} 步，但 refresh_every 为 0：永远不会刷新。",
        )
    elif every and most == 0:
        words = both(
            f"refreshes every {every} steps, at most 0 of them: the Gram teacher never changes.",
            f"每 {every} 步刷新，但最多 0 次：Gram 教师永远不变。",
        )
    elif every and total and (at := -(-max(first, every) // every) * every) > total:
        words = both(
            f"the first refresh of the Gram teacher would come at step {at}, the run ends at {total}: there is none. "
            "Steps count from the fork.",
            f"Gram 教师的首次刷新要到第 {at} 步，训练在第 {total} 步结束：一次也没有。步数从分叉算起。",
        )
    else:
        return
    yield Note(level, words, both(fix, fix), metric="gram/refreshes")


def _late_teacher(case: Case) -> Iterator[Note]:
    teacher = named_step(text_at(case.config, "objective.gram.teacher"))
    fork = named_step(text_at(case.config, "start.fork"))
    if not teacher or not fork or teacher[0] != fork[0] or teacher[1] <= fork[1] // 2:
        return
    early = flag("objective.gram.teacher", f"run:{plain(fork[0])}@step=N")
    after = teacher[1] > fork[1]
    yield Note(
        "warn" if after else "info",
        both(
            f"the Gram teacher is step {teacher[1]} of the run, "
            + ("later than" if after else "close to")
            + f" the fork at {fork[1]}: a teacher from after the decline anchors the decline. The paper finds teachers "
            "of 100,000 and 200,000 steps alike and one of 1,000,000 worse.",
            f"Gram 教师是该训练的第 {teacher[1]} 步，"
            + ("晚于" if after else "接近")
            + f"分叉点 {fork[1]}：退化之后的教师锚定的就是退化。论文发现 10 万与 20 万步的教师相当，100 万步的更差。",
        ),
        both(
            f"{early} with N near the peak of dense/patch_knn",
            f"{early}，N 取 dense/patch_knn 峰值附近",
        ),
        metric="dense/patch_knn",
    )


def _no_teacher(case: Case) -> Iterator[Note]:
    if text_at(case.config, "objective.gram.teacher") != "fork" or text_at(case.config, "start.fork"):
        return
    yield Note(
        "error",
        both(
            "the Gram teacher is to be the EMA teacher that the run forks from, but nothing is forked: it would be a "
            "network that knows nothing.",
            "Gram 教师应是分叉来源的 EMA 教师，但没有分叉：它会是一个什么都没学过的网络。",
        ),
        both(
            f"{flag('start.fork', 'run:PATH@step=N')} or {flag('objective.gram.teacher', 'run:PATH@step=N')}",
            f"{flag('start.fork', 'run:PATH@step=N')} 或 {flag('objective.gram.teacher', 'run:PATH@step=N')}",
        ),
    )


def _tokens_and_level(case: Case) -> Iterator[Note]:
    tokens, level = text_at(case.config, "objective.gram.tokens"), text_at(case.config, "objective.gram.level")
    if tokens in ("", "all"):
        return
    if level == "image":
        fix = flag("objective.gram.level", "batch")
        words = both(
            f"the Gram loss compares the {plain(tokens)} patches of each image alone, but images differ in how many "
            "are masked: that needs level batch.",
            f"Gram 损失要在每张图像内比较 {plain(tokens)} 图块，但各图像被遮的数目不同：需要 level batch。",
        )
    elif not number_at(case.config, "objective.ibot_weight"):
        fix = flag("objective.gram.tokens", "all")
        words = both(
            f"the Gram loss is on {plain(tokens)} patches, but nothing is masked: the iBOT weight is 0.",
            f"Gram 损失作用于 {plain(tokens)} 图块，但没有任何遮挡：iBOT 权重为 0。",
        )
    else:
        return
    yield Note("error", words, both(fix, fix), metric="loss/gram")


def _fork_not_kept(case: Case) -> Iterator[Note]:
    spec = text_at(case.config, "start.fork")
    fork, loop = named_step(spec), case.kept.get(spec)
    if not fork or loop is None:
        return
    every, save, last = (count_at(loop, name) for name in ("keep_every", "save_every", "steps"))
    step = fork[1]
    newest = save is None or last is None or step > last - 2 * save
    if newest or (every and step % every == 0):
        return
    yield Note(
        "error",
        both(
            f"start.fork names step {step}, whose resume checkpoint its run does not keep: keep_every is {every or 0}, "
            f"and only the two newest before step {last} stay.",
            f"start.fork 指向第 {step} 步，但那次训练不保留它的恢复检查点：keep_every 为 {every or 0}，"
            f"只留第 {last} 步之前最新的两个。",
        ),
        both(
            f"fork from a later step, or train the parent again with {flag('loop.keep_every', max(step, 1))}",
            f"从较晚的一步分叉，或让母训练重跑并加上 {flag('loop.keep_every', max(step, 1))}",
        ),
    )


def _huge_gram_crops(case: Case) -> Iterator[Note]:
    """More pixels than any published recipe gives its Gram teacher."""
    patch = count_at(case.config, "objective.backbone.patch_size")
    if not anchored(case) or not patch:
        return
    sizes = dict(crop_sizes(case))
    large, gram = sizes.get("augment.global_size"), sizes.get("augment.gram_size")
    if not large or not gram or gram <= 4 * large:
        return
    yield Note(
        "info",
        both(
            f"Gram crops of {gram} pixels are {number(gram / large)} times the student's {large}: published factors "
            "are 1.5 and 2, and the teacher's cost grows with the square.",
            f"Gram 裁剪 {gram} 像素，是学生 {large} 的 {number(gram / large)} 倍：论文用 1.5 倍和 2 倍，"
            "教师的开销按平方增长。",
        ),
        both(flag("augment.gram_size", 2 * large), flag("augment.gram_size", 2 * large)),
        metric="speed/images_per_second",
    )


RULES = (
    rule(
        "gram-weight-zero",
        "Gram anchoring without any weight",
        "Gram 锚定没有权重",
        sources.DINOV3_293,
        _never_weighed,
    ),
    rule(
        "gram-crops-small",
        "Gram crops against global crops",
        "Gram 裁剪与全局裁剪",
        sources.DINOV3_220,
        _small_gram_crops,
    ),
    rule(
        "gram-crops-unused",
        "Gram crops that nobody sees",
        "无人使用的 Gram 裁剪",
        sources.DINOV3_165,
        _stray_gram_crops,
    ),
    rule(
        "gram-crops-huge", "Gram crops far larger than needed", "Gram 裁剪过大", sources.DINOV3_GRAM, _huge_gram_crops
    ),
    rule("gram-refresh", "Refreshes that never come", "不会发生的刷新", sources.DINOV3_102, _refreshes),
    rule("gram-teacher-late", "A late Gram teacher", "Gram 教师太晚", sources.DINOV3_293, _late_teacher),
    rule("gram-teacher-none", "A Gram teacher from nowhere", "Gram 教师无从而来", sources.DINOV3_165, _no_teacher),
    rule(
        "gram-tokens",
        "Gram tokens and level contradict",
        "Gram 的图块与层级矛盾",
        sources.DINOV3_GRAM,
        _tokens_and_level,
    ),
    rule(
        "fork-not-kept",
        "Fork from a checkpoint that is gone",
        "分叉点的检查点已不在",
        sources.DINOV3_165,
        _fork_not_kept,
    ),
)
