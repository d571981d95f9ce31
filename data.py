"""Images in: embedded sets, torchvision's sets and folders of images, as bytes; batches of them.

`digits` and `faces` are drawn at the end of this file, torchvision's sets are downloaded, a path is
any folder of images (see `list_images`), and the others lie in data_dir: cifar10-jpeg or cifar10,
celeba/img_align_celeba with list_eval_partition.txt or .csv, lsun-church, lsun-rooms/{kitchen,
living_room}, imagenet/{train,val}/CLASS and telugu/CLASS.
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
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
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
TRAIN = "train|training|trainval|trn"
TEST = "test|testing|tst|val|valid|validation|dev|eval|evaluation|holdout|heldout"


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
    """-> Loaded: images uint8 (N, C, size, size), labels int64 (N,), -1: no label.

    dataset: a name of DATASETS, or a folder. split: train, test or all. classes: names to keep,
    whose labels become 0..k-1. Attributes: classes, names by label (["."]: no classes); digest;
    held_out, the number of test images; note, what was taken and left out. InputError for a wrong
    argument, and for what is missing or unreadable.
    """
    dataset, data_dir = str(dataset), Path(path(data_dir))
    if split not in ("train", "test", "all"):
        raise InputError(f"there is no split {split!r}: choose train, test or all")
    places = [data_dir / place for place in FOLDERS.get(dataset, [dataset])]
    places = places if dataset in DATASETS else [Path(path(dataset)).resolve()]
    root = next((place for place in places if place.is_dir()), None)
    own = dataset != "cifar10" or not root or (data_dir / "cifar-10-batches-py").is_dir()
    if not root and dataset not in KNOWN:
        raise InputError(f"there is no folder {places[0]} of images: put them there, or choose one "
                         f"of --dataset {' '.join(DATASETS)}")
    if dataset in KNOWN and own:
        images, labels, about = _known(dataset, data_dir, split, size)
    else:
        images, labels, about = _from_folder(dataset, root, data_dir, split, size)
    if classes is not None:
        names, classes = about["classes"], [str(name) for name in classes]
        if (labels < 0).any():
            raise InputError(f"{dataset} has test images without labels: leave classes out")
        if not {*classes} <= {*names} or len({*classes}) < len(classes):
            raise InputError(f"{dataset} has no such classes as {', '.join(classes)}, or one is "
                             f"named twice: choose from {', '.join(names)}")
        labels = torch.tensor([classes.index(n) if n in classes else -1 for n in names])[labels]
        images, labels, about["classes"] = images[labels >= 0], labels[labels >= 0], classes
    return Loaded(images, labels, **about)


def training_set(args, batch_size):
    """-> training images and labels; fills in args; says what was taken and, on resume, changed."""
    images, labels = loaded = load(args.dataset, args.data_dir, size=args.size)
    about = {"channels": images.shape[1], "size": images.shape[2], "train_images": len(images),
             "class_names": getattr(loaded, "classes", [str(k) for k in labels.unique().tolist()]),
             "digest": getattr(loaded, "digest", "")}  # fmt: skip
    say(getattr(loaded, "note", f"{args.dataset}: {len(images)} training images"))
    if len(images) < 200:
        say(f"{len(images)} images are very few: expect copies of them, or noise")
    old, new = getattr(args, "digest", None), about["digest"]
    if args.resume and old is not None:
        for key in ("channels", "size", "class_names"):
            if getattr(args, key) != about[key]:
                raise InputError(f"{args.dataset} has {key} {about[key]}, but {args.resume} was "
                                 f"trained on {getattr(args, key)}: give --dataset its own images")
        if old != new:
            test = " (the test images changed too)" if str(old)[16:] != new[16:] else ""
            say(f"note: {args.dataset} has changed: {args.train_images} training images then, "
                f"{len(images)} now{test}; images held out before may be trained on now")
    vars(args).update(about)
    args.batch_size = args.batch_size or max(min(batch_size, len(images) // 4), 2)
    return images, labels


# ---- Batches and devices -------------------------------------------------------------------------


def batches(images, batch_size, device, seed, start=0, labels=None):
    """Serve float32 batches (batch_size, C, H, W) in [0, 1] for ever; (x, y) if there are labels.

    images: uint8 (N, C, H, W), kept on the device, or on the host if they do not fit. The order, a
    permutation for each epoch without its last partial batch, depends on (seed, step) alone, from
    step `start` on. InputError where batch_size is not in 1..N.
    """
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch size {batch_size} does not fit {len(images)} images")
    home = device = torch.device(device)
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
                order = torch.randperm(len(images), generator=generator)
                if home.type == "cuda":  # pinned: the copy does not wait for the device
                    order = order.pin_memory().to(home, non_blocking=True)
            chosen = order[step % per_epoch * batch_size :][:batch_size]
            x = take(images, chosen).contiguous(memory_format=torch.channels_last) / 255
            yield x if labels is None else (x, take(labels, chosen))

    return serve()  # a generator of its own, so that a wrong batch size fails at the call


def captured(update, served, graph):
    """Run update(*batch) -> losses (k,) on every batch; yields their running sums, one tensor.

    graph: after three updates, one CUDA graph of a whole one, which must not wait for the device.
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


