from .blueprint import Blueprint
from .dynamics import Dynamics
from .ledger import CostLedger
from .pruner import BilevelPruner
from .schedule import KeepSchedule
from .searchers import get_searcher
from .spaces import get_space
from .table import Table

__version__: str
__all__ = [
    "BilevelPruner",
    "Blueprint",
    "CostLedger",
    "Dynamics",
    "KeepSchedule",
    "Table",
    "get_searcher",
    "get_space",
]
