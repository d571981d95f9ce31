"""Measures against closed forms, numpy, scipy, scikit-learn, scikit-dimension and pytorch-fid.

And `metrics.py eval` and `dim` as users type them. About 20 s on one core.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_fid.inception as published
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy.spatial.distance import cdist, pdist
from skdim.id import MLE
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from torchvision.models.inception import Inception3
from torchvision.transforms.functional import to_pil_image

import data
import metrics

KNN, BAYES = metrics.knn_misclassification, metrics.bayes_misclassification


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def shuffled(x, n=None, seed=0):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]


@pytest.mark.parametrize("decay", [-1, -6, -10])
def test_frechet_distance_of_covariances_that_share_their_axes(decay):
    axes, (mu1, mu2) = torch.linalg.qr(normal(60, 60)).Q, normal(2, 60, seed=1) / 10
    a = torch.logspace(0, decay, 60, dtype=torch.float64)
    b = a.flip(0).sqrt()
    expected = (mu1 - mu2).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    given = mu1, axes * a @ axes.T, mu2, axes * b @ axes.T
    for values in (given, [value.numpy() for value in given]):
        assert metrics.frechet_distance(*values) == pytest.approx(expected.item(), rel=1e-9)


def test_fid_is_pytorch_fids():
    x = normal(300, 40) @ normal(40, 40, seed=1)
    y = normal(200, 40, seed=2) @ normal(40, 40, seed=3) + 1
    (mu1, c1), (mu2, c2) = ((z.numpy().mean(0), np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    expected = calculate_frechet_distance(mu1, c1, mu2, c2)  # with scipy's sqrtm
    for found in (metrics.fid(x, y), metrics.fid(y, x), metrics.fid(x.numpy(), y.numpy()),
                  metrics.frechet_distance(mu1, c1, mu2, c2)):
        assert found == pytest.approx(expected, rel=1e-9)


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
    sizes, axes = torch.logspace(0, -7, 64, dtype=torch.float64), torch.linalg.qr(normal(64, 64)).Q
    x = scale * normal(n, 64) * sizes @ axes
    assert 0 <= metrics.fid(x, x.clone()) <= 1e-10 * x.var(0).sum().item()
    assert metrics.fid(x, x + 3 * scale) == pytest.approx(64 * (3 * scale) ** 2, rel=1e-9)


def test_digits_are_kept_at_large_means():
    x, y = normal(200, 10), normal(200, 10, seed=1)
    for measure in (metrics.fid, lambda x, y: metrics.mmd(x, y, bandwidth=4.0)):
        assert measure(x + 1e6, y + 1e6) == pytest.approx(measure(x, y), rel=1e-7)
    cov = metrics.stats(x + 1e6)[1].numpy()
    assert cov == pytest.approx(np.cov(x.numpy(), rowvar=False), rel=1e-7, abs=1e-9)


def test_fid_and_mmd_by_hand():
    x, y = torch.zeros(2, 1), torch.full((2, 1), 2.0)
    assert metrics.fid(x, y) == pytest.approx(4) and metrics.fid(x, x) == 0
    near = math.exp(-2)  # |x - y|^2 / 2 = 2
    assert metrics.mmd(x[:1], y[:1], bandwidth=1.0) == pytest.approx(2 - 2 * near)
    both = torch.cat([x[:1], y[:1]])  # unbiased: twice one pair's, less the mean of all four
    found = metrics.mmd(both, both, bandwidth=1.0, unbiased=True)
    assert found == pytest.approx(2 * near - 2 * (2 + 2 * near) / 4)


def test_the_spread_of_fid_and_mmd_is_that_of_new_samples():
    pairs = [(normal(200, 8, seed=i), 1.3 * normal(200, 8, seed=99 + i) + 0.5) for i in range(48)]
    for measure in (metrics.fid, lambda x, y: metrics.mmd(x, y, bandwidth=4.0)):
        truth = np.std([measure(*pair) for pair in pairs[:40]])
        found = np.mean([metrics.spread(measure, *pair) for pair in pairs[40:]])
        assert found == pytest.approx(truth, rel=0.4)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel, bandwidth, gram", [
    ("rbf", 1.5, lambda a, b: rbf_kernel(a, b, gamma=2 / 9)),  # 1 / (2 sigma^2)
    ("polynomial", None, lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1)),
])  # fmt: skip
def test_mmd_is_that_of_whole_gram_matrices(kernel, bandwidth, gram, unbiased):
    x, y = normal(1300, 3), 1.2 * normal(1100, 3, seed=1) + 0.1  # more than a tile of each
    xx, yy, xy = (gram(a.numpy(), b.numpy()) for a, b in ((x, x), (y, y), (x, y)))
    within = xx.mean() + yy.mean()
    if unbiased:
        within = sum((g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in (xx, yy))
    expected = pytest.approx(within - 2 * xy.mean(), rel=1e-9)
    assert metrics.mmd(x, y, kernel, bandwidth, unbiased) == expected


def test_mmds_bandwidth_is_the_median_distance_of_the_real_images():
    x, y, many = normal(300, 4), 2 * normal(200, 4, seed=1), normal(3000, 4, seed=2)
    sigma = np.median(pdist(y.numpy()))
    assert metrics.median_distance(y) == pytest.approx(sigma, rel=1e-12)
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=sigma), rel=1e-12)
    assert metrics.median_distance(many) == pytest.approx(np.median(pdist(many.numpy())), rel=0.02)
    mostly = torch.cat([torch.zeros(50, 4), torch.ones(5, 4)])  # more than half at distance 0
    assert metrics.median_distance(mostly) == 2


def check_nearest(x, k, queries=None):
    """metrics.nearest against all distances, for the first 1000 queries."""
    exact = cdist((x if queries is None else queries).double()[:1000], x.double())
    if queries is None:
        np.fill_diagonal(exact, np.inf)
    distances, indices = (part[:1000] for part in metrics.nearest(x, k, queries))
    assert distances.dtype == torch.float64 and indices.dtype == torch.int64
    for expected in (np.sort(exact, 1)[:, :k], np.take_along_axis(exact, indices.numpy(), 1)):
        np.testing.assert_allclose(distances, expected, rtol=1e-9)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("n, d, k", [(2, 3, 1), (50, 1, 49), (5000, 3, 4), (600, 300, 20)])
def test_nearest_is_brute_force(n, d, k, dtype):
    shift, scale = (50, 20) if dtype == torch.uint8 else (0, 1)
    x, queries = ((shift + scale * normal(m, d, seed=i)).to(dtype) for i, m in ((0, n), (1, 7)))
    check_nearest(x, k)
    check_nearest(x, k, queries)


def test_nearest_where_float32_products_see_nothing():
    x, far = normal(300, 20), torch.tensor([[1e6]] * 150 + [[-1e6]] * 150)
    steps = torch.cat([torch.arange(300.0)[:, None] * 1e-9, torch.full((1, 1), 1e3)])
    # norms of 1e13; distances of 1e-7; over- and underflow of float32
    for rows in (x + far, 1 + 1e-7 * x, x * 1e25, x * 1e-25, steps.double()):
        check_nearest(rows, 3)


def test_nearest_leaves_out_itself_by_index_and_orders_equals_by_index():
    x = torch.tensor([[0.0], [0.0], [1.0], [0.0], [5.0]])
    distances, indices = metrics.nearest(x, 3)
    assert indices.tolist() == [[1, 3, 2], [0, 3, 2], [0, 1, 3], [0, 1, 2], [2, 0, 1]]
    assert distances.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1], [4, 5, 5]]
    assert metrics.nearest(x, 1, queries=x)[1].tolist() == [[0], [0], [2], [0], [4]]
    many = torch.zeros(100, 2)  # more equals than candidates
    assert metrics.nearest(many, 3, queries=many[:2])[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("model, measure, border", [
    (KNeighborsClassifier(1), lambda *parts: KNN(*parts, k=1), False),
    (KNeighborsClassifier(5), KNN, False),
    (GaussianNB(), BAYES, False), (GaussianNB(), BAYES, True),
])  # fmt: skip
def test_knn_and_bayes_are_scikit_learns(model, measure, border):
    spreads = [(1, 0), (1.3, 0.2)] * 2
    parts = [s * normal(200, 12, seed=i) + shift for i, (s, shift) in enumerate(spreads)]
    for i, part in enumerate(parts if border else ()):
        part[:, 2] *= 1e-3 * (i % 2)  # constant in one class, as a digit's border is
    model.fit(torch.cat(parts[:2]).numpy(), np.repeat([1, 0], 200))
    fnr, fpr = 1 - model.predict(parts[2]).mean(), model.predict(parts[3]).mean()
    assert 0.05 < max(fnr, fpr) < 0.95
    assert measure(*parts) == pytest.approx({"fnr": fnr, "fpr": fpr, "max": max(fnr, fpr),
                                             "balanced": (fnr + fpr) / 2, "min": min(fnr, fpr)})


def test_ties_are_half_a_mistake():
    (a, b), half = normal(2, 100, 5), dict.fromkeys(("fnr", "fpr", "max", "balanced", "min"), 0.5)
    assert KNN(a, a, b, b) == BAYES(a, a, b, b) == half
    assert KNN(a, a + 99, b, b + 99, k=200) == half  # 100 votes to 100
    assert KNN(a, a + 99, b, b + 99) == BAYES(a, a + 99, b, b + 99) == dict.fromkeys(half, 0)


def test_copies_do_not_decide_knn():
    """A set against itself in another order: each image's copy may be on the other side."""
    x = uniform(600, 1, 4, 4)
    twice, few = torch.cat([x, x]), (uniform(1200, 1, 2, 2) > 0.5).float()  # 16 different images
    sets = (x, shuffled(x)), (shuffled(twice), shuffled(twice, seed=1)), (few[:600], few[600:])
    for a, b in sets:
        h = len(a) // 2
        found = KNN(a[:h], b[:h], a[h:], b[h:])
        assert found["balanced"] == pytest.approx(0.5, abs=0.05) and found["min"] > 0.4
    collapsed = x[:1].expand(300, -1, -1, -1)  # one real image, over and over
    assert KNN(x[:300], collapsed, x[300:], collapsed)["max"] < 0.03


