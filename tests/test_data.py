"""The loader: splits, classes, pixels, the cache and what it says, on made-up files; the batches.

Expected values come from the bytes that a test wrote, from Pillow, torch or torchvision used
directly, or from a formula.
"""

import io
import itertools
import os
import pickle
import re
import struct
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data

ROOT = Path(data.__file__).parent


def write(path, pixels, **options):
    """Saves an array (H, W) or (H, W, 3), or a Pillow image; the folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(colour, height=8, width=8):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def numbered(folder, count, first=0):
    """A flat folder of grey images; image i is i everywhere."""
    for i in range(first, first + count):
        write(folder / f"{i:04d}.png", np.full((8, 8), i, dtype=np.uint8))
    return folder


def values(images):
    """The one value of each flat image."""
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def load(tmp_path):
    """data.load of a folder, with the caches in another one."""
    return lambda folder, split="train", **more: data.load(folder, tmp_path / "data", split, **more)


def test_batches_are_a_permutation_each_epoch_and_drop_the_rest():
    images = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1).expand(23, 1, 2, 2)
    stream = data.batches(images, 5, "cpu", seed=3, labels=torch.arange(23) * 10)
    epochs = []
    for _ in range(3):
        x, y = map(torch.cat, zip(*itertools.islice(stream, 4)))  # 23 // 5
        assert x.shape == (20, 1, 2, 2) and x.dtype == torch.float32
        assert torch.equal(x[:, 0, 0, 0], y / 10 / 255) and len(y.unique()) == 20
        epochs.append(y.tolist())
    assert epochs[0] != epochs[1] != epochs[2]
    unbroken = list(itertools.islice(data.batches(images, 5, "cpu", seed=0), 12))
    for start in (1, 4, 7, 11):
        resumed = itertools.islice(data.batches(images, 5, "cpu", seed=0, start=start), 12 - start)
        assert all(torch.equal(a, b) for a, b in zip(resumed, unbroken[start:], strict=True))
    assert not torch.equal(next(data.batches(images, 5, "cpu", seed=1)), unbroken[0])
    with pytest.raises(data.InputError, match="batch size"):  # at the call
        data.batches(images, 24, "cpu", seed=0)


def write_idx(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    (folder / name).write_bytes(header + array.tobytes())


@pytest.mark.parametrize("dataset, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist(tmp_path, dataset, folder):
    raw, pixels = tmp_path / folder / "raw", noise(42, 28, 28)
    for name, part in (("train", range(30)), ("t10k", range(30, 42))):
        write_idx(raw, f"{name}-images-idx3-ubyte", pixels[part])
        write_idx(raw, f"{name}-labels-idx1-ubyte", np.array([i % 10 for i in part], dtype="u1"))
    for split, part in (("train", range(30)), ("test", range(30, 42)), ("all", range(42))):
        images, labels = loaded = data.load(dataset, tmp_path, split)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images[:, 0].numpy(), pixels[part])
        assert labels.tolist() == [i % 10 for i in part]
    small = [Image.fromarray(x).resize((14, 14), Image.Resampling.BICUBIC) for x in pixels]
    assert np.array_equal(data.load(dataset, tmp_path, "all", 14)[0][:, 0].numpy(), np.stack(small))
    names = ["7", "1", "3"] if dataset == "mnist" else ["Sneaker", "Trouser", "Dress"]
    _, labels = loaded = data.load(dataset, tmp_path, classes=names)
    assert loaded.classes == names and labels.tolist() == [1, 2, 0] * 3
    for wrong in (["Hat"], [10], [-1]):
        with pytest.raises(data.InputError, match="class"):
            data.load(dataset, tmp_path, classes=wrong)
    write_idx(raw, "train-labels-idx1-ubyte", np.zeros(7, dtype=np.uint8))  # of 30 images
    with pytest.raises(data.InputError, match=f"{dataset} cannot be read.*{folder}/raw"):
        data.load(dataset, tmp_path)


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    known = torchvision.datasets.SVHN.split_list.items()
    parts = {split: [url, name, None] for split, (url, name, _) in known}  # no md5 sum
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", parts)
    pixels = noise(32, 32, 3, 6)  # SVHN's own order: H, W, C, N; and the digit 0 has the label 10
    digits = np.array([[1], [10], [3], [9], [10], [2]], dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": digits})
    images, labels = data.load("svhn", tmp_path)
    assert images.is_contiguous() and np.array_equal(images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert labels.tolist() == [1, 0, 3, 9, 0, 2] and labels.dtype == torch.int64


def test_cifar10_has_the_same_names_from_its_own_files_and_from_folders(tmp_path, monkeypatch):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
             "truck"]
    for split, name in itertools.product(("train", "test"), names):
        write(tmp_path / "jpeg/cifar10" / split / name / "1.png", flat((1, 20, 30), 32, 32))
    images, labels = loaded = data.load("cifar10", tmp_path / "jpeg", "test")
    assert labels.tolist() == list(range(10)) and loaded.classes == names
    assert images[:, :, 9, 9].tolist() == [[1, 20, 30]] * 10
    cls, own = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    own.mkdir()
    monkeypatch.setattr(cls, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(cls, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    (own / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for split, labels in (("data_batch_1", [3, 1, 4, 1]), ("test_batch", [2])):
        batch = {"data": noise(len(labels), 3072), "labels": labels}
        (own / split).write_bytes(pickle.dumps(batch))
    images, labels = loaded = data.load("cifar10", tmp_path)
    assert np.array_equal(images.numpy(), noise(4, 3072).reshape(4, 3, 32, 32))
    assert labels.tolist() == [3, 1, 4, 1] and loaded.classes == names
    assert data.load("cifar10", tmp_path, "test")[1].tolist() == [2]


@pytest.mark.parametrize("name, split, words", [
    *((name, "train", f"Name not known.*{place}.*--data-dir.*--dataset digits") for name, place in (
        ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("svhn", "_32x32.mat"),
        ("cifar10", "cifar-10-python"))),
    ("mnits", "train", "no folder .*mnits.*fashion-mnist"), ("mnist", "valid", "no split 'valid'"),
    ("imagenet", "test", "imagenet.*--dataset digits"),
    ("celeba", "all", "img_align_celeba.*--dataset digits")])  # fmt: skip
def test_what_is_missing_is_said_with_its_place_and_a_way_out(
        tmp_path, monkeypatch, name, split, words):  # fmt: skip
    def no_network(*args, **kwargs):
        raise URLError("Name not known")

    sets = torchvision.datasets
    monkeypatch.setattr(sets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(sets.cifar, "download_and_extract_archive", no_network)
    monkeypatch.setattr(sets.svhn, "download_url", no_network)
    with pytest.raises(data.InputError, match=words):
        data.load(name, tmp_path, split)


# ---- Classes and splits of folders -------------------------------------------------------------


def test_class_names_are_sorted_as_people_read_them_and_kept(tmp_path, load):
    for i in range(1, 13):
        numbered(tmp_path / "set" / str(i), 3, first=20 * i)
    images, labels = loaded = load(tmp_path / "set", "all")
    assert loaded.classes == [str(i) for i in range(1, 13)]
    assert labels.tolist() == [value // 20 - 1 for value in values(images)]
    images, labels = loaded = load(tmp_path / "set", "all", classes=[10, "2"])
    assert loaded.classes == ["10", "2"]
    assert [value // 20 for value in values(images)] == [[10, 2][k] for k in labels]
    with pytest.raises(data.InputError, match="classes as 0.*choose from 1, 2, 3"):
        load(tmp_path / "set", classes=["0"])
    assert sorted(["b10", "b9", "A", "b09"], key=data.natural) == ["A", "b09", "b9", "b10"]


SPLITS = [("train", "test"), ("training", "testing"), ("Train", "Test"), ("TRAIN", "VAL"),
          ("training_set", "test_set"), ("train-images", "val-images"), ("train2017", "val2017"),
          ("trainset", "validation"), ("train", "dev"), ("train", "hold-out"), ("Train", "eval"),
          ("Training Data", "Test Data"), ("trn", "tst"), ("train_val", "test")]  # fmt: skip


@pytest.mark.parametrize("train, test", SPLITS)
def test_splits_are_found_by_their_usual_names(tmp_path, load, train, test):
    for split, name, first in itertools.product((train, test), "ab", (0, 100)):
        numbered(tmp_path / "set" / split / name, 2, first + 10 * (split == test))
    (tmp_path / "set" / "licence").mkdir()
    (tmp_path / "set" / "licence" / "terms.txt").write_text("no image")
    images, labels = loaded = load(tmp_path / "set")
    assert set(values(images)) == {0, 1, 100, 101} and labels.bincount().tolist() == [4, 4]
    assert loaded.classes == ["a", "b"]
    assert "8 training and 8 test images" in loaded.note
    assert set(values(load(tmp_path / "set", "test")[0])) == {10, 11, 110, 111}


LAYOUTS = ["train/a train/b more/a", "train1/a train2/a", "fold1/a fold2/a fold3/a", "test/a val/a",
           "trainA testA trainB testB", "cats_train cats_val", "TrainDir/a TestDir/a",
           "a/train a/test b/train b/test", "images/test images/train labels", "test images/a",
           "train/a training/a test/a", "set/train/a set/test/a"]  # fmt: skip
ODD = ["train/cat test/x test/y", "train/cat train/dog test/", "train/ test/", "cat dog/", "", "a/"]


@pytest.mark.parametrize("layout, words", [
    *((layout, "split.*--dataset") for layout in LAYOUTS),
    *((layout, "holds no image|neither the classes cat.*nor images") for layout in ODD)])
def test_a_layout_that_is_not_understood_is_an_input_error(tmp_path, load, layout, words):
    (tmp_path / "set").mkdir()
    for place in layout.split():
        if place.endswith("/"):
            (tmp_path / "set" / place).mkdir(parents=True)
        else:
            numbered(tmp_path / "set" / place, 3)
    with pytest.raises(data.InputError, match=words):
        load(tmp_path / "set")


PLACES = [  # the label of the images in each place, None where left out; words of the note
    ({"train/cat": 0, "train/owl": 1, "val/dog": None, "val/owl": 1}, "out: 2 images in val/dog"),
    ({"train/cat": 0, "train/dog": 1, "test": -1}, "from test, without labels"),
    ({"train/cat": 0, "train/dog": 1, "test/unknown": -1}, "from test, without labels"),
    ({"cat": 0, "dog": 1, "test": -1}, "from test, without labels"),
    ({"train/cat": 0, "train/dog": 1, "test": None, "val/cat": 0, "val/dog": 1}, "images in test"),
    ({"train": 0, "test/deep/er": 0}, "no classes"), ({".": 0, "cat": 0}, "no classes"),
    ({"train/cat/old": 0, "train/dog": 1, "test/cat/new/er": 0, "test/dog": 1}, "from test"),
    ({".": None, "b/deep/deeper": 1, "a": 0, ".hidden": None, "__MACOSX": None}, "2 images in ."),
]  # fmt: skip


@pytest.mark.parametrize("places, words", PLACES)
def test_every_image_gets_the_label_of_its_class_or_is_left_out(tmp_path, load, places, words):
    for k, place in enumerate(places):
        numbered(tmp_path / "set" / place, 2, first=10 * k)
    images, labels = loaded = load(tmp_path / "set", "all")
    found = {value // 10: label for value, label in zip(values(images), labels.tolist())}
    assert found == {k: label for k, label in enumerate(places.values()) if label is not None}
    assert words in loaded.note and len(images) == 2 * len(found)
    if -1 in found.values():
        assert (load(tmp_path / "set")[1] >= 0).all()
        with pytest.raises(data.InputError, match="without labels"):
            load(tmp_path / "set", "test", classes=["cat"])


def test_links_to_folders_are_followed_but_not_back_up(tmp_path, load):
    (numbered(tmp_path / "set/a", 1) / "up").symlink_to("..")
    (tmp_path / "set/b").symlink_to(numbered(tmp_path / "elsewhere", 1, first=3))
    images, labels = load(tmp_path / "set", "all")
    assert dict(zip(values(images), labels.tolist())) == {0: 0, 3: 1}


def test_about_a_tenth_is_held_out_and_no_image_ever_moves(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(1000):
        (tmp_path / "set" / f"{i}.png").touch()
    before = {path: test for test, _, path in data.list_images(tmp_path / "set")[0]}
    assert 60 <= sum(before.values()) <= 140  # four standard deviations
    for i in range(0, 1000, 3):
        (tmp_path / "set" / f"{i}.png").rename(tmp_path / "set" / f"+{i}.png")
    after = {path: test for test, _, path in data.list_images(tmp_path / "set")[0]}
    assert len(after) == 1000 and all(after[path] == before[path] for path in {*before} & {*after})


@pytest.mark.parametrize("classes, each", [(1, 1), (2, 1), (1, 2), (3, 2), (26, 2)])
def test_one_image_is_held_out_and_one_of_each_class_stays(tmp_path, classes, each):
    for run, name, i in itertools.product(range(20), range(classes), range(each)):
        (tmp_path / f"{run}/c{name}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{run}/c{name}/{run}-{i}.png").touch()
    for run in range(20):
        rows = data.list_images(tmp_path / str(run))[0]
        assert {label for test, label, _ in rows if not test} == {*range(classes)}
        assert (sum(test for test, *_ in rows) > 0) == (each > 1)


@pytest.mark.parametrize("place", [
    "list_eval_partition.txt", "list_eval_partition.csv", "Eval/list_eval_partition.txt"])
def test_celeba_is_split_by_its_own_list(tmp_path, place):
    folder, gap = numbered(tmp_path / "celeba/img_align_celeba", 5), "," if "csv" in place else " "
    lines = [f"{i:04d}.png{gap}{code}\n" for i, code in enumerate((0, 1, 2, 0, 2))]
    (folder.parent / place).parent.mkdir(exist_ok=True)
    (folder.parent / place).write_text("image_id,partition\n" * (gap == ",") + "".join(lines))
    images, labels = data.load("celeba", tmp_path)
    assert values(images) == [0, 3] and labels.tolist() == [0, 0] and images.shape[2:] == (64, 64)
    loaded = data.load("celeba", tmp_path, "test")  # 1 is for validation
    assert values(loaded[0]) == [2, 4] and "by list_eval_partition" in loaded.note


# ---- Pixels ------------------------------------------------------------------------------------


def one(path, **options):
    """The one image of a folder with one file, (C, H, W)."""
    images, _ = data.load(path.parent, path.parent.parent / "data", "all", **options)
    assert len(images) == 1
    return images[0]


def tiff(pixels, bits, sign=1, photometric=1, order="<", more=(), width=None):
    """The bytes of an uncompressed grey TIFF; more: rows (tag, type, count, value of 4 bytes)."""
    content = pixels.tobytes()
    rows = [(256, width or pixels.shape[1]), (257, len(pixels)), (258, bits), (259, 1), (273, 8),
            (262, photometric), (277, 1), (278, len(pixels)), (279, len(content)), (339, sign)]
    cells = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in rows]
    cells += [struct.pack(f"{order}HHI4s", *row) for row in more]
    cells.sort(key=lambda cell: struct.unpack(f"{order}H", cell[:2]))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(cells)) + b"".join(cells) + b"\0" * 4


def saved(picture, kind, **options):
    """The bytes of a picture, an array or Pillow's, in a format."""
    file = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(file, kind, **options)
    return file.getvalue()


