"""Sentences encoded each by itself, against transformers called by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.layer_encoder import LayerEncoder

SENTENCES = ["a fine film", "a dull , long film about a dull plot", "", "fine", "\N{PILE OF POO} zyx"]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_sentence_is_the_mean_of_its_own_pieces(tiny_encoder: Path, layer: int) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = LayerEncoder(str(tiny_encoder), layer)
    found = encoder.encode(SENTENCES)
    network, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    for sentence, vector in zip(SENTENCES, found, strict=True):
        ids = tokenizer(sentence, return_tensors="pt")
        with torch.inference_mode():
            states = network(**ids, output_hidden_states=True).hidden_states[layer][0]
        ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        inside = torch.tensor([int(i) not in ends for i in ids["input_ids"][0]])
        expected = states[inside].mean(0) if inside.any() else torch.zeros(states.shape[1])
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def test_neighbours_and_order_do_not_matter(tiny_encoder: Path) -> None:
    encoder = LayerEncoder(str(tiny_encoder), 1)
    together = encoder.encode(SENTENCES)
    torch.testing.assert_close(together.flip(0), encoder.encode(SENTENCES[::-1]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together[1:2], encoder.encode(SENTENCES[1:2]), atol=1e-6, rtol=1e-6)
    assert encoder.encode([]).shape == (0, together.shape[1])


def test_layers_are_kept_apart(tiny_encoder: Path) -> None:
    assert LayerEncoder(str(tiny_encoder), 0).identity != LayerEncoder(str(tiny_encoder), 1).identity
    depth = LayerEncoder(str(tiny_encoder)).pretrained.depth
    for layer in (-1, depth + 1):
        with pytest.raises(InputError, match=rf"layer {layer}; .* has layers 0 to {depth}"):
            LayerEncoder(str(tiny_encoder), layer)
