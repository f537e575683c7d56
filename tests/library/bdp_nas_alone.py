"""Both levels of a search on random data, which ends with a fifth of the samples."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from bdp_nas import BilevelPruner, KeepSchedule

EPOCHS = 8

torch.manual_seed(0)
labels = torch.arange(80) % 4
data = TensorDataset(torch.randn(80, 3), labels)
model = torch.nn.Linear(3, 4)


def make_loader(part):
    """Return batches of what is kept."""
    return DataLoader(part, batch_size=8)


pruner = BilevelPruner(data, labels, range(40), range(40, 80), make_loader, schedule=KeepSchedule(EPOCHS))
for _ in range(EPOCHS):
    for (i, (x, y)), (i_valid, (x_valid, y_valid)) in pruner.batches():
        pruner.observe("architecture", i_valid, model(x_valid), y_valid)
        pruner.observe("weights", i, model(x), y)
    pruner.step()
assert {level: len(rows) for level, rows in pruner.kept.items()} == {"weights": 8, "architecture": 8}
