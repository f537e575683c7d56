"""Run by torchrun on two processes: Wan under context parallelism, with the cache put on before it and after it."""

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from tiny_diffusers import Pipe, shaken

from delta_dit import DeltaPlan, delta_cache_stats, enable_delta_cache
from delta_dit.delta_plan import Reuse

STEPS = 4
PLAN = DeltaPlan.of(2, [None, Reuse(0, 2), None, Reuse(0, 1)])


def wan():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    more = {"freq_dim": 8, "ffn_dim": 16, "num_layers": 2, "rope_max_seq_len": 32}
    return shaken(WanTransformer3DModel(patch_size=(1, 2, 2), **sizes, **more))


def sample(pipe):
    generator = torch.Generator().manual_seed(0)
    text, x = torch.randn(1, 4, 8, generator=generator), torch.randn(1, 4, 1, 8, 8, generator=generator)
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            (output,) = pipe.transformer(x, timestep=t.expand(1), encoder_hidden_states=text, return_dict=False)
            x = pipe.scheduler.step(output, t, x).prev_sample
    return x


def main():
    diffusers.logging.set_verbosity_error()
    dist.init_process_group("gloo")
    torch.accelerator.device_count = lambda: 1  # diffusers counts none on a CPU, and divides by it
    right = sample(enable_delta_cache(Pipe(wan(), FlowMatchEulerDiscreteScheduler()), PLAN))
    for ours_first in (True, False):
        pipe = Pipe(wan(), FlowMatchEulerDiscreteScheduler())
        if ours_first:
            enable_delta_cache(pipe, PLAN)
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        if not ours_first:
            enable_delta_cache(pipe, PLAN)
        torch.testing.assert_close(sample(pipe), right, rtol=1e-3, atol=1e-4)
        assert delta_cache_stats(pipe).blocks_run == PLAN.blocks_run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
