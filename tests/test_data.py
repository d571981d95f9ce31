"""The loader: torchvision's sets, folders of images, the cache and the batches, on made-up files. About 15 seconds.

Expected pixels come from the bytes that a test wrote, from Pillow or torchvision used directly, or from a formula.
"""

import builtins
import errno
import itertools
import math
import os
import pickle
import struct
import subprocess
import sys
import warnings
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


# batches


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
    other = next(data.batches(images, 5, "cpu", seed=1))
    assert not torch.equal(other, unbroken[0])


def test_batches_scale_as_torchvision_does():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = next(data.batches(torch.from_numpy(pixels)[None, None], 1, "cpu", seed=0))
    assert torch.equal(x[0], transforms.ToTensor()(Image.fromarray(pixels)))


@pytest.mark.parametrize("batch_size", [0, 5])
def test_batches_of_a_size_that_does_not_fit_are_refused_at_the_call(batch_size):
    with pytest.raises(data.InputError, match="batch size"):
        data.batches(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), batch_size, "cpu", seed=0)


def test_import_is_cheap():
    code = "import sys, data; print([m for m in ('torchvision', 'PIL', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bf16_is_asked_of_the_processor():
    assert data.has_bf16("cpu") == (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if not torch.cuda.is_available():
        assert not data.has_bf16("cuda")


# torchvision's data sets, made up in small


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
        assert np.array_equal(images[:, 0].numpy(), made[name][0]) and labels.tolist() == made[name][1].tolist()
    images, labels = data.load(dataset, tmp_path, "all")
    assert np.array_equal(images[:, 0].numpy(), np.concatenate([made["train"][0], made["t10k"][0]]))
    assert len(labels) == 42


def test_classes_by_number_and_name_keep_the_order_given(tmp_path):
    made = make_mnist(tmp_path, "FashionMNIST")["train"]
    images, labels = data.load("fashion-mnist", tmp_path, classes=[7, "Trouser", "3"])
    order = {7: 0, 1: 1, 3: 2}  # Fashion-MNIST's trousers are class 1
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
        expected = np.asarray(Image.fromarray(pixels[5]).resize((size, size), Image.Resampling.BICUBIC))
        assert images.shape == (30, 1, size, size)
        error = np.abs(images[5, 0].numpy().astype(int) - expected)
        assert error.mean() < 0.5  # Pillow rounds and clips between its two passes, torch after both


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    parts = {split: [url, name, None] for split, (url, name, _) in torchvision.datasets.SVHN.split_list.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", parts)  # made-up files have no right md5 sum
    pixels = noise(32, 32, 3, 6)  # SVHN's own order: H, W, C, N; and the digit 0 has the label 10
    digits = np.array([[1], [10], [3], [9], [10], [2]], dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": digits})
    images, labels = data.load("svhn", tmp_path)
    assert images.is_contiguous() and np.array_equal(images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert labels.tolist() == [1, 0, 3, 9, 0, 2] and labels.dtype == torch.int64


def test_cifar10_from_its_own_files_or_folders(tmp_path, monkeypatch):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("airplane", "bird", "truck"):
            for i in range(count):
                write(tmp_path / "cifar10" / split / name / f"{i}.png", flat((i, 20, 30), 32, 32))
    images, labels = data.load("cifar10", tmp_path, "test")
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images[:, :, 9, 9].tolist() == [[0, 20, 30], [1, 20, 30]] * 3

    cls, own = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    own.mkdir()
    monkeypatch.setattr(cls, "train_list", [["data_batch_1", None], ["data_batch_2", None]])
    monkeypatch.setattr(cls, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    (own / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for i, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        (own / name).write_bytes(pickle.dumps({"data": noise(4, 3072, seed=i), "labels": [3, 1, 4, 1]}))
    images, labels = data.load("cifar10", tmp_path)
    expected = np.concatenate([noise(4, 3072, seed=0), noise(4, 3072, seed=1)]).reshape(8, 3, 32, 32)
    assert np.array_equal(images.numpy(), expected) and labels.tolist() == [3, 1, 4, 1] * 2


PLACES = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "cifar10": "cifar-10-python", "svhn": "_32x32.mat"}


@pytest.mark.parametrize("dataset, place", PLACES.items())
def test_a_download_that_fails_names_file_folder_and_way_out(tmp_path, monkeypatch, dataset, place):
    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torchvision.datasets.svhn, "download_url", no_network)
    with pytest.raises(data.InputError) as caught:
        data.load(dataset, tmp_path)
    text = str(caught.value)
    assert place in text and str(tmp_path) in text and "--dataset digits" in text and "not known" in text
    assert "\n" not in text


CUT = struct.pack(">4I", 2051, 30, 28, 28) + b"cut"  # a right header, and three pixels


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"no idx file at all", CUT])
def test_cut_or_foreign_files_are_an_input_error(tmp_path, content):
    make_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(data.InputError, match="sound copies"):
        data.load("mnist", tmp_path)


def test_labels_that_do_not_match_the_images_are_an_input_error(tmp_path):
    make_mnist(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw", "train-labels-idx1-ubyte", np.zeros(7, dtype=np.uint8))
    with pytest.raises(data.InputError, match="30 images but 7 labels"):
        data.load("mnist", tmp_path)


# Named folders, made up in small


def test_celeba_is_cut_to_the_middle_108_and_split_by_its_own_list(tmp_path):
    inside, folder = (200, 90, 40), tmp_path / "celeba" / "img_align_celeba"
    picture = flat((0, 0, 255), 218, 178)
    picture[55:163, 35:143] = inside  # rows (218 - 108) / 2 to 163, columns (178 - 108) / 2 to 143
    for i in range(1, 6):
        write(folder / f"{i:06d}.jpg", picture, quality=100, subsampling=0)
    codes = {1: 0, 2: 1, 3: 2, 4: 0, 5: 2}
    lines = "".join(f"{i:06d}.jpg {code}\n" for i, code in codes.items())
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(lines)
    images, labels = data.load("celeba", tmp_path)
    assert images.shape == (2, 3, 64, 64) and labels.tolist() == [0, 0]
    error = (images.int() - torch.tensor(inside).view(3, 1, 1)).abs()
    assert error[..., 2:-2, 2:-2].max() <= 4  # the border is within reach of JPEG's blocks and of the resampling
    assert error.float().mean() < 3
    assert len(data.load("celeba", tmp_path, "test")[0]) == 2  # 3 and 5; 2 is in the validation part
    assert (data.load(str(folder), tmp_path)[0][0, 2, 0] > 200).all()  # a mere folder: the middle square, with blue


def test_lsun_in_its_exported_folders(tmp_path):
    counts = {"church_outdoor_train": 4, "church_outdoor_val": 2, "kitchen_train": 3, "living_room_train": 2}
    for part, count in counts.items():
        for i in range(count):  # the export nests by the hash's letters
            write(tmp_path / "lsun" / part / "a" / str(i) / f"{i}.webp", flat((i * 40, 0, 99), 70, 90), lossless=True)
    images, labels = data.load("lsun-church", tmp_path)
    assert images.shape == (4, 3, 64, 64) and labels.tolist() == [0] * 4
    assert images[:, 0, 30, 30].tolist() == [0, 40, 80, 120]
    assert len(data.load("lsun-church", tmp_path, "test")[0]) == 2
    images, labels = data.load("lsun-rooms", tmp_path, "all")  # no val: one in ten of five, at least one
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1]
    assert len(data.load("lsun-rooms", tmp_path, "test")[0]) == 1


def test_lsun_rooms_without_kitchens_and_other_missing_folders_name_the_place(tmp_path):
    write(tmp_path / "lsun" / "living_room_train" / "0.png", flat(0))
    for name, place in (("lsun-rooms", "lsun-rooms"), ("celeba", "img_align_celeba"), ("imagenet", "imagenet")):
        with pytest.raises(data.InputError, match=f"{place}.*--dataset digits"):
            data.load(name, tmp_path)


def test_imagenet_and_telugu_layouts(tmp_path):
    for split, green in (("train", 20), ("val", 90), ("test", 160)):
        for name in ("n01", "n02"):
            write(tmp_path / "imagenet" / split / name / "1.JPEG", flat((10, green, 200), 80, 100), quality=100)
    images, labels = data.load("imagenet", tmp_path, "test")  # its test folder has no labels: val is taken
    assert images.shape == (2, 3, 64, 64) and labels.tolist() == [0, 1]
    assert (images[:, 1].int() - 90).abs().max() <= 2
    for i in range(20):
        write(tmp_path / "telugu" / f"{i % 2:03d}" / f"{i:04d}.png", noise(32, 32, seed=i) > 128)
    images, labels = data.load("telugu", tmp_path)
    assert images.shape == (18, 1, 32, 32) and set(images.unique().tolist()) == {0, 255}


# Folders: splits and classes


def test_a_flat_folder_is_split_nine_to_one_the_same_every_time(tmp_path):
    folder = numbered(tmp_path / "set", 40)
    train, labels = data.load(str(folder), tmp_path)
    test, _ = data.load(str(folder), tmp_path, "test")
    assert len(train) == 36 and len(test) == 4 and sorted(values(train) + values(test)) == list(range(40))
    assert not labels.any()
    assert values(data.load(str(folder), tmp_path, "all")[0]) == values(train) + values(test)
    for i in range(40, 49):  # new files, sorted before the old ones, move few of these
        write(folder / f"+{i}.png", np.full((8, 8), i, dtype=np.uint8))
    assert len(set(values(test)) & set(values(data.load(str(folder), tmp_path, "test")[0]))) >= 2


def test_class_folders_nested_loose_and_hidden(tmp_path):
    root = tmp_path / "set"
    write(root / "b" / "deep" / "deeper" / "1.png", flat(1))
    write(root / "a" / "0.png", flat(0))
    write(root / "2.png", flat(2))
    write(root / ".hidden" / "9.png", flat(9))
    write(root / "__MACOSX" / "9.png", flat(9))
    write(root / "a" / "._0.png", flat(9))
    (root / "a" / "notes.txt").write_text("no image")
    images, labels = data.load(str(root), tmp_path, "all")
    assert dict(zip(values(images), labels.tolist())) == {0: 0, 1: 1, 2: 2}
    images, labels = data.load(root, tmp_path, "all", classes=[".", "a"])
    assert dict(zip(values(images), labels.tolist())) == {2: 0, 0: 1}


def test_split_folders_share_their_classes(tmp_path):
    for split, name, value in (("train", "cat", 1), ("train", "owl", 2), ("val", "dog", 3), ("val", "owl", 4)):
        write(tmp_path / "set" / split / name / "x.png", flat(value))
    (tmp_path / "set" / "licence").mkdir()
    expected = {"train": {1: 0, 2: 2}, "test": {3: 1, 4: 2}}
    for split, pairs in expected.items():
        images, labels = data.load(str(tmp_path / "set"), tmp_path, split)
        assert dict(zip(values(images), labels.tolist())) == pairs
    for name in ("cat", "owl"):
        numbered(tmp_path / "only" / "train" / name, 5)
    assert data.load(str(tmp_path / "only"), tmp_path, "all")[1].bincount().tolist() == [5, 5]
    assert len(data.load(str(tmp_path / "only"), tmp_path)[0]) == 9


def test_empty_folders_classes_and_splits_are_input_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.InputError, match="empty holds no image"):
        data.load(str(tmp_path / "empty"), tmp_path)
    write(tmp_path / "set" / "cat" / "1.png", flat(1))
    (tmp_path / "set" / "dog").mkdir()
    with pytest.raises(data.InputError, match="dog holds no image"):
        data.load(str(tmp_path / "set"), tmp_path)
    numbered(tmp_path / "one", 1)
    assert len(data.load(str(tmp_path / "one"), tmp_path)[0]) == 1
    with pytest.raises(data.InputError, match="no image for the test split"):
        data.load(str(tmp_path / "one"), tmp_path, "test")


def test_unknown_names_splits_and_sizes_are_input_errors(tmp_path):
    with pytest.raises(data.InputError, match="'mnits' is neither.*fashion-mnist"):
        data.load("mnits", tmp_path)
    with pytest.raises(data.InputError, match="split 'valid'"):
        data.load("mnist", tmp_path, "valid")
    for size in (0, -3):
        with pytest.raises(data.InputError, match="size"):
            data.load("mnist", tmp_path, size=size)
    with pytest.raises(data.InputError, match="faces are drawn at 32 or 64"):
        data.load("faces", tmp_path, size=48)


# Folders: pixels


def one(path, tmp_path, **options):
    """The one image of a folder with one file, (C, H, W)."""
    images, _ = data.load(str(path.parent), tmp_path, "all", **options)
    assert len(images) == 1
    return images[0]


def test_grey_or_colour_is_decided_by_the_pixels_of_both_splits(tmp_path):
    grey, colour = noise(8, 8), noise(8, 8, 3)
    write(tmp_path / "a" / "train" / "1.png", grey, mode="RGB")
    write(tmp_path / "a" / "test" / "1.png", grey)
    assert np.array_equal(data.load(str(tmp_path / "a"), tmp_path)[0].numpy(), grey[None, None])
    write(tmp_path / "a" / "test" / "2.png", colour)
    train, test = (data.load(str(tmp_path / "a"), tmp_path, split)[0].numpy() for split in ("train", "test"))
    assert np.array_equal(train[0], np.broadcast_to(grey, (3, 8, 8)))
    assert np.array_equal(test[1], colour.transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a/1.png", "b/1.tif", "c/1.pgm"):
        write(tmp_path / name, deep)
        assert np.array_equal(one(tmp_path / name, tmp_path)[0].numpy(), np.round(deep / 257).astype(np.uint8)), name


def test_transparency_is_put_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.arange(8) * 36
    write(tmp_path / "a" / "1.png", pixels)
    opacity = pixels[0, :, 3] / 255
    expected = np.stack([200 * opacity + 255 * (1 - opacity), 255 * (1 - opacity), 255 * (1 - opacity)])
    assert np.abs(one(tmp_path / "a" / "1.png", tmp_path)[:, 4].numpy() - expected).max() <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((3, 3), 0)
    write(tmp_path / "p" / "1.png", palette, transparency=0)
    image = one(tmp_path / "p" / "1.png", tmp_path)
    assert image[:, 3, 3].tolist() == [255, 255, 255] and image[:, 0, 0].tolist() == [0, 0, 255]


def test_palette_cmyk_and_animation(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 10, 20, 30])
    write(tmp_path / "p" / "1.png", palette)
    assert one(tmp_path / "p" / "1.png", tmp_path)[:, 5, 5].tolist() == [10, 20, 30]
    write(tmp_path / "c" / "1.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    assert one(tmp_path / "c" / "1.tif", tmp_path)[:, 5, 5].tolist() == [255, 0, 0]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    (tmp_path / "g").mkdir()
    frames[0].save(tmp_path / "g" / "1.gif", save_all=True, append_images=frames[1:])
    assert one(tmp_path / "g" / "1.gif", tmp_path)[:, 5, 5].tolist() == [0, 0, 255]


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    pixels = noise(8, 8)
    write(tmp_path / "a" / "1.png", pixels, exif=exif)
    assert np.array_equal(one(tmp_path / "a" / "1.png", tmp_path)[0].numpy(), np.rot90(pixels, -1))


@pytest.mark.parametrize("height, width", [(64, 99), (99, 64), (1, 50), (300, 3)])
def test_oddly_shaped_images_give_their_middle_square(tmp_path, height, width):
    pixels, side = noise(height, width), min(height, width)
    write(tmp_path / "a" / "1.png", pixels)
    top, left = (height - side) // 2, (width - side) // 2
    expected = pixels[top : top + side, left : left + side]
    assert np.array_equal(one(tmp_path / "a" / "1.png", tmp_path, size=side)[0].numpy(), expected)
    assert one(tmp_path / "a" / "1.png", tmp_path).shape == (1, 64, 64)  # no square of at most 64: 64


def test_a_large_jpeg_comes_out_as_when_decoded_whole(tmp_path):
    y, x = np.mgrid[:600, :800] / 100
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(3 * y)], axis=-1)
    write(tmp_path / "a" / "1.jpg", (127 + 100 * waves).astype(np.uint8), quality=95)
    whole = transforms.functional.pil_to_tensor(Image.open(tmp_path / "a" / "1.jpg"))
    shrink = transforms.Compose([transforms.CenterCrop(600), transforms.Resize(64, antialias=True)])
    error = (one(tmp_path / "a" / "1.jpg", tmp_path).int() - shrink(whole).int()).abs().float()
    assert error.mean() < 1 and error.max() < 8


