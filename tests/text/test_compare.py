"""Two runs on the same documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from lightning_maxmargin.figures.compare_page import OUTCOMES
from lightning_maxmargin.text.compare import compared, sentences
from lightning_maxmargin.text.finished import read_run
from lightning_maxmargin.text.pooled import PoolingModel
from lightning_maxmargin.text.significance import mcnemar, paired_bootstrap
from tests.figures.pages import read_page

from .conftest import reviews, write_rows


@pytest.fixture(scope="module")
def other(make_run: Callable[..., Path]) -> Path:
    """A run of fewer documents and another attention."""
    return make_run(attention=6.0, seed=5, documents=20)


def _numbers(gain: float, p: float, low: float, high: float) -> dict[str, Any]:
    middle = (low + high) / 2
    return {
        "runs": ["A", "B"],
        "accuracy": {"difference": {"mean": gain}, "mcnemar_p": p, "only_a_right": 9, "only_b_right": 1},
        "auprc": {"difference": {"mean": middle, "low": low, "high": high}},
    }


def test_the_numbers_are_those_of_the_tests(finished: Path, other: Path) -> None:
    runs = [read_run(finished), read_run(other)]
    documents = runs[0].test_documents()
    found = compared(runs, documents)
    right = []
    for run in runs:
        split = run.split(documents)
        right.append(np.array(PoolingModel(run.model, split).predicted) == split.labels.numpy())
    assert found["accuracy"]["difference"]["mean"] == pytest.approx(right[0].mean() - right[1].mean())
    low = paired_bootstrap(*right).low
    assert found["accuracy"]["difference"]["low"] == low
    assert found["accuracy"]["mcnemar_p"] == mcnemar(*right).p
    assert found["auprc"]["documents"] == 40


def test_a_run_against_itself(maxmargin: Any, finished: Path, tmp_path: Path) -> None:
    outcome = maxmargin("compare", str(finished), str(finished), "--output", "out.json")
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["accuracy"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["accuracy"]["mcnemar_p"] == 1.0
    assert all(line.startswith("The data do not tell") for line in found["sentences"])
    assert "The data do not tell which classifies better" in " ".join(outcome.out.split())


def test_the_page_is_beside_and_never_over_anything(
    maxmargin: Any, finished: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for run in (finished, other) for path in run.rglob("*")}
    name = f"compare-{finished.name}-{other.name}"
    for page in (f"{name}.html", f"{name}-2.html"):
        outcome = maxmargin("compare", str(finished), str(other))
        assert outcome.status == 0, outcome.err
        assert outcome.out.splitlines()[-1] == page
    first = read_page((tmp_path / f"{name}.html").read_text())
    assert "classif" in first.text.split("Side by side")[0]
    data = first.data["data-documents"]
    found = compared([read_run(finished), read_run(other)], read_run(finished).test_documents())
    outcomes = [row[0][2] for row in data["rows"]]
    assert outcomes.count("only A right") == found["accuracy"]["only_a_right"]
    assert outcomes.count("only B right") == found["accuracy"]["only_b_right"]
    assert len(outcomes) == 40
    assert outcomes == sorted(outcomes, key=list(OUTCOMES.values()).index)
    assert all(len(row) == 3 for row in data["rows"])
    outcome = maxmargin("compare", str(finished), str(other), "--output", f"{name}.html")
    assert (outcome.status, "never overwritten" in outcome.error) == (2, True)
    (tmp_path / "mine.html").write_text("mine")
    outcome = maxmargin("compare", str(finished), str(other), "--output", "mine.json")
    assert (outcome.status, "never overwritten" in outcome.error) == (2, True)
    assert (tmp_path / "mine.html").read_text() == "mine"
    monkeypatch.chdir(other)
    outcome = maxmargin("compare", str(finished), str(other))
    assert outcome.status == 0, outcome.err
    assert "no page: the current directory is of the run" in outcome.out
    assert before == {path: path.stat().st_mtime_ns for run in (finished, other) for path in run.rglob("*")}


def test_what_the_numbers_say() -> None:
    better, finds = sentences(_numbers(0.1, 0.02, 0.05, 0.15))
    assert better.startswith("A classifies better, by 0.100 of accuracy (McNemar's p = 0.02, on 9 and 1")
    assert finds == "A finds more of the words that people marked (AUPRC differs by +0.100 [+0.050, +0.150])."
    better, finds = sentences(_numbers(-0.1, 0.02, -0.15, -0.05))
    assert better.startswith("B classifies better")
    assert finds.startswith("B finds more")
    better, finds = sentences(_numbers(-0.1, 0.2, -0.15, 0.05))
    assert better.startswith("The data do not tell which classifies")
    assert finds.startswith("The data do not tell which finds")


def test_other_documents(maxmargin: Any, finished: Path, other: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": row["label"]} for row in reviews(10, 8)]
    write_rows(tmp_path / "more.jsonl", rows)
    outcome = maxmargin("compare", str(finished), str(other), "--data", "more.jsonl")
    assert outcome.status == 0, outcome.err
    assert "10 documents of more.jsonl" in outcome.out
    assert "AUPRC" not in outcome.out


def test_one_line_for_bad_input(maxmargin: Any, finished: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    assert "nowhere holds no model/" in maxmargin("compare", str(finished), "nowhere").error
    assert "--seed: -1" in maxmargin("compare", str(finished), str(finished), "--seed", "-1").error
    rows = [{**row, "label": f"very {row['label']}"} for row in reviews(20, 1)]
    write_rows(tmp_path / "train.jsonl", rows)
    folder = make_run(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "train.jsonl"))
    outcome = maxmargin("compare", str(finished), str(folder))
    assert outcome.status == 2
    assert "the labels differ" in outcome.error
    lonely = make_run(seed=9)
    (lonely / "config.yaml").unlink()
    assert "names no test file; give one with --data" in maxmargin("compare", str(lonely), str(finished)).error
    (folder / "config.yaml").write_text("a: [")
    assert "config.yaml: no YAML that can be read" in maxmargin("compare", str(folder), str(finished)).error
    (folder / "model" / "model.safetensors").write_bytes(b"")
    assert "holds no saved selector" in maxmargin("compare", str(folder), str(finished)).error


def _ended(folder: Path, accuracy: float, lead: float | None) -> str:
    folder.mkdir()
    (folder / "corpus.json").write_text(json.dumps({"accuracy": {"val": accuracy}}))
    (folder / "summary.json").write_text(json.dumps({"margin/median_lead": lead}))
    return str(folder)


@pytest.mark.parametrize(("by", "chosen"), [("accuracy", "b"), ("lead", "c"), ("accuracy+lead", "b")])
def test_a_run_is_chosen_among_several(maxmargin: Any, tmp_path: Path, by: str, chosen: str) -> None:
    numbers = {"a": (0.8, None), "b": (0.9, 0.2), "c": (0.7, 0.3)}
    runs = [_ended(tmp_path / name, *values) for name, values in numbers.items()]
    outcome = maxmargin("compare", *runs, "--select", by, "--output", "chosen.json")
    assert outcome.status == 0, outcome.err
    assert json.loads((tmp_path / "chosen.json").read_text())["chosen"] == str(tmp_path / chosen)
    assert f"{tmp_path / chosen}, by" in outcome.out.replace("\n", "")


def test_more_than_two_runs_are_only_chosen_among(maxmargin: Any, tmp_path: Path) -> None:
    runs = [_ended(tmp_path / name, 0.8, 0.1) for name in "abc"]
    assert "give --select accuracy+lead" in maxmargin("compare", *runs).error
    outcome = maxmargin("compare", *runs, str(tmp_path), "--select", "lead")
    assert (outcome.status, "no finished run on text" in outcome.error) == (2, True)
