"""What does the backbone that ships with the workbench know of things it never saw? Writes it, its card and its page.

    python -m training pretrain cpu_backbone --data.library PACK --run runs/backbone
    python benchmarks/backbone.py runs/backbone

Writes workbench/weights/demo (weights in float16, config, model card) from the last step of the run, then measures
those very files against the same network at step 0 and raw pixels, on scenes and pictures of held-out identities, and
writes docs/demo-backbone.md with its pictures. Needs the pack that the run was trained on.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from finished_runs import DOCS, FRESH, INK, draw_rows, fresh_suite, plan_of, plt, scene_config, score
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.evaluation.plan import EvaluationPlan
from training.evaluation.raw_pixels import RawPixels
from training.evaluation.retrieval import retrieval
from workbench.analysis.pca import color_range, fit_pca, project, to_rgb
from workbench.analysis.similarity import similarity
from workbench.backbones.load import DEMO_FOLDER
from workbench.export import export_backbone
from workbench.features import Backbone
from workbench.images import normalize
from workbench.loading import load_backbone
from workbench.runs import Run
from workbench.scenes import Library, Scenes

SHOWN = {
    "known/patch_knn": "patch k-NN, known",
    "held-out/patch_knn": "patch k-NN, held out",
    "held-out/recall@1": "recall@1, held out",
    "held-out/mAP": "mAP, held out",
}
VIEWS = 10
"""Pictures of an identity, on average, in the retrieval test."""
PICTURES, PICTURE_SIDE = 6, 224
CURVES = {"dense/patch_knn": "patch k-NN", "dense/linear_miou": "linear-probe mIoU", "global/knn": "global k-NN"}

Scores = dict[str, dict[str, float]]


class Views(NamedTuple):
    """Pictures of one large object each."""

    images: Tensor
    """uint8 [N, 3, h, w]."""
    identities: Tensor
    """int64 [N]."""
    names: tuple[str, ...]


def main(run: Path, /, *, step: int | None = None, docs: Path = DOCS, folder: Path = DEMO_FOLDER) -> None:
    """Export the backbone of a finished run of cpu_backbone, measure it, and write its card and page.

    Args:
        step: which published step; the last one if not given.
    """
    opened = Run(run)
    if opened.info["recipe"] != "cpu_backbone":
        raise SystemExit(f"{run} is a run of {opened.info['recipe']!r}; name one of cpu_backbone")
    step = opened.steps()[-1] if step is None else step
    plan = plan_of(opened)
    if plan.held_out is None:
        raise SystemExit(f"{run} held no identity out of training, so nothing unseen is left to measure")
    export(run, step, folder)
    scores = measure(opened, plan, folder)
    page = "\n".join([*table(scores), "", *setting(opened, plan, step)])
    write_card(folder, plan, page)
    (docs / "images").mkdir(parents=True, exist_ok=True)
    draw_curves(opened, docs / "images" / "demo-backbone-curves.png")
    draw_pictures(load_backbone(f"hf:{folder}"), held_out_views(plan, PICTURE_SIDE), opened, docs)
    (docs / "demo-backbone.md").write_text(report(page), encoding="utf-8")
    print(page)


def export(run: Path, step: int, folder: Path) -> None:
    """The export for transformers, with its tensors in float16."""
    export_backbone(f"run:{run}@step={step}", folder, overwrite=True)
    tensors = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(run: Run, plan: EvaluationPlan, folder: Path) -> Scores:
    """Scores by row of the table."""
    known, held_out = fresh_suite(run, plan, "known"), fresh_suite(run, plan, "held-out")
    views = held_out_views(plan, plan.config.suite.size)
    rows: Scores = {}
    for name, backbone in {
        "demo backbone (the files, float16 read as float32)": load_backbone(f"hf:{folder}"),
        "the same network at step 0 (random)": run.backbone(step=0),
        "raw pixels": RawPixels(plan.patch_size),
    }.items():
        found = retrieval(image_vectors(backbone, views.images, run), views.identities)
        rows[name] = {
            "known/patch_knn": score(known, backbone)["dense/patch_knn"],
            "held-out/patch_knn": score(held_out, backbone)["dense/patch_knn"],
            "held-out/recall@1": found.recall_at_1,
            "held-out/mAP": found.mean_average_precision,
        }
    return rows


def held_out_views(plan: EvaluationPlan, side: int) -> Views:
    """New pictures of single objects of held-out identities, of `side` pixels."""
    assert plan.held_out is not None
    config = scene_config({**vars(plan.config.scene), "size": (side, side)})
    scenes = Scenes(plan.held_out, config, plan.scenes.seed + FRESH + 7)
    names = sorted({item.identity for item in plan.held_out.cutouts})
    drawn = [scenes.single(index) for index in range(VIEWS * len(names))]
    identities = torch.tensor([names.index(scene.identities[0]) for scene in drawn])
    return Views(torch.stack([scene.image for scene in drawn]), identities, tuple(names))


@torch.no_grad()
def image_vectors(backbone: Backbone, images: Tensor, run: Run) -> Tensor:
    """[N, D]: class tokens, a batch at a time; of raw pixels all of them, a stronger baseline than their mean patch."""
    parts = [backbone.features(pixels(part, run)) for part in images.split(64)]
    whole = isinstance(backbone, RawPixels)
    return torch.cat([part.patches.flatten(1) if whole else part.cls for part in parts])


def pixels(images: Tensor, run: Run) -> Tensor:
    normalisation = run.info["input"]
    return normalize(images, tuple(normalisation["mean"]), tuple(normalisation["std"]))


def table(scores: Scores) -> list[str]:
    """The scores as Markdown."""
    lines = [f"| features | {' | '.join(SHOWN.values())} |", f"|---|{'---|' * len(SHOWN)}"]
    return lines + [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in SHOWN)} |" for name, row in scores.items()]


def setting(run: Run, plan: EvaluationPlan, step: int) -> list[str]:
    """What the numbers were measured on."""
    assert plan.held_out is not None
    identities = len({item.identity for item in plan.held_out.cutouts})
    sizes, seconds = plan.config.suite, run.metrics()[0][-1]["seconds"]
    return [
        f"Step {step} of one run (seed {run.info['seed']}), {seconds / 60:.0f} minutes by the clock on one CPU thread. "
        f"Training drew {len(plan.known.cutouts)} cut-outs of {len(plan.known.present)} categories; {identities} "
        "identities were held out. Patch k-NN: "
        f"{sizes.test_scenes} new scenes, neighbours from {sizes.train_scenes} others of known identities, chance "
        f"{1 / len(plan.known.present):.3f}. Retrieval: {VIEWS * identities} new pictures of held-out identities, each "
        "asks for the others of the same thing by its class token (raw pixels: all of its pixels); chance of recall@1 "
        f"{1 / identities:.3f}. One seed: differences below about 0.03 are not told apart.",
    ]


def licences(*libraries: Library) -> list[str]:
    """How many pictures of which licence, as Markdown."""
    items = {item.name: item.licence for library in libraries for item in (*library.cutouts, *library.backgrounds)}
    rows = sorted(Counter(items.values()).items(), key=lambda row: -row[1])
    return ["| licence, as its source states it | pictures |", "|---|---|", *(f"| {text} | {n} |" for text, n in rows)]


def write_card(folder: Path, plan: EvaluationPlan, page: str) -> None:
    """The export's card, completed: what it was trained on, what it is worth, what it is not for, its terms."""
    path = folder / "README.md"
    made, _, _ = path.read_text(encoding="utf-8").partition("## Licence")
    parts = [
        made.rstrip(),
        "## What it is worth\n\n" + page,
        "## What it was trained on\n\nScenes drawn from a pack of cut-outs and backgrounds; none is part of these "
        "files. Pictures whose rights are unclear or not itemised took no part.\n\n" + "\n".join(licences(plan.known)),
        "## What it is not for\n\nIt is half a million parameters and half an hour of CPU: a first look at the "
        "workbench without any download. It knows colours, textures and outlines of some two hundred cut-outs; for "
        "patches of things that it never saw it is no better than raw pixels. Compare nothing with it but its own "
        "step 0.",
        "## Licence\n\nThe weights are offered under the Apache License 2.0, as this repository.",
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def report(page: str) -> str:
    """docs/demo-backbone.md."""
    assert __doc__ is not None
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith("    python")]
    return "\n".join(
        [
            "# The backbone in the box",
            "",
            "<!-- Written by benchmarks/backbone.py. -->",
            "",
            '`load_backbone("demo")`: weights of our own, so that everything can be tried without a download. Card and '
            "files: workbench/weights/demo.",
            "",
            "```bash",
            *commands,
            "```",
            "",
            page,
            "",
            "![Scores over training](images/demo-backbone-curves.png)",
            "",
            "Six pictures of things it never saw. PCA: one basis and one colour range for all six. Similarity to the "
            "patch in the middle, from -1 (dark) to 1 (bright), the same for all.",
            "",
            "![PCA and similarity maps of six pictures](images/demo-backbone-maps.png)",
            "",
        ]
    )