def exif_of(*rows):
    """EXIF data whose IFD0 has the rows (tag, type, count, 4 bytes), without room for more."""
    cells = b"".join(struct.pack("<HHI4s", *row) for row in sorted(rows))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(rows)) + cells + b"\0" * 4


LEVELS = np.arange(4).repeat(4).reshape(4, 4)  # thirds of white
GREY, TURNED = LEVELS[None] * 85, 255 - LEVELS[None] * 85
TWELVE = np.array([0x00, 0x55, 0xAA, 0xFF], dtype="u1").repeat(6).reshape(4, 6)
DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
CLEAR = np.full((8, 8, 4), (200, 0, 0, 102), dtype=np.uint8)  # 40 % of red on white
RED = np.array([255, 0, 0]).reshape(3, 1, 1)
FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
PALETTE = Image.new("P", (8, 8), 1)
PALETTE.putpalette([255, 0, 0, 0, 0, 255])
CMYK, YCC = Image.new("CMYK", (8, 8), (0, 255, 255, 0)), Image.new("YCbCr", (8, 8), (76, 85, 255))
FILES = {  # name: content, and what it shows
    "8.tif": (tiff((LEVELS * 85).astype("u1"), 8), GREY),
    "8-inverted.tif": (tiff((LEVELS * 85).astype("u1"), 8, photometric=0), TURNED),
    "4.tif": (tiff((LEVELS[:, :2] * 85).astype("u1"), 4, width=4), GREY),
    "12.tif": (tiff(TWELVE, 12, width=4), GREY),
    "16.tif": (tiff((LEVELS * 21845).astype("<u2"), 16), GREY),
    "16-big.tif": (tiff((LEVELS * 21845).astype(">u2"), 16, order=">"), GREY),
    "16-inverted.tif": (tiff((LEVELS * 21845).astype("<u2"), 16, photometric=0), TURNED),
    "16.png": (saved(DEEP, "PNG"), np.round(DEEP / 257)[None]),
    "16.pgm": (saved(DEEP, "PPM"), np.round(DEEP / 257)[None]),
    "1.pbm": (saved(Image.new("1", (8, 8), 1), "PPM"), 255),
    "palette.png": (saved(PALETTE, "PNG"), RED[::-1]),
    "cmyk.tif": (saved(CMYK, "TIFF"), RED), "cmyk.jpg": (saved(CMYK, "JPEG"), RED),
    "ycc.tif": (saved(YCC, "TIFF"), RED),
    "frames.gif": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), RED),
    "clear.png": (saved(CLEAR, "PNG"), np.array([233, 153, 153]).reshape(3, 1, 1)),
    "clear.webp": (saved(CLEAR, "WEBP", lossless=True), np.array([233, 153, 153])[:, None, None]),
    "clear-p.png": (saved(PALETTE, "PNG", transparency=1), 255),
    "la.png": (saved(Image.new("LA", (8, 8), (50, 51)), "PNG"), 214),  # 0.2 x 50 + 0.8 x 255
}  # fmt: skip


