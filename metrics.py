"""Compare image generators: GAM battles, FID, MMD, kNN / Bayes, intrinsic dimension, rdd, accuracy.

    python metrics.py eval runs/gran5-mnist runs/vae-mnist samples.npz --dataset mnist
    python metrics.py gam runs/gran1-mnist runs/gran3-mnist runs/gran5-mnist
    python metrics.py dim --dataset mnist

Images are (n, C, H, W), uint8 or floats in [0, 1]. A measure is a plain function of tensors or
numpy arrays that works in float64 and can be copied out. The first section keeps a run's files.
"""

import argparse
import atexit
import contextlib
import csv
import hashlib
import importlib
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
import zipfile
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


def save_run(folder, script, args, step, nets, optimisers, **extra):
    """Write folder/checkpoint.pt, all that sampling and resuming need, and draw losses.png.

    args: Namespace or dict; nets, optimisers: dicts of objects with a state_dict; extra: further
    entries. A run killed at any moment keeps its last whole checkpoint. Raises OSError, and
    FloatingPointError for weights that are not finite.
    """
    folder, kept = Path(folder), json.loads(json.dumps(_kept(args), default=str))
    check_finite(folder, step, nets)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    checkpoint = {"script": script, "args": kept, "step": step, "classes": kept.get("class_names"),
                  "digest": kept.get("digest"), "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
                  "nets": {name: net.state_dict() for name, net in nets.items()},
                  "optimisers": {name: opt.state_dict() for name, opt in optimisers.items()}}
    try:
        with data.whole_file(folder / "checkpoint.pt") as file:
            torch.save(checkpoint | extra, file)
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise OSError(f"{folder} keeps its last checkpoint, a new one fails: {cause}") from error
    log = folder / "log.csv"
    rows = list(csv.DictReader(log.open(newline=""))) if log.exists() else []
    losses = [name for name in (rows or [{}])[0] if name.startswith(("loss", "bound", "vae"))]
    draw_curves({name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
                 for name in losses}, folder / "losses.png", "losses over the updates")


def _kept(args):
    args = args if isinstance(args, dict) else vars(args)
    return {name: value for name, value in args.items() if name not in ONCE}


def check_finite(folder, step, nets):
    """FloatingPointError if a weight of nets, a dict of modules, is not finite."""
    if not all(v.isfinite().all() for net in nets.values() for v in net.state_dict().values()):
        raise FloatingPointError(NOT_FINITE.format("weight", step, folder))


def load_checkpoint(path, script=None):
    """The dict of `save_run`, on the CPU; path: the run's folder or its file. Runs no code in it.

    InputError if the file is missing, damaged, not ours, or of another script.
    """
    path = Path(path).expanduser()
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        why = "is not a run (no checkpoint.pt)" if path.exists() else "does not exist"
        raise InputError(f"{path} {why}: give a training script's folder")
    open(file, "rb").close()  # a file without read permission is not a damaged one
    try:
        with zipfile.ZipFile(file) as archive:  # compares checksums, as torch.load does not
            if archive.testzip():
                raise ValueError("its checksum is wrong")
        found = torch.load(file, map_location="cpu", weights_only=True)
        for key, kind in (("script", str), ("args", dict), ("step", int), ("nets", dict)):
            if not isinstance(found[key], kind):
                raise TypeError(f"{key!r} is not a {kind.__name__}")
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{file} is damaged or not a checkpoint of ours ({_reason(error)}): "
                         "take a whole copy, or train again") from error
    if script not in (None, found["script"]):
        raise InputError(f"{path} is a run of {found['script']}.py: resume it with that script")
    return found


def _reason(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _fitting(path, script):
    """Whatever wrong values in a checkpoint raise becomes an InputError."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path} does not fit {script}.py ({_reason(error)}): use the version "
                         "that wrote it") from error


def build_nets(path, checkpoint):
    """-> the script's module, args, and nets with the checkpoint's weights; InputError if unfit."""
    script, args = checkpoint["script"], argparse.Namespace(**checkpoint["args"])
    known = re.fullmatch("[a-z][a-z0-9_]*", script) and script not in ("data", "metrics")
    if not known or not Path(__file__).with_name(f"{script}.py").is_file():
        raise InputError(f"{path} is a run of {script!r}, and no such script is next to metrics.py")
    module = importlib.import_module(script)
    with _fitting(path, script):
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
    """A trained model as the measures see it: the run in a folder or checkpoint file, on `device`.

    steps: draw a recurrent model in that many steps (GRAN, Table 4). InputError if it is no run.
    Attributes: nets, args, step, script, name; conditional: it draws by label; classes: label k is
    classes[k]; logits(x, labels=None): D's, (n,), positive is real; None without a discriminator.
    """

    def __init__(self, path, device="cpu", steps=None):
        checkpoint, folder = load_checkpoint(path), Path(path).expanduser().resolve()
        self.module, self.args, self.nets = build_nets(path, checkpoint)
        self.script, self.step, self.steps = checkpoint["script"], checkpoint["step"], steps
        self.name = (folder if folder.is_dir() else folder.parent).name + f"@{steps}" * bool(steps)
        self.device, self.conditional = device, bool(getattr(self.args, "conditional", False))
        self.classes = getattr(self.args, "class_names", None) or []
        self.snapshots = checkpoint.get("D_snapshots") or []
        self.logits = self._logits if "D" in self.nets else None
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
        labels = None if labels is None else labels.to(self.device)
        more = {"steps": self.steps} if self.steps else {}
        return self.module.sample(self.nets, n, labels, torch.Generator().manual_seed(seed),
                                  self.args.batch_size, **more)

    @torch.no_grad()
    def _logits(self, x, labels=None):
        """In whole batches of the training size; give real and generated images apart, as D met
        them: batch norm in D needs both."""
        if self.conditional and labels is None:
            raise ValueError(f"labels: the discriminator of {self.name} needs them")
        size, out = self.args.batch_size, []
        for start in range(0, len(x), size):
            index = torch.arange(start, start + size) % len(x)
            parts = [x, labels] if self.conditional else [x]
            parts = [part[index.to(part.device)].to(self.device) for part in parts]
            out.append(self.nets["D"](*parts).float().cpu())
        return torch.cat(out)[: len(x)]

    def judges(self):
        """`logits` of each snapshot of D's last updates that the run kept, or of D alone."""
        last = {name: value.clone() for name, value in self.nets["D"].state_dict().items()}
        for state in [*self.snapshots, last] if self.snapshots else [last]:
            self.nets["D"].load_state_dict(state)
            yield self._logits


def load_run(path, device="cpu", steps=None):
    """-> the `Run` in a folder or checkpoint file, ready to sample and judge."""
    return Run(path, torch.device(device), steps)


def restore_run(path, nets, optimisers, kept=None):
    """Set nets, optimisers and random states to the checkpoint's; -> its update.

    Learning rates stay those the optimisers were made with. kept: a dict of extra entries, set too.
    """
    checkpoint = load_checkpoint(path)
    with _fitting(path, checkpoint["script"]):
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name])
        for name, optimiser in optimisers.items():
            saved = checkpoint["optimisers"][name]
            rates = [group["lr"] for group in optimiser.param_groups]
            for group, own in zip(saved["param_groups"], optimiser.param_groups):
                group.update({key: own[key] for key in own.keys() & {"capturable", "fused"}})
            optimiser.load_state_dict(saved)
            for group, rate in zip(optimiser.param_groups, rates):
                group["lr"] = rate  # the tensor that the script lets fall
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"][: torch.cuda.device_count()])
    for name in kept or ():
        kept[name] = checkpoint.get(name, kept[name])
    return checkpoint["step"]


