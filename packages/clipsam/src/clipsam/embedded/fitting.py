"""The loop that the trainings share: AdamW, warm-up and cosine, checkpoints that a run resumes from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from frugal_shared.run import Run
from frugal_shared.training import warm_up_cosine

WARM_UP = 100  # steps
WEIGHT_DECAY = 0.01
CLIP = 1.0  # gradient norm
LOG_EVERY = 20


def fit(
    run: Run,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    validate: Callable[[int], dict[str, float]],
    *,
    steps: int,
    learning_rate: float,
    save_every: int,
) -> dict[str, float]:
    """Train every parameter that wants a gradient, from the newest checkpoint on; return the last validation.

    Args:
        run: the run folder.
        model: what to train.
        loss_of: maps (model, step) to this process's loss; equal shares, so that their mean is the whole batch's.
        validate: called on every process at every checkpoint, before it is saved, with the number of steps done;
            returns what to log.
        steps: of the optimizer.
        learning_rate: peak of the cosine, after the warm-up.
        save_every: steps between checkpoints.
    """
    accelerator = run.accelerator
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    start = restore(run, trained, optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    validated: dict[str, float] = {}
    for step in run.progress(range(start, steps), initial=start, total=steps, desc=run.folder.name):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm_up_cosine(step, steps, WARM_UP)
        loss = loss_of(wrapped, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

        done = step + 1
        if done % LOG_EVERY == 0:
            run.log(done, loss=loss.item())
        if done % save_every == 0 or done == steps:
            validated = validate(done)
            run.log(done, **validated)
            run.save(done, {"model": trained, "optimizer": optimizer.state_dict()}, keep=2)
    return validate(start) if start == steps else validated  # the former if nothing was left to do


def restore(run: Run, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Take parameters and optimizer from the newest checkpoint, if there is one; return how many steps it has seen."""
    found = run.restore()
    if found is None:
        return 0
    start, tree = found
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(tree["model"][name])
    optimizer.load_state_dict(tree["optimizer"])
    return start
