"""The four diseases of one probe image: as `diagnose` says them, with reference and noise where the run has them."""

from __future__ import annotations

import json
import shutil

import made_up_run
import pytest
import torch
from safetensors.torch import load

from apps import verdicts
from apps.feed import RunFeed
from apps.listing import run_id
from apps.verdicts import VerdictCache, healthy_step, noise_patches
from workbench.analysis.diseases import DISEASES, diagnose
from workbench.backbones.architecture import architecture_of
from workbench.backbones.vit import VisionTransformer, ViTConfig
from workbench.features import Features
from workbench.images import normalize

KEYS = [disease.key for disease in DISEASES]


@pytest.fixture
def grown(tmp_path):
    """A feed of a run with probes at steps 0, 20, 40 and weights of step 40; non-square images."""
    writer, images = made_up_run.create(tmp_path / "run", side=64)
    made_up_run.grow(writer, images, 0, 40)
    network = VisionTransformer(ViTConfig(patch_size=16, embed_dim=64, depth=1, num_heads=2, ffn_hidden=64))
    writer.backbone("teacher", 40, architecture_of(network), network.state_dict())
    writer.close()
    feed = RunFeed(writer.path, "id", "version")
    feed.refresh()
    return feed


def test_verdicts_are_those_of_the_analysis(grown):
    content, about = VerdictCache().encoded(grown, 40, 1, (0, 2))
    healthy = healthy_step(grown)
    direct = diagnose(
        grown.run.probe_features(40).patches[1].float(),
        healthy=grown.run.probe_features(healthy).patches[1].float(),
        noise=noise_patches(grown.run, 40),
        query=(0, 2),
    )
    assert [told["disease"] for told in about["verdicts"]] == KEYS == list(direct)
    assert about["reference"] == healthy
    assert about["noise"]
    pictures = load(content)
    assert set(pictures) == {*KEYS, "outlier-dimensions.before"}
    for told, (key, verdict) in zip(about["verdicts"], direct.items(), strict=True):
        assert (told["state"], told["value"], told["margin"]) == (verdict.state, verdict.value, verdict.margin)
        assert torch.equal(pictures[key], verdict.picture)
    assert json.dumps(about, allow_nan=False)


def test_noise_goes_through_the_network_of_that_step(grown):
    found = noise_patches(grown.run, 40)
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = grown.run.info["input"]
    expected = grown.run.backbone(step=40).features(normalize(images, normal["mean"], normal["std"])).patches
    assert torch.allclose(found, expected, atol=1e-6)
    assert noise_patches(grown.run, 20) is None  # no weights of that step


def test_a_network_too_large_or_broken_is_left_out_and_asked_once(grown, monkeypatch):
    monkeypatch.setattr(verdicts, "LARGEST_WEIGHTS", 100)
    assert noise_patches(grown.run, 40) is None
    monkeypatch.undo()
    (grown.run.path / "backbones" / "teacher" / "architecture.json").write_text('{"class": "Other"}')
    cache = VerdictCache()
    assert not cache.encoded(grown, 40, 0, None)[1]["noise"]
    monkeypatch.setattr(verdicts, "noise_patches", lambda *_: pytest.fail("asked again"))
    cache.encoded(grown, 40, 1, None)


def test_no_labels_no_reference(tmp_path):
    writer, _ = made_up_run.create(tmp_path / "run", side=64)
    patches = torch.randn(4, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    writer.probe_features(0, Features(patches, patches.mean(dim=(1, 2)), patches.new_zeros(4, 0, 8)))
    writer.close()
    feed = RunFeed(writer.path, "id", "version")
    feed.refresh()
    _, about = VerdictCache().encoded(feed, 0, 3, (2, 4))
    assert about["reference"] is None
    assert about["noise"] is False
    assert about["verdicts"][-1]["threshold"] is None  # infinite: this image alone cannot tell


def test_the_route_answers_and_refuses(served):
    answer = served.run("finished", "/diseases/80/1?patch=1,2")
    assert answer.status_code == 200
    about = json.loads(answer.headers["x-verdicts"])
    assert (about["step"], about["image"]) == (80, 1)
    assert set(load(answer.content)) >= set(KEYS)
    for rest, status, code in (
        ("/diseases/81/1", 404, "step-gone"),
        ("/diseases/80/99", 409, "run-unreadable"),
        ("/diseases/80/-1", 409, "run-unreadable"),
        ("/diseases/80/0?patch=99,0", 409, "run-unreadable"),
        ("/diseases/80/0?patch=1;2", 422, "wrong-value"),
        ("/diseases/80/0?patch=1,-2", 422, "wrong-value"),
        ("/diseases/x/0", 422, "wrong-value"),
    ):
        answer = served.run("finished", rest)
        assert (answer.status_code, answer.json()["error"]) == (status, code), rest


@pytest.mark.browser
def test_the_panel_follows_step_and_patch(page, served):
    page.goto(f"{served.url}/#run={run_id('finished')}")
    page.locator(".dfw-pic canvas").first.wait_for(state="visible", timeout=60_000)
    page.keyboard.press("h")
    panel = page.locator(".mon-verdicts")
    panel.locator(".mon-verdict").nth(3).wait_for()
    assert panel.locator("canvas").count() == 5
    assert "step 80" in panel.locator("p").first.inner_text()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.mon-verdicts p')?.innerText.includes('step 0')")
    page.get_by_role("button", name="Switch to Chinese").click()
    page.get_by_text("高范数图块").wait_for()
    page.get_by_role("button", name="诊断", exact=True).click()
    assert not panel.is_visible()


@pytest.mark.browser
def test_the_panel_says_what_failed(page, served, page_problems):
    writer, images = made_up_run.create(served.folder / "broken", side=64)
    made_up_run.grow(writer, images, 0, 20)
    writer.close()
    page.wait_for_timeout(1100)
    page.route("**/diseases/**", lambda route: route.fulfill(status=409, json={"error": "x", "message": "<b>odd</b>"}))
    page.goto(f"{served.url}/#run={run_id('broken')}")
    page.locator(".dfw-pic canvas").first.wait_for(state="visible", timeout=60_000)
    page.get_by_role("button", name="Diagnose").click()
    page.get_by_text("<b>odd</b>").wait_for()
    page.goto("about:blank")
    shutil.rmtree(writer.path)
    page_problems[:] = [problem for problem in page_problems if "409" not in problem]  # the browser notes it, rightly
