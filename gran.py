"""GRAN: generating images with recurrent adversarial networks (Im et al. 2016, arXiv:1602.05110).

    python gran.py --dataset mnist --steps 5     the paper's run: Table 5's networks, batches of 100
    python gran.py --steps 5 --iters 20          a smoke run on `digits`, nothing to download

The generator draws in T steps. At each step f turns [h_z, h_c] into an update dC of the canvas, and
g encodes that update into the next h_c. The image is the sigmoid of the sum of all updates.

Differs from the paper:
- D returns a logit and the losses are softplus of logits: eqs. 1 and 2, without overflow.
- Batch norm always uses the current batch (as in the authors' code), so each step t has its own
  statistics. Samples must therefore be drawn in batches of the training size.
- g's dense layer has batch norm too: without it tanh saturates and GRAN5 (T = 5) collapses.
- The paper gives no learning rates. Those for CIFAR-10 and LSUN are from the authors' checkpoints.
  Those for MNIST and smaller networks at 32 px (--width) are ours: D learns faster than G.
- Rates fall to 0 at the end (--decay); samples come from a moving average of G's weights (--ema).
Measured: MNIST, --epochs 3 (1,800 updates), FID 2.14 by a classifier of MNIST (assets/RESULTS.md).
"""

import argparse
import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, T drawing steps, Z length of z, h_z and h_c, (C, S, S) an image, (s, s) a map,
# L stride-2 layers. Maps are flattened as (height, width, kernels), channels_last's memory order.


def up(kernels):
    """5x5 transposed convolutions (B, kernels[0], s, s) -> (B, kernels[-1], s * 2^L, s * 2^L)."""
    layers = []
    for k, k_next in pairwise(kernels):
        layers += [nn.BatchNorm2d(k, track_running_stats=False), nn.ReLU(),
                   nn.ConvTranspose2d(k, k_next, 5, stride=2, padding=2, output_padding=1)]
    return nn.Sequential(*layers)


def down(kernels, activation):
    """5x5 convolutions (B, kernels[0], s, s) -> (B, kernels[-1], s / 2^L, s / 2^L)."""
    layers = []
    for k, k_next in pairwise(kernels):
        layers += [nn.Conv2d(k, k_next, 5, stride=2, padding=2),
                   nn.BatchNorm2d(k_next, track_running_stats=False), activation]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """f: hidden states (B, 2Z) -> an update dC (B, C, S, S) of the canvas, before the sigmoid."""

    def __init__(self, kernels, channels, size, z_dim):
        super().__init__()
        self.base = (size >> len(kernels), size >> len(kernels), kernels[0])
        self.dense = nn.Linear(2 * z_dim, math.prod(self.base))
        self.up = up([*kernels, channels])

    def forward(self, h):
        x = self.dense(h).unflatten(1, self.base).movedim(3, 1)  # (B, kernels[0], S / 2^L, S / 2^L)
        return self.up(x)


class Encoder(nn.Module):
    """g: an update dC (B, C, S, S) -> h_c (B, Z) in (-1, 1); f's mirror image."""

    def __init__(self, kernels, channels, size, z_dim):
        super().__init__()
        self.down = down([channels, *reversed(kernels)], nn.ReLU())
        self.dense = nn.Linear(kernels[0] * (size >> len(kernels)) ** 2, z_dim)
        self.norm = nn.BatchNorm1d(z_dim, track_running_stats=False)

    def forward(self, dC):
        x = self.down(dC).movedim(1, 3).flatten(1)  # (B, kernels[0] * (S / 2^L)^2)
        return torch.tanh(self.norm(self.dense(x)))


class Generator(nn.Module):
    """Algorithm 1. noise: "once" (one z for all steps), "per-step" (a new z for each: footnote 2).

    kernels: from the smallest map to the largest, without the image's channels; tie: g uses f's.
    """

    def __init__(self, kernels, channels, size, z_dim, steps, noise="once", tie=False):
        super().__init__()
        self.z_dim, self.steps, self.noise = z_dim, steps, noise
        self.W = nn.Linear(z_dim, z_dim)
        self.f = Decoder(kernels, channels, size, z_dim)
        self.g = Encoder(kernels, channels, size, z_dim)
        if tie:
            ups = [layer for layer in self.f.up if isinstance(layer, nn.ConvTranspose2d)]
            downs = [layer for layer in self.g.down if isinstance(layer, nn.Conv2d)]
            for conv, mirror in zip(downs, reversed(ups)):
                conv.weight = mirror.weight  # same shape: out x in of one is in x out of the other
        self.apply(init)

    def draw_z(self, n, steps=None, generator=None, device=None):
        """z ~ N(0, 1), (T, n, Z) (eq. 5); the same z at every step unless noise is "per-step"."""
        T = steps or self.steps
        shape = (T if self.noise == "per-step" else 1, n, self.z_dim)
        return torch.randn(shape, generator=generator, device=device).expand(T, -1, -1)

    def forward(self, z, every_step=False):
        """z (T, B, Z) -> images (B, C, S, S) in [0, 1]; every_step: after each, (T, B, C, S, S)."""
        canvas, dC, canvases = 0, None, []
        for h_z in torch.tanh(self.W(z)):                              # eq. 7, all steps: (T, B, Z)
            h_c = torch.zeros_like(h_z) if dC is None else self.g(dC)  # eq. 6: (B, Z)
            dC = self.f(torch.cat([h_z, h_c], 1))                      # eq. 8: (B, C, S, S)
            canvas = canvas + dC.float()                               # float32 under autocast too
            canvases.append(canvas)
        return torch.sigmoid(torch.stack(canvases) if every_step else canvas)  # eq. 9


