"""The run store: what is written comes back, torn and foreign bytes do no harm, one writer at a time."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.backbones import VisionTransformer, ViTConfig, architecture_of
from workbench.features import Features
from workbench.run_files import RunLock, append_line, is_locked, lock_owner
from workbench.run_layout import read_tail, step_file, step_of
from workbench.runs import Run, RunNotFoundError, RunWriter, list_runs, load_run_backbone, scan_runs

INFO = {"phase": "pretrain", "recipe": "test", "seed": 0, "steps": 10, "parent": None}


@pytest.fixture
def writer(tmp_path: Path):
    with RunWriter.create(tmp_path / "run", info=INFO, config={"seed": 0}) as writer:
        yield writer


def small_features(seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return Features(draw(2, 2, 3, 4), draw(2, 4), draw(2, 1, 4))


def small_network(seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(ViTConfig(patch_size=8, embed_dim=24, depth=2, num_heads=2, num_registers=1))


def fill(writer: RunWriter, steps: range) -> None:
    for step in steps:
        writer.metrics(step, step / 2, {"loss/total": 1 / (step + 1)})
        writer.evaluation(step, step / 2, "teacher", {"global/knn": 0.5})
        writer.event(step, "info", "saved", f"step {step}")
        writer.probe_features(step, small_features(step))
        writer.backbone("teacher", step, {"class": "Linear", "config": {}}, {"weight": torch.full((3,), float(step))})


# --- round trips ----------------------------------------------------------------------------------------------------


def test_info_and_config_come_back(writer: RunWriter) -> None:
    run = Run(writer.path)
    assert run.name == "run"
    assert run.info["format_version"] == 1
    assert run.info["recipe"] == "test"
    assert run.config == {"seed": 0}
    assert run.parent is None


def test_lines_come_back_and_non_finite_numbers_are_null(writer: RunWriter) -> None:
    values = {"a": math.nan, "b": torch.tensor(math.inf), "c": torch.tensor(2.5), "d": 3, "e": None, "f": 1e308 * 10}
    writer.metrics(4, 1.5, values)
    writer.evaluation(4, 1.5, "student", {"health/far_cosine": -math.inf, "global/knn": 0.25})
    writer.event(4, "warn", "nan-skipped", "损失 </script> \n\x1b[31m")
    run = Run(writer.path)
    assert run.metrics()[0] == [
        {"step": 4, "seconds": 1.5, "a": None, "b": None, "c": 2.5, "d": 3, "e": None, "f": None}
    ]
    assert run.evaluations()[0] == [
        {"step": 4, "seconds": 1.5, "backbone": "student", "health/far_cosine": None, "global/knn": 0.25}
    ]
    (event,) = run.events()[0]
    assert (event["level"], event["kind"], event["text"]) == ("warn", "nan-skipped", "损失 </script> \n\x1b[31m")
    assert run.skipped == {"metrics.jsonl": 0, "evaluations.jsonl": 0, "events.jsonl": 0}


def test_the_tail_hands_out_each_record_once(writer: RunWriter) -> None:
    run, seen, position = Run(writer.path), [], 0
    assert run.metrics() == ([], 0)
    for step in range(20):
        writer.metrics(step, 0, {"x": step})
        if step % 3 == 0:
            rows, position = run.metrics(position)
            seen += rows
    rows, position = run.metrics(position)
    assert [row["x"] for row in seen + rows] == list(range(20))
    assert run.metrics(position) == ([], position)


def test_probe_features_come_back_in_half_precision(writer: RunWriter) -> None:
    features = small_features()
    writer.probe_features(1_234_567, features._replace(attention=torch.ones(1)))
    run = Run(writer.path)
    assert run.probe_steps() == [1_234_567]
    assert writer.has_probe(1_234_567)
    stored = run.probe_features(1_234_567)
    for name in ("patches", "cls", "registers"):
        assert torch.equal(getattr(stored, name), getattr(features, name).half())
    assert stored.attention is None
    assert run.probe_bytes(1_234_567) == (writer.path / "probes" / "step-1234567.safetensors").read_bytes()


def test_probe_images_come_back_and_stay_the_same(writer: RunWriter) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 16, 24), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 3, (3, 16, 24), generator=generator)
    names = [{"en": "background", "zh": "背景"}, {"en": "a", "zh": "甲"}, {"en": "b", "zh": "乙"}]
    given_probes = {"patch_size": 8, "masks": masks, "captions": names, "classes": names}
    writer.probe_images(images, **given_probes)
    probes = Run(writer.path).probe_images()
    assert torch.equal(probes.images, images)
    assert probes.masks is not None
    assert probes.masks.dtype == torch.int64
    assert torch.equal(probes.masks, masks)
    assert (probes.captions, probes.classes, probes.patch_size) == (names, names, 8)
    writer.probe_images(images, **given_probes)  # again, after a resume
    with pytest.raises(ValueError, match="other probe images"):
        writer.probe_images(255 - images, **given_probes)


def test_probe_images_without_labels(writer: RunWriter) -> None:
    writer.probe_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), patch_size=8)
    assert Run(writer.path).probe_images()[1:4] == (None, None, None)


def test_backbone_comes_back_with_the_same_features(writer: RunWriter) -> None:
    network, later = small_network(), small_network(seed=1)
    writer.backbone("teacher", 0, architecture_of(network), network.state_dict())
    writer.backbone("teacher", 50, architecture_of(later), later.state_dict())
    images = torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(2))
    run = Run(writer.path)
    assert run.steps() == [0, 50]
    assert run.steps("student") == []
    assert run.roles() == ["teacher"]
    with torch.no_grad():
        expected = later.eval().features(images).patches
        assert torch.equal(run.backbone().features(images).patches, expected)
        assert torch.equal(load_run_backbone(f"run:{writer.path}@step=50:teacher").features(images).patches, expected)
        first = load_run_backbone(f"run:{writer.path}@step=0")
        assert torch.equal(first.features(images).patches, network.eval().features(images).patches)


def test_tied_and_sliced_tensors_are_saved_whole(writer: RunWriter) -> None:
    big = torch.arange(12.0).reshape(3, 4)
    path = writer.backbone("student", 1, {"class": "Linear", "config": {}}, {"a": big.T, "b": big.T, "c": big[1]})
    from safetensors.torch import load_file

    stored = load_file(path)
    assert torch.equal(stored["a"], big.T)
    assert torch.equal(stored["b"], big.T)
    assert torch.equal(stored["c"], big[1])
    assert path.stat().st_size < 1000


# --- torn and foreign bytes -----------------------------------------------------------------------------------------


def test_a_torn_line_waits_until_it_is_whole(writer: RunWriter) -> None:
    writer.metrics(1, 0, {})
    path, run = writer.path / "metrics.jsonl", Run(writer.path)
    rows, position = run.metrics()
    with path.open("ab") as file:
        file.write(b'{"step": 2, "sec')
        file.flush()
        assert run.metrics(position) == ([], position)
        file.write(b'onds": 0}\n')
    assert run.metrics(position)[0] == [{"step": 2, "seconds": 0}]
    assert len(rows) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[1]",
        b"{}",
        b'{"step": "1"}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 1.5}',
        b'{"step": 1',
        b"\xff\xfe\x00",
        b"\x80\x04\x95",
        b"[" * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
)
def test_lines_that_are_no_records_are_skipped_and_counted_once(writer: RunWriter, line: bytes) -> None:
    writer.metrics(1, 0, {})
    with (writer.path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    writer.metrics(2, 0, {})
    run = Run(writer.path)
    for _ in range(2):
        rows, position = run.metrics()
        assert [row["step"] for row in rows] == [1, 2]
    run.metrics(position)
    assert run.skipped["metrics.jsonl"] == 1


def test_numbers_that_are_not_finite_never_come_out(writer: RunWriter) -> None:
    with (writer.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "a": NaN, "b": [-Infinity, {"c": 1e999}], "d": ' + b"9" * 400 + b"}\n")
    assert Run(writer.path).metrics()[0] == [{"step": 1, "a": None, "b": [None, {"c": None}], "d": None}]


@settings(max_examples=150, deadline=None)
@given(data=st.lists(st.one_of(st.binary(max_size=30), st.integers(0, 99).map(lambda n: b'{"step": %d}\n' % n))))
def test_any_bytes_read_in_any_pieces_give_the_same_rows(tmp_path_factory, data: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "metrics.jsonl"
    rows, skipped, position = [], [], 0
    for piece in data:
        with path.open("ab") as file:
            file.write(piece)
        tail = read_tail(path, position)
        assert tail.next_byte >= position
        rows, skipped, position = rows + tail.rows, skipped + tail.skipped, tail.next_byte
    whole = read_tail(path)
    assert (rows, position, skipped) == whole
    complete = b"".join(data).split(b"\n")[:-1]
    assert len(rows) + len(skipped) == len(complete)


def test_a_cut_file_is_read_again_from_the_start(writer: RunWriter) -> None:
    fill(writer, range(8))
    run = Run(writer.path)
    _, position = run.metrics()
    writer.close()
    with RunWriter.reopen(writer.path, step=3) as again:
        assert run.metrics(position) == ([], 0)
        assert [row["step"] for row in run.metrics(0)[0]] == [0, 1, 2, 3]
        again.metrics(4, 0, {"x": 1})
        assert len(run.metrics(0)[0]) == 5
    with pytest.raises(ValueError, match="after_byte"):
        run.metrics(-1)


# --- reopening ------------------------------------------------------------------------------------------------------


def test_reopening_forgets_what_came_later(writer: RunWriter) -> None:
    fill(writer, range(6))
    writer.close()
    with (writer.path / "metrics.jsonl").open("ab") as file:
        file.write(b'not json\n{"step": 2, "torn')
    for folder in (".", "probes", "backbones", "backbones/teacher"):
        (writer.path / folder / ".tmp-stale").write_bytes(b"half")
    (writer.path / "probes" / ".tmp-images").mkdir()
    (writer.path / "resume" / "step-000009").mkdir(parents=True)
    RunWriter.reopen(writer.path, step=3).close()
    run = Run(writer.path)
    for rows, _ in (run.metrics(), run.evaluations(), run.events()):
        assert [row["step"] for row in rows if row.get("kind") != "torn-line"] == [0, 1, 2, 3]
    assert run.skipped["metrics.jsonl"] == 1  # a whole line stays, whatever it is; the torn one is gone
    assert (writer.path / "metrics.jsonl").read_bytes().endswith(b"not json\n")
    assert run.steps() == run.probe_steps() == [0, 1, 2, 3]
    assert not list(writer.path.rglob(".tmp-*"))
    assert (writer.path / "resume" / "step-000009").is_dir()


def test_reopening_tells_what_it_cut(writer: RunWriter) -> None:
    fill(writer, range(4))
    writer.close()
    for name in ("metrics.jsonl", "events.jsonl"):
        with (writer.path / name).open("ab") as file:
            file.write(b'{"step": 2, "torn')
    assert Run(writer.path).torn() == {"metrics.jsonl": 17, "evaluations.jsonl": 0, "events.jsonl": 17}
    with RunWriter.reopen(writer.path, step=2) as again:
        repairs = again.repairs
    events = [row for row in Run(writer.path).events()[0] if row["kind"] == "torn-line"]
    assert [row["text"] for row in events] == repairs
    assert [(row["step"], row["level"]) for row in events] == [(2, "warn")] * 2
    assert repairs[0] == "metrics.jsonl: the last 17 bytes were half a record of a killed write; cut"
    assert set(Run(writer.path).torn().values()) == {0}
    with RunWriter.reopen(writer.path, step=2) as again:
        assert again.repairs == []
    assert len(Run(writer.path).events()[0]) == 3 + 2, "a whole file is no reason for an event"


def test_reopening_before_the_first_step_empties_the_run(writer: RunWriter) -> None:
    fill(writer, range(2))
    writer.close()
    RunWriter.reopen(writer.path, step=None).close()
    run = Run(writer.path)
    assert (run.metrics(), run.steps(), run.probe_steps()) == (([], 0), [], [])


# --- who may write --------------------------------------------------------------------------------------------------


def test_two_writers_are_one_too_many(writer: RunWriter) -> None:
    writer.metrics(1, 0, {})
    with pytest.raises(ValueError, match=f"written by another process.*{os.getpid()}"):
        RunWriter.reopen(writer.path, step=0)
    assert len(Run(writer.path).metrics()[0]) == 1  # the refused writer cut nothing
    writer.close()
    RunWriter.reopen(writer.path, step=1).close()


def test_a_forked_child_does_not_hold_the_claim(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", info=INFO, config={})
    ready, waiting = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(waiting[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    writer.close()
    try:
        RunWriter.reopen(tmp_path / "run", step=0).close()
    finally:
        os.write(waiting[1], b"x")
        os.waitpid(child, 0)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ValueError, match="is a file"):
        RunWriter.create(tmp_path / "run", info=INFO, config={})
    with pytest.raises(ValueError, match="cannot create"):
        RunWriter.create(tmp_path / "run" / "below", info=INFO, config={})
    assert (tmp_path / "run").read_text() == "precious"


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        RunWriter.create(tmp_path, info=INFO, config={})
    assert sorted(path.name for path in tmp_path.iterdir()) in (["thesis.tex"], [".lock", "thesis.tex"])


def test_an_existing_run_is_not_written_over(writer: RunWriter) -> None:
    fill(writer, range(2))
    writer.close()
    with pytest.raises(ValueError, match="resume it"):
        RunWriter.create(writer.path, info=INFO, config={})
    assert len(Run(writer.path).metrics()[0]) == 2


def test_what_a_writer_killed_while_creating_left_is_taken_over(tmp_path: Path) -> None:
    for name in (".lock", ".tmp-1", "config.json"):
        (tmp_path / name).write_text("half")
    RunWriter.create(tmp_path, info=INFO, config={"a": 1}).close()
    assert Run(tmp_path).config == {"a": 1}
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="cannot create"):
            RunWriter.create(tmp_path / "run", info=INFO, config={})
    finally:
        tmp_path.chmod(0o700)


def test_a_place_where_no_folder_can_be_made_is_told() -> None:
    with pytest.raises(ValueError, match="writable place"):
        RunWriter.create("/proc/self/run", info=INFO, config={})


def test_a_full_disk_takes_back_the_half_line_and_keeps_the_old_file(writer: RunWriter) -> None:
    """A file-size limit stands in for the full disk: the kernel writes what fits and then refuses."""
    writer.metrics(1, 0, {})
    writer.probe_features(1, small_features())
    size = (writer.path / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError):
            writer.metrics(2, 0, {"a": 1})
        with pytest.raises(Exception):  # noqa: B017 safetensors raises its own kind
            writer.probe_features(2, small_features())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = Run(writer.path)
    assert (writer.path / "metrics.jsonl").stat().st_size == size
    assert run.probe_steps() == [1]
    assert not list(writer.path.rglob(".tmp-*"))
    writer.metrics(2, 0, {})
    assert [row["step"] for row in run.metrics()[0]] == [1, 2]


# --- how it goes ----------------------------------------------------------------------------------------------------


def test_status_follows_the_life_of_a_run(writer: RunWriter) -> None:
    run = Run(writer.path)
    assert run.age() is None
    writer.event(0, "info", "started", "")
    assert run.status() == "live"
    writer.close()
    assert run.status() == "crashed"
    with RunWriter.reopen(writer.path, step=0) as again:
        assert run.status() == "live"
        again.event(0, "info", "stopped", "")
    assert run.status() == "stopped"
    with RunWriter.reopen(writer.path, step=0) as again:
        again.event(0, "info", "resumed", "")
        again.event(0, "info", "finished", "")
        again.event(0, "info", "saved", "")
    assert run.status() == "ended"
    assert 0 <= (run.age() or -1) < 60
    assert run.age(now=time.time() + 1000) == pytest.approx(1000, abs=60)


def test_status_of_a_run_copied_from_another_machine(writer: RunWriter) -> None:
    writer.metrics(1, 0, {})
    writer.close()
    (writer.path / ".lock").write_text("17 another-machine\n")
    run = Run(writer.path)
    assert run.status(now=time.time()) == "live"
    assert run.status(now=time.time() + 3600) == "silent"


# --- a lock or a record that is no file ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_writer_follows_no_link_and_waits_for_no_pipe(
    writer: RunWriter, tmp_path: Path, name: str, kind: str
) -> None:
    writer.close()
    target, path = tmp_path / "precious", writer.path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target)
    if kind == "link":
        target.write_text("precious")
    with pytest.raises(ValueError, match="no regular file"):
        RunLock(writer.path) if name == ".lock" else append_line(path, b"{}")
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "precious"


def test_asking_who_writes_reads_little_and_never_waits(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_bytes(b"17 " + b"x" * 100_000)
    assert lock_owner(tmp_path) == "17 " + "x" * 197
    for target in ("/dev/zero", tmp_path / "pipe"):
        lock.unlink()
        lock.symlink_to(target)
        assert lock_owner(tmp_path) is None
    lock.unlink()
    os.mkfifo(lock)
    assert lock_owner(tmp_path) is None
    assert is_locked(tmp_path) is None


# --- mistakes and malice --------------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "zeros", "link"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", lambda run: Run(run.path)),
        ("config.json", lambda run: run.config),
        ("events.jsonl", lambda run: run.status()),
        ("metrics.jsonl", lambda run: run.metrics()),
        ("probes/images/probes.json", lambda run: run.probe_images()),
        ("probes/images/001.png", lambda run: run.probe_images()),
        ("probes/step-000000.safetensors", lambda run: run.probe_features(0)),
        ("backbones/teacher/step-000000.safetensors", lambda run: run.backbone()),
        ("backbones/teacher/architecture.json", lambda run: run.architecture()),
    ],
)
def test_a_reader_follows_no_link_and_waits_for_no_pipe(writer: RunWriter, name: str, kind: str, read) -> None:
    """Whoever hands on a run could otherwise stop a server that lists it, or show files of the reader's own."""
    network = small_network()
    writer.backbone("teacher", 0, architecture_of(network), network.state_dict())
    writer.probe_images(torch.zeros(2, 3, 16, 24, dtype=torch.uint8), patch_size=8)
    writer.probe_features(0, small_features())
    writer.metrics(0, 0.0, {"loss/total": 1.0})
    writer.event(0, "info", "finished", "done")
    writer.close()
    run, path = Run(writer.path), writer.path / name
    read(run)
    content = path.read_bytes()
    path.unlink()
    (writer.path.parent / "elsewhere").write_bytes(content)
    target = "/dev/zero" if kind == "zeros" else writer.path.parent / "elsewhere"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target)
    with pytest.raises(ValueError, match=r"no regular file|not a run|no probe features"):
        read(run)


