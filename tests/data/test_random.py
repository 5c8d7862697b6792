"""Random ensembles: the same for the same seed, of unit length, labelled as asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.errors import InputError


def train(**arguments: Any) -> Sequences:
    data = RandomData(**arguments).sequences("train")
    assert data is not None
    return data


def test_a_seed_is_the_data() -> None:
    first = RandomData(seed=3, queries=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = RandomData(seed=3, queries=True)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, other = first.sequences("train"), second.sequences("train"), train(seed=4, queries=True)
    assert a is not None
    assert b is not None
    for name in ("keys", "labels", "queries"):
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert not torch.equal(getattr(a, name), getattr(other, name))
    assert first.head is not None
    assert second.head is not None
    assert torch.equal(first.head, second.head)


def test_shapes_and_unit_length() -> None:
    data = RandomData(n=4, T=3, d=5, queries=True)
    sequences = data.sequences("train")
    assert sequences is not None
    assert sequences.queries is not None
    assert data.head is not None
    assert sequences.keys.shape == (4, 3, 5)
    assert sequences.queries.shape == (4, 5)
    assert sequences.values is sequences.keys
    assert (data.dim, data.value_dim, data.query_dim) == (5, 5, 5)
    for x in (sequences.keys, sequences.queries, data.head):
        assert x.dtype == torch.float64
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(x.shape[:-1], dtype=torch.float64), rtol=1e-15, atol=0)
    assert RandomData().query_dim is None


def test_tokens_have_no_preferred_direction() -> None:
    keys = train(n=2000, T=5, d=3, seed=1).keys.flatten(0, 1)
    # 10,000 draws: a mean has deviation sqrt(1/3 / 10,000) = .0058, a second moment .0030.
    assert keys.mean(0).abs().max() < 0.025
    torch.testing.assert_close(keys.T @ keys / len(keys), torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.015)


def test_random_labels_are_both_signs() -> None:
    labels = train(n=400, T=1, d=1).labels
    assert set(labels.tolist()) == {-1, 1}
    assert labels.mean().abs() < 0.25  # 5 deviations


def test_sign_labels_are_those_of_uniform_attention() -> None:
    data = RandomData(n=50, T=4, d=3, seed=2, labels="sign")
    sequences = data.sequences("train")
    assert sequences is not None
    assert data.head is not None
    f = (sequences.values.mean(1) * data.head).sum(1)
    assert f.abs().min() > 0
    assert torch.equal(sequences.labels, f.sign())
    assert set(sequences.labels.tolist()) == {-1, 1}


def test_sign_labels_where_the_mean_token_is_zero() -> None:
    """d = 1: tokens are -1 or 1, so an even number of them often sums to zero."""
    assert set(train(n=30, T=2, d=1, labels="sign").labels.tolist()) <= {-1, 1}


def test_ones() -> None:
    assert train(labels="ones").labels.tolist() == [1] * 10


def test_modes_of_labels_leave_the_tokens_alone() -> None:
    kinds = [train(seed=5, labels=labels) for labels in ("random", "sign", "ones")]
    assert all(torch.equal(kind.keys, kinds[0].keys) for kind in kinds)


def test_classes() -> None:
    labels = train(n=100, T=1, d=2, num_classes=4).labels
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["n", "T", "d", "batch_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_must_be_positive(name: str, size: int) -> None:
    with pytest.raises(InputError, match=rf"data\.{name}: {size}"):
        RandomData(**{name: size})


def test_minibatches() -> None:
    data = RandomData(n=10, batch_size=4, seed=7)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    first = [batch.index.tolist() for batch in loader]
    assert [len(batch) for batch in first] == [4, 4, 2]
    loader.sampler.set_epoch(2)
    assert [batch.index.tolist() for batch in loader] != first
    assert [b.index.tolist() for b in data.predict_dataloader()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # type: ignore[union-attr]
