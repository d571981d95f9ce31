"""Images in: embedded sets, torchvision's sets and folders of images, as bytes; batches of them.

`digits` and `faces` are drawn at the end of this file, torchvision's sets are downloaded, a path is
any folder of images (see `list_images`), and the others are folders in data_dir (see FOLDERS).
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import re
import shlex
import signal
import string
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.functional import center_crop

DATASETS = {  # name: (channels, side in pixels) unless load's size says otherwise
    "digits": (1, 28), "faces": (3, 32), "mnist": (1, 28), "fashion-mnist": (1, 28),
    "cifar10": (3, 32), "svhn": (3, 32), "celeba": (3, 64), "lsun-church": (3, 64),
    "lsun-rooms": (3, 64), "imagenet": (3, 64), "telugu": (1, 32),
}  # fmt: skip
FOLDERS = {  # name: the folders in data_dir that may hold it
    "cifar10": ["cifar10-jpeg", "cifar10"], "lsun-church": ["lsun-church"],
    "celeba": ["celeba/img_align_celeba", "celeba/Img/img_align_celeba"],
    "lsun-rooms": ["lsun-rooms"], "imagenet": ["imagenet"], "telugu": ["telugu"],
}  # fmt: skip
TORCHVISION = {  # name: its class, and its files in data_dir
    "mnist": (datasets.MNIST, "MNIST/raw/*-ubyte"),
    "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte.gz"),
    "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz or cifar10/train/CLASS/"),
    "svhn": (datasets.SVHN, "train_32x32.mat and test_32x32.mat"),
}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow opens no others
EXTENSIONS = [end for end, kind in Image.registered_extensions().items() if kind in FORMATS]
TRAIN = "train|training|trainval|trn"
TEST = "test|testing|tst|val|valid|validation|dev|eval|evaluation|holdout|heldout"
path = os.path.expanduser  # type of a flag that is a path: `~` is the user's home


class InputError(ValueError):
    """An error the user can fix: one line that names the thing and the way out."""


class Loaded(tuple):
    """What `load` gives: `images, labels = load(...)`, and attributes."""

    def __new__(cls, images, labels, **about):
        loaded = super().__new__(cls, (images, labels))
        vars(loaded).update(about)
        return loaded


def load(dataset, data_dir="data", split="train", size=None, classes=None):
    """-> Loaded: images uint8 (N, C, size, size), labels int64 (N,), -1: no label.

    dataset: a name of DATASETS, or a folder. split: train, test or all. classes: names to keep, to
    be labels 0..k-1. Attributes: classes, names by label (["."]: no classes); digest; note, what
    was taken and left out. InputError for wrong arguments, and what is missing or unreadable.
    """
    dataset, data_dir = str(dataset), Path(path(data_dir))
    if split not in ("train", "test", "all"):
        raise InputError(f"there is no split {split!r}: choose train, test or all")
    _, side = DATASETS.get(dataset, (None, None))
    places = FOLDERS.get(dataset, [] if side else [Path(path(dataset)).resolve()])
    root = next((data_dir / place for place in places if (data_dir / place).is_dir()), None)
    if root:
        found = _folder(root, data_dir, size or side)
    elif dataset in TORCHVISION:
        found = _downloaded(dataset, data_dir, size or side)
    elif not places:
        found = _drawn(dataset, data_dir, size or side)
    else:
        raise InputError(f"there is no folder {data_dir / places[0]} of images: put them there, or "
                         f"choose one of --dataset {' '.join(DATASETS)}")
    images, labels, names, train, origin, more, digest = found
    note = f"{root or dataset}: {train:,} training and {len(labels) - train:,} test images{origin}"
    here = {"train": slice(train), "test": slice(train, None), "all": slice(None)}[split]
    images, labels = images[here], labels[here]
    if not len(labels):
        raise InputError(f"{root} leaves no image for the {split} split: add more")
    if classes is not None:
        classes = [str(name) for name in classes]
        if labels.min() < 0 or {*classes} - {*names}:
            raise InputError(f"{dataset} has images without labels, or no such classes as "
                             f"{', '.join(classes)}: choose from {', '.join(names)}")
        labels = torch.tensor([classes.index(n) if n in classes else -1 for n in names])[labels]
        images, labels, names = images[labels >= 0], labels[labels >= 0], classes

    counts = labels[labels >= 0].bincount(minlength=len(names)).tolist()
    kinds = ", ".join(f"{name} ({n:,})" for name, n in zip(names[:10], counts))
    kinds = f"{len(names)} class{'es' * (len(names) > 1)}: {kinds}{', ...' * (len(names) > 10)}"
    kinds = "no classes" if names == ["."] else kinds
    colour, side = "grey" if images.shape[1] == 1 else "colour", images.shape[2]
    note = f"{note}; {kinds}; {colour}; {side} x {side} pixels{more}"
    return Loaded(images, labels, classes=names, digest=digest, note=shown(note))


def training_set(args, batch_size):
    """-> training images and labels; fills in args; says what was taken and, on resume, changed."""
    images, labels = loaded = load(args.dataset, args.data_dir, size=args.size)
    if not isinstance(loaded, Loaded):  # of a tool that replaces `load`
        names = [str(k) for k in labels.unique().tolist()]
        loaded = Loaded(images, labels, classes=names, digest="", note=f"{len(images)} images")
    about = {"channels": images.shape[1], "size": images.shape[2], "class_names": loaded.classes}
    say(loaded.note)
    if len(images) < 200:
        say(f"{len(images)} images are very few: expect copies of them, or noise")
    if args.resume:
        for key, value in about.items():
            if getattr(args, key, None) != value:
                raise InputError(f"{args.dataset} has {key} {value}, but the run was trained on "
                                 f"{getattr(args, key, None)}: give --dataset its own images")
        if getattr(args, "digest", None) != loaded.digest:
            say(f"note: {args.dataset} has changed: {args.train_images} training images then, "
                f"{len(images)} now; images held out before may be trained on now")
    vars(args).update(about, train_images=len(images), digest=loaded.digest)
    args.batch_size = args.batch_size or max(min(batch_size, len(images) // 4), 2)
    return images, labels


# ---- Batches and devices -------------------------------------------------------------------------


def batches(images, batch_size, device, seed, start=0, labels=None):
    """Serve float32 batches (batch_size, C, H, W) in [0, 1] for ever; (x, y) if there are labels.

    images: uint8 (N, C, H, W), kept on the device, or on the host if they do not fit. The order
    depends on (seed, step) alone: a permutation for each epoch, without its last partial batch.
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
        now, first = divmod(start, len(images) // batch_size)
        for epoch in itertools.count(now):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(len(images), generator=generator)
            if home.type == "cuda":  # pinned: the copy does not wait for the device
                order = order.pin_memory().to(home, non_blocking=True)
            for chosen in order.split(batch_size)[first : len(images) // batch_size]:
                x = take(images, chosen).contiguous(memory_format=torch.channels_last) / 255
                yield x if labels is None else (x, take(labels, chosen))
            first = 0

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
    """parser.error for a number out of range, or a flag without the one that it needs."""
    ranges = {"seed": (-(2**63), 2**63 - 1), "ema": (0, 0.99999), "decay": (0, 1)}
    for name, value in vars(args).items():
        low, high = ranges.get(name, (0, 1e9))
        number = type(value) in (int, float) and not (value == 0 and name in may_be_0)
        if number and not low < value <= high:
            must = f"{'at least' if name in may_be_0 else 'above'} {low:g} and at most {high:g}"
            parser.error(f"--{name.replace('_', '-')} must be {must}, not {value}")
    if args.sample and not args.resume:
        parser.error("--sample draws from a trained run: name it with --resume RUN")
    if getattr(args, "draw_classes", None) and not args.sample:
        parser.error("--classes goes with --sample; to train on some classes, move the others away")


def planned_updates(args, epochs, batches=1):
    """Updates, of `batches` each, in args.epochs, or by default in `epochs` and at least 3,000."""
    per_epoch = args.train_images // (batches * args.batch_size)
    planned = args.epochs * per_epoch if args.epochs else max(epochs * per_epoch, 3000)
    return max(planned, args.iters or 0)


def schedule(args, start, total, folder, every=200):
    """Yields (step, shows, saves) for each update after `start`: if it prints a line, if it saves.

    Saves every args.sample_every updates, by default `every` (CUDA: x 10). Ctrl-C or SIGTERM: the
    next update saves and is the last, then KeyboardInterrupt(folder); a second one ends at once.
    """
    caught, every = [], every * (10 if args.device.startswith("cuda") else 1)

    def stop(signum, frame):
        caught.append(signum)
        signal.signal(signum, before[signum])

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for step in range(start + 1, total + 1):
            ends = step == total or bool(caught)
            saves = ends or step == 100 or step % (args.sample_every or every) == 0
            yield step, saves or step in (1, 10) or step % args.log_every == 0, saves
            if ends:
                break
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    if step < total:
        raise KeyboardInterrupt(folder)


# ---- Messages and files ------------------------------------------------------------------------


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
    try:
        yield
    except KeyboardInterrupt as stopped:
        if stopped.args:  # the folder of a run that was saved
            say(f"stopped; resume with: python {prog} --resume {shlex.quote(str(stopped))}")
        sys.exit(130)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", text):
            text = "memory is full: lower --batch-size or --size, or close other programs"
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            text = f"--compile failed ({text.splitlines()[0]}): install a C++ compiler, or omit it"
        elif not isinstance(error, (InputError, FloatingPointError, OSError)):
            raise
        print(f"{prog}: error: {shown(text)}", file=sys.stderr)
        sys.exit(2)


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
        print(f"note: {place} could not be kept: {error.__context__ or error}", file=sys.stderr)
    return made


# ---- Sources: images, training first; labels, class names, n of training; origin, remarks, digest


def _drawn(dataset, data_dir, size):
    """An embedded set, drawn once and then read from data_dir."""
    train, test = (60_000, 10_000) if dataset == "digits" else (20_000, 4_000)
    make = functools.partial(draw, dataset, train + test, 0, size)
    images, labels = _cached(data_dir, f"drawn-{dataset}-{size}", DRAWN_VERSION, make)
    return images, labels, [str(k) for k in labels.unique().tolist()], train, "", "", dataset


def _downloaded(dataset, data_dir, size):
    """One of torchvision's sets; InputError where it is neither in data_dir nor downloaded."""
    source, files = TORCHVISION[dataset]
    key, values = ("split", ("train", "test")) if dataset == "svhn" else ("train", (True, False))
    try:
        parts = [source(data_dir, download=True, **{key: value}) for value in values]
        images, labels = zip(*[part[i] for part in parts for i in range(len(part))])
    except Exception as error:  # of many kinds: readers, downloads
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
        raise InputError(f"{dataset} cannot be read or downloaded ({reason}): put {files} into "
                         f"{data_dir} (--data-dir), or use --dataset digits") from error
    images = [np.atleast_3d(x.resize((size, size), Image.Resampling.BICUBIC)) for x in images]
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    names = getattr(parts[0], "classes", "0123456789")  # MNIST's are "0 - zero" and so on
    names = [name.split(" - ")[0].replace("/", "-") for name in names]
    return images, torch.tensor(labels), names, len(parts[0]), "", "", dataset


def _folder(root, data_dir, size):
    """A folder, decoded once and then read from data_dir; InputError where a class is empty."""
    rows, names, origin, left = list_images(root)
    files = [root / row[2] for row in rows]
    for file in [] if size else files:  # the first one that is an image says
        with contextlib.suppress(Exception), Image.open(file, formats=FORMATS) as image:
            size = image.width if image.width == image.height <= 64 else 64
            break
    stats = [(info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in map(os.stat, files)]
    state = hashlib.sha256(repr((3, names, rows, stats)).encode()).hexdigest()[:16]
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    name = f"{re.sub('[^A-Za-z0-9]', '_', root.name)}-{size}-{place}"
    images, good, broken = _cached(data_dir, name, state, lambda: _decode(files, size or 64))

    kept = [(*rows[i], *facts) for i, facts in good.items()]
    labels, train = torch.tensor([row[1] for row in kept]), sum(row[0] == 0 for row in kept)
    some = "; ".join(f"{rows[i][2]}: {reason}" for i, reason in [*broken.items()][:3])
    if len(labels[:train].unique()) < len(names):
        raise InputError(f"{root} has a class without readable images: {some}")
    coloured = sum(row[4] for row in kept)
    more = f" ({coloured:,} of {len(kept):,} have colour)" if 0 < coloured < len(kept) else ""
    if broken:
        left[f"unreadable ({some}{'; ...' * (len(broken) > 3)})"] = len(broken)
    if left:
        more += "; left out: " + ", ".join(f"{n:,} {what}" for what, n in left.items())
    digest = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    return images, labels, names, train, f" ({origin})", more, digest


def split_of(name):
    """"train" or "test" where a folder's name says so (Training_Set, val2017), else ""."""
    word = re.sub("[-_ .]", "", name.lower())
    word = re.sub(r"(?<=.)(set|split|images?|imgs?|data|[12]\d{3})$", "", word)
    return "train" if re.fullmatch(TRAIN, word) else "test" if re.fullmatch(TEST, word) else ""


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


def list_images(root):
    """-> sorted rows (1: test or 0, label, path), class names, where the test is from, left-outs.

    The test is found by folders' names, CelebA's list, or a hash of each file's name. Classes are
    folders, or "."; test images may have none: -1. InputError for a layout not understood.
    """
    tree, left = _walk(root)
    images = {top: [*itertools.chain(*inner.values())] for top, inner in tree.items()}
    tops = sorted({*tree} - {""}, key=natural)
    trains, tests = ([top for top in tops if split_of(top) == part] for part in ("train", "test"))
    others = [top for top in tops if not split_of(top) and (images[top] or not trains + tests)]
    like = rf"(.*[-_. ])?((train|test|fold|split).*|({TRAIN}|{TEST})([-_. \d].*)?)"
    odd = [top for top in others if re.fullmatch(like, top, re.IGNORECASE)]
    if (len(trains) > 1 or trains and others or tests and not trains and len(others) < 2
            or len(odd) > 1 and 2 * len(odd) >= len(others)):
        raise InputError(f"{root} looks split, but not into train and test (it holds "
                         f"{', '.join(tops[:8])}): rename these, or give --dataset one of them")

    train = trains[0] if trains else ""
    if not trains:
        tree[""] = {top: images[top] for top in ["", *others]}
    names = sorted({*tree[train]} - {""}, key=natural)
    if not names or len(names) == 1 and tree[train].get(""):  # one folder and images: no class
        names = ["."]
        tree = {top: {".": [*itertools.chain(*inner.values())]} for top, inner in tree.items()}
    empty = [name for name in names if not tree[train][name]]
    if empty:
        raise InputError(f"{Path(root, train, empty[0])} holds no image (of the kinds "
                         f"{' '.join(EXTENSIONS)}): put some in, or take the folder away")

    rows_of = {top: [(int(top in tests), k, file) for k, name in enumerate(names)
                     for file in inner.get(name, [])] for top, inner in tree.items()}  # fmt: skip
    rows = rows_of[train]
    places = [up / name for up in (root, *root.parents[:2]) for name in ("", "Eval")]
    lists = [file for place in places for file in place.glob("list_eval_partition.*")]  # CelebA's
    if tests:
        test = min(tests, key=lambda top: (not rows_of[top], not top.lower().startswith("test")))
        labelled = rows_of[test]
        if not labelled and sum(map(bool, tree[test].values())) != 1:
            raise InputError(f"{root / test} has neither the classes {', '.join(names[:8])} nor "
                             "images without classes: put them in, or take the folder away")
        rows += labelled or [(1, -1, file) for file in images[test]]
        origin = f"from {test}{'' if labelled else ', without labels'}"
    elif lists:  # lines of a file's name and 0 (train), 1 (validation, left out) or 2 (test)
        part = dict(re.findall(r"(?m)^([^\s,]+)\.\w+[\s,]+([02])\s*$", lists[0].read_text()))
        codes = [part.get(Path(file).stem) for *_, file in rows]
        rows = [(int(code) // 2, *row[1:]) for row, code in zip(rows, codes) if code]
        origin = f"by {lists[0].name}"
    else:  # by a hash of the name alone; the last of each class stays for training
        rows = sorted((hashlib.sha256(os.fsencode(row[2])).digest(), *row[1:]) for row in rows)
        stays = {k: file for _, k, file in rows}
        free = [(code, file) for code, k, file in rows if stays[k] != file]
        out = {file for i, (code, file) in enumerate(free) if code[0] < 26 or i == 0}  # 26 in 256
        rows = [(int(file in out), k, file) for _, k, file in rows]
        origin = "about one in ten is held out, as there is no test folder"
    for file in {*itertools.chain(*images.values())} - {row[2] for row in rows}:
        left[f"images in {'/'.join(file.split('/')[:-1][:2]) or '.'}"] += 1
    return sorted(rows), names, origin, left


def _decode(files, size):
    """-> uint8 (n, C, size, size); {place in files: (hash, has colour)}; {place: why not}."""
    images, good, broken = np.empty((len(files), 3, size, size), np.uint8), {}, {}

    def decode(i):
        try:
            images[i] = open_image(files[i], size)
            colour = np.mean(np.ptp(images[i], 0) > 12) > 0.01  # JPEG's own noise is less
            return hashlib.sha256(files[i].read_bytes()).hexdigest(), bool(colour)
        except Exception as error:  # noqa: BLE001  whatever a decoder raises
            return re.split(":? ['<]", str(error) or type(error).__name__)[0][:100]  # no path

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # above 89 megapixels
        for i, found in enumerate(pool.map(decode, range(len(files)))):
            (broken if isinstance(found, str) else good)[i] = found
            if i % 10_000 == 9_999:
                print(f"decoded {i + 1:,} of {len(files):,} images", file=sys.stderr)
    images = images[list(good)] if broken else images
    if sum(colour for _, colour in good.values()) <= 0.05 * len(good):
        grey = [Image.fromarray(x).convert("L") for x in images.transpose(0, 2, 3, 1)]
        images = np.array([*map(np.asarray, grey)], np.uint8).reshape(-1, 1, size, size)
    return torch.from_numpy(images), good, broken


def open_image(file, size):
    """-> the image's middle as uint8 (3, size, size), upright, on white. ValueError and more."""
    with Image.open(file, formats=FORMATS) as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF
        bits, turn = max(tags.get(258, (16,))), tags.get(0x0112)
        if image.mode == "F" or bits > 16 or tags.get(339, (1,))[0] in (2, 3):
            raise ValueError("signed, 32-bit or floating-point pixels")
        if tags.get(262) == 6 and tags.get(259) == 1 and tags.get(530, (2, 2)) != (1, 1):
            raise ValueError("subsampled YCbCr without compression")  # which Pillow misreads
        image.draft(None, (2 * size, 2 * size))  # a JPEG decodes at 1/2 to 1/8
        exif, image._exif = Image.Exif(), Image.Exif()
        image._exif._loaded = True  # else Pillow reads all tags of a TIFF, which may be broken
        image.load()
        with contextlib.suppress(Exception):  # there is none, or it is broken
            exif.load(image.info["exif"])
            turn = exif[0x0112]
        if image.mode.startswith("I"):  # grey of 12 or 16 bits
            grey = np.asarray(image) * (255 / (2**bits - 1))
            grey = 255 - grey if tags.get(262) == 0 else grey  # zero is white
            image = Image.fromarray(grey.round().astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        flips = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation: Image.Transpose
        image = image.transpose(flips[turn]) if turn in flips else image
        image = center_crop(image.convert("RGB"), min(image.size))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


# ---- Embedded data sets ------------------------------------------------------------------------
# Image i is the same on every machine, for any n and number of threads: a row of random numbers of
# its own, float32 steps that NumPy rounds exactly (+ - * / sqrt), and short sums in float64.

DRAWN_VERSION = 5  # raise it when the drawing changes, so that cached bytes are drawn again
HAIR = ((0.09, 0.08, 0.08), (0.38, 0.21, 0.10), (0.90, 0.74, 0.38), (0.72, 0.25, 0.09))
SKIN = ((0.96, 0.80, 0.69), (0.80, 0.57, 0.40), (0.52, 0.35, 0.25))
DOTS, POINTS = 112, 11  # of a digit: dots lie under half the pen's width apart; points at most
CATMULL_ROM = ((-0.5, 1.5, -1.5, 0.5), (1, -2.5, 2, -0.5), (-0.5, 0, 0.5, 0), (0, 1, 0, 0))

# Ways to write the digits: which digit, a share, the points of its strokes, x right and y down, a
# letter each: a is 0, Z 51, 0 is 52; digits are 50 high. A stroke is a Catmull-Rom curve, "/" lifts
# the pen; a point named twice in a row is a corner, one of two strokes a joint.
SKELETONS = """
03tahgbxePqYESLAGhta 02yckdbwfRtYGQKyDgrd 01lddrdLpYDRHyAgoage 01HcrcdteOrYGRMxEgsg
01raghbzfRqYBRFzBhra 01EakgazmTEYWR4xVeEa 16aaazaY 11caazdY 12amkakakY 11allalalYlY/aYwX
22clmbAdFnwCdWdWLV 22ekoaCeCsrKhVbShMsQMW 22clmbAdBrrMeWbOlIzROV 21flpaDeEusTgYaPjFxLLY
21berbFcFcsxcWcWJV 21gqegraDhAwcVcVrRLX 21ckmaxfwukOdUdNmMuTBXIR 21apkczaEjuBeTeTuPQQ
21fkqbzkqGfUbLnLwYFV 33chnazfxrlxlxADDOrYbT 32bfpaAhutkywBDLuXaU 32ccDcDcnvnvCCDPpYbU
32cimayewqmxhznxzCBOpYcS 31berbCfpwpwyCwPkXaY 42ecbBbBFz/BaxY 42gbbtgADw/EbAzxY 41xaaFaFIE/xawY
42dcculAzvzvDcDcxY 41bcbxbxDx/DaDY 41racBcBGx/BksY 52gcdvdvrsECARnYbT/gcIa 52JbicicfwfwtuDFxUjYaT
52KcodhorwCGvVaW 52NaleleeueutxzIqVaX 51haduduutBHqXbS/icDd 51LcmcmchuhuxrGFuXfThJ
62xajmbFfVsYAOvDkEcN 62AalscMjYxUyInGeP 61oaesbLjYyUCHrAdK 61saeucQoYDQBDoBjKmV
61lacwcQoYGVIIvDmMlW 61iabEdVpXBPxFnKiV 61FbofcxeTuYGMwBeH 61ladCeVlXpNjFdO 73adEcEcvwnY
72bkcdcdFcFctymY 71adEcEcvwnY/hAFy 72ajicueFbFbwupY 71ahmazezssY 71amededFdFdtY/hCDz
71cmdcdcAcAczY 83BhqafhjsvCAOqYeSfIqyAoBh 81oaekoxzkoa/oxcKoYBKox 82FesbgjltuDwQlYcQjEwrGh
81pceiluxFwUjXeMozAlxcoc 81EdpbdkowvFuTmYhRmExsHe 81wlpbhkrvCFDTmYbOlAwl 81zkoacjnxvLpYjNpyzk
81EhuahgpuzIrYeQnBLd 93zhpadjevpxzmzhzhyzwY 92AfobcmgwsuAgAgxBqY 92zioadjgwsvziBBvUgW
91DcmebpiywtEcEcvEoY 91AmwbjccojxxtAmAmAEzY 91GepabjewuwFiFiFAEY 92CesaehcsmxypDdzEvY
91wgkcaohxumumtY 91NfuabkgxBuNfNfHEEY
"""


def draw(dataset, n, seed, size):
    """n digits or faces -> (uint8 (n, C, size, size), int64 labels (n,)), the labels in turn.

    Digits are as MNIST's: white on black, the longer side 20 of 28 pixels, the centre of mass near
    the middle. A classifier trained on 60,000 of them reads 98.2 % of MNIST's test images right.
    """
    paint, kinds, C = (_paint_digits, 10, 1) if dataset == "digits" else (_paint_faces, 96, 3)
    generator, part = torch.Generator().manual_seed(seed), max(2**14 // size**2, 1)
    labels, images = torch.arange(n) % kinds, torch.empty(n, C, size, size).byte()
    for label, out in zip(labels.split(part), images.split(part)):  # parts fit the CPU's cache
        u = torch.rand(len(label), 144, generator=generator)
        out[:] = torch.from_numpy(paint(label.numpy(), u.numpy(), size))
    return images, labels


def face_attributes(labels):
    """Labels (N,) -> {name: int64 (N,)}. Hair: black, brown, blond, red; skin: light, tan, dark."""
    return {"smile": labels // 48, "glasses": labels // 24 % 2, "hair": labels // 6 % 4,
            "length": labels // 3 % 2, "skin": labels % 3}  # fmt: skip


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
    """-> points (V, POINTS, 2), from about -1 to 1; weights (V, DOTS, POINTS); ways (10, 1000)."""
    letters, ways = string.ascii_letters + string.digits, [[] for _ in range(10)]
    controls, mixes = [], []
    for way in SKELETONS.split():
        ways[int(way[0])] += [len(mixes)] * int(way[1])
        points, pieces = {}, []
        for line in way[2:].split("/"):
            at = [points.setdefault(point, len(points)) for point in re.findall("..", line)]
            at = [at[-2], *at, at[1]] if at[0] == at[-1] else [at[0], *at, at[-1]]  # a ring, a line
            pieces += [at[i : i + 4] for i in range(len(at) - 3) if at[i + 1] != at[i + 2]]
        points = np.array([[letters.index(letter) for letter in point] for point in points])
        ends = np.cumsum([0] + [np.hypot(*(points[b] - points[c])) for _, b, c, _ in pieces])
        place = np.interp((np.arange(DOTS) + 0.5) / DOTS * ends[-1], ends, range(len(ends)))
        corners = np.eye(POINTS)[np.array(pieces)[place.astype(int)]]  # (DOTS, 4, POINTS)
        mixes.append(np.einsum("dk,dkp->dp", np.vander(place % 1, 4) @ CATMULL_ROM, corners))
        controls.append(np.resize((points - [points[:, 0].max() / 2, 25]) / 25, (POINTS, 2)))
    return np.array(controls), np.array(mixes), np.array([np.resize(row, 1000) for row in ways])


def _paint_faces(labels, u, size):
    """Paints shapes one over the other, by signed distances; x runs right, y down, from -1 to 1."""
    numbers = iter(u.T[:, :, None, None])  # (B, 1, 1) each
    smile, glasses, hair, long, skin = face_attributes(labels).values()
    smile, glasses, long = (np.float32(flag)[:, None, None] for flag in (smile, glasses, long))

    def vary(low, high):
        return low + (high - low) * next(numbers)

    def colour(low, high):  # (B, 3, 1, 1)
        return np.stack([vary(low, high) for _ in range(3)], 1)

    def paint(colour, distance, shown=1):
        cover = (0.5 - distance * (size / 2)).clip(0, 1) * shown  # edges: a pixel wide
        return image + cover[:, None] * (colour - image)

    x = np.float32(np.arange(size) * 2 + 1 - size) / size
    turn, zoom = vary(-0.14, 0.14), vary(0.85, 1.05)
    x, y = x - vary(-0.12, 0.12), x[:, None] - vary(-0.1, 0.1)
    x, y = (x - turn * y) * zoom, (y + turn * x) * zoom
    skin = np.float32(SKIN)[skin, :, None, None] + colour(-0.05, 0.05)
    hair = np.float32(HAIR)[hair, :, None, None] + colour(-0.05, 0.05)
    image, width, height = colour(0.4, 0.9), vary(0.40, 0.48), vary(0.52, 0.60)
    image = paint(hair * 0.8, _ellipse(x, y - 0.1, width + vary(0.1, 0.2), vary(0.8, 0.95)), long)
    image = paint(colour(0.1, 0.9), _ellipse(x, y - 1.1, vary(0.6, 0.85), vary(0.32, 0.45)))
    image = paint(skin * 0.82, _ellipse(x, y - 0.5, vary(0.17, 0.24), 0.42))  # neck
    crown = _ellipse(x, y + 0.05, width * 1.15, height * 1.1)
    fringe = _ellipse(x - vary(-0.2, 0.2), y + height, vary(0.35, 0.5), vary(0.2, 0.4))
    image = paint(hair, np.maximum(crown, y - vary(-0.1, 0.2)))
    image = paint(skin, _ellipse(x, y, width, height))
    image = paint(hair, np.maximum(crown, fringe))
    x, y = x - vary(-0.1, 0.1), y - vary(-0.05, 0.05)  # features move, the outline stays
    eye_x, eye_y = abs(x) - vary(0.17, 0.21), y + vary(0, 0.08)
    image = paint(0.95, _ellipse(eye_x, eye_y, vary(0.085, 0.105), vary(0.05, 0.075)))
    image = paint(colour(0, 0.3), _ellipse(eye_x, eye_y, 0.05, 0.055))
    brow = abs(eye_y + vary(0.12, 0.16) + vary(-0.3, 0.1) * eye_x) - vary(0.015, 0.03)
    image = paint(hair * 0.6, np.maximum(brow, abs(eye_x) - 0.1))
    image = paint(skin * 0.8, _ellipse(x, y - vary(0.1, 0.16), vary(0.04, 0.07), 0.03))  # nose
    bend, thick = vary(-1, 1) + smile * 4.5, vary(0.04, 0.05) + smile * 0.03
    mouth = abs(y - 0.32 - smile * 0.05 + bend * x * x)  # a parabola, thinner at its ends
    mouth = mouth - thick * (1 - np.square(x / (vary(0.12, 0.16) + smile * 0.07)))
    image = paint(skin * np.float32([[[0.8]], [[0.45]], [[0.45]]]), mouth)
    image = paint(0.95, mouth + 0.03, smile)  # teeth
    lens = abs(_ellipse(eye_x, eye_y, vary(0.125, 0.155), vary(0.125, 0.155)))
    rims = np.minimum(lens, np.maximum(abs(eye_y), abs(x) - 0.06))  # with the bridge
    image = paint(colour(0, 0.3), rims - vary(0.03, 0.042), glasses)
    return (image.clip(0, 1) * 255).round().astype("u1")


def _ellipse(x, y, a, b):
    """Signed distance to an ellipse with half-axes a, b, to first order: exact on its outline."""
    x, y = x / a, y / b
    slope = np.sqrt(np.square(x / a) + np.square(y / b))
    return (x * x + y * y - 1) / (2 * slope).clip(1e-6)
