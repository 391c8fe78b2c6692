"""The basis that colours all steps: a function of the run directory alone, seldom another one, never flipped."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import made_up_run
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from apps import basis as basis_module
from apps.basis import SHOWN, BasisCache, milestones, next_fit, shown_variance
from apps.feed import RunFeed
from workbench.analysis.pca import fit_pca, project, to_rgb
from workbench.features import Features
from workbench.run_source import SNAPSHOTS, spread
from workbench.runs import RunWriter


@pytest.fixture
def growing(tmp_path):
    """(writer, images) of a run at step 0."""
    writer, images = made_up_run.create(tmp_path / "run", count=2, side=64)
    yield writer, images
    writer.close()


def asked(path: Path, cache: BasisCache | None = None) -> tuple[bytes, dict]:
    """What a server (a new one unless `cache` is given) answers now."""
    feed = RunFeed(path, "id", "version")
    feed.refresh()
    return (cache or BasisCache()).encoded(feed, feed.steps)


def colours(answer: tuple[bytes, dict], patches: Tensor) -> Tensor:
    """The map in 0..255 as the renderer draws it."""
    tensors = load(answer[0])
    centred = patches.float() - tensors["mean"]
    return to_rgb(centred @ tensors["components"].T, tensors["range"]) * 255


def write(writer: RunWriter, images: Tensor, *steps: int) -> None:
    for step in steps:
        writer.probe_features(step, made_up_run.features_at(images, step))


def test_snapshots_are_spread_over_the_run():
    steps = list(range(0, 1000, 7))
    chosen = spread(steps)
    assert (len(chosen), chosen[0], chosen[-1]) == (SNAPSHOTS, steps[0], steps[-1])
    assert chosen == sorted(set(chosen))
    assert spread([3, 9]) == [3, 9]


def test_milestones_grow_by_half_at_most_and_by_a_third_at_least():
    found = milestones(1000)
    assert found[:9] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert all(4 / 3 <= later / earlier <= 2 for earlier, later in pairwise(found))
    assert milestones(5) == [1, 2, 3, 4]
    assert found[-1] == 768


def test_a_server_that_watched_and_one_that_just_started_answer_with_the_same_bytes(growing):
    writer, images = growing
    watching, changed = BasisCache(), set()
    for step in range(0, 241, 20):
        write(writer, images, step)
        answer = asked(writer.path, watching)
        assert answer == asked(writer.path), f"another server shows other colours at step {step}"
        changed.add(answer[0])
    assert 1 <= len(changed) <= 4
    assert len(answer[1]["refits"]) == len(changed) - 1


def test_a_copy_of_the_run_has_the_same_colours(growing, tmp_path):
    writer, images = growing
    write(writer, images, 0, 20, 40, 60)
    shutil.copytree(writer.path, tmp_path / "copy")
    assert asked(tmp_path / "copy") == asked(writer.path)


def test_between_refits_the_map_of_the_first_step_does_not_move_at_all(growing):
    writer, images = growing
    cache, first = BasisCache(), made_up_run.features_at(images, 0).patches
    maps, refits = [], []
    for step in range(0, 481, 20):
        write(writer, images, step)
        answer = asked(writer.path, cache)
        maps.append(colours(answer, first))
        refits.append(answer[1]["refits"])
    for (earlier, before), (later, after) in pairwise(zip(maps, refits, strict=True)):
        assert torch.equal(earlier, later) or before != after
    assert len(refits[-1]) <= 3
    assert refits[-1], "noise at step 0 is no basis for what comes later"


def test_colours_turn_as_little_as_they_can_at_a_refit(growing):
    """At a refit no component flips or swaps: each goes on along the one it was."""
    writer, images = growing
    cache, seen = BasisCache(), []
    for step in range(0, 241, 20):
        write(writer, images, step)
        seen.append(load(asked(writer.path, cache)[0])["components"])
    turns = [later @ earlier.T for earlier, later in pairwise(seen) if not torch.equal(earlier, later)]
    assert turns
    for turn in turns:
        eigenvalues = torch.linalg.eigvals(turn)
        assert torch.allclose(turn, turn.T, atol=1e-4), "a turn beyond the best fit"
        assert (eigenvalues.real > -1e-4).all()


def test_a_run_that_goes_back_has_the_colours_of_what_is_there(growing):
    writer, images = growing
    cache = BasisCache()
    write(writer, images, 0, 20, 40, 60, 80, 100)
    late = asked(writer.path, cache)
    writer.close()
    again = RunWriter.reopen(writer.path, step=20)
    assert asked(writer.path, cache) == asked(writer.path)
    write(again, images.flip(0), 40, 60, 80, 100)
    rewritten = asked(writer.path, cache)
    assert rewritten == asked(writer.path)
    assert rewritten[0] != late[0]
    again.close()


def test_nothing_is_read_again_while_nothing_changed(growing, monkeypatch):
    writer, images = growing
    cache = BasisCache()
    write(writer, images, 0, 20, 40)
    first = asked(writer.path, cache)
    monkeypatch.setattr(basis_module, "sample_tokens", lambda *_: pytest.fail("read again"))
    assert asked(writer.path, cache) == first


def test_a_basis_stays_until_it_shows_too_little():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 2.0, 1.5] + [0.2] * 9)
    tokens = torch.randn(500, 12, generator=generator) * scale
    fit = next_fit(tokens, [0], None)
    assert shown_variance(fit, tokens) >= 0.9 * fit_pca(tokens).variance.sum()
    like = torch.randn(500, 12, generator=generator) * scale
    assert next_fit(like, [0, 1], fit) is fit
    other = like.roll(5, dims=1)
    assert shown_variance(fit, other) < SHOWN * fit_pca(other).variance.sum()
    moved = next_fit(other, [0, 1], fit)
    assert moved.steps == [0, 1]
    assert shown_variance(moved, other) >= 0.9 * fit_pca(other).variance.sum()
    wide = next_fit(3 * like, [0, 1], fit)
    assert wide is not fit, "colours cut off at the old limits show less"
    assert math.isclose(project(wide.basis, 3 * like).var(0).sum(), fit_pca(3 * like).variance.sum(), rel_tol=1e-4)


def test_another_width_starts_a_new_basis(growing):
    writer, images = growing
    cache = BasisCache()
    write(writer, images, 0, 20)
    assert load(asked(writer.path, cache)[0])["components"].shape == (3, 64)
    narrow = made_up_run.features_at(images, 40, dim=24)
    writer.probe_features(40, Features(narrow.patches, narrow.cls, narrow.registers))
    assert load(asked(writer.path, cache)[0])["components"].shape == (3, 24)
    assert asked(writer.path, cache) == asked(writer.path)
