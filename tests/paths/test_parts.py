"""The excess loss against plain arithmetic, the ball against other solvers, nonlinear heads, and bad input."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from lightning_maxmargin.core import LOSSES, Sequences
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.paths import regularization_path
from lightning_maxmargin.paths.ball import Cone, minimize_on_ball, residual
from lightning_maxmargin.paths.objective import Excess, best_tokens, margins
from lightning_maxmargin.svm import solve_att_svm


def draw(seed: int, queries: bool = False, mask: bool = False) -> tuple[Sequences, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    keys, v = torch.randn(4, 5, 3, generator=g).double(), torch.randn(3, generator=g).double()
    shown = torch.rand(4, 5, generator=g) > 0.3 if mask else None
    if shown is not None:
        shown[:, 0] = True
    z = torch.randn(4, 2, generator=g).double() if queries else None
    return Sequences(keys, torch.tensor([1.0, -1, 1, -1]).double(), queries=z, mask=shown), v


@pytest.mark.parametrize("loss", ["logistic", "exponential", "correlation"])
@pytest.mark.parametrize("scale", [0.3, 3.0, 40.0])
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_excess_is_the_difference_of_losses(loss: str, scale: float, nonlinear: bool, padded: bool) -> None:
    data, v = draw(1, mask=padded)
    head: Any = (lambda x: scale * (x @ v - 0.3 * (x @ v) ** 3)) if nonlinear else scale * v
    p = torch.tensor([0.5, -0.3, 0.2]).double()
    for alpha in (best_tokens(data, head), torch.zeros(4, dtype=torch.long)):
        sign, log_e = Excess(data, head, LOSSES[loss], alpha).signed_log(p)
        value = LOSSES[loss].value
        hard = data.values[torch.arange(4), alpha]
        chosen = data.labels * (head(hard) if nonlinear else hard @ head)
        direct = (value(margins(data, head, p)) - value(chosen)).mean()
        # 8 nodes are exact for a cubic psi; the logistic quadrature is good to 1e-9 of a large move.
        torch.testing.assert_close(sign * log_e.exp(), direct, rtol=1e-8, atol=1e-9)


def test_excess_survives_saturation_with_its_gradient() -> None:
    source = PaperData("multi")
    data = source.sequences("train")
    f = Excess(data, source.head.double(), LOSSES["logistic"], torch.zeros(3, dtype=torch.long))
    p = torch.tensor([0.844626e5, 0.171122e5]).double().requires_grad_()
    (g,) = torch.autograd.grad(f(p), p)
    assert g.norm() > 0.5
    slopes = torch.stack([(f(p + e) - f(p - e)) / 2e-3 for e in 1e-3 * torch.eye(2).double()]).detach()
    torch.testing.assert_close(g, slopes, rtol=1e-6, atol=1e-6)
    assert float(f(p.detach())) == pytest.approx(-1e5, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_ball_agrees_with_a_convex_solver(seed: int) -> None:
    """A convex function inside a ball, its minimiser on the sphere for small radii and inside for large ones."""
    g = np.random.default_rng(seed)
    A, b = g.normal(size=(6, 4)), g.normal(size=6)
    a_t, b_t = torch.from_numpy(A), torch.from_numpy(b)
    for radius, on in ((0.05, True), (50.0, False)):
        x = cp.Variable(4)
        cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [cp.norm(x) <= radius]).solve(cp.CLARABEL)
        point = minimize_on_ball(lambda y: (a_t @ y - b_t).square().sum(), radius, g.normal(size=4))
        assert point.boundary is on
        np.testing.assert_allclose(point.x, x.value, atol=1e-4 * np.linalg.norm(x.value))
        assert point.residual < 1e-9


def test_residual_is_the_angle_on_the_sphere() -> None:
    x = 2 * np.array([np.cos(0.3), np.sin(0.3)])
    assert residual(lambda y: -10 * y[0], 2.0, x) == pytest.approx(np.sin(0.3), rel=1e-12)


def test_cone_is_kept_and_its_side_is_certified() -> None:
    cone = Cone(np.array([1.0, 0.0]), 1 - np.cos(0.2))
    point = minimize_on_ball(lambda y: -y[1], 3.0, np.array([1.0, 0.0]), cone)
    np.testing.assert_allclose(point.x, 3 * np.array([np.cos(0.2), np.sin(0.2)]), atol=1e-6)
    assert point.residual < 1e-6


@pytest.mark.parametrize("loss", ["logistic", "correlation"])
def test_global_minimum_of_a_plane_by_grid(loss: str) -> None:
    source = PaperData("single_local")
    data, R = source.sequences("train"), 5.0
    path = regularization_path(data, [R], head=source.head, loss=loss, starts=6)
    turn = torch.linspace(0, 2 * np.pi, 4001).double()
    grid = [R * r * torch.stack([t.cos(), t.sin()]) for t in turn for r in (0.5, 1.0)]
    best = min(float(LOSSES[loss].value(margins(data, source.head, p)).mean()) for p in grid)
    assert float(path.loss[0]) <= best + 1e-12


@pytest.mark.parametrize("padded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_loss_falls_along_the_path(padded: bool) -> None:
    data, v = draw(5, queries=True, mask=padded)
    path = regularization_path(data, [0.1, 1, 3, 10], head=v, starts=1)
    assert path.attention.shape == (4, 3, 2)
    assert (path.loss.diff() < 0).all()
    assert set(path.status) == {"stationary"}
    torch.testing.assert_close(path.log_loss.exp(), path.loss)


def test_radii_keep_their_order() -> None:
    source = PaperData("single_global")
    data = source.sequences("train")
    up = regularization_path(data, [1, 10], head=source.head, starts=1)
    down = regularization_path(data, [10, 1], head=source.head, starts=1)
    torch.testing.assert_close(up.attention, down.attention.flip(0))
    mixed = regularization_path(PaperData("joint_relaxed").sequences("train"), [(10, 10), (3, 3)], starts=1)
    torch.testing.assert_close(mixed.head.norm(dim=1), torch.tensor([10.0, 3.0]).double())


def test_nonlinear_head_hurt_by_mixing_goes_to_the_svm() -> None:
    """psi(x) = -||x - c||^2 for c the mean selected token: every other token, and so every mixture, is worse."""
    source = PaperData("multi")
    data = source.sequences("train")
    c = data.values[:, 0].mean(0)
    path = regularization_path(data, [1, 3000], head=lambda x: -(x - c).square().sum(1), starts=1)
    svm = solve_att_svm(data.keys, torch.zeros(3, dtype=torch.long))
    assert path.selected[-1].tolist() == [0, 0, 0]
    assert direction_gap(path.attention[1], svm.direction) < 1e-5
    assert path.status == ("stationary",) * 2


def test_a_module_is_a_head_and_is_left_alone() -> None:
    torch.manual_seed(0)
    psi = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    data, _ = draw(0)
    path = regularization_path(data, [1.0], head=psi, starts=1)
    assert path.status == ("stationary",)
    assert next(psi.parameters()).dtype == torch.float32
    assert next(psi.parameters()).requires_grad


@pytest.mark.parametrize(
    ("radii", "options", "words"),
    [
        ([1.0, -2.0], {"head": "v"}, "radii"),
        ([], {"head": "v"}, "radii"),
        ([(1, 2)], {"head": "v"}, "give no head"),
        ([1.0], {}, "pairs"),
        ([(1, 2, 3)], {}, "pairs"),
        ([1.0, float("nan")], {"head": "v"}, "radii"),
        ([1.0], {"head": torch.ones(4)}, "shape"),
        ([1.0], {"head": lambda x: x}, "one number each"),
        ([1.0], {"head": "v", "loss": "cross_entropy"}, "cross_entropy"),
        ([1.0], {"head": "v", "cone": 0.1}, "cone"),
        ([1.0], {"head": "v", "cone": 2.0, "selected": torch.zeros(4, dtype=torch.long)}, "cone"),
        ([1.0], {"head": "v", "selected": torch.zeros(4, dtype=torch.long)}, "cone"),
        ([(1, 1)], {"cone": 0.1}, "joint"),
        ([1.0], {"head": "v", "starts": -1}, "starts"),
    ],
)
def test_bad_input_is_one_line(radii: Any, options: dict[str, Any], words: str) -> None:
    data, v = draw(0)
    options = {k: v if isinstance(x, str) and x == "v" else x for k, x in options.items()}
    with pytest.raises(InputError, match=words) as caught:
        regularization_path(data, radii, **options)
    assert "\n" not in str(caught.value)
