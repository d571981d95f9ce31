"""Compare image generators: GAM battles, FID, MMD, kNN / Bayes, intrinsic dimension, rdd, accuracy.

    python metrics.py eval runs/gran5-mnist runs/vae-mnist samples.npz --dataset mnist
    python metrics.py gam runs/gran1-mnist runs/gran3-mnist runs/gran5-mnist
    python metrics.py dim --dataset mnist

Images are (n, C, H, W), uint8 or floats in [0, 1]. A measure is a plain function of tensors or
numpy arrays that works in float64 and can be copied out.
"""

import argparse
import atexit
import contextlib
import copy
import csv
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import re
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models import inception as tv
from torchvision.utils import save_image

import data
from data import InputError

# ---- Runs ----------------------------------------------------------------------------------------

NOT_FINITE = "a {} is not finite at update {}: try lower rates or --no-amp; {} keeps its checkpoint"
FREE = {"dataset", "data_dir", "device", "epochs", "iters", "batch_size", "lr", "lr_g", "lr_d",
        "lr_vae", "log_every", "sample_every", "compile", "amp", "graph"}  # --resume may change it
ONCE = ("out", "resume", "sample", "draw_classes", "explore", "on")  # flags of one call
LOCKS = {}  # folder: the open file whose lock keeps other processes out


@contextlib.contextmanager
def explained(text):
    """Whatever is raised inside becomes an InputError: the text, and the reason in brackets."""
    try:
        yield
    except Exception as error:  # a damaged file may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{text} ({reason})") from error


def save_run(folder, script, args, step, nets, optimisers, **extra):
    """Write folder/checkpoint.pt, all that sampling and resuming need, args.json and losses.png.

    nets, optimisers: dicts of objects with a state_dict; extra: further entries. A run killed at
    any moment keeps its last checkpoint. FloatingPointError for weights that are not finite.
    """
    folder = Path(folder)
    kept = {name: value for name, value in vars(args).items() if name not in ONCE}
    states = {name: net.state_dict() for name, net in nets.items()}
    check_finite(folder, step, states)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    checkpoint = {"script": script, "args": kept, "step": step, "nets": states,
                  "optimisers": {name: opt.state_dict() for name, opt in optimisers.items()},
                  "classes": kept.get("class_names"), "digest": kept.get("digest"),
                  "rng": {"cpu": torch.get_rng_state(), "cuda": cuda}}
    content = io.BytesIO()
    torch.save(checkpoint | extra, content)
    path = folder / "checkpoint.pt"
    with explained(f"{folder} keeps its last checkpoint"), data.whole_file(path) as file:
        file.write(content.getbuffer())
    if (folder / "log.csv").exists():
        (folder / "args.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        draw_losses(folder)


def check_finite(folder, step, states):
    """FloatingPointError if a weight of the state dicts {name: state} is not finite."""
    if not all(value.isfinite().all() for state in states.values() for value in state.values()):
        raise FloatingPointError(NOT_FINITE.format("weight", step, folder))


def draw_losses(folder):
    """losses.png: a line for each loss in log.csv, over the updates."""
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    names = [name for name in rows[0] if name.startswith(("loss", "bound"))]
    values = [float(row[name]) for row in rows for name in names if row[name]] or [0.0]
    low, last, picture = min(values), int(rows[-1]["step"]), Image.new("RGB", (640, 400), "white")
    height, pen = max(values) - low or 1, ImageDraw.Draw(picture)
    pen.line([(20, 40), (20, 360), (620, 360)], "gray")
    pen.text((20, 370), f"up: {low:.3g} to {max(values):.3g}; right: {last:,} updates", "black")
    for i, (name, colour) in enumerate(zip(names, ("navy", "firebrick", "green", "orange"))):
        pen.text((20 + 150 * i, 10), name, colour)
        line = [(int(row["step"]) / last, (float(row[name]) - low) / height)
                for row in rows if row[name]]
        pen.line([(20 + 600 * x, 360 - 320 * y) for x, y in line], colour, width=2)
    picture.save(folder / "losses.png")


def load_checkpoint(path, script=None):
    """The dict of `save_run`, on the CPU, of a run's folder or file. Runs no code in it.
    InputError if the file is missing, damaged, not ours, or of another script."""
    file = Path(path, "checkpoint.pt") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        why = "is not a run (no checkpoint.pt)" if Path(path).exists() else "does not exist"
        raise InputError(f"{path} {why}: give a training script's folder")
    with explained(f"{file} is damaged or not a checkpoint of ours: take a copy, or train again"):
        with zipfile.ZipFile(file) as archive:  # compares checksums, as torch.load does not
            if archive.testzip():
                raise ValueError("its checksum is wrong")
        found = torch.load(file, map_location="cpu", weights_only=True)
        for key, kind in (("script", str), ("args", dict), ("step", int), ("nets", dict)):
            if not isinstance(found[key], kind):
                raise TypeError(f"{key!r} is not a {kind.__name__}")
    if script not in (None, found["script"]):
        raise InputError(f"{path} is a run of {found['script']}.py: resume it with that script")
    return found


def build_nets(path, checkpoint):
    """-> the script's module, args, and nets with the checkpoint's weights; InputError if unfit."""
    script = checkpoint["script"]
    with explained(f"{path} does not fit {script}.py: use the version that wrote it"):
        file = Path(__file__).with_name(f"{script}.py")
        if not re.fullmatch("[a-z_]+", script) or not file.exists():
            raise ValueError("there is no such script next to metrics.py")
        module, args = importlib.import_module(script), argparse.Namespace(**checkpoint["args"])
        for name in ("batch_size", "size", "channels"):
            value = getattr(args, name)
            if type(value) is not int or not 0 < value <= 2**16:
                raise ValueError(f"{name} is {value!r}")
        with torch.device("meta"):  # takes no memory, whatever the sizes
            nets = module.build(args)
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name], assign=True)
    return module, args, nets


class Run:
    """A trained model as the measures see it: the run in a folder or checkpoint file.

    RUN@7, or steps=7: a recurrent model, drawn in 7 steps (GRAN, Table 4). conditional: by labels k
    of classes[k]. logits(x): D's (n,), positive is real; None where D is missing or wants labels.
    """

    def __init__(self, path, device="cpu", steps=None):
        run, _, number = str(path).rpartition("@")
        if number.isdecimal() and not Path(path).exists():
            path, steps = run, int(number)
        checkpoint, folder = load_checkpoint(path), Path(path).resolve()
        self.module, self.args, self.nets = build_nets(path, checkpoint)
        self.script, self.step = checkpoint["script"], checkpoint["step"]
        self.device, self.steps = torch.device(device), steps
        self.name = (folder if folder.is_dir() else folder.parent).name + f"@{steps}" * bool(steps)
        self.shape = (self.args.channels, self.args.size, self.args.size)
        self.conditional = bool(getattr(self.args, "conditional", False))
        self.classes = getattr(self.args, "class_names", None) or []
        self.snapshots = checkpoint.get("D_snapshots") or []
        self.logits = self._logits if "D" in self.nets and not self.conditional else None
        if steps is not None and not (hasattr(self.module, "canvases") and steps > 0):
            raise InputError(f"{path}@{steps}: {self.script}.py cannot draw in that many steps")
        if self.step <= (getattr(self.args, "vae_iters", None) or 0):
            raise InputError(f"{path} has only trained its VAE and has no generator yet: resume it")
        for net in self.nets.values():
            net.to(device, memory_format=torch.channels_last).eval()
        for layer in self.nets["D"].modules() if self.logits else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # D judges by batch statistics
                layer.train()
                layer.track_running_stats = False

    def sample(self, n, labels=None, seed=0):
        """(n, C, H, W) float32 in [0, 1], by labels int64 (n,); the same for the same seed."""
        more = {"steps": self.steps} if self.steps else {}
        return self.module.sample(self.nets, n, labels, torch.Generator().manual_seed(seed),
                                  self.args.batch_size, **more)

    def draw(self, n, seed, mix, classes):
        """n samples, by the labels in `mix` that it knows, and their labels, places in classes."""
        labels = relabel(mix, classes, self.classes) if self.conditional else mix[:0]
        labels = labels[(labels >= 0) & (labels < len(self.classes))]
        if not len(labels):
            return self.sample(n, seed=seed), None
        labels = labels[torch.arange(n) % len(labels)]
        return self.sample(n, labels, seed), relabel(labels, self.classes, classes)

    @torch.no_grad()
    def _logits(self, x):
        """In whole batches, real and generated apart, as D met them: its batch norm needs both."""
        size = self.args.batch_size
        index = torch.arange(math.ceil(len(x) / size) * size, device=x.device) % len(x)
        batches = (x[some].to(self.device) for some in index.split(size))
        return torch.cat([self.nets["D"](batch).float().cpu() for batch in batches])[: len(x)]

    def judge(self, x):
        """`logits` of D at each of the last updates that the run kept, and at its end, (k, n)."""
        D, found = self.nets["D"], []
        for state in [*self.snapshots, copy.deepcopy(D.state_dict())]:
            D.load_state_dict(state)
            found.append(self.logits(x))
        return torch.stack(found)


