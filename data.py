"""Images in: embedded sets, torchvision's sets and folders of images, as bytes; and batches of them on the device.

`load` returns a whole data set as one uint8 tensor (N, C, H, W) with labels (N,); `batches` serves it for ever as
float32 in [0, 1]. A batch is one gather and one division on the device, so there are no workers to wait for.

    name           where its files are, inside data_dir                                      test split
    digits, faces  no files: drawn from a seed, by the last section of this file             another seed
    mnist          MNIST/raw/, downloaded when missing                                       its own
    fashion-mnist  FashionMNIST/raw/, downloaded when missing                                its own
    svhn           train_32x32.mat and test_32x32.mat, downloaded when missing               its own
    cifar10        cifar-10-batches-py/, or class folders in cifar10-jpeg/{train,test}/ or   its own
                   cifar10/{train,test}/; downloaded when there is none
    celeba         celeba/img_align_celeba/, or celeba/; of the aligned 178 x 218 pictures   list_eval_partition.txt,
                   the middle 108 x 108, as DCGAN's code does                                or one in ten
    lsun-church    lsun/church_outdoor_{train,val}/, or lsun-church/                         val, or one in ten
    lsun-rooms     lsun/{kitchen,living_room}_{train,val}/, or the two classes in            val, or one in ten
                   lsun-rooms/; the first 60,000 of each, for the GRAN paper's 120,000
    imagenet       imagenet/{train,val}/CLASS/                                               val
    telugu         telugu/CLASS/                                                             one in ten
    a path         any folder of images: the rules are in _list_images

LSUN ships as LMDB files: export them to folders of images first, as its own data.py does.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import re
import signal
import struct
import sys
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

DATASETS = {  # name: (channels, side in pixels) unless load's size says otherwise
    "digits": (1, 28), "faces": (3, 32), "mnist": (1, 28), "fashion-mnist": (1, 28), "cifar10": (3, 32),
    "svhn": (3, 32), "celeba": (3, 64), "lsun-church": (3, 64), "lsun-rooms": (3, 64), "imagenet": (3, 64),
    "telugu": (1, 32),
}  # fmt: skip
TORCHVISION = {  # name: torchvision's class, the files it reads, their folder inside data_dir
    "mnist": ("MNIST", "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz, or class folders cifar10/{train,test}/", ""),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat", ""),
}
FOLDERS = {  # name: where its folder of images may be inside data_dir; the first found is taken
    "cifar10": ("cifar10-jpeg", "cifar10"),
    "celeba": ("celeba/img_align_celeba", "celeba"),
    "lsun-church": ("lsun-church",),
    "lsun-rooms": ("lsun-rooms",),
    "imagenet": ("imagenet",),
    "telugu": ("telugu",),
}
LSUN = {"lsun-church": ("church_outdoor",), "lsun-rooms": ("kitchen", "living_room")}  # its own names, in data_dir/lsun
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
HIDDEN = (".", "__MACOSX")  # how the names begin that are passed over


class InputError(ValueError):
    """Something that the user can mend; its text is one line that names the thing and the way out."""


def load(dataset, data_dir="data", split="train", size=None, classes=None):
    """-> (images uint8 (N, C, H, W), labels int64 (N,)) of a data set.

    dataset: a name out of DATASETS, or the path of a folder of images (a name wins; `./digits` is the folder).
    data_dir: where files are looked for, downloaded to and cached; it need not be writable.
    split: "train", "test", or "all" for the one after the other.
    size: H = W in pixels. None is the data set's own; for a path the size of its first image, where that is square
        and at most 64, else 64. Images are cut to their middle square and resized, bicubic with antialias.
    classes: names of class folders, or numbers of labels, to keep; labels become 0..k-1 in the order given.

    Images of a folder: C is 1 where all of them, of both splits, are grey (R = G = B everywhere), else 3. EXIF rotation
    is applied, transparency put on white, palette and CMYK turned to RGB, 16-bit grey brought to 8; of an animation
    the first frame counts. Files that cannot be read (no image, cut short, floating point) are left out, with one line
    printed. Decoded folders are cached as one .npy beside the folder, or else in data_dir, or else not at all, and
    opened memory-mapped; the cache is made anew when names, sizes or times of the files change.

    Raises InputError for an unknown name, split, class or size; for files that are missing, cannot be downloaded or are
    all broken; and for a class folder without images.
    """
    data_dir = Path(data_dir)
    if split not in ("train", "test", "all"):
        raise InputError(f"unknown split {split!r}: give train, test or all")
    if size is not None and size < 1:
        raise InputError(f"images of size {size} cannot be: give at least 1")
    folder = _find_folder(dataset, data_dir)
    if split == "all" and folder is None:
        parts = [load(dataset, data_dir, part, size, classes) for part in ("train", "test")]
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    if dataset in ("digits", "faces"):
        images, labels, names = _drawn(dataset, data_dir, split, size)
    elif folder is not None:
        images, labels, names = _from_folder(dataset, folder, data_dir, split, size)
    elif dataset in TORCHVISION:
        images, labels, names = _from_torchvision(dataset, data_dir, split)
    elif dataset in FOLDERS:
        places = " or ".join(str(data_dir / place) for place in FOLDERS[dataset])
        raise InputError(f"{dataset} has no folder {places}: put its images there, or use --dataset digits")
    else:
        raise InputError(f"{dataset!r} is neither a folder of images nor one of {', '.join(DATASETS)}")
    if size is not None and size != images.shape[-1]:
        images = _resize(images, size)
    return (images, labels) if classes is None else _keep_classes(images, labels, names, classes)


def batches(images, batch_size, device, seed, start=0, labels=None):
    """Serves float32 batches (batch_size, C, H, W) in [0, 1] on `device` for ever; (x, y) where labels are given.

    images: uint8 (N, C, H, W); labels: (N,). The order is a function of (seed, step) alone, the same on every device:
    each epoch has a permutation of its own, its last partial batch is dropped, and start=step goes on where an unbroken
    run would be. Raises InputError when batch_size is not in 1..N.
    """
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch size {batch_size} does not fit {len(images)} images: give 1 to {len(images)}")
    images = images.to(device)
    labels = None if labels is None else labels.to(device)

    def serve():
        per_epoch, epoch = len(images) // batch_size, None
        for step in itertools.count(start):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
                order = torch.randperm(len(images), generator=generator).to(device)
            first = step % per_epoch * batch_size
            chosen = order[first : first + batch_size]
            x = images.index_select(0, chosen) / 255
            yield x if labels is None else (x, labels[chosen])

    return serve()  # a generator of its own, so that the check above speaks at the call


def has_bf16(device):
    """Whether bfloat16 autocast pays on `device`: CUDA with bf16 units, or a CPU with avx512_bf16 or amx_bf16."""
    kind, cpuinfo = torch.device(device).type, Path("/proc/cpuinfo")
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpuinfo.read_text() if kind == "cpu" and cpuinfo.exists() else ""  # elsewhere than on Linux: no
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _resize(images, size):
    """uint8 (N, C, H, W) -> uint8 (N, C, size, size), bicubic with antialias; in parts, to keep the floats few."""
    resize = functools.partial(F.interpolate, size=(size, size), mode="bicubic", antialias=True)
    return torch.cat([resize(part.float()).round().clamp(0, 255).byte() for part in images.split(1000)])


def _keep_classes(images, labels, names, classes):
    """The images whose label is one of `classes` (names or numbers), relabelled 0..k-1 in that order."""
    relabelled = torch.full_like(labels, -1)
    for new, wanted in enumerate(classes):
        number = str(names.index(str(wanted)) if str(wanted) in names else wanted)
        chosen = labels == int(number) if number.isdecimal() else labels < 0
        if not chosen.any() or (relabelled[chosen] >= 0).any():
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise InputError(f"class {wanted!r} has no image here or is named twice: give of {known}, or numbers")
        relabelled[chosen] = new
    kept = relabelled >= 0
    return images[kept], relabelled[kept]


def _from_torchvision(dataset, data_dir, split):
    """-> images, labels, class names of one of TORCHVISION, which downloads what is missing."""
    from http.client import HTTPException

    from torchvision import datasets

    name, files, folder = TORCHVISION[dataset]
    which = {"split": split} if dataset == "svhn" else {"train": split == "train"}
    try:
        found = getattr(datasets, name)(data_dir, download=True, **which)
        images = torch.as_tensor(np.ascontiguousarray(found.data))
        labels = torch.as_tensor(found.labels if dataset == "svhn" else found.targets)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    # what torchvision's readers raise on cut or foreign files, and its downloads where there is no network
    except (RuntimeError, OSError, HTTPException, ValueError, IndexError, KeyError, TypeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
        raise InputError(
            f"{dataset} cannot be read or downloaded ({reason}): put sound copies of {files} into {data_dir / folder}, "
            "or use --dataset digits"
        ) from error
    if dataset == "cifar10":
        images = images.permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    images = images[:, None] if images.ndim == 3 else images
    names = [str(digit) for digit in range(10)] if dataset in ("mnist", "svhn") else found.classes
    return images, labels, names


def _drawn(dataset, data_dir, split, size):
    """-> images, labels, class names of an embedded set: drawn once, then read from the cache in data_dir."""
    draw, train, test = {"digits": (draw_digits, 60_000, 10_000), "faces": (draw_faces, 20_000, 4_000)}[dataset]
    size = size or DATASETS[dataset][1]
    if dataset == "faces" and size not in (32, 64):
        raise InputError(f"faces are drawn at 32 or 64 pixels, not at {size}")
    count, seed = (train, 0) if split == "train" else (test, 1)
    version = f"version {DRAWN_VERSION}"
    images, labels = _cached([data_dir], f"{dataset}-{size}-{split}.npy", version, lambda: draw(count, seed, size))
    return images, labels, [str(label) for label in range(int(labels.max()) + 1)]


def _cached(places, name, state, make):
    """What make() -> (images, labels) gives, kept as the file `name` in the first of the folders `places` to take it.

    The file holds images, labels and `state` one after the other, so that np.load(file) gives the images; with another
    state it is made anew. It is written under another name and renamed when whole: two runs at once both find one.
    """
    for place in places:
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing, or damaged
            images, labels, its_state = _read_cache(place / name)
            if its_state == state:
                return images, labels
    images, labels = make()
    for place in places:
        part = place / f"{name}.{uuid.uuid4().hex}.part"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                for array in (images.numpy(), labels.numpy(), np.array(state)):
                    np.save(file, array)
            os.replace(part, place / name)
            return _read_cache(place / name)[:2]
        except OSError as error:
            reason = error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
    print(f"note: {name} is not kept on disk and is made anew the next time ({reason})", file=sys.stderr)
    return images, labels


def _read_cache(path):
    """-> images, memory-mapped, labels and state of a file that _cached wrote."""
    images = np.load(path, mmap_mode="c")  # copy on write: the file stays as it is, and torch sees no locked array
    with open(path, "rb") as file:
        file.seek(images.offset + images.nbytes)
        labels, state = np.load(file), str(np.load(file))
    return torch.from_numpy(images), torch.from_numpy(labels), state


# Folders of images --------------------------------------------------------------------------------------------------


def _find_folder(dataset, data_dir):
    """The folder that holds the images of `dataset`, or None where there is none."""
    if dataset not in DATASETS:
        folder = Path(dataset).expanduser().resolve()
        return folder if folder.is_dir() else None
    if dataset == "cifar10" and (data_dir / "cifar-10-batches-py").is_dir():
        return None  # the original bytes win over JPEG copies
    if dataset in LSUN and all((data_dir / "lsun" / f"{name}_train").is_dir() for name in LSUN[dataset]):
        return data_dir / "lsun"
    places = [data_dir / place for place in FOLDERS.get(dataset, ())]
    return next((place for place in places if place.is_dir()), None)


def _from_folder(dataset, root, data_dir, split, size):
    """-> images, labels, class names of a folder's split; both splits are decoded once, then read from the cache."""
    files, names = _list_images(dataset, root)
    paths = [path for path, _, _ in files]
    known = dataset in DATASETS
    size = size or (DATASETS[dataset][1] if known else _first_size(paths))
    is_celeba = dataset == "celeba"

    state = hashlib.sha256(f"1 {is_celeba}".encode())  # 1: the version of what decoding gives
    for path, label, is_test in files:
        stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link may lead nowhere
        state.update(os.fsencode(f"{_below(root, path)} {stat.st_size} {stat.st_mtime_ns} {label} {is_test}\n"))

    def make():
        images, kept = _decode(root, paths, size, is_celeba)
        return torch.from_numpy(images), torch.tensor([files[i][1:] for i in kept])

    name = f"{dataset if known else root.name}-{size}.npy"
    images, rows = _cached([root.parent, data_dir], name, state.hexdigest(), make)
    labels, is_test = rows.unbind(1)
    train = len(rows) - int(is_test.sum())  # the training images come first
    here = {"train": slice(0, train), "test": slice(train, None), "all": slice(None)}[split]
    if not len(images[here]):
        raise InputError(f"{root} leaves no image for the {split} split: it has {len(images)} in all, add more")
    return images[here], labels[here].contiguous(), names


