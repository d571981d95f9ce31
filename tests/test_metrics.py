"""Measures against closed forms, numpy, scipy, scikit-learn, scikit-dimension and pytorch-fid; runs; the command line.

About 30 s on one core.
"""

import ctypes
import io
import json
import math
import pickle
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import metrics

ROOT = Path(__file__).resolve().parent.parent


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


@pytest.mark.parametrize("asked, left", [("", 1_000_000), ("metrics.device_of('cpu')", 0)])
def test_numbers_too_small_for_float32_are_zero_on_every_thread(asked, left):
    """1e-39 is below the least normal float32, 1.18e-38: torch keeps it, unless a CPU was asked for."""
    code = f"""
import torch, metrics
torch.set_num_threads(2)
{asked}
print(int((torch.full((1_000_000,), 1e-30) * 1e-9 * 1e30).count_nonzero()))
"""
    assert int(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) == left


def test_freed_memory_is_kept_for_the_next_tensors():
    """Tensors of 128 MiB in all, freed: plain glibc gives all of it back to the system (by its own account, mallinfo2), and here nothing."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("no glibc from 2.33 on")
    code = """
import ctypes, sys, torch, metrics
words = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # of malloc.h
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(word, ctypes.c_size_t) for word in words]})
if sys.argv[1] == "keep":
    metrics.keep_freed_memory()
held = [torch.ones(2**22) for _ in range(8)]
full = mallinfo()
del held
left = mallinfo()
print((full.arena + full.hblkhd - left.arena - left.hblkhd) / 2**20)
"""
    kept, usual = (float(subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
                   for word in ("keep", "not"))
    assert kept < 1
    assert usual == pytest.approx(128, abs=1)


# FID


def test_frechet_distance_of_diagonal_gaussians():
    mu1, mu2, s1, s2 = normal(4, 6, seed=1).unbind()
    s1, s2 = s1.abs(), s2.abs()
    expected = (mu1 - mu2).square().sum() + (s1 - s2).square().sum()  # of independent columns, each a 1-d Gaussian
    assert metrics.frechet_distance(mu1, s1.square().diag(), mu2, s2.square().diag()) == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize("decay", [-1, -6, -10])
def test_frechet_distance_of_covariances_that_share_their_axes(decay):
    axes, zero = orthogonal(60), torch.zeros(60)
    a = torch.logspace(0, decay, 60, dtype=torch.float64)
    b = a.flip(0).sqrt()
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert metrics.frechet_distance(zero, axes * a @ axes.T, zero, axes * b @ axes.T) == pytest.approx(
        expected, rel=1e-9
    )


def test_frechet_distance_of_a_covariance_that_only_looks_regular():
    lower = torch.eye(50, dtype=torch.float64) - torch.ones(50, 50).tril(-1)  # pivots of 1, but a condition of 2^98
    cov, zero = lower @ lower.T, torch.zeros(50)
    assert metrics.frechet_distance(zero, cov, zero, cov.clone()) <= 1e-10 * cov.trace()


def test_frechet_distance_is_scipys():
    x, y = normal(300, 40) @ normal(40, 40, seed=1), normal(200, 40, seed=2) @ normal(40, 40, seed=3) + 1
    (mu1, c1), (mu2, c2) = ((z.numpy().mean(0), np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert metrics.fid(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.fid(y, x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n, m", [(2, 2), (20, 30), (30, 500)])
def test_fid_with_fewer_rows_than_columns(n, m):
    x, y = normal(n, 100), normal(m, 100, seed=1)
    x[:, 40:] = 0.5  # constant pixels
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    cross = torch.linalg.svdvals(a @ b.T).sum()  # C = a'a, so tr (C1 C2)^(1/2) is the nuclear norm of a b'
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    assert metrics.fid(x, y) == pytest.approx(expected.item(), rel=1e-9)


def test_fid_of_fewer_rows_than_columns_makes_no_square_of_the_columns(monkeypatch):
    monkeypatch.setattr(metrics, "stats", None)  # two matrices of 10,000 x 10,000, 0.8 GB each
    a, b, mu1, mu2 = normal(4, 10_000, seed=3)
    x, y = torch.stack([mu1 - a, mu1 + a]), torch.stack([mu2 - b, mu2 + b])  # covariances of 2 a a' and 2 b b'
    expected = (mu1 - mu2).square().sum() + 2 * a.square().sum() + 2 * b.square().sum() - 4 * (a @ b).abs()
    assert metrics.fid(x, y) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1, 1e12])
@pytest.mark.parametrize("n", [30, 1000])
def test_fid_of_equal_sets_is_zero_and_of_moved_ones_the_move(n, scale):
    x = normal(n, 64) @ torch.logspace(0, -7, 64, dtype=torch.float64).diag() @ orthogonal(64) * scale
    trace = x.var(0).sum().item()
    assert 0 <= metrics.fid(x, x.clone()) <= 1e-10 * trace
    assert metrics.fid(x, x + 3 * scale) == pytest.approx(64 * (3 * scale) ** 2, rel=1e-9)


def test_fid_keeps_its_digits_at_large_means():
    x, y = normal(200, 10), normal(200, 10, seed=1)
    assert metrics.fid(x + 1e6, y + 1e6) == pytest.approx(metrics.fid(x, y), rel=1e-7)
    assert metrics.stats(x + 1e6)[1].numpy() == pytest.approx(np.cov(x.numpy(), rowvar=False), rel=1e-7, abs=1e-9)


def test_fid_takes_every_type():
    x, y = (
        torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        for i in (0, 1)
    )
    expected = metrics.fid(x.double(), y.double())
    for cast in (torch.uint8, torch.float16, torch.float32, torch.int64):
        assert metrics.fid(x.to(cast), y.to(cast)) == pytest.approx(expected, rel=1e-12)
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous() and metrics.fid(strided, y) == pytest.approx(expected, rel=1e-12)


def test_fid_of_constant_images():
    assert metrics.fid(torch.ones(5, 3), torch.zeros(4, 3)) == 3
    assert metrics.fid(torch.ones(5, 3), torch.ones(4, 3)) == 0


# MMD


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["rbf", "several", "polynomial", "linear"])
def test_mmd_is_that_of_whole_gram_matrices(kernel, unbiased):
    x, y = normal(1700, 3), 1.2 * normal(1600, 3, seed=1) + 0.1  # more than a tile of each
    gram = {
        "rbf": lambda a, b: rbf_kernel(a, b, gamma=1 / (2 * 1.5**2)),
        "several": lambda a, b: (
            (rbf_kernel(a, b, gamma=1 / (2 * 1.5**2)) + rbf_kernel(a, b, gamma=1 / (2 * 0.5**2))) / 2
        ),
        "polynomial": lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1),
        "linear": lambda a, b: a @ b.T,
    }[kernel]
    xx, yy, xy = (gram(a.numpy(), b.numpy()) for a, b in ((x, x), (y, y), (x, y)))
    if unbiased:
        within = sum((g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in (xx, yy))
    else:
        within = xx.mean() + yy.mean()
    name, bandwidth = {"rbf": ("rbf", 1.5), "several": ("rbf", [1.5, 0.5])}.get(kernel, (kernel, None))
    assert metrics.mmd(x, y, name, bandwidth, unbiased) == pytest.approx(within - 2 * xy.mean(), rel=1e-9)


def test_mmd_of_many_rows_has_float32_products_only_where_they_do():
    x, y = normal(2200, 20) + 50, normal(2100, 20, seed=1) + 50
    xx, yy, xy = (rbf_kernel(a, b, gamma=1 / (2 * 5.0**2)).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert metrics.mmd(x, y, bandwidth=5.0) == pytest.approx(xx + yy - 2 * xy, rel=1e-5, abs=2e-9)
    xx, yy, xy = (rbf_kernel(a, b, gamma=1 / (2 * 0.1**2)).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert metrics.mmd(x, y, bandwidth=0.1) == pytest.approx(xx + yy - 2 * xy, rel=1e-9)  # too narrow for float32


def test_nearest_keeps_nothing_between_its_blocks(monkeypatch):
    """Each block of candidates takes up to 25 MB. With small results kept between them `metrics.py dim` of CIFAR-10 grew to
    23 GB with glibc 2.36 in some processes: none of the freed blocks' places was taken again."""
    distances, kept = metrics._distances, []

    def watched(*args):
        assert not any(result() is not None for result in kept)
        result = distances(*args)
        kept.append(weakref.ref(result))
        return result

    monkeypatch.setattr(metrics, "_distances", watched)
    metrics.nearest(torch.rand(200, 3), 5)
    assert len(kept) > 10


