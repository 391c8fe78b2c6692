"""The page docs/ingredients.md, as a pure function of the record that `benchmarks/ingredients.py` writes."""

from __future__ import annotations

from typing import Any

from finished_runs import SHOWN

QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Seeds -> Student's t at 97.5 %: the half width of a 95 % interval, in standard errors of the mean."""
OTHERS = {
    "health/near_cosine": "cosine of near patches",
    "health/far_cosine": "cosine of far patches",
    "health/within_variance": "within-image variance",
    "health/cls_patch_cosine": "cosine of class token and patches",
    "health/effective_rank": "effective rank",
    "teacher/entropy": "entropy of a target / ln K",
    "teacher/prototypes_used": "prototypes used",
    "loss/koleo": "KoLeo term",
}
"""Columns of the second table, none of them a score."""
SETTING = """\
The base is `{recipe}` on the built-in scenes: DINO with Sinkhorn-Knopp, iBOT at 0.3, KoLeo at 0.1, a ViT of 0.46 M
parameters with neither registers nor RoPE augmentation. Three ingredients are taken out of it or replaced; registers
and RoPE rescale, which it has not, are put in. {steps} steps of {batch_size} images, seeds {seeds}, one field of the
config changed, the rest of it equal (the script refuses any other run). EMA teachers, on scenes that no training saw:
{test_scenes} for the dense scores, {queries} single objects for global k-NN, the same for every run, so that their
choice is in no error below. {identities} identities of {classes} categories; chance is {chance:.3f} for both k-NN.

A difference is that to the base run *of the same seed*: mean ± standard error over seeds. With {count} seeds an
interval of 95 % reaches {quantile} standard errors to both sides; only where it leaves out zero is the difference
**bold**, and called more than noise. Even if nothing had any effect, about one cell in twenty would be bold. What is
not bold is *not shown to be zero*: an effect smaller than those intervals cannot be seen here."""
LIMITS = """\
One tiny network, {steps} steps, crops of 48 pixels, drawn scenes. The papers brought these ingredients in for other
sizes and lengths: registers against high-norm tokens (the base has none); rescale for resolutions never trained on;
Gram anchoring, which is not in this comparison, for long runs ([degradation-lab.md](degradation-lab.md) has an induced
stand-in). A line above says what happened *here*; none of it ranks the ingredients. Centering at the learning rate of
the base is not the DINO of [objectives.md](objectives.md) either, which has settings of its own. No weight was tuned
for this comparison."""


def page(record: dict[str, Any]) -> str:
    """The page as Markdown."""
    variants, quantile = record["variants"], QUANTILES[len(record["seeds"])]
    changed = {name: variant for name, variant in variants.items() if variant["difference"]}
    big = [key for key in next(iter(variants.values()))["values"] if " px " in key]
    size, large = record["sizes"]["size"], big[0].split(" px ")[0]
    lines = [
        "# What each ingredient does here, one change at a time",
        "",
        "<!-- Written by benchmarks/ingredients.py from workbench/recorded/ingredients.json. -->",
        "",
        "```bash",
        "python benchmarks/ingredients.py runs/ingredients    # trains what is missing, evaluates, writes this page",
        "```",
        "",
        setting(record, quantile),
        "",
        "The notebook `notebooks/from_dino_to_dinov3.ipynb` shows these figures beside what each does in one step.",
        "",
        "## Differences to the base",
        "",
        *difference_table(changed, {key: f"{SHOWN[key]}, {size} px" for key in SHOWN}, quantile),
        "",
        f"The same networks on scenes of {large} pixels, a grid of twice the side:",
        "",
        *difference_table(changed, {key: f"{SHOWN[key.split(' px ')[1]]}, {large} px" for key in big}, quantile),
        "",
        "In words:",
        "",
        *(verdict(variant, quantile) for variant in changed.values()),
        "",
        "Not scores: gauges of the features on the same scenes, and what training recorded over the last 100 steps.",
        "",
        *difference_table(changed, OTHERS, quantile),
        "",
        "## The values themselves",
        "",
        *value_table(
            {"the base at step 0 (random)": record["step 0"]} | {v["title"]: v["values"] for v in variants.values()}
        ),
        "",
        "## What this does not say",
        "",
        LIMITS.format(**record),
        "",
    ]
    return "\n".join(lines)


def setting(record: dict[str, Any], quantile: float) -> str:
    chance, seeds = 1 / record["classes"], record["seeds"]
    words = record | record["sizes"] | {"chance": chance, "quantile": quantile, "count": len(seeds)}
    return SETTING.format(**words | {"seeds": ", ".join(map(str, seeds))})


def clear(entry: dict[str, Any], quantile: float) -> bool:
    """Whether zero is outside the interval of 95 %; three equal differences have no error and prove nothing."""
    return entry["se"] > 0 and abs(entry["mean"]) > quantile * entry["se"]


def difference_table(changed: dict[str, Any], columns: dict[str, str], quantile: float) -> list[str]:
    lines = [f"| changed | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for variant in changed.values():
        cells = []
        for key in columns:
            entry = variant["difference"][key]
            text = f"{signed(entry['mean'])} ± {entry['se']:.3f}"
            cells.append(f"**{text}**" if clear(entry, quantile) else text)
        lines.append(f"| {variant['title']} | {' | '.join(cells)} |")
    return lines


def value_table(rows: dict[str, Any]) -> list[str]:
    """Mean of each score with its smallest and largest seed."""
    lines = [f"| features | {' | '.join(SHOWN.values())} |", f"|---|{'---|' * len(SHOWN)}"]
    for title, values in rows.items():
        cells = [
            f"{values[key]['mean']:.3f} ({min(values[key]['seeds']):.3f}–{max(values[key]['seeds']):.3f})"
            for key in SHOWN
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def verdict(variant: dict[str, Any], quantile: float) -> str:
    """One line about an ingredient: which scores moved by more than noise, and between what bounds the others lie."""
    entries = {SHOWN[key]: variant["difference"][key] for key in SHOWN}
    moved = [f"{name} by {signed(e['mean'])}" for name, e in entries.items() if clear(e, quantile)]
    kept = {name: e for name, e in entries.items() if not clear(e, quantile)}
    said = f"moved {' and '.join(moved)}, more than noise" if moved else "no score moved by more than noise"
    bounds = ", ".join(
        f"{name} ({agreement(e['seeds'])}; up to ±{reach(e, quantile):.3f} possible)" for name, e in kept.items()
    )
    return f"- {variant['title']}: {said}." + (f" Within noise: {bounds}." if kept else "")


def reach(entry: dict[str, Any], quantile: float) -> float:
    """The end of the interval that is farther from zero."""
    return abs(entry["mean"]) + quantile * entry["se"]


def agreement(values: list[float]) -> str:
    down, count = sum(value < 0 for value in values), len(values)
    if down in (0, count):
        return f"all seeds {'down' if down else 'up or equal'}"
    return "seeds disagree"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
