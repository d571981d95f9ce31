"""Images in: embedded sets, torchvision's sets and folders of images, as bytes; batches of them.

`load` gives a whole data set as uint8 (N, C, H, W) with labels (N,); `batches` serves it for ever
as float32 in [0, 1]. Files lie in data_dir:

    digits, faces               none: drawn from a seed, at the end of this file
    mnist, fashion-mnist, svhn  downloaded when missing
    cifar10                     cifar-10-batches-py/, or class folders in cifar10-jpeg/{train,test}/
                                or cifar10/{train,test}/; downloaded when missing
    celeba                      celeba/img_align_celeba/, list_eval_partition.txt or .csv
    lsun-church, lsun-rooms     lsun-church/, lsun-rooms/{kitchen,living_room}/
    imagenet, telugu            imagenet/{train,val}/CLASS/, telugu/CLASS/
    a path                      any folder of images, by the rules of `list_images`
"""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import math
import os
import re
import shlex
import signal
import string
import sys
import time
import warnings
import zipfile
import zlib
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torchvision import datasets

DATASETS = {  # name: (channels, side in pixels) unless load's size says otherwise
    "digits": (1, 28), "faces": (3, 32), "mnist": (1, 28), "fashion-mnist": (1, 28),
    "cifar10": (3, 32), "svhn": (3, 32), "celeba": (3, 64), "lsun-church": (3, 64),
    "lsun-rooms": (3, 64), "imagenet": (3, 64), "telugu": (1, 32),
}  # fmt: skip
KNOWN = {  # name: images for training and for the test, torchvision's class, its files in data_dir
    "digits": (60_000, 10_000, None, None),
    "faces": (20_000, 4_000, None, None),
    "mnist": (60_000, 10_000, datasets.MNIST, "MNIST/raw/*-ubyte"),
    "fashion-mnist": (60_000, 10_000, datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte.gz"),
    "cifar10": (50_000, 10_000, datasets.CIFAR10, "cifar-10-python.tar.gz or cifar10/train/CLASS/"),
    "svhn": (73_257, 26_032, datasets.SVHN, "train_32x32.mat and test_32x32.mat"),
}
FOLDERS = {"cifar10": ("cifar10-jpeg", "cifar10"), "celeba": ("celeba/img_align_celeba",
           "celeba/Img/img_align_celeba", "celeba")}  # in data_dir; others lie under their name
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow opens no others
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
              ".pgm", ".pbm")
HIDDEN = (".", "__MACOSX")  # how the names begin that are passed over
TRAIN = "train|training|trainval"
TEST = "test|testing|val|valid|validation|dev|eval|evaluation|holdout|heldout"


class InputError(ValueError):
    """An error the user can fix: one line that names the thing and the way out."""

    def __init__(self, text):
        super().__init__(shown(text))


class Loaded(tuple):
    """What `load` gives: `images, labels = load(...)`, and attributes."""

    def __new__(cls, images, labels, **about):
        loaded = super().__new__(cls, (images, labels))
        vars(loaded).update(about)
        return loaded


def load(dataset, data_dir="data", split="train", size=None, classes=None):
    """-> Loaded: images uint8 (N, C, H, W), labels int64 (N,), -1 for a test image without a label.

    dataset: a name out of DATASETS, or a folder of images (a name wins; `./digits` is a folder).
    split: "train", "test", or "all", train before test.
    size: H = W. By default the data set's own; of a folder that of its first image, if that is
        square and at most 64, else 64. Images are cut to their middle square and resized.
    classes: names to keep (or label numbers, where no name is a number), relabelled 0..k-1.

    Attributes: classes, label k is classes[k] (["."] where a folder has none); digest, hex, of all
    images; held_out, the number of test images; note, what was taken and left out, in a line.
    Raises InputError for what is unknown, missing or unreadable.
    """
    dataset, data_dir = str(dataset), Path(path(data_dir))
    if split not in ("train", "test", "all") or not (size is None or size >= 1):
        raise InputError(f"split {split!r}, size {size}: give train, test or all, and 1 or more")
    places = [data_dir / place for place in FOLDERS.get(dataset, (dataset,))]
    places = places if dataset in DATASETS else [Path(path(dataset)).resolve()]
    folder = next((place for place in places if place.is_dir()), None)
    own = dataset != "cifar10" or not folder or (data_dir / "cifar-10-batches-py").is_dir()
    if dataset in KNOWN and own:
        images, labels, about = _known(dataset, data_dir, split, size)
    elif folder:
        images, labels, about = _from_folder(dataset, folder, data_dir, split, size)
    elif dataset in DATASETS:
        raise InputError(f"there is no {places[0]}: put {dataset} there, or use --dataset digits")
    else:
        raise InputError(f"{dataset!r} is no folder of images, nor one of {', '.join(DATASETS)}")
    if classes is not None:
        names = about["classes"]
        numbers = {} if any(map(str.isdecimal, names)) else {str(k): n for k, n in enumerate(names)}
        classes = about["classes"] = [numbers.get(str(wanted), str(wanted)) for wanted in classes]
        if not {*classes} <= {*names} or len({*classes}) < len(classes) or (labels < 0).any():
            raise InputError(f"classes {classes} cannot be taken, each once, of {about['note']}")
        labels = torch.tensor([classes.index(n) if n in classes else -1 for n in names])[labels]
        images, labels = images[labels >= 0], labels[labels >= 0]
    return Loaded(images, labels, **about)