def test_mmd_of_two_points():
    x, y = torch.zeros(1, 1), torch.full((1, 1), 2.0)
    assert metrics.mmd(x, y, bandwidth=1.0) == pytest.approx(2 - 2 * math.exp(-2))  # |x - y|^2 / 2 is 2
    assert metrics.mmd(x, y, "linear") == pytest.approx(4)
    assert metrics.mmd(x, x, bandwidth=1.0) == pytest.approx(0, abs=1e-15)


def test_mmds_bandwidth_is_the_median_distance_of_the_real_images():
    x, y = normal(300, 4), 2 * normal(200, 4, seed=1)
    sigma = np.median(pdist(y.numpy()))
    assert metrics.median_distance(y) == pytest.approx(sigma, rel=1e-12)
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=sigma), rel=1e-12)
    many = normal(3000, 4, seed=2)
    assert metrics.median_distance(many) == pytest.approx(np.median(pdist(many.numpy())), rel=0.02)


def test_unbiased_mmd_may_be_negative_and_far_means_do_not_matter():
    x, y = normal(50, 3), normal(50, 3, seed=4)
    values = [metrics.mmd(normal(50, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1), unbiased=True) for i in range(8)]
    assert min(values) < 0 < max(values)
    assert metrics.mmd(x + 1e5, y + 1e5, bandwidth=1.0) == pytest.approx(metrics.mmd(x, y, bandwidth=1.0), rel=1e-7)


# neighbours


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("n, d, k", [(2, 3, 1), (50, 1, 49), (5000, 3, 4), (600, 300, 20), (700, 5, 300)])
def test_nearest_is_brute_force(n, d, k, dtype):
    x = (50 + 20 * normal(n, d)).to(dtype) if dtype == torch.uint8 else normal(n, d).to(dtype)
    queries = (50 + 20 * normal(7, d, seed=1)).to(dtype) if dtype == torch.uint8 else normal(7, d, seed=1).to(dtype)
    own = cdist(x.double()[:1000], x.double())
    own[np.arange(len(own)), np.arange(len(own))] = np.inf
    other = cdist(queries.double(), x.double())
    for expected, (distances, indices) in (
        (own, metrics.nearest(x, k)),
        (other, metrics.nearest(x, k, queries=queries)),
    ):
        distances, indices = distances[:1000], indices[:1000]
        assert distances.dtype == torch.float64 and indices.dtype == torch.int64
        np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :k], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(distances, np.take_along_axis(expected, indices.numpy(), 1), rtol=1e-9, atol=1e-12)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_nearest_where_float32_products_see_nothing():
    far = torch.cat([normal(300, 20) + 1e6, normal(300, 20, seed=1) - 1e6])  # |x|^2 is 1e13 times the distances
    huge = normal(200, 20) * 1e25  # and here it overflows
    for x in (far, huge):
        expected = cdist(x, x)
        np.fill_diagonal(expected, np.inf)
        distances, indices = metrics.nearest(x, 3)
        np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :3], rtol=1e-9)
        assert (indices.numpy() == np.argsort(expected, 1)[:, :3]).all()


def test_nearest_leaves_out_itself_by_index_and_orders_equals_by_index():
    x = torch.tensor([[0.0], [0.0], [1.0], [0.0], [5.0]])
    distances, indices = metrics.nearest(x, 3)
    assert indices.tolist() == [[1, 3, 2], [0, 3, 2], [0, 1, 3], [0, 1, 2], [2, 0, 1]]
    assert distances.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1], [4, 5, 5]]
    assert metrics.nearest(x, 1, queries=x)[1].tolist() == [[0], [0], [2], [0], [4]]


@pytest.mark.parametrize("k", [1, 4, 5])
def test_knn_and_bayes_are_scikit_learns(k):
    parts = [spread * normal(200, 12, seed=i) + shift for i, (spread, shift) in enumerate([(1, 0), (1.3, 0.2)] * 2)]
    train, truth = torch.cat(parts[:2]).numpy(), np.repeat([1, 0], 200)
    for model, ours in ((KNeighborsClassifier(k), metrics.knn_misclassification(*parts, k=k)),
                        (GaussianNB(), metrics.bayes_misclassification(*parts))):  # fmt: skip
        model.fit(train, truth)
        fnr, fpr = 1 - model.predict(parts[2]).mean(), model.predict(parts[3]).mean()
        assert 0.05 < fnr < 0.95 and 0.05 < fpr < 0.95
        expected = {"fnr": fnr, "fpr": fpr, "max": max(fnr, fpr), "balanced": (fnr + fpr) / 2, "min": min(fnr, fpr)}
        assert ours == pytest.approx(expected, rel=1e-12)


def test_bayes_smoothing_is_scikit_learns():
    parts = [normal(100, 3, seed=i) for i in range(4)]
    for i, part in enumerate(parts):
        part[:, 2] = 1e-3 * part[:, 2] * (i % 2)  # constant in one class, as the border of a digit is
    model = GaussianNB().fit(torch.cat(parts[:2]).numpy(), np.repeat([1, 0], 100))
    ours = metrics.bayes_misclassification(*parts)
    assert ours["fnr"] == pytest.approx(1 - model.predict(parts[2]).mean())
    assert ours["fpr"] == pytest.approx(model.predict(parts[3]).mean()) and 0 < ours["fpr"] < 0.3  # decided by column 2


