"""A cached transformer may be copied and pickled: the copy is without the cache, and the original keeps it."""

import copy
import io
import pickle

import pytest
import torch
from accelerate import cpu_offload_with_hook
from tiny_diffusers import BARE, FAST, dit, draw, flux, pixel, sample_ddim

from delta_dit import delta_cache_stats, disable_delta_cache, enable_delta_cache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_torch]


@pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_without_the_cache_and_the_original_keeps_it(way):
    model = enable_delta_cache(dit(), BARE)
    expected = sample_ddim(model, 0)
    calls = delta_cache_stats(model).calls
    other = way(model)
    assert torch.equal(sample_ddim(other, 0), sample_ddim(dit(), 0))  # uncached
    assert set(vars(other)) == set(vars(dit())) and delta_cache_stats(model).calls == calls
    assert not any("forward" in vars(module) or hasattr(module, "_diffusers_hook") for module in other.modules())
    with torch.no_grad():
        other.pos_embed.proj.weight.zero_()
    assert torch.equal(sample_ddim(model, 0), expected)  # it shares nothing
    assert torch.equal(sample_ddim(enable_delta_cache(way(model), BARE), 0), expected)
    disable_delta_cache(model)
    assert set(vars(model)) == set(vars(dit()))


def test_a_pipeline_may_be_copied():
    pipe = enable_delta_cache(pixel(), FAST)
    other = copy.deepcopy(pipe)
    with pytest.raises(ValueError, match="no delta cache is enabled"):
        delta_cache_stats(other)
    assert torch.equal(draw(other), draw(pixel()))
    assert delta_cache_stats(pipe).calls == 0


def test_a_copy_of_a_model_that_accelerate_offloads_calls_its_own_forward():
    model = dit()
    cpu_offload_with_hook(model, "cpu")
    enable_delta_cache(model, BARE)
    other = copy.deepcopy(model)
    assert torch.equal(sample_ddim(other, 0), sample_ddim(dit(), 0)) and delta_cache_stats(model).calls == 0


def test_weights_that_are_shared_stay_so():
    model = flux()
    model.single_transformer_blocks[1].norm = model.single_transformer_blocks[0].norm
    other = copy.deepcopy(enable_delta_cache(model, BARE))
    assert other.single_transformer_blocks[1].norm is other.single_transformer_blocks[0].norm
    assert other.single_transformer_blocks[0].norm is not model.single_transformer_blocks[0].norm
