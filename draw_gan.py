"""DRAW-GAN: an adversarial procedure for sequential image generation (Renkila, Ganivada, Bapi), and DRAW (Gregor et al. 2015,
arXiv:1502.04623), the recurrent attentive writer that it trains.

    python draw_gan.py --dataset mnist --steps 64 --epochs 300 --lr-g 1e-3    DRAW as published: 80.97 nats with attention
    python draw_gan.py --dataset mnist --objective draw-gan --steps 20        DRAW-GAN, Algorithm 1
    python draw_gan.py --iters 20                                             a smoke run on the embedded digits

At each of T steps the encoder reads a glimpse of the image and of what the canvas lacks, a latent z_t is drawn, and the
decoder writes a patch to the canvas; the image is the logistic function of the canvas. `--objective draw` trains on
the variational bound in nats, `--objective draw-gan` on eqs. 20 and 21 with a discriminator.

Differs from the papers
- Pixels and filters are counted from 1 throughout; public ports count filters from 0 and sit one stride low.
- The KL of a step keeps its constant z_dim / 2, so that the printed bound is a bound.
- Training pixels are drawn anew from Bernoulli(grey) in every batch, held-out ones once, from a fixed seed (`--binarise`).
  DRAW-GAN sees grey images, or D would tell by greyness alone.
- Eq. 20 drawn out of Algorithm 1: D faces reconstructions and prior samples; DRAW's share is -log D (it does not
  saturate). As in Algorithm 1, and unlike VAE-GAN, the encoder gets the adversarial gradient too.
- A guard against the runs that end in noise: D rests while it leads by too much, DRAW while D cannot tell (`--guard`).
- The first canvas starts as the training set's mean image, and the windows over the whole image with filters that are wide
  enough to see it (DRAW prints no starting values): without that the first thousand updates say nothing of x.
- The rate of Adam falls linearly to a twentieth over --epochs; the gradient's norm is clipped (`--clip`).

Measured (torch 2.14.1, one core of an Intel Xeon with bfloat16, seeds 0, 1, 2): `--dataset mnist --epochs 15`, T = 10, MNIST's
10,000 test images: 95.5, 95.7, 95.7 nats (70.3 reconstruction, 25.3 KL) after 8 to 15 minutes (30 epochs, one seed, an AMD
EPYC: 92.2). With `--objective draw-gan --epochs 5` digits are legible each time, after 10 minutes; FID 7.27 on a classifier's
features, DRAW 1.62. With --layer 2 --gamma 0.1 (1,200 updates, one seed, narrower first filters to write) the KL fell to
nought and every sample was the same dotted blot. With --adversarial 10 seed 0 becomes more varied (rdd 1.04 in place of 0.68,
FID 6.1 in place of 6.7), but seeds 1 and 2 are mostly one blot (FID 11.5 and 13.0).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

import data
import metrics

# Shapes: B batch, T drawing steps, Z length of z_t, H of the LSTMs, C x S x S an image, N x N a glimpse of it or a patch
# for it. The attention's numbers of equations are those of the DRAW paper.


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


def lstm(gates, cell):
    """One LSTM step: gates (B, 4H) before their nonlinearities (input, forget, output, candidate) -> h, cell (B, H)."""
    H = cell.shape[1]
    i, f, o = torch.sigmoid(gates[:, : 3 * H]).chunk(3, 1)
    cell = torch.addcmul(f * cell, i, torch.tanh(gates[:, 3 * H :]))
    return o * torch.tanh(cell), cell


class Draw(nn.Module):
    """DRAW (section II-B, eqs. 9 to 14 and 17 to 19). `read` and `write` are N, or None for whole images (no attention).

    An LSTM's weights for its input and for its own h are one matrix, so that a step is one product; likewise the read
    attention, the write attention and the patch, each linear in h_dec with rows of its own, are one layer `hands`.
    """

    def __init__(self, channels, size, z_dim, hidden, steps, read=2, write=5):
        super().__init__()
        self.shape, self.z_dim, self.steps, self.read, self.write = (channels, size, size), z_dim, steps, read, write
        self.sees = 2 * channels * (read or size) ** 2
        self.enc = nn.Linear(self.sees + 2 * hidden, 4 * hidden)
        self.q = nn.Linear(hidden, 2 * z_dim)
        self.dec = nn.Linear(z_dim + hidden, 4 * hidden)
        self.rows = [5 if read else 0, 5 if write else 0, channels * (write or size) ** 2]
        self.hands = nn.Linear(hidden, sum(self.rows))
        with torch.no_grad():  # the windows start over the whole image, sigma about 1/4 of the stride, 1/2 to write
            for at, N, share in zip(self.hands.bias.split(self.rows), (read, write), (4, 2)):
                if N is not None:
                    at[2], at[3] = 2 * math.log(size / (share * N)), math.log(max(N - 1, 1) / N)
        self.c_0 = nn.Parameter(torch.zeros(self.shape))  # the first canvas and hidden states are learned, as in DRAW
        self.h_enc_0, self.h_dec_0 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))

    def draw_z(self, n, steps=None, generator=None, device=None):
        """N(0, 1) for z_t or its noise (T, n, Z), drawn apart for every step: one noise for all would be a free channel."""
        return torch.randn(steps or self.steps, n, self.z_dim, generator=generator, device=device)

    def forward(self, noise, x=None):
        """noise (T, B, Z); x (B, C, S, S) -> canvases, windows: lists of T; kl (T, B) in nats.

        With x, z_t ~ Q(Z | h_enc) = mu_t + sigma_t noise_t (eqs. 9 to 14). Without, z_t = noise_t is from the prior
        (eqs. 17 to 19) and kl is None. A canvas is (B, C, S, S) before the sigmoid; a window the parameters (B, 5) of
        read and write, None where there is none.
        """
        B, S = noise.shape[1], self.shape[1]
        c, h_enc, h_dec = (start.expand(B, *start.shape) for start in (self.c_0, self.h_enc_0, self.h_dec_0))
        cell_enc, cell_dec = torch.zeros_like(h_enc), torch.zeros_like(h_dec)
        canvases, windows, q = [], [], []
        if x is not None:
            look, _, _ = self.split(h_dec)
            W, still = self.enc.weight, self.enc.bias
            if self.read is None:  # W_x x + W_e (x - sigmoid(c)): what x adds is the same at every step
                W_x, W_e, W_h = W.split([self.sees // 2, self.sees // 2, 2 * h_enc.shape[1]], 1)
                still, W = F.linear(x.flatten(1), W_x + W_e, still).float(), torch.cat([-W_e, W_h], 1)
        for noise_t in noise:
            z, looked = noise_t, None
            if x is not None:
                if self.read is None:
                    r = torch.sigmoid(c)
                else:
                    looked = look
                    x_hat = x - torch.sigmoid(c)                                             # eq. 9
                    with torch.autocast(x.device.type, enabled=False):
                        r = read(torch.cat([x, x_hat], 1), *filterbank(look, self.read, S))  # eq. 10: (B, 2C, N, N)
                gates = F.linear(torch.cat([r.flatten(1), h_dec, h_enc], 1), W).float() + still
                h_enc, cell_enc = lstm(gates, cell_enc)                                      # eq. 11
                q.append(self.q(h_enc).float())
                mu, log_sigma = q[-1].chunk(2, 1)
                z = torch.addcmul(mu, log_sigma.exp(), noise_t)                              # eqs. 8 and 12
            h_dec, cell_dec = lstm(self.dec(torch.cat([z, h_dec], 1)).float(), cell_dec)     # eqs. 13 and 18
            look, place, w = self.split(h_dec)
            if self.write is None:
                c, place = c + w, None
            else:
                with torch.autocast(c.device.type, enabled=False):
                    c = c + write(w, *filterbank(place, self.write, S))                      # eqs. 14 and 19
            canvases.append(c)
            windows.append((looked, place))
        return canvases, windows, kl(*torch.stack(q).chunk(2, 2)) if q else None

    def split(self, h_dec):
        """h_dec (B, H) -> attention parameters of the next read and of this write (B, 5), and the patch (B, C, N, N)."""
        N = self.write or self.shape[1]
        look, place, w = self.hands(h_dec).float().split(self.rows, 1)
        return look, place, w.unflatten(1, (-1, N, N))


class Discriminator(nn.Module):
    """D: images (B, C, S, S) in [0, 1] to logits (B,), positive = real; two strided convolutions and two dense layers."""

    def __init__(self, channels, size, kernels=(32, 64), hidden=256):
        super().__init__()
        side = -(-size // 4)
        self.layers = nn.ModuleList([
            nn.Conv2d(channels, kernels[0], kernel_size=5, stride=2, padding=2),    # (B, K1, S / 2, S / 2), rounded up
            nn.Conv2d(kernels[0], kernels[1], kernel_size=5, stride=2, padding=2),  # (B, K2, S / 4, S / 4)
            nn.Sequential(nn.Flatten(), nn.Linear(kernels[1] * side * side, hidden)),
        ])  # fmt: skip
        self.dense = nn.Linear(hidden, 1)

    def forward(self, x, layer=None):
        """-> logits (B,), or with `layer` l of 1..3 (features of the l-th layer (B, n), logits)."""
        x = 2 * x - 1
        for l, net in enumerate(self.layers, 1):
            x = F.leaky_relu(net(x), 0.2)
            if l == layer:
                features = x.flatten(1).float()
        logits = self.dense(x).squeeze(1).float()
        return logits if layer is None else (features, logits)


def kl(mu, log_sigma):
    """KL of N(mu, sigma^2) from N(0, 1) in nats, summed over the last axis; half of mu^2 + sigma^2 - log sigma^2 - 1."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(-1)


