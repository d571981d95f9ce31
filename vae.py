"""VAE: auto-encoding variational Bayes (Kingma and Welling 2014, arXiv:1312.6114), and three more.

    python vae.py --dataset mnist --epochs 100      the paper's kind of run: dense, batches of 100
    python vae.py --objective aae --iters 20        a smoke run on `digits`, nothing to download

--objective vae   reconstruction + KL(q(z|x) || N(0, I)), both in nats an image
            dvae  reconstruction of the clean image + KL; the encoder sees a corrupted one (Im et
                  al. 2017, arXiv:1511.06406; Table 3 of the GRAN paper)
            info  reconstruction + weight * MMD^2(q(z), N(0, I)): InfoVAE with alpha = 1 (Zhao et
                  al. 2018, arXiv:1706.02262)
            aae   adversarial autoencoder (Makhzani et al. 2016, arXiv:1511.05644): reconstruction;
                  D_z tells q(z) from N(0, I), and the encoder learns to fool it

Differs from the papers:
- All four use one kind of encoder, a Gaussian q(z|x) of two dense ReLU layers of 500 (Kingma and
  Welling: one, tanh; AAE: two of 1,000), and Adam in place of Adagrad and momentum.
- The MMD is the unbiased estimate, with N(0, I) in closed form; its weight 100 (paper: 1,000).
- z has 8 numbers in info and aae: with 20, prior samples lie far from q(z) (FID 4.6, not 2.7).
- --conditional gives all networks the label; info then compares the codes of each class.
Measured: MNIST, 12,000 updates, FID 2.35 by a classifier of MNIST (assets/RESULTS.md).
"""

import argparse
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.utils import save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, Z length of z, K classes (0: no labels), (C, S, S) an image. kernels: the output
# channels of each convolution, [] for a dense network. Maps are flattened in channels_last order.


class Encoder(nn.Module):
    """q(z|x): images (B, C, S, S) in [0, 1], labels (B,) if K > 0 -> mu, log sigma^2 (B, Z)."""

    def __init__(self, kernels, channels, size, z_dim, hidden=500, classes=0):
        super().__init__()
        self.classes = classes
        widths, side = [channels, *kernels], size >> len(kernels)
        self.convs = nn.Sequential()
        for k, k_next in pairwise(widths):
            self.convs.extend([nn.Conv2d(k, k_next, 4, stride=2, padding=1), nn.ReLU()])
        self.dense = dense(widths[-1] * side**2 + classes, hidden, 2 * z_dim)

    def forward(self, x, y=None):
        h = self.convs(x).movedim(1, 3).flatten(1)  # (B, widths[-1] * side^2)
        return self.dense(join(h, y, self.classes)).float().chunk(2, 1)


class Decoder(nn.Module):
    """p(x|z): z (B, Z), labels (B,) if K > 0 -> logits (B, C, S, S) of Bernoulli pixels."""

    def __init__(self, kernels, channels, size, z_dim, hidden=500, classes=0):
        super().__init__()
        self.z_dim, self.classes, side = z_dim, classes, size >> len(kernels)
        widths = [*reversed(kernels), channels]
        self.base = (side, side, widths[0])
        self.dense = dense(z_dim + classes, hidden, math.prod(self.base))
        self.ups = nn.Sequential()
        for k, k_next in pairwise(widths):
            self.ups.extend([nn.ReLU(), nn.ConvTranspose2d(k, k_next, 4, stride=2, padding=1)])

    def forward(self, z, y=None):
        h = self.dense(join(z, y, self.classes))
        h = h.unflatten(1, self.base).movedim(3, 1)  # (B, widths[0], side, side)
        return self.ups(h).float()


class LatentDiscriminator(nn.Module):
    """AAE's D_z: codes (B, Z), labels (B,) if K > 0 -> logits (B,), positive = from N(0, I)."""

    def __init__(self, z_dim, hidden=500, classes=0):
        super().__init__()
        self.classes = classes
        self.dense = dense(z_dim + classes, hidden, 1)

    def forward(self, z, y=None):
        return self.dense(join(z, y, self.classes)).squeeze(1).float()


def dense(n_in, hidden, n_out):
    """Rows (B, n_in) -> (B, n_out), through two ReLU layers."""
    return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, n_out))  # fmt: skip


