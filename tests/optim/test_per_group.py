"""Several optimizers as one: the same weights as each by itself, one state, one schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import AcceleratedMargin, NormalizedGD, OptimizerPerGroup, SignDescent, TorchAdam

Make = Callable[[list[Any]], Optimizer]
OPTIMIZERS: list[Make] = [
    lambda p: torch.optim.Muon(p, lr=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1),
    lambda p: torch.optim.NAdam(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: AcceleratedMargin(p, lr=0.1),
    lambda p: TorchAdam(p, lr=0.1),
    lambda p: SignDescent(p, lr=0.1),
]


def weights() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    W, v = torch.randn(3, 3, generator=g, dtype=torch.float64), torch.randn(3, 1, generator=g, dtype=torch.float64)
    return torch.nn.Parameter(W), torch.nn.Parameter(v)


def steps(optimizers: list[Optimizer], params: list[torch.nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for i, p in enumerate(params):
            g = torch.Generator().manual_seed(100 * step + i)
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("of_head", OPTIMIZERS[:1] + OPTIMIZERS[3:])
@pytest.mark.parametrize("of_attention", OPTIMIZERS)
def test_each_steps_as_by_itself(of_attention: Make, of_head: Make) -> None:
    mine, theirs = weights(), weights()
    both = OptimizerPerGroup([of_attention([mine[0]]), of_head([mine[1]])])
    steps([both], list(mine), 0, 5)
    steps([of_attention([theirs[0]]), of_head([theirs[1]])], list(theirs), 0, 5)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("of_attention", OPTIMIZERS)
def test_a_state_that_was_kept_goes_on(of_attention: Make) -> None:
    """As each part's own goes on in torch, which rounds the mu_product of NAdam."""

    def parts(params: tuple[torch.nn.Parameter, torch.nn.Parameter]) -> list[Optimizer]:
        return [of_attention([params[0]]), torch.optim.AdamW([params[1]], lr=0.2)]

    theirs, mine = weights(), weights()
    first = parts(theirs)
    steps(first, list(theirs), 0, 4)
    again = parts(theirs)
    for before, after in zip(first, again, strict=True):
        after.load_state_dict(copy.deepcopy(before.state_dict()))
    steps(again, list(theirs), 4, 8)

    whole = OptimizerPerGroup(parts(mine))
    steps([whole], list(mine), 0, 4)
    kept, weights_then = copy.deepcopy(whole.state_dict()), [p.detach().clone() for p in mine]
    other = OptimizerPerGroup(parts(mine))
    steps([other], list(mine), 90, 91)  # a state that the one loaded takes the place of
    with torch.no_grad():
        for p, q in zip(mine, weights_then, strict=True):
            p.copy_(q)
    other.load_state_dict(kept)
    steps([other], list(mine), 4, 8)
    for p, q in zip(theirs, mine, strict=True):
        assert torch.equal(p, q)
    assert all(part.state is other.state for part in other.parts)


def test_a_schedule_moves_the_rates_of_all() -> None:
    params = weights()
    both = OptimizerPerGroup([NormalizedGD([params[0]], lr=0.4), torch.optim.SGD([params[1]], lr=0.2)])
    schedule = LambdaLR(both, lambda step: 1 / (1 + step))
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
        p.grad[0, 0] = 1.0
    both.step()
    schedule.step()
    assert [float((p - q).norm()) for p, q in zip(params, before, strict=True)] == pytest.approx([0.4, 0.2])
    both.step()
    moved = [float((p - q).norm()) for p, q in zip(params, before, strict=True)]
    assert moved == pytest.approx([0.6, 0.3])


def test_the_closure_is_asked_once() -> None:
    params = weights()
    asked = []

    def closure() -> torch.Tensor:
        asked.append(1)
        both.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    both = OptimizerPerGroup([NormalizedGD([params[0]], step_size="polyak"), torch.optim.SGD([params[1]], lr=0.1)])
    loss = both.step(closure)
    assert len(asked) == 1
    assert loss > 0


def test_none_is_refused() -> None:
    with pytest.raises(InputError, match="there is no optimizer"):
        OptimizerPerGroup([])
