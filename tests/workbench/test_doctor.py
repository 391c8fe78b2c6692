"""The doctor as people and pages meet it: the command line, foreign and hostile folders, its cost, its document."""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent))
from doctor_runs import HEALTHY, SCORES, STEPS, demo_tree, tree_of, write_run

from training.recipes import cpu_anchor
from workbench.__main__ import main
from workbench.doctor import MOST_NOTES, RULES, THEMES, Case, Finding, diagnose, examine
from workbench.doctor.case import Curve
from workbench.doctor.finding import Note, both, plain, rule, run_spec
from workbench.doctor.read import HEAD_BYTES, TAIL_BYTES, read_lines
from workbench.doctor.report import sparkline
from workbench.doctor.sources import RUN_FORMAT
from workbench.doctor.table import rules_table
from workbench.runs import Run, RunWriter

ROOT = Path(__file__).resolve().parents[2]
RULES_FILES = [Path(str(theme.__file__)) for theme in THEMES]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("doctor") / "healthy")


def config_file(folder: Path, tree: Any) -> str:
    path = folder / "some config.json"
    path.write_text(json.dumps(tree))
    return str(path)


# --- the command ----------------------------------------------------------------------------------------------------


def test_exit_codes(healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(healthy)]) == 0
    assert "no" not in capsys.readouterr().err
    assert main(["doctor", config_file(tmp_path, demo_tree(optim__clip_norm=None))]) == 0, "a note is no warning"
    assert main(["doctor", config_file(tmp_path, demo_tree(augment__local_size=64))]) == 1
    assert main(["doctor", config_file(tmp_path, demo_tree(augment__local_size=28))]) == 1


def test_a_finding_is_printed_with_evidence_curve_fix_and_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", metrics={"loss/dino": lambda step: 4.852})
    assert main(["doctor", str(folder)]) == 1
    english = capsys.readouterr().out
    assert "error: Loss stuck at ln K  [loss-stuck]" in english
    assert "4.852" in english
    assert "loss/dino ▁▁" in english
    assert "--objective.teacher-temperature.peak 0.04" in english
    assert "https://github.com/facebookresearch/dinov3/issues/199" in english
    assert main(["doctor", str(folder), "--language", "zh"]) == 1
    chinese = capsys.readouterr().out
    assert "错误: 损失停在 ln K" in chinese
    assert "学生认为所有原型同样可能" in chinese


def test_a_config_can_come_from_the_command_that_would_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standard_input = io.TextIOWrapper(io.BytesIO(json.dumps(tree_of(cpu_anchor())).encode()))
    monkeypatch.setattr(sys, "stdin", standard_input)
    assert main(["doctor", "-"]) == 1
    assert "[gram-teacher-none]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b'"text"', b"\xff\xfe", b"[" * 50_000, b'{"a":' * 50_000, b"{}", b'{"a": 1}'],
    ids=repr,
)
def test_what_is_no_config_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert main(["doctor", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_places_that_are_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "large.json").write_bytes(b" " * (9 << 20))
    later = tmp_path / "later"
    later.mkdir()
    (later / "run.json").write_text('{"format_version": 2}')
    places = [tmp_path / "absent", tmp_path, tmp_path / "pipe", tmp_path / "large.json", later]
    for place in [*map(str, places), "/dev/null", "/dev/zero", "", "\0"]:
        assert main(["doctor", place]) == 2, place
        assert capsys.readouterr().err.startswith("error: "), place
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(tmp_path), "--language", "fr"])
    assert stop.value.code == 2