def _list_images(dataset, root):
    """-> [(path, label, is_test)], training images first, and the names of the classes.

    Split: folders `train` and `test` (or `val`, `valid`, `validation`), whatever else lies beside them; CelebA's list;
    or else one image in ten is for the test, those whose names hash lowest, so that a new file moves few old ones.
    Class: the first folder below that; labels count the sorted names of both splits. Images that lie beside class
    folders form a last class, named "."; folders further down belong to their class.
    """
    folders = _subfolders(root)
    tests = ("val", "test") if dataset == "imagenet" else ("test", "val", "valid", "validation")
    tests = [name for name in tests if name in folders]
    if dataset in LSUN and root.name == "lsun":
        train = {name: _image_files(root / f"{name}_train") for name in LSUN[dataset]}
        test = {name: _image_files(root / f"{name}_val") for name in LSUN[dataset] if f"{name}_val" in folders}
    elif "train" in folders and (tests or len(folders) == 1):
        train, test = _classes(root / "train"), _classes(root / tests[0]) if tests else {}
    else:
        train, test = _classes(root), {}
    if dataset == "lsun-rooms":
        train = {name: paths[:60_000] for name, paths in train.items()}
    names = sorted({*train, *test}, key=lambda name: (name == ".", name))
    files = [
        (path, label, is_test)
        for is_test, group in enumerate((train, test))
        for label, name in enumerate(names)
        for path in group.get(name, ())
    ]
    lists = [place / "list_eval_partition.txt" for place in (root, root.parent)]
    lists = [path for path in lists if dataset == "celeba" and path.is_file()]
    if lists:  # lines of a file's name and 0 (train), 1 (validation, left out) or 2 (test)
        part = dict(re.findall(r"^(\S+)\.\w+\s+([012])\s*$", lists[0].read_text(), flags=re.MULTILINE))
        parts = [part.get(Path(path).stem) for path, _, _ in files]
        files = [(*file[:2], n) for n, code in enumerate("02") for file, its in zip(files, parts) if its == code]
        if not files:
            raise InputError(f"{lists[0]} names none of the images in {root}: mend it, or take it away")
    elif not test:
        by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(_below(root, file[0]))).digest())
        held_out = max(len(files) // 10, 1) if len(files) > 1 else 0
        files = sorted(by_hash[held_out:]) + [(path, label, 1) for path, label, _ in sorted(by_hash[:held_out])]
    return files, names


def _below(root, path):
    """The part of `path` below `root`, the same on every system."""
    return path[len(str(root)) + 1 :].replace(os.sep, "/")


def _subfolders(folder):
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(HIDDEN))


