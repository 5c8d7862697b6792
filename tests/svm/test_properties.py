"""What must hold for any data: scale, order, repetition, and the ends of the rate-coupled family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm, solve_label_svm

SAME = 1e-9
examples = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(1, 12), st.integers(2, 7), st.integers(1, 9))


def problem(seed: int, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, generator=g, dtype=torch.float64)
    return keys, (keys @ torch.randn(size[2], generator=g, dtype=torch.float64)).argmax(1), g


def same(a: Tensor, b: Tensor, tol: float = SAME) -> None:
    assert float((a - b).norm()) <= tol * float(b.norm())


@examples
@given(seeds, sizes, st.integers(-12, 12))
def test_scaling_keys_scales_the_direction_inversely(seed: int, size: tuple[int, int, int], power: int) -> None:
    keys, selected, _ = problem(seed, size)
    plain, scaled = solve_att_svm(keys, selected), solve_att_svm(keys * 10.0**power, selected)
    assert plain.status == scaled.status == "certified"
    same(scaled.direction * 10.0**power, plain.direction)
    same(scaled.dual * 100.0**power, plain.dual, 1e-7)


@examples
@given(seeds, sizes)
def test_permuting_tokens_permutes_the_dual(seed: int, size: tuple[int, int, int]) -> None:
    keys, selected, g = problem(seed, size)
    order = torch.randperm(size[1], generator=g)
    plain = solve_att_svm(keys, selected)
    moved = solve_att_svm(keys[:, order], torch.argsort(order)[selected])
    same(moved.direction, plain.direction)
    same(moved.dual, plain.dual[:, order], 1e-7)


@examples
@given(seeds, sizes, st.integers(2, 10))
def test_repeating_rows_changes_nothing(seed: int, size: tuple[int, int, int], times: int) -> None:
    keys, selected, _ = problem(seed, size)
    again = solve_att_svm(keys.repeat(times, 1, 1), selected.repeat(times))
    assert again.status == "certified"
    same(again.direction, solve_att_svm(keys, selected).direction)


@examples
@given(seeds, sizes, st.floats(0.0, 1.0))
def test_a_token_far_behind_changes_nothing(seed: int, size: tuple[int, int, int], share: float) -> None:
    keys, selected, _ = problem(seed, size)
    plain = solve_att_svm(keys, selected)
    # A convex combination of two losing tokens, pushed back along p, is inside what the rows already demand.
    others = [[t for t in range(size[1]) if t != a] for a in selected.tolist()]
    losing = torch.stack([k[t][[0, -1]] for k, t in zip(keys, others, strict=True)])
    inner = share * losing[:, :1] + (1 - share) * losing[:, 1:] - plain.direction
    more = solve_att_svm(torch.cat([keys, inner], dim=1), selected)
    same(more.direction, plain.direction)
    assert not more.dual[:, -1].any() or float(more.dual[:, -1].max()) <= 1e-9 * float(more.dual.max())


@examples
@given(seeds, st.tuples(st.integers(2, 10), st.integers(2, 6), st.integers(6, 12)))
def test_ends_of_the_rate_coupled_family(seed: int, size: tuple[int, int, int]) -> None:
    keys, selected, g = problem(seed, size)
    x = keys[torch.arange(size[0]), selected]
    labels = torch.sign(x @ torch.randn(size[2], generator=g, dtype=torch.float64))

    def solve(limit: str, rho: float | None = None) -> Tensor:
        joint = solve_joint_svm(keys, keys, labels, selected, limit=limit, norm_ratio=rho)
        assert joint.attention.status == "certified"
        assert joint.rhs is not None
        assert float(joint.rhs.max()) == 1
        return joint.attention.direction

    strict = solve("strict")
    # The limit is approached in proportion to rho over the margin.
    same(solve("rate_coupled", 1e-9), strict, 1e-6 * max(1.0, float(strict.norm()) ** 2))
    same(solve("rate_coupled", 1e9), solve("relaxed"), 1e-7)


@examples
@given(seeds, sizes)
def test_one_query_of_length_one_is_the_p_problem(seed: int, size: tuple[int, int, int]) -> None:
    keys, selected, _ = problem(seed, size)
    W = solve_att_svm(keys, selected, queries=torch.ones(size[0], 1))
    same(W.direction[:, 0], solve_att_svm(keys, selected).direction)


@pytest.mark.parametrize("move", [0.0, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("with_queries", [False, True])
def test_a_warm_start_never_changes_the_answer(move: float, with_queries: bool) -> None:
    keys, selected, g = problem(0, (80, 30, 12))
    z = torch.ones(80, 1, dtype=torch.float64) if with_queries else None
    old = solve_att_svm(keys, selected, queries=z)
    keys = keys + move * torch.randn(keys.shape, generator=g, dtype=torch.float64)
    selected = (keys @ torch.ones(12, dtype=torch.float64)).argmax(1)
    cold, warm = (solve_att_svm(keys, selected, queries=z, warm_start=w) for w in (None, old))
    assert cold.status == warm.status == "certified"
    same(warm.direction, cold.direction)
    assert warm.support.tolist() == cold.support.tolist()


def test_a_warm_start_of_another_shape_is_ignored() -> None:
    keys, selected, _ = problem(1, (10, 5, 6))
    other = solve_att_svm(keys[:3, :2, :4], torch.zeros(3), queries=torch.ones(3, 2))
    label = solve_label_svm(keys[:, 0], torch.ones(10))
    for old in (other, label):
        same(solve_att_svm(keys, selected, warm_start=old).direction, solve_att_svm(keys, selected).direction)


def test_batched_equals_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(5, 6, 8, 10, generator=g, dtype=torch.float64)
    selected = torch.randint(8, (5, 6), generator=g)
    selected[:3] = (keys[:3] @ torch.ones(10, dtype=torch.float64)).argmax(-1)
    keys[4] = 0.0
    many = solve_att_svm(keys, selected)
    assert many.direction.shape == (5, 10)
    assert many.dual.shape == (5, 6, 8)
    assert many.margin.shape == many.gap.shape == (5,)
    assert many.status[:3] == ("certified",) * 3
    for b in range(5):
        one = solve_att_svm(keys[b], selected[b])
        assert one.status == many.status[b]
        # The gaps themselves are rounding; a batch tells its largest.
        assert one.message.split(" gap ")[0] == many.message[b].split(" gap ")[0]
        same(many.direction[b], one.direction)
        assert one.support.tolist() == many.support[b].tolist()
