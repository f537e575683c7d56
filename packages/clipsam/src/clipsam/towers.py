"""Visual towers seen as patch tokens: CLIP's own, and another one beside it."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Self

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import Tensor, nn


class Tower(nn.Module):
    """CLIP's visual tower seen as patch tokens, for images of any size.

    Args:
        visual: open_clip's, its own ViT or timm's.

    Raises:
        ValueError: another network.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
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
        self.blocks = blocks
        self.last = (blocks - 1,)
        self._positions: dict[tuple[int, int], Tensor] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._positions.clear()
        return super()._apply(fn, recurse)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.position.dtype

    @property
    def width(self) -> int:
        """C, channels of its patch tokens."""
        return self.position.shape[-1]

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


class TimmTower(nn.Module):
    """Another tower beside CLIP's as the source of patch tokens, such as DINOv2 or DINOv3: a ViT of timm's.

    Args:
        trunk: the network; its position embedding is resized or made for any grid by itself.
        mean: of the pixels in [0, 1] that it was trained with.
        std: likewise.

    Raises:
        ValueError: another kind of network.
    """

    def __init__(self, trunk: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not hasattr(trunk, "blocks") or not hasattr(getattr(trunk, "patch_embed", None), "patch_size"):
            raise ValueError(f"the tower is a {type(trunk).__name__}; allowed: a vision transformer")
        self.visual: Any = trunk.eval()
        self.patch: int = trunk.patch_embed.patch_size[0]
        self.blocks, self.width = len(trunk.blocks), int(trunk.embed_dim)
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def from_timm(cls, name: str, weights: str | None = None) -> Self:
        """Build a tower.

        Args:
            name: timm's, such as "vit_small_patch14_dinov2.lvd142m" or "vit_small_patch16_dinov3.lvd1689m".
            weights: the path of a file, timm's own or the authors'; "timm" for those that the name stands for; None for
                random ones.

        Raises:
            ValueError: an unknown name, another kind of network, or weights that cannot be loaded.
            ImportError: timm is missing.
        """
        try:
            timm = import_module("timm")
        except ImportError as error:
            raise ImportError("a tower beside CLIP's needs: pip install timm") from error
        given: dict[str, Any] = {"pretrained": weights is not None}
        if weights not in (None, "timm"):
            given["pretrained_cfg_overlay"] = {"file": str(weights)}
        try:
            trunk = timm.create_model(name, num_classes=0, dynamic_img_size=True, **given)
        except Exception as error:  # hub, network, file and format errors share no base class
            why = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise ValueError(f"tower {name!r} with weights {weights!r} cannot be loaded: {why}") from error
        return cls(trunk, trunk.pretrained_cfg["mean"], trunk.pretrained_cfg["std"])

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.visual.parameters()).dtype

    def forward(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Return the patch tokens of some blocks, in rising order, ``(B, C, h, w)`` each.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1], H and W multiples of the patch.
            blocks: counted from 0.
        """
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        options = {"indices": list(blocks), "output_fmt": "NCHW", "intermediates_only": True, "stop_early": True}
        return self.visual.forward_intermediates(((images - mean) / std).to(self.dtype), **options)
