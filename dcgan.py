"""GAN, DCGAN and WGAN, and what Radford et al. found inside a trained DCGAN.

GAN: Goodfellow et al. 2014, arXiv:1406.2661; WGAN: Arjovsky, Chintala and Bottou 2017,
arXiv:1701.07875; DCGAN: Radford, Metz and Chintala 2016, arXiv:1511.06434.

    python dcgan.py --dataset lsun-rooms           the paper's run, on kitchens and living rooms
    python dcgan.py --iters 20                     smoke; --arch dense: GAN; --objective wgan: WGAN
    python dcgan.py --resume RUN --explore walk    one of six looks into a trained run

Differs from the papers (results: assets/RESULTS.md):
- D returns a logit, losses are softplus of it. Below 64 px and for own photos: a quarter of the
  maps, to train on a CPU (--width 128: all).
- --conditional joins one-hot labels to the input of every layer, as in DE-GAN, Table II.
- G learns from D's last noise; GAN has Adam. Rates are higher: on MNIST, 2,000 to 6,000 updates of
  G give 95 % read as label, not 83 (2e-4), and with WGAN 89 %, not 80 (5e-5).
- Rates fall to 0 at the end (--decay); samples come from an average of G's weights (--ema).
- --explore forget drops the last hidden layer's maps (paper: the second highest's); no turn vector.
- --explore features: 10,000 images; nearest: 6.4 % wrong of 50,000 (a talk's slides: about 3 %).
Measured: MNIST, --conditional --epochs 4, FID 0.34 by a classifier of MNIST (assets/RESULTS.md).
"""

import argparse
import copy
import math
from itertools import islice, pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from torchvision.utils import save_image

import data
import metrics

# ---- model ---------------------------------------------------------------------------------------
# Shapes: B batch, Z length of z, (C, S, S) an image, K maps, Y classes (or 0), L layers.
# Maps are flattened as (height, width, K), channels_last's order in memory: no copy.


def draw_z(n, z_dim, generator=None, device=None):
    """z uniform in (-1, 1), (n, Z)."""
    return 2 * torch.rand(n, z_dim, generator=generator, device=device) - 1


def join(x, y):
    """x (B, K, ...) with one-hot y (B, Y) at every place: (B, K + Y, ...); x where y is None."""
    if y is None:
        return x
    y = y.to(x.dtype).view(*y.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, y], 1)


class Generator(nn.Module):
    """DCGAN's G: z (B, Z) -> images (B, C, S, S) in [0, 1]; kernels: K from the smallest up."""

    def __init__(self, kernels, channels, size, z_dim=100, classes=0):
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.base = (size >> len(kernels), size >> len(kernels), kernels[0])
        self.dense = nn.Linear(z_dim + classes, math.prod(self.base))
        self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in kernels)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(k + classes, k_next, 5, 2, 2, 1, bias=k_next == channels)
            for k, k_next in pairwise([*kernels, channels]))  # no bias before batch norm
        self.apply(init)

    def forward(self, z, labels=None):
        y = F.one_hot(labels, self.classes).float() if self.classes else None
        x = self.dense(join(z, y)).unflatten(1, self.base).movedim(3, 1)  # (B, K, S / 2^L, S / 2^L)
        for norm, layer in zip(self.norms, self.ups):
            x = layer(join(F.relu(norm(x)), y))                           # side S / 2^(L-1), ..., S
        return (torch.tanh(x.float()) + 1) / 2


class Discriminator(nn.Module):
    """DCGAN's D, WGAN's critic: images (B, C, S, S) in [0, 1] -> logits (B,), positive = real."""

    def __init__(self, kernels, channels, size, classes=0):
        super().__init__()
        self.classes, kernels = classes, kernels[::-1]
        self.downs = nn.ModuleList(nn.Conv2d(k + classes, k_next, 5, stride=2, padding=2)
                                   for k, k_next in pairwise([channels, *kernels]))
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(k) for k in kernels[1:])])
        self.dense = nn.Linear(kernels[-1] * (size >> len(kernels)) ** 2 + classes, 1)
        self.apply(init)

    def activations(self, x, labels=None, activation=None):
        """Maps (B, K, S / 2^l, S / 2^l) of layers l = 1 to L; activation replaces leaky ReLU."""
        y = F.one_hot(labels, self.classes).float() if self.classes else None
        x, maps = 2 * x - 1, []
        for layer, norm in zip(self.downs, self.norms):
            x = norm(layer(join(x, y)))
            x = activation(x) if activation else F.leaky_relu(x, 0.2)
            maps.append(x)
        return maps

    def forward(self, x, labels=None):
        y = F.one_hot(labels, self.classes).float() if self.classes else None
        h = self.activations(x, labels)[-1].movedim(1, 3).flatten(1)      # (B, K * (S / 2^L)^2)
        return self.dense(join(h, y)).squeeze(1).float()


