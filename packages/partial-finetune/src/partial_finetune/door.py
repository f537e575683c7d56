"""The package itself: its public names are imported when asked for, so that ``--help`` need not wait for torch."""

from importlib import import_module
from types import ModuleType
from typing import Any


class Door(ModuleType):
    """A package whose ``_HOME`` names the module of each public name.

    Some are called as their module is, such as ``freeze``: Python puts a module that is imported into its package under
    its name, where it would hide the function.
    """

    def __getattr__(self, name: str) -> Any:
        home = self.__dict__["_HOME"]
        if name not in home:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{self.__name__}.{home[name]}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["_HOME"]):
            super().__setattr__(name, value)
