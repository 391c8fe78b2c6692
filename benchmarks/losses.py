"""How much faster and smaller are the loss kernels than the plain formulas?  python benchmarks/losses.py --seconds 90

Gram: loss and gradient by the student against the two-matrix form (normalise, X X^T twice, mean squared difference,
autograd). Heads: tokens [T, 384] through a student's and a teacher's projection head (384-2048-2048-256-K), Sinkhorn,
iBOT cross-entropy and backward, against the composition in use elsewhere (log_softmax in float32; Q = exp in K x T,
normalised in place three times; -(t * logp).sum). "logits" calls the same losses with logits that were multiplied out.

Time: process CPU time, variants take turns in one run, medians. Memory: each variant does one step in a process of its
own. Extra memory is the high-water mark of resident memory (VmHWM) minus the resident memory before the step, when
weights and inputs exist, minus the bytes of the gradients of weights and inputs that are left after it: what is needed
beside weights, inputs, outputs and their gradients. The kernel's mark is taken, not torch's profiler, because it also
counts buffers of the matrix library and pages that the allocator keeps. It is taken twice. "held": teacher
probabilities and student logits (for ours, the unit vectors before the prototypes) keep a name until backward is done,
as in a step that hands them from function to function and reads them afterwards; the goal is set for this one.
"dropped": each tensor is forgotten as soon as it was used, the least that the plain composition can do with.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from training.heads import HeadConfig, ProjectionHead
from training.losses import PrototypeLogits, gram_loss, ibot_loss, sinkhorn_knopp

GRAM_SIZES = ((196, 384), (256, 1024), (2304, 384))
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, CROPS, MIB = 0.1, 0.07, 16, 2**20
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-5  # relative; of gradients: worst entry over largest entry

Variant = Literal["plain", "logits", "ours"]
Keep = Callable[[Tensor], Tensor]
"""Returns its tensor, and may hold it until the step is over."""
Step = Callable[[], tuple[Tensor, list[Tensor]]]


def interleaved(calls: dict[str, Step], seconds: float) -> dict[str, float]:
    """Median CPU seconds of each call, taking turns for about `seconds` after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 5:
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    print(f"   {len(times['plain'])} rounds")
    return {name: statistics.median(values) for name, values in times.items()}


def report_times(times: dict[str, float]) -> None:
    for name, seconds in times.items():
        print(f"   {name:<7} {1000 * seconds:8.1f} ms   {times['plain'] / seconds:5.2f} x faster than plain")


def report_differences(calls: dict[str, Step]) -> None:
    """Loss and gradients of each call against the plain one."""
    loss, gradients = calls["plain"]()
    for name in calls.keys() - {"plain"}:
        mine, slopes = calls[name]()
        of_loss = ((mine - loss).abs() / loss.abs()).item()
        gaps = [(a - b).abs().max().item() for a, b in zip(slopes, gradients, strict=True)]
        relative = max(gap / b.abs().max().item() for gap, b in zip(gaps, gradients, strict=True))
        verdict = "within" if of_loss <= LOSS_TOLERANCE and relative <= GRADIENT_TOLERANCE else "NOT WITHIN"
        print(
            f"   {name:<7} loss {mine.item():.6g}, relative difference {of_loss:.1e}; gradients {max(gaps):.1e} "
            f"absolute, {relative:.1e} relative: {verdict} {LOSS_TOLERANCE:g} and {GRADIENT_TOLERANCE:g}"
        )


# ---- Gram