load_run = Run  # load_run(path, device="cpu", steps=None)


def restore_run(path, nets, optimisers, kept=None):
    """Set nets, optimisers (not their learning rates), random states and `kept`, a dict of extra
    entries, to the checkpoint's -> its update."""
    checkpoint = load_checkpoint(path)
    with explained(f"{path} does not fit {checkpoint['script']}.py: use the version that wrote it"):
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name])
        for name, optimiser in optimisers.items():
            saved = checkpoint["optimisers"][name]
            for group, own in zip(saved["param_groups"], optimiser.param_groups):
                group.update({key: own[key] for key in own.keys() & {"lr", "capturable", "fused"}})
            optimiser.load_state_dict(saved)
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"][: torch.cuda.device_count()])
    for name in kept or ():
        kept[name] = checkpoint.get(name, kept[name])
    return checkpoint["step"]


def resumed_args(parser, argv, script, free=()):
    """The args of the run that --resume names; what is typed wins, and each change is said.
    Only FREE and `free` may change: the others would make it another model."""
    argv = sys.argv[1:] if argv is None else list(argv)
    resume = parser.parse_args(argv).resume
    checkpoint = load_checkpoint(resume, script)
    build_nets(resume, checkpoint)  # fails early: args and weights must fit
    saved, typed = checkpoint["args"], []
    for action in parser._actions:  # saved values go through the parser, which checks them
        value = saved.get(action.dest)
        if value is not None and not (action.nargs == 0 and isinstance(value, bool)):
            typed.append(f"{action.option_strings[0]}={value}")
    parser.set_defaults(**saved)
    args = parser.parse_args(typed + argv)
    for name, old in saved.items():
        flag, new = f"--{name.replace('_', '-')}", getattr(args, name)
        if new != old and name not in FREE | set(free) and not (name == "seed" and args.sample):
            parser.error(f"{flag} is {old} in {resume} and cannot change")
        if new != old:
            data.say(f"{flag} {new} in place of {'the default' if old is None else old}")
    if args.out and not args.sample:
        parser.error("--out does not go with --resume: the run continues in its own folder")
    return args


def write_samples(args, steps=None):
    """--sample: write args.sample images of the run args.resume as PNG files into a new folder.
    A conditional run draws its classes, or args.draw_classes, equally often, a folder for each."""
    run = load_run(args.resume, data.open_device(args.device), steps)
    folder = Path(args.out or Path(args.resume, f"drawn-{steps}-steps" if steps else "drawn"))
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder with --out")
    classes = run.classes if run.conditional else [""]
    names = getattr(args, "draw_classes", None) or classes
    if not {*names} <= {*classes}:
        known = ", ".join(classes) or "no classes: it was trained without --conditional"
        raise InputError(f"--classes {' '.join(names)}: the run draws {known}")
    labels = torch.tensor([classes.index(name) for name in names])
    labels = labels[torch.arange(args.sample) % len(names)]
    for i, image in enumerate(run.sample(args.sample, labels, args.seed)):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        save_image(image, place / f"{i:06}.png")
    data.say(f"{args.sample} images are in {folder}")


