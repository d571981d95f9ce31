"""Measures against closed forms, numpy, scipy, scikit-learn, scikit-dimension and pytorch-fid.

And `metrics.py eval` and `dim` as users type them. About 30 s on one core.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

import data
import metrics


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


# FID


def test_frechet_distance_of_diagonal_gaussians():
    mu1, mu2, s1, s2 = normal(4, 6, seed=1).unbind()
    s1, s2 = s1.abs(), s2.abs()
    expected = (mu1 - mu2).square().sum() + (s1 - s2).square().sum()  # each column on its own
    given = mu1, s1.square().diag(), mu2, s2.square().diag()
    assert metrics.frechet_distance(*given) == pytest.approx(expected.item(), rel=1e-12)
    arrays = [value.numpy() for value in given]
    assert metrics.frechet_distance(*arrays) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("decay", [-1, -6, -10])
def test_frechet_distance_of_covariances_that_share_their_axes(decay):
    axes, zero = orthogonal(60), torch.zeros(60)
    a = torch.logspace(0, decay, 60, dtype=torch.float64)
    b = a.flip(0).sqrt()
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    found = metrics.frechet_distance(zero, axes * a @ axes.T, zero, axes * b @ axes.T)
    assert found == pytest.approx(expected, rel=1e-9)


def test_fid_is_scipys_and_pytorch_fids():
    from pytorch_fid.fid_score import calculate_frechet_distance

    x = normal(300, 40) @ normal(40, 40, seed=1)
    y = normal(200, 40, seed=2) @ normal(40, 40, seed=3) + 1
    (mu1, c1), (mu2, c2) = ((z.numpy().mean(0), np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    for found in (metrics.fid(x, y), metrics.fid(y, x), metrics.fid(x.numpy(), y.numpy()),
                  metrics.frechet_distance(mu1, c1, mu2, c2)):
        assert found == pytest.approx(expected, rel=1e-9)
        assert found == pytest.approx(calculate_frechet_distance(mu1, c1, mu2, c2), rel=1e-9)


@pytest.mark.parametrize("n, m, d", [(2, 2, 100), (20, 30, 100), (30, 500, 100), (2, 2, 10_000)])
def test_fid_with_fewer_rows_than_columns(n, m, d):
    x, y = normal(n, d), normal(m, d, seed=1)
    x[:, d // 2 :] = 0.5  # constant pixels
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    cross = torch.linalg.svdvals(a @ b.T).sum()  # C = a'a: the nuclear norm of a b'
    both = a.square().sum() + b.square().sum() - 2 * cross
    expected = (x.mean(0) - y.mean(0)).square().sum() + both
    assert metrics.fid(x, y) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
@pytest.mark.parametrize("n", [30, 1000])
def test_fid_of_equal_sets_is_zero_and_of_moved_ones_the_move(n, scale):
    x = normal(n, 64) @ torch.logspace(0, -7, 64, dtype=torch.float64).diag() @ orthogonal(64)
    x = x * scale
    assert 0 <= metrics.fid(x, x.clone()) <= 1e-10 * x.var(0).sum().item()
    assert metrics.fid(x, x + 3 * scale) == pytest.approx(64 * (3 * scale) ** 2, rel=1e-9)


def test_fid_keeps_its_digits_at_large_means_and_of_constants():
    x, y = normal(200, 10), normal(200, 10, seed=1)
    assert metrics.fid(x + 1e6, y + 1e6) == pytest.approx(metrics.fid(x, y), rel=1e-7)
    cov = metrics.stats(x + 1e6)[1].numpy()
    assert cov == pytest.approx(np.cov(x.numpy(), rowvar=False), rel=1e-7, abs=1e-9)
    assert metrics.fid(torch.ones(5, 3), torch.zeros(4, 3)) == pytest.approx(3)
    assert metrics.fid(torch.ones(5, 3), torch.ones(4, 3)) == 0


def test_the_spread_of_fid_and_mmd_is_that_of_new_samples():
    def draw(i):
        return normal(200, 8, seed=2 * i), 1.3 * normal(200, 8, seed=2 * i + 1) + 0.5

    for measure in (metrics.fid, lambda x, y: metrics.mmd(x, y, bandwidth=4.0)):
        truth = np.std([measure(*draw(i)) for i in range(40)])
        found = np.mean([metrics.spread(measure, *draw(100 + i)) for i in range(8)])
        assert found == pytest.approx(truth, rel=0.4)


# MMD


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["rbf", "several", "polynomial", "linear"])
def test_mmd_is_that_of_whole_gram_matrices(kernel, unbiased):
    x, y = normal(1300, 3), 1.2 * normal(1100, 3, seed=1) + 0.1  # more than a tile of each

    def rbf(a, b, sigma):
        return rbf_kernel(a, b, gamma=1 / (2 * sigma**2))

    gram = {"rbf": lambda a, b: rbf(a, b, 1.5),
            "several": lambda a, b: (rbf(a, b, 1.5) + rbf(a, b, 0.5)) / 2,
            "polynomial": lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1),
            "linear": lambda a, b: a @ b.T}[kernel]
    xx, yy, xy = (gram(a.numpy(), b.numpy()) for a, b in ((x, x), (y, y), (x, y)))
    within = xx.mean() + yy.mean()
    if unbiased:
        within = sum((g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in (xx, yy))
    name = "rbf" if kernel == "several" else kernel
    bandwidth = {"rbf": 1.5, "several": [1.5, 0.5]}.get(kernel)
    found = metrics.mmd(x, y, name, bandwidth, unbiased)
    assert found == pytest.approx(within - 2 * xy.mean(), rel=1e-9)


def test_mmd_of_two_points_and_far_means():
    x, y = torch.zeros(1, 1), torch.full((1, 1), 2.0)
    assert metrics.mmd(x, y, bandwidth=1.0) == pytest.approx(2 - 2 * math.exp(-2))  # |x-y|^2/2 = 2
    assert metrics.mmd(x, y, "linear") == pytest.approx(4)
    x, y = normal(50, 3), normal(50, 3, seed=4)
    far = metrics.mmd(x + 1e5, y + 1e5, bandwidth=1.0)
    assert far == pytest.approx(metrics.mmd(x, y, bandwidth=1.0), rel=1e-7)
    values = [metrics.mmd(normal(50, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1), unbiased=True)
              for i in range(8)]
    assert min(values) < 0 < max(values)


def test_mmds_bandwidth_is_the_median_distance_of_the_real_images():
    x, y = normal(300, 4), 2 * normal(200, 4, seed=1)
    sigma = np.median(pdist(y.numpy()))
    assert metrics.median_distance(y) == pytest.approx(sigma, rel=1e-12)
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=sigma), rel=1e-12)
    many = normal(3000, 4, seed=2)
    assert metrics.median_distance(many) == pytest.approx(np.median(pdist(many.numpy())), rel=0.02)
    mostly = torch.cat([torch.zeros(50, 4), torch.ones(5, 4)])  # more than half at distance 0
    assert metrics.median_distance(mostly) == 2


# neighbours


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("n, d, k", [(2, 3, 1), (50, 1, 49), (5000, 3, 4), (600, 300, 20)])
def test_nearest_is_brute_force(n, d, k, dtype):
    shift, scale = (50, 20) if dtype == torch.uint8 else (0, 1)
    x, queries = ((shift + scale * normal(m, d, seed=i)).to(dtype) for i, m in ((0, n), (1, 7)))
    own = cdist(x.double()[:1000], x.double())
    own[np.arange(len(own)), np.arange(len(own))] = np.inf
    other = cdist(queries.double(), x.double())
    for expected, found in ((own, metrics.nearest(x, k)), (other, metrics.nearest(x, k, queries))):
        distances, indices = found[0][:1000], found[1][:1000]
        assert distances.dtype == torch.float64 and indices.dtype == torch.int64
        sort = np.sort(expected, 1)[:, :k]
        np.testing.assert_allclose(distances, sort, rtol=1e-9, atol=1e-12)
        own_rows = np.take_along_axis(expected, indices.numpy(), 1)
        np.testing.assert_allclose(distances, own_rows, rtol=1e-9, atol=1e-12)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_nearest_where_float32_products_see_nothing():
    far = torch.cat([normal(300, 20) + 1e6, normal(300, 20, seed=1) - 1e6])  # norms of 1e13
    near = 1 + 1e-7 * normal(300, 20)  # distances of 1e-7
    huge, tiny = normal(200, 20) * 1e25, normal(200, 20) * 1e-25  # over- and underflow float32
    steps = torch.cat([torch.arange(300.0)[:, None] * 1e-9, torch.full((1, 1), 1e3)])
    for x in (far, near, huge, tiny, steps.double()):
        expected = cdist(x, x)
        np.fill_diagonal(expected, np.inf)
        distances, indices = metrics.nearest(x, 3)
        np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :3], rtol=1e-9)
        own_rows = np.take_along_axis(expected, indices.numpy(), 1)
        np.testing.assert_allclose(distances, own_rows, rtol=1e-9)


def test_nearest_leaves_out_itself_by_index_and_orders_equals_by_index():
    x = torch.tensor([[0.0], [0.0], [1.0], [0.0], [5.0]])
    distances, indices = metrics.nearest(x, 3)
    assert indices.tolist() == [[1, 3, 2], [0, 3, 2], [0, 1, 3], [0, 1, 2], [2, 0, 1]]
    assert distances.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1], [4, 5, 5]]
    assert metrics.nearest(x, 1, queries=x)[1].tolist() == [[0], [0], [2], [0], [4]]
    many = torch.zeros(100, 2)  # more equals than candidates
    assert metrics.nearest(many, 3, queries=many[:2])[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("k", [1, 5])
def test_knn_and_bayes_are_scikit_learns(k):
    spreads = [(1, 0), (1.3, 0.2)] * 2
    parts = [s * normal(200, 12, seed=i) + shift for i, (s, shift) in enumerate(spreads)]
    train, truth = torch.cat(parts[:2]).numpy(), np.repeat([1, 0], 200)
    pairs = ((KNeighborsClassifier(k), metrics.knn_misclassification(*parts, k=k)),
             (GaussianNB(), metrics.bayes_misclassification(*parts)))
    for model, ours in pairs:
        model.fit(train, truth)
        fnr, fpr = 1 - model.predict(parts[2]).mean(), model.predict(parts[3]).mean()
        assert 0.05 < fnr < 0.95 and 0.05 < fpr < 0.95
        assert ours == pytest.approx({"fnr": fnr, "fpr": fpr, "max": max(fnr, fpr),
                                      "balanced": (fnr + fpr) / 2, "min": min(fnr, fpr)})


def test_bayes_smoothing_is_scikit_learns():
    parts = [normal(100, 3, seed=i) for i in range(4)]
    for i, part in enumerate(parts):
        part[:, 2] = 1e-3 * part[:, 2] * (i % 2)  # constant in one class, as a digit's border is
    model = GaussianNB().fit(torch.cat(parts[:2]).numpy(), np.repeat([1, 0], 100))
    ours = metrics.bayes_misclassification(*parts)
    assert ours["fnr"] == pytest.approx(1 - model.predict(parts[2]).mean())
    assert ours["fpr"] == pytest.approx(model.predict(parts[3]).mean()) and 0 < ours["fpr"] < 0.3


def test_misclassification_at_its_ends():
    def blob(i, at):
        return normal(100, 5, seed=i) + at

    apart = blob(0, 0), blob(1, 99), blob(2, 0), blob(3, 99)
    alike = blob(0, 0), blob(1, 0), blob(2, 0), blob(3, 0)
    for measure in (metrics.knn_misclassification, metrics.bayes_misclassification):
        assert measure(*apart)["max"] == 0
        assert measure(*alike)["balanced"] == pytest.approx(0.5, abs=0.12)
        same = measure(alike[0], alike[0], alike[1], alike[1])  # every neighbour is a tie
        assert same["min"] == same["max"] == 0.5
    even = metrics.knn_misclassification(*apart[:2], torch.full((3, 5), 49.5), apart[3], k=200)
    assert even["fnr"] == 0.5  # 100 votes to 100


def test_copies_do_not_decide_knn():
    """A set against itself in another order: each image's copy may be on the other side."""
    x = uniform(600, 1, 4, 4)
    y = x[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    twice = torch.cat([x, x])[torch.randperm(1200, generator=torch.Generator().manual_seed(2))]
    other = torch.cat([x, x])[torch.randperm(1200, generator=torch.Generator().manual_seed(3))]
    few = (uniform(1200, 1, 2, 2) > 0.5).float()  # 16 different images
    for a, b in ((x, y), (twice, other), (few[:600], few[600:])):
        h = len(a) // 2
        found = metrics.knn_misclassification(a[:h], b[:h], a[h:], b[h:])
        assert found["balanced"] == pytest.approx(0.5, abs=0.05) and found["min"] > 0.4
    collapsed = x[:1].expand(600, -1, -1, -1)  # one real image, over and over
    found = metrics.knn_misclassification(x[:300], collapsed[:300], x[300:], collapsed[300:])
    assert found["max"] < 0.03


def test_intrinsic_dimension_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0]])  # T_2 / T_1 is 3, 2 and 3/2: 1 / m_2 is its log
    logs = [math.log(3), math.log(2), math.log(1.5)]
    assert metrics.intrinsic_dimension(x, k=2) == pytest.approx(sum(1 / log for log in logs) / 3)
    assert metrics.intrinsic_dimension(x, 2, "mackay") == pytest.approx(3 / sum(logs))


