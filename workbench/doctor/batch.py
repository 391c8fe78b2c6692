"""Before the start: does the batch suit prototypes, KoLeo, the learning rate and the masks?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, number, plain, rule
from workbench.doctor.tree import count_at, number_at, numbers_at, schedule_levels, text_at, value_at

MOST_PROTOTYPES_A_ROW = 64
"""Prototypes for each sample of a batch; published recipes have 16 (DINOv3 ViT-L) to 32 (DINOv3 7B, DINO ViT-S)."""
PUBLISHED_WIDTH = 384
"""From ViT-S on the published rates and batches say something; narrower networks stand more."""
HOT = 4.0
"""Times the square-root rule's learning rate."""


def _prototypes(case: Case) -> Iterator[Note]:
    batch = count_at(case.config, "batch.batch_size")
    crops = count_at(case.config, "augment.global_crops") or 2
    prototypes = count_at(case.config, "objective.dino_head.prototypes")
    if not batch or not prototypes or not number_at(case.config, "objective.dino_weight"):
        return
    rows = batch * crops
    if prototypes <= MOST_PROTOTYPES_A_ROW * rows:
        return
    enough = math.ceil(prototypes / (MOST_PROTOTYPES_A_ROW * crops))
    advised = max(2 ** int(math.log2(16 * rows)), 2)
    yield Note(
        "warn",
        both(
            f"{prototypes} prototypes share {rows} samples a step ({crops} global crops of {batch} images): "
            f"{prototypes / rows:.0f} for each. Published recipes have 16 to 32; with so many, most prototypes get "
            "nothing in a step and the teacher's assignments are noise.",
            f"每步 {rows} 个样本（{batch} 张图像各 {crops} 个全局裁剪）分给 {prototypes} 个原型：每个样本 "
            f"{prototypes / rows:.0f} 个。已发表的配方是 16 到 32 个；原型过多时，大多数原型一步之内什么也分不到，"
            "教师的分配只是噪声。",
        ),
        both(
            f"{flag('objective.dino_head.prototypes', advised)} (and the same for ibot_head), or a larger "
            f"{flag('batch.batch_size', enough)}",
            f"{flag('objective.dino_head.prototypes', advised)}（ibot_head 同样设置），或更大的批量 "
            f"{flag('batch.batch_size', enough)}",
        ),
        metric="teacher/prototypes_used",
    )


def _small_batch(case: Case) -> Iterator[Note]:
    batch, width = count_at(case.config, "batch.batch_size"), count_at(case.config, "objective.backbone.embed_dim")
    if not batch or not width or width < PUBLISHED_WIDTH or batch >= 256 or not case.self_distils:
        return
    yield Note(
        "info",
        both(
            f"{batch} images a step for a network {width} wide. The authors of DINOv2 know batches of 2048 and more, "
            "and expect little of 32; judge by k-NN, not by the loss.",
            f"宽度 {width} 的网络每步只有 {batch} 张图像。DINOv2 的作者用 2048 以上的批量，认为 32 难以奏效；"
            "请以 k-NN 而不是损失判断。",
        ),
        both(
            f"what its authors try first when it is unstable: half the rate, {flag('optim.betas', (0.9, 0.99))}, "
            f"{flag('objective.backbone.drop_path', 0.1)}",
            f"不稳定时作者首先尝试：学习率减半，{flag('optim.betas', (0.9, 0.99))}，"
            f"{flag('objective.backbone.drop_path', 0.1)}",
        ),
        metric="global/knn",
    )


def _koleo_alone(case: Case) -> Iterator[Note]:
    batch, weight = count_at(case.config, "batch.batch_size"), number_at(case.config, "objective.koleo_weight")
    if not weight or batch is None or batch > 1:
        return
    yield Note(
        "error",
        both(
            f"KoLeo has weight {number(weight)} and asks for each image's nearest neighbour in the batch, but a batch "
            f"is {batch} image: there is none (0 here, NaN or infinite elsewhere).",
            f"KoLeo 的权重为 {number(weight)}，需要批内每张图像的最近邻，但每批只有 {batch} 张图像：没有邻居"
            "（这里得 0，别处得 NaN 或无穷大）。",
        ),
        both(
            f"{flag('batch.batch_size', 16)} or more, or {flag('objective.koleo_weight', 0)}",
            f"{flag('batch.batch_size', 16)} 或更多，或者 {flag('objective.koleo_weight', 0)}",
        ),
        metric="loss/koleo",
    )


