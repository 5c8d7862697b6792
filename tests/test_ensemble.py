"""Many instances as one tensor against each instance by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.core import LOSSES, MarginLoss, Sequences, exact_directions
from lightning_maxmargin.core.batch import Instances, scores, token_scores
from lightning_maxmargin.core.batch_directions import instance_directions
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.ensemble import train_ensemble
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import AcceleratedMargin, NormalizedGD


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def random(B: int, n: int, T: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, labels by sign, queries and unit heads."""
    g = torch.Generator().manual_seed(seed)
    keys, queries, v = unit(g, B, n, T, d), unit(g, B, n, d), unit(g, B, d)
    return keys, torch.where(torch.einsum("bntd,bd->bn", keys, v) >= 0, 1.0, -1.0).double(), queries, v


def margin_loss(name: str) -> MarginLoss:
    loss = LOSSES[name]
    assert isinstance(loss, MarginLoss)
    return loss


@given(
    B=st.integers(1, 4), n=st.integers(1, 4), T=st.integers(1, 5), d=st.integers(1, 4), seed=st.integers(0, 10**6),
    queries=st.booleans(), masked=st.booleans(), norm=st.sampled_from([0.0, 1.0, 50.0, 1e4]),
    loss=st.sampled_from(["logistic", "exponential", "correlation"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_instance_gets_its_own_exact_direction(
    B: int, n: int, T: int, d: int, seed: int, queries: bool, masked: bool, norm: float, loss: str
) -> None:
    keys, labels, z, v = random(B, n, T, d, seed)
    g = torch.Generator().manual_seed(seed + 1)
    mask = torch.rand(B, n, T, generator=g) < 0.6
    mask[..., 0] = True
    weight = norm * torch.randn(*((B, d, d) if queries else (B, d)), generator=g, dtype=torch.float64)
    data = Instances.stack(keys, labels, queries=z if queries else None, mask=mask if masked else None)
    w = weight.movedim(0, -1)
    got = instance_directions(data, scores(data, w), token_scores(data, v.T), margin_loss(loss))
    for b in range(B):
        one = Sequences(keys[b], labels[b], queries=z[b] if queries else None, mask=mask[b] if masked else None)
        a = torch.einsum("ntd,de,ne->nt", keys[b], weight[b], z[b]) if queries else keys[b] @ weight[b]
        want = exact_directions(one, a, v[b], margin_loss(loss))
        # Scores of size |norm| carry an error of eps * norm, and the weights are their exponentials.
        tolerance = 1e-13 * (1 + norm)
        torch.testing.assert_close(got.attention[..., b], want.attention, rtol=0, atol=tolerance)
        torch.testing.assert_close(got.head[:, b], want.head, rtol=0, atol=tolerance)  # type: ignore[index]
        torch.testing.assert_close(got.loss[b], want.loss, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("update", ["normalized", "accelerated"])
@pytest.mark.parametrize("with_queries", [False, True])
def test_trajectory_is_the_optimizers(update: str, with_queries: bool) -> None:
    keys, labels, z, _ = random(3, 4, 5, 6)
    rates = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    data = Instances.stack(keys, labels, queries=z if with_queries else None)
    state = EnsembleState(data, attention_lr=rates, head_lr=0.2, update=update)  # type: ignore[arg-type]
    # Momentum amplifies rounding along the way: 1e-16 has become 1e-7 after 200 accelerated steps.
    steps = 200 if update == "normalized" else 30
    state.run(steps)
    for b in range(3):
        w = torch.nn.Parameter(torch.zeros(*((6, 6) if with_queries else (6,)), dtype=torch.float64))
        v = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        kind = NormalizedGD if update == "normalized" else AcceleratedMargin
        optimizer = kind([{"params": [w], "lr": float(rates[b])}, {"params": [v], "lr": 0.2}])
        one = Sequences(keys[b], labels[b], queries=z[b] if with_queries else None)
        for _ in range(steps):
            with torch.no_grad():
                a = torch.einsum("ntd,de,ne->nt", keys[b], w, z[b]) if with_queries else keys[b] @ w
                g = exact_directions(one, a, v, margin_loss("logistic"))
            w.grad, v.grad = -g.attention, -g.head
            optimizer.step()
        torch.testing.assert_close(state.attention[..., b], w.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.head[:, b], v.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_queries", [False, True])
def test_float32_reaches_every_svm(with_queries: bool) -> None:
    keys, labels, z, v = random(60, 6, 8, 10)
    queries = z if with_queries else None
    result = train_ensemble(
        keys, labels, steps=2000, queries=queries, head=v, train="attention", attention_lr=1.0, update="accelerated"
    )
    shares = result.shares()
    assert shares["settled"] == 1
    assert shares["direction_gap/strict"] < 2e-5
    assert shares["neither"] == 0, "settled selections are locally optimal"


def test_joint_training_reaches_the_rate_coupled_limit() -> None:
    keys, labels, _, _ = random(30, 6, 8, 10, seed=3)
    result = train_ensemble(
        keys, labels, steps=3000, dtype=torch.float64, attention_lr=1.0, head_lr=1.0, update="accelerated"
    )
    shares = result.shares()
    assert shares["direction_gap/rate_coupled"] < 1e-6
    assert shares["direction_gap/head"] < 1e-6
    # Where every input supports the head the limits are one; elsewhere only the rate-coupled one is met.
    apart = result.direction_gap["strict"] > 1e-3
    assert 5 <= int(apart.sum()) <= 25
    assert result.direction_gap["rate_coupled"][apart].median() < 1e-6


def test_smaller_instances_fill_up_by_mask() -> None:
    keys, labels, _, v = random(2, 4, 5, 6)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[1, 2:, 1:] = False  # the second instance has two sequences,
    mask[1, :2, 3:] = False  # of three tokens
    labels[1, 2:] = 0
    options = {"steps": 300, "dtype": torch.float64, "train": "attention", "attention_lr": 0.5}
    together = train_ensemble(keys, labels, head=v, mask=mask, **options)
    alone = train_ensemble(keys[1:, :2, :3], labels[1:, :2], head=v[1:], **options)
    torch.testing.assert_close(together.state.attention[:, 1], alone.state.attention[:, 0], rtol=1e-9, atol=1e-9)
    assert together.relative_margin[1] == pytest.approx(float(alone.relative_margin[0]), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"update": "lion"}, "update"),
        ({"loss": "cross_entropy"}, "loss"),
        ({"attention": torch.zeros(3)}, "attention"),
    ],
)
def test_wrong_options(options: dict[str, object], said: str) -> None:
    keys, labels, _, _ = random(2, 2, 2, 2)
    with pytest.raises(InputError, match=said):
        train_ensemble(keys, labels, steps=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [30.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["copy", "equal score"])
def test_ties_with_the_selected_token_are_exact(dtype: torch.dtype, norm: float, kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    keys = unit(g, 1, 3, 5, 4)
    v = unit(g, 1, 4)
    p = norm * unit(g, 1, 4)
    top = (keys @ p[0]).argmax(2)[0]
    for i in range(3):
        other = (int(top[i]) + 1) % 5
        keys[0, i, other] = keys[0, i, top[i]]
        if kind == "equal score":
            # A second token with the selected one's v'x, but a smaller attention score.
            keys[0, i, other] -= 0.3 * (p[0] / norm - (p[0] @ v[0]) * v[0] / norm)
    keys = keys.to(dtype)
    labels = torch.tensor([[1.0, -1.0, 1.0]], dtype=dtype)
    data = Instances.stack(keys, labels)
    w, head = p.T.to(dtype), v.T.to(dtype)
    a = scores(data, w)
    got = instance_directions(data, a, token_scores(data, head), margin_loss("logistic"))
    want = exact_directions(Sequences(keys[0], labels[0]), a[..., 0].T, v[0].to(dtype), margin_loss("logistic"))
    unit_got, unit_want = (x / x.norm() for x in (got.attention[:, 0], want.attention))
    # In float32 equal scores are equal to 1e-8 only, and that is what leads at norm 30: a copy stays bitwise equal.
    if dtype == torch.float64 or kind == "copy":
        torch.testing.assert_close(unit_got, unit_want, rtol=0, atol=1e-6 if dtype == torch.float64 else 1e-4)
    assert got.attention.isfinite().all()


def test_an_instance_with_copies_of_what_it_selects_settles() -> None:
    keys, labels, _, v = random(4, 3, 5, 6, seed=3)
    doubled = torch.cat([keys, keys], 2)
    options = {"steps": 2000, "head": v, "train": "attention", "attention_lr": 1.0, "dtype": torch.float64}
    # Copies count among the weights that acceleration scales to sum 1, not in the direction, which is all here.
    once, twice = (train_ensemble(k, labels, update="normalized", **options) for k in (keys, doubled))  # type: ignore[arg-type]
    assert once.settled.all()
    assert twice.settled.all()
    torch.testing.assert_close(once.relative_margin, twice.relative_margin, rtol=1e-9, atol=0)
    assert (twice.selected % 5 == once.selected).all()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_are_positive_numbers(rate: float) -> None:
    keys, labels, _, _ = random(2, 2, 3, 4)
    with pytest.raises(InputError, match="rate"):
        EnsembleState(Instances.stack(keys, labels), attention_lr=rate)
    with pytest.raises(InputError, match="rate"):
        EnsembleState(Instances.stack(keys, labels), head_lr=torch.ones(3))
    with pytest.raises(InputError, match="train"):
        EnsembleState(Instances.stack(keys, labels), train="foo")  # type: ignore[arg-type]
