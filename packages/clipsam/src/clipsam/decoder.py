"""SAM's mask decoder for many prompts of one image: the same masks for a fraction of the work.

A prompt is T ≈ 10 tokens, the image N = 4096 tokens ("pixels") of width C. Segment Anything's own decoder (Kirillov et
al., arXiv 2304.02643) forms and projects all pixels anew for every prompt. But what a prompt does to the pixels is of
low rank: an attention to T tokens adds weights ``(N, heads · T)`` times values ``(heads · T, C)``, and a layer norm
scales each pixel. So the pixels of every prompt stay ::

    a ⊙ x + Sᵀ B F      x (N, C), F (K, C) the same for all prompts; a (N), S (R, N), B (R, K)

and any linear layer needs ``W x`` and ``W F`` once for the image. B is block-diagonal, since each head has a part of F
for its own. The pixels themselves are never formed. The modules and weights are the decoder's own; nothing is trained
here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Shared:
    """What the pixels of all prompts have in common.

    Args:
        x: ``(N, C)``.
        frames: F in parts, each ``(h, k, C)``: of every head of an attention what its k numbers stand for.
    """

    x: Tensor
    frames: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Shared":
        """Return what a linear function of the last axis makes of this."""
        return Shared(function(self.x), tuple(map(function, self.frames)))


@dataclass(frozen=True, eq=False)
class Pixels:
    """What the pixels of each of Q prompts have of their own.

    Args:
        scale: a, ``(Q, 1, N)``.
        rows: S, ``(Q, R, N)``.
        numbers: B in parts, each ``(Q, h, T, k)`` with h · T of the R rows.
    """

    scale: Tensor
    rows: Tensor
    numbers: tuple[Tensor, ...]

    def plus(self, rows: Tensor, numbers: Tensor) -> "Pixels":
        """Return these pixels with more rows ``(Q, h · T, N)`` and their numbers ``(Q, h, T, k)``."""
        return Pixels(self.scale, torch.cat([self.rows, rows], 1), (*self.numbers, numbers))

    def basis(self, frames: tuple[Tensor, ...]) -> Tensor:
        """Return U = B F, ``(Q, R, C)``, for frames of any width C."""
        return torch.cat([by_frame(*pair).flatten(1, 2) for pair in zip(self.numbers, frames)], 1)


class PromptDecoder:
    """The mask decoder on one image, for prompts without a mask.

    Args:
        decoder: segment_anything's, of any size.
        image: the image's embedding plus that of "no mask", ``(1, C, g, g)``.
        position: the encoding of the grid's positions, ``(1, C, g, g)``.
    """

    def __init__(self, decoder: MaskDecoder, image: Tensor, position: Tensor) -> None:
        self.decoder: Any = decoder
        self.grid = image.shape[-2:]
        x, position = (part[0].flatten(1).T.contiguous() for part in (image, position))  # (N, C)
        shared = Shared(x, (x.new_empty(1, 0, x.shape[1]),))
        self.start = x.new_ones(1, 1, len(x)), x.new_empty(1, 0, len(x)), x.new_empty(1, 1, 0, 0)
        self.layers: list[Layer] = []
        for layer in self.decoder.transformer.layers:
            self.layers.append(Layer(layer, shared, position))
            shared = self.layers[-1].norm.shared
        self.final = ToPixels(self.decoder.transformer.final_attn_token_to_image, shared, position)
        up = self.decoder.output_upscaling[0]
        self.up = Linear(linear_weight(up), up.bias.repeat(4), shared)

    def __call__(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embedded prompts ``(Q, k, C)``: logits of the multiple masks ``(Q, 3, 4g, 4g)``, scores ``(Q, 3)``."""
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        place = torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)  # (Q, T, C)
        scale, rows, numbers = (part.expand(len(prompts), *part.shape[1:]) for part in self.start)
        tokens, pixels = place, Pixels(scale, rows, (numbers,))
        for layer in self.layers:
            tokens, pixels = layer(tokens, place, pixels)
        tokens = self.decoder.transformer.norm_final_attn(tokens + self.final(tokens + place, pixels))
        score, _, *masks = tokens[:, : len(own)].unbind(1)
        return self.masks(pixels, masks), self.decoder.iou_prediction_head(score)[:, 1:]

    def masks(self, pixels: Pixels, tokens: list[Tensor]) -> Tensor:
        """Return the logits of pixels for every mask's token ``(Q, C)``; the single mask, the first, is not asked for.

        It is the module's upscaling with channels last: transposed convolutions whose stride is their kernel are
        products, every pixel's 2×2 following it.
        """
        up, norm, activation, again, activation_again = self.decoder.output_upscaling
        values = self.up(pixels).view(len(tokens[0]), -1, up.out_channels)  # (Q, 4N, C / 4)
        values = activation(F.layer_norm(values, (up.out_channels,), norm.weight, norm.bias, norm.eps))
        values = F.linear(values, linear_weight(again), again.bias.repeat(4)).view(len(values), -1, again.out_channels)
        heads = self.decoder.output_hypernetworks_mlps[1:]
        weights = torch.stack([head(token) for head, token in zip(heads, tokens)], dim=1)  # (Q, 3, C / 8)
        return unfold(weights @ activation_again(values).mT, self.grid)