def resumed_args(parser, argv, script, free=()):
    """The args of the run that --resume names; what is typed wins, and each change is said.

    Only FREE and the names in `free` may change: the others would make it another model.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    resume = parser.parse_args(argv).resume
    checkpoint = load_checkpoint(resume, script)
    saved, typed = _kept(checkpoint["args"]), [f"--resume={resume}"]
    for action in parser._actions:  # saved values go through the parser, which checks them
        value, names = saved.get(action.dest), action.option_strings
        if isinstance(value, bool):  # --amp and --no-amp, or one flag alone
            typed += [names[not value]] if len(names) > 1 else names[: value == action.const]
        elif value is not None:
            typed.append(f"{names[0]}={value}")
    args = parser.parse_args(typed + argv)
    build_nets(resume, checkpoint)  # fails early: args and weights must fit
    for name, value in vars(args).items():
        if name in saved and value != saved[name]:
            flag = f"--{name.replace('_', '-')}"
            if name not in FREE | set(free) and not (name == "seed" and args.sample):
                parser.error(f"{flag} is {saved[name]} in {resume} and cannot change")
            old = "the default" if saved[name] is None else saved[name]
            data.say(f"{flag} {value} in place of {old}")
    if args.out and not args.sample:
        parser.error("--out does not go with --resume: the run continues in its own folder")
    return argparse.Namespace(**saved | vars(args))


def write_samples(args, steps=None):
    """--sample: write args.sample images of the run args.resume as PNG files into a new folder.

    A conditional run draws its classes, or args.draw_classes, equally often, a folder for each.
    """
    run = load_run(args.resume, data.open_device(args.device), steps)
    wanted = getattr(args, "draw_classes", None)
    default = Path(args.resume) / (f"drawn-{steps}-steps" if steps else "drawn")
    folder, names, labels = Path(args.out or default), [""], None
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder with --out")
    if wanted and not (run.conditional and {*wanted} <= {*run.classes}):
        classes = ", ".join(run.classes) if run.conditional else "none (no --conditional)"
        raise InputError(f"--classes {' '.join(wanted)}: the run's classes are {classes}")
    if run.conditional:
        names = wanted or run.classes
        labels = torch.tensor([run.classes.index(name) for name in names])
        labels = labels[torch.arange(args.sample) % len(names)]
    for i, image in enumerate(run.sample(args.sample, labels, args.seed)):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        save_image(image, place / f"{i:06}.png")
    data.say(f"{args.sample} images are in {folder}")


def open_run(args, name):
    """-> the folder of a run to train, locked until the process ends, and its device.

    The folder is args.resume, args.out or runs/NAME-DATASET; InputError where it is taken.
    """
    device = data.open_device(args.device)
    default = f"runs/{name}-{Path(os.path.abspath(args.dataset)).name}"
    folder = Path(args.resume or args.out or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: give another --out") from error
    atexit.register(lambda: folder.exists() and not any(folder.iterdir()) and folder.rmdir())
    with contextlib.suppress(ImportError):  # Windows has no fcntl: no lock
        import fcntl
        if folder in LOCKS:  # a training that has ended in this process
            os.close(LOCKS.pop(folder))
        LOCKS[folder] = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(LOCKS[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process trains in {folder}: give another --out") from error
    if not args.resume and (folder / "checkpoint.pt").exists():
        raise InputError(f"{folder} holds a run: continue it with --resume "
                         f"{shlex.quote(str(folder))}, or give --out")
    for left in folder.glob("checkpoint.pt.*.part"):  # of a killed process
        left.unlink()
    return folder, device


def open_log(folder, args, nets, start, total, columns):
    """Print the run's first line, write args.json, and cut log.csv off after update `start`.

    -> log(step, sums, text, some=columns): prints text, formatted with the means of the losses
    since the last call, and adds them to log.csv; some: their names. sums (k,) start again at 0.
    FloatingPointError for a loss that is not finite; InputError if there is no update to make.
    """
    if start >= total:
        raise InputError(f"{folder} has its {start} updates: raise --iters or --epochs to continue")
    (folder / "samples").mkdir(exist_ok=True)
    text = json.dumps(_kept(args), indent=1, sort_keys=True, default=str)
    (folder / "args.json").write_text(text + "\n")
    file, names = folder / "log.csv", ["step", *columns, "images_per_s"]
    rows = file.read_text().splitlines() if start and file.exists() else []
    rows = [row for row in rows if (at := re.match(r"\d+,", row)) and int(at[0][:-1]) <= start]
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
        if left > 4 * 3600 and since == start:
            data.say(f"note: {wait} are long: a smaller --size, fewer --iters or a GPU are faster")
        row = {"step": str(step), "images_per_s": f"{speed:.0f}"}
        row |= {name: f"{mean:.4f}" for name, mean in zip(some, means)}
        with file.open("a") as opened:
            opened.write(",".join(row.get(name, "") for name in names) + "\n")
        since, clock = step, time.perf_counter()

    return log


# ---- GAM -----------------------------------------------------------------------------------------


def _ratio(a, b):
    return 1.0 if a == b else a / b if b else math.inf  # 0 / 0: neither does worse


def _interval(a, b, n):
    """95 % interval of a / b, error rates over n images each (Katz; a count of 0 enters as 1/2)."""
    one, two = max(a * n, 0.5), max(b * n, 0.5)
    factor = math.exp(1.959964 * math.sqrt(max(1 / one + 1 / two - 2 / n, 0)))
    return (one / two / factor if a else 0.0), (one / two * factor if b else math.inf)


def gam_from_errors(e1_test, e2_test, e1_fake, e2_fake, n=None, tolerance=0.3, n_test=None,
                    e1_train=None, e2_train=None):
    """GAM, eqs. 10 and 11 of Im et al. 2016 (arXiv:1602.05110), from error rates in [0, 1].

    e1_test: share of the test images that D1 calls generated; e1_fake: share of G2's samples that
    D1 calls real; e2_*: D2's, on G1's samples. r_test = e1_test / e2_test, r_sample = e1_fake /
    e2_fake, 0 / 0 being 1. winner: "M1" if r_sample < 1, "M2" if > 1, else "tie"; "tie" also where
    r_test is not within a factor of 1 + tolerance of 1 (the paper's are 0.79 to 1.29).
    n (samples each), n_test (test images): 95 % intervals, for the choice of images, not for
    another training. e1_train, e2_train: errors on training images; winner_overfit then takes
    r_overfit = (e1_test / e1_train) / (e2_test / e2_train) for r_test: does one D overfit more?
    """
    rates = {"e1_test": e1_test, "e2_test": e2_test, "e1_fake": e1_fake, "e2_fake": e2_fake}
    for name, value in (rates | {"tolerance": min(tolerance, 1)}).items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: error rates are in [0, 1], a tolerance is not below 0")
    r_sample = _ratio(e1_fake, e2_fake)

    def verdict(fairness):
        fair = min(fairness, _ratio(1, fairness)) * (1 + tolerance) >= 1 - 1e-12
        return "tie" if not fair or r_sample == 1 else "M1" if r_sample < 1 else "M2"

    result = {"r_test": _ratio(e1_test, e2_test), "r_sample": r_sample,
              "r_test_95": n and _interval(e1_test, e2_test, n_test or n),
              "r_sample_95": n and _interval(e1_fake, e2_fake, n)}
    result["winner"] = verdict(result["r_test"])
    if e1_train is not None:
        result["r_overfit"] = _ratio(_ratio(e1_test, e1_train), _ratio(e2_test, e2_train))
        result["winner_overfit"] = verdict(result["r_overfit"])
    return result


def error_rates(runs, test_images, n=10000, test_labels=None, seed=0, train_images=None,
                train_labels=None):
    """How each D does at logit 0, the mean over `run.judges()` -> {test, train, fake, auc}.

    test[i], train[i]: share of the images that D_i calls generated. fake[i][j]: share of G_j's
    samples that D_i calls real. auc[i]: chance that D_i ranks a test image above a sample of its
    own G. None without a D. At most n shuffled images; conditional runs draw with the mix of
    test_labels, -1 being unknown. InputError where shapes or labels do not fit.
    """
    generator, labelled = torch.Generator().manual_seed(seed), [r for r in runs if r.conditional]
    free = [run.name for run in runs if not run.conditional]
    if labelled and (test_labels is None or free and any(run.logits for run in labelled)):
        raise InputError(f"{labelled[0].name} needs labels of the test images, and its D those of "
                         f"every sample: {', '.join(free) or 'the test images'} has none")

    def choose(images, labels, name):
        images = check_array(images, name, images=True)
        labels = torch.as_tensor(labels) if labelled else torch.zeros(len(images))
        known = (labels >= 0).nonzero()[:, 0]
        order = known[torch.randperm(len(known), generator=generator)[:n]]
        if not len(order):
            raise InputError(f"{name}: no image has a label that {labelled[0].name} knows")
        return _unit(images[order]), labels[order]

    def logits(images, labels):  # of each D: (snapshots, n), or None
        found = []
        for run in runs:
            judges = run.judges() if run.logits and hasattr(run, "judges") else [run.logits]
            own = labels if run.conditional else None
            found.append(run.logits and torch.stack([judge(images, own) for judge in judges]))
        return found

    def errors(logits, real):
        return [x if x is None else ((x > 0) != real).double().mean().item() for x in logits]

    real, labels = choose(test_images, test_labels, "test_images")
    drawn = labels[torch.randint(len(labels), (n,), generator=generator)]
    on_test, fake, auc = logits(real, labels), [], []
    for run, above in zip(runs, on_test):
        images = run.sample(n, labels=drawn if run.conditional else None, seed=seed)
        if images.shape[1:] != real.shape[1:]:
            raise InputError(f"{run.name} draws images of another shape than the test images: "
                             f"{tuple(images.shape[1:])}, not {tuple(real.shape[1:])}")
        on_fake = logits(images, drawn)
        fake.append(errors(on_fake, False))
        if run.logits:  # Mann and Whitney's statistic; a tie is half
            own = on_fake[len(auc)].sort().values
            above = torch.searchsorted(own, above) + torch.searchsorted(own, above, right=True)
        auc.append(run.logits and above.double().mean().item() / 2 / n)
    train = [None] * len(runs)
    if train_images is not None:
        train = errors(logits(*choose(train_images, train_labels, "train_images")), True)
    return {"test": errors(on_test, True), "train": train, "auc": auc,
            "fake": [list(row) for row in zip(*fake)]}


def gam(run_a, run_b, test_images, n=10000, test_labels=None, seed=0, tolerance=0.3,
        train_images=None, train_labels=None):
    """The battle of two runs: their `error_rates`, and `gam_from_errors` of them.

    If one has no discriminator: {error}, that of the other's D on its samples (GRAN, Table 3), and
    winner None. InputError if neither has one.
    """
    if run_a.logits is None and run_b.logits is None:
        raise InputError(f"neither {run_a.name} nor {run_b.name} has a discriminator: no battle")
    rates = error_rates([run_a, run_b], test_images, n, test_labels, seed, train_images,
                        train_labels)
    return _battle(rates, [0], [1], tolerance, n, min(n, len(test_images)))


def _battle(rates, first, second, tolerance, n=None, n_test=None):
    """gam_from_errors of two groups of runs, by the mean error rates over all pairs."""
    test, train, fake = (np.array(rates[key], float) for key in ("test", "train", "fake"))
    errors = {}
    for a, i, j in (("1", first, second), ("2", second, first)):
        means = {"test": test[i], "fake": fake[np.ix_(i, j)], "train": train[i]}
        means = {f"e{a}_{name}": value.mean().item() for name, value in means.items()}
        errors |= {name: None if math.isnan(mean) else mean for name, mean in means.items()}
    if None in (errors["e1_test"], errors["e2_test"]):
        judge = "2" if errors["e1_test"] is None else "1"
        return errors | {"error": errors[f"e{judge}_fake"], "winner": None}
    return errors | gam_from_errors(**errors, tolerance=tolerance, n=n, n_test=n_test)


# ---- FID, MMD, rdd -------------------------------------------------------------------------------


def check_array(x, name, least=1, images=False):
    """x as a tensor without gradient: feature rows (n, d), or images. ValueError names the fix.

    Rows hold any finite numbers. With more than two dimensions, or if `images`, x holds images:
    (n, C, H, W), C = 1 or 3, uint8 or floats in [0, 1].
    """
    def refuse(condition, text):
        if condition:
            raise ValueError(f"{name}: {text}")

    if isinstance(x, np.ndarray):  # of any byte order, with any strides, or read-only
        refuse(x.dtype.kind not in "fiubc", f"must hold numbers, not {x.dtype}")
        wide = x.dtype.kind == "f" and x.dtype.itemsize > 8
        x = np.require(x, np.float64 if wide else x.dtype.newbyteorder("="), ["C", "W"])
    x = torch.as_tensor(x).detach()
    shape, is_float, is_byte = tuple(x.shape), x.is_floating_point(), x.dtype == torch.uint8
    refuse(x.is_complex(), "holds complex numbers: take their .real or .abs()")
    refuse(x.ndim < 2 or len(x) < least or not x[0].numel(),
           f"needs at least {least} image(s) or feature rows, not an array of shape {shape}")
    low, high = (value.item() for value in x.aminmax()) if is_float or is_byte else (0, 0)
    refuse(not math.isfinite(high - low), "holds NaN or infinite values: remove those rows")
    if x.ndim == 2 and not images:
        return x
    refuse((images or x.ndim == 4) and (x.ndim != 4 or shape[1] not in (1, 3)),
           f"images are (n, C, H, W), C = 1 or 3, not {shape}: for (n, H, W, C) permute (numpy: "
           "transpose) (0, 3, 1, 2)")
    fix = ("multiply by 255" if is_byte else "use (x + 1) / 2" if low < 0 and high < 1.1
           else "divide by 255")
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


def _mean(rows):
    return sum(part.double().sum(0) for part in rows.split(4096)) / len(rows)


def stats(x):
    """Mean (d,) and covariance (d, d), over n - 1, of the rows of x (n, ...), in float64."""
    rows = check_array(x, "x", least=2).flatten(1)
    mu = _mean(rows)
    centred = (part.double() - mu for part in rows.split(4096))  # large means cost no digits
    return mu, sum(part.T @ part for part in centred) / (len(rows) - 1)


def frechet_distance(mu1, cov1, mu2, cov2):
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), a squared distance (Heusel et al. 2017).

    Means (d,), covariances (d, d) -> float. With C = R R', tr (C1 C2)^(1/2) is the sum of the
    singular values of R1' R2. ValueError for shapes that do not fit and for NaN.
    """
    given = {"mu1": mu1, "cov1": cov1, "mu2": mu2, "cov2": cov2}
    given = {name: torch.as_tensor(value).detach().double() for name, value in given.items()}
    d, roots = len(given["mu1"]), []
    for name, value in given.items():
        if value.shape != ((d,) if "mu" in name else (d, d)) or not value.isfinite().all():
            raise ValueError(f"{name}: means are (d,), covariances (d, d), all finite, d = {d}; "
                             f"this is of shape {tuple(value.shape)}")
    total = (given["mu1"] - given["mu2"]).square().sum()
    for cov in (given["cov1"], given["cov2"]):
        values, axes = torch.linalg.eigh(cov)
        keep = values > torch.finfo(cov.dtype).eps * d * values[-1]  # less is rounding
        roots.append(axes[:, keep] * values[keep].sqrt())
        total += values[keep].sum()
    return max((total - 2 * torch.linalg.svdvals(roots[0].T @ roots[1]).sum()).item(), 0.0)


def fid(x, y):
    """`frechet_distance` of Gaussians fitted to rows x (n, ...) and y (m, ...); 0 for equal sets.

    The FID proper is on `features` of kind "inception". Biased by about c / n: compare equal n.
    """
    x, y = _pair(x, y, least=2)
    if len(x) + len(y) < x.shape[1]:  # the same distance, in the space that the rows span
        both = torch.cat([x, y]).double() - _mean(y)
        x, y = (both @ torch.linalg.qr(both.T).Q).split([len(x), len(y)])
    return frechet_distance(*stats(x), *stats(y))


def spread(function, x, y, draws=5, **options):
    """Standard error of function(x, y): its deviation on random halves (near 0, up to doubled)."""
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        halves = (torch.randperm(len(z), generator=generator)[: len(z) // 2] for z in (x, y))
        values.append(function(*(z[h.to(z.device)] for z, h in zip((x, y), halves)), **options))
    return np.std(values, ddof=1).item()


def median_distance(x, limit=2000):
    """Median distance of two rows among `limit` random rows of x (n, ...): MMD's bandwidth."""
    rows = check_array(x, "x", least=2).flatten(1)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit]
    distances = torch.pdist(rows[chosen.to(rows.device)].double())
    if distances.max() == 0:
        raise ValueError("x: all its rows are equal: give a bandwidth")
    return distances.quantile(0.5).item() or distances[distances > 0].quantile(0.5).item()


def mmd(x, y, kernel="rbf", bandwidth=None, unbiased=False):
    """Squared maximum mean discrepancy of rows x (n, ...), y (m, ...) (Gretton et al. 2012, eq. 5).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), with the pairs x = x' (biased, DRAW-GAN's form)
    or without (unbiased: eq. 3, may be negative). Kernels, of rows of d numbers:
        rbf         exp(-|x - y|^2 / (2 bandwidth^2)), or its mean over a list of bandwidths
        polynomial  (x'y / d + 1)^3; unbiased, on Inception features: KID (Binkowski et al. 2018)
        linear      x'y: sees nothing but the means
    bandwidth: by default median_distance(y), the same for all models if y holds the real images.
    """
    x, y = _pair(x, y, least=2 if unbiased else 1)
    if kernel not in ("rbf", "polynomial", "linear"):
        raise ValueError(f"kernel: rbf, polynomial or linear, not {kernel!r}")
    if bandwidth is None:
        bandwidth = median_distance(y) if kernel == "rbf" else 1.0
    sigmas = bandwidth if isinstance(bandwidth, (list, tuple)) else [bandwidth]
    if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
        raise ValueError(f"bandwidth: must be above 0, not {bandwidth}")
    centre = 0 if kernel == "polynomial" else _mean(y)  # moves both: changes only the rounding
    x, y = x.double() - centre, y.double() - centre

    def k(a, b):
        if kernel != "rbf":
            return a @ b.T if kernel == "linear" else (a @ b.T / x.shape[1] + 1).pow_(3)
        half = torch.addmm(b.square().sum(1) / 2, a, b.T, beta=-1)
        half -= a.square().sum(1)[:, None] / 2  # -|a - b|^2 / 2
        return sum((half / sigma**2).exp_() for sigma in sigmas) / len(sigmas)

    def mean(x, y):
        total, same = 0.0, x is y
        for i, a in enumerate(x.split(1024)):  # in tiles: no n x n matrix in memory
            for j, b in enumerate(y.split(1024)):
                if not same or i <= j:
                    tile = k(a, b)
                    total += tile.sum().item() * (2 if same and i < j else 1)
                    total -= tile.trace().item() if same and i == j and unbiased else 0
        return total / len(x) / (len(y) - 1 if same and unbiased else len(y))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def rdd(x, ref, labels=None, ref_labels=None):
    """Relative diversity degree (DE-GAN, Definition 3): spread of images x over that of real `ref`.

    The spread is mean |x_i - mean|^2: the paper's sum would grow with n. -> {mean, per_class}: with
    labels (n,), ref_labels (m,) the {label: ratio} and their plain average (Table VI), without, the
    ratio of all images and {}. 1 is ideal, less is too uniform, more is noise; 0 / 0 is 1.
    """
    x, ref = _pair(x, ref, ("x", "ref"))
    if (labels is None) != (ref_labels is None):
        raise ValueError("labels, ref_labels: give both or neither")

    def ratio(x, ref, of=""):
        if not len(x):
            raise ValueError(f"x{of}: has no image")
        spreads = []
        for rows in (x, ref):
            mu = _mean(rows)
            total = sum((part.double() - mu).square().sum().item() for part in rows.split(4096))
            spreads.append(total / len(rows))
        if spreads[0] > spreads[1] == 0:
            raise ValueError(f"ref{of}: all images are equal: there is no spread to divide by")
        return _ratio(*spreads)

    if labels is None:
        return {"mean": ratio(x, ref), "per_class": {}}
    labels, ref_labels = (torch.as_tensor(some).to(x.device) for some in (labels, ref_labels))
    ratios = {label: ratio(x[labels == label], ref[ref_labels == label], f" of label {label}")
              for label in ref_labels.unique().tolist()}
    return {"mean": sum(ratios.values()) / len(ratios), "per_class": ratios}


# ---- Neighbours ----------------------------------------------------------------------------------


def nearest(x, k, queries=None):
    """The k nearest rows of x (n, ...) for each query -> distances float64, indices int64 (m, k).

    Euclidean, ascending, equal ones by index. Without queries: of each row of x, which leaves out
    itself, but not its duplicates. Candidates come from float32 products; their distances, and all
    where rounding might hide a nearer row, are exact in float64.
    """
    rows = check_array(x, "x").flatten(1)
    asked = rows if queries is None else _pair(x, queries, ("x", "queries"))[1]
    n, d, most = *rows.shape, len(rows) - (queries is None)
    if not 1 <= k <= most:
        raise ValueError(f"k: {k} neighbours asked for, but there are {most} rows to choose from")
    on_cpu, wanted, centre = rows.device.type == "cpu", min(k + 4, most), _mean(rows)
    dtype = torch.float32 if on_cpu else torch.float64  # CUDA's float32 products may be TF32
    table = torch.cat([(part.double() - centre).to(dtype) for part in rows.split(4096)])
    half = torch.linalg.vector_norm(table, dim=1, dtype=torch.float64).square() / 2
    distances = torch.empty(len(asked), k, dtype=torch.float64, device=rows.device)
    indices = torch.empty_like(distances, dtype=torch.int64)
    block = max(1, (2**20 if on_cpu else 2**26) // (wanted * d))  # queries in the cache at once
    for part in torch.arange(len(asked), device=rows.device).split(max(1, 2**23 // n)):
        centred = (asked[part].double() - centre).to(dtype)
        scores = torch.addmm(half.to(dtype), centred, table.T, alpha=-1)  # |y|^2 / 2 - x'y
        if queries is None:
            scores[part - part[0], part] = math.inf
        value, index = scores.topk(wanted, largest=False)
        index, exact = index.sort(1).values, torch.empty_like(value, dtype=torch.float64)
        for q, near, out in zip(asked[part].split(block), index.split(block), exact.split(block)):
            out[:, None] = _distances(q[:, None], rows[near])
        exact, order = exact.sort(dim=1, stable=True)
        distances[part], indices[part] = exact[:, :k], index.gather(1, order)[:, :k]
        norm = centred.double().square().sum(1) / 2
        rounding = torch.finfo(dtype).eps * (d + 8) * (norm + half.max())  # of a score, at most
        sure = value[:, -1] + norm - rounding > exact[:, k - 1].square() / 2
        sure &= 1e-20 < half.max() < 1e30  # else float32 under- or overflows
        for some in part[~sure].split(64) if wanted < most else ():
            every = _distances(asked[some], rows)
            if queries is None:
                every.scatter_(1, some[:, None], math.inf)
            every, order = every.sort(dim=1, stable=True)
            distances[some], indices[some] = every[:, :k], order[:, :k]
    return distances, indices


def _distances(a, b):  # by differences, in float64: exact for close rows too
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def knn_misclassification(real_train, fake_train, real_test, fake_test, k=5):
    """How often k nearest neighbours take real for generated and back (DRAW-GAN, section IV-B).

    They are found in the training rows, as many real as generated, for each test row. -> {fnr:
    share of the real called generated, fpr: of the generated called real, max: the paper's figure,
    balanced: the mean, min}. 0.5 is ideal, 0 fully separable; max is no quality (noise gets 1).
    Neighbours at one distance share the votes left; an even vote is half a mistake. A test row with
    more exact copies in the other kind than in its own passes over one of them: of a folder against
    itself, each image may have its copy in the training rows, and never itself.
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
    """`knn_misclassification` by Gaussian naive Bayes: independent columns, a Gaussian per class.

    1e-9 of the largest variance is added to each, as in scikit-learn: columns that are constant in
    one class, like a digit's border, then outweigh all others.
    """
    train, test, is_real, asked = _real_and_fake(real_train, fake_train, real_test, fake_test)
    smoothing = 1e-9 * train.double().var(0, correction=0).max()
    if smoothing == 0:
        raise ValueError("real_train, fake_train: all rows are equal")
    scores = []
    for rows in (train[is_real].double(), train[~is_real].double()):
        mean, var = rows.mean(0), rows.var(0, correction=0) + smoothing
        parts = [((part.double() - mean).square() / var).sum(1) for part in test.split(1024)]
        scores.append(math.log(len(rows)) - var.log().sum() / 2 - torch.cat(parts) / 2)
    return _mistakes(scores[0] - scores[1], asked)


def _real_and_fake(*parts):
    """-> training rows, test rows, and which of each are real."""
    names = ("real_train", "fake_train", "real_test", "fake_test")
    parts = [_pair(parts[0], part, ("real_train", name))[1] for name, part in zip(names, parts)]
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

    With T_j the distance of x_i to its j-th neighbour, m_k(x_i) = (mean_{j<k} log T_k / T_j)^-1
    (eq. 15). average "levina": the mean of m_k (eq. 16), (k-1) / (k-2) too large; "mackay": one
    over the mean of 1 / m_k (MacKay, Ghahramani 2005). A list of k gives {k: dimension}: in finite
    data there is no limit for large k (eq. 17). Duplicates of a row are passed over.
    """
    rows, ks = check_array(x, "x", least=3).flatten(1), k if isinstance(k, (list, tuple)) else [k]
    most, curve = max(ks, default=0), {}
    if average not in ("levina", "mackay"):
        raise ValueError(f"average: levina or mackay, not {average!r}")
    if min(ks, default=0) < 2 or most >= len(rows):
        raise ValueError(f"k: must be from 2 to {len(rows) - 1}, the rows of x less one, not {k}")
    distances, _ = nearest(rows, most)
    for some in (distances[:, 0] == 0).nonzero()[:, 0].split(64):  # have duplicates
        every = _distances(rows[some], rows)
        distances[some] = every.masked_fill(every == 0, math.inf).sort(1).values[:, :most]
    if distances.isinf().any():
        raise ValueError(f"x: has rows with fewer than {most} neighbours (k), duplicates left out")
    for k_ in ks:
        inverse = (distances[:, k_ - 1 : k_] / distances[:, : k_ - 1]).log().mean(1)  # 1 / m_k
        if (inverse == 0).any():
            raise ValueError(f"k: a row has its {k_} nearest neighbours at one distance: raise k")
        curve[k_] = ((1 / inverse).mean() if average == "levina" else 1 / inverse.mean()).item()
    return curve if isinstance(k, (list, tuple)) else curve[k]


# ---- Classifier and Inception --------------------------------------------------------------------


class Classifier(nn.Module):
    """Reads a data set's classes: images (B, C, S, S) in [0, 1] -> logits (B, classes).

    features: its penultimate layer (B, 128). labels (classes,): the labels in the order of the
    logits. test_error: the share of the test images that it misreads.
    """

    def __init__(self, channels, size, labels):
        super().__init__()
        self.register_buffer("labels", torch.as_tensor(labels))
        self.test_error, kernels = math.nan, [(channels, 32, 1)]
        while size > 8:
            width, size = kernels[-1][1], (size + 1) // 2
            kernels += [(width, min(2 * width, 128), 2), (min(2 * width, 128),) * 2 + (1,)]
        layers = []
        for k_in, k_out, stride in [*kernels, (kernels[-1][1], 128, 1)]:
            layers += [nn.Conv2d(k_in, k_out, 3, stride, padding=1, bias=False),
                       nn.BatchNorm2d(k_out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.read = nn.Linear(128, len(labels))

    def forward(self, x):
        return self.read(self.features(x))


def train_classifier(images, labels, epochs=8, least=1000, batch_size=250, lr=0.2, seed=0,
                     device="cpu", name="classifier"):
    """A `Classifier` of uint8 images (N, C, S, S) and int64 labels (N,), in evaluation mode.

    Nesterov SGD, one cycle of `epochs` or at least `least` updates, batches shifted by up to 2 of
    28 pixels. MNIST: below 0.5 % test error. ValueError for fewer than two classes.
    """
    classes, targets = torch.as_tensor(labels).unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels: at least two classes are needed, not {len(classes)}")
    images = check_array(images, "images", images=True)
    if images.dtype != torch.uint8:
        raise ValueError(f"images: must be uint8, not {images.dtype}: use (255 * x).round().byte()")
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        net = Classifier(images.shape[1], images.shape[2], classes)
    net.to(device, memory_format=torch.channels_last)
    batch_size = min(batch_size, len(images), max(len(images) // 4, 32))
    size = images.shape[2]
    total = max(epochs * (len(images) // batch_size), least)
    optimiser = torch.optim.SGD(net.parameters(), lr, 0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total)
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
            progress(f"{name} is trained, once: update {step} of {total}")
    return net.eval()


def classifier_of(dataset, data_dir="data", size=None, device="cpu"):
    """The `Classifier` of a data set, with its test_error: trained once, kept in data_dir.

    Images without a label (-1) are left out. InputError if there are no two classes.
    """
    loaded = [data.load(dataset, data_dir, split, size=size) for split in ("train", "test")]
    (images, labels), test = [(x[y >= 0], y[y >= 0]) for x, y in loaded]
    if len(labels.unique()) < 2:
        raise InputError(f"{dataset} has fewer than two classes to tell apart: use --features "
                         "pixels, without --accuracy")
    with torch.device("meta"):
        net = Classifier(images.shape[1], images.shape[2], labels.unique())
    some = images[:: max(len(images) // 1000, 1)].numpy().tobytes()
    state = hashlib.sha256(labels.numpy().tobytes() + some + repr(net).encode()).hexdigest()
    folder = Path(data_dir, f"classifier-{Path(dataset).name}-{images.shape[2]}-{state[:12]}")
    try:  # other images, labels or layers have another name
        saved = load_checkpoint(folder, "classifier")
        net.load_state_dict(saved["nets"]["net"], assign=True)
        net.test_error = float(saved["args"]["test_error"])
    except (InputError, RuntimeError, LookupError, TypeError, ValueError):  # none, or damaged
        net = train_classifier(images, labels, device=device, name=f"classifier of {dataset}")
        net.test_error = 1 - test_accuracy(net, *test) if len(test[0]) else math.nan
        with contextlib.suppress(OSError):  # a read-only folder: trained again the next time
            save_run(folder, "classifier", {"test_error": net.test_error}, 0, {"net": net}, {})
    return net.to(device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def _in_batches(function, images, device, batch_size=250):
    """function(float batch in [0, 1]) of all images (n, C, H, W), as one tensor on `device`."""
    parts = check_array(images, "images", images=True).split(batch_size)
    parts = (_unit(part.to(device, memory_format=torch.channels_last)) for part in parts)
    return torch.cat([function(part).float() for part in parts])


def test_accuracy(classifier, images, labels):
    """Share of images (n, C, S, S) that are read as their labels (n,) (DE-GAN, Table V).

    Images without a label (-1) do not count; nan where none has one.
    """
    labels = torch.as_tensor(labels)
    if len(labels) != len(images):
        raise ValueError(f"labels: {len(labels)} for {len(images)} images")
    logits = _in_batches(classifier, images, classifier.labels.device)
    return _reading(classifier, logits, labels).get("accuracy", math.nan)


def _reading(classifier, logits, labels):
    """How sure the classifier is, which is no accuracy; for labels that are not -1, that too."""
    sure, place = logits.double().softmax(1).max(1)
    high = (sure > 0.9).double().mean().item()
    found = {"mean_confidence": sure.mean().item(), "above_0.9": high}
    if labels is None or not (labels >= 0).any():
        return found
    labels = labels.to(logits.device)
    right = (classifier.labels[place] == labels).double()
    each = {c: right[labels == c].mean().item() for c in labels.unique().tolist() if c >= 0}
    return found | {"accuracy": right[labels >= 0].mean().item(), "accuracy_per_class": each}


INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"


class Inception(nn.Module):
    """The FID's network: images (B, 1 or 3, H, W) in [0, 1] -> features (B, 2048).

    Inception-v3 with the weights of 2015-12-05 as in pytorch-fid: torchvision's, but average pools
    do not count the padding, and the last one is a max pool.
    """

    def __init__(self):
        super().__init__()
        self.net = tv.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        for name, block in self.net.named_children():
            if hasattr(block, "branch_pool"):
                pool = nn.MaxPool2d(3, stride=1, padding=1) if name == "Mixed_7c" else average
                block.register_forward_hook(self.repool(pool))

    @staticmethod
    def repool(pool):
        def hook(block, inputs, out):  # the pooling branch is the block's last
            own = block.branch_pool(pool(inputs[0]))
            return torch.cat([out[:, : -own.shape[1]], own], 1)

        return hook

    def forward(self, x):
        x = F.interpolate(x.expand(-1, 3, -1, -1), (299, 299), mode="bilinear", align_corners=False)
        return self.net(2 * x - 1)


def inception(weights=None, device="cpu"):
    """The `Inception` network; weights from a file, or torch hub's cache, or downloaded to it."""
    module, file = Inception(), weights or Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE)
    try:
        if weights:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:  # a download's hash is compared with that in the name
            state = torch.hub.load_state_dict_from_url(
                INCEPTION_URL + INCEPTION_FILE, map_location="cpu", check_hash=True)
        module.net.load_state_dict(state)
    except Exception as error:  # no network, no such file, or damaged in any way
        raise InputError(f"no Inception weights in {file} ({_reason(error)}): put {INCEPTION_URL}"
                         f"{INCEPTION_FILE} there, or give --inception-weights FILE") from error
    module.net.fc = nn.Identity()
    return module.eval().to(device, memory_format=torch.channels_last)


def features(images, kind, net=None):
    """Feature rows (n, d) float32 of images (n, C, H, W), uint8 or floats in [0, 1].

    kind: "pixels" (d = C H W, in [0, 1]); "classifier" (128; net is a `Classifier`); "inception"
    (2048; net is an `Inception`). On the net's device.
    """
    if kind == "pixels":
        return _unit(check_array(images, "images", images=True)).flatten(1)
    if kind == "classifier":
        return _in_batches(net.features, images, net.labels.device)
    if kind == "inception":
        return _in_batches(net, images, next(net.parameters()).device, batch_size=50)
    raise ValueError(f"kind: pixels, classifier or inception, not {kind!r}")


# ---- Command line --------------------------------------------------------------------------------


class Images:
    """Images from files, in the place of a run; label k is classes[k], and -1 is unknown."""

    conditional, logits, args = False, None, None

    def __init__(self, name, images, labels=None, classes=None):
        self.name, self.images, self.classes = name, images, classes
        known = labels is not None and (classes is None or len(classes) > 1)
        self.labels = labels if known else torch.full((len(images),), -1)

    def order(self, n, seed=0):
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]

    def sample(self, n, labels=None, seed=0):
        """At most n (n, C, H, W), shuffled, float32 in [0, 1]."""
        return _unit(self.images[self.order(n, seed)])


def read_arrays(path):
    """{name: array} of a .npy or .npz file."""
    try:
        found = np.load(path, allow_pickle=False)
        return {"images": found} if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path} cannot be read as plain arrays: {_reason(error)}") from error


def read_images(path, size=None):
    """The `Images` of a folder, or of a .npy or .npz file: uint8, or floats in [0, 1].

    A folder is read at size x size. Arrays are (n, H, W), (n, C, H, W) or (n, H, W, C): in a .npz
    `images`, ADM's arr_0, or the only one; with `labels` or arr_1 if there are any. InputError for
    anything else.
    """
    path = Path(path)
    if path.is_dir():
        found = data.load(str(path.resolve()), split="all", size=size)
        return Images(path.resolve().name, *found, found.classes)
    arrays = read_arrays(path)
    labels = arrays.pop("labels", arrays.pop("arr_1", None))
    key = next((key for key in ("images", "arr_0", *arrays) if key in arrays), None)
    if key is None or key not in ("images", "arr_0") and len(arrays) > 1:
        raise InputError(f"{path} holds {', '.join(arrays)}: name the array of images `images`")
    images = arrays[key][:, None] if arrays[key].ndim == 3 else arrays[key]
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    images = check_array(images, str(path), images=True)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise InputError(f"{path}: its labels are not a whole number for each image")
    return Images(path.name, images, None if labels is None else torch.tensor(labels.astype("i8")))


def relabel(labels, names, wanted):
    """Labels k of class names[k] -> the place of that name in `wanted`, -1 where it is missing."""
    if not names or not wanted:
        return labels
    table = [wanted.index(name) if name in wanted else -1 for name in names]
    return torch.tensor([*table, -1])[labels]  # a label of -1 stays -1


def _is_folder(text):
    return Path(text).is_dir() and not Path(text, "checkpoint.pt").exists()


def open_source(text, device, size=None):
    """A run, RUN@STEPS (drawn in so many steps), a folder of images (at `size`), .npy or .npz."""
    run, _, steps = text.rpartition("@")
    if run and steps.isdecimal() and not Path(text).exists():
        return load_run(run, device, int(steps))
    is_images = text.endswith((".npy", ".npz")) or _is_folder(text)
    return read_images(text, size) if is_images else load_run(text, device)


def open_sources(args):
    """-> the sources, and the real images, training and test; both None for a statistics file.

    The runs say which data set, folder and size, unless flags do.
    """
    texts = [data.path(text) for text in args.source]
    sources = [None if _is_folder(text) else open_source(text, args.device) for text in texts]
    for name in ("dataset", "size"):
        values = {getattr(run.args, name, None) for run in sources if run and run.args}
        if getattr(args, name) is None and len(values) > 1:
            raise InputError(f"the runs differ in {name}: {', '.join(map(str, values))}")
        if getattr(args, name) is None:
            setattr(args, name, next(iter(values), None))
    own = [getattr(run.args, "data_dir", "data") for run in sources if run and run.args]
    args.data_dir = args.data_dir or [*own, "data"][0]
    if args.dataset is None:
        raise InputError("no run says which data set to compare with: name it with --dataset")
    train = test = shape = None
    if not Path(args.dataset).is_file():
        train, test = (data.load(args.dataset, args.data_dir, split, args.size)
                       for split in ("train", "test"))
        train, test = (Images(args.dataset, *x, getattr(x, "classes", None)) for x in (train, test))
    elif not {"mu", "sigma"} <= read_arrays(args.dataset).keys() - {"images", "arr_0"}:
        train = read_images(args.dataset)
        test = Images(args.dataset, train.images[:0])
    elif None in sources and not args.size:
        raise InputError("a folder against a statistics file: give its images' --size")
    if train:
        shape = train.images.shape[1:]
    for i, text in enumerate(texts):  # shapes fail early, before anything that takes time
        size = shape[-1] if shape else args.size
        source = sources[i] = sources[i] or open_source(text, args.device, size)
        if [other.name for other in sources if other].count(source.name) > 1:
            source.name = text
        if isinstance(source, Images) and shape and source.images.shape[1] < shape[0]:
            source.images = source.images.expand(-1, 3, -1, -1)  # grey against colour
        label = torch.zeros(1, dtype=torch.int64) if source.conditional else None
        found = source.sample(1, labels=label).shape[1:]
        if shape and found != shape:
            raise InputError(f"{source.name} has images of {tuple(found)}, {args.dataset} of "
                             f"{tuple(shape)}: give another --size or --dataset")
    return sources, train, test


def progress(text):
    """Progress, on stderr."""
    print(f"{text} ...", file=sys.stderr, flush=True)


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
    for first, *others in zip(*cells):
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip())


def write_json(args, **content):
    if args.json:  # JSON has no Infinity: null
        text = json.dumps({"dataset": args.dataset, "seed": args.seed} | content, default=str)
        plain = json.loads(text, parse_constant=lambda name: None)
        Path(args.json).write_text(json.dumps(plain, indent=1) + "\n")


def measure(images, real, kind="pixels", net=None, classifier=None, labels=None, real_labels=None,
            k=5, bandwidth=None, real_features=None):
    """All measures of images (n, C, H, W) against real ones, both shuffled -> floats and dicts.

    FID on `features` of `kind` by `net`; MMD, kNN, Bayes and rdd on pixels; how a `classifier`
    reads them. rdd is per class where both sides have 20 images of a label or more. fid_spread,
    mmd_spread: standard errors. bandwidth (MMD's) and real_features are found where not given.
    """
    _pair(images, real, ("images", "real"), least=10)
    images, real = (_unit(check_array(x, "images", images=True)) for x in (images, real))
    images = images.to(real.device)
    own, half = features(images, kind, net), min(len(images), len(real)) // 2
    real_features = features(real, kind, net) if real_features is None else real_features
    bandwidth = bandwidth or median_distance(real)
    parts = [some for a in (0, half) for some in (real[a : a + half], images[a : a + half])]
    kid = {"kernel": "polynomial", "unbiased": True}
    result = {"n": len(images), "fid": fid(own, real_features),
              "fid_spread": spread(fid, own, real_features),
              "mmd": mmd(images, real, bandwidth=bandwidth),
              "mmd_spread": spread(mmd, images, real, bandwidth=bandwidth),
              "knn": knn_misclassification(*parts, k=k), "bayes": bayes_misclassification(*parts),
              "rdd": rdd(images, real)}
    if kind == "inception":
        result["kid"] = mmd(own, real_features, **kid)
        result["kid_spread"] = spread(mmd, own, real_features, **kid)
    if labels is not None and real_labels is not None:
        labels, real_labels = torch.as_tensor(labels), torch.as_tensor(real_labels)
        shared = [c for c in real_labels.unique().tolist()
                  if c >= 0 and min((labels == c).sum(), (real_labels == c).sum()) >= 20]
        if shared:
            a, b = (torch.isin(some, torch.tensor(shared)) for some in (labels, real_labels))
            result["rdd"] = rdd(images[a], real[b], labels[a], real_labels[b])
    if classifier is not None:
        known = own if kind == "classifier" else features(images, "classifier", classifier)
        with torch.no_grad():
            result |= _reading(classifier, classifier.read(known), labels)
    return result


EVAL = {"": "{name}", "n": "{n}", "FID": "{fid:.4g}±{fid_spread:.2g}",
        "MMD": "{mmd:.2g}±{mmd_spread:.1g}", "KID": "{kid:.2g}±{kid_spread:.1g}",
        "kNN": "{knn[min]:.3f}", "Bayes": "{bayes[min]:.3f}", "conf.": "{mean_confidence:.1%}",
        "acc.": "{accuracy:.1%}", "rdd": "{rdd[mean]:.3f}"}
EVAL_NOTES = """
First row: what real images score, the best that a model can reach; Bayes stays low
even there. FID, MMD, KID: lower is better; ±: standard error, too large near 0. kNN,
Bayes: share mistaken, the smaller of real and generated: 0.5 is best, 0 fully
separable. conf.: how sure the classifier is; acc.: read as the label drawn for.
rdd: 1 is best."""
SMALL = 2000  # training images: a classifier of fewer knows them by heart


def eval_command(args):
    """One table: each source against training images, under a row of other real images."""
    sources, train, test = open_sources(args)
    n = min([args.n, *(len(s.images) for s in (train, *sources) if isinstance(s, Images))])
    if n < max(20, 4 * args.k):
        raise InputError(f"{n} images are too few: {max(20, 4 * args.k)} are needed of each side")
    if train is None:
        return eval_statistics(args, sources, n)
    labelled = len(train.labels[train.labels >= 0].unique()) > 1
    enough = labelled and len(test.images) and len(train.images) >= SMALL
    kind = args.features or ("classifier" if enough else "pixels")
    classifier, rows, order = None, [], train.order(len(train.images), args.seed)
    if kind == "classifier" or args.accuracy:
        classifier = classifier_of(args.dataset, args.data_dir, args.size, args.device)
    net = inception(args.inception_weights, args.device) if kind == "inception" else classifier
    real, labels = _unit(train.images[order[:n]]).to(args.device), train.labels[order[:n]]
    progress(f"{kind} features of {n} training images")
    known = {"real_features": features(real, kind, net), "bandwidth": median_distance(real)}

    def add(name, images, own, real=real, labels=labels, **known):
        progress(f"{name}: measures of {len(images)} images")
        found = measure(images, real, kind, net, classifier, own, labels, args.k, **known)
        rows.append({"name": name} | found)

    unused = order[n : n + max(0, n - len(test.images))]  # held-out images first, then these
    others = torch.cat([test.sample(n, seed=args.seed), _unit(train.images[unused])])
    if len(others) >= n / 2:
        own = torch.cat([test.labels[test.order(n, args.seed)], train.labels[unused]])
        add("other real images", others, own, **known)
    else:
        add("halves of the real", real[: n // 2], labels[: n // 2], real[n // 2 :],
            labels[n // 2 :], bandwidth=known["bandwidth"])
    for source in sources:
        drawn = None
        if source.conditional:  # drawn with the label mix of the real images
            drawn = relabel(labels, train.classes, source.classes)
            drawn = drawn[drawn >= 0] if labelled else drawn[:0]
            if not len(drawn):
                drawn = torch.arange(max(1, len(source.classes)))
                progress(f"{source.name}: {args.dataset} has none of its classes: drawn equally")
            drawn = drawn[torch.arange(n) % len(drawn)]
        images, own = source.sample(n, labels=drawn, seed=args.seed), drawn
        if isinstance(source, Images):
            own = source.labels[source.order(n, args.seed)]
        own = None if own is None else relabel(own, source.classes, train.classes)
        add(source.name, images, own, **known)
    print(f"\n{args.dataset}, {real.shape[-1]} px: against {n} training images, seed {args.seed}\n"
          f"FID on {'pixels' if kind == 'pixels' else f'{kind} features'} "
          f"({known['real_features'].shape[1]} numbers), others on pixels; sigma "
          f"{known['bandwidth']:.2f}")
    error = None if classifier is None else classifier.test_error
    if classifier is not None and math.isfinite(error):
        print(f"the classifier misreads {error:.2%} of the held-out images that have a label")
    print()
    print_table(EVAL, rows)
    print(EVAL_NOTES)
    if rows[0]["n"] < n:
        print("The first row has fewer images than the others, which alone raises its FID and MMD.")
    write_json(args, n=n, features=kind, bandwidth=known["bandwidth"], rows=rows,
               classifier_test_error=error)


def eval_statistics(args, sources, n):
    """FID against a file of the mean and covariance of Inception features, as pytorch-fid's."""
    known, net, rows = read_arrays(args.dataset), inception(args.inception_weights, args.device), []
    for source in sources:
        mix = torch.arange(n) % max(1, len(source.classes)) if source.conditional else None
        progress(f"{source.name}: Inception features of {n} images")
        x = features(source.sample(n, labels=mix, seed=args.seed), "inception", net).cpu()
        found = frechet_distance(*stats(x), known["mu"], known["sigma"])
        rows.append({"name": source.name, "n": n, "fid": found})
    print_table({"": "{name}", "n": "{n}", "FID": "{fid:.4g}"}, rows)
    print("Compare figures of one n, and of one way to resize: clean-fid's is not pytorch-fid's.")
    write_json(args, n=n, features="inception", rows=rows)


GAM = {"battle": "{M1} vs. {M2}", "r_test": "{r_test:.3g}", "r_sample": "{r_sample:.3g}",
       "95 %": "{r_sample_95[0]:.3g} to {r_sample_95[1]:.3g}", "won": "{won[0]}:{won[1]}",
       "all pairs": "{r_sample_range[0]:.3g} to {r_sample_range[1]:.3g}",
       "eq. 11": "{winner:s}", "overfit": "{winner_overfit:s}", "error": "{error:.3f}"}
GAM_NOTES = """
r_sample below 1: M1, the first, wins; above 1: M2. eq. 11: a tie unless r_test is
within a factor of {:g} of 1; overfit: unless the Ds' ratios of test to training
errors are, of each other. 95 %: for the choice of images, not for another training;
all pairs: smallest and largest of two groups of runs; won: M1's and M2's by eq. 11.
error: of the one D on the samples of a run that has none (Table 3)."""


def gam_command(args):
    """The battles of every pair of runs, or groups of runs, and the error rates behind them.

    Runs whose names differ only in the number at their end (a-0 a-1, a-s0 a-s1) are a group.
    """
    runs, train, test = open_sources(args)
    if len(runs) < 2 or not any(run.logits for run in runs):
        raise InputError("a battle needs two runs, and at least one of them a discriminator")
    sides, alone = {}, [[i] for i in range(len(runs))]
    for i, text in enumerate(args.source):
        sides.setdefault(re.sub(r"([-_](s|seed)?)\d+/?$", r"\1*", text), []).append(i)
    sides = list(sides.values()) if len(sides) > 1 else alone
    names = [runs[i].name if not more else re.sub(r"\d+$", "*", runs[i].name) for i, *more in sides]
    classes = [run.classes for run in runs if run.conditional]
    if any(own != classes[0] for own in classes):
        raise InputError("the conditional runs have different classes: no battle")
    n = min([args.n, *(len(run.images) for run in runs if isinstance(run, Images))])
    progress(f"{len(runs)} runs, {n} samples of each")
    labels = [relabel(s.labels, s.classes, classes and classes[0]) for s in (test, train)]
    rates = error_rates(runs, test.images, n, labels[0], args.seed, train.images, labels[1])
    n_test, battles, judges = min(n, len(test.images)), [], []
    for a, b in itertools.combinations(range(len(sides)), 2):
        each = [_battle(rates, [i], [j], args.tolerance, n, n_test)
                for i in sides[a] for j in sides[b]]
        whole = each[0]
        if len(each) > 1:
            whole = _battle(rates, sides[a], sides[b], args.tolerance) | {"battles": each}
        ratios = [battle["r_sample"] for battle in each if battle["winner"]]
        if len(ratios) > 1:
            won = [sum(battle["winner"] == m for battle in each) for m in ("M1", "M2")]
            whole |= {"r_sample_range": (min(ratios), max(ratios)), "won": won}
        battles.append({"M1": names[a], "M2": names[b]} | whole)
    for i, run in enumerate(runs):
        row = {key: rates[key][i] for key in ("train", "test", "auc")}
        row |= {f"on {j + 1}": error for j, error in enumerate(rates["fake"][i])}
        row |= {"name": f"{i + 1} {run.name}", "ratio": _ratio(row["test"], row["train"])}
        judges += [row] if run.logits else []
    print(f"\n{args.dataset}: {n} samples of each, {n_test} test images, seed {args.seed}; D at "
          "logit 0, real and generated apart\n")
    print_table({"error rate of D": "{name}", "training": "{train:.3f}", "test": "{test:.3f}",
                 "ratio": "{ratio:.2f}", "AUC": "{auc:.3f}"}
                | {f"on {j + 1}": f"{{on {j + 1}:.3f}}" for j in range(len(runs))}, judges)
    print()
    print_table(GAM, battles)
    print(GAM_NOTES.format(1 + args.tolerance))
    write_json(args, n=n, tolerance=args.tolerance, runs=[run.name for run in runs],
               battles=battles, error_rates=rates)


def dim_command(args):
    """The intrinsic dimension of a data set's training images over k, as figures and a picture."""
    images, _ = data.load(args.dataset, args.data_dir or "data", "train", size=args.size)
    x = images[Images("", images).order(args.n, args.seed)].flatten(1).to(args.device)
    ks = sorted(args.k)
    progress(f"{ks[-1]} neighbours of each of {len(x)} images")
    curves = {name: intrinsic_dimension(x, ks, name) for name in ("levina", "mackay")}
    rows = [{"k": k} | {name: curve[k] for name, curve in curves.items()} for k in ks]
    title = f"{args.dataset}: intrinsic dimension of {len(x)} training images, seed {args.seed}"
    print(title)
    print_table({"k": "{k}", "eq. 16": "{levina:.2f}", "inverse mean": "{mackay:.2f}"}, rows)
    print(f"There is no limit in k (eq. 17): say k and n with any figure. Drawn in {args.out}")
    draw_curves({name: list(curve.items()) for name, curve in curves.items()}, args.out, title)
    write_json(args, n=len(x), dimension=rows)


def draw_curves(curves, path, title):
    """A picture of the lines {name: [(x, y), ...]}; none where no line has a point."""
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return
    picture = Image.new("RGB", (640, 400), "white")
    pen, colours = ImageDraw.Draw(picture), ("navy", "firebrick", "green", "orange", "purple")
    xs, ys = zip(*(point for points in curves.values() for point in points))
    left, width, low = min(xs), max(xs) - min(xs) or 1, min(0, *ys)
    height = max(0, *ys) - low or 1
    pen.text((60, 8), title, fill="black")
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = 60 + 540 * share, 360 - 310 * share
        pen.line([(60, y), (600, y)], fill="lightgray")
        pen.text((50, y), f"{low + share * height:.3g}", fill="black", anchor="rm")
        pen.text((x, 366), f"{left + share * width:.4g}", fill="black", anchor="ma")
    for i, (name, points) in enumerate(curves.items()):
        pen.line([(60 + 540 * (x - left) / width, 360 - 310 * (y - low) / height)
                  for x, y in points], fill=colours[i % 5], width=2)
        pen.text((60 + 110 * i, 28), name, fill=colours[i % 5])
    picture.save(path, "PNG")


def parse_args(argv=None):
    parser = argparse.ArgumentParser("metrics.py", allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {"eval": "FID, MMD, kNN, Bayes, accuracy and rdd of all sources in one table",
             "gam": "the battles of every pair of runs", "dim": "intrinsic dimension of a data set"}
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = command.add_argument
        if name != "dim":
            add("source", nargs="+", help="a run (RUN@7: drawn in 7 steps), a folder of images, "
                ".npy or .npz; for gam, A-0 A-1 are runs of one model")
        add("--dataset", type=data.path, default="digits" if name == "dim" else None, help="a "
            "name, a folder, .npz images, or a .npz of Inception's mu and sigma [the runs' own]")
        add("--data-dir", type=data.path, help="where data sets are kept [the runs' own, or data]")
        add("--size", type=int, help="side of the images in pixels [the runs', the data set's]")
        add("--n", type=int, default=10**9 if name == "dim" else 10000, help="images, at most")
        add("--seed", type=int, default=0, help="of samples and of the shuffling [%(default)s]")
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        add("--json", type=data.path, metavar="FILE", help="write all figures there too")
        if name == "eval":
            add("--features", choices=["classifier", "pixels", "inception"],
                help=f"of the FID [classifier; pixels without labels or below {SMALL:,} images]")
            add("--accuracy", action="store_true", help="have a classifier read the images too")
            add("--inception-weights", type=data.path, metavar="FILE", help=INCEPTION_FILE)
            add("--k", type=int, default=5, help="neighbours that vote in kNN [%(default)s]")
        if name == "gam":
            add("--tolerance", type=float, default=0.3, help="of r_test: a factor, less 1 [0.3]")
        if name == "dim":
            add("--k", type=int, nargs="+", default=[10, 20, 50, 100], help="neighbours")
            add("--out", type=data.path, default="dim.png", help="picture of the curve [dim.png]")
    return parser.parse_args(argv)


def main(argv=None):
    with data.plain_errors("metrics.py"):
        args = parse_args(argv)
        ks, tolerance = getattr(args, "k", [1]), getattr(args, "tolerance", 0)
        counts = [args.n, args.size or 1, *(ks if isinstance(ks, list) else [ks])]
        if min(counts) < 1 or not (0 <= args.seed < 2**63 and tolerance >= 0):
            raise InputError("--n, --k and --size are 1 or more, --seed and --tolerance 0 or more")
        for file in filter(None, (args.json, getattr(args, "out", None))):  # fails early
            if Path(file).is_dir() or not os.access(Path(file).absolute().parent, os.W_OK):
                raise InputError(f"{file} cannot be written: name a file in a folder of yours")
        args.device = data.open_device(args.device)
        try:
            {"eval": eval_command, "gam": gam_command, "dim": dim_command}[args.command](args)
        except ValueError as error:  # of a measure
            raise InputError(str(error)) from error


if __name__ == "__main__":
    main()
