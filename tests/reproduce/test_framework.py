"""An experiment from its YAML to table, page and exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.command import FOLDER, _read
from lightning_maxmargin.reproduce.draw import draw_panels
from lightning_maxmargin.reproduce.experiment import Claim, read_experiment
from lightning_maxmargin.reproduce.page import time_text
from lightning_maxmargin.reproduce.panel import Line, Panel, ray
from lightning_maxmargin.reproduce.run import Row

GOOD = (FOLDER / "joint_relaxed.yaml").read_text()


@pytest.mark.parametrize(
    ("bounds", "x", "holds"),
    [
        ({"value": 1.0, "within": 0.1}, 1.05, True),
        ({"value": 1.0, "within": 0.1}, 1.2, False),
        ({"at_least": 2.0}, 2.0, True),
        ({"at_least": 2.0}, 1.9, False),
        ({"at_most": 2.0, "at_least": 1.0}, 0.5, False),
        ({"at_most": 2.0}, float("nan"), False),
        ({"at_most": 2.0}, float("inf"), False),
    ],
)
def test_a_claim_is_decided_by_its_bounds(bounds: dict[str, float], x: float, holds: bool) -> None:
    assert Claim("c", "x", **bounds).holds({"x": x}) is holds
    assert not Claim("c", "y", **bounds).holds({"x": x})


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"value": 1.0},
        {"within": 1.0},
        {"value": 1.0, "within": float("nan")},
        {"value": 1.0, "within": -0.1},
        {"at_least": True},
        {"at_most": float("inf")},
        {"at_most": "-.8"},
    ],
)
def test_a_claim_without_a_proper_bound_is_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Claim("c", "x", **bounds)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_experiment_can_be_read(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.claims
    for quick in (True, False):
        experiment.chosen(quick)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 1000", "stepps: 1000", "stepps"),
        ("title:", "titel:", "titel"),
        ("joint.joint", "joint.nothing", "nothing"),
        ("lightning_maxmargin.reproduce.joint.joint", "os.system", "--trust-config"),
        ("    key: cos/strict\n", "    kee: cos/strict\n", "kee"),
        ("at_most: .985", "at_mots: .985", "at_mots"),
        ("settings:", "settings: [", "cannot be read"),
        ("quick: {}", "quick: [1]", "quick is [1]"),
        ("quick: {}", "quick: {1: 2}", "quick"),
        ("quick: {}", "quick: {stepps: 2}", "stepps"),
        ("title: ", "title: [1] # ", "title is [1]"),
        ("reproduce.joint.joint", "reproduce.nowhere.joint", "cannot be imported"),
        ("  example: joint_relaxed", "  # example", "example"),
        ("steps: 1000", "progress: 1000", "progress"),
        ("steps: 1000", "steps: abc", "fails with these settings"),
        ("steps: 1000", "steps: -5", "fails with these settings"),
        ("steps: 1000", "steps: 5", "fails with these settings"),
        ("key: cos/strict", "key: [1]", "key is [1]"),
        ("claim: cosine of p with the strict SVM at step 1,000", "claim: 5", "claim is 5"),
        ("at_most: .985", "at_least: true", "at_least is True"),
        ("within: 1.0e-5", "within: .nan", "within is nan"),
        ("within: 1.0e-5", "within: -1", "within is -1"),
    ],
)
def test_a_wrong_file_is_refused_before_any_work(
    old: str, new: str, words: str, tmp_path: Path, maxmargin: Any
) -> None:
    assert old in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new))
    found = maxmargin("reproduce", str(path), "--out", str(tmp_path / "out"))
    assert found.status == 2
    assert words in found.error
    assert "Traceback" not in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["5", "", "[1]", GOOD.replace("settings:", "settings: abc\nold:")])
def test_what_is_no_experiment_is_refused(text: str, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert "mine.yaml" in maxmargin("reproduce", "mine.yaml").error


@pytest.mark.parametrize(
    ("key", "x", "words"),
    [
        ("settings", [1], "settings is [1]"),
        ("settings", "abc", "settings is 'abc'"),
        ("claims", 5, "claims is 5"),
        ("claims", [5], "a claim is 5"),
    ],
)
def test_a_wrong_kind_of_entry_is_named(key: str, x: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(GOOD), key: x}))
    with pytest.raises(InputError, match=re.escape(words)):
        read_experiment(path)


def test_a_function_must_return_an_outcome(tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_maxmargin.reproduce.joint.joint", lambda progress, **_: {"x": 1.0})
    found = maxmargin("reproduce", "joint_relaxed", "--out", str(tmp_path / "out"))
    assert found.status == 2
    assert "returns no Outcome" in found.error
    assert not (tmp_path / "out").exists()


def test_names_are_checked_and_run_once(tmp_path: Path, maxmargin: Any) -> None:
    assert "nope.yaml is neither a file nor a shipped config" in maxmargin("reproduce", "nope.yaml").error
    (tmp_path / "joint_tight.yaml").write_text(GOOD)
    found = maxmargin("reproduce", "joint_tight", "joint_tight.yaml")
    assert found.status == 2
    assert "have one name" in found.error
    assert len(_read(["joint_tight", "joint_tight"], False)) == 1
    everything = _read(["all"], False)
    assert [e.name for e in _read(["all", "joint_tight"], False)] == [e.name for e in everything]


def test_the_option_is_called_out_in_errors(tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        found = maxmargin("reproduce", "joint_tight", "--out", out)
        assert found.status == 2
        assert "--out" in found.error
        assert "run_dir" not in found.error


@pytest.mark.parametrize("stop", [ValueError("odd size"), pytest.param(KeyboardInterrupt(), marks=pytest.mark.slow)])
def test_what_finished_is_kept_when_a_later_one_stops(
    stop: BaseException, tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multi(progress: Any, **_: Any) -> None:
        raise stop

    monkeypatch.setattr("lightning_maxmargin.reproduce.multi.multi", multi)
    out = tmp_path / "out"
    found = maxmargin("reproduce", "joint_tight", "multi", "--out", str(out))
    assert found.status == (2 if isinstance(stop, ValueError) else 1)
    assert "claims hold" in found.out
    assert f"report {out / 'reproduction.html'}" in found.out
    assert {p.name for p in out.iterdir()} == {"joint_tight", "reproduction.html", "reproduction.md"}
    assert ("multi fails with these settings (ValueError: odd size)" in found.error) is isinstance(stop, ValueError)
    assert ("interrupted" in found.error) is isinstance(stop, KeyboardInterrupt)
    assert f"1 of 2 experiments finished, see {out}" in found.error


def test_experiments_compute_on_one_thread(tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def multi(progress: Any, **_: Any) -> None:
        seen.append(torch.get_num_threads())
        raise ValueError

    monkeypatch.setattr("lightning_maxmargin.reproduce.multi.multi", multi)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        maxmargin("reproduce", "multi", "--out", str(tmp_path / "out"))
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_a_missing_extra_is_named_before_any_work(
    tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_maxmargin.reproduce.transformer_data.find_spec", lambda name: None)
    found = maxmargin("reproduce", "joint_tight", "transformer_digits", "--out", str(tmp_path / "out"))
    assert found.status == 2
    assert "scikit-learn is missing" in found.error
    assert not (tmp_path / "out").exists()


def test_a_number_that_the_run_did_not_make_is_called_so() -> None:
    claim = Claim("c", "x", at_least=1.0)
    assert Row("e", claim, None, None, claim.holds({})).cells[3:7] == ["-", "-", "≥ 1", "no such number"]
    assert Row("e", claim, -7.85046e-17, 0.5, True).cells[3:5] == ["0", "0.5"]


def test_from_the_command_to_the_page(tmp_path: Path, maxmargin: Any) -> None:
    out = tmp_path / "out"
    found = maxmargin("reproduce", "joint_relaxed", "--out", str(out))
    assert found.status == 0, found.err
    assert "11 of 11 claims hold" in found.out
    folder = out / "joint_relaxed"
    assert {p.name for p in folder.iterdir()} == {"figure.png", "figure.pdf", "claims.csv", "numbers.json"}
    numbers = json.loads((folder / "numbers.json").read_text())["numbers"]
    # math.md's gold values along the way, and the artefact of the public run.
    assert numbers["cos/relaxed/200"] == pytest.approx(0.99986, abs=1e-5)
    assert numbers["naive/cos/strict"] > 0.9999
    page = (out / "reproduction.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "--quick" not in page
    for text in (page, (out / "reproduction.md").read_text()):
        assert "ours comes from exact gradients" in text
        assert " seconds on " in text
    again = maxmargin("reproduce", "joint_relaxed", "--out", str(out))
    assert again.status == 2
    assert "never overwritten" in again.error


@pytest.mark.slow
def test_a_quick_page_says_so(tmp_path: Path, maxmargin: Any) -> None:
    assert maxmargin("reproduce", "joint_tight", "--quick", "--out", str(tmp_path / "out")).status == 0
    for name in ("reproduction.html", "reproduction.md"):
        assert "maxmargin reproduce joint_tight --quick" in (tmp_path / "out" / name).read_text()


def test_long_runs_are_told_in_minutes() -> None:
    assert [time_text(x) for x in (3.2, 119.0, 150.0)] == ["3 seconds", "119 seconds", "2.5 minutes"]


def test_a_failed_claim_is_exit_status_1(tmp_path: Path, maxmargin: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("at_most: .985", "at_most: .5"))
    found = maxmargin("reproduce", str(path))
    assert found.status == 1
    assert "10 of 11 claims hold" in found.out
    assert "NO" in found.out


def test_without_names_it_lists(maxmargin: Any) -> None:
    found = maxmargin("reproduce")
    assert found.status == 0
    assert "joint_relaxed" in found.out
    assert maxmargin("reproduce", "nothing").status == 2
    assert maxmargin("reproduce", "--quik").status == 2


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    x = np.arange(1.0, 30)
    kinds = ("line", "dashed", "dotted", "dots", "arrows")
    lines = [Line(x, x * (i + 1), k, kind=k, low=x, high=x * 3) for i, k in enumerate(kinds)]  # type: ignore[arg-type]
    panels = [
        Panel("lines", "x", "y", [*lines, ray(np.array([1.0, 2.0]), "svm", "strict")]),
        Panel("logs", lines=lines, log="xy", xlim=(1, 10)),
        Panel("map", image=np.eye(3), rows=["a", "b", "c"], columns=["d", "e", "f"]),
        Panel("picture", image=np.eye(3), digits=False),
    ]
    written = draw_panels(panels, "title", tmp_path / "figure")
    assert [p.suffix for p in written] == [".png", ".pdf"]
    assert all(p.stat().st_size > 5000 for p in written)
    assert written[0].read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
