"""Minimising a smooth function over a ball, or over a sphere within a cone, with a certificate of stationarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

Array = npt.NDArray[np.float64]
Objective = Callable[[Tensor], Tensor]
MAX_STEPS = 300
# Relative to the radius: nearer to the sphere, or to the side of the cone, counts as on it.
BOUNDARY_TOLERANCE = 1e-7
# Residual where the trust region stops. On the sphere Newton steps go on from there, and two or three reach rounding;
# inside nothing follows. With 1e-11 for both most of the time went into steps that rounding rejects.
SPHERE_RESIDUAL, INSIDE_RESIDUAL = 1e-5, 1e-10


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
        residual: on the sphere the sine of the angle between -grad and x (with a cone: between -grad and what is
            normal to both), inside the ball R ||grad||.
        boundary: whether ||x|| = R.
    """

    x: Array
    value: float
    residual: float
    boundary: bool


def minimize_on_ball(f: Objective, radius: float, start: Array, cone: Cone | None = None) -> Point:
    """A local minimiser of f over ||x|| <= radius, or over ||x|| = radius in the cone, from the direction ``start``.

    On the sphere, f(radius y / ||y||) is minimised by scipy's ``trust-ncg`` with the Hessian of autograd, then by
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
    if cone.spare(inside.x) <= BOUNDARY_TOLERANCE * radius:
        return inside
    free = _free(g, radius, inside.x, sphere=True)
    return free if cone.spare(free.x) > BOUNDARY_TOLERANCE * radius and free.value <= inside.value + 1e-9 else inside


def residual(f: Objective, radius: float, x: Array) -> float:
    """How far x is from stationary over the ball: see :class:`Point`."""
    return _Derivatives(f).residual(x, radius)


class _Derivatives:
    """f, its gradient and Hessian as numpy functions, also along the sphere."""

    def __init__(self, f: Objective) -> None:
        self.f = f

    def value(self, x: Array) -> float:
        return float(self.f(torch.from_numpy(x)).detach())

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
        if np.linalg.norm(x) >= (1 - BOUNDARY_TOLERANCE) * radius:
            normals.append(x / np.linalg.norm(x))
        if cone is not None:
            normals.append(-normals[0])  # the sphere alone: its normal has either sign
            if cone.spare(x) <= BOUNDARY_TOLERANCE * radius:
                normals.append(-cone.slope(x) / np.linalg.norm(cone.slope(x)))
        size = float(np.linalg.norm(down))
        if not normals:
            return radius * size
        return float(nnls(np.stack(normals, 1), down)[1]) / size if size > 0 else 0.0

    def point(self, x: Array, radius: float, cone: Cone | None = None) -> Point:
        on = bool(np.linalg.norm(x) >= (1 - BOUNDARY_TOLERANCE) * radius)
        return Point(x, self.value(x), self.residual(x, radius, cone), on)


def _free(g: _Derivatives, radius: float, start: Array, sphere: bool = False) -> Point:
    """Over the ball, or over its sphere alone."""

    def along(y: Tensor) -> Tensor:
        return g.f(radius * y / y.norm())

    start = start / np.linalg.norm(start)
    y = _newton(g, along, start, SPHERE_RESIDUAL * radius * float(np.linalg.norm(g.gradient(radius * start))))
    x = radius * y / np.linalg.norm(y)
    best = g.point(_polish(g, along, x, radius), radius)
    if sphere or g.gradient(x) @ x <= 0:
        return best
    inner = _newton(g, g.f, x, INSIDE_RESIDUAL / radius)
    if np.linalg.norm(inner) < radius:
        point = g.point(inner, radius)
        return point if point.value < best.value else best
    return best


def _newton(g: _Derivatives, f: Objective, start: Array, tolerance: float) -> Array:
    """scipy's trust region, until the gradient is this small.

    Not ``trust-exact``: where f is flat to rounding it dies of an unset variable (scipy 1.17).
    """
    if not tolerance > 0:
        return start
    options = {"gtol": tolerance, "maxiter": MAX_STEPS}
    calls: dict[str, Any] = {"jac": lambda y: g.slope(f, y), "hess": lambda y: g.hessian(f, y)}
    value = lambda y: float(f(torch.from_numpy(y)).detach())  # noqa: E731
    with np.errstate(all="ignore"):  # a step of a flat f divides 0 by 0, and is rejected
        return minimize(value, start, method="trust-ncg", options=options, **calls).x


def _polish(g: _Derivatives, along: Objective, x: Array, radius: float) -> Array:
    """Newton steps without values of f, whose rounding hides the last half of the digits."""
    residual = g.residual(x, radius)
    for _ in range(5):
        y = x / radius
        # Along the tangent: f(y / ||y||) is homogeneous, so H y = -grad, and y itself would be the Newton step.
        P = np.eye(len(y)) - np.outer(y, y)
        step = np.linalg.lstsq(P @ g.hessian(along, y) @ P, -g.slope(along, y), rcond=1e-12)[0]
        new = y + step
        new *= radius / np.linalg.norm(new)
        after = g.residual(new, radius)
        if not after < residual:
            break
        x, residual = new, after
    return x


def _constrained(g: _Derivatives, radius: float, start: Array, cone: Cone) -> Point:
    """Over the sphere within the cone, in units of the radius."""
    y = start / np.linalg.norm(start)
    rules = [
        {"type": "eq", "fun": lambda y: 1 - y @ y, "jac": lambda y: -2 * y},
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
    return g.point(radius * found / np.linalg.norm(found), radius, cone)
