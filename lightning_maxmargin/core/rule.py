"""What an update rule is: a pure function of weights, gradient and state; a user's own derives from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
Rate = float | Tensor


class UpdateRule:
    """How weights move: a subclass says how one tensor does, and serves ensembles as well.

    A rule keeps no numbers of its own: what it remembers of a tensor is its state, made by :meth:`start` and returned
    by :meth:`step`. Nothing is written in place.

    Attributes:
        gradient_scale: ``direction`` (sized by its weights: any positive scale will do) or ``log_loss`` (the gradient
            of log L).
        elementwise: whether every entry moves by itself: instances then need no axis of their own.

    Example:
        >>> from lightning_maxmargin.core.updates import unit
        >>> class Halfway(UpdateRule):
        ...     def step(self, weight, gradient, rate, state, count):
        ...         return weight - rate * unit(gradient) / (1 + count) ** 0.5, state
        >>> Halfway().step(torch.zeros(1), torch.tensor([-3.0]), 1.0, {}, 3)[0].item()
        0.5
    """

    gradient_scale: ClassVar[Literal["direction", "log_loss"]] = "direction"
    elementwise: ClassVar[bool] = False

    def start(self, weight: Tensor) -> State:
        """What is remembered before the first step: tensors of the weight's shape.

        Args:
            weight: the tensor that will move, (d, ...).
        """
        return {}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        """The weight after a step, and the new state.

        Args:
            weight: of any shape (d, ...).
            gradient: of that shape.
            rate: a number, or a tensor without an axis.
            state: as :meth:`start` or the last step left it.
            count: steps taken before.
        """
        raise NotImplementedError

    def step_all(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[Rate], states: Sequence[State],
        count: int,
    ) -> list[tuple[Tensor, State]]:  # fmt: skip
        """All tensors of one model: each by itself, unless a rule looks at them together.

        Args:
            weights: tensors of the model.
            gradients: of their shapes.
            rates: one of each tensor.
            states: what each rule remembers, as :meth:`start` and the step before returned it.
            count: steps made before.

        Returns:
            (new weight, new state) of each.
        """
        return [self.step(w, g, lr, s, count) for w, g, lr, s in zip(weights, gradients, rates, states, strict=True)]

    def step_instances(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[Tensor], states: Sequence[State],
        count: int,
    ) -> list[tuple[Tensor, State]]:  # fmt: skip
        """The same of many models at once, whose tensors have the instances last, with a rate of each (B,).

        Args:
            weights: (..., B) tensors of B models.
            gradients: of their shapes.
            rates: (B,) of each tensor.
            states: what each rule remembers.
            count: steps made before.

        Returns:
            (new weight, new state) of each.
        """
        if self.elementwise:
            return self.step_all(weights, gradients, rates, states, count)

        def one(w: list[Tensor], g: list[Tensor], lr: list[Tensor], kept: list[State]) -> list[tuple[Tensor, State]]:
            return self.step_all(w, g, lr, kept, count)

        mapped = torch.vmap(one, in_dims=-1, out_dims=-1)
        found: list[tuple[Tensor, State]] = mapped(list(weights), list(gradients), list(rates), list(states))
        return found


def moved(weight: Tensor, step: Tensor, rate: Rate) -> Tensor:
    """w - rate step; one rounding less where the rate is a number."""
    return weight - step * rate if isinstance(rate, Tensor) else torch.sub(weight, step, alpha=rate)
