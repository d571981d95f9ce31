"""DE-GAN: GANs with decoder-encoder output noise (Zhong, Gao, Liu, Yang 2018, arXiv:1807.03923).

    python de_gan.py --dataset mnist --conditional   the paper's run: Table II's networks, labels
    python de_gan.py --iters 20                      a smoke run on `digits`, nothing to download

A VAE is trained first, then frozen and swapped: its decoder turns noise z_n into an image x^, and
its encoder x^ into z', the input of a DCGAN's G, whose loss has a hidden-space term.
`--noise plain --lambda-hidden 0` is the paper's baseline, a DCGAN. Images must be 28, 32 or 64 px.

Differs from the paper:
- Eq. 10 has real and generated exchanged, and in Algorithm 1 D and G ascend the same sum. Here D
  ascends eq. 11, G descends its non-saturating form plus lambda_2 times eq. 12 (lambda_1 is 1).
- The paper names SGD and no rates or weights. Ours: Adam, rates that fall to 0 at the end
  (--decay), lambda_2 = 0.01, samples from an average of G's weights (--ema).
- Table II's D has layers of 11 and 74 maps, as if 10 labels were joined to 1 and 64. These counts
  stay; --conditional joins labels to every layer's input in G and D. The VAE never sees them.
- In Tables III and IV G's layers do not chain. D has 64, 128 and 256 maps, as printed, at 64 px
  512 more; G is its mirror image, both by default half as wide (--width). A tanh is a sigmoid here,
  and D reads 2x - 1.
Measured: MNIST, --conditional, 4,685 updates, FID 0.21 by a classifier of MNIST (RESULTS.md).
"""

import argparse
import copy
import math
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.utils import save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, Z length of z, K maps of side s in a layer, L classes, (C, S, S) an image.
# G and D flatten maps as (height, width, K), channels_last's order in memory: no copy.


def up(k_in, k_out, side=5, stride=2, bias=False):
    """(B, k_in, s, s) -> (B, k_out, 2s, 2s); stride 1: s + side - 1. bias: if no norm follows."""
    padding, output_padding = (2, 1) if stride == 2 else (0, 0)
    return nn.ConvTranspose2d(k_in, k_out, side, stride, padding, output_padding, bias=bias)


def down(k_in, k_out, stride=2):
    """5x5 convolution (B, k_in, s, s) -> (B, k_out, s / 2, s / 2); of stride 1, s - 4."""
    return nn.Conv2d(k_in, k_out, 5, stride, padding=2 if stride == 2 else 0)


