"""The HTTP routes, over a real server: what they answer, what they cache, what they refuse."""

from __future__ import annotations

import io
import json
import os
import shutil
import time

import httpx
import made_up_run
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from apps.listing import run_id
from workbench.runs import Run
from workbench.views.encode import decode_features


def test_runs_are_listed_with_state(served):
    answer = served.get("/api/runs").json()
    rows = {row["id"]: row for row in answer["runs"]}
    assert rows[run_id("finished")]["status"] == "ended"
    assert rows[run_id("finished")]["phase"] == "pretrain"
    assert rows[run_id("finished")]["age"] >= 0
    assert rows[run_id("future")]["status"] == "unreadable"
    assert "version 9" in rows[run_id("future")]["error"]


def test_summary_holds_what_the_renderer_needs(served):
    summary = served.run("finished").json()
    assert summary["steps"] == [0, 20, 40, 60, 80]
    probes = summary["probes"]
    assert (probes["count"], probes["grid"], probes["image"], probes["dim"]) == (4, [4, 4], [64, 64], 64)
    assert probes["captions"][1] == {"en": "a flower", "zh": "一朵花"}
    assert summary["series"]["dense/patch_knn"]["step"] == [0, 20, 40, 60, 80]
    assert summary["series"]["dense/patch_knn"]["value"][0] == pytest.approx(0.505)
    assert summary["series"]["loss/total"]["step"][:3] == [0, 5, 10]
    assert [event["kind"] for event in summary["events"]] == ["started", "finished"]
    assert summary["run"]["steps"] == 80


def test_image_is_the_probe_image(served):
    answer = served.run("finished", "/images/2.png")
    assert answer.headers["content-type"] == "image/png"
    shown = torch.tensor(list(Image.open(io.BytesIO(answer.content)).tobytes()), dtype=torch.uint8)
    stored = Run(served.folder / "finished").probe_images().images[2]
    assert torch.equal(shown.view(64, 64, 3).permute(2, 0, 1), stored)


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 1e-2), ("float16", 1e-3)])
def test_probes_carry_the_features(served, dtype, tolerance):
    patches, cls = decode_features(served.run("finished", f"/probes/40?dtype={dtype}").content)
    stored = Run(served.folder / "finished").probe_features(40)
    scale = stored.patches.float().abs().max()
    assert torch.allclose(patches, stored.patches.float(), atol=tolerance * scale)
    assert torch.allclose(cls, stored.cls.float(), atol=1e-3)


def test_basis_has_three_components_and_says_its_steps(served):
    answer = served.run("finished", "/basis")
    about, tensors = json.loads(answer.headers["x-basis"]), load(answer.content)
    assert about["steps"][0] == 0
    assert set(about["steps"]) <= {0, 20, 40, 60, 80}
    assert set(about["refits"]) <= set(about["steps"])
    assert len(about["explained"]) == 3
    assert 0 < sum(about["explained"]) <= 1
    assert torch.allclose(tensors["components"] @ tensors["components"].T, torch.eye(3), atol=1e-4)
    assert (tensors["range"][:, 0] < tensors["range"][:, 1]).all()


def test_two_runs_share_one_basis(served):
    writer, images = made_up_run.create(served.folder / "twin", side=64, parent={"run": "finished", "step": 40})
    made_up_run.grow(writer, images, 0, 20, wash=0.6)
    writer.close()
    wait_for(served, "twin", 200)
    rows = {row["id"]: row for row in served.get("/api/runs").json()["runs"]}
    assert rows[run_id("twin")]["parent"] == {"run": "finished", "step": 40}
    one = served.run("finished", f"/basis/{run_id('twin')}")
    two = served.run("twin", f"/basis/{run_id('finished')}")
    assert one.content == two.content
    about = json.loads(one.headers["x-basis"])
    assert about["steps"] == {run_id("finished"): [0, 20, 40, 60], run_id("twin"): [0, 20]}, "up to the last milestone"
    assert load(one.content)["components"].shape == (3, 64)
    same = [served.run(name).json()["probes"]["same"] for name in ("finished", "twin")]
    assert same[0] == same[1]
    for other, status in (("0123456789ab", 404), (run_id("future"), 409), ("..%2f..", 404), ("x" * 5000, 404)):
        answer = served.run("finished", f"/basis/{other}")
        assert (answer.status_code, bool(answer.json()["message"])) == (status, True)
    shutil.rmtree(writer.path)


