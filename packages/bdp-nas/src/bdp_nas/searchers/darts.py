"""DARTS, first and second order (arXiv 1806.09055, §2.3 and equations 7 and 8)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdp_nas.searchers.searcher import Batch, Searcher, Step
from bdp_nas.spaces.space import Supernet


@dataclass
class Darts(Searcher):
    """α ← α − η ∇_α L_val(w, α): the weights count as constant (first order)."""

    def arch_step(
        self,
        supernet: Supernet,
        train: Batch,
        validation: Batch,
        alpha_optimizer: torch.optim.Optimizer,
        weight_optimizer: torch.optim.Optimizer,
        progress: float = 0.0,
    ) -> Step:
        """Let the optimizer follow :meth:`alpha_gradients`."""
        gradients, step = self.alpha_gradients(supernet, train, validation, weight_optimizer, progress)
        for alpha, gradient in zip(supernet.alphas(), gradients):
            alpha.grad = gradient
        alpha_optimizer.step()
        alpha_optimizer.zero_grad()
        return step.detach()

    def alpha_gradients(
        self,
        supernet: Supernet,
        train: Batch,
        validation: Batch,
        weight_optimizer: torch.optim.Optimizer,
        progress: float,
    ) -> tuple[Sequence[Tensor], Step]:
        """Return the gradient for every α, and what the validation batch gave."""
        step = self.evaluate(supernet, validation)
        return self.gradients(step.loss + self.penalty(supernet, progress), supernet.alphas()), step

    def penalty(self, supernet: Supernet, progress: float) -> Tensor | float:
        """Return what is added to the validation loss."""
        return 0.0


@dataclass
class SecondOrderDarts(Darts):
    """The weights follow the architecture by one step of their optimizer, w' = w − ξ (∇_w L_train(w, α) + …).

    The gradient for α is then::

        ∇_α L_val(w', α) − ξ ∇²_{α,w} L_train(w, α) v    with    v = ∇_{w'} L_val(w', α)

    The product with the Hessian is a central difference, [∇_α L_train(w + Rv) − ∇_α L_train(w − Rv)] / 2R. Both points
    lie ``radius`` from w, see the same dropout, and exist beside the supernet, whose weights never change. The step has
    the optimizer's momentum and weight decay, and no clipping.

    Args:
        radius: R · ‖v‖; smaller is more exact until rounding takes over.

    Raises:
        ValueError: an option that is not possible.
    """

    forward_passes: ClassVar[int] = 4
    backward_passes: ClassVar[int] = 4

    _: KW_ONLY
    radius: float = 0.01

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.radius <= 0:
            raise ValueError(f"radius={self.radius!r} is not possible; allowed: above 0")

    def alpha_gradients(
        self,
        supernet: Supernet,
        train: Batch,
        validation: Batch,
        weight_optimizer: torch.optim.Optimizer,
        progress: float,
    ) -> tuple[Sequence[Tensor], Step]:
        """Return the gradient for every α, and what the validation batch gave with w'."""
        alphas, weights = supernet.alphas(), supernet.weights()
        loss = self.evaluate(supernet, train).loss
        ahead, rates = virtual_step(weights, self.gradients(loss, weights), weight_optimizer)
        step = self.evaluate(supernet, validation, named(supernet, ahead))
        found = self.gradients(step.loss + self.penalty(supernet, progress), [*alphas, *ahead])
        direct, v = found[: len(alphas)], found[len(alphas) :]
        through = self._hessian_product(supernet, train, [rate * value for rate, value in zip(rates, v)])
        return [first - second for first, second in zip(direct, through)], step

    def _hessian_product(self, supernet: Supernet, train: Batch, v: Sequence[Tensor]) -> list[Tensor]:
        """Return ∇²_{α,w} L_train · v."""
        norm = torch.stack([value.norm() for value in v]).norm()
        r = self.radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # v = 0 gives 0
        sides = []
        for sign in (1, -1):
            moved = [w.detach() + sign * r * value for w, value in zip(supernet.weights(), v)]
            loss = self.evaluate(supernet, train, named(supernet, moved)).loss
            sides.append(self.gradients(loss, supernet.alphas()))
        return [(plus - minus) / (2 * r) for plus, minus in zip(*sides)]


def named(supernet: Supernet, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return values for the weights by name."""
    return dict(zip(supernet.named_weights(), weights))


def virtual_step(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[Tensor], list[float]]:
    """Return what a step of SGD would make of the weights, w − ξ (μ · buffer + g + λ w), and every weight's ξ.

    Args:
        weights: w.
        gradients: g.
        optimizer: SGD, with momentum μ and weight decay λ; it is not changed.

    Raises:
        ValueError: another optimizer, or one that lacks a weight.
    """
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    ahead, rates = [], []
    for weight, gradient in zip(weights, gradients):
        group = groups.get(id(weight), {})
        if "momentum" not in group or group.get("nesterov") or group.get("dampening") or group.get("maximize"):
            raise ValueError(f"{type(optimizer).__name__} cannot be unrolled; allowed: plain SGD over all weights")
        direction = gradient + group["weight_decay"] * weight.detach()
        buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
        if buffer is not None:
            direction = direction + group["momentum"] * buffer
        ahead.append((weight.detach() - group["lr"] * direction).requires_grad_())
        rates.append(group["lr"])
    return ahead, rates
