"""The gradient by which a joint model is trained: which one loss, head and optimizer allow, and the exact one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_maxmargin.core import CrossEntropy, Loss, MarginLoss, Sequences, TokenSelector, exact_directions
from lightning_maxmargin.core.exact import Reduce
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.per_group import parts_of

Gradient = Literal["exact", "centred", "naive"]


def refuse_gradient(gradient: Gradient | None, loss: Loss, selector: TokenSelector) -> None:
    """Refuses a loss that the head does not take, and exact directions where there are none.

    Raises:
        InputError: it is so.
    """
    binary = isinstance(loss, MarginLoss)
    known = isinstance(loss, MarginLoss | CrossEntropy)
    if known and binary != (selector.num_classes == 2):
        raise InputError(
            f"model.loss: {loss.name} does not fit num_classes {selector.num_classes}; "
            "two classes take logistic, exponential or correlation, more take cross_entropy"
        )
    if gradient == "exact" and not (binary and selector.linear):
        which = f"the loss {loss.name}" if not binary else "a nonlinear head"
        which = "more classes" if selector.num_classes > 2 else which
        raise InputError(f"model.gradient: exact is for linear binary heads; use centred for {which}")


def choose_gradient(gradient: Gradient | None, loss: Loss, selector: TokenSelector, optimizer: Optimizer) -> Gradient:
    """The one given; else ``exact`` where head, loss and optimizer allow it, ``centred`` where not.

    Raises:
        InputError: an optimizer of exact gradients gets others.
    """
    parts = parts_of(optimizer)
    if gradient is None:
        linear = isinstance(loss, MarginLoss) and selector.linear
        gradient = "exact" if linear and all(hasattr(part, "margin_norm") for part in parts) else "centred"
    for part in parts:
        if getattr(part, "exact_only", False) and (gradient != "exact" or selector.parametrization == "KQ"):
            raise InputError(
                f"model.optimizer: {type(part).__name__} needs the exact gradient of p or W; "
                "use gradient: exact with parametrization p or W, or NormalizedGD"
            )
    return gradient


def set_exact_gradients(
    selector: TokenSelector, batch: Sequences, loss: Loss, reduce: Reduce, by_loss: Collection[str], train: str
) -> Tensor:
    """Sets the gradients of attention and head, or of the one that is trained, to minus their exact directions.

    Args:
        selector: whose.
        batch: of this process.
        loss: of linear binary heads.
        reduce: over the processes.
        by_loss: the parts that get the gradient of log L, see :func:`groups_of_log_loss`.
        train: ``both``, ``attention`` or ``head``.

    Returns: the loss.
    """
    assert isinstance(loss, MarginLoss)
    data = batch.with_queries(selector.queries(batch))
    scores, token_values = selector.scores_and_token_values(data)
    d = exact_directions(data, scores, selector.head, loss, reduce, token_values)
    attention, head = d.attention, d.head
    # The correlation loss has no logarithm: its own gradient then.
    log_loss = d.log_loss.nan_to_num(0.0)
    if "attention" in by_loss:
        attention = attention * (d.log_attention - log_loss).exp()
    if "head" in by_loss:
        head = head * (d.log_head - log_loss).exp()
    if train != "head":
        selector.set_attention_gradient(-attention)
    if train != "attention":
        selector.head.grad = -head
    return d.loss


def groups_of_log_loss(optimizer: Optimizer) -> set[str]:
    """Names of the groups whose optimizer takes the gradient of log L, not only its direction."""
    return {
        str(group.get("name"))
        for part in parts_of(optimizer)
        if getattr(part, "gradient_scale", "log_loss") == "log_loss"
        for group in part.param_groups
    }
