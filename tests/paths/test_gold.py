"""The paths of the papers' examples: gold angles, and the SVMs they tend to."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from lightning_maxmargin.data import PaperData
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.paths import regularization_path
from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm


def angle(p: Tensor) -> float:
    return math.degrees(math.atan2(float(p[1]), float(p[0])))


# math.md prints 8.65, 2.76, .92 and .005. The last two were minimised in L, where they drown in rounding: 60 digits of
# mpmath (below) say 0.942871 and 1.3e-15, which is what the path finds.
@pytest.mark.parametrize(
    ("radii", "degrees", "within"),
    [
        ((3, 3), 8.65, 5e-3),
        pytest.param((10, 10), 2.76, 5e-3, marks=pytest.mark.slow),
        pytest.param((30, 30), 0.942871, 1e-6, marks=pytest.mark.slow),
        ((100, 30), 0.0, 1e-9),
    ],
)
def test_joint_relaxed(radii: tuple[int, int], degrees: float, within: float) -> None:
    path = regularization_path(PaperData("joint_relaxed").sequences("train"), [radii], starts=2)
    assert path.status == ("stationary",)
    assert angle(path.attention[0]) == pytest.approx(degrees, abs=within)
    assert float(path.attention[0].norm()) == pytest.approx(radii[1], rel=1e-12)
    assert float(path.head[0].norm()) == pytest.approx(radii[0], rel=1e-12)


@pytest.mark.parametrize(("r", "R"), [(10, 10), (30, 30), (100, 30)])
def test_joint_relaxed_agrees_with_sixty_digits(r: int, R: int) -> None:
    """Stationarity of log L in both angles by mpmath, whose 60 digits need no care at saturation."""
    path = regularization_path(PaperData("joint_relaxed").sequences("train"), [(r, R)], starts=2)
    x = [(1, 1), (1, -1), (mpmath.mpf(1) / 2, mpmath.mpf(3) / 2)]
    y = [1, -1, 1]
    with mpmath.workdps(60):

        def loss(a: mpmath.mpf, b: mpmath.mpf) -> mpmath.mpf:
            p, v = (R * mpmath.cos(a), R * mpmath.sin(a)), (r * mpmath.sin(b), r * mpmath.cos(b))
            m = [
                s * (v[0] * t[0] + v[1] * t[1]) / (1 + mpmath.exp(-p[0] * t[0] - p[1] * t[1]))
                for t, s in zip(x, y, strict=True)
            ]
            return sum(mpmath.log1p(mpmath.exp(-k)) for k in m)

        grads = [lambda a, b: mpmath.diff(loss, (a, b), (1, 0)), lambda a, b: mpmath.diff(loss, (a, b), (0, 1))]
        head = float(torch.atan2(path.head[0, 0], path.head[0, 1]))
        start = (math.radians(angle(path.attention[0])), head)
        scale = loss(*map(mpmath.mpf, start))
        exact = mpmath.findroot(lambda a, b: [g(a, b) / scale for g in grads], start, tol=1e-25, verify=False)
    assert abs(float(exact[0]) - start[0]) < 1e-8
    assert abs(float(exact[1]) - start[1]) < 1e-8


@pytest.mark.parametrize("loss", ["logistic", pytest.param("exponential", marks=pytest.mark.slow)])
def test_joint_path_tends_to_the_relaxed_and_correlation_to_the_strict_limit(loss: str) -> None:
    data = PaperData("joint_relaxed").sequences("train")
    ends = {
        limit: solve_joint_svm(data.keys, data.keys, data.labels, torch.tensor([1, 1, 1]), limit=limit)
        for limit in ("strict", "relaxed")
    }
    radii = [(100, 100), (3000, 3000)]
    path = regularization_path(data, radii, loss=loss, starts=1)
    gaps = [direction_gap(p, ends["relaxed"].attention.direction) for p in path.attention]
    assert gaps[1] < 1e-7 < gaps[0]
    assert direction_gap(path.head[1], ends["relaxed"].head.direction) < 1e-9
    # Correlation weighs every input alike, whatever its label margin.
    other = regularization_path(data, radii, loss="correlation", starts=1)
    assert direction_gap(other.attention[1], ends["strict"].attention.direction) < 1e-7


@pytest.mark.parametrize(
    ("example", "selected"),
    [
        ("single_global", [0]),
        ("multi", [0, 0, 0]),
        pytest.param("losses", [1, 1], marks=pytest.mark.slow),
        pytest.param("visual2", [0, 0], marks=pytest.mark.slow),
    ],
)
def test_attention_path_tends_to_its_svm(example: str, selected: list[int]) -> None:
    source = PaperData(example)
    data = source.sequences("train")
    path = regularization_path(data, [1, 30, 3000], head=source.head, starts=1)
    svm = solve_att_svm(data.keys, torch.tensor(selected), queries=data.queries)
    assert path.selected[-1].tolist() == selected
    assert path.status == ("stationary",) * 3
    gaps = [direction_gap(p, svm.direction) for p in path.attention]
    assert gaps[2] < 1e-6 < gaps[0]


def test_W_path_tends_to_the_frobenius_svm() -> None:
    source = PaperData("visual1")
    path = regularization_path(source.sequences("train"), [10_000], head=source.head, starts=1)
    W = torch.tensor([[2.85363, -2.70286], [5.37136, 5.58049]], dtype=torch.float64)
    assert path.attention.shape == (1, 2, 2)
    assert direction_gap(path.attention[0], W) < 1e-7


def test_local_path_stays_at_a_locally_optimal_token() -> None:
    """Globally the path goes to token 0; in the cone around token 1's SVM it goes to (1, 0), the LMM."""
    source = PaperData("single_local")
    data, radii = source.sequences("train"), [3, 30, 300]
    local = regularization_path(data, radii, head=source.head, selected=torch.tensor([1]), cone=0.004, starts=1)
    free = regularization_path(data, radii, head=source.head, starts=1)
    cosines = local.attention[:, 0] / local.attention.norm(dim=1)
    assert (cosines >= 0.996 - 1e-7).all()
    assert abs(float(local.attention[2, 1])) < 1e-9
    assert free.selected[-1].tolist() == [0]
    assert free.loss[-1] < local.loss[-1]
    assert set(local.status) == {"stationary"}


def test_offset_of_the_correlation_loss() -> None:
    """Two inputs with scores C and 1: p_1 grows and p_2 tends to half the log of C, .805 for C = 5."""
    source = PaperData("losses", score=5.0)
    path = regularization_path(source.sequences("train"), [200], head=source.head, loss="correlation", starts=1)
    assert float(path.attention[0, 1]) == pytest.approx(0.5 * math.log(5), abs=5e-3)
