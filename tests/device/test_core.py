"""The mathematics on a device: the numbers of the CPU, by the roads that are taken there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.core import (
    LOSSES,
    CrossEntropy,
    Directions,
    Loss,
    MarginLoss,
    Sequences,
    TokenSelector,
    UpdateRule,
    centred_pool,
    check_sequences,
    exact_directions,
    masked_softmax,
    naive_pool,
    select,
    take_token,
    without_copies,
)
from lightning_maxmargin.core.losses import loss_by_instance
from lightning_maxmargin.core.updates import UPDATES
from tests.device.compare import agree, close, covers, on_device
from tests.device.pretend import GPU, Gpu


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequences(n: int = 6, T: int = 5, d: int = 4, **fields: Any) -> Sequences:
    """Padded sequences with a query each, a key that comes twice, and one without a token."""
    keys, values = normal(n, T, d), normal(n, T, 3, seed=1)
    keys[0, 1] = keys[0, 2]
    mask = torch.ones(n, T, dtype=torch.bool)
    mask[1, 3:], mask[2] = False, fields.pop("hidden", True)
    labels = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    return Sequences(keys, labels, values=values, queries=normal(n, 2, seed=2), mask=mask, **fields)


SCORES, MASK = normal(6, 5, seed=3), sequences().mask


@covers("core.masked_softmax", "core.naive_pool", "core.centred_pool", "core.select", "core.take_token")
def test_pooling(gpu: Gpu) -> None:
    values = normal(6, 5, 3)
    with gpu.expecting(15):  # the arguments on their way
        for f in (masked_softmax, select):
            agree(f, SCORES, MASK)
        for pool in (naive_pool, centred_pool):
            agree(pool, SCORES, values, MASK)
        agree(take_token, values, torch.arange(6) % 5)
        on_device([SCORES] * 3)


@covers("core.without_copies")
def test_copies_of_a_selected_token(gpu: Gpu) -> None:
    agree(without_copies, sequences().keys, torch.tensor([1, 0, 0, 0, 0, 0]), MASK)


@covers("core.Sequences", "core.check_sequences")
def test_sequences_stay_together(gpu: Gpu) -> None:
    data = sequences(planted=torch.zeros(6, dtype=torch.long))
    moved = data.to(GPU)
    assert all(getattr(moved, name) is None or getattr(moved, name).device == GPU for name in Sequences.FIELDS)
    assert Sequences(data.keys, data.labels).to(GPU).values.device == GPU
    agree(check_sequences, data)
    agree(lambda given: given[torch.arange(3, device=given.keys.device)], data)
    agree(lambda given: given.copies().of(select(given.keys[..., 0])), data)
    padded = Sequences.pad([normal(2, 3), normal(4, 3)], torch.tensor([1.0, -1.0]))
    close(padded.to(GPU), padded)


@covers("core.LOSSES", "core.Loss", "core.MarginLoss", "core.CrossEntropy")
def test_every_loss(gpu: Gpu) -> None:
    margins = 30 * normal(20)
    for loss in LOSSES.values():
        assert isinstance(loss, Loss)
        if isinstance(loss, MarginLoss):
            for f in (loss.value, loss.log_slope, loss.log_value):
                if f is not None:
                    agree(f, margins)
    agree(CrossEntropy(), normal(6, 4), torch.arange(6) % 4)


def test_losses_by_instance_wait_once(gpu: Gpu) -> None:
    loss = loss_by_instance(["logistic", "correlation", "exponential"])
    margins = normal(4, 3)
    close(loss.value(margins.to(GPU)), loss.value(margins))
    moved = margins.to(GPU, non_blocking=True)
    with gpu.expecting(0):
        loss.value(moved), loss.log_slope(moved)


@pytest.mark.parametrize("loss", ["logistic", "exponential", "correlation"])
@pytest.mark.parametrize("norm", [1.0, 1e3])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
@covers("core.exact_directions", "core.Directions")
def test_exact_directions(gpu: Gpu, loss: str, norm: float, known: bool, hidden: bool) -> None:
    """What is known of the keys goes along, and what is not is not asked."""
    data, weight, v = sequences(hidden=hidden), norm * normal(4, 2, seed=4), normal(3, seed=5)
    expected = _directions(data, weight, v, loss)
    fresh = data if known else sequences(hidden=hidden)
    moved, weight, v = fresh.to(GPU), *(x.to(GPU) for x in (weight, v))
    with gpu.expecting(0):
        found = _directions(moved, weight, v, loss)
    assert isinstance(found, Directions)
    close(found, expected)


def _directions(data: Sequences, weight: Tensor, v: Tensor, loss: Any) -> Directions:
    assert data.queries is not None
    scores = torch.einsum("ntd,nd->nt", data.keys, data.queries @ weight.T)
    return exact_directions(data, scores, v, LOSSES[loss])  # type: ignore[arg-type]


@pytest.mark.parametrize("parametrization", ["p", "W", "KQ"])
@pytest.mark.parametrize("pooling", ["centred", "naive"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@covers("core.TokenSelector")
def test_the_model_forward_and_backward(gpu: Gpu, parametrization: Any, pooling: Any, head: Any) -> None:
    torch.manual_seed(0)
    model = TokenSelector(4, value_dim=3, parametrization=parametrization, attention_init="normal", head=head).double()
    data, grads = sequences(), []
    for given in (data, data.to(GPU)):
        model = model.to(given.keys.device)
        model.zero_grad(set_to_none=True)
        with gpu.expecting(0):
            model(given, pooling).logits.square().sum().backward()
        grads.append([model.direction.detach(), *(p.grad for p in model.parameters())])
    close(grads[1], grads[0])


@pytest.mark.parametrize("name", UPDATES)
@covers("core.UpdateRule")
def test_every_update_rule(gpu: Gpu, name: str) -> None:
    rule = UPDATES[name]()
    assert isinstance(rule, UpdateRule)

    def two_steps(weight: Tensor, gradient: Tensor) -> Tensor:
        state = rule.start(weight)
        for count in range(2):
            ((weight, state),) = rule.step_all([weight], [gradient], [0.1], [state], count)
        return weight

    agree(two_steps, normal(3, 2), normal(3, 2, seed=1))
    weight, gradient = on_device([normal(3, 2), normal(3, 2, seed=1)])
    # The flag of a singular value decomposition is read by torch itself.
    with gpu.expecting(2 if name == "spectral" else 0):
        two_steps(weight, gradient)
