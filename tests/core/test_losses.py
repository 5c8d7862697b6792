"""Losses and the logarithms of their values and slopes, against high precision."""

from __future__ import annotations

from collections.abc import Iterator

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from lightning_maxmargin import JointSelection
from lightning_maxmargin.core import LOSSES, Loss, MarginLoss, Sequences, find_loss, register_loss
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.paths import regularization_path
from tests.core.exact_reference import BINARY, f64, margin_loss

MARGINS = st.floats(-700, 700, allow_nan=False)
#: Where an implementation may switch its formula: softplus does at 20, the logarithm of the logistic loss at 40.
EDGES = [-700.0, -40.0, -21.0, -20.0, -1e-300, 0.0, 1e-9, 1.0, 20.0, 20.5, 25.0, 36.0, 40.0, 40.0000001, 700.0]


def reference(loss: str, m: float) -> tuple[mpf, mpf]:
    """l(m) and |l'(m)|."""
    x = mpf(m)
    if loss == "correlation":
        return -x, mpf(1)
    if loss == "exponential":
        return mpmath.exp(-x), mpmath.exp(-x)
    return mpmath.log1p(mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))


def check(loss: str, m: float) -> None:
    got, at = margin_loss(loss), f64([m])
    with mpmath.workdps(60):
        value, slope = reference(loss, m)
        log_slope = float(mpmath.log(slope))
        log_value = float(mpmath.log(value)) if loss != "correlation" else None
    # An error of 1e-15 of max(1, |m|) in the exponent is rounding.
    assert float(got.log_slope(at)) == pytest.approx(log_slope, rel=4e-16, abs=4e-16)
    assert float(got.value(at)) == pytest.approx(float(value), rel=1e-15, abs=0)
    if log_value is None:
        assert got.log_value is None
    else:
        assert got.log_value is not None
        assert float(got.log_value(at)) == pytest.approx(log_value, rel=4e-16, abs=4e-16)


@pytest.mark.parametrize("m", EDGES)
@pytest.mark.parametrize("loss", BINARY)
def test_logarithms_match_mpmath_at_the_edges(loss: str, m: float) -> None:
    check(loss, m)


@pytest.mark.parametrize("loss", BINARY)
@settings(deadline=None, max_examples=200)
@given(m=MARGINS)
@example(m=21.7)
def test_logarithms_match_mpmath(loss: str, m: float) -> None:
    check(loss, m)


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@pytest.mark.parametrize("m", [88.0, 1e4, 3e38])
def test_logarithms_live_in_float32_where_the_loss_underflows(loss: str, m: float) -> None:
    got, at = margin_loss(loss), torch.tensor([m])
    assert got.log_value is not None
    assert got.log_slope(at).item() == pytest.approx(-m, rel=1e-7)
    assert got.log_value(at).item() == pytest.approx(-m, rel=1e-7)


@pytest.mark.parametrize("loss", BINARY)
@pytest.mark.parametrize("m", [-30.0, -1.0, 0.0, 1.0, 30.0])
def test_slope_is_that_of_autograd(loss: str, m: float) -> None:
    at = f64([m]).requires_grad_()
    (gradient,) = torch.autograd.grad(margin_loss(loss).value(at).sum(), at)
    assert -gradient.item() == pytest.approx(margin_loss(loss).log_slope(at.detach()).exp().item(), rel=1e-14)


@pytest.mark.parametrize("loss", BINARY)
def test_loss_reads_the_label_margin(loss: str) -> None:
    got = margin_loss(loss)(f64([2.0, 2.0, -3.0]), f64([1, -1, -1]))
    assert torch.equal(got, margin_loss(loss).value(f64([2, -2, 3])))


