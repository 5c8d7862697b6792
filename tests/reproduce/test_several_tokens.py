"""Several kept tokens: the batch against autograd, the counts, and the published order of the three SVMs."""

from __future__ import annotations

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.several_tokens import _draw, _gaps, _Model, several_tokens
from lightning_maxmargin.svm.active_set import solve_finite_part, solve_kept_svm


def model(dim: int = 5, seeds: int = 4) -> _Model:
    return _Model(*(torch.stack(x) for x in zip(*(_draw(dim, 3, 4, k) for k in range(seeds)), strict=True)))


def test_gradient_is_that_of_autograd() -> None:
    m = model()
    W = m.W.clone().requires_grad_()
    s = torch.einsum("bntd,bde,bne->bnt", m.X, W, m.z).softmax(2)
    f = (torch.einsum("bnt,bntd->bnd", s, m.X) @ m.V.mT).relu().sum(2)
    torch.nn.functional.softplus(-m.labels * f).mean(1).sum().backward()
    torch.testing.assert_close(m.gradient(), W.grad, rtol=1e-10, atol=1e-13)


def test_instances_do_not_depend_on_the_batch() -> None:
    many, one = several_tokens(5, seeds=3, steps=300), several_tokens(5, seeds=1, steps=300, seed=2)
    torch.testing.assert_close(many.W[2], one.W[0])


def test_a_W_made_of_both_parts_is_found_again() -> None:
    """W = W_fin + 60 W_dir of a kept pair: its softmax keeps the pair, and the gap to the combination is rounding."""
    m = model(8, 1)
    kept = torch.tensor([[True, True, False, False], [True, False, False, False], [False, False, True, True]])
    s = torch.where(kept, torch.tensor([0.6, 0.4, 0.4, 0.6]).double(), 0.0)
    far = solve_kept_svm(m.X[0], kept, queries=m.z[0]).direction
    near = solve_finite_part(m.X[0], kept, s, queries=m.z[0]).direction
    m.W = (near + 60 * far)[None]
    attention = m.attention()
    assert torch.equal(attention[0] > 1e-3, kept)
    combined, direction, one_token = _gaps(m, attention, kept[None], 0)
    assert abs(combined) < 1e-12
    assert 1e-9 < direction < one_token


def test_counts_add_up_and_rejected_seeds_are_nan() -> None:
    result = several_tokens(4, seeds=40, steps=1200)
    accepted = int(result.accepted.sum())
    assert accepted + result.between + result.unsolved == 40
    assert result.between > 0
    assert result.combined[~result.accepted].isnan().all()
    assert result.combined[result.accepted].isfinite().all()
    assert result.single <= accepted
    alone = result.accepted & (result.kept.sum(2) == 1).all(1)
    # With one token each, W_fin is 0 and all three SVMs are the same.
    torch.testing.assert_close(result.combined[alone], result.one_token[alone], rtol=1e-6, atol=1e-9)


def test_published_order() -> None:
    means = several_tokens(4, seeds=60).means()
    assert means["combined"] < means["direction"] < means["one_token"]


@pytest.mark.slow
@pytest.mark.parametrize("dim", [4, 6, 8, 10])
def test_published_order_in_every_dimension(dim: int) -> None:
    means = several_tokens(dim, seeds=500).means()
    assert means["combined"] < means["direction"] < means["one_token"]


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 4, "seeds": 0}, {"dim": 4, "lr": -1.0}])
def test_sizes_must_be_positive(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="positive"):
        several_tokens(**options)
