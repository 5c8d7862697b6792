"""What every optimizer of the package owes to a user of torch.optim."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_maxmargin.data import RandomData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.joint import JointSelection
from lightning_maxmargin.optim import (
    AcceleratedMargin,
    FactoredGD,
    MirrorDescent,
    NormalizedGD,
    SignDescent,
    Signum,
    SpectralDescent,
    TorchAdam,
)
from lightning_maxmargin.optim.base import MarginOptimizer


def polyak(params: Any, lr: float = 1.0) -> NormalizedGD:
    return NormalizedGD(params, lr=lr, step_size="polyak")


def newton_schulz(params: Any, lr: float = 1.0) -> SpectralDescent:
    return SpectralDescent(params, lr=lr, method="newton_schulz")


def mirror(params: Any, lr: float = 1.0) -> MirrorDescent:
    return MirrorDescent(params, lr=lr, p=1.5)


def adam_epsilon(params: Any, lr: float = 0.01) -> TorchAdam:
    return TorchAdam(params, lr=lr, eps=1e-8)


NORMS: dict[Any, str | float] = {
    NormalizedGD: "l2",
    polyak: "l2",
    AcceleratedMargin: "l2",
    SignDescent: "linf",
    Signum: "linf",
    SpectralDescent: "spectral",
    newton_schulz: "spectral",
    mirror: 1.5,
    FactoredGD: "nuclear",
    TorchAdam: "linf",
    adam_epsilon: "linf",
}
MAKERS = list(NORMS)
#: w moves by lr times something; the others say below what they do.
LINEAR = [make for make in MAKERS if make is not mirror]
#: The scale of the gradient says nothing to these.
SCALELESS = [make for make in MAKERS if make not in (polyak, AcceleratedMargin, adam_epsilon)]
every = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=g, dtype=dtype)) for shape in ((3,), (2, 4))]


def objective(weights: list[nn.Parameter]) -> Tensor:
    return sum((w.square().sum() + 0.1 * w.pow(4).sum() for w in weights), torch.zeros(()))


def run(optimizer: MarginOptimizer, weights: list[nn.Parameter], steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(weights)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@every
def test_state_dict_goes_on_bit_by_bit(make: Any) -> None:
    whole, first = parameters(), parameters()
    run(make(whole, lr=0.05), whole, 12)
    interrupted = make(first, lr=0.05)
    run(interrupted, first, 5)
    file = io.BytesIO()
    torch.save({"optimizer": interrupted.state_dict(), "weights": first}, file)
    file.seek(0)
    with torch.serialization.safe_globals([nn.Parameter]):
        saved = torch.load(file, weights_only=True)
    second = [nn.Parameter(w.detach().clone()) for w in saved["weights"]]
    resumed = make(second, lr=123.0)  # the rate too is restored
    resumed.load_state_dict(saved["optimizer"])
    run(resumed, second, 7)
    for a, b, start in zip(second, whole, parameters(), strict=True):
        assert a.isfinite().all()
        assert not torch.equal(a, start)
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", LINEAR, ids=lambda make: make.__name__)
def test_group_with_a_rate_of_its_own(make: Any) -> None:
    start, (together, apart) = parameters(), (parameters(), parameters())
    optimizers = [make(together, lr=0.5), make([{"params": [apart[0]], "lr": 2.0}, {"params": [apart[1]]}], lr=0.5)]
    for optimizer, weights in zip(optimizers, (together, apart), strict=True):
        run(optimizer, weights, 1)
    moved = [(w - s).detach() for w, s in zip(together, start, strict=True)]
    torch.testing.assert_close((apart[0] - start[0]).detach(), 4 * moved[0])
    assert torch.equal(apart[1], together[1])


@every
def test_add_param_group(make: Any) -> None:
    whole, later = parameters(), parameters()
    optimizer = make([later[0]], lr=0.5)
    optimizer.add_param_group({"params": [later[1]], "lr": 0.25})
    run(optimizer, later, 4)
    run(make([{"params": [whole[0]]}, {"params": [whole[1]], "lr": 0.25}], lr=0.5), whole, 4)
    for a, b in zip(later, whole, strict=True):
        assert torch.equal(a, b)


@every
def test_step_returns_what_the_closure_returns_and_evaluates_it_once(make: Any) -> None:
    (w, _), calls = parameters(), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss = w.square().sum()
        (w.grad,) = torch.autograd.grad(loss, w)
        return loss

    before = w.detach().square().sum()
    assert torch.equal(make([w]).step(closure), before)
    assert calls == [True]
    assert make([w]).step() is None


@every
def test_parameter_without_gradient_stays(make: Any) -> None:
    first, second = parameters()
    start = second.detach().clone()
    optimizer = make([first, second])
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, start)


@every
def test_zero_gradient_moves_nothing(make: Any) -> None:
    weights = parameters()
    start = copy.deepcopy(weights)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer = make(weights)
    for _ in range(3):
        optimizer.step()
    for w, s in zip(weights, start, strict=True):
        assert torch.equal(w, s)


@every
def test_no_gradient_at_all(make: Any) -> None:
    make(parameters()).step()


@every
def test_gradient_is_left_as_it_was(make: Any) -> None:
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.tensor([3.0, 4.0, 0.0])
    make([w]).step()
    assert w.grad.tolist() == [3, 4, 0]


@every
def test_scheduler_sets_the_rate(make: Any) -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = make([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    w.grad = torch.ones(1)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@every
@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_rate_must_be_positive(make: Any, lr: float) -> None:
    with pytest.raises(InputError, match=r"lr is .*; expected a positive number"):
        make(parameters(), lr=lr)


@every
def test_every_optimizer_states_its_margin(make: Any) -> None:
    optimizer = make(parameters())
    assert optimizer.margin_norm == NORMS[make]
    assert optimizer.gradient_scale == ("log_loss" if make is polyak else "direction")


@every
def test_copy_of_the_optimizer_goes_on_alike(make: Any) -> None:
    weights = parameters()
    optimizer = make(weights, lr=0.05)
    run(optimizer, weights, 3)
    # Together, so that the copy holds the copied weights.
    twin, copied = copy.deepcopy((optimizer, weights))
    assert twin.margin_norm == optimizer.margin_norm
    run(optimizer, weights, 3)
    run(twin, copied, 3)
    for a, b in zip(weights, copied, strict=True):
        assert a is not b
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", SCALELESS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("exponent", [-126, -100, 100])
def test_scale_of_the_gradient_does_not_matter_in_float32(make: Any, exponent: int) -> None:
    """Powers of two, which change no digit: the square of 2^-100 is zero in float32, of 2^100 infinite."""
    plain, tiny = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizers = [make(plain, lr=0.5), make(tiny, lr=0.5)]
    for step in range(5):
        for p, t, g in zip(plain, tiny, parameters(10 + step, torch.float32), strict=True):
            # Rounded to eighths, so that the smallest of them times 2^-126 has all its digits.
            p.grad = (g.detach() * 8).round() / 8
            t.grad = p.grad * 2.0**exponent
        for optimizer in optimizers:
            optimizer.step()
    for p, t, start in zip(plain, tiny, parameters(dtype=torch.float32), strict=True):
        assert not torch.equal(p, start)
        # Denormal numbers are divided with another rounding: 2^-149 is their last digit.
        torch.testing.assert_close(t, p, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("make", SCALELESS, ids=lambda make: make.__name__)
def test_smallest_gradient_in_float32_moves_a_whole_step(make: Any) -> None:
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.tensor([[2.0**-149, 0.0], [0.0, 0.0]])
    make([w], lr=0.25).step()
    assert w[0, 0].item() == pytest.approx(-(0.25 ** (2 if make is mirror else 1)), rel=1e-6)
    assert not w.flatten()[1:].any()


@pytest.mark.parametrize("make", [m for m in MAKERS if m is not polyak], ids=lambda make: make.__name__)
def test_trains_attention_by_exact_directions(make: Any) -> None:
    """Through Lightning, in float32: the direction is taken as exact, and every sequence ends with one token."""
    model = JointSelection(
        dim=4, parametrization="KQ" if make is FactoredGD else "W", optimizer=make, train="attention",
        query="separate", head_init="data", attention_init="normal", attention_lr=0.1,
    )  # fmt: skip
    data = RandomData(n=4, T=3, d=4, seed=3, queries=True, labels="sign")
    batch = data.sequences("train")
    assert model.gradient == "exact"
    trainer = pl.Trainer(
        max_steps=200, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    attention = model(batch).attention.max(1).values
    assert attention.isfinite().all()
    # Uniform attention is 1/3.
    assert attention.min() > 0.9


def test_base_says_that_it_does_not_move() -> None:
    with pytest.raises(InputError, match=r"MarginOptimizer lacks rule\(group\)"):
        MarginOptimizer(parameters(), lr=1.0)


def test_a_group_with_a_wrong_rate_is_refused() -> None:
    w = nn.Parameter(torch.zeros(1))
    with pytest.raises(InputError, match="lr is -1"):
        NormalizedGD([{"params": [w], "lr": -1.0}])


def test_polyak_takes_a_number_as_loss() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    w.grad = torch.tensor([4.0])
    NormalizedGD([w], lr=1.0, step_size="polyak").step(lambda: 4.0)
    assert w.item() == 1.0