class Layer:
    """One layer of the two-way transformer.

    Args:
        layer: segment_anything's.
        shared: what the prompts' pixels have in common.
        position: ``(N, C)``.
    """

    def __init__(self, layer: Any, shared: Shared, position: Tensor) -> None:
        self.layer = layer
        self.to_pixels = ToPixels(layer.cross_attn_token_to_image, shared, position)
        self.to_tokens = ToTokens(layer.cross_attn_image_to_token, shared, position)
        self.norm = Norm(layer.norm4, Shared(shared.x, (*shared.frames, self.to_tokens.frame)))

    def __call__(self, tokens: Tensor, place: Tensor, pixels: Pixels) -> tuple[Tensor, Pixels]:
        """Return new tokens ``(Q, T, C)`` and pixels; ``place`` is added to tokens wherever they are compared."""
        layer = self.layer
        if layer.skip_first_layer_pe:
            tokens = layer.norm1(layer.self_attn(tokens, tokens, tokens))
        else:
            tokens = layer.norm1(tokens + layer.self_attn(tokens + place, tokens + place, tokens))
        tokens = layer.norm2(tokens + self.to_pixels(tokens + place, pixels))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        return tokens, self.norm(pixels.plus(*self.to_tokens(pixels, tokens + place, tokens)))


class ToPixels:
    """Attention of the tokens to the pixels."""

    def __init__(self, attention: Any, shared: Shared, position: Tensor) -> None:
        self.attention = attention
        self.keys = Heads(attention.k_proj, attention.num_heads, shared, position)
        self.values = Heads(attention.v_proj, attention.num_heads, shared)

    def __call__(self, tokens: Tensor, pixels: Pixels) -> Tensor:
        """Return what tokens ``(Q, T, C)`` read of the pixels, ``(Q, T, C)``."""
        queries = by_head(self.attention.q_proj(tokens), self.attention.num_heads)
        weights = (self.keys.dot(queries * queries.shape[-1] ** -0.5, pixels)).softmax(-1)
        return self.attention.out_proj(self.values.mean(weights, pixels).transpose(1, 2).flatten(2))