def test_intrinsic_dimension_is_scikit_dimensions():
    x = normal(500, 4) @ normal(4, 30, seed=1)
    for average, theirs in (("levina", "mean"), ("mackay", "mle")):
        curve = {k: MLE().fit(x.numpy(), n_neighbors=k, comb=theirs).dimension_ for k in (10, 20)}
        found = metrics.intrinsic_dimension(x, [10, 20], average)
        assert found == pytest.approx(curve, rel=1e-9)
        assert metrics.intrinsic_dimension(x, 10, average) == pytest.approx(curve[10], rel=1e-9)


def test_intrinsic_dimension_counts_equal_rows_once():
    x = normal(200, 3)
    expected = metrics.intrinsic_dimension(x, k=10)
    for more in (torch.cat([x, x[:40], x[:40]]), (1000 * x).round().repeat(2, 1) / 1000):
        assert metrics.intrinsic_dimension(more, k=10) == pytest.approx(expected, rel=0.01)


def test_rdd_is_the_ratio_of_mean_squared_distances():
    x = torch.tensor([[0.0, 0], [2, 0], [10, 0], [14, 4]])  # spreads of 1, and 4 + 4
    ref = torch.tensor([[0.0, 0], [0, 4], [0, 0], [0, 0], [4, 0], [4, 0]])  # spreads of 4 and 4
    result = metrics.rdd(x, ref, np.array([3, 3, 7, 7]), torch.tensor([3, 3, 7, 7, 7, 7]))
    assert result == {"mean": pytest.approx(1.125), "per_class": {3: pytest.approx(0.25), 7: 2}}
    a, b = ((z - z.mean(0)).square().sum() / len(z) for z in (x, ref))
    assert metrics.rdd(x, ref) == {"mean": pytest.approx((a / b).item()), "per_class": {}}
    assert metrics.rdd(torch.ones(3, 2), torch.ones(4, 2))["mean"] == 1  # 0 / 0


