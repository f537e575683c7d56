"""Prediction dynamics: how a network's answers to every sample change over the last epochs of a training.

A reconstruction. The paper (Bi-level Data Pruning, arXiv 2312.14200) prunes by "supernet prediction dynamics"; which
statistic it takes is not known to us. The default is that of its nearest published relative, Dyn-Unc (2306.05175):

    p_i^t = softmax(f(x_i))[y_i], recorded whenever sample i is used in epoch t: no extra pass
    U_i^t = std(p_i^{t−J+1}, …, p_i^t)          unbiased, over a window of J epochs
    U_i   = mean of U_i^t over all full windows so far

Every other score records another quantity or takes another statistic over the window, see :data:`SCORES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bdp_nas.processes import of_all


def probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return p_y, the probability of the right class, ``(B,)`` in [0, 1]."""
    return loss(logits, targets).neg().exp()


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −log p_y, the cross-entropy of each sample, ``(B,)``."""
    return F.cross_entropy(logits, targets, reduction="none")


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ‖p − onehot(y)‖₂, ``(B,)`` in [0, √2] (Paul et al., arXiv 2107.07075)."""
    return (logits.softmax(1) - F.one_hot(targets, logits.shape[1])).norm(dim=1)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest logit is that of the right class and 0 elsewhere, ``(B,)``."""
    return (logits.argmax(1) == targets).float()


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −Σ p log p, ``(B,)`` in nats, whatever the right class."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def mean(window: Tensor) -> Tensor:
    """Return the mean of what was seen in the window, ``(N, J)`` → ``(N,)``."""
    return window.nanmean(1)


def std(window: Tensor) -> Tensor:
    """Return the unbiased standard deviation, ``(N, J)`` → ``(N,)``; NaN where fewer than two epochs were seen."""
    others = (~window.isnan()).sum(1).sub(1).clamp(min=0)
    return ((window - window.nanmean(1, keepdim=True)).square().nansum(1) / others).sqrt()


def dual(window: Tensor) -> Tensor:
    """Return std · (1 − mean): uncertain and difficult, ``(N, J)`` → ``(N,)`` (DUAL, arXiv 2502.06905)."""
    return std(window) * (1 - mean(window))


def abs_delta(window: Tensor) -> Tensor:
    """Return the mean of |p^t − p^{t−1}| over successive epochs that were both seen, ``(N, J)`` → ``(N,)``."""
    return window.diff(dim=1).abs().nanmean(1)


def forgetting(window: Tensor) -> Tensor:
    """Return how often right turned into wrong from one epoch to the next, ``(N, J)`` → ``(N,)`` (arXiv 1812.05159)."""
    change = window.diff(dim=1)
    return (change < 0).sum(1).float().masked_fill(change.isnan().all(1), torch.nan)


@dataclass(frozen=True)
class Score:
    """What is recorded of a sample in an epoch, and what is made of the last epochs.

    Args:
        quantity: float32 logits ``(B, C)`` and targets ``(B,)`` → ``(B,)``.
        statistic: what was recorded, ``(N, J)`` with the oldest epoch first and NaN where unseen → ``(N,)``, NaN where
            it is not defined.
        epochs: how many epochs the statistic needs.
    """

    quantity: Callable[[Tensor, Tensor], Tensor]
    statistic: Callable[[Tensor], Tensor]
    epochs: int


SCORES = {
    "std": Score(probability, std, 2),
    "dual": Score(probability, dual, 2),
    "mean_prob": Score(probability, mean, 1),
    "loss": Score(loss, mean, 1),
    "abs_delta": Score(probability, abs_delta, 2),
    "el2n": Score(el2n, mean, 1),
    "forgetting": Score(correct, forgetting, 2),
    "entropy": Score(entropy, mean, 1),
    "random": Score(probability, mean, 1),  # the control: as std, except that scores() draws instead
}
"""The scores by name. A new one is one line here."""


class Dynamics:
    """The prediction dynamics of every sample of a data set, in ``4 · size · window`` bytes.

    In a process group, :meth:`end_epoch` takes in what all processes observed, in whatever order. A sample observed
    several times in an epoch, say because batches were padded, counts once, with the mean.

    Args:
        size: N, number of samples of the data set.
        score: name of one of :data:`SCORES`.
        window: J, epochs that a statistic looks back. Smaller windows are ready sooner, larger ones less noisy.
        seed: of the score ``random``.

    Raises:
        ValueError: an unknown score, or a window too small for it.
    """

    def __init__(self, size: int, *, score: str = "std", window: int = 5, seed: int = 0) -> None:
        if score not in SCORES:
            raise ValueError(f"score={score!r} is unknown; allowed: {', '.join(SCORES)}")
        if window < SCORES[score].epochs:
            raise ValueError(
                f"window={window!r} is not possible; score={score!r} allows {SCORES[score].epochs} or more"
            )
        self.score, self.seed, self.epoch = score, seed, 0
        self._window = torch.full((size, window), torch.nan)  # epoch t lies in column t mod J
        self._total = torch.zeros(size)  # of the statistic over full windows
        self._windows = torch.zeros(size, dtype=torch.int32)  # how many of them
        self._pending: list[tuple[Tensor, Tensor]] = []  # what this process observed in this epoch

    @torch.no_grad()
    def observe(self, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Record what the network answered to a batch.

        Args:
            indices: ``(B,)`` integers, the samples' places in the data set.
            logits: ``(B, C)``, on any device, of any floating type.
            targets: ``(B,)`` integers, the right classes.

        Raises:
            ValueError: shapes that do not fit, indices or targets out of range.
        """
        if logits.ndim != 2 or not len(indices) == len(logits) == len(targets):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (indices, logits, targets))
            raise ValueError(f"indices, logits and targets have shapes {shapes}; allowed: (B,), (B, C), (B,)")
        check_range("index", indices, len(self._window))
        check_range("label", targets, logits.shape[1])
        values = SCORES[self.score].quantity(logits.float(), targets.long())
        self._pending.append((indices.cpu().long(), values.cpu()))

    def end_epoch(self) -> None:
        """Take in the epoch's observations; on N processes, all have to call it."""
        # as objects: lengths differ, and an index above 2^24 does not survive in float32 beside its value
        indices, values = _once_each(*map(torch.cat, zip(*of_all(self._joined()))))
        column = self.epoch % self._window.shape[1]
        self._window[:, column] = torch.nan
        self._window[indices, column] = values
        self._pending.clear()
        self.epoch += 1
        full = ~self._window.isnan().any(1)
        self._total[full] += self._statistic()[full]
        self._windows += full

    def scores(self) -> Tensor:
        """Return the score of every sample, ``(N,)`` float32; NaN where too little was seen.

        It is the mean of the statistic over the sample's full windows; as long as it has none, the statistic of what
        was seen.
        """
        if self.score == "random":
            draws = torch.rand(len(self._window), generator=torch.Generator().manual_seed(self.seed))
            return draws.masked_fill(self._window.isnan().all(1) & (self._windows == 0), torch.nan)
        return torch.where(self._windows > 0, self._total / self._windows, self._statistic())

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors, also in mid-epoch, where every process has observations of its own."""
        indices, values = self._joined()
        state = {"window": self._window, "total": self._total, "windows": self._windows}
        pending = {"pending_indices": indices, "pending_values": values}
        return {key: value.clone() for key, value in (state | pending).items()} | {"epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace everything by a :meth:`state_dict`.

        Raises:
            ValueError: it is of another number of samples, or of another window.
        """
        if state["window"].shape != self._window.shape:
            found, allowed = tuple(state["window"].shape), tuple(self._window.shape)
            raise ValueError(f"the state is of {found} samples and epochs; allowed: {allowed}")
        self._window, self._total = state["window"].clone(), state["total"].clone()
        self._windows, self.epoch = state["windows"].clone(), int(state["epoch"])
        self._pending = [(state["pending_indices"].clone(), state["pending_values"].clone())]

    def _joined(self) -> tuple[Tensor, Tensor]:
        nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        indices, values = zip(nothing, *self._pending)
        return torch.cat(indices), torch.cat(values)

    def _statistic(self) -> Tensor:
        oldest = self.epoch % self._window.shape[1]
        return SCORES[self.score].statistic(self._window.roll(-oldest, 1))


def check_range(name: str, values: Tensor, size: int) -> None:
    """Raise a ValueError unless all ``values`` lie in 0 … size − 1."""
    if len(values) and (values.min() < 0 or values.max() >= size):
        wrong = values[(values < 0) | (values >= size)][0].item()
        raise ValueError(f"{name} {wrong!r} is out of range; allowed: 0 to {size - 1}")


def _once_each(indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each index once, with the mean of its values; a value that is not a number was not seen."""
    found, numbers = indices.numpy(), values.numpy()
    found, numbers = found[~np.isnan(numbers)], numbers[~np.isnan(numbers)]
    order = np.lexsort((numbers, found))  # a sum must not depend on the order of observation
    unique, inverse, counts = np.unique(found[order], return_inverse=True, return_counts=True)
    means = np.bincount(inverse, numbers[order], len(unique)) / counts
    return torch.from_numpy(unique), torch.from_numpy(means.astype(np.float32))