class DenseGenerator(nn.Module):
    """Goodfellow's G: two layers of 1,200 ReLUs, a sigmoid; z (B, Z) -> (B, C, S, S) in [0, 1]."""

    def __init__(self, channels, size, z_dim=100, classes=0, hidden=1200):
        super().__init__()
        self.z_dim, self.classes, self.shape = z_dim, classes, (channels, size, size)
        pairs = pairwise([z_dim, hidden, hidden, math.prod(self.shape)])
        self.layers = nn.ModuleList(nn.Linear(a + classes, b) for a, b in pairs)
        self.apply(init)

    def forward(self, z, labels=None):
        x, y = z, F.one_hot(labels, self.classes).float() if self.classes else None
        for layer in self.layers[:-1]:
            x = F.relu(layer(join(x, y)))                                 # (B, 1200)
        return torch.sigmoid(self.layers[-1](join(x, y)).float()).unflatten(1, self.shape)


class DenseDiscriminator(nn.Module):
    """Goodfellow's D: two layers of 240 maxout units of 5 pieces; images -> logits (B,)."""

    def __init__(self, channels, size, classes=0, hidden=240, pieces=5, dropout=0.5):
        super().__init__()
        self.classes, self.pieces, self.dropout = classes, pieces, dropout
        pairs = pairwise([channels * size * size, hidden, hidden])
        self.layers = nn.ModuleList(nn.Linear(a + classes, pieces * b) for a, b in pairs)
        self.last = nn.Linear(hidden + classes, 1)
        self.apply(init)

    def forward(self, x, labels=None):
        y = F.one_hot(labels, self.classes).float() if self.classes else None
        x = 2 * x.flatten(1) - 1
        for layer in self.layers:
            x = layer(join(x, y)).unflatten(1, (-1, self.pieces)).amax(2)  # maxout: (B, 240)
            x = F.dropout(x, self.dropout, self.training)
        return self.last(join(x, y)).squeeze(1).float()


def init(layer):
    """Weights start normal around 0, batch norm's gains around 1, with std 0.02 (DCGAN's code)."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
        nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def d_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))) of logits (B,), Goodfellow's eq. 1. Zeros give 2 log 2."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_loss(fake):
    """-log D(G(z)) of logits (B,), the non-saturating form. Check: zeros give log 2."""
    return F.softplus(-fake).mean()


def critic_loss(real, fake):
    """f(G(z)) - f(x) of scores (B,) (WGAN, eq. 3): minus a scaled Wasserstein distance."""
    return fake.mean() - real.mean()


def critic_g_loss(fake):
    """-f(G(z)) of scores (B,) (WGAN, Algorithm 1, line 10). Check: zeros give 0."""
    return -fake.mean()


@torch.no_grad()
def clip_weights(critic, limit=0.01):
    """Every weight of the critic into [-limit, limit], in place (WGAN, Algorithm 1, line 7)."""
    torch._foreach_clamp_min_([*critic.parameters()], -limit)
    torch._foreach_clamp_max_([*critic.parameters()], limit)


# ---- sizes and samples ---------------------------------------------------------------------------


def kernels_for(size, width):
    """Maps of G's layers: the smallest side is 4 to 7, the last has `width` maps (paper: 128)."""
    for layers in range(1, 12):
        if 4 <= size >> layers <= 7 and size % 2**layers == 0:
            return [width << i for i in reversed(range(layers))]
    raise data.InputError(f"--size {size} does not halve down to 4 to 7: choose 28, 32 or 64")


