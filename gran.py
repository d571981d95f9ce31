"""GRAN: generating images with recurrent adversarial networks (Im, Kim, Jiang, Memisevic 2016, arXiv:1602.05110).

    python gran.py --dataset mnist --steps 5        the paper's run: Table 5's sizes, batches of 100
    python gran.py --steps 5 --iters 20             a smoke run on the embedded digits

A generator that draws in T steps. At each step f turns [h_z, h_c] into an update dC of the canvas, and g reads that
update back into the next h_c; the image is the logistic function of the sum of all updates. Two trained runs battle
each other with `python metrics.py gam RUN RUN`.

Differs from the paper
- D(x) is a logit, and losses are softplus of logits: the same functions as eqs. 1 and 2, without overflow.
- Batch norm always uses the statistics of the batch at hand, as the authors' code does, so that each step t has its own
  and more steps than trained are well defined; samples are therefore drawn in batches of the training size.
- g's dense layer has batch norm too (the paper says "on both models", not where). Without it tanh saturates within a few
  hundred updates, h_c is one constant for all images, and GRAN5 collapses onto a few blots.
- Learning rates were chosen on a validation set and not printed. The defaults are those of the authors' checkpoints, where
  D is slower than G by 2 to 2.5 times, but for MNIST's networks, where D is twice as fast (with a slower one GRAN3 and
  GRAN5 collapsed); they stay constant. All training images are used; the paper held out 10,000.
- For T = 1, g is never called and stays as it started: such a run cannot be drawn with more steps (Table 4).

Measured (torch 2.14.1, bfloat16): `--dataset mnist --epochs 6` for T = 1, 3 and 5, means of seeds 0, 1 and 2 on an Intel Xeon:
FID 1.86, 0.89 and 0.91 on classifier features, n = 10,000 (real test images 0.013); digits are legible. On the embedded
digits, `--steps 5`: the first grid after 31 s, the whole in 4.7 minutes, on both of its cores.
"""

import argparse
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

# Shapes: B batch, T drawing steps, Z length of z, h_z and h_c, C x S x S an image, K kernels of a layer.
# Between maps and dense layers lie rows of S x S x K numbers, in channels_last's own order, so that nothing is copied.


def up(k_in, k_out):
    """(B, k_in, S, S) -> (B, k_out, 2S, 2S): 5x5 convolutional transpose (section 2, eq. 4)."""
    kind = ToImage if k_out <= 4 else nn.ConvTranspose2d
    # Batch norm undoes a bias, whose gradient is dear in a transposed convolution on a CPU: only the image has one.
    return kind(k_in, k_out, kernel_size=5, stride=2, padding=2, output_padding=1, bias=k_out <= 4)


def down(k_in, k_out):
    """(B, k_in, 2S, 2S) -> (B, k_out, S, S): 5x5 strided convolution (section 2, eq. 3)."""
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


def batch_norm(k):
    return nn.BatchNorm2d(k, track_running_stats=False)


class Decoder(nn.Module):
    """f: the joined hidden states (B, 2Z) to an update dC (B, C, S, S) of the canvas, before any sigmoid (eq. 8)."""

    def __init__(self, kernels, channels, size, z_dim):
        super().__init__()
        self.base = (size >> len(kernels), size >> len(kernels), kernels[0])
        self.dense = nn.Linear(2 * z_dim, math.prod(self.base))
        self.norms = nn.ModuleList(batch_norm(k) for k in kernels)
        self.ups = nn.ModuleList(up(k, k_next) for k, k_next in zip(kernels, [*kernels[1:], channels]))

    def forward(self, h):
        x = self.dense(h).unflatten(1, self.base).movedim(3, 1)  # (B, K0, S / 2^L, S / 2^L), L = len(kernels)
        for norm, layer in zip(self.norms, self.ups):
            x = layer(F.relu(norm(x)))                           # twice the side, at last (B, C, S, S)
        return x


