"""UMCI, Unified Multi-scale Cross-modal Interaction (ClipSAM, arXiv 2401.12665, Fig. 2): patches meet language.

The patch tokens P of one CLIP stage are pooled to a row, a column and two coarse grids; each of them exchanges
information with the two language tokens L (normal, abnormal), and together they give two logits per patch::

    V1 = mean over rows, V2 = mean over columns, V3, V4 = means over cells of two sizes
    M1, M2 = StripPath(V1, L), StripPath(V2, L)          M3, M4 = ScalePath(V3, L), ScalePath(V4, L)
    S = head(conv[conv(expand(M1) + expand(M2)), conv(expand(M3) + expand(M4))])

Read off the figure: the parts, their order, what is query, key and value, and that a residual starts after the
convolution. Reconstructed, since neither the figure nor any published code tells them: kernel sizes, one attention
head, the norms, the GRU's initial state, the pooling sizes and strides, the widths. There, and only there, the
defaults are this package's.

Equivariance: nothing knows which of the two tokens is "abnormal" but the head, whose two logits are each the similarity
of a patch with that token. Swapping the tokens swaps the logits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # of every GroupNorm: unlike batch norm, an image's map does not depend on the images beside it


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V, single-headed, over ``(B, N, d)`` and twice ``(B, M, d)``; returns ``(B, N, d)``."""
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])[:, 0]


class StripPath(nn.Module):
    """Language tokens gather a strip of patches, and the strip then attends to them.

    ::

        v = conv(V), l_q = conv(L), l_v = conv(L)
        a = Attention(Q=l_q, K=v, V=v)
        k = GRU(a, l_q)
        M = v + Norm(Attention(Q=v, K=k, V=l_v))

    Args:
        width: d.
        text_dim: C_t.
    """

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.visual = nn.Conv1d(width, width, 3, padding=1)
        self.query = nn.Linear(text_dim, width)
        self.value = nn.Linear(text_dim, width)
        # a cell for each token by itself: a GRU over the sequence of two would tell them apart by their order
        self.gru = nn.GRUCell(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, strip: Tensor, language: Tensor) -> Tensor:
        """Return M ``(B, d, N)`` of a strip ``(B, d, N)`` and language tokens ``(B, 2, C_t)``."""
        v = self.visual(strip).transpose(1, 2)  # (B, N, d)
        l_q, l_v = self.query(language), self.value(language)  # (B, 2, d)
        a = attention(l_q, v, v)
        k = self.gru(a.flatten(0, 1), l_q.flatten(0, 1)).view_as(a)
        m = v + self.norm(attention(v, k, l_v))
        return m.transpose(1, 2)


class ScalePath(nn.Module):
    """Coarse cells attend to the language tokens: Q = conv(V), M = Q + Norm(Attention(Q, conv(L), conv(L))).

    Args:
        width: d.
        text_dim: C_t.
    """

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(width, width, 3, padding=1)
        self.key = nn.Linear(text_dim, width)
        self.value = nn.Linear(text_dim, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, cells: Tensor, language: Tensor) -> Tensor:
        """Return M ``(B, d, h, w)`` of cells ``(B, d, h, w)`` and language tokens ``(B, 2, C_t)``."""
        queries = self.query(cells)
        q = queries.flatten(2).transpose(1, 2)  # (B, hw, d)
        m = q + self.norm(attention(q, self.key(language), self.value(language)))
        return m.transpose(1, 2).view_as(queries)


