"""Which diseases do networks of runs have, and what does each look like when it is put in on purpose?

Prints the verdicts on built-in scenes for the first, middle and last backbone of each run: with nothing else known,
with features of noise images, and with the best step by patch k-NN as the healthy one. Then draws, for the best
backbone of the first run, the four diseases *put into* its features (constructed, not trained), beside the verdicts'
pictures, into docs/images/diseases.png.

    python benchmarks/diseases.py RUN [RUN ...]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from workbench.analysis.diseases import DISEASES, Verdict, diagnose
from workbench.analysis.similarity import similarity
from workbench.features import Backbone
from workbench.images import normalize
from workbench.runs import Run
from workbench.scenes import SceneConfig, Scenes, builtin_library

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = (112, 160)
SCENES = 16
SHOWN = 9
"""Index of the scene in the picture."""
DOCS = Path(__file__).resolve().parents[1] / "docs"


def scenes() -> Tensor:
    """uint8 [I, 3, h, w] of built-in cut-outs that no run trained on in this composition."""
    drawn = Scenes(builtin_library(), SceneConfig(size=SIZE, objects=(2, 4)), seed=4242)
    return torch.stack([drawn[index].image for index in range(SCENES)])


@torch.no_grad()
def encode(run: Run, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of the images and of eight images of random pixels."""
    backbone: Backbone = run.backbone(step=step)
    about = run.info["input"]
    noise = torch.randint(256, (8, *images.shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches, empty = (backbone.features(normalize(x, about["mean"], about["std"])).patches for x in (images, noise))
    return patches, empty


def best_step(run: Run) -> int:
    """The published step with the highest patch k-NN."""
    scores = {row["step"]: row.get("dense/patch_knn") or 0.0 for row in run.evaluations()[0]}
    return max(run.steps(run.main_role), key=lambda step: scores.get(step, 0.0))


def report(run: Run, images: Tensor) -> None:
    steps = run.steps(run.main_role)
    healthy, _ = encode(run, best_step(run), images)
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}):
        patches, noise = encode(run, step, images)
        show(f"{run.name} {step} alone", [diagnose(image) for image in patches])
        show(f"{run.name} {step} +noise", [diagnose(image, noise=noise) for image in patches])
        if step >= best_step(run):
            pairs = zip(patches, healthy, strict=True)
            show(f"{run.name} {step} +healthy", [diagnose(a, healthy=b, noise=noise) for a, b in pairs])


def show(title: str, verdicts: Iterable[dict[str, Verdict]]) -> None:
    """One line: how many images are present / undecided / absent, and the largest value, for each disease."""
    cells, verdicts = [], list(verdicts)
    for disease in DISEASES:
        own = [verdict[disease.key] for verdict in verdicts]
        count = Counter(verdict.state for verdict in own)
        cells.append(
            f"{count['present']:2d}/{count['undecided']:2d}/{count['absent']:2d} {max(v.value for v in own):5.2f}"
        )
    print(f"{title:32s} | " + " | ".join(cells))


# --- the picture -------------------------------------------------------------------------------------------------


def put_in(key: str, patches: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One disease in patches [H, W, D] and in those of noise images [B, H, W, D]; strengths in units of the norm."""
    generator = torch.Generator().manual_seed(1)
    length, (height, width, channels) = patches.norm(dim=-1).median(), patches.shape
    patches, noise = patches.clone(), noise.clone()
    if key == "high-norm-tokens":
        patches[[1, 3, 9], [4, 15, 2]] = 5 * length * unit_noise(3, channels, generator)
    elif key == "outlier-dimensions":
        patches[..., 7] += 1.6 * length
        noise[..., 7] += 1.6 * length
    elif key == "positional-bias":
        rows, columns = torch.arange(height)[:, None, None], torch.arange(width)[None, :, None]
        across, down = unit_noise(2, channels, generator)
        code = 1.4 * length * (torch.cos(columns / 4) * across + torch.sin(rows / 3) * down)
        patches, noise = patches + code, noise + code
    else:
        places = torch.randperm(height * width, generator=generator)[: int(0.7 * height * width)]
        flat = patches.flatten(0, 1)
        flat[places] = flat[places[torch.randperm(len(places), generator=generator)]]
    return patches, noise


def unit_noise(count: int, channels: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, channels, generator=generator), dim=-1)


def draw(image: Tensor, patches: Tensor, noise: Tensor, path: Path) -> None:
    """Rows: diseases. Columns: similarity map, healthy and sick; the disease's own picture, healthy and sick."""
    middle = (0, patches.shape[0] // 2, patches.shape[1] // 2)
    sound = diagnose(patches, healthy=patches, noise=noise, query=middle[1:])
    figure, axes = plt.subplots(len(DISEASES), 5, figsize=(13, 8.2), layout="constrained")
    for row, disease in zip(axes, DISEASES, strict=True):
        ill, empty = put_in(disease.key, patches, noise)
        found = diagnose(ill, healthy=patches, noise=empty, query=middle[1:])
        row[0].imshow(image.permute(1, 2, 0))
        row[0].set_ylabel(disease.en, fontsize=11)
        panel(row[1], similarity(patches[None], middle)[0], (-1, 1), "similarity, as trained")
        panel(row[2], similarity(ill[None], middle)[0], (-1, 1), "similarity, disease put in")
        for axis, verdict, name in ((row[3], sound[disease.key], "as trained"), (row[4], found[disease.key], "put in")):
            panel(axis, verdict.picture, verdict.range, f"{name}: {verdict.state}, {verdict.value:.2f}")
        others = [key for key, verdict in found.items() if verdict.state == "present" and key != disease.key]
        print(f"{disease.key}: {found[disease.key].state}; others present: {', '.join(others) or 'none'}")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_title("scene", fontsize=9)
    figure.savefig(path, dpi=80)


def panel(axis: plt.Axes, values: Tensor, limits: tuple[float, float], title: str) -> None:
    axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap="cividis" if limits[0] == 0 else "PuOr_r")
    axis.set_title(title, fontsize=9)


def main() -> None:
    if not sys.argv[1:]:
        raise SystemExit("name one or more runs; the first one is drawn")
    torch.set_num_threads(1)
    runs, images = [Run(path) for path in sys.argv[1:]], scenes()
    print(
        "present/undecided/absent of",
        SCENES,
        "scenes, largest value |",
        " | ".join(disease.key for disease in DISEASES),
    )
    for run in runs:
        report(run, images)
    patches, noise = encode(runs[0], best_step(runs[0]), images)
    draw(images[SHOWN], patches[SHOWN], noise, DOCS / "images" / "diseases.png")


if __name__ == "__main__":
    main()
