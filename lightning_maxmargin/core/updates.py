"""Every update rule once, for optimizers and ensembles, and the rules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_maxmargin.core.norms import mirror, newton_schulz, polar_factor, scaled, unit
from lightning_maxmargin.core.rule import Rate, State, UpdateRule, moved
from lightning_maxmargin.errors import InputError


@dataclass(frozen=True)
class Normalized(UpdateRule):
    """w <- w - lr g / ||g||."""

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        return moved(weight, unit(gradient), rate), state

    def step_instances(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[Tensor], states: Sequence[State],
        count: int,
    ) -> list[tuple[Tensor, State]]:  # fmt: skip
        # By hand, because vmap costs 100 us a tensor, a fifth of a step of a thousand small instances.
        return [
            (w - g * _rate_of_length(g, lr), s) for w, g, lr, s in zip(weights, gradients, rates, states, strict=True)
        ]


def _rate_of_length(g: Tensor, rate: Tensor) -> Tensor:
    """lr / ||g|| of every instance, 0 for a zero direction: lr over the smallest number may be infinite."""
    # The direction is sized by its weights and its length is that of a margin: no underflow in the square.
    length = g.flatten(0, -2).square().sum(0).sqrt_()
    return torch.where(length > 0, rate / length, 0.0)


@dataclass(frozen=True)
class Polyak(UpdateRule):
    """w <- w - lr g / ||g||^2 with the gradient of log L and ||g|| over all tensors: Polyak's step for L* = 0.

    Attributes:
        max_step: the longest step of all tensors together.
    """

    max_step: float = math.inf
    gradient_scale: ClassVar[Literal["direction", "log_loss"]] = "log_loss"

    def step_all(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[Rate], states: Sequence[State],
        count: int,
    ) -> list[tuple[Tensor, State]]:  # fmt: skip
        if not gradients:
            return []
        top = torch.stack([g.abs().max() for g in gradients]).max()
        top = torch.where(top > 0, top, torch.ones_like(top))
        # Divided by the largest entry first: the square of 1e-30 is zero in float32.
        norm = top * torch.stack([torch.linalg.vector_norm(g / top) for g in gradients]).norm()
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        lengths = [torch.as_tensor(lr / norm).clamp(max=self.max_step) for lr in rates]
        return [(w - g / norm * x, s) for w, g, x, s in zip(weights, gradients, lengths, states, strict=True)]


@dataclass(frozen=True)
class Accelerated(UpdateRule):
    """m <- t/(t+1) (m + g), w <- w - lr (m + g), for g sized by its weights, see core/exact.py: dual acceleration."""

    elementwise: ClassVar[bool] = True

    def start(self, weight: Tensor) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        momentum = (state["momentum"] + gradient) * (count / (count + 1))
        return moved(weight, momentum + gradient, rate), {"momentum": momentum}


@dataclass(frozen=True)
class Sign(UpdateRule):
    """w <- w - lr sign(g): steepest descent in l_inf."""

    elementwise: ClassVar[bool] = True

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        return moved(weight, gradient.sign(), rate), state


@dataclass(frozen=True)
class Signum(UpdateRule):
    """m <- beta m + (1 - beta) g / max|g|, w <- w - lr sign(m).

    Attributes:
        momentum: beta.
    """

    momentum: float = 0.9

    def start(self, weight: Tensor) -> State:
        return {"average": torch.zeros_like(weight)}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        average = _average(state["average"], gradient, self.momentum, 1 - self.momentum)
        return moved(weight, average.sign(), rate), {"average": average}


@dataclass(frozen=True)
class Spectral(UpdateRule):
    """W <- W - lr U V' with the gradient G = U S V', or of an average of gradients: steepest descent in l_spectral.

    Attributes:
        method: ``svd`` or ``newton_schulz``.
        steps: of Newton-Schulz.
        momentum: share of the average that stays (Muon's); 0 takes each gradient by itself.
    """

    method: Literal["svd", "newton_schulz"] = "svd"
    steps: int = 20
    momentum: float = 0.0

    def start(self, weight: Tensor) -> State:
        return {"average": torch.zeros_like(weight)} if self.momentum else {}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        if self.momentum:
            # In decimals: 1 - .9 is .09999999999999998 in binary.
            gradient = _average(state["average"], gradient, self.momentum, round(1 - self.momentum, 12))
            state = {"average": gradient}
        return moved(weight, self._step(gradient), rate), state

    def _step(self, g: Tensor) -> Tensor:
        if g.ndim < 2:
            return unit(g)
        matrix = g.flatten(1)
        step = polar_factor(matrix) if self.method == "svd" else newton_schulz(matrix, self.steps)
        return step.view_as(g)


@dataclass(frozen=True)
class Mirror(UpdateRule):
    """grad psi(w) <- grad psi(w) - lr g / ||g||_q with psi(w) = ||w||_p^p / p and 1/p + 1/q = 1.

    Attributes:
        p: of the norm, above 1 and finite.
    """

    p: float = 2.0

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        q = self.p / (self.p - 1)
        step = rate * unit(gradient, q)
        # There and back costs a rounding: an entry without gradient stays to the last bit.
        return torch.where(step == 0, weight, mirror(mirror(weight, self.p) - step, q)), state


@dataclass(frozen=True)
class Factored(UpdateRule):
    """w <- w - lr unit(unit(g) + ridge w), for a factor of W = K Q'; a zero gradient moves nothing.

    Attributes:
        ridge: beside a gradient of length 1.
    """

    ridge: float = torch.finfo(torch.float64).eps

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        g = unit(gradient)
        step = unit(g + self.ridge * weight)
        # By a mask: a zero gradient says nothing, and the ridge alone would be a whole step towards zero.
        return moved(weight, torch.where((g != 0).any(), step, g), rate), state


@dataclass(frozen=True)
class Adam(UpdateRule):
    """w <- w - lr m / (sqrt(v) + eps), averages of g and g^2 corrected for their start; 0/0 does not move.

    Of the gradient of log L, whose size is that of the data: no square of it underflows.

    Attributes:
        betas: decay of the two averages.
        eps: 0 for the l_inf margin.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 0.0
    gradient_scale: ClassVar[Literal["direction", "log_loss"]] = "log_loss"
    elementwise: ClassVar[bool] = True

    def start(self, weight: Tensor) -> State:
        return {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        b1, b2 = self.betas
        mean = (state["mean"] * b1).add(gradient, alpha=1 - b1)
        square = (state["square"] * b2).addcmul(gradient, gradient, value=1 - b2)
        root = (square / (1 - b2 ** (count + 1))).sqrt() + self.eps
        step = mean / (1 - b1 ** (count + 1)) / root.clamp_min(torch.finfo(root.dtype).tiny)
        return moved(weight, step, rate), {"mean": mean, "square": square}


def _average(average: Tensor, g: Tensor, stays: float, comes: float) -> Tensor:
    # Only the direction of g counts: an average of gradients that shrink would be one of the oldest.
    return (average * stays).add(scaled(g), alpha=comes)


#: What makes the rule of each name, for ensembles and their configs.
UPDATES: dict[str, Callable[[], UpdateRule]] = {
    "normalized": Normalized,
    "accelerated": Accelerated,
    "polyak": Polyak,
    "sign": Sign,
    "signum": Signum,
    "spectral": Spectral,
    "mirror": Mirror,
    "factored": Factored,
    "adam": Adam,
}


def register_update(name: str, make: Callable[[], UpdateRule]) -> None:
    """A rule by this name, from now on, wherever an ensemble takes one.

    Args:
        name: one that is not taken.
        make: the rule's class, or a function without arguments that makes one.

    Raises:
        InputError: the name is taken, or ``make`` cannot be called.

    Example:
        >>> register_update("full_length", Normalized)
        >>> update_rule("full_length")
        Normalized()
        >>> del UPDATES["full_length"]
    """
    if not callable(make):
        raise InputError(f"update rule {name!r} is a {type(make).__name__}; expected a class, or what makes a rule")
    if name in UPDATES:
        raise InputError(f"update rule {name!r} exists; choose another name")
    UPDATES[name] = make


def update_rule(rule: str | UpdateRule, where: str = "ensemble: update") -> UpdateRule:
    """The rule of this name, or the rule itself.

    Raises:
        InputError: there is none of that name, it is no rule, or one that does not say how it moves.

    Example:
        >>> update_rule("sign"), update_rule(Mirror(3.0))
        (Sign(), Mirror(p=3.0))
    """
    if isinstance(rule, UpdateRule):
        if type(rule).step is UpdateRule.step and type(rule).step_all is UpdateRule.step_all:
            raise InputError(f"{where} {type(rule).__name__} lacks step(weight, gradient, rate, state, count)")
        return rule
    if not isinstance(rule, str):
        raise InputError(f"{where} {rule!r} is no name and no UpdateRule; derive a class from UpdateRule")
    if rule not in UPDATES:
        raise InputError(f"{where} {rule!r} is none of {', '.join(UPDATES)}")
    made = UPDATES[rule]()
    if not isinstance(made, UpdateRule):
        raise InputError(f"{where} {rule!r} makes a {type(made).__name__}; expected an UpdateRule")
    return update_rule(made, where)