class ToTokens:
    """Attention of the pixels to the tokens."""

    def __init__(self, attention: Any, shared: Shared, position: Tensor) -> None:
        self.attention = attention
        self.queries = Heads(attention.q_proj, attention.num_heads, shared, position)
        out = attention.out_proj.weight.T.unflatten(0, (attention.num_heads, -1))
        bias = attention.out_proj.bias.expand(len(out), 1, -1) / len(out)
        self.frame = torch.cat([out, bias], 1)
        """Of what is read, with a one behind it, ``(heads, d + 1, C)``: every head's weights sum to 1, so that the
        bias can ride on it."""

    def __call__(self, pixels: Pixels, tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pixels read of ``values`` ``(Q, T, C)``: rows ``(Q, heads · T, N)`` and their numbers."""
        attention, heads = self.attention, self.attention.num_heads
        keys = by_head(attention.k_proj(tokens), heads)
        weights = self.queries.dot(keys * keys.shape[-1] ** -0.5, pixels).softmax(2)  # (Q, heads, T, N)
        return weights.flatten(1, 2), F.pad(by_head(attention.v_proj(values), heads), (0, 1), value=1.0)


class Norm:
    """A layer norm of pixels: x and F lose their means over the channels for good, and a and S are divided.

    Args:
        norm: γ and β.
        shared: what the prompts' pixels have in common.
    """

    def __init__(self, norm: nn.LayerNorm, shared: Shared) -> None:
        self.eps = norm.eps
        self.centred = shared.map(lambda values: values - values.mean(-1, keepdim=True))
        self.square = self.centred.x.square().sum(-1)
        self.cross = tuple(frame @ self.centred.x.T for frame in self.centred.frames)  # (h, k, N)
        scaled = self.centred.map(lambda values: values * norm.weight)
        self.shared = Shared(scaled.x, (*scaled.frames, norm.bias.view(1, 1, -1)))
        """What the prompts' pixels have in common from now on."""

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return the pixels normalised, with γ in x and F, and β as one more row."""
        a, s, u = pixels.scale, pixels.rows, pixels.basis(self.centred.frames)
        # |a x + Sᵀ U|² = a² |x|² + 2 a S · (U xᵀ) + S · (U Uᵀ S), for every pixel
        cross = pixels.basis(self.cross).mul_(2 * a)
        square = a.square() * self.square + cross.baddbmm_(u @ u.mT, s).mul_(s).sum(1, keepdim=True)
        inverse = (square / u.shape[-1] + self.eps).rsqrt()
        ones = torch.ones_like(a)
        return Pixels(a * inverse, s * inverse, pixels.numbers).plus(ones, ones[:, None, :, :1])


class Linear:
    """A linear layer of pixels.

    Args:
        weight: W, ``(C', C)``.
        bias: b, ``(C')``.
        shared: what the prompts' pixels have in common.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shared: Shared) -> None:
        self.bias = bias
        self.shared = shared.map(lambda values: values @ weight.T)

    def __call__(self, pixels: Pixels) -> Tensor:
        """Return W (a ⊙ x + Sᵀ B F) + b, ``(Q, N, C')``."""
        own = torch.addcmul(self.bias, pixels.scale.mT, self.shared.x)
        return own.baddbmm_(pixels.rows.mT, pixels.basis(self.shared.frames))


class Heads:
    """A linear layer of pixels, split into the heads of an attention, that meets tokens without being formed.

    Args:
        linear: W and b, C → heads · d.
        heads: how many.
        shared: what the prompts' pixels have in common.
        position: added to the pixels, ``(N, C)``; None: nothing is.
    """

    def __init__(self, linear: nn.Linear, heads: int, shared: Shared, position: Tensor | None = None) -> None:
        self.heads = heads
        mapped = shared.map(lambda values: values @ linear.weight.T)
        self.x = by_head(mapped.x, heads).mT.contiguous()  # (heads, d, N)
        self.frames = mapped.frames
        self.bias = linear.bias.view(heads, 1, -1)
        self.place = self.bias.mT if position is None else by_head(linear(position), heads).mT.contiguous()

    def dot(self, tokens: Tensor, pixels: Pixels) -> Tensor:
        """Return the products of tokens ``(Q, heads, T, d)`` with all pixels, ``(Q, heads, T, N)``."""
        on_basis = tokens @ by_head(pixels.basis(self.frames), self.heads).mT  # (Q, heads, T, R)
        found = (on_basis.flatten(1, 2) @ pixels.rows).view(*tokens.shape[:3], -1)
        return found.addcmul_(by_frame(tokens, self.x), pixels.scale[:, None]).add_(by_frame(tokens, self.place))

    def mean(self, weights: Tensor, pixels: Pixels) -> Tensor:
        """Return the means over all pixels ``(Q, heads, T, d)`` by weights ``(Q, heads, T, N)`` whose sum is 1."""
        rows = (weights.flatten(1, 2) @ pixels.rows.mT).unflatten(1, weights.shape[1:3])  # (Q, heads, T, R)
        of_basis = rows @ by_head(pixels.basis(self.frames), self.heads)
        return by_frame(weights * pixels.scale[:, None], self.x.mT) + of_basis + self.bias


def by_frame(numbers: Tensor, frame: Tensor) -> Tensor:
    """Return the products ``(Q, h, T, n)`` of numbers ``(Q, h, T, k)`` with a frame ``(h, k, n)``.

    As ``numbers @ frame``, which would copy the frame for every prompt.
    """
    return torch.einsum("qhtk,hkn->qhtn", numbers, frame)


def by_head(values: Tensor, heads: int) -> Tensor:
    """Bring ``(..., n, heads · d)`` into the order ``(..., heads, n, d)``."""
    return values.unflatten(-1, (heads, -1)).transpose(-3, -2)


def linear_weight(up: nn.ConvTranspose2d) -> Tensor:
    """Return the weight of a transposed convolution of stride and kernel 2 as that of a linear layer, ``(4C', C)``."""
    return up.weight.permute(2, 3, 1, 0).flatten(0, 2)


def unfold(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Bring values ``(Q, M, 16N)``, a grid's pixels of 2×2 of 2×2 each, into the order ``(Q, M, 4g, 4g)``."""
    height, width = grid
    nested = values.view(*values.shape[:2], height, width, 2, 2, 2, 2)
    return nested.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*values.shape[:2], 4 * height, 4 * width)
