import itertools

import pytest
import torch

from frugal_shared.seeds import derived_seed, generator, sample_generators


def draw(random: torch.Generator) -> list[float]:
    return torch.randn(4, generator=random).tolist()


def test_seeds_and_indices_do_not_overlap():
    """``seed + index`` would make sample 1 of seed 0 the same as sample 0 of seed 1."""
    assert draw(generator(0, 1)) != draw(generator(1, 0))
    streams = {derived_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(streams) == 50 * 50


@pytest.mark.parametrize(
    "one, other",
    [((1,), (1, 0)), ((1, 0), (1, 0, 0)), ((0, 1), (0, 1, 0)), ((2**32,), (0, 1)), ((1, 2), (1, 2, 0, 0, 0, 0))],
)
def test_zeros_and_large_seeds_name_streams_of_their_own(one, other):
    assert derived_seed(*one) != derived_seed(*other)


def test_short_and_long_indices_do_not_overlap():
    indices = [index for length in range(4) for index in itertools.product(range(4), repeat=length)]
    assert len({derived_seed(0, *index) for index in indices}) == len(indices)


def test_same_stream_is_the_same_numbers():
    assert draw(generator(3, 1, 4)) == draw(generator(3, 1, 4))


def test_samples_do_not_depend_on_order_or_company():
    alone = {index: draw(generator(7, index)) for index in (5, 2, 9)}
    together = dict(zip(range(10), map(draw, sample_generators(7, range(10))), strict=True))
    assert all(together[index] == numbers for index, numbers in alone.items())


def test_seed_fits_torch():
    seeds = [derived_seed(2**63 - 1, index) for index in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # and uses the room
