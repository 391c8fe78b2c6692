"""What else helps against the lab's induced stress? Gram, the DSE regulariser, stopping in time, averaging weights.

    make lab LAB_LIBRARY=PACK SEEDS="0 1 2"
    for seed in 0 1 2; do
        python -m training pretrain lab_induced --objective.dse-weight 1 --loop.steps 150 --seed $((seed + 200)) \\
            --start.fork run:runs/lab/seed$seed-induced@step=150 --data.library PACK --data.classes 14 \\
            --data.backgrounds 15 --run runs/lab/seed$seed-dse
    done
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

import torch
import tyro
from finished_runs import DOCS, FRESH, SHOWN, plan_of, score
from lab_chain import Lab
from lab_scores import SIZES

from training.evaluation.plan import EvaluationPlan
from workbench.analysis.dse import dse
from workbench.backbones import VisionTransformer
from workbench.features import Backbone
from workbench.images import normalize
from workbench.runs import Run

WITHIN = "health/within_variance"
COLUMNS = SHOWN | {WITHIN: "within-image variance"}


def averaged(lab: Lab, seed: int) -> Backbone:
    """The mean of the weights of the healthy anchor and of the stressed arm's last step."""
    parts = [lab.run("healthy", seed).backbone(step=lab.anchor), lab.run("induced", seed).backbone()]
    networks = [part for part in parts if isinstance(part, VisionTransformer)]
    states = [network.state_dict() for network in networks]
    networks[0].load_state_dict({name: torch.stack([s[name].float() for s in states]).mean(0) for name in states[0]})
    return networks[0]


SETTING = """\
The stress is induced (see [degradation-lab.md](degradation-lab.md)); nothing here says how these measures do against a
decline that comes by itself. Arms of 150 steps from the same stressed checkpoint, the stress still on; EMA teachers on
one draw of fresh scenes; mean ± standard error over {seeds} seed(s). One weight each: 1 is the DSE paper's
own and was not tuned, 100 what the lab settled on for Gram, so this favours Gram. Stopping costs what training
would still have taught."""
ROWS: dict[str, Callable[[Lab, int], Backbone]] = {
    "stress, where the arms begin": lambda lab, seed: lab.run("induced", seed).backbone(step=lab.fork),
    "stress goes on, nothing done": lambda lab, seed: lab.run("induced", seed).backbone(),
    "stress goes on, Gram (weight 100, advised teacher)": lambda lab, seed: lab.run("cured", seed).backbone(),
    "stress goes on, DSE regulariser (weight 1)": lambda lab, seed: Run(lab.path("dse", seed)).backbone(),
    "stopped at the healthy anchor": lambda lab, seed: lab.run("healthy", seed).backbone(step=lab.anchor),
    "mean of the weights of anchor and stressed end": averaged,
}


def main(folder: Path, /, seeds: tuple[int, ...] = (0, 1, 2), docs: Path = DOCS) -> None:
    """Measure the rows for `seeds` of the lab in `folder`, and write the page."""
    lab = Lab(folder=folder, seeds=seeds)
    found = {seed: measure(lab, seed) for seed in seeds}
    text = report(found)
    (docs / "alternatives.md").write_text(text, encoding="utf-8")
    print(text)


def measure(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    run = lab.run("healthy", seed)
    plan = plan_of(run, None)
    config = replace(plan.config, suite=replace(plan.config.suite, **SIZES))
    plan = EvaluationPlan(config, plan.scenes, patch_size=plan.patch_size)
    mean, std = (tuple(run.info["input"][name]) for name in ("mean", "std"))
    suite, probes = plan.suite(mean, std, offset=FRESH), run.probe_images().images
    scores = {}
    for name, load in ROWS.items():
        backbone = load(lab, seed)
        with torch.no_grad():
            features = backbone.features(normalize(probes, mean, std))
        scores[name] = score(suite, backbone) | {"dse": float(dse(features.patches).total())}
    return scores


def report(found: dict[int, dict[str, dict[str, float]]]) -> str:
    columns = COLUMNS | {"dse": "DSE, lambda 1"}
    lines = [f"| what was done | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for name in ROWS:
        cells = [cell([scores[name][key] for scores in found.values()]) for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    assert __doc__ is not None
    commands = __doc__.partition("\n\n")[2].partition("\n\nWrites")[0]
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
            SETTING.format(seeds=len(found)),
            "",
            *lines,
            "",
        ]
    )


def cell(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
