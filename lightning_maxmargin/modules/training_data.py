"""What a module of sequences trains on."""

from __future__ import annotations

from typing import cast

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.errors import InputError


def training_sequences(data: object, model: object) -> Sequences:
    """The training split of a data module of sequences.

    Args:
        data: the data module.
        model: what is trained on it, for the message.

    Raises:
        InputError: it is one of something else, as of texts.

    Example:
        >>> from lightning_maxmargin import JointSelection
        >>> from lightning_maxmargin.data import PaperData
        >>> len(training_sequences(PaperData(), JointSelection(dim=2)))
        3
    """
    source = getattr(data, "sequences", None)
    if source is None:
        name, wants = type(data).__name__, type(model).__name__
        raise InputError(f"data: {name} has no sequences; {wants} takes keys, as of TensorData, no texts")
    return cast(Sequences, source("train"))