class Discriminator(nn.Module):
    """Images (B, C, S, S) in [0, 1] -> logits (B,), positive = real. Convolutions of g's sizes."""

    def __init__(self, kernels, channels, size):
        super().__init__()
        self.down = down([channels, *reversed(kernels)], nn.LeakyReLU(0.2))
        self.down[1] = nn.Identity()  # no batch norm on the first layer, as in DCGAN
        self.dense = nn.Linear(kernels[0] * (size >> len(kernels)) ** 2, 1)
        self.apply(init)

    def forward(self, x):
        x = self.down(x).movedim(1, 3).flatten(1)  # (B, kernels[0] * (S / 2^L)^2)
        return self.dense(x).squeeze(1).float()


def init(layer):
    """Convolutions start normal, with a standard deviation of 0.02, as in DCGAN."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))) of logits (B,) (eq. 2). Check: logits of 0 give 2 log 2."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z)) of logits (B,) (eq. 2, non-saturating form). Check: logits of 0 give log 2."""
    return F.softplus(-fake).mean()


def table_5(dataset, channels, size, width=None):
    """-> Generator's kernels, length of z (Table 5), Adam's rates of G and D (not the paper's).
    width: kernels of D's first layer, doubled from layer to layer [Table 5's; own photos: 32].
    InputError if size / 2^L is not whole.
    """
    if size <= 32 and channels == 1:
        kernels, z_dim, rates = [80, 40], 60, (2e-4, 4e-4)                 # MNIST
    elif size <= 32:
        kernels, z_dim, rates = [1024, 512, 216], 100, (1e-4, 4e-5)        # CIFAR-10
    else:
        kernels, z_dim, rates = [1024, 512, 216, 128], 100, (2e-4, 1e-4)   # LSUN
    if dataset == "imagenet":
        kernels = [3 * k for k in kernels]
    own = dataset == "faces" or dataset not in data.DATASETS
    if z_dim == 100 and (width or own):
        width = width or 32
        rates = (2e-4, 8e-4) if size <= 32 else rates  # a small D falls behind at CIFAR-10's
    if width:
        kernels = [width * 2**k for k in reversed(range(len(kernels)))]
    if size % 2 ** len(kernels):
        raise data.InputError(f"--size {size} is not a multiple of {2 ** len(kernels)}")
    return kernels, z_dim, rates


