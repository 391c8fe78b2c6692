"""The four things the renderer asks for, whatever host carries the question.

| name      | message        | answer                                                                            |
|-----------|----------------|-----------------------------------------------------------------------------------|
| `summary` | {}             | {run, probes, steps, series, events}; see `Summary`                               |
| `image`   | {index}        | {}, PNG bytes                                                                     |
| `probes`  | {step, dtype}  | {step}, safetensors of `encode_features`                                          |
| `basis`   | {}             | {steps, explained}, safetensors of `encode_basis`; no bytes while there is no basis |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

from workbench.views.encode import Transport


class Probes(TypedDict):
    """The pictures shown side by side."""

    count: int
    grid: tuple[int, int]
    """(H, W) in patches."""
    image: tuple[int, int]
    """(h, w) in pixels."""
    dim: int
    captions: list[dict[str, str]] | None
    """One {"en", "zh"} a picture; shown as plain text."""


class Summary(TypedDict):
    """Everything small."""

    run: dict[str, Any] | None
    """{"id", "name", "phase", "status", "steps"}; `steps`, optional, is the planned number."""
    probes: Probes | None
    """None while nothing is known of the pictures: the view says that it waits, and asks again at `revision`."""
    steps: list[int]
    """Steps that have features, rising."""
    series: Mapping[str, Mapping[str, Sequence[float | None]]]
    """{name: {"step": [...], "value": [...]}}, steps rising."""
    events: list[dict[str, Any]]
    """{"step", "level", "kind", "text"}, steps rising."""


class PayloadSource(Protocol):
    """Whatever a view can be drawn from."""

    def summary(self) -> Summary: ...

    def image(self, index: int) -> bytes:
        """PNG bytes of one picture."""
        ...

    def probes(self, step: int, dtype: Transport) -> bytes:
        """Features of all pictures at a step, from `encode_features`."""
        ...

    def basis(self) -> tuple[dict[str, Any], bytes | None]:
        """({"steps": fitted on, "explained": share of variance [3]}, bytes of `encode_basis`, or None if none yet).

        A source whose basis changed while its run grew also tells the steps at which it did, as "refits".
        """
        ...


def answer(source: PayloadSource, name: str, message: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The answer to one question of the renderer: (json, [bytes]). ValueError for a question there is not."""
    if name == "summary":
        return dict(source.summary()), []
    if name == "image":
        return {}, [source.image(int(message["index"]))]
    if name == "probes":
        step = int(message["step"])
        return {"step": step}, [source.probes(step, message.get("dtype", "int8"))]
    if name == "basis":
        info, data = source.basis()
        return info, [] if data is None else [data]
    raise ValueError(f"the renderer asks for summary, image, probes or basis, not {name!r}.")
