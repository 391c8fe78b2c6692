"""Batches are a pure function of (seed, step): any order, any number of workers, threads and ranks."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from training.data.augment import AugmentConfig, MultiCrop
from training.data.batch import Batch, BatchConfig, BatchStream, generator_for
from training.data.masking import MaskConfig
from training.data.order import sample_index
from training.data.sources import FolderConfig

CROPS = AugmentConfig(global_size=32, local_size=16, local_crops=3)


class Noise:
    """Ten random images of different sizes; image `broken` cannot be had."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        if index == self.broken:
            raise ValueError("No image can be read.")
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 40 + index, 60 - index), generator=generator, dtype=torch.uint8)

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        return ()


def stream(source=None, masks: MaskConfig | None = MaskConfig(), rank=0, world=1, **fields) -> BatchStream:  # noqa: B008
    config = BatchConfig(**{"batch_size": 4, "workers": 0, **fields})
    return BatchStream(source or Noise(), MultiCrop(CROPS), masks, 8, config, rank=rank, world=world)


def same(first: Batch, second: Batch) -> bool:
    return first.step == second.step and all(
        torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True) if isinstance(a, Tensor)
    )


# Order


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10, 16, 17, 100, 1023, 1025])
def test_every_epoch_visits_every_sample_once(length):
    orders = [[sample_index(3, epoch * length + i, length) for i in range(length)] for epoch in range(3)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length >= 16:
        assert orders[0] != orders[1]
        assert orders[0] != [sample_index(4, i, length) for i in range(length)], "the seed must matter"


def test_the_order_looks_uniform():
    """All 24 orders of four samples come up equally often (chi-squared, 0.1 % point of 23 degrees of freedom)."""
    counts = Counter(tuple(sample_index(seed, i, 4) for i in range(4)) for seed in range(4800))
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_neighbours_are_unrelated():
    order = np.array([sample_index(0, i, 5000) for i in range(5000)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.06


def test_impossible_orders_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        sample_index(0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        sample_index(0, -1, 5)


# Batches


def test_shapes_and_contents():
    batch = stream().batch_at(2)
    assert batch.globals_.shape == (8, 3, 32, 32)
    assert batch.locals_.shape == (12, 3, 16, 16)
    assert batch.masks.shape == (8, 4, 4)
    assert batch.masks.dtype == torch.bool
    assert batch.masks.flatten(1).any(1).sum() == 4, "half of the crops are masked"
    assert batch.indices.tolist() == [sample_index(0, position, 10) for position in range(8, 12)]
    assert batch.step == 2
    assert batch.load_seconds > 0
    assert not stream(masks=None).batch_at(2).masks.any()


def test_batches_differ_by_step_and_seed_only():
    first = stream().batch_at(5)
    other = stream()
    for step in (0, 7):
        other.batch_at(step)
    assert same(first, other.batch_at(5))
    assert not torch.equal(first.globals_, stream(seed=1).batch_at(5).globals_)
    assert not torch.equal(first.masks, stream().batch_at(6).masks)


def test_the_number_of_threads_changes_no_bit():
    """Sums over many pixels are where threads would show."""
    wide = MultiCrop(AugmentConfig(global_size=224, local_size=96, local_crops=1))
    batches = BatchStream(Noise(), wide, None, 16, BatchConfig(batch_size=1))
    before = torch.get_num_threads()
    first = batches.batch_at(0)
    torch.set_num_threads(2)
    try:
        assert same(first, batches.batch_at(0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_workers_and_a_later_start_change_nothing_and_touch_no_global_generator():
    reference = list(stream().iterate(0, 7))
    assert [batch.step for batch in reference] == list(range(7))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    ahead = list(stream(workers=2).iterate(0, 7))
    late = list(stream(workers=2).iterate(3, 7))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert len(ahead) == 7
    assert all(map(same, reference, ahead))
    assert len(late) == 4
    assert all(map(same, reference[3:], late))


def test_nothing_left_to_do_yields_nothing():
    assert list(stream(workers=2).iterate(4, 4)) == []
    assert list(stream().iterate(4, 4)) == []


def test_ranks_share_the_global_batch():
    whole = stream().batch_at(3)
    parts = [stream(rank=rank, world=2).batch_at(3) for rank in range(2)]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)

    def joined(name: str, crops: int) -> Tensor:
        return torch.cat([getattr(part, name).unflatten(0, (crops, 2)) for part in parts], dim=1).flatten(0, 1)

    assert torch.equal(joined("masks", 2), whole.masks)
    assert (joined("globals_", 2) - whole.globals_).abs().max() < 1e-5
    assert (joined("locals_", 3) - whole.locals_).abs().max() < 1e-5


def test_errors_of_the_source_arrive_as_they_are():
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^No image can be read\.$"):
            list(stream(Noise(broken=7), workers=workers).iterate(0, 5))


def test_bad_files_are_collected_from_workers(tmp_path: Path):
    for number in range(3):
        Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    batches = stream(FolderConfig(path=str(tmp_path)).build(), workers=2)
    assert batches.bad == ()
    pixels = list(batches.iterate(0, 4))
    assert [Path(name).name for name, _ in batches.bad] == ["broken.png"]
    assert all(map(same, pixels, stream(FolderConfig(path=str(tmp_path)).build()).iterate(0, 4)))


def test_seeds_of_purposes_and_steps_are_unrelated():
    draws = {
        torch.rand(1, generator=generator_for(seed, purpose, step)).item()
        for seed in range(5)
        for purpose in ("crops", "masks")
        for step in range(50)
    }
    assert len(draws) == 500


def test_wrong_requests_are_explained():
    with pytest.raises(ValueError, match=r"global_size is 32 pixels, no multiple of the patch size 7; choose 28 or 35"):
        BatchStream(Noise(), MultiCrop(CROPS), None, 7, BatchConfig())
    with pytest.raises(ValueError, match="Rank 0 of 3 cannot take an even share of batch_size 4"):
        stream(world=3)
    with pytest.raises(ValueError, match=r"workers is -1; the smallest allowed is 0"):
        BatchConfig(workers=-1)


# Processes

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks the Linux kernel")


def train(report: Connection) -> None:
    """Eats batches of two workers in a session of its own; reports the workers' ids, each step, and the end."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: None)
    batches = stream(workers=2).iterate(0, 10_000)
    next(batches)
    report.send([child.pid for child in multiprocessing.active_children()])
    for batch in batches:
        report.send(batch.step)
        time.sleep(0.02)
        if batch.step == 40:
            batches.close()
            deadline = time.monotonic() + 30  # a busy machine takes its time
            while multiprocessing.active_children() and time.monotonic() < deadline:
                time.sleep(0.05)
            report.send(["closed", len(multiprocessing.active_children())])


@pytest.fixture
def trainer() -> Iterator[tuple[BaseProcess, list[int], Connection]]:
    """A running trainer, the ids of its workers, and what it reports."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=train, args=(sender,))
    process.start()
    sender.close()
    yield process, receiver.recv(), receiver
    process.kill()
    process.join()


@on_linux
def test_workers_die_with_the_trainer(trainer):
    process, workers, _ = trainer
    assert len(workers) == 2
    assert all(alive(worker) for worker in workers)
    process.kill()
    process.join()
    deadline = time.monotonic() + 2
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(worker) for worker in workers)


@on_linux
def test_closing_ends_workers_that_the_loader_did_not(monkeypatch):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", lambda self: None)
    others = set(multiprocessing.active_children())
    batches = stream(workers=2).iterate(0, 100)
    next(batches)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    batches.close()
    assert not any(alive(worker.pid) for worker in workers)


@on_linux
def test_sigterm_to_the_whole_group_stops_no_batch_and_closing_ends_the_workers(trainer):
    process, workers, report = trainer
    for step in (1, 2, 3):
        os.killpg(process.pid, signal.SIGTERM)
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        assert report.recv() == step
    assert [report.recv() for _ in range(4, 41)] == list(range(4, 41))
    assert report.recv() == ["closed", 0]
    process.join()
    assert process.exitcode == 0


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