def _koleo_precision(case: Case) -> Iterator[Note]:
    weight, precision = number_at(case.config, "objective.koleo_weight"), text_at(case.config, "loop.precision")
    if not weight or precision in ("", "fp32"):
        return
    half = precision != "bf16"
    yield Note(
        "warn" if half else "info",
        both(
            f"KoLeo (weight {number(weight)}) with precision {plain(precision)}: it takes the logarithm of a distance "
            "to the nearest neighbour. "
            + (
                "In half precision two close images have distance 0 and the loss is infinite."
                if half
                else "The trainer here computes it in float32, but features that bf16 rounds to equal values still "
                "have distance 0: near-duplicates in a batch weigh heavily."
            ),
            f"KoLeo（权重 {number(weight)}）与精度 {plain(precision)}：它对最近邻距离取对数。"
            + (
                "半精度下两张相近图像的距离为 0，损失变成无穷大。"
                if half
                else "本训练器用 float32 计算它，但被 bf16 舍入成相同值的特征距离仍为 0：批内近似重复的图像影响很大。"
            ),
        ),
        both(
            f"{flag('loop.precision', 'fp32')}, or bf16 with KoLeo in float32"
            if half
            else f"nothing while loss/koleo stays below 5, otherwise {flag('loop.precision', 'fp32')}",
            f"{flag('loop.precision', 'fp32')}，或用 bf16 而 KoLeo 用 float32"
            if half
            else f"loss/koleo 低于 5 时无需处理，否则 {flag('loop.precision', 'fp32')}",
        ),
        metric="loss/koleo",
    )


def _repeated_images(case: Case) -> Iterator[Note]:
    batch, images = count_at(case.config, "batch.batch_size"), count_at(case.config, "data.count")
    if not batch or images is None or images >= batch:
        return
    yield Note(
        "warn",
        both(
            f"{batch} images a step out of {images}: a batch holds the same image more than once. KoLeo pushes an "
            "image away from itself, and contrast takes it for its own negative.",
            f"每步 {batch} 张，而总共只有 {images} 张图像：一批里同一图像出现多次。KoLeo 会把图像推离它自己，"
            "对比目标会把它当作自己的负样本。",
        ),
        both(
            f"{flag('data.count', batch * 32)} or {flag('batch.batch_size', max(images // 2, 1))}",
            f"{flag('data.count', batch * 32)} 或 {flag('batch.batch_size', max(images // 2, 1))}",
        ),
        metric="loss/koleo",
    )


def _rate_for_batch(case: Case) -> Iterator[Note]:
    batch, width = count_at(case.config, "batch.batch_size"), count_at(case.config, "objective.backbone.embed_dim")
    levels = schedule_levels(case.config, "optim.lr")
    if not batch or not width or width < PUBLISHED_WIDTH or not levels or not case.self_distils:
        return
    rule = 4e-3 * math.sqrt(batch / 1024)
    scaling = text_at(case.config, "optim.lr_scaling")
    factor = {"linear_wrt_256": batch / 256, "sqrt_wrt_1024": 4 * math.sqrt(batch / 1024)}.get(scaling, 1.0)
    highest = max(levels) * factor
    if highest <= HOT * rule:
        return
    yield Note(
        "warn",
        both(
            f"the learning rate reaches {number(highest)} with {batch} images a step; the square-root rule of DINOv3 "
            f"gives {number(rule)} there. A rate meant for a larger batch was not scaled down.",
            f"每步 {batch} 张图像时学习率达到 {number(highest)}；按 DINOv3 的平方根规则应为 {number(rule)}。"
            "为更大批量准备的学习率没有按批量缩小。",
        ),
        both(
            f"{flag('optim.lr.peak', 1e-3)} {flag('optim.lr_scaling', 'sqrt_wrt_1024')}",
            f"{flag('optim.lr.peak', 1e-3)} {flag('optim.lr_scaling', 'sqrt_wrt_1024')}",
        ),
        metric="rate/lr",
    )