def join(h, y, classes):
    """Rows (B, D) and labels (B,) -> (B, D + K), one-hot columns added; h itself if K = 0."""
    return torch.cat([h, F.one_hot(y, classes).to(h.dtype)], 1) if classes else h


def draw_z(mu, logvar):
    """z ~ q(z|x), (B, Z): gradients reach mu and logvar (Kingma and Welling, section 2.4)."""
    return mu + (logvar / 2).exp() * torch.randn_like(mu)


def corrupt(x, share, generator=None):
    """Salt and pepper: a copy of x (B, C, S, S) with a `share` of its pixels set to 0 or 1."""
    u = torch.rand(x[:, :1].shape, generator=generator, device=x.device)  # one for all channels
    return torch.where(u < share, (u < share / 2).to(x.dtype), x)


def reconstruction(logits, x):
    """-log p(x|z) (B,) in nats, Bernoulli pixels of mean x. Check: logits 0: C S^2 log 2."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def kl(mu, logvar):
    """KL(q(z|x) || N(0, I)) (B,) in nats (Kingma and Welling, appendix B). Check: 0s give 0."""
    return (mu**2 + logvar.exp() - logvar - 1).sum(1) / 2


def mmd_to_normal(z, bandwidth, labels=None):
    """Unbiased squared MMD of codes z (B, Z) and N(0, I) (InfoVAE, section 4.2); may be negative.

    Kernel exp(-|a - b|^2 / 2 s^2), s the bandwidth. labels (B,): class by class, weighted by rows;
    a row alone counts 0. Check: z of 0 give 1 + (1 + 2 / s^2)^(-Z/2) - 2 (1 + 1 / s^2)^(-Z/2).
    """
    B, Z = z.shape
    same = 1 if labels is None else labels[:, None] == labels
    others = same * (1 - torch.eye(B, device=z.device))  # (B, B): 1 for the others of a row's class
    count, variance = others.sum(1), bandwidth**2
    kernel = (-(z[:, None] - z).square().sum(2) / (2 * variance)).exp()  # (B, B)
    among = (others * kernel).sum(1) / count.clamp(min=1)
    prior = (1 + 2 / variance) ** (-Z / 2)  # E k(a, b), a and b ~ N(0, I)
    cross = (1 + 1 / variance) ** (-Z / 2) * (-z.square().sum(1) / (2 * variance + 2)).exp()
    return ((count > 0) * (among + prior - 2 * cross)).mean()


def d_loss(prior, code):
    """-log D_z(z), z ~ N(0, I), - log(1 - D_z(z)), z ~ q(z|x), of logits (B,). 0s give 2 log 2."""
    return F.softplus(-prior).mean() + F.softplus(code).mean()


def e_loss(code):
    """-log D_z(z), z ~ q(z|x), of logits (B,): the encoder's loss. Check: zeros give log 2."""
    return F.softplus(-code).mean()


# ---- sizes and samples ---------------------------------------------------------------------------


def kernels_of(arch, size):
    """Channels of the convolutions: dense none; conv 32, 64, ... until the side is odd, or 4."""
    kernels = []
    while arch == "conv" and size % 2 == 0 and size > 4:
        kernels, size = [*kernels, 32 << len(kernels)], size // 2
    if arch == "conv" and not kernels:
        raise data.InputError(f"{size} px: give an even --size above 4, or --arch dense")
    return kernels


def build(args):
    """A dict: encoder, decoder, and D_z for aae. args: flags, channels, size, number of classes."""
    kernels = kernels_of(args.arch, args.size)
    sizes = kernels, args.channels, args.size, args.z_dim, args.hidden, args.classes
    nets = {"encoder": Encoder(*sizes), "decoder": Decoder(*sizes)}
    if args.objective == "aae":
        nets["D_z"] = LatentDiscriminator(args.z_dim, args.hidden, args.classes)
    return nets


@torch.no_grad()
def sample(nets, n, labels=None, generator=None, batch_size=100):
    """n images (n, C, S, S) in [0, 1], by `labels` (n,) or 0, 1, 2, ... in turn if conditional."""
    decoder, device = nets["decoder"], next(nets["decoder"].parameters()).device
    if labels is None and decoder.classes:
        labels = torch.arange(n) % decoder.classes
    parts = []
    for start in range(0, n, batch_size):  # whole batches, z from the CPU: the same on any device
        z = torch.randn(batch_size, decoder.z_dim, generator=generator).to(device)
        chosen = torch.arange(start, start + batch_size) % n  # fills up the last batch
        y = labels.cpu()[chosen].to(device) if decoder.classes else None
        parts.append(decoder(z, y).sigmoid())
    return torch.cat(parts)[:n]


