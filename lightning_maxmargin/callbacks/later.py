"""How gradients are checked where the answer would have to be waited for: weights stay, and the question is read later.

On a GPU a number that is read holds up everything queued behind it, at every step. Here it stays on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Optimizer steps between two questions, and until the answer of one is read: by then it has come.
ASK_EVERY = 8

#: From here on a place is that of a weight, below of a gradient.
WEIGHTS = 2**40


class LaterCheck:
    """From the first gradient that is not finite on, no step moves a weight, although the host does not know it yet.

    Weights that are to stay get theirs of before the step back, by a mask; gradients become 0, so that what an
    optimizer remembers stays finite (averages shrink by the few steps until the host knows).

    Args:
        places: which number each parameter has.
        ask_every: optimizer steps between two questions.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> check = LaterCheck({w: 7})
        >>> for gradient in (0.5, float("nan"), 0.5):
        ...     w.grad = torch.tensor([gradient])
        ...     check.before_step([w], step=3)
        ...     _ = w.data.sub_(w.grad)
        ...     check.after_step([w])
        >>> w.item(), check.answer()
        (0.5, (3, 7))
    """

    def __init__(self, places: dict[Tensor, int], ask_every: int = ASK_EVERY) -> None:
        self.places, self.ask_every = places, ask_every
        self._steps, self._next = 0, 0
        self._found: Tensor | None = None  # (2,) int64, step and place of the first; -1 while there is none
        self._before: list[Tensor] = []
        self._numbers: dict[tuple[int, ...], Tensor] = {}
        self._asked: tuple[int, Tensor, Any] | None = None

    @torch.no_grad()
    def before_step(self, moving: list[Tensor], step: int) -> None:
        """Looks at the gradients of these parameters, which all have one."""
        self._next = step + 1
        gradients = [p.grad for p in moving if p.grad is not None]
        self._note(moving, torch.stack([_whole(~g.isfinite().all()) for g in gradients]), 0)
        assert self._found is not None
        self._before = [own_part(p).clone() for p in moving]
        for gradient in gradients:
            own_part(gradient).masked_fill_(self._found[0] >= 0, 0.0)

    @torch.no_grad()
    def after_step(self, moving: list[Tensor]) -> None:
        """Gives the same parameters their weights of before back, if they are to stay or are not finite now."""
        assert self._found is not None
        self._note(moving, torch.stack([_whole(~own_part(p).isfinite().all()) for p in moving]), WEIGHTS)
        for p, before in zip(moving, self._before, strict=True):
            own_part(p).copy_(torch.where(self._found[0] < 0, own_part(p), before))
        self._before = []
        self._steps += 1

    def _note(self, moving: list[Tensor], bad: Tensor, offset: int) -> None:
        """Which of these parameters is the first that is bad, if nothing was before."""
        first = offset + self._places(moving, bad.device).gather(0, bad.int().argmax(0, keepdim=True))
        found = torch.cat([torch.full_like(first, self._next - 1), first])
        seen = torch.full_like(found, -1) if self._found is None else self._found
        self._found = torch.where((seen[:1] < 0) & bad.any(), found, seen)

    def due(self) -> tuple[int, tuple[int, int] | None] | None:
        """Every so many steps: the first step that the last question left out, and its answer; then asks again."""
        if self._found is None or self._steps % self.ask_every:
            return None
        known = None
        if self._asked is not None:
            step, answer, event = self._asked
            if event is not None:
                event.synchronize()
            known = step, _first(answer)
        event = None if self._found.device.type == "cpu" else torch.Event(self._found.device)
        self._asked = self._next, self._found.to("cpu", non_blocking=True), event
        if event is not None:
            event.record()
        return known

    def answer(self) -> tuple[int, int] | None:
        """Step and place of the first that is not finite, None while there is none; waits for the device."""
        return None if self._found is None else _first(self._found)

    def _places(self, moving: list[Tensor], device: torch.device) -> Tensor:
        numbers = tuple(self.places.get(p, -1) for p in moving)
        if numbers not in self._numbers:
            self._numbers[numbers] = torch.tensor(numbers, device=device)
        return self._numbers[numbers]


def own_part(x: Tensor) -> Tensor:
    """What this process holds of a tensor that several share; the tensor itself elsewhere."""
    return x.to_local() if hasattr(x, "to_local") else x.detach()


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def _first(found: Tensor) -> tuple[int, int] | None:
    step, place = found.tolist()
    return None if step < 0 else (step, place)