def build(args):
    """A dict: G, D or critic, and ema (G's moving average) if args.ema. args: flags, and sizes."""
    wgan, sizes = args.objective == "wgan", (args.channels, args.size)
    if args.arch == "dense":
        G = DenseGenerator(*sizes, classes=args.classes)
        D = DenseDiscriminator(*sizes, args.classes, dropout=0.0 if wgan else 0.5)
    else:
        kernels = kernels_for(args.size, args.width or (128 if args.size >= 64 else 32))
        G = Generator(kernels, *sizes, classes=args.classes)
        D = Discriminator(kernels, *sizes, args.classes)
    nets = {"G": G, "critic" if wgan else "D": D}
    return nets | ({"ema": copy.deepcopy(G)} if getattr(args, "ema", 0) else {})  # old runs lack it


@torch.no_grad()
def draw(nets, z, labels=None, batch_size=128):
    """Images (n, C, S, S) in [0, 1] of latents z (n, Z), and of labels (n,) or classes in turn."""
    G = nets.get("ema", nets["G"])
    device, training = next(G.parameters()).device, G.training
    labels = torch.arange(len(z)) % G.classes if G.classes and labels is None else labels
    inputs = [part.to(device).split(batch_size) for part in ([z, labels] if G.classes else [z])]
    images = [G.eval()(*parts) for parts in zip(*inputs)]  # eval: batch norm's running averages
    G.train(training)
    return torch.cat(images)


def sample(nets, n, labels=None, generator=None, batch_size=128):
    """n images, as `draw`, of latents drawn on the CPU: a seed gives the same on any device."""
    return draw(nets, draw_z(n, nets["G"].z_dim, generator), labels, batch_size)


def draw_pictures(nets, args, folder, step):
    """samples/UPDATE.png, the same latents every time; a column per class (up to 16)."""
    columns, generator = args.classes if 0 < args.classes <= 16 else 8, torch.Generator()
    images = sample(nets, 8 * columns, None, generator.manual_seed(args.seed), args.batch_size)
    save_image(images, folder / f"samples/{step:06}.png", nrow=columns)


# ---- training ------------------------------------------------------------------------------------

COLUMNS = ["loss_d", "loss_g", "d_real", "d_fake", "spread"]  # pixel variance, G's / real


def parse_args(argv=None):
    parser = argparse.ArgumentParser("dcgan.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    names = f"a folder of images, or one of {', '.join(data.DATASETS)} [%(default)s]"
    add("--dataset", type=data.path, default="digits", help=names)
    add("--data-dir", type=data.path, default="data", help="where data sets are kept [%(default)s]")
    add("--size", type=int, help="side of the images in pixels [the data set's]")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=data.path, help="[runs/dcgan-DATASET, or runs/gan- or runs/wgan-DATASET]")
    add("--resume", type=data.path, metavar="RUN", help="continue this run")
    add("--sample", type=int, metavar="N", help="draw N images from the run of --resume")
    add("--classes", dest="draw_classes", nargs="+", metavar="NAME", help="of --sample [all]")
    add("--explore", choices=EXPLORATIONS, help="a look into the run of --resume, in RUN/explore")
    add("--on", type=data.path, metavar="DATASET", help="images of --explore features [the run's]")
    add("--seed", type=int, default=0, help="of weights, batches and latents [%(default)s]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--log-every", type=int, default=50, help="updates between printed lines [%(default)s]")
    add("--sample-every", type=int, help="updates between pictures [200; 2,000 on CUDA]")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, help="[25; digits 4; at least 3,000 updates of G]")
    add("--iters", type=int, help="stop at this update of G, from 1 on; rates follow --epochs")
    add("--batch-size", type=int, help="[128, wgan 64: the papers'; at most a quarter of the set]")
    add("--lr-g", type=float, help="learning rate for G [below 64 px 8e-4; wgan, 64 px, GAN: 2e-4]")
    add("--lr-d", type=float, help="and for D or the critic [the same; papers: 2e-4, WGAN 5e-5]")
    add("--decay", type=float, default=0.2, help="last share of updates: rates fall to 0 [0.2]")
    add("--ema", type=float, default=0.99, help="samples: G's moving average; 0: off [%(default)s]")
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 [where it is fast]")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--no-graph", dest="graph", action="store_false", help="no CUDA graph, to debug")
    add = parser.add_argument_group("model").add_argument
    add("--conditional", action="store_true", help="G and D are given the labels")
    add("--arch", choices=["conv", "dense"], default="conv", help="DCGAN's networks, or GAN's")
    add("--objective", choices=["gan", "wgan"], default="gan", help="logistic, or a clipped critic")
    add("--width", type=int, help="maps of D's first layer [128; below 64 px, own photos: 32]")
    args = parser.parse_args(argv)
    data.check_flags(parser, args, may_be_0=("decay", "ema"))
    if args.explore and not args.resume or args.on and args.explore != "features":
        parser.error("--explore needs a trained run, --resume RUN; --on needs --explore features")
    if args.dataset not in data.DATASETS:
        args.width = args.width or 32
    free = {"seed"} if args.explore else ()  # what may differ from the run's own
    return metrics.resumed_args(parser, argv, "dcgan", free) if args.resume else args


