"""Minimising a smooth function over a ball or over a ball within a cone, with a certificate of stationarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

Array = npt.NDArray[np.float64]
Objective = Callable[[Tensor], Tensor]
MAX_STEPS = 300
# Relative to the radius: nearer to the sphere, or to the side of the cone, counts as on it.
ON = 1e-7


@dataclass(frozen=True)
class Cone:
    """{p : p'axis >= (1 - width) ||p||}, axis a unit vector (m,): the neighbourhood of an SVM direction."""

    axis: Array
    width: float

    def spare(self, x: Array) -> float:
        return float(x @ self.axis - (1 - self.width) * np.linalg.norm(x))

    def slope(self, x: Array) -> Array:
        return self.axis - (1 - self.width) * x / max(float(np.linalg.norm(x)), 1e-300)


@dataclass(frozen=True)
class Point:
    """A stationary point and how well it is one.

    Attributes:
        x: (m,).
        value: of the objective.
        residual: R ||-grad - N|| / max(R ||grad||, 1), N the nearest vector of the normal cone: on the sphere the sine
            of the angle between -grad and x.
        boundary: whether ||x|| = R.
    """

    x: Array
    value: float
    residual: float
    boundary: bool


def minimize_on_ball(f: Objective, radius: float, start: Array, cone: Cone | None = None) -> Point:
    """A local minimiser of f over ||x|| <= radius (and x in the cone), from the direction ``start``.

    On the sphere, f(radius y / ||y||) is minimised by scipy's ``trust-exact`` with the Hessian of autograd, then by
    Newton steps as long as they lower the residual; where f falls inwards there, f itself is minimised. With a cone
    scipy's ``SLSQP`` comes first, and the sphere's answer is taken where it lies within the cone.

    Example:
        >>> target = torch.tensor([3.0, 4.0]).double()
        >>> point = minimize_on_ball(lambda x: (x - target).square().sum(), 1.0, np.array([1.0, 0.0]))
        >>> point.x.round(12).tolist(), point.boundary, point.residual < 1e-9
        ([0.6, 0.8], True, True)
    """
    g = _Derivatives(f)
    if cone is None:
        return _free(g, radius, start)
    inside = _constrained(g, radius, start, cone)
    free = _free(g, radius, inside.x if np.any(inside.x) else start)
    return free if cone.spare(free.x) > ON * radius and free.value <= inside.value + 1e-9 else inside


class _Derivatives:
    """f, its gradient and Hessian as numpy functions, also along the sphere."""

    def __init__(self, f: Objective) -> None:
        self.f = f

    def value(self, x: Array) -> float:
        return float(self.f(torch.from_numpy(x)))

    def gradient(self, x: Array) -> Array:
        return self.slope(self.f, x)

    def slope(self, f: Objective, x: Array) -> Array:
        t = torch.from_numpy(np.array(x)).requires_grad_()
        return torch.autograd.grad(f(t), t)[0].numpy()

    def hessian(self, f: Objective, x: Array) -> Array:
        return torch.autograd.functional.hessian(f, torch.from_numpy(np.array(x))).numpy()

    def residual(self, x: Array, radius: float, cone: Cone | None = None) -> float:
        down = -self.gradient(x)
        normals = []
        if np.linalg.norm(x) >= (1 - ON) * radius:
            normals.append(x / np.linalg.norm(x))
        if cone is not None and cone.spare(x) <= ON * radius and np.linalg.norm(cone.slope(x)) > ON:
            normals.append(-cone.slope(x) / np.linalg.norm(cone.slope(x)))
        rest = nnls(np.stack(normals, 1), down)[1] if normals else np.linalg.norm(down)
        return float(radius * rest / max(radius * float(np.linalg.norm(down)), 1.0))

    def point(self, x: Array, radius: float, cone: Cone | None = None) -> Point:
        on = bool(np.linalg.norm(x) >= (1 - ON) * radius)
        return Point(x, self.value(x), self.residual(x, radius, cone), on)


def _free(g: _Derivatives, radius: float, start: Array) -> Point:
    """Over the ball alone."""

    def along(y: Tensor) -> Tensor:
        return g.f(radius * y / y.norm())

    y = _newton(g, along, start / np.linalg.norm(start))
    x = radius * y / np.linalg.norm(y)
    best = g.point(_polish(g, along, x, radius), radius)
    if g.gradient(x) @ x <= 0:
        return best
    inner = _newton(g, g.f, x)
    if np.linalg.norm(inner) < radius:
        point = g.point(inner, radius)
        return point if point.value < best.value else best
    return best


def _newton(g: _Derivatives, f: Objective, start: Array) -> Array:
    options = {"gtol": 1e-11, "maxiter": MAX_STEPS}
    value, slope, hessian = lambda y: float(f(torch.from_numpy(y))), lambda y: g.slope(f, y), lambda y: g.hessian(f, y)
    return minimize(value, start, jac=slope, hess=hessian, method="trust-exact", options=options).x


def _polish(g: _Derivatives, along: Objective, x: Array, radius: float) -> Array:
    """Newton steps without a look at f, whose rounding hides the last half of the digits."""
    residual = g.residual(x, radius)
    for _ in range(5):
        y = x / radius
        step = np.linalg.lstsq(g.hessian(along, y), -g.slope(along, y), rcond=1e-12)[0]
        new = y + step
        new *= radius / np.linalg.norm(new)
        after = g.residual(new, radius)
        if not after < residual:
            break
        x, residual = new, after
    return x


def _constrained(g: _Derivatives, radius: float, start: Array, cone: Cone) -> Point:
    """Over ball and cone, in units of the radius."""
    y = start / np.linalg.norm(start)
    rules = [
        {"type": "ineq", "fun": lambda y: 1 - y @ y, "jac": lambda y: -2 * y},
        {"type": "ineq", "fun": cone.spare, "jac": cone.slope},
    ]
    found = minimize(
        lambda y: g.value(radius * y),
        y,
        jac=lambda y: radius * g.gradient(radius * y),
        method="SLSQP",
        constraints=rules,
        options={"maxiter": MAX_STEPS, "ftol": 1e-14},
    ).x
    # SLSQP meets its constraints to its tolerance only.
    found = found / max(1.0, float(np.linalg.norm(found)))
    return g.point(radius * found, radius, cone)
