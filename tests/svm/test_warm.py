"""Earlier answers: returned again only where they are certified on the new rows, whatever they claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.svm import RowProblem, Solution, certify, solve_att_svm, solve_label_svm
from lightning_maxmargin.svm.qp.centre import combined_to_zero


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


def labels_of(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """More than twice as many random labels as dimensions: no direction separates them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.randint(2, (n,), generator=g) * 2.0 - 1


def test_an_earlier_proof_is_corrected_for_rows_that_changed_and_proved_again() -> None:
    x, y = labels_of(1200, 40)
    old = solve_label_svm(x, y)
    x = x.clone()
    x[::100] = labels_of(12, 40, seed=1)[0]
    new = solve_label_svm(x, y, warm_start=old)
    assert (new.status, new.iterations) == ("infeasible", 0), "no round of constraint generation"
    assert solve_label_svm(x, y).status == "infeasible"
    combined = (new.dual * y) @ x
    assert float(combined.norm()) <= 1e-12 * float((new.dual * x.norm(dim=1)).sum())
    assert float(new.dual.min()) >= 0
    assert float(new.dual.sum()) == pytest.approx(1, rel=1e-12)


def test_an_earlier_proof_of_other_rows_is_not_believed() -> None:
    x, y = labels_of(1200, 40)
    old = solve_label_svm(x, y)
    x = x.clone()
    x[:, 0] = y * (1 + x[:, 0].abs())
    assert solve_label_svm(x, y, warm_start=old).status == "certified"
    half = replace(old, dual=torch.where(torch.arange(1200) < 600, old.dual, 0.0))
    minus = replace(old, dual=-old.dual)
    nan = replace(old, dual=old.dual * float("nan"))
    for spoiled_proof in (half, minus, nan, replace(old, dual=torch.zeros(1200)), replace(old, dual=torch.ones(7))):
        assert solve_label_svm(x, y, warm_start=spoiled_proof).status == "certified"


def test_classes_and_attention_are_refuted_again_as_well() -> None:
    x, _ = labels_of(1500, 10)
    classes = torch.arange(1500) % 3
    old = solve_label_svm(x, classes)
    assert old.status == "infeasible"
    moved = x.clone()
    moved[7] = -moved[7]
    assert solve_label_svm(moved, classes, warm_start=old).status == "infeasible"
    keys, selected, z = planted(400, 6, 6, dq=5)
    other = (selected + torch.arange(400) % 2) % 6
    proof = solve_att_svm(keys, other, queries=z)
    assert proof.status == "infeasible"
    moved_keys = keys.clone()
    moved_keys[0, 0] += 0.1
    again = solve_att_svm(moved_keys, other, queries=z, warm_start=proof)
    assert (again.status, again.iterations) == ("infeasible", 0)


def test_labels_are_refuted_at_once_without_an_earlier_proof() -> None:
    x, y = labels_of(1200, 40)
    found = solve_label_svm(x, y)
    assert (found.status, found.iterations) == ("infeasible", 0), "no round of constraint generation"
    assert int((found.dual > 0).sum()) == 160, "four for each dimension"
    assert float(((found.dual * y) @ x).norm()) <= 1e-12 * float((found.dual * x.norm(dim=1)).sum())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("classes", [2, 3])
def test_an_earlier_proof_leads_to_one_however_many_rows_have_changed(share: float, classes: int) -> None:
    x, y = labels_of(1200, 40)
    y = y if classes == 2 else torch.arange(1200) % classes
    old = solve_label_svm(x, y)
    moved = torch.where(torch.rand(1200, 1, generator=torch.Generator().manual_seed(2)) < share, x.flip(0), x)
    new = solve_label_svm(moved, y, warm_start=old)
    assert (old.status, new.status, new.iterations) == ("infeasible", "infeasible", 0)


@pytest.mark.parametrize("margin", [1e-9, 1e-3, 1.0])
def test_separable_labels_are_not_refuted_however_thin_their_margin(margin: float) -> None:
    x, _ = labels_of(1200, 40)
    w = torch.nn.functional.normalize(torch.ones(40, dtype=torch.float64), dim=0)
    y = torch.where(x @ w > 0, 1.0, -1.0)
    x = x + margin * y[:, None].double() * w
    for warm in (None, solve_label_svm(*labels_of(1200, 40))):
        assert solve_label_svm(x, y, warm_start=warm).status != "infeasible"


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40))
def test_a_combination_to_zero_is_one(seed: int, r: int, m: int) -> None:
    A = np.random.default_rng(seed).normal(size=(m, r))
    u = combined_to_zero(A / np.linalg.norm(A, axis=1, keepdims=True))
    if u is None:
        return
    assert (u > 0).all()
    assert np.linalg.norm((u / np.linalg.norm(A, axis=1)) @ A) <= 1e-12 * u.sum()
