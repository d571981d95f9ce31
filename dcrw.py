"""DCRW: "A deep convolutional and recurrent writer", a variational auto-encoder after DRAW.

    python dcrw.py --dataset mnist                 Table I's first row: attention in read and write
    python dcrw.py --dataset mnist --read none     its second row: the encoder looks once
    python dcrw.py --iters 20                      a smoke run on `digits`, nothing to download

In each of T steps a CNN reads a glimpse of the image and of what the canvas lacks, a latent z_t is
drawn, and an LSTM writes a patch to the canvas. The image is the sigmoid of the last canvas.

Differs from the paper:
- Eq. 27 subtracts T / 2; the divergence has T Z / 2, so that L_x + L_z is a bound in nats.
- Table I's L_z of 1.5 nats cannot tell ten digits apart (ln 10 = 2.3). `--noise once` gives such an
  L_z: the noise cancels in z_1 - z_2, which tells x at almost no KL. Then L_x + L_z is no bound.
- Eq. 9 puts h_dec, which is no image, into the CNN; here it joins the CNN's maps. Eq. 15 lacks
  sigma; eq. 23 repeats eq. 21: both are DRAW's here. Pixels are Bernoulli (eq. 25: Gaussian).
- Learned: the first canvas (starts as the mean image), the LSTM's first state and the biases of the
  windows (start as the whole image). The paper gives no Z, batch size, rate or number of updates.
- Adam's rate falls linearly to a twentieth; the gradient's norm is clipped at 5.
Measured: MNIST, --epochs 4 (2,400 updates): 100.4 nats, FID 2.2 by a classifier of MNIST.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, T steps, Z length of z_t, H of h, (C, S, S) an image, (N, N) a glimpse or patch.


def filterbank(params, N, S):
    """Attention parameters (B, 5) -> F_x, F_y (B, N, S), whose rows sum to 1, and gamma (B, 1).

    params: g~_x, g~_y, log sigma^2, log delta~, log gamma (eq. 15). Filter i of 1..N is a Gaussian
    over the pixels a of 1..S, with centre mu_i and variance sigma^2 in pixels.
    """
    i = torch.arange(1, N + 1, device=params.device, dtype=params.dtype)
    a = torch.arange(1, S + 1, device=params.device, dtype=params.dtype)
    g = (S + 1) / 2 * (params[:, :2] + 1)                      # eqs. 16, 17: (B, 2), x then y
    variance, delta, gamma = params[:, 2:].exp().split(1, 1)   # eq. 15: (B, 1) each
    delta = (S - 1) / max(N - 1, 1) * delta                    # eq. 18: stride
    mu = g[:, :, None] + ((i - N / 2 - 0.5) * delta)[:, None]  # eqs. 13, 14, i from 1: (B, 2, N)
    exponent = (a - mu[..., None]).square() * (-0.5 / variance)[..., None, None]  # (B, 2, N, S)
    F_x, F_y = torch.softmax(exponent, 3).unbind(1)  # eqs. 19, 20; softmax's sum: the paper's Z
    return F_x, F_y, gamma


def read(image, F_x, F_y, gamma):
    """gamma F_y image F_x^T: a glimpse (B, C, N, N) of images (B, C, S, S) (eq. 21)."""
    return gamma[:, :, None, None] * (F_y[:, None] @ image @ F_x[:, None].mT)


def write(patch, F_x, F_y, gamma):
    """F_y^T patch F_x / gamma: a patch (B, C, N, N) on the canvas (B, C, S, S) (eq. 23)."""
    return F_y[:, None].mT @ (patch / gamma[:, :, None, None]) @ F_x[:, None]


def whole_image(N, S, gamma):
    """Attention parameters (5,) of a window over the whole image; sigma is half its stride."""
    log_delta = math.log(max(N - 1, 1) / N)  # a stride of about S / N
    return torch.tensor([0, 0, 2 * math.log(S / N / 2), log_delta, math.log(gamma)])


class DCRW(nn.Module):
    """The writer: images (B, C, S, S) and noise (T, B, Z) -> a canvas, and q's mu and log sigma.

    read, write: N of glimpse and patch; read None: the CNN sees the whole image, once (section
    III-C). hidden: H of the LSTM. noise: "per-step", or "once" (one draw for all T steps).
    """

    def __init__(self, channels, size, z_dim, steps, read=7, write=5, hidden=256, noise="per-step"):
        super().__init__()
        self.size, self.z_dim, self.steps, self.noise = size, z_dim, steps, noise
        self.N_read, self.N_write = read, write
        channels_in, side = (2 * channels, read) if read else (channels, size)
        self.cnn = nn.Sequential(  # pooling before ReLU: the same result, less work
            nn.Conv2d(channels_in, 32, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
        )  # fmt: skip
        self.q = nn.Linear(64 * math.ceil(side / 4) ** 2 + (hidden if read else 0), 2 * z_dim)
        self.rnn = nn.LSTMCell(z_dim, hidden)
        self.read_at = nn.Linear(hidden, 5) if read else None
        self.write_at = nn.Linear(hidden, 5)
        self.write_what = nn.Linear(hidden, channels * write * write)
        self.h_0 = nn.Parameter(torch.zeros(2, hidden))  # h and cell
        self.c_0 = nn.Parameter(torch.zeros(channels, size, size))
        at_first = whole_image(write, size, (write / size) ** 2)  # a patch of ones writes ones
        self.write_at.bias.data.copy_(at_first)
        if read:
            self.read_at.bias.data.copy_(whole_image(read, size, 1))  # ones read as ones

    def draw_noise(self, n, steps=None, generator=None, device=None):
        """N(0, 1), (T, n, Z): q's noise, or z of the prior; "once": the same at every step."""
        T = steps or self.steps
        shape = (1 if self.noise == "once" else T, n, self.z_dim)
        return torch.randn(shape, generator=generator, device=device).expand(T, -1, -1)

    def forward(self, x, noise, every_step=False):
        """-> c_T (B, C, S, S), logits; mu, log sigma (T, B, Z). every_step: c_1 to c_T, stacked."""
        if self.read_at is None:  # no attention in read: look once (section III-C)
            mu, log_sigma = self.q(self.features(x)).float().chunk(2, 1)  # eq. 29: (B, Z) each
            mu, log_sigma = mu.expand_as(noise), log_sigma.expand_as(noise)
            written = self.all_written(mu + log_sigma.exp() * noise)      # eqs. 30 to 32
            return self.c_0 + (written.cumsum(0) if every_step else written.sum(0)), mu, log_sigma
        h, cell = self.h_0[:, None].expand(-1, len(x), -1)
        c, canvases, qs = self.c_0.expand_as(x), [], []
        for eps in noise:
            error = x - torch.sigmoid(c)                              # eq. 7
            window = filterbank(self.read_at(h).float(), self.N_read, self.size)
            r = read(torch.cat([x, error], 1), *window)               # eq. 8: (B, 2C, N, N)
            h_enc = torch.cat([self.features(r), h], 1)               # eq. 9: (B, features + H)
            mu, log_sigma = self.q(h_enc).float().chunk(2, 1)         # eqs. 5, 6: (B, Z) each
            h, cell = self.decode(mu + log_sigma.exp() * eps, h, cell)  # eqs. 10, 11: (B, H) each
            c = c + self.written(h)                                   # eq. 12: (B, C, S, S)
            canvases.append(c)
            qs.append((mu, log_sigma))
        return (torch.stack(canvases) if every_step else c), *map(torch.stack, zip(*qs))

    def features(self, image):
        """The CNN's maps of an image or a glimpse, as rows (B, features)."""
        return self.cnn(image).movedim(1, 3).flatten(1)  # channels_last's memory order

    def decode(self, z, h, cell):
        """One step of the LSTM -> h, cell (B, H)."""
        with torch.autocast("cuda", enabled=False):  # it would round the cell to bfloat16
            return self.rnn(z, (h, cell))

    def written(self, h):
        """What h (B, H) adds to the canvas, (B, C, S, S) (eq. 23)."""
        patch = self.write_what(h).float().unflatten(1, (-1, self.N_write, self.N_write))  # eq. 22
        window = filterbank(self.write_at(h).float(), self.N_write, self.size)
        return write(patch, *window).float()

    def all_written(self, z):
        """The decoder alone: z (T, B, Z) -> what each step adds to the canvas, (T, B, C, S, S)."""
        h, cell = self.h_0[:, None].expand(-1, z.shape[1], -1)
        states = []
        for z_t in z:
            h, cell = self.decode(z_t, h, cell)                       # eqs. 11, 31
            states.append(h)
        return self.written(torch.cat(states)).unflatten(0, z.shape[:2])  # (T, B, C, S, S)


