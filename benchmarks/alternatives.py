"""What else helps against the lab's induced stress? Gram, the DSE regulariser, stopping in time, averaging weights.

    make lab LAB_LIBRARY=PACK SEEDS="0 1 2"
    for seed in 0 1 2; do for weight in 1 10; do
        python -m training pretrain lab_induced --objective.dse-weight $weight --loop.steps 150 \\
            --seed $((seed + 200)) --start.fork run:runs/lab/seed$seed-induced@step=150 --data.library PACK \\
            --data.classes 14 --data.backgrounds 15 --run runs/lab/seed$seed-dse$weight
    done; done
    python benchmarks/alternatives.py runs/lab --seeds 0 1 2

Writes docs/alternatives.md: scores of the EMA teacher on fresh scenes, the same for every row.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from finished_runs import DOCS, FRESH, SHOWN, plan_of, score
from lab_chain import Lab
from lab_scores import SIZES
from torch import Tensor

from training.evaluation.plan import EvaluationPlan
from workbench.analysis.dse import DSEParts, choose_checkpoints, dse, dse_scores
from workbench.average import mean_network
from workbench.backbones import ConvNeXt, VisionTransformer
from workbench.features import Backbone
from workbench.images import normalize
from workbench.runs import Run
from workbench.scenes import Scenes

WITHIN, PUBLISHED, PLAIN = "health/within_variance", "DSE, lambda of the spreads", "DSE, lambda 1"
COLUMNS = SHOWN | {WITHIN: "within-image variance", PUBLISHED: PUBLISHED, PLAIN: PLAIN}
JUDGED = "dense/patch_knn"
NOTHING, GRAM = "stress goes on, nothing done", "stress goes on, Gram (weight 100, advised teacher)"
DSE_IMAGES = 64
"""Scenes for DSE, which depends on their number and on the grid."""
EVERY = 50
"""Steps between the checkpoints of a chain that DSE chooses among, as often as the anchor publishes."""

SETTING = """\
The stress is induced (see [degradation-lab-pack.md](degradation-lab-pack.md)); nothing here says how these measures do
against a decline that comes by itself. Arms of {cure} steps from the same stressed checkpoint, the stress still on; EMA
teachers on one draw of fresh scenes; mean ± standard error over {seeds} seed(s). "Gain" is patch k-NN less that of the
arm where nothing was done, paired by seed. The DSE paper's code adds its regulariser with lambda 1; weights of the term
above 10 were not tried, nor other weights of Gram than the 100 that the lab settled on. Stopping costs what training
would still have taught. The rows with the anchor's end know when the stress began; the detector and DSE do not.
DSE is that of {images} fresh scenes of {side} pixels; in the row of its own choice it is the largest of many on these
very scenes, and so too high."""

DSE_TEXT = """\
## What DSE says of the chain

Checkpoints every {every} steps of the anchor (steps {every} to {anchor}) and of the stressed arm after it, on the
{images} scenes of the table and on the run's probe images. Lambda of the spreads is the published rule, over all of
these checkpoints. Chosen: local maxima within two checkpoints, the best three, highest first; the first, on the scenes,
is the row "stopped at DSE's choice". The last column follows the rule on the anchor alone, before any stress. Steps
count from the anchor's first; the stress begins at {anchor}.

| images | seed | lambda | DSE at {anchor} | at {end} | lambda 1: at {anchor} | at {end} | chosen | anchor alone |
|---|---|---|---|---|---|---|---|---|
{rows}

So what DSE says of this decline depends on the images it is given: M_intra grows with the tokens of a cluster, so a
finer grid weighs it more, and M_dim is nearly saturated with few images. Compare at one grid and one number of images.
"""

Found = dict[str, dict[str, float]]
"""Row -> score -> value."""


class Chain(NamedTuple):
    """What DSE saw of one seed: the healthy anchor and the stressed arm after it."""

    places: list[tuple[str, int]]
    """(arm, step of that arm), in the order of training."""
    parts: list[DSEParts]
    anchors: int
    """How many of the places, the first ones, are the anchor's."""

    def at(self, place: tuple[str, int], offset: int) -> int:
        """The step counted from the anchor's first."""
        return place[1] + (offset if place[0] == "induced" else 0)


