"""Which weights of a pretrained encoder are trained: its top layers, or adapters in all of them."""

from __future__ import annotations

from torch import nn

from lightning_maxmargin.errors import InputError


def train_top_layers(encoder: nn.Module, count: int) -> None:
    """Lets the gradient into the last ``count`` layers; everything below stays frozen.

    Raises:
        InputError: the encoder has fewer layers, or none that can be found.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    if count > len(layers):
        raise InputError(f"model.finetune_layers: {count}; up to the layer that is read the encoder has {len(layers)}")
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Puts adapters of this rank into all linear maps, in place; they alone are trained.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("model.lora_rank: needs peft; install it with: pip install peft") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), encoder)


def encoder_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    """Those that are trained."""
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def merge_lora(encoder: nn.Module) -> nn.Module:
    """The encoder with its adapters added to the weights, as plain layers; itself where there are none."""
    for name, module in list(encoder.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.base_layer)
    return encoder