def training_set(args, batch_size):
    """-> training images and labels of args.dataset; says what was taken, and fills in args.

    args gets channels, size, class_names, digest, train_images, and batch_size where it is None:
    the paper's, but at most a quarter of the images. On resume, images of another shape or other
    classes are an InputError, and changed images are said.
    """
    loaded = load(args.dataset, args.data_dir, size=args.size)
    images, labels = loaded
    about = {"channels": images.shape[1], "size": images.shape[2], "train_images": len(images),
             "class_names": getattr(loaded, "classes", [str(k) for k in labels.unique().tolist()]),
             "digest": getattr(loaded, "digest", "")}  # fmt: skip
    say(getattr(loaded, "note", f"{args.dataset}: {len(images)} training images"))
    if len(images) < 200:
        say(f"{len(images)} images are very few: expect copies of them, or noise")
    if args.resume and getattr(args, "digest", None) is not None:
        for key in ("channels", "size", "class_names"):
            if getattr(args, key) != about[key]:
                raise InputError(f"{args.dataset} has {key} {about[key]}, but {args.resume} was "
                                 f"trained on {getattr(args, key)}: give --dataset its own images")
        if args.digest != about["digest"]:
            say(f"note: {args.dataset} has changed: {args.train_images} training images then, "
                f"{len(images)} now{_changes(str(args.digest), about['digest'])}")
    vars(args).update(about)
    args.batch_size = args.batch_size or max(min(batch_size, len(images) // 4), 2)
    return images, labels


def _changes(old, new):
    """How the images of two digests differ, in words; "" where a digest does not list them."""
    (trained, held_out), (train, test) = (
        [{row[:6] for row in re.findall("." * 7, digest[16:]) if row[6] == part} for part in "01"]
        for digest in (old, new))  # fmt: skip
    before, now, moved = trained | held_out, train | test, train & held_out - trained
    words = f"; {len(now - before)} are new, {len(before - now)} gone (replaced ones count as both)"
    words += f"; {len(moved)} that were held out are now trained on" if moved else ""
    return words if before and now else ""


# ---- Batches and devices -------------------------------------------------------------------------


def batches(images, batch_size, device, seed, start=0, labels=None):
    """Serve float32 batches (batch_size, C, H, W) in [0, 1] for ever; (x, y) if there are labels.

    images: uint8 (N, C, H, W); labels: (N,). The order depends on (seed, step) alone: a permutation
    for each epoch, whose last partial batch is left out; start=step continues an interrupted run.
    The bytes live on the device, or where they do not fit on the host. InputError where batch_size
    is not in 1..N.
    """
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch size {batch_size} does not fit {len(images)} images")
    device, home = torch.device(device), torch.device(device)
    if device.type == "cuda" and images.nbytes > 0.5 * torch.cuda.mem_get_info(device)[0]:
        say(f"{images.nbytes / 2**30:.1f} GiB of images stay on the host, {device} has no room")
        home = torch.device("cpu")
    images, labels = images.to(home), None if labels is None else labels.to(home)

    def take(values, chosen):
        values = values.index_select(0, chosen)
        return values if home == device else values.pin_memory().to(device, non_blocking=True)

    def serve():
        per_epoch, epoch = len(images) // batch_size, None
        for step in itertools.count(start):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
                order = torch.randperm(len(images), generator=generator).to(home)
            chosen = order[step % per_epoch * batch_size :][:batch_size]
            x = take(images, chosen).contiguous(memory_format=torch.channels_last) / 255
            yield x if labels is None else (x, take(labels, chosen))

    return serve()  # a generator of its own, so that a wrong batch size fails at the call


def captured(update, served, graph):
    """Run update(*batch) -> losses (k,) on every batch of `served`; yields their running sums.

    The sums stay one tensor: zero_() starts them again. With `graph`, three plain updates are
    followed by one CUDA graph of a whole one: update must not wait or branch on a value.
    """
    sums, recorded, stream = 0, None, torch.cuda.Stream() if graph else None
    for calls, batch in enumerate(served):
        batch = batch if isinstance(batch, tuple) else (batch,)
        if graph and calls == 3:
            place, recorded = [part.clone() for part in batch], torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=stream):  # records the kernels, runs none
                sums += update(*place)
        if recorded:
            for kept, part in zip(place, batch):
                kept.copy_(part)
            recorded.replay()
        else:
            stream.wait_stream(torch.cuda.current_stream()) if graph else None
            with torch.cuda.stream(stream):  # the stream of the capture; does nothing if None
                sums += update(*batch)
            torch.cuda.current_stream().wait_stream(stream) if graph else None
        yield sums


def open_device(name):
    """The torch.device of that name, TF32 allowed; InputError where it cannot be used."""
    try:
        device = torch.device(name)
        torch.zeros(2, device=device).sum().item()  # an old driver or an unknown card fails here
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name} cannot be used ({reason}): try --device cpu") from error
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 products: 10 bits of mantissa
        torch.backends.cudnn.allow_tf32 = True
    elif Path("/dev/nvidiactl").exists() and not torch.cuda.is_available():
        say("note: this PyTorch cannot use the NVIDIA card here (is its driver older?): on the CPU")
    return device


def has_bf16(device):
    """Whether bfloat16 pays: CUDA with units for it, a CPU with avx512_bf16 or amx_bf16."""
    kind, cpuinfo = torch.device(device).type, Path("/proc/cpuinfo")
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpuinfo.read_text() if kind == "cpu" and cpuinfo.exists() else ""  # Linux only
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(args, device):
    """bfloat16 if args.amp; by default where it is fast (on CUDA: for images above 32 px)."""
    if args.amp is None:
        args.amp = has_bf16(device) and (device.type == "cpu" or args.size > 32)
    return torch.autocast(device.type, torch.bfloat16, enabled=args.amp)


def check_flags(parser, args, may_be_0=()):
    """parser.error for a number that is out of range, and for --sample without --resume."""
    for name, value in vars(args).items():
        if type(value) in (int, float) and name != "seed":
            most = {"ema": 1, "decay": math.nextafter(1, 2)}.get(name, math.inf)
            if not (0 < value < most or value == 0 and name in may_be_0):
                least = "0 or more" if name in may_be_0 else "above 0"
                least += f" and at most {most:.0f}" if most < math.inf else ""
                parser.error(f"--{name.replace('_', '-')} must be {least}, not {value}")
    if not -(2**63) <= args.seed < 2**63:
        parser.error(f"--seed {args.seed} has more than 64 bits: give a smaller number")
    if args.sample and not args.resume:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if getattr(args, "draw_classes", None) and not args.sample:
        parser.error("--classes goes with --sample; to train on some classes, move the others away")
    if args.dataset in DATASETS:
        args.channels, side = DATASETS[args.dataset]
        args.size = args.size or side


def planned_updates(args, epochs, batches=1):
    """Updates, of `batches` each, in args.epochs, or by default in `epochs` and at least 3,000."""
    per_epoch = args.train_images // (batches * args.batch_size)
    planned = args.epochs * per_epoch if args.epochs else max(epochs * per_epoch, 3000)
    return max(planned, args.iters or 0)