def test_misclassification_at_its_ends():
    def blob(i, at):
        return normal(100, 5, seed=i) + at

    apart, alike = (blob(0, 0), blob(1, 99), blob(2, 0), blob(3, 99)), (blob(0, 0), blob(1, 0), blob(2, 0), blob(3, 0))
    for measure in (metrics.knn_misclassification, metrics.bayes_misclassification):
        assert measure(*apart)["max"] == 0
        assert measure(*alike)["balanced"] == pytest.approx(0.5, abs=0.12)
    uneven = metrics.knn_misclassification(blob(0, 0), blob(1, 99)[:7], blob(2, 0)[:9], blob(3, 99), k=3)
    assert uneven["max"] == 0


def test_intrinsic_dimension_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0]])  # T_2 / T_1 is 3, 2 and 3/2, so 1 / m_2 (eq. 15) is the log of that
    logs = [math.log(3), math.log(2), math.log(1.5)]
    assert metrics.intrinsic_dimension(x, k=2) == pytest.approx(sum(1 / log for log in logs) / 3)
    assert metrics.intrinsic_dimension(x, k=2, average="mackay") == pytest.approx(3 / sum(logs))


def test_intrinsic_dimension_is_scikit_dimensions():
    from skdim.id import MLE

    x = normal(500, 4) @ normal(4, 30, seed=1)
    for average, theirs in (("levina", "mean"), ("mackay", "mle")):
        curve = metrics.intrinsic_dimension(x, k=[10, 20], average=average)
        for k in (10, 20):
            expected = MLE().fit(x.numpy(), n_neighbors=k, comb=theirs).dimension_
            assert curve[k] == pytest.approx(expected, rel=1e-9)
            assert metrics.intrinsic_dimension(x, k=k, average=average) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_intrinsic_dimension_of_known_manifolds(d):
    x = torch.rand(4000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = torch.cat([x, (2 * x).sin(), x.square()], 1) @ orthogonal(3 * d)  # smooth, so still d-dimensional
    assert metrics.intrinsic_dimension(waves, k=20, average="mackay") == pytest.approx(d, rel=0.08)
    assert metrics.intrinsic_dimension(waves, k=20) == pytest.approx(d * 19 / 18, rel=0.08)  # biased by (k-1) / (k-2)


def test_intrinsic_dimension_passes_over_duplicates():
    x = normal(200, 3)
    x = torch.cat([x, x[:40], x[:40], x[:1].repeat(31, 1) + 100])  # the last must look past 30 copies of itself
    inverse = []
    for row in cdist(x, x):
        near = np.sort(row[row > 0])[:10]
        inverse.append(np.log(near[-1] / near[:-1]).mean())
    assert metrics.intrinsic_dimension(x, k=10) == pytest.approx(np.mean(1 / np.array(inverse)), rel=1e-9)
    with pytest.raises(ValueError, match="fewer than 10 neighbours"):
        metrics.intrinsic_dimension(torch.cat([normal(5, 3), torch.zeros(100, 3)]), k=10)
    with pytest.raises(ValueError, match="one distance"):
        metrics.intrinsic_dimension(torch.eye(30), k=5)


# rdd


def test_rdd_is_the_ratio_of_mean_squared_distances():
    x = torch.tensor([[0.0, 0], [2, 0], [10, 0], [14, 4]])  # classes 0 and 1: spreads of 1, and 4 + 4
    ref = torch.tensor([[0.0, 0], [0, 4], [0, 0], [0, 0], [4, 0], [4, 0]])
    labels, ref_labels = torch.tensor([3, 3, 7, 7]), torch.tensor([3, 3, 7, 7, 7, 7])  # spreads of 4 and 4
    result = metrics.rdd(x, ref, labels, ref_labels)
    assert result == {"mean": pytest.approx((0.25 + 2) / 2), "per_class": {3: pytest.approx(0.25), 7: pytest.approx(2)}}
    whole = metrics.rdd(x, ref)
    assert whole["mean"] == pytest.approx((x - x.mean(0)).square().sum() / 4 / ((ref - ref.mean(0)).square().sum() / 6))
    assert whole["per_class"] == {}


def test_rdd_leaves_out_classes_of_few_images():
    x, y = normal(120, 1, 2, 2, seed=1), normal(120, 1, 2, 2)
    labels, real_labels = torch.arange(120) % 4, torch.arange(120) % 5  # 30 and 24 of each, but
    labels[labels == 1] = torch.tensor([1] * 19 + [0] * 11)

    def spread(images, of, label):
        rows = images.flatten(1).numpy()[of.numpy() == label]
        return rows.var(0).sum()

    found = metrics.measure(x, y, labels=labels, real_labels=real_labels)["rdd"]["per_class"]
    assert found == pytest.approx({c: spread(x, labels, c) / spread(y, real_labels, c) for c in (0, 2, 3)})
    few = metrics.measure(x[:30], y[:30], labels=labels[:30], real_labels=real_labels[:30])["rdd"]
    ratio = x[:30].flatten(1).numpy().var(0).sum() / y[:30].flatten(1).numpy().var(0).sum()
    assert few == {"mean": pytest.approx(ratio), "per_class": {}}


# bad input


TWO, NAN = torch.rand(2, 3), torch.tensor([[0.0, math.nan, 1], [1, 2, 3]])


@pytest.mark.parametrize(
    "named, call",
    [("x", lambda: metrics.stats(NAN)),
     ("x", lambda: metrics.stats(TWO[:1])),
     ("x", lambda: metrics.fid(torch.rand(0, 3), TWO)),
     ("y", lambda: metrics.fid(TWO, torch.rand(2, 4))),
     ("y", lambda: metrics.fid(TWO, TWO * math.inf)),
     ("mu2, cov2", lambda: metrics.frechet_distance(*metrics.stats(TWO), *metrics.stats(torch.rand(4, 4)))),
     ("mu1, cov1", lambda: metrics.frechet_distance(NAN[0], torch.eye(3), TWO[0], torch.eye(3))),
     ("y", lambda: metrics.mmd(TWO, NAN)),
     ("y", lambda: metrics.mmd(TWO, torch.rand(2, 4))),
     ("x", lambda: metrics.mmd(TWO[:1], TWO, unbiased=True)),
     ("kernel", lambda: metrics.mmd(TWO, TWO, "gauss")),
     ("bandwidth", lambda: metrics.mmd(TWO, TWO, bandwidth=0)),
     ("bandwidth", lambda: metrics.mmd(TWO, TWO, bandwidth=[])),
     ("x", lambda: metrics.median_distance(torch.ones(9, 3))),
     ("x", lambda: metrics.nearest(torch.rand(0, 3), 1)),
     ("x", lambda: metrics.nearest(NAN, 1)),
     ("k", lambda: metrics.nearest(TWO, 2)),
     ("k", lambda: metrics.nearest(TWO, 0, queries=TWO)),
     ("queries", lambda: metrics.nearest(TWO, 1, queries=torch.rand(2, 4))),
     ("queries", lambda: metrics.nearest(TWO, 1, queries=NAN)),
     ("fake_train", lambda: metrics.knn_misclassification(TWO, NAN, TWO, TWO, k=1)),
     ("real_test", lambda: metrics.knn_misclassification(TWO, TWO, torch.rand(0, 3), TWO, k=1)),
     ("fake_test", lambda: metrics.bayes_misclassification(TWO, TWO, TWO, torch.rand(2, 4))),
     ("k", lambda: metrics.knn_misclassification(TWO, TWO, TWO, TWO, k=5)),
     ("real_train, fake_train", lambda: metrics.bayes_misclassification(*[torch.ones(2, 3)] * 4)),
     ("x", lambda: metrics.intrinsic_dimension(TWO)),
     ("k", lambda: metrics.intrinsic_dimension(torch.rand(10, 3), k=10)),
     ("k", lambda: metrics.intrinsic_dimension(torch.rand(10, 3), k=[1, 2])),
     ("k", lambda: metrics.intrinsic_dimension(torch.rand(10, 3), k=[])),
     ("average", lambda: metrics.intrinsic_dimension(torch.rand(30, 3), average="mean")),
     ("ref", lambda: metrics.rdd(TWO, torch.rand(2, 4))),
     ("ref", lambda: metrics.rdd(TWO, torch.ones(2, 3))),
     ("labels, ref_labels", lambda: metrics.rdd(TWO, TWO, torch.tensor([0, 1]))),
     ("x of label 1", lambda: metrics.rdd(TWO, torch.eye(4)[:, :3], torch.zeros(2), torch.tensor([0, 0, 1, 1]))),
     ("kind", lambda: metrics.features(torch.rand(2, 1, 4, 4), "resnet")),
     ("labels", lambda: metrics.train_classifier(torch.zeros(4, 1, 8, 8), torch.zeros(4)))],
)  # fmt: skip
def test_bad_input_is_named(named, call):
    with pytest.raises(ValueError, match=f"^{named}: "):
        call()


# classifier and Inception


def bars(n, seed=0):
    """uint8 images (n, 1, 8, 8) of a bar across or upright, labels 2 and 5."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    images = torch.randint(0, 60, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label, at in zip(images, labels, torch.randint(1, 7, (n,), generator=generator)):
        (image[:, at] if label else image[:, :, at]).fill_(250)
    return images, 2 + 3 * labels


def test_classifier_learns_and_is_cached(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sets = {"train": bars(400), "test": bars(100, seed=1)}
    monkeypatch.setattr(metrics.data, "load", lambda dataset, data_dir, split, size=None: sets[split])
    original = metrics.train_classifier

    trained = []

    def quick(*args, **kwargs):
        trained.append(args)
        updates = {"least": 150} if len(trained) == 1 else {"epochs": 1, "least": 1}
        return original(*args, batch_size=50, **updates, **kwargs)

    monkeypatch.setattr(metrics, "train_classifier", quick)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = metrics.classifier_of("bars", "place")
    assert (torch.get_rng_state() == before).all()  # a run that trains one goes on with the same numbers
    assert net.labels.tolist() == [2, 5] and net.test_error <= 0.05
    assert metrics.test_accuracy(net, *sets["test"]) == pytest.approx(1 - net.test_error)
    assert set(metrics.test_accuracy(net, *sets["test"], per_class=True)) == {2, 5}
    assert metrics.features(sets["test"][0], "classifier", net).shape == (100, 128)

    monkeypatch.setattr(metrics, "train_classifier", None)  # the second time it is read
    again = metrics.classifier_of("bars", "place")
    assert (torch.get_rng_state() == before).all()
    assert again.test_error == net.test_error
    assert all((a == b).all() for a, b in zip(net.state_dict().values(), again.state_dict().values()))

    (tmp_path / "place/classifier-bars-8.pt").rename(tmp_path / "kept.pt")
    torch.save(["of others"], tmp_path / "place/classifier-bars-8.pt")
    with pytest.raises(TypeError, match="callable"):  # trains, as there is none of ours
        metrics.classifier_of("bars", "place")
    (tmp_path / "kept.pt").replace(tmp_path / "place/classifier-bars-8.pt")

    monkeypatch.setattr(metrics, "train_classifier", quick)  # other images: another classifier
    sets["train"] = (sets["train"][0].flip(0), sets["train"][1].flip(0))
    sets["train"][0][0] = 0
    assert metrics.classifier_of("bars", "place").labels.tolist() == [2, 5] and len(trained) == 2
    sets["train"] = (sets["train"][0], sets["train"][1].roll(1))  # the same labels in another order, the same images
    save = torch.save

    def at_once(*args):  # another run saves the same classifier meanwhile
        monkeypatch.setattr(torch, "save", save)
        metrics.classifier_of("bars", "place")
        save(*args)

    monkeypatch.setattr(torch, "save", at_once)
    metrics.classifier_of("bars", "place")
    assert len(trained) == 4 and [path.name for path in (tmp_path / "place").iterdir()] == ["classifier-bars-8.pt"]
    assert not (tmp_path / "data").exists()
    (tmp_path / "blocked").write_text("a file, so nothing can be put into it")
    (tmp_path / "locked").mkdir(mode=0o555)  # root could write there, and is not to
    cached = tmp_path / "data" / "classifier-bars-8.pt"
    for place in ("blocked", "locked"):
        metrics.classifier_of("bars", place)
        assert zipfile.is_zipfile(cached) and not list((tmp_path / "locked").iterdir())
        cached.unlink()
    sets["train"] = (sets["train"][0], torch.zeros(400))
    with pytest.raises(metrics.InputError, match="pixels"):
        metrics.classifier_of("bars", "place")


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (3, 64)])
def test_classifier_takes_the_sizes_of_the_data_sets(channels, size):
    net = metrics.Classifier(channels, size, torch.arange(7)).eval()
    x = torch.rand(2, channels, size, size)
    assert net(x).shape == (2, 7) and metrics.features(x, "classifier", net).shape == (2, 128)


class Reader(torch.nn.Module):
    """Reads an image's label off its first pixel, ten times the value, and is as sure of it as its second says."""

    labels = torch.arange(10)

    def forward(self, x):
        sure = x[:, 0, 0, 1:2]
        given = torch.nn.functional.one_hot((10 * x[:, 0, 0, 0]).long(), 10)
        return torch.where(given == 1, sure, (1 - sure) / 9).log()


def test_accuracy_and_confidence_by_hand():
    x = torch.zeros(4, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([0.05, 0.15, 0.15, 0.25])
    x[:, 0, 0, 1] = torch.tensor([0.5, 0.88, 0.95, 0.99])
    labels = torch.tensor([0, 1, 2, 2])
    assert metrics.test_accuracy(Reader(), x, labels) == 0.75
    assert metrics.test_accuracy(Reader(), x, labels, per_class=True) == {0: 1, 1: 1, 2: 0.5}
    found = metrics.confidence(Reader(), x)
    assert found == {"mean_confidence": pytest.approx((0.5 + 0.88 + 0.95 + 0.99) / 4), "above_0.9": 0.5}
    with pytest.raises(ValueError, match="^labels: "):
        metrics.test_accuracy(Reader(), x, labels[:2])


def test_features_of_bytes_are_those_of_floats():
    x = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(metrics.features(x, "pixels"), x.flatten(1) / 255)


def test_inception_is_pytorch_fids(monkeypatch, tmp_path):
    import pytorch_fid.inception as theirs

    state, generator = {}, torch.Generator().manual_seed(0)
    for name, value in metrics.Inception().net.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("conv.weight"):
            value = noise * math.sqrt(2 / value[0].numel())  # keeps the activations' size through the layers
        elif value.is_floating_point() and ".bn." in name:
            value = 1 + 0.2 * noise.tanh() if name.endswith(("weight", "var")) else 0.2 * noise
        state[name] = value
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state)
    torch.save(state, tmp_path / metrics.INCEPTION_FILE)
    net = metrics.inception(tmp_path / metrics.INCEPTION_FILE)
    for shape in ((2, 3, 32, 32), (1, 3, 64, 64)):
        x = torch.rand(*shape, generator=generator)
        expected = theirs.InceptionV3([3]).eval()(x)[0].flatten(1)
        assert expected.std() > 0.1  # else there would be nothing to compare
        assert metrics.features(x, "inception", net).numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    grey = torch.rand(1, 1, 28, 28, generator=generator)
    assert torch.equal(
        metrics.features(grey, "inception", net), metrics.features(grey.expand(-1, 3, -1, -1), "inception", net)
    )

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(
        metrics.InputError, match="https://github.com/mseitzer/pytorch-fid/.*hub|hub.*https://github.com/mseitzer"
    ):
        metrics.inception()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(metrics.InputError, match="other.pth does not hold the weights"):
        metrics.inception(tmp_path / "other.pth")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / metrics.INCEPTION_FILE).rename(tmp_path / "hub" / "checkpoints" / metrics.INCEPTION_FILE)
    assert torch.equal(metrics.features(x, "inception", metrics.inception()), metrics.features(x, "inception", net))


