"""Training many small instances at once as one tensor: phase diagrams in seconds."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.core import waiting
from lightning_maxmargin.core.batch import Instances, scores, token_scores
from lightning_maxmargin.core.batch_directions import InstanceDirections, instance_directions
from lightning_maxmargin.core.batch_steps import RULES, CompiledSteps, loss_numbers
from lightning_maxmargin.core.compiler import CompileError
from lightning_maxmargin.core.losses import Loss, MarginLoss, find_loss, loss_by_instance
from lightning_maxmargin.core.updates import State, UpdateRule, update_rule
from lightning_maxmargin.errors import InputError

#: The name of a rule, or a rule.
Update = str | UpdateRule
#: Whether the steps are compiled C++: ``auto`` where that can be.
Compile = bool | Literal["auto"]
#: Most steps of one call of compiled code, which an interrupt waits for.
STEPS_A_CALL = 200


class EnsembleState:
    """B models f(X) = v' X' softmax(a), each on its own instance, moved together by exact directions.

    ``normalized``: w <- w + lr g / ||g||, per instance and tensor. ``accelerated``: dual acceleration, whose g is
    sized by its weights. Every other rule of ``lightning_maxmargin.core.updates``, and a user's own, likewise, of
    each instance by itself. Rates may differ by instance.

    Args:
        data: the instances; their device and dtype are the ensemble's.
        attention: (d, B) start of p, or (d, dq, B) of W where the data have queries; zeros where None.
        head: (dv, B) start of v; zeros where None.
        train: ``both``, ``attention`` or ``head``.
        attention_lr: a number or (B,).
        head_lr: a number or (B,).
        loss: logistic, exponential, correlation or a user's own margin loss, or one of these for each instance.
        update: the name of a rule, as above, or an :class:`~lightning_maxmargin.core.updates.UpdateRule`.
        compile: whether steps are those of C++ compiled on this machine, which agree with torch's to rounding: ``auto``
            does on a CPU with a compiler, for losses that have a name of this package.

    Raises:
        InputError: shapes that disagree, or a choice that does not exist.

    Example:
        >>> keys = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, -1.0]]]], dtype=torch.float64)
        >>> state = EnsembleState(Instances.stack(keys, torch.tensor([[1.0, -1.0]])), attention_lr=1.0, head_lr=1.0)
        >>> state.run(500)
        >>> [round(x, 2) for x in (state.head[:, 0] / state.head.norm()).tolist()]
        [0.0, 1.0]
    """

    def __init__(
        self,
        data: Instances,
        attention: Tensor | None = None,
        head: Tensor | None = None,
        train: Literal["both", "attention", "head"] = "both",
        attention_lr: float | Tensor = 0.1,
        head_lr: float | Tensor = 0.1,
        loss: str | Loss | Sequence[str | Loss] = "logistic",
        update: Update = "normalized",
        compile: Compile = "auto",
    ) -> None:
        d, dv, B = len(data.keys), len(data.values), data.keys.shape[-1]
        shape = (d, B) if data.queries is None else (d, len(data.queries), B)
        self.data = data
        self.attention = self._start("attention", attention, shape)
        self.head = self._start("head", head, (dv, B))
        names = [loss] * B if isinstance(loss, str | Loss) else list(loss)
        if len(names) != B:
            raise InputError(f"ensemble: {len(names)} losses for {B} instances; give one, or one for each")
        if train not in ("both", "attention", "head"):
            raise InputError(f"ensemble: train {train!r} is none of both, attention, head")
        if compile not in (True, False, "auto"):
            raise InputError(f"ensemble: compile {compile!r} is none of auto, true, false")
        self.loss, self.train, self.rule = loss_by_instance(names), train, update_rule(update)
        if self.rule.gradient_scale == "log_loss" and self.loss.log_value is None:
            raise InputError(f"ensemble: update {update!r} takes the gradient of log L; give one loss, not correlation")
        self.attention_lr, self.head_lr = self._rate(attention_lr), self._rate(head_lr)
        #: What the rule remembers of each trained tensor.
        self.remembered: dict[str, State] = {name: self.rule.start(getattr(self, name)) for name in self.trained}
        #: What both rates are multiplied by: a schedule's.
        self.rate_scale = 1.0
        self.steps = 0
        self._last: InstanceDirections | None = None
        self._gamma = token_scores(data, self.head)
        data.copies  # noqa: B018  (asked before the first step: no step waits for a device)
        self._compiled = None if compile is False else self._compile(names, must=compile is True)

    def _start(self, name: str, start: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if start is None:
            return self.data.keys.new_zeros(shape)
        if start.shape != shape:
            raise InputError(f"ensemble: {name} has shape {tuple(start.shape)}; expected {shape}")
        return start.to(self.data.keys).clone(memory_format=torch.contiguous_format)

    def _compile(self, losses: Sequence[str | Loss], must: bool) -> CompiledSteps | None:
        keys = self.data.keys
        numbers = loss_numbers([find_loss(loss, kind=MarginLoss) for loss in losses])
        if not waiting.answers_at_once(keys) or keys.dtype not in (torch.float32, torch.float64) or numbers is None:
            if must:
                raise InputError(
                    "ensemble: compile needs a CPU, float32 or float64, and a loss of this package; give auto or false"
                )
            return None
        try:
            return CompiledSteps(self.data, numbers, self.train)
        except CompileError as error:
            if must:
                raise InputError(f"ensemble: compile: {error}; give auto or false") from None
            _say_once(f"ensembles train several times slower, by torch alone: {error}")
            return None

    def _rate(self, lr: float | Tensor) -> Tensor:
        rate = torch.as_tensor(lr, dtype=self.data.keys.dtype, device=self.data.keys.device)
        if rate.shape not in ((), (self.data.keys.shape[-1],)) or not bool((rate > 0).all() & rate.isfinite().all()):
            raise InputError("ensemble: a rate is a positive number, or one for each instance")
        return rate

    @property
    def trained(self) -> tuple[str, ...]:
        """``attention``, ``head`` or both."""
        return ("attention", "head") if self.train == "both" else (self.train,)

    @property
    def loss_now(self) -> Tensor:
        """(B,), mean loss of every instance before its latest step; zeros before the first."""
        return self.data.keys.new_zeros(self.data.keys.shape[-1]) if self._last is None else self._last.loss

    def refresh(self) -> None:
        """To be called after the weights were set from outside: the token scores of a given head are kept."""
        self._gamma = token_scores(self.data, self.head)
        if self._compiled is not None:
            self._compiled.fresh = True

    @torch.no_grad()
    def run(
        self, steps: int, each: Callable[[int], None] | None = None, rate_scales: Sequence[float] | None = None
    ) -> None:
        """So many steps of every instance.

        Args:
            steps: how many.
            each: called after every step with how many there were.
            rate_scales: what both rates are multiplied by at each step; ``rate_scale`` where None.
        """
        scales = [self.rate_scale] * steps if rate_scales is None else list(rate_scales)
        if each is None and self._moves_in_cache:
            for at in range(0, steps, STEPS_A_CALL):
                self._run_compiled(scales[at : at + STEPS_A_CALL])
            return
        for scale in scales:
            self.rate_scale = scale
            self.step()
            if each is not None:
                each(self.steps)

    @property
    def _moves_in_cache(self) -> bool:
        """Whether whole runs are compiled: the rule is, and no subclass has a step of its own."""
        own = type(self).step is EnsembleState.step and type(self).move is EnsembleState.move
        return own and self._compiled is not None and type(self.rule) in RULES

    def _run_compiled(self, scales: Sequence[float], move: bool = True) -> InstanceDirections:
        assert self._compiled is not None
        self.attention, self.head = (x.to(self.data.keys).contiguous() for x in (self.attention, self.head))
        g = self._compiled.run(
            {"attention": self.attention, "head": self.head},
            {"attention": self.attention_lr, "head": self.head_lr},
            self.remembered, self.rule if move else None, scales, self.steps, self.loss,
        )  # fmt: skip
        if move:
            self.rate_scale = scales[-1]
            self.steps += len(scales)
            self._last = g
        return g

    @torch.no_grad()
    def step(self) -> InstanceDirections:
        """One step of every instance."""
        if self._moves_in_cache:
            return self._run_compiled([self.rate_scale])
        g = self._directions() if self._compiled is None else self._run_compiled([1.0], move=False)
        self.move(g)
        self.steps += 1
        self._last = g
        return g

    def _directions(self) -> InstanceDirections:
        if self.train != "attention":
            # With a given head the token scores stay what they are: one pass over the tokens less.
            self._gamma = token_scores(self.data, self.head)
        a = scores(self.data, self.attention)
        return instance_directions(self.data, a, self._gamma, self.loss, head=self.train != "attention")

    def move(self, g: InstanceDirections) -> None:
        """Moves what is trained by these directions."""
        gradients = g.of_log_loss() if self.rule.gradient_scale == "log_loss" else (g.attention, g.head)
        found = {name: -x for name, x in zip(("attention", "head"), gradients, strict=True) if x is not None}
        count, names = self.data.keys.shape[-1], self.trained
        rates = [{"attention": self.attention_lr, "head": self.head_lr}[name].expand(count) for name in names]
        if self.rate_scale != 1:
            rates = [rate * self.rate_scale for rate in rates]
        new = self.rule.step_instances(
            [getattr(self, name) for name in names], [found[name] for name in names], rates,
            [self.remembered[name] for name in names], self.steps,
        )  # fmt: skip
        for name, (weight, kept) in zip(names, new, strict=True):
            getattr(self, name).copy_(weight)
            self.remembered[name] = kept

    def selected(self) -> Tensor:
        """alpha of every instance in float64, (B, n)."""
        a = scores(self.data, self.attention)
        if self.data.mask is not None:
            a = a.masked_fill(~self.data.mask, -torch.inf)
        return a.argmax(0).T


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=2)
