"""GAN, DCGAN and WGAN, and what Radford et al. found inside a trained DCGAN.

GAN:   Goodfellow et al. 2014, Generative adversarial networks, arXiv:1406.2661
DCGAN: Radford, Metz, Chintala 2016, Unsupervised representation learning with ..., arXiv:1511.06434
WGAN:  Arjovsky, Chintala, Bottou 2017, arXiv:1701.07875

    python dcgan.py --dataset lsun-rooms --batch-size 128             the paper's sizes: 1024-512-256-128 maps, 64 px
    python dcgan.py --iters 20                                        a smoke run on the embedded digits
    python dcgan.py --arch dense --dataset mnist                      Goodfellow's network
    python dcgan.py --objective wgan --dataset mnist                  the same game with Wasserstein's distance
    python dcgan.py --resume runs/dcgan-faces --explore arithmetic    an exploration of a trained run, into its folder

Differs from the papers
- D(x) is a logit, and losses are softplus of logits: the same functions as eq. 1 of Goodfellow et al. without overflow.
- G draws with running averages of its batch norm, so that a latent gives one picture whatever stands beside it; a
  discriminator under measure reads batches of the training size (metrics.py), or averages of real images (explorations).
- 28 and 32 px start from 7x7 and 4x4 maps, a quarter of the paper's in width, to train on a CPU; --width 128 is the paper's.
- --conditional joins one-hot labels to every layer's input, as in the networks of DE-GAN, Table II.
- The dense networks train with Adam from N(0, 0.02) as the others, not with momentum from a uniform start.
- G learns from the noise that D or the critic met last, not from a batch of its own. An update of WGAN is one of G.
- The paper's LSUN is bedrooms; `lsun-rooms` are GRAN's kitchens and living rooms.

Measured (torch 2.14.1, one core of an Intel Xeon with bfloat16, seeds 0, 1, 2): `--dataset mnist --conditional --epochs 12`:
a classifier reads 97.1, 97.5, 97.2 % of 10,000 samples as their label, FID 0.202 on its features (mean; real test images
0.013), after 8 to 11 minutes; with `--arch dense`, Goodfellow's network, 76.1 % (mean) and 2.62 after 4.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import metrics

# --------------------------------------------------------------------------------------------------------------- model
# Shapes: B batch, Z length of z, C x S x S an image, K maps of a layer, Y classes (0 where there are no labels).
# Between maps and dense layers lie rows of S x S x K numbers, in channels_last's own order, so that nothing is copied.


def join(x, y):
    """x (B, K, ...) with one-hot y (B, Y) at every place, (B, K + Y, ...); x itself where y is None."""
    if y is None:
        return x
    y = y.to(x.dtype).view(*y.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, y], 1)


def one_hot(labels, classes):
    """labels (B,) -> (B, Y) floats; None for a net without classes."""
    return F.one_hot(labels, classes).float() if classes else None


def draw_z(n, z_dim, generator=None, device=None):
    """z uniform in (-1, 1), (n, Z)."""
    return 2 * torch.rand(n, z_dim, generator=generator, device=device) - 1


def up(k_in, k_out):
    """(B, k_in, S, S) -> (B, k_out, 2S, 2S): 5x5 convolutional transpose."""
    kind = ToImage if k_out <= 4 else nn.ConvTranspose2d
    # Batch norm undoes a bias, whose gradient is dear in a transposed convolution on a CPU: only the image has one.
    return kind(k_in, k_out, kernel_size=5, stride=2, padding=2, output_padding=1, bias=k_out <= 4)


def down(k_in, k_out):
    """(B, k_in, 2S, 2S) -> (B, k_out, S, S): 5x5 strided convolution."""
    kind = FromImage if k_in <= 4 else nn.Conv2d
    return kind(k_in, k_out, kernel_size=5, stride=2, padding=2)


def in_blocks(weight):
    """5x5 weights of stride 2, (K, C, 5, 5), as 3x3 weights of stride 1 over blocks of 2 x 2 pixels, (K, 4C, 3, 3).

    The sums are the same, but a CPU is the faster at them where C is an image's 1 or 3 channels, most of all in the backward pass.
    """
    return F.pixel_unshuffle(F.pad(weight, (0, 1, 0, 1)), 2)


class ToImage(nn.ConvTranspose2d):
    """`up` whose output is the image, in blocks."""

    def forward(self, x):
        blocks = F.conv_transpose2d(x, in_blocks(self.weight), self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(blocks, 2)  # (B, 4C, S, S) -> (B, C, 2S, 2S)


class FromImage(nn.Conv2d):
    """`down` whose input is the image, in blocks."""

    def forward(self, x):
        blocks = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)  # (B, C, 2S, 2S) -> (B, 4C, S, S)
        return F.conv2d(blocks, in_blocks(self.weight), self.bias, padding=1)


class Generator(nn.Module):
    """DCGAN's G: z (B, Z) to images (B, C, S, S) in [0, 1]; K = kernels, bottom to top (Radford et al., Figure 1).

    No pooling and no dense hidden layer; batch norm and ReLU in all layers but the last, whose tanh is brought to [0, 1].
    """

    def __init__(self, kernels, channels, size, z_dim=100, classes=0):
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.base = (size >> len(kernels), size >> len(kernels), kernels[0])
        self.dense = nn.Linear(z_dim + classes, math.prod(self.base))
        self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in kernels)
        self.ups = nn.ModuleList(
            up(k + classes, k_next) for k, k_next in zip(kernels, [*kernels[1:], channels])
        )
        self.apply(start_small)

    def forward(self, z, labels=None):
        y = one_hot(labels, self.classes)
        x = self.dense(join(z, y)).unflatten(1, self.base).movedim(3, 1)  # (B, K0, S / 2^L, S / 2^L), L = len(kernels)
        for norm, layer in zip(self.norms, self.ups):
            x = layer(join(F.relu(norm(x)), y))                           # twice the side, at last (B, C, S, S)
        return (torch.tanh(x.float()) + 1) / 2


def leaky(x):
    return F.leaky_relu(x, 0.2)


class Discriminator(nn.Module):
    """DCGAN's D, G in the mirror: images (B, C, S, S) in [0, 1] to logits (B,), positive = real; a WGAN critic likewise."""

    def __init__(self, kernels, channels, size, classes=0):
        super().__init__()
        self.classes = classes
        kernels = kernels[::-1]
        self.downs = nn.ModuleList(
            down(k + classes, k_next) for k, k_next in zip([channels, *kernels[:-1]], kernels)
        )
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(k) for k in kernels[1:])])  # none on the first layer
        self.dense = nn.Linear(kernels[-1] * (size >> len(kernels)) ** 2 + classes, 1)
        self.apply(start_small)

    def activations(self, x, labels=None, activation=leaky):
        """The maps of every convolution layer, [(B, K, S/2, S/2), ..., (B, K0, S / 2^L, S / 2^L)]."""
        y, maps = one_hot(labels, self.classes), []
        x = 2 * x - 1
        for layer, norm in zip(self.downs, self.norms):
            x = activation(norm(layer(join(x, y))))
            maps.append(x)
        return maps

    def forward(self, x, labels=None):
        h = self.activations(x, labels)[-1].movedim(1, 3).flatten(1)
        return self.dense(join(h, one_hot(labels, self.classes))).squeeze(1).float()


