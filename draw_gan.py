"""DRAW-GAN: an adversarial procedure for sequential image generation (Renkila, Ganivada, Bapi), and DRAW (Gregor et al. 2015,
arXiv:1502.04623), which it trains adversarially.
"""

import torch

# Shapes: B batch, C x S x S an image, N x N a glimpse of it or a patch for it.


def window(params, N, S):
    """Attention parameters (B, 5) to where N x N filters sit on an S x S image (DRAW, eqs. 21 to 24).

    params holds (g~_x, g~_y, log sigma^2, log delta~, log gamma). -> centre g (B, 2), x then y, in pixels counted from 1;
    stride delta (B, 1) in pixels; variance sigma^2 (B, 1) in pixels squared; intensity gamma (B, 1).
    """
    g = (S + 1) / 2 * (params[:, :2] + 1)
    variance, delta, gamma = params[:, 2:].exp().split(1, 1)
    return g, (S - 1) / max(N - 1, 1) * delta, variance, gamma


def filterbank(params, N, S):
    """Attention parameters (B, 5) to filters F_x, F_y (B, N, S), each row summing to one, and gamma (B, 1) (eqs. 19 to 26).

    Filter i of 1..N is a Gaussian over the pixels a of 1..S around mu_i = g + (i - N/2 - 0.5) delta. The softmax is
    exp(-(a - mu_i)^2 / (2 sigma^2)) / Z, and stays finite where a filter lies wholly outside the image.
    """
    g, delta, variance, gamma = window(params, N, S)
    i = torch.arange(1, N + 1, device=params.device, dtype=params.dtype)
    a = torch.arange(1, S + 1, device=params.device, dtype=params.dtype)
    mu = g[:, :, None] + ((i - N / 2 - 0.5) * delta)[:, None]                                    # (B, 2, N)
    filters = torch.softmax((a - mu[..., None]).square() * (-0.5 / variance)[..., None, None], 3)  # (B, 2, N, S)
    return *filters.unbind(1), gamma


def read(image, F_x, F_y, gamma):
    """A glimpse gamma F_y image F_x^T (B, C, N, N) of images (B, C, S, S) (eq. 27), a channel at a time."""
    C, S = image.shape[1:3]
    rows = torch.bmm(F_y, image.transpose(1, 2).flatten(2))                 # (B, N, C S): the channels side by side
    glimpse = torch.bmm(rows.reshape(len(image), -1, S), F_x.mT)            # (B, N C, N)
    return gamma[:, :, None, None] * glimpse.unflatten(1, (-1, C)).transpose(1, 2)


def write(patch, F_x, F_y, gamma):
    """A patch (B, C, N, N) spread over the canvas, F_y^T patch F_x / gamma (B, C, S, S) (eq. 29)."""
    C, N = patch.shape[1:3]
    rows = torch.bmm(F_y.mT, (patch / gamma[:, :, None, None]).transpose(1, 2).flatten(2))  # (B, S, C N)
    return torch.bmm(rows.reshape(len(patch), -1, N), F_x).unflatten(1, (-1, C)).transpose(1, 2)
