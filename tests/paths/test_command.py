"""``maxmargin path``: shipped configs, what they leave, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, config

CONFIGS = sorted(p.stem for p in (ROOT / "configs" / "paths").glob("*.yaml"))


# The others take five seconds each; their paths are in test_gold.
@pytest.mark.parametrize("name", [x if x == "multi" else pytest.param(x, marks=pytest.mark.slow) for x in CONFIGS])
def test_config_runs_and_fills_a_new_directory(name: str, maxmargin: Any, tmp_path: Path) -> None:
    words = ("path", "--config", config(f"paths/{name}"), "--run_dir", str(tmp_path / "out"), "--starts", "1")
    outcome = maxmargin(*words)
    assert outcome.status == 0, outcome.err
    rows = list(csv.DictReader((tmp_path / "out" / "path.csv").open()))
    points = json.loads((tmp_path / "out" / "path.json").read_text())["points"]
    assert len(rows) == len(points) > 4
    assert {row["status"] for row in rows} == {"stationary"}
    assert min(float(points[-1][k]) for k in ("gap_strict", "gap_relaxed") if points[-1][k] is not None) < 1e-6
    assert (tmp_path / "out" / "figure.png").read_bytes()[:4] == b"\x89PNG"
    again = maxmargin(*words)
    assert again.status == 2
    assert "never overwritten" in again.error
    assert len(list(csv.DictReader((tmp_path / "out" / "path.csv").open()))) == len(rows)


def test_a_run_can_be_repeated_from_its_own_config(maxmargin: Any, tmp_path: Path) -> None:
    words = ("--config", config("paths/local"), "--radii", "[3, 30]")
    assert maxmargin("path", *words, "--run_dir", str(tmp_path / "a")).status == 0
    own = str(tmp_path / "a" / "config.yaml")
    outcome = maxmargin("path", "--config", own, "--run_dir", str(tmp_path / "b"))
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "a" / "path.csv").read_text() == (tmp_path / "b" / "path.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--radii", "[[1, 2]]"], "radii"),
        (["--radii", "[-1]"], "radii"),
        (["--radii", "many"], "radii"),
        (["--radii", "[1e-200]"], "radii"),
        (["--radii", "[1e200]"], "radii"),
        (["--seed", "-1"], "seed: -1; expected a number from 0"),
        (["--starts", "0"], "starts is 0"),
        (["--head", "none"], "radii"),
        (["--head", "[1, 2]"], "head"),
        (["--loss", "hinge"], "loss"),
        (["--selected", "[0, 0]"], "selected"),
        (["--cone", "3"], "cone"),
        (["--data.example", "nothing"], "example"),
        (["--radius", "[1]"], "radius"),
        (["--data", "os.path"], ""),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words: list[str], said: str, maxmargin: Any, tmp_path: Path) -> None:
    outcome = maxmargin("path", "--config", config("paths/multi"), "--run_dir", str(tmp_path / "out"), *words)
    assert outcome.status == 2
    assert said in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", ["none", "data"])
def test_data_of_several_instances_are_refused(head: str, maxmargin: Any, tmp_path: Path) -> None:
    data = ("--data", "RandomInstances", "--data.B", "3")
    radii = "[[1, 1]]" if head == "none" else "[1]"
    outcome = maxmargin("path", *data, "--radii", radii, "--head", head, "--run_dir", str(tmp_path / "out"))
    assert outcome.status == 2
    assert "3 instances" in outcome.error
    assert not (tmp_path / "out").exists()
