"""UMAP as a job: a real map that keeps neighbours, found again on disk, stopped at once, honest about failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score

from workbench.umap_job import UmapJob

KINDS = torch.arange(180) // 60


def tokens(scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 24, generator=generator)
    return scale * (centres[KINDS] + torch.randn(180, 24, generator=generator))


@pytest.mark.timeout(400)
def test_a_map_keeps_neighbours_and_is_found_again(tmp_path: Path) -> None:
    job = UmapJob(tokens(), tmp_path)
    assert job.state == "running", "the caller goes on at once"
    found = job.result(300)
    assert job.state == "done"
    assert found.points.shape == (180, 2)
    assert found.chosen.tolist() == list(range(180))
    assert silhouette_score(found.points.numpy(), KINDS.numpy()) > 0.5
    assert trustworthiness(tokens().numpy(), found.points.numpy(), n_neighbors=5, metric="cosine") > 0.85
    start = time.perf_counter()
    again = UmapJob(tokens(), tmp_path)
    assert again.state == "done"
    assert torch.equal(again.result().points, found.points)
    assert time.perf_counter() - start < 5, "no second map is made"
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"], "nothing else is left"
    other = UmapJob(tokens(), tmp_path, neighbours=7)
    assert other.state == "running", "other settings are another map"
    other.cancel()


def test_a_cancelled_job_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    job = UmapJob(tokens(2), tmp_path)
    with pytest.raises(TimeoutError, match="wait longer"):
        job.result(0.05)
    start = time.perf_counter()
    job.cancel()
    assert time.perf_counter() - start < 2
    assert job.state == "cancelled"
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="cancelled"):
        job.result()
    job.cancel()


def test_a_job_that_dies_says_so_and_can_be_begun_again(tmp_path: Path) -> None:
    job = UmapJob(tokens(3), tmp_path)
    assert job._process is not None
    job._process.kill()
    with pytest.raises(RuntimeError, match="failed: no message"):
        job.result(30)
    again = UmapJob(tokens(3), tmp_path)
    assert again.state == "running"
    again.cancel()


def test_many_tokens_are_thinned_evenly(tmp_path: Path) -> None:
    job = UmapJob(tokens(), tmp_path, most=50)
    job.cancel()
    assert len(job.chosen) == 50
    assert job.chosen.diff().min() >= 3
    assert job.chosen.diff().max() <= 4


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    for wrong, options, said in (
        (torch.ones(3, 4), {}, "4 or more"),
        (torch.ones(4), {}, "4 or more"),
        (torch.full((9, 4), torch.nan), {}, "finite"),
        (tokens(), {"neighbours": 1}, "2 neighbours"),
        (tokens(), {"min_distance": 1.5}, "0 to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            UmapJob(wrong, tmp_path, **options)
    assert not list(tmp_path.iterdir())
