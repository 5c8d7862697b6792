"""Momentum by norm on tiny settings: the rules, the hybrid norm, the decay, and who leads where."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_maxmargin.core.norms import polar_factor, unit
from lightning_maxmargin.core.updates import Sign
from lightning_maxmargin.reproduce.geometry import Best, DecayingState
from lightning_maxmargin.reproduce.momentum import (
    HYBRID,
    OPTIMIZERS,
    Momentum,
    MuonSign,
    hybrid_norm,
    leads,
    momentum_geometry,
    trained,
    with_bias,
)
from lightning_maxmargin.reproduce.problems import draw
from lightning_maxmargin.svm import norm_of, solve_att_svm


def test_the_last_column_is_a_bias() -> None:
    drawn = draw(2, 4, 3, 5, queries=True)
    assert drawn.queries is not None
    W = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = torch.einsum("bde,bne->bnd", W[..., :-1], drawn.queries) + W[:, None, :, -1]
    torch.testing.assert_close(with_bias(drawn).scores(W), torch.einsum("bntd,bnd->bnt", drawn.keys, moved))


def test_rules_move_along_their_average() -> None:
    g = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = {}
    for rule in (Momentum(0.5), MuonSign(0.5)):
        w = torch.zeros(4, 5, dtype=torch.float64)
        state = rule.start(w)
        for count, gradient in enumerate(g):
            before = w
            w, state = rule.step(w, gradient, 2.0, state, count)
        both[type(rule)] = before - w

    def average(part: torch.Tensor) -> torch.Tensor:
        first, second = (x / x.abs().max() for x in part)
        return first / 4 + second / 2

    torch.testing.assert_close(both[Momentum], 2 * unit(average(g)))
    torch.testing.assert_close(both[MuonSign][:, :-1], 2 * polar_factor(average(g[..., :-1])))
    torch.testing.assert_close(both[MuonSign][:, -1], 2 * average(g[..., -1:]).sign()[:, 0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rates_decay_as_the_power_says(power: float) -> None:
    state = DecayingState(draw(3, 4, 3, 5, queries=True), Sign(), 2.0, power)
    for step in range(3):
        before = state.attention.clone()
        state.step()
        assert float((state.attention - before).abs().max()) == pytest.approx(2 * (1 + step) ** -power)


@hybrid_norm()
def test_the_hybrid_norm_is_solved_and_no_weight_beats_it() -> None:
    drawn = with_bias(draw(3, 4, 4, 5, queries=True))
    assert drawn.queries is not None
    W = torch.zeros(2, 3, dtype=torch.float64)
    W[:, 2], W[0, 0], W[1, 1] = torch.tensor([-3.0, 1.0]), 2.0, -1.0
    assert norm_of(W, HYBRID) == pytest.approx(3)
    W = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alpha = drawn.scores(W).argmax(2)
    found = Best(drawn).relative(W, alpha, HYBRID)
    assert (found > 0).all()
    assert (found < 1).all()
    best = [solve_att_svm(drawn.keys[b], alpha[b], queries=drawn.queries[b], norm=HYBRID).direction for b in range(3)]
    assert Best(drawn).relative(torch.stack(best), alpha, HYBRID) == pytest.approx(1, abs=1e-6)


def test_leads_are_along_rows_and_down_columns() -> None:
    table = {
        "momentum": np.array([[0.9, 0.8, np.nan], [0.5, 0.5, np.nan], [0.6, 0.85, np.nan], [0.1, 0.1, np.nan]]),
        "signum": np.array([[0.8, 0.85, 0.8], [0.9, 0.9, 0.9], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]]),
        "adam": np.array([[0.7, 0.7, 0.7], [0.95, 0.95, 0.95], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]]),
    }
    found = leads(table)
    assert found["row/momentum"] == pytest.approx(0.85 - 0.725)
    assert found["row_led/momentum"] == 0.5
    assert found["column/momentum"] == pytest.approx(0.85 - 0.8)
    assert found["column_led/momentum"] == 0.5
    assert found["column_worst/momentum"] == pytest.approx(-0.05)
    # Adam is not held against Signum, which has the same norm.
    assert found["column/signum"] == pytest.approx(0.9 - 0.5)
    assert found["column_led/signum"] == 1


def test_every_optimizer_leads_in_its_own_norm() -> None:
    settings = {key: [1.0, 400, 0.25] for key in OPTIMIZERS}
    found = momentum_geometry(lambda _: None, settings, [3.0, 200, 0.25], [1.0, 200, 0.25], seeds=3, n=4, T=4, d=6)
    for key, (_, own, _) in OPTIMIZERS.items():
        assert found.numbers[f"settled/{key}"] == 1
        assert found.numbers[f"margin/{key}/{own}"] > 0.8
        assert found.numbers[f"row/{key}"] > 0
        assert found.numbers[f"column/{key}"] > 0
    assert found.numbers["certified"] == 1
    assert found.panels[0].image is not None
    assert found.panels[0].image.shape == (6, 4)
    assert math.isfinite(found.numbers["decay/gain"])
    # Adam of the gradient itself forgets too slowly.
    assert found.numbers["raw/linf"] < found.numbers["margin/adam/linf"]


def test_seeds_begin_where_they_are_told() -> None:
    setting = [1.0, 60, 0.25]
    both = {"signum": setting, "muon": setting}
    found = momentum_geometry(lambda _: None, both, setting, [1.0, 600, 0.25], seeds=1, n=4, T=3, d=5, first=2)
    best = Best(with_bias(draw(3, 4, 3, 5, queries=True)))
    with hybrid_norm():
        alone = trained(best, OPTIMIZERS["signum"][2], "linf", setting)[0][1, 2]
    assert found.numbers["margin/signum/linf"] == pytest.approx(alone)