def test_a_few_broken_files_are_left_out_with_one_line(tmp_path, capsys):
    folder = numbered(tmp_path / "set", 20)
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0007.png").write_bytes(b"")
    (folder / "0011.png").write_text("this is no picture")
    (folder / "0012.png").unlink()
    (folder / "0012.png").symlink_to(folder / "nowhere.png")
    write(folder / "float.tif", np.zeros((8, 8), dtype=np.float32))
    images, _ = data.load(str(folder), tmp_path, "all")
    assert sorted(values(images)) == sorted(set(range(20)) - {3, 7, 11, 12})
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "left out 5 of 21" in told and ".png" in told


def test_files_that_are_passed_over_for_their_names_are_counted(tmp_path, capsys):
    """Once, when the folder is decoded; hidden ones are not."""
    folder = numbered(tmp_path / "set", 3)
    (folder / "a").mkdir()
    for name in ("1.heic", "a/2.HEIC", "list.txt", "README", ".DS_Store", "__MACOSX"):
        (folder / name).write_text("no matter")
    write(folder / "a" / "3.jfif", flat(9, 8, 8), format="JPEG")
    data.load(str(folder), tmp_path, "all")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "passed over 4 files" in told and told.endswith("2 .heic, 1 .txt, 1 without an ending\n")
    assert len(data.load(str(folder), tmp_path, "all")[0]) == 4 and capsys.readouterr().err == ""


