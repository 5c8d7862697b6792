"""The regularisation path: the best attention, for a fixed head or with the head, of every norm."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import MarginLoss, Sequences, check_sequences
from lightning_maxmargin.core.losses import Loss, find_loss
from lightning_maxmargin.errors import InputError, check_seed
from lightning_maxmargin.paths.ball import Cone, Point
from lightning_maxmargin.paths.fixed_head import AttentionPath
from lightning_maxmargin.paths.joint import JointPath
from lightning_maxmargin.paths.objective import Head, attention_scores, log_mean_loss, margins

#: A residual up to here counts as stationary: the angle between -grad and the solution, in radians.
STATIONARY_RADIANS = 1e-6
#: Radii outside are refused: at 1e100 the products of a Newton step overflow, at 1e-200 they underflow, and beyond 1e12
#: rounding of the scores, R times 1e-16, moves softmax.
MIN_RADIUS, MAX_RADIUS = 1e-12, 1e12


@dataclass(frozen=True)
class RegularizationPath:
    """Solutions by radius, each with its certificate.

    Attributes:
        radii: (k,) of the attention, or (k, 2) of head and attention.
        attention: (k, d) of p or (k, d, dq) of W.
        head: (k, dv); None where the head was given.
        loss: (k,), L.
        log_loss: (k,), log L without underflow; NaN for a loss that takes negative values.
        residual: (k,), how far a point is from stationary, exact also where softmax has saturated: on the boundary the
            sine of the angle between -grad and the solution, inside R ||grad log(L - L_ref)||; of head and attention
            the larger one.
        status: ``stationary`` (residual <= 1e-6) or ``unverified``.
        boundary: (k,) bool, whether the attention lies on the sphere of its radius.
        selected: (k, n), the token with the largest score.
    """

    radii: Tensor
    attention: Tensor
    head: Tensor | None
    loss: Tensor
    log_loss: Tensor
    residual: Tensor
    status: tuple[str, ...]
    boundary: Tensor
    selected: Tensor


def regularization_path(
    data: Sequences,
    radii: ListOf[float] | ListOf[ListOf[float]],
    *,
    head: Tensor | Head | None = None,
    loss: str | Loss = "logistic",
    selected: Tensor | None = None,
    cone: float | None = None,
    starts: int = 8,
    seed: int = 0,
) -> RegularizationPath:
    r"""``p(R) = argmin_{||p||<=R} L(p)`` for a given head, or ``argmin_{||v||<=r, ||p||<=R} L(v, p)`` without one.

    ``L = mean_i l(Y_i f(X_i))``. Minimised is log(L - L_ref), L_ref the loss of selecting the best tokens, which
    softmax saturation does not flatten. L is not convex in the attention: at every radius the solutions of the
    neighbouring radii, the SVM direction and ``starts`` random directions are tried, and the best is kept, so a
    solution is certified to be stationary and not to be the global minimiser.

    ``cone`` asks for the local path, ``argmin {L(p) : ||p|| = R, p'p_mm >= (1 - cone) ||p|| ||p_mm||}`` around the SVM
    of ``selected``: the neighbourhood of MMTS's theorem on local paths, which holds for cones that are narrow enough.
    (The set where every selected token leads by mu ||p|| would do as well; this one is chosen because it holds p_mm at
    every width.) Norms below R are left out as the theorem leaves out those below some R_0: at small norms a better
    token that is no support neighbour still has weight, and L lies below what it tends to.

    Args:
        data: the sequences; with queries (n, dq) the path is that of W (d, dq), else of p (d,).
        radii: k numbers R, or without a head k pairs (r, R); in any order, solved from small to large.
        head: v (dv,), or psi: a function or module of pooled tokens (m, dv) with outputs (m,), differentiable twice.
        loss: logistic, exponential or correlation.
        selected: (n,), the selected tokens of the local path.
        cone: its width, 1 - cosine, between 0 and 1.
        starts: random directions tried at each radius, at least one.
        seed: of these.

    Returns:
        RegularizationPath, in the order of ``radii``, float64.

    Raises:
        InputError: data of several instances; data, radii or head that do not fit; a cone without its selection or
            whose SVM has no solution.

    Source: MMTS (arXiv 2306.13596), regularisation paths: global, local, joint.

    Example:
        >>> from lightning_maxmargin.data import PaperData
        >>> path = regularization_path(PaperData("joint_relaxed").sequences("train"), [(3, 3), (10, 10)], starts=2)
        >>> [round(float(torch.atan2(p[1], p[0]).rad2deg()), 2) for p in path.attention]  # its limit is (1, 0)
        [8.65, 2.76]
    """
    data = check_sequences(data, where="path").to("cpu").to(torch.float64)
    if data.instance is not None:
        raise InputError(
            f"path: the data hold {len(data.instance.unique())} instances, which share no path; pass one problem"
        )
    chosen = find_loss(loss, "path: loss", MarginLoss)
    check_seed(seed, "path: seed")
    if starts < 1:
        raise InputError(f"path: starts is {starts}; pass 1 or more")
    R = _radii(radii, joint=head is None)
    generator = np.random.default_rng(seed)
    order = np.lexsort(np.atleast_2d(R.T))
    if head is None:
        if cone is not None or selected is not None:
            raise InputError("path: cone and selected belong to a given head; without a head the path is joint")
        joint = JointPath(data, chosen, starts, generator).solve(R[order])
        points, heads = [p for p, _ in joint], np.stack([v for _, v in joint])[np.argsort(order)]
        return _result(data, chosen, R, [points[i] for i in np.argsort(order)], torch.from_numpy(heads), None)
    head, selected = _head(head, data), None if selected is None else selected.cpu()
    fixed_head = AttentionPath(data, head, chosen, selected, _cone(data, selected, cone), starts, generator)
    points = fixed_head.solve(R[order])
    return _result(data, chosen, R, [points[i] for i in np.argsort(order)], None, head)


def _result(
    data: Sequences,
    loss: MarginLoss,
    radii: np.ndarray,
    points: list[Point],
    heads: Tensor | None,
    head: Tensor | Head | None,
) -> RegularizationPath:
    shape = data.keys.shape[2:] if data.queries is None else (data.keys.shape[2], data.queries.shape[1])
    attention = torch.stack([torch.from_numpy(p.x) for p in points]).view(-1, *shape)
    given = [head] * len(points) if heads is None else list(heads)
    with torch.no_grad():
        m = [margins(data, h, p) for h, p in zip(given, attention, strict=True)]  # type: ignore[arg-type]
        scores = torch.stack([attention_scores(data, p) for p in attention])
    if data.mask is not None:
        scores = scores.masked_fill(~data.mask, -torch.inf)
    value = torch.stack([loss.value(x).mean() for x in m])
    logs = torch.stack([log_mean_loss(loss, x) for x in m]) if loss.log_value else torch.full_like(value, torch.nan)
    return RegularizationPath(
        radii=torch.from_numpy(radii),
        attention=attention,
        head=heads,
        loss=value,
        log_loss=logs,
        residual=torch.tensor([p.residual for p in points], dtype=torch.float64),
        status=tuple("stationary" if p.residual <= STATIONARY_RADIANS else "unverified" for p in points),
        boundary=torch.tensor([p.boundary for p in points]),
        selected=scores.argmax(2),
    )


def _radii(radii: ListOf[float] | ListOf[ListOf[float]], joint: bool) -> np.ndarray:
    """(k,) or (k, 2), positive."""
    expected = "pairs (r, R) of positive numbers" if joint else "positive numbers"
    try:
        R = np.array(radii, dtype=float)
    except (TypeError, ValueError):
        R = np.zeros(0)
    if R.size == 0 or R.shape[1:] != ((2,) if joint else ()) or not (np.isfinite(R) & (R > 0)).all():
        hint = "; a joint path has no head given" if joint else "; give no head for a joint path"
        raise InputError(f"path: radii {radii!r}; expected a list of {expected}{hint}")
    if R.min() < MIN_RADIUS or R.max() > MAX_RADIUS:
        raise InputError(
            f"path: radii {radii!r} are not all from {MIN_RADIUS:g} to {MAX_RADIUS:g}, where float64 can follow"
        )
    return R


def _head(head: Tensor | Head, data: Sequences) -> Tensor | Head:
    """v in float64, or psi after a check of what it returns."""
    dv = data.values.shape[2]
    if isinstance(head, Tensor):
        if head.shape != (dv,) or not head.isfinite().all():
            raise InputError(f"path: head has shape {tuple(head.shape)}; expected finite numbers of shape ({dv},)")
        return head.detach().to("cpu").double()
    if isinstance(head, torch.nn.Module):
        head = _frozen(head)
    with torch.no_grad():
        output = head(data.values[:, 0])
    if not isinstance(output, Tensor) or output.shape != (len(data),):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"path: the head gives {found} for {len(data)} tokens; expected one number each, ({len(data)},)"
        )
    return head


def _frozen(head: torch.nn.Module) -> Head:
    """A copy of the module in float64, one column of outputs dropped."""
    import copy

    module = copy.deepcopy(head).to("cpu").double().eval().requires_grad_(False)

    def psi(x: Tensor) -> Tensor:
        y = module(x)
        return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y

    return psi


def _cone(data: Sequences, selected: Tensor | None, width: float | None) -> Cone | None:
    from lightning_maxmargin.svm import solve_att_svm

    if width is None:
        if selected is not None:
            raise InputError("path: selected names the tokens of a local path; give its cone too")
        return None
    if selected is None or not 0 < width < 1:
        raise InputError(
            f"path: cone {width} with selected {selected}; expected a width between 0 and 1 and (n,) tokens"
        )
    svm = solve_att_svm(data.keys, selected, queries=data.queries, mask=data.mask)
    if svm.status != "certified":
        raise InputError(f"path: the SVM of the selected tokens is {svm.status}, so there is no cone around it")
    axis = svm.direction.flatten().numpy()
    return Cone(axis / np.linalg.norm(axis), width)