WHOLE, SHOT = saved(noise(8, 8), "PNG"), np.kron(noise(3, 3), np.ones((8, 8), dtype=np.uint8))
TURN = (0x0112, 3, 1, b"\6\0\0\0")  # the camera was turned: rotate by 90 degrees to view
TAGS = {  # what other tags, of odd types, must not change
    "alone": TURN, "software, a number": (0x0131, 5, 1, b"\1\0\0\0"),
    "GPS, a text": (0x8825, 2, 4, b"abc\0"), "pointer": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "resolution, signed": (0x011A, 10, 1, b"\x08\0\0\0"), "type": (0x010F, 99, 1, b"\0\0\0\0"),
}  # fmt: skip
for kind, tag in TAGS.items():
    turned, exif = np.rot90(SHOT, -1)[None], exif_of(*{TURN, tag})
    FILES[f"{kind}.tif"] = tiff(SHOT, 8, more={TURN, tag}), turned
    FILES[f"{kind}.jpg"] = saved(SHOT, "JPEG", quality=100, exif=exif), turned
    FILES[f"{kind}.png"] = saved(SHOT, "PNG", exif=exif), turned
    FILES[f"{kind}.webp"] = saved(SHOT, "WEBP", lossless=True, exif=exif), turned
VIEWS = [SHOT, SHOT, np.fliplr(SHOT), np.rot90(SHOT, 2), np.flipud(SHOT), SHOT.T,
         np.rot90(SHOT, -1), np.rot90(SHOT, 2).T, np.rot90(SHOT), SHOT]  # fmt: skip
