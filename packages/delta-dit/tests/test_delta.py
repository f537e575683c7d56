"""The arithmetic of the Δ-cache, without diffusers."""

import pytest
import torch

from delta_dit.delta import DeltaRecord, DeltaSum, add_delta
from delta_dit.delta_plan import Reuse

BLOCKS = 3


def blocks(seed=0, dtype=torch.float64):
    """Three blocks on two streams: each adds something that depends on its input."""
    weights = torch.randn(BLOCKS, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return [lambda h, e, w=w: (h + torch.tanh(h @ w), e + torch.sin(e @ w)) for w in weights]


def streams(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def run(functions, inputs, total, between=lambda block, outputs: outputs):
    """Run the blocks and let their Δs be summed; ``between`` is what a model does after a block."""
    for number, function in enumerate(functions):
        total.enter(inputs)
        outputs = function(*inputs)
        total.leave(outputs)
        inputs = between(number, outputs)
    return inputs


def per_block_sum(functions, inputs, between=lambda block, outputs: outputs):
    """The definition: Σ (out − in), block by block."""
    total = [torch.zeros_like(h) for h in inputs]
    for number, function in enumerate(functions):
        outputs = function(*inputs)
        total = [t + (out - start) for t, out, start in zip(total, outputs, inputs)]
        inputs = between(number, tuple(h.clone() for h in outputs))
    return tuple(total)


def residual(block, outputs):
    """What a ControlNet does: add to the image stream after a block."""
    return outputs[0] + (block + 1.0), outputs[1]


def residual_in_place(block, outputs):
    outputs[0].add_(block + 1.0)
    return outputs


def assert_close(deltas, others):
    for delta, other in zip(deltas, others, strict=True):
        torch.testing.assert_close(delta, other)


@pytest.mark.parametrize("between", [lambda _, outputs: outputs, residual])
def test_the_sum_over_a_range_is_the_sum_over_its_blocks(between):
    total = DeltaSum()
    run(blocks(), streams(1), total, between)
    assert_close(total.total(), per_block_sum(blocks(), streams(1), between))


@pytest.mark.parametrize("between", [lambda _, outputs: outputs, residual])
def test_reusing_on_the_same_input_gives_the_same_output(between):
    total = DeltaSum()
    full = run(blocks(), streams(1), total, between)

    reused = add_delta(streams(1), total.total())
    for block in range(BLOCKS):  # the blocks do not run, and the model adds its residuals all the same
        reused = between(block, reused)
    assert_close(reused, full)


def test_blocks_that_add_a_constant_are_reused_without_error_on_any_input():
    functions = [lambda h, e, c=c: (h + c, e - c) for c in (1.0, 2.0, 4.0)]
    total = DeltaSum()
    run(functions, streams(1), total)
    expected = run(functions, streams(2), DeltaSum())
    assert_close(add_delta(streams(2), total.total()), expected)


def test_writing_into_what_was_kept_is_noticed_and_copies_put_it_right():
    total = DeltaSum()
    run(blocks(), streams(1), total, residual_in_place)
    assert total.total() is None and total.spoilt

    total = DeltaSum(copy=True)
    run(blocks(), streams(1), total, residual_in_place)
    assert_close(total.total(), per_block_sum(blocks(), streams(1), residual_in_place))
    assert not total.spoilt


def test_a_block_that_writes_into_its_input_is_noticed_and_copies_put_it_right():
    functions = [lambda h, e: (h.mul_(2.0), e)]
    total = DeltaSum()
    run(functions, streams(1), total)
    assert total.total() is None and total.spoilt

    total = DeltaSum(copy=True)
    run(functions, streams(1), total)
    assert_close(total.total(), (streams(1)[0], torch.zeros(2, 4, dtype=torch.float64)))


def test_inference_mode_counts_residuals_once_even_if_written_in_place():
    with torch.inference_mode():
        total = DeltaSum()
        run(blocks(), streams(1), total, residual_in_place)
        delta = total.total()
    assert_close(delta, per_block_sum(blocks(), streams(1), residual_in_place))


def test_a_stream_may_end_inside_a_range():
    functions = [*blocks(), lambda h, e: (h + e, None)]  # SD3's last block gives no text
    total = DeltaSum()
    run(functions, streams(1), total)
    image, text = total.total()
    assert text is None
    h, e = streams(1)
    full = run(functions, (h, e), DeltaSum())
    assert_close(add_delta((h,), (image,)), full[:1])
    assert add_delta((h, e), (image, None))[1] is e


def test_no_block_no_delta():
    assert DeltaSum().total() is None


def record(*values, keep):
    history = DeltaRecord()
    for step, value in values:
        history.push(step, (torch.full((2,), value), None), keep=keep)
    return history


def test_order_0_adds_the_newest_delta_and_keeps_no_other():
    history = record((0, 1.0), (3, 5.0), keep=1)
    assert history.steps == [3] and len(history.deltas) == 1
    assert torch.equal(history.forecast(5, Reuse(0, 2), range(9))[0], torch.full((2,), 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_order_1_is_exact_where_delta_changes_linearly(dtype):
    history = DeltaRecord()
    for step in (0, 2):
        history.push(step, (torch.full((2,), 3.0 + 2 * step, dtype=dtype), None), keep=2)
    delta, ended = history.forecast(3, Reuse(0, 2, 1), range(9))
    assert delta.dtype == dtype and torch.equal(delta, torch.full((2,), 9.0, dtype=dtype)) and ended is None


def test_order_1_after_a_single_full_step_is_order_0():
    assert torch.equal(record((0, 1.0), keep=2).forecast(1, Reuse(0, 2, 1), range(9))[0], torch.ones(2))


def test_a_fitted_forecast_is_the_weighted_sum_of_the_newest_two():
    history = record((0, 2.0), (3, 5.0), keep=2)
    assert torch.allclose(
        history.forecast(5, Reuse(0, 2, 1, (1.2, -0.25)), range(9))[0], torch.full((2,), 1.2 * 5 - 0.25 * 2)
    )
    assert torch.allclose(history.forecast(5, Reuse(0, 2, 0, (0.9,)), range(9))[0], torch.full((2,), 4.5))
    assert torch.equal(
        record((0, 1.0), keep=2).forecast(1, Reuse(0, 2, 1, (1.2, -0.25)), range(9))[0], torch.ones(2)
    )  # held