class UMCI(nn.Module):
    """One stage's module: patch tokens and language tokens in, two logits per patch out.

    Args:
        in_channels: C, width of the visual tower.
        text_dim: C_t, width of the joint space.
        hidden: d; wider is better and slower.
        pool_kernels: sides of the two coarse cells, in patches.
        pool_stride: distance between cells; default: their own side, i.e. they tile the grid. With 1 and kernels like
            (1, 3) the "coarse" cells keep every patch, which small grids need.

    Raises:
        ValueError: an option that is not possible.
    """

    def __init__(
        self,
        in_channels: int,
        text_dim: int,
        *,
        hidden: int = 256,
        pool_kernels: tuple[int, int] = (3, 9),
        pool_stride: int | None = None,
    ) -> None:
        super().__init__()
        if hidden < GROUPS or hidden % GROUPS:
            raise ValueError(f"hidden={hidden!r} is not possible; allowed: multiples of {GROUPS}")
        if len(pool_kernels) != 2 or min(pool_kernels) < 1:
            raise ValueError(f"pool_kernels={pool_kernels!r} are not possible; allowed: two of 1 or more")
        self.pool_kernels, self.pool_stride = tuple(pool_kernels), pool_stride
        self.project = nn.Sequential(nn.LayerNorm(in_channels), nn.Linear(in_channels, hidden))
        self.column_path, self.row_path = StripPath(hidden, text_dim), StripPath(hidden, text_dim)
        self.scale_paths = nn.ModuleList(ScalePath(hidden, text_dim) for _ in pool_kernels)
        self.join_strips, self.join_scales = convolution(hidden, hidden), convolution(hidden, hidden)
        self.join = convolution(2 * hidden, hidden)
        self.language = nn.Linear(text_dim, hidden)

    def forward(self, patches: Tensor, language: Tensor) -> Tensor:
        """Return the logits S ``(B, 2, H, W)``: normal, abnormal.

        Args:
            patches: P, ``(B, C, H, W)``.
            language: L, ``(2, C_t)`` for all images or ``(B, 2, C_t)``: normal, abnormal.
        """
        height, width = patches.shape[-2:]
        language = language.expand(patches.shape[0], -1, -1)
        p = self.project(patches.movedim(1, -1)).movedim(-1, 1)  # (B, d, H, W)
        columns = self.column_path(p.mean(2), language)[:, :, None]  # V1 → M1, (B, d, 1, W)
        rows = self.row_path(p.mean(3), language)[..., None]  # V2 → M2, (B, d, H, 1)
        scales = [
            F.interpolate(path(self.pool(p, kernel), language), (height, width), mode="bilinear", align_corners=False)
            for path, kernel in zip(self.scale_paths, self.pool_kernels)
        ]
        joined = self.join(torch.cat([self.join_strips(columns + rows), self.join_scales(sum(scales))], dim=1))
        return torch.einsum("bdhw,bld->blhw", joined, self.language(language)) / joined.shape[1] ** 0.5

    def pool(self, patches: Tensor, kernel: int) -> Tensor:
        """Return means over cells; at the far borders over the part of a cell that lies on the grid."""
        kernel_size = [min(kernel, side) for side in patches.shape[-2:]]
        if self.pool_stride is None:
            return F.avg_pool2d(patches, kernel_size, ceil_mode=True)
        padding = [side // 2 for side in kernel_size]
        return F.avg_pool2d(patches, kernel_size, self.pool_stride, padding, count_include_pad=False)


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return 3×3 convolution, group norm and GELU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.GroupNorm(GROUPS, out_channels), nn.GELU()
    )


class UMCIHead(nn.Module):
    """One :class:`UMCI` per stage of the visual tower.

    Args:
        stages: how many.
        in_channels: C, width of the visual tower.
        text_dim: C_t, width of the joint space.
        options: the others of :class:`UMCI`.
    """

    def __init__(self, stages: int, in_channels: int, text_dim: int, **options: object) -> None:
        super().__init__()
        self.stages = nn.ModuleList(UMCI(in_channels, text_dim, **options) for _ in range(stages))  # pyright: ignore[reportArgumentType]

    def forward(self, patches: Sequence[Tensor], language: Tensor) -> list[Tensor]:
        """Return the logits ``(B, 2, H, W)`` of every stage, from its patch tokens ``(B, C, H, W)``."""
        if len(patches) != len(self.stages):
            raise ValueError(f"{len(patches)} stages of patch tokens; allowed: {len(self.stages)}")
        return [stage(p, language) for stage, p in zip(self.stages, patches)]


def rough_map(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean over stages of the probability of "abnormal", ``(B, H, W)`` in [0, 1].

    The paper adds the stages and normalises. A norm per image would lift every normal image to 1, so that neither
    scores nor thresholds could be compared between images; the mean of probabilities needs none.
    """
    return torch.stack([stage.softmax(1)[:, 1] for stage in logits]).mean(0)
