"""Compiled steps of many small instances on a CPU: a few of them stay in cache for all steps.

``batch_steps.cpp`` computes what ``lightning_maxmargin.core.batch_directions`` does, with its own exponentials, so
the two agree to rounding. What an instance gets does not depend on which others are there (for the rules that are
compiled), nor on how its steps are cut into calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.batch_directions import InstanceDirections
from lightning_maxmargin.core.compiler import library
from lightning_maxmargin.core.losses import LOSSES, MarginLoss
from lightning_maxmargin.core.updates import Accelerated, Normalized, Sign, State, UpdateRule

HERE = Path(__file__).parent
#: The numbers that batch_steps.cpp has for them.
RULES: dict[type[UpdateRule], int] = {Normalized: 1, Accelerated: 2, Sign: 3}
LOSS_NAMES = ("logistic", "exponential", "correlation")
#: Tokens of as many instances as there are lanes should lie in the second level of cache, else those of one.
CACHE_BYTES = 2**20

_INTEGERS = (
    "vectors", "T", "d", "dv", "query_dim", "instances", "sequences", "one_instance", "near", "train_attention",
    "train_head", "rule", "steps", "count", "fresh",
)  # fmt: skip
_POINTERS = (
    "keys", "values", "labels", "queries", "hidden", "first", "gamma", "attention_lr", "head_lr", "loss",
    "rate_scales", "attention", "head", "attention_momentum", "head_momentum", "attention_direction",
    "head_direction", "log_attention", "margins",
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _INTEGERS] + [(name, ctypes.c_void_p) for name in _POINTERS]


def loss_numbers(losses: Sequence[MarginLoss]) -> list[int] | None:
    """What the compiled steps call each loss; None where one is a user's own."""
    known = [LOSSES[name] for name in LOSS_NAMES]
    found = [next((k for k, x in enumerate(known) if x is loss), None) for loss in losses]
    return None if None in found else found  # type: ignore[return-value]


class CompiledSteps:
    """The instances in blocks, and what moves them.

    Args:
        data: on the CPU, in float32 or float64; one copy more of them is kept.
        losses: :func:`loss_numbers`, of each instance.
        train: ``both``, ``attention`` or ``head``. A head that is given keeps the token scores of the first call, until
            ``fresh`` is set.

    Raises:
        CompileError: nothing can be compiled here.
    """

    def __init__(self, data: Instances, losses: Sequence[int], train: str) -> None:
        self.data, self.fresh, dtype = data, True, data.keys.dtype
        self._lanes: int = self._code("lanes_of")()
        d, T, n, B = data.keys.shape
        dv = len(data.values)
        bytes_of_a_block = (d + dv * (data.values is not data.keys)) * T * n * self._lanes * dtype.itemsize
        # By the shape of an instance alone: how many there are must not change what each gets.
        self._one = bytes_of_a_block > CACHE_BYTES and 2 * n >= self._lanes
        first, near = data.copies
        hidden = None if data.mask is None else data.mask.to(dtype).log()
        keys = self._blocks(self._shown(data.keys))
        self._kept: dict[str, Tensor | None] = {
            "keys": keys,
            "values": keys if data.values is data.keys else self._blocks(self._shown(data.values)),
            "labels": self._blocks(data.labels),
            "queries": None if data.queries is None else self._blocks(data.queries),
            "hidden": None if hidden is None else self._blocks(hidden),
            "first": None if first is None else self._blocks(first),
            "loss": torch.tensor(losses, dtype=dtype),
        }
        self._count, vectors = keys.shape[:2]
        self._kept["gamma"] = keys.new_zeros(*keys.shape[:3], self._lanes)
        self._numbers = {
            "vectors": vectors, "T": T, "d": d, "dv": dv, "instances": B, "sequences": n, "one_instance": self._one,
            "query_dim": 0 if data.queries is None else len(data.queries), "near": near,
            "train_attention": train != "head", "train_head": train != "attention",
        }  # fmt: skip

    def _code(self, name: str) -> Any:
        # Not kept: a pointer to a function cannot be copied, and ensembles are.
        kind = {torch.float32: "float", torch.float64: "double"}[self.data.keys.dtype]
        return getattr(library(HERE / "batch_steps.cpp", HERE / "lanes.h"), f"{name}_{kind}")

    def _shown(self, tokens: Tensor) -> Tensor:
        # Padding may hold anything, and infinity times the weight 0 is no number.
        return tokens if self.data.mask is None else tokens.masked_fill(~self.data.mask, 0.0)

    def _blocks(self, x: Tensor) -> Tensor:
        """(..., n, B) to (block, vector, reversed ..., lane): lanes are instances, the last repeated, or sequences."""
        *rest, n, B = x.shape
        if self._one:
            # Sequences that only fill have label 0.
            x = torch.nn.functional.pad(x, (0, 0, 0, -n % self._lanes)).unflatten(-2, (-1, self._lanes)).movedim(-1, 0)
            x = x.movedim(-2, 1)
        else:
            x = x.index_select(-1, torch.arange(B + -B % self._lanes).clamp_max(B - 1))
            x = x.unflatten(-1, (-1, self._lanes)).movedim(-2, 0).movedim(-2, 1)
        return x.permute(0, 1, *range(len(rest) + 1, 1, -1), len(rest) + 2).contiguous()

    def run(
        self, weights: dict[str, Tensor], rates: dict[str, Tensor], remembered: dict[str, State],
        rule: UpdateRule | None, scales: Sequence[float], count: int, loss: MarginLoss,
    ) -> InstanceDirections:  # fmt: skip
        """Moves the weights in place, and returns the directions of the last step.

        Args:
            weights: attention and head, contiguous.
            rates: of each, a number or (B,).
            remembered: of the trained, contiguous.
            rule: one of :data:`RULES`; without, nothing moves.
            scales: of the rates, one for each step.
            count: steps taken before.
            loss: of the directions.
        """
        data, (n, B) = self.data, self.data.labels.shape
        attention = torch.empty_like(weights["attention"])
        head = torch.empty_like(weights["head"]) if self._numbers["train_head"] else None
        log_attention, margins = data.keys.new_empty(B), data.keys.new_empty(n, B)
        # Named, so that they outlive the call.
        tensors: dict[str, Tensor | None] = {
            **self._kept, **weights, "attention_direction": attention, "head_direction": head,
            "log_attention": log_attention, "margins": margins,
            "rate_scales": torch.tensor(scales, dtype=torch.float64),
        }  # fmt: skip
        for name in weights:
            tensors[f"{name}_lr"] = rates[name].expand(B).contiguous()
            tensors[f"{name}_momentum"] = remembered[name].get("momentum") if rule and name in remembered else None
        pointers = {name: None if (x := tensors[name]) is None else x.data_ptr() for name in _POINTERS}
        number = 0 if rule is None else RULES[type(rule)]
        call = _Call(**self._numbers, **pointers, rule=number, steps=len(scales), count=count, fresh=self.fresh)
        self._code("run")(ctypes.byref(call), ctypes.c_int64(self._count))
        self.fresh = False
        return InstanceDirections(attention, head, log_attention, margins, data.labels, loss)
