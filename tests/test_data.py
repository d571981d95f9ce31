"""The loader: splits, classes, pixels, the cache and what it says, on made-up files; the batches.

Expected values come from the bytes that a test wrote, from Pillow, torch or torchvision used
directly, or from a formula.
"""

import itertools
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zlib
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

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


# ---- Batches -----------------------------------------------------------------------------------


def test_batches_are_a_permutation_each_epoch_and_drop_the_rest():
    images = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1).expand(23, 1, 2, 2)
    stream = data.batches(images, 5, "cpu", seed=3, labels=torch.arange(23) * 10)
    epochs = []
    for _ in range(3):
        seen = []
        for _ in range(4):  # 23 // 5
            x, y = next(stream)
            assert x.shape == (5, 1, 2, 2) and x.dtype == torch.float32
            assert torch.equal(x[:, 0, 0, 0], y / 10 / 255)
            seen += y.tolist()
        assert len(set(seen)) == 20
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_resume_where_an_unbroken_run_would_be():
    images = torch.from_numpy(noise(23, 1, 2, 2))
    unbroken = list(itertools.islice(data.batches(images, 5, "cpu", seed=0), 12))
    for start in (1, 4, 7, 11):
        resumed = itertools.islice(data.batches(images, 5, "cpu", seed=0, start=start), 12 - start)
        assert all(torch.equal(a, b) for a, b in zip(resumed, unbroken[start:], strict=True))
    assert not torch.equal(next(data.batches(images, 5, "cpu", seed=1)), unbroken[0])
    for wrong in (0, 24):
        with pytest.raises(data.InputError, match="batch size"):  # at the call
            data.batches(images, wrong, "cpu", seed=0)


# ---- torchvision's data sets, made up in small -------------------------------------------------


