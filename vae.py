"""VAE: auto-encoding variational Bayes (Kingma, Welling 2014, arXiv:1312.6114), and three that differ in their objective.

    python vae.py --dataset mnist --epochs 100          the paper's kind of run: dense networks, batches of 100
    python vae.py --objective aae --iters 20            a smoke run on the embedded digits

--objective vae     reconstruction + KL(q(z|x) || N(0, I)), both in nats per image
            dvae    the same, but the encoder sees a corrupted image and the clean one is to be reconstructed
                    (Im, Ahn, Memisevic, Bengio 2017, arXiv:1511.06406; Table 3 of the GRAN paper)
            info    reconstruction + weight x MMD(q(z), N(0, I)): InfoVAE with alpha = 1 and lambda = weight
                    (Zhao, Song, Ermon 2018, arXiv:1706.02262)
            aae     the adversarial autoencoder: a reconstruction phase, then a regularisation phase in which D_z tells
                    draws of N(0, I) from codes and the encoder fools it (Makhzani et al. 2016, arXiv:1511.05644)

The reconstruction term is the cross-entropy of Bernoulli pixels. For grey values in [0, 1] it equals the mean of what it
would be for the image binarised at random, each pixel white with a chance of its value; so reconstruction + KL is an
upper bound in nats on -log p of such an image. It is taken of the held-out images when a run ends, whatever the
objective (info and aae do not minimise its KL term, and have a large one), and printed with its two parts.

Differs from the papers
- One encoder for all: a Gaussian q(z|x) of diagonal covariance (one of three choices in the AAE paper); ReLU where
  Kingma and Welling have tanh; two dense layers of 500 where they have one (AAE: two of 1000, see --hidden).
- Adam with betas (0.9, 0.999) in place of Adagrad and momentum; (0.5, 0.999) in AAE's regularisation phase.
- --conditional gives the label to encoder, decoder and D_z, and info compares codes within each class: it is each class
  whose codes must fill N(0, I), since its samples are drawn from there. (The AAE paper's supervised autoencoder leaves its D_z without the label.)

Measured (torch 2.14.1, one core of an Intel Xeon with bfloat16, means of seeds 0, 1, 2): `--dataset mnist`, 20 epochs in 2
minutes: FID 2.00 on a classifier's features, n = 10,000 (real test images 0.013), with `--objective info` 3.06. With
--conditional it reads 94.0 % of samples as their label, 92.6 of info's and 82.5 of aae's (after 4 minutes).
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import data
import metrics

# Shapes: B batch, Z length of z, K classes (0 without labels), H units of a dense layer, C x S x S an image; L strided
# convolutions (0 in dense networks) leave F = K_L (S / 2^L)^2 features of it, or C S^2 where there are none.


class Encoder(nn.Module):
    """q(z|x): images (B, C, S, S) in [0, 1], and labels (B,) if K > 0, to means and log-variances (B, Z) of z."""

    def __init__(self, kernels, channels, size, z_dim, hidden=500, classes=0):
        super().__init__()
        self.classes = classes
        self.convs = nn.Sequential()
        for k, k_next in itertools.pairwise([channels, *kernels]):
            self.convs += nn.Sequential(nn.Conv2d(k, k_next, kernel_size=4, stride=2, padding=1), nn.ReLU())
        features = [channels, *kernels][-1] * (size >> len(kernels)) ** 2
        self.dense = nn.Sequential(
            nn.Linear(features + classes, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 2 * z_dim),
        )  # fmt: skip

    def forward(self, x, y=None):
        h = self.convs(x).flatten(1)                                  # (B, F)
        mu, logvar = self.dense(join(h, y, self.classes)).float().chunk(2, 1)
        return mu, logvar                                             # (B, Z) each


class Decoder(nn.Module):
    """p(x|z): z (B, Z), and labels (B,) if K > 0, to logits (B, C, S, S) of Bernoulli pixels; mirrors the encoder."""

    def __init__(self, kernels, channels, size, z_dim, hidden=500, classes=0):
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        sizes = [*reversed(kernels), channels]
        self.base = (sizes[0], size >> len(kernels), size >> len(kernels))
        self.dense = nn.Sequential(
            nn.Linear(z_dim + classes, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, math.prod(self.base)),
        )  # fmt: skip
        self.ups = nn.Sequential()
        for k, k_next in itertools.pairwise(sizes):
            self.ups += nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(k, k_next, kernel_size=4, stride=2, padding=1))

    def forward(self, z, y=None):
        h = self.dense(join(z, y, self.classes)).unflatten(1, self.base)  # (B, K_L, S / 2^L, S / 2^L)
        return self.ups(h).float()                                        # (B, C, S, S)


class LatentDiscriminator(nn.Module):
    """D_z of the AAE: codes (B, Z), and their labels (B,) if K > 0, to logits (B,), positive = drawn from N(0, I)."""

    def __init__(self, z_dim, hidden=500, classes=0):
        super().__init__()
        self.classes = classes
        self.dense = nn.Sequential(
            nn.Linear(z_dim + classes, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, z, y=None):
        return self.dense(join(z, y, self.classes)).squeeze(1).float()


def join(h, y, classes):
    """(B, D) and labels (B,) -> (B, D + K): the label as one-hot columns; h itself where K = 0."""
    if not classes:
        return h
    if y is None:
        raise ValueError("labels: this network is conditional and needs them")
    return torch.cat([h, F.one_hot(y, classes).to(h.dtype)], 1)


def draw_z(mu, logvar):
    """z ~ q(z|x) (B, Z) as mu + sigma * eps, so that gradients reach mu and logvar (Kingma and Welling, section 2.4)."""
    return mu + (logvar / 2).exp() * torch.randn_like(mu)


def corrupt(x, share):
    """Salt and pepper: a `share` of the pixels of x (B, C, S, S), chosen anew, set to 0 or 1; x itself stays as it is."""
    u = torch.rand_like(x[:, :1])  # one per pixel, whatever its channels
    return torch.where(u < share, (u < share / 2).to(x.dtype), x)


def reconstruction(logits, x):
    """-log p(x|z), nats per image (B,): Bernoulli cross-entropy summed over pixels. C S^2 log 2 where all logits are 0."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def kl(mu, logvar):
    """KL(q(z|x) || N(0, I)), nats per image (B,); Kingma and Welling, appendix B. 0 where q is N(0, I)."""
    return (mu**2 + logvar.exp() - logvar - 1).sum(1) / 2