def test_intrinsic_dimension_is_scikit_dimensions():
    from skdim.id import MLE

    x = normal(500, 4) @ normal(4, 30, seed=1)
    for average, theirs in (("levina", "mean"), ("mackay", "mle")):
        curve = metrics.intrinsic_dimension(x, k=[10, 20], average=average)
        for k in (10, 20):
            expected = MLE().fit(x.numpy(), n_neighbors=k, comb=theirs).dimension_
            assert curve[k] == pytest.approx(expected, rel=1e-9)
            assert metrics.intrinsic_dimension(x, k, average) == pytest.approx(expected, rel=1e-9)


def test_intrinsic_dimension_passes_over_duplicates():
    x = normal(200, 3)
    x = torch.cat([x, x[:40], x[:40], x[:1].repeat(31, 1) + 100])  # the last have 30 copies
    inverse = []
    for row in cdist(x, x):
        near = np.sort(row[row > 0])[:10]
        inverse.append(np.log(near[-1] / near[:-1]).mean())
    expected = np.mean(1 / np.array(inverse))
    assert metrics.intrinsic_dimension(x, k=10) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="fewer than 10 neighbours"):
        metrics.intrinsic_dimension(torch.cat([normal(5, 3), torch.zeros(100, 3)]), k=10)
    with pytest.raises(ValueError, match="one distance"):
        metrics.intrinsic_dimension(torch.eye(30), k=5)


