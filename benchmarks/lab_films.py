"""The lab's pictures: curves of all arms, and of each arm a strip and a film under one basis and one colour range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from finished_runs import INK
from lab_chain import ARMS, Lab
from PIL import Image, ImageDraw
from torch import Tensor

from workbench.analysis.pca import Basis, color_range, fit_pca, project, to_rgb
from workbench.analysis.similarity import similarity

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "healthy": "#0f172a",
    "control": "#64748b",
    "induced": "#e11d48",
    "cured": "#0d9488",
    "relieved": "#d97706",
    "late": "#7c3aed",
    "early": "#2563eb",
}
CURVES = {
    "dense/patch_knn": "patch k-NN",
    "dense/linear_miou": "linear-probe mIoU",
    "global/knn": "global k-NN",
    "health/within_variance": "within-image variance",
    "health/cls_patch_cosine": "cos(CLS, patch)",
    "loss/dino": "DINO loss",
}
PROBES = 4
"""How many probe images the films show; strips show the first two."""
COSINES = (-0.2, 1.0)
"""Range of the similarity maps' colours, everywhere."""
CELL, TEXT = 100, 22
"""Pixels, side of one picture and height of a line of text."""


class Frame(NamedTuple):
    """One moment of a film."""

    arm: str
    at: int
    """Steps since the first of the anchor."""
    patches: Tensor
    """[I, H, W, D] of the probe images."""


class Palette(NamedTuple):
    """What a colour means, for all arms and steps alike."""

    basis: Basis
    limits: Tensor
    """[3, 2]"""


def draw_all(lab: Lab, images: Path) -> None:
    """Write lab-curves.png, and of the first seed lab-ARM.png and lab-ARM.gif."""
    images.mkdir(parents=True, exist_ok=True)
    draw_curves(lab, images / "lab-curves.png")
    frames = {name: own_frames(lab, name) for name in ARMS}
    palette = fit_palette([frame for many in frames.values() for frame in many])
    probes = lab.run("healthy", lab.seeds[0]).probe_images()
    assert probes.masks is not None
    shown = probes.images[:PROBES]
    queries = [object_patch(mask, probes.patch_size) for mask in probes.masks[:PROBES]]
    for name in ARMS:
        film = life(lab, frames, name)
        write_strip(film, shown, palette, queries, images / f"lab-{name}.png")
        write_film([draw_frame(frame, shown, palette, queries) for frame in film], images / f"lab-{name}.gif")


