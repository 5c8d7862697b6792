"""The monitor holds an optimizer against the SVM in its own norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_maxmargin.callbacks.margin_monitor import norms_of
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.optim import SignDescent, SpectralDescent
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.selector import Probe
from lightning_maxmargin.svm import solve_att_svm, solve_label_svm
from tests.conftest import config

MIRROR_STEPS = "5000"

# W of one random problem with a given head, as in the papers' comparison of optimizers.
SIZES = ("--data.n", "6", "--data.T", "8", "--data.d", "10", "--data.labels", "sign", "--data.queries", "true")
W = (
    "fit", "--config", config("joint/random"), *SIZES, "--data.seed", "1", "--model.query", "separate",
    "--model.train", "attention", "--model.head_init", "data", "--trainer.max_steps", "1500",
)  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "norm", "rate"),
    [
        pytest.param("SignDescent", "linf", 0.1, marks=pytest.mark.slow),
        ("SpectralDescent", "spectral", 1.0),
        ("MirrorDescent", "1.75", 0.1),
    ],
)
def test_the_norm_is_the_optimizers(optimizer: str, norm: str, rate: float, maxmargin: Any) -> None:
    extra = ("--model.optimizer.p", norm) if optimizer == "MirrorDescent" else ()
    rates = ("--model.optimizer.lr", str(rate), "--model.attention_lr", str(rate))
    outcome = maxmargin(*W, "--model.optimizer", f"lightning_maxmargin.optim.{optimizer}", *extra, *rates)
    assert outcome.status == 0, outcome.err
    s = outcome.summary
    assert s["svm/norm"] == norm
    assert 0.97 <= s["relative_margin/norm"] <= 1 + 1e-9
    assert s["relative_margin/norm"] == s["relative_margin/attention"]
    # Where the optimum need not be unique a direction tells nothing.
    assert (s["direction_gap/norm"] is not None) == (optimizer == "MirrorDescent")
    assert s["direction_gap/norm"] == s["direction_gap/attention"]
    assert norm in outcome.out


def test_the_euclidean_norm_is_not_measured_twice(maxmargin: Any) -> None:
    s = maxmargin("fit", "--config", config("joint/tight"), "--trainer.max_steps", "20").summary
    assert s["svm/norm"] is None
    assert s["relative_margin/norm"] is None


def test_a_vector_has_no_singular_values(maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), "--model.parametrization", "p", "--trainer.max_steps", "20")
    s = maxmargin(*words, "--model.optimizer", "lightning_maxmargin.optim.SpectralDescent").summary
    assert s["svm/norm"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("p", "lr"), [("1.75", "1"), ("3", "1e4")])  # ||w||_p grows as (lr steps)^(1/(p-1))
def test_mirror_descent_ends_at_the_limits_of_its_norm(p: str, lr: str, maxmargin: Any) -> None:
    """Attention and head: .0214 from the Euclidean label SVM, which was called the head's."""
    words = ("fit", "--config", config("joint/random"), "--data.seed", "0", "--trainer.max_steps", MIRROR_STEPS)
    mirror = ("--model.optimizer", "MirrorDescent", "--model.optimizer.p", p, "--model.attention_lr", lr)
    s = maxmargin(*words, *mirror, "--model.head_lr", lr).summary
    assert (s["svm/norm"], s["svm/head_norm"]) == (str(float(p)), str(float(p)))
    assert s["direction_gap/head"] <= 1e-5
    assert s["direction_gap/rate_coupled"] <= 1e-3


def test_norms_of_the_groups_of_optimizers() -> None:
    w, v = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    both = [{"params": [w], "name": "attention"}, {"params": [v], "name": "head"}]
    assert norms_of([SignDescent(both)]) == Norms("linf", "linf")
    assert norms_of([SpectralDescent(both[:1]), SignDescent(both[1:])]) == Norms("spectral", "linf")
    assert norms_of([torch.optim.SGD(both, lr=0.1)]) == Norms("l2", "l2")
    assert norms_of([SpectralDescent([w])]) == Norms("spectral", "spectral")
    adam = [torch.optim.NAdam(both, lr=0.1)]
    assert (norms_of(adam), norms_of(adam, exact=True)) == (Norms("l2", "l2"), Norms("linf", "linf"))
    binary, classes = (TokenSelector(2, query="own", num_classes=k) for k in (2, 3))
    assert Norms("spectral", "nuclear").of(binary) == Norms("spectral", "l2")
    assert Norms("spectral", "nuclear").of(classes) == Norms("spectral", "nuclear")
    assert Norms("linf", 2).of(TokenSelector(2, parametrization="p")) == Norms("linf", "l2")


@pytest.mark.parametrize("norm", [1.5, pytest.param("linf", marks=pytest.mark.slow)])
def test_small_problems_do_not_remember_earlier_answers(norm: Any) -> None:
    """A resumed run has looked at other steps: from a cold start its numbers are the same to the last digit."""
    g = torch.Generator().manual_seed(0)
    # More rows than are all solved at once: what is remembered decides which ones a warm start begins with.
    keys = torch.randn(120, 6, 60, generator=g, dtype=torch.float64)
    data = Sequences(keys, torch.ones(120, dtype=torch.float64))
    models = []
    p, other = torch.randn(2, 60, generator=g, dtype=torch.float64)
    for direction in (p, p + 0.02 * other):
        model = TokenSelector(60, parametrization="p", attention_init=direction.tolist()).double()
        model.head.data[:] = direction
        models.append(model)
    found = []
    for looks in (models[:1], models[::-1]):
        probe = Probe(data, norms=Norms(norm, norm))
        found.append([probe.measure(model) for model in looks][-1])
    assert found[0].values == found[1].values
    assert torch.equal(*(s.solutions["strict"].attention.direction for s in found))


def test_limits_that_need_not_be_unique_are_told_by_their_margins() -> None:
    g = torch.Generator().manual_seed(2)
    keys = torch.randn(6, 5, 9, generator=g, dtype=torch.float64)
    model = TokenSelector(9, parametrization="p", attention_init=torch.randn(9, generator=g).tolist()).double()
    selected = model.scores(Sequences(keys, torch.ones(6))).argmax(1)
    labels = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    chosen = keys[torch.arange(6), selected]
    head = solve_label_svm(chosen, labels, norm="linf")
    model.head.data[:] = head.direction
    strict = solve_att_svm(keys, selected, norm="linf")
    with torch.no_grad():
        model.attention_parameters["p"].copy_(3 * strict.direction)
    values = Probe(Sequences(keys, labels), norms=Norms("linf", "linf")).measure(model).values
    assert values["svm/limit"] == "strict"
    assert values["relative_margin/attention"] == pytest.approx(1, rel=1e-9)
    assert values["relative_margin/head"] == pytest.approx(1, rel=1e-9)
    assert values["margin/head"] == pytest.approx(head.margin, rel=1e-9)
    assert values["margin/attention"] == pytest.approx(strict.margin, rel=1e-9)
    for name in ("attention", "strict", "relaxed", "rate_coupled", "head", "norm"):
        assert values[f"direction_gap/{name}"] is None