def update(G, D, opt_G, opt_D, x, y, z, autocast, wgan=False):
    """Algorithm 1 of Goodfellow et al. and of WGAN: k updates of D or the critic, then one of G.

    x (k, B, C, S, S), labels y (k, B) or k Nones, z (k, B, Z) -> the losses of COLUMNS.
    """
    loss_of_D, loss_of_G = (critic_loss, critic_g_loss) if wgan else (d_loss, g_loss)
    for x_i, y_i, z_i in zip(x, y, z):
        with autocast:
            fake = G(z_i, y_i)
            d_real, d_fake = D(x_i, y_i), D(fake.detach(), y_i)  # two calls: own batch statistics
        loss_D = loss_of_D(d_real, d_fake)
        opt_D.zero_grad()
        loss_D.backward()
        opt_D.step()
        if wgan:
            clip_weights(D)

    D.requires_grad_(False)  # no gradients for D's weights; they still flow through D to `fake`
    with autocast:
        loss_G = loss_of_G(D(fake, y_i))  # of the last of the k batches
    opt_G.zero_grad()
    loss_G.backward()
    opt_G.step()
    D.requires_grad_(True)
    scores = torch.stack([d_real, d_fake])
    means = (scores if wgan else scores.sigmoid()).mean(1)
    var_fake, var_real = (F.mse_loss(v, v.mean(0).expand_as(v)) for v in (fake.detach(), x_i))
    return torch.stack([loss_D, loss_G, *means, var_fake / var_real.clamp(min=1e-12)]).detach()


def run_updates(args, G, D, ema, optimisers, images, labels, start, k, autocast):
    """-> the running sums of losses of each update; an update takes k batches."""
    z_dim, device, wgan = G.z_dim, next(G.parameters()).device, args.objective == "wgan"
    weights = [[value for value in net.state_dict().values() if value.is_floating_point()]
               for net in (ema, G) if ema]  # with batch norm's running averages
    G, D = (torch.compile(net) if args.compile else net for net in (G, D))

    def one_update(x, y=(None,) * k):
        z = draw_z(k * x.shape[1], z_dim, device=device).unflatten(0, (k, -1))  # (k, B, Z)
        losses = update(G, D, optimisers["G"], optimisers["D"], x, y, z, autocast, wgan)
        if ema:
            get_ema_multi_avg_fn(args.ema)(*weights, None)  # None: a count, unused
        return losses

    labels = labels if args.conditional else None
    batches = data.batches(images, args.batch_size, device, args.seed, start * k, labels)
    groups = (tuple(map(torch.stack, zip(*group))) if args.conditional else torch.stack(group)
              for group in zip(*[batches] * k))  # k batches, of x or of x and y
    return data.captured(one_update, groups, args.graph and device.type == "cuda")


