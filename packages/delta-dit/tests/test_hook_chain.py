"""The cache among other hooks of diffusers: whatever the order, it works, and skipped blocks are not loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading, group_offloading
from tiny_diffusers import BLOCKS, FAST, STEPS, Pipe, sample_flow, sd3
from torch import nn

from delta_dit import DeltaCacheConfig, DeltaPlan, delta_cache_stats, disable_delta_cache, enable_delta_cache
from delta_dit.delta_plan import Reuse
from delta_dit.hook_chain import add_hook, lift_above_offloading, remove_hook

REAR = DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, Reuse(1, 4)] * (STEPS // 2)))
MIDDLE = DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, Reuse(1, 3)] * (STEPS // 2)))


def flow():
    return Pipe(sd3(), FlowMatchEulerDiscreteScheduler())  # DiT cannot be offloaded: it reads block 0 from outside


# The chain


class Says(ModelHook):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def new_forward(self, module, log):
        return self.fn_ref.original_forward([*log, self.name])


class SaysBefore(ModelHook):
    """As group offloading: without a forward of its own."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def pre_forward(self, module, log):
        return ([*log, self.name],), {}


class Echo(nn.Module):
    def forward(self, log):
        return log


@pytest.mark.parametrize("kind", [Says, SaysBefore])
@pytest.mark.parametrize(
    "before, order",
    [
        ([], "ours"),
        (["group_offloading"], "ours group_offloading"),
        (["other"], "ours other"),
        (["cp_input---blocks.0"], "cp_input---blocks.0 ours"),
        (["group_offloading", "layer_execution_tracker"], "layer_execution_tracker ours group_offloading"),
        (["group_offloading", "cp_input---"], "cp_input--- ours group_offloading"),
        (["cp_input---", "group_offloading"], "group_offloading cp_input--- ours"),
    ],
)
def test_a_hook_is_put_at_its_place_and_taken_out_of_it(kind, before, order):
    module = Echo()
    for name in before:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(kind(name), name)
    add_hook(module, Says("ours"), "ours")
    assert " ".join(module([])) == order
    for name in list(before):
        remove_hook(module, name)
        order = " ".join(word for word in order.split() if word != name)
        assert " ".join(module([])) == order
    remove_hook(module, "ours")
    assert module([]) == [] and "forward" not in vars(module) and not hasattr(module, "_diffusers_hook")


@pytest.mark.parametrize("kind", [Says, SaysBefore])
@pytest.mark.parametrize(
    "after, order",
    [
        (["group_offloading"], "ours group_offloading"),
        (["other"], "other ours"),
        (["group_offloading", "layer_execution_tracker"], "layer_execution_tracker ours group_offloading"),
        (["other", "group_offloading"], "ours group_offloading other"),
        (["cp_input---", "group_offloading"], "group_offloading cp_input--- ours"),
    ],
)
def test_a_hook_is_lifted_above_the_offloading_that_came_after_it(kind, after, order):
    module = Echo()
    add_hook(module, Says("ours"), "ours")
    for name in after:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(kind(name), name)
    lift_above_offloading(module, "ours")
    assert " ".join(module([])) == order
    for name in ["ours", *after]:
        remove_hook(module, name)
    assert module([]) == []


# Group offloading


@pytest.fixture
def loads(monkeypatch):
    """The groups of blocks that are loaded, in their order."""
    loaded = []
    onload = group_offloading.ModuleGroup.onload_

    def counted(group):
        loaded.extend([group] if hasattr(group.modules[0], "norm1_context") else [])
        onload(group)

    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", counted)
    return loaded


def offload_in_groups(pipe, folder, blocks=1):
    """On a CPU only the disk shows whether a block was loaded before it ran."""
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.transformer, cpu, cpu, num_blocks_per_group=blocks, offload_to_disk_path=str(folder))
    return pipe


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    "config, blocks, expected",
    [
        (FAST, 1, STEPS // 2 * BLOCKS),
        (FAST, 3, STEPS // 2 * 2),
        (REAR, 1, STEPS // 2 * (4 + 1)),
        (REAR, 2, STEPS // 2 * (2 + 1)),  # the first group has a block that runs
        (MIDDLE, 2, STEPS // 2 * (2 + 2)),  # the leader runs in one group, and is skipped in the other
        (MIDDLE, 4, STEPS),
    ],
)
def test_blocks_that_are_skipped_are_not_loaded(tmp_path, loads, ours_first, config, blocks, expected):
    right = sample_flow(enable_delta_cache(flow(), config))
    if ours_first:
        pipe = offload_in_groups(enable_delta_cache(flow(), config), tmp_path, blocks)
    else:
        pipe = enable_delta_cache(offload_in_groups(flow(), tmp_path, blocks), config)
    for run in (1, 2):
        assert torch.equal(sample_flow(pipe), right) and len(loads) == run * expected
    assert not delta_cache_stats(pipe).fallbacks
    disable_delta_cache(pipe)
    assert torch.equal(sample_flow(pipe), sample_flow(flow()))


class Stream:
    def synchronize(self):
        pass


def offload_with_streams(pipe):
    """As on a GPU, but that nothing moves."""
    cpu = torch.device("cpu")
    config = group_offloading.GroupOffloadingConfig(
        cpu, cpu, group_offloading.GroupOffloadingType.BLOCK_LEVEL, True, False, True, 1, stream=Stream()
    )
    group_offloading._apply_group_offloading(pipe.transformer, config)
    return pipe


@pytest.mark.parametrize("ours_first", [True, False])
def test_streams_that_learn_the_order_of_the_blocks_do_not_lose_our_hooks(monkeypatch, ours_first):
    loaded = []
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", lambda group: loaded.append(group))
    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", lambda group: None)
    monkeypatch.setattr(group_offloading.ModuleGroup, "_init_cpu_param_dict", lambda group: {})
    if ours_first:
        pipe = offload_with_streams(enable_delta_cache(flow(), FAST))
    else:
        pipe = enable_delta_cache(offload_with_streams(flow()), FAST)
    for _ in range(2):
        loaded.clear()
        assert torch.equal(sample_flow(pipe), sample_flow(enable_delta_cache(flow(), FAST)))
    assert delta_cache_stats(pipe).reuse_calls == STEPS and not delta_cache_stats(pipe).fallbacks
    ours = len(loaded)
    disable_delta_cache(pipe)
    loaded.clear()
    sample_flow(pipe)
    assert ours < 0.7 * len(loaded)


# Context parallelism


@pytest.mark.multiprocess
def test_context_parallelism_before_or_after():
    """Wan splits its tokens at block 0: a cache that skips it must not skip the split."""
    script = Path(__file__).with_name("wan_in_parallel.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(sys.path)  # of this process, with what test files share
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
