"""Findings that nobody made: what the run doctor could say about the runs of these tests."""

from __future__ import annotations

from types import SimpleNamespace

from workbench.runs import Run

HOSTILE = '<b onclick="window.hit=3">bold</b>'


def finding(rule: str, level: str, **fields: object) -> SimpleNamespace:
    """A finding with the fields of the run doctor's."""
    about = {"metric": None, "steps": None, "source": "made up", "fix": {"en": "", "zh": ""}, **fields}
    return SimpleNamespace(rule=rule, level=level, **about)


def examine(run: Run) -> list[SimpleNamespace]:
    """Three findings about a run called "sick", one with markup for "hostile", a failure for "odd", else none."""
    if run.path.name == "odd":
        raise KeyError("a rule that fails")
    if run.path.name == "hostile":
        both = {"en": HOSTILE, "zh": HOSTILE}
        return [finding(HOSTILE, HOSTILE, title=both, text=both, fix=both, metric=HOSTILE, source=HOSTILE)]
    if run.path.name != "sick":
        return []
    return [
        finding(
            "koleo-negative",
            "fine",
            title={"en": "A negative KoLeo loss", "zh": "KoLeo 损失为负"},
            text={"en": "It is a logarithm of distances.", "zh": "它是距离的对数。"},
        ),
        finding(
            "dead-prototypes",
            "warn",
            title={"en": "Few prototypes are used", "zh": "使用的原型过少"},
            text={"en": "The loss falls while 3 of 64 are used.", "zh": "64 个原型中只用了 3 个。"},
            fix={"en": "python -m training pretrain --head.prototypes 32", "zh": "把原型数改为 32"},
            metric="loss/koleo",
            steps=(40, 60),
            source="https://example.invalid/issues/1",
        ),
        finding(
            "diverging",
            "error",
            title={"en": "The loss grows", "zh": "损失在增大"},
            text={"en": "From 4 to 9.", "zh": "从 4 增至 9。"},
        ),
    ]
