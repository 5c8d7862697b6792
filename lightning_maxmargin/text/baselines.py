"""What a selector is held against: mean pooling on the same hidden states, and ordinary fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.saving import build_model
from lightning_maxmargin.text.tuning import train_top_layers

if TYPE_CHECKING:
    from lightning_maxmargin.text.data import TextData

#: Inverse strengths of l2 that are tried; the best on the validation documents is kept, the smallest of equals.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
EPOCHS, RATE, BATCH, TOP_LAYERS = 2, 5e-5, 32, 2
#: Batches of documents among which those of like length are put together.
POOL = 50


def require(*packages: str) -> None:
    """Raises InputError where one of these modules is not installed."""
    from importlib.util import find_spec

    missing = next((name for name in packages if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(
            f"evaluate: the baselines need the text extra (no module {missing}); "
            'pip install "lightning-maxmargin[text]", or use --baselines none'
        )


def regression(train: tuple[Any, Sequence[int]], val: tuple[Any, Sequence[int]], intercept: bool = True) -> Any:
    """scikit-learn's logistic regression with the C of :data:`STRENGTHS` that is best on the validation documents.

    Args:
        train: features (n, d), dense or sparse, and labels.
        val: likewise.
        intercept: whether the logits have a bias.
    """
    from sklearn.linear_model import LogisticRegression

    fits = [LogisticRegression(C=C, max_iter=1000, fit_intercept=intercept).fit(*train) for C in STRENGTHS]
    return max(fits, key=lambda fit: fit.score(*val))


def mean_pool(data: TextData, token_scale: float) -> MaxMarginForSequenceClassification:
    """Logistic regression on the mean of a document's pieces, as the selector with p = 0.

    Args:
        data: set up for fit, with the hidden states of training and validation documents.
        token_scale: length of a token, as the selector has it.
    """
    require("sklearn")
    spec = replace(data.spec, key_layer=data.spec.value_layer, units="pieces")
    model = build_model(spec, data.encoder, data.names, {"parametrization": "p", "token_scale": token_scale}).eval()
    # Without a bias, which attention pooling has not; that of a mean over tokens is in their common direction.
    train, val = (_features(model, data.labelled(name)) for name in ("train", "val"))
    fit = regression(train, val, intercept=False)
    selector: Any = model.selectors[0]
    weight = torch.from_numpy(fit.coef_).float()
    with torch.no_grad():
        selector.p.zero_()
        (selector.v if len(data.names) == 2 else selector.V).copy_(weight[0] if len(data.names) == 2 else weight)
    return model.requires_grad_(False)


def _features(model: MaxMarginForSequenceClassification, split: Split) -> tuple[Any, list[int]]:
    """The mean of each document's tokens as the model scales them, (n, d), 0 without a piece; and labels."""
    assert split.hidden is not None
    assert split.labels is not None
    rows = []
    for i in range(len(split)):
        (states,) = split.hidden.rows(split.value_layer, [i])
        tokens = states[~split.special[split.pieces.of(i)]][None]
        every = torch.ones(tokens.shape[:2], dtype=torch.bool)
        values = model.sequences(tokens, tokens, every, states[:1]).values[0]
        rows.append(values.sum(0) / max(1, len(values)))
    return torch.stack(rows).detach().numpy(), split.labels.tolist()


def fine_tuned(
    start: MaxMarginForSequenceClassification, split: Split, seed: int = 0
) -> MaxMarginForSequenceClassification:
    """Ordinary fine-tuning: mean pooling and the top layers of its encoder, two epochs of AdamW at 5e-5.

    Args:
        start: the mean pooling to begin at, which stays as it is.
        split: training documents, labelled.
        seed: of their order, and of the dropout.
    """
    model = deepcopy(start).requires_grad_(False)
    train_top_layers(model.encoder, TOP_LAYERS)
    selector: Any = model.selectors[0]
    for parameter in selector.head_parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    split = replace(split, hidden=None)
    assert split.labels is not None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        for texts in _batches(split, generator):
            batch = split[torch.tensor(texts)]
            given = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            loss = cross_entropy(model(**given).logits, split.labels[texts].to(model.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def _batches(split: Split, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of like length in random order: long reviews among short ones would be half padding."""
    length = torch.from_numpy(np.diff(split.pieces.starts))
    parts: list[list[int]] = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(split), generator=generator)
        pools = [pool[length[pool].argsort(stable=True)] for pool in order.split(POOL * BATCH)]
        epoch = [batch.tolist() for pool in pools for batch in pool.split(BATCH)]
        parts += [epoch[i] for i in torch.randperm(len(epoch), generator=generator).tolist()]
    yield from progress(parts, desc="fine-tuning", unit="steps")
