"""Measures of image generators, and the runs they are taken of.

    python metrics.py gam runs/gran1-mnist runs/gran3-mnist runs/gran5-mnist --dataset mnist
    python metrics.py eval runs/gran5-mnist runs/vae-mnist samples.npz --dataset mnist

Images are float32 (n, C, H, W) in [0, 1]. The measures are plain functions of tensors: they take (n, ...) inputs of
any dtype on any device, flatten them to rows, work in float64 and give back floats or dicts of floats, so each can be
copied out on its own.
"""

import argparse
import contextlib
import csv
import ctypes
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import pickle
import re
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
from data import InputError

HERE = Path(__file__).resolve().parent
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError)  # what torch.load may raise


# ---------------------------------------------------------------------------------------------------------------- runs


def save_run(folder, script, args, step, nets, optimisers):
    """Write folder/checkpoint.pt: everything needed to sample a run or to go on with it.

    `args` is a Namespace or dict; `nets` and `optimisers` are dicts of objects with a state_dict. The file is written
    beside its place, synced and moved there in one step, so a run killed at any moment keeps its last good
    checkpoint. Raises OSError, and FloatingPointError rather than write weights that are not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_finite(folder, step, nets)
    values = args if isinstance(args, dict) else vars(args)
    checkpoint = {
        "script": script,
        "args": json.loads(json.dumps(values, default=str)),  # plain values only, as in args.json: paths become strings
        "step": step,
        "nets": {name: net.state_dict() for name, net in nets.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        },
    }
    _write(folder / "checkpoint.pt", checkpoint)


def check_finite(folder, step, nets):
    """Raises FloatingPointError if a weight of `nets`, a dict of modules, is not finite."""
    if not all(value.isfinite().all() for net in nets.values() for value in net.state_dict().values()):
        raise FloatingPointError(f"the weights are not finite at step {step}: try a lower --lr, --lr-g or --lr-d, or --no-amp; "
                                 f"{folder} keeps its last good checkpoint")


def _write(path, content):
    """torch.save under another name, synced, and moved to `path` in one step: the file is whole or as it was."""
    part = path.with_name(path.name + ".part")  # a run is alone in its folder, and takes the place of what a killed one left
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch covers a full disk with a RuntimeError of its own
        part.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) or error.__context__ is None else error.__context__
        raise OSError(f"{path} cannot be written and stays as it was: {cause}") from error


def load_checkpoint(path, script=None):
    """The dict that `save_run` wrote, on the CPU. `path` is a run's folder or its checkpoint file.

    Only tensors and plain values are read (weights_only), so a file with code in it is refused and nothing of it runs.
    Raises InputError if the file is missing, broken, not ours, or of another script than `script`.
    """
    path = Path(path)
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.exists():
        reason = "the folder holds no checkpoint.pt" if path.is_dir() else "no such file or folder"
        raise InputError(f"{path} is not a run: {reason}; give the folder that a training script wrote (its --out)")
    open(file, "rb").close()  # a file that may not be read is not broken
    if not zipfile.is_zipfile(file):  # also says no to a truncated file: the zip's directory is at its end
        raise InputError(f"{file} is broken or not a checkpoint; train the run again, or take a whole copy of the file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} cannot be read as a checkpoint of tensors and plain values: {reason}") from error
    wanted = {"script": str, "args": dict, "step": int, "nets": dict, "optimisers": dict, "rng": dict}
    for key, kind in wanted.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
            raise InputError(f"{file} is not a checkpoint of these scripts: it has no {key!r} of type {kind.__name__}")
    if script is not None and checkpoint["script"] != script:
        raise InputError(f"{path} was written by {checkpoint['script']}.py, not by {script}.py; use that script for it")
    return checkpoint


class Run:
    """A trained model as the measures see it.

    `sample(n, labels=None, seed=0)` draws images; `logits(x, labels=None)` are D's scores, or None where the run has
    no image discriminator. `nets`, `args` (Namespace), `step`, `script`, `conditional` and `name` are as the run left
    them.
    """

    def __init__(self, module, nets, args, step, script, name, device, steps=None):
        self.module, self.nets, self.args, self.step, self.script = module, nets, args, step, script
        self.name, self.device, self.steps = name, torch.device(device), steps
        self.conditional, self.labels = bool(getattr(args, "conditional", False)), None
        self.logits = self._logits if "D" in nets else None

    def sample(self, n, labels=None, seed=0):
        """(n, C, H, W) float32 in [0, 1] on the run's device, by int64 `labels` (n,); a seed, the same pictures."""
        extra = {} if self.steps is None else {"steps": self.steps}
        generator = torch.Generator().manual_seed(seed)
        if labels is not None:
            labels = labels.to(self.device)
        return self.module.sample(
            self.nets, n, labels=labels, generator=generator, batch_size=self.args.batch_size, **extra
        )

    @torch.no_grad()
    def _logits(self, x, labels=None):
        """D's logits (n,) on the CPU for x (n, C, H, W); positive reads "real".

        Scored in batches of the training size, the last one filled up by wrapping round, so that batch norm in D sees
        statistics of the kind it was trained with. Feed real and generated images apart: D never met them in one
        batch.
        """
        if self.conditional and labels is None:
            raise ValueError(f"labels: the discriminator of {self.name} is conditional and needs them")
        out = []
        for start in range(0, len(x), self.args.batch_size):
            index = torch.arange(start, start + self.args.batch_size) % len(x)
            batch = [x[index.to(x.device)].to(self.device)]
            if self.conditional:
                batch.append(labels[index.to(labels.device)].to(self.device))
            out.append(self.nets["D"](*batch).float().cpu())
        return torch.cat(out)[: len(x)]


def load_run(path, device="cpu", steps=None):
    """The run in a folder (or checkpoint file) as a `Run`, its nets on `device` in evaluation mode.

    `steps` draws a recurrent model with that many steps instead of its own T (GRAN, Table 4). The script that the
    checkpoint names is imported only if it stands beside this file. Raises InputError for anything that is not a run
    of ours.
    """
    checkpoint = load_checkpoint(path)
    script = checkpoint["script"]
    plain = re.fullmatch(r"[a-z][a-z0-9_]*", script) and script not in ("data", "metrics")
    if not plain or not (HERE / f"{script}.py").is_file():
        raise InputError(f"{path} names the script {script!r}, and no such script stands beside metrics.py")
    module, device = importlib.import_module(script), device_of(device)
    if steps is not None and ("steps" not in inspect.signature(module.sample).parameters or steps < 1):
        raise InputError(f"{path}@{steps}: @STEPS is for recurrent models, from 1 step on; {script}.py takes none such")
    args = argparse.Namespace(**checkpoint["args"])
    if checkpoint["step"] <= getattr(args, "vae_iters", 0):
        raise InputError(f"{path} has no generator yet: update {checkpoint['step']} of its VAE's {args.vae_iters}; go on with --resume")
    try:
        nets = module.build(args)
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name])
            net.to(device).eval()
    except UNFIT as error:
        raise _unfit(path, script, error) from error
    for layer in nets["D"].modules() if "D" in nets else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # D judges with batch statistics, as in training,
            layer.train()
            layer.track_running_stats = False  # and leaves its running averages alone
    name = Path(path).resolve()
    name = (name if name.is_dir() else name.parent).name + ("" if steps is None else f"@{steps}")
    return Run(module, nets, args, checkpoint["step"], script, name, device, steps)


UNFIT = (AttributeError, KeyError, RuntimeError, ValueError)  # of a checkpoint whose parts are not those of the script


def _unfit(path, script, error):
    reason = str(error).strip().splitlines()[0]
    return InputError(f"{path} does not fit {script}.py as it is now: {reason}; use the version of then")


def restore_run(path, nets, optimisers):
    """Puts nets, optimisers and random states back to where the checkpoint left them; -> its step."""
    checkpoint = load_checkpoint(path)
    try:
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(checkpoint["optimisers"][name])
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"][: torch.cuda.device_count()])  # of the GPUs that are here
    except UNFIT as error:
        raise _unfit(path, checkpoint["script"], error) from error
    return checkpoint["step"]


def run_folder(args, default):
    """The folder of a run to train: args.resume, args.out or the default, as a Path; nothing is made yet.

    Raises InputError where a new run would meet an old one, or nothing can be written.
    """
    folder = Path(args.resume or args.out or default)
    if not args.resume and (folder / "checkpoint.pt").exists():
        raise InputError(f"{folder} holds a run already: go on with --resume {folder}, or name another with --out")
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(f"{folder} cannot be written: {place} is no folder, or is read-only; name another with --out")
    return folder


def device_of(text):
    """The torch.device of that name; InputError where there is no such device."""
    try:
        torch.zeros(1, device=text).tolist()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise InputError(f"device {text} cannot be used: {reason}; --device cpu can") from error
    if torch.device(text).type == "cpu":
        keep_freed_memory()
        # Adam's averages of dead pixels decay to below 1e-38, where Intel's CPUs take many times as long. Threads begun later inherit it.
        torch.set_flush_denormal(True)
    return torch.device(text)


