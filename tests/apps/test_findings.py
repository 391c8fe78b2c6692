"""The adapter to the run doctor: bounded plain fields, errors first, one look for many viewers."""

from __future__ import annotations

from types import SimpleNamespace

import made_up_findings
import made_up_run
import pytest

from apps import findings
from apps.feed import RunFeed
from apps.findings import FindingsCache, told_finding
from workbench.doctor import examine
from workbench.runs import Run


@pytest.fixture
def sick(tmp_path):
    """(writer, images, feed) of a run that the made-up doctor has something to say about."""
    writer, images = made_up_run.create(tmp_path / "sick", count=1, side=32)
    made_up_run.grow(writer, images, 0, 20)
    feed = RunFeed(writer.path, "id", "version")
    feed.refresh()
    yield writer, images, feed
    writer.close()


@pytest.fixture
def looks(monkeypatch):
    """How often the doctor was asked."""
    seen = []
    monkeypatch.setattr(findings, "examine", lambda run: seen.append(run) or made_up_findings.examine(run))
    return seen


def test_errors_come_first_and_fields_are_whole(sick, looks):
    told = FindingsCache().of(sick[2])["findings"]
    assert [finding["level"] for finding in told] == ["error", "warn", "fine"]
    assert told[1] == {
        "rule": "dead-prototypes",
        "level": "warn",
        "title": {"en": "Few prototypes are used", "zh": "使用的原型过少"},
        "text": {"en": "The loss falls while 3 of 64 are used.", "zh": "64 个原型中只用了 3 个。"},
        "fix": {"en": "python -m training pretrain --head.prototypes 32", "zh": "把原型数改为 32"},
        "metric": "loss/koleo",
        "steps": [40, 60],
        "source": "https://example.invalid/issues/1",
    }


def test_the_doctor_looks_again_when_records_came_but_not_at_once(sick, looks, monkeypatch):
    writer, images, feed = sick
    cache = FindingsCache()
    cache.of(feed)
    cache.of(feed)
    assert len(looks) == 1
    made_up_run.grow(writer, images, 25, 30)
    feed.refresh()
    cache.of(feed)
    assert len(looks) == 1, "it was asked less than SECONDS_BETWEEN ago"
    monkeypatch.setattr(findings, "SECONDS_BETWEEN", 0.0)
    cache.of(feed)
    assert len(looks) == 2


def test_a_run_made_anew_is_looked_at_anew(sick, looks):
    cache, feed = FindingsCache(), sick[2]
    cache.of(feed)
    feed.version = "another"
    cache.of(feed)
    assert len(looks) == 2


def test_a_rule_that_fails_is_an_error_in_words(sick, monkeypatch):
    def fails(run):
        raise AssertionError("odd record")

    monkeypatch.setattr(findings, "examine", fails)
    with pytest.raises(ValueError, match="AssertionError: odd record"):
        FindingsCache().of(sick[2])


def test_foreign_fields_are_bounded_and_plain():
    told = told_finding(
        SimpleNamespace(
            rule="r" * 10**5,
            level="<b>",
            title="one language",
            text={"en": "x" * 10**6, "zh": None},
            fix=None,
            metric=None,
            steps=(-1, 2.5, True, 7, 2**70),
            source=["odd"],
        )
    )
    assert (len(told["rule"]), told["level"], told["metric"], told["steps"]) == (100, "info", "", [7])
    assert told["title"] == {"en": "one language", "zh": "one language"}
    assert len(told["text"]["en"]) == len(told["text"]["zh"]) == findings.WORDS
    assert told["fix"] == {"en": "", "zh": ""}


def test_at_most_so_many_findings_travel(sick, monkeypatch):
    many = (made_up_findings.finding(str(k), "info", title="t", text="t") for k in range(10**4))
    monkeypatch.setattr(findings, "examine", lambda run: many)
    assert len(FindingsCache().of(sick[2])["findings"]) == findings.MOST_FINDINGS
    late = (
        made_up_findings.finding(str(k), "error" if k == 999 else "info", title="t", text="t") for k in range(10**3)
    )
    monkeypatch.setattr(findings, "examine", lambda run: late)
    assert FindingsCache().of(sick[2])["findings"][0]["level"] == "error", "the gravest is not cut off"


def test_the_doctor_s_own_findings_are_told_whole(tmp_path):
    """No made-up ones here: every field of what the doctor says of a run reaches the page."""
    writer, images = made_up_run.create(tmp_path / "run", side=64)
    made_up_run.grow(writer, images, 0, 60)
    made_up_run.peak(writer, 60, peak_step=20, since=40)
    writer.close()
    found = examine(Run(tmp_path / "run"))
    assert "dense-peak" in {finding.rule for finding in found}
    for finding in found:
        told = told_finding(finding)
        assert (told["rule"], told["level"]) == (finding.rule, finding.level)
        assert told["title"] == finding.title
        assert told["text"]["zh"] == finding.text["zh"][: findings.WORDS]
        assert told["metric"] == (finding.metric or "")
