"""DE-GAN: GANs with decoder-encoder output noise (Zhong, Gao, Liu, Yang 2018, arXiv:1807.03923).

    python de_gan.py --dataset mnist --conditional      the paper's run: Table II's nets, 128-dimensional noise
    python de_gan.py --vae-iters 10 --iters 20          a smoke run on the embedded digits

A VAE is trained first, then frozen and turned round: Gaussian noise z_n goes through its decoder to an image x^, and
x^ through its encoder to z', which is what the generator of a DCGAN gets. G's loss has a hidden-space term besides:
the distance between what D's last convolution makes of real and of generated images. Each claim is one flag away:
`--noise plain` leaves the VAE out, `--lambda-hidden 0` the hidden term; both together are the paper's baseline, a DCGAN
with the same nets.

Updates are counted through: the first --vae-iters are the VAE's, the rest are D's and G's.

Differs from the paper
- Eq. 10 has its labels swapped, and Algorithm 1 lets D and G climb the same sum: this is the usual game, D's loss as in
  eq. 11, G's the form that does not saturate, plus lambda_2 times eq. 12. D does not see the hidden term. lambda_1 is 1,
  since Adam leaves only the ratio; the paper prints neither weight, nor its batch size and learning rates.
- All nets train with Adam; the paper says that stochastic gradient descent is adopted (section II-B).
- D(x) is a logit. Tables III and IV end in tanh, which rescaled to [0, 1] is the logistic function of twice its
  argument: every generator and decoder ends in the logistic function.
- Table II's D comes from a class-conditional DCGAN (11 = 1 + 10 and 74 = 64 + 10 kernels, labels joined to the input of
  every layer). Labels are joined so in all three tables, with --conditional; the VAE never sees them.
- Tables III and IV do not chain as printed: G is read as 1024 - 512 - 256 - 128 - 64 - C, D as 64 - 128 - 256 - 512 - 1.
- The encoder's 128 outputs are read as mean and log-variance, 128 each; z' is drawn from them (eq. 9), or is the mean
  with --posterior mean. VAE layers have batch norm and ELU; they are in evaluation mode once frozen.
- D's batch norm always uses the batch at hand, real and generated apart; G draws samples with its running averages, so
  that a picture does not depend on the labels drawn beside it.

Measured (torch 2.14.1, one core of an Intel Xeon with bfloat16, seeds 0, 1, 2): `--dataset mnist --conditional --epochs 6`:
a classifier reads 98.2, 97.9, 98.0 % of 10,000 samples as their label (the paper: 99.1), FID 0.203 on its features (mean;
real test images 0.013), after 18 minutes. A DCGAN with the same labels (dcgan.py) has 97.3 % (99.0) and 0.202.
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
from PIL import Image, ImageDraw
from torch import nn

import data
import metrics

# Shapes: B batch, Z length of z, C x S x S an image, K kernels of a layer, L classes (0 without labels).
# Between the maps and dense layers of G and D lie rows of S x S x K numbers, in channels_last's own order, so that nothing is copied.


def up(k_in, k_out, kernel=5, stride=2):
    """(B, k_in, S, S) -> (B, k_out, 2S, 2S), or with stride 1 and no padding S + kernel - 1."""
    kind = ToImage if k_out <= 4 else nn.ConvTranspose2d
    padding, output_padding = (2, 1) if stride == 2 else (0, 0)
    # Batch norm undoes a bias, whose gradient is dear in a transposed convolution on a CPU: only the image has one.
    return kind(k_in, k_out, kernel, stride, padding, output_padding, bias=k_out <= 4)


def down(k_in, k_out, stride=2):
    """(B, k_in, 2S, 2S) -> (B, k_out, S, S): 5x5; with stride 1 no padding, so S -> S - 4."""
    kind = FromImage if k_in <= 4 else nn.Conv2d
    return kind(k_in, k_out, kernel_size=5, stride=stride, padding=2 if stride == 2 else 0)


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


def join(x, y):
    """One-hot labels y (B, L) as L more columns of x (B, K), or L more constant maps of x (B, K, S, S)."""
    if x.dim() == 4:
        y = y[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, y.to(x.dtype)], 1)


class VAE(nn.Module):
    """The VAE of Tables II (28 px), III (64) and IV (32), and the decoder-encoder that it becomes (Figure 1).

    `posterior` says what z' is: "sample", drawn from the encoder's Gaussian (eq. 9), or "mean".
    """

    def __init__(self, channels, size, z_dim, posterior="sample"):
        super().__init__()
        self.posterior = posterior
        if size == 28:                                          # kernels, side, stride
            ups, downs = [(128, 3, 1), (64, 5, 1), (32, 5, 2)], [(32, 2), (64, 2), (128, 1)]
        else:
            ups, downs = [(128, 4, 1), (64, 5, 2), (32, 5, 2)], [(32, 2), (64, 2), (128, 2)]
        if size == 64:
            ups.append((16, 5, 2))
        layers, k_in = [nn.Unflatten(1, (z_dim, 1, 1))], z_dim
        for k, side, stride in ups:
            layers += [up(k_in, k, side, stride), nn.BatchNorm2d(k), nn.ELU()]
            k_in = k
        self.decoder = nn.Sequential(*layers, up(k_in, channels))
        layers, k_in = [], channels
        for k, stride in downs:
            layers += [down(k_in, k, stride), nn.BatchNorm2d(k), nn.ELU()]
            k_in = k
        flat = 128 * (3 if size == 28 else size // 8) ** 2
        self.encoder = nn.Sequential(*layers, nn.Dropout(0.1), nn.Flatten(), nn.Linear(flat, 2 * z_dim))

    def encode(self, x):
        """x (B, C, S, S) in [0, 1] -> mean and log-variance of q(z|x), (B, Z) each (eq. 5)."""
        return self.encoder(x).float().chunk(2, 1)

    def forward(self, x):
        """-> logits (B, C, S, S) of the reconstruction, mean, log-variance (eqs. 5 and 6)."""
        mu, logvar = self.encode(x)
        return self.decoder(mu + (logvar / 2).exp() * torch.randn_like(mu)).float(), mu, logvar

    def swapped(self, z, eps):
        """z_n (B, Z) -> x^ -> z' (B, Z) (eqs. 8 and 9); eps (B, Z) ~ N(0, 1) is the encoder's own noise."""
        mu, logvar = self.encode(torch.sigmoid(self.decoder(z)))
        return mu if self.posterior == "mean" else mu + (logvar / 2).exp() * eps

    def freeze(self):
        """After this, no gradient reaches the weights, dropout is off and batch norm keeps its running averages."""
        return self.eval().requires_grad_(False)


class Generator(nn.Module):
    """G: noise (B, Z), and labels (B,) if L > 0, to images (B, C, S, S) in [0, 1].

    Dense layers of 1024 and maps[0] x s x s, then one `up` per entry of maps, to maps[1], ... and at last C.
    """

    def __init__(self, maps, channels, size, z_dim, classes=0):
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.base = (size >> len(maps), size >> len(maps), maps[0])
        flat = math.prod(self.base)
        self.dense = nn.ModuleList([nn.Linear(z_dim + classes, 1024), nn.Linear(1024 + classes, flat)])
        self.dense_norms = nn.ModuleList([nn.BatchNorm1d(1024), nn.BatchNorm1d(flat)])
        self.ups = nn.ModuleList(up(k + classes, k_next) for k, k_next in zip(maps, [*maps[1:], channels]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in maps[1:])
        self.apply(start_small)

    def forward(self, z, labels=None):
        y = F.one_hot(labels, self.classes) if self.classes else z[:, :0]  # (B, L)
        x = z
        for layer, norm in zip(self.dense, self.dense_norms):
            x = F.relu(norm(layer(join(x, y))))                   # (B, 1024), (B, K0 s s)
        x = x.unflatten(1, self.base).movedim(3, 1)               # (B, K0, s, s)
        for layer, norm in zip(self.ups, [*self.norms, None]):
            x = layer(join(x, y))                                 # twice the side, at last (B, C, S, S)
            x = F.relu(norm(x)) if norm else x
        return torch.sigmoid(x.float())


class Discriminator(nn.Module):
    """D: images (B, C, S, S) in [0, 1], and labels (B,) if L > 0, to logits (B,), positive = real.

    One `down` per entry of maps, then `dense` units if not 0, then the logit.
    """

    def __init__(self, maps, channels, size, classes=0, dense=0):
        super().__init__()
        self.classes = classes
        self.downs = nn.ModuleList(down(k + classes, k_next) for k, k_next in zip([channels, *maps[:-1]], maps))
        self.norms = nn.ModuleList([nn.Identity(), *(batch_norm(nn.BatchNorm2d, k) for k in maps[1:])])
        widths = [maps[-1] * (size >> len(maps)) ** 2, *([dense] if dense else [])]
        self.dense = nn.ModuleList(nn.Linear(k + classes, dense) for k in widths[:-1])
        self.dense_norms = nn.ModuleList(batch_norm(nn.BatchNorm1d, dense) for _ in widths[:-1])
        self.out = nn.Linear(widths[-1] + classes, 1)
        self.apply(start_small)

    def forward(self, x, labels=None, with_hidden=False):
        """With with_hidden, -> (logits, h), h (B, K, s, s) being the last convolution's activations (eq. 12)."""
        y = F.one_hot(labels, self.classes) if self.classes else x.new_zeros(len(x), 0)  # (B, L)
        for layer, norm in zip(self.downs, self.norms):
            x = F.leaky_relu(norm(layer(join(x, y))), 0.2)        # half the side, at last (B, K, s, s)
        h, x = x, x.movedim(1, 3).flatten(1)
        for layer, norm in zip(self.dense, self.dense_norms):
            x = F.leaky_relu(norm(layer(join(x, y))), 0.2)        # (B, dense)
        logits = self.out(join(x, y)).squeeze(1).float()
        return (logits, h) if with_hidden else logits


