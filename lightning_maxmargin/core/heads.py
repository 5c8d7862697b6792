"""Nonlinear heads psi on pooled tokens."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_maxmargin.errors import InputError

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def make_head(head: str | nn.Module, value_dim: int, hidden: int, activation: str, num_classes: int) -> nn.Module:
    """psi, of a head that is not linear.

    Args:
        head: ``mlp`` or a module.
        value_dim: dv.
        hidden: width of ``mlp``.
        activation: relu, gelu or tanh.
        num_classes: one output for two classes, K for more.

    Raises:
        InputError: a choice that does not exist, or a width that is not positive.

    Example:
        >>> import torch
        >>> make_head("mlp", 3, 8, "tanh", 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    if isinstance(head, nn.Module):
        return head
    if head != "mlp":
        raise InputError(f"model.head: {head!r} is none of linear, mlp, or a module")
    if hidden < 1:
        raise InputError(f"model.hidden: {hidden}; expected a positive number")
    if activation not in ACTIVATIONS:
        raise InputError(f"model.activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    outputs = 1 if num_classes == 2 else num_classes
    return nn.Sequential(nn.Linear(value_dim, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, outputs))


def apply_psi(psi: nn.Module, tokens: Tensor, num_classes: int) -> Tensor:
    """psi of tokens (m, dv): (m,) for two classes, (m, K) for more.

    Raises:
        InputError: psi gives another shape.
    """
    y = psi(tokens)
    if num_classes == 2 and y.shape == (len(tokens), 1):
        y = y[:, 0]
    wanted = (len(tokens),) if num_classes == 2 else (len(tokens), num_classes)
    if y.shape != wanted:
        raise InputError(f"model.head: it gives {tuple(y.shape)} for {len(tokens)} tokens; expected {wanted}")
    return y
