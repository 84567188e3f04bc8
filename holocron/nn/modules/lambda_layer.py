"""Lambda layers."""

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

__all__ = ["LambdaLayer"]


def _with_contiguous_grad(x: Tensor) -> Tensor:
    """Have the gradient of the output of a batch normalization arrive in row-major order.

    The products that follow give it in another one, which PyTorch's normalization on the CPU misreads for a batch of
    one image: the gradients would be wrong without a word (seen in 2.14).
    """
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(lambda grad: None if grad is None else grad.contiguous())
    return x


class LambdaLayer(nn.Module):
    """Interactions of each pixel with its context, summarized as linear functions, from `"LambdaNetworks: Modeling
    long-range interactions without attention" <https://openreview.net/pdf?id=xTJEN-ggl1b>`_.

    The context gives one linear map of the queries (the content lambda) and one more per pixel that depends on relative
    positions: learned for each pair of pixels of inputs of ``n`` pixels, or shared over a window of ``r`` pixels.

    The position lambdas take N · H · W · dim_k · out_channels / num_heads values, ``dim_k`` / ``num_heads`` times the
    output; without ``r`` the embeddings are n² · dim_k · dim_u parameters: for 64 × 64 pixels and ``dim_k=16``, 1 GiB
    in float32.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of ``num_heads``.
        dim_k: depth of keys and queries.
        n: H * W of the inputs; needed if ``r`` is None, and not used otherwise.
        r: side in pixels of the window of relative positions, odd.
        num_heads: number of queries per pixel.
        dim_u: intra-depth: keys and values per pixel.

    Shape:
        - input: (N, C_in, H, W), with H * W = ``n`` if ``r`` is None
        - output: (N, C_out, H, W)

    Raises:
        AssertionError: if ``out_channels`` is not a multiple of ``num_heads``, ``r`` is even, or both ``n`` and ``r``
            are None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dim_k: int,
        n: int | None = None,
        r: int | None = None,
        num_heads: int = 4,
        dim_u: int = 1,
    ) -> None:
        super().__init__()
        if out_channels % num_heads != 0:
            raise AssertionError(f"out_channels has to be a multiple of num_heads, got {out_channels} and {num_heads}")
        if r is not None and r % 2 != 1:
            raise AssertionError(f"r has to be odd, got {r}")
        if r is None and n is None:
            raise AssertionError("without r, n has to be given: the number of pixels of the inputs, H * W")
        self.u: int = dim_u
        self.num_heads: int = num_heads
        dim_v = out_channels // num_heads

        self.to_q = nn.Conv2d(in_channels, dim_k * num_heads, 1, bias=False)
        self.to_k = nn.Conv2d(in_channels, dim_k * dim_u, 1, bias=False)
        self.to_v = nn.Conv2d(in_channels, dim_v * dim_u, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(dim_k * num_heads)
        self.norm_v = nn.BatchNorm2d(dim_v * dim_u)

        self.local_contexts: bool = r is not None
        if r is not None:
            self.padding: int = r // 2
            self.R = nn.Parameter(torch.randn(dim_k, dim_u, 1, r, r))
        elif n is not None:
            self.pos_emb = nn.Parameter(torch.randn(n, n, dim_k, dim_u))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the content and the position lambdas to the queries of ``x``."""
        batch, _, h, w = x.shape
        q = _with_contiguous_grad(self.norm_q(self.to_q(x))).unflatten(1, (self.num_heads, -1)).flatten(3)
        k = self.to_k(x).unflatten(1, (-1, self.u)).flatten(3).softmax(dim=-1)
        v = _with_contiguous_grad(self.norm_v(self.to_v(x))).unflatten(1, (-1, self.u)).flatten(3)

        # b: batch, a: heads, k: depth of the keys, v: of the values, u: intra-depth, n and m: pixels
        content = torch.einsum("bkum,bvum->bkv", k, v)
        lambdas = content.unsqueeze(-1) + self._position_lambdas(v, h, w)
        return torch.einsum("bakn,bkvn->bavn", q, lambdas).reshape(batch, -1, h, w)

    def _position_lambdas(self, v: Tensor, h: int, w: int) -> Tensor:
        """The linear map of each pixel, of shape (N, dim_k, dim_v, H * W), from values (N, dim_v, dim_u, H * W)."""
        if not self.local_contexts:
            if h * w != self.pos_emb.shape[0]:
                raise ValueError(f"x has to have n={self.pos_emb.shape[0]} pixels, got {h} x {w}: pass r for any size")
            return torch.einsum("nmku,bvum->bkvn", self.pos_emb, v)
        maps = v.flatten(0, 1).unflatten(2, (h, w))  # each depth of the values is an image of its own
        lambdas = nnf.conv2d(maps, self.R.squeeze(2), padding=self.padding)
        return lambdas.flatten(2).unflatten(0, v.shape[:2]).transpose(1, 2)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"num_heads={self.num_heads}, dim_u={self.u}, local_contexts={self.local_contexts}"