for turn, view in enumerate(VIEWS):
    exif = exif_of((0x0112, 3, 1, bytes([turn, 0, 0, 0])))
    FILES[f"turn-{turn}.png"] = saved(SHOT, "PNG", exif=exif), view[None]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
FILES["xmp.webp"] = saved(SHOT, "WEBP", lossless=True, xmp=XMP), SHOT[None]
FILES["no-exif.png"] = saved(SHOT, "PNG", exif=b"Exif\0\0no EXIF at all"), SHOT[None]
FILES["text.png"] = saved(SHOT, "PNG", exif=exif_of((0x0112, 2, 2, b"6\0\0\0"))), SHOT[None]


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_what_the_file_says(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(FILES[name][0])
    found, expected = one(tmp_path / "set" / name).numpy().astype(int), FILES[name][1]
    assert len(found) == (len(expected) if isinstance(expected, np.ndarray) else 1)
    assert np.abs(found - expected).max() <= 2, found  # JPEG's and signed bytes' rounding


BROKEN = {  # content that is left out, and the reason
    "32.tif": (tiff(LEVELS.astype("<i4"), 32), "signed, 32-bit or floating-point pixels"),
    "16-signed.tif": (tiff(LEVELS.astype("<i2"), 16, sign=2), "signed"),
    "8-signed.tif": (tiff(LEVELS.astype("i1"), 8, sign=2), "signed"),
    "float.tif": (tiff(LEVELS.astype("<f4"), 32, sign=3), "signed, 32-bit or floating-point"),
    "d.png": (WHOLE[: len(WHOLE) // 2], "."), "e.png": (b"", "cannot identify image file\\)"),
    "f.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "cannot identify"),
    "large.png": (saved(noise(40, 40), "PNG"), ".* exceeds limit of 900"),
    "larger.png": (saved(noise(50, 50), "PNG"), ".* exceeds limit"),
    "odd.png": (b"odd", "MemoryError"), "i\x1b[2J\nb\udc80.png": (b"", "."),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_right_is_left_out_and_said(tmp_path, load, monkeypatch, capfd, name):
    folder, exact = numbered(tmp_path / "set", 12), data.open_image

    def opens(file, *rest):
        if name == "odd.png" and file.read_bytes() == b"odd":
            raise MemoryError
        return exact(file, *rest)

    monkeypatch.setattr(data, "open_image", opens)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    (folder / name).write_bytes(BROKEN[name][0])
    loaded = load(folder, "all")
    told = re.escape(name.encode("unicode_escape").decode())
    assert sorted(values(loaded[0])) == list(range(12)) and loaded.note.isprintable()
    assert re.search(f"left out: 1 unreadable \\({told}: {BROKEN[name][1]}", loaded.note)
    assert load(folder, "all").note == loaded.note  # from the cache
    assert capfd.readouterr().err == ""


def test_other_endings_and_what_is_no_regular_file_are_left_out_and_said(tmp_path, load):
    folder = numbered(tmp_path / "set", 12)
    (folder / "12.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "13.png")
    for name in ("1.heic", "2.HEIC", "list.txt", "README", ".DS_Store", "._0001.png"):
        (folder / name).write_text("no matter")
    loaded = load(folder, "all")
    assert sorted(values(loaded[0])) == [*range(12)]
    said = loaded.note.partition("left out: ")[2].split(", ")
    assert sorted(said) == ["1 .txt", "1 no ending", "2 .heic", "2 no regular file"]


@pytest.mark.parametrize("height, width", [(64, 99), (99, 64), (1, 50), (300, 3)])
def test_oddly_shaped_images_give_their_middle_square(tmp_path, height, width):
    pixels, side = noise(height, width), min(height, width)
    write(tmp_path / "a" / "1.png", pixels)
    top, left = round((height - side) / 2), round((width - side) / 2)
    expected = pixels[top : top + side, left : left + side]
    assert np.array_equal(one(tmp_path / "a" / "1.png", size=side)[0].numpy(), expected)
    assert one(tmp_path / "a" / "1.png").shape == (1, 64, 64)  # no square of at most 64: 64


@pytest.mark.parametrize("coloured", [0, 1, 3, 40])
def test_grey_or_colour_is_decided_by_the_share_of_pictures_with_colour(tmp_path, load, coloured):
    grey, colour = np.repeat(noise(64, 64)[..., None], 3, 2), noise(64, 64, 3)
    grey[3, 3] = (255, 0, 0)  # a pixel decides nothing
    pictures = [colour] * coloured + [grey] * (40 - coloured)
    for i, picture in enumerate(pictures):
        write(tmp_path / "set" / f"{i:02}.png", picture)
    images, _ = loaded = load(tmp_path / "set", "all")
    assert (f"({coloured} of 40 have colour)" in loaded.note) == (0 < coloured < 40)
    assert ("; grey" in loaded.note) == (coloured < 3) == (images.shape[1] == 1)
    for part in pictures:
        luma = np.asarray(Image.fromarray(part).convert("L"))[None]
        expected = torch.tensor(luma if coloured < 3 else part.transpose(2, 0, 1))
        assert (images == expected).flatten(1).all(1).any()


def test_many_files_are_decoded_side_by_side_in_order(tmp_path, load):
    for i in range(1100):
        write(tmp_path / "set" / f"{i:04d}.png", flat((i % 256, i // 256, 7), 4, 4))
    (tmp_path / "set" / "0100.png").write_bytes(b"broken")
    parts = [load(tmp_path / "set", split)[0].int() for split in ("train", "test", "all")]
    train, test, every = ((x[:, 0, 0, 0] + 256 * x[:, 1, 0, 0]).tolist() for x in parts)
    assert train == sorted(train) and test == sorted(test) and train + test == every
    assert sorted(every) == sorted({*range(1100)} - {100})
    assert f"and {len(test)} test images" in load(tmp_path / "set").note


def test_what_was_taken_is_said_in_one_line(tmp_path, load, monkeypatch):
    for place, count in (("train/10", 12), ("train/9", 28), ("val/9", 4)):
        numbered(tmp_path / "set" / place, count)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/set").note == (
        f"{tmp_path}/set: 40 training and 4 test images (from val); 2 classes: 9 (28), 10 (12); "
        "grey; 8 x 8 pixels")  # fmt: skip
    for i in range(30):
        numbered(tmp_path / "many" / f"c{i}", 2)
    said = r"\(about one in ten is held out, as there is no test folder\); 30 classes: c0 .*, c9 "
    assert re.search(said + r"\([12]\), \.\.\.; grey", load(tmp_path / "many").note)


def taken(tmp_path, capsys, dataset, **more):
    """The args that training_set fills in, and the lines it prints."""
    args = {"dataset": str(dataset), "data_dir": str(tmp_path / "data"), "size": None}
    args = Namespace(**args | {"resume": None, "batch_size": None} | more)
    capsys.readouterr()
    data.training_set(args, batch_size=100)
    return args, capsys.readouterr().out.splitlines()


def test_training_set_fills_in_args_and_says_what_was_taken(tmp_path, capsys, load):
    for name, split in itertools.product("ba", ("train", "test")):
        numbered(tmp_path / "set" / split / name, 18)
    args, lines = taken(tmp_path, capsys, tmp_path / "set")
    assert lines[0] == load(tmp_path / "set").note and "36 images are very few" in lines[1]
    assert (args.channels, args.size, args.class_names) == (1, 8, ["a", "b"])
    assert args.train_images == 36 and args.batch_size == 9  # a quarter of 36
    assert taken(tmp_path, capsys, tmp_path / "set", batch_size=5)[0].batch_size == 5


def test_training_set_takes_what_a_replaced_load_gives(monkeypatch, tmp_path, capsys):
    """A plain tuple, without names, digest and note."""
    made = torch.zeros(500, 3, 16, 16, dtype=torch.uint8), torch.arange(500) % 3
    monkeypatch.setattr(data, "load", lambda *args, **options: made)
    args, lines = taken(tmp_path, capsys, "any")
    assert lines == ["500 images"] and args.batch_size == 100
    assert args.class_names == ["0", "1", "2"] and args.digest == ""


def test_a_resumed_run_notices_other_images(tmp_path, capsys):
    folder = tmp_path / "set"
    numbered(folder / "train", 40)
    numbered(folder / "test", 10, first=100)
    resumed = vars(taken(tmp_path, capsys, folder)[0]) | {"resume": "run"}

    def said(**more):
        _, lines = taken(tmp_path, capsys, **resumed | {"dataset": folder} | more)
        return " ".join(line for line in lines if "note" in line)

    os.utime(folder / "train/0001.png")  # its bytes are the same
    folder = folder.rename(tmp_path / "moved")
    assert said() == ""
    write(folder / "train/0001.png", np.full((8, 8), 99, dtype=np.uint8))  # of as many bytes
    assert re.search("40 training images then, 40 now; images held out before may be", said())
    (numbered(folder / "train", 1, first=1) / "0001.png").rename(folder / "train/9.png")
    assert "has changed" in said()
    (folder / "test/0100.png").rename(folder / "train/0100.png")
    assert "40 training images then, 41 now" in said()
    for wrong in ({"channels": 3}, {"class_names": ["a", "b"]}):
        with pytest.raises(data.InputError, match="was trained on.*--dataset"):
            said(**wrong)


def caches(tmp_path):
    return sorted((tmp_path / "data").iterdir())


def test_the_cache_is_one_file_in_data_dir_and_follows_the_folder(tmp_path, load, monkeypatch):
    folder = numbered(tmp_path / "set", 20)
    first = load(folder)
    (place,) = caches(tmp_path)
    assert len(os.listdir(folder)) == 20 and sorted(os.listdir(tmp_path)) == ["data", "set"]
    content = place.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(data, "open_image", None)  # would fail when called
        again = load(folder, size=8)
    assert all(map(torch.equal, first, again)) and vars(first) == vars(again)
    again[0].zero_()  # a mapped tensor may be written to without harm to the file
    assert place.read_bytes() == content
    (folder / "0000.png").rename(folder / "a.png")
    before = (folder / "0005.png").stat()
    write(folder / "0005.png", np.full((8, 8), 77, dtype=np.uint8))
    os.utime(folder / "0005.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p does
    assert sorted(values(load(folder, "all")[0])) == sorted({*range(20), 77} - {5})
    assert len(caches(tmp_path)) == 1  # that of another state is replaced
    assert load(folder, size=16)[0].shape[-1] == 16 and len(caches(tmp_path)) == 2
    other = numbered(tmp_path / "below" / "set", 10, first=50)  # of the same name
    assert min(values(load(other, "all")[0])) == 50 and len(caches(tmp_path)) == 3


def test_a_damaged_cache_is_made_again(tmp_path, load):
    folder = numbered(tmp_path / "set", 20)
    first = load(folder, "all")[0].clone()
    (place,) = caches(tmp_path)
    content = place.read_bytes()
    flipped = content.replace(bytes([17]) * 64, bytes([17]) * 63 + b"\0")  # of one of the images
    for damaged in (b"", content[: len(content) // 2], content[:-1], flipped):
        place.unlink()  # the mapping of an earlier load stays on the old file
        place.write_bytes(damaged)
        assert torch.equal(load(folder, "all")[0], first) and place.read_bytes() == content


def test_a_data_dir_that_cannot_be_written_is_no_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = numbered(tmp_path / "set", 20)
    assert len(data.load(folder, tmp_path / "file" / "data", "all")[0]) == 20
    assert capsys.readouterr().err.count("\n") == 1 and len(os.listdir(tmp_path)) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with data.whole_file(tmp_path / "new" / "file") as file:
        file.write(b"a whole file")
    with pytest.raises(KeyboardInterrupt), data.whole_file(tmp_path / "new" / "file") as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert (tmp_path / "new" / "file").read_bytes() == b"a whole file"
    assert os.listdir(tmp_path / "new") == ["file"] and os.listdir(tmp_path) == ["new"]


class Backend(RuntimeError):
    """As what torch.compile raises."""

    __module__ = "torch._inductor.exc"


ERRORS = {  # what main raises: what is said, and the exit status
    data.InputError("no such\nthing\x1b"): (r"x: error: no such\\nthing\\x1b\n", 2),
    FloatingPointError("a loss is not finite"): ("x: error: a loss is not finite\n", 2),
    OSError(28, "No space left on device"): ("x: error: .*No space left on device\n", 2),
    MemoryError(): ("x: error: memory is full.*--batch-size.*\n", 2),
    torch.OutOfMemoryError("CUDA out of memory.\n2 GiB"): ("x: error: memory is full.*\n", 2),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"): ("x: error: memory is full.*\n", 2),
    Backend("No C++ compiler\nmore"): ("x: error: --compile.*install a C.. compiler.*\n", 2),
    KeyboardInterrupt(): ("", 130),
    KeyboardInterrupt("a b"): ("stopped; resume with: python x --resume 'a b'\n", 130),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_the_user_can_fix_is_one_line_and_status_2(capsys, error):
    with pytest.raises(SystemExit) as ended, data.plain_errors("x"):
        raise error
    assert re.fullmatch(ERRORS[error][0], "".join(capsys.readouterr()))
    assert ended.value.code == ERRORS[error][1]
    with pytest.raises(ZeroDivisionError), data.plain_errors("x"):
        raise ZeroDivisionError  # a bug keeps its traceback


def test_an_ascii_console_is_enough():
    code = "import data\nwith data.plain_errors('x'): print('é →'); raise data.InputError('café')"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (b"? ?\n", b"x: error: caf?\n", 2)


# ---- The drawn sets ----------------------------------------------------------------------------


def test_drawn_sets_are_drawn_once_for_each_size_and_version(tmp_path, monkeypatch):
    calls = []

    def draw(*args):
        calls.append(args)
        return torch.zeros(args[1], 1, args[3], args[3]).byte(), torch.arange(args[1]) % 10

    monkeypatch.setattr(data, "draw", draw)
    for split, count in (("train", 60_000), ("test", 10_000)):
        images, labels = loaded = data.load("digits", tmp_path / "data", split)
        assert images.shape == (count, 1, 28, 28) and labels[:3].tolist() == [0, 1, 2]
    assert loaded.note.startswith("digits: 60,000 training and 10,000 test images; 10 classes: 0 ")
    monkeypatch.setattr(data, "DRAWN_VERSION", data.DRAWN_VERSION + 1)
    data.load("digits", tmp_path / "data")
    data.load("digits", tmp_path / "data", size=8)
    assert calls == [("digits", 70_000, 0, size) for size in (28, 28, 8)]
    assert len(caches(tmp_path)) == 2


@pytest.mark.parametrize("dataset, size", [("digits", 28), ("faces", 32)])
def test_drawing_depends_on_the_seed_alone(dataset, size):
    n = 700 if size == 28 else 100  # several chunks, and labels that come again in a chunk
    images, labels = data.draw(dataset, n, 5, size)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    for fewer in (0, 1, n // 3, n):  # image i is the same for any n
        some, own = data.draw(dataset, fewer, 5, size)
        assert torch.equal(some, images[:fewer]) and torch.equal(own, labels[:fewer])
    assert (images != data.draw(dataset, n, 6, size)[0]).flatten(1).any(1).all()
    assert len(images.flatten(1).unique(dim=0)) == n
    twice = data.draw(dataset, n, 5, 2 * size)[0]  # at twice the size, the same picture
    means = twice.float().unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    assert (images.float() - means).abs().mean() < 2


@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX512"])
def test_drawn_bytes_are_the_same_on_every_machine(instructions):
    """Sums recorded once, whatever instructions MKL is told to use (SSE4_2: as on AMD)."""
    code = ("import hashlib, torch, data; torch.set_flush_denormal(True)\n"
            "for args in (('digits', 300, 0, 28), ('faces', 96, 0, 32)):\n"
            "    print(hashlib.sha256(data.draw(*args)[0].numpy().tobytes()).hexdigest()[:16])")
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    sums = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert data.DRAWN_VERSION == 5
    assert sums.decode().split() == ["e65bd82b20cd2aaa", "3ea2af3d37352e18"]
