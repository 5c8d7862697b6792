"""Every section of docs/extending.md, done as it says: its file written, its code and its commands run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Outcome
from tests.extend.document import TITLES, sections


def loss_went_down(run: Outcome) -> None:
    assert run.summary["margin/head"] > 0
    assert run.summary["direction_gap/strict"] is not None
    assert yaml.safe_load((run.run_dir / "config.yaml").read_text())["model"]["init_args"]["loss"] == {
        "class_path": "steep.Steep"
    }


def margin_of(norm: str) -> Any:
    def check(run: Outcome) -> None:
        assert run.summary["svm/norm"] == norm
        assert 0.5 < run.summary["relative_margin/norm"] <= 1 + 1e-9

    return check


def four_sequences(run: Outcome) -> None:
    assert run.summary["status/attention"] == "certified"


def vectors_are_kept(run: Outcome) -> None:
    assert 0 <= run.summary["selection/accuracy"] <= 1
    assert len(list(Path("vectors").glob("sentences-*.safetensors"))) >= 1


def second_is_logged(run: Outcome) -> None:
    assert 0 < run.summary["attention/second"] < 0.5
    header = (run.run_dir / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "attention/second" in header


def limit_is_logged(run: Outcome) -> None:
    assert 0 <= run.summary["direction_gap/rightward"] <= 2
    assert run.summary["relative_margin/rightward"] <= 1 + 1e-9


def claim_holds(run: Outcome) -> None:
    numbers = json.loads(Path("experiments/two_tokens/numbers.json").read_text())
    assert numbers["numbers"] == {"margin": 3.0}
    assert "1 of 1 claims hold" in run.out


CHECKS = dict(
    zip(
        TITLES,
        (
            loss_went_down, margin_of("3.0"), margin_of("l1"), four_sequences, vectors_are_kept, second_is_logged,
            limit_is_logged, claim_holds,
        ),
        strict=True,
    )
)  # fmt: skip


@pytest.mark.parametrize("title", TITLES)
def test_a_section_does_what_it_says(title: str, maxmargin: Any, tmp_path: Path) -> None:
    section = sections()[title]
    for name, text in section.files.items():
        (tmp_path / name).write_text(text)
    for script in section.scripts:
        exec(compile(script, title, "exec"), {"__name__": "script"})
    (command,) = section.commands
    program, *words = shlex.split(command)
    assert program == "maxmargin"
    run = maxmargin(*words)
    assert run.status == 0, run.err
    CHECKS[title](run)


def test_every_section_is_here_and_costs_what_the_table_says() -> None:
    found = sections()
    assert tuple(found) == (*TITLES, "Files to touch")
    assert all(len(found[title].files) == 1 for title in TITLES)
    text = (ROOT / "docs" / "extending.md").read_text().split("## Files to touch")[1]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")][1:]
    assert {name.strip(): cost.strip()[0] for name, cost in rows} == dict.fromkeys(
        (
            "loss", "optimizer, usable in ensembles", "norm", "data source", "encoder", "metric", "logged key",
            "limit problem", "experiment",
        ),
        "1",
    )  # fmt: skip


def test_a_class_of_ones_own_needs_to_be_trusted(maxmargin: Any, tmp_path: Path) -> None:
    section = sections()["An experiment"]
    (tmp_path / "two_tokens.py").write_text("raise SystemExit(3)")
    assert "--trust-config" in section.commands[0]
    run = maxmargin("reproduce", "two_tokens.py", "--out", "experiments")
    assert (run.status, "allow it: --trust-config" in run.error) == (2, True)