@torch.no_grad()
def held_out(nets, images, labels, batch_size, seed):
    """Mean (reconstruction, KL) of uint8 images (N, C, S, S); sum: an upper bound on -log p(x)."""
    device = next(nets["decoder"].parameters()).device
    generator, sums = torch.Generator().manual_seed(seed), 0
    for part in torch.arange(len(images)).split(batch_size):
        x, y = images[part].to(device) / 255, None if labels is None else labels[part].to(device)
        mu, logvar = nets["encoder"](x, y)
        z = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=generator).to(device)
        terms = reconstruction(nets["decoder"](z, y), x), kl(mu, logvar)
        sums = sums + torch.stack(terms).double().sum(1)
    return (sums / len(images)).tolist()


@torch.no_grad()
def draw_pictures(nets, args, images, labels, folder, step):
    """samples/UPDATE.png, fixed latents, a column per class; reconstructions.png, 16 images."""
    columns = args.classes if 2 <= args.classes <= 16 else 8
    generator = torch.Generator().manual_seed(args.seed)
    drawn = sample(nets, 8 * columns, None, generator, args.batch_size)
    save_image(drawn, folder / f"samples/{step:06}.png", nrow=columns)
    chosen = torch.linspace(0, len(images) - 1, 16).long()  # of all classes: folders are sorted
    rows, y = [images[chosen] / 255], None if labels is None else labels[chosen].to(args.device)
    rows += [corrupt(rows[0], args.corrupt, generator)] if args.objective == "dvae" else []
    mu, _ = nets["encoder"](rows[-1].to(args.device), y)
    rows.append(nets["decoder"](mu, y).sigmoid().cpu())
    save_image(torch.cat(rows), folder / "reconstructions.png", nrow=16)


# ---- training ------------------------------------------------------------------------------------

NATS = ["loss_reconstruction", "loss_kl"], "reconstruction {:.2f} KL {:.2f} nats"
LOGS = {  # objective: columns of log.csv, in the order its update returns; the printed line
    "vae": NATS, "dvae": NATS,
    "info": (["loss_reconstruction", "mmd"], "reconstruction {:.2f} MMD {:.4f}"),
    "aae": (["reconstruction", "loss_d_z", "loss_e"], "reconstruction {:.2f} D_z {:.3f} E {:.3f}"),
}  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser("vae.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=data.path, default="digits",
        help=f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]")
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels [the data set's]")
    add("--conditional", action="store_true", help="all networks are given the labels")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="folder of the run [runs/OBJECTIVE-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--classes", dest="draw_classes", nargs="+", metavar="NAME", help="of --sample [all]")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures [500; 5,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, help="[20; digits 5; at least 3,000 updates]")
    add("--iters", type=int, help="stop at this update, from 1 on, whatever --epochs says")
    add("--batch-size", type=int, help="[100, as in the paper; at most a quarter of the images]")
    add("--lr", type=float, default=1e-3, help="Adam's rate; half in aae's phase 2 [%(default)s]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--objective", choices=list(LOGS), default="vae", help="what is minimised [%(default)s]")
    add("--arch", choices=["dense", "conv"], default="dense", help="[%(default)s, as in the paper]")
    add("--z-dim", type=int, help="length of z [20; aae, info 8]")
    add("--hidden", type=int, default=500, help="units of a dense layer [500; AAE's paper: 1,000]")
    add("--corrupt", type=float, default=0.1, help="dvae: share of pixels replaced [%(default)s]")
    add("--mmd-weight", type=float, default=100.0, help="info: lambda [%(default)g; paper: 1,000]")
    args = parser.parse_args(argv)
    data.check_flags(parser, args)
    args.z_dim = args.z_dim or (8 if args.objective in ("aae", "info") else 20)
    return metrics.resumed_args(parser, argv, "vae") if args.resume else args


def descend(optimiser, loss):
    """One step of the optimiser down the loss."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def update_vae(encoder, decoder, optimiser, x, seen, y, autocast):
    """VAE, or DVAE if `seen`, the encoder's input, is a corrupted x -> (reconstruction, KL)."""
    with autocast:
        mu, logvar = encoder(seen, y)
        logits = decoder(draw_z(mu, logvar), y)
    losses = torch.stack([reconstruction(logits, x).mean(), kl(mu, logvar).mean()])
    descend(optimiser, losses.sum())
    return losses.detach()