def reconstruction_loss(canvas, x):
    """-log P(x | c_T), Bernoulli, canvas before the sigmoid; nats per image (B,). C S S log 2 for a canvas of noughts."""
    return F.binary_cross_entropy_with_logits(canvas, x, reduction="none").flatten(1).sum(1)


def feature_loss(rec, real):
    """-log N(D_l(x) | D_l(x_rec), 1) without its constant, features (B, n) -> (B,): L_like of eq. 21; 0 if equal."""
    return 0.5 * (rec - real).square().sum(1)


def ssim(x, y):
    """Structural similarity (B,) in [-1, 1] of images (B, C, S, S) in [0, 1], 1 if equal (Wang et al. 2004): a Gaussian
    window of 11 x 11, sigma 1.5, the mean over the places where it fits; S must be at least 11."""
    places = torch.arange(x.shape[-1], device=x.device)
    away = places - places[5:-5, None]                                         # (S - 10, S): of each pixel from each centre
    taps = torch.softmax((-away.square() / (2 * 1.5**2)).masked_fill(away.abs() > 5, -math.inf), 1)
    planes = torch.stack([x, y, x * x, y * y, x * y])                          # as products: a GPU's convolutions would round
    m_x, m_y, xx, yy, xy = (taps @ planes @ taps.T).flatten(2)                 # to TF32, and xx - m_x^2 is a small difference
    var_x, var_y, cov = xx - m_x**2, yy - m_y**2, xy - m_x * m_y
    c_1, c_2 = 0.01**2, 0.03**2
    return ((2 * m_x * m_y + c_1) * (2 * cov + c_2) / ((m_x**2 + m_y**2 + c_1) * (var_x + var_y + c_2))).mean(1)


