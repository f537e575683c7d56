"""One step of a bi-level search: the architecture on one batch, the weights on another; in anyone's loop.

    searcher = get_searcher("darts")()
    supernet = searcher.supernet(space, Size(classes=10, channels=16, cells=5))
    weights, alphas = SGD(supernet.weights(), 0.025, 0.9, weight_decay=3e-4), searcher.alpha_optimizer(supernet)
    for train, validation in zip(train_batches, validation_batches):
        if searcher.active(epoch / epochs):
            searcher.arch_step(supernet, train, validation, alphas, weights, progress=epoch / epochs)
        searcher.weight_step(supernet, train, weights)
    genotype = searcher.select(supernet, validation_batches)

Each step differentiates with respect to what it changes and nothing else, so that no gradient of the one reaches the
optimizer of the other. On several processes ``average`` makes their gradients one; the supernet itself is not wrapped.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bdp_nas.spaces.space import Size, Space, Supernet

Batch = tuple[Tensor, Tensor]
"""Images ``(B, C, H, W)`` and targets ``(B,)``."""


def alone(tensors: Sequence[Tensor]) -> None:
    """Leave the tensors as they are: there is one process."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a step saw.

    Args:
        loss: mean over the batch, without penalties, scalar.
        logits: ``(B, classes)``, before the step: what prediction dynamics are made of, at no cost.
    """

    loss: Tensor
    logits: Tensor

    def detach(self) -> "Step":
        """Return the same without its graph."""
        return Step(self.loss.detach(), self.logits.detach())


@dataclass
class Searcher(ABC):
    """How the architecture learns.

    Args:
        learning_rate: of Adam for the architecture.
        weight_decay: added to its gradients (not decoupled as in AdamW): part of all published searches.
        criterion: (logits, targets) → mean loss.
        average: replaces tensors, in place, by their mean over all processes.

    Raises:
        ValueError: an option that is not possible.
    """

    forward_passes: ClassVar[int] = 1
    backward_passes: ClassVar[int] = 1
    """What one step of the architecture costs, in batches."""

    _: KW_ONLY
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    average: Callable[[Sequence[Tensor]], None] = alone

    def __post_init__(self) -> None:
        """Check the values."""
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} is not possible; allowed: above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay!r} is not possible; allowed: 0 or more")

    def supernet(self, space: Space, size: Size) -> Supernet:
        """Return the supernet that this searcher needs."""
        return space.supernet(size)

    def alpha_optimizer(self, supernet: Supernet) -> torch.optim.Optimizer:
        """Return the optimizer of the architecture: Adam with β = (0.5, 0.999), as all published searches have it."""
        return torch.optim.Adam(supernet.alphas(), self.learning_rate, (0.5, 0.999), weight_decay=self.weight_decay)

    def active(self, progress: float) -> bool:
        """Return whether the architecture learns at this share of the epochs; if not, it needs no batch."""
        return True

    @abstractmethod
    def arch_step(
        self,
        supernet: Supernet,
        train: Batch,
        validation: Batch,
        alpha_optimizer: torch.optim.Optimizer,
        weight_optimizer: torch.optim.Optimizer,
        progress: float = 0.0,
    ) -> Step:
        """Change the architecture, and nothing else: no weight, no running statistic, no random state.

        Args:
            supernet: what is searched.
            train: the batch that the weights will learn from next.
            validation: a batch for the architecture.
            alpha_optimizer: of the architecture.
            weight_optimizer: of the weights; only read.
            progress: epoch / epochs.

        Returns:
            Loss and logits of the validation batch.
        """

    def weight_step(
        self, supernet: Supernet, train: Batch, weight_optimizer: torch.optim.Optimizer, clip: float = 5.0
    ) -> Step:
        """Change the weights, and nothing of the architecture.

        Args:
            supernet: what is searched.
            train: a batch for the weights.
            weight_optimizer: of the weights alone.
            clip: largest norm of their gradient.

        Returns:
            Loss and logits of the batch.
        """
        weights, (images, targets) = supernet.weights(), train
        logits = supernet(images)
        step = Step(self.criterion(logits, targets), logits)
        for weight, gradient in zip(weights, self.gradients(step.loss, weights)):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, clip)
        weight_optimizer.step()
        weight_optimizer.zero_grad()
        return step.detach()

    def select(self, supernet: Supernet, batches: Iterable[Batch]) -> str:
        """Return the genotype that the search has found; some searchers compare several on validation batches."""
        return supernet.genotype()

    def state_dict(self) -> dict[str, Any]:
        """Return what a search must keep to be resumed, apart from supernet and optimizers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a :meth:`state_dict`.

        Raises:
            ValueError: the state of another searcher.
        """
        if state:
            raise ValueError(f"a state with {', '.join(state)} is not of {type(self).__name__}; allowed: an empty one")

    def evaluate(self, supernet: Supernet, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Step:
        """Run the supernet without changing running statistics and the random state.

        Args:
            supernet: in training mode, so that it normalises by the batch and not by the mixture's past.
            batch: images and targets.
            weights: what to compute with instead of the supernet's weights, by name.
        """
        images, targets = batch
        state = {name: buffer.clone() for name, buffer in supernet.named_buffers()} | dict(weights or {})
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            logits = functional_call(supernet, state, (images,))
        return Step(self.criterion(logits, targets), logits)

    def gradients(self, loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the gradients over all processes with respect to these parameters, without any other's."""
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        self.average(gradients)
        return gradients
