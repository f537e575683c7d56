"""Differentiable architecture search on fewer samples (Bi-level Data Pruning, arXiv 2312.14200)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdp_nas.dynamics import Dynamics
    from bdp_nas.ledger import CostLedger
    from bdp_nas.pruner import BilevelPruner
    from bdp_nas.schedule import KeepSchedule
    from bdp_nas.searchers import get_searcher
    from bdp_nas.spaces import get_space
    from bdp_nas.table import Table

__version__ = "0.1.0"
__all__ = ["BilevelPruner", "CostLedger", "Dynamics", "KeepSchedule", "Table", "get_searcher", "get_space"]
_HOME = {"BilevelPruner": "pruner", "CostLedger": "ledger", "Dynamics": "dynamics", "KeepSchedule": "schedule"}
_HOME |= {"Table": "table", "get_searcher": "searchers", "get_space": "spaces"}


def __getattr__(name: str) -> Any:  # so that ``bdp-nas --help`` need not wait for torch
    if name not in _HOME:
        raise AttributeError(f"module 'bdp_nas' has no attribute {name!r}")
    return getattr(import_module(f"bdp_nas.{_HOME[name]}"), name)