def _is_image(name):
    return name.lower().endswith(EXTENSIONS) and not name.startswith(HIDDEN)


def _classes(folder):
    """{class: paths of its images}: a class per sub-folder, and "." for the images that lie beside them."""
    classes = {name: _image_files(folder / name) for name in _subfolders(folder)}
    if not classes or any(_is_image(name) for name in os.listdir(folder)):
        classes["."] = _image_files(folder, deep=False)
    return classes


def _image_files(folder, deep=True):
    """Sorted paths of the images in `folder` and, when deep, below it; InputError where there is none."""
    found = []
    for here, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if deep and not name.startswith(HIDDEN)]
        found += [os.path.join(here, name) for name in names if _is_image(name)]
    if not found:
        raise InputError(f"{folder} holds no image ({', '.join(EXTENSIONS)}): put some in, or take the folder away")
    return sorted(found)


# Decoding -----------------------------------------------------------------------------------------------------------


def _decode(root, paths, size, is_celeba):
    """-> uint8 (n, C, size, size) of the n files that can be read, C = 1 where all are grey, and the indices of these.

    Several processes decode chunks of files; this one puts them together and says how long it will take.
    """
    work = functools.partial(_decode_chunk, size=size, is_celeba=is_celeba)
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    kept, broken, grey, seen = [], [], True, 0
    started = shown = time.monotonic()
    with contextlib.closing(_map_in_processes(work, [paths[i : i + 64] for i in range(0, len(paths), 64)])) as results:
        for pixels, reasons in results:
            images[len(kept) : len(kept) + len(pixels)] = pixels
            grey = grey and bool((pixels == pixels[:, :1]).all())
            for i, reason in enumerate(reasons, seen):
                if reason is None:
                    kept.append(i)
                else:
                    broken.append(f"{_below(root, paths[i])} ({reason})")
            seen += len(reasons)
            now = time.monotonic()
            if now - shown > 5:
                left = round((now - started) / seen * (len(paths) - seen))
                print(f"decoding {root}: {seen}/{len(paths)} | {left // 60}:{left % 60:02d} left", file=sys.stderr)
                shown = now
    if not kept:
        raise InputError(f"{root}: none of its {len(paths)} images can be read, not even {broken[0]}: replace them")
    if broken:
        first = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        print(f"note: {root}: left out {len(broken)} of {len(paths)} files, not readable: {first}", file=sys.stderr)
    images = images[: len(kept)]
    return (np.ascontiguousarray(images[:, :1]) if grey else images), kept