# runs


TOY = """
import torch
from torch import nn

class G(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.shade = nn.Parameter(torch.tensor(0.25))
        self.size = size

def build(args):
    D = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(args.size ** 2), nn.Linear(args.size ** 2, 1), nn.Flatten(0))
    return {"G": G(args.size), "D": D} if args.judge else {"G": G(args.size)}

def sample(nets, n, labels=None, generator=None, batch_size=100STEPS):
    x = torch.rand(n, 1, nets["G"].size, nets["G"].size, generator=generator) * nets["G"].shade.item()
    return x + (0 if labels is None else labels[:, None, None, None].float() / 20)EXTRA
"""


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """toy.py and the recurrent toysteps.py stand beside metrics.py; make(name) saves a run and gives its folder."""
    (tmp_path / "toy.py").write_text(TOY.replace("STEPS", "").replace("EXTRA", ""))
    (tmp_path / "toysteps.py").write_text(
        TOY.replace("STEPS", ", steps=None").replace("EXTRA", " + (steps or 0) / 100")
    )
    monkeypatch.setattr(metrics, "HERE", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name="run", script="toy", **values):
        args = {
            "dataset": "bars",
            "size": 8,
            "judge": True,
            "batch_size": 5,
            "conditional": False,
            "out": tmp_path,
            **values,
        }
        module = __import__(script)
        torch.manual_seed(1)
        nets = module.build(SimpleNamespace(**args))
        optimiser = torch.optim.Adam(nets["G"].parameters())
        metrics.save_run(tmp_path / name, script, SimpleNamespace(**args), 7, nets, {"G": optimiser})
        return tmp_path / name

    yield make
    for name in ("toy", "toysteps"):
        sys.modules.pop(name, None)