def test_findings_are_told_as_json(served):
    assert served.run("finished", "/findings").json() == {"findings": []}
    for name, status in (("future", 409), ("nothing", 404)):
        assert served.run(name, "/findings").status_code == status
    writer, _ = made_up_run.create(served.folder / "odd", count=1, side=32)
    writer.close()
    wait_for(served, "odd", 200)
    answer = served.run("odd", "/findings")
    assert (answer.status_code, answer.json()["error"]) == (409, "run-unreadable")
    assert "KeyError: 'a rule that fails'" in answer.json()["message"]
    shutil.rmtree(writer.path)


def test_metrics_are_thinned_but_keep_the_ends(served):
    series = served.run("finished", "/metrics?points=10").json()["series"]["loss/total"]
    assert len(series["step"]) <= 12
    assert (series["step"][0], series["step"][-1]) == (0, 80)


def test_images_are_cached_for_good_only_under_their_version_and_steps_never(served):
    version = served.run("finished").json()["run"]["version"]
    assert "immutable" in served.run("finished", f"/images/0.png?v={version}").headers["cache-control"]
    assert served.run("finished", "/images/0.png").headers["cache-control"] == "private, no-cache"
    plain = served.run("finished", f"/probes/20?v={version}")
    assert plain.headers["cache-control"] == "private, no-cache"
    assert "content-encoding" not in plain.headers
    again = served.run("finished", "/probes/20", headers={"if-none-match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    path = served.folder / "finished" / "probes" / "step-000020.safetensors"
    other = path.with_name("step-000040.safetensors").read_bytes()
    kept = path.read_bytes()
    path.write_bytes(other)  # as a resumed writer does that came to this step once more
    anew = served.run("finished", "/probes/20", headers={"if-none-match": plain.headers["etag"]})
    path.write_bytes(kept)
    assert (anew.status_code, anew.content == plain.content) == (200, False)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/runs/0123456789ab/summary", 404, "run-gone"),
        (f"/api/runs/{run_id('future')}/summary", 409, "run-unreadable"),
        (f"/api/runs/{run_id('future')}/stream", 409, "run-unreadable"),
        (f"/api/runs/{run_id('finished')}/images/99.png", 404, "image-gone"),
        (f"/api/runs/{run_id('finished')}/images/-1.png", 404, "image-gone"),
        (f"/api/runs/{run_id('finished')}/probes/7", 404, "step-gone"),
        (f"/api/runs/{run_id('finished')}/probes/-1", 404, "step-gone"),
        (f"/api/runs/{run_id('finished')}/probes/{10**40}", 404, "step-gone"),
        ("/api/nothing", 404, "unknown-address"),
    ],
)
def test_errors_are_json_with_a_code_and_words(served, path, status, code):
    answer = served.get(path)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/info",
        "/gradio_api/openapi.json",
        "/gradio_api/docs",
        "/gradio_api/info",
        "/gradio_api/info/",
    ],
)
def test_gradio_describes_no_routes(served, path):
    answer = served.get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "unknown-address")


@pytest.mark.parametrize("query", ["/probes/20?dtype=pickle", "/probes/x", "/metrics?points=1", "/images/a.png"])
def test_wrong_values_are_refused(served, query):
    answer = served.run("finished", query)
    assert (answer.status_code, answer.json()["error"]) == (422, "wrong-value")


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..%2f..%2fetc%2fpasswd/summary",
        "/api/runs/../../etc/passwd",
        "/api/runs/finished/summary",
        "/api/runs/%00/summary",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
        "/static/../../../../etc/passwd",
    ],
)
def test_paths_from_the_client_open_nothing(served, path):
    with httpx.Client(base_url=served.url) as client:
        answer = client.send(httpx.Request("GET", served.url + path))
    assert 400 <= answer.status_code < 500
    assert "root:" not in answer.text