def test_the_command_starts_without_torch_networks_and_ends_cleanly(healthy: Path) -> None:
    command = [sys.executable, "-m", "workbench", "doctor", str(healthy), "--language", "zh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert f"{len(RULES)} 条规则" in done.stdout


# --- what others left in the folder ---------------------------------------------------------------------------------


def test_links_pipes_and_junk_inside_a_run_are_findings(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "events.jsonl", "config.json"):
        (folder / name).unlink()
    os.mkfifo(folder / "metrics.jsonl")
    (folder / "events.jsonl").symlink_to("/etc/hostname")
    (folder / "config.json").write_text("[" * 100_000)
    (folder / "backbones" / "teacher" / "architecture.json").write_bytes(b"\0" * 100)
    started = time.monotonic()
    (finding,) = [each for each in examine(Run(folder)) if each.rule == "record-damaged"]
    assert time.monotonic() - started < 5, "a pipe is not waited for"
    assert "no regular file" in finding.text["en"]
    assert "config.json" in finding.text["zh"]


NASTY = "</script>\x1b[31m\n\u202e[bold red]" + "长" * 5000 + "\ud800"


def test_foreign_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, specs and events of others reach the terminal and the page without control characters, and cut."""
    folder = write_run(
        tmp_path / "run",
        config=demo_tree(start__weights="run:\x1b[2J[red]" + "x" * 500, loop__precision="\x07fp8[/]"),
        info={"name": "\x1b[31mevil[/bold]", "recipe": "$(reboot); rm -rf /", "phase": "`id`"},
        ended=False,
    )
    with (folder / "events.jsonl").open("a") as file:
        for kind in ("bad-image", "failed", "dense-peak"):
            file.write(json.dumps({"step": 500, "level": "warn", "kind": kind, "text": NASTY}) + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 820, f"loss/{NASTY}": None, f"gradient_norm/{NASTY}": 1}) + "\n")
    findings = examine(Run(folder))
    assert {"bad-images", "ended-badly", "dense-peak", "losses-null", "heads-missing"} <= {f.rule for f in findings}
    for finding in findings:
        for text in (finding.text, finding.fix):
            assert all(words.isprintable() and len(words) < 2000 for words in text.values()), finding
            assert "reboot" not in text["en"]
        assert finding.metric is None or finding.metric.isprintable()
        json.dumps(finding.text).encode()
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out
    assert "\x07" not in out


def test_a_command_is_quoted_for_a_shell() -> None:
    assert run_spec("runs/a b; rm -rf $HOME", 3) == "'run:runs/a b; rm -rf $HOME@step=3'"
    assert plain("a\nb\x1b" + "c" * 500).startswith("a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c")
    assert len(plain("c" * 500)) == 120


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, 1, -1, 0.0, 1e-300, 1e300, 1e15, 2**53, "", "ema", "fork", "run:a@step=1", "run:@step=9"]),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
ANCHORED = tree_of(cpu_anchor())


def leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all values of a tree, branches too."""
    below = [leaves(value, (*prefix, key)) for key, value in tree.items() if isinstance(value, dict)]
    return [(*prefix, key) for key in tree] + [path for paths in below for path in paths]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_rule_breaks_on_values_of_any_kind(data: st.DataObject) -> None:
    """Configs and records with values of other kinds and sizes: every rule judges or is silent, none raises."""
    config = copy.deepcopy(ANCHORED)
    for path in data.draw(st.lists(st.sampled_from(leaves(ANCHORED)), max_size=8)):
        place: Any = config
        for key in path[:-1]:
            place = place[key] if isinstance(place, dict) and isinstance(place.get(key), dict) else {}
        place[path[-1]] = data.draw(LEAVES)
    names = st.sampled_from([*HEALTHY, *SCORES, "queue/filled", "loss/contrast", "loss/ibot", "contrast/spread"])
    kinds = st.sampled_from(["nan-skipped", "diverged", "dense-peak", "resumed", "bad-image", "failed", "finished"])
    steps = st.one_of(st.integers(0, 900), st.integers(0, 10**17))
    rows = st.lists(
        st.builds(lambda step, row: {**row, "step": step}, steps, st.dictionaries(names, LEAVES, max_size=6)),
        max_size=30,
    )
    events = st.lists(st.builds(lambda s, k, t: {"step": s, "kind": k, "text": t}, steps, kinds, LEAVES), max_size=5)
    case = Case(
        config=config,
        path=data.draw(st.sampled_from(["", "runs/x"])),
        info=data.draw(st.dictionaries(st.sampled_from(["steps", "seed", "parent", "input", "machine"]), LEAVES)),
        state=data.draw(st.sampled_from(["", "live", "ended", "crashed", "silent"])),
        metrics=data.draw(rows),
        evaluations=data.draw(rows),
        events=data.draw(events),
        architecture={"config": data.draw(st.dictionaries(st.sampled_from(["embed_dim", "depth"]), LEAVES))},
    )
    for each in RULES:
        for note in each.check(case):
            assert note.text["en"].isprintable()
            assert note.steps is None or len(note.steps) == 2


def test_a_rule_that_breaks_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, healthy: Path) -> None:
    def broken(case: Case):
        raise RuntimeError("what nobody thought of")
        yield

    endless = rule("endless", "Endless", "没完", RUN_FORMAT, lambda case: iter(lambda: note, None))
    note = Note("warn", both("1", "1"), both("2", "2"))
    monkeypatch.setattr("workbench.doctor.RULES", (rule("broken", "Broken", "坏", RUN_FORMAT, broken), endless))
    findings = examine(Run(healthy))
    assert [finding.rule for finding in findings] == ["endless"] * MOST_NOTES + ["broken"]
    assert "what nobody thought of" in findings[-1].text["en"]
    assert findings[-1].level == "info"