def _map_in_processes(work, chunks):
    """map(work, chunks), in order, in as many processes as there are cores; few chunks are not worth starting them."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(chunks) < 8:
        yield from map(work, chunks)
        return
    context = get_context("fork" if sys.platform == "linux" else "spawn")  # a fork need not import torch again
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process to answer
    pool = ProcessPoolExecutor(min(cores, 32), context, initializer=signal.signal, initargs=ignore_interrupt)
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(paths, size, is_celeba):
    """-> uint8 (n, 3, size, size) of those files that can be read, and for each path None or why it cannot."""
    pixels, reasons = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        for path in paths:
            try:
                pixels.append(_decode_image(path, size, is_celeba))
                reasons.append(None)
            except _broken() as error:
                reasons.append(type(error).__name__ if path in str(error) else str(error))
    return np.array(pixels, dtype=np.uint8).reshape(-1, 3, size, size), reasons


def _decode_image(path, size, is_celeba):
    """One file -> uint8 (3, size, size): upright, alpha on white, 16 bits brought to 8, middle square, antialiased."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        share = 108 / 178 if is_celeba and image.size == (178, 218) else 1
        image.draft(None, (2 * size, 2 * size))  # JPEG may decode at 1/2 to 1/8, to at least twice the size wanted
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("floating-point pixels")
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError("pixels of more than 16 bits")
            image = Image.fromarray(np.round(values / 257).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        side = round(share * min(image.size))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).transpose(2, 0, 1)


def _first_size(paths):
    """The size of the first image that opens, where it is square and at most 64 pixels wide; else 64."""
    from PIL import Image

    for path in paths:
        with contextlib.suppress(*_broken()), Image.open(path) as image:
            return image.width if image.width == image.height <= 64 else 64
    return 64


def _broken():
    """What Pillow raises on files that are no images, are cut short, or make no sense."""
    from PIL import Image

    return (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


# Embedded data sets -------------------------------------------------------------------------------------------------

DRAWN_VERSION = 1  # raise it whenever the drawing changes, so that cached bytes are drawn again