def test_a_link_that_leads_outside_is_not_a_run(served, tmp_path):
    writer, _ = made_up_run.create(tmp_path / "outside", count=1, side=32)
    writer.close()
    (served.folder / "link").symlink_to(tmp_path / "outside")
    assert served.run("link").status_code == 404
    (served.folder / "link").unlink()


def test_a_deleted_run_is_gone_and_a_new_one_under_its_name_is_new(served):
    path = served.folder / "brief"
    writer, images = made_up_run.create(path, count=1, side=32, created="2026-01-01T00:00:00+00:00")
    made_up_run.grow(writer, images, 0, 20)
    writer.close()
    wait_for(served, "brief", 200)
    first = served.run("brief").json()
    shutil.rmtree(path)
    assert served.run("brief").status_code == 404
    assert served.run("brief", "/basis").status_code == 404
    writer, images = made_up_run.create(path, count=1, side=32, created="2026-01-02T00:00:00+00:00")
    writer.close()
    wait_for(served, "brief", 200)
    second = served.run("brief").json()
    assert second["run"]["version"] != first["run"]["version"]
    assert second["steps"] == []
    with httpx.stream(
        "GET", f"{served.url}/api/runs/{run_id('brief')}/stream?cursor={first['cursor']}", timeout=20
    ) as old:
        assert next_event(old.iter_lines())["reset"] is True
    assert served.run("brief", "/basis").json()["error"] == "no-probes"
    shutil.rmtree(path)


def test_damaged_files_are_an_error_in_words(served):
    path = served.folder / "damaged"
    writer, images = made_up_run.create(path, count=1, side=32)
    made_up_run.grow(writer, images, 0, 20)
    writer.close()
    (path / "probes" / "step-000020.safetensors").write_bytes(b"\x00" * 50)
    wait_for(served, "damaged", 409)
    for rest in ("/probes/20", "/basis"):
        answer = served.run("damaged", rest)
        assert (answer.status_code, answer.json()["error"]) == (409, "run-unreadable")
    assert served.run("damaged", "/probes/0").status_code == 200
    shutil.rmtree(path)


def test_stream_brings_only_what_is_new(served):
    writer, images = made_up_run.create(served.folder / "growing", count=1, side=32)
    made_up_run.grow(writer, images, 0, 20)
    wait_for(served, "growing", 200)
    cursor = served.run("growing").json()["cursor"]
    with httpx.stream("GET", f"{served.url}/api/runs/{run_id('growing')}/stream?cursor={cursor}", timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        first = next_event(lines)
        assert (first["series"], first["events"], first["steps"]) == ({}, [], [0, 20])
        with (writer.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 25, "seconds": 1.0, "loss/total": 3.5}\n{"step": 30, "sec')
        second = next_event(lines)
        assert second["series"] == {"loss/total": {"step": [25], "seconds": [1.0], "value": [3.5]}}
        with (writer.path / "metrics.jsonl").open("ab") as file:
            file.write(b'onds": 2.0, "loss/total": 3.25}\n')
        assert next_event(lines)["series"]["loss/total"]["step"] == [30]
    writer.close()
    shutil.rmtree(writer.path)


def test_names_that_are_not_utf_8_are_listed(served):
    name = os.fsdecode(b"bad-\xff")
    folder = served.folder / name
    folder.mkdir()
    (folder / "run.json").write_text('{"format_version": 9}')
    try:
        wait_for(served, name, 409)
        rows = served.get("/api/runs").json()["runs"]
        assert name in [row["name"] for row in rows]
    finally:
        shutil.rmtree(folder)


def next_event(lines) -> dict:
    return json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))


def wait_for(served, name: str, status: int) -> None:
    """The folder is looked through once a second."""
    for _ in range(20):
        if served.run(name).status_code == status:
            return
        time.sleep(0.2)
    raise AssertionError(f"{name}: {served.run(name).text}")