def train(args):
    wgan = args.objective == "wgan"
    name = "wgan" if wgan else ("dcgan" if args.arch == "conv" else "gan")
    folder, device = metrics.open_run(args, name)
    images, labels = data.training_set(args, batch_size=64 if wgan else 128)  # sets args.size, ...
    args.classes = len(args.class_names) if args.conditional else 0
    if args.classes == 1:
        raise data.InputError(f"{args.dataset} has only one class: train without --conditional")
    rate = 8e-4 if name == "dcgan" and args.size < 64 else 2e-4  # narrow networks like more
    args.lr_g, args.lr_d = args.lr_g or rate, args.lr_d or rate
    autocast = data.autocast(args, device)

    torch.manual_seed(args.seed)
    nets = build(args)
    nn.ModuleDict(nets).to(device, memory_format=torch.channels_last)
    k = 5 if wgan else 1  # batches of an update
    G, D, ema = nets["G"], nets["critic" if wgan else "D"], nets.get("ema")
    how = {"kind": torch.optim.RMSprop} if wgan else {"betas": (0.5, 0.999)}
    optimisers = {"G": data.optimiser(G, args.lr_g, **how),
                  "D": data.optimiser(D, args.lr_d, **how)}
    start = metrics.restore_run(folder, nets, optimisers) if args.resume else 0
    planned = data.planned_updates(args, 4 if args.dataset == "digits" else 25, k)
    total, decay_updates = args.iters or planned, int(args.decay * planned)
    log = metrics.open_log(folder, args, nets, start, total, COLUMNS)
    updates = run_updates(args, G, D, ema, optimisers, images, labels, start, k, autocast)
    for step, shows, saves in data.schedule(args, start, total, folder):
        factor = (planned + 1 - step) / (decay_updates + 1)  # times both rates; planned >= total
        if factor < 1:
            optimisers["G"].param_groups[0]["lr"].fill_(args.lr_g * factor)
            optimisers["D"].param_groups[0]["lr"].fill_(args.lr_d * factor)
        sums = next(updates)  # one update; its losses are added to sums, which log() sets to 0
        if shows:
            log(step, sums, "D {:.3f} G {:.3f} | D(x) {:.2f} D(G(z)) {:.2f} | spread {:.2f}")
        if saves:
            draw_pictures(nets, args, folder, step)
            metrics.save_run(folder, "dcgan", args, step, nets, optimisers)
    data.say(f"done: samples and checkpoint.pt are in {folder}")


# ---- explorations: NAME(run, folder, train, test) writes NAME.png, .txt; run: load_run's Run -----

EXPLORATIONS = {"walk": [], "nearest": ["labels"], "arithmetic": ["faces", "no labels"],
                "filters": ["convolutions", "no labels"], "features": ["convolutions", "no labels"],
                "forget": ["faces", "convolutions", "no labels"]}  # what each needs of a run


def explore(args):
    """--explore NAME: one look into the run args.resume, written to RUN/explore."""
    run, look, folder = metrics.load_run(args.resume, args.device), args.explore, Path(args.resume)
    has = {"faces": args.dataset == "faces", "convolutions": args.arch == "conv",
           "labels": args.conditional, "no labels": not args.conditional}
    for need in EXPLORATIONS[look]:
        if not has[need]:
            raise data.InputError(f"--explore {look} needs a run with {need}, unlike {args.resume}")
    name, run.args = args.on or args.dataset, args  # flags typed now, not the run's
    sets = [data.load(name, args.data_dir, split, size=args.size)
            for split in ("train", "test") if look != "walk"]
    for images, y in sets:
        if images.shape[1] != args.channels or (look == "features" and not 0 <= y.min() < y.max()):
            raise data.InputError(f"{name} does not fit --explore {look}: it needs {args.channels} "
                                  "channels as the run has; features: labels, two classes")
    torch.manual_seed(args.seed)
    (folder / "explore").mkdir(exist_ok=True)
    globals()[look](run, folder / "explore", *sets)
    data.say(f"{look} is in {folder / 'explore'}")


def board(rows, path, scale=3):
    """Rows of images, each (n, C, S, S), as one PNG; a pixel becomes scale x scale."""
    images = torch.cat([*rows]).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image(images, path, nrow=len(rows[0]), pad_value=1.0)


def report(rows, path):
    """{title: {name: share}} as lines of text, printed and written to `path`."""
    parts = {k: ", ".join(f"{name} {v:.1%}" for name, v in row.items()) for k, row in rows.items()}
    path.write_text("".join(f"{title}: {part}\n" for title, part in parts.items()))
    data.say(path.read_text().rstrip())