# rdd


def test_rdd_is_the_ratio_of_mean_squared_distances():
    x = torch.tensor([[0.0, 0], [2, 0], [10, 0], [14, 4]])  # spreads of 1, and 4 + 4
    ref = torch.tensor([[0.0, 0], [0, 4], [0, 0], [0, 0], [4, 0], [4, 0]])  # spreads of 4 and 4
    result = metrics.rdd(x, ref, np.array([3, 3, 7, 7]), torch.tensor([3, 3, 7, 7, 7, 7]))
    assert result["per_class"] == {3: pytest.approx(0.25), 7: pytest.approx(2)}
    assert result["mean"] == pytest.approx((0.25 + 2) / 2)
    whole = metrics.rdd(x, ref)
    a, b = ((z - z.mean(0)).square().sum() / len(z) for z in (x, ref))
    assert whole == {"mean": pytest.approx((a / b).item()), "per_class": {}}
    assert metrics.rdd(torch.ones(3, 2), torch.ones(4, 2))["mean"] == 1  # 0 / 0


def test_measure_leaves_out_classes_of_few_images():
    x, y = uniform(120, 1, 2, 2, seed=1), uniform(120, 1, 2, 2)
    labels, real_labels = torch.arange(120) % 4, torch.arange(120) % 5  # 30 and 24 of each, but
    labels[labels == 1] = torch.tensor([1] * 19 + [0] * 11)

    def spread(images, of, label):
        return images.flatten(1).numpy()[of.numpy() == label].var(0).sum()

    found = metrics.measure(x, y, labels=labels, real_labels=real_labels)["rdd"]["per_class"]
    expected = {c: spread(x, labels, c) / spread(y, real_labels, c) for c in (0, 2, 3)}
    assert found == pytest.approx(expected, rel=1e-5)


# what is given