class Encoder(nn.Module):
    """g: an update dC (B, C, S, S) to h_c (B, Z) in (-1, 1); mirrors f (eq. 6). `tie` shares f's kernels (a Decoder)."""

    def __init__(self, kernels, channels, size, z_dim, tie=None):
        super().__init__()
        kernels = kernels[::-1]
        self.downs = nn.ModuleList(down(k, k_next) for k, k_next in zip([channels, *kernels[:-1]], kernels))
        self.norms = nn.ModuleList(batch_norm(k) for k in kernels)
        self.dense = nn.Linear(kernels[-1] * (size >> len(kernels)) ** 2, z_dim)
        self.dense_norm = nn.BatchNorm1d(z_dim, track_running_stats=False)
        if tie is not None:
            for layer, mirror in zip(self.downs, reversed(tie.ups)):
                layer.weight = mirror.weight       # one (K_in of up, K_out of up, 5, 5) tensor serves both ways

    def forward(self, dC):
        x = dC
        for layer, norm in zip(self.downs, self.norms):
            x = F.relu(norm(layer(x)))             # half the side, at last (B, K0, S / 2^L, S / 2^L)
        return torch.tanh(self.dense_norm(self.dense(x.movedim(1, 3).flatten(1))))


class Generator(nn.Module):
    """GRAN's generator (Algorithm 1). `noise` is "once" (one z for all T steps) or "per-step" (footnote 2)."""

    def __init__(self, kernels, channels, size, z_dim, steps, noise="once", tie=False):
        super().__init__()
        self.z_dim, self.steps, self.noise = z_dim, steps, noise
        self.W = nn.Linear(z_dim, z_dim)
        self.f = Decoder(kernels, channels, size, z_dim)
        self.g = Encoder(kernels, channels, size, z_dim, tie=self.f if tie else None)
        self.apply(start_small)

    def draw_z(self, n, steps=None, generator=None, device=None):
        """z ~ N(0, 1) (eq. 5), (T, n, Z); the same z at every t unless noise is "per-step"."""
        steps = steps or self.steps
        z = torch.randn(steps if self.noise == "per-step" else 1, n, self.z_dim, generator=generator, device=device)
        return z.expand(steps, n, self.z_dim)

    def forward(self, z, every_step=False):
        """z (T, B, Z) -> the images (B, C, S, S) in [0, 1], or with every_step the canvases (T, B, C, S, S)."""
        C, dC, canvases = 0, None, []
        for z_t in z:
            h_c = torch.zeros_like(z_t) if dC is None else self.g(dC)  # eq. 6: reads the last update, not the canvas
            h_z = torch.tanh(self.W(z_t))                              # eq. 7
            dC = self.f(torch.cat([h_z, h_c], 1))                      # eq. 8
            C = C + dC.float()                                         # the canvas stays float32 under autocast
            if every_step:
                canvases.append(torch.sigmoid(C))
        return torch.stack(canvases) if every_step else torch.sigmoid(C)  # eq. 9


class Discriminator(nn.Module):
    """D: images (B, C, S, S) in [0, 1] to logits (B,), positive = real; the convolutions have g's sizes."""

    def __init__(self, kernels, channels, size):
        super().__init__()
        kernels = kernels[::-1]
        self.downs = nn.ModuleList(down(k, k_next) for k, k_next in zip([channels, *kernels[:-1]], kernels))
        self.norms = nn.ModuleList([nn.Identity(), *(batch_norm(k) for k in kernels[1:])])  # none on D's first layer
        self.dense = nn.Linear(kernels[-1] * (size >> len(kernels)) ** 2, 1)
        self.apply(start_small)

    def forward(self, x):
        for layer, norm in zip(self.downs, self.norms):
            x = F.leaky_relu(norm(layer(x)), 0.2)  # half the side, at last (B, K0, S / 2^L, S / 2^L)
        return self.dense(x.movedim(1, 3).flatten(1)).squeeze(1).float()