def test_measure_leaves_out_classes_of_few_images():
    x, y = uniform(120, 1, 2, 2, seed=1), uniform(120, 1, 2, 2)
    labels, real_labels = torch.arange(120) % 4, torch.arange(120) % 5  # 30 and 24 of each, but
    labels[labels == 1] = torch.tensor([1] * 19 + [0] * 11)
    found = metrics.measure(x, y, labels=labels, real_labels=real_labels)["rdd"]["per_class"]
    expected = {c: metrics.rdd(x[labels == c], y[real_labels == c])["mean"] for c in (0, 2, 3)}
    assert found == pytest.approx(expected, rel=1e-5)


X, Y = uniform(60, 3, 8, 8), uniform(60, 3, 8, 8, seed=1)
BYTES, ROWS, WIDE, NONE = (255 * X).byte(), uniform(20, 3), uniform(2, 4), uniform(0, 3)
ONES, NAN = torch.ones(9, 3), torch.tensor([[0.0, math.nan, 1], [1, 2, 3]])
CALLS = {  # every measure of two sets of images or rows
    "fid": metrics.fid, "mmd": metrics.mmd, "nearest": lambda x, y: metrics.nearest(x, 3, y)[0],
    "measure": lambda x, y: metrics.measure(x, y)["fid"], "rdd": lambda *z: metrics.rdd(*z)["mean"],
    "knn": lambda x, y: KNN(x[:30], y[:30], x[30:], y[30:])["fnr"],
    "bayes": lambda x, y: BAYES(x[:30], y[:30], x[30:], y[30:])["fnr"],
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_and_graphs_are_taken(name):
    expected, g = CALLS[name](X, Y), X.clone().requires_grad_()
    reversed_ = np.ascontiguousarray(X.numpy()[::-1])[::-1]  # negative strides
    locked = Y.numpy().astype(">f4")  # of another byte order, and read-only
    locked.setflags(write=False)
    for pair in ((g, Y), (X.numpy(), Y.numpy()), (reversed_, locked)):
        found = CALLS[name](*pair)
        assert np.array_equal(found, expected) and not getattr(found, "requires_grad", False)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong, fix", [
    (lambda z: 2 * z - 1, r"\(x \+ 1\) / 2"), (lambda z: 255 * z, "divide by 255"),
    (lambda z: z.permute(0, 2, 3, 1), "permute"), (lambda z: z.to(torch.complex64), "complex"),
    (lambda z: torch.where(z > 0.99, math.nan, z), "NaN"),
    (lambda z: (z > 0.5).byte(), "make them floats"), (lambda z: (255 * z).byte(), "255"),
    (lambda z: (255 * z).long(), "float"), (lambda z: z > 0.5, "make them floats"),
    (lambda z: (65535 * z).to(torch.uint16), "6.5.e.04: divide by 65535"),
])  # fmt: skip
def test_other_ranges_and_layouts_are_refused_with_the_fix(name, wrong, fix):
    for x, y in ((wrong(X), Y), (X, wrong(Y))):
        for given in ((x, y), (x.numpy(), y.numpy())):
            with pytest.raises(ValueError, match=f"^[a-z_]*: .*{fix}"):
                CALLS[name](*given)


