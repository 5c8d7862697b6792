"""Rows that all but vanish in one direction, as vectors whose entries sum to zero up to float32's rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_maxmargin.svm import solve_att_svm, solve_label_svm
from lightning_maxmargin.svm.proofs import absorbs

# Powers of two, so that rows scaled by them are the same rows up to no rounding at all.
THIN = (2.0**-17, 2.0**-27)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coins(n: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))


def thinned(x: Tensor, share: float, columns: int = 1) -> Tensor:
    x = x.clone()
    x[..., -columns:] *= share
    return x


@pytest.mark.parametrize("share", THIN)
@pytest.mark.parametrize(("n", "d"), [(60, 10), (400, 60), (900, 200)])
def test_what_no_direction_separates_is_so_in_any_coordinates(n: int, d: int, share: float) -> None:
    x, labels = normal(n, d, n), coins(n, d)
    assert solve_label_svm(x, 2 * labels - 1).status == "infeasible"
    for columns in (1, 3):
        found = solve_label_svm(thinned(x, share, columns), 2 * labels - 1)
        assert (found.status, columns) == ("infeasible", columns)


@pytest.mark.parametrize("share", THIN)
def test_so_are_classes_and_tokens(share: float) -> None:
    x, labels = normal(300, 12, 1), torch.arange(300) % 3
    assert solve_label_svm(thinned(x, share), labels).status == "infeasible"
    keys = thinned(normal(150 * 4, 12, 2), share).reshape(150, 4, 12)
    selected = torch.arange(150) % 4
    assert solve_att_svm(keys, selected).status == "infeasible"
    assert solve_att_svm(keys, selected, queries=normal(150, 2, 3)).status == "infeasible"


@pytest.mark.parametrize("n", [300, 700, 1500])
def test_vectors_that_a_layer_norm_made(n: int) -> None:
    # 128 numbers that sum to zero up to rounding: labels by chance are separable up to 2 x 127 of them.
    x = torch.nn.functional.layer_norm(normal(n, 128, n).float(), (128,))
    assert solve_label_svm(x, 2 * coins(n, n) - 1).status == "infeasible"
    assert solve_label_svm(x[:100], 2 * coins(n, n)[:100] - 1).certified


@pytest.mark.parametrize("share", THIN)
def test_a_thin_direction_that_separates_is_never_called_infeasible(share: float) -> None:
    x, y = normal(500, 40, 5), 2 * coins(500, 6) - 1
    x[:, -1] = y * share * (0.5 + normal(500, 1, 7)[:, 0].abs())
    found = solve_label_svm(x, y)
    # Its optimum is proved for margins down to 1e-7 or so, and left "unverified" below.
    assert found.status != "infeasible"
    assert found.certified or share < 1e-7


@pytest.mark.parametrize("share", [1.0, *THIN])
def test_a_proof_counts_rounding(share: float) -> None:
    rows = thinned(normal(50, 5, 8), share).numpy()
    u = np.linalg.svd(rows.T)[2][-1]
    rows, u = rows * np.sign(u)[:, None], np.abs(u)
    assert absorbs(rows, u)
    # A residual in the thin direction that no small change of u takes away.
    assert not absorbs(np.abs(rows), u)


@pytest.mark.parametrize("share", THIN)
def test_what_only_rounding_would_combine_proves_nothing(share: float) -> None:
    # All rows have the same sign in the thin direction: no u > 0 combines them to zero, though the rest of them does.
    rows = np.abs(thinned(normal(50, 1, 9), share).numpy())
    wide = normal(50, 4, 10).numpy()
    u = np.linalg.svd(wide.T)[2][-1]
    assert not absorbs(np.hstack([wide * np.sign(u)[:, None], rows]), np.abs(u))