X, Y = uniform(60, 3, 8, 8), uniform(60, 3, 8, 8, seed=1)
BYTES = (255 * X).byte()
ROWS, NAN = uniform(20, 3), torch.tensor([[0.0, math.nan, 1], [1, 2, 3]])
KNN, BAYES = metrics.knn_misclassification, metrics.bayes_misclassification
CALLS = {  # every measure of two sets of images or rows
    "fid": metrics.fid, "mmd": metrics.mmd, "nearest": lambda x, y: metrics.nearest(x, 3, y)[0],
    "measure": lambda x, y: metrics.measure(x, y)["fid"], "rdd": metrics.rdd,
    "knn": lambda x, y: KNN(x[:30], y[:30], x[30:], y[30:])["fnr"],
    "bayes": lambda x, y: BAYES(x[:30], y[:30], x[30:], y[30:])["fnr"],
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_and_graphs_are_taken(name):
    expected, g = CALLS[name](X, Y), X.clone().requires_grad_()
    reversed_ = np.ascontiguousarray(X.numpy()[::-1])[::-1]  # negative strides
    locked = Y.numpy().astype(">f4")  # of another byte order, and read-only
    locked.setflags(write=False)
    for found in (CALLS[name](g, Y), CALLS[name](X.numpy(), Y.numpy()),
                  CALLS[name](reversed_, locked)):
        if name == "nearest":
            assert not found.requires_grad and torch.equal(found, expected)
        else:
            assert found == expected
    assert g.grad is None


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong, fix", [
    (lambda z: 2 * z - 1, r"\(x \+ 1\) / 2"), (lambda z: 255 * z, "divide by 255"),
    (lambda z: z.permute(0, 2, 3, 1), "permute"), (lambda z: z.to(torch.complex64), "complex"),
    (lambda z: torch.where(z > 0.99, math.nan, z), "NaN"),
    (lambda z: (z > 0.5).byte(), "multiply by 255"), (lambda z: (255 * z).byte(), "255"),
    (lambda z: (255 * z).long(), "float"),
])  # fmt: skip
def test_other_ranges_and_layouts_are_refused_with_the_fix(name, wrong, fix):
    argument = "[a-z_]*"
    for given in ((wrong(X), Y), (X, wrong(Y))):
        for cast in (lambda z: z, lambda z: z.numpy()):
            with pytest.raises(ValueError, match=f"^{argument}: .*{fix}"):
                CALLS[name](*map(cast, given))


def test_rows_of_any_range_and_bytes_are_taken():
    x, y = X.flatten(1), Y.flatten(1)
    assert metrics.fid(9 * x - 4, 9 * y - 4) == pytest.approx(81 * metrics.fid(x, y))
    assert metrics.mmd(9 * x - 4, 9 * y - 4) == pytest.approx(metrics.mmd(x, y))
    whole, other = BYTES, (255 * Y).byte()
    as_rows = [z.flatten(1).double() for z in (whole, other)]
    assert metrics.fid(whole, other) == pytest.approx(metrics.fid(*as_rows))
    for cast in (torch.float16, torch.int64, torch.int16):
        rows = [z.to(cast) for z in as_rows]
        assert metrics.fid(*rows) == pytest.approx(metrics.fid(*as_rows))
    found = metrics.measure(whole, other)
    assert found["fid"] == pytest.approx(metrics.fid(whole, other) / 255**2, rel=1e-5)
    assert torch.equal(metrics.features(BYTES, "pixels"), BYTES.flatten(1) / 255)
    assert torch.equal(metrics.features(BYTES.numpy(), "pixels"), BYTES.flatten(1) / 255)


@pytest.mark.parametrize("named, call", [
    ("x", lambda: metrics.stats(NAN)), ("x", lambda: metrics.stats(ROWS[:1])),
    ("x", lambda: metrics.fid(torch.rand(0, 3), ROWS)),
    ("y", lambda: metrics.fid(ROWS, torch.rand(2, 4))),
    ("y", lambda: metrics.fid(ROWS, ROWS * math.inf)),
    ("y", lambda: metrics.fid(X, X[:, :1])), ("y", lambda: metrics.fid(X, X.mT[:, :, :4])),
    ("x", lambda: metrics.fid(np.array([["a", "b"]]), ROWS)),
    ("mu2, cov2", lambda: metrics.frechet_distance(*metrics.stats(ROWS), *metrics.stats(ROWS.T))),
    ("mu1, cov1", lambda: metrics.frechet_distance(NAN[0], torch.eye(3), ROWS[0], torch.eye(3))),
    ("x", lambda: metrics.mmd(ROWS[:1], ROWS, unbiased=True)),
    ("kernel", lambda: metrics.mmd(ROWS, ROWS, "gauss")),
    ("bandwidth", lambda: metrics.mmd(ROWS, ROWS, bandwidth=0)),
    ("bandwidth", lambda: metrics.mmd(ROWS, ROWS, bandwidth=[])),
    ("x", lambda: metrics.median_distance(torch.ones(9, 3))),
    ("x", lambda: metrics.nearest(torch.rand(0, 3), 1)), ("x", lambda: metrics.nearest(NAN, 1)),
    ("k", lambda: metrics.nearest(ROWS, 20)), ("k", lambda: metrics.nearest(ROWS, 0, ROWS)),
    ("queries", lambda: metrics.nearest(ROWS, 1, torch.rand(2, 4))),
    ("fake_train", lambda: KNN(ROWS, NAN, ROWS, ROWS, k=1)),
    ("real_test", lambda: KNN(ROWS, ROWS, torch.rand(0, 3), ROWS, k=1)),
    ("fake_test", lambda: BAYES(ROWS, ROWS, ROWS, torch.rand(2, 4))),
    ("k", lambda: KNN(ROWS[:2], ROWS[:2], ROWS, ROWS, k=5)),
    ("real_train, fake_train", lambda: BAYES(*[torch.ones(2, 3)] * 4)),
    ("x", lambda: metrics.intrinsic_dimension(ROWS[:2])),
    ("k", lambda: metrics.intrinsic_dimension(ROWS, k=20)),
    ("k", lambda: metrics.intrinsic_dimension(ROWS, k=[1, 2])),
    ("k", lambda: metrics.intrinsic_dimension(ROWS, k=[])),
    ("average", lambda: metrics.intrinsic_dimension(ROWS, k=5, average="mean")),
    ("ref", lambda: metrics.rdd(ROWS, torch.ones(2, 3))),
    ("labels, ref_labels", lambda: metrics.rdd(ROWS, ROWS, torch.zeros(20))),
    ("x of label 1", lambda: metrics.rdd(ROWS, ROWS, torch.zeros(20), torch.arange(20) % 2)),
    ("kind", lambda: metrics.features(X, "resnet")),
    ("images", lambda: metrics.features(X[:, 0], "pixels")),
    ("images", lambda: metrics.features(ROWS, "pixels")),
    ("labels", lambda: metrics.train_classifier(BYTES, torch.zeros(60))),
    ("images", lambda: metrics.train_classifier(X, torch.arange(60) % 2)),
])  # fmt: skip
def test_bad_input_is_named(named, call):
    with pytest.raises(ValueError, match=f"^{named}: "):
        call()


