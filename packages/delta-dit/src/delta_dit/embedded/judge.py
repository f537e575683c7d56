"""Who reads the embedded model's pictures: an independent classifier of outline and texture.

It is trained on real handwritten digits that the diffusion model never saw, so that "the outline is right" means that
somebody else reads the digit that was asked for. ``delta-dit train-judge`` is the recipe of the weights shipped here.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from delta_dit.embedded.pixel import embedded_folder
from frugal_shared.datasets import TEXTURES, TexturedDigits
from frugal_shared.errors import RunError
from frugal_shared.run import Run
from frugal_shared.seeds import generator
from frugal_shared.writing import write_bytes

FOLDER = "textured-digits-judge"
SAVE_EVERY = 500  # steps
JUDGED = 2000  # images that the trained one is tested on
_AUGMENT = 1  # stream of random numbers


class Judge(nn.Module):
    """A small convolutional network with two answers: which digit, which texture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        self.features = nn.Sequential(
            *(
                layer
                for before, after in pairwise(widths)
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
            ),
            nn.Flatten(),
        )
        self.outline = nn.Linear(64 * 4 * 4, 10)
        self.texture = nn.Linear(64 * 4 * 4, len(TEXTURES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(B, 3, 32, 32)`` in [0, 1] to logits of the outline ``(B, 10)`` and the texture ``(B, 4)``."""
        features = self.features(images)
        return self.outline(features), self.texture(features)

    @torch.no_grad()
    def reads(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return per image whether the outline and whether the texture is that of its label.

        Args:
            images: ``(B, 3, 32, 32)`` in [0, 1].
            labels: ``(B,)``, digit × 4 + texture.

        Returns:
            Two bool tensors ``(B,)``.
        """
        outline, texture = self(images)
        return outline.argmax(1) == labels // len(TEXTURES), texture.argmax(1) == labels % len(TEXTURES)


def load_judge() -> Judge:
    """Return the classifier that is shipped with this package, in evaluation mode.

    Raises:
        RunError: its weights are missing or damaged.
    """
    judge, path = Judge(), embedded_folder(FOLDER) / "judge.safetensors"
    try:
        judge.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise RunError(f"the judge's weights {str(path)!r} cannot be read: {error}") from error
    return judge.eval()


def train_judge(run: Run, *, steps: int, batch_size: int, learning_rate: float) -> None:
    """Train on the split "val", test on the split "test", save ``judge.safetensors`` into the run folder.

    Args:
        run: the run; its seed decides about everything.
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: start of the cosine.
    """
    seed = run.config.seed
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.05)
    start = 0
    if (found := run.restore()) is not None:
        start, tree = found
        judge.load_state_dict(tree["model"])
        optimizer.load_state_dict(tree["optimizer"])
    data = TexturedDigits("val", seed)
    for step in run.progress(range(start, steps), initial=start, total=steps, desc="train-judge"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, labels = data.batch(step, batch_size)
        outline, texture = judge(augment(images, generator(seed, _AUGMENT, step)))
        loss = F.cross_entropy(outline, labels // 4) + F.cross_entropy(texture, labels % 4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            run.log(step + 1, loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            run.save(step + 1, {"model": judge.state_dict(), "optimizer": optimizer.state_dict()}, keep=2)
    images, labels = TexturedDigits("test", seed).batch(0, JUDGED)
    outline, texture = (right.double().mean().item() for right in judge.eval().reads(images, labels))
    write_bytes(run.folder / "judge.safetensors", save(judge.state_dict()))
    run.finish({"outline_accuracy": outline, "texture_accuracy": texture})


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Turn, shift and dirty the images a little: drawn digits are not centred and not free of noise."""
    count = len(images)
    largest = torch.tensor([[0.2], [0.12], [0.12], [0.06]])  # radians, half widths, half widths, standard deviation
    angle, x, y, noise = (torch.rand(4, count, generator=random) * 2 - 1) * largest
    cos, sin = angle.cos(), angle.sin()
    transform = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved + noise.abs()[:, None, None, None] * torch.randn(images.shape, generator=random)
