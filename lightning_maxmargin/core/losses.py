"""Losses of the label margin m = Y f, with the logarithms that keep their gradients alive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError

Kind = TypeVar("Kind", bound="Loss")


class Loss(ABC):
    """A loss of logits and labels, of each sequence by itself: what a user's own derives from.

    Attributes:
        name: its name in configs and messages.
    """

    name: str

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per sequence, (n,), from logits (n,) and labels -1, 1, or from logits (n, K) and class indices."""


@dataclass(frozen=True)
class MarginLoss(Loss):
    """A decreasing loss l(m) of the label margin m = Y f.

    Attributes:
        name: its name in configs.
        value: l(m).
        log_slope: log |l'(m)|, which does not underflow where l' does.
        log_value: log l(m), None where l takes negative values.

    Example:
        >>> steep = MarginLoss("exponential", lambda m: (-m).exp(), lambda m: -m, lambda m: -m)
        >>> steep(torch.tensor([3.0]), torch.tensor([-1.0])).log().item()
        3.0
    """

    name: str
    value: Callable[[Tensor], Tensor]
    log_slope: Callable[[Tensor], Tensor]
    log_value: Callable[[Tensor], Tensor] | None

    def __post_init__(self) -> None:
        for part in ("value", "log_slope", "log_value"):
            found = getattr(self, part)
            if not callable(found) and (part != "log_value" or found is not None):
                raise InputError(f"loss {self.name!r}: {part} is a {type(found).__name__}; expected a function of m")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per sequence: l(Y f), (n,)."""
        return self.value(labels * logits)


class CrossEntropy(Loss):
    """Cross-entropy of class logits (n, K) and class indices (n,), per sequence: log(1 + sum_{k != y} e^(f_k - f_y)).

    Centred at the label's logit for the reason that pooling is centred at the selected token: the naive gradient
    softmax(f) - onehot(y) is rounding noise once the margin passes 37 in float64, and a normalised head then drifts
    (measured: direction gap 1e-3 at norm 23, back to .57 at norm 250).

    Example:
        >>> CrossEntropy()(torch.zeros(1, 4), torch.tensor([2])).exp().item()
        4.0
    """

    name = "cross_entropy"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = labels[:, None]
        others = (logits - logits.gather(1, own)).scatter(1, own, -torch.inf)
        return _softplus(others.logsumexp(1))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x). Not torch's own, which returns x past 20 and so drops e^-20 = 2e-9."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _log_logistic(m: Tensor) -> Tensor:
    # log(1 + e^-m) = e^-m (1 - e^-m / 2 + ...): past m = 40 the first term is exact in float64.
    return torch.where(m > 40, -m, _softplus(-m.clamp_max(40)).log())


#: Every loss that has a name; :func:`register_loss` adds to it.
LOSSES: dict[str, Loss] = {
    "logistic": MarginLoss("logistic", lambda m: _softplus(-m), lambda m: -_softplus(m), _log_logistic),
    "exponential": MarginLoss("exponential", lambda m: (-m).exp(), lambda m: -m, lambda m: -m),
    "correlation": MarginLoss("correlation", lambda m: -m, torch.zeros_like, None),
    "cross_entropy": CrossEntropy(),
}


def register_loss(loss: Loss) -> None:
    """From now on a loss of this name, wherever one is taken by name.

    Args:
        loss: a :class:`MarginLoss` for exact directions, ensembles and paths, or any other :class:`Loss` for autograd.

    Raises:
        InputError: it is no Loss, or its name is taken by another.

    Example:
        >>> flat = MarginLoss("flat", lambda m: torch.sigmoid(-m), lambda m: -abs(m) - 2 * _softplus(-abs(m)), None)
        >>> register_loss(flat)
        >>> find_loss("flat") is flat
        True
        >>> del LOSSES["flat"]
    """
    if not isinstance(loss, Loss):
        raise InputError(f"register_loss: {loss!r} is no Loss; make a MarginLoss, or derive a class from Loss")
    _check_name(loss, "register_loss")
    if LOSSES.setdefault(loss.name, loss) is not loss:
        raise InputError(f"register_loss: there is a loss {loss.name!r} already; choose another name")


def find_loss(loss: str | Loss, where: str = "loss", kind: type[Kind] = Loss) -> Kind:  # type: ignore[assignment]
    """The loss of this name, or the loss itself.

    Args:
        loss: a name, or a loss.
        where: how the message of an error begins.
        kind: what it has to be; a :class:`MarginLoss` where the logarithm of its slope is needed.

    Raises:
        InputError: there is none of that name, or it is of another kind.

    Example:
        >>> round(find_loss("logistic")(torch.zeros(1), torch.ones(1)).item(), 4)  # log 2
        0.6931
    """
    table = {name: found for name, found in LOSSES.items() if isinstance(found, kind)}
    if isinstance(loss, kind):
        _check_name(loss, where)
        return loss
    if isinstance(loss, str) and loss in table:
        return table[loss]
    known = ", ".join(map(repr, table))
    given = repr(loss) if isinstance(loss, str) else type(loss).__name__
    raise InputError(f"{where}: expected one of {known}, or a {kind.__name__}, got {given}")


def _check_name(loss: Loss, where: str) -> None:
    name = getattr(loss, "name", None)
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: {type(loss).__name__} lacks name; give the class one, in quotes")


def loss_per_sequence(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each sequence, (n,).

    Raises:
        InputError: a loss of the user's own returns another shape; its mean would be divided by n once more.
    """
    found = loss(logits, labels)
    if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"loss {loss.name!r}: it returned {shape} for {len(logits)} sequences; expected [{len(logits)}], one each"
        )
    return found


def loss_by_instance(losses: Sequence[str | Loss]) -> MarginLoss:
    """One loss that treats entry b of the last axis with ``losses[b]``, for ensembles.

    Args:
        losses: names of margin losses, or these themselves, one for each instance.

    Raises:
        InputError: one is no margin loss.

    Example:
        >>> loss = loss_by_instance(["exponential", "correlation"])
        >>> loss.value(torch.tensor([[0.0, 2.0]])).tolist()
        [[1.0, -2.0]]
    """
    found = [find_loss(loss, "ensemble: loss", MarginLoss) for loss in losses]
    parts = {id(part): part for part in found}
    kinds = {torch.device("cpu"): {key: torch.tensor([id(part) == key for part in found]) for key in parts}}

    def pick(attribute: str) -> Callable[[Tensor], Tensor]:
        def f(m: Tensor) -> Tensor:
            if m.device not in kinds:  # once: a copy to a device waits for it
                kinds[m.device] = {key: kind.to(m.device) for key, kind in kinds[torch.device("cpu")].items()}
            whole = torch.empty_like(m)
            for key, part in parts.items():
                whole = torch.where(kinds[m.device][key], getattr(part, attribute)(m), whole)
            return whole

        return f

    if len(parts) == 1:
        return found[0]
    return MarginLoss("by instance", pick("value"), pick("log_slope"), None)