def draw_curves(run: Run, path: Path) -> None:
    """Three panels over training steps."""
    rows = run.evaluations()[0]
    figure, axes = plt.subplots(1, len(CURVES), figsize=(10.5, 2.8), layout="constrained")
    for axis, (key, title) in zip(axes, CURVES.items(), strict=True):
        axis.plot([row["step"] for row in rows], [row[key] for row in rows], color="#0d9488", linewidth=1.6)
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


@torch.no_grad()
def draw_pictures(backbone: Backbone, views: Views, run: Run, docs: Path) -> None:
    """Images, PCA maps under one basis, and the similarity to the patch in the middle with a fixed range."""
    firsts = [int((views.identities == i).nonzero()[0]) for i in views.identities.unique()]
    images = views.images[firsts[:: max(1, len(firsts) // PICTURES)][:PICTURES]]
    patches = backbone.features(pixels(images, run)).patches
    projected = project(fit_pca(patches.flatten(0, 2)), patches)
    row, column = patches.shape[1] // 2, patches.shape[2] // 2
    cosines = torch.stack([similarity(patches, (i, row, column))[i] for i in range(len(patches))])
    shades = torch.from_numpy(plt.get_cmap("viridis")(((cosines + 1) / 2).clamp(0, 1).numpy())[..., :3])
    rows = {
        "images": images.permute(0, 2, 3, 1) / 255,
        "PCA": to_rgb(projected, color_range(projected)),
        "similarity": shades,
    }
    draw_rows(rows, docs / "images" / "demo-backbone-maps.png")


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