def test_a_file_beyond_all_measure_is_not_read_into_memory(writer: RunWriter) -> None:
    writer.metrics(0, 0.0, {"loss/total": 1.0})
    os.truncate(writer.path / "metrics.jsonl", 1 << 40)  # sparse: it takes no room on the disk
    with pytest.raises(ValueError, match="at most"):
        Run(writer.path).metrics()


def test_missing_folders_and_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no run folder"):
        Run(tmp_path / "nowhere")
    with pytest.raises(RunNotFoundError, match=r"has no run\.json"):
        Run(tmp_path)
    with pytest.raises(ValueError, match="no folder of runs"):
        list_runs(tmp_path / "nowhere")
    assert issubclass(RunNotFoundError, ValueError)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, [1]])
def test_an_unknown_format_version_names_both(writer: RunWriter, version) -> None:
    writer.close()
    path = writer.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    for attempt in (lambda: Run(writer.path), lambda: RunWriter.reopen(writer.path, step=0)):
        with pytest.raises(ValueError, match=r"version .*reads version 1") as error:
            attempt()
        assert repr(version) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 50_000, "\x00"])
def test_a_broken_run_file_is_told_and_hides_no_other_run(writer: RunWriter, text: str) -> None:
    broken = writer.path.parent / "broken"
    broken.mkdir()
    (broken / "run.json").write_text(text)
    (writer.path.parent / "notes").mkdir()
    with pytest.raises(ValueError, match=r"run\.json"):
        Run(broken)
    listing = scan_runs(writer.path.parent)
    assert [run.name for run in listing.runs] == ["run"]
    assert list(listing.problems) == ["broken"]
    assert [run.path for run in list_runs(writer.path)] == [writer.path]  # a run itself is a list of one


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "[red]x[/]", "\x1b[2J", "../../etc/passwd", "名字", "\ud800", 7, None, ""]
)
def test_hostile_names_are_only_text(tmp_path: Path, name, capsys: pytest.CaptureFixture[str]) -> None:
    from workbench.__main__ import main

    RunWriter.create(tmp_path / "runs" / "r", info=INFO, config={}).close()
    about = tmp_path / "runs" / "r" / "run.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "name": name}))
    run = Run(tmp_path / "runs" / "r")
    run.name.encode()  # no lone surrogates
    assert run.name == (
        name if isinstance(name, str) and name and name != "\ud800" else "r" if name != "\ud800" else "?"
    )
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("role", ["../x", "a/b", "", ".hidden", "x" * 200, "a b", "teacher\n"])
def test_roles_that_are_no_plain_names_are_refused(writer: RunWriter, role: str) -> None:
    for attempt in (
        lambda: writer.backbone(role, 0, {}, {}),
        lambda: writer.evaluation(0, 0, role, {}),
        lambda: Run(writer.path).steps(role),
        lambda: Run(writer.path).backbone(role),
    ):
        with pytest.raises(ValueError, match="plain name"):
            attempt()