# classifier and Inception


def bars(n, seed=0):
    """uint8 images (n, 1, 8, 8) of a bar across or upright, labels 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    images = torch.randint(0, 60, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label, at in zip(images, labels, torch.randint(1, 7, (n,), generator=generator)):
        (image[:, at] if label else image[:, :, at]).fill_(250)
    return images, labels


def test_classifier_learns_and_is_cached(monkeypatch, tmp_path):
    sets = {"train": bars(400), "test": bars(100, seed=1)}
    monkeypatch.setattr(metrics.data, "load", lambda name, where, split, size=None: sets[split])
    original, trained = metrics.train_classifier, []

    def quick(*args, **kwargs):
        trained.append(args)
        return original(*args, batch_size=50, epochs=1, least=150 if len(trained) == 1 else 1,
                        **kwargs)

    monkeypatch.setattr(metrics, "train_classifier", quick)
    before = torch.get_rng_state()
    net = metrics.classifier_of("bars", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers
    assert net.labels.tolist() == [0, 1] and net.test_error <= 0.05
    images, labels = (part.numpy() for part in sets["test"])
    assert metrics.test_accuracy(net, images, labels) == pytest.approx(1 - net.test_error)
    assert metrics.features(images, "classifier", net).shape == (100, 128)

    again = metrics.classifier_of("bars", tmp_path)
    assert len(trained) == 1 and again.test_error == net.test_error
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))

    file, = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = file.read_bytes()
    flipped = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    for damage in (whole[: len(whole) // 2], flipped):
        file.write_bytes(damage)
        metrics.classifier_of("bars", tmp_path)
    assert len(trained) == 3  # both were made again
    monkeypatch.setattr(metrics.Classifier, "__repr__", lambda self: "other layers")
    metrics.classifier_of("bars", tmp_path)
    sets["train"] = sets["train"][0], sets["train"][1].roll(1)  # the same labels, another order
    metrics.classifier_of("bars", tmp_path)
    assert len(trained) == 5
    sets["test"] = sets["test"][0], torch.full((100,), -1)  # without labels
    sets["train"] = sets["train"][0].flip(0), sets["train"][1]
    assert math.isnan(metrics.classifier_of("bars", tmp_path).test_error)
    sets["train"] = sets["train"][0], torch.zeros(400)
    with pytest.raises(metrics.InputError, match="pixels"):
        metrics.classifier_of("bars", tmp_path)
    (tmp_path / "blocked").write_text("a file, so that nothing can be kept in it")
    sets["train"] = bars(400)
    assert metrics.classifier_of("bars", tmp_path / "blocked").labels.tolist() == [0, 1]


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (3, 64)])
def test_classifier_takes_the_sizes_of_the_data_sets(channels, size):
    net = metrics.Classifier(channels, size, torch.arange(7)).eval()
    x = torch.rand(2, channels, size, size)
    assert net(x).shape == (2, 7) and metrics.features(x, "classifier", net).shape == (2, 128)


class Reader(torch.nn.Module):
    """Reads an image's label off its first pixel, ten times the value, sure as its second says."""

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
    assert metrics.test_accuracy(Reader(), x.numpy(), labels.numpy()) == 0.75
    found = metrics._reading(Reader(), Reader()(x), torch.tensor([0, 1, 2, -1]))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["above_0.9"] == 0.5
    assert found["accuracy_per_class"] == {0: 1, 1: 1, 2: 0}
    assert found["mean_confidence"] == pytest.approx((0.5 + 0.88 + 0.95 + 0.99) / 4)
    some = torch.tensor([-1, -1, 2, 2])  # those without a label do not count
    assert metrics.test_accuracy(Reader(), x, some) == 0.5
    assert math.isnan(metrics.test_accuracy(Reader(), x, torch.full((4,), -1)))
    with pytest.raises(ValueError, match="^labels: 2 for 4 images"):
        metrics.test_accuracy(Reader(), x, labels[:2])