class Seed(NamedTuple):
    """One chain of the lab and what its rows are made from."""

    lab: Lab
    seed: int
    chain: Chain

    def run(self, name: str) -> Run:
        return Run(self.lab.path(name, self.seed))

    def mean(self, *parts: tuple[str, int]) -> Backbone:
        """The mean of the weights of checkpoints (arm, step)."""
        networks = {f"{arm} {step}": self.run(arm).backbone(step=step) for arm, step in parts}
        return mean_network({n: one for n, one in networks.items() if isinstance(one, VisionTransformer | ConvNeXt)})

    def last(self, count: int) -> list[tuple[str, int]]:
        """The last checkpoints of the stressed arm."""
        return [("induced", step) for step in self.run("induced").steps()[-count:]]

    def advised(self) -> tuple[str, int]:
        return self.lab.advised(self.seed)

    def chosen(self) -> tuple[str, int]:
        return self.chain.places[choose_checkpoints(dse_scores(self.chain.parts).values)[0]]

    def backbone(self, place: tuple[str, int]) -> Backbone:
        return self.run(place[0]).backbone(step=place[1])


ROWS: dict[str, Callable[[Seed], Backbone]] = {
    "stress, where the arms begin": lambda one: one.backbone(("induced", one.lab.fork)),
    NOTHING: lambda one: one.run("induced").backbone(),
    GRAM: lambda one: one.run("cured").backbone(),
    "stress goes on, DSE regulariser (weight 1)": lambda one: one.run("dse1").backbone(),
    "stress goes on, DSE regulariser (weight 10)": lambda one: one.run("dse10").backbone(),
    "stopped at the healthy anchor's end": lambda one: one.backbone(("healthy", one.lab.anchor)),
    "stopped at the step that the detector advises": lambda one: one.backbone(one.advised()),
    "stopped at DSE's choice": lambda one: one.backbone(one.chosen()),
    "mean of the weights of anchor's end and stressed end": lambda one: one.mean(
        ("healthy", one.lab.anchor), *one.last(1)
    ),
    "mean of the weights of the advised step and stressed end": lambda one: one.mean(one.advised(), *one.last(1)),
    "mean of the weights of the last five stressed checkpoints": lambda one: one.mean(*one.last(5)),
}


def main(folder: Path, /, seeds: tuple[int, ...] = (0, 1, 2), docs: Path = DOCS) -> None:
    """Measure the rows for `seeds` of the lab in `folder`, and write the page."""
    lab = Lab(folder=folder, seeds=seeds)
    chains, found = {}, {}
    for seed in seeds:
        chains[seed], found[seed] = measure(lab, seed)
    text = report(lab, chains, found)
    (docs / "alternatives.md").write_text(text, encoding="utf-8")
    print(text)


def measure(lab: Lab, seed: int) -> tuple[dict[str, Chain], Found]:
    """DSE of the chain by images, the scenes of the table first, and the scores of every row."""
    run = lab.run("healthy", seed)
    plan = plan_of(run, None)
    config = replace(plan.config, suite=replace(plan.config.suite, **SIZES))
    plan = EvaluationPlan(config, plan.scenes, patch_size=plan.patch_size)
    mean, std = (tuple(run.info["input"][name]) for name in ("mean", "std"))
    suite = plan.suite(mean, std, offset=FRESH)
    images = {name: normalize(some, mean, std) for name, some in (dse_scenes(plan), probes(run))}
    chains = {name: chain_of(lab, seed, some) for name, some in images.items()}
    scenes, chain = next(iter(images.values())), next(iter(chains.values()))
    weight, scores = dse_scores(chain.parts).dim_weight, {}
    for name, load in ROWS.items():
        backbone = load(Seed(lab, seed, chain))
        parts = parts_of(backbone, scenes)
        scores[name] = score(suite, backbone) | {PUBLISHED: float(parts.total(weight)), PLAIN: float(parts.total())}
    return chains, scores


