"""What an optimizer gets: parameters in groups that are named, each with its rate."""

from __future__ import annotations

from typing import Any

from lightning_maxmargin.core import TokenSelector


def selector_groups(
    selector: TokenSelector, train: str, attention_lr: float | None, head_lr: float | None
) -> list[dict[str, Any]]:
    """The groups ``attention`` and ``head`` of a selector, or the one that is trained; what is not is frozen.

    Args:
        selector: whose.
        train: ``both``, ``attention`` or ``head``.
        attention_lr: rate of the attention; the optimizer's own where None.
        head_lr: of the head, likewise.

    Example:
        >>> [group["name"] for group in selector_groups(TokenSelector(2), "both", 0.1, None)]
        ['attention', 'head']
    """
    parts = {
        "attention": (selector.attention_parameters, attention_lr),
        "head": (selector.head_parameters, head_lr),
    }
    groups = []
    for name, (parameters, lr) in parts.items():
        for parameter in parameters.values():
            parameter.requires_grad_(train in ("both", name))
        if train in ("both", name):
            rate = {} if lr is None else {"lr": lr}
            groups.append({"params": list(parameters.values()), "name": name, **rate})
    return groups