def start_small(layer):
    """Convolutions start from N(0, 0.02), as in DCGAN."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))), means over logits real (B,) and fake (B,); eq. 2. 2 log 2 when D cannot tell."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z)), mean over logits fake (B,); eq. 2, the form that does not saturate. log 2 when D cannot tell."""
    return F.softplus(-fake).mean()


def table_5(dataset, channels, size):
    """Kernels bottom to top (the image's own channels left out) and #z of Table 5: MNIST's for grey images up to 32 px,
    CIFAR-10's for colour up to 32 px, else LSUN's; ImageNet has three times LSUN's kernels."""
    if size <= 32:
        kernels, z_dim = ([80, 40], 60) if channels == 1 else ([1024, 512, 216], 100)
    else:
        kernels, z_dim = [1024, 512, 216, 128], 100
    if dataset == "imagenet":
        kernels = [3 * k for k in kernels]
    if size % 2 ** len(kernels):
        raise data.InputError(f"images of {size} px do not halve {len(kernels)} times: choose a --size that is a "
                              f"multiple of {2 ** len(kernels)}")
    return kernels, z_dim


def rates(channels, size):
    """Adam's rates of G and D for the networks that table_5 gives: the authors' for CIFAR-10's and LSUN's (their published
    checkpoints). MNIST's D, of two small layers, must be the faster or G collapses; the authors' rates for it are unknown."""
    if size > 32:
        return 2e-4, 1e-4
    return (2e-4, 4e-4) if channels == 1 else (1e-4, 4e-5)