def d_loss(real, rec, prior):
    """-log D(x) - log(1 - D(x_rec)) - log(1 - D(x_prior)), means over logits (B,) (eq. 20); 3 log 2 at logits of nought."""
    return F.softplus(-real).mean() + F.softplus(rec).mean() + F.softplus(prior).mean()


def g_loss(rec, prior):
    """-log D(x_rec) - log D(x_prior), means over logits (B,): DRAW's share of eq. 21; 2 log 2 at logits of nought."""
    return F.softplus(-rec).mean() + F.softplus(-prior).mean()


def guard(real, rec, prior, low, high):
    """(D rests, DRAW rests) as floats 0 or 1, by D's lead: the mean of D(x) less that of D(x_rec) and D(x_prior)."""
    lead = real.sigmoid().mean() - (rec.sigmoid().mean() + prior.sigmoid().mean()) / 2
    return (lead > high).float(), (lead < low).float()


def binarise(x, how, generator=None):
    """Grey levels to black and white: "stochastic" draws Bernoulli(x), "threshold" cuts at one half, "none" leaves x."""
    if how == "stochastic":
        return torch.bernoulli(x, generator=generator)
    return (x > 0.5).to(x.dtype) if how == "threshold" else x


def spread(x, n):
    """n of the images x, or all where there are fewer, from end to end: files may come sorted by class or writer."""
    return x[torch.arange(n) * len(x) // n] if len(x) > n else x


@torch.no_grad()
def bound(nets, x, seed=0, batch_size=100):
    """-> (reconstruction, kl (T,)), nats per image, means over x (n, C, S, S); their sum bounds -log p(x) from above.

    One draw of the latents per image. Of grey images it bounds the mean of -log p over pictures of 0 and 1 that have their
    grey levels as chances: q may be any distribution, so that of the grey x too.
    """
    G, generator = nets["G"], torch.Generator().manual_seed(seed)
    reconstruction, divergence = 0, 0
    for part in x.split(batch_size):
        part = part.to(G.c_0.device)
        canvases, _, kl_t = G(G.draw_z(len(part), generator=generator).to(part.device), part)
        reconstruction = reconstruction + reconstruction_loss(canvases[-1], part).double().sum()
        divergence = divergence + kl_t.double().sum(1)
    return (reconstruction / len(x)).item(), (divergence / len(x)).cpu()


def build(args):
    """The bare modules {"G"} (DRAW), and "D" for draw-gan, of a namespace with the flags, channels and size."""
    read, write = (args.read, args.write) if args.attention else (None, None)
    nets = {"G": Draw(args.channels, args.size, args.z_dim, args.hidden, args.steps, read, write)}
    if args.objective == "draw-gan":
        nets["D"] = Discriminator(args.channels, args.size)
    return nets


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """The canvas after each step, (T, n, C, S, S) in [0, 1], from the prior; steps defaults to the T of the training.

    Latents come from `generator` (on the CPU), so that pictures agree across devices.
    """
    G, parts = nets["G"], []
    for _ in range(0, n, batch_size):
        noise = G.draw_z(batch_size, steps, generator).to(G.c_0.device)
        parts.append(torch.stack(G(noise)[0]).sigmoid())
    return torch.cat(parts, 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1] from the prior; DRAW takes no labels."""
    parts = [canvases(nets, batch_size, steps, generator, batch_size)[-1] for _ in range(0, n, batch_size)]
    return torch.cat(parts)[:n]


def boxed(image, boxes, zoom=3):
    """A PIL picture of one image (C, S, S) with the outlines of attention windows, from first to last filter's means.

    boxes: (parameters (5,) or None, N, colour) of each window. Pixel 1 lies between 0 and 1, so its middle is at 0.5.
    """
    S = image.shape[1]
    pixels = image.expand(3, S, S).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels).resize((zoom * S, zoom * S), Image.Resampling.NEAREST)
    for params, N, colour in boxes:
        if params is not None:
            g, delta, _, _ = window(params[None].cpu(), N, S)
            ends = [zoom * (g[0] + side * (N - 1) / 2 * delta[0] - 0.5) for side in (-1, 1)]
            corners = torch.cat(ends).clamp(-zoom, zoom * (S + 1))  # a window may lie far outside
            ImageDraw.Draw(picture).rectangle(corners.tolist(), outline=colour)
    return picture


def sheet(tiles, columns, titles=()):
    """One PIL picture of equal tiles, row by row, with titles over the columns."""
    side, head = tiles[0].width + 2, 14 if titles else 0
    whole = Image.new("RGB", (columns * side, head + -(-len(tiles) // columns) * side), "white")
    for k, tile in enumerate(tiles):
        whole.paste(tile, (k % columns * side + 1, head + k // columns * side + 1))
    for k, title in enumerate(titles):
        ImageDraw.Draw(whole).text((k * side + 2, 1), title, fill="black")
    return whole


@torch.no_grad()
def draw_pictures(nets, args, folder, step, x):
    """samples/STEP.png, steps.png and steps.gif, from the prior; reconstructions.png of held-out x (n, C, S, S).

    Boxes: red where DRAW reads at that step, green where it writes. The same latents and images every time.
    """
    from torchvision.utils import save_image

    G, x = nets["G"], spread(x, 10)
    n = len(x)
    generator = torch.Generator().manual_seed(args.seed)
    save_image(sample(nets, 64, None, generator, args.batch_size), folder / f"samples/{step:06}.png", nrow=8)
    T = G.steps
    shown = sorted({round(k * (T - 1) / 15) for k in range(16)})  # at most 16 columns, the last step among them
    noise = G.draw_z(n, generator=generator).to(G.c_0.device)
    for name, seen in (("steps", None), ("reconstructions", x.to(noise.device))):
        frames, windows, _ = G(noise, seen)
        tiles = [[boxed(frame[k].sigmoid(), [(p if p is None else p[k], N, colour) for p, N, colour in
                                             zip(at, (G.read, G.write), ("red", "lime"))]) for k in range(n)]
                 for frame, at in zip(frames, windows)]  # T rows of n
        titles = [f"t = {t + 1}" for t in shown]
        rows = [[tiles[t][k] for t in shown] for k in range(n)]
        if seen is not None:
            titles, rows = ["held-out x", *titles[:-1], "reconstruction"], [[boxed(seen[k], ()), *rows[k]] for k in range(n)]
        sheet([tile for row in rows for tile in row], len(titles), titles).save(folder / f"{name}.png")
        first, *rest = [sheet(row, max(n // 2, 1)) for row in tiles]
        first.save(folder / f"{name}.gif", save_all=True, append_images=rest, loop=0,
                   duration=[200] * len(rest) + [1600])


def write_bound(nets, args, rows, step, x):
    """One printed line and one row of bound.csv: the bound on held-out x (n, C, S, S)."""
    reconstruction, kl_t = bound(nets, x, batch_size=args.batch_size)
    total = reconstruction + kl_t.sum().item()
    name = "bound, were grey levels chances," if args.binarise == "none" else "bound"
    print(f"{name} on {len(x)} held-out images: {total:.2f} nats = {reconstruction:.2f} reconstruction + "
          f"{total - reconstruction:.2f} KL", flush=True)
    rows.writerow([step, len(x), *(f"{nats:.3f}" for nats in (total, reconstruction, total - reconstruction, *kl_t.tolist()))])


def parse_args(argv=None):
    parser = metrics.Parser("draw_gan.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/OBJECTIVE-DATASET if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, help="times through the data, over which the rates fall; 30, for digits 4, if not given")
    add("--iters", type=metrics.count, help="stop after this many updates, while rates fall over --epochs as ever; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=100, help="DRAW-GAN's authors take 64")
    add("--lr-g", type=metrics.rate, help="Adam's rate for DRAW, at the start; 2e-3, under draw-gan 1e-3, if not given")
    add("--lr-d", type=metrics.rate, default=2e-4, help="Adam's rate for D, at the start")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=1000, help="updates between two grids, each with bound and checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--objective", choices=["draw", "draw-gan"], default="draw", help="the bound, or eqs. 20 and 21")
    add("--steps", type=metrics.count, default=10, help="T, the drawing steps; DRAW's are 64, DRAW-GAN's 20")
    add("--attention", action=argparse.BooleanOptionalAction, default=True, help="read and write through moving windows")
    add("--read", type=metrics.count, default=2, help="N of the N x N glimpse; DRAW's is 2")
    add("--write", type=metrics.count, default=5, help="N of the N x N patch; DRAW's is 5")
    add("--z-dim", type=metrics.count, default=100, help="length of z at each step; DRAW's is 100")
    add("--hidden", type=metrics.count, default=256, help="size of both LSTMs; DRAW's is 256")
    add("--binarise", choices=["stochastic", "threshold", "none"],
        help="pixels to black and white; stochastic for grey images under draw, else none, if not given")
    add("--clip", type=metrics.rate, default=10.0, help="the longest that DRAW's gradient may be")
    add("--likeness", choices=["feature", "pixel", "ssim"], default="feature",
        help="draw-gan's L_like: of D's features, of pixels (cross-entropy), or structural similarity")
    add("--layer", type=int, choices=[1, 2, 3], default=1, help="l, the layer of D whose features are compared")
    add("--gamma", type=metrics.rate, default=2.0, help="weight of L_like in eq. 21")
    add("--adversarial", type=metrics.rate, default=1.0, help="weight of the adversarial term in eq. 21, where it has none")
    add("--guard", type=float, nargs=2, default=[0.1, 0.6], metavar=("LOW", "HIGH"),
        help="D rests while it leads by more than HIGH, DRAW while D leads by less than LOW; -1 1 lets both go on")
    args = parser.parse_args(argv)
    if args.resume:
        return metrics.resumed_args(parser, argv, "draw_gan", free={"steps"} if args.sample else ())
    if args.sample:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if not -1 <= args.guard[0] < args.guard[1] <= 1:
        parser.error("--guard takes two numbers of -1 to 1, the lower first")
    if args.dataset in data.DATASETS:
        args.channels, side = data.DATASETS[args.dataset]
        args.size = args.size or side
    args.lr_g = args.lr_g or (2e-3 if args.objective == "draw" else 1e-3)
    args.epochs = args.epochs or (4 if args.dataset == "digits" else 30)
    return args


def main(argv=None):
    try:
        args = parse_args(argv)
        metrics.write_samples(args, steps=args.steps) if args.sample else train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"draw_gan.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def train(args):
    folder = metrics.run_folder(args, f"runs/{args.objective}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, _ = data.load(args.dataset, args.data_dir, size=args.size)
    if args.resume and images.shape[1:] != (args.channels, args.size, args.size):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])}, the run {args.resume} was "
                              f"trained on {(args.channels, args.size, args.size)}")
    args.channels, args.size = images.shape[1:3]
    if args.likeness == "ssim" and args.size < 11:
        raise data.InputError(f"--likeness ssim needs images of 11 px or more, not {args.size}: raise --size")
    if args.amp is None:
        args.amp = data.has_bf16(device)
    if args.binarise is None:
        args.binarise = "stochastic" if args.channels == 1 and args.objective == "draw" else "none"
    held_out, _ = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    held_out = binarise(spread(held_out, 10_000) / 255, args.binarise, torch.Generator().manual_seed(0))

    torch.manual_seed(args.seed)
    nets = build(args)
    with torch.no_grad():  # the first canvas starts as the mean image: the writer need not learn the background first
        nets["G"].c_0.copy_(torch.logit(spread(images, 10_000).float().mean(0) / 255, eps=0.01))
    G, D = nets["G"].to(device), nets.get("D")
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=(0.9, 0.999), fused=True)
    optimisers = {"G": opt_G}
    if D is not None:
        D.to(device, memory_format=torch.channels_last)
        opt_D = optimisers["D"] = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=(0.5, 0.999), fused=True)
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    served = data.batches(images, args.batch_size, device, args.seed, start=start)
    planned = args.epochs * (len(images) // args.batch_size)
    total = args.iters or planned
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        G, D = (net and torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default") for net in (G, D))

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "sample")}
    gan_columns = ["loss_d", "loss_g", "likeness", "kl", "d_real", "d_rec", "d_prior", "rests_d", "rests_g"]
    columns = gan_columns if D is not None else ["bound", "reconstruction", "kl"]
    log = metrics.open_log(folder / "log.csv", start, ["step", *columns, "images_per_s"])
    kl_columns = [f"kl_{t}" for t in range(1, args.steps + 1)]
    bounds = metrics.open_log(folder / "bound.csv", start, ["step", "images", "bound", "reconstruction", "kl", *kl_columns])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step, x in enumerate(served, start + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            x = binarise(x, args.binarise)
            for optimiser, lr in zip(optimisers.values(), (args.lr_g, args.lr_d)):
                optimiser.param_groups[0]["lr"] = lr * max(1 - (step - 1) / planned, 0.05)

            with autocast:
                drawn, _, kl_t = G(G.draw_z(args.batch_size, device=device), x)
            L_prior = kl_t.sum(0).mean()
            if D is None:
                L_rec = reconstruction_loss(drawn[-1], x).mean()
                loss_G = L_rec + L_prior                             # the bound
                shown = [loss_G, L_rec, L_prior]
            else:
                with autocast:
                    prior = G(G.draw_z(args.batch_size, device=device))[0][-1].sigmoid()
                rec = drawn[-1].sigmoid()
                with autocast:
                    logits = D(torch.cat([x, rec.detach(), prior.detach()])).chunk(3)
                loss_D = d_loss(*logits)
                opt_D.zero_grad()
                loss_D.backward()
                opt_D.found_inf, opt_G.found_inf = guard(*logits, *args.guard)  # 1: fused Adam leaves out this update,
                opt_D.step()                                                    # and nobody waits for the device

                D.requires_grad_(False)                              # the gradient passes through D to DRAW
                with autocast:
                    features, logit_rec = D(rec, args.layer)
                    loss_adversarial = g_loss(logit_rec, D(prior))
                    if args.likeness == "feature":
                        L_like = feature_loss(features, D(x, args.layer)[0]).mean()
                D.requires_grad_(True)
                if args.likeness == "pixel":
                    L_like = reconstruction_loss(drawn[-1], x).mean()
                elif args.likeness == "ssim":
                    L_like = x[0].numel() * (1 - ssim(rec, x)).mean()  # a sum over pixels, as the others are
                loss_G = L_prior + args.gamma * L_like + args.adversarial * loss_adversarial  # eq. 21
                shown = [loss_D, loss_adversarial, L_like, L_prior, *(logit.sigmoid().mean() for logit in logits),
                         opt_D.found_inf, opt_G.found_inf]
            opt_G.zero_grad()
            loss_G.backward()
            nn.utils.clip_grad_norm_(G.parameters(), args.clip)
            opt_G.step()

            sums = sums + torch.stack(shown).detach()
            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or ends:
                means = (sums / (step - printed)).tolist()           # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr-g and --lr-d, or "
                                             f"--no-amp; {folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                report = " ".join(f"{name} {mean:.2f}" for name, mean in zip(columns, means))
                print(f"step {step:6}/{total} | {report} | {rate:.0f} img/s | {left // 60}:{left % 60:02} left", flush=True)
                log.writerow([step, *(f"{mean:.4f}" for mean in means), f"{rate:.0f}"])
                sums, printed, since = 0, step, time.perf_counter()
            if step % args.sample_every == 0 or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, folder, step, held_out)
                    write_bound(nets, args, bounds, step, held_out if step == total else spread(held_out, 1000))
                metrics.save_run(folder, "draw_gan", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python draw_gan.py --resume {folder}")
        sys.exit(130)
    print(f"done: samples, steps.png, steps.gif, reconstructions.png and checkpoint.pt are in {folder}")


if __name__ == "__main__":
    main()
