"""The two hooks: one on the transformer opens and closes a call of the cache, one on each block does what it says.

Only ``HookRegistry``, ``ModelHook`` and ``StateManager`` of diffusers are used. The state is ours, because the
pipelines of the paper's own models (DiT, PixArt, SD3) neither open a cache context nor reset stateful hooks between
generations.
"""

import inspect
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from delta_dit.adapters import Block, adapter_for, blocks_of, stream_reader
from delta_dit.caches import Caches
from delta_dit.delta import Streams
from delta_dit.hook_chain import OFFLOADING, hook_of, hooks_of, lift_above_offloading

ROOT_HOOK = "delta_cache_root"
BLOCK_HOOK = "delta_cache_block"
_COMPILE_FIRST = (
    "the delta cache cannot be compiled into one graph: instead of compile_repeated_blocks(fullgraph=True), write "
    "`for block in transformer.transformer_blocks: block.forward = torch.compile(block.forward, fullgraph=True)` "
    "before the cache is enabled, or leave fullgraph=True away"
)

Function = TypeVar("Function", bound=Callable[..., Any])


def _untraced(function: Function) -> Function:
    """Keep torch.compile out of what changes from step to step."""
    return cast(Function, torch.compiler.disable(function))


class CallName(StateManager):
    """The name that diffusers' ``cache_context`` gives the calls of this thread."""

    def __init__(self) -> None:
        super().__init__(cast(Any, BaseState))
        self._of_thread = threading.local()

    def set_context(self, context: CacheContext | None) -> None:
        """Take the context that was entered, None when it was left."""
        self._of_thread.name = None if context is None else context.name

    def get(self) -> str | None:
        """Return the name, None outside of a context."""
        return getattr(self._of_thread, "name", None)


class DeltaRootHook(ModelHook):
    """Opens and closes a call of the cache around the transformer's forward."""

    _is_stateful = True  # diffusers resets such hooks when a pipeline of a CacheMixin model is done
    fn_ref: Any

    def __init__(self, caches: Caches, transformer: nn.Module) -> None:
        super().__init__()
        self.caches = caches
        self.adapter = adapter_for(transformer)
        self.signature = inspect.signature(type(transformer).forward)
        self.call_name = CallName()  # an attribute of a stateful hook: diffusers sets its context

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer with the cache."""
        try:
            cached = self._begin(module, args, kwargs)
            output = self.fn_ref.original_forward(*args, **kwargs)
            if cached and not self._end():
                output = self.fn_ref.original_forward(*args, **kwargs)
            self._leave()
        except BaseException as error:
            self._abort()
            if isinstance(error, TorchDynamoException) and DeltaBlockHook.__name__ in str(error):
                raise RuntimeError(_COMPILE_FIRST) from error
            raise
        return output

    @_untraced
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
        inputs = self.signature.bind(module, *args, **kwargs).arguments
        del inputs["self"]
        if torch.is_grad_enabled() or self.adapter.bypass(inputs):  # Δs must not keep a graph alive
            self.caches.cache.pass_by()
            return False
        timestep = inputs.pop(self.adapter.timestep, None)
        self.caches.cache.begin(timestep, inputs, self.call_name.get())
        return True

    @_untraced
    def _end(self) -> bool:
        return self.caches.cache.end()

    @_untraced
    def _leave(self) -> None:
        self.caches.cache.leave()

    @_untraced
    def _abort(self) -> None:
        self.caches.cache.abort()

    @_untraced
    def reset_state(self, module: nn.Module) -> nn.Module:
        """End the run."""
        self.caches.cache.reset()
        return module


class DeltaBlockHook(ModelHook):
    """Runs a block, or stands in for it."""

    fn_ref: Any

    def __init__(self, caches: Caches, index: int, block: Block) -> None:
        super().__init__()
        self.caches = caches
        self.index = index
        self.returns_tensor = isinstance(block.stack.returns, str)
        self.read = stream_reader(block)
        self.ended: tuple[bool, ...] = tuple(False for _ in block.stack.streams)  # streams that end in this block

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Add Δ, pass on, or run the block and let its Δ be summed."""
        substitute = self._before(module, args, kwargs)
        if substitute is not None:
            return substitute
        output = self.fn_ref.original_forward(*args, **kwargs)
        self._after(output)
        return output

    @_untraced
    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any | None:
        cache, inputs = self.caches.cache, self.read(args, kwargs)
        call = cache.call or cache.surprised(self.index)
        if not call.skips_block(self.index):
            call.enter(self.index, inputs)
            return None
        with cache.timed():
            self._offload(module, call.skips_block)
            return self._pack(call.in_place_of(self.index, inputs))

    @_untraced
    def _after(self, output: Any) -> None:
        outputs = (output,) if self.returns_tensor else tuple(output)
        self.ended = tuple(stream is None for stream in outputs)
        call = self.caches.cache.call
        if call is not None:
            call.leave(self.index, outputs)

    def _offload(self, module: nn.Module, skips: Callable[[int], bool]) -> None:
        """Let a skipped block load and unload its group, where others of the group run."""
        offloading = hook_of(module, OFFLOADING)
        if offloading is not None and not all(
            skips(self.caches.place.get(id(other), -1)) for other in offloading.group.modules
        ):
            offloading.pre_forward(module)
            offloading.post_forward(module, None)

    def _pack(self, streams: Streams) -> Any:
        if self.returns_tensor:
            return streams[0]
        return tuple(None if ended else stream for ended, stream in zip(self.ended, streams, strict=True))


def survey(transformer: nn.Module) -> str | None:
    """Put our hooks where they have to be among those that came after them; say which other cache came, if one did."""
    for block in blocks_of(transformer):
        lift_above_offloading(block.module, BLOCK_HOOK)
    other = other_cache(transformer)
    return None if other is None else f"another cache, {other}, was put on after it; disable one of them"


def other_cache(transformer: nn.Module) -> str | None:
    """Return the name of a cache that is not ours: a stateful hook of diffusers', or cache-dit."""
    for name, hook in hooks_of(*transformer.modules()):
        if hook._is_stateful and name != ROOT_HOOK:
            return type(hook).__name__
    return "cache-dit" if getattr(transformer, "_is_cached", False) else None
