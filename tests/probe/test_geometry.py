"""The monitor holds an optimizer against the SVM in its own norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.probe.geometry import Geometry
from tests.conftest import config

# W of one random problem with a given head, as in the papers' comparison of optimizers.
SIZES = ("--data.n", "6", "--data.T", "8", "--data.d", "10", "--data.labels", "sign", "--data.queries", "true")
W = (
    "fit", "--config", config("joint/random"), *SIZES, "--data.seed", "1", "--model.query", "separate",
    "--model.train", "attention", "--model.head_init", "data", "--trainer.max_steps", "1500",
)  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "norm", "rate"),
    [("SignDescent", "linf", 0.1), ("SpectralDescent", "spectral", 1.0), ("MirrorDescent", "1.75", 0.1)],
)
def test_the_norm_is_the_optimizers(optimizer: str, norm: str, rate: float, maxmargin: Any) -> None:
    extra = ("--model.optimizer.p", norm) if optimizer == "MirrorDescent" else ()
    rates = ("--model.optimizer.lr", str(rate), "--model.attention_lr", str(rate))
    outcome = maxmargin(*W, "--model.optimizer", f"lightning_maxmargin.optim.{optimizer}", *extra, *rates)
    assert outcome.status == 0, outcome.err
    s = outcome.summary
    assert s["svm/norm"] == norm
    assert 0.97 <= s["relative_margin/norm"] <= 1 + 1e-9
    # Each is better in its own geometry than in the Euclidean one.
    assert s["relative_margin/norm"] > s["relative_margin/attention"]
    assert (s["direction_gap/norm"] is not None) == (optimizer == "MirrorDescent")
    assert norm in outcome.out


def test_the_euclidean_norm_is_not_measured_twice(maxmargin: Any) -> None:
    s = maxmargin("fit", "--config", config("joint/tight"), "--trainer.max_steps", "20").summary
    assert s["svm/norm"] is None
    assert s["relative_margin/norm"] is None


def test_a_vector_has_no_singular_values(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), "--model.parametrization", "p", "--trainer.max_steps", "20")
    s = maxmargin(*words, "--model.optimizer", "lightning_maxmargin.optim.SpectralDescent").summary
    assert s["svm/norm"] is None


@pytest.mark.parametrize("warm", [False, True])
def test_small_problems_do_not_remember_earlier_answers(warm: bool) -> None:
    """A resumed run has looked at other steps: from a cold start its numbers are the same to the last digit."""
    g = torch.Generator().manual_seed(0)
    # More rows than are all solved at once: what is remembered decides which ones a warm start begins with.
    keys = torch.randn(120, 6, 60, generator=g, dtype=torch.float64)
    data = Sequences(keys, torch.ones(120, dtype=torch.float64))
    p, other = torch.randn(2, 60, generator=g, dtype=torch.float64)
    then, first = (keys @ p).argmax(1), (keys @ (p + 0.02 * other)).argmax(1)
    assert not torch.equal(then, first)
    model = TokenSelector(60, parametrization="p", attention_init="normal").double()
    found = []
    for looks in ((then,), (first, then)):
        geometry = Geometry(data, 1.5, warm=warm)
        for selected in looks:
            geometry.values(model, model.scores(data).detach(), selected)
        assert geometry._solution is not None
        found.append(geometry._solution.direction)
    assert torch.equal(*found) == (not warm)
