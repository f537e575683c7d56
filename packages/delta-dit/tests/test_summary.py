"""The table of what a cache did."""

import threading

import pytest
import torch
from tiny_diffusers import BLOCKS, FAST, STEPS, Pipe, dit, draw, pixel

from delta_dit import delta_cache_stats, delta_cache_summary, enable_delta_cache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:the delta cache")


def row(table, title):
    return next(line for line in table.splitlines() if line.startswith(title)).removeprefix(title).strip()


def test_the_summary_says_plan_savings_memory_time_and_fallbacks():
    pipe = enable_delta_cache(pixel(), FAST)
    table = str(delta_cache_summary(pipe))
    assert row(table, "transformer") == "DiTTransformer2DModel" and "no run has begun" in row(table, "plan")
    draw(pipe)
    table = str(delta_cache_summary(pipe))
    steps, _, legend = row(table, "plan").partition("  ")
    assert steps == "".join("." if reuse else "F" for reuse in FAST.plan_for(STEPS, BLOCKS).reuses)
    assert legend == "(F full, . reused)"
    assert row(table, "steps") == f"{STEPS}: 4 full, 4 reused, 2.00× planned"
    assert row(table, "calls") == f"{STEPS}: 4 full, 4 reused"
    assert row(table, "blocks saved") == f"16 of {STEPS * BLOCKS}, 2.00×"
    assert row(table, "Δ memory").endswith("MB at most") and float(row(table, "Δ time").split()[0]) >= 0
    assert row(table, "fallbacks") == "none"
    draw(pipe, num_inference_steps=1)
    assert row(str(delta_cache_summary(pipe)), "fallback × 1") == (
        "no plan: speedup=2.0 is not possible; allowed: 1 to 1, the largest at 1 steps"
    )


def test_each_transformer_has_a_table():
    pipe = enable_delta_cache(Pipe(dit(), transformer_2=dit()), FAST)
    assert str(delta_cache_summary(pipe)).count("DiTTransformer2DModel") == 2
    assert len(delta_cache_summary(pipe).transformers) == 2


def test_without_a_cache_there_is_no_summary():
    with pytest.raises(ValueError, match="no delta cache is enabled on DiT"):
        delta_cache_summary(dit())


def test_statistics_are_those_of_all_threads():
    pipe = enable_delta_cache(pixel(), FAST)
    for _ in range(3):
        thread = threading.Thread(target=draw, args=(pipe,))
        thread.start()
        thread.join()
    torch.manual_seed(0)
    draw(pipe)
    stats = delta_cache_stats(pipe)
    assert stats.calls == 4 * STEPS and stats.block_speedup == 2
    assert stats.delta_bytes == 2 * 4 * 16 * 16 * 4  # two Δs, once and not once per thread
