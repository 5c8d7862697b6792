"""Models made, begun from earlier ones, and kept as Hugging Face keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.model import MaxMarginConfig, MaxMarginForSequenceClassification, Units
from lightning_maxmargin.text.pretrained import PretrainedEncoder, quiet_loading, special_ids

if TYPE_CHECKING:
    from lightning_maxmargin.text.data import TextSpec


def build_model(
    spec: TextSpec, encoder: PretrainedEncoder, names: list[str], shape: dict[str, Any]
) -> MaxMarginForSequenceClassification:
    """A model of these labels on this encoder, with the start of its selector.

    Args:
        spec: of the data.
        encoder: whose weights it gets.
        names: of the labels.
        shape: parametrization, query, rank, per_class and token_scale.
    """
    network: Any = encoder.model(max(spec.key_layer, spec.value_layer))
    config = MaxMarginConfig(
        encoder=network.config.to_dict(),
        key_layer=spec.key_layer, value_layer=spec.value_layer, units=cast(Units, spec.units),
        max_pieces=spec.max_length,
        special_ids=special_ids(encoder.tokenizer), id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)}, **shape,
    )  # fmt: skip
    return MaxMarginForSequenceClassification(config, encoder=network)


def load_model(folder: str | Path) -> MaxMarginForSequenceClassification:
    """The model that ``save_pretrained`` wrote into this directory.

    Raises:
        InputError: there is none.
    """
    try:
        with quiet_loading():
            return MaxMarginForSequenceClassification.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} holds no saved selector ({reason})") from error


@torch.no_grad()
def load_start(model: MaxMarginForSequenceClassification, folder: Path) -> None:
    """Begins where an earlier selector is: its attention, and its head where the labels are the same.

    Raises:
        InputError: it is of another encoder, layer or form.
    """
    try:
        earlier = load_model(folder)
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from error
    for name in ("key_layer", "value_layer", "parametrization", "query", "rank", "per_class", "token_scale", "units"):
        mine, theirs = getattr(model.config, name), getattr(earlier.config, name)
        if mine != theirs:
            raise InputError(f"model.init_from: {folder} has {name} {theirs}, this model {mine}; make them equal")
    same_labels = model.names == earlier.names
    if model.config.per_class and not same_labels:
        raise InputError(f"model.init_from: {folder} has selectors of other labels, {earlier.names}")
    for mine, theirs in zip(model.parts, earlier.parts, strict=True):
        kept = {**theirs.attention_parameters, **(theirs.head_parameters if same_labels else {})}
        state = mine.state_dict()
        for name, parameter in kept.items():
            if state[name].shape != parameter.shape:
                raise InputError(f"model.init_from: {folder} has {name} of {list(parameter.shape)}; another encoder?")
            state[name].copy_(parameter)