def test_cross_entropy_of_two_opposite_logits_is_logistic() -> None:
    f = f64([0.3, -2.0, 40.0])
    logits = torch.stack([torch.zeros_like(f), f], 1)
    got = LOSSES["cross_entropy"](logits, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(got, margin_loss("logistic")(f, f64([1, -1, 1])), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("margin", [-500.0, -25.0, -3.0, 0.0, 5.0, 25.0, 40.0, 500.0])
def test_cross_entropy_and_its_gradient_match_mpmath(margin: float) -> None:
    """Three classes, the label's logit ahead by ``margin``: log(1 + e^-m + e^-(m + 1)), also where e^-m < eps."""
    logits = f64([[7.0 - margin, 7.0, 6.0 - margin]]).requires_grad_()
    loss = LOSSES["cross_entropy"](logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    with mpmath.workdps(400):
        others = [mpmath.exp(mpf(7 - margin) - 7), mpmath.exp(mpf(6 - margin) - 7)]
        rest = mpmath.fsum(others)
        value, slopes = float(mpmath.log1p(rest)), [float(o / (1 + rest)) for o in others]
    # The logarithm of a sum of exponentials carries the rounding of its argument, |m| eps.
    rel = 4e-16 * max(1, abs(margin))
    assert loss.item() == pytest.approx(value, rel=rel, abs=0)
    assert gradient[0].tolist() == pytest.approx([slopes[0], -sum(slopes), slopes[1]], rel=4 * rel, abs=0)


def test_names_are_their_own() -> None:
    assert {name: loss.name for name, loss in LOSSES.items()} == {name: name for name in LOSSES}


def smooth(name: str = "smooth") -> MarginLoss:
    """The sigmoid of -m: bounded, with the slope of a product of two sigmoids."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return MarginLoss(
        name, lambda m: (-m).sigmoid(), lambda m: log_sigmoid(m) + log_sigmoid(-m), lambda m: log_sigmoid(-m)
    )


class Brier(Loss):
    """Of probabilities, for autograd, whatever the number of classes."""

    name = "brier"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.ndim == 1:
            return (labels - logits.tanh()).square()
        return (torch.nn.functional.one_hot(labels, logits.shape[1]) - logits.softmax(1)).square().sum(1)


@pytest.fixture
def own_losses() -> Iterator[None]:
    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)


def test_a_loss_of_ones_own_is_taken_by_name_and_as_it_is(own_losses: None) -> None:
    loss, labels = smooth(), torch.tensor([[1.0, -1.0]])
    register_loss(loss)
    register_loss(loss)  # once more is no other
    with pytest.raises(InputError, match="already"):
        register_loss(smooth())
    data = Instances.stack(torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)), labels)
    states = [EnsembleState(data, loss=x) for x in ("smooth", loss, ["smooth"], [loss])]
    for state in states:
        state.run(10)
        assert torch.equal(state.attention, states[0].attention)
    assert states[0].attention.any()
    for x in ("smooth", loss):
        model = JointSelection(dim=4, loss=x)
        assert model.loss is loss
        assert model.gradient == "exact"
        assert regularization_path(
            Sequences(data.keys.permute(3, 2, 1, 0)[0], labels[0]), [(1, 1)], loss=x, starts=1
        ).attention.any()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_loss_that_is_of_no_margin_is_for_autograd(num_classes: int, own_losses: None) -> None:
    register_loss(Brier())
    model = JointSelection(dim=4, loss="brier", num_classes=num_classes)
    assert model.gradient == "centred"
    with pytest.raises(InputError, match="brier"):
        JointSelection(dim=4, loss=Brier(), gradient="exact")
    with pytest.raises(InputError, match="MarginLoss, got 'brier'"):
        find_loss("brier", kind=MarginLoss)


@pytest.mark.parametrize("loss", ["hinge", 3, torch.nn.MSELoss()])
def test_what_is_no_loss_is_refused_in_one_line(loss: object) -> None:
    with pytest.raises(InputError, match=r"model.loss: expected one of 'logistic', .*, got"):
        find_loss(loss, "model.loss")  # type: ignore[arg-type]
