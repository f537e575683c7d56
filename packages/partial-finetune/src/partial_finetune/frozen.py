"""Select → freeze → optimizer → wrap, in this order, and back again.

What is frozen stays so bit for bit: its parameters have no gradient and are in no optimizer, its batch norms keep their
statistics through ``model.train()``, and the blocks before the first tuned one (the *frozen prefix*) run in eval mode,
without dropout, drop path and without a graph, since nothing in front of them wants a gradient.

::

    frozen = freeze(model, "attn[6:12]")
    optimizer = torch.optim.AdamW(frozen.parameters(), lr=1e-4)
    frozen.check(optimizer)                     # nothing more, nothing less
    model, optimizer = accelerator.prepare(model, optimizer)
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from partial_finetune.parts import Anatomy, anatomy
from partial_finetune.strategy import Selection, select_parameters

_MARK = "_frozen_by_partial_finetune"  # on the model: freezing twice would lose what to go back to


@dataclass(frozen=True, eq=False)
class Frozen:
    """A model of which only a selection is tuned, until :meth:`undo`; as a context manager it undoes itself."""

    model: nn.Module
    anatomy: Anatomy
    selection: Selection
    prefix: tuple[str, ...]
    """Module paths that run before anything that is tuned, in eval mode and without a graph."""
    pinned: tuple[nn.Module, ...]
    """Modules that ``model.train()`` leaves in eval mode: the prefix and the frozen batch norms."""
    wanted: dict[str, bool]
    """Which parameters wanted a gradient before."""
    training: tuple[tuple[nn.Module, bool], ...]
    """The mode of every module before."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the tuned parameters by name, in the model's order."""
        return {name: self.model.get_parameter(name) for name in self.selection.parameters}

    def parameters(self) -> list[nn.Parameter]:
        """Return the tuned parameters: what the optimizer gets."""
        return list(self.named_parameters().values())

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ``ValueError`` unless the optimizer holds exactly the tuned parameters, each once."""
        held = [id(value) for group in optimizer.param_groups for value in group["params"]]
        names = {id(value): name for name, value in self.model.named_parameters()}
        tuned = {id(value) for value in self.parameters()}
        if foreign := sorted({names.get(each, "one of another model") for each in held if each not in tuned}):
            raise ValueError(f"the optimizer holds {len(foreign)} frozen parameters, such as {foreign[0]!r}")
        if missing := sorted(names[each] for each in tuned - set(held)):
            raise ValueError(f"the optimizer lacks {len(missing)} tuned parameters, such as {missing[0]!r}")
        if len(held) != len(tuned):
            raise ValueError("the optimizer holds a parameter twice")

    def undo(self) -> None:
        """Give back the flags and modes from before; the weights stay as they are now."""
        for module in self.pinned:
            module.__dict__.pop("train", None)
        for module, mode in self.training:
            module.training = mode
        for name, value in self.model.named_parameters():
            value.requires_grad_(self.wanted[name])
            value.grad = None
        self.model.__dict__.pop(_MARK, None)
        _forget_compiled()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def freeze(model: nn.Module, strategy: str | Selection, *, seed: int = 0) -> Frozen:
    """Freeze everything of ``model`` that ``strategy`` does not tune.

    Args:
        model: a timm backbone, not wrapped and not compiled yet: both would go on with the set from before.
        strategy: an expression such as ``"attn | ffn[6:12]"`` (see :mod:`partial_finetune.strategy`), or its selection.
        seed: of random layers, where the expression asks for them.

    Raises:
        ValueError: the model is wrapped, compiled, frozen already or not understood, or the strategy selects nothing.
    """
    _check_bare(model)
    parts = anatomy(model)
    selection = select_parameters(strategy, parts, seed=seed) if isinstance(strategy, str) else strategy
    tuned = set(selection.parameters)
    wanted = {name: value.requires_grad for name, value in model.named_parameters()}
    training = tuple((module, module.training) for module in model.modules())
    prefix = frozen_prefix(parts, tuned)
    pinned = tuple(dict.fromkeys([*_inside(model, prefix), *frozen_batch_norms(model, tuned)]))
    frozen = Frozen(model, parts, selection, prefix, pinned, wanted, training)
    for name, value in model.named_parameters():
        value.requires_grad_(name in tuned)
        value.grad = None  # a gradient from before would count in the norm that is clipped
    for module in pinned:
        _pin(module)
    model.__dict__[_MARK] = True
    _forget_compiled()
    return frozen


def frozen_prefix(parts: Anatomy, tuned: set[str]) -> tuple[str, ...]:
    """Return the modules that run before all that is tuned: the stem's, transitions, and whole blocks, in order."""
    first = next(index for index, unit in enumerate(parts.units) if not tuned.isdisjoint(unit.parameters))
    begun = parts.units[first].block  # the block in which the first tuned weight lies
    paths: list[str] = []
    for unit in parts.units[:first]:
        if unit.block is None or unit.kind == "down":
            paths += unit.modules
        elif unit.block != begun:
            paths.append(parts.blocks[unit.block])
    return tuple(dict.fromkeys(paths))


def frozen_batch_norms(model: nn.Module, tuned: set[str]) -> list[nn.Module]:
    """Return the batch norms of which no parameter is tuned: their running statistics are weights, too."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [norm for path, norm in norms if not any(f"{path}.{name}" in tuned for name, _ in norm.named_parameters())]


def _check_bare(model: nn.Module) -> None:
    kind = type(model).__name__
    if kind == "OptimizedModule" or hasattr(model, "_orig_mod") or "Parallel" in kind:
        raise ValueError(f"model is wrapped in {kind}; allowed: freeze first, then wrap or compile")
    if _MARK in model.__dict__:
        raise ValueError("model is frozen already; allowed: undo() what froze it, then freeze again")


def _pin(module: nn.Module) -> None:
    """Let ``module.train()`` leave it in eval mode; an instance's attribute goes before the class's method."""
    module.training = False
    module.__dict__["train"] = lambda mode=True: module


def _inside(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    return [module for path in paths for module in model.get_submodule(path).modules()]


def _forget_compiled() -> None:
    """Drop compiled graphs: those from before would not give newly tuned weights a gradient (pytorch #139476)."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
