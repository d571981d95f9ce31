"""DCRW: the deep convolutional and recurrent writer, a variational auto-encoder after DRAW that reads with a CNN.

    python dcrw.py --dataset mnist                    the paper's first row: attention in read (7 x 7) and write (5 x 5)
    python dcrw.py --dataset mnist --read none        its second row: no attention in read, the encoder looks once
    python dcrw.py --iters 20                         a smoke run on the embedded digits

At each of T steps a small CNN reads a glimpse of the image and of the error image, a latent z_t is drawn, and an LSTM
writes a patch to the canvas; the image is the logistic function of the canvas. Trained on L_x + L_z, in nats (eq. 28).

Differs from the paper
- Eq. 27 prints its constant as T / 2 where the divergence has T Z / 2: with it, L_x + L_z is a bound (`bound`).
- Table I's L_z of 1.5 nats cannot code a digit (ten of them take 2.3). One noise tensor shared by all T steps makes such an
  L_z, since z_1 - z_2 then carries information at no cost: `--noise once` has 1.6 to 2.2 nats, and is no bound.
- Pixels and filters are counted from 1, so that a glimpse sits where its centre says.
- Eq. 9 gives h_dec to the CNN; here it joins the CNN's maps, since it has no place in an image. Eq. 15 prints four attention
  parameters; here they are five, and eq. 23 writes as DRAW does, since as printed it reads once more.
- Section III-B calls p(x | c_T) Gaussian, section IV trains on cross-entropy; so here (eq. 25 of grey values).
- Read and write have layers of their own for their attention parameters. The canvas and the LSTM start from values that
  are learned. Max pooling comes before ReLU, which gives the same numbers sooner. The gradient's norm is clipped at 5.
- The paper prints neither the length of z_t, nor batch size, rate or number of epochs: see the defaults.

Measured (torch 2.14.1, one core of an Intel Xeon with bfloat16, seeds 0, 1, 2): `--dataset mnist --epochs 8`, MNIST's 10,000
test images: 117.0, 114.1, 112.0 nats (L_x 93.9, L_z 20.4 on average) after 5 to 8 minutes; with `--read none` 145.4, 145.3, 147.2
(124.7, 21.3) after 3. Table I has 70.2 + 1.5 and 147.2 + 31.1.
"""

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import metrics

# The attention's numbers of equations are those of the DRAW paper, down to `write`; from `DCRW` on they are this paper's.
# Shapes: B batch, T drawing steps, Z length of z, H of h, C x S x S an image, N x N a glimpse of it or a patch for it.


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