def test_rows_of_any_range_and_bytes_are_taken():
    x, y, whole, other = X.flatten(1), Y.flatten(1), BYTES, (255 * Y).byte()
    assert metrics.fid(9 * x - 4, 9 * y - 4) == pytest.approx(81 * metrics.fid(x, y))
    assert metrics.mmd(9 * x - 4, 9 * y - 4) == pytest.approx(metrics.mmd(x, y))
    for kind in (torch.float64, torch.float16, torch.int64, torch.int16):
        rows = [z.flatten(1).to(kind) for z in (whole, other)]
        assert metrics.fid(*rows) == pytest.approx(metrics.fid(whole, other))
    found = metrics.measure(whole, other)["fid"]
    assert found == pytest.approx(metrics.fid(whole, other) / 255**2, rel=1e-5)
    for images in (BYTES, BYTES.numpy()):
        assert torch.equal(metrics.features(images, "pixels"), BYTES.flatten(1) / 255)


@pytest.mark.parametrize("named, function, args", [
    ("x", "stats", [NAN]), ("x", "stats", [ROWS[:1]]), ("x", "fid", [NONE, ROWS]),
    ("y", "fid", [ROWS, WIDE]), ("y", "fid", [ROWS, ROWS * math.inf]), ("y", "fid", [X, X[:, :1]]),
    ("y", "fid", [X, X.mT[:, :, :4]]), ("x", "fid", [np.array([["a", "b"]]), ROWS]),
    ("mu1, cov1, mu2, cov2", "frechet_distance", [*metrics.stats(ROWS), *metrics.stats(ROWS.T)]),
    ("mu1, cov1, mu2, cov2", "frechet_distance", [NAN[0], torch.eye(3), ROWS[0], torch.eye(3)]),
    ("x", "mmd", [ROWS[:1], ROWS, "rbf", None, True]), ("kernel", "mmd", [ROWS, ROWS, "gauss"]),
    ("bandwidth", "mmd", [ROWS, ROWS, "rbf", 0]), ("x", "median_distance", [ONES]),
    ("x", "nearest", [NONE, 1]), ("k", "nearest", [ROWS, 20]),
    ("k", "nearest", [ROWS, 0, ROWS]), ("queries", "nearest", [ROWS, 1, WIDE]),
    ("fake_train", "knn_misclassification", [ROWS, NAN, ROWS, ROWS, 1]),
    ("real_test", "knn_misclassification", [ROWS, ROWS, NONE, ROWS, 1]),
    ("k", "knn_misclassification", [ROWS[:2], ROWS[:2], ROWS, ROWS, 5]),
    ("fake_test", "bayes_misclassification", [ROWS, ROWS, ROWS, WIDE]),
    ("real_train, fake_train", "bayes_misclassification", [ONES] * 4),
    ("x", "intrinsic_dimension", [ROWS[:2]]), ("k", "intrinsic_dimension", [ROWS, 20]),
    ("k", "intrinsic_dimension", [ROWS, [1, 2]]), ("k", "intrinsic_dimension", [ROWS, []]),
    ("average", "intrinsic_dimension", [ROWS, 5, "mean"]), 
    ("labels", "rdd", [ROWS, ROWS, torch.zeros(20), torch.arange(20) % 2]),
    ("k", "intrinsic_dimension", [torch.cat([ROWS[:5], *[ONES] * 9]), 10]),  # 6 are different
    ("k", "intrinsic_dimension", [torch.eye(30), 5]),  # all at one distance
    ("kind", "features", [X, "resnet"]), ("images", "features", [X[:, 0], "pixels"]),
    ("images", "features", [ROWS, "pixels"]),
    ("images", "train_classifier", [X, torch.arange(60) % 2]),
])  # fmt: skip
def test_bad_input_is_named(named, function, args):
    with pytest.raises(ValueError, match=f"^{named}: "):
        getattr(metrics, function)(*args)


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
    original, trained = metrics.train_classifier, []

    def quick(*args, **more):
        trained.append(args)
        return original(*args, updates=8 if trained[1:] else 150, **more)

    monkeypatch.setattr(metrics, "train_classifier", quick)
    monkeypatch.setattr(metrics.data, "load", lambda name, where, split, size=None: sets[split])
    before = torch.get_rng_state()
    net = metrics.classifier_of("bars", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers
    assert net.labels.tolist() == [0, 1] and net.test_error <= 0.05
    assert metrics.test_accuracy(net, *sets["test"]) == pytest.approx(1 - net.test_error)
    again = metrics.classifier_of("bars", tmp_path)
    assert len(trained) == 1 and again.test_error == net.test_error
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    file, = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = file.read_bytes()
    flipped = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    for damaged in (whole[: len(whole) // 2], flipped):
        file.write_bytes(damaged)
        metrics.classifier_of("bars", tmp_path)
    assert len(trained) == 3  # both were made again
    monkeypatch.setattr(metrics.Classifier, "__repr__", lambda self: "other layers")
    metrics.classifier_of("bars", tmp_path)
    sets["train"] = sets["train"][0], sets["train"][1].roll(1)  # the same labels, another order
    sets["test"] = sets["test"][0], torch.full((100,), -1)  # without labels
    assert math.isnan(metrics.classifier_of("bars", tmp_path).test_error) and len(trained) == 5
    sets["train"] = bars(20)  # less than a batch
    (tmp_path / "blocked").write_text("a file, so that nothing can be kept in it")
    assert metrics.classifier_of("bars", tmp_path / "blocked").labels.tolist() == [0, 1]
    sets["train"] = sets["train"][0], torch.zeros(20)
    with pytest.raises(metrics.InputError, match="pixels"):
        metrics.classifier_of("bars", tmp_path)


def test_classifier_takes_the_sizes_of_the_data_sets():
    for channels, size in ((1, 28), (3, 32), (3, 64)):
        net, x = metrics.Classifier(channels, size, range(7)), torch.rand(2, channels, size, size)
        assert net(x).shape == (2, 7) and metrics.features(x, "classifier", net).shape == (2, 128)


def test_accuracy_and_confidence_by_hand():
    x, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([3, 5, 7, 9])
    reader = SimpleNamespace(labels=labels, features=lambda x: x.flatten(1), read=lambda x: x)
    # it reads the place of the brightest pixel
    for labels, accuracy in (([3, 5, 7, 7], 0.75), ([-1, -1, 9, 9], 0.5)):
        assert metrics.test_accuracy(reader, x, torch.tensor(labels)) == accuracy
        assert metrics.test_accuracy(reader, x.numpy(), np.array(labels)) == accuracy
    assert math.isnan(metrics.test_accuracy(reader, x, torch.full((4,), -1)))
    sure = torch.tensor([[0.5], [0.88], [0.95], [0.99]])
    logits = torch.where(torch.eye(4) > 0, sure, (1 - sure) / 3).log()
    found = metrics.reading(reader, logits, torch.tensor([3, 5, 9, -1]))
    assert found == {"accuracy": pytest.approx(2 / 3), "above_0.9": 0.5,
                     "mean_confidence": pytest.approx(sure.mean().item())}


def test_inception_is_pytorch_fids(monkeypatch, tmp_path):
    torch.manual_seed(0)
    state = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    for value in state.values():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value)  # keeps the size of activations
        elif value.ndim:
            value.uniform_(0.7, 1.3)  # of batch norm
    cached = tmp_path / "checkpoints" / metrics.INCEPTION.rpartition("/")[2]
    cached.parent.mkdir()
    torch.save(state, cached)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(published, "load_state_dict_from_url", lambda *args, **kwargs: state)
    net, theirs = metrics.inception(), published.InceptionV3([3]).eval()
    for shape in ((2, 3, 32, 32), (1, 3, 64, 64), (1, 1, 28, 28)):
        x = torch.rand(shape)
        found = metrics.features(x, "inception", net)
        expected = theirs(x.expand(-1, 3, -1, -1))[0].flatten(1)
        assert expected.std() > 0.1  # else there would be nothing to compare
        assert found.numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)

    def download(url, file, hash_prefix=None, progress=True):  # torch hub's, without a network
        assert (url, hash_prefix) == (metrics.INCEPTION, "6726825d")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for damage in (lambda: cached.write_bytes(b"other"), cached.unlink):
        damage()
        with pytest.raises(metrics.InputError, match=f"https://.* into {cached.parent}") as error:
            metrics.inception()
        assert "\n" not in str(error.value)
    assert "no network" in str(error.value)


# the command line


class Model:
    """In the place of a run: draws what it is asked for out of a set of images."""

    logits, shape, args = None, (1, 8, 8), SimpleNamespace(dataset="bars", size=8)
    draw = metrics.Run.draw

    def __init__(self, images, labels=None, classes=()):
        self.name, self.pool, self.own_labels, self.classes = "run", images, labels, list(classes)
        self.conditional, self.asked = labels is not None, []

    def sample(self, n, labels=None, seed=0):
        self.asked.append(labels)
        fits = torch.ones(n, len(self.pool))
        if labels is not None:
            fits = (self.own_labels == labels[:, None]).float()
        chosen = fits.multinomial(1, generator=torch.Generator().manual_seed(seed))
        return self.pool[chosen[:, 0]] / 255


@pytest.fixture
def bars_set(monkeypatch, tmp_path):
    """`bars` in the place of a data set, a model in that of a run, and a classifier untrained."""
    torch.manual_seed(0)
    sets = SimpleNamespace(train=bars(300), test=bars(200, seed=1), run=Model(bars(300)[0]),
                           net=metrics.Classifier(1, 8, torch.tensor([0, 1])).eval())
    sets.net.test_error = 0.25
    load, load_run = metrics.data.load, metrics.load_run

    def loaded(dataset, data_dir="data", split="train", size=None, classes=None):
        if dataset != "bars":
            return load(dataset, data_dir, split, size)
        return data.Loaded(*getattr(sets, split), classes=["across", "upright"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "SMALL", 150)
    monkeypatch.setattr(metrics.data, "load", loaded)
    monkeypatch.setattr(metrics, "classifier_of", lambda *args: sets.net)
    monkeypatch.setattr(metrics, "load_run", lambda text, *args: (
        sets.run if text == "run" else load_run(text, *args)))
    return sets


def evaluate(line):
    """What `metrics.py eval` writes, its rows by name."""
    metrics.main(["eval", *line.split(), "--device", "cpu", "--json", "e.json"])
    content = json.loads(Path("e.json").read_text())
    return content | {"rows": {row["name"]: row for row in content["rows"]}}


def write_folder(folder, images, labels=None, names=("",)):
    for i, image in enumerate(images):
        place = Path(folder, names[0 if labels is None else labels[i]])
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(place / f"{i:03}.png")


def test_eval_prints_all_sources_under_the_real_ones(bars_set, capsys):
    noise, (images, labels) = uniform(250, 8, 8), bars_set.test
    np.save("noise.npy", noise.numpy())
    np.savez("labelled.npz", images.permute(0, 2, 3, 1).numpy(), labels.numpy())  # as ADM's
    write_folder("pictures", images[:180], labels, ["upright", "across"])
    found = evaluate("run noise.npy labelled.npz pictures")
    rows, out = found["rows"], capsys.readouterr().out
    assert "against 180 training images, as many as the smallest source has, seed 0" in out
    assert "misreads 25.00%" in out
    assert list(rows) == ["other real images", "run", "noise.npy", "labelled.npz", "pictures"]
    assert found["features"] == "classifier"

    net, row = bars_set.net, rows["noise.npy"]
    drawn, real = shuffled(noise[:, None], 180), shuffled(bars_set.train[0], 180) / 255
    features = [metrics.features(x, "classifier", net) for x in (drawn, real)]
    parts = real[:90], drawn[:90], real[90:], drawn[90:]
    assert row["fid"] == pytest.approx(metrics.fid(*features), rel=1e-5)
    assert row["mmd"] == pytest.approx(metrics.mmd(drawn, real), rel=1e-9)
    assert (row["knn"], row["bayes"], row["n"]) == (KNN(*parts), BAYES(*parts), 180)
    assert row["rdd"]["mean"] == pytest.approx(metrics.rdd(drawn, real)["mean"], rel=1e-6)
    assert row["fid_spread"] > 0 and row["mmd_spread"] > 0 and "accuracy" not in row
    assert f"{row['fid']:.4g}±{row['fid_spread']:.2g}" in out and f"{row['knn']['min']:.3f}" in out

    accuracy = metrics.test_accuracy(net, *(shuffled(x, 180) for x in bars_set.test))
    assert rows["labelled.npz"]["accuracy"] == accuracy == rows["other real images"]["accuracy"]
    assert set(rows["labelled.npz"]["rdd"]["per_class"]) == {"0", "1"}
    swapped = 1 - metrics.test_accuracy(net, images[:180], labels[:180])  # by the folders' names
    assert rows["pictures"]["accuracy"] == pytest.approx(swapped)


def test_eval_trains_no_classifier_unless_it_is_asked_for(bars_set, monkeypatch):
    assert "mean_confidence" in evaluate("run --n 100")["rows"]["run"]
    bars_set.train = tuple(x[:100] for x in bars_set.train)
    assert evaluate("run --features classifier")["features"] == "classifier"
    monkeypatch.setattr(metrics, "classifier_of", None)
    assert "mean_confidence" not in evaluate("run --features pixels")["rows"]["run"]
    assert evaluate("run")["features"] == "pixels"  # it would know 100 by heart


def test_a_perfect_conditional_model_of_rare_classes_is_not_punished(bars_set):
    images, labels = bars(2000)
    keep = shuffled(torch.cat([(labels == k).nonzero()[:n, 0] for k, n in ((0, 450), (1, 50))]))
    images, labels = bars_set.train = images[keep], labels[keep]
    model = bars_set.run = Model(images, 1 - labels, ["upright", "across"])  # its own order
    row = evaluate("run --features classifier")["rows"]["run"]
    asked, = [labels for labels in model.asked if len(labels) > 1]
    assert row["n"] == 500 and (asked == 0).sum() == 50  # 10 %, "upright" by name
    chosen = images[torch.randint(500, (500,))], images
    free = metrics.fid(*(metrics.features(x, "classifier", bars_set.net) for x in chosen))
    assert row["fid"] < 3 * free and row["rdd"]["per_class"]["1"] == pytest.approx(1, abs=0.15)
    reading = metrics.test_accuracy(bars_set.net, model.sample(500, asked), 1 - asked)
    assert row["accuracy"] == pytest.approx(reading)


@pytest.mark.parametrize("held_out, n", [(200, 200), (119, 120)])
def test_n_is_not_capped_by_the_held_out_tenth(bars_set, capsys, held_out, n):
    bars_set.train = tuple(part[:240] for part in bars_set.train)
    bars_set.test = tuple(part[:held_out] for part in bars_set.test)
    first, row = evaluate("run --features pixels")["rows"].values()
    assert (first["n"], row["n"]) == (n, 240)
    assert "fewer images alone raise" in capsys.readouterr().out


def test_eval_of_a_folder_against_itself_and_numbered_classes(bars_set):
    images, labels = bars(300)
    write_folder("set", images, labels, ["2", "10"])
    line = "set --dataset set --data-dir . --size 8 --features classifier"
    row, truth = evaluate(line)["rows"]["set"], metrics.test_accuracy(bars_set.net, images, labels)
    assert row["n"] >= 250 and row["knn"]["min"] > 0.35
    assert row["knn"]["balanced"] == pytest.approx(0.5, abs=0.1)
    assert row["rdd"]["mean"] == pytest.approx(1, abs=0.05) and len(row["rdd"]["per_class"]) == 2
    assert row["accuracy"] == pytest.approx(truth, abs=0.1)  # labels by name: not 1 - truth


def test_arrays_and_statistics_are_the_real_side(bars_set, monkeypatch, capsys):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6)).requires_grad_(False)
    monkeypatch.setattr(metrics, "inception", lambda *args: net)
    x, y = uniform(100, 3, 8, 8), uniform(90, 3, 8, 8, seed=1)
    rows, real = net(x), net(y)
    np.savez("x.npz", images=x.numpy())
    np.save("y.npy", y.numpy())
    np.savez("stats.npz", mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    write_folder("grey", bars(60)[0])
    with pytest.raises(SystemExit):
        evaluate("grey --dataset stats.npz")
    assert "--size" in capsys.readouterr().err
    found = evaluate("x.npz --dataset stats.npz")
    assert found["rows"]["x.npz"]["fid"] == pytest.approx(metrics.fid(rows, real), rel=1e-5)
    assert found["features"] == "inception" and "100" in capsys.readouterr().out
    row = evaluate("x.npz --dataset y.npy --features inception")["rows"]["x.npz"]
    rows = shuffled(rows, 90)
    assert row["fid"] == pytest.approx(metrics.fid(rows, real), rel=1e-5) and row["kid_spread"] > 0
    kid = metrics.mmd(rows, real, "polynomial", unbiased=True)
    assert row["kid"] == pytest.approx(kid, rel=1e-4)
    assert evaluate("grey --dataset y.npy")["rows"]["grey"]["fid"] > 0  # grey against colour


@pytest.mark.parametrize("kind", [">f4", ">f8", "f2"])
def test_floats_of_every_kind_are_read(kind, tmp_path):
    images, labels = np.arange(64).reshape(4, 4, 4) / 64, np.array([3, 1, 2, 1], dtype=">u2")
    np.savez(tmp_path / "a.npz", images=images.astype(kind), labels=labels)
    found = metrics.read_images(tmp_path / "a.npz")
    assert torch.equal(found.images.float(), torch.tensor(images[:, None]).float())
    assert found.labels.tolist() == [3, 1, 2, 1]


def test_labels_are_matched_by_name():
    labels = torch.tensor([0, 1, 2, -1, 1])
    assert metrics.relabel(labels, ["a", "b", "c"], ["c", "a"]).tolist() == [1, -1, 0, -1, -1]
    assert metrics.relabel(labels, [], ["a"]).tolist() == labels.tolist()


def test_dim_prints_the_curve(bars_set, capsys):
    line = "dim --dataset bars --n 200 --device cpu --json dim.json"
    metrics.main(line.split())
    x, ks = shuffled(bars_set.train[0], 200), [10, 20, 50, 100]
    levina, mackay = (metrics.intrinsic_dimension(x, ks, name) for name in ("levina", "mackay"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all([str(k), f"{levina[k]:.2f}", f"{mackay[k]:.2f}"] in lines for k in ks)
    assert [row["k"] for row in json.loads(Path("dim.json").read_text())["dimension"]] == ks


@pytest.mark.parametrize("line, said", [
    ("eval nowhere", "nowhere does not exist"), ("eval small.npy", "name it with --dataset"),
    ("eval small.npy", "images of (1, 4, 4)"), ("eval colour.npy", "images of (3, 8, 8)"),
    ("eval wild.npy", "floats in [0, 1]"), ("eval none.npz", "array of images `images`"),
    ("eval bytes.npy", "cannot be read as plain arrays"), ("eval deep.npy", "torch.uint16"),
    ("eval words.npz", "not a whole number for"), ("eval onehot.npz", "not a whole number for"),
    ("eval ok.npy --n 10", "too few"), ("eval ok.npy --n 0", "--n and --size must be 1"),
    ("dim --n 60", "2 to 59"),
    ("eval ok.npy --json nowhere/e.json", "nowhere/e.json cannot"),
])  # fmt: skip
def test_one_line_says_what_is_wrong(bars_set, capsys, line, said):
    x = np.zeros((100, 8, 8))
    arrays = {"small": x[:, :4, :4], "ok": x + np.eye(8), "wild": x + 7, "deep": x.astype("u2"),
              "colour": np.stack([x, x, x], 1)}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("words.npz", images=x, labels=["a", "b"] * 50)
    np.savez("onehot.npz", images=x, labels=np.eye(100, dtype=int))
    np.savez("none.npz", a=x, b=x)
    Path("bytes.npy").write_bytes(b"not an array")
    dataset = [] if "--dataset" in said else ["--dataset", "bars"]
    with pytest.raises(SystemExit) as stop:
        metrics.main([*line.split(), *dataset, "--device", "cpu"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("error:") == 1 and said in error.splitlines()[-1]