class DenseGenerator(nn.Module):
    """Goodfellow's G for MNIST: two layers of 1,200 ReLUs and a sigmoid; z (B, Z) to (B, C, S, S) in [0, 1]."""

    def __init__(self, channels, size, z_dim=100, classes=0, hidden=1200):
        super().__init__()
        self.z_dim, self.classes, self.shape = z_dim, classes, (channels, size, size)
        sizes = [z_dim, hidden, hidden]
        self.layers = nn.ModuleList(nn.Linear(a + classes, b) for a, b in zip(sizes, [*sizes[1:], math.prod(self.shape)]))
        self.apply(start_small)

    def forward(self, z, labels=None):
        y, x = one_hot(labels, self.classes), z
        for layer in self.layers[:-1]:
            x = F.relu(layer(join(x, y)))                         # (B, 1200)
        return torch.sigmoid(self.layers[-1](join(x, y)).float()).unflatten(1, self.shape)


class DenseDiscriminator(nn.Module):
    """Goodfellow's D for MNIST: two layers of 240 maxout units of 5 pieces, with dropout; images to logits (B,)."""

    def __init__(self, channels, size, classes=0, hidden=240, pieces=5, dropout=0.5):
        super().__init__()
        self.classes, self.pieces, self.dropout = classes, pieces, dropout
        sizes = [channels * size * size, hidden, hidden]
        self.layers = nn.ModuleList(nn.Linear(a + classes, pieces * b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(hidden + classes, 1)
        self.apply(start_small)

    def forward(self, x, labels=None):
        y, x = one_hot(labels, self.classes), 2 * x.flatten(1) - 1
        for layer in self.layers:
            x = layer(join(x, y)).unflatten(1, (-1, self.pieces)).amax(2)  # maxout: (B, 240)
            x = F.dropout(x, self.dropout, self.training)
        return self.last(join(x, y)).squeeze(1).float()


def start_small(layer):
    """Radford et al.: all weights start from N(0, 0.02); in their code batch norm's gains from N(1, 0.02)."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
        nn.init.normal_(layer.weight, mean=1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


# -------------------------------------------------------------------------------------------------------------- losses


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))), means over logits real (B,) and fake (B,); Goodfellow's eq. 1. 2 log 2 when D cannot tell."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z)), mean over logits (B,), the form that does not saturate (Goodfellow, section 3). log 2 when D cannot tell."""
    return F.softplus(-fake).mean()


def critic_loss(real, fake):
    """Mean f(G(z)) - mean f(x) of scores (B,): minus the Wasserstein distance, up to f's Lipschitz constant; 0 when f cannot tell."""
    return fake.mean() - real.mean()


def critic_g_loss(fake):
    """-mean f(G(z)) of scores (B,); WGAN, Algorithm 1, line 10."""
    return -fake.mean()


@torch.no_grad()
def clip_weights(critic, limit=0.01):
    """Every weight of the critic into [-limit, limit], in place (WGAN, Algorithm 1, line 7)."""
    for weight in critic.parameters():
        weight.clamp_(-limit, limit)


# -------------------------------------------------------------------------------------------------------- build, sample


def kernels_for(size, width):
    """Maps of G, bottom to top: from 4x4 to 7x7 they halve as the side doubles, up to `width` at half the image's side.

    64 px and width 128 are the paper's 1024-512-256-128. InputError for a size that is not 4 to 7 times a power of two.
    """
    layers = 0
    while size % 2 ** (layers + 1) == 0 and size >> layers + 1 >= 4:
        layers += 1
    if layers == 0 or size >> layers > 7:
        raise data.InputError(f"images of {size} px do not halve down to 4 to 7: choose --size 28, 32 or 64")
    return [width << i for i in reversed(range(layers))]


def build(args):
    """The bare modules of a namespace with arch, objective, channels, size, width and classes: G, and "D" or a "critic"."""
    if args.arch == "dense":
        G = DenseGenerator(args.channels, args.size, classes=args.classes)
        D = DenseDiscriminator(args.channels, args.size, args.classes, dropout=0.0 if args.objective == "wgan" else 0.5)
    else:
        kernels = kernels_for(args.size, args.width)
        G = Generator(kernels, args.channels, args.size, classes=args.classes)
        D = Discriminator(kernels, args.channels, args.size, args.classes)
    return {"G": G, "critic" if args.objective == "wgan" else "D": D}


@torch.no_grad()
def sample(nets, n, labels=None, generator=None, batch_size=128):
    """n images (n, C, S, S) in [0, 1]; a conditional G draws `labels` (n,), or 0, 1, 2, ... in turn where there are none.

    Latents come from `generator` (on the CPU), so that pictures agree across devices.
    """
    G = nets["G"]
    device, training = next(G.parameters()).device, G.training
    if labels is None and G.classes:
        labels = torch.arange(n) % G.classes
    G.eval()
    parts = []
    for first in range(0, n, batch_size):
        y = labels[torch.arange(first, first + batch_size) % n].to(device) if G.classes else None
        parts.append(G(draw_z(batch_size, G.z_dim, generator).to(device), y))
    G.train(training)
    return torch.cat(parts)[:n]


def draw_pictures(nets, args, folder, step):
    """samples/STEP.png, the same latents every time; with up to 16 classes a column for each."""
    from torchvision.utils import save_image

    columns = args.classes if 0 < args.classes <= 16 else 8
    images = sample(nets, 8 * columns, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size)
    save_image(images, folder / f"samples/{step:06}.png", nrow=columns)


# ------------------------------------------------------------------------------------------------------ flags, training

EXPLORATIONS = ("walk", "arithmetic", "filters", "forget", "features", "nearest")
FACES_SUM = [f"{way},hair=3,skin=1" for way in ("smile=1,glasses=0", "smile=0,glasses=0", "smile=0,glasses=1")]  # a, b, c if not given
FACES_THING = ["glasses=1"]


def parse_args(argv=None):
    parser = metrics.Parser("dcgan.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/dcgan-DATASET (gan-, wgan-) if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, help="times through the data; 25, for digits 4, if not given")
    add("--iters", type=metrics.count, help="stop after this many updates; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=128, help="the paper's is 128; WGAN's 64")
    add("--lr-g", type=metrics.rate, help="rate for G; the papers' 2e-4 (Adam), for wgan 5e-5 (RMSProp), if not given")
    add("--lr-d", type=metrics.rate, help="rate for D or the critic; as --lr-g's default if not given")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=200, help="updates between two grids, each with a checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--conditional", action=argparse.BooleanOptionalAction, default=False, help="G and D are given the labels")
    add("--arch", choices=["conv", "dense"], default="conv", help="DCGAN's networks, or Goodfellow's")
    add("--objective", choices=["gan", "wgan"], default="gan", help="logistic loss, or a clipped critic (WGAN)")
    add("--width", type=metrics.count, help="conv: maps at half the image's side, doubled at each halving; the paper's 128 "
        "from 64 px on, 32 below, if not given")
    add("--d-steps", type=metrics.count, help="updates of D for each of G; 1, for wgan the paper's 5, if not given")
    add("--explore", choices=EXPLORATIONS, help="only explore the run given by --resume, into RUN/explore")
    add("--concepts", nargs="+", metavar="NAME=VALUE,...", help="the three of arithmetic (a - b + c), or the one to forget")
    add("--attributes", metavar="FILE", help="a .csv: a header of names, then a row of integers for each training image")
    add("--latents", metavar="FILE.npy", help="(n, 100) numbers: the points of the walk, or three for each of a, b, c")
    args = parser.parse_args(argv)
    if args.sample and args.explore:
        parser.error("--sample and --explore are two things: give one of them")
    if (args.sample or args.explore) and not args.resume:
        parser.error(f"--{'sample' if args.sample else 'explore'} is for a trained run: name it with --resume RUN")
    for name in ("concepts", "attributes", "latents"):
        if getattr(args, name) and args.explore not in (("walk", "arithmetic") if name == "latents" else ("arithmetic", "forget")):
            parser.error(f"--{name} does not go with this: see its help and --explore")
    if args.latents and (args.concepts or args.attributes):
        parser.error("--latents are the points themselves: leave --concepts and --attributes out")
    if args.resume:
        return metrics.resumed_args(parser, argv, "dcgan", free={"seed"} if args.explore else ())
    if args.batch_size == 1:
        parser.error("--batch-size 1: batch normalisation takes two images at least")
    if args.dataset in data.DATASETS:
        args.channels, side = data.DATASETS[args.dataset]
        args.size = args.size or side
    args.lr_g = args.lr_g or (5e-5 if args.objective == "wgan" else 2e-4)
    args.lr_d = args.lr_d or (5e-5 if args.objective == "wgan" else 2e-4)
    args.d_steps = args.d_steps or (5 if args.objective == "wgan" else 1)
    args.epochs = args.epochs or (4 if args.dataset == "digits" else 25)
    return args


def main(argv=None):
    try:
        args = parse_args(argv)
        if args.explore:
            explore(args)
        elif args.sample:
            metrics.write_samples(args)
        else:
            train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"dcgan.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def load_training(args):
    """Training images and their labels; InputError where they do not fit the run args.resume."""
    images, labels = data.load(args.dataset, args.data_dir, size=args.size)
    classes = int(labels.max()) + 1 if args.conditional else 0
    if args.resume and (*images.shape[1:], classes) != (args.channels, args.size, args.size, args.classes):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])} and {classes} classes, the run "
                              f"{args.resume} {(args.channels, args.size, args.size)} and {args.classes}")
    return images, labels