def dse_scenes(plan: EvaluationPlan) -> tuple[str, Tensor]:
    """Name and images of scenes that neither a training nor a suite saw."""
    side = plan.config.suite.size
    scenes = Scenes(plan.known, replace(plan.config.scene, size=(side, side)), plan.scenes.seed + 7 * FRESH)
    images = torch.stack([scenes[index].image for index in range(DSE_IMAGES)])
    return f"{DSE_IMAGES} scenes, {side} px", images


def probes(run: Run) -> tuple[str, Tensor]:
    images = run.probe_images().images
    return f"{len(images)} probes, {images.shape[-1]} px", images


def chain_of(lab: Lab, seed: int, images: Tensor) -> Chain:
    steps = {"healthy": range(EVERY, lab.anchor + 1, EVERY), "induced": range(EVERY, lab.fork + lab.cure + 1, EVERY)}
    places = [(arm, step) for arm, of in steps.items() for step in of]
    parts = [parts_of(lab.run(arm, seed).backbone(step=step), images) for arm, step in places]
    return Chain(places, parts, len(steps["healthy"]))


def parts_of(backbone: Backbone, images: Tensor) -> DSEParts:
    with torch.no_grad():
        return dse(backbone.features(images).patches)


def report(lab: Lab, chains: dict[int, dict[str, Chain]], found: dict[int, Found]) -> str:
    assert __doc__ is not None
    commands = __doc__.partition("\n\n")[2].partition("\n\nWrites")[0]
    side = plan_of(lab.run("healthy", lab.seeds[0]), None).config.suite.size
    return "\n".join(
        [
            "# Alternatives to Gram, on the same induced stress",
            "",
            "<!-- Written by benchmarks/alternatives.py. -->",
            "",
            "```bash",
            *(line.removeprefix("    ") for line in commands.splitlines()),
            "```",
            "",
            SETTING.format(seeds=len(found), cure=lab.cure, images=DSE_IMAGES, side=side),
            "",
            *table(found),
            "",
            about_chains(lab, chains),
        ]
    )


def table(found: dict[int, Found]) -> list[str]:
    head = ["what was done", SHOWN[JUDGED] + " gain", *COLUMNS.values()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in ROWS:
        gains = [scores[name][JUDGED] - scores[NOTHING][JUDGED] for scores in found.values()]
        cells = [cell(gains, "+") if name != NOTHING else "0"]
        cells += [cell([scores[name][key] for scores in found.values()]) for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def about_chains(lab: Lab, chains: dict[int, dict[str, Chain]]) -> str:
    rows = []
    for images in next(iter(chains.values())):
        for seed, by_images in chains.items():
            chain = by_images[images]
            values, weight = dse_scores(chain.parts)
            ends = [chain.anchors - 1, -1]
            cells = [f"{values[end]:.3f}" for end in ends] + [f"{float(chain.parts[end].total()):.3f}" for end in ends]
            alone = dse_scores(chain.parts[: chain.anchors]).values
            cells += [
                ", ".join(str(chain.at(chain.places[i], lab.anchor)) for i in choose_checkpoints(some))
                for some in (values, alone)
            ]
            rows.append(f"| {images} | {seed} | {weight:.2f} | {' | '.join(cells)} |")
    end = lab.anchor + lab.fork + lab.cure
    return DSE_TEXT.format(images=DSE_IMAGES, every=EVERY, anchor=lab.anchor, end=end, rows="\n".join(rows))


def cell(values: list[float], sign: str = "") -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{sign}.3f} ± {error:.3f}"


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