def test_inception_is_pytorch_fids(monkeypatch, tmp_path):
    import pytorch_fid.inception as theirs

    state, generator = {}, torch.Generator().manual_seed(0)
    for name, value in metrics.Inception().net.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("conv.weight"):
            value = noise * math.sqrt(2 / value[0].numel())  # keeps the size of activations
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
        found = metrics.features(x, "inception", net)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    grey = torch.rand(1, 1, 28, 28, generator=generator)
    colour = metrics.features(grey.expand(-1, 3, -1, -1), "inception", net)
    assert torch.equal(metrics.features(grey, "inception", net), colour)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def download(url, file, hash_prefix=None, progress=True):  # torch hub's, without a network
        asked.append((url, hash_prefix))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(metrics.InputError, match="no network.*https://github.com") as error:
        metrics.inception()
    assert "\n" not in str(error.value) and str(tmp_path / "hub") in str(error.value)
    assert asked == [(metrics.INCEPTION_URL + metrics.INCEPTION_FILE, "6726825d")]
    assert metrics.INCEPTION_URL.startswith("https://")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("other.pth", "nowhere.pth"):
        with pytest.raises(metrics.InputError, match=name):
            metrics.inception(tmp_path / name)
    cached = tmp_path / "hub" / "checkpoints" / metrics.INCEPTION_FILE
    cached.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / metrics.INCEPTION_FILE).rename(cached)
    again = metrics.features(x, "inception", metrics.inception())
    assert torch.equal(again, metrics.features(x, "inception", net))


# the command line


class Model:
    """In the place of a run: draws what it is asked for out of a set of images."""

    images = labels = None

    def __init__(self, name, images, labels=None, classes=(), size=8):
        self.name, self.pool, self.pool_labels, self.classes = name, images, labels, list(classes)
        self.conditional, self.logits, self.asked = labels is not None, None, []
        self.args = SimpleNamespace(dataset="bars", size=size, batch_size=5)

    def sample(self, n, labels=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        if labels is None:
            return self.pool[torch.randint(len(self.pool), (n,), generator=generator)] / 255
        self.asked.append(labels)
        own = [(self.pool_labels == k).nonzero()[:, 0] for k in range(len(self.classes))]
        picks = [own[k][torch.randint(len(own[k]), (), generator=generator)] for k in labels]
        return self.pool[torch.stack(picks)] / 255


@pytest.fixture
def bars_set(monkeypatch, tmp_path):
    """`bars` in the place of a data set; no classifier is trained unless it is asked for."""
    sets = SimpleNamespace(train=bars(300), test=bars(200, seed=1), classes=["across", "upright"],
                           models={}, classifiers=[])
    load, open_source = metrics.data.load, metrics.open_source

    def patched(dataset, data_dir="data", split="train", size=None, classes=None):
        if dataset != "bars":
            return load(dataset, data_dir, split, size)
        return data.Loaded(*getattr(sets, split), classes=sets.classes)

    def classifier(*args):
        sets.classifiers.append(args)
        torch.manual_seed(0)
        net = metrics.Classifier(1, 8, torch.tensor([0, 1])).eval()
        net.test_error = 0.25
        return net

    def opened(text, *args):
        return sets.models[text] if text in sets.models else open_source(text, *args)

    monkeypatch.setattr(metrics.data, "load", patched)
    monkeypatch.setattr(metrics, "classifier_of", classifier)
    monkeypatch.setattr(metrics, "open_source", opened)
    return sets


def evaluate(tmp_path, *argv):
    file = tmp_path / "e.json"
    argv = ["eval", *map(str, argv), "--device", "cpu", "--json", str(file)]
    metrics.main(argv)
    content = json.loads(file.read_text())
    return content | {"rows": {row["name"]: row for row in content["rows"]}}


def write_folder(folder, images, labels=None, names=None):
    for i, image in enumerate(images):
        place = folder if labels is None else folder / names[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        image = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(image.numpy()).save(place / f"{i:03}.png")
    return folder


def shuffled(x, n):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]]


def test_eval_prints_all_sources_under_the_real_ones(bars_set, tmp_path, capsys):
    noise = uniform(250, 8, 8)
    np.save(tmp_path / "noise.npy", noise.numpy())
    images, labels = bars_set.test
    adm = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)[..., :1].numpy()
    np.savez(tmp_path / "labelled.npz", adm, labels.numpy())  # arr_0 (n, H, W, C) and arr_1
    folder = write_folder(tmp_path / "pictures", images[:180], labels, ["upright", "across"])
    bars_set.models["run"] = Model("run", bars_set.train[0])
    found = evaluate(tmp_path, "run", tmp_path / "noise.npy", tmp_path / "labelled.npz", folder)
    out = capsys.readouterr().out
    assert "against 180 training images, seed 0" in out and "misreads 25.00%" in out
    rows = found["rows"]
    assert list(rows) == ["other real images", "run", "noise.npy", "labelled.npz", "pictures"]
    assert (found["features"], found["classifier_test_error"]) == ("classifier", 0.25)

    net = metrics.classifier_of()
    drawn, real = shuffled(noise[:, None], 180), shuffled(bars_set.train[0], 180) / 255
    features = [metrics.features(x, "classifier", net) for x in (drawn, real)]
    row, parts = rows["noise.npy"], (real[:90], drawn[:90], real[90:], drawn[90:])
    assert row["fid"] == pytest.approx(metrics.fid(*features), rel=1e-5)
    assert row["mmd"] == pytest.approx(metrics.mmd(drawn, real), rel=1e-9)
    assert row["knn"] == metrics.knn_misclassification(*parts)
    assert row["bayes"] == metrics.bayes_misclassification(*parts)
    assert row["rdd"]["mean"] == pytest.approx(metrics.rdd(drawn, real)["mean"], rel=1e-6)
    assert row["fid_spread"] > 0 and row["mmd_spread"] > 0 and "accuracy" not in row
    assert row["mmd"] > 10 * rows["other real images"]["mmd"] and row["n"] == 180
    assert f"{row['fid']:.4g}±{row['fid_spread']:.2g}" in out and f"{row['knn']['min']:.3f}" in out

    accuracy = metrics.test_accuracy(net, *(shuffled(x, 180) for x in bars_set.test))
    assert rows["labelled.npz"]["accuracy"] == accuracy == rows["other real images"]["accuracy"]
    assert set(rows["labelled.npz"]["rdd"]["per_class"]) == {"0", "1"}
    swapped = 1 - metrics.test_accuracy(net, images[:180], labels[:180])  # by the folders' names
    assert rows["pictures"]["accuracy"] == pytest.approx(swapped)


