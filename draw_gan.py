"""DRAW (Gregor et al. 2015, arXiv:1502.04623) and DRAW-GAN (Renkila, Ganivada, Bapi).

    python draw_gan.py --dataset mnist --steps 64 --read 2 --epochs 300 --lr-g 1e-3  DRAW's paper
    python draw_gan.py --dataset mnist --objective draw-gan --steps 20               DRAW-GAN's
    python draw_gan.py --iters 20          a smoke run of DRAW on `digits`, nothing to download

At each of T steps the encoder reads a glimpse of the image and of what the canvas lacks, z_t is
drawn, and the decoder writes a patch. The image is the sigmoid of the canvas. This generator is G.
--objective draw trains it on a bound in nats; draw-gan on the bound first, then also against D.

Differs from the papers:
- The KL's constant is Z / 2 a step (printed: 1 / 2), so that the sum is a bound in nats. Rates fall
  linearly to a twentieth. The first canvas is the mean image; first windows cover the whole image.
- Grey pixels are probabilities: DRAW draws 0 or 1 for every batch, DRAW-GAN trains on grey pixels.
- --read is 5 (DRAW: 2) and --lr-g 4e-3: at T = 10, after 2,400 updates, 97 nats, not 114 (2, 2e-3).
- DRAW-GAN: the first 2/3 train on the bound alone (--warm-up). L_like is the pixels' cross-entropy
  (paper: --likeness feature). D has an R1 penalty. Algorithm 1 has L_GAN's sign reversed: here G
  descends -log D(x_rec) - log D(x_prior), weighted (--adversarial), through the encoder too.
Measured: MNIST, --epochs 15: 88.3 nats; --epochs 4: FID by a classifier 1.95, draw-gan's 3: 2.28.
"""

import argparse
import math
from itertools import chain, islice

import torch
import torch.nn.functional as F
from PIL import ImageDraw
from torch import nn
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import make_grid, save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, T drawing steps, Z length of z_t, H of an LSTM's state, (C, S, S) an image,
# (C, N, N) a glimpse, (C, M, M) a patch. Equations without "DRAW" are DRAW-GAN's.


def window(params, N, S):
    """Where N x N filters sit on an S x S image (DRAW eqs. 21 to 24).

    params (B, 5): g~_x, g~_y, log sigma^2, log delta~, log gamma. -> centre g (B, 2), x then y, in
    pixels from 1; stride delta (B, 1) in pixels; variance sigma^2 (B, 1); intensity gamma (B, 1).
    """
    g = (S + 1) / 2 * (params[:, :2] + 1)                       # DRAW eqs. 22, 23: (B, 2)
    variance, delta, gamma = params[:, 2:].exp().split(1, 1)    # DRAW eq. 21: (B, 1) each
    return g, (S - 1) / max(N - 1, 1) * delta, variance, gamma  # DRAW eq. 24


def filterbank(params, N, S):
    """params (B, 5) -> filters F_x, F_y (B, N, S), gamma (B, 1) (DRAW eqs. 19 to 26).

    Filter i of 1..N is a Gaussian over the pixels a of 1..S, with centre mu_i. The softmax makes
    rows sum to 1, like the paper's normaliser, and stays finite where a window has left the image.
    """
    g, delta, variance, gamma = window(params, N, S)
    i, a = (torch.arange(1, n + 1, device=params.device, dtype=params.dtype) for n in (N, S))
    mu = g[:, :, None] + ((i - N / 2 - 0.5) * delta)[:, None]  # DRAW eqs. 19, 20: (B, 2, N)
    exponent = (a - mu[..., None]).square() * (-0.5 / variance)[..., None, None]  # (B, 2, N, S)
    return *torch.softmax(exponent, 3).unbind(1), gamma                           # DRAW eqs. 25, 26


def read(image, F_x, F_y, gamma):
    """A glimpse gamma F_y image F_x^T (B, C, N, N) of images (B, C, S, S) (DRAW eq. 27)."""
    return gamma[:, :, None, None] * (F_y[:, None] @ image @ F_x[:, None].mT)