def open_run(args, name):
    """-> the folder of a run to train (args.resume, args.out or runs/NAME-DATASET), locked until
    the process ends, and its device. InputError where the folder is taken."""
    device = data.open_device(args.device)
    dataset = Path(os.path.abspath(args.dataset)).name
    folder = Path(args.resume or args.out or f"runs/{name}-{dataset}")
    with explained(f"{folder} cannot be made: give another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    atexit.register(lambda: folder.exists() and not any(folder.iterdir()) and folder.rmdir())
    with contextlib.suppress(ImportError):  # Windows has no fcntl: no lock
        import fcntl
        if folder in LOCKS:  # a training that has ended in this process
            os.close(LOCKS.pop(folder))
        LOCKS[folder] = os.open(folder, os.O_RDONLY)
        with explained(f"another process trains in {folder}: give another --out"):
            fcntl.flock(LOCKS[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not args.resume and (folder / "checkpoint.pt").exists():
        raise InputError(f"{folder} holds a run: continue it with --resume {folder}, or give --out")
    for left in folder.glob("checkpoint.pt.*.part"):  # of a killed process
        left.unlink()
    return folder, device


def open_log(folder, args, nets, start, total, columns):
    """Print the run's first line and cut log.csv off after update `start`.

    -> log(step, sums, text, some=columns): prints text, formatted with the means of the losses
    since the last call, adds them to log.csv as the columns `some`, and sets sums (k,) to 0.
    FloatingPointError for a loss that is not finite; InputError if there is no update to make.
    """
    if start >= total:
        raise InputError(f"{folder} has its {start} updates: raise --iters or --epochs to continue")
    (folder / "samples").mkdir(exist_ok=True)
    file, names = folder / "log.csv", ["step", *columns, "images_per_s"]
    rows = file.read_text().splitlines()[1:] if start and file.exists() else []
    rows = [row for row in rows if (at := re.match(r"\d+(?=,)", row)) and int(at[0]) <= start]
    with data.whole_file(file) as whole:  # a kill leaves the old one
        whole.write("".join(f"{row}\n" for row in [",".join(names), *rows]).encode())
    sizes = [f"{k} {sum(p.numel() for p in net.parameters()):,}" for k, net in nets.items()]
    cuda = torch.device(args.device).type == "cuda"
    card = torch.cuda.get_device_name(args.device) if cuda else "CPU"
    precision = "bfloat16" if args.amp else "TF32" if cuda else "float32"
    data.say(f"parameters: {', '.join(sizes)} | {card}, {precision} | updates {start + 1:,} to "
             f"{total:,} | {folder}")
    since, clock = start, time.perf_counter()

    def log(step, sums, text, some=columns):
        nonlocal since, clock
        means = (sums / (step - since)).tolist()  # waits for the device
        sums.zero_()
        if not all(map(math.isfinite, means)):
            raise FloatingPointError(NOT_FINITE.format("loss", step, folder))
        rate = (step - since) / (time.perf_counter() - clock)
        left, speed = int((total - step) / rate), rate * args.batch_size
        wait = f"{left // 60}:{left % 60:02}" if left < 3600 else f"{left / 3600:.1f} hours"
        data.say(f"step {step:6}/{total} | {text.format(*means)} | {speed:.0f} img/s | {wait} left")
        row = {"step": str(step), "images_per_s": f"{speed:.0f}"}
        row |= {name: f"{mean:.4f}" for name, mean in zip(some, means)}
        with file.open("a") as opened:
            opened.write(",".join(row.get(name, "") for name in names) + "\n")
        since, clock = step, time.perf_counter()

    return log


# ---- GAM -----------------------------------------------------------------------------------------


def _ratio(a, b):
    return 1.0 if a == b else a / b if b else math.inf  # 0 / 0: neither does worse


def gam_from_errors(e1_test, e2_test, e1_fake, e2_fake, n=None, tolerance=0.3, e1_train=None,
                    e2_train=None):
    """GAM, eqs. 10 and 11 of Im et al. 2016 (arXiv:1602.05110), from error rates in [0, 1].

    e1_test, e1_train: shares of the test and training images that D1 calls generated; e1_fake: of
    G2's samples that D1 calls real; e2_*: D2's, on G1's samples. 0 / 0 is 1. winner: "M1" if
    r_sample < 1, "M2" if > 1, "tie" also where r_test is not within a factor of 1 + tolerance of 1
    (the paper's are 0.79 to 1.29); winner_overfit: by the ratio of test to training errors instead
    of r_test. n, samples of each: r_sample's 95 % interval for the choice of images (Katz).
    """
    rates = {"e1_test": e1_test, "e2_test": e2_test, "e1_fake": e1_fake, "e2_fake": e2_fake}
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: error rates are in [0, 1], not {value}")
    r_sample = _ratio(e1_fake, e2_fake)

    def verdict(fairness):
        fair = min(fairness, _ratio(1, fairness)) * (1 + tolerance) >= 1 - 1e-12
        return "tie" if not fair or r_sample == 1 else "M1" if r_sample < 1 else "M2"

    result = {"r_test": _ratio(e1_test, e2_test), "r_sample": r_sample}
    result["winner"] = verdict(result["r_test"])
    if n:
        one, two = max(e1_fake * n, 0.5), max(e2_fake * n, 0.5)
        factor = math.exp(1.959964 * math.sqrt(max(1 / one + 1 / two - 2 / n, 0)))
        result["r_sample_95"] = (one / two / factor if e1_fake else 0.0,
                                 one / two * factor if e2_fake else math.inf)
    if e1_train is not None:
        result["r_overfit"] = _ratio(_ratio(e1_test, e1_train), _ratio(e2_test, e2_train))
        result["winner_overfit"] = verdict(result["r_overfit"])
    return result


def error_rates(runs, test_images, n=10000, seed=0, train_images=None):
    """How each D does at logit 0, the mean over `run.judge` -> {test, train, fake, auc}: lists.

    test[i], train[i]: share of the images that D_i calls generated; fake[i][j]: share of G_j's
    samples that D_i calls real; auc[i]: chance that D_i ranks a test image above a sample of its
    own G. None without a D. At most n shuffled images. InputError where no battle is possible.
    """
    from scipy.stats import mannwhitneyu  # slow to import
    generator = torch.Generator().manual_seed(seed)
    if not any(run.logits for run in runs):
        raise InputError("none of the runs has a discriminator of images alone: no battle")

    def judge(images, name):  # -> logits (k, n) of each D
        images = _unit(check_array(images, name, images=True))
        if images.shape[1:] != test_images.shape[1:]:
            raise InputError(f"{name} is not of the test images' shape: {tuple(images.shape)}")
        chosen = images[torch.randperm(len(images), generator=generator)[:n]]
        return [run.logits and run.judge(chosen) for run in runs]

    def wrong(logits, real):
        return None if logits is None else ((logits > 0) != real).double().mean().item()

    def auc(real, fake):
        wins = mannwhitneyu(real.double(), fake.double(), axis=1).statistic
        return wins.mean() / real.shape[1] / fake.shape[1]

    test = judge(test_images, "test_images")
    train = [None] * len(runs) if train_images is None else judge(train_images, "train_images")
    fake = [judge(run.sample(n, seed=seed), run.name) for run in runs]
    return {"test": [wrong(x, True) for x in test], "train": [wrong(x, True) for x in train],
            "fake": [[wrong(x, False) for x in by_one] for by_one in zip(*fake)],
            "auc": [None if x is None else auc(x, fake[i][i]) for i, x in enumerate(test)]}


def gam(run_a, run_b, test_images, n=10000, seed=0, tolerance=0.3, train_images=None):
    """The battle of two runs: their `error_rates`, and `gam_from_errors` of them.
    If one has no discriminator: the other's error on its samples (GRAN, Table 3), no winner."""
    rates = error_rates([run_a, run_b], test_images, n, seed, train_images)
    return battle_of(rates, [0], [1], tolerance, n)


def battle_of(rates, first, second, tolerance, n=None):
    """`gam` of two groups of runs, given as places in `error_rates`: by their mean error rates."""
    def mean(values):
        return None if np.isnan(values).any() else values.mean().item()

    test, train, fake = (np.array(rates[key], float) for key in ("test", "train", "fake"))
    errors = {"e1_test": mean(test[first]), "e1_fake": mean(fake[first][:, second]),
              "e2_test": mean(test[second]), "e2_fake": mean(fake[second][:, first]),
              "e1_train": mean(train[first]), "e2_train": mean(train[second])}
    for one, other in (("e1_test", "e2_fake"), ("e2_test", "e1_fake")):
        if errors[one] is None:
            return errors | {"error": errors[other], "winner": None}
    return errors | gam_from_errors(**errors, tolerance=tolerance, n=n)


# ---- FID, MMD, rdd -------------------------------------------------------------------------------


def check_array(x, name, least=1, images=False):
    """x as a tensor without gradient: rows (n, d) of any finite numbers, or, if `images` or of more
    dimensions, images (n, C, H, W), C = 1 or 3, uint8 or floats in [0, 1]. ValueError with the fix.
    """
    def refuse(condition, text):
        if condition:
            raise ValueError(f"{name}: {text}")

    if isinstance(x, np.ndarray):  # of any byte order, with any strides, or read-only
        refuse(x.dtype.kind not in "fiubc" or x.dtype == np.longdouble,
               f"must hold numbers that torch knows, not {x.dtype}")
        x = np.require(x, x.dtype.newbyteorder("="), ["C", "W"])
    x = torch.as_tensor(x).detach()
    shape, is_float, is_byte = tuple(x.shape), x.is_floating_point(), x.dtype == torch.uint8
    refuse(x.is_complex(), "holds complex numbers: take their .real or .abs()")
    refuse(x.ndim < 2 or len(x) < least or not x[0].numel(),
           f"needs at least {least} image(s) or feature rows, not an array of shape {shape}")
    low, high = (v.item() for v in (x if is_float or is_byte else x.double()).aminmax())
    refuse(not math.isfinite(high - low), "holds NaN or infinite values: remove those rows")
    if x.ndim == 2 and not images:
        return x
    refuse((images or x.ndim == 4) and (x.ndim != 4 or shape[1] not in (1, 3)),
           f"images are (n, C, H, W), C = 1 or 3, not {shape}: for (n, H, W, C) permute (numpy: "
           "transpose) (0, 3, 1, 2)")
    fix = "make them floats" if high <= 1 else f"divide by {255 if high < 256 else 65535}"
    fix = "use (x + 1) / 2" if is_float and low < 0 and high < 1.1 else fix
    refuse(high == 1 if is_byte else not is_float or low < -1e-4 or high > 1 + 1e-4,
           f"images are uint8, 0 to 255, or floats in [0, 1]; these are {x.dtype}, {low:.3g} to "
           f"{high:.3g}: {fix}, or flatten(1) if they are feature rows")
    return x


def _pair(x, y, names=("x", "y"), least=1):
    """Both as rows; ValueError if their shapes differ, or if only one is uint8."""
    x, y = check_array(x, names[0], least), check_array(y, names[1], least)
    a, b = tuple(x.shape[1:]), tuple(y.shape[1:])
    if math.prod(a) != math.prod(b) or (a != b and len(a) == len(b)):
        raise ValueError(f"{names[1]}: has {b} numbers a row, but {names[0]} has {a}")
    if (x.dtype == torch.uint8) != (y.dtype == torch.uint8):
        raise ValueError(f"{names[1]}: is {y.dtype}, but {names[0]} {x.dtype}: divide bytes by 255")
    return x.flatten(1), y.flatten(1)


def _unit(images):
    return images / 255 if images.dtype == torch.uint8 else images.float()


def stats(x):
    """Mean (d,) and covariance (d, d), over n - 1, of the rows of x (n, ...), in float64."""
    rows = check_array(x, "x", least=2).flatten(1).double()
    centred = rows - rows.mean(0)  # large means cost no digits
    return rows.mean(0), centred.T @ centred / (len(rows) - 1)


def frechet_distance(mu1, cov1, mu2, cov2):
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), a squared distance (Heusel et al. 2017).

    Means (d,), covariances (d, d) -> float. With C = R R', tr (C1 C2)^(1/2) is the sum of the
    singular values of R1' R2. ValueError for shapes that do not fit and for NaN.
    """
    given = [torch.as_tensor(value).detach().double() for value in (mu1, cov1, mu2, cov2)]
    shapes, d, roots = [tuple(value.shape) for value in given], len(given[0]), []
    if shapes != [(d,), (d, d)] * 2 or not all(value.isfinite().all() for value in given):
        raise ValueError(f"mu1, cov1, mu2, cov2: finite (d,), (d, d), twice, not {shapes}")
    total = (given[0] - given[2]).square().sum()
    for cov in given[1::2]:
        values, axes = torch.linalg.eigh(cov)
        keep = values > torch.finfo(cov.dtype).eps * d * values[-1]  # less is rounding
        roots.append(axes[:, keep] * values[keep].sqrt())
        total += values[keep].sum()
    return max((total - 2 * torch.linalg.svdvals(roots[0].T @ roots[1]).sum()).item(), 0.0)


def fid(x, y):
    """`frechet_distance` of Gaussians fitted to rows x (n, ...) and y (m, ...); 0 for equal sets.
    The FID proper is on `features` of kind "inception". Biased by about c / n: compare equal n."""
    x, y = _pair(x, y, least=2)
    if len(x) + len(y) < x.shape[1]:  # the same distance, in the space that the rows span
        both = torch.cat([x, y]).double() - y.double().mean(0)
        x, y = (both @ torch.linalg.qr(both.T).Q).split([len(x), len(y)])
    return frechet_distance(*stats(x), *stats(y))


def spread(function, x, y, draws=5, **options):
    """Standard error of function(x, y): its deviation on random halves (near 0, up to doubled)."""
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        halves = [z[torch.randperm(len(z), generator=generator)[: len(z) // 2]] for z in (x, y)]
        values.append(function(*halves, **options))
    return np.std(values, ddof=1).item()


def median_distance(x, limit=2000):
    """Median distance of two rows among `limit` random rows of x (n, ...): MMD's bandwidth."""
    rows = check_array(x, "x", least=2).flatten(1)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit]
    distances = torch.pdist(rows[chosen].double())
    if distances.max() == 0:
        raise ValueError("x: all its rows are equal: give a bandwidth")
    return distances.quantile(0.5).item() or distances[distances > 0].quantile(0.5).item()


def mmd(x, y, kernel="rbf", bandwidth=None, unbiased=False):
    """Squared maximum mean discrepancy of rows x (n, ...), y (m, ...) (Gretton et al. 2012, eq. 5).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), with the pairs x = x' (biased, as in DRAW-GAN)
    or without (eq. 3). k: "rbf", exp(-|x - y|^2 / (2 bandwidth^2)), bandwidth by default
    median_distance(y), one for all models if y holds the real images; "polynomial", (x'y / d +
    1)^3: unbiased, on Inception features, the KID (Binkowski et al. 2018).
    """
    x, y = (z.double() for z in _pair(x, y, least=2 if unbiased else 1))
    if kernel not in ("rbf", "polynomial"):
        raise ValueError(f"kernel: rbf or polynomial, not {kernel!r}")
    if kernel == "rbf":
        sigma, centre = median_distance(y) if bandwidth is None else bandwidth, y.mean(0)
        if not 0 < sigma < math.inf:
            raise ValueError(f"bandwidth: must be above 0, not {bandwidth}")
        x, y = (x - centre) / sigma, (y - centre) / sigma  # moving both changes only the rounding

    def k(a, b):
        if kernel == "polynomial":
            return (a @ b.T / a.shape[1] + 1).pow_(3)
        return torch.cdist(a, b).square_().mul_(-0.5).exp_()

    def within(x):  # in tiles: no n x n matrix in memory
        tiles, total = x.split(1024), 0.0
        for i, a in enumerate(tiles):
            own = k(a, a)
            total += own.sum().item() - unbiased * own.trace().item()
            total += 2 * sum(k(a, b).sum().item() for b in tiles[i + 1 :])
        return total / len(x) / (len(x) - unbiased)

    between = sum(k(a, b).sum().item() for a in x.split(1024) for b in y.split(1024))
    return within(x) + within(y) - 2 * between / len(x) / len(y)


def rdd(x, ref, labels=None, ref_labels=None):
    """Relative diversity degree (DE-GAN, Definition 3): spread of images x over that of real `ref`.

    The spread is mean |x_i - mean|^2: the paper's sum would grow with n. -> {mean, per_class}: the
    {label: ratio} and their mean (Table VI), without labels the ratio of all images and {}. 1 is
    ideal, less is too uniform, more is noise; 0 / 0 is 1.
    """
    def ratio(x, ref):
        return _ratio(*(rows.double().var(0, correction=0).sum().item() for rows in (x, ref)))

    x, ref = _pair(x, ref, ("x", "ref"))
    if labels is None:
        return {"mean": ratio(x, ref), "per_class": {}}
    labels, ref_labels = (torch.as_tensor(some).to(x.device) for some in (labels, ref_labels))
    ratios = {}
    for label in ref_labels.unique().tolist():
        if not (labels == label).any():
            raise ValueError(f"labels: x has no image of label {label}")
        ratios[label] = ratio(x[labels == label], ref[ref_labels == label])
    return {"mean": sum(ratios.values()) / len(ratios), "per_class": ratios}


# ---- Neighbours ----------------------------------------------------------------------------------


def nearest(x, k, queries=None):
    """The k nearest rows of x (n, ...) for each query -> distances float64, indices int64 (m, k).

    Euclidean, ascending, equal ones by index; without queries, of each row of x among the others.
    Exact in float64: float32 products choose candidates where rounding hides no nearer row.
    """
    rows = check_array(x, "x").flatten(1)
    asked = rows if queries is None else _pair(x, queries, ("x", "queries"))[1]
    n, d, most = *rows.shape, len(rows) - (queries is None)
    if not 1 <= k <= most:
        raise ValueError(f"k: {k} neighbours asked for, but there are {most} rows to choose from")
    wanted, centre, found = min(k + 4, most), rows.double().mean(0), []
    dtype = torch.float32 if rows.device.type == "cpu" else torch.float64  # CUDA's may be TF32
    table = torch.cat([(part.double() - centre).to(dtype) for part in rows.split(4096)])
    half = torch.linalg.vector_norm(table, dim=1, dtype=torch.float64).square() / 2
    for part in torch.arange(len(asked), device=rows.device).split(max(1, 2**23 // n)):
        q = asked[part]
        centred = (q.double() - centre).to(dtype)
        scores = torch.addmm(half.to(dtype), centred, table.T, alpha=-1)  # |y|^2 / 2 - x'y
        if queries is None:
            scores[part - part[0], part] = math.inf
        value, index = scores.topk(wanted, largest=False)
        index, block = index.sort(1).values, max(1, 2**20 // (wanted * d))  # as the cache is
        exact = torch.cat([_distances(some[:, None], rows[near])[:, 0]
                           for some, near in zip(q.split(block), index.split(block))])
        exact, order = exact.sort(dim=1, stable=True)
        exact, index = exact[:, :k], index.gather(1, order)[:, :k]
        norm = centred.double().square().sum(1) / 2
        rounding = torch.finfo(dtype).eps * (d + 8) * (norm + half.max())  # of a score, at most
        sure = value[:, -1] + norm - rounding > exact[:, -1].square() / 2
        sure &= 1e-20 < half.max() < 1e30  # else float32 under- or overflows
        for some in (~sure).nonzero()[:, 0].split(64) if wanted < most else ():
            every = _distances(q[some], rows)
            if queries is None:
                every.scatter_(1, part[some, None], math.inf)
            every, order = every.sort(dim=1, stable=True)
            exact[some], index[some] = every[:, :k], order[:, :k]
        found.append((exact, index))
    return tuple(map(torch.cat, zip(*found)))


def _distances(a, b):  # by differences, in float64: exact for close rows too
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def knn_misclassification(real_train, fake_train, real_test, fake_test, k=5):
    """How often k nearest neighbours take real for generated and back (DRAW-GAN, section IV-B).

    -> {fnr: share of the real test rows called generated, fpr: of the generated called real, max:
    the paper's figure, balanced: the mean, min}. 0.5 is ideal, 0 fully separable; noise gets max 1.
    Neighbours at one distance share the votes left; an even vote is half a mistake. A test row with
    more copies in the other kind than in its own passes over one: in a folder against itself, an
    image's copy may be a training row, and never itself.
    """
    train, test, is_real, asked = _real_and_fake(real_train, fake_train, real_test, fake_test)
    if not 1 <= k <= len(train):
        raise ValueError(f"k: {k} neighbours asked for, but there are {len(train)} training rows")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(train.device)
    distances, index = nearest(train[order], min(2 * k + 2, len(train)), queries=test)
    real, copies = is_real[order][index], distances == 0
    others = copies & (real != asked[:, None])
    passed = others & (others.cumsum(1) == 1) & (2 * others.sum(1) > copies.sum(1))[:, None]
    distances, order = distances.masked_fill(passed, math.inf).sort(dim=1, stable=True)
    real, radius = real.gather(1, order), distances[:, k - 1 : k]
    inside, at = distances < radius, distances == radius
    share = (k - inside.sum(1)) / at.sum(1)
    votes = (inside & real).sum(1) + share * (at & real).sum(1)
    return _mistakes(votes - k / 2, asked)


def bayes_misclassification(real_train, fake_train, real_test, fake_test):
    """`knn_misclassification` by Gaussian naive Bayes. 1e-9 of the largest variance is added to
    each, as in scikit-learn: a column that is constant in one class outweighs all others."""
    train, test, is_real, asked = _real_and_fake(real_train, fake_train, real_test, fake_test)
    smoothing = 1e-9 * train.double().var(0, correction=0).max()
    if smoothing == 0:
        raise ValueError("real_train, fake_train: all rows are equal")
    scores = []
    for rows in (train[is_real].double(), train[~is_real].double()):
        deviation = (rows.var(0, correction=0) + smoothing).sqrt()
        normal = torch.distributions.Normal(rows.mean(0), deviation)
        parts = [normal.log_prob(part.double()).sum(1) for part in test.split(1024)]
        scores.append(math.log(len(rows)) + torch.cat(parts))
    return _mistakes(scores[0] - scores[1], asked)


def _real_and_fake(*parts):
    """-> training rows, test rows, and which of each are real."""
    names = ("real_train", "fake_train", "real_test", "fake_test")
    parts = [_pair(parts[0], part, (names[0], name))[1] for name, part in zip(names, parts)]
    is_real = [torch.arange(len(a) + len(b), device=a.device) < len(a)
               for a, b in (parts[:2], parts[2:])]
    return torch.cat(parts[:2]), torch.cat(parts[2:]), *is_real


def _mistakes(lead, is_real):
    """The shares; lead: above 0 where a row is called real, 0 where it is undecided."""
    called_real = (1 + lead.double().sign() * (lead.abs() > 1e-6)) / 2
    fnr, fpr = (1 - called_real[is_real]).mean().item(), called_real[~is_real].mean().item()
    return {"fnr": fnr, "fpr": fpr, "max": max(fnr, fpr), "balanced": (fnr + fpr) / 2,
            "min": min(fnr, fpr)}


def intrinsic_dimension(x, k=20, average="levina"):
    """Maximum-likelihood dimension of rows x (n, ...) (Levina, Bickel 2005; DE-GAN, eqs. 15-17).

    m_k(x_i) = 1 / mean_{j<k} log T_k / T_j (eq. 15), T_j the distance to the j-th neighbour; equal
    rows count once. average "levina": the mean of m_k (eq. 16), (k-1) / (k-2) too large; "mackay":
    1 / mean of 1 / m_k (MacKay, Ghahramani 2005). A list of k gives {k: dimension}: finite data
    have no limit for large k (eq. 17).
    """
    rows = check_array(x, "x", least=3).flatten(1).unique(dim=0)
    ks, curve = k if isinstance(k, (list, tuple)) else [k], {}
    if average not in ("levina", "mackay"):
        raise ValueError(f"average: levina or mackay, not {average!r}")
    if not ks or min(ks) < 2 or max(ks) >= len(rows):
        raise ValueError(f"k: must be from 2 to {len(rows) - 1}, the different rows less one: {k}")
    distances, _ = nearest(rows, max(ks))
    for one in ks:
        inverse = (distances[:, one - 1 : one] / distances[:, : one - 1]).log().mean(1)  # 1 / m_k
        if (inverse == 0).any():
            raise ValueError(f"k: a row has its {one} nearest neighbours at one distance: raise k")
        curve[one] = ((1 / inverse).mean() if average == "levina" else 1 / inverse.mean()).item()
    return curve if isinstance(k, (list, tuple)) else curve[k]


# ---- Classifier and Inception --------------------------------------------------------------------


class Classifier(nn.Module):
    """Reads a data set's classes: images (B, C, S, S) in [0, 1] -> logits (B, classes).

    features: its penultimate layer (B, 128); labels (classes,): in the order of the logits;
    test_error: the share of the test images that it misreads.
    """

    def __init__(self, channels, size, labels):
        super().__init__()
        self.register_buffer("labels", torch.as_tensor(labels))
        self.test_error, widths, strides = math.nan, [channels, 32], [1]
        while size > 8:
            size, strides = (size + 1) // 2, [*strides, 2, 1]
            widths += [min(2 * widths[-1], 128)] * 2
        layers, widths, strides = [], [*widths, 128], [*strides, 1]
        for k_in, k_out, stride in zip(widths, widths[1:], strides):
            layers += [nn.Conv2d(k_in, k_out, 3, stride, padding=1, bias=False),
                       nn.BatchNorm2d(k_out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.read = nn.Linear(128, len(labels))

    def forward(self, x):
        return self.read(self.features(x))


def train_classifier(images, labels, updates=None, seed=0, device="cpu"):
    """A `Classifier` of uint8 images (N, C, S, S) and int64 labels (N,), in evaluation mode.

    Nesterov SGD, one cycle of `updates` [8 epochs, at least 1,000], batches shifted by up to 2 of
    28 pixels. MNIST: below 0.5 % test error.
    """
    classes, targets = torch.as_tensor(labels).unique(return_inverse=True)
    images = check_array(images, "images", images=True)
    if images.dtype != torch.uint8:
        raise ValueError(f"images: must be uint8, not {images.dtype}: use (255 * x).round().byte()")
    size = images.shape[2]
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        net = Classifier(images.shape[1], size, classes)
    net.to(device, memory_format=torch.channels_last)
    batch_size = min(250, len(images), max(len(images) // 4, 32))
    total = updates or max(8 * (len(images) // batch_size), 1000)
    optimiser = torch.optim.SGD(net.parameters(), 0.2, 0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, data.has_bf16(device))
    generator, reach = torch.Generator().manual_seed(seed), round(size / 14)
    batches = data.batches(images, batch_size, device, seed, labels=targets)
    for step, (x, y) in zip(range(1, total + 1), batches):
        top, left = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
        x = F.pad(x, [reach] * 4)[:, :, top : top + size, left : left + size]
        with autocast:
            loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 1:
            print(f"a classifier is trained, once: update {step} of {total}", file=sys.stderr)
    return net.eval()


def classifier_of(dataset, data_dir="data", size=None, device="cpu"):
    """The `Classifier` of a data set's labelled images, trained once and kept in data_dir."""
    loaded = [data.load(dataset, data_dir, split, size=size) for split in ("train", "test")]
    (images, labels), test = ((x[y >= 0], y[y >= 0]) for x, y in loaded)
    if len(labels.unique()) < 2:
        raise InputError(f"{dataset} has fewer than two classes: use --features pixels")
    with torch.device("meta"):
        net = Classifier(images.shape[1], images.shape[2], labels.unique())
    some = images[:: max(len(images) // 1000, 1)].numpy().tobytes()
    state = hashlib.sha256(labels.numpy().tobytes() + some + repr(net).encode()).hexdigest()
    folder = Path(data_dir, f"classifier-{Path(dataset).name}-{images.shape[2]}-{state[:12]}")
    try:  # other images, labels or layers have another name
        saved = load_checkpoint(folder, "classifier")
        net.load_state_dict(saved["nets"]["net"], assign=True)
        net.test_error = float(saved["args"]["test_error"])
    except Exception:  # noqa: BLE001  none is there, or it is damaged
        net = train_classifier(images, labels, device=device)
        net.test_error = 1 - test_accuracy(net, *test) if len(test[1]) else math.nan
        args = argparse.Namespace(test_error=net.test_error)
        with contextlib.suppress(InputError):  # a read-only folder: trained again the next time
            save_run(folder, "classifier", args, 0, {"net": net}, {})
    return net.to(device, memory_format=torch.channels_last).eval()


def test_accuracy(classifier, images, labels):
    """Share of images (n, C, S, S) read as their labels (n,) (DE-GAN, Table V); -1: not counted."""
    rows = features(images, "classifier", classifier)
    return reading(classifier, rows, torch.as_tensor(labels)).get("accuracy", math.nan)


@torch.no_grad()
def reading(classifier, rows, labels=None):
    """How sure the classifier is by its features of images, and its accuracy for known labels."""
    sure, place = classifier.read(rows).double().softmax(1).max(1)
    means = {"mean_confidence": sure, "above_0.9": (sure > 0.9).double()}
    found = {name: values.mean().item() for name, values in means.items()}
    if labels is not None and (labels >= 0).any():
        right = classifier.labels[place].to(labels.device) == labels
        found["accuracy"] = right[labels >= 0].double().mean().item()
    return found


INCEPTION = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
             "pt_inception-2015-12-05-6726825d.pth")


def inception(device="cpu"):
    """The FID's network: images (B, 1 or 3, H, W) in [0, 1] -> features (B, 2048).

    Inception-v3 as in pytorch-fid: torchvision's, but average pools do not count the padding, and
    the last one is a max pool. Its weights of 2015-12-05 are downloaded once to torch hub's cache.
    """
    net = tv.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    with explained(f"put {INCEPTION} into {torch.hub.get_dir()}/checkpoints (pixels need none)"):
        net.load_state_dict(torch.hub.load_state_dict_from_url(  # checks the hash in the name
            INCEPTION, map_location="cpu", check_hash=True))

    def resize(net, inputs):
        return 2 * F.interpolate(inputs[0].expand(-1, 3, -1, -1), (299, 299), mode="bilinear") - 1

    def repool(block, inputs, out):  # the pooling branch is the block's last
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        pool = nn.MaxPool2d(3, 1, 1) if block is net.Mixed_7c else average
        own = block.branch_pool(pool(inputs[0]))
        return torch.cat([out[:, : -own.shape[1]], own], 1)

    net.register_forward_pre_hook(resize)
    for block in net.children():
        if hasattr(block, "branch_pool"):
            block.register_forward_hook(repool)
    net.fc = nn.Identity()
    return net.eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def features(images, kind, net=None):
    """Feature rows (n, d) float32 of images (n, C, H, W), uint8 or floats in [0, 1].

    kind: "pixels" (d = C H W, in [0, 1]); "classifier" (128; net is a `Classifier`); "inception"
    (2048; net is that of `inception`). On the net's device.
    """
    images, layer, size = check_array(images, "images", images=True), net, 50
    if kind == "pixels":
        return _unit(images).flatten(1)
    if kind == "classifier":
        layer, size = net.features, 250
    elif kind != "inception":
        raise ValueError(f"kind: pixels, classifier or inception, not {kind!r}")
    device = net.labels.device if kind == "classifier" else next(net.parameters()).device
    parts = (part.to(device, memory_format=torch.channels_last) for part in images.split(size))
    return torch.cat([layer(_unit(part)).float() for part in parts])


# ---- Command line --------------------------------------------------------------------------------


@dataclass
class Images:
    """Images (n, C, H, W) of a data set or of files; label k is classes[k], -1 is unknown."""

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: list

    shape = property(lambda self: tuple(self.images.shape[1:]))

    def draw(self, n, seed=0, mix=None, classes=()):
        """At most n shuffled images, float32 in [0, 1], and their labels as places in `classes`."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]
        return _unit(self.images[order]), relabel(self.labels[order], self.classes, classes)


def is_images(text):
    """Whether it names a .npy or .npz file or a folder of images, and not a run."""
    folder = Path(text).is_dir() and not Path(text, "checkpoint.pt").exists()
    return folder or text.endswith((".npy", ".npz"))


def read_arrays(path):
    """{name: array} of a .npy or .npz file."""
    with explained(f"{path} cannot be read as plain arrays"):
        found = np.load(path, allow_pickle=False)
        return {"images": found} if isinstance(found, np.ndarray) else dict(found)


def read_images(path, size=None, data_dir="data", split="all"):
    """The `Images` of a data set or a folder, at size x size, or of a .npy or .npz file.
    Arrays are (n, H, W), (n, C, H, W) or (n, H, W, C): in a .npz `images`, and `labels` if there
    are any, or ADM's arr_0 and arr_1. InputError for anything else."""
    name = Path(path).name
    if not Path(path).is_file():
        images, labels = found = data.load(path, data_dir, split, size)
        labels = labels if len(found.classes) > 1 else torch.full_like(labels, -1)
        return Images(name, images, labels, found.classes)
    arrays = read_arrays(path)
    labels = arrays.pop("labels", arrays.pop("arr_1", None))
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None:
        raise InputError(f"{path} holds {', '.join(arrays)}: name the array of images `images`")
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    images = check_array(images, str(path), images=True)
    labels = np.full(len(images), -1) if labels is None else labels
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise InputError(f"{path}: its labels are not a whole number for each image")
    return Images(name, images, torch.tensor(labels.astype("i8")), [])


def relabel(labels, names, wanted):
    """Labels k of class names[k] -> the place of that name in `wanted`, -1 where it is missing."""
    if not names or not wanted:
        return labels
    table = [wanted.index(name) if name in wanted else -1 for name in names]
    return torch.tensor([*table, -1])[labels]  # a label of -1 stays -1


def real_images(args, runs):
    """-> training and test `Images`. Data set, its folder and size: the flags', else the runs'."""
    for name in ("dataset", "data_dir", "size"):
        values = {getattr(run.args, name, None) for run in runs} or {None}
        if getattr(args, name) is None and len(values) > 1:
            raise InputError(f"the runs differ in --{name.replace('_', '-')}: give one of {values}")
        if getattr(args, name) is None:
            setattr(args, name, values.pop())
    if args.dataset is None:
        raise InputError("no run says which data set to compare with: name it with --dataset")
    args.data_dir = args.data_dir or "data"
    train, test = (read_images(args.dataset, args.size, args.data_dir, split)
                   for split in ("train", "test"))
    test.name = "other real images"
    if Path(args.dataset).is_file():  # which has none
        test.images = test.images[:0]
    return train, test


def print_table(columns, rows):
    """A table of dicts by {title: format of its cells}; a column without any value is left out."""
    def cell(text, row):
        try:
            return text.format(**row)
        except (KeyError, TypeError, ValueError):  # no such value, or None
            return "-"

    cells = [[title, *(cell(text, row) for row in rows)] for title, text in columns.items()]
    cells = [column for column in cells if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in cells]
    print()
    for first, *others in zip(*cells):
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip())


def measure(images, real, kind="pixels", net=None, labels=None, real_labels=None, bandwidth=None,
            real_features=None):
    """All measures of images (n, C, H, W) against real ones, both shuffled -> floats and dicts.

    FID on `features` of `kind` by `net`, others on pixels; *_spread: standard errors. rdd is per
    class where both sides have 20 images of a label. bandwidth is MMD's.
    """
    _pair(images, real, ("images", "real"), least=10)
    images, real = (_unit(check_array(x, "images", images=True)) for x in (images, real))
    images, half = images.to(real.device), min(len(images), len(real)) // 2
    own = features(images, kind, net)
    real_features = features(real, kind, net) if real_features is None else real_features
    parts = real[:half], images[:half], real[half : 2 * half], images[half : 2 * half]
    result = {"n": len(images), "knn": knn_misclassification(*parts),
              "bayes": bayes_misclassification(*parts), "rdd": rdd(images, real)}

    def add(name, function, x, y, **options):
        result[name] = function(x, y, **options)
        result[f"{name}_spread"] = spread(function, x, y, **options)

    add("fid", fid, own, real_features)
    add("mmd", mmd, images, real, bandwidth=bandwidth or median_distance(real))
    if kind == "inception":
        add("kid", mmd, own, real_features, kernel="polynomial", unbiased=True)
    if kind == "classifier":
        result |= reading(net, own, labels)
    if labels is not None and real_labels is not None:
        shared = [c for c in real_labels[real_labels >= 0].unique()
                  if min((labels == c).sum(), (real_labels == c).sum()) >= 20]
        a, b = (torch.isin(some, torch.tensor(shared)) for some in (labels, real_labels))
        if shared:
            result["rdd"] = rdd(images[a], real[b], labels[a], real_labels[b])
    return result


EVAL = {"": "{name}", "n": "{n}", "FID": "{fid:.4g}±{fid_spread:.2g}",
        "MMD": "{mmd:.2g}±{mmd_spread:.1g}", "KID": "{kid:.2g}±{kid_spread:.1g}",
        "kNN": "{knn[min]:.3f}", "Bayes": "{bayes[min]:.3f}", "conf.": "{mean_confidence:.1%}",
        "acc.": "{accuracy:.1%}", "rdd": "{rdd[mean]:.3f}"}
EVAL_NOTES = """
First row: what real images score; fewer images alone raise FID and MMD. FID, MMD, KID: lower is
better, ±: standard error. kNN, Bayes: share mistaken, 0.5 is best, 0 fully separable. conf.: how
sure the classifier is; acc.: read as the label drawn for. rdd: 1 is best."""
SMALL = 2000  # training images: a classifier of fewer knows them by heart


def eval_command(args):
    """FID, MMD, kNN, Bayes, accuracy and rdd of all sources in one table."""
    if args.dataset and Path(args.dataset).is_file():
        known = read_arrays(args.dataset)
        if {"mu", "sigma"} <= known.keys():
            return eval_statistics(args, known["mu"], known["sigma"])
    runs = {text: load_run(text, args.device) for text in args.source if not is_images(text)}
    train, test = real_images(args, runs.values())
    sources = [runs.get(text) or read_images(os.path.abspath(text), train.shape[-1])
               for text in args.source]
    names = [source.name for source in sources]
    for text, source in zip(args.source, sources):
        source.name = text if names.count(source.name) > 1 else source.name
        if isinstance(source, Images) and source.shape[0] < train.shape[0]:
            source.images = source.images.expand(-1, 3, -1, -1)  # grey against colour
        if source.shape != train.shape:
            raise InputError(f"{source.name} has images of {source.shape}, {args.dataset} of "
                             f"{train.shape}: give another --size or --dataset")
    n = min(args.n, *(len(s.images) for s in (train, *sources) if isinstance(s, Images)))
    if n < 20:
        raise InputError(f"{n} images are too few: 20 are needed of each side")
    labelled = len(train.labels[train.labels >= 0].unique()) > 1
    enough = labelled and len(test.images) and len(train.images) >= SMALL
    kind, net = args.features or ("classifier" if enough else "pixels"), None
    if kind == "classifier":
        net = classifier_of(args.dataset, args.data_dir, args.size, args.device)
    if kind == "inception":
        net = inception(args.device)
    real, mix = train.draw(n, args.seed)
    real, half = real.to(args.device), n // 2
    sigma, known = median_distance(real), features(real, kind, net)
    rows = []
    if len(test.images) >= half:
        sources = [test, *sources]
    else:
        found = measure(real[:half], real[half:], kind, net, mix[:half], mix[half:], sigma)
        rows.append({"name": "halves of the real"} | found)
    for source in sources:
        print(f"{source.name}: {n} images and their measures ...", file=sys.stderr)
        images, labels = source.draw(n, args.seed, mix, train.classes)
        found = measure(images, real, kind, net, labels, mix, sigma, known)
        rows.append({"name": source.name} | found)
    print(f"\n{args.dataset}, {train.shape[-1]} px: against {n} training images"
          f"{', as many as the smallest source has' * (n < args.n)}, seed {args.seed}\n"
          f"FID on {kind} ({known.shape[1]} numbers), others on pixels; sigma {sigma:.2f}")
    if kind == "classifier" and math.isfinite(net.test_error):
        print(f"the classifier misreads {net.test_error:.2%} of the labelled held-out images")
    print_table(EVAL, rows)
    print(EVAL_NOTES)
    return {"n": n, "features": kind, "bandwidth": sigma, "rows": rows}


def eval_statistics(args, mu, sigma):
    """FID against the mean and covariance of Inception features in a file, as pytorch-fid's."""
    net, rows = inception(args.device), []
    for text in args.source:
        if Path(text).is_dir() and is_images(text) and not args.size:
            raise InputError("a folder against a statistics file: give its images' --size")
        source = read_images(text, args.size) if is_images(text) else load_run(text, args.device)
        images, _ = source.draw(args.n, args.seed, torch.tensor([], dtype=torch.int64), [])
        found = frechet_distance(*stats(features(images, "inception", net).cpu()), mu, sigma)
        rows.append({"name": source.name, "n": len(images), "fid": found})
    print_table({"": "{name}", "n": "{n}", "FID": "{fid:.4g}"}, rows)
    print("Compare figures of one n, and of one way to resize: clean-fid's is not pytorch-fid's.")
    return {"features": "inception", "rows": rows}


JUDGES = {"error rate of D": "{name}", "training": "{train:.3f}", "test": "{test:.3f}",
          "ratio": "{ratio:.2f}", "AUC": "{auc:.3f}"}
GAM = {"battle": "{M1} vs. {M2}", "r_test": "{r_test:.3g}", "r_sample": "{r_sample:.3g}",
       "95 %": "{r_sample_95[0]:.3g} to {r_sample_95[1]:.3g}", "won": "{won[0]}:{won[1]}",
       "all pairs": "{r_sample_range[0]:.3g} to {r_sample_range[1]:.3g}",
       "eq. 11": "{winner:s}", "overfit": "{winner_overfit:s}", "error": "{error:.3f}"}
GAM_NOTES = """
AUC: how often D ranks a test image above a sample of its own G. r_sample below 1: M1, the first,
wins; above 1: M2. eq. 11: a tie unless r_test, the ratio of the test errors, is within a factor of
{:g} of 1; overfit: the same, with test over training errors. 95 %: for the choice of images, not
for another training. Groups: by mean errors; won, all pairs: wins by eq. 11 and r_sample of their
pairs. error: of the one D on samples of a run without a D."""


def gam_command(args):
    """The battles of every pair of runs; runs a-0 a-1 (or a-s0 a-s1) of one model are a group."""
    runs, groups = [load_run(text, args.device) for text in args.source], {}
    for i, text in enumerate(args.source):
        groups.setdefault(re.sub(r"([-_](s|seed)?)\d+/?$", r"\1*", text), []).append(i)
    if len(groups) == 1:
        groups = {i: [i] for i in range(len(runs))}
    if len(groups) == 1:
        raise InputError("a battle needs two runs")
    names = {key: Path(key).name if own[1:] else runs[own[0]].name for key, own in groups.items()}
    train, test = real_images(args, runs)
    print(f"{len(runs)} runs, {args.n} samples of each ...", file=sys.stderr)
    rates = error_rates(runs, test.images, args.n, args.seed, train.images)
    battles = []
    for a, b in itertools.combinations(groups, 2):
        pairs = [battle_of(rates, [i], [j], args.tolerance, args.n)
                 for i in groups[a] for j in groups[b]]
        found = pairs[0]
        if len(pairs) > 1:
            found = battle_of(rates, groups[a], groups[b], args.tolerance)
            ratios = [pair["r_sample"] for pair in pairs if pair["winner"]] or [None]
            won = [sum(pair["winner"] == m for pair in pairs) for m in ("M1", "M2")]
            found |= {"r_sample_range": (min(ratios), max(ratios)), "won": won}
        battles.append({"M1": names[a], "M2": names[b]} | found)
    judges = [{"name": run.name, "ratio": _ratio(rates["test"][i], rates["train"][i])}
              | {key: rates[key][i] for key in ("train", "test", "auc")}
              for i, run in enumerate(runs) if run.logits]
    tests = min(args.n, len(test.images))
    print(f"\n{args.dataset}: {args.n} samples of each, {tests} test images, seed {args.seed}")
    print_table(JUDGES, judges)
    print_table(GAM, battles)
    print(GAM_NOTES.format(1 + args.tolerance))
    return {"n": args.n, "tolerance": args.tolerance, "runs": [run.name for run in runs],
            "battles": battles, "error_rates": rates}


def dim_command(args):
    """The intrinsic dimension of a data set's training images over k."""
    train = read_images(args.dataset, args.size, args.data_dir or "data", "train")
    x, ks = train.draw(args.n, args.seed)[0].flatten(1).to(args.device), [10, 20, 50, 100]
    levina, mackay = (intrinsic_dimension(x, ks, name) for name in ("levina", "mackay"))
    rows = [{"k": k, "levina": levina[k], "mackay": mackay[k]} for k in ks]
    print(f"{args.dataset}: intrinsic dimension of {len(x)} training images, seed {args.seed}")
    print_table({"k": "{k}", "eq. 16": "{levina:.2f}", "inverse mean": "{mackay:.2f}"}, rows)
    print("There is no limit in k (eq. 17): say k and n with any figure.")
    return {"n": len(x), "dimension": rows}


def parse_args(argv=None):
    parser = argparse.ArgumentParser("metrics.py", allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for work in (eval_command, gam_command, dim_command):
        name, text = work.__name__.removesuffix("_command"), work.__doc__
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False,
                                      usage=argparse.SUPPRESS)
        command.set_defaults(work=work)
        add = command.add_argument
        if name != "dim":
            more = "folders of images, .npy, .npz" if name == "eval" else "a-0 a-1 are one group"
            add("source", nargs="+", type=data.path, help=f"runs (RUN@7: drawn in 7 steps); {more}")
        add("--dataset", type=data.path, default="digits" if name == "dim" else None,
            help="a name, folder, .npz of images or of Inception's mu, sigma [the runs', digits]")
        add("--data-dir", type=data.path, help="where data sets are kept [the runs', or data]")
        add("--size", type=int, help="side of the images [the runs', the data set's]")
        add("--n", type=int, default=10000, help="images, at most [10,000]")
        add("--seed", type=int, default=0, help="of samples and shuffling [%(default)s]")
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        add("--json", type=data.path, metavar="FILE", help="write all figures there too")
        if name == "eval":
            add("--features", choices=["classifier", "pixels", "inception"],
                help=f"of the FID [classifier; pixels without labels or below {SMALL:,} images]")
        if name == "gam":
            add("--tolerance", type=float, default=0.3, help="of r_test [%(default)s]")
    return parser.parse_args(argv)


def main(argv=None):
    with data.plain_errors("metrics.py"):
        args = parse_args(argv)
        if min(args.n, args.size or 1) < 1 or not 0 <= args.seed < 2**63:
            raise InputError("--n and --size must be 1 or more, --seed 0 or more")
        if args.json and not os.access(Path(args.json).absolute().parent, os.W_OK):  # fails early
            raise InputError(f"{args.json} cannot be written: name a file in a folder of yours")
        args.device = data.open_device(args.device)
        try:
            found = args.work(args)
        except ValueError as error:  # of a measure
            raise InputError(str(error)) from error
        if args.json:
            text = json.dumps({"dataset": args.dataset, "seed": args.seed} | found)
            plain = json.loads(text, parse_constant=lambda name: None)  # no Infinity
            Path(args.json).write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