def batch_norm(kind, k):
    return kind(k, track_running_stats=False)


def start_small(layer):
    """Weights start from N(0, 0.02), as in DCGAN."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def vae_loss(logits, x, mu, logvar):
    """Eq. 4 in nats per image, -> (loss, KL), both means over the batch; the likelihood is Bernoulli, summed over pixels.

    784 log 2 + 0 for 28 x 28 logits of 0 and a posterior N(0, 1).
    """
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1).mean()
    kl = (mu.square() + logvar.exp() - logvar - 1).sum(1).mean() / 2
    return nll + kl, kl


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z'))), means over logits real (B,) and fake (B,); eq. 11. 2 log 2 when D cannot tell."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z')), mean over logits fake (B,), the form of eq. 11 that does not saturate. log 2 when D cannot tell."""
    return F.softplus(-fake).mean()


def hidden_loss(h_real, h_fake):
    """Eq. 12: mean over the batch of ||h(x_real) - h(x_gen)||, activations (B, K, s, s) paired by place. 0 when equal."""
    return torch.linalg.vector_norm((h_real.float() - h_fake.float()).flatten(1), dim=1).mean()


def build(args):
    """The bare modules {"G", "D"}, and "vae" unless noise is "plain", of a namespace with channels, size, z_dim,
    classes, noise, posterior and, if not the paper's, width. Table II for 28 px, IV for 32, III for 64; InputError for
    other sizes, and for a width at 28 px."""
    width = args.width if hasattr(args, "width") else None       # older runs have none
    if args.size == 28:
        if width:
            raise data.InputError("Table II's networks, of 28 px, have no --width")
        maps_G, maps_D, dense = [128, 128], [11, 74], 1024
    elif args.size in (32, 64):
        maps_D, dense = [(width or 64) << i for i in range(4)], 0
        maps_G = maps_D[::-1]
    else:
        raise data.InputError(f"the paper's tables have images of 28, 32 and 64 px, not {args.size}: choose a --size of those")
    nets = {"G": Generator(maps_G, args.channels, args.size, args.z_dim, args.classes),
            "D": Discriminator(maps_D, args.channels, args.size, args.classes, dense)}
    if args.noise != "plain":
        nets["vae"] = VAE(args.channels, args.size, args.z_dim, args.posterior)
    return nets


