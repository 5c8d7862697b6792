"""The weights of an encoder in parts over processes (FSDP2), and those beside it equal on all of them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch import distributed as dist

from lightning_maxmargin.errors import InputError


def refuse_sharding(module: pl.LightningModule) -> None:
    """Refuses a strategy that shards weights for a module that has none to shard.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"trainer.strategy: ModelParallelStrategy shards the encoder of a TextSelection; {type(module).__name__} has "
        "p or W and v alone, which every process holds: use ddp"
    )


def shard_encoder(encoder: nn.Module, mesh: Any) -> None:
    """Shards every layer of an encoder, and its embeddings, over the processes of a mesh, in place.

    Args:
        encoder: with its layers in one ``ModuleList``.
        mesh: Lightning's, with the dimensions ``data_parallel`` and ``tensor_parallel``.

    Raises:
        InputError: the mesh has processes in the other dimension, which would all train on the same documents.
    """
    from torch.distributed.fsdp import fully_shard

    if mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "trainer.strategy: ModelParallelStrategy shards over data_parallel_size alone here; give it the number of "
            "processes, and tensor_parallel_size: 1"
        )
    # Not the encoder itself: FSDP2 gives a module a class of its own, by whose name transformers then finds no hidden
    # states to record.
    for part in _parts_of(encoder):
        fully_shard(part, mesh=mesh["data_parallel"])


def _parts_of(encoder: nn.Module) -> list[nn.Module]:
    """The layers of an encoder and what stands beside them."""
    stack = max((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    parts: list[nn.Module] = []
    for child in encoder.children():
        if child is stack:
            parts += stack
        elif any(module is stack for module in child.modules()):
            parts += _parts_of(child)
        elif any(True for _ in child.parameters()):
            parts.append(child)
    return parts


def is_sharded(module: nn.Module) -> bool:
    """Whether some of its weights are in parts over processes, also while an evaluation has put them together."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in module.modules())


def evaluate_without_inference_mode(trainer: pl.Trainer) -> None:
    """Lets a trainer evaluate under ``torch.no_grad`` instead, which gives the same numbers.

    FSDP2 counts the versions of the weights that it gathers, and tensors of inference mode have none: with one process
    every evaluation raised. Lightning takes ``no_grad`` by itself under Gloo, but not under NCCL.
    """
    for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        loop.inference_mode = False


@torch.no_grad()
def share_start(module: nn.Module, device: str) -> None:
    """Gives all processes the first one's weights, in place, as DDP does: draws differ where one has encoded before.

    Args:
        module: with its weights where they were loaded.
        device: the kind of device over which the processes talk; NCCL takes nothing from the CPU. One weight at a time
            is there, since not every device holds a whole encoder.
    """
    for x in (*module.parameters(), *module.buffers()):
        sent = x.data.to(device).contiguous()
        dist.broadcast(sent, 0)
        x.data.copy_(sent)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """The mean over all processes of the gradients of weights that are whole on them, in place."""
    from torch.distributed.tensor import DTensor

    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded module with every weight whole, on the CPU; all processes must call it."""
    from torch.distributed.tensor import DTensor

    state = module.state_dict()
    return {k: (x.full_tensor() if isinstance(x, DTensor) else x).cpu() for k, x in state.items()}