def write_idx(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    (folder / name).write_bytes(header + array.tobytes())


def make_mnist(root, folder="MNIST"):
    made = {}
    for split, count, seed in (("train", 30, 0), ("t10k", 12, 1)):
        images, labels = noise(count, 28, 28, seed=seed), (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / folder / "raw", f"{split}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw", f"{split}-labels-idx1-ubyte", labels)
        made[split] = images, labels
    return made


@pytest.mark.parametrize("dataset, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist(tmp_path, dataset, folder):
    made = make_mnist(tmp_path, folder)
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = data.load(dataset, tmp_path, split)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images[:, 0].numpy(), made[name][0])
        assert labels.tolist() == made[name][1].tolist()
    images, labels = loaded = data.load(dataset, tmp_path, "all", size=14)
    pixels = np.concatenate([made["train"][0], made["t10k"][0]])
    small = [Image.fromarray(x).resize((14, 14), Image.Resampling.BICUBIC) for x in pixels]
    error = np.abs(images[:, 0].numpy().astype(int) - np.stack(small))
    assert error.mean() < 0.5  # Pillow rounds and clips between its two passes, torch after both
    assert len(labels) == 42 and len(loaded.classes) == 10 and loaded.held_out == 10_000
    write_idx(tmp_path / folder / "raw", "train-labels-idx1-ubyte", np.zeros(7, dtype=np.uint8))
    with pytest.raises(data.InputError, match="30 images but 7 labels"):
        data.load(dataset, tmp_path)
    (tmp_path / folder / "raw" / "train-images-idx3-ubyte").write_bytes(b"no idx file at all")
    with pytest.raises(data.InputError, match=f"{dataset} cannot be read.*{folder}/raw"):
        data.load(dataset, tmp_path)


def test_classes_by_number_and_name_keep_the_order_given(tmp_path):
    made = make_mnist(tmp_path, "FashionMNIST")["train"]
    images, labels = loaded = data.load("fashion-mnist", tmp_path, classes=[7, "Trouser", "3"])
    order = {7: 0, 1: 1, 3: 2}  # Fashion-MNIST's trousers are class 1
    assert loaded.classes == ["Sneaker", "Trouser", "Dress"]
    kept = np.isin(made[1], list(order))
    assert np.array_equal(images[:, 0].numpy(), made[0][kept])
    assert labels.tolist() == [order[label] for label in made[1][kept].tolist()]
    for wrong in (["Hat"], [10], [-1], [1, "Trouser"]):
        with pytest.raises(data.InputError, match="class"):
            data.load("fashion-mnist", tmp_path, classes=wrong)


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    known = torchvision.datasets.SVHN.split_list.items()
    parts = {split: [url, name, None] for split, (url, name, _) in known}  # no md5 sum
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", parts)
    pixels = noise(32, 32, 3, 6)  # SVHN's own order: H, W, C, N; and the digit 0 has the label 10
    digits = np.array([[1], [10], [3], [9], [10], [2]], dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": digits})
    images, labels = data.load("svhn", tmp_path)
    assert images.is_contiguous() and np.array_equal(images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert labels.tolist() == [1, 0, 3, 9, 0, 2] and labels.dtype == torch.int64


def test_cifar10_has_the_same_names_from_its_own_files_and_from_folders(tmp_path, monkeypatch):
    cls, own = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
             "truck"]
    for split, name in itertools.product(("train", "test"), names):
        write(tmp_path / "cifar10" / split / name / "1.png", flat((1, 20, 30), 32, 32))
    images, labels = loaded = data.load("cifar10", tmp_path, "test")
    assert images.shape == (10, 3, 32, 32) and labels.tolist() == list(range(10))
    assert images[:, :, 9, 9].tolist() == [[1, 20, 30]] * 10 and loaded.classes == names
    own.mkdir()
    monkeypatch.setattr(cls, "train_list", [["data_batch_1", None], ["data_batch_2", None]])
    monkeypatch.setattr(cls, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    (own / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for i, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        batch = {"data": noise(4, 3072, seed=i), "labels": [3, 1, 4, 1]}
        (own / name).write_bytes(pickle.dumps(batch))
    images, labels = loaded = data.load("cifar10", tmp_path)
    expected = np.concatenate([noise(4, 3072, seed=0), noise(4, 3072, seed=1)])
    assert np.array_equal(images.numpy(), expected.reshape(8, 3, 32, 32))
    assert labels.tolist() == [3, 1, 4, 1] * 2 and loaded.classes == names


FILES = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "cifar10": "cifar-10-python",
         "svhn": "_32x32.mat"}  # fmt: skip


@pytest.mark.parametrize("dataset, place", FILES.items())
def test_a_download_that_fails_names_file_folder_and_way_out(tmp_path, monkeypatch, dataset, place):
    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    sets = torchvision.datasets
    monkeypatch.setattr(sets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(sets.cifar, "download_and_extract_archive", no_network)
    monkeypatch.setattr(sets.svhn, "download_url", no_network)
    with pytest.raises(data.InputError) as caught:
        data.load(dataset, tmp_path)
    for words in (place, str(tmp_path), "--dataset digits", "not known"):
        assert words in str(caught.value)


def test_unknown_names_splits_and_sizes_are_input_errors(tmp_path):
    wrong = [("mnits", {}, "'mnits' is no folder.*fashion-mnist"), ("~nobody/x", {}, "~nobody/x"),
             ("mnist", {"split": "valid"}, "split 'valid'"), ("mnist", {"size": 0}, "size 0"),
             ("faces", {"size": 48}, "at 32 or 64"), ("imagenet", {}, "imagenet.*--dataset digits"),
             ("celeba", {}, "img_align_celeba.*--dataset digits")]  # fmt: skip
    for name, options, words in wrong:
        with pytest.raises(data.InputError, match=words):
            data.load(name, tmp_path, **options)


# ---- Classes and splits of folders -------------------------------------------------------------


def test_class_names_are_sorted_as_people_read_them_and_kept(tmp_path, load):
    for i in range(12):
        numbered(tmp_path / "set" / str(i), 3, first=20 * i)
    images, labels = loaded = load(tmp_path / "set", "all")
    assert loaded.classes == [str(i) for i in range(12)]
    assert labels.tolist() == [value // 20 for value in values(images)]
    images, labels = loaded = load(tmp_path / "set", "all", classes=["10", "2"])
    assert loaded.classes == ["10", "2"] and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert {value // 20 for value in values(images[labels == 0])} == {10}
    shutil.rmtree(tmp_path / "set" / "0")  # 1 to 11: a number is the name of a folder
    images, labels = load(tmp_path / "set", "all", classes=[1])
    assert {value // 20 for value in values(images)} == {1}
    with pytest.raises(data.InputError, match="'0'"):
        load(tmp_path / "set", classes=["0"])
    assert sorted(["b10", "b9", "A", "b09"], key=data.natural) == ["A", "b09", "b9", "b10"]


SPLITS = [("train", "test"), ("training", "testing"), ("Train", "Test"), ("TRAIN", "VAL"),
          ("training_set", "test_set"), ("train-images", "val-images"), ("train2017", "val2017"),
          ("trainset", "validation"), ("train", "dev"), ("train", "hold-out"), ("Train", "eval"),
          ("Training Data", "Test Data")]  # fmt: skip


@pytest.mark.parametrize("train, test", SPLITS)
def test_splits_are_found_by_their_usual_names(tmp_path, load, train, test):
    for split, name, first in itertools.product((train, test), "ab", (0, 100)):
        numbered(tmp_path / "set" / split / name, 2, first + 10 * (split == test))
    (tmp_path / "set" / "licence").mkdir()
    (tmp_path / "set" / "licence" / "terms.txt").write_text("no image")
    images, labels = loaded = load(tmp_path / "set")
    assert set(values(images)) == {0, 1, 100, 101} and labels.bincount().tolist() == [4, 4]
    assert loaded.classes == ["a", "b"] and loaded.held_out == 8
    assert set(values(load(tmp_path / "set", "test")[0])) == {10, 11, 110, 111}


LAYOUTS = ["train/a train/b more/a", "train1/a train2/a", "fold1/a fold2/a fold3/a", "test/a val/a",
           "trainA testA trainB testB", "train/a training/a test/a", "cats_train cats_val",
           "a/train a/test b/train b/test", "images/test images/train labels", "test images/a",
           "set/train/a set/test/a"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_looks_like_another_split_is_an_input_error(tmp_path, load, layout):
    for place in layout.split():
        numbered(tmp_path / "set" / place, 3)
    with pytest.raises(data.InputError, match="split.*--dataset"):
        load(tmp_path / "set")


def test_a_class_that_only_the_test_split_has_is_left_out_and_said(tmp_path, load):
    for place, value in (("train/cat", 1), ("train/owl", 2), ("val/dog", 3), ("val/owl", 4)):
        numbered(tmp_path / "set" / place, 1, first=value)
    images, labels = loaded = load(tmp_path / "set", "all")
    assert loaded.classes == ["cat", "owl"] and loaded.held_out == 1
    assert dict(zip(values(images), labels.tolist())) == {1: 0, 2: 1, 4: 1}
    assert "left out: 1 images in val/dog" in loaded.note
    for place in ("train/cat", "test/x", "test/y"):
        numbered(tmp_path / "other" / place, 3)
    with pytest.raises(data.InputError, match="no image of the classes cat"):
        load(tmp_path / "other")


@pytest.mark.parametrize("below", [".", "unknown"])
def test_a_flat_test_folder_beside_classes_has_no_labels(tmp_path, load, below):
    for place in ("train/cat", "train/dog"):
        numbered(tmp_path / "set" / place, 5)
    numbered(tmp_path / "set" / "test" / below, 4, first=50)
    images, labels = loaded = load(tmp_path / "set", "test")
    assert sorted(values(images)) == [50, 51, 52, 53] and labels.tolist() == [-1] * 4
    assert loaded.classes == ["cat", "dog"] and "without labels" in loaded.note
    assert load(tmp_path / "set")[1].bincount().tolist() == [5, 5]
    with pytest.raises(data.InputError, match="without labels"):
        load(tmp_path / "set", "test", classes=["cat"])
    for name in ("cat", "dog"):  # the same with the classes next to the test folder
        (tmp_path / "set/train" / name).rename(tmp_path / "set" / name)
    (tmp_path / "set/train").rmdir()
    assert load(tmp_path / "set", "test")[1].tolist() == [-1] * 4


def test_other_nestings_of_splits(tmp_path, load):
    for place in ("train/cat/old", "train/dog", "test/images/cat", "test/images/dog"):
        numbered(tmp_path / "a" / place, 2)
    assert load(tmp_path / "a", "test")[1].tolist() == [0, 0, 1, 1]
    for place in ("train", "test/deep/er"):
        numbered(tmp_path / "b" / place, 2)
    loaded = load(tmp_path / "b", "all")
    assert loaded.classes == ["."] and loaded[1].tolist() == [0] * 4 and "no classes" in loaded.note
    for place in ("train/cat", "val/cat", "test"):  # a test split with labels is worth more
        numbered(tmp_path / "c" / place, 3)
    loaded = load(tmp_path / "c", "test")
    assert loaded[1].tolist() == [0] * 3 and "3 images in test" in loaded.note


def test_images_beside_class_folders_are_left_out_and_links_back_up_not_followed(tmp_path, load):
    for place, first in ((".", 0), ("b/deep/deeper", 1), ("a", 2), (".hidden", 9), ("__MACOSX", 9)):
        numbered(tmp_path / "set" / place, 1, first=first)
    (tmp_path / "set/a/up").symlink_to("..")
    (tmp_path / "set/c").symlink_to(numbered(tmp_path / "elsewhere", 1, first=3))
    images, labels = loaded = load(tmp_path / "set", "all")
    assert dict(zip(values(images), labels.tolist())) == {2: 0, 1: 1, 3: 2}
    assert loaded.classes == ["a", "b", "c"] and "left out: 1 images in ." in loaded.note
    shutil.rmtree(tmp_path / "set/b")
    (tmp_path / "set/c").unlink()  # one folder and loose images: no classes
    loaded = load(tmp_path / "set", "all")
    assert sorted(values(loaded[0])) == [0, 2] and loaded.classes == ["."]


def test_a_flat_folder_is_split_nine_to_one_the_same_every_time(tmp_path, load):
    folder = numbered(tmp_path / "set", 40)
    train, labels = loaded = load(folder)
    test, _ = load(folder, "test")
    assert len(train) == 36 and len(test) == loaded.held_out == 4 and "one in ten" in loaded.note
    assert sorted(values(train) + values(test)) == list(range(40)) and not labels.any()
    assert values(load(folder, "all")[0]) == values(train) + values(test)
    for i in range(40, 49):  # new files, sorted before the old ones, move few of these
        write(folder / f"+{i}.png", np.full((8, 8), i, dtype=np.uint8))
    assert len(set(values(test)) & set(values(load(folder, "test")[0]))) >= 2
    for name in "abcdefghij":  # every class keeps an image for training
        numbered(tmp_path / "few" / name, 2)
    assert (load(tmp_path / "few")[1].bincount(minlength=10) > 0).all()


def test_empty_folders_classes_and_splits_are_input_errors(tmp_path, load):
    (tmp_path / "empty").mkdir()
    numbered(tmp_path / "set" / "cat", 2)
    (tmp_path / "set" / "dog").mkdir()
    numbered(tmp_path / "bad" / "cat", 2)
    (tmp_path / "bad" / "dog").mkdir()
    (tmp_path / "bad" / "dog" / "1.jpg").write_bytes(b"\xff\xd8 no jpeg")
    for name, words in (("empty", "empty holds no image"), ("set", "dog holds no image"),
                        ("bad", "class without readable images.*1.jpg: no image")):  # fmt: skip
        with pytest.raises(data.InputError, match=words):
            load(tmp_path / name)
    assert len(load(numbered(tmp_path / "one", 1))[0]) == 1
    with pytest.raises(data.InputError, match="no image for the test split"):
        load(tmp_path / "one", "test")


LISTS = ["list_eval_partition.txt", "list_eval_partition.csv", "Eval/list_eval_partition.txt"]


@pytest.mark.parametrize("place", LISTS)
def test_celeba_is_cut_to_the_middle_108_and_split_by_its_own_list(tmp_path, place):
    inside, folder = (200, 90, 40), tmp_path / "celeba" / "img_align_celeba"
    picture = flat((0, 0, 255), 218, 178)
    picture[55:163, 35:143] = inside  # rows (218 - 108) / 2 to 163, columns (178 - 108) / 2 to 143
    for i in range(1, 6):
        write(folder / f"{i:06d}.jpg", picture, quality=100, subsampling=0)
    codes, gap = {1: 0, 2: 1, 3: 2, 4: 0, 5: 2}, "," if place.endswith("csv") else " "
    lines = "".join(f"{i:06d}.jpg{gap}{code}\n" for i, code in codes.items())
    (tmp_path / "celeba" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "celeba" / place).write_text("image_id,partition\n" * (gap == ",") + lines)
    images, labels = data.load("celeba", tmp_path)
    assert images.shape == (2, 3, 64, 64) and labels.tolist() == [0, 0]
    error = (images.int() - torch.tensor(inside).view(3, 1, 1)).abs()
    assert error[..., 2:-2, 2:-2].max() <= 4 and error.float().mean() < 3  # JPEG, and resampling
    assert len(data.load("celeba", tmp_path, "test")[0]) == 2  # 3 and 5; 2 is for validation
    as_folder = data.load(folder, tmp_path)[0]
    assert (as_folder[0, 2, 0] > 200).all()  # a mere folder: the middle square, with blue


def test_imagenet_and_telugu_layouts(tmp_path):
    for split, green in (("train", 20), ("val", 90), ("test", 160)):
        for name in ("n01", "n02"):
            write(tmp_path / "imagenet" / split / name / "1.JPEG", flat((10, green, 200), 80, 100))
    images, labels = data.load("imagenet", tmp_path, "test")  # val, whose labels are known
    assert images.shape == (2, 3, 64, 64) and labels.tolist() == [0, 1]
    assert (images[:, 1].int() - 90).abs().max() <= 2
    for i in range(20):
        write(tmp_path / "telugu" / f"{i % 2:03d}" / f"{i:04d}.png", noise(32, 32, seed=i) > 128)
    images, labels = data.load("telugu", tmp_path)
    assert images.shape == (18, 1, 32, 32) and set(images.unique().tolist()) == {0, 255}


# ---- Pixels ------------------------------------------------------------------------------------


def one(path, **options):
    """The one image of a folder with one file, (C, H, W)."""
    images, _ = data.load(path.parent, path.parent.parent / "data", "all", **options)
    assert len(images) == 1
    return images[0]


def tiff(pixels, bits, sign=1, photometric=1, order="<", more=(), width=None):
    """The bytes of an uncompressed TIFF; more: rows (tag, type, count, value of 4 bytes)."""
    content, samples = pixels.tobytes(), pixels.shape[2] if pixels.ndim == 3 else 1
    rows = [(256, width or pixels.shape[1]), (257, len(pixels)), (258, bits), (259, 1), (273, 8),
            (262, photometric), (277, samples), (278, len(pixels)), (279, len(content)),
            (339, sign)]  # fmt: skip
    cells = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in rows]
    cells += [struct.pack(f"{order}HHI4s", *row) for row in more]
    cells.sort(key=lambda cell: struct.unpack(f"{order}H", cell[:2]))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(cells)) + b"".join(cells) + b"\0" * 4


LEVELS = np.arange(4).repeat(4).reshape(4, 4)  # thirds of white
TWELVE = np.array([[0x00, 0x00, 0x00], [0x55, 0x55, 0x55], [0xAA] * 3, [0xFF] * 3], dtype="u1")
DEPTHS = {  # a TIFF whose rows are 0, 1/3, 2/3 and 1 of white, or of black where it says inverted
    "8": tiff((LEVELS * 85).astype("u1"), 8),
    "8 inverted": tiff((LEVELS * 85).astype("u1"), 8, photometric=0),
    "12": tiff(TWELVE.repeat(2, 0).reshape(4, 6), 12, width=4),
    "16": tiff((LEVELS * 21845).astype("<u2"), 16),
    "16 big-endian": tiff((LEVELS * 21845).astype(">u2"), 16, order=">"),
    "16 inverted": tiff((LEVELS * 21845).astype("<u2"), 16, photometric=0),
    "16 signed": tiff((LEVELS * 32767 // 3).astype("<i2"), 16, sign=2),
    "8 signed": tiff((LEVELS * 127 / 3).round().astype("i1"), 8, sign=2),
    "32 with 8 bits": tiff((LEVELS * 85).astype("<i4"), 32, sign=2),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_grey_levels_are_read_as_the_tiff_states(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.tif").write_bytes(DEPTHS[name])
    expected = 255 - LEVELS * 85 if "inverted" in name else LEVELS * 85
    found = one(tmp_path / "set" / "1.tif", size=4)[0].numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1, found


UNKNOWN = {  # pixels whose white is not known, and the reason
    "32-bit": tiff((LEVELS * 1000).astype("<i4"), 32, sign=2),
    "below 0": tiff((LEVELS - 2).astype("<i2"), 16, sign=2),
    "floating": tiff(LEVELS.astype("<f4"), 32, sign=3),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_pixels_whose_white_is_unknown_are_left_out_with_the_reason(tmp_path, load, reason):
    folder = numbered(tmp_path / "set", 10)
    (folder / "odd.tif").write_bytes(UNKNOWN[reason])
    loaded = load(folder, "all")
    assert len(loaded[0]) == 10
    assert re.search(f"left out: 1 unreadable \\(odd.tif: [^;]*{reason}", loaded.note)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a/1.png", "b/1.tif", "c/1.pgm"):
        write(tmp_path / name, deep)
        expected = np.round(deep / 257).astype(np.uint8)
        assert np.array_equal(one(tmp_path / name)[0].numpy(), expected), name
    rgb = b"".join(b"\0" + b"\0\0\xff\xff\0\0" * 8 for _ in range(8))  # rows of a green PNG
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IEND", b"")]
    chunks.insert(1, (b"IDAT", zlib.compress(rgb)))
    png = [struct.pack(">I", len(content)) + name + content
           + struct.pack(">I", zlib.crc32(name + content)) for name, content in chunks]  # fmt: skip
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png))
    assert one(tmp_path / "d" / "1.png")[:, 5, 5].tolist() == [0, 255, 0]


def test_colour_modes_come_out_as_their_colours(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 10, 20, 30])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    write(tmp_path / "g/1.gif", frames[0], save_all=True, append_images=frames[1:])
    pictures = {
        "p/1.png": (palette, [10, 20, 30]),
        "c/1.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), [255, 0, 0]),
        "j/1.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), [254, 0, 0]),
        "y/1.tif": (Image.new("YCbCr", (8, 8), (76, 85, 255)), [254, 0, 0]),
        "b/1.tif": (Image.new("1", (8, 8), 1), [255]),
        "g/1.gif": (None, [0, 0, 255]),  # of an animation the first frame counts
    }
    for name, (picture, expected) in pictures.items():
        if picture:
            write(tmp_path / name, picture)
        found = one(tmp_path / name)[:, 5, 5].tolist()
        assert len(found) == len(expected)
        assert max(abs(a - b) for a, b in zip(found, expected)) <= 2, (name, found)


def test_transparency_is_put_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.arange(8) * 36
    write(tmp_path / "a" / "1.png", pixels)
    clear = 255 - pixels[0, :, 3]
    expected = np.stack([200 * (1 - clear / 255) + clear, clear, clear])
    assert np.abs(one(tmp_path / "a" / "1.png")[:, 4].numpy() - expected).max() <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((3, 3), 0)
    write(tmp_path / "p" / "1.png", palette, transparency=0)
    image = one(tmp_path / "p" / "1.png")
    assert image[:, 3, 3].tolist() == [255, 255, 255] and image[:, 0, 0].tolist() == [0, 0, 255]


def exif_of(*rows):
    """EXIF data whose IFD0 has the rows (tag, type, count, 4 bytes), without room for more."""
    cells = b"".join(struct.pack("<HHI4s", *row) for row in sorted(rows))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(rows)) + cells + b"\0" * 4


TURNED = (0x0112, 3, 1, b"\6\0\0\0")  # the camera was turned: rotate by 90 degrees to view
ODD = {
    "alone": [TURNED],
    "software, a number": [TURNED, (0x0131, 5, 1, b"\1\0\0\0")],
    "GPS, a text": [TURNED, (0x8825, 2, 4, b"abc\0")],
    "pointer outside": [TURNED, (0x8769, 4, 1, b"\xff\xff\xff\x7f")],
    "resolution, signed": [TURNED, (0x011A, 10, 1, b"\x08\0\0\0")],
    "unknown type": [TURNED, (0x010F, 99, 1, b"\0\0\0\0")],
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photographs_are_turned_upright_whatever_other_tags_hold(tmp_path, kind, ending):
    pixels = np.kron(noise(3, 3, seed=3), np.ones((8, 8), dtype=np.uint8))
    path = tmp_path / "a" / f"1.{ending}"
    if ending == "tif":
        path.parent.mkdir()
        path.write_bytes(tiff(pixels, 8, more=ODD[kind]))
    else:
        exact = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ending, {})
        write(path, pixels, exif=exif_of(*ODD[kind]), **exact)
    error = np.abs(one(path)[0].numpy().astype(int) - np.rot90(pixels, -1))
    assert error.max() <= (3 if ending == "jpg" else 0)


def test_every_orientation_is_undone_and_no_other_metadata_turns_a_picture(tmp_path):
    pixels = noise(8, 8)
    views = [pixels, pixels, np.fliplr(pixels), np.rot90(pixels, 2), np.flipud(pixels), pixels.T,
             np.rot90(pixels, -1), np.rot90(pixels, 2).T, np.rot90(pixels), pixels]  # fmt: skip
    for turn, view in enumerate(views):
        path = tmp_path / str(turn) / "1.png"
        write(path, pixels, exif=exif_of((0x0112, 3, 1, bytes([turn, 0, 0, 0]))))
        assert np.array_equal(one(path)[0].numpy(), view), turn
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    write(tmp_path / "x" / "1.webp", pixels, lossless=True, xmp=xmp)
    write(tmp_path / "y" / "1.png", pixels, exif=b"Exif\0\0no EXIF at all")
    for name in ("x/1.webp", "y/1.png"):
        assert np.array_equal(one(tmp_path / name)[0].numpy(), pixels)


@pytest.mark.parametrize("height, width", [(64, 99), (99, 64), (1, 50), (300, 3)])
def test_oddly_shaped_images_give_their_middle_square(tmp_path, height, width):
    pixels, side = noise(height, width), min(height, width)
    write(tmp_path / "a" / "1.png", pixels)
    top, left = (height - side) // 2, (width - side) // 2
    expected = pixels[top : top + side, left : left + side]
    assert np.array_equal(one(tmp_path / "a" / "1.png", size=side)[0].numpy(), expected)
    assert one(tmp_path / "a" / "1.png").shape == (1, 64, 64)  # no square of at most 64: 64


def test_a_large_jpeg_comes_out_as_when_decoded_whole(tmp_path):
    y, x = np.mgrid[:600, :800] / 100
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(3 * y)], axis=-1)
    write(tmp_path / "a" / "1.jpg", (127 + 100 * waves).astype(np.uint8), quality=95)
    whole = transforms.functional.pil_to_tensor(Image.open(tmp_path / "a" / "1.jpg"))
    shrink = [transforms.CenterCrop(600), transforms.Resize(64, antialias=True)]
    error = one(tmp_path / "a" / "1.jpg").int() - transforms.Compose(shrink)(whole).int()
    assert error.abs().float().mean() < 1 and error.abs().max() < 8


@pytest.mark.parametrize("coloured", [0, 1, 3, 40])
def test_grey_or_colour_is_decided_by_the_share_of_pictures_with_colour(tmp_path, load, coloured):
    grey, colour = np.repeat(noise(64, 64)[..., None], 3, 2), noise(64, 64, 3)
    dotted = grey.copy()
    dotted[3, 3] = (255, 0, 0)  # a pixel in one picture decides nothing
    for i in range(40):
        write(tmp_path / "set" / f"{i:02}.png", colour if i < coloured else [grey, dotted][i == 39])
    images, _ = loaded = load(tmp_path / "set", "all")
    assert images.shape[1] == (3 if coloured > 2 else 1)
    assert (f"({coloured} of 40 have colour)" in loaded.note) == (0 < coloured < 40)
    assert ("; grey" in loaded.note) == (coloured < 3)
    for part in [colour] * (coloured > 0) + [grey] * (coloured < 40):
        luma = np.asarray(Image.fromarray(part).convert("L"))[None]
        expected = luma if coloured < 3 else part.transpose(2, 0, 1)
        assert any(np.array_equal(image, expected) for image in images)


# ---- What is left out, and said ----------------------------------------------------------------


def test_broken_files_and_other_endings_are_left_out_and_said(tmp_path, load, capfd):
    folder = numbered(tmp_path / "set", 20)
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0007.png").write_bytes(b"")
    (folder / "0011.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    (folder / "0012.png").unlink()
    (folder / "0012.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "0020.png")
    for name in ("1.heic", "2.HEIC", "list.txt", "README", ".DS_Store", "._0001.png"):
        (folder / name).write_text("no matter")
    write(folder / "3.jfif", flat(9), format="JPEG")
    images, _ = loaded = load(folder, "all")
    assert sorted(values(images)) == sorted([*({*range(20)} - {3, 7, 11, 12}), 9])
    for words in ("3 unreadable", "0007.png: no image", "0011.png: no image", "2 .heic", "1 .txt",
                  "1 no ending", "2 no regular file"):  # fmt: skip
        assert words in loaded.note, words
    assert "\n" not in loaded.note and load(folder, "all").note == loaded.note  # from the cache
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [MemoryError, RecursionError("deep"), SystemError("x"), KeyError])
def test_no_error_of_a_decoder_ends_the_folder(tmp_path, load, monkeypatch, error):
    exact = data.open_image

    def fails(file, *rest):
        if file.getvalue() == b"odd":
            raise error
        return exact(file, *rest)

    monkeypatch.setattr(data, "open_image", fails)
    folder = numbered(tmp_path / "set", 4)
    (folder / "odd.png").write_bytes(b"odd")
    loaded = load(folder, "all")
    assert len(loaded[0]) == 4 and "1 unreadable (odd.png: " in loaded.note


def test_control_characters_in_names_are_escaped(tmp_path, load):
    folder = numbered(tmp_path / "set", 3)
    (folder / "a\x1b[2J\nb\udc80.png").write_bytes(b"no image")
    for text in (load(folder).note, str(data.InputError("a\x1b[2J\nb\udc80.png"))):
        assert "a\\x1b[2J\\nb\\udc80.png" in text and text.isprintable()


def test_pictures_of_too_many_pixels_are_left_out(tmp_path, load, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    for name, side in (("a.png", 30), ("b.png", 40), ("c.png", 50)):  # above, and above twice
        write(tmp_path / "set" / name, noise(side, side))
    loaded = load(tmp_path / "set", "all")
    assert len(loaded[0]) == 1 and "2 unreadable (b.png: more than 900 pixels; c.png" in loaded.note


def test_many_files_are_decoded_by_several_processes_in_order(tmp_path, load):
    folder = tmp_path / "set"
    for i in range(300):
        write(folder / f"{i:04d}.png", flat((i % 256, i // 256, 7), 4, 4))
    (folder / "0100.png").write_bytes(b"broken")
    parts = [load(folder, split)[0].int() for split in ("train", "test")]
    train, test = ((x[:, 0, 0, 0] + 256 * x[:, 1, 0, 0]).tolist() for x in parts)
    assert train == sorted(train) and test == sorted(test)
    assert sorted(train + test) == sorted({*range(300)} - {100})


def test_a_killed_decoder_is_an_input_error(tmp_path, load, monkeypatch):
    kill = os.kill
    here = os.getpid()
    monkeypatch.setattr(data, "open_image", lambda *_: os.getpid() != here and kill(os.getpid(), 9))
    with pytest.raises(data.InputError, match="killed.*memory"):
        load(numbered(tmp_path / "set", 3), size=8)


def test_what_was_taken_is_said_in_one_line(tmp_path, load, monkeypatch):
    for name, count in (("10", 12), ("9", 28)):
        numbered(tmp_path / "home" / "set" / name, count)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    loaded = load("~/set")
    nines, tens = loaded[1].bincount().tolist()
    assert loaded.note == (
        f"{tmp_path}/home/set: 36 training and 4 test images (one in ten is held out, as there is "
        f"no test folder); 2 classes: 9 ({nines}), 10 ({tens}); grey; 8 x 8 pixels")  # fmt: skip
    for i in range(30):
        numbered(tmp_path / "many" / f"c{i}", 2)
    assert re.search(r"30 classes: c0 .*, c9 \([12]\), \.\.\.; ", load(tmp_path / "many").note)


# ---- Training sets, and what changes until a run is resumed ------------------------------------


def taken(tmp_path, capsys, dataset, **more):
    """The args that training_set fills in, and the lines it prints."""
    args = {"dataset": str(dataset), "data_dir": str(tmp_path / "data"), "size": None}
    args = Namespace(**args | {"resume": None, "batch_size": None} | more)
    capsys.readouterr()
    data.training_set(args, batch_size=100)
    return args, capsys.readouterr().out.splitlines()


def test_training_set_fills_in_args_and_says_what_was_taken(tmp_path, capsys, load, monkeypatch):
    for name in ("b", "a"):
        numbered(tmp_path / "set" / name, 20)
    args, lines = taken(tmp_path, capsys, tmp_path / "set")
    assert lines[0] == load(tmp_path / "set").note and "36 images are very few" in lines[1]
    assert (args.channels, args.size, args.class_names) == (1, 8, ["a", "b"])
    assert args.train_images == 36 and args.batch_size == 9  # a quarter of 36
    assert taken(tmp_path, capsys, tmp_path / "set", batch_size=5)[0].batch_size == 5
    assert taken(tmp_path, capsys, numbered(tmp_path / "few", 3))[0].batch_size == 2
    made = torch.zeros(500, 3, 16, 16, dtype=torch.uint8), torch.arange(500) % 3
    monkeypatch.setattr(data, "load", lambda *args, **options: made)  # a tool's, a plain tuple
    args, lines = taken(tmp_path, capsys, "any")
    assert args.class_names == ["0", "1", "2"] and args.digest == "" and args.batch_size == 100


def test_a_resumed_run_notices_other_images(tmp_path, capsys):
    folder = numbered(tmp_path / "set", 40)
    resumed = vars(taken(tmp_path, capsys, folder)[0]) | {"resume": "run"}

    def said(**more):
        _, lines = taken(tmp_path, capsys, **resumed | {"dataset": folder} | more)
        return " ".join(line for line in lines if "note" in line)

    assert said() == ""
    folder = folder.rename(tmp_path / "moved")
    os.utime(folder / "0001.png")  # its bytes are the same
    assert said() == ""
    write(folder / "0001.png", np.full((8, 8), 99, dtype=np.uint8))  # of as many bytes
    assert "1 are new, 1 gone" in said()
    numbered(folder, 2, first=41)
    numbered(folder, 1, first=1)
    assert re.search("36 training images then, 38 now; 2 are new, 0 gone", said())
    (folder / "0041.png").rename(folder / "9.png")
    assert "has changed" in said() and "held out" not in said()
    shutil.rmtree(folder)
    numbered(folder / "train", 40)  # the same pictures, with the held-out ones in training
    numbered(folder / "test", 3, first=100)
    assert "3 are new, 0 gone" in said() and "4 that were held out are now trained on" in said()
    assert re.search("36 training images then, 40 now$", said(digest="0" * 16))  # not listed there
    for wrong in ({"channels": 3}, {"class_names": ["a", "b"]}):
        with pytest.raises(data.InputError, match="run was trained on.*--dataset"):
            said(**wrong)


# ---- The cache ---------------------------------------------------------------------------------


def caches(tmp_path):
    return sorted((tmp_path / "data").iterdir())


def test_the_cache_is_one_file_in_data_dir(tmp_path, load, monkeypatch):
    folder = numbered(tmp_path / "set", 20)
    before = sorted(folder.iterdir())
    first = load(folder)
    (place,) = caches(tmp_path)
    assert sorted(folder.iterdir()) == before and sorted(os.listdir(tmp_path)) == ["data", "set"]
    content = place.read_bytes()
    monkeypatch.setattr(data, "open_image", None)  # would fail when called
    again = load(folder, size=8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert vars(first) == vars(again)
    again[0].zero_()  # a mapped tensor may be written to without harm to the file
    assert place.read_bytes() == content


def test_the_cache_follows_the_folder_and_the_size(tmp_path, load):
    folder = numbered(tmp_path / "set", 10)
    load(folder)
    numbered(folder, 1, first=10)
    assert len(load(folder, "all")[0]) == 11
    (folder / "0000.png").unlink()
    assert sorted(values(load(folder, "all")[0])) == list(range(1, 11))
    before = (folder / "0005.png").stat()
    write(folder / "0005.png", np.full((8, 8), 77, dtype=np.uint8))
    os.utime(folder / "0005.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p does
    assert 77 in values(load(folder, "all")[0])
    assert len(caches(tmp_path)) == 1  # that of another state is replaced
    assert load(folder, size=16)[0].shape[-1] == 16 and len(caches(tmp_path)) == 2
    other = numbered(tmp_path / "below" / "set", 10, first=50)  # of the same name
    assert min(values(load(other, "all")[0])) == 50 and len(caches(tmp_path)) == 3


def test_a_damaged_cache_is_made_again(tmp_path, load):
    folder = numbered(tmp_path / "set", 20)
    first = load(folder)[0].clone()
    (place,) = caches(tmp_path)
    content = place.read_bytes()
    pixels = content.index(bytes([17]) * 64)  # of one of the images
    flipped = content[:pixels] + b"\0" + content[pixels + 1 :]
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], flipped):
        place.unlink()  # the mapping of an earlier load stays on the old file
        place.write_bytes(damaged)
        assert torch.equal(load(folder)[0], first)
        assert place.read_bytes() == content


def test_a_data_dir_that_cannot_be_written_is_no_error(tmp_path, capsys):
    folder = numbered(tmp_path / "set", 20)
    (tmp_path / "file").touch()
    assert len(data.load(folder, tmp_path / "file" / "data")[0]) == 18
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "set"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "file").write_bytes(b"a whole file")
    with pytest.raises(KeyboardInterrupt), data.whole_file(tmp_path / "file") as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"a whole file"
    with data.whole_file(tmp_path / "new" / "file") as file:
        file.write(b"another")
    assert os.listdir(tmp_path / "new") == ["file"] and len(os.listdir(tmp_path)) == 2


# ---- Errors and messages -----------------------------------------------------------------------


class Backend(RuntimeError):
    """As what torch.compile raises."""

    __module__ = "torch._inductor.exc"


ERRORS = {
    r"no such\\nthing": data.InputError("no such\nthing"),
    "not finite": FloatingPointError("a loss is not finite"),
    "No space left": OSError(28, "No space left on device"),
    "memory is full.*--batch-size": MemoryError(),
    "memory is full": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"),
    "--compile.*compiler": Backend("InvalidCxxCompiler: No working C++ compiler found\nmore"),
}


@pytest.mark.parametrize("words", ERRORS)
def test_an_error_the_user_can_fix_is_one_line_and_status_2(capsys, words):
    with pytest.raises(SystemExit) as ended, data.plain_errors("gran.py"):
        raise ERRORS[words]
    told = capsys.readouterr().err
    assert ended.value.code == 2 and re.fullmatch(f"gran.py: error: .*{words}.*\n", told)


def test_memory_that_torch_cannot_have_a_bug_and_ctrl_c(capsys):
    with pytest.raises(SystemExit) as ended, data.plain_errors("x"):
        torch.empty(10**15)
    assert ended.value.code == 2 and "memory is full" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError), data.plain_errors("x"):
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as ended, data.plain_errors("x"):
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.parametrize("text", ["print('\\xe9 \\u2192')", "raise data.InputError('caf\\xe9')"])
def test_an_ascii_console_is_enough(text):
    code = f"import data\nwith data.plain_errors('x'):\n    {text}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, env=environment,
                          capture_output=True)
    assert done.stdout + done.stderr in (b"? ?\n", b"x: error: caf?\n")


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_a_full_or_closed_stdout_does_not_end_a_program(stdout):
    code = "import data, sys; data.say('x'); data.say('y'); print('still here', file=sys.stderr)"
    command = ["sh", "-c", f'"{sys.executable}" -c "{code}" {stdout}']
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "still here\n")


# ---- The drawn sets ----------------------------------------------------------------------------


def test_drawn_sets_are_drawn_once_for_each_size_split_and_version(tmp_path, monkeypatch):
    calls = []

    def draw(n, seed, size=28):
        calls.append((n, seed, size))
        return torch.full((n, 1, size, size), seed, dtype=torch.uint8), torch.arange(n) % 10

    monkeypatch.setattr(data, "draw_digits", draw)
    for _ in range(2):
        images, labels = loaded = data.load("digits", tmp_path / "data", "test")
        assert images.shape == (10_000, 1, 28, 28) and labels[:3].tolist() == [0, 1, 2]
    assert calls == [(10_000, 1, 28)] and loaded.classes == [str(i) for i in range(10)]
    assert loaded.note.startswith("digits: 60,000 training and 10,000 test images; 10 classes: 0 ")
    monkeypatch.setattr(data, "DRAWN_VERSION", data.DRAWN_VERSION + 1)
    data.load("digits", tmp_path / "data", "test")
    data.load("digits", tmp_path / "data", "test", size=8)
    train, labels = data.load("digits", tmp_path / "data", "train", size=8, classes=["7"])
    assert calls[1:] == [(10_000, 1, 28), (10_000, 1, 8), (60_000, 0, 8)]
    assert train.shape == (6_000, 1, 8, 8) and not labels.any() and len(caches(tmp_path)) == 3


@pytest.mark.parametrize("draw, size", [(data.draw_digits, 28), (data.draw_faces, 32)])
def test_drawing_depends_on_the_seed_alone(draw, size):
    n = 700 if size == 28 else 100  # several chunks, and labels that come again in a chunk
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        images, labels = draw(n, 5, size)
        torch.set_num_threads(3)
        again, same_labels = draw(n, 5, size)
    finally:
        torch.set_num_threads(threads)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    for fewer in (0, 1, n // 3, n - 1):  # image i is the same for any n
        parts = zip(draw(fewer, 5, size), (images, labels))
        assert all(torch.equal(a, b[:fewer]) for a, b in parts)
    assert (images != draw(n, 6, size)[0]).flatten(1).any(1).all()
    assert len(images.flatten(1).unique(dim=0)) == n
    means = draw(n, 5, 2 * size)[0].float().unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    assert (images.float() - means).abs().mean() < 2  # at twice the size, the same picture


@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX2", "AVX512"])
def test_drawn_bytes_are_the_same_on_every_machine(instructions):
    """Sums recorded once, whatever instructions MKL is told to use (SSE4_2: as on AMD)."""
    code = """
import hashlib, torch, data
torch.set_flush_denormal(True)
for draw, n in ((data.draw_digits, 300), (data.draw_faces, 96)):
    print(hashlib.sha256(draw(n, 0)[0].numpy().tobytes()).hexdigest()[:16])
"""
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    sums = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert data.DRAWN_VERSION == 3
    assert sums.decode().split() == ["16f1e76877189567", "a32592452b775ff8"]


def test_face_attributes_tell_the_48_labels_apart():
    found = data.face_attributes(data.draw_faces(48, 0)[1])
    assert list(found) == ["smile", "glasses", "hair", "skin"]
    every = itertools.product(range(2), range(2), range(4), range(3))
    assert torch.stack([*found.values()], 1).tolist() == [list(row) for row in every]