class VAE(nn.Module):
    """The VAE of Tables II (28 px), III (64) and IV (32), and the decoder-encoder it becomes."""

    def __init__(self, channels, size, z_dim):
        super().__init__()
        ups = {28: [(z_dim, 128, 3, 1), (128, 64, 5, 1), (64, 32, 5, 2)],  # k, k_next, side, stride
               32: [(z_dim, 128, 4, 1), (128, 64, 5, 2), (64, 32, 5, 2)],
               64: [(z_dim, 128, 4, 1), (128, 64, 5, 2), (64, 32, 5, 2), (32, 16, 5, 2)]}[size]
        downs = [(channels, 32, 2), (32, 64, 2), (64, 128, 1 if size == 28 else 2)]
        decoder, encoder = [nn.Unflatten(1, (z_dim, 1, 1))], []
        for k, k_next, side, stride in ups:
            decoder += [up(k, k_next, side, stride), nn.BatchNorm2d(k_next), nn.ELU()]
        for k, k_next, stride in downs:
            encoder += [down(k, k_next, stride), nn.BatchNorm2d(k_next), nn.ELU()]
        flat = 128 * (3 if size == 28 else size // 8) ** 2
        encoder += [nn.Dropout(0.1), nn.Flatten(), nn.Linear(flat, 2 * z_dim)]
        self.decoder = nn.Sequential(*decoder, up(ups[-1][1], channels, bias=True))
        self.encoder = nn.Sequential(*encoder)

    def encode(self, x):
        """x (B, C, S, S) in [0, 1] -> mean and log-variance of q(z|x), (B, Z) each (eq. 5)."""
        return self.encoder(x).float().chunk(2, 1)

    def forward(self, x):
        """-> logits (B, C, S, S) of the reconstruction, mean, log-variance (eqs. 5 and 6)."""
        mu, logvar = self.encode(x)
        return self.decoder(mu + (logvar / 2).exp() * torch.randn_like(mu)).float(), mu, logvar

    def swapped(self, z, eps):
        """z_n (B, Z) -> x^ -> z' (B, Z), with the encoder's own noise eps (eqs. 8 and 9)."""
        x = torch.sigmoid(self.decoder(z))  # x^: (B, C, S, S)
        mu, logvar = self.encode(x)
        return mu + (logvar / 2).exp() * eps


WEIGHTED = nn.Linear, nn.Conv2d, nn.ConvTranspose2d


class Labelled(nn.Sequential):
    """Layers in turn; one-hot labels y (B, L) are joined to the input of each that has weights."""

    def forward(self, x, y=None):
        for layer in self:
            if y is not None and isinstance(layer, WEIGHTED):  # L more columns, or constant maps
                more = y[:, :, None, None].expand(-1, -1, *x.shape[2:]) if x.dim() == 4 else y
                x = torch.cat([x, more.to(x.dtype)], 1)
            x = layer(x)
        return x


class Generator(nn.Module):
    """G: noise (B, Z), labels (B,) if L > 0 (default 0 to L - 1, in turn) -> images in [0, 1].

    Dense layers of 1024 and maps[0] x s x s, s = S / 2^len(maps), `up` to maps[1:] and to C.
    """

    def __init__(self, maps, channels, size, z_dim, classes=0):
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.base = (size >> len(maps), size >> len(maps), maps[0])
        dense, ups = [], []
        for k, k_next in pairwise([z_dim, 1024, math.prod(self.base)]):
            dense += [nn.Linear(k + classes, k_next), nn.BatchNorm1d(k_next), nn.ReLU()]
        for k, k_next in pairwise(maps):
            ups += [up(k + classes, k_next), nn.BatchNorm2d(k_next), nn.ReLU()]
        self.dense = Labelled(*dense)
        self.ups = Labelled(*ups, up(maps[-1] + classes, channels, bias=True))
        self.apply(init)

    def forward(self, z, labels=None):
        if self.classes and labels is None:
            labels = torch.arange(len(z), device=z.device) % self.classes
        y = F.one_hot(labels, self.classes) if self.classes else None  # (B, L)
        x = self.dense(z, y).unflatten(1, self.base).movedim(3, 1)     # (B, K, s, s)
        return torch.sigmoid(self.ups(x, y).float())


class Discriminator(nn.Module):
    """D: images (B, C, S, S) in [0, 1], and labels (B,) if L > 0 -> logits (B,), positive = real.

    A `down` to each of maps, a layer of `dense` units if that is not 0, then the logit. signed: it
    reads 2x - 1, the range of a tanh (Tables III and IV).
    """

    def __init__(self, maps, channels, size, classes=0, dense=0, signed=False):
        super().__init__()
        self.classes, self.signed = classes, signed
        downs, last = [], []
        for k, k_next in pairwise([channels, *maps]):
            norm = nn.BatchNorm2d(k_next, track_running_stats=False)  # always the batch's own
            downs += [down(k + classes, k_next), norm, nn.LeakyReLU(0.2)]
        downs[1] = nn.Identity()  # in place of its norm: none on the first layer, as in DCGAN
        flat = maps[-1] * (size >> len(maps)) ** 2
        if dense:
            norm = nn.BatchNorm1d(dense, track_running_stats=False)
            last = [nn.Linear(flat + classes, dense), norm, nn.LeakyReLU(0.2)]
        self.downs = Labelled(*downs)
        self.last = Labelled(*last, nn.Linear((dense or flat) + classes, 1))
        self.apply(init)

    def forward(self, x, labels=None, with_hidden=False):
        """with_hidden: -> (logits, h), h (B, K, s, s) the last convolution's maps (eq. 12)."""
        y = F.one_hot(labels, self.classes) if self.classes else None  # (B, L)
        h = self.downs(2 * x - 1 if self.signed else x, y)             # (B, K, s, s)
        logits = self.last(h.movedim(1, 3).flatten(1), y).squeeze(1).float()
        return (logits, h) if with_hidden else logits


def init(layer):
    """Weights start normal, with a standard deviation of 0.02, as in DCGAN."""
    if isinstance(layer, WEIGHTED):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def vae_loss(logits, x, mu, logvar):
    """Eq. 4 in nats an image -> (loss, KL), means over the batch; Bernoulli, summed over pixels.

    Check: 28 x 28 logits of 0 and a posterior of N(0, I) give 784 log 2 and 0.
    """
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1).mean()
    kl = (mu.square() + logvar.exp() - logvar - 1).sum(1).mean() / 2
    return nll + kl, kl


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z'))) of logits (B,) (eq. 11). Check: zeros give 2 log 2."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z')) of logits (B,) (eq. 11, non-saturating form). Check: zeros give log 2."""
    return F.softplus(-fake).mean()


def hidden_loss(h_real, h_fake):
    """Mean of ||h(x_real) - h(x_gen)||, h (B, K, s, s), in pairs (eq. 12). Check: 0 if equal."""
    return torch.linalg.vector_norm((h_real.float() - h_fake.float()).flatten(1), dim=1).mean()


# ---- sizes and samples ---------------------------------------------------------------------------


def build(args):
    """A dict: G, D, vae unless args.noise is "plain", and ema (G's moving average) if args.ema.

    args: channels, size (28: Table II, 32: IV, 64: III), z_dim, classes, noise, width (not at 28).
    """
    width, dense = getattr(args, "width", None), 0  # older runs may lack it
    if args.size == 28 and width:
        raise data.InputError("the networks for 28 px (Table II) have one width: leave --width out")
    if args.size == 28:
        maps_G, maps_D, dense = [128, 128], [11, 74], 1024
    elif args.size in (32, 64):
        maps_D = [(width or 32) << i for i in range(3 if args.size == 32 else 4)]
        maps_G = maps_D[::-1]
    else:
        raise data.InputError(f"no networks for images of {args.size} px: give --size 28, 32 or 64")
    G = Generator(maps_G, args.channels, args.size, args.z_dim, args.classes)
    signed = args.size != 28
    D = Discriminator(maps_D, args.channels, args.size, args.classes, dense, signed)
    nets = {"G": G, "D": D}
    if args.noise != "plain":
        nets["vae"] = VAE(args.channels, args.size, args.z_dim)
    return nets | ({"ema": copy.deepcopy(G)} if getattr(args, "ema", 0) else {})


@torch.no_grad()
def draw_noise(nets, n, generator=None):
    """G's input (n, Z): z' of the frozen decoder-encoder, or N(0, I). generator: on the CPU."""
    G, device = nets["G"], next(nets["G"].parameters()).device
    where = device if generator is None else "cpu"
    z_n, eps = torch.randn(2, n, G.z_dim, generator=generator, device=where).to(device)
    return nets["vae"].swapped(z_n, eps) if "vae" in nets else z_n


@torch.no_grad()
def sample(nets, n, labels=None, generator=None, batch_size=64):
    """n images (n, C, S, S) in [0, 1]; labels (n,) if G is conditional: default 0 to L - 1, ..."""
    G = nets.get("ema", nets["G"])
    device, training = next(G.parameters()).device, G.training
    if G.classes:
        labels = (torch.arange(n) % G.classes if labels is None else labels).to(device)
    G.eval()
    parts = []
    for start in range(0, n, batch_size):  # whole batches: the same noise for any n
        index = torch.arange(start, start + batch_size, device=device) % n
        z = draw_noise(nets, batch_size, generator)
        parts.append(G(z, labels[index] if G.classes else None))
    G.train(training)
    return torch.cat(parts)[:n]


@torch.no_grad()
def measure_batch_norm(nets, batch_size):
    """--ema averages weights alone: measure ema's batch norm averages, on ten fixed batches."""
    noise = draw_noise(nets, 10 * batch_size, torch.Generator().manual_seed(0))
    norms = [layer for layer in nets["ema"].modules() if hasattr(layer, "running_mean")]
    for i, z in enumerate(noise.split(batch_size), 1):
        for norm in norms:
            norm.momentum = 1 / i  # gives the plain mean over the batches
            norm.num_batches_tracked.zero_()
        nets["ema"].train()(z)


def draw_pictures(nets, args, folder, step):
    """samples/UPDATE.png from fixed noise: 8 rows of 8, or a column per class (up to 16)."""
    if "ema" in nets:
        measure_batch_norm(nets, args.batch_size)
    columns = args.classes if 1 < args.classes <= 16 else 8
    generator = torch.Generator().manual_seed(args.seed)
    images = sample(nets, 8 * columns, None, generator, args.batch_size)
    save_image(images, folder / f"samples/{step:06}.png", nrow=columns)


# ---- training ------------------------------------------------------------------------------------

# The text of a printed line, and the columns of log.csv, in the order that the updates return.
VAE_LINE = "VAE {:.2f} nats, KL {:.2f}", ["nats", "kl"]
GAN_LINE = ("D {:.3f} G {:.3f} hidden {:.2f} | D(x) {:.2f} D(G(z')) {:.2f}",
            ["loss_d", "loss_g", "hidden", "d_real", "d_fake"])


def parse_args(argv=None):
    parser = argparse.ArgumentParser("de_gan.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=data.path, default="digits",
        help=f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]")
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels: 28, 32 or 64 [the data set's]")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="[runs/de_gan-DATASET; plain: runs/de_gan-plain-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--classes", dest="draw_classes", nargs="+", metavar="NAME", help="of --sample [all]")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures [200; 2,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, help="of D and G [25, the paper's; digits 4; at least 3,000 updates]")
    add("--iters", type=int, help="stop D and G at this update of theirs; rates follow --epochs")
    add("--vae-iters", type=int, help="the VAE's updates [max(3 epochs, 1,000), at most --iters]")
    add("--batch-size", type=int, help="[64; at most a quarter of the images]")
    add("--lr-g", type=float, help="Adam's learning rate for G [2e-4; 32 px 8e-4]")
    add("--lr-d", type=float, help="and for D [2e-4; 32 px 8e-4]")
    add("--lr-vae", type=float, default=1e-3, help="and for the VAE [%(default)s]")
    add("--decay", type=float, default=0.2, help="last share of updates: rates fall to 0 [0.2]")
    add("--ema", type=float, default=0.99, help="samples: G's moving average; 0: off [%(default)s]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile G and D")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--conditional", action="store_true", help="G and D read labels, as the paper's on MNIST")
    add("--noise", choices=["decoder-encoder", "plain"], default="decoder-encoder",
        help="G's input: z' or N(0, I) [%(default)s]")
    add("--lambda-hidden", type=float, default=0.01, help="lambda_2 weighs eq. 12 [%(default)s]")
    add("--z-dim", type=int, default=128, help="length of the noise [%(default)s, as in the paper]")
    add("--width", type=int, help="maps of D's first layer; not at 28 px [32; paper: 64]")
    args = parser.parse_args(argv)
    data.check_flags(parser, args, may_be_0=("decay", "ema", "lambda_hidden", "vae_iters"))
    if args.batch_size == 1:
        parser.error("--batch-size 1: batch norm needs 2 images or more")
    return metrics.resumed_args(parser, argv, "de_gan") if args.resume else args


def update_vae(vae, optimiser, x, autocast):
    """Algorithm 1, line 1: one update of the VAE -> (loss, KL), nats an image (eq. 4)."""
    with autocast:
        logits, mu, logvar = vae(x)
    loss, kl = vae_loss(logits, x, mu, logvar)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return torch.stack([loss, kl]).detach()


def update(nets, optimisers, x, y, lambda_hidden, autocast):
    """Algorithm 1, lines 3 to 13: one update of D, then one of G. Lines 8 to 10 come when needed.

    Labels y (B,) or None -> (loss of D, of G, hidden-space loss, mean D(x), mean D(G(z')))
    """
    G, D, opt_G, opt_D = nets["G"], nets["D"], optimisers["G"], optimisers["D"]
    with autocast:
        fake = G(draw_noise(nets, len(x)), y)                # lines 4 to 7
        d_real, d_fake = D(x, y), D(fake.detach(), y)        # each has its own batch statistics
    loss_D = d_loss(d_real, d_fake)                          # line 11
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()                                             # line 12

    D.requires_grad_(False)  # no gradients for D's weights; they still flow through D to `fake`
    with autocast:
        logits, h_fake = D(fake, y, with_hidden=True)        # line 9
        h_real = D(x, y, with_hidden=True)[1] if lambda_hidden else None  # line 8
    loss_G = g_loss(logits)                                  # line 11
    hidden = hidden_loss(h_real, h_fake) if lambda_hidden else torch.zeros_like(loss_G)  # line 10
    opt_G.zero_grad()
    (loss_G + lambda_hidden * hidden).backward()             # eq. 13
    opt_G.step()                                             # line 13
    D.requires_grad_(True)
    means = d_real.sigmoid().mean(), d_fake.sigmoid().mean()
    return torch.stack([loss_D, loss_G, hidden, *means]).detach()


def complete(args):
    """Fill in what follows from the images: the number of classes, the VAE's updates, the rates."""
    args.classes = len(args.class_names) if args.conditional else 0
    if args.classes == 1:
        raise data.InputError(f"{args.dataset} has one class only: train without --conditional")
    if args.noise == "plain":
        args.vae_iters = 0
    elif args.vae_iters is None:
        three_epochs = 3 * (args.train_images // args.batch_size)
        args.vae_iters = min(max(three_epochs, 1000), args.iters or math.inf)
    rate = 8e-4 if args.size == 32 else 2e-4
    args.lr_g, args.lr_d = args.lr_g or rate, args.lr_d or rate


def run_updates(args, nets, optimisers, images, labels, start, total, autocast):
    """Yields the running sums of losses of each update: of the VAE, then of D and G (GAN phase)."""
    device, labels = next(nets["G"].parameters()).device, labels if args.conditional else None
    weights = [list(nets[name].parameters()) for name in ("ema", "G") if args.ema]
    if args.compile:
        nets = nets | {name: torch.compile(nets[name]) for name in ("G", "D")}

    def vae_phase(x, y=None):
        return update_vae(nets["vae"], optimisers["vae"], x, autocast)

    def gan_phase(x, y=None):
        losses = update(nets, optimisers, x, y, args.lambda_hidden, autocast)
        if args.ema:
            get_ema_multi_avg_fn(args.ema)(*weights, None)  # None: a count, unused
        return losses

    for one_update, last in ((vae_phase, args.vae_iters), (gan_phase, total)):
        if one_update is gan_phase and "vae" in nets:
            nets["vae"].eval().requires_grad_(False)  # frozen
        if start < last:
            batches = data.batches(images, args.batch_size, device, args.seed, start, labels)
            updates = data.captured(one_update, batches, args.graph and device.type == "cuda")
            yield from islice(updates, last - start)
            start = last


def train(args):
    folder, device = metrics.open_run(args, "de_gan-plain" if args.noise == "plain" else "de_gan")
    images, labels = data.training_set(args, batch_size=64)  # sets args.size, batch_size, ...
    complete(args)
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    nn.ModuleDict(nets).to(device, memory_format=torch.channels_last)
    rates = {"G": (args.lr_g, 0.5), "D": (args.lr_d, 0.5), "vae": (args.lr_vae, 0.9)}
    optimisers = {name: data.optimiser(nets[name], lr, betas=(beta_1, 0.999))
                  for name, (lr, beta_1) in rates.items() if name in nets}
    kept = {"D_snapshots": []}  # late copies of D: the Generative Adversarial Metric averages them
    start = metrics.restore_run(folder, nets, optimisers, kept) if args.resume else 0
    planned = data.planned_updates(args, epochs=4 if args.dataset == "digits" else 25)
    total, decay_updates = args.vae_iters + (args.iters or planned), int(args.decay * planned)
    log = metrics.open_log(folder, args, nets, start, total, VAE_LINE[1] + GAN_LINE[1])
    updates = run_updates(args, nets, optimisers, images, labels, start, total, autocast)
    for step, shows, saves in data.schedule(args, start, total, folder):
        gan_step = step - args.vae_iters  # from 1 in the GAN phase; up to 0 the VAE trains
        factor = (planned + 1 - gan_step) / (decay_updates + 1)  # times both rates
        if factor < 1:
            optimisers["G"].param_groups[0]["lr"].fill_(args.lr_g * factor)
            optimisers["D"].param_groups[0]["lr"].fill_(args.lr_d * factor)
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if factor < 0.5 and (planned - gan_step) % (decay_updates // 20 + 1) == 0:
            last = copy.deepcopy(nets["D"].state_dict())  # ten in the decay's second half, evenly
            kept["D_snapshots"] = [*kept["D_snapshots"], last][-10:]
        saves = saves or gan_step in (0, 100)  # at the VAE's end, and early in the GAN phase
        if shows or gan_step in (0, 1, 10, 100):
            log(step, sums, *(GAN_LINE if gan_step > 0 else VAE_LINE))
        if saves:
            if gan_step > 0:
                draw_pictures(nets, args, folder, step)
            metrics.save_run(folder, "de_gan", args, step, nets, optimisers, **kept)
    data.say(f"done: samples, losses.png and checkpoint.pt are in {folder}")


def main(argv=None):
    with data.plain_errors("de_gan.py"):
        args = parse_args(argv)
        metrics.write_samples(args) if args.sample else train(args)


if __name__ == "__main__":
    main()