def walk(run, folder, frames=10):
    """A closed loop of straight lines through 9 latents (Radford et al., Figure 4)."""
    z, classes = draw_z(9, run.nets["G"].z_dim), run.nets["G"].classes
    loop = torch.lerp(z[:, None], z.roll(-1, 0)[:, None], torch.linspace(0, 1, frames)[:, None])
    labels = torch.arange(9).repeat_interleave(frames) % classes if classes else None
    board(draw(run.nets, loop.flatten(0, 1), labels).split(frames), folder / "walk.png")


def reader(run):
    """images -> (p (n, Y), {attribute: likeliest (n,)}); a class is a combination of attributes."""
    net = metrics.classifier_of(run.args.dataset, run.args.data_dir, run.args.size, run.device)
    data.say(f"a classifier reads {1 - net.test_error:.1%} of the test images right")

    @torch.no_grad()
    def read(images):
        parts = (net(part.to(run.device)).double().softmax(1) for part in images.split(500))
        p = torch.cat([*parts]).cpu()
        return p, data.face_attributes(p.argmax(1))

    return read


def arithmetic(run, folder, train, test, drawn=10_000, trials=200):
    """G(a - b + c) of means of 3 latents: a smiles, b is neutral, c has glasses (Figure 7)."""
    read, z = reader(run), draw_z(drawn, run.nets["G"].z_dim)
    p = read(draw(run.nets, z))[0]
    kinds = data.face_attributes(torch.arange(p.shape[1]))
    labels = [torch.where((kinds["smile"] == smile) & (kinds["glasses"] == glasses))[0]
              for smile, glasses in ((1, 0), (0, 0), (0, 1), (1, 1))]  # a, b, c, a - b + c
    sure = p[:, torch.stack(labels[:3], 1)].movedim(0, 2)            # (24, 3, n): by hair and skin
    alike = (sure > 0.8).sum(2).amin(1).argmax()                     # the one drawn most often
    sure, meant = sure[alike], {name: kind[labels[3][alike]] for name, kind in kinds.items()}
    clear = (sure > 0.8).double()
    if clear.sum(1).min() < 3:
        raise data.InputError("samples are not yet clear enough for arithmetic: train longer")
    picks = clear.repeat(trials, 1).multinomial(3).unflatten(0, (trials, 3))
    triples = z[torch.cat([sure.topk(3).indices[None], picks])]      # (trials + 1, 3, 3, Z)
    means = triples.mean(2)
    pixels = draw(run.nets, triples.flatten(0, 2)).unflatten(0, triples.shape[:3])
    sums, pixel_sums = (x[:, 0] - x[:, 1] + x[:, 2] for x in (means, pixels))
    noise = torch.empty(9, z.shape[1]).uniform_(-0.25, 0.25)
    noise[4] = 0                                                     # the sum itself in the middle
    # three of each and the sum amid 8 neighbours; below, G of the means, and sums of pixels
    rows = [*zip(pixels[0].unbind(1), draw(run.nets, sums[0] + noise).split(3)),
            (draw(run.nets, means[0]), pixel_sums[0])]
    board([torch.cat(row) for row in rows], folder / "arithmetic.png", scale=4)
    pictures = {"G(c)": draw(run.nets, means[1:, 2]), "G(a - b + c)": draw(run.nets, sums[1:]),
                "sum of pixels": pixel_sums[1:].mean(1).clamp(0, 1)}
    report({title: {f"{name}={meant[name]}": (found == meant[name]).double().mean()
                    for name, found in read(images)[1].items()}
            for title, images in pictures.items()}, folder / "arithmetic.txt")


def fit_linear(x, y, C, loss):
    """w (d, K), b (K,) that minimise |w|^2 / 2 + C sum_i loss(y_i (x_i w + b)); y (n, K) is +-1."""
    w = torch.zeros(x.shape[1] + 1, y.shape[1]).to(x).requires_grad_()
    optimiser = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def objective():
        optimiser.zero_grad()
        value = w[:-1].square().sum() / 2 + C * loss(y * (x @ w[:-1] + w[-1])).sum()
        value.backward()
        return value

    optimiser.step(objective)
    return w[:-1].detach(), w[-1].detach()


