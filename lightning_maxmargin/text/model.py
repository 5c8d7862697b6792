"""The model that Hugging Face knows: a pretrained encoder, and attention that selects among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.core.masks import as_mask
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.pretrained import without_final_norm

Units = Literal["pieces", "words", "sentences"]
#: The head's start: small, so that attention learns from the first step and from no side.
HEAD_STD = 0.01


class MaxMarginConfig(PretrainedConfig):
    """What :class:`MaxMarginForSequenceClassification` is made of.

    Args:
        encoder: the encoder's own configuration, as ``to_dict()`` gives it, up to the deeper layer.
        key_layer: whose hidden states attention scores; 0 is the embeddings.
        value_layer: whose hidden states the head reads.
        token_scale: length of a token after its LayerNorm. The length is the effective learning rate of p: 3 to 12 gave
            equal models, LayerNorm's own 19.6 (d = 384) lost .03 to .08 of AUPRC at the same accuracy.
        parametrization: ``p``, ``W`` or ``KQ`` (W = K Q' of this ``rank``).
        query: ``shared`` (one for all texts) or ``cls`` (the text's own first token; with W or KQ).
        rank: of K and Q.
        per_class: one selector a class, instead of one for all.
        units: what is selected: word pieces, words or sentences; the last two are means of their pieces.
        special_ids: tokens of the vocabulary that are never selected.
        max_pieces: word pieces that a text is cut at.
    """

    model_type = "maxmargin"
    keys_to_ignore_at_inference = ["selection", "evidence", "scores"]  # noqa: RUF012  (transformers adds to the list)

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        key_layer: int = 4,
        value_layer: int = 4,
        token_scale: float = 8.0,
        parametrization: Literal["p", "W", "KQ"] = "p",
        query: Literal["shared", "cls"] = "shared",
        rank: int | None = None,
        per_class: bool = False,
        units: Units = "pieces",
        special_ids: Sequence[int] = (),
        max_pieces: int = 512,
        **others: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.key_layer, self.value_layer, self.token_scale = key_layer, value_layer, token_scale
        self.parametrization, self.query, self.rank, self.per_class = parametrization, query, rank, per_class
        self.units, self.special_ids, self.max_pieces = units, list(special_ids), max_pieces
        super().__init__(**others)


@dataclass
class SelectionOutput(ModelOutput):
    """What the model says of b texts with t units and K classes.

    Attributes:
        loss: a number, where labels are given.
        logits: (b, K).
        selection: (b, t), or (b, K, t) of one selector a class; 0 off the units.
        evidence: (b, t, K), the logits of each unit alone: logits = sum of selection * evidence.
        scores: like selection, before softmax.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None  # (b, K)
    selection: Tensor | None = None  # (b, t), or (b, K, t) of one selector a class; 0 off the units
    evidence: Tensor | None = None  # (b, t, K), the logits of each unit alone: logits = sum of selection * evidence
    scores: Tensor | None = None  # like selection, before softmax


class MaxMarginForSequenceClassification(PreTrainedModel):
    r"""``logits = V X' softmax(X p)`` over the hidden states X of a pretrained encoder.

    Each token is centred and scaled to length ``token_scale``; special tokens are never selected, whatever mask comes.
    Two classes have one head v: logits (-v'x/2, v'x/2).
    """

    config_class = MaxMarginConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # a loss is the mean of its batch: the Trainer divides it when it accumulates
    encoder: Any
    _no_split_modules: list[str] = []  # noqa: RUF012  (transformers reads it of the class)

    def __init__(self, config: MaxMarginConfig, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        self.encoder = _encoder_of(config) if encoder is None else encoder
        own: Any = self.encoder.config
        classes, dim = len(self.names), int(own.hidden_size)
        if classes < 2:
            raise InputError(f"model: {classes} label; expected two or more")
        if config.parametrization == "p" and config.query == "cls":
            raise InputError("model.query: cls needs parametrization W or KQ; p is the same for all texts")

        def selector(num_classes: int) -> TokenSelector:
            return TokenSelector(
                dim, parametrization=config.parametrization, query="separate" if config.query == "cls" else "shared",
                rank=config.rank, num_classes=num_classes, head_init="normal", init_std=HEAD_STD,
                attention_init="normal" if config.parametrization == "KQ" else "zeros",
            )  # fmt: skip

        per_class = [selector(2) for _ in range(classes)] if config.per_class else [selector(classes)]
        self.selectors = nn.ModuleList(per_class)
        self._special_ids: dict[torch.device, Tensor] = {}
        self.post_init()

    @property
    def names(self) -> list[str]:
        """Of the labels, in the order of the logits."""
        by_number: Any = self.config.id2label
        return [by_number[k] for k in range(len(by_number))]

    @property
    def parts(self) -> list[TokenSelector]:
        """The selectors: one, or one a class."""
        return list(self.selectors)  # type: ignore[arg-type]

    def _init_weights(self, module: nn.Module) -> None:
        """The selectors make their own start."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
        labels: Tensor | None = None,
        unit_mask: Tensor | None = None,
        **_: Any,
    ) -> SelectionOutput:
        """Logits, selection and evidence of texts.

        Args:
            input_ids: (b, t) int64.
            attention_mask: (b, t), 1 on pieces.
            token_type_ids: not read: a text is one segment.
            unit_ids: (b, t), the unit of each piece, -1 for none; the pieces themselves where None.
            labels: (b,) int64, for the loss.
            unit_mask: (b, u), whose shape says how many units there are; counted where None.

        Raises:
            InputError: units are words or sentences and no unit_ids are given (only ``TextSelector`` makes them).
        """
        if unit_ids is None and self.config.units != "pieces":
            raise InputError(
                f"model: units are {self.config.units}; give unit_ids, or use TextSelector.from_pretrained"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        keys, values = states[self.config.key_layer], states[self.config.value_layer]
        # A GPU is asked only about what is no mask of a tokenizer.
        there = (
            as_mask(attention_mask, "attention_mask") if attention_mask.is_floating_point() else attention_mask.bool()
        )
        mask = there & ~self._special(input_ids)
        output = self.select(*pooled_units(keys, values, mask, unit_ids, unit_mask), keys[:, 0])
        if labels is not None:
            assert output.logits is not None
            output.loss = cross_entropy(output.logits, labels)
        return output

    def select(
        self, keys: Tensor, values: Tensor, mask: Tensor, first: Tensor, dropout: float = 0.0
    ) -> SelectionOutput:
        """Attention and head over hidden states of units.

        Args:
            keys: (b, t, d), as the encoder gives them.
            values: (b, t, d).
            mask: (b, t) bool, True on units; a text without one has logits 0.
            first: (b, d), the hidden state of the text's first piece, which asks where ``query`` is cls.
            dropout: share of the entries of a token that are dropped.
        """
        data = self.sequences(keys, values, mask, first, dropout)
        parts = [self._select(selector, data) for selector in self.parts]
        if not self.config.per_class:
            scores, selection, evidence = parts[0]
            evidence = torch.stack([-evidence, evidence], -1) / 2 if evidence.ndim == 2 else evidence
            logits = torch.einsum("bt,btk->bk", selection, evidence)
        else:
            scores, selection = (torch.stack([part[i] for part in parts], 1) for i in (0, 1))
            evidence = torch.stack([part[2] for part in parts], -1)
            logits = torch.einsum("bkt,btk->bk", selection, evidence)
        return SelectionOutput(logits=logits, selection=selection, evidence=evidence, scores=scores)

    def sequences(self, keys: Tensor, values: Tensor, mask: Tensor, first: Tensor, dropout: float = 0.0) -> Sequences:
        """Scaled tokens as attention and head see them; arguments as of :meth:`select`."""
        same = values is keys
        keys = self._token(keys, dropout)
        values = keys if same else self._token(values, dropout)
        queries = normalize(self._token(first), dim=-1) if self.config.query == "cls" else None
        nothing = torch.empty(0, device=keys.device)
        return Sequences(keys, nothing, values, queries, mask, nothing)

    @staticmethod
    def _select(selector: TokenSelector, data: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and selection (b, t), and evidence (b, t) or (b, t, K)."""
        scores = selector.scores(data)
        return scores, masked_softmax(scores, data.mask), selector.logits(data.values)

    def _token(self, states: Tensor, dropout: float = 0.0) -> Tensor:
        """Centred over its dimensions and scaled to the length: LayerNorm without weights, of another length."""
        token = scaled_tokens(states.to(self.parts[0].dtype), self.config.token_scale)
        return nn.functional.dropout(token, dropout) if dropout else token

    def _special(self, input_ids: Tensor) -> Tensor:
        # Kept on each device, because a copy to one waits for it; no buffer, which loading would leave without numbers.
        kept = self._special_ids.get(input_ids.device)
        if kept is None:
            kept = torch.tensor(self.config.special_ids, dtype=input_ids.dtype, device=input_ids.device)
            self._special_ids[input_ids.device] = kept
        return torch.isin(input_ids, kept)


def scaled_tokens(states: Tensor, length: float) -> Tensor:
    """Hidden states (..., d) centred over d and scaled to the length: LayerNorm without weights, of another length.

    Example:
        >>> round(scaled_tokens(torch.tensor([1.0, 3.0, 2.0]), 8.0).norm().item(), 5)
        8.0
    """
    return length * normalize(states - states.mean(-1, keepdim=True), dim=-1)


def _encoder_of(config: MaxMarginConfig) -> nn.Module:
    own = dict(config.encoder)
    return without_final_norm(AutoModel.from_config(AutoConfig.for_model(own.pop("model_type"), **own)))


def pooled_units(
    keys: Tensor, values: Tensor, mask: Tensor, unit_ids: Tensor | None, unit_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (b, u, d) of units, the means of their pieces, and their mask (b, u).

    Args:
        keys: (b, t, d).
        values: (b, t, d).
        mask: (b, t) bool, pieces that may be selected.
        unit_ids: (b, t), -1 for none; pieces are their own units where None.
        unit_mask: (b, u), of which the shape alone is read; where None, u is counted, which waits for a device.
    """
    if unit_ids is None:
        return keys, values, mask
    inside = mask & (unit_ids >= 0)
    if unit_mask is not None:
        count = unit_mask.shape[1]
    else:
        count = int(unit_ids.max()) + 1 if unit_ids.numel() and inside.any() else 1
    units = torch.where(inside, unit_ids, count)
    size = torch.zeros(len(units), count + 1, dtype=torch.float32, device=keys.device).scatter_add_(
        1, units, inside.float()
    )
    pooled = _means(keys, units, size)
    return pooled, pooled if values is keys else _means(values, units, size), size[:, :count] > 0


def _means(states: Tensor, units: Tensor, size: Tensor) -> Tensor:
    total = states.new_zeros(*size.shape, states.shape[2])
    total.scatter_add_(1, units[:, :, None].expand_as(states), states)
    return (total / size[:, :, None].clamp_min(1))[:, :-1]


AutoConfig.register(MaxMarginConfig.model_type, MaxMarginConfig)
AutoModelForSequenceClassification.register(MaxMarginConfig, MaxMarginForSequenceClassification)
MaxMarginConfig.register_for_auto_class()
MaxMarginForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
