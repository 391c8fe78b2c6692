"""One basis for two runs: a PCA of both, the same from either side, of files that are the same no new one."""

from __future__ import annotations

import made_up_run
import numpy as np
import pytest
import torch
from safetensors.torch import load

from apps.basis import BasisCache
from apps.feed import RunFeed
from apps.joint import JointBasisCache
from workbench.features import Features


@pytest.fixture
def pair(tmp_path):
    """Feeds of a run with 3 snapshots and of a later one, washed out, with 2."""
    feeds = []
    for name, last, wash in (("healthy", 40, 0.0), ("washed", 20, 0.7)):
        created = "2026-01-01" if name == "healthy" else "2026-01-02"
        writer, images = made_up_run.create(tmp_path / name, count=2, side=48, created=created)
        made_up_run.grow(writer, images, 0, last, wash=wash)
        writer.close()
        feeds.append(RunFeed(writer.path, name, "version"))
    return feeds


def tokens(*feeds: RunFeed) -> np.ndarray:
    snapshots = [feed.run.probe_features(step).patches for feed in feeds for step in feed.run.probe_steps()]
    return torch.cat([patches.flatten(0, 2) for patches in snapshots]).double().numpy()


def test_it_is_the_pca_of_all_tokens_of_both(pair):
    content, about = JointBasisCache(BasisCache()).encoded(*pair)
    basis, both = load(content), tokens(*pair)
    values, vectors = np.linalg.eigh(np.cov(both.T))
    span = vectors[:, -3:].T
    components = basis["components"].double().numpy()
    assert np.allclose(np.linalg.svd(components @ span.T)[1], 1, atol=1e-4), "the same three-dimensional subspace"
    assert np.allclose(basis["mean"].numpy(), both.mean(axis=0), atol=1e-4)
    assert sum(about["explained"]) == pytest.approx(values[-3:].sum() / values.sum(), abs=1e-4)
    shown = (both - both.mean(axis=0)) @ components.T
    assert np.allclose(basis["range"].numpy(), np.percentile(shown, (1, 99), axis=0).T, atol=0.05)
    assert about["steps"] == {"healthy": [0, 20, 40], "washed": [0, 20]}


def test_it_is_the_same_whichever_run_is_named_first_and_on_another_server(pair):
    one, other = JointBasisCache(BasisCache()), JointBasisCache(BasisCache())
    assert one.encoded(*pair) == one.encoded(*reversed(pair)) == other.encoded(*reversed(pair))


def test_it_is_fitted_again_when_a_file_changed(pair, monkeypatch):
    cache, fitted = JointBasisCache(BasisCache()), []
    fit = cache._new
    monkeypatch.setattr(cache, "_new", lambda *arguments: fitted.append(1) or fit(*arguments))
    first = cache.encoded(*pair)
    assert cache.encoded(*pair) == first
    assert len(fitted) == 1
    path = pair[1].run.path / "probes" / "step-000020.safetensors"
    path.write_bytes((pair[1].run.path / "probes" / "step-000000.safetensors").read_bytes())
    assert cache.encoded(*pair)[0] != first[0]
    assert len(fitted) == 2


def test_pairs_are_forgotten_beyond_a_bound(pair, monkeypatch):
    monkeypatch.setattr("apps.joint.PAIRS_KEPT", 2)
    cache = JointBasisCache(BasisCache())
    for version in ("a", "b", "c"):
        pair[0].version = version
        cache.encoded(*pair)
    assert len(cache._kept) == 2


def test_runs_without_features_or_of_other_widths_are_refused_in_words(pair, tmp_path):
    cache = JointBasisCache(BasisCache())
    writer, images = made_up_run.create(tmp_path / "narrow", count=2, side=48)
    narrow = RunFeed(writer.path, "narrow", "version")
    with pytest.raises(ValueError, match="narrow has written no probe features yet"):
        cache.encoded(pair[0], narrow)
    full = made_up_run.features_at(images, 0)
    writer.probe_features(0, Features(full.patches[..., :32], full.cls[..., :32], full.registers[..., :32]))
    writer.close()
    with pytest.raises(ValueError, match=r"64 and 32 channels|32 and 64 channels"):
        cache.encoded(pair[0], narrow)