def _tiny_masks(case: Case) -> Iterator[Note]:
    if not number_at(case.config, "objective.ibot_weight"):
        return
    ratio, share = numbers_at(case.config, "masks.ratio", 2), number_at(case.config, "masks.probability")
    size, patch = count_at(case.config, "augment.global_size"), count_at(case.config, "objective.backbone.patch_size")
    if ratio is None or share is None or not size or not patch:
        return
    patches = (size // patch) * (size // patch)
    most = int(patches * max(ratio))
    if share > 0.05 and most >= 4 and max(ratio) >= 0.1:
        return
    yield Note(
        "warn",
        both(
            f"iBOT is on, but at most {most} of the {patches} patches of a crop are masked, in "
            f"{100 * share:.0f} % of the crops: its loss stands on a handful of patches.",
            f"iBOT 已打开，但每个裁剪的 {patches} 个图块最多遮住 {most} 个，且只有 {100 * share:.0f} % 的裁剪被遮："
            "它的损失只靠寥寥几个图块。",
        ),
        both(
            f"{flag('masks.ratio', (0.1, 0.5))} {flag('masks.probability', 0.5)}, larger crops, or "
            f"{flag('objective.ibot_weight', 0)}",
            f"{flag('masks.ratio', (0.1, 0.5))} {flag('masks.probability', 0.5)}，更大的裁剪，或 "
            f"{flag('objective.ibot_weight', 0)}",
        ),
        metric="loss/ibot",
    )


def _ibot_at_once(case: Case) -> Iterator[Note]:
    weight, width = (
        number_at(case.config, "objective.ibot_weight"),
        count_at(case.config, "objective.backbone.embed_dim"),
    )
    ramp = number_at(case.config, "objective.ibot_warmup_steps")
    if not weight or weight < 0.5 or ramp or not width or width >= PUBLISHED_WIDTH or not case.from_scratch:
        return
    yield Note(
        "warn",
        both(
            f"iBOT starts at its full weight {number(weight)} on a network {width} wide that has learnt nothing: the "
            "untrained patch head smooths the patches (seen here in small runs, not a published result).",
            f"iBOT 一开始就以全部权重 {number(weight)} 作用在宽 {width}、尚未学到东西的网络上：未训练的图块头会把图块"
            "抹平（本项目小规模训练所见，并非已发表结果）。",
        ),
        both(
            f"{flag('objective.ibot_weight', 0.3)} {flag('objective.ibot_warmup_steps', 0.25)}",
            f"{flag('objective.ibot_weight', 0.3)} {flag('objective.ibot_warmup_steps', 0.25)}",
        ),
        metric="loss/ibot",
    )


def _unclipped(case: Case) -> Iterator[Note]:
    optim = value_at(case.config, "optim")
    if not isinstance(optim, dict) or "clip_norm" not in optim or optim["clip_norm"] is not None:
        return
    yield Note(
        "info",
        both(
            "gradients are not clipped; one bad batch can throw the student far. Published recipes clip each network "
            "at 3 (30 for the 7B model).",
            "没有裁剪梯度；一个坏批次就能把学生甩得很远。已发表的配方对每个网络裁剪到 3（7B 模型为 30）。",
        ),
        both(flag("optim.clip_norm", 3.0), flag("optim.clip_norm", 3.0)),
        metric="gradient_norm/backbone",
    )


RULES = (
    rule(
        "batch-prototypes",
        "Batch too small for the prototypes",
        "批量对原型数来说太小",
        sources.DINOV2_349,
        _prototypes,
    ),
    rule(
        "batch-small",
        "Small batch for a network of this size",
        "对这样大小的网络来说批量偏小",
        sources.DINOV2_298,
        _small_batch,
    ),
    rule("koleo-batch-of-one", "KoLeo without a neighbour", "KoLeo 没有邻居可找", sources.DINOV2_314, _koleo_alone),
    rule("koleo-precision", "KoLeo in low precision", "KoLeo 用了低精度", sources.DINOV2_492, _koleo_precision),
    rule(
        "images-repeat-in-a-batch",
        "The same image several times in a batch",
        "一批里同一图像出现多次",
        sources.DINOV2_173,
        _repeated_images,
    ),
    rule(
        "rate-not-scaled",
        "Learning rate not scaled to the batch",
        "学习率没有随批量缩放",
        sources.DINOV2_479,
        _rate_for_batch,
    ),
    rule("ibot-tiny-masks", "iBOT with next to no masks", "iBOT 几乎没有遮挡", sources.DINOV2_275, _tiny_masks),
    rule("ibot-at-once", "iBOT at full weight from the start", "iBOT 一开始就用全部权重", sources.LOG, _ibot_at_once),
    rule("gradients-unclipped", "Gradients are not clipped", "梯度没有裁剪", sources.DINO_58, _unclipped),
)