def mmd(x, y, bandwidth, labels=None):
    """Squared maximum mean discrepancy of rows x (n, Z) and y (m, Z), biased, kernel exp(-|a - b|^2 / 2 bandwidth^2).

    InfoVAE's divergence (section 4.2). 0 where x and y are the same rows; 2 - 2 exp(-d^2 / 2 bandwidth^2) for two points.
    With labels (n,) of both x and y, n = m: that of each class with itself, weighted by the class's share of the rows.
    """
    if labels is not None:
        same = labels[:, None] == labels
        share = same / (len(labels) * same.sum(1, keepdim=True))      # (n, n): a mean over rows of means over their class

    def k(a, b):
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = (-distance.square() / (2 * bandwidth**2)).exp()
        return kernel.mean() if labels is None else (share * kernel).sum()

    return k(x, x) + k(y, y) - 2 * k(x, y)


def d_loss(prior, code):
    """-log D_z(z) - log(1 - D_z(q(z|x))), means over logits (B,) of each. 2 log 2 when D_z cannot tell."""
    return F.softplus(-prior).mean() + F.softplus(code).mean()


def e_loss(code):
    """-log D_z(q(z|x)), mean over logits (B,): the encoder's part in the regularisation phase. log 2 when D_z cannot tell."""
    return F.softplus(-code).mean()


def kernels_of(arch, size):
    """Kernels of the strided convolutions: none for dense; conv has 32, 64, ... until the side is odd, or 4 at most."""
    kernels = []
    while arch == "conv" and size % 2 == 0 and size > 4:
        kernels, size = [*kernels, 32 << len(kernels)], size // 2
    if arch == "conv" and not kernels:
        raise data.InputError(f"images of {size} px do not halve: choose an even --size above 4, or --arch dense")
    return kernels


