import pytest
import torch
from torch import nn

from partial_finetune.head import features, fit_head, linear_classifier


def blobs(count, seed):
    """Three clusters in four dimensions, one of which is large and says nothing."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = torch.randn(count, 4, generator=random) * 0.3
    x[:, :3] += 2 * nn.functional.one_hot(labels, 3)
    x[:, 3] = 1000 + 50 * torch.randn(count, generator=random)
    return x, labels


def test_a_fitted_head_tells_clusters_apart_whatever_their_scale():
    head = nn.Linear(4, 3)
    assert fit_head(head, blobs(90, 0), blobs(60, 1)) == 1
    x, labels = blobs(300, 2)
    assert (head(x).argmax(1) == labels).float().mean() > 0.98


def test_it_is_deterministic_and_does_not_depend_on_the_initial_values():
    heads = [nn.Linear(4, 3), nn.Linear(4, 3)]
    for head in heads:
        fit_head(head, blobs(90, 0), blobs(60, 1))
    assert torch.equal(heads[0].weight, heads[1].weight) and torch.equal(heads[0].bias, heads[1].bias)


def test_features_are_what_the_classifier_sees(vit, images):
    vit.eval()
    torch.testing.assert_close(linear_classifier(vit)(features(vit, images)), vit(images))


def test_a_classifier_that_is_not_linear_is_refused(vit):
    vit.head = nn.Identity()
    with pytest.raises(ValueError, match="the classifier is Identity, which cannot be fitted; allowed: a linear one"):
        linear_classifier(vit)
