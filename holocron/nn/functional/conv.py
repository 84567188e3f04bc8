"""Convolutions whose windows are normalized, or compared to the filters by distance."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

__all__ = ["add2d", "norm_conv2d"]

_IntPair = int | tuple[int, ...]


def norm_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _IntPair = 1,
    padding: _IntPair = 0,
    dilation: _IntPair = 1,
    groups: int = 1,
    eps: float = 1e-14,
) -> Tensor:
    r"""Convolution of windows that are each brought to zero mean and unit variance, from `"Normalized Convolutional
    Neural Network" <https://arxiv.org/abs/2005.05274>`_.

    .. math:: out = bias + weight \star \frac{slice - \mu}{\sqrt{\sigma^2 + \epsilon}}

    where the mean :math:`\mu` and the biased variance :math:`\sigma^2` are those of the slice, the
    C_in / groups · kH · kW values that the filter sees at one position (a row of the im2col matrix), padding included.

    The slices are never built. A filter minus its mean gives the same sum on a slice as on the slice minus its mean, so
    one ordinary convolution computes the numerator; the variance is put together from the mean and the variance of the
    channels at each pixel, whose windows are C_in / groups times fewer. Only squares of differences are summed: nothing
    cancels, as it would in :math:`E[x^2] - \mu^2`. The memory beyond an ordinary convolution is
    2 · N · groups · kH · kW · H_out · W_out values.

    Args:
        x: input of shape (N, C_in, H, W).
        weight: filters of shape (C_out, C_in / groups, kH, kW).
        bias: shape (C_out,), or None.
        stride: stride of the windows, in pixels.
        padding: zeros added on each side, in pixels.
        dilation: distance between the taps of the filters, in pixels.
        groups: number of groups of channels that do not see each other; each is normalized on its own.
        eps: added to the variance. With float16 weights a constant window needs 1e-5 or so: the rounding of the
            numerator is divided by the square root of this.

    Returns:
        tensor of shape (N, C_out, H_out, W_out)

    Raises:
        ValueError: if the shapes of ``x``, ``weight`` and ``groups`` do not fit together.
    """
    _check_shapes(x, weight, groups)
    pad_h, pad_w = _pair(padding)
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    n, c, h, w = x.shape

    # Half precision would underflow eps and lose the variance: statistics are float32 at least.
    grouped = (x.float() if x.dtype in {torch.float16, torch.bfloat16} else x).view(n, groups, c // groups, h, w)
    channel_mean = grouped.mean(dim=2)
    channel_var = (grouped - channel_mean.unsqueeze(2)).square().mean(dim=2)
    windows = F.unfold(torch.cat([channel_mean, channel_var], dim=1), weight.shape[-2:], dilation, 0, stride)
    window_mean, window_var = windows.unflatten(1, (2, groups, -1)).unbind(1)
    var = (window_mean - window_mean.mean(dim=2, keepdim=True)).square().add(window_var).mean(dim=2)

    # A constant changes neither the numerator nor its gradient; without it, large inputs round less.
    offset = channel_mean.mean(dim=(2, 3)).detach().repeat_interleave(c // groups, dim=1).to(x.dtype)
    centred_weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
    numerator = F.conv2d(x - offset[:, :, None, None], centred_weight, None, stride, 0, dilation, groups)

    scale = (var + eps).rsqrt().view(n, groups, 1, *numerator.shape[-2:])
    out = (numerator.unflatten(1, (groups, -1)) * scale).flatten(1, 2).to(numerator.dtype)
    return out if bias is None else out + bias.view(1, -1, 1, 1).to(out.dtype)


def add2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _IntPair = 1,
    padding: _IntPair = 0,
    dilation: _IntPair = 1,
    groups: int = 1,
    normalize_slices: bool = False,
    eps: float = 1e-14,
) -> Tensor:
    r"""Minus the L1 distance between each window and each filter, from `"AdderNet: Do We Really Need Multiplications in
    Deep Learning?" <https://arxiv.org/abs/1912.13200>`_.

    .. math:: out(m, n, c) = bias(c) - \sum_{i, j, k} |X(m + i, n + j, k) - F(i, j, k, c)|

    The gradient is that of this formula, built of signs. The paper trains with another one (the plain difference for
    the filters, the clipped difference for the input), which is a training recipe and no derivative.

    The windows are built: N · C_in · kH · kW · H_out · W_out values, kH · kW times the input. In a traced graph (ONNX
    has no pairwise distance) and in the backward pass on CUDA there are C_out / groups times as many.

    Args:
        x: input of shape (N, C_in, H, W).
        weight: filters of shape (C_out, C_in / groups, kH, kW).
        bias: shape (C_out,), or None.
        stride: stride of the windows, in pixels.
        padding: zeros added on each side, in pixels.
        dilation: distance between the taps of the filters, in pixels.
        groups: number of groups of channels that do not see each other.
        normalize_slices: bring each window of each group to zero mean and unit variance first, as in
            :func:`norm_conv2d`.
        eps: added to the variance when normalizing.

    Returns:
        tensor of shape (N, C_out, H_out, W_out)

    Raises:
        ValueError: if the shapes of ``x``, ``weight`` and ``groups`` do not fit together.
    """
    _check_shapes(x, weight, groups)
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = (
        (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for size, pad, dil, kernel, step in zip(
            x.shape[-2:], _pair(padding), _pair(dilation), (kernel_h, kernel_w), _pair(stride), strict=True
        )
    )
    windows = F.unfold(x, (kernel_h, kernel_w), dilation, padding, stride)
    windows = windows.unflatten(1, (groups, -1)).transpose(2, 3)  # (N, groups, H_out · W_out, C_in / groups · kH · kW)
    filters = weight.reshape(1, groups, out_channels // groups, -1)
    if normalize_slices:
        windows = windows - windows.mean(dim=-1, keepdim=True)
        windows = windows * (windows.square().mean(dim=-1, keepdim=True) + eps).rsqrt()

    if torch.compiler.is_exporting():
        distance = (filters.unsqueeze(3) - windows.unsqueeze(2)).abs().sum(dim=-1)
    else:
        distance = torch.cdist(filters.expand(x.shape[0], -1, -1, -1), windows, p=1.0)
    out = -distance.reshape(x.shape[0], out_channels, out_h, out_w)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def _check_shapes(x: Tensor, weight: Tensor, groups: int) -> None:
    """Refuse shapes that would otherwise fail far from their cause."""
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"x has to be of shape (N, C_in, H, W) and weight (C_out, C_in / groups, kH, kW), "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"x of {x.shape[1]} channels does not fit weight of shape {tuple(weight.shape)} with groups={groups}"
        )