def keep_freed_memory():
    """Has glibc keep freed tensors' memory for the next ones: else it goes back to the system, which clears each page anew.

    A training loop on a CPU frees and asks for the same sizes over and over.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 1 << 30)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with errors of one line, a help that shows what defaults there are, and no abbreviations."""

    def __init__(self, prog, **options):
        super().__init__(prog, allow_abbrev=False, formatter_class=_Defaults, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def count(text):
    """Type of a flag that counts: an int of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def rate(text):
    """Type of a flag that is a learning rate, or a weight that may not be 0: a finite float above 0."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return float(text)


def weight(text):
    """Type of a flag that is a weight or a tolerance and may be 0: a finite float of at least 0."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return float(text)


def seed(text):
    """Type of a flag that is a seed: an int as torch takes them."""
    if not -(2**63) <= int(text) < 2**63 - 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 64 bits hold")
    return int(text)


FREE_ON_RESUME = {"data_dir", "device", "epochs", "iters", "log_every", "sample_every", "compile", "amp"}


def resumed_args(parser, argv, script, free=()):
    """The arguments of the run that --resume names, and over them what was typed.

    What would make it another run cannot be typed anew: only FREE_ON_RESUME and the names in `free` may differ, and with
    --sample the seed, for other samples. With --epochs typed, an --iters of the run's start no longer holds.
    """
    resume = parser.parse_args(argv).resume
    saved = load_checkpoint(resume, script)["args"]
    if Path(resume).is_file():
        parser.error(f"--resume takes the run's folder, not its file: {Path(resume).parent}")
    missing = {"channels", "size", "batch_size", "epochs", "iters"} - saved.keys()
    if missing:
        raise _unfit(resume, script, f"its args have no {min(missing)}")
    untyped = dict.fromkeys(("out", "resume", "sample", "epochs", "iters"))
    typed = parser.parse_args(argv, argparse.Namespace(**saved | untyped))
    for name in saved.keys() - FREE_ON_RESUME - set(free) - ({"seed"} if typed.sample else set()):
        if getattr(typed, name) != saved[name]:
            parser.error(f"--{name.replace('_', '-')} is {saved[name]} in {resume} and cannot be changed")
    if typed.out and not typed.sample:
        parser.error("--out does not go with --resume: a run goes on in its own folder")
    if typed.epochs is None:
        typed.epochs, typed.iters = saved["epochs"], typed.iters or saved["iters"]
    return typed


def write_samples(args, steps=None):
    """--sample: writes args.sample images of the run args.resume as PNG files into a new folder (args.out).

    A conditional run draws its classes in equal numbers, each into a sub-folder named by its label.
    """
    from torchvision.utils import save_image

    run = load_run(args.resume, args.device, steps=steps)
    folder = Path(args.out or Path(args.resume) / ("drawn" if steps is None else f"drawn-{steps}-steps"))
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder with --out")
    labels = torch.arange(args.sample) % run.args.classes if run.conditional else None
    places = [folder] * args.sample
    if run.conditional:
        width = len(str(run.args.classes - 1))  # zeros in front, so that names sort as labels do
        places = [folder / f"{label:0{width}}" for label in labels.tolist()]
    for place in set(places):
        place.mkdir(parents=True, exist_ok=True)
    images = run.sample(args.sample, labels=labels, seed=args.seed)
    for i, (image, place) in enumerate(zip(images, places)):
        save_image(image, place / f"{i:06}.png")
    print(f"{len(images)} images are in {folder}")


def open_log(path, start, columns):
    """A csv writer that goes on after the row of step `start`; rows past the checkpoint are written anew.

    The file is open, and locked, as long as the run: InputError where another process writes it, which is left alone.
    """
    part = path.with_name(path.name + ".part")  # a run killed here keeps the rows that it has
    file, rows = open(part, "a", newline="", buffering=1), []  # noqa: SIM115
    _claim(file, path.parent)
    if path.exists():
        with open(path, "r+", newline="") as old:
            try:
                _claim(old, path.parent)
            except InputError:
                part.unlink()
                raise
            rows = [row for row in csv.reader(old) if row and row[0].isdigit() and int(row[0]) <= start]
    file.truncate(0)
    csv.writer(file).writerows([columns, *rows])
    if os.name == "nt":  # where no open file can be moved
        file.close()
    os.replace(part, path)
    return csv.writer(open(path, "a", newline="", buffering=1) if file.closed else file)


def _claim(file, folder):
    """Locks an open file for this process; InputError if another has it. Where files cannot be locked nothing happens."""
    with contextlib.suppress(ImportError):  # Windows
        import fcntl

        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"{folder} is being written by another run: name another with --out") from error
        except OSError:  # a file system that has no locks
            pass


@contextlib.contextmanager
def ctrl_c():
    """Inside, a first Ctrl-C only fills the list given: a loop can end between updates. A second ends at once."""
    caught = []

    def stop(signum, frame):
        caught.append(signum)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


# ----------------------------------------------------------------------------------------------------------------- GAM


def _ratio(a, b):
    if a == b:
        return 1.0  # 0 / 0 included: neither does worse
    return a / b if b else math.inf


def _ratio_interval(a, b, n_a, n_b):
    """95 % interval of the ratio of two independent error rates (Katz's log interval; a count of 0 enters as 1/2)."""
    if a == 0 and b == 0:
        return 0.0, math.inf
    count_a, count_b = max(a * n_a, 0.5), max(b * n_b, 0.5)
    centre = math.log((count_a / n_a) / (count_b / n_b))
    half = 1.959964 * math.sqrt(max(1 / count_a - 1 / n_a + 1 / count_b - 1 / n_b, 0.0))
    return (math.exp(centre - half) if a else 0.0), (math.exp(centre + half) if b else math.inf)


def gam_from_errors(e1_test, e2_test, e1_fake, e2_fake, n=None, tolerance=0.3, n_test=None):
    """The Generative Adversarial Metric, eqs. 10 and 11 of Im et al. 2016 (arXiv 1602.05110), from four error rates.

    e1_test: share of the test images that D1 calls generated; e1_fake: share of G2's samples that D1 calls real; e2_*
    likewise for D2, on G1's samples. r_test = e1_test / e2_test, r_sample = e1_fake / e2_fake; 0 / 0 is 1 and x / 0
    infinite. The winner is M1 if r_sample < 1, M2 if r_sample > 1, and a tie at 1 or unless r_test is within a factor
    of 1 + tolerance of 1 either way (the paper's own winners have 0.79 to 1.29). n (samples a player) and n_test
    (test images, n if not given) add 95 % intervals; that of r_test is on the safe side, since both discriminators
    read the same images. Returns {r_test, r_sample, winner: "M1" | "M2" | "tie"}, and {r_test_95, r_sample_95} as
    (low, high), or None without n.
    """
    for name, value in (("e1_test", e1_test), ("e2_test", e2_test), ("e1_fake", e1_fake), ("e2_fake", e2_fake)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: an error rate lies in [0, 1], not {value}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: must be 0 or more, not {tolerance}")
    r_test, r_sample = _ratio(e1_test, e2_test), _ratio(e1_fake, e2_fake)
    fair = r_test > 0 and abs(math.log(r_test)) <= math.log1p(tolerance) + 1e-12
    winner = "tie" if not fair or r_sample == 1 else "M1" if r_sample < 1 else "M2"
    n_test = n_test or n
    return {
        "r_test": r_test,
        "r_test_95": _ratio_interval(e1_test, e2_test, n_test, n_test) if n_test else None,
        "r_sample": r_sample,
        "r_sample_95": _ratio_interval(e1_fake, e2_fake, n, n) if n else None,
        "winner": winner,
    }


def error_rates(runs, test_images, n=10000, test_labels=None, seed=0):
    """Who is fooled by what: (test, fake): test[i] is D_i's error rate on the test images, fake[i][j] on G_j's samples.

    The threshold is D = 0.5, a logit of 0. Test images (n, C, H, W) are taken in an order shuffled by `seed`, at most
    n of them. Conditional generators draw with labels sampled from test_labels. Entries of runs without a
    discriminator are None. Raises InputError for image shapes that differ, missing labels, and a conditional
    discriminator that faces a generator without labels.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test_images), generator=generator)[:n]
    real, labels, fake_labels = test_images[order], None, None
    if any(run.conditional for run in runs):
        if test_labels is None:
            raise InputError("a conditional run needs labelled test images: name a data set that has labels")
        labels = test_labels[order]
        fake_labels = labels[torch.randint(len(labels), (n,), generator=generator)]
        for run in runs:
            others = [other.name for other in runs if not other.conditional and other is not run]
            if run.conditional and run.logits is not None and others:
                raise InputError(f"the D of {run.name} reads image and label, but {others[0]} draws without labels")
    test = [None if run.logits is None else _share(run.logits(real, labels) <= 0) for run in runs]
    fake = [[None] * len(runs) for _ in runs]
    for j, player in enumerate(runs):
        images = player.sample(n, labels=fake_labels if player.conditional else None, seed=seed)
        if images.shape[1:] != real.shape[1:]:
            shapes = " against ".join("x".join(map(str, x.shape[1:])) for x in (images, real))
            raise InputError(f"{player.name} draws images of another shape than the test images: {shapes}")
        for i, judge in enumerate(runs):
            if judge.logits is not None:
                fake[i][j] = _share(judge.logits(images, fake_labels) > 0)
    return test, fake


def _share(mask):
    return mask.double().mean().item()


def gam(run_a, run_b, test_images, n=10000, test_labels=None, seed=0, tolerance=0.3):
    """The battle of two runs (GRAN, section 4): the four error rates and `gam_from_errors` of them.

    Each discriminator scores batches of its run's training size, real and generated apart, n samples of each opponent
    and at most n test images. If one run has no discriminator the form of Table 3 is returned: {error}, the other's
    error rate on its samples, and winner None. Raises InputError if neither has one; see `error_rates` for the rest.
    """
    if run_a.logits is None and run_b.logits is None:
        raise InputError(f"neither {run_a.name} nor {run_b.name} has a discriminator, so there is no battle to hold")
    test, fake = error_rates([run_a, run_b], test_images, n, test_labels, seed)
    return _battle(test, fake, 0, 1, n, min(n, len(test_images)), tolerance)


def _battle(test, fake, i, j, n, n_test, tolerance):
    rates = {"e1_test": test[i], "e2_test": test[j], "e1_fake": fake[i][j], "e2_fake": fake[j][i]}
    if test[i] is None or test[j] is None:
        return rates | {"error": rates["e2_fake" if test[i] is None else "e1_fake"], "winner": None}
    return rates | gam_from_errors(**rates, n=n, n_test=n_test, tolerance=tolerance)


# -------------------------------------------------------------------------------------------------- feature statistics


def _rows(x, name, least=1):
    """x as a (n, d) tensor of its own dtype; ValueError if it has fewer than `least` rows, no columns, or NaN."""
    x = torch.as_tensor(x)
    if x.ndim < 2 or len(x) < least or x[0].numel() == 0:
        raise ValueError(f"{name}: needs at least {least} image(s) or feature rows, not a shape of {tuple(x.shape)}")
    if x.is_floating_point() and not x.sum().isfinite() and not x.isfinite().all():
        raise ValueError(f"{name}: holds NaN or infinite values")
    return x.flatten(1)


def _pair(x, y, names=("x", "y"), least=1):
    """Both as `_rows`; ValueError if their widths differ."""
    x, y = _rows(x, names[0], least), _rows(y, names[1], least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[1]}: rows of {y.shape[1]} numbers, but {names[0]} has rows of {x.shape[1]}")
    return x, y


def _mean(rows):
    return sum(part.double().sum(0) for part in rows.split(4096)) / len(rows)


def stats(x):
    """Mean (d,) and covariance (d, d), over n - 1, of the rows of x (n, ...), in float64.

    Two passes in blocks: large means cost no digits, and no float64 copy of x is made. Raises ValueError for NaN and
    for fewer than two rows.
    """
    rows = _rows(x, "x", least=2)
    mu = _mean(rows)
    cov = torch.zeros(len(mu), len(mu), dtype=torch.float64, device=rows.device)
    for part in rows.split(4096):
        centred = part.double() - mu
        cov.addmm_(centred.T, centred)
    return mu, cov / (len(rows) - 1)


def frechet_distance(mu1, cov1, mu2, cov2):
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): the squared Frechet distance of Gaussians (Heusel et al. 2017).

    Means (d,), covariances (d, d); a float, not its root. With C = R R', tr (C1 C2)^(1/2) is the sum of the singular
    values of R1' R2. R comes of an eigendecomposition without the null space, so that singular covariances (fewer rows
    than columns, constant pixels) are exact; where both are well-conditioned, C1 = L L' of Cholesky and the eigenvalues
    of L' C2 L, which are the squares, take a fifth of the time. Raises ValueError for shapes that differ and for NaN.
    """
    for name, mu, cov in (("1", mu1, cov1), ("2", mu2, cov2)):
        if mu.shape != mu1.shape or cov.shape != (*mu1.shape, *mu1.shape) or mu.ndim != 1:
            raise ValueError(f"mu{name}, cov{name}: shapes {tuple(mu.shape)}, {tuple(cov.shape)} are not (d,), (d, d)")
        if not (mu.isfinite().all() and cov.isfinite().all()):  # eigenvalue routines may crash on NaN
            raise ValueError(f"mu{name}, cov{name}: hold NaN or infinite values")
    mu1, cov1, mu2, cov2 = (value.double() for value in (mu1, cov1, mu2, cov2))
    total1, total2 = cov1.trace(), cov2.trace()
    distance = (mu1 - mu2).square().sum() + total1 + total2
    if total1 > 0 and total2 > 0:
        scale = (total1.sqrt() * total2.sqrt()) / len(mu1)
        distance -= 2 * scale * _trace_of_root(cov1 * (len(mu1) / total1), cov2 * (len(mu1) / total2))
    return max(distance.item(), 0.0)  # rounding may leave a little less than nothing


def _trace_of_root(a, b):
    """tr (A B)^(1/2) of two positive semi-definite matrices of trace d."""
    lower, failed = torch.linalg.cholesky_ex(a)
    pivots = lower.diagonal()
    if not failed and pivots.min() > 1e-3 * pivots.max():  # else hopeless: the condition is at least 1e6
        values = torch.linalg.eigvalsh(lower.T @ b @ lower)
        if values[0] > 1e-8 * values[-1]:  # else the roots of the small ones have too few digits
            return values.sqrt().sum()
    roots = []
    for c in (a, b):
        values, vectors = torch.linalg.eigh(c)
        keep = values > torch.finfo(c.dtype).eps * len(c) * values[-1]  # less is rounding
        roots.append(vectors[:, keep] * values[keep].sqrt())
    return torch.linalg.svdvals(roots[0].T @ roots[1]).sum()


def fid(x, y):
    """`frechet_distance` of Gaussians fitted to feature rows x (n, ...) and y (m, ...); symmetric, 0 for equal sets.

    The FID proper has `features` of kind "inception". Its bias falls as 1 / n: compare figures of the same n only.
    """
    x, y = _pair(x, y, least=2)
    if max(len(x), len(y)) >= x.shape[1]:
        return frechet_distance(*stats(x), *stats(y))
    # Fewer rows than columns: with C = R'R of the centred rows R, the root's trace is the sum of the singular values
    # of R1 R2', and no matrix of columns by columns is needed. In blocks of columns, so that no float64 copy is.
    rest = cross = 0
    for a, b in zip(x.split(1024, dim=1), y.split(1024, dim=1)):
        a, b = a.double(), b.double()
        mu1, mu2 = a.mean(0), b.mean(0)
        a, b = (a - mu1) / (len(a) - 1) ** 0.5, (b - mu2) / (len(b) - 1) ** 0.5
        rest += (mu1 - mu2).square().sum() + a.square().sum() + b.square().sum()
        cross += a @ b.T
    return max((rest - 2 * torch.linalg.svdvals(cross).sum()).item(), 0.0)


def median_distance(x, limit=2000, seed=0):
    """Median distance between two rows among `limit` shuffled rows of x (n, ...): the median heuristic's bandwidth."""
    rows = _rows(x, "x", least=2)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:limit].to(rows.device)
    median = torch.pdist(rows[chosen].double()).quantile(0.5).item()
    if median == 0:
        raise ValueError("x: more than half of its rows are equal, so the median distance is 0; give a bandwidth")
    return median


def mmd(x, y, kernel="rbf", bandwidth=None, unbiased=False):
    """Squared maximum mean discrepancy of rows x (n, ...) and y (m, ...) (Gretton et al. 2012, eqs. 3 and 5).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), by default with the pairs x = x' (biased: DRAW-GAN's formula), or
    without them (unbiased: may be negative). Kernels, of rows of d numbers:
        rbf         exp(-|x - y|^2 / (2 bandwidth^2)), or the mean of these over a list of bandwidths
        polynomial  (x'y / d + 1)^3; unbiased and on Inception's features this is KID (Binkowski et al. 2018)
        linear      x'y; sees nothing but the means
    bandwidth: sigma; None is `median_distance(y)`, so let y be the real images and every model meets the same kernel.
    In tiles: the Gram matrix never stands in memory, and of the two symmetric ones only half is computed. float64, but
    for an RBF kernel over more than 4 million pairs, with products in float32: that moves the result by about 1e-9.
    """
    x, y = _pair(x, y, least=2 if unbiased else 1)
    if kernel not in ("rbf", "polynomial", "linear"):
        raise ValueError(f"kernel: rbf, polynomial or linear, not {kernel!r}")
    sigmas = [1.0]
    if kernel == "rbf":
        given = median_distance(y) if bandwidth is None else bandwidth
        sigmas = list(given) if isinstance(given, (list, tuple)) else [given]
        if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
            raise ValueError(f"bandwidth: must be above 0, not {bandwidth}")
    centre = torch.zeros(1, device=y.device) if kernel == "polynomial" else _mean(y)  # moving all changes nothing else
    x, y = x.double() - centre, y.double() - centre
    largest = max(torch.linalg.vector_norm(z, dim=1).max() for z in (x, y))
    coarse = kernel == "rbf" and len(x) * len(y) > 2**22 and largest < 10 * min(sigmas)
    dtype = torch.float32 if coarse else torch.float64
    pairs = ((x, x, unbiased), (y, y, unbiased), (x, y, False))
    within_x, within_y, between = (_mean_kernel(*pair, kernel, sigmas, dtype) for pair in pairs)
    return within_x + within_y - 2 * between


def _mean_kernel(x, y, without_diagonal, kernel, sigmas, dtype, tile=1024):
    """Mean of k over all pairs of rows of x and y, or over those of different rows where x is y; products in dtype."""
    same, d = x is y, x.shape[1]
    left, right = x, y
    if kernel == "rbf":  # two columns more turn the product into -|x - y|^2 / 2
        left, right = (torch.ones(len(z), d + 2, dtype=dtype, device=z.device) for z in (x, y))
        left[:, :d], left[:, d] = x, -torch.linalg.vector_norm(x, dim=1).square() / 2
        right[:, :d], right[:, d + 1] = y, -torch.linalg.vector_norm(y, dim=1).square() / 2
    space = left.new_empty(2, min(tile, len(x)) * min(tile, len(y)))
    total = x.new_zeros(())
    for i in range(0, len(x), tile):
        for j in range(i if same else 0, len(y), tile):
            a, b = left[i : i + tile], right[j : j + tile]
            product, value = space[:, : len(a) * len(b)].view(2, len(a), len(b))
            torch.mm(a, b.T, out=product)
            for sigma in sigmas:
                if kernel == "rbf":
                    torch.mul(product, 1 / sigma**2, out=value).exp_()
                else:
                    value = product if kernel == "linear" else (product / d + 1).pow_(3)
                total += value.sum(1).sum(dtype=torch.float64) * (2 if same and j > i else 1)
                if without_diagonal and j == i:
                    total -= value.trace()
    return total.item() / len(sigmas) / (len(x) * (len(x) - 1) if without_diagonal else len(x) * len(y))


def rdd(x, ref, labels=None, ref_labels=None):
    """Relative diversity degree (DE-GAN, Definition 3): the spread of images x over that of the real ones `ref`.

    D = mean |x_i - mean|^2; the paper's sum would grow with the number of images. Returns {mean, per_class}: with
    labels (n,) and ref_labels (m,) the ratio of each class, {label: ratio}, and their plain average (Table VI); without
    them the ratio over all images at once and an empty per_class. 1 is ideal, less is too uniform, more is noise. A mean
    over n, so of n and m images a perfect generator is expected to have (1 - 1/n) / (1 - 1/m): beware of small classes.
    """
    x, ref = _pair(x, ref, ("x", "ref"))
    if (labels is None) != (ref_labels is None):
        raise ValueError("labels, ref_labels: give both or neither")
    if labels is None:
        return {"mean": _spread(x, "x") / _spread(ref, "ref", least=2), "per_class": {}}
    ratios = {}
    for label in torch.as_tensor(ref_labels).unique().tolist():
        pairs = ((x, labels), (ref, ref_labels))
        own, real = (rows[(torch.as_tensor(of) == label).to(rows.device)] for rows, of in pairs)
        name = f" of label {label}"
        ratios[label] = _spread(own, "x" + name) / _spread(real, "ref" + name, least=2)
    return {"mean": sum(ratios.values()) / len(ratios), "per_class": ratios}


def _spread(rows, name, least=1):
    if len(rows) < least:
        raise ValueError(f"{name}: needs at least {least} image(s), not {len(rows)}")
    mu = _mean(rows)
    spread = sum((part.double() - mu).square().sum().item() for part in rows.split(4096)) / len(rows)
    if least > 1 and spread == 0:
        raise ValueError(f"{name}: all images are equal, so there is no spread to divide by")
    return spread


# ---------------------------------------------------------------------------------------------------------- neighbours


def nearest(x, k, queries=None):
    """The k nearest rows of x for each query: (distances float64 (m, k), ascending; indices int64 (m, k)).

    Euclidean distances of flattened rows. Without queries, the rows of x are asked for their neighbours and each leaves
    out itself, by index: a duplicate of it counts, at distance 0. Equal distances come in the order of their indices;
    which rows come, where more than k + 4 are equally far, is open.

    Candidates are found by products in float32; their distances are computed anew in float64 from the rows as given,
    and a query for which rounding may have hidden a nearer row is searched again with products in float64. So a row is
    missed only for one that these cannot tell from it: equally far, or nearly so among rows of much greater norms.
    Raises ValueError for NaN, different widths, and a k beyond the rows there are.
    """
    rows = _rows(x, "x")
    asked = rows if queries is None else _pair(x, queries, ("x", "queries"))[1]
    most = len(rows) - (queries is None)
    if not 1 <= k <= most:
        raise ValueError(f"k: {k} neighbours asked for, but there are {most} rows to choose from")
    own = torch.arange(len(rows), device=rows.device) if queries is None else None
    distances, indices, sure = _search(rows, asked, own, k, min(k + 4, most), torch.float32)
    again = (~sure).nonzero().squeeze(1)
    if len(again):
        own = None if own is None else own[again]
        distances[again], indices[again], _ = _search(rows, asked[again], own, k, min(k + 4, most), torch.float64)
    return distances, indices


def _search(rows, asked, own, k, wanted, dtype):
    """`nearest` with products in `dtype`, by the `wanted` best candidates; own (m,) is the index each query leaves out.

    Returns (distances, indices, sure): sure (m,) where no row but the candidates can be nearer, rounding considered.

    |y|^2 / 2 - x'y, half the squared distance less a constant per query, comes out of one product with a column more.
    Then the smallest of n numbers in far less time than the product takes: the columns are put in groups, and the best
    `wanted` are all in the `wanted` groups of the smallest minima.
    """
    n, d = rows.shape
    centre = _mean(rows)
    span = max(math.isqrt(n // wanted), 1)  # columns a group
    groups = -(-n // span)
    table = torch.zeros(span * groups, d + 1, dtype=dtype, device=rows.device)  # [-y, |y|^2 / 2]
    table[n:, d] = math.inf  # the columns that fill up the last group are never near
    for part, out in zip(rows.split(4096), table.split(4096)):
        y = centre - part.double()  # centred against cancellation
        out[: len(y), :d], out[: len(y), d] = y, torch.linalg.vector_norm(y, dim=1).square() / 2
    rounding = torch.finfo(dtype).eps * (4 + 2 * d**0.5)  # of a product, relative to the norms: it grows as the root
    step = min(max(256, 2**24 // n), 4096, len(asked))
    products = torch.empty(step, len(table), dtype=dtype, device=rows.device)
    queries = torch.ones(step, d + 1, dtype=dtype, device=rows.device)  # [x, 1]
    most, numbers = (16, 2**22) if rows.device.type == "cpu" else (1024, 2**27)  # on a CPU what stays in the cache
    block = max(1, min(most, numbers // (wanted * d)))  # of queries, whose candidates, d numbers each, are looked at together
    # What stays is allocated before what is freed: small results kept between large blocks tear glibc's heap, to 20 GB and more.
    distances = torch.empty(len(asked), k, dtype=torch.float64, device=rows.device)
    indices = torch.empty(len(asked), k, dtype=torch.int64, device=rows.device)
    sure = torch.empty(len(asked), dtype=torch.bool, device=rows.device)
    candidates = torch.empty(step, wanted, dtype=torch.float64, device=rows.device)
    for start in range(0, len(asked), step):
        x = asked[start : start + step]
        m = len(x)
        centred = x.double() - centre
        queries[:m, :d] = centred
        scores = torch.mm(queries[:m], table.T, out=products[:m])
        if own is not None:
            scores[torch.arange(m, device=own.device), own[start : start + step]] = math.inf
        scores = scores.view(m, span, groups)
        group = scores.amin(1).topk(min(wanted, groups), largest=False, sorted=False).indices  # (m, groups taken)
        members = scores.gather(2, group[:, None].expand(-1, span, -1)).flatten(1)  # (m, span * groups taken)
        value, place = members.topk(wanted, largest=False)
        index = place // group.shape[1] * groups + group.gather(1, place % group.shape[1])
        index = index.sort(1).values  # an order that the stable sort below keeps among equals
        for part, near, out in zip(x.split(block), index.split(block), candidates.split(block)):
            out[: len(part)] = _distances(part, near, rows)
        exact, order = candidates[:m].sort(dim=1, stable=True)
        norm = torch.linalg.vector_norm(centred, dim=1).square() / 2
        gap = value[:, -1] + norm - exact[:, k - 1].square() / 2  # from the k-th to the first that is no candidate
        sure[start : start + m] = (gap > rounding * (norm + table[:n, d].max())) | (wanted == n - (own is not None))
        distances[start : start + m], indices[start : start + m] = exact[:, :k], index.gather(1, order[:, :k])
    return distances, indices, sure


def _distances(asked, index, rows):
    """Distances (m, k) of asked (m, d) to their rows of index (m, k), differences first: exact for close ones too."""
    chosen = rows.index_select(0, index.flatten()).double().unflatten(0, index.shape)
    return torch.cdist(asked[:, None].double(), chosen, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def knn_misclassification(real_train, fake_train, real_test, fake_test, k=5):
    """How often a k-nearest-neighbour classifier mistakes real for generated and back (DRAW-GAN, section IV-B).

    It learns from the training rows, as many real as generated, and is asked about the test rows; "real" takes more
    than half of the k votes. Returns {fnr: share of the real called generated, fpr: share of the generated called real,
    max: the paper's figure, balanced: the mean of both, min}. 0.5 in both is ideal: no telling apart. The maximum is no
    quality: noise on real images scores 1, and exact copies do. Read min, or balanced.
    """
    train, test, is_real = _real_and_fake(real_train, fake_train, real_test, fake_test)
    if not 1 <= k <= len(train):
        raise ValueError(f"k: {k} neighbours asked for, but there are {len(train)} training rows")
    votes = is_real[0][nearest(train, k, queries=test)[1]].sum(1)
    return _mistakes(votes * 2 > k, is_real[1])


def bayes_misclassification(real_train, fake_train, real_test, fake_test):
    """`knn_misclassification` with a Gaussian naive Bayes classifier: a Gaussian per class and column, all independent.

    1e-9 of the largest variance of any column is added to every variance, as scikit-learn does. That decides much:
    columns that are constant in one class, like the border of a digit, outweigh all others.
    """
    train, test, is_real = _real_and_fake(real_train, fake_train, real_test, fake_test)
    smoothing = 1e-9 * train.double().var(0, correction=0).max()
    if smoothing == 0:
        raise ValueError("real_train, fake_train: all rows are equal")
    scores = []
    for rows in (train[is_real[0]].double(), train[~is_real[0]].double()):
        mean, var = rows.mean(0), rows.var(0, correction=0) + smoothing
        constant = math.log(len(rows) / len(train)) - var.log().sum() / 2
        parts = [((part.double() - mean).square() / var).sum(1) for part in test.split(1024)]
        scores.append(constant - torch.cat(parts) / 2)
    return _mistakes(scores[0] > scores[1], is_real[1])


def _real_and_fake(*parts):
    """(training rows, test rows, (which of each are real)) of real_train, fake_train, real_test, fake_test."""
    names = ("real_train", "fake_train", "real_test", "fake_test")
    parts = [_pair(parts[0], part, ("real_train", name))[1] for name, part in zip(names, parts)]
    train, test = torch.cat(parts[:2]), torch.cat(parts[2:])
    pairs = ((train, parts[0]), (test, parts[2]))
    return train, test, [torch.arange(len(rows), device=rows.device) < len(real) for rows, real in pairs]


def _mistakes(called_real, is_real):
    fnr, fpr = _share(~called_real[is_real]), _share(called_real[~is_real])
    return {"fnr": fnr, "fpr": fpr, "max": max(fnr, fpr), "balanced": (fnr + fpr) / 2, "min": min(fnr, fpr)}


def intrinsic_dimension(x, k=20, average="levina"):
    """The maximum-likelihood intrinsic dimension of the rows of x (Levina and Bickel 2005; DE-GAN, eqs. 15 to 17).

    With T_j the distance of x_i to its j-th neighbour, m_k(x_i) = ((1 / (k-1)) sum_{j<k} log T_k / T_j)^-1 (eq. 15).
    average "levina" is their mean (eq. 16), about (k-1) / (k-2) too large; "mackay" is one over the mean of the 1 / m_k
    (MacKay and Ghahramani 2005), which is not. A list of k gives {k: dimension}: eq. 17 speaks of a limit for large k,
    but there is none in finite data, so look at the curve. Duplicates, at distance 0, are passed over for the next.
    Raises ValueError for k below 2, and where a row has fewer than k neighbours that are no duplicates of it.
    """
    if average not in ("levina", "mackay"):
        raise ValueError(f"average: levina or mackay, not {average!r}")
    ks = list(k) if isinstance(k, (list, tuple)) else [k]
    curve = _dimensions(_rows(x, "x", least=3), ks)
    return {k: curve[k][average] for k in ks} if isinstance(k, (list, tuple)) else curve[k][average]


def _dimensions(rows, ks):
    """{k: {levina, mackay}}, both ways to average and every k from one search."""
    most = max(ks, default=0)
    if min(ks, default=0) < 2 or most >= len(rows):
        raise ValueError(f"k: must be from 2 to {len(rows) - 1}, the rows of x less one, not {ks}")
    distances, _ = nearest(rows, most)
    short = (distances[:, 0] == 0).nonzero().squeeze(1)  # duplicates took the places of neighbours: look farther
    taken = most
    while len(short):
        if taken == len(rows):
            raise ValueError(f"x: has rows with fewer than {most} neighbours (k) that are no duplicates of them")
        taken = min(2 * taken + 1, len(rows))
        found, _ = nearest(rows, taken, queries=rows[short])  # finds the row itself too, at distance 0
        zeros = (found == 0).sum(1)
        enough = zeros + most <= taken
        places = zeros[enough, None] + torch.arange(most, device=rows.device)
        distances[short[enough]] = found[enough].gather(1, places)
        short = short[~enough]
    logs = distances.log()
    curve = {}
    for k in ks:
        inverse = (logs[:, k - 1 : k] - logs[:, : k - 1]).mean(1)  # 1 / m_k, eq. 15
        if (inverse == 0).any():
            raise ValueError(f"k: a row has its {k} nearest neighbours all at one distance; take more of them")
        curve[k] = {"levina": (1 / inverse).mean().item(), "mackay": 1 / inverse.mean().item()}
    return curve


# ------------------------------------------------------------------------------------------- classifier and Inception


class Classifier(nn.Module):
    """A small convolutional net that reads a data set's classes: images (B, C, S, S) in [0, 1] -> logits (B, classes).

    `features` is its penultimate layer (B, 128). `labels` (classes,) are the data set's labels in the order of the
    logits, and test_error the share of its test images that it misreads.
    """

    def __init__(self, channels, size, labels):
        super().__init__()
        self.register_buffer("labels", torch.as_tensor(labels))
        self.test_error = math.nan
        layers, width = [*self.block(channels, 32)], 32
        while size > 8:
            wider = min(2 * width, 128)
            layers += [*self.block(width, wider, stride=2), *self.block(wider, wider)]
            size, width = (size + 1) // 2, wider
        layers += self.block(width, 128)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.read = nn.Linear(128, len(labels))

    @staticmethod
    def block(k_in, k_out, stride=1):
        return nn.Conv2d(k_in, k_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(k_out), nn.ReLU()

    def forward(self, x):
        return self.read(self.features(x))


def _apart():
    """A context whose random numbers are its own: a run that needs a classifier in its midst goes on as it would without."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])


def train_classifier(images, labels, epochs=8, least=1000, batch_size=250, lr=0.2, seed=0, device="cpu", name="net"):
    """A `Classifier` of uint8 images (N, C, S, S) and int64 labels (N,), trained and in evaluation mode.

    Nesterov SGD in one cycle of `epochs` or at least `least` updates, images shifted by up to 2 pixels (of 28) either
    way. MNIST: under 0.5 % test error. Prints its progress on stderr. Raises ValueError for fewer than two classes.
    """
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels: at least two classes are needed, not {len(classes)}")
    with _apart():
        torch.manual_seed(seed)
        net = Classifier(images.shape[1], images.shape[2], classes).to(device, memory_format=torch.channels_last)
    batch_size = min(batch_size, len(images))
    total = max(epochs * (len(images) // batch_size), least)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=data.has_bf16(device))
    generator = torch.Generator().manual_seed(seed)
    reach, side = round(images.shape[2] / 14), torch.arange(images.shape[2])
    began = shown = time.monotonic()
    batches = data.batches(images, batch_size, device, seed, labels=targets)
    for step, (x, y) in zip(range(1, total + 1), batches):
        rows, columns = side + torch.randint(2 * reach + 1, (2, batch_size, 1), generator=generator)  # (B, S) each
        place = torch.arange(batch_size)[:, None, None], rows[:, :, None], columns[:, None]
        x = F.pad(x, [reach] * 4).permute(0, 2, 3, 1)[place].permute(0, 3, 1, 2)
        with autocast:
            loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            left = round((shown - began) / step * (total - step))
            print(f"{name}: {step}/{total} | {left // 60}:{left % 60:02} left", file=sys.stderr)
    return net.eval()


@torch.no_grad()
def _in_batches(function, images, device, batch_size=250):
    """function(float batch in [0, 1]) of all images, uint8 or float, as one tensor on `device`."""
    parts = (part.to(device, memory_format=torch.channels_last) for part in images.split(batch_size))
    return torch.cat([function(part / 255 if part.dtype == torch.uint8 else part.float()).float() for part in parts])


def test_accuracy(classifier, images, labels, per_class=False):
    """Share of images (n, C, S, S) that the classifier reads as their labels (n,) (DE-GAN, Tables V and VII).

    A float; or with per_class {label: share}. Only for images that have labels: for others see `confidence`.
    """
    found = _reading(classifier, _in_batches(classifier, images, classifier.labels.device), labels)
    return found["accuracy_per_class" if per_class else "accuracy"]


def confidence(classifier, images):
    """{mean_confidence, above_0.9}: the classifier's largest probability, its mean and the share above 0.9.

    How sure the classifier is of images without labels. It is no accuracy: it may be sure and wrong.
    """
    return _reading(classifier, _in_batches(classifier, images, classifier.labels.device))


def _reading(classifier, logits, labels=None):
    """`confidence`, and with labels accuracy and accuracy_per_class, of a classifier's logits (n, classes)."""
    largest, place = logits.softmax(1).max(1)
    found = {"mean_confidence": largest.double().mean().item(), "above_0.9": _share(largest > 0.9)}
    if labels is None:
        return found
    labels = torch.as_tensor(labels).to(logits.device)
    if len(logits) != len(labels) or not len(labels):
        raise ValueError(f"labels: {len(labels)} labels for {len(logits)} images")
    right = classifier.labels[place] == labels
    per_class = {label: _share(right[labels == label]) for label in labels.unique().tolist()}
    return found | {"accuracy": _share(right), "accuracy_per_class": per_class}


def classifier_of(dataset, data_dir="data", size=None, device="cpu"):
    """The `Classifier` of a data set's training split, with its test_error; trained once, then read from a file.

    The file is classifier-NAME-SIZE.pt in data_dir, or in ./data where data_dir is read-only.
    Raises InputError if the data set has no two classes.
    """
    images, labels = data.load(dataset, data_dir, "train", size=size)
    if len(labels.unique()) < 2:
        raise InputError(f"{dataset} has no classes to read: use --features pixels")
    some = images[:: max(len(images) // 1000, 1)]
    digest = hashlib.sha256(labels.numpy().tobytes() + some.numpy().tobytes()).hexdigest()
    key = [*images.shape, digest]  # another data set, or another order of its labels, another classifier
    name = f"classifier-{Path(dataset).name}-{images.shape[-1]}.pt"
    places = [Path(data_dir) / name, Path("data") / name]
    for place in filter(zipfile.is_zipfile, places):
        try:
            saved = torch.load(place, map_location="cpu", weights_only=True)
        except UNREADABLE:  # no file of ours
            continue
        if isinstance(saved, dict) and saved.get("key") == key:
            with _apart():
                net = Classifier(images.shape[1], images.shape[2], saved["state"]["labels"])
            net.load_state_dict(saved["state"])
            net.test_error = saved["test_error"]
            return net.to(device, memory_format=torch.channels_last).eval()
    net = train_classifier(images, labels, device=device, name=f"classifier of {Path(dataset).name}")
    net.test_error = 1 - test_accuracy(net, *data.load(dataset, data_dir, "test", size=size))
    for place in places:
        if place.parent.is_dir() and not place.parent.stat().st_mode & 0o222:
            continue  # marked read-only, which is meant even where the user is root and could write all the same
        with contextlib.suppress(OSError, RuntimeError), data.whole_file(place) as file:  # torch covers a full disk with a RuntimeError
            torch.save({"key": key, "state": net.state_dict(), "test_error": net.test_error}, file)
            break
    return net


INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"


class Inception(nn.Module):
    """The network of the FID: images (B, 1 or 3, H, W) in [0, 1] -> features (B, 2048).

    Inception-v3 with the weights of 2015-12-05, as ported by pytorch-fid: torchvision's network but for the pooling
    branches, whose averages leave the padding out of the count and of which the last is a maximum.
    """

    def __init__(self):
        super().__init__()
        from torchvision.models import inception as tv

        def patched(block, pool):
            class Patched(block):
                def _forward(self, x):
                    return super()._forward(x)[:-1] + [self.branch_pool(pool(x))]  # the last branch is the pooling one

            return Patched

        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        a, c, e1 = (patched(block, average) for block in (tv.InceptionA, tv.InceptionC, tv.InceptionE))
        e2 = patched(tv.InceptionE, nn.MaxPool2d(3, stride=1, padding=1))
        net = tv.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = a(192, 32), a(256, 64), a(288, 64)
        net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e = c(768, 128), c(768, 160), c(768, 160), c(768, 192)
        net.Mixed_7b, net.Mixed_7c = e1(1280), e2(2048)
        self.net = net
        self.eval()

    def load(self, state):
        """Takes the published state dict; its last layer, 1008 classes, is then left out."""
        self.net.load_state_dict(state)
        self.net.fc = nn.Identity()
        return self

    def forward(self, x):
        x = F.interpolate(x.expand(-1, 3, -1, -1), size=(299, 299), mode="bilinear", align_corners=False)
        return self.net(2 * x - 1)


def inception(weights=None, device="cpu"):
    """The `Inception` network with weights from a file, by default the one in torch hub's cache. Raises InputError."""
    file = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE)
    if not file.is_file():
        raise InputError(f"no Inception weights at {file}: get {INCEPTION_URL} and put it there, or name it with "
                         "--inception-weights")  # fmt: skip
    net = Inception()
    try:
        net.load(torch.load(file, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file} does not hold the weights of {INCEPTION_URL}: {reason}") from error
    return net.to(device, memory_format=torch.channels_last)


def features(images, kind, net=None):
    """Feature rows (n, d) float32 of images (n, C, H, W), uint8 or float in [0, 1].

    kind: "pixels" (d = C H W, in [0, 1]); "classifier" (128; net is a `Classifier`); "inception" (2048; net is an
    `Inception`). On the net's device; pixels stay where they are.
    """
    if kind == "pixels":
        return _in_batches(lambda x: x.flatten(1), images, images.device)
    if kind == "classifier":
        return _in_batches(net.features, images, net.labels.device)
    if kind == "inception":
        return _in_batches(net, images, next(net.parameters()).device, batch_size=50)
    raise ValueError(f"kind: pixels, classifier or inception, not {kind!r}")


# -------------------------------------------------------------------------------------------------------- command line


class Images:
    """Images from files in the place of a run: no discriminator, and at most as many samples as there are files."""

    conditional, logits, args = False, None, None

    def __init__(self, name, images, labels=None):
        self.name, self.images, self.labels = name, images, labels

    def order(self, n, seed=0):
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]

    def sample(self, n, labels=None, seed=0):
        """(n, C, H, W) float32 in [0, 1], shuffled by the seed."""
        if n > len(self.images):
            raise InputError(f"{self.name} holds {len(self.images)} images, fewer than {n}: give that, or less, as --n")
        return _unit(self.images[self.order(n, seed)])


def _unit(images):
    return images / 255 if images.dtype == torch.uint8 else images.float()


def read_images(path, size=None):
    """The `Images` of a folder of pictures, or of a .npy or .npz file: uint8, or floats in [0, 1].

    A folder's images come at size x size, or at the shorter side of the first one. Arrays: (n, H, W), (n, C, H, W) or
    (n, H, W, C); of a .npz `images` or its only array, and `labels`, whole numbers, if there are any. Folders named by
    whole numbers are labels. Raises InputError for what cannot be read so.
    """
    path, labels = Path(path), None
    if path.is_dir():
        images, folders = data.load(str(path.resolve()), split="all", size=size or data.first_side(path))
        names = data.subfolders(path)
        numbered = names and all(name.isdecimal() for name in names) and folders.max() < len(names)
        labels = torch.tensor([int(name) for name in names])[folders] if numbered else None
        return Images(path.resolve().name, images, labels)
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            labels = np.asarray(found["labels"]) if "labels" in found else None
            names = [name for name in found.files if name != "labels"]
            found = np.asarray(found["images" if "images" in names or len(names) != 1 else names[0]])
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a file of plain arrays, an array `images` among them: {error}") from error
    images = torch.zeros(0)
    if found.dtype == np.uint8 or found.dtype.kind == "f":
        images = torch.from_numpy(found if found.dtype == np.uint8 else found.astype(np.float32))  # in this machine's order
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    fits = images.ndim == 4 and images.shape[1] in (1, 3) and len(images)
    fits = fits and (labels is None or labels.dtype.kind in "iu" and labels.shape == (len(images),))
    if not fits or not (images.dtype == torch.uint8 or (images.min() >= 0 and images.max() <= 1)):
        raise InputError(
            f"{path} holds {found.dtype} of shape {found.shape}: give uint8 or floats in [0, 1], of shape (n, H, W), "
            "(n, C, H, W) or (n, H, W, C), and if any a label for each, a whole number"
        )
    return Images(path.name, images, None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def _is_folder(text):
    return Path(text).is_dir() and not (Path(text) / "checkpoint.pt").exists()


def open_source(text, device, size=None):
    """A run (RUN, or RUN@STEPS for another number of steps), a folder of images, or a .npy or .npz file.

    size: of a folder's images.
    """
    folder, _, steps = text.rpartition("@")
    if folder and steps.isdecimal() and not Path(text).exists():
        return load_run(folder, device, int(steps))
    path = Path(text)
    if path.suffix in (".npy", ".npz") or _is_folder(text):
        try:
            return read_images(path, size)
        except InputError as error:
            raise InputError(f"{text} is no run (it has no checkpoint.pt), nor images: {error}") from error
    return load_run(path, device)


def open_sources(args):
    """The sources of a command, with the images and labels of the test split that they are to be compared with.

    The runs say which data set and size, unless flags do; then folders of images are read at the size of that data set.
    """
    sources = {text: open_source(text, args.device) for text in args.source if not _is_folder(text)}
    _agree(sources.values(), args)
    images, labels = data.load(args.dataset, args.data_dir, "test", size=args.size)
    for text in args.source:
        if text not in sources:
            sources[text] = open_source(text, args.device, images.shape[-1])
    names = [source.name for source in sources.values()]
    for text, source in sources.items():
        if names.count(source.name) > 1:  # gran1-mnist of two folders
            source.name = text
    return [sources[text] for text in args.source], images, labels


@contextlib.contextmanager
def _stage(text):
    """Says on stderr what is going on, and how long it took."""
    print(f"{text} ...", end="", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        yield
    except ValueError as error:
        print(file=sys.stderr)
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text}: {error}") from error  # a measure knows its arguments, but not whose they are
    print(f" {time.monotonic() - began:.1f} s", file=sys.stderr)


def _short(name, width):
    return name if len(name) <= width else name[: width // 2] + "…" + name[len(name) - (width - 1 - width // 2) :]


def print_table(head, rows):
    """Columns two spaces apart, the first to the left, the others to the right."""
    table = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def _write_json(file, content):
    if file:
        plain = json.loads(json.dumps(content, default=str), parse_constant=lambda name: None)  # JSON has no Infinity
        Path(file).write_text(json.dumps(plain, indent=1) + "\n")


def _agree(sources, args):
    """Puts the data set and size of the runs into args, where no flag gives them; InputError if the runs differ."""
    for name in ("dataset", "size"):
        values = {getattr(source.args, name, None) for source in sources if source.args is not None}
        if getattr(args, name) is None:
            if len(values) > 1:
                raise InputError(f"the runs differ in {name} ({', '.join(map(str, values))}): give runs of one {name}")
            setattr(args, name, next(iter(values), None))
    if args.dataset is None:
        raise InputError("no run says which data set to compare with: name it with --dataset")


def _common_n(sources, args):
    """--n, or as many images as the smallest source has: figures of different n do not compare."""
    n = min([args.n, *(len(source.images) for source in sources if isinstance(source, Images))])
    if n < 4 * args.k:
        raise InputError(f"{n} images of each are too few for k = {args.k}: at least {4 * args.k} are needed")
    return n


def measure(images, real, kind="pixels", net=None, classifier=None, labels=None, real_labels=None, k=5,
            bandwidth=None, real_features=None):  # fmt: skip
    """All measures of images (n, C, H, W) against real ones, both float32 in [0, 1] and shuffled, as floats and dicts.

    FID on `features` of `kind` by `net`; MMD, kNN, Bayes and rdd on pixels; confidence, and with labels (n,) accuracy,
    by `classifier`. rdd is per class where there are labels, over classes with 20 images or more on either side, and
    over all images at once where no class has. bandwidth (of the MMD) and real_features are worked out where not given.
    """
    if images.shape[1:] != real.shape[1:]:
        shapes = " against ".join("x".join(map(str, x.shape[1:])) for x in (images, real))
        raise InputError(f"images of another shape than the real ones: {shapes}")
    images = images.to(real.device)
    own_features = features(images, kind, net)
    real_features = features(real, kind, net) if real_features is None else real_features
    half, real_half = len(images) // 2, len(real) // 2
    halves = real[:real_half], images[:half], real[real_half:], images[half:]
    result = {
        "n": len(images),
        "fid": fid(own_features, real_features),
        "mmd": mmd(images, real, bandwidth=bandwidth),
        "knn": knn_misclassification(*halves, k=k),
        "bayes": bayes_misclassification(*halves),
    }
    shared = []
    if labels is not None:  # a mean over n: 19/20 of what it would be over n - 1, at the least
        shared = [c for c in real_labels.unique() if min((labels == c).sum(), (real_labels == c).sum()) >= 20]
    if shared:
        own, other = (torch.isin(of, torch.tensor(shared)) for of in (labels, real_labels))
        moved = own.to(real.device), other.to(real.device)
        result["rdd"] = rdd(images[moved[0]], real[moved[1]], labels[own], real_labels[other])
    else:
        result["rdd"] = rdd(images, real)
    if classifier is not None:
        with torch.no_grad():
            known = own_features if kind == "classifier" else features(images, "classifier", classifier)
            result |= _reading(classifier, classifier.read(known), labels)
    return result


def eval_command(args):
    """One table of all sources, under a row of the real test images against the training images."""
    sources, test, test_labels = open_sources(args)
    train, train_labels = data.load(args.dataset, args.data_dir, "train", size=args.size)
    n = _common_n([*sources, Images("", train), Images("", test)], args)
    order = Images("", train).order(n, args.seed)
    real, real_labels = _unit(train[order]).to(args.device), train_labels[order]
    labelled = len(train_labels.unique()) > 1
    sources.insert(0, Images("real test images", test, test_labels))
    kind = args.features or ("classifier" if labelled else "pixels")
    read = any(s.conditional or s.labels is not None for s in sources[1:])
    asked = kind == "classifier" or (labelled and read)
    classifier = classifier_of(args.dataset, args.data_dir, args.size, args.device) if asked else None
    net = inception(args.inception_weights, args.device) if kind == "inception" else classifier
    with _stage(f"{kind} features of {n} training images"):
        known = {"real_features": features(real, kind, net), "bandwidth": median_distance(real)}

    rows = []
    for source in sources:
        labels = None if source.labels is None else source.labels[source.order(n, args.seed)]
        if source.conditional:
            labels = torch.arange(n) % source.args.classes  # balanced
        with _stage(f"{source.name}: {n} images"):
            images = source.sample(n, labels=labels, seed=args.seed)
        with _stage(f"{source.name}: measures"):
            row = measure(images, real, kind, net, classifier, labels if labelled else None, real_labels, args.k, **known)
            if args.paper_units:
                row["paper"] = paper_units(images.to(real.device), real, row)
        rows.append({"name": source.name} | row)

    print(f"\n{args.dataset}, {real.shape[-1]} px: {n} images of each against {n} training images, seed {args.seed}")
    print(f"FID on {kind} features ({known['real_features'].shape[1]} numbers), the rest on pixels; "
          f"MMD's sigma {known['bandwidth']:.2f}")  # fmt: skip
    if classifier is not None:
        print(f"the classifier misreads {classifier.test_error:.2%} of the {len(test)} test images")
    print()
    print_table(["", "FID", "MMD", "kNN", "Bayes", "conf.", ">0.9", "acc.", "rdd "], [_eval_row(row) for row in rows])
    print(f"""
FID, MMD: 0 is best, and the first row the floor at this n.
kNN (k = {args.k}), Bayes: share mistaken, the smaller of real and generated; 0.5 is
best, 0 is told apart; the first row says how far real images get.
conf., >0.9: how sure the classifier is, on average and how often above 0.9;
this is no accuracy. acc.: read as the label they were drawn for.
rdd: 1 is best; the mean of the classes, with * over all images at once.""")
    per_class = [row for row in rows if row["rdd"]["per_class"]]
    if len(per_class) > 1 and len(train_labels.unique()) <= 10:
        for title, values in (
            ("rdd", [row["rdd"]["per_class"] for row in per_class]),
            ("accuracy", [row["accuracy_per_class"] for row in per_class]),
        ):
            print()
            labels = sorted({label for value in values for label in value})  # which a source may lack
            cells = ([f"{value[label]:.2f}" if label in value else "-" for label in labels] for value in values)
            print_table([f"{title} per class", *labels], [[_name(row), *c] for row, c in zip(per_class, cells)])
    if args.paper_units:
        print("\nin the units of DRAW-GAN's tables, as we read them: roots of the biased MMD and")
        print("of the FID on pixels 0 to 255, and the larger share mistaken, no quality\n")
        cells = ([f"{x:.4f}" for x in row["paper"].values()] for row in rows)
        print_table(["", "MMD", "FID", "K-NN", "Bayes"], [[_name(row), *c] for row, c in zip(rows, cells)])
    content = {name: getattr(args, name) for name in ("dataset", "seed", "k")} | {"n": n, "features": kind}
    error = None if classifier is None else classifier.test_error
    content |= {"bandwidth": known["bandwidth"], "classifier_test_error": error, "rows": rows}
    _write_json(args.json, content)


def _name(row):
    return _short(row["name"], 16)


def _eval_row(row):
    def share(key):
        return f"{row[key]:.1%}" if key in row else "-"

    star = " " if row["rdd"]["per_class"] else "*"
    return [_name(row), f"{row['fid']:.4g}", f"{row['mmd']:.2e}", f"{row['knn']['min']:.3f}",
            f"{row['bayes']['min']:.3f}", share("mean_confidence"), share("above_0.9"), share("accuracy"),
            f"{row['rdd']['mean']:.3f}{star}"]  # fmt: skip


def paper_units(images, real, row):
    """The columns of DRAW-GAN's Tables I and II, as far as they can be made out: see the note that `eval` prints."""
    pixels = fid(images, real)
    return {"mmd": math.sqrt(max(row["mmd"], 0)), "fid": 255 * math.sqrt(pixels), "knn": row["knn"]["max"],
            "bayes": row["bayes"]["max"]}  # fmt: skip


def gam_command(args):
    """Every pair of the runs, the error rates behind, and how many battles each has won."""
    if len(args.source) < 2:
        raise InputError("a battle needs at least two runs")
    runs, images, labels = open_sources(args)
    if all(run.logits is None for run in runs):
        names = ", ".join(run.name for run in runs)
        raise InputError(f"none of {names} has a discriminator, so there is no battle to hold")
    for run in runs:
        if run.conditional and labels.max() >= run.args.classes:
            raise InputError(f"{run.name} was trained on {run.args.classes} classes, the test images have {labels.max() + 1}")
        shape = run.sample(1, labels=labels[:1] if run.conditional else None).shape[1:]
        if shape != images.shape[1:]:
            raise InputError(f"{run.name} draws images of {tuple(shape)}, the test images are {tuple(images.shape[1:])}")
    n = min([args.n, *(len(run.images) for run in runs if isinstance(run, Images))])
    n_test = min(n, len(images))
    with _stage(f"{len(runs)} runs, {n} samples of each"):
        test, fake = error_rates(runs, _unit(images), n, labels, args.seed)
    pairs = [(i, j) for i in range(len(runs)) for j in range(i + 1, len(runs))]
    battles = [(i, j, _battle(test, fake, i, j, n, n_test, args.tolerance)) for i, j in pairs
               if runs[i].logits or runs[j].logits]  # fmt: skip
    sizes = sorted({run.args.batch_size for run in runs if run.logits is not None})
    print(
        f"\n{args.dataset}: {n} samples a run, {n_test} test images, seed {args.seed}\n"
        f"D at logit 0, in batches of its training size ({', '.join(map(str, sizes))}), real and generated apart\n"
    )
    rows, wins = [], dict.fromkeys(range(len(runs)), 0)
    for i, j, battle in battles:
        names = f"{_short(runs[i].name, 13)} vs. {_short(runs[j].name, 13)}"
        if battle["winner"] is None:
            rows.append([names, "", "", "", f"error {battle['error']:.3f}"])
            continue
        winner = {"M1": i, "M2": j}.get(battle["winner"])
        if winner is not None:
            wins[winner] += 1
        low, high = battle["r_sample_95"]
        rows.append([names, f"{battle['r_test']:.3g}", f"{battle['r_sample']:.3g}", f"{low:.3g} to {high:.3g}",
                     "tie" if winner is None else _short(runs[winner].name, 13)])  # fmt: skip
    print_table(["battle (GRAN, eqs. 10, 11)", "r_test", "r_sample", "95 %", "winner"], rows)
    print(f"\nr_sample below 1: the first wins, above 1 the second; a tie where r_test is not\n"
          f"within a factor of {1 + args.tolerance:g} of 1. 1 in the interval: within the noise. error: of\n"
          "the D of the one on the samples of the other, which has none (Table 3).\n")  # fmt: skip
    judges = [i for i, run in enumerate(runs) if run.logits is not None]
    cells = [["-" if x is None else f"{x:.3f}" for x in (test[i], *fake[i])] for i in judges]
    head = ["error rate of D", "on test", *(f"on {j + 1}" for j in range(len(runs)))]
    print_table(head, [[f"{i + 1} {_short(runs[i].name, 20)}", *c] for i, c in zip(judges, cells)])
    others = [f"{i + 1} {run.name}" for i, run in enumerate(runs) if run.logits is None]
    if others:
        print("without a D:", ", ".join(others))
    ranking = sorted(judges, key=lambda i: -wins[i])
    print("\nwins:", ", ".join(f"{runs[i].name} {wins[i]}" for i in ranking))
    print("(a count and no order: battles may cycle)")
    _write_json(args.json, {
        "dataset": args.dataset, "n": n, "n_test": n_test, "seed": args.seed, "tolerance": args.tolerance,
        "battles": [{"M1": runs[i].name, "M2": runs[j].name} | battle for i, j, battle in battles],
        "error_rates": {"runs": [run.name for run in runs], "test": test, "fake": fake},
        "wins": {runs[i].name: wins[i] for i in judges},
    })  # fmt: skip


def dim_command(args):
    """The intrinsic dimension of a data set's training images over k, as figures and as a picture."""
    if Path(args.out).suffix.lower() not in data.EXTENSIONS:  # said before the search, which may take an hour
        raise InputError(f"--out {args.out} is no name of a picture: let it end in .png")
    images, _ = data.load(args.dataset, args.data_dir, "train", size=args.size)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.n or len(images)]
    ks = sorted(set(args.k))
    if len(chosen) <= ks[-1]:
        raise InputError(f"{len(chosen)} images are too few for k = {ks[-1]}: give a smaller --k or a larger --n")
    with _stage(f"{ks[-1]} neighbours of each of {len(chosen)} images"):
        curve = _dimensions(images[chosen].flatten(1).to(args.device), ks)
    print(f"\n{args.dataset}: intrinsic dimension of {len(chosen)} training images, seed {args.seed}\n")
    print_table(["k", "eq. 16 (mean)", "inverse mean"], [[k, *(f"{m:.2f}" for m in curve[k].values())] for k in ks])
    names = next(iter(curve.values()))
    draw_curves({name: [(k, curve[k][name]) for k in ks] for name in names}, args.out,
                f"intrinsic dimension of {args.dataset}, {len(chosen)} images, over k", log="x")  # fmt: skip
    print(f"\nThere is no limit in k (eq. 17): say k and n with any figure. The curve is in {args.out}")
    _write_json(args.json, {"dataset": args.dataset, "n": len(chosen), "seed": args.seed, "dimension": curve})


def draw_curves(curves, path, title, log=""):
    """A picture of lines {name: [(x, y), ...]}; the axes in `log` ("x", "y", "xy") are logarithmic, the others show 0.

    Lines of up to 20 points have each marked. Logarithmic axes hold numbers above 0 only.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (640, 400), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((60, 12), title, fill="black")
    curves = {name: points for name, points in curves.items() if points}
    xs, ys = zip(*(point for points in curves.values() for point in points))
    (x_share, x_marks), (y_share, y_marks) = _axis(xs, "x" in log), _axis(ys, "y" in log)

    def at(x, y):
        return 60 + 540 * x_share(x), 360 - 310 * y_share(y)

    for y in y_marks:
        height = at(xs[0], y)[1]
        pen.line([(60, height), (600, height)], fill="lightgray")
        pen.text((50, height), f"{y:g}", fill="black", anchor="rm")
    for x in x_marks:
        pen.text((at(x, ys[0])[0], 366), f"{x:g}", fill="black", anchor="ma")
    pen.line([(60, 50), (60, 360), (600, 360)], fill="black")
    left = 60
    for (name, points), colour in zip(curves.items(), ("navy", "firebrick", "royalblue", "salmon")):
        pen.line([at(*point) for point in points], fill=colour, width=2)
        for x, y in (at(*point) for point in points if len(points) <= 20):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        pen.text((left, 30), name, fill=colour)
        left += pen.textlength(name) + 20
    picture.save(path)


def _axis(values, log):
    """-> (value to its share of the axis' length, the values to mark: 1, 2 or 5 times a power of ten)."""
    scale = math.log10 if log else float
    low, high = scale(min(values) if log else min(0, *values)), scale(max(values))
    span = high - low or 1
    if log:
        marks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    else:
        power = 10.0 ** math.floor(math.log10(span / 5))
        pitch = next(digit * power for digit in (1, 2, 5, 10) if span <= 8 * digit * power)
        marks = [i * pitch for i in range(math.floor(low / pitch), math.ceil(high / pitch) + 1)]
    return lambda value: (scale(value) - low) / span, [x for x in marks if -1e-9 <= (scale(x) - low) / span <= 1 + 1e-9]


def folders_command(args):
    """The measures of one folder (or file) of images against another, which holds the real ones.

    Folders are read at --size, at the size of what is no folder, or else at that of the first generated image.
    """
    sources, size = {}, args.size
    for text in sorted((args.generated, args.real), key=_is_folder):
        sources[text] = open_source(text, args.device, size)
        size = size or (sources[text].images.shape[-1] if isinstance(sources[text], Images) else sources[text].args.size)
    generated, real = sources[args.generated], sources[args.real]
    n = _common_n([generated, real], args)
    net = inception(args.inception_weights, args.device) if args.features == "inception" else None
    x, y = (source.sample(n, seed=args.seed).to(args.device) for source in (generated, real))
    with _stage(f"measures of {n} images each"):
        row = {"name": generated.name} | measure(x, y, args.features, net, k=args.k)
    print(f"\n{n} images of {generated.name} against {n} of {real.name}, {x.shape[-1]} px, seed {args.seed}; FID on {args.features}\n")
    print_table(["", "FID", "MMD", "kNN", "Bayes", "rdd"], [[*_eval_row(row)[:5], _eval_row(row)[-1]]])
    _write_json(args.json, {"features": args.features, "seed": args.seed, "real": real.name} | row)


def parse_args(argv=None):
    parser = Parser("metrics.py", description="Measures of image generators, and the battles between them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    source = "runs (RUN@7: drawn with 7 steps), folders of images, .npy or .npz files"
    eval_, gam_, dim_, folders_ = (
        commands.add_parser(f"{name}", prog=f"metrics.py {name}", help=text, description=text)
        for name, text in (
            ("eval", "FID, MMD, kNN, Bayes, accuracy and rdd of all sources in one table"),
            ("gam", "the battles of every pair of runs"),
            ("dim", "intrinsic dimension of a data set"),
            ("folders", "the measures of generated images against real ones, both from folders"),
        )
    )
    for command in (eval_, gam_):
        command.add_argument("source", nargs="+", metavar="RUN", help=source)
        command.add_argument("--dataset", help="what to compare with; the runs' own if not given")
    for name in ("generated", "real"):
        folders_.add_argument(name, metavar=name.upper(), help="a folder of images, or a .npy or .npz file")
    dim_.add_argument("--dataset", default="digits", help=f"{', '.join(data.DATASETS)}, or a folder of images")
    dim_.add_argument("--k", type=count, nargs="+", default=[10, 20, 50, 100], help="numbers of neighbours")
    dim_.add_argument("--out", default="dim.png", help="the curve's picture")
    for command in (eval_, folders_):
        kinds = ["classifier", "pixels", "inception"] if command is eval_ else ["pixels", "inception"]
        text = "of the FID" + (
            "; classifier if not given, pixels where there are no labels" if command is eval_ else ""
        )
        command.add_argument("--features", choices=kinds, default=None if command is eval_ else "pixels", help=text)
        command.add_argument("--inception-weights", metavar="FILE", help=f"{INCEPTION_FILE}; torch hub's if not given")
        command.add_argument("--k", type=count, default=5, help="neighbours that vote in kNN")
    eval_.add_argument("--paper-units", action="store_true", help="DRAW-GAN's columns as well")
    gam_.add_argument("--tolerance", type=weight, default=0.3, help="how far r_test may be from 1, as a factor less 1")
    for command in (eval_, gam_, dim_):
        command.add_argument("--data-dir", default="data", help="where data sets lie")
    for command in (eval_, gam_, dim_, folders_):
        text = "the generated images'" if command is folders_ else "the runs' or the data set's"
        command.add_argument("--size", type=count, help=f"side of the images in pixels; {text} own if not given")
        whole = command is dim_
        text = "training images; all if not given" if whole else "images of each, as far as there are"
        command.add_argument("--n", type=count, default=None if whole else 10000, help=text)
        command.add_argument("--seed", type=seed, default=0, help="of samples and of the shuffling of images")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command.add_argument("--device", default=device, help="cpu, cuda, cuda:1, ...")
        command.add_argument("--json", metavar="FILE", help="write all figures there too; null for infinite ones")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    command = {"eval": eval_command, "gam": gam_command, "dim": dim_command, "folders": folders_command}[args.command]
    try:
        device_of(args.device)
        for file in filter(None, (args.json, getattr(args, "out", None))):  # said before the work, which may take an hour
            if not Path(file).absolute().parent.is_dir() or Path(file).is_dir():
                raise InputError(f"{file} cannot be written: {'it is a folder' if Path(file).is_dir() else 'there is no such folder'}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a name that the terminal's alphabet lacks is no end of the work
        command(args)
    except (InputError, OSError) as error:
        print(f"metrics.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
