"""What a checkpoint holds of a text selector: what is trained, and what its model is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.data import TextSpec
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.pretrained import pretrained_encoder
from lightning_maxmargin.text.saving import build_model


def without_frozen(state: dict[str, Any], encoder: nn.Module) -> dict[str, Any]:
    """The state of a module without what is frozen in ``model.encoder``: that is read where it came from."""
    frozen = {f"model.encoder.{k}" for k, p in encoder.named_parameters() if not p.requires_grad}
    frozen |= {f"model.encoder.{k}" for k, _ in encoder.named_buffers()}
    return {k: v for k, v in state.items() if k not in frozen}


def made_of(data: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """Layers and units of the data, the encoder and the selector's shape."""
    return {"spec": asdict(data.spec), "encoder": data.encoder.identity, "shape": shape}


def refuse_another(kept: dict[str, Any], data: Any, shape: dict[str, Any]) -> None:
    """Refuses a checkpoint that is of other data or of another selector.

    Args:
        kept: what it says that its model is made of.
        data: of this run; without ``names`` its labels are those of the checkpoint.
        shape: of this run's selector.

    Raises:
        InputError: it is so.
    """
    now = made_of(data, shape)
    if data.names:
        now["names"] = data.names
    other = [name for name, value in now.items() if value != kept[name]]
    if other:
        raise InputError(f"ckpt_path: it is of another {' and '.join(other)}: {kept[other[0]]}, not {now[other[0]]}")


def model_of(kept: dict[str, Any]) -> MaxMarginForSequenceClassification:
    """The model that a checkpoint describes, on the encoder of that name.

    Raises:
        InputError: that encoder has other weights now.
    """
    spec = TextSpec(**kept["spec"])
    encoder = pretrained_encoder(spec.encoder)
    if encoder.identity != kept["encoder"]:
        raise InputError(f"checkpoint: it was trained on another {spec.encoder}, whose weights are no longer those")
    return build_model(spec, encoder, kept["names"], kept["shape"])
