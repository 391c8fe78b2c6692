"""Batches as a pure function of (seed, step), made in this process or ahead of time in worker processes.

Nothing here has state worth saving: a run that stops after `step` optimizer steps goes on with `iterate(step, ...)`.
Order, crops and masks are drawn for the whole global batch and each rank renders its slice, so a change of the number
of ranks or workers changes no pixel.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.augment import AugmentConfig, MultiCrop
from training.data.masking import MaskConfig, block_masks
from training.data.mixing import ResolutionMix
from training.data.order import sample_index
from training.data.sources import ImageSource

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How batches are put together."""

    batch_size: int = 32
    """Images per step, over all ranks."""
    workers: int = 1
    """Processes that make batches ahead of time; 0 makes them in the training process. Never changes a batch."""
    prefetch: int = 2
    """Finished batches each worker may hold."""
    seed: int = 0
    """Fixes order, crops and masks."""

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"BatchConfig.{name} is {getattr(self, name)}; the smallest allowed is {lowest}.")


class Batch(NamedTuple):
    """One rank's share of a step: B images, G global and L local crops of each, crop-major (row crop * B + sample)."""

    globals_: Tensor
    """[G*B, 3, g, g] float32, normalised"""
    locals_: Tensor
    """[L*B, 3, l, l] float32, normalised"""
    masks: Tensor
    """[G*B, H, W] bool: the patches of the global crops hidden from the student; row 0 is the top"""
    indices: Tensor
    """[B] int64: which images of the source"""
    step: int
    """Optimizer steps done before this one"""
    load_seconds: float
    """Time it took to make, in whatever process that was"""
    gram: Tensor = torch.empty(0, 3, 0, 0)
    """[G*B, 3, gg, gg] float32, normalised: the global crops for a Gram teacher; [0, 3, 0, 0] when it needs none"""