def update_info(encoder, decoder, optimiser, x, y, weight, autocast):
    """InfoVAE -> (reconstruction, MMD with a bandwidth of sqrt(Z))."""
    with autocast:
        z = draw_z(*encoder(x, y))
        logits = decoder(z, y)
    losses = torch.stack([reconstruction(logits, x).mean(), mmd_to_normal(z, z.shape[1] ** 0.5, y)])
    descend(optimiser, losses[0] + weight * losses[1])
    return losses.detach()


def update_aae(encoder, decoder, D_z, opt, opt_D, opt_E, x, y, autocast):
    """AAE: the reconstruction phase, then the regularisation phase -> the loss of each network."""
    with autocast:
        logits = decoder(draw_z(*encoder(x, y)), y)
    loss = reconstruction(logits, x).mean()
    descend(opt, loss)

    with autocast:
        z = draw_z(*encoder(x, y))
        prior, code = D_z(torch.randn_like(z), y), D_z(z.detach(), y)
    loss_D = d_loss(prior, code)
    descend(opt_D, loss_D)

    D_z.requires_grad_(False)  # no gradients for D_z's weights; they still flow through it to z
    with autocast:
        loss_E = e_loss(D_z(z, y))
    descend(opt_E, loss_E)
    D_z.requires_grad_(True)
    return torch.stack([loss, loss_D, loss_E]).detach()


def train(args):
    folder, device = metrics.open_run(args, args.objective)
    images, labels = data.training_set(args, batch_size=100)  # sets args.size, batch_size, ...
    args.classes = len(args.class_names) if args.conditional else 0  # --classes is draw_classes
    if args.classes == 1:
        raise data.InputError(f"{args.dataset} has only one class: train without --conditional")
    tests, test_labels = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    labels, test_labels = (labels, test_labels) if args.conditional else (None, None)
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    nn.ModuleDict(nets).to(device, memory_format=torch.channels_last)
    fast, betas = {"fused": True, "capturable": True}, (0.5, 0.999)
    both = [*nets["encoder"].parameters(), *nets["decoder"].parameters()]
    optimisers = {"autoencoder": torch.optim.Adam(both, args.lr, **fast)}
    for name in ("D_z", "encoder") if "D_z" in nets else ():  # AAE's phase 2: regularisation
        optimisers[name] = torch.optim.Adam(nets[name].parameters(), args.lr / 2, betas, **fast)
    start = metrics.restore_run(folder, nets, optimisers) if args.resume else 0
    total = args.iters or data.planned_updates(args, epochs=5 if args.dataset == "digits" else 20)
    log = metrics.open_log(folder, args, nets, start, total, LOGS[args.objective][0])
    # Networks, then optimisers, as update_* takes them; nets stays uncompiled, for checkpoints.
    parts = [torch.compile(net) if args.compile else net for net in nets.values()]
    parts += optimisers.values()

    def one_update(x, y=None):
        if args.objective == "aae":
            return update_aae(*parts, x, y, autocast)
        if args.objective == "info":
            return update_info(*parts, x, y, args.mmd_weight, autocast)
        seen = corrupt(x, args.corrupt) if args.objective == "dvae" else x
        return update_vae(*parts, x, seen, y, autocast)

    batches = data.batches(images, args.batch_size, device, args.seed, start, labels)
    updates = data.captured(one_update, batches, args.graph and device.type == "cuda")
    for step, shows, saves in data.schedule(args, start, total, folder, every=500):
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if shows:
            log(step, sums, LOGS[args.objective][1])
        if saves:
            draw_pictures(nets, args, tests, test_labels, folder, step)
            metrics.save_run(folder, "vae", args, step, nets, optimisers)
    rec, KL = held_out(nets, tests, test_labels, args.batch_size, args.seed)
    data.say(f"held-out, {len(tests)} images: {rec:.2f} + KL {KL:.2f} = {rec + KL:.2f} nats")
    data.say(f"done: samples, reconstructions.png and checkpoint.pt are in {folder}")


def main(argv=None):
    with data.plain_errors("vae.py"):
        args = parse_args(argv)
        metrics.write_samples(args) if args.sample else train(args)


if __name__ == "__main__":
    main()
