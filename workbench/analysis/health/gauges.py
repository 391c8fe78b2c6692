"""What each gauge is: source, range, which way is healthy, when it misleads. The table of docs/dense-health.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """One number of evaluations.jsonl that says something about the health of features."""

    key: str
    """Name in evaluations.jsonl."""
    en: str
    zh: str
    level: Literal["dense", "image"]
    """Of patches, or of whole images: image-level gauges say nothing about dense quality."""
    healthier: Literal["higher", "lower", "neither"]
    range: str
    needs: Literal["features", "reference", "code", "views", "labels"] = "features"
    """What it takes besides features: those of another step or of noise images, augmented views, labelled scenes."""
    source: str
    failure: str
    """When it misleads."""


GAUGES: tuple[Gauge, ...] = (
    Gauge(
        key="dense/patch_knn",
        en="patch k-NN",
        zh="图块 k-NN",
        level="dense",
        healthier="higher",
        range="0 to 1; chance 1 / classes",
        needs="labels",
        source="InstDisc, section 3.4, on patches",
        failure="Knows only the objects of its scenes; standard error 1 to 3 points.",
    ),
    Gauge(
        key="dense/boundary_knn",
        en="boundary k-NN",
        zh="边界图块 k-NN",
        level="dense",
        healthier="higher",
        range="0 to 1; chance 1 / classes",
        needs="labels",
        source="patch k-NN, on patches that touch another class",
        failure="Few patches touch: noisier than patch k-NN. Depends on the patch size.",
    ),
    Gauge(
        key="dense/linear_miou",
        en="linear mIoU",
        zh="线性 mIoU",
        level="dense",
        healthier="higher",
        range="0 to 1",
        needs="labels",
        source="DINOv2, section 7.4; DINOv3, section 6.1",
        failure="A linear probe undoes an offset or a channel that spoils cosines; small scenes move it by a point.",
    ),
    Gauge(
        key="health/cls_patch_cosine",
        en="CLS–patch cosine",
        zh="CLS–图块余弦",
        level="dense",
        healthier="lower",
        range="-1 to 1",
        source="DINOv3, section 4.1 and figure 5",
        failure="Depends on how the class token is trained: do not compare methods. High at random initialisation.",
    ),
    Gauge(
        key="health/near_cosine",
        en="near-patch cosine",
        zh="邻近图块余弦",
        level="dense",
        healthier="neither",
        range="-1 to 1",
        source="DINOv3, figure 3 (local consistency)",
        failure="A finer grid is smoother. 1 for washed-out images too.",
    ),
    Gauge(
        key="health/far_cosine",
        en="far-patch cosine",
        zh="远距图块余弦",
        level="dense",
        healthier="lower",
        range="-1 to 1",
        source="DINOv3, figure 3, its far half",
        failure="Rightly high for images of one texture; one great channel raises it.",
    ),
    Gauge(
        key="health/locality",
        en="locality",
        zh="局部性",
        level="dense",
        healthier="higher",
        range="at most 1; 0 without any",
        source="Moran 1950, on unit patches, far pairs as the baseline",
        failure="A code of position is local; a texture finer than a patch is not. Blind to a common offset.",
    ),
    Gauge(
        key="health/within_variance",
        en="within-image variance",
        zh="图内方差",
        level="dense",
        healthier="higher",
        range="0 to 1",
        source="law of total variance, one-way",
        failure="Noise counts as detail: it can rise while maps get worse. Depends on how different the images are.",
    ),
    Gauge(
        key="health/positional_share",
        en="positional share",
        zh="位置方差占比",
        level="dense",
        healthier="lower",
        range="about 0 to 1",
        source="two-way analysis of variance, from products of different images",
        failure="Pictures composed alike (sky above, object in the middle) share content by position.",
    ),
    Gauge(
        key="health/positional_match",
        en="match with noise images",
        zh="与噪声图的吻合度",
        level="dense",
        healthier="lower",
        range="0 to 1",
        needs="code",
        source="least squares on the mean features of noise images",
        failure="Position that a network adds only where there is content does not show on noise.",
    ),
    Gauge(
        key="health/gram_distance",
        en="Gram distance to a reference",
        zh="与参考步的 Gram 距离",
        level="dense",
        healthier="neither",
        range="0 to 4",
        needs="reference",
        source="DINOv3, equation 2, mean over entries",
        failure="Says how far, not which way: learning moves away from an early step too.",
    ),
    Gauge(
        key="health/effective_rank",
        en="effective rank",
        zh="有效秩",
        level="dense",
        healthier="neither",
        range="0 to the number of channels",
        source="Roy and Vetterli 2007, definition 1",
        failure="Stayed flat while patches smoothed; noise raises it.",
    ),
    Gauge(
        key="health/norm_outliers",
        en="norm outliers",
        zh="范数离群比例",
        level="dense",
        healthier="lower",
        range="0 to 1",
        source="Darcet et al. 2024, section 2.1",
        failure="The final norm evens norms out; where all norms are alike, harmless differences count.",
    ),
    Gauge(
        key="health/outlier_dimensions",
        en="outlier dimensions",
        zh="离群维度占比",
        level="dense",
        healthier="lower",
        range="0 to 1",
        source="Kovaleva et al. 2021; Sun et al. 2024",
        failure="A narrow network may use one channel much and rightly; directions across channels are not seen.",
    ),
    Gauge(
        key="health/rankme",
        en="RankMe (image level)",
        zh="RankMe（图像级）",
        level="image",
        healthier="higher",
        range="1 to min(images, channels)",
        source="Garrido et al. 2023, equations 1 and 2",
        failure="Goes against dense quality (Dai et al. 2025). Bounded by the number of images.",
    ),
    Gauge(
        key="health/lidar",
        en="LiDAR (image level)",
        zh="LiDAR（图像级）",
        level="image",
        healthier="higher",
        range="1 to min(images - 1, channels)",
        needs="views",
        source="Thilak et al. 2024, section 3",
        failure="Goes against dense quality (Dai et al. 2025). Depends on the augmentations.",
    ),
)
"""In the order in which people should look: with labels, then dense gauges, image-level ones last."""


def gauge_table() -> str:
    """The gauges as rows of a Markdown table; docs/dense-health.md holds exactly this."""
    head = ["| Name | Gauge | 中文 | Level | Healthy | Range | Needs | Source | When it misleads |"]
    rows = [
        " | ".join((f"| `{g.key}`", g.en, g.zh, g.level, g.healthier, g.range, g.needs, g.source, g.failure)) + " |"
        for g in GAUGES
    ]
    return "\n".join([*head, "|" + "---|" * 9, *rows])
