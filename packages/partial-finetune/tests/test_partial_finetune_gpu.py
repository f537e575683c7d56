"""Fine-tuning on a GPU: mixed precision, compiled models, and the strategies' promise that what is frozen stays."""

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, distance, on_gpu, on_gpus, run_module

from partial_finetune import freeze


def tune(model, strategy, images, *, precision=None, steps=3, compiled=False):
    """Tune a few steps; return the weights."""
    model, images = model.to(DEVICE), images.to(DEVICE)
    labels = torch.arange(len(images), device=DEVICE) % 4
    with freeze(model, strategy) as frozen:
        optimizer = torch.optim.AdamW(frozen.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(torch.device(DEVICE).type, enabled=precision == torch.float16)
        forward = torch.compile(model.train()) if compiled else model.train()
        for _ in range(steps):
            with torch.autocast(torch.device(DEVICE).type, precision, enabled=precision is not None):
                loss = F.cross_entropy(forward(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert torch.isfinite(loss)
        tuned = set(frozen.selection.parameters)
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}, tuned


@pytest.mark.parametrize("precision", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strategy", ["attn", "ffn[2:]", "norm", "last_half"])
@on_gpu
def test_what_is_frozen_stays_in_every_precision(make_vit, images, strategy, precision):
    before = {name: value.clone() for name, value in make_vit().state_dict().items()}
    after, tuned = tune(make_vit(), strategy, images, precision=precision)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= tuned
    assert changed & tuned


@on_gpu
def test_a_step_is_that_of_the_cpu(make_vit, images):
    before = make_vit().state_dict()
    there, tuned = tune(make_vit(), "attn", images, steps=1)
    model = make_vit()
    with freeze(model, "attn") as frozen:
        optimizer = torch.optim.AdamW(frozen.parameters(), lr=1e-3)
        F.cross_entropy(model.train()(images), torch.arange(len(images)) % 4).backward()
        optimizer.step()
    here = model.state_dict()
    for name in tuned:
        assert distance(there[name] - before[name], here[name] - before[name]) < 0.05


@on_gpu
def test_a_compiled_model_learns_the_same(make_vit, images):
    plain, tuned = tune(make_vit(), "attn", images)
    compiled, _ = tune(make_vit(), "attn", images, compiled=True)
    assert all(distance(compiled[name], plain[name]) < 0.01 for name in tuned)


@on_gpus
def test_several_gpus_train_one_model(tmp_path, weights, folder):
    words = ["train", "--model", "test_vit", "--weights", str(weights), "--data", str(folder), "--image-size", "32"]
    words += ["--epochs", "1", "--batch-size", "8", "--num-processes", "2", "--output-dir", "run"]
    run_module("partial_finetune", *words, folder=tmp_path)
    assert (tmp_path / "run/results.json").exists()