def build(args):
    """The bare modules {"encoder", "decoder"}, and "D_z" for aae, of a namespace with arch, objective, channels, size,
    z_dim, hidden and classes."""
    sizes = (kernels_of(args.arch, args.size), args.channels, args.size, args.z_dim, args.hidden, args.classes)
    nets = {"encoder": Encoder(*sizes), "decoder": Decoder(*sizes)}
    if args.objective == "aae":
        nets["D_z"] = LatentDiscriminator(args.z_dim, args.hidden, args.classes)
    return nets


@torch.no_grad()
def sample(nets, n, labels=None, generator=None, batch_size=100):
    """n images (n, C, S, S) in [0, 1], the pixels' means given z ~ N(0, I); a conditional run draws `labels` (n,), or 0, 1,
    2, ... in turn where there are none.

    Latents come from `generator` (on the CPU), so that pictures agree across devices.
    """
    decoder = nets["decoder"]
    device = next(decoder.parameters()).device
    if labels is None and decoder.classes:
        labels = torch.arange(n) % decoder.classes
    parts = []
    for start in range(0, n, batch_size):  # whole batches: a picture is the same to the bit for any n
        z = torch.randn(batch_size, decoder.z_dim, generator=generator).to(device)
        y = labels[torch.arange(start, start + batch_size) % n].to(device) if decoder.classes else None
        parts.append(decoder(z, y).sigmoid())
    return torch.cat(parts)[:n]


@torch.no_grad()
def held_out(nets, images, labels, batch_size, seed):
    """(reconstruction, KL), nats per image, of uint8 images (N, C, S, S): their sum bounds -log p from above.

    Means over the images, z drawn once for each, the encoder seeing them clean; labels (N,) or None.
    """
    encoder, decoder = nets["encoder"], nets["decoder"]
    device = next(decoder.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the run's own draws go on as they were
        torch.manual_seed(seed)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x, y = images[part].to(device) / 255, None if labels is None else labels[part].to(device)
            mu, logvar = encoder(x, y)
            terms = reconstruction(decoder(draw_z(mu, logvar), y), x), kl(mu, logvar)
            sums += torch.stack([term.sum() for term in terms]).cpu()
    return (sums / len(images)).tolist()


def save_captioned(picture, text, path):
    """Writes a picture (3, H, W) in [0, 1] with a line of text above it."""
    picture = Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
    font = ImageFont.load_default()
    framed = Image.new("RGB", (max(picture.width, math.ceil(font.getlength(text)) + 6), picture.height + 16), "white")
    framed.paste(picture, (0, 16))
    ImageDraw.Draw(framed).text((3, 2), text, fill="black", font=font)
    framed.save(path)


@torch.no_grad()
def draw_pictures(nets, args, images, labels, folder, step):
    """samples/STEP.png, drawn from the prior, and reconstructions/STEP.png of 32 of the images; the same ones every time."""
    from torchvision.utils import make_grid

    columns = args.classes if 2 <= args.classes <= 16 else 8  # a column per class
    drawn = sample(nets, 8 * columns, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size)
    save_captioned(make_grid(drawn, columns), f"samples from the prior, step {step}", folder / f"samples/{step:06}.png")

    device = next(nets["decoder"].parameters()).device
    chosen = torch.linspace(0, len(images) - 1, 32).long()  # from all over: a folder's images are sorted by class
    x, y = images[chosen].to(device) / 255, labels[chosen].to(device) if args.conditional else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        rows = [x, corrupt(x, args.corrupt)] if args.objective == "dvae" else [x]
        mu, _ = nets["encoder"](rows[-1], y)
    rows = torch.stack([*rows, nets["decoder"](mu, y).sigmoid()])           # (rows, 32, C, S, S)
    rows = rows.unflatten(1, (2, 16)).transpose(0, 1).flatten(0, 2)         # twice: 16 originals, what became of them
    words = "held-out image, corrupted, reconstruction" if args.objective == "dvae" else "held-out image, reconstruction"
    save_captioned(make_grid(rows, 16), f"rows: {words}; step {step}", folder / f"reconstructions/{step:06}.png")


@torch.no_grad()
def draw_latent_maps(nets, args, images, labels, folder):
    """For a 2-D z: latent-map.png, the images that z decodes to over the plane (Kingma and Welling, Figure 4), one map per
    class if conditional; and latent-codes.png, where the encoder puts the held-out images."""
    from torchvision.utils import make_grid

    encoder, decoder = nets["encoder"], nets["decoder"]
    device = next(decoder.parameters()).device
    quantiles = torch.special.ndtri((torch.arange(20) + 0.5) / 20)          # N(0, 1) in 20 parts of equal mass
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1).to(device)  # (400, 2): z_1 to the right, z_2 upwards
    maps = []
    for label in range(min(args.classes, 10) or 1):
        y = torch.full((len(z),), label, device=device) if args.conditional else None
        maps.append(make_grid(decoder(z, y).sigmoid(), 20, padding=0))
    text = "decoded z: 20 quantiles of N(0, 1) each way, z1 right, z2 up" + ("; a map per class" if args.conditional else "")
    save_captioned(make_grid(maps, 5, padding=8, pad_value=1), text, folder / "latent-map.png")

    picture, K = Image.new("RGB", (700, 720), "white"), int(labels.max()) + 1
    pen = ImageDraw.Draw(picture)
    pen.text((3, 2), "labels of held-out images, each at its mean of q(z|x); -4 to 4 each way, z1 right, z2 up", fill="black")
    for part in torch.linspace(0, len(images) - 1, min(len(images), 2000)).long().split(args.batch_size):
        mu, _ = encoder(images[part].to(device) / 255, labels[part].to(device) if args.conditional else None)
        for (z1, z2), label in zip(mu.tolist(), labels[part].tolist()):
            place = (4 + z1) / 8 * 700, (4 - z2) / 8 * 700 + 20
            pen.text(place, str(label), fill=f"hsv({360 * label // K}, 90%, 80%)")
    picture.save(folder / "latent-codes.png")