def test_eval_trains_no_classifier_unless_it_is_asked_for(bars_set, tmp_path):
    bars_set.models["run"] = Model("run", bars_set.train[0])
    assert "mean_confidence" not in evaluate(tmp_path, "run", "--features", "pixels")["rows"]["run"]
    assert not bars_set.classifiers
    assert "mean_confidence" in evaluate(
        tmp_path, "run", "--features", "pixels", "--accuracy")["rows"]["run"]


def test_a_perfect_conditional_model_of_rare_classes_is_not_punished(bars_set, tmp_path):
    images, labels = bars(2000)
    keep = torch.cat([(labels == 0).nonzero()[:450, 0], (labels == 1).nonzero()[:50, 0]])
    keep = keep[torch.randperm(500, generator=torch.Generator().manual_seed(5))]
    bars_set.train = images[keep], labels[keep]
    model = Model("run", images[keep], 1 - labels[keep], ["upright", "across"])  # its own order
    bars_set.models["run"] = model
    found = evaluate(tmp_path, "run", "--features", "pixels", "--accuracy")
    row = found["rows"]["run"]
    asked, = (some for some in model.asked if len(some) > 1)
    assert found["n"] == 500 and (asked == 0).sum() == 50  # 10 %, "upright" by name
    free = metrics.fid(model.pool[torch.randint(500, (500,))].flatten(1) / 255.0,
                       images[keep].flatten(1) / 255.0)
    assert row["fid"] < 3 * free and row["rdd"]["per_class"]["1"] == pytest.approx(1, abs=0.15)
    drawn = model.sample(500, labels=asked)
    reading = metrics.test_accuracy(metrics.classifier_of(), drawn, 1 - asked)
    assert row["accuracy"] == pytest.approx(reading)


@pytest.mark.parametrize("held_out, name, n", [(200, "other real images", 200),
                                               (29, "halves of the real", 120)])
def test_n_is_not_capped_by_the_held_out_tenth(bars_set, tmp_path, capsys, held_out, name, n):
    bars_set.train = tuple(part[:240] for part in bars_set.train)
    bars_set.test = tuple(part[:held_out] for part in bars_set.test)
    bars_set.models["run"] = Model("run", bars_set.train[0])
    found = evaluate(tmp_path, "run", "--features", "pixels")
    assert found["rows"]["run"]["n"] == found["n"] == 240
    assert found["rows"][name]["n"] == n
    assert "first row has fewer images" in capsys.readouterr().out


def test_a_small_set_trains_its_classifier_in_small_batches(monkeypatch):
    sizes = []
    original = metrics.data.batches
    monkeypatch.setattr(metrics.data, "batches", lambda images, size, *args, **kwargs: (
        sizes.append(size), original(images, size, *args, **kwargs))[1])
    for n in (20, 100, 400):
        metrics.train_classifier(*bars(n), epochs=1, least=1)
    assert sizes == [20, 32, 100]


def test_eval_of_a_folder_against_itself_and_numbered_classes(bars_set, tmp_path, capsys):
    images, labels = bars(300)
    names = ["2", "10"]
    folder = write_folder(tmp_path / "set", images, labels, names)
    common = ["--dataset", folder, "--data-dir", tmp_path, "--size", 8]
    found = evaluate(tmp_path, folder, *common, "--features", "pixels", "--accuracy")
    row = found["rows"]["set"]
    assert found["n"] >= 250 and row["knn"]["min"] > 0.35
    assert row["knn"]["balanced"] == pytest.approx(0.5, abs=0.1)
    assert row["rdd"]["mean"] == pytest.approx(1, abs=0.05) and len(row["rdd"]["per_class"]) == 2
    net = metrics.classifier_of()
    truth = metrics.test_accuracy(net, images, labels)
    assert row["accuracy"] == pytest.approx(truth, abs=0.1)  # labels by name: not 1 - truth


def test_grey_pictures_against_colour_ones(bars_set, tmp_path, capsys):
    grey = write_folder(tmp_path / "grey", bars(60)[0])
    colour = uniform(60, 3, 8, 8).mul(255).byte()
    folder = write_folder(tmp_path / "colour", colour)
    common = ["--data-dir", tmp_path, "--size", 8, "--features", "pixels"]
    assert evaluate(tmp_path, grey, "--dataset", folder, *common)["rows"]["grey"]["fid"] > 0
    with pytest.raises(SystemExit):
        evaluate(tmp_path, folder, "--dataset", grey, *common)
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1 and "colour has images of (3, 8, 8)" in error[0]