def train(args):
    wgan = args.objective == "wgan"
    name = "wgan" if wgan else "dcgan" if args.arch == "conv" else "gan"
    folder = metrics.run_folder(args, f"runs/{name}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, labels = load_training(args)
    args.channels, args.size = images.shape[1:3]
    args.classes = int(labels.max()) + 1 if args.conditional else 0
    if args.classes == 1:
        raise data.InputError(f"--conditional: the images of {args.dataset} are all of one class")
    args.width = args.width or (128 if args.size >= 64 else 32)
    if args.amp is None:
        args.amp = data.has_bf16(device)

    torch.manual_seed(args.seed)
    nets = build(args)
    G, D = (nets[name].to(device, memory_format=torch.channels_last) for name in ("G", "critic" if wgan else "D"))
    if wgan:
        opt_G = torch.optim.RMSprop(G.parameters(), lr=args.lr_g)
        opt_D = torch.optim.RMSprop(D.parameters(), lr=args.lr_d)
    else:
        opt_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=(0.5, 0.999), fused=True)
        opt_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=(0.5, 0.999), fused=True)
    loss_of_D, loss_of_G = (critic_loss, critic_g_loss) if wgan else (d_loss, g_loss)
    shown = nn.Identity() if wgan else nn.Sigmoid()
    optimisers = {"G": opt_G, "D": opt_D}
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    served = data.batches(images, args.batch_size, device, args.seed, start * args.d_steps, labels)
    total = args.iters or args.epochs * (len(images) // args.batch_size) // args.d_steps
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        G, D = (torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default") for net in (G, D))

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    only_now = ("out", "resume", "sample", "explore", "concepts", "attributes", "latents")
    kept = {name: value for name, value in vars(args).items() if name not in only_now}
    log = metrics.open_log(folder / "log.csv", start,
                           ["step", "loss_d", "loss_g", "d_real", "d_fake", "spread", "images_per_s"])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step in range(start + 1, total + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            for _ in range(args.d_steps):
                x, y = next(served)
                y = y if args.conditional else None
                with autocast:
                    fake = G(draw_z(args.batch_size, G.z_dim, device=device), y)
                    real_score, fake_score = D(x, y), D(fake.detach(), y)  # apart: each has its own batch statistics
                loss_D = loss_of_D(real_score, fake_score)
                opt_D.zero_grad()
                loss_D.backward()
                opt_D.step()
                if wgan:
                    clip_weights(D)

            D.requires_grad_(False)                                        # the gradient passes through D to G
            with autocast:
                loss_G = loss_of_G(D(fake, y))
            opt_G.zero_grad()
            loss_G.backward()
            opt_G.step()
            D.requires_grad_(True)

            spread = fake.detach().var(0).sum() / x.var(0).sum().clamp(min=1e-12)  # of the pictures; far below 1: G has collapsed
            sums = sums + torch.stack([loss_D, loss_G, shown(real_score).mean(), shown(fake_score).mean(), spread]).detach()
            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or ends:
                means = (sums / (step - printed)).tolist()                 # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr-g and --lr-d, or "
                                             f"--no-amp; {folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                print(f"step {step:6}/{total} | D {means[0]:.3f} G {means[1]:.3f} | D(x) {means[2]:.2f} D(G(z)) {means[3]:.2f}"
                      f" | spread {means[4]:.2f} | {rate:.0f} img/s | {left // 60}:{left % 60:02} left", flush=True)
                log.writerow([step, *(f"{mean:.4f}" for mean in means), f"{rate:.0f}"])
                sums, printed, since = 0, step, time.perf_counter()
            if step % args.sample_every == 0 or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, folder, step)
                metrics.save_run(folder, "dcgan", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python dcgan.py --resume {folder}")
        sys.exit(130)
    print(f"done: samples and checkpoint.pt are in {folder}")


# -------------------------------------------------------------------------------------------------------- explorations
# walk, arithmetic, filters, forget, features and nearest each write folder/NAME.png or the table folder/NAME.txt, or both.


def explore(args):
    """--explore: one look into the run args.resume; pictures and tables go to RUN/explore."""
    run = metrics.load_run(args.resume, args.device)
    if args.explore in ("filters", "forget", "features") and args.arch != "conv":
        raise data.InputError(f"--explore {args.explore} reads convolution maps, and {args.resume} is a dense network")
    if args.explore == "nearest" and not args.conditional:
        raise data.InputError(f"--explore nearest needs labelled samples: train with --conditional, {args.resume} was not")
    if args.explore in ("arithmetic", "forget", "features") and args.conditional:
        raise data.InputError(f"--explore {args.explore} asks what is learnt without labels: train without --conditional, "
                              f"{args.resume} was given them")
    folder = Path(args.resume) / "explore"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(args.seed)
    globals()[args.explore](args, run, folder)
    print(f"{args.explore} is in {folder}")


def board(rows, path, scale=3):
    """Rows of images (C, S, S), None for a gap, on white as one PNG; every pixel becomes scale x scale."""
    from torchvision.utils import save_image

    blank = torch.ones_like(rows[0][0]).cpu()
    width = max(map(len, rows))
    tiles = [blank if image is None else image.cpu() for row in rows for image in [*row, *[None] * (width - len(row))]]
    tiles = torch.stack(tiles).clamp(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image(tiles, path, nrow=width, pad_value=1.0)


def table(rows, path):
    """Rows of strings, in columns, printed and written to `path`."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    print(text)
    path.write_text(text + "\n")


@torch.no_grad()
def draw(run, z, labels=None, layer=0, edit=None):
    """Images of the latents z (n, Z), on the CPU; edit, if given, is called with the maps (b, K, s, s) that enter G's
    up-convolution `layer`, and what it returns, unless None, takes their place."""
    G, drawn = run.nets["G"], []
    hook = G.ups[layer].register_forward_pre_hook(lambda _, inputs: edit(inputs[0])) if edit else None
    for i in range(0, len(z), 500):
        drawn.append(G(z[i : i + 500].to(run.device), None if labels is None else labels[i : i + 500].to(run.device)).cpu())
    if hook:
        hook.remove()
    return torch.cat(drawn)


def read_latents(path, rows, z_dim):
    """The first `rows` latents (or all, for None) of a .npy file of (n, Z) numbers; InputError if it has fewer, or another Z."""
    try:
        with open(path, "rb") as file:
            z = torch.from_numpy(np.lib.format.read_array(file).astype(np.float32))
    except (OSError, ValueError, TypeError) as error:
        raise data.InputError(f"--latents {path} cannot be read as a .npy file of numbers: {error}") from error
    if z.ndim != 2 or len(z) < (rows or 2) or z.shape[1] != z_dim:
        raise data.InputError(f"--latents {path} is {tuple(z.shape)}, not at least {rows or 2} rows of {z_dim}")
    return z[:rows]


# Walk: straight lines between 9 random latents (Radford et al., Figure 4)


def walk(args, run, folder, frames=10):
    """A row from each latent to the next, and from the last to the first; and how even the steps are."""
    z_dim = run.nets["G"].z_dim
    z = read_latents(args.latents, None, z_dim) if args.latents else draw_z(9, z_dim, torch.Generator().manual_seed(args.seed))
    share = torch.linspace(0, 1, frames)[:, None]
    path = torch.lerp(z[:, None], z.roll(-1, 0)[:, None], share)                   # (9, frames, Z)
    labels = torch.arange(len(z)).repeat_interleave(frames) % args.classes if args.classes else None
    images = draw(run, path.flatten(0, 1), labels).unflatten(0, path.shape[:2])    # (9, frames, C, S, S)
    board(images, folder / "walk.png")
    steps = images.diff(dim=1).flatten(2).norm(dim=2)                              # (9, frames - 1)
    ends = (images[:, -1] - images[:, 0]).flatten(1).norm(dim=1)
    lines = [[str(i), f"{end:.2f}", f"{step:.2f}", f"{step / end:.0%}"] for i, (end, step) in enumerate(zip(ends, steps.amax(1)), 1)]
    table([["row", "first to last picture", "longest step", "its share"], *lines], folder / "walk.txt")


# Concepts: what a small network reads in a picture, taught by the data set's attributes


class Reader(nn.Module):
    """Images (B, C, S, S) in [0, 1] to {attribute: logits (B, values)}: one small network with an end for each attribute."""

    def __init__(self, channels, values):
        super().__init__()
        self.values, layers = values, []
        for k, k_next in itertools.pairwise([channels, 32, 64, 64]):
            layers += [nn.Conv2d(k, k_next, kernel_size=3, stride=2, padding=1), nn.BatchNorm2d(k_next), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, sum(values.values())))

    def forward(self, x):
        return dict(zip(self.values, self.net(2 * x - 1).split(list(self.values.values()), 1)))

    @torch.no_grad()
    def read(self, images):
        """{attribute: probabilities (n, values)} of images (n, C, S, S), both on the CPU; float64, to tell sure from surer."""
        parts = [self.eval()(part.to(self.net[0].weight.device)) for part in images.split(500)]
        return {name: torch.cat([part[name].double().softmax(1) for part in parts]).cpu() for name in self.values}


def teach_reader(args, run):
    """(Reader, images, attributes) of the run's training images; prints how well it reads a tenth that it was not taught."""
    images, labels = load_training(args)
    attributes = read_attributes(args.attributes, len(images)) if args.attributes else attributes_of(args, labels)
    reader = Reader(args.channels, {name: int(value.max()) + 1 for name, value in attributes.items()}).to(run.device)
    optimiser = torch.optim.Adam(reader.parameters(), lr=2e-3)
    held_out, taught = torch.randperm(len(images)).tensor_split([len(images) // 10])
    batch_size = min(128, len(taught))
    served = data.batches(images[taught], batch_size, run.device, 0, labels=torch.stack([*attributes.values()], 1)[taught])
    for _ in range(max(2 * len(taught) // batch_size, 100)):
        x, y = next(served)
        loss = sum(F.cross_entropy(out, part) for out, part in zip(reader(x).values(), y.unbind(1)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    held_out = held_out[:2000]
    read = reader.read(images[held_out] / 255)
    right = ", ".join(f"{name} {(read[name].argmax(1) == attributes[name][held_out]).float().mean():.1%}" for name in read)
    print(f"a reader taught on the training images reads others right: {right}")
    return reader, images, attributes


def attributes_of(args, labels):
    """{name: int64 (N,)}: the attributes of the faces; elsewhere the label itself, as "class"."""
    return data.face_attributes(labels) if args.dataset == "faces" else {"class": labels}


def read_attributes(path, n):
    """{name: int64 (n,)} of --attributes; -1, as in CelebA's list, counts as 0. InputError if it is not a table of n rows."""
    try:
        names = Path(path).read_text().split("\n", 1)[0].split(",")
        values = np.loadtxt(path, dtype=int, delimiter=",", skiprows=1, ndmin=2).clip(min=0)
    except (OSError, ValueError) as error:
        raise data.InputError(f"--attributes {path} is no table of integers below a header of names: {error}") from error
    if values.shape != (n, len(names)):
        raise data.InputError(f"--attributes {path} has {len(names)} names and a table of {values.shape}, but there are {n} "
                              "training images")
    return dict(zip(names, torch.from_numpy(values).unbind(1)))


def parse_concepts(args, values, defaults):
    """--concepts, or for the faces the `defaults`, as dicts: "smile=1,hair=0" is {"smile": 1, "hair": 0}.

    Raises InputError unless there are as many as defaults, each of a name and value out of `values` {name: how many}.
    """
    texts = args.concepts or (defaults if args.dataset == "faces" and not args.attributes else [])
    known = ", ".join(f"{name}=0..{count - 1}" for name, count in values.items())
    if len(texts) != len(defaults):
        raise data.InputError(f"--concepts: {args.explore} takes {len(defaults)}, not {len(texts)}, out of {known}")
    concepts = [dict(part.partition("=")[::2] for part in text.split(",")) for text in texts]
    for name, value in (item for concept in concepts for item in concept.items()):
        if name not in values or not value.isdecimal() or int(value) >= values[name]:
            raise data.InputError(f"--concepts: {name}={value} is not one of {known}")
    return [{name: int(value) for name, value in concept.items()} for concept in concepts]


def certainty(read, concept):
    """How sure the reader is that pictures show a concept, (n,): the product of its probabilities."""
    return math.prod(read[name][:, value] for name, value in concept.items())


# Arithmetic: a - b + c, each the mean of three latents (Radford et al., Figure 7)


def arithmetic(args, run, folder, drawn=10_000, trials=200):
    """Three pictures of each concept, their means below; then G(a - b + c) amid eight neighbours; then the sums of pixels.

    The three are those that the reader is surest of, as a person would choose clear ones. The table says how often such a sum
    shows what it should, over `trials` random triples of those that show the concept well. Given --latents: no table.
    """
    z_dim, generator = run.nets["G"].z_dim, torch.Generator().manual_seed(args.seed)
    if args.latents:
        triples = read_latents(args.latents, 9, z_dim).view(1, 3, 3, z_dim)
    else:
        reader, _, _ = teach_reader(args, run)
        a, b, c = concepts = parse_concepts(args, reader.values, FACES_SUM)
        z = draw_z(drawn, z_dim, generator)
        read = reader.read(draw(run, z))
        sure = [certainty(read, concept) for concept in concepts]
        shown = [(share > 0.8).nonzero()[:, 0] for share in sure]
        for concept, found in zip(concepts, shown):
            if len(found) < 3:
                raise data.InputError(f"{len(found)} of {drawn} samples show {concept}: train longer, or choose other --concepts")
        picks = [share.topk(3).indices for share in sure]
        picks += [found[torch.randperm(len(found), generator=generator)[:3]] for _ in range(trials) for found in shown]
        triples = z[torch.stack(picks)].unflatten(0, (trials + 1, 3))        # (trials + 1, 3 concepts, 3 examples, Z)
    means = triples.mean(2)                                                  # (trials + 1, 3 concepts, Z)
    y = means[:, 0] - means[:, 1] + means[:, 2]                              # (trials + 1, Z)
    noise = torch.empty(9, z_dim).uniform_(-0.25, 0.25, generator=generator)
    noise[4] = 0                                                             # y itself in the middle
    pixels = draw(run, triples.flatten(0, 2)).unflatten(0, triples.shape[:3])
    pixel_sums = (pixels[:, 0] - pixels[:, 1] + pixels[:, 2]).clamp(0, 1)    # (trials + 1, 3 examples, C, S, S)
    mean_pixels = pixels.mean(2)
    mean_sums = (mean_pixels[:, 0] - mean_pixels[:, 1] + mean_pixels[:, 2]).clamp(0, 1)
    around, middle = draw(run, y[0] + noise), draw(run, means[0])
    rows = [[*pixels[0, :, i], None, *around[3 * i : 3 * i + 3], None, pixel_sums[0, i]] for i in range(3)]
    board([*rows, [*middle, None, None, around[4], None, None, mean_sums[0]]], folder / "arithmetic.png", scale=4)
    if args.latents:
        (folder / "arithmetic.txt").unlink(missing_ok=True)                  # of another picture
        return
    meant = c | {name: value for name, value in a.items() if value != b.get(name)}
    lines = [["pictures read as", *(f"{name}={value}" for name, value in meant.items()), "all of it"]]
    sums = {"G(c)": draw(run, means[1:, 2]), "G(a - b + c)": draw(run, y[1:]), "sums of pixels": mean_sums[1:]}
    for title, images in sums.items():
        read = reader.read(images)
        right = torch.stack([read[name].argmax(1) == value for name, value in meant.items()], 1)
        lines.append([title, *(f"{share:.0%}" for share in right.float().mean(0)), f"{right.all(1).float().mean():.0%}"])
    table(lines, folder / "arithmetic.txt")


# Linear models, for features and forget


def fit_linear(x, y, C, loss="squared-hinge"):
    """Weights w (d, K) and biases b (K,) that minimise |w|^2 / 2 + C sum_i loss(y_i (x_i w + b)), each column on its own.

    x: float (n, d); y: (n, K) of +1 and -1; loss: "squared-hinge", max(0, 1 - m)^2 (the L2-SVM), or "logistic",
    log(1 + exp(-m)). By L-BFGS; biases are not regularised.
    """
    from scipy.optimize import minimize

    d, K = x.shape[1], y.shape[1]

    def objective(flat):
        w, b = torch.from_numpy(flat).to(x).view(d + 1, K).tensor_split([d])
        margin = y * (x @ w + b)
        slack = (1 - margin).clamp(min=0)
        value, slope = (slack**2, -2 * slack) if loss == "squared-hinge" else (F.softplus(-margin), -torch.sigmoid(-margin))
        slope = C * slope * y
        gradient = torch.cat([w + x.T @ slope, slope.sum(0, keepdim=True)])
        return (w.square().sum() / 2 + C * value.sum()).item(), gradient.flatten().double().cpu().numpy()

    found = minimize(objective, np.zeros((d + 1) * K), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    flat = torch.from_numpy(found.x).to(x).view(d + 1, K)
    return flat[:d], flat[d]


def svm_accuracy(x, labels, x_test, labels_test):
    """Test accuracy of a linear L2-SVM, each class against the rest, with the C of five that suits best: a fifth of the first
    2,000 rows is held out for that.

    Columns are standardised and divided by sqrt(d): rows then have a length of about 1, and one range of C serves all.
    """
    mean, scale = x.mean(0), (x.std(0) + 1e-6) * math.sqrt(x.shape[1])
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    y = 2 * F.one_hot(labels, int(max(labels.max(), labels_test.max())) + 1).to(x) - 1
    tried = min(len(x), 2000)
    cut = tried * 4 // 5

    def accuracy(C, n, x_asked, labels_asked):
        w, b = fit_linear(x[:n], y[:n], C)
        return ((x_asked @ w + b).argmax(1) == labels_asked).double().mean().item()

    best = max((0.01, 0.1, 1, 10, 100), key=lambda C: accuracy(C, cut, x[cut:tried], labels[cut:tried]))
    return accuracy(best, len(x), x_test, labels_test)


# Forget: leave out the maps of G that draw a thing (Radford et al., section 6.3.1, Figure 6)


def forget(args, run, folder, drawn=2000):
    """Pictures with a thing, its box marked; as drawn; without the maps that draw it; without as many maps at random.

    The maps are those of G's highest hidden layer that a logistic regression gives a positive weight as signs of the thing;
    of these, in order of weight, as many as it takes until the reader sees the thing in a tenth of the pictures at most. (The
    paper drops all of positive weight, of the second highest layer; here, with a quarter of its maps, that wrecks the faces.)
    The table says what the reader sees then.
    """
    reader, images, attributes = teach_reader(args, run)
    (concept,) = parse_concepts(args, reader.values, FACES_THING)
    if len(concept) != 1:
        raise data.InputError("--concepts: forget takes one NAME=VALUE")
    ((name, value),) = concept.items()
    has = attributes[name] == value
    if has.all() or not has.any():
        raise data.InputError(f"--concepts: {has.sum()} of {len(has)} training images have {name}={value}: forget takes what "
                              "some have and some have not")
    box = find_box(images[has][:5000] / 255, images[~has][:5000] / 255)

    G, maps = run.nets["G"], []
    layer = len(G.ups) - 1
    z = draw_z(drawn, G.z_dim, torch.Generator().manual_seed(args.seed))
    before = reader.read(draw(run, z, layer=layer, edit=maps.append))
    shows, lacks = before[name][:, value] > 0.8, before[name][:, value] < 0.2
    if min(shows.sum(), lacks.sum()) < 20:
        raise data.InputError(f"{shows.sum()} of {drawn} samples show {name}={value} and {lacks.sum()} do not: train longer")
    weights = map_weights(torch.cat(maps).cpu(), shows, lacks, box, args.size)         # (K,)
    z = z[shows]

    def without(dropped, z):
        keep = (~dropped).float().to(run.device)[:, None, None]
        return draw(run, z, layer=layer, edit=lambda maps: maps * keep)

    drop = fewest(weights, lambda drop: (reader.read(without(drop, z[:500]))[name].argmax(1) == value).float().mean())
    at_random = drop[torch.randperm(len(drop))]
    pictures = {"as drawn": draw(run, z), "its maps dropped": without(drop, z), "random maps dropped": without(at_random, z)}
    marked, (top, bottom, left, right) = pictures["as drawn"][:12].clone(), box
    marked[:, :, [top, bottom - 1], left:right] = marked[:, :, top:bottom, [left, right - 1]] = 1.0
    board([marked, *(part[:12] for part in pictures.values())], folder / "forget.png")
    others = [key for key in before if key != name]
    lines = [[f"{drop.sum()} of {len(drop)} maps", f"{name}={value}", *(f"{key} as it was" for key in others)]]
    for title, part in pictures.items():
        read = reader.read(part)
        same = [(read[key].argmax(1) == before[key][shows].argmax(1)).float().mean() for key in others]
        lines.append([title, f"{(read[name].argmax(1) == value).float().mean():.0%}", *(f"{share:.0%}" for share in same)])
    table(lines, folder / "forget.txt")


def fewest(weights, share_showing):
    """Which maps to drop, bool (K,): those of positive weight (K,), the strongest first, until share_showing(dropped) <= 0.1."""
    drop = torch.zeros(len(weights), dtype=torch.bool)
    for strongest in weights.argsort(descending=True)[: (weights > 0).sum()]:
        drop[strongest] = True
        if share_showing(drop) <= 0.1:
            break
    return drop


def find_box(having, lacking):
    """(top, bottom, left, right) of the pixels where the means of two sets (n, C, S, S) differ by half the most, or more."""
    difference = (having.mean(0) - lacking.mean(0)).abs().sum(0)             # (S, S)
    rows, columns = (difference >= difference.max() / 2).nonzero().unbind(1)
    return rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1


def map_weights(maps, shows, lacks, box, size):
    """Weight (K,) of each map in a logistic regression of "a cell in the box of a picture that shows the thing".

    The others are random cells elsewhere in these pictures, as in the paper, and cells in the box of pictures that lack the
    thing, so that what is there in any case (eyes behind glasses) is left alone. maps: (n, K, s, s), 0 or more; shows, lacks:
    bool (n,); box: (top, bottom, left, right) in pixels of an image `size` wide.
    """
    side = maps.shape[-1]
    top, left = (int(edge * side / size) for edge in box[::2])
    bottom, right = (math.ceil(edge * side / size) for edge in box[1::2])
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    cells = maps.permute(0, 2, 3, 1)                                         # (n, s, s, K)
    positive, around = cells[shows][:, inside].flatten(0, 1), cells[shows][:, ~inside].flatten(0, 1)
    around = around[torch.randperm(len(around))[: len(positive)]]
    x = torch.cat([positive, around, cells[lacks][:, inside].flatten(0, 1)])
    y = torch.cat([torch.ones(len(positive), 1), -torch.ones(len(x) - len(positive), 1)])
    return fit_linear(x / (x.std(0) + 1e-6), y, C=10 / len(x), loss="logistic")[0][:, 0]


# Filters and features: what D has learnt (Radford et al., Figure 5 and section 5.1)


class GuidedReLU(torch.autograd.Function):
    """Leaky ReLU whose gradient passes only where it and the input are both positive (Springenberg et al. 2015, Figure 1)."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return leaky(x)

    @staticmethod
    def backward(context, gradient):
        return gradient.clamp(min=0) * (context.saved_tensors[0] > 0)


def guided_gradient(D, x, feature, labels=None):
    """Guided gradient (B, C, S, S) of the greatest response of one map of D's last convolution layer; D in eval mode."""
    x = x.clone().requires_grad_()
    response = D.activations(x, labels, GuidedReLU.apply)[-1][:, feature].amax((1, 2))
    return torch.autograd.grad(response.sum(), x)[0]


def discriminators(args, run, images, labels):
    """(untrained, trained) D in eval mode, batch norm with the statistics of 20 batches of the images, uint8 (n, C, S, S)."""
    pair = [nets.get("D") or nets.get("critic") for nets in (build(run.args), run.nets)]
    for D in pair:
        D.to(run.device).train()
        for layer in D.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = True
                layer.momentum = None                                        # a plain average of the batches to come
                layer.reset_running_stats()
        served = data.batches(images, min(args.batch_size, len(images)), run.device, args.seed, labels=labels)
        with torch.no_grad():
            for x, y in itertools.islice(served, 20):
                D(x, y if args.classes else None)
        D.eval()
    return pair


def filters(args, run, folder):
    """For the first 6 features of D's last layer, the images that excite them most and below them the guided gradients:
    a random D to the left, the trained one to the right."""
    taught = load_training(args)
    images, labels = data.load(args.dataset, args.data_dir, "test", size=args.size)
    if args.classes:  # a folder's test images may be of classes that were not trained
        known = labels < args.classes
        images, labels = images[known], labels[known]
    images, labels = (images[:2000] / 255).to(run.device), labels[:2000].to(run.device) if args.classes else None
    rows = [[] for _ in range(12)]
    for D in discriminators(args, run, *taught):
        with torch.no_grad():
            responses = D.activations(images, labels)[-1][:, :6].amax((2, 3))                # (n, 6)
        for feature, best in enumerate(responses.topk(min(6, len(images)), dim=0).indices.T):
            gradient = guided_gradient(D, images[best], feature, None if labels is None else labels[best])
            peak = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
            rows[2 * feature] += [*images[best], None]
            rows[2 * feature + 1] += [*(0.5 + 0.5 * gradient / peak), None]
    board(rows, folder / "filters.png")


@torch.no_grad()
def pooled_features(D, images):
    """(n, d): the maps of all convolution layers of D, max-pooled to 4x4, side by side; images uint8 (n, C, S, S)."""
    device = next(D.parameters()).device
    maps = (D.activations((part / 255).to(device)) for part in images.split(500))
    return torch.cat([torch.cat([F.adaptive_max_pool2d(m, 4).flatten(1) for m in part], 1) for part in maps])


def features(args, run, folder):
    """Test accuracy of a linear L2-SVM on raw pixels, on the maps of an untrained D and on those of the trained one."""
    images, labels = load_training(args)
    test, test_labels = (part[:10_000] for part in data.load(args.dataset, args.data_dir, "test", size=args.size))
    order = torch.randperm(len(images))[:10_000]
    images, labels = images[order], labels[order]
    kinds = {"raw pixels": [part.flatten(1).to(run.device) / 255 for part in (images, test)]}
    for name, D in zip(("untrained D", "trained D"), discriminators(args, run, images, labels)):
        kinds[name] = [pooled_features(D, part) for part in (images, test)]
    lines = [["labels", "attribute", "most common", *(f"{kind} ({part[0].shape[1]})" for kind, part in kinds.items())]]
    told, asked = attributes_of(args, labels), attributes_of(args, test_labels)
    if all((value == value[0]).all() for value in told.values()):
        raise data.InputError(f"--explore features reads labels off images, and those of {args.dataset} are all of one class")
    for count, name in itertools.product(sorted({min(n, len(images)) for n in (100, 1000, 10_000)}), told):
        y, y_test = told[name][:count].to(run.device), asked[name].to(run.device)
        shares = [(y_test == y.mode().values).double().mean().item(),
                  *(svm_accuracy(x[:count], y, x_test, y_test) for x, x_test in kinds.values())]
        lines.append([str(count), name, *(f"{share:.1%}" for share in shares)])
    table(lines, folder / "features.txt")


# Nearest: labels of test images from generated ones (the slides' nearest neighbour classification)


def nearest(args, run, folder):
    """Error of giving test images the label of the nearest among n generated, and among n real, training images.

    The picture: up to ten test images and ten that the generated ones mislabel; their nearest generated and nearest real ones.
    """
    images, labels = load_training(args)
    test, test_labels = (part[:10_000] for part in data.load(args.dataset, args.data_dir, "test", size=args.size))
    order = torch.randperm(len(images))[:50_000]
    drawn_labels = torch.arange(len(order)) % args.classes
    drawn = run.sample(len(order), labels=drawn_labels, seed=args.seed).mul(255).round().byte().cpu()
    sources = ((drawn, drawn_labels), (images[order], labels[order]))
    lines = [["images", "error with generated", "error with real"]]
    for n in sorted({min(n, len(order)) for n in (1000, 10_000, 50_000)}):
        found = [metrics.nearest(x[:n].to(run.device), 1, queries=test.to(run.device))[1][:, 0].cpu() for x, _ in sources]
        wrong = [y[index] != test_labels for index, (_, y) in zip(found, sources)]
        lines.append([str(n), *(f"{part.double().mean():.2%}" for part in wrong)])
    first = min(10, len(test))
    chosen = torch.cat([torch.arange(first), wrong[0].nonzero()[:10, 0]])
    rows = [part[index] / 255 for part, index in ((test, chosen), *((x, index[chosen]) for index, (x, _) in zip(found, sources)))]
    board([[*row[:first], None, *row[first:]] for row in rows], folder / "nearest.png")
    table(lines, folder / "nearest.txt")


if __name__ == "__main__":
    main()
