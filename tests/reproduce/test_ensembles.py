"""The ensemble experiments on tiny settings: batched rules against single optimizers, properties of what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.model import TokenSelector
from lightning_maxmargin.optim import FactoredGD, MirrorDescent, NormalizedGD, SignDescent, SpectralDescent, TorchAdam
from lightning_maxmargin.optim.base import MarginOptimizer
from lightning_maxmargin.reproduce.coupled import rate_coupled
from lightning_maxmargin.reproduce.factored import local_convergence
from lightning_maxmargin.reproduce.geometry import OPTIMIZERS as GEOMETRY
from lightning_maxmargin.reproduce.geometry import Best, DecayingState, optimizer_geometry
from lightning_maxmargin.reproduce.optima import random_optima
from lightning_maxmargin.reproduce.panel import percentiles
from lightning_maxmargin.reproduce.problems import Problems, draw
from lightning_maxmargin.reproduce.rank import rank
from lightning_maxmargin.reproduce.rates import OPTIMIZERS, rates
from lightning_maxmargin.reproduce.states import FactoredState, PlainState

N, T, D = 4, 3, 5


def nothing(_: float) -> None:
    return None


def single(drawn: Problems, b: int, optimizer: Any, steps: int, K: torch.Tensor | None = None) -> torch.Tensor:
    """W of instance b after steps of one of the package's optimizers on exact directions."""
    from lightning_maxmargin.core import LOSSES, Sequences, exact_directions

    assert drawn.queries is not None
    data = Sequences(drawn.keys[b], drawn.labels[b], queries=drawn.queries[b])
    start: Any = "zeros" if K is None else K.tolist()
    kind = "W" if K is None else "KQ"
    model = TokenSelector(D, parametrization=kind, query="separate", attention_init=start).double()
    moved: MarginOptimizer = optimizer(list(model.attention_parameters.values()))
    with torch.no_grad():
        for _ in range(steps):
            g = exact_directions(data, model.scores(data), drawn.head[b], LOSSES["logistic"])  # type: ignore[arg-type]
            model.set_attention_gradient(-g.attention)
            moved.step()
    return model.matrix.detach()


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("gd", lambda w: NormalizedGD(w, lr=0.3)),
        ("sign", lambda w: SignDescent(w, lr=0.3)),
        ("spectral", lambda w: SpectralDescent(w, lr=0.3)),
        ("mirror1.75", lambda w: MirrorDescent(w, lr=0.3, p=1.75)),
        ("mirror3", lambda w: MirrorDescent(w, lr=0.3, p=3.0)),
        ("adam", lambda w: TorchAdam(w, lr=0.3)),
    ],
)
def test_a_batched_rule_moves_every_instance_as_its_optimizer_moves_one(name: str, optimizer: Any) -> None:
    drawn = draw(3, N, T, D, queries=True)
    state = DecayingState(drawn, GEOMETRY[name][2], 0.3)
    state.run(40)
    for b in range(3):
        torch.testing.assert_close(state.attention[..., b], single(drawn, b, optimizer, 40), rtol=1e-7, atol=1e-9)


def test_batched_factors_move_as_one_pair_does_under_factored_gd() -> None:
    drawn = draw(3, N, T, D, queries=True)
    K = 0.1 * torch.randn(3, D, D, generator=torch.Generator().manual_seed(0))
    K = K.double()  # TokenSelector starts in float32
    state = FactoredState(drawn, K, lr=0.1, ridge=0.0)
    for _ in range(60):
        state.step()
    for b in range(3):
        alone = single(drawn, b, lambda w: FactoredGD(w, lr=0.1, ridge=0.0), 60, K[b])
        torch.testing.assert_close(state.attention[..., b], alone, rtol=1e-8, atol=1e-9)


def test_the_ridge_is_the_one_of_the_loss() -> None:
    drawn, ridge = draw(2, N, T, D, queries=True), 0.05
    generator = torch.Generator().manual_seed(1)
    K = torch.randn(2, D, D, dtype=torch.float64, generator=generator)
    state = FactoredState(drawn, K, lr=0.1, ridge=ridge, in_loss=True)
    state.Q = torch.randn(2, D, D, dtype=torch.float64, generator=generator)
    state.attention = (state.K @ state.Q.mT).movedim(0, -1)
    k, q = K.clone().requires_grad_(), state.Q.clone().requires_grad_()
    s = torch.einsum("bntd,bde,bfe,bnf->bnt", drawn.keys, k, q, drawn.queries).softmax(-1)
    f = torch.einsum("bnt,bntd,bd->bn", s, drawn.keys, drawn.head)
    loss = torch.nn.functional.softplus(-drawn.labels * f).mean(1).sum() + ridge / 2 * (
        k.square().sum() + q.square().sum()
    )
    of_k, of_q = torch.autograd.grad(loss, [k, q])
    state.step()
    for factor, start, g in ((state.K, k, of_k), (state.Q, q, of_q)):
        torch.testing.assert_close(factor, start.detach() - 0.1 * g / g.norm(dim=(1, 2), keepdim=True))