def test_a_link_back_up_is_not_followed(tmp_path):
    """Nor does it put one class into another; a link to elsewhere is followed."""
    for name in "ab":
        numbered(tmp_path / "set" / name, 4)
    (tmp_path / "set/a/up").symlink_to("..")
    numbered(tmp_path / "elsewhere", 3, first=10)
    (tmp_path / "set/b/more").symlink_to(tmp_path / "elsewhere")
    images, labels = data.load(str(tmp_path / "set"), tmp_path, "all")
    assert len(images) == 11 and torch.bincount(labels).tolist() == [4, 7]


def test_an_unknown_home_is_an_input_error(tmp_path):
    with pytest.raises(data.InputError, match="~nobody-at-all"):
        data.load("~nobody-at-all/x", tmp_path)


def test_a_class_may_be_called_as_an_image_is(tmp_path):
    for name in ("a", "b.png"):
        numbered(tmp_path / "set" / name, 4)
    assert torch.bincount(data.load(str(tmp_path / "set"), tmp_path, "all")[1]).tolist() == [4, 4]


def test_a_file_that_could_not_be_opened_is_read_once_it_can(tmp_path, monkeypatch):
    """Of the same size and age as before: the cache of the others does not hide it."""
    folder, access, opened = numbered(tmp_path / "set", 5), os.access, Image.open
    with monkeypatch.context() as patch:  # root may read anything

        def barred(path):
            if Path(path).name == "0003.png":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path)

        patch.setattr(Image, "open", barred)
        patch.setattr(os, "access", lambda path, mode: not str(path).endswith("0003.png") and access(path, mode))
        assert len(data.load(str(folder), tmp_path, "all")[0]) == 4
    assert len(data.load(str(folder), tmp_path, "all")[0]) == 5