def test_file_names_of_steps() -> None:
    assert [step_of(step_file(step)) for step in (0, 1, 999_999, 1_000_000)] == [0, 1, 999_999, 1_000_000]
    for name in ("step-1.safetensors", "step-0000001.safetensors", "step-00000a.safetensors", "step-000001.pt", "x"):
        assert step_of(name) is None


@pytest.mark.parametrize("spec", ["", "run:", "timm:x", "run", "vit"])
def test_specs_that_name_no_run(spec: str) -> None:
    with pytest.raises(ValueError, match="run:PATH"):
        load_run_backbone(spec)


def test_missing_snapshots_name_those_that_exist(writer: RunWriter) -> None:
    run = Run(writer.path)
    with pytest.raises(ValueError, match="none yet"):
        run.backbone()
    with pytest.raises(ValueError, match="none yet"):
        run.probe_features(0)
    with pytest.raises(ValueError, match="probe images"):
        run.probe_images()
    fill(writer, range(2))
    with pytest.raises(ValueError, match="0, 1"):
        run.probe_bytes(9)
    with pytest.raises(ValueError, match="0, 1"):
        load_run_backbone(f"run:{writer.path}@step=9")
    with pytest.raises(ValueError, match="teacher"):
        load_run_backbone(f"run:{writer.path}:student")