# --- what a page asks every few seconds -----------------------------------------------------------------------------


def test_a_long_record_is_read_at_its_ends(tmp_path: Path) -> None:
    """100,000 rows cost no more than some hundred; both ends are looked at, and the part left out is no hole."""
    folder = write_run(tmp_path / "run", config=demo_tree(loop__steps=2_000_000), info={"steps": 2_000_000}, probes=[])
    with (folder / "metrics.jsonl").open("w") as file:
        for index in range(100_000):
            row = {name: curve(index % STEPS) for name, curve in HEALTHY.items()}
            file.write(json.dumps({"step": 20 * (index + 1), "seconds": float(index)} | row) + "\n")
    lines = read_lines(folder / "metrics.jsonl")
    assert lines.rows[0]["step"] == 20
    assert lines.rows[-1]["step"] == 2_000_000
    assert lines.gap in {row["step"] for row in lines.rows}
    assert len(json.dumps(lines.rows)) < 1.2 * (HEAD_BYTES + TAIL_BYTES)
    started = time.process_time()
    findings = examine(Run(folder))
    assert time.process_time() - started < 1.5, "0.1 s on a quiet core"
    assert not [finding for finding in findings if finding.rule in ("steps-missing", "record-damaged")]


def test_a_run_is_examined_while_it_is_written(tmp_path: Path) -> None:
    about = {"phase": "pretrain", "recipe": "cpu_demo", "seed": 0, "steps": STEPS, "parent": None}
    with RunWriter.create(tmp_path / "run", info=about, config=demo_tree()) as writer:
        assert not [f for f in examine(Run(writer.path)) if f.level in ("warn", "error")]
        writer.metrics(20, 1.0, {name: curve(20) for name, curve in HEALTHY.items()} | {"loss/dino": 4.85})
        with (writer.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 40, "loss/di')
        findings = examine(Run(writer.path))
    assert [finding.rule for finding in findings if finding.level == "fine"] == ["loss-near-uniform"]
    assert "ended-badly" not in {finding.rule for finding in findings}, "its writer lives"


def test_fields_of_a_finding(tmp_path: Path) -> None:
    """What the monitor's page is built on."""
    folder = write_run(tmp_path / "run", metrics={"speed/data_wait": lambda step: 0.5})
    (finding,) = [each for each in examine(Run(folder)) if each.level == "warn"]
    assert isinstance(finding, Finding)
    assert list(vars(finding)) == ["rule", "level", "title", "text", "fix", "metric", "steps", "source"]
    assert (finding.rule, finding.metric, finding.steps) == ("data-wait", "speed/data_wait", (420, 800))
    assert finding.source == "https://github.com/DingXiaoH/RepVGG/issues/40"


def test_a_sparkline_spans_from_lowest_to_highest() -> None:
    assert sparkline(Curve([1, 2, 3], [0.0, 0.5, 1.0])) == "▁▅█"
    assert sparkline(Curve([1, 2], [3.0, 3.0])) == "▁▁"
    long = sparkline(Curve(list(range(1000)), [float(i) for i in range(1000)]))
    assert len(long) == 32
    assert long[0] + long[-1] == "▁█"


# --- the rules as code and as a document ----------------------------------------------------------------------------


def test_the_document_lists_the_rules_as_they_are() -> None:
    document = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert document.endswith(rules_table()), "python -m workbench.doctor.table prints what docs/doctor.md ends with"
    for each in RULES:
        assert f"| `{each.name}` |" in document


def test_rules_have_one_name_and_a_source_each() -> None:
    names = [each.name for each in RULES]
    assert len(set(names)) == len(names)
    for each in RULES:
        title, url = each.source
        assert url is None or url.startswith("https://github.com/")
        assert title
        assert (ROOT / title).exists() or "arXiv" in title or "#" in title, title


@pytest.mark.parametrize("path", RULES_FILES, ids=lambda path: path.name)
def test_a_theme_of_rules_opens_nothing(path: Path) -> None:
    """Rules are pure: only read.py knows files, only report.py prints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {f"workbench.doctor.{name}" for name in ("case", "finding", "tree", "gram", "crops", "dense", "collapse")}
    others = {"__future__", "math", "re", "shlex", "itertools", "collections.abc"}
    assert imported <= ours | others | {"workbench.doctor", "workbench.images"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "exec", "eval"}


def test_diagnose_is_pure() -> None:
    case = Case(config=demo_tree(augment__local_size=28))
    assert diagnose(case) == diagnose(case)
