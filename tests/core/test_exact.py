"""Closed-form directions: equal to autograd where autograd works, and right where it does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.core import LOSSES, Directions, Sequences, exact_directions
from lightning_maxmargin.core.batch import Instances, scores, token_scores
from lightning_maxmargin.core.batch_directions import instance_directions
from lightning_maxmargin.metrics import direction_gap
from tests.core.exact_reference import (
    BINARY,
    directions,
    f64,
    margin_loss,
    random_data,
    saturated,
    scores_of,
    sharded,
    textbook_descent,
    textbook_loss,
    with_mpmath,
)

FIELDS = ("attention", "head", "log_attention", "log_head", "loss", "log_loss")


@st.composite
def problems(draw: st.DrawFn) -> tuple[Sequences, Tensor, Tensor]:
    """Small numbers with many exact ties, repeated tokens and zeros, in every form that data take."""
    n, T, d = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    apart, queries, ragged = draw(st.booleans()), draw(st.integers(0, 2)), draw(st.booleans())
    dv = draw(st.integers(1, 3)) if apart else d

    def numbers(*shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        halves = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
        return (f64(halves) / 2).view(shape)

    lengths = [draw(st.integers(1, T)) for _ in range(n)]
    mask = torch.arange(T) < torch.tensor(lengths)[:, None] if ragged else None
    labels = f64([draw(st.sampled_from([-1, 1])) for _ in range(n)])
    data = Sequences(
        numbers(n, T, d),
        labels,
        values=numbers(n, T, dv) if apart else None,
        queries=numbers(n, queries) if queries else None,
        mask=mask,
    )
    return data, numbers(d, queries) if queries else numbers(d), numbers(dv)


@pytest.mark.parametrize("loss", BINARY)
@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_true_gradient_equals_autograd(loss: str, problem: tuple[Sequences, Tensor, Tensor]) -> None:
    data, weight, v = problem
    got = directions(data, weight, v, loss)
    attention, head = textbook_descent(data, weight, v, margin_loss(loss))
    # Autograd's own error is absolute: rounding of sums whose terms are |l'| |x| |k| |z|, at most 4^3 * 3 * |l'| here.
    atol = 1e-13 * float(got.log_head.exp().clamp_min(1))
    torch.testing.assert_close(got.log_attention.exp() * got.attention, attention, rtol=1e-12, atol=atol)
    torch.testing.assert_close(got.log_head.exp() * got.head, head, rtol=1e-12, atol=atol)
    value = textbook_loss(data, weight, v, margin_loss(loss))
    torch.testing.assert_close(got.loss, value, rtol=1e-13, atol=1e-14)
    if loss == "correlation":
        assert got.log_loss.isnan()
    else:
        torch.testing.assert_close(got.log_loss, value.log(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("queries", [0, 2])
@pytest.mark.parametrize("dv", [0, 4])
@pytest.mark.parametrize("loss", BINARY)
def test_true_gradient_equals_finite_differences(loss: str, dv: int, queries: int, mask: bool) -> None:
    data = random_data(3, queries=queries, mask=mask, dv=dv)
    g = torch.Generator().manual_seed(4)
    weight = torch.randn(*((3, queries) if queries else (3,)), generator=g, dtype=torch.float64)
    v = torch.randn(dv or 3, generator=g, dtype=torch.float64)
    got = directions(data, weight, v, loss)
    # Central differences of step h: truncation h^2 and rounding eps / h meet at 1e-10.
    for true, x, f in (
        (got.log_attention.exp() * got.attention, weight, lambda w: textbook_loss(data, w, v, margin_loss(loss))),
        (got.log_head.exp() * got.head, v, lambda w: textbook_loss(data, weight, w, margin_loss(loss))),
    ):
        for place in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.view(x.shape)
            slope = (f(x + step) - f(x - step)) / 2e-5
            assert -float(slope) == pytest.approx(float(true.flatten()[place]), abs=1e-9)


def assert_matches(got: Directions, true: dict[str, Tensor], eps: float, size: float) -> None:
    """``size``: the largest number in an exponent; its rounding is the relative error of a weight."""
    tolerance = 2 * eps * size
    for name, reference in true.items():
        numbers = getattr(got, name).double()
        torch.testing.assert_close(
            numbers, reference, rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("head_norm", [1.0, 25.0, None])
@pytest.mark.parametrize("norm", [1e2, 1e4, 6e6])
@pytest.mark.parametrize("loss", BINARY)
def test_saturated_direction_matches_mpmath(loss: str, norm: float, head_norm: float | None, queries: bool) -> None:
    data, weight, v = saturated(1, norm, head_norm or norm, queries)
    scores = scores_of(data, weight)
    got = exact_directions(data, scores, v, margin_loss(loss))
    # Several terms are alive: not one of them is the whole direction.
    assert float(got.attention.norm()) > 0.1
    assert_matches(got, with_mpmath(data, scores, v, loss), 2**-52, 2 * (norm + (head_norm or norm)))
    naive, _ = textbook_descent(data, weight, v, margin_loss(loss))
    assert direction_gap(naive, got.attention) is None or direction_gap(naive, got.attention) > 0.01


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("loss", BINARY)
def test_saturated_direction_matches_mpmath_in_float32(loss: str, queries: bool) -> None:
    data, weight, v = saturated(2, 1e3, 1e3, queries)
    data, weight, v = data.to(torch.float32), weight.float(), v.float()
    scores = scores_of(data, weight)
    got = exact_directions(data, scores, v, margin_loss(loss))
    assert got.attention.dtype == got.head.dtype == torch.float32
    assert_matches(got, with_mpmath(data, scores, v, loss), 2**-23, 4e3)
    naive, _ = textbook_descent(data, weight, v, margin_loss(loss))
    assert direction_gap(naive, got.attention) is None or direction_gap(naive, got.attention) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_true_magnitude_underflows_and_its_logarithm_does_not(dtype: torch.dtype) -> None:
    data, weight, v = saturated(1, 1e4, 1e4, queries=False)
    got = directions(data.to(dtype), weight.to(dtype), v.to(dtype), "logistic")
    # exp(-1e4) of the attention, exp(-1e4) of the loss, up to O(1) each and the logarithm of |c| ~ 1e4.
    assert float(got.log_attention) == pytest.approx(-2e4, abs=20)
    assert float(got.log_loss) == pytest.approx(-1e4, abs=10)
    assert float(got.log_attention.exp()) == float(got.loss) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", BINARY)
def test_one_sequence_of_two_tokens_has_one_weight_of_one(loss: str, dtype: torch.dtype) -> None:
    keys = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]], dtype=dtype)
    values = torch.tensor([[[2.0], [5.0]]], dtype=dtype)
    for size in (1.0, 3e2, 4e5):
        for label, sign in ((1.0, 1.0), (-1.0, -1.0)):
            data = Sequences(keys, torch.tensor([label], dtype=dtype), values=values)
            got = directions(data, torch.tensor([size, 0.0], dtype=dtype), torch.ones(1, dtype=dtype), loss)
            # c = 5 - f > 0 at the token that is not selected falls to its selected fellow: +-(k_1 - k_0), weight 1.
            torch.testing.assert_close(got.attention, sign * keys[0, 1], rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("loss", BINARY)
def test_half_of_the_absolute_weights_of_all_tokens_sum_to_one(loss: str) -> None:
    # One-hot differences (token t is e_t, the selected token 0): then the direction is the list of weights.
    data = Sequences(torch.eye(4, dtype=torch.float64)[None], f64([1]), values=random_data(0, n=1, T=4, d=2).keys)
    got = directions(data, f64([3, 0.5, -1, 1]), f64([1, -2]), loss)
    assert float(got.attention.abs().sum()) / 2 == pytest.approx(1, rel=1e-14)
    assert float(got.attention.sum()) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", BINARY)
def test_zero_head_gives_zero_attention_and_a_live_head(loss: str, dtype: torch.dtype) -> None:
    data = random_data(5, mask=True).to(dtype)
    got = directions(data, torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype), loss)
    assert torch.equal(got.attention, torch.zeros(3, dtype=dtype))
    assert float(got.log_attention) == -torch.inf
    assert got.head.isfinite().all()
    assert got.head.abs().max() > 0


@pytest.mark.parametrize("queries", [0, 2])
@pytest.mark.parametrize("loss", BINARY)
def test_sequences_of_one_token_give_zeros(loss: str, queries: int) -> None:
    data = random_data(6, T=1, queries=queries)
    weight = torch.ones((3, queries) if queries else (3,), dtype=torch.float64)
    got = directions(data, weight, torch.ones(3, dtype=torch.float64), loss)
    assert torch.equal(got.attention, torch.zeros_like(weight))
    assert float(got.log_attention) == -torch.inf


def test_identical_tokens_give_zeros() -> None:
    data = Sequences(torch.ones(2, 3, 2, dtype=torch.float64), f64([1, -1]))
    got = directions(data, f64([5, 7]), f64([1, 2]), "logistic")
    assert torch.equal(got.attention, torch.zeros(2, dtype=torch.float64))


def test_contradictory_labels_cancel_in_the_head() -> None:
    # Halves under uniform attention over two tokens: every sum is exact.
    both = Sequences(f64([[[0.5, -2.0], [1.5, 1.0]]] * 2), f64([1, -1]))
    got = directions(both, torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), "logistic")
    assert torch.equal(got.head, torch.zeros(2, dtype=torch.float64))
    assert float(got.log_head) == pytest.approx(-0.6931471805599453, rel=1e-15)  # |l'(0)| = 1/2


def test_padding_leaves_no_trace() -> None:
    data = random_data(8, mask=True, queries=2, dv=4)
    assert data.mask is not None
    weight, v = torch.ones(3, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    other = Sequences(
        data.keys.masked_fill(~data.mask[..., None], -3e5),
        data.labels,
        values=data.values.masked_fill(~data.mask[..., None], 1e9),
        queries=data.queries,
        mask=data.mask,
    )
    for name in FIELDS:
        first, second = (getattr(directions(d, weight, v, "logistic"), name) for d in (data, other))
        assert torch.equal(first, second), name


@pytest.mark.parametrize("norm", [1.0, 1e4])
@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("loss", BINARY)
def test_two_shards_equal_the_whole(loss: str, queries: bool, cut: int, norm: float) -> None:
    """Also where one process holds no sequence at all."""
    data, weight, v = saturated(3, norm, norm, queries)
    whole = directions(data, weight, v, loss)
    answers = sharded([data[slice(cut)], data[slice(cut, None)]], weight, v, loss)
    for name in FIELDS:
        assert torch.equal(getattr(answers[0], name).nan_to_num(), getattr(answers[1], name).nan_to_num()), name
        torch.testing.assert_close(
            getattr(answers[0], name), getattr(whole, name), rtol=1e-14, atol=1e-14, equal_nan=True
        )


def test_an_empty_batch_gives_zeros() -> None:
    data = random_data(9, mask=True, queries=2)[:0]
    got = directions(data, torch.ones(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64), "logistic")
    assert torch.equal(got.attention, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(got.head, torch.zeros(3, dtype=torch.float64))
    assert float(got.loss) == 0
    assert float(got.log_attention) == float(got.log_head) == float(got.log_loss) == -torch.inf


def test_a_sequence_without_a_token_leaves_the_loss() -> None:
    keys = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, v = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    mask = torch.tensor([[True, True], [False, False], [True, True]])
    padded = Sequences(keys, labels, mask=mask)
    sound = Sequences(keys[[0, 2]], labels[[0, 2]])
    got = exact_directions(padded, keys @ v, v, LOSSES["logistic"])  # type: ignore[arg-type]
    want = exact_directions(sound, sound.keys @ v, v, LOSSES["logistic"])  # type: ignore[arg-type]
    torch.testing.assert_close(got.attention, want.attention, rtol=1e-14, atol=0)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("gap", [50.0, 800.0, 2e4])
def test_equal_values_move_although_the_drift_underflows(gap: float) -> None:
    """Several kept tokens: the second is as good as the selected one, the third far below both."""
    keys = f64(
        [[[1.0, 0.0, 1.0], [0.5, 1.0, 1.0], [0.0, 0.0, -1.0]], [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]
    )
    data, v = Sequences(keys, f64([1.0, 1.0])), f64([0.0, 0.0, 1.0])
    scores = f64([[0.0, -1.5, -gap], [0.0, -0.5, -gap]])
    true = with_mpmath(data, scores, v, "logistic")
    got = exact_directions(data, scores, v, margin_loss("logistic"))
    assert_matches(got, true, 2**-52, 2 * gap)
    # The direction is not that of the third tokens alone.
    assert float(got.attention[:2].norm()) > 0.1
    for dtype in (torch.float64, torch.float32):
        one = Instances.stack(keys[None].to(dtype), data.labels[None].to(dtype))
        a = scores.T[..., None].to(dtype)
        many = instance_directions(one, a, token_scores(one, v[:, None].to(dtype)), margin_loss("logistic"))
        tolerance = 4 * torch.finfo(dtype).eps * gap
        torch.testing.assert_close(many.attention[:, 0].double(), true["attention"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_copies_are_of_equal_value_whatever_blas_rounds(dtype: torch.dtype) -> None:
    """Token 4 is token 0 again; every other token is 60 below, where 4e-16 too much of a lead is all there is."""
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        keys = torch.randn(3, 5, 8, generator=g, dtype=dtype)
        keys[:, 4] = keys[:, 0]
        data = Sequences(keys, torch.tensor([1.0, -1.0, 1.0], dtype=dtype))
        scores = torch.tensor([0.0, -60.0, -61.0, -60.5, -0.7], dtype=dtype).repeat(3, 1)
        v = torch.randn(8, generator=g, dtype=dtype)
        got = exact_directions(data, scores, v, margin_loss("logistic"))
        true = with_mpmath(data, scores, v, "logistic")
        assert float(direction_gap(got.attention.double(), true["attention"])) < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("zeros", [True, False])
def test_the_order_of_tokens_counts_for_nothing(zeros: bool, copies: bool) -> None:
    """At a start from zeros all tokens tie: which of them is called the selected one changed the sizes by half.

    So it did where two tokens have one key and other values.
    """
    g = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 7, 5, 3, generator=g, dtype=torch.float64)
    labels = torch.ones(7, dtype=torch.float64)
    if copies:
        keys[:, 1] = keys[:, 0]
    p, v = torch.randn(2, 3, generator=g, dtype=torch.float64)
    p = 0 * p if zeros else p
    loss = margin_loss("logistic")
    orders = [(keys, values), (keys.flip(1), values.flip(1))]
    one, other = (exact_directions(Sequences(k, labels, values=x), k @ p, v, loss) for k, x in orders)
    for name in FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-13, atol=1e-14)
    for k, x in orders:
        data = Instances.stack(k[None], labels[None], x[None])
        found = instance_directions(data, scores(data, p[:, None]), token_scores(data, v[:, None]), loss)
        torch.testing.assert_close(found.attention[:, 0], one.attention, rtol=1e-13, atol=1e-14)


def test_thin_instances_are_worked_out_beside_others() -> None:
    """Of three instances the second has a copy that hides its other tokens: each gets what it gets alone."""
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 2, 4, 5, generator=g, dtype=torch.float64)
    keys[1, :, 3] = keys[1, :, 0]
    a = torch.tensor([0.0, -200.0, -201.0, -0.5], dtype=torch.float64).repeat(3, 2, 1)
    a[[0, 2], :, 3] = -202.0
    labels, v = torch.ones(3, 2, dtype=torch.float64), torch.randn(3, 5, generator=g, dtype=torch.float64)

    def directions_of(at: slice) -> Tensor:
        data = Instances.stack(keys[at], labels[at])
        found = instance_directions(data, a[at].permute(2, 1, 0), token_scores(data, v[at].T), margin_loss("logistic"))
        return found.attention.T

    together = directions_of(slice(None))
    for b in range(3):
        torch.testing.assert_close(together[b], directions_of(slice(b, b + 1))[0], rtol=1e-12, atol=0)
        true = with_mpmath(Sequences(keys[b], labels[b]), a[b], v[b], "logistic")["attention"]
        torch.testing.assert_close(together[b], true, rtol=0, atol=1e-12)
