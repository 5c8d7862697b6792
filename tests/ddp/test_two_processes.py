"""Two processes against one: the same batch, the same direction, the same numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import config

TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy")


def weights(outcome: Any) -> dict[str, torch.Tensor]:
    assert outcome.status == 0, outcome.err
    return torch.load(outcome.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def compare(one: Any, two: Any, rtol: float) -> None:
    a, b = weights(one), weights(two)
    for name in ("selector.W", "selector.v"):
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=rtol * float(a[name].abs().max()))


@pytest.mark.parametrize(
    "extra",
    [
        ["--trainer.max_steps", "60"],
        pytest.param(["--model.gradient", "centred", "--trainer.max_steps", "60"], marks=pytest.mark.slow),
        pytest.param(["--model.gradient", "naive", "--trainer.max_steps", "60"], marks=pytest.mark.slow),
    ],
    ids=["exact", "centred", "naive"],
)
def test_full_batch_of_three_on_two_processes(extra: list[str], maxmargin: Any) -> None:
    # scripts/claims.py compares the 12,000 steps of the config.
    words = ("fit", "--config", config("joint/relaxed"), *extra)
    one, two = maxmargin(*words), maxmargin(*words, *TWO, "ddp_fork")
    compare(one, two, rtol=1e-10)
    np.testing.assert_allclose(
        np.load(one.run_dir / "paths.npz")["attention"],
        np.load(two.run_dir / "paths.npz")["attention"],
        rtol=1e-10,
        atol=1e-10,
    )


def test_minibatches_that_leave_a_process_empty(maxmargin: Any) -> None:
    # 7 sequences in batches of 3: the last batch has one, so the second process has none.
    words = (
        "fit",
        "--config",
        config("joint/random"),
        "--data.n",
        "7",
        "--data.batch_size",
        "3",
        "--trainer.max_steps",
        "30",
    )
    words = (*words, "--model.optimizer", "NormalizedGD", "--model.attention_lr", "0.1", "--model.head_lr", "0.1")
    compare(maxmargin(*words), maxmargin(*words, *TWO, "ddp_fork"), rtol=1e-12)


@pytest.mark.slow
def test_float32_agrees_to_its_rounding(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/random"), "--trainer.max_steps", "60", "--trainer.precision", "32-true")
    compare(maxmargin(*words), maxmargin(*words, *TWO, "ddp_fork"), rtol=1e-5)


def test_evaluation_counts_every_sequence_once(tmp_path: Any, maxmargin: Any) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("data.npz", 9), ("test.npz", 13)):
        np.savez(tmp_path / name, keys=rng.normal(size=(n, 4, 3)), labels=rng.choice([-1.0, 1.0], n))
    words = ("fit", "--config", config("tensor"), "--data.path", "data.npz", "--data.test_path", "test.npz")
    words = (*words, "--trainer.max_steps", "50")
    one, two = maxmargin(*words).summary, maxmargin(*words, *TWO, "ddp_fork").summary
    assert one["test/accuracy"] == pytest.approx(two["test/accuracy"], abs=1e-7)
    assert one["test/accuracy"] * 13 == pytest.approx(round(one["test/accuracy"] * 13), abs=1e-5)


def test_predictions_of_all_processes_are_written(tmp_path: Any, maxmargin: Any) -> None:
    trained = maxmargin("fit", "--config", config("joint/random"), "--data.n", "7", "--trainer.max_steps", "20")
    run = trained.run_dir
    words = ("predict", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    one = maxmargin(*words, "--output", "one.jsonl")
    two = maxmargin(*words, "--output", "new/two.jsonl", *TWO, "ddp_fork")
    assert (one.status, two.status) == (0, 0), two.err
    assert two.out.strip().splitlines()[-1] == "new/two.jsonl"
    a, b = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one.jsonl", "new/two.jsonl")
    )
    assert [row["index"] for row in b] == list(range(7))
    for row, other in zip(a, b, strict=True):
        # A product of another batch may round otherwise.
        assert row["selected"] == other["selected"]
        assert row["logits"] == pytest.approx(other["logits"], rel=1e-12)
        assert row["attention"] == pytest.approx(other["attention"], rel=1e-12)


@pytest.mark.slow
def test_launched_as_a_user_does(maxmargin: Any) -> None:
    """``ddp`` starts the second process from the command line itself."""
    words = ("fit", "--config", config("joint/relaxed"), "--trainer.max_steps", "500")
    compare(maxmargin(*words), maxmargin_in_a_process(words), rtol=1e-10)


def maxmargin_in_a_process(words: tuple[str, ...]) -> Any:
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    from tests.conftest import Outcome

    run_dir = Path(tempfile.mkdtemp()) / "run"
    call = [
        sys.executable,
        "-m",
        "lightning_maxmargin",
        *words,
        *TWO,
        "ddp",
        "--run_dir",
        str(run_dir),
        "--wandb",
        "disabled",
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr, run_dir)