def due(step, total, args, stop, every=200):
    """-> whether this update has a printed line; a checkpoint and pictures; is the last.

    Lines: updates 1, 10 and every args.log_every. Pictures: update 100, and every
    args.sample_every, by default `every`, on CUDA ten times that.
    """
    every = args.sample_every or every * (10 if args.device.startswith("cuda") else 1)
    ends = step == total or bool(stop)
    saves = ends or step == 100 or step % every == 0
    return saves or step in (1, 10) or step % args.log_every == 0, saves, ends


class Stopped(Exception):
    """Ctrl-C or SIGTERM, after the checkpoint; its text is the run's folder."""


def stop_signals():
    """A list that Ctrl-C and SIGTERM fill: a loop can save and stop. The next one ends at once."""
    caught = []

    def stop(signum, frame):
        caught.append(signum)
        signal.signal(signum, before[signum])

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    return caught


# ---- Messages and files ------------------------------------------------------------------------


def path(text):
    """Type of a flag that is a path: `~` is the user's home."""
    return os.path.expanduser(text)


def natural(name):
    """Sort key of names as people read them: 2 before 10."""
    parts = re.split(r"(\d+)", str(name))
    return [int(part) if part.isdecimal() else part.lower() for part in parts], str(name)


def shown(text):
    """The text with its control characters escaped: file names may hold any."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def say(text):
    """Prints a line at once. Where stdout is closed or full, the program goes on without it."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def plain_errors(prog):
    """Around a `main`: what the user can fix is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII console shows ? for what it lacks
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped as stopped:
        say(f"stopped; resume with: python {prog} --resume {shlex.quote(str(stopped))}")
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", text):
            text = "memory is full: lower --batch-size or --size, or close other programs"
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            text = text.splitlines()[0]
            text = f"--compile failed ({text}): install a C++ compiler, or leave --compile out"
        elif not isinstance(error, (InputError, FloatingPointError, OSError)):
            raise
        print(f"{prog}: error: {shown(text)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def whole_file(path):
    """A file to write, moved to `path` when the block ends well: nobody ever sees half of it."""
    part = Path(f"{path}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _cached(folder, name, state, make):
    """What make() gives, kept in a file of `folder`, which replaces that of another state."""
    place = folder / f"{name}-{state}.cache"
    with contextlib.suppress(Exception):  # missing, cut short, a flipped byte: it is made again
        if zipfile.ZipFile(place).testzip() is None:
            return torch.load(place, mmap=True, weights_only=True)
    made = make()
    try:
        with whole_file(place) as file:
            torch.save(made, file)
        for old in {*folder.glob(f"{name}-*.cache")} - {place}:
            old.unlink()
    except (OSError, RuntimeError) as error:  # torch.save raises the second on a full disk
        reason = error.__context__ or error
        print(f"note: {place} is not kept, but made again next time: {reason}", file=sys.stderr)
    return made


def _known(dataset, data_dir, split, size):
    """-> images, labels and facts of an embedded set, or one of torchvision's, which downloads."""
    *counts, source, files = KNOWN[dataset]
    side, parts = size or DATASETS[dataset][1], []
    names = [str(k) for k in range(48 if dataset == "faces" else 10)]
    if dataset == "faces" and side not in (32, 64):
        raise InputError(f"faces are drawn at 32 or 64 pixels, not at {side}")
    for part in ("train", "test") if split == "all" else (split,):
        if source is None:
            draw, seed = draw_faces if dataset == "faces" else draw_digits, int(part == "test")
            make = functools.partial(draw, counts[seed], seed, side)
            parts.append(_cached(data_dir, f"{dataset}-{side}-{part}", DRAWN_VERSION, make))
            continue
        which = {"split": part} if dataset == "svhn" else {"train": part == "train"}
        try:
            found = source(data_dir, download=True, **which)
            images = torch.as_tensor(np.ascontiguousarray(found.data))
            labels = torch.as_tensor(found.labels if dataset == "svhn" else found.targets)
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} images but {len(labels)} labels")
        except Exception as error:  # of many kinds: readers, downloads
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
            raise InputError(f"{dataset} cannot be read or downloaded ({reason}): put {files} into "
                             f"{data_dir} (--data-dir), or use --dataset digits") from error
        if dataset in ("fashion-mnist", "cifar10"):
            names = [name.replace("/", "-") for name in found.classes]
        images = images.permute(0, 3, 1, 2).contiguous() if dataset == "cifar10" else images
        parts.append((images[:, None] if images.ndim == 3 else images, labels))
    images, labels = (torch.cat(both) for both in zip(*parts))
    if side != images.shape[-1]:
        resize = functools.partial(F.interpolate, size=(side, side), mode="bicubic", antialias=True)
        parts = [resize(part.float()).round().clamp(0, 255).byte() for part in images.split(1000)]
        images = torch.cat(parts)
    note = _note(dataset, *counts, names, labels, images)
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:16]
    return images, labels, {"classes": names, "digest": digest, "held_out": counts[1], "note": note}


def _note(name, train, test, names, labels, images, origin="", colours="", left=()):
    """What was taken and what was left out, in one line."""
    counts = labels[labels >= 0].bincount(minlength=len(names)).tolist()
    own = ", ".join(f"{name} ({n:,})" for name, n in [*zip(names, counts)][:10])
    own = f"{len(names)} class{'es' * (len(names) > 1)}: {own}{', ...' * (len(names) > 10)}"
    left = ", ".join(f"{n:,} {what}" for what, n in [*dict(left).items()][-8:])
    return shown(f"{name}: {train:,} training and {test:,} test images{origin}; "
                 f"{'no classes' if names == ['.'] else own}; "
                 f"{'grey' if images.shape[1] == 1 else 'colour'}{colours}; {images.shape[2]} x "
                 f"{images.shape[3]} pixels{'; left out: ' * bool(left)}{left}")


# ---- Folders of images -------------------------------------------------------------------------


def split_of(name):
    """"train" or "test" where a folder's name says so (Training_Set, val2017), else ""."""
    word = re.sub("[-_ .]", "", name.lower())
    word = re.sub(r"(?<=.)(set|split|images?|imgs?|data|[12]\d{3})$", "", word)
    return "train" if word in TRAIN.split("|") else "test" if word in TEST.split("|") else ""