def test_writer_mistakes_are_told(writer: RunWriter) -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    mistakes = [
        (lambda: writer.metrics(-1, 0, {}), "whole numbers"),
        (lambda: writer.metrics(1.5, 0, {}), "whole numbers"),  # type: ignore[arg-type]
        (lambda: writer.metrics(1, 0, {"step": 2}), "reserved"),
        (lambda: writer.evaluation(1, 0, "teacher", {"backbone": 2}), "reserved"),
        (lambda: writer.event(1, "fatal", "saved", ""), "info, warn, error"),
        (lambda: writer.event(1, "info", "Some Thing", ""), "dense-peak"),
        (lambda: writer.probe_images(images.float(), patch_size=8), "uint8"),
        (lambda: writer.probe_images(images, patch_size=5), "multiples"),
        (lambda: writer.probe_images(images, patch_size=8, masks=torch.zeros(1, 16, 16)), "masks"),
        (lambda: writer.probe_images(images, patch_size=8, masks=torch.full((2, 16, 16), 256)), r"0\.\.255"),
        (lambda: writer.probe_images(images, patch_size=8, captions=[{"en": "a"}]), "1 captions"),
    ]
    for attempt, says in mistakes:
        with pytest.raises(ValueError, match=says):
            attempt()
    assert sorted(path.name for path in writer.path.iterdir()) == [".lock", "config.json", "probes", "run.json"]
    assert not list((writer.path / "probes").iterdir())