def write(patch, F_x, F_y, gamma):
    """F_y^T patch F_x / gamma (B, C, S, S): a patch (B, C, M, M) on the canvas (DRAW eq. 29)."""
    return F_y[:, None].mT @ (patch / gamma[:, :, None, None]) @ F_x[:, None]


class Draw(nn.Module):
    """The generator (DRAW-GAN eqs. 9 to 14, 17 to 19). read_n, write_n: N, M; None: whole."""

    def __init__(self, channels, size, z_dim, hidden, steps, read_n=5, write_n=5):
        super().__init__()
        self.shape = channels, size, size
        self.patch_shape = channels, write_n or size, write_n or size
        self.z_dim, self.steps, self.N_read, self.N_write = z_dim, steps, read_n, write_n
        self.read_at = nn.Linear(hidden, 5) if read_n else None
        self.enc = nn.LSTMCell(2 * channels * (read_n or size) ** 2 + hidden, hidden)
        self.q = nn.Linear(hidden, 2 * z_dim)
        self.dec = nn.LSTMCell(z_dim, hidden)
        self.write_at = nn.Linear(hidden, 5) if write_n else None
        self.patch = nn.Linear(hidden, math.prod(self.patch_shape))
        for layer, N, divisor in (self.read_at, read_n, 4), (self.write_at, write_n, 2):
            if N:  # first windows over the whole image: stride (S - 1) / N, sigma S / N / divisor
                start = 2 * math.log(size / N / divisor), math.log(max(N - 1, 1) / N)
                layer.bias.data[2:4] = torch.tensor(start)
        self.c_0 = nn.Parameter(torch.zeros(self.shape))  # learned; train() sets it to a mean image
        self.h_enc_0, self.h_dec_0 = (nn.Parameter(torch.zeros(hidden)) for _ in range(2))

    def draw_z(self, n, steps=None, generator=None, device=None):
        """Noise (T, n, Z). Each step has its own: in z_1 - z_2 a shared one would cancel."""
        return torch.randn(steps or self.steps, n, self.z_dim, generator=generator, device=device)

    @torch.autocast("cuda", enabled=False)  # on CUDA only D uses bfloat16: it rounds LSTM cells
    def forward(self, noise, x=None):
        """noise (T, B, Z); x (B, C, S, S) -> canvases, windows: lists of T; kl (T, B) in nats.

        With x, z_t ~ Q(Z | h_enc). Without, z_t = noise_t is from the prior, and kl is None.
        Canvases are (B, C, S, S), before the sigmoid; windows are the params of read and of write.
        """
        B, S = noise.shape[1], self.shape[1]
        c, h_enc, h_dec = (v.expand(B, *v.shape) for v in (self.c_0, self.h_enc_0, self.h_dec_0))
        s_enc = s_dec = torch.zeros_like(h_dec)  # the LSTMs' cells
        canvases, windows, q = [], [], []
        for noise_t in noise:
            z, read_at, write_at = noise_t, None, None                    # eq. 17
            if x is not None:
                r = torch.cat([x, x - torch.sigmoid(c)], 1)               # eq. 9: (B, 2C, S, S)
                if self.read_at:
                    read_at = self.read_at(h_dec).float()
                    r = read(r, *filterbank(read_at, self.N_read, S))     # eq. 10: (B, 2C, N, N)
                r = torch.cat([r.flatten(1), h_dec], 1)
                h_enc, s_enc = self.enc(r, (h_enc, s_enc))                # eq. 11: (B, H) each
                q.append(self.q(h_enc).float())
                mu, log_sigma = q[-1].chunk(2, 1)                         # (B, Z) each
                z = mu + log_sigma.exp() * noise_t                        # eqs. 8 and 12
            h_dec, s_dec = self.dec(z, (h_dec, s_dec))                    # eqs. 13, 18: (B, H) each
            w = self.patch(h_dec).unflatten(1, self.patch_shape)          # (B, C, M, M)
            if self.write_at:
                write_at = self.write_at(h_dec).float()
                w = write(w, *filterbank(write_at, self.N_write, S))      # (B, C, S, S)
            c = c + w                                                     # eqs. 14 and 19
            canvases.append(c)
            windows.append((read_at, write_at))
        return canvases, windows, (kl(*torch.stack(q).chunk(2, 2)) if q else None)


