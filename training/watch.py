"""The detector in the loop: reads a run's own evaluations, writes what it finds as an event with its advice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from workbench.analysis.advice import Advice, advise, fork_command
from workbench.analysis.onset import Begun, Verdict, config_for, onset
from workbench.runs import Run, RunWriter

OnDegradation = Literal["none", "warn", "stop", "fork"]
PEAK, WARNING = "dense-peak", "dense-early-warning"
"""Kinds of the events; each is written once in a run."""


class Watch:
    """Looks at a run after each of its evaluations."""

    def __init__(self, writer: RunWriter, role: str, *, begun: Begun = "random") -> None:
        """`role`: the backbone that is evaluated. `begun`: what its first weights are."""
        self.writer, self.role, self.config = writer, role, config_for(begun)
        self.said = {str(event.get("kind")) for event in Run(writer.path).events()[0]}

    def look(self, step: int) -> bool:
        """Write an event if dense features have turned; True at the first evaluation that says they have peaked."""
        if PEAK in self.said:
            return False
        run = Run(self.writer.path)
        rows = [row for row in run.evaluations()[0] if row.get("backbone") == self.role]
        verdict = onset(rows, self.config)
        if verdict.state == "peaked":
            advice = advise(rows, verdict, run.steps(self.role), self.config)
            self._say(step, PEAK, *described(verdict, advice, str(self.writer.path), self.role))
            return True
        if verdict.early_warning and WARNING not in self.said:
            gauges = [turn.key for turn in verdict.gauges if turn.state == "peaked"]
            text = f"early warning: {', '.join(gauges)} have turned; scores with labels have not shown a decline"
            self._say(step, WARNING, text, {"gauges": gauges})
        return False

    def _say(self, step: int, kind: str, text: str, details: Mapping[str, Any]) -> None:
        self.writer.event(step, "warn", kind, text, details)
        self.said.add(kind)


def described(verdict: Verdict, advice: Advice | None, path: str, role: str) -> tuple[str, dict[str, Any]]:
    """(text, details) of a peak: where it was, how sure that is, the Gram teacher and the command that forks."""
    lead = verdict.turns[0]
    text = (
        f"{lead.key} peaked near step {verdict.peak_step} and has declined since step {verdict.since}: "
        f"{lead.peak:.3f} to {lead.now:.3f}, confidence {verdict.confidence:.3f}"
    )
    details: dict[str, Any] = {
        "peak_step": verdict.peak_step,
        "since": verdict.since,
        "confidence": verdict.confidence,
        "series": lead.key,
        "advised_step": None,
        "command": None,
    }
    if advice is None:
        return f"{text}; no published weights of a judged step are left to be a Gram teacher", details
    command = fork_command(path, advice.best.step, role)
    details |= {"advised_step": advice.best.step, "command": command}
    return f"{text}; {advice.reason()}", details