def build(args):
    """A dict: G, D, and ema (G's moving average) if args.ema. args: flags, channels and size."""
    width = getattr(args, "width", None)  # old runs lack it
    kernels, z_dim, _ = table_5(args.dataset, args.channels, args.size, width)
    G = Generator(kernels, args.channels, args.size, z_dim, args.steps, args.noise, args.tie)
    nets = {"G": G, "D": Discriminator(kernels, args.channels, args.size)}
    return nets | ({"ema": copy.deepcopy(G)} if getattr(args, "ema", 0) else {})


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """Images after each step (T, n, C, S, S) in [0, 1]; InputError if a T = 1 run gets other steps.

    Whole batches, with z drawn on the CPU: a seed gives the same images on any device.
    """
    G = nets.get("ema", nets["G"])
    if G.steps == 1 and steps not in (None, 1):
        raise data.InputError("a run of --steps 1 has never trained g: it cannot draw more steps")
    draws = (G.draw_z(batch_size, steps, generator) for _ in range(0, n, batch_size))
    return torch.cat([G(z.to(G.W.weight.device), every_step=True) for z in draws], 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1]; keeps only the last canvas of each batch. labels: unused."""
    parts = [canvases(nets, batch_size, steps, generator, batch_size)[-1]
             for _ in range(0, n, batch_size)]
    return torch.cat(parts)[:n]


def draw_pictures(nets, args, folder, step):
    """samples/UPDATE.png, steps.png (a row per sample, a column per drawing step), steps.gif."""
    generator = torch.Generator().manual_seed(args.seed)
    frames = canvases(nets, 64, None, generator, args.batch_size).cpu()  # (T, 64, C, S, S)
    save_image(frames[-1], folder / f"samples/{step:06}.png", nrow=8)
    save_image(frames[:, :10].transpose(0, 1).flatten(0, 1), folder / "steps.png", nrow=len(frames))
    first, *rest = [to_pil_image(make_grid(canvas, nrow=8)) for canvas in frames]
    first.save(folder / "steps.gif", save_all=True, append_images=rest, loop=0,
               duration=[400] * len(rest) + [1600])


# ---- training ------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser("gran.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=data.path, default="digits",
        help=f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]")
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels [the data set's]")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="folder of the run [runs/granT-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures [200; 2,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, help="[15; digits 5; at least 3,000 updates; authors: 15 to 70]")
    add("--iters", type=int, help="stop at this update, from 1 on; rates follow --epochs")
    add("--batch-size", type=int, help="[100, as in the paper; at most a quarter of the images]")
    add("--lr-g", type=float, help="Adam's learning rate for G [2e-4; CIFAR-10 1e-4]")
    add("--lr-d", type=float, help="and for D [MNIST 4e-4; CIFAR-10 4e-5, small 8e-4; 64 px 1e-4]")
    add("--decay", type=float, default=0.2, help="last share of updates: rates fall to 0 [0.2]")
    add("--ema", type=float, default=0.99, help="samples: G's moving average; 0: off [%(default)s]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--steps", type=int, default=5, help="T, the drawing steps [%(default)s; paper: 1, 3, 5]")
    add("--width", type=int, help="kernels of D's first layer [Table 5's, own photos: 32]")
    add("--noise", choices=["once", "per-step"], default="once", help="draws of z [%(default)s]")
    add("--tie", action="store_true", help="g shares f's kernels")
    args = parser.parse_args(argv)
    data.check_flags(parser, args, may_be_0=("decay", "ema"))
    free = {"steps"} if args.sample else ()  # what may differ from the run's own
    return metrics.resumed_args(parser, argv, "gran", free) if args.resume else args


def update(G, D, opt_G, opt_D, x, z, autocast):
    """One update of D, then one of G (eq. 2) -> (loss of D, of G, mean D(x), mean D(G(z)))."""
    with autocast:
        fake = G(z)
        d_real, d_fake = D(x), D(fake.detach())  # two passes: each has its own batch statistics
    loss_D = d_loss(d_real, d_fake)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    D.requires_grad_(False)  # no gradients for D's weights; they still flow through D to `fake`
    with autocast:
        loss_G = g_loss(D(fake))
    opt_G.zero_grad()
    loss_G.backward()
    opt_G.step()
    D.requires_grad_(True)
    return torch.stack([loss_D, loss_G, d_real.sigmoid().mean(), d_fake.sigmoid().mean()]).detach()


def train(args):
    folder, device = metrics.open_run(args, f"gran{args.steps}")
    images, _ = data.training_set(args, batch_size=100)  # sets args.channels, size, batch_size
    *_, (lr_g, lr_d) = table_5(args.dataset, args.channels, args.size, args.width)
    args.lr_g, args.lr_d = args.lr_g or lr_g, args.lr_d or lr_d
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    nn.ModuleDict(nets).to(device, memory_format=torch.channels_last)
    opt_G = data.optimiser(nets["G"], args.lr_g, betas=(0.5, 0.999))
    opt_D = data.optimiser(nets["D"], args.lr_d, betas=(0.5, 0.999))
    optimisers = {"G": opt_G, "D": opt_D}
    kept = {"D_snapshots": []}  # late copies of D: the Generative Adversarial Metric averages them
    start = metrics.restore_run(folder, nets, optimisers, kept) if args.resume else 0
    planned = data.planned_updates(args, epochs=5 if args.dataset == "digits" else 15)
    total, decay_updates = args.iters or planned, int(args.decay * planned)
    log = metrics.open_log(folder, args, nets, start, total,
                           ("loss_d", "loss_g", "d_real", "d_fake"))
    weights = [list(nets[name].parameters()) for name in ("ema", "G") if args.ema]
    G, D = (torch.compile(nets[name]) if args.compile else nets[name] for name in "GD")

    def one_update(x):
        losses = update(G, D, opt_G, opt_D, x, nets["G"].draw_z(len(x), device=device), autocast)
        if args.ema:
            get_ema_multi_avg_fn(args.ema)(*weights, None)  # None: a count, unused
        return losses

    batches = data.batches(images, args.batch_size, device, args.seed, start)
    updates = data.captured(one_update, batches, args.graph and device.type == "cuda")
    for step, shows, saves in data.schedule(args, start, total, folder):  # not drawing steps
        factor = (planned + 1 - step) / (decay_updates + 1)  # times both rates; planned >= total
        if factor < 1:
            opt_G.param_groups[0]["lr"].fill_(args.lr_g * factor)
            opt_D.param_groups[0]["lr"].fill_(args.lr_d * factor)
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if factor < 0.5 and (planned - step) % (decay_updates // 20 + 1) == 0:
            last = copy.deepcopy(nets["D"].state_dict())  # ten in the decay's second half, evenly
            kept["D_snapshots"] = [*kept["D_snapshots"], last][-10:]
        if shows:
            log(step, sums, "D {:.3f} G {:.3f} | D(x) {:.2f} D(G(z)) {:.2f}")
        if saves:
            draw_pictures(nets, args, folder, step)
            metrics.save_run(folder, "gran", args, step, nets, optimisers, **kept)
    data.say(f"done: samples, steps.png, steps.gif and checkpoint.pt are in {folder}")


def main(argv=None):
    with data.plain_errors("gran.py"):
        args = parse_args(argv)
        metrics.write_samples(args, args.steps) if args.sample else train(args)


if __name__ == "__main__":
    main()