class BatchStream:
    """Batches of a source, step by step.

    `rank` of `world` processes gets images rank * b to (rank + 1) * b of every global batch, b = batch_size / world.
    With `mask_config` None no patch is masked. With a `mix` the sizes of the crops change from step to step, for all
    ranks alike. Raises ValueError for crop sizes that are not multiples of `patch_size`, for a batch that ranks cannot
    share evenly and for an empty source.
    """

    def __init__(
        self,
        source: ImageSource,
        multicrop: MultiCrop,
        mask_config: MaskConfig | None,
        patch_size: int,
        config: BatchConfig,
        *,
        mix: ResolutionMix | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(source) == 0:
            raise ValueError("The data source holds no images; choose a folder with images, or a count above 0.")
        if not 0 <= rank < world or config.batch_size % world:
            raise ValueError(
                f"Rank {rank} of {world} cannot take an even share of batch_size {config.batch_size}; "
                f"batch_size must be a multiple of the number of ranks, and ranks count from 0."
            )
        self.source = source
        self.mix = mix or ResolutionMix()
        self.multicrops = tuple(MultiCrop(config) for config in self.mix.variants(multicrop.config))
        self.grids = tuple(_grid(each.config, patch_size) for each in self.multicrops)
        self.mask_config = mask_config
        self.config = config
        self._share = config.batch_size // world
        self._start = rank * self._share
        self._bad: dict[tuple[str, str], None] = {}

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of every file that was found unreadable so far, here or in a worker, and replaced."""
        self._bad.update(dict.fromkeys(self.source.bad))
        return tuple(self._bad)

    def batch_at(self, step: int) -> Batch:
        """The batch of `step`, a pure function of (seed, step); bit-identical for any number of threads."""
        began = time.perf_counter()
        size, start, stop = self.config.batch_size, self._start, self._start + self._share
        positions = range(step * size + start, step * size + stop)
        indices = [sample_index(self.config.seed, position, len(self.source)) for position in positions]
        with _one_thread():
            variant = self.mix.draw(generator_for(self.config.seed, "resolution", step))
            multicrop = self.multicrops[variant]
            draws = multicrop.draw(size, generator_for(self.config.seed, "crops", step))
            crops = multicrop.render([self.source[index] for index in indices], draws.samples(start, stop))
            masks = self._masks(step, multicrop.config.global_crops, self.grids[variant])
        seconds = time.perf_counter() - began
        return Batch(crops.globals_, crops.locals_, masks, torch.tensor(indices), step, seconds, crops.gram)

    def iterate(self, start_step: int, total_steps: int) -> Iterator[Batch]:
        """The batches of steps start_step to total_steps - 1, in order.

        Closing the iterator (or dropping it) ends the workers, which pay no attention to SIGTERM and SIGINT, so that
        a trainer asked to stop can still finish its step. Raises what the source raises.
        """
        if self.config.workers == 0:
            yield from (self.batch_at(step) for step in range(start_step, total_steps))
            return
        others = set(multiprocessing.active_children())
        with _signals_blocked(), _sigchld_unchanged():
            results = iter(self._loader(range(start_step, total_steps)))
        workers = set(multiprocessing.active_children()) - others
        try:
            for batch, bad in results:
                self._bad.update(dict.fromkeys(bad))
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            del results  # the loader sends its workers home, when nobody else holds it
            _end(workers)

    def _loader(self, steps: range) -> DataLoader:
        """A loader that maps steps to batches; its private generator leaves the global one alone."""
        watched = threading.current_thread() is threading.main_thread()
        return DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=steps,
            num_workers=min(self.config.workers, max(len(steps), 1)),
            prefetch_factor=self.config.prefetch,
            collate_fn=_unchanged,
            worker_init_fn=functools.partial(_settle_worker, os.getpid() if watched else None),
            generator=torch.Generator(),
        )

    def _masks(self, step: int, crops: int, grid: tuple[int, int]) -> Tensor:
        """This rank's masks [G*B, H, W] of the step, for `crops` global crops of each image."""
        size = self.config.batch_size
        if self.mask_config is None:
            return torch.zeros(crops * self._share, *grid, dtype=torch.bool)
        generator = generator_for(self.config.seed, "masks", step)
        masks = block_masks(crops * size, grid, self.mask_config, generator)
        return masks.unflatten(0, (crops, size))[:, self._start : self._start + self._share].flatten(0, 1)


class _Steps(Dataset):
    """The stream as a map from step to (batch or what the source raised, bad files so far)."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> tuple[Batch | Exception, tuple[tuple[str, str], ...]]:
        try:
            batch = self.stream.batch_at(step)
        except (ValueError, OSError) as error:  # raised again, untouched, in the training process
            return error, self.stream.bad
        return batch, self.stream.bad


def generator_for(seed: int, purpose: str, step: int) -> torch.Generator:
    """A CPU generator for one purpose of one step, seeded by a hash of all three (the same on every platform)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _grid(config: AugmentConfig, patch_size: int) -> tuple[int, int]:
    """(H, W) patches of a global crop."""
    for name in ("global_size", "local_size", "gram_size"):
        size = getattr(config, name)
        if size is not None and size % patch_size:
            below = size // patch_size * patch_size
            nearest = f"{below} or {below + patch_size}" if below else str(patch_size)
            raise ValueError(
                f"AugmentConfig.{name} is {size} pixels, no multiple of the patch size {patch_size}; choose {nearest}."
            )
    side = config.global_size // patch_size
    return side, side


def _end(workers: set[BaseProcess]) -> None:
    """End what the loader left running: its own last word is SIGTERM, which workers ignore. They hold no state."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _unchanged(item: object) -> object:
    return item


def _settle_worker(parent: int | None, _: int) -> None:
    """Start of a worker: leave signals to the trainer, use one thread, and die with the process `parent`.

    The kernel's death signal follows the *thread* that forked, so it is asked for only when that was the main one
    (`parent` given); otherwise the loader's own watchdog ends an orphan within seconds.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Children started inside never see SIGTERM or SIGINT, not even before they can ignore them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sigchld_unchanged() -> Iterator[None]:
    """Keep the loader's SIGCHLD handler from staying: it raises wherever the trainer happens to be when a worker dies,
    in the middle of an optimizer step too. Without it `next` tells of the death, within the loader's 5 seconds."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: splitting a sum over threads would change its last bits."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