def test_arrays_and_statistics_are_the_real_side(bars_set, tmp_path, monkeypatch, capsys):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.weight * x.flatten(1)[:, :6]

    monkeypatch.setattr(metrics, "inception", lambda *args: Small())
    x, y = uniform(100, 3, 8, 8), uniform(90, 3, 8, 8, seed=1)
    np.savez(tmp_path / "x.npz", images=x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    rows = y.flatten(1)[:, :6].double().numpy()
    np.savez(tmp_path / "stats.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    found = evaluate(tmp_path, tmp_path / "x.npz", "--dataset", tmp_path / "stats.npz")
    expected = metrics.fid(x.flatten(1)[:, :6], y.flatten(1)[:, :6])
    assert found["rows"]["x.npz"]["fid"] == pytest.approx(expected, rel=1e-5)
    assert found["features"] == "inception" and "100" in capsys.readouterr().out
    found = evaluate(tmp_path, tmp_path / "x.npz", "--dataset", tmp_path / "y.npy",
                     "--features", "inception")
    x, y = (shuffled(z, 90) for z in (x, y))
    expected = metrics.fid(x.flatten(1)[:, :6], y.flatten(1)[:, :6])
    row = found["rows"]["x.npz"]
    assert row["fid"] == pytest.approx(expected, rel=1e-5)
    kid = metrics.mmd(x.flatten(1)[:, :6], y.flatten(1)[:, :6], "polynomial", unbiased=True)
    assert row["kid"] == pytest.approx(kid) and row["kid_spread"] > 0


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2", "longdouble"])
def test_floats_of_every_kind_are_read(kind, tmp_path):
    images = np.arange(64).reshape(4, 4, 4) / 64
    labels = np.array([3, 1, 2, 1], dtype=">u2")
    np.savez(tmp_path / "a.npz", pictures=images.astype(kind), labels=labels)
    found = metrics.read_images(tmp_path / "a.npz")
    expected = torch.tensor(images[:, None], dtype=torch.float32)
    assert torch.equal(found.images.float(), expected) and found.labels.tolist() == [3, 1, 2, 1]


def test_labels_are_matched_by_name():
    labels = torch.tensor([0, 1, 2, -1, 1])
    assert metrics.relabel(labels, ["a", "b", "c"], ["c", "a"]).tolist() == [1, -1, 0, -1, -1]
    assert metrics.relabel(labels, [], ["a"]).tolist() == labels.tolist()


def test_dim_prints_and_draws_the_curve(bars_set, tmp_path, capsys):
    picture, file = tmp_path / "dim.png", tmp_path / "d.json"
    metrics.main(["dim", "--dataset", "bars", "--k", "5", "40", "10", "--n", "200", "--device",
                  "cpu", "--out", str(picture), "--json", str(file)])
    out = capsys.readouterr().out
    chosen = shuffled(bars_set.train[0], 200)
    for average, column in (("levina", 1), ("mackay", 2)):
        curve = metrics.intrinsic_dimension(chosen, k=[5, 10, 40], average=average)
        shown = {line.split()[0]: line.split()[column] for line in out.splitlines()
                 if line.split() and line.split()[0] in ("5", "10", "40")}
        assert shown == {str(k): f"{value:.2f}" for k, value in curve.items()}
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**16)}
        assert image.size == (640, 400) and {(0, 0, 128), (178, 34, 34)} <= colours
    assert len(json.loads(file.read_text())["dimension"]) == 3


@pytest.mark.parametrize("argv, said", [
    (["eval", "nowhere"], "nowhere does not exist"), (["eval", "noise.npy"], "--dataset"),
    (["eval", "noise.npy", "--dataset", "bars"], "has images of (1, 4, 4)"),
    (["eval", "bytes.npy", "--dataset", "bars"], "cannot be read as plain arrays"),
    (["eval", "wild.npy", "--dataset", "bars"], "floats in [0, 1]"),
    (["eval", "none.npz", "--dataset", "bars"], "name the array of images `images`"),
    (["eval", "deep.npy", "--dataset", "bars"], "torch.uint16"),
    (["eval", "words.npz", "--dataset", "bars"], "not a whole number for each image"),
    (["eval", "onehot.npz", "--dataset", "bars"], "not a whole number for each image"),
    (["eval", "ok.npy", "--dataset", "bars", "--n", "10"], "too few"),
    (["eval", "ok.npy", "--dataset", "bars", "--k", "0"], "--k"),
    (["eval", "ok.npy", "--dataset", "bars", "--features", "inception", "--inception-weights",
      "no.pth"], "no.pth"),
    (["eval", "ok.npy", "--dataset", "bars", "--json", "nowhere/e.json"], "nowhere/e.json cannot"),
    (["dim", "--dataset", "bars", "--k", "5", "--out", "nowhere/c.png"], "nowhere/c.png cannot"),
    (["dim", "--dataset", "bars", "--k", "400"], "k: must be from 2 to 299"),
])  # fmt: skip
def test_one_line_says_what_is_wrong(bars_set, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    np.save("noise.npy", np.random.default_rng(0).random((100, 4, 4)))
    np.save("ok.npy", np.random.default_rng(0).random((100, 8, 8)))
    np.save("wild.npy", np.full((100, 8, 8), 7.0))
    np.save("deep.npy", np.zeros((100, 8, 8), dtype=np.uint16))
    for name, labels in (("words", np.array(["a", "b"] * 50)), ("onehot", np.eye(100, dtype=int))):
        np.savez(f"{name}.npz", images=np.zeros((100, 8, 8)), labels=labels)
    np.savez("none.npz", a=np.zeros((9, 8, 8)), b=np.zeros((9, 8, 8)))
    (tmp_path / "bytes.npy").write_bytes(b"not an array")
    with pytest.raises(SystemExit) as stop:
        metrics.main([*argv, "--device", "cpu"])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error:" in line]
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert "Traceback" not in error and not bars_set.classifiers[1:]


def test_json_has_null_where_a_figure_is_infinite(tmp_path):
    file = tmp_path / "f.json"
    args = SimpleNamespace(json=file, dataset="mnist", seed=0)
    metrics.write_json(args, ratio=math.inf, pair=(0.5, math.nan))
    assert json.loads(file.read_text()) == {"dataset": "mnist", "seed": 0, "ratio": None,
                                            "pair": [0.5, None]}