def svm_accuracy(x, labels, x_test, labels_test, C=1.0):
    """Test accuracy of a linear L2-SVM, each class against the rest, features standardised."""
    mean, scale = x.mean(0), (x.std(0) + 1e-6) * math.sqrt(x.shape[1])  # rows of length about 1
    y = 2 * F.one_hot(labels).to(x) - 1
    w, b = fit_linear((x - mean) / scale, y, C, lambda margin: (1 - margin).clamp(min=0) ** 2)
    return (((x_test - mean) / scale @ w + b).argmax(1) == labels_test).double().mean()


def forget(run, folder, train, test, drawn=2000):
    """Drops maps of G's last hidden layer until a tenth show glasses (Radford et al., Figure 6)."""
    read, (images, labels) = reader(run), train
    layer, maps = run.nets.get("ema", run.nets["G"]).ups[-1], []  # layer's inputs
    z = draw_z(drawn, run.nets["G"].z_dim)
    with layer.register_forward_pre_hook(lambda _, x: maps.append(x[0].cpu())):
        p, before = read(draw(run.nets, z))
    sure = p[:, data.face_attributes(torch.arange(p.shape[1]))["glasses"] == 1].sum(1)
    shows, clear, maps = sure > 0.8, (sure - 0.5).abs() > 0.3, torch.cat(maps)
    if min(shows.sum(), (clear & ~shows).sum()) < 20:
        raise data.InputError(f"{shows.sum()} of {drawn} samples show glasses: train longer")
    has = data.face_attributes(labels)["glasses"] == 1
    gap = ((images[has] / 255).mean(0) - (images[~has] / 255).mean(0)).abs().sum(0, keepdim=True)
    place = F.adaptive_max_pool2d(gap, maps.shape[-1])[0] >= gap.max() / 2  # of glasses: (s, s)
    x, y = maps[clear][:, :, place].mean(2), torch.where(shows[clear], 1.0, -1.0)[:, None]
    x, z = (x - x.mean(0)) / (x.std(0) + 1e-6), z[shows]
    weights = fit_linear(x, y, 10 / len(x), lambda margin: F.softplus(-margin))[0][:, 0]

    def without(dropped, z):
        keep = (~dropped).float().to(run.device)[:, None, None]
        with layer.register_forward_pre_hook(lambda _, x: x[0] * keep):
            return draw(run.nets, z)

    drop = torch.zeros(len(weights), dtype=torch.bool)
    for strongest in weights.argsort(descending=True)[: (weights > 0).sum()]:
        drop[strongest] = True
        if read(without(drop, z[:500]))[1]["glasses"].double().mean() <= 0.1:  # a tenth has glasses
            break
    pictures = {"as drawn": draw(run.nets, z), f"{drop.sum()} of {len(drop)} maps dropped":
                without(drop, z), "as many at random": without(drop[torch.randperm(len(drop))], z)}
    mark = F.interpolate(place[None, None].float(), images.shape[2])[0].to(run.device) / 2
    rows = [pictures["as drawn"] * (1 - mark) + mark, *pictures.values()]
    board([images[:12] for images in rows], folder / "forget.png")
    report({title: {f"{name} as it was": (found == before[name][shows]).double().mean()
                    for name, found in read(images)[1].items()}
            for title, images in pictures.items()}, folder / "forget.txt")


def guided_gradient(D, x, feature):
    """Guided gradient (B, C, S, S) of the largest response of one map of D's last layer."""
    def guided(h):  # gradients pass where they and h are positive (Springenberg et al. 2015)
        out = F.relu(h) + (F.leaky_relu(h, 0.2) - F.relu(h)).detach()
        out.register_hook(lambda gradient: gradient.clamp(min=0))
        return out

    x = x.clone().requires_grad_()
    response = D.activations(x, activation=guided)[-1][:, feature].amax((1, 2))
    return torch.autograd.grad(response.sum(), x)[0]


