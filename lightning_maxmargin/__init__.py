"""Max-margin token selection in attention: exact gradients, certified limit problems, monitored convergence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_maxmargin.noise import silence

if TYPE_CHECKING:
    from lightning_maxmargin.callbacks import AttentionSource, HeadMonitor, MarginMonitor
    from lightning_maxmargin.core import TokenSelector
    from lightning_maxmargin.keys import register_key
    from lightning_maxmargin.modules.ensemble import Ensemble
    from lightning_maxmargin.modules.joint import JointSelection
    from lightning_maxmargin.modules.text import TextSelection
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm, solve_label_svm
    from lightning_maxmargin.text.data import TextData
    from lightning_maxmargin.text.selector import TextSelector

__version__ = "0.1.0"

#: Imported on first use, so that the solvers can be had without Lightning.
_HOMES = {
    "AttentionSource": "callbacks",
    "Ensemble": "modules.ensemble",
    "HeadMonitor": "callbacks",
    "JointSelection": "modules.joint",
    "MarginMonitor": "callbacks",
    "TextData": "text.data",
    "TextSelection": "modules.text",
    "TextSelector": "text.selector",
    "TokenSelector": "core",
    "register_key": "keys",
    "solve_att_svm": "svm",
    "solve_joint_svm": "svm",
    "solve_label_svm": "svm",
}

__all__ = [
    "AttentionSource",
    "Ensemble",
    "HeadMonitor",
    "JointSelection",
    "MarginMonitor",
    "TextData",
    "TextSelection",
    "TextSelector",
    "TokenSelector",
    "register_key",
    "solve_att_svm",
    "solve_joint_svm",
    "solve_label_svm",
]

silence()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