def optimiser(net, lr, kind=torch.optim.Adam, **options):
    """Fused Adam or RMSprop. Its rate is a tensor: it can fall while a CUDA graph is replayed."""
    device = next(net.parameters()).device
    fused = {"fused": True, "capturable": True}
    options |= fused if kind is torch.optim.Adam else {"capturable": device.type == "cuda"}
    made = kind(net.parameters(), lr, **options)
    made.param_groups[0]["lr"] = torch.tensor(lr, device=device)
    return made


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
        say("note: this PyTorch cannot use the NVIDIA card (an old driver, or no CUDA build)")
    return device


def has_bf16(device):
    """Whether bfloat16 pays: CUDA with units for it, a CPU with avx512_bf16 or amx_bf16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = Path("/proc/cpuinfo")  # Linux only
    return cpu.exists() and re.search("avx512_bf16|amx_bf16", cpu.read_text()) is not None


def autocast(args, device):
    """bfloat16 if args.amp; by default where it is fast (on CUDA: for images above 32 px)."""
    if args.amp is None:
        args.amp = has_bf16(device) and (device.type == "cpu" or args.size > 32)
    return torch.autocast(device.type, torch.bfloat16, enabled=args.amp)


def check_flags(parser, args, may_be_0=()):
    """parser.error for numbers out of range and flags without their partner; sizes of DATASETS."""
    ranges = {"seed": (-(2**63), 2**63 - 1), "ema": (0, 0.99999), "decay": (0, 1)}
    for name, value in vars(args).items():
        low, high = ranges.get(name, (0, 1e9))
        right = type(value) not in (int, float) or low < value <= high
        if not (right or value == 0 and name in may_be_0):
            least = f"{'at least' if name in may_be_0 else 'above'} {low:g}"
            name = name.replace("_", "-")
            parser.error(f"--{name} must be {least} and at most {high:g}, not {value}")
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
    """-> whether this update prints a line; saves, by default each `every` (CUDA: x 10); ends."""
    every = args.sample_every or every * (10 if args.device.startswith("cuda") else 1)
    ends = step == total or bool(stop)
    saves = ends or step == 100 or step % every == 0
    return saves or step in (1, 10) or step % args.log_every == 0, saves, ends


class Stopped(KeyboardInterrupt):
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


path = os.path.expanduser  # type of a flag that is a path: `~` is the user's home


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
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, Stopped):
            say(f"stopped; resume with: python {prog} --resume {shlex.quote(str(stopped))}")
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
    size, parts = size or DATASETS[dataset][1], []
    names = [str(k) for k in range(96 if dataset == "faces" else 10)]
    for part in ("train", "test") if split == "all" else (split,):
        if source is None:
            draw, seed = draw_faces if dataset == "faces" else draw_digits, int(part == "test")
            make = functools.partial(draw, counts[seed], seed, size)
            parts.append(_cached(data_dir, f"{dataset}-{size}-{part}", DRAWN_VERSION, make))
            continue
        which = {"split": part} if dataset == "svhn" else {"train": part == "train"}
        try:
            found = source(data_dir, download=True, **which)
            images, labels = zip(*map(found.__getitem__, range(len(found))))
        except Exception as error:  # of many kinds: readers, downloads
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
            raise InputError(f"{dataset} cannot be read or downloaded ({reason}): put {files} into "
                             f"{data_dir} (--data-dir), or use --dataset digits") from error
        images = [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]
        images = torch.from_numpy(np.stack(images)).reshape(len(images), size, size, -1)
        parts.append((images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)))
        if dataset in ("fashion-mnist", "cifar10"):
            names = [name.replace("/", "-") for name in found.classes]
    images, labels = map(torch.cat, zip(*parts))
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:16]
    return images, labels, _about(dataset, names, labels, images, *counts, digest)


def _about(name, names, labels, images, train, test, digest, origin="", colours="", left=()):
    """The attributes of `Loaded`; the note is what was taken and left out, in one line."""
    counts = labels[labels >= 0].bincount(minlength=len(names)).tolist()
    own = ", ".join(f"{name} ({n:,})" for name, n in zip(names[:10], counts))
    own = f"{len(names)} class{'es' * (len(names) > 1)}: {own}{', ...' * (len(names) > 10)}"
    own = "no classes" if names == ["."] else own
    kind, side = "grey" if images.shape[1] == 1 else "colour", images.shape[2]
    left = ", ".join(f"{n:,} {what}" for what, n in [*dict(left).items()][-8:])
    note = (f"{name}: {train:,} training and {test:,} test images{origin}; {own}; {kind}{colours}; "
            f"{side} x {side} pixels{'; left out: ' * bool(left)}{left}")
    return {"classes": names, "digest": digest, "held_out": test, "note": shown(note)}


# ---- Folders of images -------------------------------------------------------------------------


def split_of(name):
    """"train" or "test" where a folder's name says so (Training_Set, val2017), else ""."""
    word = re.sub("[-_ .]", "", name.lower())
    word = re.sub(r"(?<=.)(set|split|images?|imgs?|data|[12]\d{3})$", "", word)
    return "train" if word in TRAIN.split("|") else "test" if word in TEST.split("|") else ""