@torch.no_grad()
def draw_noise(nets, n, generator=None):
    """G's input, (n, Z) on the nets' device: z' of the decoder-encoder, or z ~ N(0, I) itself where there is none.

    Gaussians come from `generator` (on the CPU) if given, so that pictures agree across devices.
    """
    device = next(nets["G"].parameters()).device

    def gaussian():
        where = device if generator is None else "cpu"
        return torch.randn(n, nets["G"].z_dim, generator=generator, device=where).to(device)

    return nets["vae"].swapped(gaussian(), gaussian()) if "vae" in nets else gaussian()


@torch.no_grad()
def sample(nets, n, labels=None, generator=None, batch_size=64):
    """n images (n, C, S, S) in [0, 1]; where G takes labels (n,), 0, 1, ... L - 1 in turn if none are given.
    """
    G = nets["G"]
    device, training = next(G.parameters()).device, G.training
    if G.classes:
        labels = (torch.arange(n) % G.classes if labels is None else labels).to(device)
    G.eval()
    parts = []
    for start in range(0, n, batch_size):
        index = torch.arange(start, start + batch_size, device=device) % n  # whole batches: the same z for any n
        parts.append(G(draw_noise(nets, batch_size, generator), labels[index] if G.classes else None))
    G.train(training)
    return torch.cat(parts)[:n]