def test_a_folder_of_broken_files_is_an_input_error(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(data.InputError, match=r"none of its 3 images.*\d.jpg"):
        data.load(str(tmp_path), tmp_path)


def test_many_files_are_decoded_by_several_processes_in_order(tmp_path):
    folder = tmp_path / "set"
    for i in range(700):
        write(folder / f"{i:04d}.png", flat((i % 256, i // 256, 7), 4, 4))
    (folder / "0100.png").write_bytes(b"broken")
    parts = [data.load(str(folder), tmp_path, split)[0] for split in ("train", "test")]
    train, test = ((x[:, 0, 0, 0].int() + 256 * x[:, 1, 0, 0].int()).tolist() for x in parts)
    assert train == sorted(train) and test == sorted(test)
    assert sorted(train + test) == sorted(set(range(700)) - {100})


def test_decoding_says_how_far_it_is_and_how_long_it_will_take(tmp_path, monkeypatch, capsys):
    clock = itertools.count(100, 30)  # half a minute passes with each chunk of 64 files
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    folder = numbered(tmp_path / "set", 224)
    data.load(str(folder), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"decoding {folder}: 64/224 | 1:15 left" and lines[1].endswith("128/224 | 0:45 left")


# The cache


def test_the_cache_is_one_file_beside_the_folder_opened_mapped(tmp_path, monkeypatch):
    folder = numbered(tmp_path / "set", 20)
    first = data.load(str(folder), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["set-8.cache.npy"]
    assert np.load(tmp_path / "set-8.cache.npy").shape == (20, 1, 8, 8)
    monkeypatch.setattr(data, "_decode", None)  # would fail when called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = data.load(str(folder), tmp_path / "data")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    before = (tmp_path / "set-8.cache.npy").read_bytes()
    again[0].zero_()  # a mapped tensor may be written to without harm to the file
    assert (tmp_path / "set-8.cache.npy").read_bytes() == before


def test_the_cache_is_made_anew_when_the_folder_or_the_size_changes(tmp_path):
    folder = numbered(tmp_path / "set", 10)
    data.load(str(folder), tmp_path)
    numbered(folder, 1, first=10)
    assert len(data.load(str(folder), tmp_path, "all")[0]) == 11
    (folder / "0000.png").unlink()
    assert sorted(values(data.load(str(folder), tmp_path, "all")[0])) == list(range(1, 11))
    before = (folder / "0005.png").stat()
    write(folder / "0005.png", np.full((8, 8), 77, dtype=np.uint8))
    os.utime(folder / "0005.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert 77 in values(data.load(str(folder), tmp_path, "all")[0])
    assert data.load(str(folder), tmp_path, size=16)[0].shape[-1] == 16
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["set-16.cache.npy", "set-8.cache.npy"]


def test_a_file_of_the_users_beside_the_folder_stays(tmp_path):
    folder = numbered(tmp_path / "set", 20)
    np.save(tmp_path / "set-8.npy", noise(20, 1, 8, 8))  # their own array of these pictures
    data.load(str(folder), tmp_path)
    assert np.array_equal(np.load(tmp_path / "set-8.npy"), noise(20, 1, 8, 8))


@pytest.mark.parametrize("keep", [0, 100, 700, 1500])
def test_a_damaged_cache_is_made_anew(tmp_path, keep):
    folder = numbered(tmp_path / "set", 20)
    first, _ = data.load(str(folder), tmp_path)
    first = first.clone()
    cache = tmp_path / "set-8.cache.npy"
    content = cache.read_bytes()
    cache.unlink()  # the mapping above stays on the old file
    cache.write_bytes(content[:keep])
    assert torch.equal(data.load(str(folder), tmp_path)[0], first)
    assert cache.read_bytes() == content


@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
def test_a_folder_that_cannot_be_written_is_cached_in_data_dir_or_not_at_all(call, tmp_path, monkeypatch, capsys):
    """Read-only, by whichever call meets it first: as a read-only disk, a folder of another user's, a sticky folder do."""
    folder, locked = numbered(tmp_path / "locked" / "set", 20), tmp_path / "locked"
    exact = {"mkdir": Path.mkdir, "open": open, "replace": os.replace}[call]

    def refuse(path, *rest, **options):
        written = {"mkdir": lambda: path, "open": lambda: "w" in (rest or "r")[0] and Path(path).parent, "replace": lambda: rest[0].parent}
        if written[call]() == locked:
            raise OSError(errno.EROFS, "Read-only file system")
        return exact(path, *rest, **options)

    monkeypatch.setattr(*{"mkdir": (Path, "mkdir"), "open": (builtins, "open"), "replace": (os, "replace")}[call], refuse)
    first, _ = data.load(str(folder), tmp_path / "data")
    assert (tmp_path / "data" / "set-8.cache.npy").is_file()
    (tmp_path / "file").touch()
    assert capsys.readouterr().err == ""
    assert torch.equal(data.load(str(folder), tmp_path / "file" / "data")[0], first)  # a data_dir that cannot be
    assert "not kept on disk" in capsys.readouterr().err
    assert [path.name for path in locked.iterdir()] == ["set"]  # no half-written file is left


def test_two_runs_at_once_on_one_cache_both_end_well(tmp_path):
    folder = numbered(tmp_path / "images" / "set", 200)
    code = f"""
import pathlib, sys, time, data
decode, here = data._decode, pathlib.Path({str(tmp_path)!r})
def meet(*args):  # neither writes before both have decoded
    made = decode(*args)
    (here / sys.argv[1]).touch()
    while not ((here / "a").exists() and (here / "b").exists()):
        time.sleep(0.01)
    return made
data._decode = meet
images, labels = data.load({str(folder)!r}, here / "a", split="all")  # a file: no second place for a cache
print(images.long().sum().item(), len(labels))
"""
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", code, name], **pipes) for name in "ab"]
    assert [run.communicate(timeout=120) for run in runs] == [(f"{64 * sum(range(200))} 200\n", "")] * 2
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set", "set-8.cache.npy"]


def test_two_writers_at_once_each_leave_a_whole_file(tmp_path):
    with data.whole_file(tmp_path / "file") as one:
        one.write(b"a whole ")
        with data.whole_file(tmp_path / "file") as other:
            other.write(b"another")
        assert (tmp_path / "file").read_bytes() == b"another"
        one.write(b"file")
    assert (tmp_path / "file").read_bytes() == b"a whole file"
    with pytest.raises(KeyboardInterrupt), data.whole_file(tmp_path / "file") as one:
        one.write(b"half of")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"a whole file" and len(list(tmp_path.iterdir())) == 1


def test_drawn_sets_are_drawn_once_for_each_size_split_and_version(tmp_path, monkeypatch, capsys):
    calls = []

    def draw(n, seed, size=28):
        calls.append((n, seed, size))
        return torch.full((n, 1, size, size), seed, dtype=torch.uint8), torch.arange(n) % 10

    monkeypatch.setattr(data, "draw_digits", draw, raising=False)
    for _ in range(2):
        images, labels = data.load("digits", tmp_path / "new", "test")
        assert images.shape == (10_000, 1, 28, 28) and labels[:3].tolist() == [0, 1, 2]
    assert calls == [(10_000, 1, 28)]
    monkeypatch.setattr(data, "DRAWN_VERSION", data.DRAWN_VERSION + 1)
    data.load("digits", tmp_path / "new", "test")
    data.load("digits", tmp_path / "new", "test", size=8)
    train, labels = data.load("digits", tmp_path / "new", "train", size=8, classes=["7"])
    assert calls[1:] == [(10_000, 1, 28), (10_000, 1, 8), (60_000, 0, 8)]
    assert train.shape == (6_000, 1, 8, 8) and not labels.any()
    (tmp_path / "file").touch()
    data.load("digits", tmp_path / "file" / "data", "test", size=8)
    assert "not kept on disk" in capsys.readouterr().err


# The drawn sets


@pytest.mark.parametrize("draw, size", [(data.draw_digits, 28), (data.draw_faces, 32), (data.draw_faces, 64)])
def test_drawing_depends_on_the_seed_alone(draw, size):
    n = 700 if size == 28 else 100  # several chunks, and labels that come again in the same place of a chunk
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        images, labels = draw(n, 5, size)
        torch.set_num_threads(3)
        again, same_labels = draw(n, 5, size)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape[2:] == (size, size)
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    for fewer in (0, 1, n // 3, n - 1):  # image i is the same for any n, and so in a chunk of any size
        assert all(torch.equal(a, b[:fewer]) for a, b in zip(draw(fewer, 5, size), (images, labels), strict=True))
    other = draw(n, 6, size)[0]
    assert (images != other).flatten(1).any(1).all()
    assert len(images.flatten(1).unique(dim=0)) == n


@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX2", "AVX512"])
def test_drawn_bytes_are_the_same_on_every_machine(instructions):
    """Sums recorded once, and the same whatever instructions MKL is told to use (its SSE4_2 ones are those of an AMD
    processor) and numbers flushed to zero: they change with the version alone.
    """
    code = """
import hashlib, torch, data
torch.set_flush_denormal(True)
for draw, n in ((data.draw_digits, 300), (data.draw_faces, 96)):
    print(hashlib.sha256(draw(n, 0)[0].numpy().tobytes()).hexdigest()[:16])
"""
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    sums = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True).split()
    assert (data.DRAWN_VERSION, *sums) == (3, "16f1e76877189567", "a32592452b775ff8")


def test_digits_follow_mnists_convention():
    images, labels = data.draw_digits(1000, 2)
    assert images.shape == (1000, 1, 28, 28) and labels.tolist() == list(range(10)) * 100
    ink = images[:, 0].numpy().astype(float)
    place = np.arange(28)
    for axis in (1, 2):
        centre = (ink.sum(axis) * place).sum(1) / ink.sum((1, 2))
        assert abs(centre.mean() - 14) < 0.05 and np.abs(centre - 14).max() < 0.8  # half a pixel at random
    drawn = ink >= 128
    sides = np.stack([drawn.any(axis).sum(1) for axis in (1, 2)]).max(0)  # the longer of the box's two
    assert sides.min() >= 17 and sides.max() <= 22 and abs(np.median(sides) - 20) <= 1
    assert (ink.max((1, 2)) == 255).mean() > 0.99 and not ink[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_digits_have_the_holes_of_digits():
    from scipy.ndimage import label as components

    images, labels = data.draw_digits(1000, 3, size=56)
    holes = np.array([components(image < 100)[1] - 1 for image in images[:, 0].numpy()])  # parts of black, less one
    usual = [np.bincount(holes[labels == digit]).argmax() for digit in range(10)]
    assert usual == [1, 0, 0, 0, 0, 0, 1, 0, 2, 1]
    assert 0 < (holes[labels == 4] == 1).mean() < 0.5 and 0 < (holes[labels == 2] == 1).mean() < 0.5  # closed, looped


@pytest.mark.parametrize("draw, size", [(data.draw_digits, 28), (data.draw_faces, 32)])
def test_drawn_at_twice_the_size_it_is_the_same_picture(draw, size):
    small, large = draw(100, 4, size)[0].float(), draw(100, 4, 2 * size)[0].float()
    means = large.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    other = draw(100, 5, size)[0].float()
    assert (small - means).abs().mean() < 2
    assert (small - other).abs().mean() > 20


def test_ink_falls_with_the_distance_from_the_pen():
    x, y = torch.tensor([[-5.5, 3.5]]), torch.tensor([[0.5, 0.5]])  # two dots, in pixels from the middle of 28
    across, down, edge = torch.full((1, 2), 4.0), torch.full((1, 2), 2.0), torch.tensor([[1.5]])
    ink = data._ink(x, y, across, down, edge, 28)
    assert ink.shape == (1, 28, 28) and ink.dtype == torch.uint8
    for row, column in ((14, 17), (14, 9), (14, 20), (14, 22), (15, 17), (16, 18), (17, 17), (20, 17), (10, 3)):
        away = [math.hypot((column - 13.5 - a) / 4, (row - 13.5 - b) / 2) for a, b in ((-5.5, 0.5), (3.5, 0.5))]
        expected = round(255 * min(max(0.5 + (1 - min(away)) * 1.5, 0), 1))
        assert abs(ink[0, row, column].item() - expected) <= 1, (row, column)
    assert ink[0, 14, 21] == ink[0, 16, 17] == 128  # on the outline: 4 pixels across, 2 down
    assert data._ink(x, y, across, down, edge, 56)[0, 28:30, 34:36].float().mean() == 255


def test_the_centre_of_mass():
    ink = torch.zeros(2, 28, 28, dtype=torch.uint8)
    ink[0, 3, 20] = 7
    ink[1, 10, 4], ink[1, 20, 8] = 50, 150
    x, y = data._centre(ink)
    assert x.flatten().tolist() == [20 - 13.5, 7 - 13.5] and y.flatten().tolist() == [3 - 13.5, 17.5 - 13.5]


def test_skeletons_pass_through_their_points_with_close_dots():
    controls, pieces, weights, chosen = data._skeletons()
    dots = (controls[torch.arange(len(controls))[:, None, None], pieces] * weights[..., None]).sum(2)
    assert (weights.sum(2) - 1).abs().max() < 1e-6  # a curve moves with its points
    index = 0
    for digit, variants in data.SKELETONS.items():
        ways = chosen[digit].bincount(minlength=len(controls))[index : index + len(variants)]
        assert ways.sum() == chosen.shape[1]
        for (share, strokes), count in zip(variants, ways.tolist()):
            assert count * sum(share for share, _ in variants) == share * chosen.shape[1]
            pairs = [pair.split(",") for pair in strokes.replace("/", " ").split()]
            points = torch.tensor([[int(x), int(y)] for x, y in pairs]) / 50
            points = points - torch.tensor([(points[:, 0].max() + points[:, 0].min()) / 2, 1])
            pitch = 2 * dots[index].diff(dim=0).norm(dim=1).median()
            assert torch.cdist(points, dots[index]).amin(1).max() < pitch, (digit, strokes)
            steps = dots[index].diff(dim=0).norm(dim=1).sort().values
            extent = (dots[index].amax(0) - dots[index].amin(0)).max()
            assert 20 * steps[-1 - strokes.count("/")] / extent < 0.75, (digit, strokes)
            index += 1
    assert index == len(controls)
    line = dots[chosen[1][0]]
    assert not line[:, 0].any() and (line[:, 1].diff() > 0).all()


def test_bell_has_mean_0_and_variance_1():
    edges = torch.tensor([[0.0] * 3, [0.5] * 3, [1.0] * 3])
    assert data._bell(edges).tolist() == [-3, 0, 3]
    grid = (torch.arange(60) + 0.5) / 60
    every = data._bell(torch.cartesian_prod(grid, grid, grid))
    assert abs(every.mean()) < 1e-5 and abs(every.var() - 1) < 1e-3


def test_face_attributes_tell_the_48_labels_apart():
    _, labels = data.draw_faces(60, 0)
    assert labels.tolist() == [*range(48), *range(12)]
    found = data.face_attributes(torch.arange(48))
    assert list(found) == ["smile", "glasses", "hair", "skin"]
    every = itertools.product(range(2), range(2), range(4), range(3))
    assert torch.stack([*found.values()], 1).tolist() == [list(row) for row in every]
    assert all(values.dtype == torch.int64 for values in found.values())


def plain_face(smile=0, glasses=0, hair=0, skin=0, size=64):
    """A face with every random number in its middle: upright, facing front, 1.075 times the size of its coordinates."""
    label = torch.tensor([((smile * 2 + glasses) * 4 + hair) * 3 + skin])
    return data._paint_faces(label, torch.full((1, 75), 0.5), size)[0].int()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("skin", [0, 1, 2])
def test_each_attribute_changes_its_place_alone(size, skin):
    place = (torch.arange(size) * 2 + 1 - size) / size / 1.075
    x, y = place[None, :], place[:, None]
    regions = {
        # eyes 0.19 from the middle at -0.04, with lenses of 0.14 and frames of 0.036; arms to the head's 0.44
        "glasses": (x.abs() < 0.5) & ((y + 0.04).abs() < 0.21),
        "smile": (x.abs() < 0.3) & (y > 0.17) & (y < 0.5),  # 0.24 to a side, and from 0.23 to 0.45
        "hair": (x.abs() < 0.7) & (y < 1.1),
    }
    for name, region in regions.items():
        change = (plain_face(skin=skin, size=size, **{name: 1}) - plain_face(skin=skin, size=size)).abs().amax(0)
        assert not change[~region].any(), name
        assert change.max() > 60 and (change > 40).float().sum() > 0.01 * size**2, name  # plain to see
    skins = (plain_face(skin=skin, size=size) - plain_face(skin=(skin + 1) % 3, size=size)).abs().amax(0)
    assert skins[(x.square() + (y - 0.18).square()).sqrt() < 0.05].min() > 20
    assert not skins[y.expand_as(skins) < -0.7].any()


def test_around_the_eyes_there_is_skin_or_a_frame():
    rows, column = slice(133, 149), 128 + round(0.19 * 1.075 * 128)  # 0.035 to 0.16: below the eye, above the mouth
    for glasses, low, high in ((0, 0, 2), (1, 50, 255)):
        steps = plain_face(skin=2, glasses=glasses, size=256)[:, rows, column].diff(dim=1).abs()
        assert low <= steps.max() <= high


def test_faces_are_alike_in_the_mirror_and_a_smile_turns_up():
    face = plain_face()
    assert (face - face.flip(2)).abs().max() <= 1  # all that leans or looks aside is at 0 in the middle
    smile = (plain_face(smile=1, size=256) - plain_face(size=256)).abs().amax(0) > 20
    rows = torch.arange(256.0)
    middle, corner = (rows[smile[:, columns].any(1)].max() for columns in (slice(120, 136), slice(154, 162)))
    assert middle > corner + 8


def test_ellipse_is_a_distance_on_circles_and_axes():
    points = torch.tensor([[0.3, 0.4], [0.0, 0.1], [-1.2, 0.5]])
    x, y = points.unbind(1)
    assert torch.allclose(data._ellipse(x, y, 0.25, 0.25), torch.tensor([0.25, -0.15, 1.05]), atol=1e-6)
    x, y = torch.tensor([0.5, 0.1, 0.0, 0.0]), torch.tensor([0.0, 0.0, -0.3, 0.05])
    assert torch.allclose(data._ellipse(x, y, 0.3, 0.1), torch.tensor([0.2, -0.2, 0.2, -0.05]), atol=1e-6)
    assert torch.isfinite(data._ellipse(torch.zeros(1), torch.zeros(1), 0.3, 0.1)).all()


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    """A part-written cache that is an hour old belongs to nobody; a newer one may be another run's at work."""
    old, new = (tmp_path / f"x[1]-8.npy.{age}.part" for age in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"part")
    os.utime(old, (0, 0))
    with data.whole_file(tmp_path / "x[1]-8.npy"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x[1]-8.npy", new.name]
