import pytest
import timm
import torch

from partial_finetune.cost import saved_bytes, training_cost
from partial_finetune.frozen import freeze

MEBI = 2**20
# strategy → share of full fine-tuning's operations, MiB of weights, gradients and Adam's moments; derived by hand for
# ViT-B/16 at 224 pixels: attention's layers are 32.0 % of the products, MLPs 63.9 %, attention itself 4.1 %, and the
# backward pass ends at the block in which the first tuned weight lies (the count: at the weight itself)
VIT_B = {
    "attn": (0.79, 652),
    "ffn": (0.89, 976),
    "first_half": (0.84, 814),
    "last_half": (0.67, 814),
    "attn_first": (0.73, 490),
    "attn_last": (0.56, 490),
    "ffn_first": (0.79, 652),
    "ffn_last": (0.61, 652),
}


@pytest.fixture(scope="module")
def vit_b():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=0)


def cost(model, strategy):
    return training_cost(model, strategy, (3, 224, 224))


@pytest.mark.parametrize("strategy", VIT_B)
def test_the_eight_strategies_of_vit_b_cost_what_was_derived_by_hand(vit_b, strategy):
    share, memory = VIT_B[strategy]
    found = cost(vit_b, strategy)
    assert found.flops / cost(vit_b, "full").flops == pytest.approx(share, abs=0.03)
    assert found.state_bytes / MEBI == pytest.approx(memory, abs=1)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_lite0"])
def test_depthwise_convolutions_cost_backward_twice_what_they_cost_forward(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    forward = cost(model, "linear").flops  # all but the head frozen
    assert cost(model, "full").flops == pytest.approx(3 * forward, rel=0.03)  # the images themselves want no gradient


def test_counting_leaves_the_model_as_it_is(vit):
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    training_cost(vit, "attn", (3, 32, 32))
    assert all(value.requires_grad and value.grad is None for value in vit.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


def test_a_frozen_prefix_keeps_nothing_for_the_backward_pass(vit, images):
    found = {}
    for strategy in ("full", "first_half", "last_half", "linear"):
        with freeze(vit, strategy), saved_bytes(vit) as saved:
            vit(images)
        found[strategy] = saved.bytes
    assert found["full"] > found["first_half"] > found["last_half"] > found["linear"]
    assert found["last_half"] == pytest.approx(found["full"] / 2, rel=0.15)
    assert found["linear"] < found["full"] / 50


def test_saved_bytes_are_those_of_one_linear_layer():
    layer = torch.nn.Linear(8, 4)
    with saved_bytes(layer) as saved:
        layer(torch.randn(16, 8))
    assert saved.bytes == 16 * 8 * 4  # its input, in fp32; the weight is the model's own
