"""What a Trainer sets of the whole process, and leaves to the next run of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Of cuBLAS, where results are to be the same each time.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def torch_as_before() -> Iterator[None]:
    """After the block ``trainer.deterministic`` and ``trainer.benchmark`` of its run no longer hold.

    Example:
        >>> with torch_as_before():
        ...     torch.use_deterministic_algorithms(True)
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = workspace
