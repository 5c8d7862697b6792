"""The container of token sequences."""

from __future__ import annotations

import copy

import torch

from lightning_maxmargin.core import Sequences
from tests.core.exact_reference import random_data


def test_rows_keep_every_field_and_their_place() -> None:
    data = random_data(0, n=5, queries=2, mask=True, dv=4)
    data.planted, data.instance = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    part = data[torch.tensor([4, 1])]
    assert len(part) == 2
    assert part.index.tolist() == [4, 1]
    assert part[1:].index.tolist() == [1]
    for name in Sequences.FIELDS:
        assert torch.equal(getattr(part, name), getattr(data, name)[[4, 1]]), name


def test_keys_and_values_stay_one_tensor() -> None:
    data = random_data(0)
    for other in (data, data[:2], data.to(torch.float32), data[:2].to("cpu")):
        assert other.values is other.keys
    apart = random_data(0, dv=3)
    assert apart[:2].values is not apart[:2].keys


def test_dtype_reaches_floating_tensors_alone() -> None:
    data = random_data(0, mask=True, queries=1)
    classes = Sequences(data.keys, torch.tensor([0, 1, 2, 3]), queries=data.queries, mask=data.mask)
    for cast in (
        classes.to(torch.float32),
        classes.to(dtype=torch.float32),
        classes.to("cpu", torch.float32),
        classes.to(torch.float32, non_blocking=True),
    ):
        assert cast.mask is not None
        assert cast.queries is not None
        assert cast.keys.dtype == cast.queries.dtype == torch.float32
        assert (cast.labels.dtype, cast.mask.dtype, cast.index.dtype) == (torch.int64, torch.bool, torch.int64)
    assert data.to(torch.float32).labels.dtype == torch.float32


def test_pad_makes_ragged_lists_one() -> None:
    lists = [torch.ones(n, 2) * n for n in (1, 3, 2)]
    data = Sequences.pad(lists, torch.ones(3), values=[x[:, :1] for x in lists], queries=torch.zeros(3, 1))
    assert data.mask is not None
    assert data.keys.shape == (3, 3, 2)
    assert data.values.shape == (3, 3, 1)
    assert data.mask.sum(1).tolist() == [1, 3, 2]
    for i, x in enumerate(lists):
        assert torch.equal(data.keys[i][data.mask[i]], x)
        assert not data.keys[i][~data.mask[i]].any()
    assert data.queries is not None


def test_deepcopy_is_apart() -> None:
    data = random_data(0)
    other = copy.deepcopy(data)
    other.keys.zero_()
    assert data.keys.any()
    assert other.values is other.keys