def test_run_comes_back(toy, tmp_path):
    folder = toy()
    run = metrics.load_run(folder)
    assert (run.script, run.step, run.name, run.args.size, run.conditional) == ("toy", 7, "run", 8, False)
    assert run.args.out == str(tmp_path)  # plain values only
    images = run.sample(6, seed=2)
    expected = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.25
    assert torch.equal(images, expected) and not torch.equal(images, run.sample(6, seed=3))
    assert metrics.load_run(folder / "checkpoint.pt").name == "run"
    content = metrics.load_checkpoint(folder, "toy")
    assert set(content) == {"script", "args", "step", "nets", "optimisers", "rng"}
    assert content["rng"]["cpu"].dtype == torch.uint8
    assert metrics.load_run(toy("blind", judge=False)).logits is None
    assert not [path for path in folder.iterdir() if path.name != "checkpoint.pt"]


def test_discriminator_sees_whole_batches_of_its_own(toy):
    run = metrics.load_run(toy())
    x = torch.rand(12, 1, 8, 8)
    running = {name: value.clone() for name, value in run.nets["D"].state_dict().items()}
    weight, bias = run.nets["D"][2].weight.detach(), run.nets["D"][2].bias.detach()
    expected = []
    for index in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 0, 1, 2]):  # the last is filled up from the start
        batch = x[index].flatten(1)
        batch = (batch - batch.mean(0)) / (batch.var(0, correction=0) + 1e-5).sqrt()
        expected.append((batch @ weight.T + bias).squeeze(1))
    assert run.logits(x).numpy() == pytest.approx(torch.cat(expected)[:12].numpy(), rel=1e-4, abs=1e-5)
    assert all(torch.equal(value, running[name]) for name, value in run.nets["D"].state_dict().items())


def test_steps_are_for_recurrent_runs(toy):
    folder = toy("recurrent", "toysteps")
    assert metrics.load_run(folder).sample(2).max() < 0.25
    seven = metrics.open_source(f"{folder}@7", "cpu")
    assert seven.name == "recurrent@7" and torch.equal(seven.sample(2), metrics.load_run(folder).sample(2) + 0.07)
    for path, steps in ((toy("plain"), 7), (folder, 0)):
        with pytest.raises(metrics.InputError, match="recurrent"):
            metrics.load_run(path, steps=steps)