def test_a_role_keeps_its_architecture(writer: RunWriter) -> None:
    writer.backbone("teacher", 0, {"class": "A", "config": {"n": (1, 2)}}, {"w": torch.ones(1)})
    writer.backbone("teacher", 1, {"class": "A", "config": {"n": (1, 2)}}, {"w": torch.ones(1)})
    with pytest.raises(ValueError, match="another network"):
        writer.backbone("teacher", 2, {"class": "B", "config": {}}, {"w": torch.ones(1)})


def test_config_that_is_no_json_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunWriter.create(tmp_path / "run", info=INFO, config={"x": object()})
    with pytest.raises(RunNotFoundError):
        Run(tmp_path / "run")
    RunWriter.create(tmp_path / "run", info=INFO, config={}).close()


class Bomb:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_in_a_run_is_never_opened(writer: RunWriter, tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    bomb = pickle.dumps(Bomb(mark))
    fill(writer, range(2))
    writer.probe_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), patch_size=8)
    writer.close()
    victims = [path for path in writer.path.rglob("*") if path.is_file() and path.name not in ("run.json", ".lock")]
    assert len(victims) > 8
    for path in [*victims, writer.path / "resume" / ".metadata", writer.path / "backbones" / "teacher" / "model.pt"]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bomb)
    run = Run(writer.path)
    assert (run.metrics()[0], run.steps(), run.status()) == ([], [0, 1], "crashed")
    for attempt in (
        lambda: run.config,
        lambda: run.backbone(),
        lambda: run.probe_features(1),
        lambda: run.probe_images(),
        lambda: run.architecture(),
    ):
        with pytest.raises(ValueError):
            attempt()
    RunWriter.reopen(writer.path, step=1).close()
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # the bomb works