class Discriminator(nn.Module):
    """Images (B, C, S, S) in [0, 1] -> logits (B,), positive = real."""

    def __init__(self, channels, size, kernels=(32, 64), hidden=256):
        super().__init__()
        side = -(-size // 4)  # rounded up
        self.conv1 = nn.Conv2d(channels, kernels[0], 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(kernels[0], kernels[1], 5, stride=2, padding=2)
        self.dense = nn.Linear(kernels[1] * side * side, hidden)
        self.out = nn.Linear(hidden, 1)

    def features(self, x):
        """Activations of D's first layer, (B, 32, S / 2, S / 2), for L_like of DRAW-GAN eq. 21."""
        return F.leaky_relu(self.conv1(2 * x - 1), 0.2)

    def forward(self, x):
        x = F.leaky_relu(self.conv2(self.features(x)), 0.2)            # (B, 64, S / 4, S / 4)
        x = F.leaky_relu(self.dense(x.movedim(1, 3).flatten(1)), 0.2)  # channels_last's order
        return self.out(x).squeeze(1).float()


def kl(mu, log_sigma):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, summed over the last axis. Check: zeros give 0."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(-1)


def reconstruction_loss(canvas, x):
    """-log P(x | c_T), Bernoulli, in nats (B,); canvas: logits. Check: zeros give C S S log 2."""
    return F.binary_cross_entropy_with_logits(canvas, x, reduction="none").flatten(1).sum(1)


def feature_loss(rec, real):
    """L_like of DRAW-GAN eq. 21, (B,): -log N(D_l(x) | D_l(x_rec), 1), no constant. Equal: 0."""
    return 0.5 * (rec - real).float().square().flatten(1).sum(1)


def d_loss(real, rec, prior):
    """DRAW-GAN eq. 20: -log D(x) - log(1 - D(x_rec)) - log(1 - D(x_prior)). 0s give 3 log 2."""
    return F.softplus(-real).mean() + F.softplus(rec).mean() + F.softplus(prior).mean()


def g_loss(rec, prior):
    """-log D(x_rec) - log D(x_prior), of logits (B,) (DRAW-GAN eq. 21). Check: 0s give 2 log 2."""
    return F.softplus(-rec).mean() + F.softplus(-prior).mean()


def r1_penalty(D, x):
    """|dD(x)/dx|^2 / 2, mean over real x (Mescheder et al. 2018, eq. 9). D(x) = w x: w^2 / 2."""
    x = x.detach().requires_grad_()
    gradient, = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


# ---- samples and pictures ------------------------------------------------------------------------


def build(args):
    """A dict: G (DRAW), and D for draw-gan. args: flags, and channels and size of the images."""
    read_n, write_n = (args.read, args.write) if args.attention else (None, None)
    G = Draw(args.channels, args.size, args.z_dim, args.hidden, args.steps, read_n, write_n)
    D = {"D": Discriminator(args.channels, args.size)} if args.objective == "draw-gan" else {}
    return {"G": G} | D


@torch.no_grad()
def bound(nets, x, seed=0, batch_size=100):
    """Means over x (n, C, S, S): reconstruction, kl (T,), in nats. Their sum bounds -log p(x)."""
    G, generator = nets["G"], torch.Generator().manual_seed(seed)
    reconstruction, divergence = 0, 0
    for part in x.split(batch_size):
        part = part.to(G.c_0.device)
        canvases, _, kl_t = G(G.draw_z(len(part), generator=generator).to(part.device), part)
        reconstruction += reconstruction_loss(canvases[-1], part).double().sum()
        divergence += kl_t.double().sum(1)
    return (reconstruction / len(x)).item(), (divergence / len(x)).cpu()


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """Images after each step (T, n, C, S, S) in [0, 1]; z from the CPU: the same on any device."""
    G, parts = nets["G"], range(0, n, batch_size)
    draws = (G.draw_z(batch_size, steps, generator).to(G.c_0.device) for _ in parts)
    return torch.cat([torch.stack(G(z)[0]).sigmoid() for z in draws], 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1]; keeps only the last canvas of each batch. labels: unused."""
    return torch.cat([canvases(nets, batch_size, steps, generator, batch_size)[-1]
                      for _ in range(0, n, batch_size)])[:n]


def boxed(images, windows, zoom=3):
    """Images (n, C, S, S) -> (n, 3, zoom S, zoom S), with outlines of attention windows.

    windows: (params (n, 5) or None, N, colour) each. A box goes through the outermost filters' mu.
    """
    S, pictures = images.shape[3], []
    for k, image in enumerate(F.interpolate(images, scale_factor=zoom).cpu()):
        picture = to_pil_image(image.expand(3, -1, -1))
        for params, N, colour in windows:
            if params is not None:
                g, delta, _, _ = window(params[k : k + 1].cpu(), N, S)
                mu = torch.cat([g - (N - 1) / 2 * delta, g + (N - 1) / 2 * delta], 1)[0]
                box = (zoom * (mu - 0.5)).clamp(-zoom, zoom * (S + 1))  # pixel 1 lies in 0..1
                ImageDraw.Draw(picture).rectangle(box.tolist(), outline=colour)
        pictures.append(to_tensor(picture))
    return torch.stack(pictures)


@torch.no_grad()
def draw_pictures(nets, args, folder, step, x):
    """samples/UPDATE.png; steps.png, steps.gif: ten samples; reconstructions.png, .gif: ten of x.

    The same images every time, a row each. DRAW reads in the red box and writes in the green box.
    """
    G, x, generator = nets["G"], x[:: len(x) // 10 or 1][:10], torch.Generator()
    images = sample(nets, 64, None, generator.manual_seed(args.seed), args.batch_size)
    save_image(images, folder / f"samples/{step:06}.png", nrow=8)
    noise = G.draw_z(len(x), generator=generator).to(G.c_0.device)
    shown = sorted({round(k * (G.steps - 1) / 15) for k in range(16)})  # 16 steps at most
    for name, seen in ("steps", None), ("reconstructions", x.to(noise.device)):
        drawn, windows, _ = G(noise, seen)
        frames = [boxed(c.sigmoid(), [(read_at, G.N_read, "red"), (write_at, G.N_write, "lime")])
                  for c, (read_at, write_at) in zip(drawn, windows)]  # (n, 3, zoom S, zoom S) each
        columns = ([] if seen is None else [boxed(seen, [])]) + [frames[t] for t in shown]
        tiles = torch.stack(columns, 1).flatten(0, 1)
        save_image(tiles, folder / f"{name}.png", nrow=len(columns))
        first, *rest = [to_pil_image(make_grid(frame, nrow=5)) for frame in frames]
        first.save(folder / f"{name}.gif", save_all=True, append_images=rest, loop=0,
                   duration=[200] * len(rest) + [1600])


def write_bound(nets, args, folder, step, x):
    """A printed line and a row of bound.csv: the bound on held-out x (n, C, S, S)."""
    reconstruction, kl_t = bound(nets, x, batch_size=args.batch_size)
    nats = reconstruction + kl_t.sum().item(), reconstruction, kl_t.sum().item()
    name = "bound" if args.binarise else "bound, pixels as probabilities,"
    text = "{} on {} held-out images: {:.2f} nats = {:.2f} reconstruction + {:.2f} KL"
    data.say(text.format(name, len(x), *nats))
    file = folder / "bound.csv"
    rows = file.read_text().splitlines()[1:] if file.exists() else []
    rows = [row for row in rows if int(row.split(",")[0]) < step]  # resumed: drop later rows
    rows.append("{},{},{:.3f},{:.3f},{:.3f}".format(step, len(x), *nats))
    file.write_text("\n".join(["step,images,bound,reconstruction,kl", *rows]) + "\n")


# ---- training ------------------------------------------------------------------------------------

# The printed line and the columns of log.csv, on the bound and against D.
ON_BOUND = "bound {:.2f} = {:.2f} reconstruction + {:.2f} KL", ["bound", "reconstruction", "kl"]
VS_D = ("D {:.3f} G {:.3f} | likeness {:.2f} KL {:.2f} | D(x) {:.2f} D(rec) {:.2f} D(prior) {:.2f}",
        ["loss_d", "loss_g", "likeness", "kl", "d_real", "d_rec", "d_prior"])
CLIP = 10.0  # gradient-norm clip of DRAW


def parse_args(argv=None):
    parser = argparse.ArgumentParser("draw_gan.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=data.path, default="digits",
        help=f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]")
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels [the data set's]")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="folder of the run [runs/OBJECTIVE-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures and bounds [200; 2,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--objective", choices=["draw", "draw-gan"], default="draw", help="[%(default)s]")
    add("--epochs", type=int, help="[30; digits 5; at least 3,000 updates]")
    add("--iters", type=int, help="stop at this update, from 1 on; rates follow --epochs")
    add("--batch-size", type=int, help="[100; DRAW-GAN's paper: 64; at most 1/4 of the images]")
    add("--lr-g", type=float, default=4e-3, help="G's learning rate at the start [%(default)s]")
    add("--lr-d", type=float, default=6e-4, help="D's learning rate at the start [%(default)s]")
    add("--warm-up", type=int, help="draw-gan: first updates, on the bound alone [2/3; paper: 0]")
    add("--likeness", choices=["pixel", "feature"], default="pixel", help="[pixel; paper: feature]")
    add("--gamma", type=float, default=1.0, help="weight of --likeness, DRAW-GAN eq. 21 [1.0]")
    add("--adversarial", type=float, default=10.0, help="weight of -log D [%(default)s; paper: 1]")
    add("--r1", type=float, default=1.0, help="weight of R1, for D [%(default)s; paper: 0]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile DRAW")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--steps", type=int, default=10, help="T, the drawing steps [%(default)s; papers: 64, 20]")
    add("--attention", action=argparse.BooleanOptionalAction, default=True,
        help="read and write through windows, not whole images [yes]")
    add("--read", type=int, default=5, help="N of the N x N glimpse [5; DRAW: 2 at T = 64]")
    add("--write", type=int, default=5, help="M of the M x M patch [%(default)s, as in DRAW]")
    add("--z-dim", type=int, default=100, help="length of each z_t [%(default)s, as in DRAW]")
    add("--hidden", type=int, default=256, help="size of both LSTMs [%(default)s, as in DRAW]")
    args = parser.parse_args(argv)
    data.check_flags(parser, args, may_be_0=("warm_up", "r1"))
    free = {"steps"} if args.sample else ()  # what may differ from the run's own
    return metrics.resumed_args(parser, argv, "draw_gan", free) if args.resume else args


def update_draw(G, opt_G, x, noise, autocast):
    """One update of DRAW's bound -> (bound, reconstruction, KL), nats per image."""
    with autocast:
        canvases, _, kl_t = G(noise, x)
    L_rec, L_prior = reconstruction_loss(canvases[-1], x).mean(), kl_t.sum(0).mean()
    opt_G.zero_grad()
    (L_rec + L_prior).backward()
    nn.utils.clip_grad_norm_(G.parameters(), CLIP)
    opt_G.step()
    return torch.stack([L_rec + L_prior, L_rec, L_prior]).detach()


def update_draw_gan(G, D, opt_G, opt_D, x, noise, autocast, like, gamma, weight, r1=0):
    """DRAW-GAN's Algorithm 1: an update of D, then of G; noise (T, 2B, Z) -> VS_D's columns."""
    noise, z_prior = noise.chunk(2, 1)
    with autocast:
        canvases, _, kl_t = G(noise, x)
        rec, drawn = canvases[-1].sigmoid(), G(z_prior)[0][-1].sigmoid()
        logits = D(torch.cat([x, rec.detach(), drawn.detach()])).chunk(3)
    loss_D = d_loss(*logits)                                           # DRAW-GAN eq. 20
    opt_D.zero_grad()
    (loss_D + r1 * r1_penalty(D, x) if r1 else loss_D).backward()
    opt_D.step()

    D.requires_grad_(False)  # no gradients for D's weights; they still flow through D to G
    with autocast:
        loss_G = g_loss(*D(torch.cat([rec, drawn])).chunk(2))
        L_like = (feature_loss(D.features(rec), D.features(x)) if like == "feature" else
                  reconstruction_loss(canvases[-1], x)).mean()
    L_prior = kl_t.sum(0).mean()                                       # the KL to the prior
    opt_G.zero_grad()
    (L_prior + gamma * L_like + weight * loss_G).backward()            # DRAW-GAN eq. 21
    nn.utils.clip_grad_norm_(G.parameters(), CLIP)
    opt_G.step()
    D.requires_grad_(True)
    means = [logit.sigmoid().mean() for logit in logits]
    return torch.stack([loss_D, loss_G, L_like, L_prior, *means]).detach()


def run_updates(args, nets, optimisers, images, start, warm_up, autocast):
    """Yields the running sums of losses of each update: on the bound to warm_up, then against D."""
    G = torch.compile(nets["G"]) if args.compile else nets["G"]
    device, draw_z = nets["G"].c_0.device, nets["G"].draw_z
    weights = args.likeness, args.gamma, args.adversarial, args.r1

    def on_bound(x):
        x = x.bernoulli() if args.binarise else x
        return update_draw(G, optimisers["G"], x, draw_z(len(x), device=device), autocast)

    def vs_d(x):
        noise = draw_z(2 * len(x), device=device)
        opt_G, opt_D = optimisers["G"], optimisers["D"]
        return update_draw_gan(G, nets["D"], opt_G, opt_D, x, noise, autocast, *weights)

    batches = data.batches(images, args.batch_size, device, args.seed, start)
    graph = args.graph and device.type == "cuda"
    first, then = (data.captured(f, batches, graph) for f in (on_bound, vs_d))
    return chain(islice(first, max(warm_up - start, 0)), then)


def train(args):
    folder, device = metrics.open_run(args, args.objective)
    images, _ = data.training_set(args, batch_size=100)  # sets args.channels, size, batch_size
    args.binarise = args.channels == 1 and args.objective == "draw"
    held_out, _ = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    held_out = held_out[:: len(held_out) // 10_000 or 1] / 255
    if args.binarise:
        held_out = held_out.bernoulli(generator=torch.Generator().manual_seed(0))
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    mean = images[:: len(images) // 10_000 or 1].float().mean(0) / 255
    nets["G"].c_0.data = torch.logit(mean, eps=0.01)  # G need not learn the background first
    nn.ModuleDict(nets).to(device, memory_format=torch.channels_last)
    rates = {"G": args.lr_g, "D": args.lr_d}  # at the start
    optimisers = {"G": data.optimiser(nets["G"], rates["G"])}
    planned = data.planned_updates(args, epochs=5 if args.dataset == "digits" else 30)
    total = warm_up = args.iters or planned  # warm_up: the last update on the bound
    if "D" in nets:
        optimisers["D"] = data.optimiser(nets["D"], rates["D"], betas=(0.5, 0.999))
        args.warm_up = warm_up = planned * 2 // 3 if args.warm_up is None else args.warm_up
        data.say(f"DRAW's bound up to update {warm_up:,}, then also against D (--warm-up)")
    columns = list(dict.fromkeys(ON_BOUND[1] + (VS_D[1] if "D" in nets else [])))
    start = metrics.restore_run(folder, nets, optimisers) if args.resume else 0
    log = metrics.open_log(folder, args, nets, start, total, columns)
    updates = run_updates(args, nets, optimisers, images, start, warm_up, autocast)
    for step, shows, saves in data.schedule(args, start, total, folder):  # not drawing steps
        factor = max(1 - (step - 1) / planned, 0.05)  # both rates times this
        for name, optimiser in optimisers.items():
            optimiser.param_groups[0]["lr"].fill_(rates[name] * factor)
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if shows or step == warm_up:
            log(step, sums, *(ON_BOUND if step <= warm_up else VS_D))
        if saves:
            draw_pictures(nets, args, folder, step, held_out)
            some = held_out[:: 1 if step == total else max(len(held_out) // 1000, 1)]
            write_bound(nets, args, folder, step, some)
            metrics.save_run(folder, "draw_gan", args, step, nets, optimisers)
    data.say(f"done: samples, steps.png, steps.gif and checkpoint.pt are in {folder}")


def main(argv=None):
    with data.plain_errors("draw_gan.py"):
        args = parse_args(argv)
        metrics.write_samples(args, args.steps) if args.sample else train(args)


if __name__ == "__main__":
    main()
