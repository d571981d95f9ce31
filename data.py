"""Images in: embedded sets, torchvision's sets and folders of images, as bytes; and batches of them on the device.

`load` returns every image of a data set as one uint8 tensor (N, C, H, W) with labels (N,), and `batches` serves it for ever
as float32 in [0, 1]. A batch is one gather and one division on the device, so there are no workers to wait for.
"""

import itertools
import os
import sys
import uuid
from pathlib import Path

import numpy as np
import torch

DATASETS = (
    "digits", "faces", "mnist", "fashion-mnist", "cifar10", "svhn",
    "celeba", "lsun-church", "lsun-rooms", "imagenet", "telugu",
)  # fmt: skip


class InputError(ValueError):
    """Something that the user can mend; its text is one line that names the thing and the way out."""


def load(dataset, data_dir="data", split="train", size=None, classes=None):
    """-> (images uint8 (N, C, H, W), labels int64 (N,)) of a data set's `split`, "train" or "test"."""
    if split not in ("train", "test"):
        raise InputError(f"split {split!r} is neither 'train' nor 'test'")
    if dataset in ("digits", "faces"):
        return _drawn(dataset, Path(data_dir), split, size)
    if dataset in ("mnist", "fashion-mnist", "cifar10", "svhn"):
        return _from_torchvision(dataset, Path(data_dir), split)
    raise InputError(f"unknown data set {dataset!r}: give one of {', '.join(DATASETS)}, or a folder of images")


def batches(images, batch_size, device, seed, start=0, labels=None):
    """Serves float32 batches (batch_size, C, H, W) in [0, 1] on `device` for ever; (x, y) where labels are given.

    The order is a function of (seed, step) alone: each epoch has a permutation of its own, its last partial batch is
    dropped, and `start=step` goes on where an unbroken run would be. Raises InputError when batch_size is not in 1..N.
    """
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch size {batch_size} does not fit a data set of {len(images)} images")
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
            x = images[chosen] / 255
            yield x if labels is None else (x, labels[chosen])

    return serve()


def has_bf16(device):
    """Whether bfloat16 autocast pays on `device`: CUDA with bf16 units, or a CPU with avx512_bf16 or amx_bf16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")  # elsewhere than on Linux bf16 is left off
    flags = cpuinfo.read_text() if torch.device(device).type == "cpu" and cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _from_torchvision(dataset, data_dir, split):
    """MNIST, Fashion-MNIST, CIFAR-10 and SVHN through torchvision, which downloads what is missing."""
    from torchvision import datasets

    cls = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[dataset]
    found = cls(data_dir, train=split == "train", download=True)
    return found.data[:, None], found.targets


def _cached(places, name, make):
    """What make() -> (images, labels) gives, kept as the file `name` in the first of `places` that takes it.

    The file holds two arrays one after the other, images and labels, so that np.load(file) gives the images. It is
    written under another name and renamed when whole: of two runs at once each finds a whole one.
    """
    for place in places:
        if (place / name).exists():
            return _read_cache(place / name)
    images, labels = make()
    for place in places:
        part = place / f"{name}.{uuid.uuid4().hex}.part"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.save(file, images.numpy())
                np.save(file, labels.numpy())
            os.replace(part, place / name)
        except OSError as error:
            reason = error
            part.unlink(missing_ok=True)
        else:
            return _read_cache(place / name)
    print(f"note: {places[-1]} cannot be written ({reason.strerror}); {name} is made anew every time", file=sys.stderr)
    return images, labels


def _read_cache(path):
    images = np.load(path, mmap_mode="c")  # copy on write: nothing is read until it is used, and torch sees no locked array
    with open(path, "rb") as file:
        file.seek(images.offset + images.nbytes)
        labels = np.load(file)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _drawn(dataset, data_dir, split, size):
    draw, default, train, test = {
        "digits": (draw_digits, 28, 60_000, 10_000),
        "faces": (draw_faces, 32, 20_000, 4_000),
    }[dataset]
    size = size or default
    if dataset == "faces" and size not in (32, 64):
        raise InputError(f"faces are drawn at 32 or 64 pixels, not {size}")
    count, seed = (train, 0) if split == "train" else (test, 1)
    return _cached([data_dir], f"{dataset}-{size}-{split}-v{DRAWN_VERSION}.npy", lambda: draw(count, seed, size))


# Embedded data sets -------------------------------------------------------------------------------------------------

DRAWN_VERSION = 1  # raise it whenever the drawing changes, so that cached bytes are drawn again
