"""SAM's mask decoder for many prompts of one image: the same masks for a fraction of the work.

A prompt is T ≈ 10 tokens, the image N = 4096 tokens ("pixels") of width C. Segment Anything's own decoder (Kirillov et
al., arXiv 2304.02643) forms and projects all pixels anew for every prompt. But what a prompt does to the pixels is of
low rank: an attention to T tokens adds weights ``(N, heads · T)`` times values ``(heads · T, C)``, and a layer norm
scales each pixel. So the pixels of every prompt stay ::

    a ⊙ x + Sᵀ U        x (N, C) the same for all prompts, a (N), S (R, N), U (R, C)

and any linear layer needs ``W x`` once for the image and ``W U`` for R rows. The pixels themselves are never formed.
The modules and weights are the decoder's own; nothing is trained here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Pixels:
    """The image tokens of Q prompts, a ⊙ x + Sᵀ U, without x.

    Args:
        scale: a, ``(Q, 1, N)``.
        rows: S, ``(Q, R, N)``.
        basis: U, ``(Q, R, C)``.
    """

    scale: Tensor
    rows: Tensor
    basis: Tensor

    def plus(self, rows: Tensor, basis: Tensor) -> "Pixels":
        """Return these pixels plus the product of more rows ``(Q, r, N)`` with their basis ``(Q, r, C)``."""
        return Pixels(self.scale, torch.cat([self.rows, rows], 1), torch.cat([self.basis, basis], 1))


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
        x, position = image[0].flatten(1).T.contiguous(), position[0].flatten(1).T.contiguous()  # (N, C)
        self.start = x.new_ones(1, 1, len(x)), x.new_empty(1, 0, len(x)), x.new_empty(1, 0, x.shape[1])
        self.layers: list[Layer] = []
        for layer in self.decoder.transformer.layers:
            self.layers.append(Layer(layer, x, position))
            x = self.layers[-1].norm.x
        self.final = ToPixels(self.decoder.transformer.final_attn_token_to_image, x, position)
        up = self.decoder.output_upscaling[0]
        self.up = Linear(flat(up), up.bias.repeat(4), x)

    def __call__(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Decode embedded prompts ``(Q, k, C)``: logits of the multiple masks ``(Q, 3, 4g, 4g)``, scores ``(Q, 3)``."""
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        place = torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)  # (Q, T, C)
        tokens, pixels = place, Pixels(*(part.expand(len(prompts), -1, -1) for part in self.start))
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
        values = F.linear(values, flat(again), again.bias.repeat(4)).view(len(values), -1, again.out_channels)
        heads = self.decoder.output_hypernetworks_mlps[1:]
        weights = torch.stack([head(token) for head, token in zip(heads, tokens)], dim=1)  # (Q, 3, C / 8)
        return unfold(weights @ activation_again(values).mT, self.grid)


class Layer:
    """One layer of the two-way transformer.

    Args:
        layer: segment_anything's.
        x: what the prompts' pixels share, ``(N, C)``.
        position: ``(N, C)``.
    """

    def __init__(self, layer: Any, x: Tensor, position: Tensor) -> None:
        self.layer = layer
        self.to_pixels = ToPixels(layer.cross_attn_token_to_image, x, position)
        self.to_tokens = ToTokens(layer.cross_attn_image_to_token, x, position)
        self.norm = Norm(layer.norm4, x)

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

    def __init__(self, attention: Any, x: Tensor, position: Tensor) -> None:
        self.attention = attention
        self.keys = Heads(attention.k_proj, attention.num_heads, x, position)
        self.values = Heads(attention.v_proj, attention.num_heads, x)

    def __call__(self, tokens: Tensor, pixels: Pixels) -> Tensor:
        """Return what tokens ``(Q, T, C)`` read of the pixels, ``(Q, T, C)``."""
        queries = by_head(self.attention.q_proj(tokens), self.attention.num_heads)
        weights = (self.keys.dot(queries * queries.shape[-1] ** -0.5, pixels)).softmax(-1)
        return self.attention.out_proj(self.values.mean(weights, pixels).transpose(1, 2).flatten(2))


