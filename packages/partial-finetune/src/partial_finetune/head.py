"""A classifier fitted to the pretrained features: where fine-tuning starts (LP-FT).

A random head would send large gradients into the network in the first steps and turn its weights for no reason of the
data's, which is just what the fine-tuned angle must not measure.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partial_finetune.prediction import Batches, forward, joined

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
ITERATIONS = 100


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the classifier of a timm model sees of images ``(B, 3, H, W)``, ``(B, C)``."""
    return model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]


def embed(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the :func:`features` ``(N, C)`` and the labels ``(N,)`` of all batches, as :func:`fit_head` takes them."""
    return joined(forward(model, batches, features))


def linear_classifier(model: nn.Module) -> nn.Linear:
    """Return the classifier of a timm model.

    Raises:
        ValueError: it is not one linear layer.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"the classifier is {type(classifier).__name__}, which cannot be fitted; allowed: a linear one"
        )
    return classifier


def fit_head(classifier: nn.Linear, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    """Fit multinomial logistic regression into ``classifier`` and return its accuracy on ``val``.

    Minimises the mean cross-entropy + λ/2 · ‖W‖² of standardised features by L-BFGS in float64, with the λ of
    :data:`PENALTIES` that is best on ``val``; the standardisation is folded into weight and bias.

    Args:
        classifier: its weight ``(K, C)`` and bias ``(K,)`` are overwritten.
        train: features ``(N, C)`` and labels ``(N,)`` in 0 … K − 1.
        val: likewise, to choose λ by.
    """
    x, y = train[0].double(), train[1]
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    tries = [_logistic((x - mean) / std, y, classifier.out_features, penalty) for penalty in PENALTIES]
    scores = [_accuracy((val[0].double() - mean) / std, val[1], *each) for each in tries]
    best = max(range(len(tries)), key=lambda index: (scores[index], index))  # of equals the stronger penalty
    weight, bias = tries[best]
    with torch.no_grad():
        classifier.weight.copy_(weight / std)
        classifier.bias.copy_(bias - (weight / std) @ mean)
    return scores[best]


def _logistic(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def _accuracy(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> float:
    return (F.linear(x, weight, bias).argmax(1) == y).double().mean().item()
