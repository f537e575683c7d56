"""CLIP as ClipSAM uses it, on open_clip: frozen, patch tokens of some stages, and two language tokens.

The same code runs ViT-L-14-336 and the small embedded model: any open_clip model whose visual tower is a ViT, its own
or timm's.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from PIL import Image
from torch import Tensor, nn

from clipsam.prompt_bank import PromptBank, group_average

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class Backbone(nn.Module):
    """A frozen CLIP.

    Args:
        model: an open_clip model with a ViT.
        tokenizer: its tokenizer, texts to ``(N, context)``.
        image_size: side of the square that every image is resized to, a multiple of the patch. Squashed, not cropped:
            a crop would lose defects at the border, and masks would no longer lie on the image.
        stages: the blocks, counted from 0, whose patch tokens are used; the paper's 6, 12, 18, 24 are 5, 11, 17, 23.
        mean: of the pixels in [0, 1] that the model was trained with.
        std: likewise.

    Raises:
        ValueError: a size or a block that is not possible, or another visual tower.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        image_size: int,
        stages: Sequence[int] = (5, 11, 17, 23),
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
    ) -> None:
        super().__init__()
        self.tower = Tower(model.visual, tuple(stages))
        if image_size < self.patch or image_size % self.patch:
            raise ValueError(f"image_size={image_size!r} is not possible; allowed: multiples of {self.patch}")
        self.tokenizer, self.image_size = tokenizer, image_size
        self.model: Any = model
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self._texts: dict[tuple[str, str], Tensor] = {}
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_open_clip(cls, name: str, pretrained: str | None = None, *, image_size: int, **options: Any) -> Self:
        """Build an open_clip model.

        OpenAI's weights need QuickGELU: open_clip builds plain GELU under their plain names and only warns, so their
        tag asks for it here.

        Args:
            name: such as "ViT-L-14-336".
            pretrained: a tag such as "openai", or the path of a file; None for random weights. For a file of OpenAI's
                weights use the name with "-quickgelu".
            image_size: see the class.
            options: the class's others.

        Raises:
            ValueError: an unknown model, or weights that cannot be loaded.
        """
        quick = bool(open_clip.get_pretrained_cfg(name, pretrained or "").get("quick_gelu"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
                model = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick)
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # hub, network, file and format errors share no base class
            why = (str(error).splitlines() or [type(error).__name__])[0][:300]  # or all of open_clip's names
            raise ValueError(f"CLIP {name!r} with weights {pretrained!r} cannot be loaded: {why}") from error
        pixels = open_clip.get_model_preprocess_cfg(model)
        statistics = {key: pixels[key] for key in ("mean", "std") if key in pixels}
        return cls(model, tokenizer, image_size=image_size, **statistics, **options)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.tower.patch

    @property
    def stages(self) -> tuple[int, ...]:
        """The blocks, counted from 0, whose patch tokens are used."""
        return self.tower.stages

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.tower.position.dtype

    @property
    def width(self) -> int:
        """C, channels of the patch tokens."""
        return self.tower.position.shape[-1]

    @property
    def text_dim(self) -> int:
        """C_t, dimension of the joint space."""
        return self.model.encode_text(self.tokenizer(["a"])).shape[-1]

    @cached_property
    def hash(self) -> str:
        """The sha256 of all weights: heads are only valid with those they were trained with."""
        return weights_hash(self.model)

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let the towers keep their weights and compute in another number format; what they return stays float32.

        The hash stays that of the weights as they were.
        """
        if dtype != self.dtype:
            _ = self.hash
            self.to(dtype)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._texts.clear()  # they are elsewhere, or in another number format, than the networks are from now on
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: nothing in here is ever trained."""
        return super().train(False)

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an image ``(H, W, 3)``, RGB in 0..255, as the model takes it: ``(3, S, S)``, squashed, normalised."""
        square = Image.fromarray(image).resize([self.image_size] * 2, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).float() / 255
        return ((pixels - self.mean) / self.std).permute(2, 0, 1)

    @torch.no_grad()
    def patches(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens of every stage, each ``(B, C, h, w)``.

        Args:
            images: ``(B, 3, H, W)``, normalised; H and W any multiples of the patch.
        """
        return [tokens.float() for tokens in self.tower(images, self.stages)]

    @torch.no_grad()
    def joint(self, images: Tensor) -> Tensor:
        """Return the patch tokens in the joint space, of length 1: ``(B, C_t, h, w)``.

        They are the last block's, through the tower's own norm and projection. CLIP was trained for the image as a
        whole; how far its single patches mean something differs from model to model.
        """
        [last] = self.tower(images, self.tower.last)
        return F.normalize(self.tower.project(last).float(), dim=1)

    @torch.no_grad()
    def patches_and_joint(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what :meth:`patches` and :meth:`joint` do, for the price of one."""
        blocks = tuple(dict.fromkeys(self.stages + self.tower.last))
        tokens = self.tower(images, blocks)
        joint = F.normalize(self.tower.project(tokens[-1]).float(), dim=1)
        return [stage.float() for stage in tokens[: len(self.stages)]], joint

    @torch.no_grad()
    def text(self, category: str, bank: PromptBank) -> Tensor:
        """Return the language tokens L, ``(2, C_t)``, of length 1: normal, abnormal. Encoded once for each category."""
        key = category, bank.hash
        if key not in self._texts:
            groups = [self.tokenizer(list(group)) for group in bank.prompts(category)]
            device = next(self.model.parameters()).device
            encoded = [self.model.encode_text(tokens.to(device)).float() for tokens in groups]
            self._texts[key] = torch.stack([group_average(embeddings) for embeddings in encoded])
        return self._texts[key]


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


class Tower(nn.Module):
    """A visual tower seen as patch tokens, for images of any size."""

    def __init__(self, visual: Any, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.visual: Any = visual
        self.patch: int
        self._timm = isinstance(visual, TimmModel)
        if self._timm and hasattr(visual.trunk, "pos_embed"):
            trunk = visual.trunk
            self._position_name, self.patch = "visual.trunk.pos_embed", trunk.patch_embed.patch_size[0]
            trunk.patch_embed.strict_img_size = False  # the position embedding is resized here instead
            blocks = len(trunk.blocks)
        elif hasattr(visual, "positional_embedding") and hasattr(visual, "transformer"):
            self._position_name, self.patch = "visual.positional_embedding", visual.patch_size[0]
            blocks = len(visual.transformer.resblocks)
        else:
            raise ValueError(f"the visual tower is a {type(visual).__name__}; allowed: a vision transformer")
        if not stages or list(stages) != sorted(set(stages)) or not 0 <= stages[0] <= stages[-1] < blocks:
            raise ValueError(f"stages={stages!r} are not possible; allowed: rising numbers from 0 to {blocks - 1}")
        self.last = (blocks - 1,)
        self._positions: dict[tuple[int, int], Tensor] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._positions.clear()
        return super()._apply(fn, recurse)

    @property
    def position(self) -> Tensor:
        """The position embedding that the tower was trained with, ``([1,] 1 + N, C)``."""
        return self.get_parameter(self._position_name)

    def position_for(self, height: int, width: int) -> Tensor:
        """Return the position embedding of a grid, interpolated (bicubic) once; the tower's own is left as it is."""
        own = self.position
        tokens = own.reshape(-1, own.shape[-1])
        side = int((len(tokens) - 1) ** 0.5)
        if (height, width) == (side, side):
            return own
        if (height, width) not in self._positions:
            grid = tokens[1:].T.reshape(1, -1, side, side).float()
            grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
            resized = torch.cat([tokens[:1], grid.flatten(2)[0].T.to(own.dtype)])
            self._positions[height, width] = resized.reshape(*own.shape[:-2], *resized.shape)
        return self._positions[height, width]

    def forward(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Return the patch tokens of some blocks, in rising order, ``(B, C, h, w)`` each."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height}×{width} pixels; allowed: multiples of {self.patch}")
        position = {f"tower.{self._position_name}": self.position_for(height // self.patch, width // self.patch)}
        images = images.to(self.position.dtype)
        return torch.func.functional_call(_Intermediates(self), position, (images, list(blocks)))

    def project(self, last: Tensor) -> Tensor:
        """Bring the last block's patch tokens ``(B, C, h, w)`` to the joint space, ``(B, C_t, h, w)``."""
        visual, tokens = self.visual, last.movedim(1, -1)
        if self._timm:
            # one of the two norms is an identity: which one depends on how the trunk pools
            return visual.head(visual.trunk.fc_norm(visual.trunk.norm(tokens))).movedim(-1, 1)
        tokens = visual.ln_post(tokens)
        return (tokens if visual.proj is None else tokens @ visual.proj).movedim(-1, 1)


class _Intermediates(nn.Module):
    """A tower's tokens as a module's forward, which is what functional_call can call."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor, blocks: list[int]) -> list[Tensor]:
        options = {"indices": blocks, "output_fmt": "NCHW", "intermediates_only": True, "stop_early": True}
        return self.tower.visual.forward_intermediates(images, **options)["image_intermediates"]
