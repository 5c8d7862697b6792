"""Pooling: centred equals naive in value, and lives where naive dies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.core import LOSSES, centred_pool, masked_softmax, naive_pool, select, take_token
from lightning_maxmargin.metrics import direction_gap
from tests.core.exact_reference import directions, f64, random_data, saturated, scores_of, textbook_loss


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), ragged=st.booleans(), size=st.sampled_from([0.0, 1.0, 5.0]), T=st.integers(1, 6))
def test_centred_equals_naive(seed: int, ragged: bool, size: float, T: int) -> None:
    data = random_data(seed, T=T, mask=ragged, dv=2)
    g = torch.Generator().manual_seed(seed)
    p, upstream = size * torch.randn(3, generator=g, dtype=torch.float64), torch.randn(4, 2, generator=g).double()
    results = []
    for pool in (centred_pool, naive_pool):
        w, x = p.clone().requires_grad_(), data.values.clone().requires_grad_()
        pooled, attention = pool(data.keys @ w, x, data.mask)
        results.append((pooled, attention, *torch.autograd.grad((pooled * upstream).sum(), (w, x))))
    for centred, naive in zip(*results, strict=True):
        torch.testing.assert_close(centred, naive, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", [centred_pool, naive_pool])
def test_gradient_equals_finite_differences(pool: object) -> None:
    data = random_data(1, mask=True)
    scores = (data.keys @ f64([1, -2, 0.5])).requires_grad_()
    values = data.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, x: pool(a, x, data.mask)[0], (scores, values))  # type: ignore[operator]


@pytest.mark.parametrize(("dtype", "norm"), [(torch.float32, 40.0), (torch.float64, 300.0)])
def test_centred_gradient_lives_where_naive_is_zero_or_noise(dtype: torch.dtype, norm: float) -> None:
    data, p, v = saturated(1, norm, 1.0, queries=False)
    data, v = data.to(dtype), v.to(dtype)
    truth = directions(data, p.to(dtype), v, "logistic").attention
    w = p.to(dtype).requires_grad_()
    pooled, _ = centred_pool(data.keys @ w, data.values, data.mask)
    LOSSES["logistic"](pooled @ v, data.labels).mean().backward()
    gap = direction_gap(-w.grad, truth)
    assert gap is not None
    # Relative error of a weight: eps times its exponent; the gap is half its square.
    assert gap < (8 * torch.finfo(dtype).eps * norm) ** 2
    w = p.to(dtype).requires_grad_()
    loss = LOSSES["logistic"]
    (naive,) = torch.autograd.grad(textbook_loss(data, w, v, loss), w)  # type: ignore[arg-type]
    assert direction_gap(-naive, truth) is None or direction_gap(-naive, truth) > 0.01


def test_naive_gradient_is_exactly_zero_and_centred_is_not() -> None:
    scores, values = f64([[50.0, 0.0]]).requires_grad_(), f64([[[1.0], [0.0]]])
    gradients = [torch.autograd.grad(pool(scores, values)[0].sum(), scores)[0] for pool in (naive_pool, centred_pool)]
    # At the selected token: s (u - s u) = 1 - 1 = 0, where the truth is exp(-50).
    assert gradients[0][0, 0] == 0
    assert gradients[1][0, 0].item() == pytest.approx(1.9287498479639178e-22, rel=1e-14)
    assert gradients[1].sum().item() == pytest.approx(0, abs=1e-36)


@pytest.mark.parametrize("pool", [centred_pool, naive_pool])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_padding_gets_exactly_zero(pool: object, dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, True]])
    scores = torch.tensor([[-9.0, -8.0, 50.0, 60.0], [-70.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    scores.requires_grad_()
    pooled, attention = pool(scores, torch.randn(3, 4, 2, dtype=dtype), mask)  # type: ignore[operator]
    assert torch.equal(attention[~mask], torch.zeros(5, dtype=dtype))
    torch.testing.assert_close(attention.sum(1), torch.ones(3, dtype=dtype))
    assert attention[1, 0] == 1
    pooled.sum().backward()
    assert torch.equal(scores.grad[~mask], torch.zeros(5, dtype=dtype))


@pytest.mark.parametrize("pool", [centred_pool, naive_pool])
def test_row_of_padding_alone_is_finite_with_zero_attention(pool: object) -> None:
    scores, values = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, 2, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True] * 3])
    pooled, attention = pool(scores, values, mask)  # type: ignore[operator]
    assert torch.equal(attention[0], torch.zeros(3))
    assert pooled.isfinite().all()
    pooled.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert values.grad.isfinite().all()
    assert torch.equal(scores.grad[0], torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_is_softmax_of_the_real_tokens(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    mask = torch.tensor([[True, True, True, True], [False, True, False, True]])
    got = masked_softmax(scores, mask)
    assert torch.equal(got[0], scores[0].softmax(0))
    torch.testing.assert_close(got[1, [1, 3]], scores[1, [1, 3]].softmax(0))
    assert torch.equal(got[1, [0, 2]], torch.zeros(2, dtype=dtype))
    assert torch.equal(masked_softmax(scores), scores.softmax(1))
    assert torch.equal(masked_softmax(scores, torch.zeros_like(mask)), torch.zeros_like(scores))


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_scores_of_padding_do_not_matter(filler: float) -> None:
    mask = torch.tensor([[True, True, False]])
    clean, dirty = f64([[1.0, 2.0, 0.0]]), f64([[1.0, 2.0, filler]])
    values = f64([[[1.0], [2.0], [3.0]]])
    assert torch.equal(masked_softmax(dirty, mask), masked_softmax(clean, mask))
    for pool in (centred_pool, naive_pool):
        for got, want in zip(pool(dirty, values, mask), pool(clean, values, mask), strict=True):
            assert torch.equal(got, want)


def test_select_takes_the_first_of_equals_and_never_padding() -> None:
    scores = f64([[1, 3, 3], [9, 0, 0], [-5, -6, 9]])
    mask = torch.tensor([[True] * 3, [False, True, True], [True, True, False]])
    assert select(scores, mask).tolist() == [1, 1, 0]
    assert select(scores).tolist() == [1, 0, 2]


def test_take_token_of_scores_and_of_tokens() -> None:
    tokens: Tensor = torch.arange(12.0).view(2, 3, 2)
    assert take_token(tokens, torch.tensor([2, 0])).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert take_token(tokens[..., 0], torch.tensor([2, 0])).tolist() == [4.0, 6.0]


def test_saturated_helper_is_what_it_says() -> None:
    data, p, _ = saturated(1, 1e4, 1.0, queries=False)
    rows = scores_of(data, p)
    assert (select(rows, data.mask) == 0).all()
    assert ((rows[:, 0] - rows[:, 1]) / 1e4).tolist() == pytest.approx([1] * 4, abs=1e-3)