def test_random_states_of_gpus_are_kept_but_for_those_that_are_gone(tmp_path, monkeypatch):
    folder, restored = tmp_path / "run", []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.full((16,), i, dtype=torch.uint8) for i in range(4)])
    metrics.save_run(folder, "gran", {}, 7, {}, {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda.random, "set_rng_state", lambda state, device: restored.append((device, state[0].item())))
    assert metrics.restore_run(folder, {}, {}) == 7 and restored == [(0, 0), (1, 1)]


@pytest.mark.parametrize("typed, epochs, iters", [("", 15, 2), ("--iters 9", 15, 9), ("--epochs 15", 15, None),
                                                  ("--epochs 20", 20, None), ("--epochs 15 --iters 2", 15, 2)])  # fmt: skip
def test_epochs_typed_on_resume_end_what_iters_said(tmp_path, typed, epochs, iters):
    parser = metrics.Parser("toy")
    for flag in ("--resume", "--out", "--sample"):
        parser.add_argument(flag)
    for flag, default in (("--epochs", 15), ("--iters", None)):
        parser.add_argument(flag, type=metrics.count, default=default)
    metrics.save_run(tmp_path, "toy", {"channels": 1, "size": 8, "batch_size": 5, "epochs": 15, "iters": 2}, 2, {}, {})
    args = metrics.resumed_args(parser, ["--resume", str(tmp_path), *typed.split()], "toy")
    assert (args.epochs, args.iters) == (epochs, iters)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_checkpoints_that_are_none_of_ours_are_refused(toy, tmp_path):
    folder = toy()
    good = torch.load(folder / "checkpoint.pt", weights_only=True)
    whole = (folder / "checkpoint.pt").read_bytes()

    def refused(content, said, script=None):
        if isinstance(content, bytes):
            (folder / "checkpoint.pt").write_bytes(content)
        else:
            torch.save(content, folder / "checkpoint.pt")
        with pytest.raises(metrics.InputError, match=said) as error:
            metrics.load_run(folder) if script is None else metrics.load_checkpoint(folder, script)
        assert "\n" not in str(error.value)

    refused(
        {**good, "args": Trap(str(tmp_path / "sprung"))}, "cannot be read as a checkpoint of tensors and plain values"
    )
    assert not (tmp_path / "sprung").exists()
    refused(pickle.dumps(Trap(str(tmp_path / "sprung"))), "not a checkpoint")
    refused(b"", "not a checkpoint")
    refused(whole[: len(whole) // 2], "broken")
    hollow = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as there, zipfile.ZipFile(hollow, "w") as file:
        for name in there.namelist():
            file.writestr(name, b"" if name.endswith("data.pkl") else there.read(name))
    refused(hollow.getvalue(), "cannot be read as a checkpoint")
    refused([1, 2], "not a checkpoint of these scripts")
    refused({**good, "step": "7"}, "no 'step' of type int")
    for script in ("os", "../toy", "metrics", "data", "Toy", "toy.py", "none"):
        refused({**good, "script": script}, "no such script stands beside metrics.py")
    refused(good, "written by toy.py, not by gran.py", script="gran")
    refused({**good, "nets": {"G": good["nets"]["G"]}}, "does not fit toy.py")
    refused({**good, "args": {}}, "does not fit toy.py")
    for path, said in ((tmp_path / "nowhere", "no such file or folder"), (tmp_path, "holds no checkpoint.pt")):
        with pytest.raises(metrics.InputError, match=said):
            metrics.load_checkpoint(path)


def test_a_save_that_breaks_off_leaves_the_last_checkpoint(toy, monkeypatch):
    folder = toy()
    before = (folder / "checkpoint.pt").read_bytes()

    def broken(content, file):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        toy()
    assert (folder / "checkpoint.pt").read_bytes() == before


# the command line


@pytest.fixture
def bars_set(monkeypatch):
    """`bars` in the place of a data set, and a classifier that reads nothing but is quick."""
    sets = {"train": bars(300), "test": bars(200, seed=1)}
    original = metrics.data.load

    def load(dataset, data_dir="data", split="train", size=None):
        return sets[split] if dataset == "bars" else original(dataset, data_dir, split, size)

    def classifier(*args):
        torch.manual_seed(0)
        net = metrics.Classifier(1, 8, torch.tensor([2, 5])).eval()
        net.test_error = 0.25
        return net

    monkeypatch.setattr(metrics.data, "load", load)
    monkeypatch.setattr(metrics, "classifier_of", classifier)
    return sets


def table(out):
    """{name: the eight cells} of eval's first table."""
    return {line.split("  ")[0]: line.split()[-8:] for line in reversed(out.splitlines())}


def test_eval_prints_all_sources_under_the_real_ones(toy, bars_set, tmp_path, capsys):
    noise = torch.rand(250, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "noise.npy", noise.numpy())
    np.savez(tmp_path / "labelled.npz", images=bars_set["test"][0].numpy(), labels=bars_set["test"][1].numpy())
    for i, image in enumerate(bars_set["test"][0][:180]):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    sources = [str(toy()), *(str(tmp_path / name) for name in ("noise.npy", "labelled.npz", "pictures"))]
    file = tmp_path / "eval.json"
    metrics.main(["eval", *sources, "--json", str(file), "--device", "cpu", "--paper-units"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out
    assert "180 images of each against 180 training images, seed 0" in out and "misreads 25.00%" in out
    shown, content = table(out), json.loads(file.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["real test images", "run", "noise.npy", "labelled.npz", "pictures"]
    assert content["features"] == "classifier" and content["classifier_test_error"] == 0.25 and content["n"] == 180

    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:180]
    real = bars_set["train"][0][order] / 255
    images = noise[torch.randperm(250, generator=torch.Generator().manual_seed(0))[:180], None]
    row = rows["noise.npy"]
    net = metrics.classifier_of()
    features = [metrics.features(x, "classifier", net) for x in (images, real)]
    assert row["fid"] == pytest.approx(metrics.fid(*features), rel=1e-5)
    assert row["mmd"] == pytest.approx(metrics.mmd(images, real), rel=1e-9)
    assert row["knn"] == metrics.knn_misclassification(real[:90], images[:90], real[90:], images[90:])
    assert row["bayes"] == metrics.bayes_misclassification(real[:90], images[:90], real[90:], images[90:])
    assert row["rdd"]["mean"] == pytest.approx(metrics.rdd(images, real)["mean"]) and "accuracy" not in row
    assert row["paper"]["fid"] == pytest.approx(math.sqrt(metrics.fid(255 * images, 255 * real)), rel=1e-6)
    assert row["paper"]["mmd"] == pytest.approx(math.sqrt(row["mmd"])) and row["paper"]["knn"] == row["knn"]["max"]
    assert (
        shown["noise.npy"][0] == f"{row['fid']:.4g}"
        and shown["noise.npy"][-2] == "-"
        and shown["noise.npy"][-1][-1] == "*"
    )
    assert shown["noise.npy"][2] == f"{row['knn']['min']:.3f}" and row["mmd"] > 10 * rows["real test images"]["mmd"]

    accuracy = metrics.test_accuracy(net, *(x[torch.randperm(200, generator=torch.Generator().manual_seed(0))[:180]]
                                            for x in bars_set["test"]))  # fmt: skip
    assert rows["labelled.npz"]["accuracy"] == accuracy == rows["real test images"]["accuracy"]
    assert set(rows["labelled.npz"]["rdd"]["per_class"]) == {"2", "5"}
    pictures = metrics.features(metrics.read_images(tmp_path / "pictures").sample(180), "classifier", net)
    assert rows["pictures"]["fid"] == pytest.approx(metrics.fid(pictures, features[1]), rel=1e-6)


def test_eval_draws_conditional_runs_in_balance(toy, bars_set, tmp_path, capsys):
    for split, (images, labels) in bars_set.items():
        bars_set[split] = images, (labels - 2) // 3
    folder = toy("conditional", conditional=True, classes=2)
    metrics.main(
        [
            "eval",
            str(folder),
            "--n",
            "100",
            "--features",
            "pixels",
            "--json",
            str(tmp_path / "e.json"),
            "--device",
            "cpu",
        ]
    )
    assert "on pixels features (64 numbers)" in capsys.readouterr().out
    row = json.loads((tmp_path / "e.json").read_text())["rows"][1]
    labels = torch.arange(100) % 2
    expected = metrics.load_run(folder).sample(100, labels=labels)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:100]
    real = bars_set["train"][0][order] / 255
    assert row["fid"] == pytest.approx(metrics.fid(expected, real), rel=1e-9)
    assert row["rdd"]["mean"] == pytest.approx(metrics.rdd(expected, real, labels, bars_set["train"][1][order])["mean"])
    assert 0 <= row["accuracy"] <= 1 and set(row["accuracy_per_class"]) == {"0", "1"}


def test_eval_looks_up_classes_by_their_labels(toy, bars_set, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 300), ("test", 200)):
        shades = torch.arange(n) % 3 + 1
        noise = torch.rand(n, 1, 8, 8, generator=generator)
        bars_set[split] = (noise * 80 * shades[:, None, None, None]).byte(), torch.tensor([2, 5, 7])[shades - 1]
    images, labels = bars_set["test"]
    for name, kept in (("some", labels > 2), ("others", labels < 7)):
        np.savez(tmp_path / f"{name}.npz", images=images[kept], labels=labels[kept])
    sources = [str(tmp_path / "some.npz"), str(tmp_path / "others.npz")]
    flags = ["--dataset", "bars", "--device", "cpu", "--json", str(tmp_path / "e.json")]
    metrics.main(["eval", *sources, *flags])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:133]  # some.npz has the fewest, 133
    real, real_labels = (part[order].flatten(1).numpy() for part in (bars_set["train"][0], bars_set["train"][1][:, None]))
    spread = images[labels == 5].flatten(1).numpy().var(0).sum() / real[real_labels[:, 0] == 5].var(0).sum()
    assert rows[1]["rdd"]["per_class"]["5"] == pytest.approx(spread, rel=1e-5)
    for title, key in (("rdd", lambda row: row["rdd"]["per_class"]), ("accuracy", lambda row: row["accuracy_per_class"])):
        at = shown.index([title, "per", "class", "2", "5", "7"])
        cells = {line[0]: line[-3:] for line in shown[at + 1 : at + 4]}
        some, others = (key(row) for row in rows[1:])
        assert list(some) == ["5", "7"] and list(others) == ["2", "5"]
        assert cells["some.npz"] == ["-", f"{some['5']:.2f}", f"{some['7']:.2f}"]
        assert cells["others.npz"] == [f"{others['2']:.2f}", f"{others['5']:.2f}", "-"]

    for split, (images, _) in bars_set.items():
        bars_set[split] = images, torch.zeros(len(images), dtype=torch.int64)
    metrics.main(["eval", *sources, str(toy("conditional", conditional=True, classes=2)), *flags])  # now the real images have no labels
    for row in json.loads((tmp_path / "e.json").read_text())["rows"]:
        assert row["rdd"]["per_class"] == {} and "accuracy" not in row
    drawn = metrics.load_run(tmp_path / "conditional").sample(133, labels=torch.arange(133) % 2).flatten(1).numpy()
    assert row["n"] == 133 and row["rdd"]["mean"] == pytest.approx(drawn.var(0).sum() / (real / 255).var(0).sum(), rel=1e-5)


def test_folders_of_large_images_are_measured_at_one_size_that_is_said(bars_set, tmp_path, capsys):
    """Noise of 96 px on 100 x 96, and flat pictures of 150 px, which are flat at any size."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 100, 96), dtype=np.uint8)
    shades = np.arange(24) * 10
    for name, pictures in (("noise", noise), ("flat", [np.full((150, 150), shade, dtype=np.uint8) for shade in shades])):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{i:02}.png")
    np.save(tmp_path / "eight.npy", np.broadcast_to(shades[:, None, None], (24, 8, 8)).astype(np.uint8))
    x = noise[:, 2:98].reshape(24, -1) / 255
    y = np.broadcast_to(shades[:, None] / 255, x.shape)
    a, b = ((z - z.mean(0)) / 23**0.5 for z in (x, y))
    fid = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")

    def measured(*command):
        metrics.main([*map(str, command), "--device", "cpu", "--json", str(tmp_path / "f.json")])
        return capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())

    out, row = measured("folders", tmp_path / "noise", tmp_path / "flat")
    assert "24 of flat, 96 px," in out and row["fid"] == pytest.approx(fid, rel=1e-5)
    for other, flags, side in (("noise", ["--size", 30], 30), ("eight.npy", [], 8)):
        assert f"{side} px," in measured("folders", tmp_path / "flat", tmp_path / other, *flags)[0]
    out, content = measured("eval", tmp_path / "flat", tmp_path / "eight.npy", "--dataset", "bars", "--features", "pixels")
    assert "bars, 8 px: 24 images" in out and content["rows"][1]["fid"] == content["rows"][2]["fid"]


def test_json_has_null_where_a_figure_is_infinite(tmp_path):
    metrics._write_json(tmp_path / "f.json", {"r_sample": math.inf, "r_sample_95": (0.5, math.inf)})
    assert json.loads((tmp_path / "f.json").read_text()) == {"r_sample": None, "r_sample_95": [0.5, None]}


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2", "longdouble"])
def test_floats_of_every_kind_are_read(kind, tmp_path):
    images = np.arange(64).reshape(4, 4, 4) / 64
    np.savez(tmp_path / "a.npz", pictures=images.astype(kind), labels=np.array([3, 1, 2, 1], dtype=">u2"))
    found = metrics.read_images(tmp_path / "a.npz")
    assert torch.equal(found.images, torch.tensor(images[:, None], dtype=torch.float32)) and found.labels.tolist() == [3, 1, 2, 1]


def test_a_name_that_the_terminal_cannot_print_ends_no_measurement(tmp_path, monkeypatch):
    x = torch.randint(0, 256, (60, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    names = [str(tmp_path / name) for name in ("na\u00efve.npy", "b.npy")]
    for name in names:
        np.save(name, x)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    metrics.main(["folders", *names, "--device", "cpu"])
    sys.stdout.flush()
    assert b"60 images of na?ve.npy against 60 of b.npy" in sys.stdout.buffer.getvalue()


def test_folders_compares_two(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, top, (60, 8, 8), generator=generator, dtype=torch.uint8) for top in (256, 200))
    np.save(tmp_path / "a.npy", x.numpy())
    for i, image in enumerate(y):
        (tmp_path / "b").mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).convert("RGB").save(tmp_path / "b" / f"{i:02}.png")
    metrics.main(
        [
            "folders",
            *(str(tmp_path / name) for name in ("a.npy", "b")),
            "--json",
            str(tmp_path / "f.json"),
            "--device",
            "cpu",
        ]
    )
    out = capsys.readouterr().out
    assert "60 images of a.npy against 60 of b" in out and all(len(line) <= 80 for line in out.splitlines())
    row = json.loads((tmp_path / "f.json").read_text())
    assert row["fid"] == pytest.approx(metrics.fid(x / 255, y / 255), rel=1e-5) and row["n"] == 60
    assert row["mmd"] == pytest.approx(metrics.mmd(x / 255, y / 255), rel=1e-5)


@pytest.mark.parametrize("values, log, low, high, marks", [
    ([10, 1000], True, 10, 1000, [10, 20, 50, 100, 200, 500, 1000]),
    ([30, 3], True, 3, 30, [5, 10, 20]),
    ([3, 9], False, 0, 9, [0, 2, 4, 6, 8]),
    ([-1, 1], False, -1, 1, [-1, -0.5, 0, 0.5, 1]),
    ([100, 3600], False, 0, 3600, [0, 500, 1000, 1500, 2000, 2500, 3000, 3500]),
    ([0.04, 0.01], False, 0, 0.04, [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04]),
])  # fmt: skip
def test_axes_span_their_values_and_are_marked_at_round_ones(values, log, low, high, marks):
    share, found = metrics._axis(values, log)
    assert (share(low), share(high)) == pytest.approx((0, 1))
    assert found == pytest.approx(marks)
    assert share(math.sqrt(low * high) if log else (low + high) / 2) == pytest.approx(0.5)


def test_an_axis_of_one_value_has_a_place_for_it():
    assert metrics._axis([7], True)[0](7) == 0 and metrics._axis([0, 0], False)[0](0) == 0


@pytest.mark.parametrize("log, points", [
    ("", {"navy": [(60, 360), (330, 50), (600, 205)], "firebrick": [(330, 205)]}),       # halves of 100 and 8
    ("xy", {"navy": [(60, 50), (600, 360)], "firebrick": [(330, 205)]}),                 # halves of 1..100 and 1..10,000
])  # fmt: skip
def test_curves_pass_where_their_values_say(tmp_path, log, points):
    curves = {"": {"a": [(0, 0), (4, 100), (8, 50)], "b": [(4, 50)]}, "xy": {"a": [(1, 100), (10000, 1)], "b": [(100, 10)]}}[log]
    metrics.draw_curves(curves | {"none yet": []}, tmp_path / "curves.png", "title", log)
    with Image.open(tmp_path / "curves.png") as image:
        for colour, places in points.items():
            assert [image.getpixel(place) for place in places] == [ImageColor.getrgb(colour)] * len(places)


def test_dim_prints_and_draws_the_curve(bars_set, tmp_path, capsys):
    picture = tmp_path / "dim.png"
    metrics.main(
        ["dim", "--dataset", "bars", "--k", "5", "10", "40", "--n", "200", "--out", str(picture), "--device", "cpu"]
    )
    out = capsys.readouterr().out
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    for average, column in (("levina", 1), ("mackay", 2)):
        curve = metrics.intrinsic_dimension(bars_set["train"][0][order], k=[5, 10, 40], average=average)
        shown = {line.split()[0]: line.split()[column] for line in out.splitlines() if line[:1].isdigit()}
        assert shown == {str(k): f"{value:.2f}" for k, value in curve.items()}
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**16)}
        assert image.size == (640, 400) and {(0, 0, 128), (178, 34, 34)} <= colours


@pytest.mark.parametrize(
    "command, said",
    [(["eval", "nowhere"], "nowhere is not a run"),
     (["eval", "empty", "--dataset", "bars"], "empty is no run"),
     (["eval"], "required"),
     (["gam"], "required"),
     (["eval", "noise.npy"], "--dataset"),
     (["eval", "noise.npy", "--dataset", "bars"], "another shape than the real ones: 1x4x4 against 1x8x8"),
     (["eval", "bytes.npy", "--dataset", "bars"], "is not a file of plain arrays"),
     (["eval", "wild.npy", "--dataset", "bars"], "floats in [0, 1]"),
     (["eval", "none.npz", "--dataset", "bars"], "an array `images`"),
     (["eval", "deep.npy", "--dataset", "bars"], "holds uint16 of shape"),
     (["eval", "words.npz", "--dataset", "bars"], "a label for each, a whole number"),
     (["eval", "onehot.npz", "--dataset", "bars"], "a label for each, a whole number"),
     (["eval", "noise.npy", "--dataset", "bars", "--n", "10"], "too few"),
     (["eval", "noise.npy", "--dataset", "bars", "--k", "0"], "less than 1"),
     (["eval", "noise.npy", "--dataset", "bars", "--features", "inception", "--inception-weights", "no.pth"], "no.pth"),
     (["gam", "run", "nowhere"], "nowhere is not a run"),
     (["gam", "run@7", "run"], "recurrent"),
     (["gam", "run", "small"], "the runs differ in size"),
     (["dim", "--dataset", "bars", "--k", "5", "--out", "curve"], "--out curve is no name of a picture"),
     (["dim", "--dataset", "bars", "--k", "5", "--out", "nowhere/curve.png"], "nowhere/curve.png cannot be written"),
     (["eval", "noise.npy", "--dataset", "bars", "--json", "nowhere/e.json"], "nowhere/e.json cannot be written"),
     (["dim", "--dataset", "bars", "--k", "400"], "too few for k = 400"),
     (["folders", "noise.npy", "nowhere"], "nowhere is not a run"),
     (["fid", "a", "b"], "invalid choice")],
)  # fmt: skip
def test_one_line_says_what_is_wrong(toy, bars_set, tmp_path, monkeypatch, capsys, command, said):
    monkeypatch.chdir(tmp_path)
    toy(), toy("small", size=6)
    np.save("noise.npy", np.random.default_rng(0).random((100, 4, 4)))
    np.save("wild.npy", np.full((100, 8, 8), 7.0))
    np.save("deep.npy", np.zeros((100, 8, 8), dtype=np.uint16))
    for name, labels in (("words", np.array(["a", "b"] * 50)), ("onehot", np.eye(100, dtype=np.int64))):
        np.savez(f"{name}.npz", images=np.zeros((100, 8, 8)), labels=labels)
    np.savez("none.npz", a=np.zeros((9, 8, 8)), b=np.zeros((9, 8, 8)))
    (tmp_path / "bytes.npy").write_bytes(b"not an array")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        metrics.main(command)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error:" in line]
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in error


def test_ctrl_c_ends_a_command_quietly(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt  # as SIGINT does, but for a process that was begun with it ignored

    monkeypatch.setattr(metrics, "dim_command", stopped)
    with pytest.raises(SystemExit) as stop:
        metrics.main(["dim", "--device", "cpu"])
    assert stop.value.code == 130 and capsys.readouterr() == ("", "")


def test_neighbours_are_scikit_learns():
    x = normal(3000, 20, dtype=torch.float32)
    distances, indices = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(x.numpy()).kneighbors(x.numpy())
    ours = metrics.nearest(x, 5)
    np.testing.assert_allclose(ours[0], distances[:, 1:], rtol=1e-5)
    assert (ours[1].numpy() == indices[:, 1:]).all()


def test_many_neighbours_of_long_rows_are_looked_at_few_queries_at_once(monkeypatch):
    """Of 16 queries with k = 1,000 on CIFAR-10 the candidates took 0.4 GB a time, and the whole search over 20 GiB."""
    sizes, distances = [], metrics._distances

    def counted(asked, index, rows):
        sizes.append((len(asked), index.numel() * rows.shape[1]))
        return distances(asked, index, rows)

    monkeypatch.setattr(metrics, "_distances", counted)
    metrics.nearest(normal(600, 3072, dtype=torch.float32), 550)
    assert {len_asked for len_asked, _ in sizes} == {2} and max(numbers for _, numbers in sizes) <= 2**22
    sizes.clear()
    metrics.nearest(normal(600, 784, dtype=torch.float32), 5)
    assert max(len_asked for len_asked, _ in sizes) == 16  # as many as before where they are short
