"""Earlier answers: returned again only where they are certified on the new rows, whatever they claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_maxmargin.svm import RowProblem, Solution, certify, solve_att_svm, solve_label_svm


def planted(*shape: int, dq: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(sum(shape))
    keys = torch.randn(*shape, generator=g, dtype=torch.float64)
    if dq is not None:
        z = torch.randn(shape[0], dq, generator=g, dtype=torch.float64)
        p = z @ torch.randn(dq, shape[-1], generator=g, dtype=torch.float64)
        return keys, torch.einsum("ntd,nd->nt", keys, p).argmax(1), z
    return keys, (keys @ torch.randn(shape[-1], generator=g, dtype=torch.float64)).argmax(-1), None


def spoiled(old: Solution) -> dict[str, Solution]:
    """Earlier answers that are none."""
    nan, minus, elsewhere = old.dual.clone(), old.dual.clone(), old.dual.clone()
    nan[..., 0, 0], minus[..., 0, 0] = float("nan"), -1.0
    elsewhere += 0.1
    return {
        "nan dual": replace(old, dual=nan),
        "negative dual": replace(old, dual=minus),
        "dual on selected tokens": replace(old, dual=elsewhere),
        "no dual": replace(old, dual=torch.zeros_like(old.dual)),
        "nan direction": replace(old, direction=old.direction * float("nan")),
        "minus direction": replace(old, direction=-old.direction),
        "short": replace(old, direction=old.direction * 1e-300),
        "turned": replace(old, direction=old.direction + 1e-5 * torch.ones_like(old.direction)),
    }


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dq", [None, 5])
def test_unchanged_keys_take_no_round(dq: int | None, scale: float) -> None:
    keys, selected, z = planted(60, 20, 12, dq=dq)
    old = solve_att_svm(scale * keys, selected, queries=z)
    new = solve_att_svm(scale * keys, selected, queries=z, warm_start=old)
    assert (new.status, new.iterations) == ("certified", 0)
    torch.testing.assert_close(new.direction, old.direction, rtol=1e-12, atol=0)
    assert new.support.tolist() == old.support.tolist()
    problem = RowProblem.attention(scale * keys, selected, z)
    assert certify(problem, new.direction.numpy(), new.dual.numpy())[0] == new.gap <= 1e-12


@pytest.mark.parametrize("shape", [(60, 20, 12), (80, 6, 8, 10)])
def test_spoiled_answers_are_not_believed(shape: tuple[int, ...]) -> None:
    keys, selected, _ = planted(*shape)
    cold = solve_att_svm(keys, selected)
    for words, old in spoiled(cold).items():
        new = solve_att_svm(keys, selected, warm_start=old)
        assert new.status == cold.status, words
        torch.testing.assert_close(new.direction, cold.direction, rtol=1e-9, atol=1e-11, msg=words)
        assert (new.dual >= 0).all(), words


@pytest.mark.parametrize("move", [0.0, 1e-9, 1e-3, 1e-2, 0.3])
def test_batches_with_a_few_changed_instances(move: float) -> None:
    keys, selected, _ = planted(80, 6, 8, 10)
    keys[5, 0, 0] = keys[5, 0, selected[5, 0]]
    selected[7] = 0
    old = solve_att_svm(keys, selected)
    keys = keys + move * torch.randn(keys.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keys[:3] = torch.randn(3, 6, 8, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    keys[2, 0] = float(keys[2, 0, 0, 0])
    cold, new = solve_att_svm(keys, selected), solve_att_svm(keys, selected, warm_start=old)
    assert new.status == cold.status
    assert new.merged.tolist() == cold.merged.tolist()
    for b in range(80):
        torch.testing.assert_close(new.direction[b], cold.direction[b], rtol=1e-8, atol=1e-10)
        assert new.support[b].tolist() == cold.support[b].tolist()
    assert float(np.max(new.gap.numpy()[[s == "certified" for s in new.status]])) <= 1e-11


def test_labels_again() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(800, 30, generator=g, dtype=torch.float64)
    y = torch.sign(x @ torch.randn(30, generator=g, dtype=torch.float64))
    old = solve_label_svm(x, y)
    new = solve_label_svm(x, y, warm_start=old)
    assert (new.status, new.iterations) == ("certified", 0)
    torch.testing.assert_close(new.dual, old.dual)