def two_matrices(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


def gram_steps(B: int, N: int, D: int) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(B, N, D, generator=generator)
    student = (teacher + 0.5 * torch.randn(B, N, D, generator=generator)).requires_grad_()

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = loss(student, teacher)
        return value.detach(), list(torch.autograd.grad(value, student))

    return {"plain": lambda: step(two_matrices), "ours": lambda: step(gram_loss)}


# ---- heads, Sinkhorn, cross-entropy


class Heads(NamedTuple):
    student: ProjectionHead
    teacher: ProjectionHead
    seen: Tensor
    """Student tokens [T, 384]; they require a gradient."""
    whole: Tensor
    """Teacher tokens [T, 384]."""


def heads(tokens: int, prototypes: int) -> Heads:
    """Both heads; the prototypes are so long that logits have a standard deviation of about 0.25."""
    generator = torch.Generator().manual_seed(0)
    pair = [ProjectionHead(384, HeadConfig(prototypes=prototypes)) for _ in range(2)]
    for head in pair:
        head.init_weights(generator, std=None)
        head.prototypes().detach().mul_(4)
    seen, whole = (torch.randn(tokens, 384, generator=generator) for _ in range(2))
    return Heads(pair[0], pair[1].requires_grad_(False), seen.requires_grad_(), whole)


def plain_loss(parts: Heads, keep: Keep) -> Tensor:
    with torch.no_grad():
        Q = torch.exp(parts.teacher(parts.whole).float() / TEACHER_TEMPERATURE).t()
        K, T = Q.shape
        Q /= Q.sum()
        for _ in range(3):
            Q /= Q.sum(dim=1, keepdim=True)
            Q /= K
            Q /= Q.sum(dim=0, keepdim=True)
            Q /= T
        Q *= T
    logp = F.log_softmax(keep(parts.student(parts.seen)).float() / STUDENT_TEMPERATURE, dim=-1)
    return -(keep(Q.t()) * logp).sum(-1).mean()


def loss_of_logits(parts: Heads, keep: Keep) -> Tensor:
    targets = keep(sinkhorn_knopp(parts.teacher(parts.whole), TEACHER_TEMPERATURE))
    return ibot_loss(keep(parts.student(parts.seen)), targets, masks(parts), student_temperature=STUDENT_TEMPERATURE)


def our_loss(parts: Heads, keep: Keep) -> Tensor:
    student, teacher, seen, whole = parts
    targets = keep(sinkhorn_knopp(PrototypeLogits(teacher.embed(whole), teacher.prototypes()), TEACHER_TEMPERATURE))
    logits = PrototypeLogits(keep(student.embed(seen)), student.prototypes())
    return ibot_loss(logits, targets, masks(parts), student_temperature=STUDENT_TEMPERATURE)


def masks(parts: Heads) -> Tensor:
    """As if the tokens were the masked patches of 16 crops, equally many in each."""
    return torch.ones(CROPS, len(parts.seen) // CROPS, dtype=torch.bool)


LOSSES: dict[Variant, Callable[[Heads, Keep], Tensor]] = {
    "plain": plain_loss,
    "logits": loss_of_logits,
    "ours": our_loss,
}


def head_steps(parts: Heads, *, held: bool = True) -> dict[str, Step]:
    def step(loss: Callable[[Heads, Keep], Tensor]) -> tuple[Tensor, list[Tensor]]:
        named: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            if held:
                named.append(x)
            return x

        value = loss(parts, keep)
        return value.detach(), list(torch.autograd.grad(value, [parts.seen, *parts.student.parameters()]))

    return {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}


# ---- memory


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes: memory in use by this process now, or the most it ever was (Linux)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {field}: memory is measured on Linux only"
    return 1024 * int(found.group(1))


def extra_memory(variant: Variant, tokens: int, prototypes: int, *, held: bool) -> int:
    """Bytes that one step of this variant needs beside weights, inputs and gradients; for a process of its own."""
    parts = heads(tokens, prototypes)
    few = parts._replace(seen=parts.seen[:CROPS].detach().requires_grad_(), whole=parts.whole[:CROPS])
    head_steps(few)[variant]()  # libraries make their lasting buffers
    before = resident("VmRSS")
    _, gradients = head_steps(parts, held=held)[variant]()
    return resident("VmHWM") - before - sum(x.nbytes for x in gradients)


def report_memory(threads: int, tokens: int, prototypes: int) -> None:
    for way in ("held", "dropped"):
        extra = {}
        for variant in LOSSES:
            options = ["--memory-of", variant, f"--{'' if way == 'held' else 'no-'}held", f"--threads={threads}"]
            options += [f"--tokens={tokens}", f"--prototypes={prototypes}"]
            command = [sys.executable, __file__, *options]
            extra[variant] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, value in extra.items():
            print(f"   {name:<7} {value / MIB:8.1f} MiB extra   {value / extra['plain']:5.2f} x plain   {way}")


def main(
    seconds: float = 90.0, threads: int = 1, tokens: int = 512, prototypes: int = 65536,
    memory_of: Variant | None = None, held: bool = True,
) -> None:  # fmt: skip
    """Print ratios, differences and memory.

    Args:
        seconds: time for all timings together.
        threads: torch threads.
        tokens: rows of both heads, a multiple of 16.
        prototypes: K, columns of the logits.
        memory_of: only print the extra bytes of one variant; this script calls itself so.
        held: with memory_of, named tensors live until backward is done.
    """
    torch.set_num_threads(threads)
    if memory_of:
        print(extra_memory(memory_of, tokens, prototypes, held=held))
        return
    print(f"torch {torch.__version__}, {threads} thread(s), float32; CPU time, forward and backward, median")
    for N, D in GRAM_SIZES:
        print(f"Gram loss, B=2, {N} patches x {D} channels; goal 1.6 x at the first two sizes")
        steps = gram_steps(2, N, D)
        report_times(interleaved(steps, seconds / 6))
        report_differences(steps)
    print(
        f"Heads, Sinkhorn and cross-entropy, {tokens} tokens x {prototypes} prototypes; goals 1.4 x and, held, 0.40 x"
    )
    steps = head_steps(heads(tokens, prototypes))
    report_times(interleaved(steps, seconds / 2))
    report_differences(steps)
    report_memory(threads, tokens, prototypes)


if __name__ == "__main__":
    tyro.cli(main)
