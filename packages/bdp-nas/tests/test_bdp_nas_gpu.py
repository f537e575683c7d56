"""A search on a GPU: the same step as on the CPU, mixed precision, and several GPUs."""

import pytest
import torch
from devices import DEVICE, distance, on_gpu, on_gpus, run_module

from bdp_nas import get_searcher, get_space
from bdp_nas.spaces.space import Size


def searched(name, device, precision=None):
    """Return α and the weights after two steps of each level."""
    torch.manual_seed(0)
    searcher = get_searcher(name)()
    supernet = searcher.supernet(get_space("nasbench201"), Size(classes=4, channels=4, cells=1)).to(device)
    weights = torch.optim.SGD(supernet.weights(), 0.025, 0.9)
    alphas = searcher.alpha_optimizer(supernet)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        batches = [
            (torch.randn(8, 3, 8, 8, generator=generator).to(device), torch.arange(8, device=device) % 4)
            for _ in range(2)
        ]
        with torch.autocast(torch.device(device).type, precision, enabled=precision is not None):
            searcher.arch_step(supernet, *batches, alphas, weights)
            searcher.weight_step(supernet, batches[0], weights)
    return torch.cat([value.flatten().cpu() for value in supernet.alphas()]), supernet


@pytest.mark.parametrize("name", ["darts", "darts-2", "pc-darts", "beta-darts"])
@on_gpu
def test_a_step_is_that_of_the_cpu(name):
    (here, _), (there, supernet) = searched(name, "cpu"), searched(name, DEVICE)
    assert distance(there, here) < 0.05
    assert all(torch.isfinite(value).all() for value in supernet.parameters())


@on_gpu
def test_bfloat16_moves_the_architecture_alike():
    (single, _), (half, _) = searched("darts", DEVICE), searched("darts", DEVICE, torch.bfloat16)
    assert distance(half, single) < 0.2


@on_gpus
def test_several_gpus_search_one_architecture(tmp_path):
    words = ["search", "--samples", "240", "--epochs", "2", "--cells", "1", "--channels", "4"]
    for count in ("1", "2"):
        run_module("bdp_nas", *words, "--num-processes", count, "--output-dir", count, folder=tmp_path)
    assert (tmp_path / "1/genotype.json").read_bytes() == (tmp_path / "2/genotype.json").read_bytes()