def pretrain(vae, optimiser, x, autocast):
    """Algorithm 1, line 1: one update of the VAE on images x (B, C, S, S); -> loss and KL in nats per image, (2,)."""
    with autocast:
        logits, mu, logvar = vae(x)
    loss, kl = vae_loss(logits, x, mu, logvar)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return torch.stack([loss, kl]).detach()


def play(nets, optimisers, x, y, lambda_hidden, autocast):
    """Algorithm 1, lines 3 to 13: one update of D, then one of G, on images x (B, C, S, S) with labels y (B,) or None.

    -> (5,): D's loss, G's adversarial and hidden-space loss, the means of D(x) and D(G(z')).
    """
    G, D = nets["G"], nets["D"]
    with autocast:
        fake = G(draw_noise(nets, len(x)), y)                    # lines 4 to 7
        real_logit, fake_logit = D(x, y), D(fake.detach(), y)    # apart: each has its own batch statistics
    loss_D = d_loss(real_logit, fake_logit)
    optimisers["D"].zero_grad()
    loss_D.backward()
    optimisers["D"].step()

    D.requires_grad_(False)                                      # the gradient passes through D to G
    with autocast:
        logit, h_fake = D(fake, y, with_hidden=True)
    loss_G, hidden = g_loss(logit), torch.zeros_like(loss_D)
    if lambda_hidden:
        with autocast:
            hidden = hidden_loss(D(x, y, with_hidden=True)[1], h_fake)
    optimisers["G"].zero_grad()
    (loss_G + lambda_hidden * hidden).backward()                 # eq. 13
    optimisers["G"].step()
    D.requires_grad_(True)
    return torch.stack([loss_D, loss_G, hidden, real_logit.sigmoid().mean(), fake_logit.sigmoid().mean()]).detach()


def draw_pictures(nets, args, folder, step):
    """samples/STEP.png, the same noise every time: 8 rows of 8, or with labels a column per class (up to 16 of them)."""
    from torchvision.utils import save_image

    columns = args.classes if 1 < args.classes <= 16 else 8
    images = sample(nets, 8 * columns, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size)
    save_image(images, folder / f"samples/{step:06}.png", nrow=columns)


@torch.no_grad()
def draw_vae(nets, x, folder):
    """vae.png: ten training images, what the VAE makes of them, and below ten x^ of z_n ~ N(0, I)."""
    from torchvision.utils import save_image

    vae, training = nets["vae"], nets["vae"].training
    vae.eval()
    z = torch.randn(10, nets["G"].z_dim, generator=torch.Generator().manual_seed(0)).to(x.device)
    rows = [x[:10], torch.sigmoid(vae.decoder(vae.encode(x[:10])[0])), torch.sigmoid(vae.decoder(z))]
    vae.train(training)
    save_image(torch.cat(rows), folder / "vae.png", nrow=len(x[:10]))