@pytest.mark.parametrize("cut", [0, 1, 8, 60, -1])
def test_truncated_snapshots_are_told(writer: RunWriter, cut: int) -> None:
    path = writer.probe_features(1, small_features())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="step-000001"):
        Run(writer.path).probe_features(1)


def test_foreign_safetensors_are_no_features(writer: RunWriter) -> None:
    from safetensors.torch import save_file

    path = writer.probe_features(1, small_features())
    save_file({"patches": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a file of probe features"):
        Run(writer.path).probe_features(1)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 5},
        {"count": 10**9},
        {"height": 16},
        {"width": "8"},
        {"patch_size": 3},
        {"height": 10**9},
        {"classes": 1},
    ],
)
def test_probe_descriptions_that_do_not_fit_are_told(writer: RunWriter, change: dict) -> None:
    writer.probe_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), patch_size=8)
    path = writer.path / "probes" / "images" / "probes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="probe"):
        Run(writer.path).probe_images()


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_lists_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from workbench.__main__ import main

    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out
    with RunWriter.create(tmp_path / "first", info=INFO, config={}) as writer:
        fill(writer, range(3))
        writer.evaluation(3, 1, "teacher", {"dense/patch_knn": 0.541, "dense/linear_miou": None})
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "run.json").write_text('{"format_version": 0}')
        assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in ("first", "test", "live", "2 / 10", "54.1 %", "old", "version 0"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "{runs,page,doctor,"),
        (["rums"], "runs"),
        (["runs", "/nowhere"], "/nowhere"),
        (["runs", "a", "b"], "unrecognized arguments: b"),
        (["runs", "--folder", "x"], "--folder"),
    ],
)
def test_command_line_mistakes_exit_2_without_a_traceback(arguments, says, capsys) -> None:
    from workbench.__main__ import main

    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 15


