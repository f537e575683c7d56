"""A module's chain of diffusers hooks: put a hook at its place in it, and take one out from between others.

``HookRegistry`` adds at the outer end only, and repairs the chain above a hook that it removes as if the next one had
no ``new_forward``. Where a hook of ours stands decides whether it works: *above* group offloading, so that a block that
is skipped is not loaded; *below* context parallelism, which splits a block's input among the ranks; and below hooks
that take themselves off after the first call, because diffusers 0.42 would let go of what is above them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

OFFLOADING = "group_offloading"
_OUTSIDE = ("cp_input", "cp_output", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""How the names of those begin that have to stay above ours."""


def hooks_of(*modules: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and hooks of these modules."""
    for module in modules:
        registry: Any = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            yield from registry.hooks.items()


def hook_of(module: nn.Module, name: str) -> Any | None:
    """Return a module's hook of that name, if it has one."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def add_hook(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Put a hook above all others but those that have to stay outside."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    with _below_accelerate(module):
        _insert(registry, _first_outside(registry._hook_order), hook, name)


def remove_hook(module: Any, name: str) -> None:
    """Remove one hook, also from under others; without it, nothing happens."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None:
        return
    if name in registry.hooks:
        _take_out(registry, name)
    if not registry.hooks:
        del module._diffusers_hook
        if vars(module).get("forward") == type(module).forward.__get__(module):
            del module.forward  # diffusers leaves the class's own forward behind as an attribute of the instance


def lift_above_offloading(module: nn.Module, name: str) -> None:
    """Move a hook above the group offloading that came after it."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    if registry is None or name not in registry.hooks or OFFLOADING not in registry.hooks:
        return
    others = [other for other in registry._hook_order if other != name]
    place = min(others.index(OFFLOADING) + 1, _first_outside(others))
    if place > registry._hook_order.index(name):
        hook = registry.hooks[name]
        _take_out(registry, name)
        with _below_accelerate(module):
            _insert(registry, place, hook, name)


def _first_outside(order: Sequence[str]) -> int:
    return next((index for index, name in enumerate(order) if name.startswith(_OUTSIDE)), len(order))


def _insert(registry: Any, index: int, hook: ModelHook, name: str) -> None:
    order, references, module = registry._hook_order, registry._fn_refs, registry._module_ref
    names_above, above = order[index:], references[index:]
    if not above:
        registry.register_hook(hook, name)
        return
    outermost = module.forward
    del order[index:], references[index:]
    module.forward = _inner(above[0])
    try:
        registry.register_hook(hook, name)  # at the end of what is left
        _set_inner(above[0], module.forward)
    finally:
        module.forward = outermost
        order.extend(names_above)
        references.extend(above)


def _take_out(registry: Any, name: str) -> None:
    above = registry._hook_order.index(name) + 1
    outer = registry._fn_refs[above] if above < len(registry._fn_refs) else None
    own_forward = None if outer is None else outer.forward
    with _below_accelerate(registry._module_ref):
        registry.remove_hook(name, recurse=False)
    if outer is not None and outer.original_forward is not None:
        # diffusers has put the inner forward in place of the outer hook's own
        outer.original_forward, outer.forward = outer.forward, own_forward


def _inner(reference: Any) -> Any:
    """Return the forward below a hook."""
    return reference.forward if reference.original_forward is None else reference.original_forward


def _set_inner(reference: Any, forward: Any) -> None:
    if reference.original_forward is None:
        reference.forward = forward
    else:
        reference.original_forward = forward


@contextmanager
def _below_accelerate(module: Any) -> Iterator[None]:
    """Work on the forward that accelerate's offloading wraps.

    A pipeline takes that offloading off and puts it on again after every generation, and would drop what lies above.
    """
    if not hasattr(module, "_old_forward"):
        yield
        return
    wrapper, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, wrapper