def list_images(root, dataset=""):
    """-> [(1 for the test or 0, label, path below root as a tuple)], class names, origin of the
    test split, Counter of what was left out.

    Split: folders named train and test (or val, dev ..., in any case), CelebA's list, or else one
    image in ten is held out, by a hash of its name. Class: the first folder below; "." where there
    is none. Left out: loose images next to classes, classes of the test split alone. Test images
    without class folders, where training has some, have label -1. InputError for a layout that
    looks like another split, and for a class without images.
    """
    files, left, folders = [], collections.Counter(), {(): []}
    for here, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(HIDDEN) and not  # no link back up
                    f"{here}/".startswith(os.path.join(os.path.realpath(f"{here}/{name}"), ""))]
        if here != str(root) and len({split_of(name) for name in below} - {""}) > 1:
            raise InputError(f"{here} has a split of its own: give --dataset {here}")
        parts = Path(here).relative_to(root).parts
        folders[parts] = sorted(below, key=natural)
        for name in (name for name in names if not name.startswith(HIDDEN)):
            ending = os.path.splitext(name)[1].lower()
            if ending in EXTENSIONS and os.path.isfile(os.path.join(here, name)):
                files.append((*parts, name))
            else:
                left["no regular file" if ending in EXTENSIONS else ending or "no ending"] += 1
    top, used = folders[()], {file[0] for file in files}
    trains, tests = ([name for name in top if split_of(name) == s] for s in ("train", "test"))
    others = [n for n in top if not split_of(n) and (n in used or not trains + tests)]
    like = rf"(.*[-_.])?({TRAIN}|{TEST}|fold|split)([-_.\d].*|[ab])?"
    like = [name for name in others if re.fullmatch(like, name, re.IGNORECASE)]
    if (len(trains) > 1 or trains and others or tests and not trains and (len(others) < 2 or like)
            or len(like) > 1 and 2 * len(like) >= len(top)):
        raise InputError(f"{root} looks split, but not into train and test (it holds "
                         f"{', '.join(top[:8])}): rename these, or give --dataset one of them")

    at, names = len(trains), folders[(trains[0],)] if trains else others
    train = [file for file in files if file[0] in trains or not trains and file[0] not in tests]
    flat = not names or len(names) == 1 and any(len(file) == at + 1 for file in train)
    labels = {name: label for label, name in enumerate(names)}

    def labelled(files, test, at):  # by the folder at that place of a path; -1: no class
        return [(test, 0 if flat else labels.get(file[at], -1) if len(file) > at + 1 else -1, file)
                for file in files]

    names = ["."] if flat else names
    rows = [row for row in labelled(train, 0, at) if row[1] >= 0]
    for empty in {*names} - {names[row[1]] for row in rows}:
        raise InputError(f"{Path(root, *trains, empty)} holds no image ({', '.join(EXTENSIONS)}): "
                         "put some in, or take the folder away")
    lists = [place for up in (root, *root.parents[:2]) for name in ("", "Eval") for place in
             (up / name).glob("list_eval_partition.*") if dataset == "celeba"]  # fmt: skip
    if tests:
        below = {n: {f[1] for f in files if f[0] == n and len(f) > 2} for n in tests}
        first = "val" if dataset == "imagenet" else "test"
        test = min(tests, key=lambda n: (not below[n] & {*names}, not n.lower().startswith(first)))
        at = 2 if len(below[test]) == 1 and not below[test] & {*names} else 1  # test/images/CLASS/
        own = labelled([file for file in files if file[0] == test], 1, at)
        known = [row for row in own if row[1] >= 0]
        if not known and (not own or len(below[test]) > 1):
            raise InputError(f"{root / test} has no image of the classes {', '.join(names[:8])}")
        rows += known or own
        origin = f"from {test}" if known else f"from {test}, without labels"
    elif lists:  # lines of a file's name and 0 (train), 1 (validation, left out) or 2 (test)
        part = dict(re.findall(r"(?m)^([^\s,]+)\.\w+[\s,]+([02])\s*$", lists[0].read_text()))
        codes = [part.get(os.path.splitext(file[-1])[0]) for *_, file in rows]
        rows = [(int(code) // 2, *row[1:]) for row, code in zip(rows, codes) if code]
        origin = f"by {lists[0].name}"
    else:
        rows.sort(key=lambda row: hashlib.sha256(os.fsencode("/".join(row[2]))).digest())
        last = {row[1]: row for row in rows}  # one of each class, which stays for training
        held_out = {*[row for row in rows if last[row[1]] is not row][: max(len(rows) // 10, 1)]}
        rows = [(int(row in held_out), *row[1:]) for row in rows]
        origin = "one in ten is held out, as there is no test folder"
    for file in {*files} - {row[2] for row in rows}:
        left[f"images in {'/'.join(file[:-1][:2]) or '.'}"] += 1
    return sorted(rows), names, origin, left


def _from_folder(dataset, root, data_dir, split, size):
    """-> images, labels and facts of a folder, decoded once and then read from data_dir."""
    rows, names, origin, left = list_images(root, dataset)
    files, celeba = [os.path.join(root, *file) for *_, file in rows], dataset == "celeba"
    if size is None and dataset not in DATASETS:
        opened = (image for file in files for image, *_ in _decode([file]) if image is not None)
        _, high, wide = next(opened, np.empty((3, 64, 64))).shape
        size = high if high == wide <= 64 else 64
    size = size or DATASETS[dataset][1]
    state = hashlib.sha256(repr((1, size, celeba, names, origin, sorted(left.items()))).encode())
    for row, file in zip(rows, files):
        info = os.stat(file)
        state.update(repr((row, info.st_size, info.st_mtime_ns, info.st_ctime_ns)).encode())
    name = f"{re.sub('[^A-Za-z0-9]', '_', root.name)}-{size}-{zlib.crc32(os.fsencode(root)):08x}"
    make = functools.partial(_decode_folder, root, rows, names, origin, left, files, size, celeba)
    images, labels, train, digest, note = _cached(data_dir, name, state.hexdigest()[:16], make)
    about = {"classes": names, "digest": digest, "held_out": len(labels) - train, "note": note}
    here = {"train": slice(train), "test": slice(train, None), "all": slice(None)}[split]
    if not len(labels[here]):
        raise InputError(f"{root} leaves no image for the {split} split: add more")
    return images[here], labels[here], about


def _decode_folder(root, rows, names, origin, left, files, size, celeba):
    """-> images and labels, training first, the number of training images, digest, note."""
    images, kept, broken = torch.empty(len(files), 3, size, size, dtype=torch.uint8), [], []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    work = functools.partial(_decode, size=size, celeba=celeba)
    deaf, spoken = (signal.SIGINT, signal.SIG_IGN), time.monotonic()  # Ctrl-C is for us to answer
    try:
        with ProcessPoolExecutor(min(cores, len(files)), None, signal.signal, deaf) as pool:
            found = pool.map(work, [files[i : i + 64] for i in range(0, len(files), 64)])
            for row, (image, total, colour) in zip(rows, itertools.chain.from_iterable(found)):
                if image is None:
                    broken.append(f"{'/'.join(row[2])}: {total}")
                    continue
                images[len(kept)] = torch.from_numpy(image)
                kept.append((*row, total, colour))
                if time.monotonic() > spoken + 5:
                    print(f"decoding {root}: {len(kept):,} of {len(files):,}", file=sys.stderr)
                    spoken = time.monotonic()
    except BrokenExecutor as error:
        raise InputError(f"{root}: a decoder was killed, likely as memory was full: close other "
                         "programs, or take out the largest images") from error
    n, train = len(kept), sum(row[0] == 0 for row in kept)
    images, labels = images[:n], torch.tensor([row[1] for row in kept])
    coloured = sum(row[4] for row in kept)
    if len(labels[:train].unique()) < len(names):
        raise InputError(f"{root} has a class without readable images: {'; '.join(broken[:3])}")
    if coloured <= 0.05 * n:  # grey: luma in 65536ths, as Pillow's
        weights = torch.tensor([19595, 38470, 7471]).view(3, 1, 1)
        parts = [(part * weights).sum(1, keepdim=True) + 2**15 >> 16 for part in images.split(500)]
        images = torch.cat([part.byte() for part in parts])
    digest = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    if n <= 2000:  # each image too, in 7 digits, for `_changes`
        digest += "".join(f"{total & 0xFFFFFF:06x}{test}" for test, _, _, total, _ in kept)
    if broken:
        left[f"unreadable ({'; '.join(broken[:3])}{'; ...' * (len(broken) > 3)})"] = len(broken)
    note = _note(root, train, n - train, names, labels[:train], images, f" ({origin})",
                 f" ({coloured:,} of {n:,} have colour)" if 0 < coloured < n else "", left)
    return images, labels, train, digest, note


def _decode(paths, size=None, celeba=False):
    """For each path its image (3, H, W), checksum and whether it has colour; or None and why."""
    found = []
    for place in paths:
        try:
            with open(place, "rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on metadata
                content = file.read(2**29 + 1)
                if len(content) > 2**29:
                    raise ValueError("more than 512 MiB")
                image = open_image(io.BytesIO(content), size, celeba)
            colour = np.mean(image.max(0) - image.min(0) > 12) > 0.01  # JPEG's own noise is less
            found.append((image, zlib.crc32(content), bool(colour)))
        except Exception as error:  # noqa: BLE001  whatever a decoder raises
            reason = str(error)[:100] or type(error).__name__
            unknown = isinstance(error, UnidentifiedImageError)
            found.append((None, "no image" if unknown else reason, False))
    return found


def open_image(file, size=None, celeba=False):
    """A file -> uint8 (3, H, W), upright, on white where transparent; or its middle at size x size.

    Depth, sign and "zero is white" of grey levels are read from the file. ValueError where the
    value of white is not known, and whatever Pillow raises.
    """
    with Image.open(file, formats=FORMATS) as image:
        share = 108 / 178 if celeba and image.size == (178, 218) else 1  # as DCGAN's code does
        tags = getattr(image, "tag_v2", {})  # of TIFF
        bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
        if tags.get(262) == 6 and tags.get(259) == 1 and tags.get(530, (2, 2)) != (1, 1):
            raise ValueError("subsampled YCbCr without compression")  # which Pillow misreads
        if size:
            image.draft(None, (2 * size, 2 * size))  # a JPEG decodes at 1/2 to 1/8
        if image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels")
        image._exif = Image.Exif()  # Pillow turns a TIFF itself: let it see this tag and no other
        image._exif._loaded = True
        image._exif[0x0112] = tags.get(0x0112, 1)
        image.load()
        turn, exif = 1, Image.Exif()
        with contextlib.suppress(Exception):  # none, or broken
            exif.load(image.info["exif"])
            turn = int(exif[0x0112])
        if image.mode == "F":
            raise ValueError("floating-point pixels")
        if image.mode[0] == "I" or signed:
            values = np.asarray(image).astype(np.int8 if bits == 8 else np.int32).astype(np.int32)
            white = 2 ** (bits - signed) - 1 if bits < 32 else 255
            if values.min() < 0 or values.max() > white:
                raise ValueError(f"{bits}-bit numbers below 0 or above {white}")
            values = (values * 255 + white // 2) // white
            values = 255 - values if tags.get(262) == 0 else values  # zero is white
            image = Image.fromarray(values.astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("RGB")
        if 2 <= turn <= 8:
            image = image.transpose((0, 3, 1, 5, 4, 6, 2)[turn - 2])  # numbers of Image.Transpose
        if size:
            side = round(share * min(image.size))
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(image).transpose(2, 0, 1)


def first_side(folder):
    """The shorter side, in pixels, of a folder's first readable image; 64 where there is none."""
    rows, *_ = list_images(Path(folder).resolve())
    for *_, file in rows:
        image = _decode([os.path.join(Path(folder).resolve(), *file)])[0][0]
        if image is not None:
            return min(image.shape[1:])
    return 64


# ---- Embedded data sets ------------------------------------------------------------------------
# The same bytes on every machine and for any number of threads, and image i is the same for any n:
# steps on floats round exactly (+ - * / sqrt, one at a time), random numbers are uniform.

DRAWN_VERSION = 3  # raise it when the drawing changes, so that cached bytes are drawn again
DOTS = 112  # to a digit: less than 0.75 pixels apart, under half the pen's width
HAIR = ((0.11, 0.09, 0.09), (0.42, 0.25, 0.13), (0.87, 0.70, 0.36), (0.70, 0.25, 0.10))
SKIN = ((0.96, 0.80, 0.69), (0.80, 0.57, 0.40), (0.50, 0.33, 0.23))

# Ways to write each digit: a share, then the points of its strokes, x right and y down, a letter
# each: a is 0, Z 51, 0 is 52; digits are 50 high. A stroke is a curve through its points, "/" lifts
# the pen; a point named twice in a row is a corner, one of two strokes a joint.
SKELETONS = {
    0: "3tahgbxePqYESLAGhta 2yckdbwfRtYGQKyDgrd 1lddrdLpYDRHyAgoage 1HcrcdteOrYGRMxEgsg "
       "1raghbzfRqYBRFzBhra 1EakgazmTEYWR4xVeEa",
    1: "6aaazaY 1caazdY 2amkakakY 1allalalYlY/aYwX",
    2: "2clmbAdFnwCdWdWLV 2ekoaCeCsrKhVbShMsQMW 2clmbAdBrrMeWbOlIzROV 1flpaDeEusTgYaPjFxLLY "
       "1berbFcFcsxcWcWJV 1gqegraDhAwcVcVrRLX 1ckmaxfwukOdUdNmMuTBXIR 1apkczaEjuBeTeTuPQQ "
       "1fkqbzkqGfUbLnLwYFV",
    3: "3chnazfxrlxlxADDOrYbT 2bfpaAhutkywBDLuXaU 2ccDcDcnvnvCCDPpYbU 2cimayewqmxhznxzCBOpYcS "
       "1berbCfpwpwyCwPkXaY",
    4: "2ecbBbBFz/BaxY 2gbbtgADw/EbAzxY 1xaaFaFIE/xawY 2dcculAzvzvDcDcxY 1bcbxbxDx/DaDY "
       "1racBcBGx/BksY",
    5: "2gcdvdvrsECARnYbT/gcIa 2JbicicfwfwtuDFxUjYaT 2KcodhorwCGvVaW 2NaleleeueutxzIqVaX "
       "1haduduutBHqXbS/icDd 1LcmcmchuhuxrGFuXfThJ",
    6: "2xajmbFfVsYAOvDkEcN 2AalscMjYxUyInGeP 1oaesbLjYyUCHrAdK 1saeucQoYDQBDoBjKmV "
       "1lacwcQoYGVIIvDmMlW 1iabEdVpXBPxFnKiV 1FbofcxeTuYGMwBeH 1ladCeVlXpNjFdO",
    7: "3adEcEcvwnY 2bkcdcdFcFctymY 1adEcEcvwnY/hAFy 2ajicueFbFbwupY 1ahmazezssY "
       "1amededFdFdtY/hCDz 1cmdcdcAcAczY",
    8: "3BhqafhjsvCAOqYeSfIqyAoBh 1oaekoxzkoa/oxcKoYBKox 2FesbgjltuDwQlYcQjEwrGh "
       "1pceiluxFwUjXeMozAlxcoc 1EdpbdkowvFuTmYhRmExsHe 1wlpbhkrvCFDTmYbOlAwl 1zkoacjnxvLpYjNpyzk "
       "1EhuahgpuzIrYeQnBLd",
    9: "3zhpadjevpxzmzhzhyzwY 2AfobcmgwsuAgAgxBqY 2zioadjgwsvziBBvUgW 1DcmebpiywtEcEcvEoY "
       "1AmwbjccojxxtAmAmAEzY 1GepabjewuwFiFiFAEY 2CesaehcsmxypDdzEvY 1wgkcaohxumumtY "
       "1NfuabkgxBuNfNfHEEY",
}


@contextlib.contextmanager
def _one_core():
    """Drawing's steps are too short to share: several threads take up to ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_core()
def draw_digits(n, seed, size=28):
    """Handwritten digits -> (uint8 (n, 1, size, size), int64 labels (n,)), 0 to 9 in turn.

    As MNIST: white on black, the longer side 20 of 28 pixels, centre of mass within half a pixel of
    pixel (14, 14). A skeleton is bent, slanted and turned; ink falls with the distance from it. A
    classifier trained on 60,000 of these reads 97.8 % of MNIST's test images right.
    """
    generator = torch.Generator().manual_seed(seed)
    controls, pieces, weights, chosen = _skeletons()
    most, labels = controls.shape[1], torch.arange(n) % 10
    images = torch.empty(n, 1, size, size, dtype=torch.uint8)
    for digit, out in zip(labels.split(128), images.split(128)):  # a chunk fits the CPU's cache
        u = torch.rand(len(digit), 8 + 3 * (12 + 2 * most), generator=generator)
        g = u[:, 8:].unflatten(1, (-1, 3))
        g = (g[..., 0] + g[..., 1] + g[..., 2] - 1.5) * 2  # bell-shaped: mean 0, variance 1
        jitter, g = g[:, 12:].view(len(digit), most, 2), g[:, :12, None].unbind(1)
        u = u[:, :8, None].unbind(1)
        which = chosen[digit, (u[0][:, 0] * chosen.shape[1]).long()]
        points = controls[which] + 0.075 * jitter
        ends = (points.gather(1, i[:, :, None].expand(-1, -1, 2)) for i in pieces[which].unbind(2))
        p, q, r, s = (end * w[:, :, None] for end, w in zip(ends, weights[which].unbind(2)))
        x, y = (p + q + r + s).unbind(2)  # (B, DOTS) each, from about -1 to 1
        bent = x + 0.1 * g[0] * (y * y - 0.3)
        bent = bent + 0.07 * (g[1] * x * y + g[2] * x * x + g[3] * y * y * y)
        y = y + 0.07 * (g[4] * x * x + g[5] * x * y + g[6] * y * y)
        x = bent * (1.05 + 0.19 * g[7]).clamp(min=0.45) - (0.12 + 0.24 * g[8]) * y
        x, y = _turn(x, y, 0.07 * g[9])
        pen, soft = 0.8 + (u[1] + u[2]) * u[3], 0.7 + 0.7 * u[4]  # half the width, the fall of ink
        extent = torch.maximum(x.amax(1) - x.amin(1), y.amax(1) - y.amin(1))[:, None]
        x, y = ((20 - 2 * pen) / extent * z for z in (x, y))
        x, y = (z - (z.amax(1) + z.amin(1))[:, None] / 2 for z in (x, y))
        press = 1 + 0.12 * g[10] * ((torch.arange(DOTS) * 2 + 1 - DOTS) / DOTS)  # along the strokes
        pens = pen * (press + 0.12 * g[11]), pen * (press - 0.12 * g[11])  # across and down
        ink = _ink(x, y, *pens, pen / soft, 28).long()
        along, mass = torch.arange(28) * 2 - 27, ink.sum((1, 2)) * 2
        x = x - ((ink.sum(1) * along).sum(1) / mass)[:, None] + u[5]  # the centre of mass
        y = y - ((ink.sum(2) * along).sum(1) / mass)[:, None] + u[6]
        out[:, 0] = _ink(x, y, *pens, pen / soft, size)
    return images, labels


def _turn(x, y, t):
    """Turns points by an angle; t is the tangent of its half."""
    return ((1 - t * t) * x - 2 * t * y) / (1 + t * t), ((1 - t * t) * y + 2 * t * x) / (1 + t * t)


def _sqrt(x):
    """The root rounded as IEEE says: numpy's. torch's is MKL's, whose last bit varies by CPU."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def _ink(x, y, across, down, edge, size):
    """Dots (B, DOTS) at x, y, in 28ths of the picture from its middle -> uint8 (B, size, size).

    across, down: half the pen's widths. Ink is 128 at the pen's edge, where it falls at the rate
    `edge` (B, 1), and 255 inside.
    """
    pixels = (torch.arange(size) * 2 + 1 - size) * 14 / size
    x, y = ((pixels - z[:, :, None]) / pen[:, :, None] for z, pen in ((x, across), (y, down)))
    x, y = ((z * z).transpose(0, 1).contiguous() for z in (x, y))  # (DOTS, B, size)
    nearest = torch.full((x.shape[1], size, size), torch.inf)
    square = torch.empty_like(nearest)
    for a, b in zip(x, y):
        torch.add(a[:, None, :], b[:, :, None], out=square)
        torch.minimum(nearest, square, out=nearest)
    return ((0.5 + (1 - _sqrt(nearest)) * edge[:, :, None]).clamp(0, 1) * 255).round().byte()


@functools.lru_cache(maxsize=1)
def _skeletons():
    """SKELETONS as tensors: points (V, most, 2) from about -1 to 1; for each of the DOTS the four
    points of its piece of curve (V, DOTS, 4) and their weights, by Catmull and Rom's cubics; and
    the ways of each digit (10, shares).
    """
    controls, pieces, weights, chosen = [], [], [], []
    letters = string.ascii_letters + string.digits
    for ways in SKELETONS.values():
        chosen.append([])
        for way in ways.split():
            chosen[-1] += [len(controls)] * int(way[0])
            points, own = [], []
            for stroke in way[1:].split("/"):
                stroke = [letters.index(letter) for letter in stroke]
                stroke = list(zip(stroke[::2], stroke[1::2]))
                points += [point for point in dict.fromkeys(stroke) if point not in points]
                at = [points.index(point) for point in stroke]
                at = [at[-2], *at, at[1]] if at[0] == at[-1] else [at[0], *at, at[-1]]  # ring, line
                own += [at[i : i + 4] for i in range(len(at) - 3) if at[i + 1] != at[i + 2]]
            ends = np.cumsum([0] + [math.dist(points[b], points[c]) for _, b, c, _ in own])
            place = (np.arange(DOTS) + 0.5) / DOTS * ends[-1]
            piece = np.searchsorted(ends[1:], place)
            t = (place - ends[piece]) / np.diff(ends)[piece]
            pieces.append(np.array(own)[piece])
            weights.append(np.stack([((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2,
                                     ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t * t / 2], 1))
            width = max(x for x, _ in points) + min(x for x, _ in points)
            controls.append([[(x - width / 2) / 25, (y - 25) / 25] for x, y in points])
    most, ways = max(map(len, controls)), math.lcm(*map(len, chosen))
    controls = torch.tensor([points + [[0, 0]] * (most - len(points)) for points in controls])
    chosen = torch.tensor([row * (ways // len(row)) for row in chosen])
    return controls, torch.tensor(np.array(pieces)), torch.tensor(np.array(weights)).float(), chosen


@_one_core()
def draw_faces(n, seed, size=32):
    """Faces in colour -> (uint8 (n, 3, size, size), int64 labels (n,)), the 48 labels in turn.

    Pose, shape, colours and background vary within a label. A face is the same at another size.
    """
    generator = torch.Generator().manual_seed(seed)
    labels, images = torch.arange(n) % 48, torch.empty(n, 3, size, size, dtype=torch.uint8)
    chunk = max(32768 // size**2, 1)  # fits the CPU's cache
    for label, out in zip(labels.split(chunk), images.split(chunk)):
        out[:] = _paint_faces(label, torch.rand(len(label), 75, generator=generator), size)
    return images, labels


def face_attributes(labels):
    """What labels 0 to 47 (N,) of faces mean, {name: int64 (N,)}.

    smile, glasses: 0 no, 1 yes; hair: 0 black and short, 1 brown and long, 2 blond and short, 3 red
    and long; skin: 0 light, 1 tan, 2 dark.
    """
    smile, glasses, hair, skin = labels // 24, labels // 12 % 2, labels // 3 % 4, labels % 3
    return {"smile": smile, "glasses": glasses, "hair": hair, "skin": skin}


def _paint_faces(labels, u, size):
    """uint8 (B, 3, size, size) of faces with labels (B,), the rest decided by u (B, 75) in [0, 1).

    Shapes are signed distances (B, size, size), negative inside, painted one over the other. x runs
    right and y down, from -1 to 1 over the picture; a head is about 1 wide and 1.2 high.
    """
    numbers = iter(u[:, :, None, None].unbind(1))  # (B, 1, 1) each
    smile, glasses, hair, skin = face_attributes(labels).values()
    smile, glasses, long = (flag[:, None, None].float() for flag in (smile, glasses, hair % 2))

    def vary(low, high):
        return low + (high - low) * next(numbers)

    def tone(kinds, spread):  # (B, 3, 1, 1)
        return torch.stack([kinds[:, i, None, None] + vary(-spread, spread) for i in range(3)], 1)

    def any_colour(low, high):
        return torch.stack([vary(low, high) for _ in range(3)], 1)

    def paint(colour, distance, opacity=1):
        cover = ((0.5 - distance * pixels).clamp(0, 1) * opacity)[:, None]  # one pixel wide edges
        return image + cover * (colour - image)

    place = (torch.arange(size) * 2 + 1 - size) / size
    x, y = place[None, None, :], place[None, :, None]
    above, below = any_colour(0.35, 0.9), any_colour(0.35, 0.9)
    image = above + (below - above) * ((1 + y + vary(-0.5, 0.5) * x) / 2)[:, None]
    scale, t = vary(0.95, 1.2), vary(-0.07, 0.07)
    x, y = _turn((x - vary(-0.12, 0.12)) / scale, (y - vary(-0.1, 0.1)) / scale, t)
    pixels = scale * size / 2  # to a unit of length

    light = 1 + vary(-0.2, 0.2) * x - vary(0.0, 0.2) * y  # (B, size, size)
    skin = tone(torch.tensor(SKIN)[skin], 0.04) * light[:, None]
    hair = tone(torch.tensor(HAIR)[hair], 0.05)
    hair = hair * (1 + vary(-0.1, 0.5) * (0.3 - y) * light)[:, None]
    width, height, jaw = vary(0.40, 0.48), vary(0.52, 0.60), vary(0.1, 0.6)
    face_x, face_y = x - vary(-0.1, 0.1), y - vary(-0.05, 0.05)  # features move, the outline stays
    side = face_x.abs()
    mane = _ellipse(x, y - vary(0.05, 0.15), width + vary(0.1, 0.2), vary(0.8, 0.95))
    image = paint(hair * 0.8, mane, long)
    clothes = any_colour(0.1, 0.9)
    image = paint(clothes, _ellipse(x, y - 1.1, vary(0.6, 0.85), vary(0.32, 0.45)))
    image = paint(skin * 0.82, _ellipse(x, y - 0.5, vary(0.17, 0.24), 0.42))  # neck
    image = paint(skin * 0.9, _ellipse(x.abs() - width, y - 0.04, 0.08, vary(0.1, 0.15)))  # ears
    image = paint(skin, _ellipse(x * (1 + jaw * y.clamp(min=0) * y), y, width, height))
    cap = _ellipse(x, y + 0.05, width + vary(0.04, 0.09), height + vary(0.03, 0.1))
    arch = face_x - vary(-0.12, 0.12), (face_y - vary(-0.05, 0.1)).clamp(max=0)  # no end below
    arch = _ellipse(*arch, width * vary(0.85, 0.97), vary(0.3, 0.48))  # what the hair leaves free
    cut = torch.maximum(y - vary(-0.2, 0.1), cap)
    image = paint(hair, torch.maximum(long * mane + (1 - long) * cut, -arch))

    gap, level = vary(0.17, 0.21), vary(-0.08, 0.0)
    eye_x, eye_y = side - gap, face_y - level
    eye = _ellipse(eye_x, eye_y, vary(0.075, 0.1), vary(0.04, 0.07))
    image = paint(0.95, eye)
    iris = _ellipse(eye_x - vary(-0.025, 0.025) * face_x.sign(), eye_y, 0.05, 0.055)
    image = paint(any_colour(0.05, 0.45), torch.maximum(iris, eye - 0.01))
    brow = eye_y + vary(0.1, 0.15) + vary(-0.3, 0.12) * eye_x
    brow = brow - vary(0.5, 3.0) * (0.01 - eye_x * eye_x)
    brow = torch.maximum(brow.abs() - vary(0.012, 0.03), eye_x.abs() - vary(0.09, 0.12))
    image = paint(hair * 0.6, brow)
    nose = _ellipse(face_x - vary(-0.03, 0.03), face_y - vary(0.1, 0.16), vary(0.03, 0.07), 0.03)
    image = paint(skin * 0.8, nose)

    # The mouth lies between two parabolas that meet at its corners; a smile is wide and bent.
    wide = vary(0.12, 0.17) + smile * vary(0.08, 0.11)
    bulge = 1 - (face_x / wide) * (face_x / wide)
    bend = smile * vary(0.13, 0.18) + (1 - smile) * vary(-0.04, 0.01)
    line = face_y - vary(0.28, 0.32) + 0.07 * smile - bend * bulge

    def mouth(up, down):
        lips = torch.maximum(-line - up * bulge, line - down * bulge)
        return torch.maximum(lips, side - 1.1 * wide)

    up, down = vary(0.025, 0.045), vary(0.035, 0.055) + smile * 0.015
    teeth = smile * (vary(-1, 2) > 0)
    red = tone(torch.tensor([[0.62, 0.20, 0.22]]), 0.1)
    image = paint(red * (0.4 + 0.6 * skin), mouth(up, down))
    inside = mouth(0.3 * up, (0.35 + 0.25 * teeth) * down) - 0.008
    image = paint(0.2 + 0.75 * teeth[:, None], inside)

    # Glasses: rings between circle and box, at least a pixel wide; a bridge, and arms to the ears.
    radius, boxy = vary(0.125, 0.155), vary(0.0, 1.0)
    box = torch.maximum(eye_x.abs(), eye_y.abs() * 1.25)
    lens = boxy * box + (1 - boxy) * _sqrt(eye_x * eye_x + eye_y * eye_y) - radius
    bar = torch.maximum((eye_y + 0.02).abs(), torch.maximum(-lens, x.abs() - width))
    frame = torch.minimum(lens.abs(), bar) - vary(0.03, 0.042)
    image = paint(0.95, lens, 0.25 * glasses)
    image = paint(any_colour(0.0, 0.3), frame, glasses)
    return (image.clamp(0, 1) * 255).round().byte()


def _ellipse(x, y, a, b):
    """Signed distance to an ellipse with half-axes a, b, to first order: exact on its outline."""
    x, y = x / a, y / b
    k = _sqrt(x * x + y * y)
    x, y = x / a, y / b
    return k * (k - 1) / _sqrt(x * x + y * y).clamp(min=1e-6)