def parse_args(argv=None):
    parser = metrics.Parser("vae.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/OBJECTIVE-DATASET if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, default=20, help="times through the data")
    add("--iters", type=metrics.count, help="stop after this many updates; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=100, help="Kingma and Welling's is 100")
    add("--lr", type=metrics.rate, default=1e-3, help="Adam's rate; a fifth of it in AAE's regularisation phase")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=200, help="updates between two grids, each with a checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--conditional", action=argparse.BooleanOptionalAction, default=False, help="give the networks the label")
    add("--objective", choices=list(COLUMNS), default="vae", help="what is minimised, see the top of this file")
    add("--arch", choices=["dense", "conv"], default="dense", help="dense layers alone, or strided convolutions first")
    add("--z-dim", type=metrics.count, default=20, help="length of z; 2 also draws maps of the latent plane")
    add("--hidden", type=metrics.count, default=500, help="units of each dense layer; the VAE paper's are 500, AAE's 1000")
    add("--corrupt", type=metrics.rate, default=0.1, help="dvae: share of the pixels replaced by salt and pepper")
    add("--mmd-weight", type=metrics.rate, default=1000, help="info: lambda; the paper's is 1000")
    args = parser.parse_args(argv)
    if args.resume:
        return metrics.resumed_args(parser, argv, "vae")
    if args.sample:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if args.corrupt > 1:
        parser.error(f"--corrupt is a share of the pixels, at most 1, not {args.corrupt}")
    return args


COLUMNS = {"vae": [], "dvae": [], "info": ["mmd"], "aae": ["loss_d_z", "loss_encoder"]}  # logged beside the bound's parts


def main(argv=None):
    try:
        args = parse_args(argv)
        metrics.write_samples(args) if args.sample else train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"vae.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def train(args):
    folder = metrics.run_folder(args, f"runs/{args.objective}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, labels = data.load(args.dataset, args.data_dir, size=args.size)
    test_images, test_labels = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    if args.resume and images.shape[1:] != (args.channels, args.size, args.size):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])}, the run {args.resume} was "
                              f"trained on {(args.channels, args.size, args.size)}")
    args.channels, args.size = images.shape[1:3]
    classes = 1 + int(max(labels.max(), test_labels.max()))
    if args.conditional and classes == 1:
        raise data.InputError(f"{args.dataset} has one class only: leave --conditional away, or sort it into class folders")
    args.classes = classes if args.conditional else 0
    if args.amp is None:
        args.amp = data.has_bf16(device)

    torch.manual_seed(args.seed)
    nets = build(args)
    for net in nets.values():
        net.to(device, memory_format=torch.channels_last)
    encoder, decoder, D_z = nets["encoder"], nets["decoder"], nets.get("D_z")
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=args.lr, fused=True)
    optimisers = {"autoencoder": opt}
    if args.objective == "aae":
        opt_D, opt_E = (torch.optim.Adam(net.parameters(), lr=args.lr / 5, betas=(0.5, 0.999), fused=True)
                        for net in (D_z, encoder))
        optimisers |= {"D_z": opt_D, "encoder": opt_E}
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    served = data.batches(images, args.batch_size, device, args.seed, start, labels if args.conditional else None)
    total = args.iters or args.epochs * (len(images) // args.batch_size)
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        encoder, decoder, D_z = (net and torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default")
                                 for net in (encoder, decoder, D_z))

    for name in ("samples", "reconstructions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "sample")}
    names = ["reconstruction", "kl", *COLUMNS[args.objective]]
    ending = ["test_reconstruction", "test_kl", "test_bound"]  # filled in the last row
    log = metrics.open_log(folder / "log.csv", start, ["step", *names, "images_per_s", *ending])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step, batch in enumerate(served, start + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            x, y = batch if args.conditional else (batch, None)
            seen = corrupt(x, args.corrupt) if args.objective == "dvae" else x
            with autocast:
                mu, logvar = encoder(seen, y)
                z = draw_z(mu, logvar)
                logits = decoder(z, y)
            terms = [reconstruction(logits, x).mean(), kl(mu, logvar).mean()]  # of the clean x, always
            if args.objective in ("vae", "dvae"):
                loss = terms[0] + terms[1]
            elif args.objective == "info":
                terms.append(mmd(z, torch.randn_like(z), math.sqrt(args.z_dim), y))
                loss = terms[0] + args.mmd_weight * terms[2]
            else:
                loss = terms[0]                                      # AAE's reconstruction phase
            opt.zero_grad()
            loss.backward()
            opt.step()

            if args.objective == "aae":                              # and its regularisation phase
                with autocast:
                    z = draw_z(*encoder(x, y))
                    prior_logit, code_logit = D_z(torch.randn_like(z), y), D_z(z.detach(), y)
                loss_D = d_loss(prior_logit, code_logit)
                opt_D.zero_grad()
                loss_D.backward()
                opt_D.step()

                D_z.requires_grad_(False)                            # the gradient passes through D_z to the encoder
                with autocast:
                    loss_E = e_loss(D_z(z, y))
                opt_E.zero_grad()
                loss_E.backward()
                opt_E.step()
                D_z.requires_grad_(True)
                terms += [loss_D, loss_E]

            sums = sums + torch.stack(terms).detach()
            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or ends:
                means = (sums / (step - printed)).tolist()           # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr, or --no-amp; "
                                             f"{folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                more = "".join(f" {name} {mean:.4f}" for name, mean in zip(names[2:], means[2:]))
                print(f"step {step:6}/{total} | reconstruction {means[0]:.2f} KL {means[1]:.2f} nats{more and ' |' + more}"
                      f" | {rate:.0f} img/s | {left // 60}:{left % 60:02} left", flush=True)
                row = [step, *(f"{mean:.4f}" for mean in means), f"{rate:.0f}"]
                if step == total:
                    test = held_out(nets, test_images, test_labels if args.conditional else None, args.batch_size, args.seed)
                    row += [f"{value:.4f}" for value in (*test, sum(test))]
                log.writerow(row)
                sums, printed, since = 0, step, time.perf_counter()
            if step % args.sample_every == 0 or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, test_images, test_labels, folder, step)
                if step == total and args.z_dim == 2:                # before the checkpoint, with which the run is whole
                    draw_latent_maps(nets, args, test_images, test_labels, folder)
                metrics.save_run(folder, "vae", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python vae.py --resume {folder}")
        sys.exit(130)
    print(f"held-out bound {sum(test):.2f} nats per image: reconstruction {test[0]:.2f} + KL {test[1]:.2f}, over "
          f"{len(test_images)} images")
    print(f"done: samples, reconstructions{', latent-*.png' if args.z_dim == 2 else ''} and checkpoint.pt are in {folder}")


if __name__ == "__main__":
    main()
