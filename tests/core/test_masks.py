"""Masks of other makers are read for what they say, or refused: never as truths that select padding."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.masks import as_mask, hidden_by
from lightning_maxmargin.core.sequences import check_sequences
from lightning_maxmargin.errors import InputError

TOKENS = torch.tensor([[True, True, False], [True, False, False]])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


@pytest.mark.parametrize("dtype", [torch.bool, *DTYPES], ids=str)
def test_ones_and_zeros_of_any_dtype(dtype: torch.dtype) -> None:
    assert torch.equal(as_mask(TOKENS.to(dtype), "mask"), TOKENS)


@pytest.mark.parametrize("hides", [-1e4, -math.inf, torch.finfo(torch.float32).min, -1e9])
def test_a_mask_that_is_added_to_scores(hides: float) -> None:
    added = torch.where(TOKENS, 0.0, hides)
    with pytest.raises(InputError, match=r"mask holds .* at \[0, 2\]; expected 1 at tokens .* pass mask == 0"):
        as_mask(added, "mask")
    assert torch.equal(hidden_by(added, "padding"), ~TOKENS)
    assert torch.equal(hidden_by(~TOKENS, "padding"), ~TOKENS)


@pytest.mark.parametrize("odd", [0.5, 2.0, -1.0, math.nan])
def test_other_numbers_are_refused(odd: float) -> None:
    mask = TOKENS.float()
    mask[1, 1] = odd
    with pytest.raises(InputError, match=r"mask holds .* at \[1, 1\]"):
        as_mask(mask, "mask")
    with pytest.raises(InputError, match=r"padding holds .* at \[[01], [01]\]"):
        hidden_by(mask, "padding")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_need_booleans(dtype: torch.dtype) -> None:
    data = Sequences(torch.ones(2, 3, 4), torch.tensor([1.0, -1.0]), mask=TOKENS.to(dtype))
    with pytest.raises(InputError, match=r"data: mask is .*; expected bool"):
        check_sequences(data)