def discriminators(run, images):
    """[untrained, trained] D in eval mode, batch norm with averages over 20 batches of images."""
    pair = [nets.get("D") or nets["critic"] for nets in (build(run.args), run.nets)]
    for D in pair:
        for norm in D.to(run.device).norms[1:]:
            norm.track_running_stats = True  # load_run turns it off
        batches = data.batches(images, min(run.args.batch_size, len(images)), run.device, 0)
        update_bn(islice(batches, 20), D)
        D.eval()
    return pair


def filters(run, folder, train, test):
    """Test images that excite 6 features of an untrained and the trained D; guided gradients."""
    images, halves = test[0][:2000].to(run.device) / 255, []
    for D in discriminators(run, train[0]):
        with torch.no_grad():
            responses = D.activations(images)[-1][:, :6].amax((2, 3))  # (n, 6)
        halves.append([])
        for feature, best in enumerate(responses.topk(min(6, len(images)), 0).indices.T):
            gradient = guided_gradient(D, images[best], feature)
            peak = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
            halves[-1] += [images[best], 0.5 + 0.5 * gradient / peak]
    board([torch.cat(pair) for pair in zip(*halves)], folder / "filters.png")


@torch.no_grad()
def pooled_features(D, images):
    """(n, d): all maps of D, max-pooled to 4x4, of images uint8 (n, C, S, S)."""
    parts = (D.activations(part.to(D.dense.weight.device) / 255) for part in images.split(500))
    return torch.cat([torch.cat([F.adaptive_max_pool2d(maps, 4).flatten(1) for maps in part], 1)
                      for part in parts])


def balanced(labels):
    """A random order of labels (N,) whose first n hold every class equally often, for any n."""
    order = torch.randperm(len(labels))
    order, counts = order[labels[order].argsort(stable=True)], labels.bincount()
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]  # in its class
    return order[(rank + torch.rand(len(labels))).argsort()]  # ties at random


def features(run, folder, train, test):
    """Accuracy of linear SVMs on pixels, maps of an untrained and of the trained D (section 5)."""
    order, faces = balanced(train[1])[:10_000], (run.args.on or run.args.dataset) == "faces"
    (images, labels), (tests, labels_test) = [(x[index], y[index].to(run.device)) for (x, y), index
                                              in ((train, order), (test, slice(10_000)))]
    kinds = {"pixels": [part.flatten(1).to(run.device) / 255 for part in (images, tests)]}
    for kind, D in zip(("untrained D", "trained D"), discriminators(run, images)):
        kinds[kind] = [pooled_features(D, part) for part in (images, tests)]
    known, asked = (data.face_attributes(y) if faces else {"class": y}
                    for y in (labels, labels_test))
    counts = sorted({min(n, len(images)) for n in (100, 1000, 10_000)})
    report({f"{n} labels, {what}": {
        kind: svm_accuracy(x[:n], known[what][:n], x_test, asked[what])
        for kind, (x, x_test) in kinds.items()}
        for n, what in product(counts, known)}, folder / "features.txt")


def nearest(run, folder, train, test):
    """Error of labels read off the nearest of n generated or real images (slides of a talk)."""
    (images, labels), (tests, labels_test) = train, (part[:10_000] for part in test)
    order, rows, pictures = torch.randperm(len(images))[:50_000], {}, {"test": tests[:10] / 255}
    own = torch.arange(len(order)) % run.args.classes
    sources = {"generated": (run.sample(len(order), own, run.args.seed).cpu(), own),
               "real": (images[order] / 255, labels[order])}
    for n, kind in product(sorted({min(n, len(order)) for n in (1000, 10_000, 50_000)}), sources):
        x, y = sources[kind]
        points = x[:n].flatten(1).to(run.device)
        parts = (part.flatten(1).to(run.device) / 255 for part in tests.split(500))
        found = torch.cat([torch.cdist(part, points).argmin(1).cpu() for part in parts])
        error = {f"error with {kind}": (y[found] != labels_test).double().mean()}
        rows[f"{n} images"], pictures[kind] = rows.get(f"{n} images", {}) | error, x[found[:10]]
    board([*pictures.values()], folder / "nearest.png")
    report(rows, folder / "nearest.txt")


def main(argv=None):
    with data.plain_errors("dcgan.py"):
        args = parse_args(argv)
        work = explore if args.explore else metrics.write_samples if args.sample else train
        work(args)


if __name__ == "__main__":
    main()
