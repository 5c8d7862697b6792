"""Every rule moves many instances as it moves each by itself, and as the optimizer named after it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin import optim
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.updates import (
    UPDATES,
    Adam,
    Factored,
    Mirror,
    Polyak,
    Rate,
    Signum,
    Spectral,
    State,
    UpdateRule,
    register_update,
    update_rule,
)
from lightning_maxmargin.errors import InputError

RULES = [
    *[make() for make in UPDATES.values()], Mirror(3.0), Spectral(momentum=0.9), Spectral("newton_schulz"),
    Factored(1e-2), Polyak(0.5), Signum(0.5), Adam((0.8, 0.9), 1e-8),
]  # fmt: skip
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "normalized": lambda w: optim.NormalizedGD(w, lr=0.1),
    "polyak": lambda w: optim.NormalizedGD(w, lr=0.1, step_size="polyak", max_step=torch.inf),
    "accelerated": lambda w: optim.AcceleratedMargin(w, lr=0.1),
    "sign": lambda w: optim.SignDescent(w, lr=0.1),
    "signum": lambda w: optim.Signum(w, lr=0.1),
    "spectral": lambda w: optim.SpectralDescent(w, lr=0.1),
    "mirror": lambda w: optim.MirrorDescent(w, lr=0.1),
    "factored": lambda w: optim.FactoredGD(w, lr=0.1),
    "adam": lambda w: optim.TorchAdam(w, lr=0.1),
}


@pytest.fixture
def small_rules() -> Iterator[None]:
    before = dict(UPDATES)
    yield
    UPDATES.clear()
    UPDATES.update(before)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_instances_move_as_each_by_itself(rule: UpdateRule) -> None:
    B, shapes = 4, [(3, 2), (3,)]
    weights = [normal(i, *shape, B) for i, shape in enumerate(shapes)]
    states = [rule.start(w) for w in weights]
    rates = torch.tensor([0.1, 1.0, 2.0, 0.3], dtype=torch.float64)
    alone = [[(w[..., b], rule.start(w[..., b])) for w in weights] for b in range(B)]
    for count in range(3):
        gradients = [normal(10 * count + i + 5, *shape, B) for i, shape in enumerate(shapes)]
        # One instance without a gradient, one with a tiny one.
        for g in gradients:
            g[..., 1] = 0.0
            g[..., 2] *= 1e-30
        found = rule.step_instances(weights, gradients, [rates, rates], states, count)
        weights, states = [w for w, _ in found], [s for _, s in found]
        for b in range(B):
            before, kept = zip(*alone[b], strict=True)
            alone[b] = rule.step_all(before, [g[..., b] for g in gradients], [rates[b]] * 2, kept, count)
            for whole, (w, _) in zip(weights, alone[b], strict=True):
                torch.testing.assert_close(whole[..., b], w, rtol=1e-12, atol=1e-13)
    assert all(w.isfinite().all() for w in weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_moves_by_its_rule(name: str) -> None:
    rule, w, v = update_rule(name), torch.nn.Parameter(normal(0, 3, 2)), torch.nn.Parameter(normal(1, 3))
    optimizer = OPTIMIZERS[name]([w, v])
    found = [(x.detach().clone(), rule.start(x.detach())) for x in (w, v)]
    for count in range(4):
        w.grad, v.grad = normal(2 + count, 3, 2), normal(9 + count, 3)
        optimizer.step()
        found = rule.step_all([x for x, _ in found], [w.grad, v.grad], [0.1, 0.1], [s for _, s in found], count)
    for ours, (theirs, _) in zip((w, v), found, strict=True):
        if name == "adam":  # torch's own arithmetic
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-13)
        else:
            assert torch.equal(ours, theirs)


class HalfSteps(UpdateRule):
    """A user's own: normalised steps, with a sum of what it did."""

    def start(self, weight: Tensor) -> State:
        return {"sum": torch.zeros_like(weight)}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        step = rate / 2 * gradient / torch.where(gradient.any(), gradient.norm(), 1.0)
        return weight - step, {"sum": state["sum"] + step}


def problem() -> Instances:
    labels = torch.where(normal(4, 3, 2) > 0, 1.0, -1.0)
    return Instances.stack(normal(3, 3, 2, 4, 5), labels)


def test_a_rule_of_ones_own_in_an_ensemble(small_rules: None) -> None:
    state, half = (
        EnsembleState(problem(), update=HalfSteps()),
        EnsembleState(problem(), attention_lr=0.05, head_lr=0.05),
    )
    state.run(20)
    half.run(20)
    torch.testing.assert_close(state.attention, half.attention)
    torch.testing.assert_close(-state.remembered["head"]["sum"], state.head)
    register_update("half", HalfSteps)
    named = EnsembleState(problem(), update="half")
    named.run(20)
    assert torch.equal(named.attention, state.attention)
    with pytest.raises(InputError, match="exists"):
        register_update("half", HalfSteps)


@pytest.mark.parametrize("name", UPDATES)
def test_every_rule_trains_an_ensemble(name: str) -> None:
    state = EnsembleState(problem(), update=name, attention_lr=0.1, head_lr=0.1)
    state.run(1)
    before = state.loss_now.mean()
    state.run(200)
    assert state.loss_now.mean() < 0.5 * before


@pytest.mark.parametrize(("rule", "said"), [("adagrad", "none of normalized"), (3, "UpdateRule")])
def test_what_is_no_rule_is_refused(rule: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        update_rule(rule)  # type: ignore[arg-type]


def test_a_loss_without_a_logarithm_has_no_gradient_of_it() -> None:
    with pytest.raises(InputError, match="log L"):
        EnsembleState(problem(), update="polyak", loss="correlation")