class ToTokens:
    """Attention of the pixels to the tokens."""

    def __init__(self, attention: Any, x: Tensor, position: Tensor) -> None:
        self.attention = attention
        self.queries = Heads(attention.q_proj, attention.num_heads, x, position)

    def __call__(self, pixels: Pixels, tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pixels read of ``values`` ``(Q, T, C)``: rows ``(Q, heads · T, N)`` and their basis."""
        attention, heads = self.attention, self.attention.num_heads
        keys = by_head(attention.k_proj(tokens), heads)
        weights = self.queries.dot(keys * keys.shape[-1] ** -0.5, pixels).softmax(2)  # (Q, heads, T, N)
        out = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # (heads, d, C)
        # every head's weights sum to 1, so that the bias can ride on what is read
        read = by_head(attention.v_proj(values), heads) @ out + attention.out_proj.bias / heads
        return weights.flatten(1, 2), read.flatten(1, 2)


class Norm:
    """A layer norm of pixels: x and U lose their means over the channels for good, and a and S are divided.

    Args:
        norm: γ and β.
        x: ``(N, C)``.
    """

    def __init__(self, norm: nn.LayerNorm, x: Tensor) -> None:
        self.norm = norm
        self.centred = x - x.mean(-1, keepdim=True)
        self.square = self.centred.square().sum(-1)
        self.x = self.centred * norm.weight
        """What the prompts' pixels share from now on, ``(N, C)``."""

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return the pixels normalised, with γ in x and U, and β as one more row of U."""
        a, s, u = pixels.scale, pixels.rows, pixels.basis - pixels.basis.mean(-1, keepdim=True)
        # |a x + Sᵀ U|² = a² |x|² + 2 a S · (U xᵀ) + S · (U Uᵀ S), for every pixel
        square = a.square() * self.square + (s * torch.baddbmm(2 * a * (u @ self.centred.T), u @ u.mT, s)).sum(
            1, keepdim=True
        )
        inverse = (square / u.shape[-1] + self.norm.eps).rsqrt()
        scaled = Pixels(a * inverse, s * inverse, u * self.norm.weight)
        return scaled.plus(torch.ones_like(a), self.norm.bias.expand(len(a), 1, -1))


class Linear:
    """A linear layer of pixels.

    Args:
        weight: W, ``(C', C)``.
        bias: b, ``(C')``.
        x: ``(N, C)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, x: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.x = x @ weight.T  # (N, C')

    def __call__(self, pixels: Pixels) -> Tensor:
        """Return W (a ⊙ x + Sᵀ U) + b, ``(Q, N, C')``."""
        own = torch.addcmul(self.bias, pixels.scale.mT, self.x)
        return own.baddbmm_(pixels.rows.mT, pixels.basis @ self.weight.T)


class Heads:
    """A linear layer of pixels, split into the heads of an attention, that meets tokens without being formed.

    Args:
        linear: W and b, C → heads · d.
        heads: how many.
        x: ``(N, C)``.
        position: added to the pixels, ``(N, C)``; None: nothing is.
    """

    def __init__(self, linear: nn.Linear, heads: int, x: Tensor, position: Tensor | None = None) -> None:
        self.weight = linear.weight.unflatten(0, (heads, -1))  # (heads, d, C)
        self.x = self.weight @ x.T  # (heads, d, N)
        self.bias = linear.bias.view(heads, -1, 1)
        self.place = self.bias if position is None else self.weight @ position.T + self.bias

    def dot(self, tokens: Tensor, pixels: Pixels) -> Tensor:
        """Return the products of tokens ``(Q, heads, T, d)`` with all pixels, ``(Q, heads, T, N)``."""
        own = (tokens @ self.x).mul_(pixels.scale[:, None]).add_(tokens @ self.place)
        on_basis = tokens @ (self.weight @ pixels.basis[:, None].mT)  # (Q, heads, T, R)
        return own.flatten(1, 2).baddbmm_(on_basis.flatten(1, 2), pixels.rows).view_as(own)

    def mean(self, weights: Tensor, pixels: Pixels) -> Tensor:
        """Return the means over all pixels ``(Q, heads, T, d)`` by weights ``(Q, heads, T, N)`` whose sum is 1."""
        rows = (weights.flatten(1, 2) @ pixels.rows.mT).unflatten(1, weights.shape[1:3])  # (Q, heads, T, R)
        of_basis = rows @ (pixels.basis[:, None] @ self.weight.mT)
        return (weights * pixels.scale[:, None]) @ self.x.mT + of_basis + self.bias.mT


def by_head(values: Tensor, heads: int) -> Tensor:
    """Bring ``(Q, n, heads · d)`` into the order ``(Q, heads, n, d)``."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def flat(up: nn.ConvTranspose2d) -> Tensor:
    """Return the weight of a transposed convolution of stride and kernel 2 as that of a linear layer, ``(4C', C)``."""
    return up.weight.permute(2, 3, 1, 0).flatten(0, 2)


def unfold(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Bring values ``(Q, M, 16N)``, a grid's pixels of 2×2 of 2×2 each, into the order ``(Q, M, 4g, 4g)``."""
    height, width = grid
    nested = values.view(*values.shape[:2], height, width, 2, 2, 2, 2)
    return nested.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*values.shape[:2], 4 * height, 4 * width)
