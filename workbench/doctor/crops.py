"""Before the start: sizes of crops in patches, local against global, pixel statistics."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.doctor import sources
from workbench.doctor.case import Case
from workbench.doctor.finding import Note, both, flag, number, plain, rule
from workbench.doctor.tree import count_at, numbers_at, text_at, value_at
from workbench.images import IMAGENET_MEAN, IMAGENET_STD

SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
"""Mean and deviation of the DINOv3 weights trained on SAT-493M."""
SPECS = ("start.weights", "objective.gram.teacher", "start.fork")
"""Where a config names a backbone of elsewhere."""


def crop_sizes(case: Case) -> list[tuple[str, int]]:
    """(field, pixels) of every crop that the config can cut; a mix of resolutions names its choice by index."""
    sizes = [(f"augment.{name}", count_at(case.config, f"augment.{name}")) for name in _CROPS]
    choices = value_at(case.config, "resolutions.choices")
    for index, choice in enumerate(choices[:100] if isinstance(choices, list) else []):
        pixels = numbers_at({"choice": choice}, "choice", 4) or (0, 0, 0)
        sizes += [(f"resolutions.choices[{index}]", int(side)) for side in pixels[:3]]
    return [(name, side) for name, side in sizes if side]


_CROPS = ("global_size", "local_size", "gram_size")


def _patch_multiples(case: Case) -> Iterator[Note]:
    patch = count_at(case.config, "objective.backbone.patch_size")
    if not patch:
        return
    sizes = crop_sizes(case)
    probes = numbers_at(case.config, "evaluation.probe_size", 2) or ()
    sizes += [("evaluation.probe_size", int(side)) for side in probes]
    sizes += [("evaluation.suite.size", count_at(case.config, "evaluation.suite.size") or 0)]
    for name, side in dict.fromkeys(sizes):
        if side % patch == 0:
            continue
        below = side // patch * patch
        value = (below or patch, below or patch) if name == "evaluation.probe_size" else below or patch
        yield Note(
            "error",
            both(
                f"{name} is {side} pixels, no multiple of the patch size {patch}: {side - below} pixels of each side "
                "would be cut off unseen. Official code does so silently; the trainer here refuses.",
                f"{name} 为 {side} 像素，不是图块大小 {patch} 的倍数：每边会有 {side - below} 像素被悄悄裁掉。"
                "官方代码不声不响地这样做；本训练器拒绝启动。",
            ),
            both(_size_fix(name, value, below + patch), _size_fix(name, value, below + patch)),
        )


def _size_fix(name: str, below: int | tuple[int, int], above: int) -> str:
    return f"{name.partition('[')[0]}: {below} / {above}" if "[" in name else f"{flag(name, below)}  ({above})"


def _locals_larger(case: Case) -> Iterator[Note]:
    if not count_at(case.config, "augment.local_crops"):
        return
    local, large = count_at(case.config, "augment.local_size"), count_at(case.config, "augment.global_size")
    if local and large and local > large:
        yield Note(
            "warn",
            both(
                f"local crops have {local} pixels, global ones {large}: the student's small views are larger than the "
                "teacher's large ones, so they cost more than they teach.",
                f"局部裁剪 {local} 像素，全局裁剪 {large} 像素：学生的小视图比教师的大视图还大，费时多而所教少。",
            ),
            both(flag("augment.local_size", large // 2), flag("augment.local_size", large // 2)),
        )
    small, wide = numbers_at(case.config, "augment.local_scale", 2), numbers_at(case.config, "augment.global_scale", 2)
    if small and wide and sum(small) > sum(wide):
        yield Note(
            "warn",
            both(
                f"local crops show {_share(small)} of an image, global ones {_share(wide)}: on average the local view "
                "shows more, and local-to-global has nothing to predict.",
                f"局部裁剪显示图像的 {_share(small)}，全局裁剪 {_share(wide)}：平均而言局部视图看到的更多，"
                "“从局部到全局”便无可预测。",
            ),
            both(
                f"{flag('augment.local_scale', (0.05, 0.32))} {flag('augment.global_scale', (0.32, 1.0))}",
                f"{flag('augment.local_scale', (0.05, 0.32))} {flag('augment.global_scale', (0.32, 1.0))}",
            ),
        )


def _share(scale: tuple[float, ...]) -> str:
    return f"{100 * scale[0]:.0f}-{100 * scale[1]:.0f} %"


def _statistics(case: Case) -> Iterator[Note]:
    mean, std = numbers_at(case.config, "augment.mean", 3), numbers_at(case.config, "augment.std", 3)
    if mean is None or std is None:
        return
    if max(mean) > 1 or min(std) <= 0 or max(std) > 1:
        yield Note(
            "error",
            both(
                f"pixels in [0, 1] are normalised with mean {_row(mean)} and deviation {_row(std)}; these are "
                "statistics of bytes (0 to 255), or no statistics at all.",
                f"[0, 1] 的像素用均值 {_row(mean)}、标准差 {_row(std)} 归一化；这是字节（0 到 255）的统计量，"
                "或者根本不是统计量。",
            ),
            _statistics_fix(IMAGENET_MEAN, IMAGENET_STD),
        )
        return
    for path in SPECS:
        spec = text_at(case.config, path)
        wanted = _wanted(case, spec)
        if wanted and not (_close(mean, wanted[0]) and _close(std, wanted[1])):
            yield Note(
                "warn",
                both(
                    f"{path} is {plain(spec)}, which wants mean {_row(wanted[0])} and deviation {_row(wanted[1])}; "
                    f"here it would see images normalised with {_row(mean)} and {_row(std)}.",
                    f"{path} 是 {plain(spec)}，它需要均值 {_row(wanted[0])}、标准差 {_row(wanted[1])}；"
                    f"这里给它的图像却用 {_row(mean)} 与 {_row(std)} 归一化。",
                ),
                _statistics_fix(*wanted),
            )


def _wanted(case: Case, spec: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What the backbone of a spec was normalised with; None when it is not known."""
    if spec.startswith("run:"):
        about = case.inputs.get(spec)
        mean, std = numbers_at(about, "mean", 3), numbers_at(about, "std", 3)
        return None if mean is None or std is None else (mean, std)
    if not spec.startswith(("dinov3:", "hf:")):
        return None
    if "sat493m" in spec.lower():
        return SATELLITE
    return (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)) if "lvd1689m" in spec.lower() else None


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) < 0.005 for x, y in zip(a, b, strict=True))


def _row(values: tuple[float, ...]) -> str:
    return " ".join(number(value) for value in values)


def _statistics_fix(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, str]:
    options = f"{flag('augment.mean', mean)} {flag('augment.std', std)}"
    return both(options, options)


RULES = (
    rule(
        "crop-not-whole-patches",
        "A size is not a whole number of patches",
        "尺寸不是整数个图块",
        sources.DINOV2_77,
        _patch_multiples,
    ),
    rule(
        "locals-larger-than-globals",
        "Local crops larger than global ones",
        "局部裁剪比全局裁剪大",
        sources.DINO_PAPER,
        _locals_larger,
    ),
    rule(
        "normalisation-mismatch",
        "Normalisation does not fit the backbone",
        "归一化与骨干网络不符",
        sources.DINOV3_61,
        _statistics,
    ),
)
