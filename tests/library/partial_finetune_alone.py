"""One step of a tiny ViT of timm's, with random weights, of which only attention is tuned."""

import timm
import torch

from partial_finetune import freeze

torch.manual_seed(0)
model = timm.create_model("test_vit", num_classes=4)
before = {name: value.clone() for name, value in model.state_dict().items()}
frozen = freeze(model, "attn")
optimizer = torch.optim.AdamW(frozen.parameters(), lr=1e-2)
frozen.check(optimizer)
model.train()
logits = model(torch.randn(2, *model.default_cfg["input_size"]))
torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
optimizer.step()
changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
assert changed, "nothing was tuned"
assert all(".attn." in name or name.startswith(("norm.", "head.")) for name in changed), changed