class DCRW(nn.Module):
    """The writer: images (B, C, S, S) and noise (T, B, Z) to a canvas of logits and the latents' distributions.

    `read` and `write` are the sides N of glimpse and patch in pixels; with read None the CNN sees the whole image, once
    (section III C). `hidden` is H, the units of the decoder's LSTM. `noise` is "per-step", or "once": one draw for all T.
    """

    def __init__(self, channels, size, z_dim, steps, read=7, write=5, hidden=256, noise="per-step"):
        super().__init__()
        self.size, self.z_dim, self.steps, self.N_read, self.N_write = size, z_dim, steps, read, write
        self.noise = noise
        seen = channels if read is None else 2 * channels
        features = 64 * math.ceil((read or size) / 4) ** 2
        self.cnn = nn.Sequential(                                      # max pooling first: ReLU of a quarter as much
            nn.Conv2d(seen, 32, kernel_size=3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.q = nn.Linear(features + (hidden if read else 0), 2 * z_dim)
        self.rnn = nn.LSTMCell(z_dim, hidden)
        self.read_at = nn.Linear(hidden, 5) if read else None
        self.write_at = nn.Linear(hidden, 5)
        self.write_what = nn.Linear(hidden, channels * write * write)
        self.h_0 = nn.Parameter(torch.zeros(2, hidden))                # the LSTM's output and cell
        self.c_0 = nn.Parameter(torch.zeros(channels, size, size))

    def draw_noise(self, n, steps=None, generator=None, device=None):
        """eps ~ N(0, 1) (T, n, Z), eq. 4; also the prior's z. The same at every t only if noise is "once"."""
        steps = steps or self.steps
        noise = torch.randn(1 if self.noise == "once" else steps, n, self.z_dim, generator=generator, device=device)
        return noise.expand(steps, n, self.z_dim)

    def forward(self, x, noise, every_step=False):
        """-> the canvas c_T (B, C, S, S), or with every_step c_1..c_T (T, B, C, S, S), logits; mu and log sigma (T, B, Z)."""
        if self.read_at is None:
            mu, log_sigma = self.q(self.cnn(x)).float().chunk(2, 1)    # eq. 29: once, one q for all steps
            mu, log_sigma = mu.expand_as(noise), log_sigma.expand_as(noise)
            updates = self.updates(mu + log_sigma.exp() * noise)       # eq. 30: T draws from it
            return self.c_0 + (updates.cumsum(0) if every_step else updates.sum(0)), mu, log_sigma
        h, s = self.h_0[:, None].expand(-1, len(x), -1)
        c, canvases, q = self.c_0.expand_as(x), [], []
        for eps in noise:
            error = x - torch.sigmoid(c)                               # eq. 7
            window = filterbank(self.read_at(h).float(), self.N_read, self.size)
            r = read(torch.cat([x, error], 1), *window)                # eq. 8, (B, 2C, N, N)
            h_enc = torch.cat([self.cnn(r), h], 1)                     # eq. 9
            mu, log_sigma = self.q(h_enc).float().chunk(2, 1)          # eqs. 5 and 6
            h, s = self.decode(mu + log_sigma.exp() * eps, h, s)       # eqs. 10 and 11
            c = c + self.update(h)                                     # eq. 12
            canvases.append(c)
            q.append((mu, log_sigma))
        return (torch.stack(canvases) if every_step else c), *map(torch.stack, zip(*q))

    def decode(self, z, h, s):
        """A step of the LSTM: z (B, Z), output and cell (B, H) to both anew, in float32."""
        with torch.autocast("cuda", enabled=False):                    # it would round the cell; a CPU's rounds the products alone
            return self.rnn(z, (h, s))

    def update(self, h):
        """What h (B, H) writes on the canvas, (B, C, S, S) (eqs. 22 and 23)."""
        patch = self.write_what(h).float().unflatten(1, (-1, self.N_write, self.N_write))
        return write(patch, *filterbank(self.write_at(h).float(), self.N_write, self.size)).float()

    def updates(self, z):
        """z (T, B, Z) to the updates at all steps (T, B, C, S, S), written in one go as no reading comes between."""
        h, s = self.h_0[:, None].expand(-1, z.shape[1], -1)
        states = []
        for z_t in z:
            h, s = self.decode(z_t, h, s)                              # eqs. 11 and 31
            states.append(h)
        return self.update(torch.cat(states)).unflatten(0, z.shape[:2])


def reconstruction(c, x):
    """L_x (B,) of canvases c (B, C, S, S), logits, in nats an image: -log p(x | c_T), Bernoulli (eq. 25). S^2 log 2 at c = 0."""
    return F.binary_cross_entropy_with_logits(c, x, reduction="none").flatten(1).sum(1)


def kl(mu, log_sigma):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, summed over the last dimension (eqs. 26 and 27). 0 at mu = log sigma = 0."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(-1)


def build(args):
    """The bare module {"DCRW"} of a namespace with channels, size, z_dim, steps, read (a side or "none"), write, noise."""
    read = None if args.read == "none" else args.read
    return {"DCRW": DCRW(args.channels, args.size, args.z_dim, args.steps, read, args.write, noise=args.noise)}


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """The canvas after each step of n drawings from the prior, (T, n, C, S, S) in [0, 1]; steps defaults to training's T.

    z comes from `generator` (on the CPU), so that pictures agree across devices; the encoder has no part (section III D).
    """
    net, parts = nets["DCRW"], []
    for _ in range(0, n, batch_size):
        z = net.draw_noise(batch_size, steps, generator).to(net.c_0.device)
        parts.append(torch.sigmoid(net.c_0 + net.updates(z).cumsum(0)))
    return torch.cat(parts, 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1], the means of p(x | c_T); DCRW takes no labels."""
    parts = [canvases(nets, batch_size, steps, generator, batch_size)[-1] for _ in range(0, n, batch_size)]
    return torch.cat(parts)[:n]


@torch.no_grad()
def bound(nets, images, batch_size=100, seed=0):
    """Mean L_x and L_z of images (n, C, S, S), uint8, in nats an image: floats, and L_z of each step, a list of T floats.

    L_x + L_z >= the mean of -log p(b) over binary pictures b with chances x: q may be any distribution, so that of x too.
    """
    net, generator, sums = nets["DCRW"], torch.Generator().manual_seed(seed), 0
    for part in images.split(batch_size):
        x = part.to(net.c_0.device) / 255
        c, mu, log_sigma = net(x, net.draw_noise(len(x), generator=generator).to(x.device))
        sums = sums + torch.cat([reconstruction(c, x).double().sum()[None], kl(mu, log_sigma).double().sum(1)])
    l_x, *l_z = (sums / len(images)).tolist()
    return l_x, sum(l_z), l_z


def draw_pictures(nets, args, held_out, folder, step):
    """samples/STEP.png, steps.png (a row per sample, a column per step), steps.gif, times.png (Figures 4 and 5) and
    reconstructions.png (held-out images, each at the left of its canvases); the same latents every time."""
    from torchvision.utils import make_grid, save_image

    frames = canvases(nets, 64, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size).cpu()
    save_image(frames[-1], folder / f"samples/{step:06}.png", nrow=8)
    save_image(frames[:, :10].transpose(0, 1).flatten(0, 1), folder / "steps.png", nrow=len(frames))
    grids = [make_grid(canvas, nrow=8) for canvas in frames]
    first, *rest = [Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy()) for grid in grids]
    first.save(folder / "steps.gif", save_all=True, append_images=rest, loop=0, duration=[400] * len(rest) + [1600])
    times = [math.ceil(len(grids) * share) - 1 for share in (0.1, 0.4, 0.6, 1)]  # t = 1, 4, 6, 10 of the paper's T = 10
    save_image([grids[t] for t in times], folder / "times.png", nrow=4, padding=8, pad_value=1)

    net = nets["DCRW"]
    x = held_out[:10].to(net.c_0.device) / 255
    noise = net.draw_noise(len(x), generator=torch.Generator().manual_seed(args.seed)).to(x.device)
    with torch.no_grad():
        drawn = torch.sigmoid(net(x, noise, every_step=True)[0])
    save_image(torch.cat([x[None], drawn]).transpose(0, 1).flatten(0, 1), folder / "reconstructions.png", nrow=len(drawn) + 1)


def draw_losses(folder):
    """losses.png (Figure 6) out of log.csv: L_x and L_z over the updates, in nats on a log axis, and of held-out images."""
    with open(folder / "log.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    names = {"l_x": "L_x", "l_z": "L_z", "test_l_x": "L_x, held out", "test_l_z": "L_z, held out"}
    curves = {name: [(int(row["step"]), max(float(row[key]), 0.1)) for row in rows if row[key]] for key, name in names.items()}
    metrics.draw_curves(curves, folder / "losses.png", "nats an image (none drawn below 0.1) over the updates", log="y")


def print_bound(nets, args, images):
    """Two printed lines: L_x and L_z of held-out images (n, C, S, S), uint8, and L_z of each step."""
    l_x, l_z, each = bound(nets, images, args.batch_size)
    print(f"held-out, {len(images)} images: L_x {l_x:.2f} + L_z {l_z:.2f} = {l_x + l_z:.2f} nats"
          + (", no bound: one noise for all steps" if args.noise == "once" else ""))
    print("L_z by step: " + " ".join(f"{value:.2f}" for value in each))


def side_or_none(text):
    return text if text == "none" else metrics.count(text)


def parse_args(argv=None):
    parser = metrics.Parser("dcrw.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/dcrw-DATASET, or runs/dcrw-none-DATASET, if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, default=15, help="times through the data; the paper does not say its number")
    add("--iters", type=metrics.count, help="stop after this many updates; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=100, help="the paper does not say its own")
    add("--lr", type=metrics.rate, default=1e-3, help="Adam's rate; the paper does not say its own")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=500, help="updates between two grids, each with a checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--steps", type=metrics.count, default=10, help="T, the drawing steps; the paper's figures have 10")
    add("--read", type=side_or_none, default=7, metavar="N|none", help="side of the glimpse in pixels, the paper's is 7; none: "
        "no attention in read, the encoder sees the whole image once")
    add("--write", type=metrics.count, default=5, metavar="N", help="side of the patch in pixels; the paper's is 5")
    add("--z-dim", type=metrics.count, default=10, help="length of z_t; the paper does not say its own")
    add("--noise", choices=["per-step", "once"], default="per-step", help="draw noise anew at every step; once: one draw for "
        "all steps, which is no bound, but gives an L_z like that of Table I")
    args = parser.parse_args(argv)
    if args.resume:
        return metrics.resumed_args(parser, argv, "dcrw", free={"steps"} if args.sample else ())
    if args.sample:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if args.dataset in data.DATASETS:
        args.channels, side = data.DATASETS[args.dataset]
        args.size = args.size or side
    return args


def main(argv=None):
    try:
        args = parse_args(argv)
        metrics.write_samples(args, steps=args.steps) if args.sample else train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"dcrw.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def train(args):
    kind = "dcrw-none" if args.read == "none" else "dcrw"
    folder = metrics.run_folder(args, f"runs/{kind}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, _ = data.load(args.dataset, args.data_dir, size=args.size)
    if args.resume and images.shape[1:] != (args.channels, args.size, args.size):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])}, the run {args.resume} was "
                              f"trained on {(args.channels, args.size, args.size)}")
    args.channels, args.size = images.shape[1:3]
    held_out, _ = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    some = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:1000]]  # folders lie class by class
    if args.amp is None:
        args.amp = data.has_bf16(device)

    torch.manual_seed(args.seed)
    nets = build(args)
    net = nets["DCRW"].to(device, memory_format=torch.channels_last)
    optimisers = {"DCRW": torch.optim.Adam(net.parameters(), lr=args.lr, fused=True)}
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    served = data.batches(images, args.batch_size, device, args.seed, start=start)
    total = args.iters or args.epochs * (len(images) // args.batch_size)
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        net = torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default")

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "sample")}
    log = metrics.open_log(folder / "log.csv", start, ["step", "l_x", "l_z", "test_l_x", "test_l_z", "images_per_s"])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step, x in enumerate(served, start + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            with autocast:
                c, mu, log_sigma = net(x, net.draw_noise(args.batch_size, device=device))
            L_x, L_z = reconstruction(c, x).mean(), kl(mu, log_sigma).sum(0).mean()
            optimisers["DCRW"].zero_grad()
            (L_x + L_z).backward()                                     # eq. 28
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)            # a window that jumps now and then
            optimisers["DCRW"].step()

            sums = sums + torch.stack([L_x, L_z]).detach()
            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or ends:
                means = (sums / (step - printed)).tolist()             # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr, or --no-amp; "
                                             f"{folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                print(f"step {step:6}/{total} | L_x {means[0]:.2f} L_z {means[1]:.2f} | {rate:.0f} img/s"
                      f" | {left // 60}:{left % 60:02} left", flush=True)
                tests = ["", ""]
                if step % args.sample_every == 0 and (step == total or not stopping):
                    tests = [f"{value:.4f}" for value in bound(nets, some, args.batch_size)[:2]]
                log.writerow([step, *(f"{mean:.4f}" for mean in means), *tests, f"{rate:.0f}"])
                sums, printed, since = 0, step, time.perf_counter()
            if step % args.sample_every == 0 or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, some, folder, step)
                if step == total:                                      # before the checkpoint, with which the run is whole
                    draw_losses(folder)
                    print_bound(nets, args, held_out)
                metrics.save_run(folder, "dcrw", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python dcrw.py --resume {folder}")
        sys.exit(130)
    print(f"done: samples, steps.png, steps.gif, times.png, reconstructions.png, losses.png and checkpoint.pt are in {folder}")


if __name__ == "__main__":
    main()
