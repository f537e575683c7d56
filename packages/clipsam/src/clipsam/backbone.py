"""CLIP as ClipSAM uses it, on open_clip: frozen, patch tokens of some stages, and two language tokens.

The same code runs ViT-L-14-336 and the small embedded model: any open_clip model whose visual tower is a ViT, its own
or timm's.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipsam.precision import TowerPrecision
from clipsam.prompt_bank import PromptBank, group_average
from clipsam.towers import TimmTower, Tower

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


ACTIVATION = re.compile("(GELU|SiLU|ReLU|SwiGLU)")  # in the names of classes


class Backbone(TowerPrecision):
    """A frozen CLIP.

    Args:
        model: an open_clip model with a ViT.
        tokenizer: its tokenizer, texts to ``(N, context)``.
        image_size: side of the square that every image is resized to, a multiple of every tower's patch. Squashed, not
            cropped: a crop would lose defects at the border, and masks would no longer lie on the image.
        stages: the blocks, counted from 0, whose patch tokens are used; the paper's 6, 12, 18, 24 are 5, 11, 17, 23.
        mean: of the pixels in [0, 1] that the model was trained with.
        std: likewise.
        tower: another tower whose patch tokens are used instead of CLIP's own; the map from texts stays CLIP's.
        name: of this CLIP, for messages.
        source: what :func:`~clipsam.clip_files.open_backbone` makes it of again; None if nobody can.

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
        tower: TimmTower | None = None,
        name: str = "a CLIP without a name",
        source: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tower, self.other = Tower(model.visual), tower
        self.stages, self.name, self.source = tuple(stages), name, source
        blocks = self.patch_tower.blocks
        if not stages or list(stages) != sorted(set(stages)) or not 0 <= stages[0] <= stages[-1] < blocks:
            raise ValueError(f"stages={stages!r} are not possible; allowed: rising numbers from 0 to {blocks - 1}")
        if image_size < 1 or image_size % self.patch:
            raise ValueError(f"image_size={image_size!r} is not possible; allowed: multiples of {self.patch}")
        self.tokenizer, self.image_size = tokenizer, image_size
        self.model: Any = model
        self.mean, self.std = torch.tensor(tuple(mean)), torch.tensor(tuple(std))
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
        return cls(model, tokenizer, image_size=image_size, **statistics, **told(name, pretrained), **options)

    @property
    def patch(self) -> int:
        """What the sides of images have to be multiples of: the patch, of two towers the least common multiple."""
        return math.lcm(self.tower.patch, self.other.patch if self.other else 1)

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.tower.dtype

    @property
    def patch_tower(self) -> Tower | TimmTower:
        """The tower whose patch tokens are used."""
        return self.other or self.tower

    @property
    def width(self) -> int:
        """C, channels of the patch tokens."""
        return self.patch_tower.width

    @property
    def text_dim(self) -> int:
        """C_t, dimension of the joint space."""
        return self.model.encode_text(self.tokenizer(["a"]).to(self.device)).shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.tower.position.device

    @property
    def configuration(self) -> dict[str, Any]:
        """What the weights do not tell of the networks that they are loaded into, such as the activation."""
        networks = [self.model] if self.other is None else [self.model, self.other.visual]
        modules = [module for network in networks for module in network.modules()]
        kinds = {type(module).__name__ for module in modules}
        heads = {count for module in modules if isinstance(count := getattr(module, "num_heads", None), int)}
        statistics = [self.mean.tolist(), self.std.tolist()]
        if self.other is not None:
            statistics += [list(self.other.mean), list(self.other.std)]
        return {
            "activation": sorted(filter(ACTIVATION.search, kinds)),
            "heads": sorted(heads),
            "patch": [self.tower.patch] if self.other is None else [self.tower.patch, self.other.patch],
            "statistics": [[round(value, 6) for value in values] for values in statistics],
        }

    @cached_property
    def hash(self) -> str:
        """The sha256 of weights and configuration: heads are only valid with those that they were trained with."""
        networks = [self.model] if self.other is None else [self.model, self.other]
        return weights_hash(*networks, told=json.dumps(self.configuration, sort_keys=True))

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let the towers keep their weights and compute in another number format; what they return stays float32.

        The hash stays that of the weights as they were.
        """
        if dtype != self.dtype:
            _ = self.hash
            self._apply(lambda values: values.to(dtype) if values.is_floating_point() else values)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._texts.clear()  # they are elsewhere, or in another number format, than the networks are from now on
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: nothing in here is ever trained."""
        return super().train(False)

    def preprocess(self, image: NDArray[np.uint8], side: int | None = None) -> Tensor:
        """Return an image ``(H, W, 3)``, RGB in 0..255, as the model takes it: ``(3, S, S)``, squashed, normalised.

        Args:
            image: of any size.
            side: S, a multiple of the patch; unset: the usual one.
        """
        square = Image.fromarray(image).resize([side or self.image_size] * 2, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).float() / 255
        return ((pixels - self.mean) / self.std).permute(2, 0, 1)

    @torch.no_grad()
    def patches(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens of every stage, each ``(B, C, h, w)``.

        Args:
            images: ``(B, 3, H, W)``, normalised; H and W any multiples of the patch.
        """
        if self.other is None:
            return [tokens.float() for tokens in self.tower(images, self.stages)]
        mean, std = (values.to(images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return [tokens.float() for tokens in self.other(images * std + mean, self.stages)]

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
        if self.other is not None:
            return self.patches(images), self.joint(images)
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
            encoded = [self.model.encode_text(tokens.to(self.device)).float() for tokens in groups]
            self._texts[key] = torch.stack([group_average(embeddings) for embeddings in encoded])
        return self._texts[key]


def weights_hash(*networks: nn.Module, told: str = "") -> str:
    """Return the sha256 of the weights of some networks, and of what else is told of them."""
    digest = hashlib.sha256(told.encode())
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def told(clip: str, weights: str | None) -> dict[str, Any]:
    """Return the name of a CLIP that a name and weights stand for, and where it comes from, as the class takes them."""
    if weights is None:
        return {"name": f"{clip} with random weights"}
    return {"name": f"{clip} ({Path(weights).name})", "source": {"clip": clip, "weights": whole(weights)}}


def whole(name: str) -> str:
    """Return the whole path of a file or folder, for whoever works elsewhere; a name that is none as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name