def build(args):
    """The bare modules {"G", "D"} of a namespace with dataset, channels, size, steps, noise and tie."""
    kernels, z_dim = table_5(args.dataset, args.channels, args.size)
    return {"G": Generator(kernels, args.channels, args.size, z_dim, args.steps, args.noise, args.tie),
            "D": Discriminator(kernels, args.channels, args.size)}


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """The canvas after each step, (T, n, C, S, S) in [0, 1]; steps defaults to the T of the training.

    Latents come from `generator` (on the CPU), so that pictures agree across devices; whole batches are drawn and cut
    to n, since batch norm sees the batch. InputError for more steps of a run of T = 1, whose g is untrained.
    """
    G = nets["G"]
    if G.steps == 1 and steps not in (None, 1):
        raise data.InputError(f"a run of --steps 1 has an untrained g, and cannot draw with {steps} steps")
    device = next(G.parameters()).device
    parts = [G(G.draw_z(batch_size, steps, generator).to(device), every_step=True) for _ in range(0, n, batch_size)]
    return torch.cat(parts, 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1]; GRAN takes no labels."""
    parts = [canvases(nets, batch_size, steps, generator, batch_size)[-1] for _ in range(0, n, batch_size)]
    return torch.cat(parts)[:n]


def draw_pictures(nets, args, folder, step):
    """samples/STEP.png, steps.png (a row per sample, a column per step) and steps.gif, the same latents every time."""
    from torchvision.utils import make_grid, save_image

    frames = canvases(nets, 64, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size)
    save_image(frames[-1], folder / f"samples/{step:06}.png", nrow=8)
    save_image(frames[:, :10].transpose(0, 1).flatten(0, 1), folder / "steps.png", nrow=len(frames))
    grids = [make_grid(canvas, nrow=8).mul(255).round().byte().permute(1, 2, 0).cpu().numpy() for canvas in frames]
    first, *rest = [Image.fromarray(grid) for grid in grids]
    first.save(folder / "steps.gif", save_all=True, append_images=rest, loop=0,
               duration=[400] * len(rest) + [1600])


def draw_nearest(nets, args, images, folder, most=2**28):
    """nearest.png (Figures 7, 8, 24): sixteen samples, each at the left of its row, then its seven nearest training images.

    The images are searched in parts of `most` numbers, a GiB of floats, and then the nearest ones of all parts.
    """
    from torchvision.utils import save_image

    drawn = sample(nets, 16, generator=torch.Generator().manual_seed(args.seed), batch_size=args.batch_size).cpu()
    near = [metrics.nearest(images[part], min(7, len(part)), queries=drawn * 255)[1] + part[0]
            for part in torch.arange(len(images)).split(most // images[0].numel())]
    near = torch.cat(near, 1).unique()                            # an image may be near to several samples
    _, indices = metrics.nearest(images[near], min(7, len(near)), queries=drawn * 255)
    rows = torch.cat([drawn[:, None], images[near[indices]] / 255], 1)
    save_image(rows.flatten(0, 1), folder / "nearest.png", nrow=rows.shape[1])


def parse_args(argv=None):
    parser = metrics.Parser("gran.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    add("--data-dir", default="data", help="where data sets lie, and are downloaded to")
    add("--size", type=metrics.count, help="side of the images in pixels; the data set's own if not given")
    add("--out", help="the run's folder; runs/granT-DATASET if not given")
    add("--resume", metavar="RUN", help="go on with this run")
    add("--sample", type=metrics.count, metavar="N", help="only draw N images of the run given by --resume, into --out")
    add("--seed", type=metrics.seed, default=0, help="of weights, batches and latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--epochs", type=metrics.count, help="times through the data; 15, for digits 4, if not given; the authors' checkpoints took 15 to 70")
    add("--iters", type=metrics.count, help="stop after this many updates; takes the place of --epochs")
    add("--batch-size", type=metrics.count, default=100, help="the paper's is 100")
    add("--lr-g", type=metrics.rate, help="Adam's rate for G; the authors' 1e-4 with CIFAR-10's networks, else 2e-4, if not given")
    add("--lr-d", type=metrics.rate, help="Adam's rate for D; the authors' 4e-5 with CIFAR-10's networks and 1e-4 with LSUN's, "
        "4e-4 with MNIST's, if not given")
    add("--log-every", type=metrics.count, default=50, help="updates between two printed lines")
    add("--sample-every", type=metrics.count, default=200, help="updates between two grids, each with a checkpoint")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the networks; as CUDA graphs on a GPU")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the device is fast at it if not given")
    add("--steps", type=metrics.count, default=5, help="T, the drawing steps; the paper's are 1, 3 and 5")
    add("--noise", choices=["once", "per-step"], default="once", help="draw z once, or anew at every step")
    add("--tie", action=argparse.BooleanOptionalAction, default=False, help="g shares f's convolution kernels")
    args = parser.parse_args(argv)
    if args.resume:
        return metrics.resumed_args(parser, argv, "gran", free={"steps"} if args.sample else ())
    if args.sample:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if args.batch_size == 1:
        parser.error("--batch-size 1: batch normalisation takes two images at least")
    if args.dataset in data.DATASETS:
        args.channels, side = data.DATASETS[args.dataset]
        args.size = args.size or side
    args.epochs = args.epochs or (4 if args.dataset == "digits" else 15)
    return args


def main(argv=None):
    try:
        args = parse_args(argv)
        metrics.write_samples(args, steps=args.steps) if args.sample else train(args)
    except (data.InputError, FloatingPointError, OSError) as error:
        print(f"gran.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # outside the updates, where there is nothing to save
        sys.exit(130)


def train(args):
    folder = metrics.run_folder(args, f"runs/gran{args.steps}-{Path(args.dataset).name}")
    device = metrics.device_of(args.device)
    images, _ = data.load(args.dataset, args.data_dir, size=args.size)
    if args.resume and images.shape[1:] != (args.channels, args.size, args.size):
        raise data.InputError(f"{args.dataset} has images of {tuple(images.shape[1:])}, the run {args.resume} was "
                              f"trained on {(args.channels, args.size, args.size)}")
    args.channels, args.size = images.shape[1:3]
    lr_g, lr_d = rates(args.channels, args.size)
    args.lr_g, args.lr_d = args.lr_g or lr_g, args.lr_d or lr_d
    if args.amp is None:
        args.amp = data.has_bf16(device)

    torch.manual_seed(args.seed)
    nets = build(args)
    G, D = (nets[name].to(device, memory_format=torch.channels_last) for name in ("G", "D"))
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=(0.5, 0.999), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=(0.5, 0.999), fused=True)
    optimisers = {"G": opt_G, "D": opt_D}
    start = metrics.restore_run(args.resume, nets, optimisers) if args.resume else 0
    served = data.batches(images, args.batch_size, device, args.seed, start=start)
    total = args.iters or args.epochs * (len(images) // args.batch_size)
    if start >= total:
        raise data.InputError(f"{folder} has its {start} of {total} updates: raise --iters or --epochs to go on")
    if args.compile:  # nets itself stays plain, for samples: a CUDA graph would overwrite each batch with the next
        G, D = (torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else "default") for net in (G, D))

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "sample")}
    log = metrics.open_log(folder / "log.csv", start, ["step", "loss_d", "loss_g", "d_real", "d_fake", "images_per_s"])
    (folder / "args.json").write_text(json.dumps(kept, indent=1) + "\n")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    began = since = time.perf_counter()
    sums, printed = 0, start
    with metrics.ctrl_c() as stopping:
        for step, x in enumerate(served, start + 1):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()  # till the next mark no graph overwrites another's outputs
            with autocast:
                fake = G(G.draw_z(args.batch_size, device=device))
                real_logit, fake_logit = D(x), D(fake.detach())  # apart: each has its own batch statistics
            loss_D = d_loss(real_logit, fake_logit)
            opt_D.zero_grad()
            loss_D.backward()
            opt_D.step()

            D.requires_grad_(False)                              # the gradient passes through D to G
            with autocast:
                loss_G = g_loss(D(fake))
            opt_G.zero_grad()
            loss_G.backward()
            opt_G.step()
            D.requires_grad_(True)

            sums = sums + torch.stack([loss_D, loss_G, real_logit.sigmoid().mean(), fake_logit.sigmoid().mean()]).detach()
            ends = step == total or stopping
            if step % args.log_every == 0 or step % args.sample_every == 0 or ends:
                means = (sums / (step - printed)).tolist()       # the only wait for the device
                if not all(map(math.isfinite, means)):
                    raise FloatingPointError(f"a loss is not finite by step {step}: try a lower --lr-g and --lr-d, or "
                                             f"--no-amp; {folder} keeps its last good checkpoint")
                rate = (step - printed) * args.batch_size / (time.perf_counter() - since)
                left = int((time.perf_counter() - began) / (step - start) * (total - step))
                print(f"step {step:6}/{total} | D {means[0]:.3f} G {means[1]:.3f} | D(x) {means[2]:.2f} D(G(z)) {means[3]:.2f}"
                      f" | {rate:.0f} img/s | {left // 60}:{left % 60:02} left", flush=True)
                log.writerow([step, *(f"{mean:.4f}" for mean in means), f"{rate:.0f}"])
                sums, printed, since = 0, step, time.perf_counter()
            if step % args.sample_every == 0 or ends:
                metrics.check_finite(folder, step, nets)  # before they are looked at
                if step == total or not stopping:
                    draw_pictures(nets, args, folder, step)
                if step == total:                                # before the checkpoint, with which the run is whole
                    draw_nearest(nets, args, images, folder)
                metrics.save_run(folder, "gran", kept, step, nets, optimisers)
            if ends:
                break
    if step < total:
        print(f"stopped; go on with: python gran.py --resume {folder}")
        sys.exit(130)
    print(f"done: samples, steps.png, steps.gif, nearest.png and checkpoint.pt are in {folder}")


if __name__ == "__main__":
    main()