def reconstruction(c, x):
    """L_x (B,) = -log p(x | c_T) of logits c, in nats (eq. 25). Check: c = 0 gives C S^2 log 2."""
    return F.binary_cross_entropy_with_logits(c, x, reduction="none").flatten(1).sum(1)


def kl(mu, log_sigma):
    """KL(q || N(0, 1)) in nats, (T, B), summed over z's entries (eqs. 26, 27). Check: 0s give 0."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(-1)


# ---- sizes and samples ---------------------------------------------------------------------------


def build(args):
    """A dict with key DCRW. args: flags, and channels and size from training_set."""
    read = None if args.read == "none" else args.read
    sizes = args.channels, args.size, args.z_dim, args.steps, read, args.write
    return {"DCRW": DCRW(*sizes, noise=args.noise)}


@torch.no_grad()
def canvases(nets, n, steps=None, generator=None, batch_size=100):
    """Images after each step (T, n, C, S, S) in [0, 1], from the prior (section III-D)."""
    net, parts = nets["DCRW"], range(0, n, batch_size)  # z from the CPU: the same on any device
    draws = (net.draw_noise(batch_size, steps, generator).to(net.c_0.device) for _ in parts)
    return torch.cat([(net.c_0 + net.all_written(z).cumsum(0)).sigmoid() for z in draws], 1)[:, :n]


def sample(nets, n, labels=None, generator=None, batch_size=100, steps=None):
    """n images (n, C, S, S) in [0, 1]; keeps only the last canvas of each batch. labels: unused."""
    return torch.cat([canvases(nets, batch_size, steps, generator, batch_size)[-1]
                      for _ in range(0, n, batch_size)])[:n]


@torch.no_grad()
def bound(nets, images, batch_size=100, seed=0):
    """-> mean L_x, mean L_z and [L_z of each step], in nats, of images uint8 (n, C, S, S).

    An upper bound on the mean -log p(b) of binary images b, each pixel 1 with probability x.
    """
    net, generator, sums = nets["DCRW"], torch.Generator().manual_seed(seed), 0
    for part in images.split(batch_size):
        x = part.to(net.c_0.device) / 255
        c, mu, log_sigma = net(x, net.draw_noise(len(x), generator=generator).to(x.device))
        L_x, L_z = reconstruction(c, x).double().sum(), kl(mu, log_sigma).double().sum(1)
        sums = sums + torch.cat([L_x[None], L_z])
    L_x, *L_z = (sums / len(images)).tolist()
    return L_x, sum(L_z), L_z


def write_bound(nets, args, images, folder, step):
    """The bound of held-out images, as bound.csv and a printed line."""
    L_x, L_z, _ = bound(nets, images, args.batch_size)
    row = f"{step},{len(images)},{L_x + L_z:.4f},{L_x:.4f},{L_z:.4f}"
    (folder / "bound.csv").write_text(f"step,images,bound,reconstruction,kl\n{row}\n")
    data.say(f"held-out, {len(images)} images: L_x {L_x:.2f} + L_z {L_z:.2f} = {L_x + L_z:.2f} "
             f"nats{' (no bound: one noise)' if args.noise == 'once' else ''}")


@torch.no_grad()
def draw_pictures(nets, args, held_out, folder, step):
    """samples/UPDATE.png, steps.png (a row per sample, a column per step), steps.gif; fixed z.

    reconstructions.png: held-out images, each followed by its canvases.
    """
    generator = torch.Generator().manual_seed(args.seed)
    frames = canvases(nets, 64, None, generator, args.batch_size).cpu()
    save_image(frames[-1], folder / f"samples/{step:06}.png", nrow=8)
    save_image(frames[:, :10].transpose(0, 1).flatten(0, 1), folder / "steps.png", nrow=len(frames))
    first, *rest = [to_pil_image(make_grid(canvas, nrow=8)) for canvas in frames]
    first.save(folder / "steps.gif", save_all=True, append_images=rest, loop=0,
               duration=[400] * len(rest) + [1600])
    net = nets["DCRW"]
    x = held_out[torch.linspace(0, len(held_out) - 1, 10).long()].to(net.c_0.device) / 255
    drawn, _, _ = net(x, net.draw_noise(10, None, generator).to(x.device), every_step=True)
    rows = torch.cat([x[None], drawn.sigmoid()]).transpose(0, 1)     # (10, 1 + T, C, S, S)
    save_image(rows.flatten(0, 1), folder / "reconstructions.png", nrow=rows.shape[1])


# ---- training ------------------------------------------------------------------------------------


def side_or_none(text):
    return text if text == "none" else int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser("dcrw.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=data.path, default="digits",
        help=f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]")
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels [the data set's]")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="[runs/dcrw-DATASET; --read none: runs/dcrw-none-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures [200; 2,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, help="[15; digits 5; at least 3,000 updates; paper: not given]")
    add("--iters", type=int, help="stop at this update, from 1 on; the rate follows --epochs")
    add("--batch-size", type=int, help="[100; paper: not given; at most a quarter of the images]")
    add("--lr", type=float, default=4e-3, help="Adam's first rate [%(default)s; paper: not given]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--steps", type=int, default=10, help="T, the drawing steps [%(default)s, as in the paper]")
    add("--read", type=side_or_none, default=7, metavar="N|none",
        help="side of the glimpse, or none: no attention in read [%(default)s, as in the paper]")
    add("--write", type=int, default=5, help="side of the patch [%(default)s, as in the paper]")
    add("--z-dim", type=int, default=10, help="length of z_t [%(default)s; paper: not given]")
    add("--noise", choices=["per-step", "once"], default="per-step",
        help="draws of noise [%(default)s; once gives Table I's L_z, but no bound]")
    args = parser.parse_args(argv)
    data.check_flags(parser, args)
    free = {"steps"} if args.sample else ()  # what may differ from the run's own
    return metrics.resumed_args(parser, argv, "dcrw", free) if args.resume else args


def update(net, optimiser, x, noise, autocast):
    """One update of L_x + L_z (eq. 28) -> (L_x, L_z), means over the batch."""
    with autocast:
        c, mu, log_sigma = net(x, noise)
    L_x, L_z = reconstruction(c, x).mean(), kl(mu, log_sigma).sum(0).mean()
    optimiser.zero_grad()
    (L_x + L_z).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)  # a window that jumps has a huge gradient
    optimiser.step()
    return torch.stack([L_x, L_z]).detach()


def train(args):
    folder, device = metrics.open_run(args, "dcrw-none" if args.read == "none" else "dcrw")
    images, _ = data.training_set(args, batch_size=100)  # sets args.channels, size, batch_size
    held_out, _ = data.load(args.dataset, args.data_dir, split="test", size=args.size)
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    net = nets["DCRW"].to(device, memory_format=torch.channels_last)
    mean = images[:: len(images) // 10_000 + 1].float().mean(0) / 255  # at most 10,000
    net.c_0.data.copy_(torch.logit(mean, eps=0.01))  # the first canvas
    optimiser = data.optimiser(net, args.lr)
    optimisers = {"DCRW": optimiser}
    start = metrics.restore_run(folder, nets, optimisers) if args.resume else 0
    planned = data.planned_updates(args, epochs=5 if args.dataset == "digits" else 15)
    total = args.iters or planned
    log = metrics.open_log(folder, args, nets, start, total, ["loss_x", "loss_z"])
    net = torch.compile(net) if args.compile else net  # nets: uncompiled, for checkpoints

    def one_update(x):
        noise = nets["DCRW"].draw_noise(len(x), device=device)
        return update(net, optimiser, x, noise, autocast)

    batches = data.batches(images, args.batch_size, device, args.seed, start)
    updates = data.captured(one_update, batches, args.graph and device.type == "cuda")
    for step, shows, saves in data.schedule(args, start, total, folder):  # not drawing steps
        factor = max(1 - (step - 1) / planned, 0.05)  # times the rate
        optimiser.param_groups[0]["lr"].fill_(args.lr * factor)
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if shows:
            log(step, sums, "L_x {:.2f} L_z {:.2f} nats")
        if saves:
            draw_pictures(nets, args, held_out, folder, step)
            if step == total:
                write_bound(nets, args, held_out, folder, step)
            metrics.save_run(folder, "dcrw", args, step, nets, optimisers)
    data.say(f"done: samples, steps.gif, reconstructions.png and checkpoint.pt are in {folder}")


def main(argv=None):
    with data.plain_errors("dcrw.py"):
        args = parse_args(argv)
        metrics.write_samples(args, args.steps) if args.sample else train(args)


if __name__ == "__main__":
    main()