def own_frames(lab: Lab, name: str) -> list[Frame]:
    """Of the first seed: the anchor in quarters, the others in thirds of a cure."""
    run, every = lab.run(name, lab.seeds[0]), (lab.anchor // 4 if name == "healthy" else lab.cure // 3)
    steps = [step for step in run.probe_steps() if step % every == 0]
    return [Frame(name, lab.begin(name) + step, run.probe_features(step).patches.float()) for step in steps]


def life(lab: Lab, frames: dict[str, list[Frame]], name: str) -> list[Frame]:
    """The arm's frames after those of its parent up to the fork, and so on back to the first weights."""
    parent = ARMS[name].parent
    if not parent:
        return frames[name]
    return [*(frame for frame in life(lab, frames, parent) if frame.at <= lab.begin(name)), *frames[name][1:]]


def fit_palette(frames: Sequence[Frame]) -> Palette:
    """One basis and one colour range, fitted on all arms and steps together."""
    tokens = torch.cat([frame.patches.flatten(0, 2) for frame in frames])
    basis = fit_pca(tokens)
    return Palette(basis, color_range(project(basis, tokens)))


def object_patch(mask: Tensor, patch_size: int) -> tuple[int, int]:
    """The patch at the middle of the largest object of a class mask [h, w]: the query of the similarity maps."""
    labels, counts = mask[mask > 0].unique(return_counts=True)
    inside = (mask == labels[counts.argmax()]).nonzero().float()
    middle = inside[(inside - inside.mean(dim=0)).square().sum(dim=1).argmin()] // patch_size
    return int(middle[0]), int(middle[1])


def maps_of(frame: Frame, palette: Palette, queries: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """PCA colours and similarity colours of as many probes as there are queries, each [P, H, W, 3] in [0, 1]."""
    patches = frame.patches[: len(queries)]
    cosines = torch.stack([similarity(patches, (image, *query))[image] for image, query in enumerate(queries)])
    low, high = COSINES
    colours = plt.get_cmap("viridis")(((cosines - low) / (high - low)).numpy())[..., :3]
    return to_rgb(project(palette.basis, patches), palette.limits), torch.from_numpy(colours).float()


def write_strip(
    film: Sequence[Frame], images: Tensor, palette: Palette, queries: Sequence[tuple[int, int]], path: Path
) -> None:
    """A column a step: PCA maps of two probes, then their similarity maps; the images stand at the left."""
    side = images.shape[-1] / film[0].patches.shape[2]
    pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images[:2]]
    columns = [[*pictures, *(dotted(image, query, side) for image, query in zip(pictures, queries, strict=False))]]
    for frame in film:
        columns.append([_bytes(maps[probe]) for maps in maps_of(frame, palette, queries) for probe in range(2)])
    canvas = Image.new("RGB", (CELL * len(columns), 4 * CELL + TEXT), "white")
    for number, column in enumerate(columns):
        paste_column(canvas, column, number * CELL, TEXT)
    for number, frame in enumerate(film, start=1):
        ImageDraw.Draw(canvas).text((number * CELL + 4, 5), f"step {frame.at}", fill=COLOURS[frame.arm])
    canvas.save(path, optimize=True)


def draw_frame(frame: Frame, images: Tensor, palette: Palette, queries: Sequence[tuple[int, int]]) -> Image.Image:
    """Images, PCA maps and similarity maps, a column a probe, and which arm and step it is."""
    pca, cosines = maps_of(frame, palette, queries)
    canvas = Image.new("RGB", (CELL * len(images), 3 * CELL + TEXT), "white")
    for number, image in enumerate(images):
        column = [image.permute(1, 2, 0).numpy(), _bytes(pca[number]), _bytes(cosines[number])]
        paste_column(canvas, column, number * CELL, 0)
    text = f"step {frame.at}  {ARMS[frame.arm].title}"
    ImageDraw.Draw(canvas).text((4, 3 * CELL + 5), text, fill=COLOURS[frame.arm])
    return canvas


def dotted(picture: np.ndarray, query: tuple[int, int], side: float) -> np.ndarray:
    """The picture [h, w, 3] with a red dot on the patch (row, column) of `side` pixels."""
    canvas, (row, column) = Image.fromarray(picture), query
    middle = ((column + 0.5) * side, (row + 0.5) * side)
    ImageDraw.Draw(canvas).circle(middle, side / 2, fill="#ef4444", outline="white")
    return np.asarray(canvas)


def paste_column(canvas: Image.Image, pictures: Sequence[np.ndarray], x: int, y: int) -> None:
    """Pictures [h, w, 3] uint8 below each other, each CELL pixels wide with a thin white edge."""
    for row, picture in enumerate(pictures):
        cell = Image.fromarray(picture).resize((CELL - 2, CELL - 2), Image.Resampling.NEAREST)
        canvas.paste(cell, (x + 1, y + row * CELL + 1))


def write_film(pictures: Sequence[Image.Image], path: Path) -> None:
    """A looping GIF, 0.6 seconds a step; the last one stays for 2 seconds."""
    durations = [600] * (len(pictures) - 1) + [2000]
    small = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
    small[0].save(path, save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)


def _bytes(colours: Tensor) -> np.ndarray:
    return (colours.numpy() * 255).round().astype(np.uint8)


def draw_curves(lab: Lab, path: Path) -> None:
    """A panel a score, a line an arm: mean over seeds, with a band of one standard error on either side."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.2), layout="constrained")
    for axis, (key, title) in zip(axes.flat, CURVES.items(), strict=True):
        for name, arm in ARMS.items():
            steps, values = series(lab, name, key)
            mean, error = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            axis.plot(steps, mean, color=COLOURS[name], linewidth=1.5, label=arm.title)
            axis.fill_between(steps, mean - error, mean + error, color=COLOURS[name], alpha=0.18, linewidth=0)
        axis.axvline(lab.anchor, color="#cbd5e1", linewidth=1, zorder=0)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("step, counted from the anchor's first")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def series(lab: Lab, name: str, key: str) -> tuple[list[int], np.ndarray]:
    """Steps from the anchor's first, and the values [seeds, steps] of a score or a loss along an arm."""
    values, steps = [], []
    for seed in lab.seeds:
        run = lab.run(name, seed)
        rows = run.metrics()[0] if key.startswith("loss/") else run.evaluations()[0]
        steps = [lab.begin(name) + row["step"] for row in rows]
        values.append([row[key] for row in rows])
    return steps, np.array(values)
