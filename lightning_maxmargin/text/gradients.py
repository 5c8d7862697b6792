"""Rationales by gradients through the encoder, at its input embeddings: gradient x input, integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.baselines import require
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.hidden import batches_by_length
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.units import sum_by

Gradients = Literal["gradient x input", "integrated gradients"]
PIECES_AT_ONCE = 2_048
#: Points of the path of integrated gradients, by Gauss and Legendre.
STEPS = 16


def gradient_rationales(
    model: MaxMarginForSequenceClassification, split: Split, texts: Sequence[int], kind: Gradients
) -> dict[int, Tensor]:
    """Scores (u,) of the words of these documents: what their pieces add to the logit of the predicted label.

    The logit is taken less the mean over labels. Integrated gradients (captum) are signed, towards the predicted
    label, and go from embeddings that are zero where the text is, with special tokens and positions as they are. Of
    gradient x input the absolute value of a word's sum is taken, as its sign says nothing: signed, it found marked
    words no better than chance (AUPRC .24 on toxic comments and .21 on reviews; absolute .32 and .27).

    Args:
        model: whose units are pieces.
        split: of the documents, in words or sentences.
        texts: their numbers.
        kind: of the gradients.

    Raises:
        InputError: captum is not installed.

    Source: Sundararajan et al. (2017) for integrated gradients.
    """
    if kind == "integrated gradients":
        require("captum")
    attribute = _integrated if kind == "integrated gradients" else _gradient_input
    most = PIECES_AT_ONCE // (STEPS if kind == "integrated gradients" else 1)
    found: dict[int, Tensor] = {}
    bar = progress(total=len(texts), desc=kind, unit="documents")
    with bar, torch.inference_mode(False), torch.enable_grad():
        for part in batches_by_length(split.pieces, texts, most):
            batch = split[torch.tensor(part)]
            pieces = _of_batch(model, batch["input_ids"], batch["attention_mask"], batch["mask"], attribute)
            for row, i in enumerate(part):
                words = sum_by(batch["unit_ids"][row], pieces[row], len(split.unit_spans(i)))
                found[i] = words if kind == "integrated gradients" else words.abs()
            bar.update(len(part))
    return found


def _of_batch(model: Any, ids: Tensor, attention: Tensor, text: Tensor, attribute: Callable[..., Tensor]) -> Tensor:
    """(b, t) float64 of pieces."""
    ids, attention, text = (x.to(model.device) for x in (ids, attention, text))
    embeddings = model.encoder.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        predicted = _logits(model, embeddings, attention, text).argmax(1)

    def towards(embeddings: Tensor, attention: Tensor, text: Tensor, predicted: Tensor) -> Tensor:
        logits = _logits(model, embeddings, attention, text)
        return logits.gather(1, predicted[:, None])[:, 0] - logits.mean(1)

    nothing = embeddings.masked_fill(text[:, :, None], 0.0)
    return attribute(towards, embeddings, nothing, (attention, text, predicted)).sum(2).detach().cpu().double()


def _logits(model: Any, embeddings: Tensor, attention: Tensor, text: Tensor) -> Tensor:
    config = model.config
    states = model.encoder(inputs_embeds=embeddings, attention_mask=attention, output_hidden_states=True).hidden_states
    keys, values = states[config.key_layer], states[config.value_layer]
    return model.select(keys, values, text, keys[:, 0]).logits


def _gradient_input(towards: Any, embeddings: Tensor, nothing: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    leaf = embeddings.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(towards(leaf, *others).sum(), leaf)
    return gradient * (embeddings - nothing)


def _integrated(towards: Any, embeddings: Tensor, nothing: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    from captum.attr import IntegratedGradients  # type: ignore[import-untyped]

    found = IntegratedGradients(towards).attribute(
        embeddings, baselines=nothing, additional_forward_args=others, n_steps=STEPS, method="gausslegendre"
    )
    return found
