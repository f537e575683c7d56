import pytest
import torch

from partial_finetune import predict
from partial_finetune.head import embed, features, linear_classifier
from partial_finetune.prediction import forward


@pytest.fixture
def batches(images):
    return [(images[:3], torch.tensor([0, 1, 2])), (images[3:], torch.tensor([3]))]


def test_logits_and_labels_of_all_batches_are_those_of_the_model(make_vit, images, batches):
    model = make_vit(drop_path_rate=0.5).train()
    logits, labels = predict(model, batches)
    assert labels.tolist() == [0, 1, 2, 3] and not logits.requires_grad
    torch.testing.assert_close(logits, model.eval()(images))


def test_every_module_is_afterwards_in_the_mode_that_it_was_in(vit, batches):
    vit.train()
    vit.blocks[1].eval()
    modes = [module.training for module in vit.modules()]
    predict(vit, batches)
    assert [module.training for module in vit.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        list(forward(vit, batches, lambda *_: 1 / 0))
    assert [module.training for module in vit.modules()] == modes


def test_half_precision_networks_are_given_images_of_their_own_kind(vit, batches):
    logits, _ = predict(vit.bfloat16(), batches[1:])
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())


def test_embedded_images_are_what_the_classifier_sees(vit, images, batches):
    vit.eval()
    found, labels = embed(vit, batches)
    torch.testing.assert_close(found, features(vit, images).detach())
    torch.testing.assert_close(linear_classifier(vit)(found), predict(vit, batches)[0])
    assert labels.tolist() == [0, 1, 2, 3]


def test_no_batches_are_refused(vit):
    with pytest.raises(ValueError, match="there are no batches; allowed: one or more"):
        predict(vit, [])