def _walk(root):
    """-> {folder: {folder in it: images there and below}}, "" for none; Counter of other files."""
    tree, left = {}, collections.Counter()
    for here, below, names in os.walk(root, True, lambda _: left.update(["closed folder"]), True):
        below[:] = [name for name in below if not name.startswith((".", "__MACOSX")) and not
                    f"{here}/".startswith(os.path.realpath(f"{here}/{name}") + "/")]  # a link up
        parts = Path(here).relative_to(root).parts
        if parts and len({split_of(name) for name in below} - {""}) > 1:
            raise InputError(f"{here} has a split of its own: give --dataset {here}")
        first, second, *_ = (*parts, "", "")
        files = tree.setdefault(first, {}).setdefault(second, [])
        for name in (name for name in names if not name.startswith(".")):
            ending = os.path.splitext(name)[1].lower()
            if ending in EXTENSIONS and os.path.isfile(f"{here}/{name}"):
                files.append("/".join((*parts, name)))
            else:
                left["no regular file" if ending in EXTENSIONS else ending or "no ending"] += 1
    return tree, left


def list_images(root, dataset=""):
    """-> sorted rows (1: test or 0, label, path), class names, where the test is from, left-outs.

    The test is found by folders' names, CelebA's list, or a hash of each file's name. Classes are
    folders of root or its train folder ("." without); test images may have none: label -1.
    InputError for a layout that is not understood, and for an empty class.
    """
    tree, left = _walk(root)
    images = {name: [f for files in inner.values() for f in files] for name, inner in tree.items()}
    top = sorted({*tree} - {""}, key=natural)
    trains, tests = ([name for name in top if split_of(name) == s] for s in ("train", "test"))
    others = [n for n in top if not split_of(n) and (images[n] or not trains + tests)]
    like = rf"(.*[-_. ])?((train|test|fold|split).*|({TRAIN}|{TEST})([-_. \d].*)?)"
    like = [name for name in others if re.fullmatch(like, name, re.IGNORECASE)]
    if (len(trains) > 1 or trains and others or tests and not trains and len(others) < 2
            or len(like) > 1 and 2 * len(like) >= len(others)):
        raise InputError(f"{root} looks split, but not into train and test (it holds "
                         f"{', '.join(top[:8])}): rename these, or give --dataset one of them")

    classes = tree[trains[0]] if trains else {name: images[name] for name in ["", *others]}
    names = sorted({*classes} - {""}, key=natural)
    if len(names) < 1 + (classes.get("", []) != []):  # one folder next to images is no class
        names, classes = ["."], {".": [f for files in classes.values() for f in files]}
        tree = {name: {".": files} for name, files in images.items()}
    for name in names:
        if not classes[name]:
            raise InputError(f"{Path(root, *trains, name)} holds no image (of the kinds "
                             f"{' '.join(EXTENSIONS)}): put some in, or take the folder away")
    rows = [(0, k, file) for k, name in enumerate(names) for file in classes[name]]
    lists = [place for up in (root, *root.parents[:2]) for name in ("", "Eval") for place in
             (up / name).glob("list_eval_partition.*") if dataset == "celeba"]  # fmt: skip
    if tests:
        found = {test: [(1, k, file) for k, name in enumerate(names)
                        for file in tree[test].get(name, [])] for test in tests}  # fmt: skip
        first = "val" if dataset == "imagenet" else "test"
        test = min(tests, key=lambda name: (not found[name], not name.lower().startswith(first)))
        if not found[test] and sum(files != [] for files in tree[test].values()) != 1:
            raise InputError(f"{root / test} has neither the classes {', '.join(names[:8])} nor "
                             "images without classes: put them in, or take the folder away")
        rows += found[test] or [(1, -1, file) for file in images[test]]
        origin = f"from {test}{'' if found[test] else ', without labels'}"
    elif lists:  # lines of a file's name and 0 (train), 1 (validation, left out) or 2 (test)
        part = dict(re.findall(r"(?m)^([^\s,]+)\.\w+[\s,]+([02])\s*$", lists[0].read_text()))
        codes = [part.get(Path(file).stem) for *_, file in rows]
        rows = [(int(code) // 2, *row[1:]) for row, code in zip(rows, codes) if code]
        origin = f"by {lists[0].name}"
    else:  # by a hash of the name alone; the last of each class stays for training
        digests = {file: hashlib.sha256(os.fsencode(file)).digest() for *_, file in rows}
        rows.sort(key=lambda row: digests[row[2]])
        stays = {k: file for _, k, file in rows}
        free = [file for _, k, file in rows if stays[k] != file]
        out = {file for file in free if digests[file][0] < 26 or file == free[0]}  # 26 in 256
        rows = [(int(file in out), k, file) for _, k, file in rows]
        origin = "about one in ten is held out, as there is no test folder"
    for file in {f for files in images.values() for f in files} - {row[2] for row in rows}:
        left[f"images in {'/'.join(file.split('/')[:-1][:2]) or '.'}"] += 1
    return sorted(rows), names, origin, left


def _from_folder(dataset, root, data_dir, split, size):
    """-> images, labels and facts of a folder, decoded once and then read from data_dir."""
    rows, names, origin, left = list_images(root, dataset)
    files, celeba = [os.path.join(root, row[2]) for row in rows], dataset == "celeba"
    size = size or DATASETS.get(dataset, (3, None))[1]
    for file in [] if size else files:  # the first one that is an image says
        with contextlib.suppress(Exception), Image.open(file, formats=FORMATS) as image:
            size = image.width if image.width == image.height <= 64 else 64
            break
    stats = [(info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in map(os.stat, files)]
    state = hashlib.sha256(repr((2, celeba, names, rows, stats)).encode()).hexdigest()[:16]
    name = f"{re.sub('[^A-Za-z0-9]', '_', root.name)}-{size}-{zlib.crc32(os.fsencode(root)):08x}"
    make = functools.partial(_decode, rows, files, size or 64, celeba)
    images, kept, broken = _cached(data_dir, name, state, make)

    labels, n = torch.tensor([row[1] for row in kept]), len(kept)
    train, coloured = sum(row[0] == 0 for row in kept), sum(row[4] for row in kept)
    if len(labels[:train].unique()) < len(names):
        raise InputError(f"{root} has a class without readable images: {'; '.join(broken[:3])}")
    here = {"train": slice(train), "test": slice(train, n), "all": slice(n)}
    if not kept[here[split]]:
        raise InputError(f"{root} leaves no image for the {split} split: add more")
    if broken:
        left[f"unreadable ({'; '.join(broken[:3])}{'; ...' * (len(broken) > 3)})"] = len(broken)
    halves = [hashlib.sha256(repr(kept[here[part]]).encode()) for part in ("train", "test")]
    digest = "".join(half.hexdigest()[:16] for half in halves)
    colours = f" ({coloured:,} of {n:,} have colour)" if 0 < coloured < n else ""
    about = _about(root, names, labels[:train], images, train, n - train, digest, f" ({origin})",
                   colours, left)  # fmt: skip
    return images[here[split]], labels[here[split]], about


def _decode(rows, files, size, celeba):
    """-> uint8 (n, C, size, size); of each (*row, checksum, has colour); broken files."""
    images, kept, broken = torch.empty(len(files), 3, size, size, dtype=torch.uint8), [], []

    def decode(file):
        try:
            if os.path.getsize(file) > 2**29:
                raise ValueError("more than 512 MiB")
            content = Path(file).read_bytes()
            pixels = open_image(io.BytesIO(content), size, celeba)
            colour = np.mean(np.ptp(pixels, 0) > 12) > 0.01  # JPEG's own noise is less
            return pixels, zlib.crc32(content), bool(colour)
        except Exception as error:  # noqa: BLE001  whatever a decoder raises
            return (str(error) or type(error).__name__).partition(" <")[0][:100]

    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata
        for start in range(0, len(files), 200):  # so few at once, which bounds memory
            if start % 10_000 == 5000:
                print(f"decoded {start:,} of {len(files):,} images", file=sys.stderr)
            some = slice(start, start + 200)
            for row, found in zip(rows[some], pool.map(decode, files[some])):
                if isinstance(found, str):
                    broken.append(f"{row[2]}: {found}")
                else:
                    images[len(kept)] = torch.tensor(found[0])
                    kept.append((*row, *found[1:]))
    images = images[: len(kept)]
    if kept and sum(row[4] for row in kept) <= 0.05 * len(kept):
        grey = [Image.fromarray(x).convert("L") for x in images.permute(0, 2, 3, 1).numpy()]
        images = torch.from_numpy(np.stack(grey))[:, None]
    return images, kept, broken


def open_image(file, size=None, celeba=False):
    """-> uint8 (3, H, W), upright, on white; or its middle at size x size. ValueError and more."""
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
        turn, exif, image._exif = tags.get(0x0112), Image.Exif(), Image.Exif()
        image._exif._loaded = True  # else Pillow reads all tags of a TIFF, which may be broken
        image.load()
        with contextlib.suppress(Exception):  # there is none, or it is broken
            exif.load(image.info["exif"])
            turn = exif[0x0112]
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
        flips = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation: Image.Transpose
        image = image.transpose(flips[turn]) if turn in flips else image
        if size:
            side = round(share * min(image.size))
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(image).transpose(2, 0, 1)


# ---- Embedded data sets ------------------------------------------------------------------------
# Image i is the same on every machine, for any n and number of threads: a row of random numbers of
# its own, float32 steps that NumPy rounds exactly (+ - * / sqrt), and short sums in float64.

DRAWN_VERSION = 4  # raise it when the drawing changes, so that cached bytes are drawn again
HAIR = ((0.09, 0.08, 0.08), (0.38, 0.21, 0.10), (0.90, 0.74, 0.38), (0.72, 0.25, 0.09))
SKIN = ((0.96, 0.80, 0.69), (0.80, 0.57, 0.40), (0.52, 0.35, 0.25))
DOTS, POINTS = 112, 11  # of a digit: dots lie under half the pen's width apart; points at most
CATMULL_ROM = ((-0.5, 1.5, -1.5, 0.5), (1, -2.5, 2, -0.5), (-0.5, 0, 0.5, 0), (0, 1, 0, 0))

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


def draw_digits(n, seed, size=28):
    """Handwritten digits -> (uint8 (n, 1, size, size), int64 labels (n,)), 0 to 9 in turn.

    As MNIST: white on black, the longer side 20 of 28 pixels, centre of mass near the middle. A
    classifier trained on 60,000 of these reads 98.2 % of MNIST's test images right.
    """
    return _draw(_paint_digits, 10, n, seed, (1, size, size))


def draw_faces(n, seed, size=32):
    """Faces in colour -> (uint8 (n, 3, size, size), int64 labels (n,)), the 96 labels in turn.
    Pose, shape, colours and background vary within a label. A face is the same at another size.
    """
    return _draw(_paint_faces, 96, n, seed, (3, size, size))


def face_attributes(labels):
    """Labels 0 to 95 (N,) of faces -> {name: int64 (N,)}. smile, glasses: 0 no, 1 yes; hair: 0
    black, 1 brown, 2 blond, 3 red; its length: 0 short, 1 long; skin: 0 light, 1 tan, 2 dark.
    """
    return {"smile": labels // 48, "glasses": labels // 24 % 2, "hair": labels // 6 % 4,
            "length": labels // 3 % 2, "skin": labels % 3}  # fmt: skip


def _draw(paint, kinds, n, seed, shape):
    """paint(labels (B,), random numbers (B, 144), size) in parts that fit the CPU's cache."""
    generator, part = torch.Generator().manual_seed(seed), max(2**14 // shape[1] ** 2, 1)
    labels, images = torch.arange(n) % kinds, torch.empty(n, *shape, dtype=torch.uint8)
    for label, out in zip(labels.split(part), images.split(part)):
        u = torch.rand(len(label), 144, generator=generator)
        out[:] = torch.from_numpy(paint(label.numpy(), u.numpy(), shape[1]))
    return images, labels


def _paint_digits(digits, u, size):
    """Bends and slants a skeleton; ink falls with the distance to it, in widths of the pen."""
    points, weights, ways = _skeletons()
    way = ways[digits, (u[:, 0] * ways.shape[1]).astype(int)]
    g = (u[:, 9:].astype(float).reshape(-1, 45, 3).sum(2) - 1.5) * 2  # bell-shaped: variance 1
    bend, slant, jitter = np.split(g[:, :34].reshape(-1, 17, 2), (4, 6), 1)
    points = points[way] + 0.082 * jitter  # (B, POINTS, 2), from about -1 to 1
    x, y = points[:, :, :1], points[:, :, 1:]
    points = points + 0.075 * np.concatenate([x * x, x * y, y * y, y * y * y], 2) @ bend
    points = points @ ([[1.05, 0], [-0.12, 1]] + [[0.19, 0.14], [0.27, 0]] * slant)
    press = 1 + (0.08 * g + 0.05 * g * g * g)[:, 34:, None]  # its tails: a few gaps, filled loops
    dots, press = np.split(weights[way] @ np.concatenate([points, press], 2), (2,), 2)
    shift, u = u[:, None, 5:7], u[:, :, None, None]  # (B, 1, 2) as dots, (B, 1, 1) each
    pen, soft = 0.8 + (u[:, 1] + u[:, 2]) * u[:, 3], 0.7 + 0.7 * u[:, 4]  # half the width, its edge
    scale = (20 - 2 * pen) / np.ptp(dots, 1, keepdims=True).max(2, keepdims=True)
    centre = (dots * press).sum(1, keepdims=True) / press.sum(1, keepdims=True)
    dots = (dots - centre) * scale + shift  # in 28ths of the picture
    pens = pen * press.clip(0.1) * (1 + (u[:, 7] - u[:, 8]) * [0.2, -0.2])
    pixels = (np.arange(size) * 2 + 1 - size) * 14 / size
    away = np.square(((pixels - dots[..., None]) / pens[..., None]).astype("f4"))
    nearest = np.sqrt((away[:, :, :1] + away[:, :, 1, :, None]).min(1))
    ink = 0.5 + (1 - nearest) * (pen / soft)
    return (ink[:, None].clip(0, 1) * 255).round().astype("u1")


@functools.lru_cache(maxsize=1)
def _skeletons():
    """SKELETONS as arrays: points (V, POINTS, 2), from about -1 to 1; weights (V, DOTS, POINTS) to
    mix them to dots along Catmull and Rom's curves; and the ways to write each digit (10, 1000).
    """
    controls, mixes, ways, letters = [], [], [], string.ascii_letters + string.digits
    for digit in SKELETONS.values():
        ways.append([])
        for way in digit.split():
            ways[-1] += [len(mixes)] * int(way[0])
            points, pieces = {}, []
            for line in way[1:].split("/"):
                line = [line[i : i + 2] for i in range(0, len(line), 2)]
                at = [points.setdefault(point, len(points)) for point in line]
                at = [at[-2], *at, at[1]] if at[0] == at[-1] else [at[0], *at, at[-1]]  # ring, line
                pieces += [at[i : i + 4] for i in range(len(at) - 3) if at[i + 1] != at[i + 2]]
            points = np.array([[letters.index(letter) for letter in point] for point in points])
            ends = np.cumsum([0] + [math.dist(points[b], points[c]) for _, b, c, _ in pieces])
            place = np.interp((np.arange(DOTS) + 0.5) / DOTS * ends[-1], ends, range(len(ends)))
            corners = np.eye(POINTS)[np.array(pieces)[place.astype(int)]]  # (DOTS, 4, POINTS)
            mixes.append(np.einsum("dk,dkp->dp", np.vander(place % 1, 4) @ CATMULL_ROM, corners))
            controls.append(np.resize((points - [points[:, 0].max() / 2, 25]) / 25, (POINTS, 2)))
    return np.array(controls), np.array(mixes), np.array([np.resize(row, 1000) for row in ways])


def _paint_faces(labels, u, size):
    """Paints shapes one over the other: signed distances (B, size, size), negative inside. x runs
    right and y down, from -1 to 1 over the picture; a head is about 1 wide and 1.2 high.
    """
    numbers = iter(u.T[:, :, None, None])  # (B, 1, 1) each
    smile, glasses, hair, long, skin = face_attributes(labels).values()
    smile, glasses, long = (flag[:, None, None] > 0 for flag in (smile, glasses, long))

    def vary(low, high):
        return low + (high - low) * next(numbers)

    def colour(low, high):  # (B, 3, 1, 1)
        return np.stack([vary(low, high) for _ in range(3)], 1)

    def paint(colour, distance, shown=True):
        cover = (0.5 - distance * (scale * (size / 2))).clip(0, 1) * shown  # edges: a pixel wide
        return image + cover[:, None] * (colour - image)

    x = np.float32(np.arange(size) * 2 + 1 - size) / size
    above, below = colour(0.4, 0.9), colour(0.4, 0.9)
    image = above + (below - above) * (1 + x[:, None]) / 2
    scale, turn = vary(0.95, 1.2), vary(-0.14, 0.14)
    x, y = (x - vary(-0.12, 0.12)) / scale, (x[:, None] - vary(-0.1, 0.1)) / scale
    x, y = x - turn * y, y + turn * x
    light = (1 + vary(-0.25, 0.25) * x - vary(0.0, 0.25) * y)[:, None]
    skin = (np.float32(SKIN)[skin, :, None, None] + colour(-0.03, 0.03)) * light
    hair = (np.float32(HAIR)[hair, :, None, None] + colour(-0.03, 0.03)) * light
    width, height = vary(0.40, 0.48), vary(0.52, 0.60)
    face_x, face_y = x - vary(-0.1, 0.1), y - vary(-0.05, 0.05)  # features move, the outline stays
    cap = np.maximum(y - vary(-0.2, 0.1), _ellipse(x, y + vary(0, 0.1), width * 1.15, height * 1.1))
    locks = _ellipse(x, y - vary(0.05, 0.15), width + vary(0.1, 0.2), vary(0.8, 0.95))
    image = paint(hair * 0.8, locks, long)
    image = paint(colour(0.1, 0.9), _ellipse(x, y - 1.1, vary(0.6, 0.85), vary(0.32, 0.45)))
    image = paint(skin * 0.82, _ellipse(x, y - 0.5, vary(0.17, 0.24), 0.42))  # neck
    image = paint(skin * 0.9, _ellipse(abs(x) - width, y - 0.04, 0.08, 0.13))  # ears
    image = paint(skin, _ellipse(x, y, width, height))
    bare = face_x - vary(-0.06, 0.06), (face_y - vary(-0.05, 0.1)).clip(None, 0)  # and below
    bare = _ellipse(*bare, width * vary(0.85, 0.97), vary(0.3, 0.48))
    image = paint(hair, np.maximum(np.where(long, locks, cap), -bare))
    eye_x, eye_y = abs(face_x) - vary(0.17, 0.21), face_y + vary(0.0, 0.08)
    image = paint(0.95, _ellipse(eye_x, eye_y, vary(0.085, 0.105), vary(0.05, 0.075)))
    image = paint(colour(0.0, 0.3), _ellipse(eye_x, eye_y, 0.05, 0.055))
    brow = abs(eye_y + vary(0.12, 0.16) + vary(-0.3, 0.1) * eye_x) - vary(0.015, 0.03)
    image = paint(hair * 0.6, np.maximum(brow, abs(eye_x) - 0.1))
    image = paint(skin * 0.8, _ellipse(face_x, face_y - vary(0.1, 0.16), vary(0.04, 0.07), 0.03))
    bulge = 1 - np.square(face_x / (vary(0.13, 0.17) + smile * np.float32(0.1)))
    bend = np.where(smile, vary(0.14, 0.18), vary(-0.03, 0.01))
    mouth = abs(face_y - 0.3 + bend / 2 - bend * bulge)  # between two parabolas
    mouth = mouth - np.where(smile, vary(0.06, 0.08), vary(0.035, 0.05)) * bulge
    image = paint(skin * np.float32([[[0.8]], [[0.45]], [[0.45]]]), mouth)
    image = paint(0.95, mouth + 0.03, smile)  # teeth
    lens = _ellipse(eye_x, eye_y, vary(0.125, 0.155), vary(0.125, 0.155))
    bridge = np.maximum(abs(eye_y + 0.02), np.maximum(-lens, abs(x) - width))  # and arms
    image = paint(colour(0.0, 0.3), np.minimum(abs(lens), bridge) - vary(0.03, 0.042), glasses)
    return (image.clip(0, 1) * 255).round().astype("u1")


def _ellipse(x, y, a, b):
    """Signed distance to an ellipse with half-axes a, b, to first order: exact on its outline."""
    x, y = x / a, y / b
    slope = np.sqrt(np.square(x / a) + np.square(y / b))
    return (x * x + y * y - 1) / (2 * slope).clip(1e-6)
