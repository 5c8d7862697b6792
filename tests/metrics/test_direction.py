"""The direction gap to its last digit, where 1 - cos has none."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from lightning_maxmargin.metrics import direction_gap


def f64(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def exact_gap(u: Tensor, w: Tensor) -> float:
    """1 - cos in high precision, taking the stored numbers as exact."""
    with mpmath.workdps(80):
        a, b = ([mpf(x) for x in t.double().flatten().tolist()] for t in (u, w))
        dot = mpmath.fsum(x * y for x, y in zip(a, b, strict=True))
        return float(1 - dot / mpmath.sqrt(mpmath.fsum(x * x for x in a) * mpmath.fsum(y * y for y in b)))


@pytest.mark.parametrize("angle", [1e-1, 1e-4, 1e-9, 1e-17, 1e-150])
def test_angles_along_an_axis(angle: float) -> None:
    gap = direction_gap(f64([1.0, 0.0]), f64([1.0, math.tan(angle)]))
    assert gap == pytest.approx(2 * math.sin(angle / 2) ** 2, rel=1e-14, abs=0)


@pytest.mark.parametrize("gap", [1e-1, 1e-9, 1e-17, 1e-25])
@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300, 1e-160])
def test_gaps_in_general_position(gap: float, scale: float) -> None:
    g = torch.Generator().manual_seed(1)
    u, w = torch.randn(2, 32, generator=g, dtype=torch.float64)
    u = u / u.norm()
    w = w - (w @ u) * u
    w = u + math.sqrt(2 * gap) * w / w.norm()
    true = exact_gap(scale * u, w)
    got = direction_gap(scale * u, w)
    # Unit vectors are rounded to eps / sqrt(32) each entry: an error of about eps in an angle of sqrt(2 gap).
    assert got == pytest.approx(true, rel=4 * 2**-52 / math.sqrt(2 * gap), abs=0)
    assert got > 0
    if gap < 1e-16:
        naive = 1 - float(torch.nn.functional.cosine_similarity(u, w, dim=0))
        assert abs(naive - true) > 0.5 * true


@pytest.mark.parametrize("angle", [1e-4, 1e-3])
def test_float32_inputs_are_measured_in_float64(angle: float) -> None:
    u, w = torch.tensor([3.0, 4.0]), torch.tensor([3.0 - 4 * angle, 4.0 + 3 * angle])
    got, true = direction_gap(u, w), exact_gap(u, w)
    assert got == pytest.approx(true, rel=1e-11, abs=0)
    naive = 1 - float(torch.nn.functional.cosine_similarity(u, w, dim=0))
    assert abs(naive - true) > 0.01 * true


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_scale_and_sign(dtype: torch.dtype) -> None:
    u = torch.tensor([2, -4, 1], dtype=dtype)
    assert direction_gap(u, 8 * u) == 0
    assert direction_gap(u, -u) == pytest.approx(2, rel=1e-15)
    assert direction_gap(u, torch.tensor([2, 1, 0], dtype=dtype)) == pytest.approx(1, rel=1e-15)


def test_denormals_and_mixed_scales() -> None:
    assert direction_gap(f64([5e-324, 0.0]), f64([0.0, 1e308])) == pytest.approx(1, rel=1e-15)
    assert direction_gap(f64([5e-324, 5e-324]), f64([1e308, 1e308])) == 0
    assert direction_gap(torch.tensor([1e-45, 1e-45]), torch.tensor([3e38, 3e38])) == 0


def test_zero_has_no_direction() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert direction_gap(zero, one) is None
    assert direction_gap(one, zero) is None
    assert direction_gap(zero, zero) is None


def test_matrices_are_flattened_and_gradients_left_alone() -> None:
    W = torch.nn.Parameter(f64([[1, 2], [3, 4]]))
    assert direction_gap(W, f64([1, 2, 3, 4])) == 0
    assert direction_gap(W, f64([[1, 3], [2, 4]])) == pytest.approx(1 - 29 / 30, rel=1e-13)
    assert W.grad is None


# Below 1e-300 it is s * u itself that loses its direction.
VECTORS = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3).filter(lambda x: max(map(abs, x)) > 1e-300)


@settings(deadline=None, max_examples=100)
@given(
    u=VECTORS,
    w=VECTORS,
    s=st.floats(1e-3, 1e3),
)
def test_symmetric_scale_free_and_between_zero_and_two(u: list[float], w: list[float], s: float) -> None:
    a, b = f64(u), f64(w)
    gap = direction_gap(a, b)
    assert gap is not None
    assert 0 <= gap <= 2 + 1e-15
    assert gap == direction_gap(b, a)
    assert math.sqrt(gap) == pytest.approx(math.sqrt(direction_gap(s * a, b) or 0.0), abs=1e-15)
    assert math.sqrt(gap) == pytest.approx(math.sqrt(max(exact_gap(a, b), 0.0)), abs=1e-15)
