"""The loader: splits, classes, pixels, the cache and what it says, on made-up files; the batches.

Expected values come from the bytes that a test wrote, from Pillow, torch or torchvision used
directly, or from a formula.
"""

import itertools
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
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


def write(path, pixels, mode=None, **options):
    """Saves an array (H, W) or (H, W, 3), or a Pillow image, under a path whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)


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


# ---- batches -----------------------------------------------------------------------------------


def test_batches_are_a_permutation_each_epoch_and_drop_the_rest():
    images = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1).expand(23, 1, 2, 2)
    stream = data.batches(images, 5, "cpu", seed=3, labels=torch.arange(23) * 10)
    epochs = []
    for _ in range(3):
        seen = []
        for _ in range(4):  # 23 // 5
            x, y = next(stream)
            assert x.shape == (5, 1, 2, 2) and x.dtype == torch.float32
            assert torch.equal((x[:, 0, 0, 0] * 255).round().long() * 10, y)
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


def test_batches_scale_as_torchvision_does():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = next(data.batches(torch.from_numpy(pixels)[None, None], 1, "cpu", seed=0))
    assert torch.equal(x[0], transforms.ToTensor()(Image.fromarray(pixels)))


@pytest.mark.parametrize("batch_size", [0, 5])
def test_batches_of_a_size_that_does_not_fit_are_refused_at_the_call(batch_size):
    with pytest.raises(data.InputError, match="batch size"):
        data.batches(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), batch_size, "cpu", seed=0)


def test_bf16_is_asked_of_the_processor():
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert data.has_bf16("cpu") == fast
    if not torch.cuda.is_available():
        assert not data.has_bf16("cuda")


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
    images, labels = loaded = data.load(dataset, tmp_path, "all")
    assert np.array_equal(images[:, 0], np.concatenate([made["train"][0], made["t10k"][0]]))
    assert len(labels) == 42 and len(loaded.classes) == 10 and loaded.held_out == 10_000


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


def test_size_resizes_as_pillow_does(tmp_path):
    pixels = make_mnist(tmp_path)["train"][0]
    for size in (14, 32):
        images, _ = data.load("mnist", tmp_path, size=size)
        expected = Image.fromarray(pixels[5]).resize((size, size), Image.Resampling.BICUBIC)
        assert images.shape == (30, 1, size, size)
        error = np.abs(images[5, 0].numpy().astype(int) - np.asarray(expected))
        assert error.mean() < 0.5  # Pillow rounds and clips between its two passes, torch after both


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
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
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
    assert "\n" not in str(caught.value)


CUT = struct.pack(">4I", 2051, 30, 28, 28) + b"cut"  # a right header, and three pixels


@pytest.mark.parametrize("content", [b"", b"no idx file at all", CUT])
def test_cut_or_foreign_files_are_an_input_error(tmp_path, content):
    make_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(data.InputError, match="mnist cannot be read.*MNIST/raw"):
        data.load("mnist", tmp_path)


def test_labels_that_do_not_match_the_images_are_an_input_error(tmp_path):
    make_mnist(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw", "train-labels-idx1-ubyte", np.zeros(7, dtype=np.uint8))
    with pytest.raises(data.InputError, match="30 images but 7 labels"):
        data.load("mnist", tmp_path)


def test_unknown_names_splits_and_sizes_are_input_errors(tmp_path):
    with pytest.raises(data.InputError, match="'mnits' is no folder.*fashion-mnist"):
        data.load("mnits", tmp_path)
    with pytest.raises(data.InputError, match="~nobody-at-all"):
        data.load("~nobody-at-all/x", tmp_path)
    for wrong in ({"split": "valid"}, {"size": 0}, {"size": -3}):
        with pytest.raises(data.InputError, match="split .*size"):
            data.load("mnist", tmp_path, **wrong)
    with pytest.raises(data.InputError, match="faces are drawn at 32 or 64"):
        data.load("faces", tmp_path, size=48)
    for name, place in (("lsun-rooms", "lsun-rooms"), ("celeba", "img_align"), ("imagenet", "im")):
        with pytest.raises(data.InputError, match=f"{place}.*--dataset digits"):
            data.load(name, tmp_path)


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
    with pytest.raises(data.InputError, match="0"):
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
           "trainA testA trainB testB", "train/a training/a test/a", "a/train a/test b/train b/test",
           "images/test images/train labels", "set/train/a set/test/a", "cats_train cats_val",
           "test images/a"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_looks_like_another_split_is_an_input_error(tmp_path, load, layout):
    for place in layout.split():
        numbered(tmp_path / "set" / place, 3)
    with pytest.raises(data.InputError, match="split.*--dataset") as caught:
        load(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_class_that_only_the_test_split_has_is_left_out_and_said(tmp_path, load):
    for place, value in (("train/cat", 1), ("train/owl", 2), ("val/dog", 3), ("val/owl", 4)):
        numbered(tmp_path / "set" / place, 1, first=value)
    images, labels = loaded = load(tmp_path / "set", "all")
    assert loaded.classes == ["cat", "owl"] and loaded.held_out == 1
    assert dict(zip(values(images), labels.tolist())) == {1: 0, 2: 1, 4: 1}
    assert "left out: 1 images in val/dog" in loaded.note
    numbered(tmp_path / "other" / "train" / "cat", 3)
    for name in ("x", "y"):
        numbered(tmp_path / "other" / "test" / name, 3)
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
    (tmp_path / "set" / "train").rename(tmp_path / "moved")
    for name in ("cat", "dog"):  # the same with the classes beside the test folder
        (tmp_path / "moved" / name).rename(tmp_path / "set" / name)
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


def test_images_beside_class_folders_are_left_out_and_said(tmp_path, load):
    for place, first in ((".", 0), ("b/deep/deeper", 1), ("a", 2), (".hidden", 9), ("__MACOSX", 9)):
        numbered(tmp_path / "set" / place, 1, first=first)
    images, labels = loaded = load(tmp_path / "set", "all")
    assert dict(zip(values(images), labels.tolist())) == {2: 0, 1: 1}
    assert loaded.classes == ["a", "b"] and "left out: 1 images in ." in loaded.note
    shutil.rmtree(tmp_path / "set" / "b")  # one folder and images beside it: no classes
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
    with pytest.raises(data.InputError, match="empty holds no image"):
        load(tmp_path / "empty")
    numbered(tmp_path / "set" / "cat", 2)
    (tmp_path / "set" / "dog").mkdir()
    with pytest.raises(data.InputError, match="dog holds no image"):
        load(tmp_path / "set")
    numbered(tmp_path / "one", 1)
    assert len(load(tmp_path / "one")[0]) == 1
    with pytest.raises(data.InputError, match="no image for the test split"):
        load(tmp_path / "one", "test")


def test_links_are_followed_but_not_back_up(tmp_path, load):
    for name in "ab":
        numbered(tmp_path / "set" / name, 4)
    (tmp_path / "set/a/up").symlink_to("..")
    numbered(tmp_path / "elsewhere", 3, first=10)
    (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere")
    loaded = load(tmp_path / "set", "all")
    assert loaded.classes == ["a", "b", "c"] and loaded[1].bincount().tolist() == [4, 4, 3]


@pytest.mark.parametrize("place", ["list_eval_partition.txt", "list_eval_partition.csv",
                                   "Eval/list_eval_partition.txt"])  # fmt: skip
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
    assert len(data.load("celeba", tmp_path, "test")[0]) == 2  # 3 and 5; 2 is in the validation part
    as_folder = data.load(folder, tmp_path)[0]
    assert (as_folder[0, 2, 0] > 200).all()  # a mere folder: the middle square, with blue


def test_lsun_imagenet_and_telugu_layouts(tmp_path):
    for split, green in (("train", 20), ("val", 90), ("test", 160)):
        for name in ("n01", "n02"):
            write(tmp_path / "imagenet" / split / name / "1.JPEG", flat((10, green, 200), 80, 100))
    images, labels = data.load("imagenet", tmp_path, "test")  # val, whose labels are known
    assert images.shape == (2, 3, 64, 64) and labels.tolist() == [0, 1]
    assert (images[:, 1].int() - 90).abs().max() <= 2
    for i in range(20):
        write(tmp_path / "telugu" / f"{i % 2:03d}" / f"{i:04d}.png", noise(32, 32, seed=i) > 128)
        place = ("kitchen", "living_room")[i % 2] + f"/{i % 3}/{i}.webp"
        write(tmp_path / "lsun-rooms" / place, flat((i, 0, 99), 70, 90))
    images, labels = data.load("telugu", tmp_path)
    assert images.shape == (18, 1, 32, 32) and set(images.unique().tolist()) == {0, 255}
    images, labels = loaded = data.load("lsun-rooms", tmp_path, "all")
    assert images.shape == (20, 3, 64, 64) and labels.bincount().tolist() == [10, 10]
    assert loaded.classes == ["kitchen", "living_room"]


# ---- Pixels ------------------------------------------------------------------------------------


def one(path, **options):
    """The one image of a folder with one file, (C, H, W)."""
    images, _ = data.load(path.parent, path.parent.parent / "data", "all", **options)
    assert len(images) == 1
    return images[0]


def tiff(pixels, bits, sign=1, photometric=1, order="<", more=()):
    """The bytes of an uncompressed TIFF; more: rows (tag, type, count, value of 4 bytes)."""
    content, (height, width) = pixels.tobytes(), pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    rows = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8),
            (277, samples), (278, height), (279, len(content)), (339, sign)]  # fmt: skip
    cells = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in rows]
    cells = sorted(cells + [struct.pack(f"{order}HHI4s", *row) for row in more],
                   key=lambda cell: struct.unpack(f"{order}H", cell[:2]))  # fmt: skip
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(cells)) + b"".join(cells) + b"\0" * 4


LEVELS = np.arange(4).repeat(4).reshape(4, 4)  # thirds of white
DEPTHS = {  # name: (bytes of a TIFF with levels 0, 1/3, 2/3, 1 of white, whether they are inverted)
    "8": (tiff((LEVELS * 85).astype("u1"), 8), 0),
    "8 inverted": (tiff((LEVELS * 85).astype("u1"), 8, photometric=0), 1),
    "16": (tiff((LEVELS * 21845).astype("<u2"), 16), 0),
    "16 big-endian": (tiff((LEVELS * 21845).astype(">u2"), 16, order=">"), 0),
    "16 inverted": (tiff((LEVELS * 21845).astype("<u2"), 16, photometric=0), 1),
    "16 signed": (tiff((LEVELS * 10922.34).round().astype("<i2"), 16, sign=2), 0),
    "8 signed": (tiff((LEVELS * 42.34).round().astype("i1"), 8, sign=2), 0),
    "32 with 8 bits": (tiff((LEVELS * 85).astype("<i4"), 32, sign=2), 0),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_grey_levels_are_read_as_the_tiff_states(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.tif").write_bytes(DEPTHS[name][0])
    expected = 255 - LEVELS * 85 if DEPTHS[name][1] else LEVELS * 85
    found = one(tmp_path / "set" / "1.tif", size=4)[0].numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1, found


def test_twelve_bits_and_sixteen_bits(tmp_path):
    rows = np.array([0xFF, 0xFF, 0xFF, 0x7F, 0xF0, 0x00], dtype=np.uint8)  # 4095, 4095, 2047, 0
    content = tiff(rows.reshape(1, 6).repeat(4, 0), 12).replace(
        struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4))  # fmt: skip
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.tif").write_bytes(content)
    assert one(tmp_path / "set" / "1.tif", size=4)[0, 0].tolist() == [255, 255, 127, 0]
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a/1.png", "b/1.tif", "c/1.pgm"):
        write(tmp_path / name, deep)
        expected = np.round(deep / 257).astype(np.uint8)
        assert np.array_equal(one(tmp_path / name)[0].numpy(), expected), name


UNKNOWN = {
    "32 bits": tiff((LEVELS * 1000).astype("<i4"), 32, sign=2),
    "negative": tiff((LEVELS - 2).astype("<i2"), 16, sign=2),
    "float": tiff(LEVELS.astype("<f4"), 32, sign=3),
    "subsampled": tiff(noise(4, 4, 3), 8, photometric=6),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_pixels_whose_white_is_unknown_are_left_out_with_the_reason(tmp_path, load, name):
    folder = numbered(tmp_path / "set", 10)
    content = UNKNOWN[name]
    if name == "subsampled":
        content = tiff(noise(4, 4, 3), 8, photometric=6).replace(
            struct.pack("<HHII", 258, 4, 1, 8), struct.pack("<HHIHH", 258, 3, 1, 8, 0))  # fmt: skip
    (folder / "odd.tif").write_bytes(content)
    loaded = load(folder, "all")
    assert len(loaded[0]) == 10 and "left out: 1 unreadable (odd.tif: " in loaded.note
    reason = {"float": "floating", "subsampled": "", "negative": "below 0"}.get(name, "32-bit")
    assert reason in loaded.note


def test_colour_modes_come_out_as_their_colours(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 10, 20, 30])
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pictures = {
        "p/1.png": (palette, [10, 20, 30]), "c/1.tif": (cmyk, [255, 0, 0]),
        "j/1.jpg": (cmyk, [254, 0, 0]), "y/1.tif": (Image.new("YCbCr", (8, 8), (76, 85, 255)), None),
        "b/1.tif": (Image.new("1", (8, 8), 1), [255]), "l/1.tif": (Image.new("LAB", (8, 8), (255, 128, 128)), None),
    }  # fmt: skip
    for name, (picture, colour) in pictures.items():
        write(tmp_path / name, picture)
        found = one(tmp_path / name)[:, 5, 5].tolist()
        expected = colour or {"y": [254, 0, 0], "l": [255]}[name[0]]
        assert len(found) == len(expected)
        assert max(abs(a - b) for a, b in zip(found, expected)) <= 2, (name, found)
    deep = np.zeros((8, 8, 3), dtype=">u2")
    deep[..., 1] = 65535
    import zlib

    raw = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert one(tmp_path / "d" / "1.png")[:, 5, 5].tolist() == [0, 255, 0]


def test_transparency_is_put_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.arange(8) * 36
    write(tmp_path / "a" / "1.png", pixels)
    opacity = pixels[0, :, 3] / 255
    clear = 255 * (1 - opacity)
    expected = np.stack([200 * opacity + clear, clear, clear])
    assert np.abs(one(tmp_path / "a" / "1.png")[:, 4].numpy() - expected).max() <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((3, 3), 0)
    write(tmp_path / "p" / "1.png", palette, transparency=0)
    image = one(tmp_path / "p" / "1.png")
    assert image[:, 3, 3].tolist() == [255, 255, 255] and image[:, 0, 0].tolist() == [0, 0, 255]


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    (tmp_path / "g").mkdir()
    frames[0].save(tmp_path / "g" / "1.gif", save_all=True, append_images=frames[1:])
    assert one(tmp_path / "g" / "1.gif")[:, 5, 5].tolist() == [0, 0, 255]


def exif_of(*rows):
    """EXIF data whose IFD0 has the rows (tag, type, count, 4 bytes), and no room for longer values."""
    cells = b"".join(struct.pack("<HHI4s", *row) for row in sorted(rows))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(rows)) + cells + b"\0" * 4


TURNED = (0x0112, 3, 1, b"\6\0\0\0")  # the camera was turned: rotate by 90 degrees to view
ODD = {
    "alone": [TURNED], "long": [(0x0112, 4, 1, b"\6\0\0\0")], "software": [TURNED, (0x0131, 5, 1, b"\1\0\0\0")],
    "gps": [TURNED, (0x8825, 2, 4, b"abc\0")], "pointer": [TURNED, (0x8769, 4, 1, b"\xff\xff\xff\x7f")],
    "resolution": [TURNED, (0x011A, 10, 1, b"\x08\0\0\0")], "type": [TURNED, (0x010F, 99, 1, b"\0\0\0\0")],
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photographs_are_turned_upright_whatever_other_tags_hold(tmp_path, kind, ending):
    pixels = np.kron(noise(3, 3, seed=3), np.ones((8, 8), dtype=np.uint8))
    path = tmp_path / "a" / f"1.{ending}"
    if ending == "tif":
        path.parent.mkdir()
        path.write_bytes(tiff(pixels, 8, more=ODD[kind]))
    else:
        lossless = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
        write(path, pixels, exif=exif_of(*ODD[kind]), **lossless)
    error = np.abs(one(path)[0].numpy().astype(int) - np.rot90(pixels, -1))
    assert error.max() <= (3 if ending == "jpg" else 0)


def test_every_orientation_is_undone_and_no_other_metadata_turns_a_picture(tmp_path):
    pixels = noise(8, 8)
    for turn in range(10):
        path = tmp_path / str(turn) / "1.png"
        write(path, pixels, exif=exif_of((0x0112, 3, 1, bytes([turn, 0, 0, 0]))))
        flips = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose, 6: lambda x: np.rot90(x, -1),
                 7: lambda x: np.rot90(x, 2).T, 8: np.rot90}  # fmt: skip
        assert np.array_equal(one(path)[0].numpy(), flips.get(turn, np.array)(pixels)), turn
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
    expected = transforms.Compose(shrink)(whole).int()
    error = (one(tmp_path / "a" / "1.jpg").int() - expected).abs().float()
    assert error.mean() < 1 and error.max() < 8


@pytest.mark.parametrize("coloured, total", [(0, 40), (1, 40), (3, 40), (40, 40)])
def test_grey_or_colour_is_decided_by_the_share_of_pictures_with_colour(tmp_path, load, coloured, total):
    grey, colour = noise(8, 8), noise(8, 8, 3)
    for i in range(total):
        write(tmp_path / "set" / f"{i:02}.png", colour if i < coloured else grey, mode="RGB")
    images, _ = loaded = load(tmp_path / "set", "all")
    assert images.shape[1] == (3 if coloured / total > 0.05 else 1)
    said = f"({coloured} of {total} have colour)"
    assert (said in loaded.note) == (0 < coloured < total)
    assert ("; grey" in loaded.note) == (images.shape[1] == 1)
    if coloured < total:
        assert any(np.array_equal(image, np.broadcast_to(grey, image.shape)) for image in images)
    if coloured == 1:
        luma = np.asarray(Image.fromarray(colour).convert("L"))
        assert any(np.array_equal(image[0], luma) for image in images)


def test_a_pixel_or_jpegs_noise_is_no_colour(tmp_path, load):
    grey = np.repeat(noise(64, 64)[..., None], 3, 2)
    dotted = grey.copy()
    dotted[3, 3] = (255, 0, 0)
    write(tmp_path / "set" / "1.png", dotted)
    write(tmp_path / "set" / "2.jpg", grey, quality=30)
    loaded = load(tmp_path / "set", "all")
    assert loaded[0].shape == (2, 1, 64, 64) and "; grey;" in loaded.note


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
    write(folder / "3.jfif", flat(9, 8, 8), format="JPEG")
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


def test_a_folder_or_class_of_broken_files_is_an_input_error(tmp_path, load):
    for i in range(3):
        numbered(tmp_path / "set" / "a", 3)
        (tmp_path / "set" / "b").mkdir(exist_ok=True)
        (tmp_path / "set" / "b" / f"{i}.jpg").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(data.InputError, match=r"class without readable images.*\d.jpg"):
        load(tmp_path / "set")
    with pytest.raises(data.InputError, match=r"class without readable images.*\d.jpg: no image"):
        load(tmp_path / "set" / "b")


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
    here = os.getpid()
    monkeypatch.setattr(data, "open_image", lambda *args: os.getpid() != here and os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(data.InputError, match="killed.*memory"):
        load(numbered(tmp_path / "set", 3), size=8)


def test_decoding_says_how_far_it_is(tmp_path, load, monkeypatch, capsys):
    clock = itertools.count(100, 4)  # four seconds pass at each look
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    load(numbered(tmp_path / "set", 10))
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith(f"decoding {tmp_path / 'set'}: ") for line in lines)
    assert lines[0].endswith(" of 10")


def test_what_was_taken_is_said_in_one_line(tmp_path, load, monkeypatch):
    for name, count in (("10", 12), ("9", 28)):
        numbered(tmp_path / "home" / "set" / name, count)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    note = load("~/set").note
    assert note == (f"{tmp_path}/home/set: 36 training and 4 test images (one in ten is held out, as there is no test "
                    f"folder); 2 classes: 9 {load('~/set')[1].bincount()[0]}, 10 {load('~/set')[1].bincount()[1]}; grey; 8 x 8 pixels")
    assert data.path("~/x") == str(tmp_path / "home" / "x")
    for i in range(30):
        numbered(tmp_path / "many" / f"c{i}", 2)
    assert ", ..." in load(tmp_path / "many").note and "30 classes: c0 " in load(tmp_path / "many").note