def test_gradients_of_log_loss_are_those_of_autograd() -> None:
    drawn = draw(3, N, T, D, labels="random")
    state = PlainState(drawn.batch(), attention_lr=0.5, head_lr=0.5)
    state.run(5)
    p, v = state.attention.T.clone().requires_grad_(), state.head.T.clone().requires_grad_()
    s = torch.einsum("bntd,bd->bnt", drawn.keys, p).softmax(-1)
    f = torch.einsum("bnt,bntd,bd->bn", s, drawn.keys, v)
    log_loss = torch.nn.functional.softplus(-drawn.labels * f).mean(1).log()
    wanted = torch.autograd.grad(log_loss.sum(), [p, v])
    g = state.step()
    torch.testing.assert_close(g.loss.log(), log_loss.detach())
    for a, b in zip(g.of_log_loss(), wanted, strict=True):
        assert a is not None
        torch.testing.assert_close(-a.T, b)
    torch.testing.assert_close(state.attention.T, p.detach() - 0.5 * log_loss.exp()[:, None].detach() * wanted[0])


def test_a_zero_direction_moves_nothing_at_any_rate() -> None:
    # Zero start: no token is better than another, so that p's direction is zero; lr / tiny would be infinite.
    state = EnsembleState(draw(2, N, T, D).batch(), attention_lr=10.0, head_lr=10.0)
    state.run(3)
    assert state.attention.isfinite().all()
    assert state.head.isfinite().all()


def test_no_weight_beats_the_largest_margin() -> None:
    drawn = draw(4, N, T, D, queries=True)
    best = Best(drawn)
    W = torch.randn(4, D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alpha = drawn.scores(W).argmax(2)
    for norm in ("l2", "linf", "spectral", 3.0):
        found = best.relative(W, alpha, norm)
        assert (found > 0).all()
        assert (found <= 1 + 1e-7).all()


def test_an_instance_is_the_random_data_of_its_seed() -> None:
    from lightning_maxmargin.data import RandomData

    drawn, source = draw(3, N, T, D, queries=True), RandomData(N, T, D, 2, True, "sign")
    data = source.load()["train"]
    assert torch.equal(drawn.keys[2], data.keys)
    assert torch.equal(drawn.labels[2], data.labels)
    assert torch.equal(drawn.heads[2], source.head)
    assert torch.equal(drawn.take(torch.tensor([2, 2])).keys[1], data.keys)


def test_percentiles_leave_out_what_is_unknown() -> None:
    line = percentiles(np.arange(2), np.array([[1.0, np.nan, 3.0], [5.0, 5.0, np.nan]]), "x")
    assert line.y.tolist() == [2.0, 5.0]
    assert line.low is not None
    assert line.low[1] == 5.0


def test_every_run_is_one_of_four_kinds() -> None:
    found = random_optima(nothing, [[3, 3]], [2, 6], seeds=6, steps=300, lr=1.0)
    for model in ("p", "W"):
        for d in (2, 6):
            kinds = [found.numbers[f"{k}/{model}/3x3/{d}"] for k in ("global", "local", "neither", "not settled")]
            assert sum(kinds) == pytest.approx(1)
    assert len(found.panels) == 2
    assert "of 24 runs converged" in found.notes[0]


def test_ranks_are_of_feasible_instances_alone() -> None:
    found = rank(nothing, [[3, 3]], [1, 5], seeds=6).numbers
    assert found["feasible/3x3/5"] == 1
    assert found["over/l2"] == found["over/nuclear"] == 0
    assert found["rank/nuclear"] <= found["rank/l2"]
    share = found["feasible/3x3/1"]
    # d = 1: every solution has rank 1, and so has, by the published rule, every instance without one.
    assert share < 1
    assert found["naive/rank/l2/3x3/1"] == 1


def test_w_and_its_factors_have_both_correlations() -> None:
    found = local_convergence(nothing, N, T, D, seeds=3, steps=1000)
    for model in ("W", "KQ", "KQ0"):
        for norm in ("l2", "nuclear"):
            assert 0 < found.numbers[f"cos/{model}/{norm}/1000"] <= 1
    assert found.numbers["cos/W/l2/1000"] > 0.95
    assert all(len(panel.lines) == 3 for panel in found.panels)


def test_the_matrix_leads_on_its_diagonal() -> None:
    five = {"gd": [1.0, 800, 0], "sign": [0.1, 800, 0], "spectral": [1.0, 800, 0]}
    five |= {"mirror1.75": [0.1, 800, 0], "mirror3": [100.0, 800, 0]}
    found = optimizer_geometry(nothing, five, seeds=3, n=N, T=4, d=6)
    assert found.numbers["lead/linf"] > 0
    assert found.numbers["lead/spectral"] > 0
    assert found.panels[0].image is not None
    assert found.panels[0].image.shape == (5, 5)


def test_rates_are_over_settled_instances() -> None:
    found = rates(nothing, seeds=4, steps=1000, wanted=3, n=4, T=3, d=16)
    assert found.numbers["counted"] == 3
    assert found.numbers["ratio/ngd1/1000"] > 10
    assert found.numbers["settled/gd"] < found.numbers["settled/ngd1"]
    assert [line.label.split(" (")[0] for line in found.panels[0].lines] == [label for label, *_ in OPTIMIZERS.values()]


def test_the_rate_coupled_limit_is_the_nearest() -> None:
    found = rate_coupled(nothing, [[0.05, 4], [1.0, 6]], steps=2000, n=8, T=4, d=16).numbers
    assert found["counted/1"] >= 1
    assert found["rate_coupled/1"] < min(found["strict/1"], found["relaxed/1"])
    assert found["strict/0.05"] < found["relaxed/0.05"]