@torch.no_grad()
def draw_lines(nets, args, folder):
    """interpolation.png (Figure 7): each row a straight line of G's input between two draws, one label to a row."""
    from torchvision.utils import save_image

    G = nets["G"].eval()
    ends = draw_noise(nets, 16, torch.Generator().manual_seed(args.seed)).unflatten(0, (2, 8, 1))
    t = torch.linspace(0, 1, 10, device=ends.device)[:, None]
    z = ends[0] + t * (ends[1] - ends[0])                         # (8, 10, Z)
    labels = torch.arange(8, device=z.device).repeat_interleave(10) % args.classes if args.classes else None
    save_image(G(z.flatten(0, 1), labels), folder / "interpolation.png", nrow=10)
    G.train()


def draw_nearest(nets, args, images, folder, most=2**28):
    """nearest.png (Figure 5): ten rows of eight samples, with labels one to a row, and the training image nearest to the last.

    The images are searched in parts of `most` numbers, a GiB of floats, and then the nearest ones of all parts.
    """
    from torchvision.utils import save_image

    labels = torch.arange(10).repeat_interleave(8) % args.classes if args.classes else None
    drawn = sample(nets, 80, labels, torch.Generator().manual_seed(args.seed), args.batch_size).cpu().unflatten(0, (10, 8))
    asked = drawn[:, -1] * 255
    near = [part[metrics.nearest(part, 1, queries=asked)[1][:, 0]] for part in images.split(most // images[0].numel())]
    near = torch.cat(near)                                        # (10 a part, C, S, S)
    _, indices = metrics.nearest(near, 1, queries=asked)
    save_image(torch.cat([drawn, near[indices] / 255], 1).flatten(0, 1), folder / "nearest.png", nrow=9)


def draw_losses(folder):
    """losses.png (Figures 8, 10) out of log.csv: the losses of D and G over the updates of the game."""
    with open(folder / "log.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss_d"]]
    curves = {name: [(int(row["step"]), float(row[key])) for row in rows] for key, name in (("loss_d", "D"), ("loss_g", "G"))}
    metrics.draw_curves(curves, folder / "losses.png", "losses over the updates, the VAE's counted")


def plane(x):
    """x (n, d) -> (n, 2): the two principal components that spread it the most, the second 0 where d is 1."""
    x = (x - x.mean(0)).double()
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    return F.pad(x, (0, 2 - x.shape[1]))


def draw_plane(nets, folder, n=2000):
    """noise.png (Figure 11): the principal plane of z_n at the left and of z' at the right, on one scale."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, nets["G"].z_dim, generator=generator)
    clouds = {"z_n ~ N(0, I)": plane(z), "z', after decoder and encoder": plane(draw_noise(nets, n, generator).cpu())}
    scale = max(cloud.abs().max() for cloud in clouds.values())
    picture = Image.new("L", (800, 430), 255)
    pen = ImageDraw.Draw(picture)
    for i, (name, cloud) in enumerate(clouds.items()):
        left = 400 * i
        pen.rectangle((left + 10, 25, left + 390, 405), outline=160)
        pen.text((left + 14, 8), name, fill=0)
        pen.text((left + 14, 410), f"standard deviations {cloud[:, 0].std():.2f}, {cloud[:, 1].std():.2f}", fill=0)
        for a, b in (cloud / scale * 185).tolist():
            pen.ellipse((left + 199 + a, 214 + b, left + 201 + a, 216 + b), fill=0)
    picture.save(folder / "noise.png")


def tell_dimension(images, z_dim, n=2000):
    """Prints the intrinsic dimension (section III, eqs. 15 and 16) of n of the images, and warns when z is smaller."""
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]]
    try:
        dimension = metrics.intrinsic_dimension(chosen, k=20)
    except ValueError as error:
        print(f"intrinsic dimension of the data: not estimated ({error})")
        return
    print(f"intrinsic dimension of the data, from {len(chosen)} images: {dimension:.1f}; z has {z_dim}")
    if z_dim < dimension:
        print(f"warning: z is smaller than the data's dimension, so some of the data cannot be drawn (section III): raise "
              f"--z-dim above {math.ceil(dimension)}", file=sys.stderr)


def legible(nets, args, classifier, images, labels, n=2000):
    """-> (accuracy, rdd) of n samples, labels in turn: the share that the classifier reads as its label (Figure 6), and
    the diversity relative to 10,000 of the training images, averaged over classes (Table VI; 1 is ideal).

    A class needs two samples and two training images that differ to count; where none has them, rdd is nan.
    """
    y = torch.arange(n) % args.classes
    x = sample(nets, n, y, torch.Generator().manual_seed(args.seed + 1), args.batch_size).cpu()
    if not x.isfinite().all():
        raise FloatingPointError("G draws what is not finite: try a lower --lr-g or --lr-d, or --no-amp; the last good checkpoint is kept")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:10_000]  # folders lie class by class
    images, labels = images[chosen], labels[chosen]
    pairs = ((x[y == label], images[labels == label]) for label in labels.unique())
    ratios = [metrics.rdd(own, real / 255)["mean"] for own, real in pairs if len(own) > 1 and (real != real[0]).any()]
    return metrics.test_accuracy(classifier, x, y), sum(ratios) / len(ratios) if ratios else math.nan


COLUMNS = ["loss_d", "loss_g", "hidden", "d_real", "d_fake"]  # of log.csv, in the order that `play` returns


def parse_args(argv=None):
    parser = metrics.Parser("de_gan.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/de_gan-DATASET (or de_gan-plain-DATASET) if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, help="times through the data after the VAE's updates; the paper's 25, for digits 4, if not given")
    add("--iters", type=metrics.count, help="stop after this many updates, the VAE's counted; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=64, help="the paper prints none")
    add("--lr-g", type=metrics.rate, default=2e-4, help="Adam's rate for G")
    add("--lr-d", type=metrics.rate, default=2e-4, help="Adam's rate for D")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=200, help="updates between two grids, each with a checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks, but for the frozen VAE; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--conditional", action=argparse.BooleanOptionalAction, default=False, help="G and D read labels, as on MNIST")
    add("--noise", choices=["decoder-encoder", "plain"], default="decoder-encoder",
        help="G's input: z', or N(0, I), with --lambda-hidden 0 the paper's baseline")
    add("--posterior", choices=["sample", "mean"], default="sample", help="z' is drawn from q(z|x^), or is its mean")
    add("--lambda-hidden", type=metrics.weight, default=0.01, help="lambda_2, the weight of the hidden-space loss; 0 leaves it out")
    add("--z-dim", type=metrics.count, default=128, help="length of the noise; the paper's is 128")
    add("--width", type=metrics.count, help="maps at half the image's side, doubled at each halving, at 32 and 64 px; the paper's 64 if not given")
    add("--vae-iters", type=metrics.count, help="updates of the VAE before the game, if there is one; three epochs if not given")
    add("--lr-vae", type=metrics.rate, default=1e-3, help="Adam's rate for the VAE")
    add("--accuracy-every", type=metrics.count, help="updates between two rows of accuracy.csv; an epoch if not given")
    args = parser.parse_args(argv)
    if args.resume:
        return metrics.resumed_args(parser, argv, "de_gan", free={"accuracy_every"})
    if args.sample:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if args.batch_size == 1:
        parser.error("--batch-size 1: batch normalisation takes two images at least")
    if args.dataset in data.DATASETS:
        args.channels, side = data.DATASETS[args.dataset]
        args.size = args.size or side
    args.epochs = args.epochs or (4 if args.dataset == "digits" else 25)
    return args


def main(argv=None):
    try:
        args = parse_args(argv)
        metrics.write_samples(args) if args.sample else train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"de_gan.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def train(args):
    name = "de_gan-plain" if args.noise == "plain" else "de_gan"
    folder = metrics.run_folder(args, f"runs/{name}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, labels = data.load(args.dataset, args.data_dir, size=args.size)
    classes = int(labels.max()) + 1 if args.conditional else 0
    if args.resume and (*images.shape[1:], classes) != (args.channels, args.size, args.size, args.classes):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])} and {classes} classes, the run "
                              f"{args.resume} {(args.channels, args.size, args.size)} and {args.classes}")
    if classes == 1:
        raise data.InputError(f"{args.dataset} has images of one class only: leave --conditional out")
    args.channels, args.size, args.classes = *images.shape[1:3], classes
    per_epoch = len(images) // args.batch_size
    args.vae_iters = 0 if args.noise == "plain" else args.vae_iters or 3 * per_epoch
    args.accuracy_every = args.accuracy_every or per_epoch
    if args.amp is None:
        args.amp = data.has_bf16(device)

    torch.manual_seed(args.seed)
    nets = build(args)
    for net in nets.values():
        net.to(device, memory_format=torch.channels_last)
    rates = {"G": args.lr_g, "D": args.lr_d, "vae": args.lr_vae}
    optimisers = {key: torch.optim.Adam(net.parameters(), lr=rates[key], fused=True,
                                        betas=(0.9, 0.999) if key == "vae" else (0.5, 0.999)) for key, net in nets.items()}
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    stream = data.batches(images, args.batch_size, device, args.seed, start=start, labels=labels)
    total = args.iters or args.vae_iters + args.epochs * per_epoch
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    classifier = metrics.classifier_of(args.dataset, args.data_dir, args.size, device) if classes else None
    vae, fast = nets.get("vae"), nets
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        fast = {key: torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default") for key, net in nets.items()}
    tell_dimension(images, args.z_dim)

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "sample")}
    log = metrics.open_log(folder / "log.csv", start, ["step", "vae", "kl", *COLUMNS, "images_per_s"])
    if classes:
        curve = metrics.open_log(folder / "accuracy.csv", start, ["step", "updates", "accuracy", "rdd"])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step, (x, y) in enumerate(stream, start + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            game = step > args.vae_iters
            if game and vae and vae.training:
                vae.freeze()
            if game:
                sums = sums + play(fast, optimisers, x, y if classes else None, args.lambda_hidden, autocast)
            else:
                sums = sums + pretrain(fast["vae"], optimisers["vae"], x, autocast)

            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or step == args.vae_iters or ends:
                means = (sums / (step - printed)).tolist()       # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr-g, --lr-d or --lr-vae, "
                                             f"or --no-amp; {folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                words = "D {:.3f} G {:.3f} hidden {:.2f} | D(x) {:.2f} D(G(z')) {:.2f}" if game else "VAE {:.2f} nats, KL {:.2f}"
                print(f"step {step:6}/{total} | {words.format(*means)} | {rate:.0f} img/s | {left // 60}:{left % 60:02} left",
                      flush=True)
                texts = [f"{mean:.4f}" for mean in means]
                log.writerow([step, *(["", "", *texts] if game else [*texts, *[""] * len(COLUMNS)]), f"{rate:.0f}"])
                sums, printed, since = 0, step, time.perf_counter()
            if classes and game and ((step - args.vae_iters) % args.accuracy_every == 0 or step == total):
                accuracy, diversity = legible(nets, args, classifier, images, labels)
                print(f"step {step:6}/{total} | {accuracy:.1%} of 2,000 samples read as their label, rdd {diversity:.3f}")
                curve.writerow([step, step - args.vae_iters, f"{accuracy:.4f}", f"{diversity:.4f}"])
            if step % args.sample_every == 0 or step == args.vae_iters or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, folder, step) if game else draw_vae(nets, x, folder)
                if step == total and game:                       # before the checkpoint, with which the run is whole
                    draw_lines(nets, args, folder)
                    if vae:
                        draw_plane(nets, folder)
                    draw_nearest(nets, args, images, folder)
                    draw_losses(folder)
                metrics.save_run(folder, "de_gan", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python de_gan.py --resume {folder}")
        sys.exit(130)
    if not game:
        print(f"done, but all {step} updates were the VAE's: vae.png and checkpoint.pt are in {folder}; the game begins "
              f"after update {args.vae_iters}: python de_gan.py --resume {folder} --iters {args.vae_iters + 1000}")
        return
    print(f"done: samples, interpolation, {'noise, ' if vae else ''}nearest and losses.png, log.csv and checkpoint.pt are in {folder}")


if __name__ == "__main__":
    main()