def test_the_main_role_is_the_one_that_the_run_names(tmp_path: Path) -> None:
    network = VisionTransformer(ViTConfig.vit_nano())
    for name, info, roles, expected in (
        ("named", {"backbone": "student"}, ("student", "teacher"), "student"),
        ("unnamed", {}, ("student", "teacher"), "teacher"),
        ("no teacher", {}, ("vits", "student"), "student"),
        ("nothing yet", {}, (), "teacher"),
        ("not a role", {"backbone": "../x"}, ("student",), "student"),
    ):
        with RunWriter.create(tmp_path / name, info=info, config={}) as writer:
            for role in roles:
                writer.backbone(role, len(role), architecture_of(network), network.state_dict())
        run = Run(tmp_path / name)
        assert run.main_role == expected, name
        assert run.steps() == ([len(expected)] if roles else []), name
        if roles:
            assert run.backbone().embed_dim == 96
            assert run.architecture() == run.architecture(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_registers": 10**11}, r"does not fit architecture\.json beside it(.|\n)*storage_tokens"),
        ({"ffn_hidden": 10**12}, r"does not fit architecture\.json beside it(.|\n)*fc1"),
        ({"depth": 10**9}, "depth is 1000000000; it must be at most 1000"),
        ({"norm_eps": "small"}, "a field of ViTConfig that is no such value"),
    ],
)
def test_a_recorded_network_that_no_machine_holds_is_refused_before_it_is_built(
    change: dict, message: str, writer: RunWriter
) -> None:
    network = small_network()
    architecture = architecture_of(network)
    architecture["config"] |= change
    writer.backbone("teacher", 0, architecture, network.state_dict())
    with pytest.raises(ValueError, match=message):
        Run(writer.path).backbone()
