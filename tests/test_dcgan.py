"""GAN, DCGAN, WGAN and the explorations against their equations and definitions."""

import argparse
import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_scripts import refused
from torch import nn
from torchvision.ops import Permute
from torchvision.transforms.functional import pil_to_tensor

import data
import dcgan
import metrics


def nets_of(size=28, channels=1, width=4, classes=0, arch="conv", objective="gan", ema=0):
    torch.manual_seed(0)
    return dcgan.build(argparse.Namespace(arch=arch, objective=objective, channels=channels,
                                          size=size, width=width, classes=classes, ema=ema))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, width, kernels", [
    (64, 128, [1024, 512, 256, 128]),  # Radford et al., Figure 1
    (28, 64, [128, 64]),               # DE-GAN, Table II: 6272 = 128 x 7 x 7
    (32, 128, [512, 256, 128]),
])  # fmt: skip
def test_the_papers_sizes(size, width, kernels):
    assert dcgan.kernels_for(size, width) == kernels
    with torch.device("meta"):
        G, D = dcgan.Generator(kernels, 3, size), dcgan.Discriminator(kernels, 3, size)
        images = G(dcgan.draw_z(5, 100))
        assert images.shape == (5, 3, size, size) and D(images).shape == (5,)
        expected = [(k, size >> i, size >> i) for i, k in enumerate(kernels[::-1], 1)]
        assert [maps.shape[1:] for maps in D.activations(images)] == expected
    assert G.dense.weight.shape == (kernels[0] * (size >> len(kernels)) ** 2, 100)


def test_the_rules_of_dcgan():
    """Kernels of 5, strides of 2, weights from N(0, 0.02). Batch norm: see the next test."""
    layers = [layer for net in nets_of(size=64, channels=3, width=32).values()
              for layer in net.modules()]
    convs = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    assert {(layer.kernel_size, layer.stride) for layer in convs} == {((5, 5), (2, 2))}
    weights = torch.cat([layer.weight.flatten() for layer in layers
                         if isinstance(layer, nn.Linear) or layer in convs])
    assert weights.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * len(weights)))
    assert abs(weights.mean().item()) < 5 * 0.02 / math.sqrt(len(weights))


def test_generator_and_discriminator_written_out():
    G, D = nets_of(size=28, width=4).values()
    z = dcgan.draw_z(6, 100)
    plain = nn.Sequential(
        G.dense, nn.Unflatten(1, (7, 7, 8)), Permute([0, 3, 1, 2]), G.norms[0], nn.ReLU(), G.ups[0],
        G.norms[1], nn.ReLU(), G.ups[1], nn.Tanh())
    images = G(z)
    torch.testing.assert_close(2 * images - 1, plain(z))
    assert images.min() >= 0 and images.max() <= 1
    plain = nn.Sequential(
        D.downs[0], nn.LeakyReLU(0.2), D.downs[1], D.norms[1], nn.LeakyReLU(0.2),
        Permute([0, 2, 3, 1]), nn.Flatten(), D.dense)
    torch.testing.assert_close(D(images), plain(2 * images - 1)[:, 0])


def test_latents_are_uniform():
    z = dcgan.draw_z(2000, 100, seeded())
    assert -1 <= z.min() < -0.99 and 0.99 < z.max() <= 1
    assert z.mean().abs() < 5 * math.sqrt(1 / 3 / z.numel())
    assert z.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("arch", ["conv", "dense"])
def test_labels_enter_every_layer(arch):
    """Weights of labels that are there get a gradient in each layer, the others get none."""
    G, D = nets_of(width=64, classes=10, arch=arch).values()
    if arch == "conv":  # DE-GAN, Table II
        assert [layer.weight.shape[1] for layer in D.downs] == [11, 74]
        assert G.dense.weight.shape == (6272, 110) and D.dense.weight.shape == (1, 6282)
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    images = G(dcgan.draw_z(6, 100), labels)
    (D.eval()(images, labels) * torch.randn(6)).sum().backward()
    for layer in itertools.chain(G.modules(), D.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            grad = layer.weight.grad
            inputs = grad if isinstance(layer, nn.ConvTranspose2d) else grad.transpose(0, 1)
            met = inputs[-10:].flatten(1).abs().amax(1) > 0
            assert met.nonzero().flatten().tolist() == [1, 3, 4, 5, 9]


def test_maxout():
    """240 units, each the greatest of 5 linear pieces (Goodfellow et al. 2013, eq. 1)."""
    D = nets_of(arch="dense")["D"].eval()
    x = torch.rand(3, 1, 28, 28)
    h = 2 * x.flatten(1) - 1
    for layer in D.layers:
        pieces = [F.linear(h, layer.weight[k::5], layer.bias[k::5]) for k in range(5)]
        h = torch.stack(pieces).max(0).values
        assert h.shape == (3, 240)
    torch.testing.assert_close(D(x), D.last(h)[:, 0])
    assert not torch.equal(D.train()(x), D(x))  # dropout
    critic = nets_of(arch="dense", objective="wgan")["critic"]
    assert torch.equal(critic(x), critic(x))


# ---- losses and updates --------------------------------------------------------------------------


def test_gan_losses():
    zero = torch.zeros(9)
    assert dcgan.d_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert dcgan.g_loss(zero).item() == pytest.approx(math.log(2))
    real, fake = torch.randn(50) * 5, torch.randn(50) * 5
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(50)) + bce(fake, torch.zeros(50))
    torch.testing.assert_close(dcgan.d_loss(real, fake), expected)
    torch.testing.assert_close(dcgan.g_loss(fake), bce(fake, torch.ones(50)))
    assert dcgan.d_loss(torch.tensor([-1e4]), torch.tensor([1e4])) == 2e4  # no overflow


def test_the_best_critic_of_two_points_measures_their_distance():
    """f(x) = w x with |w| <= 1 is 1-Lipschitz; the best gives |2.5 - 1| for points at 2.5 and 1."""
    real, fake = torch.full((4,), 2.5), torch.full((6,), 1.0)
    losses = {w: dcgan.critic_loss(w * real, w * fake).item() for w in (-1, -0.5, 0, 0.5, 1)}
    assert min(losses.values()) == losses[1] == -1.5
    assert dcgan.critic_g_loss(torch.tensor([1.0, 4.0])).item() == -2.5


@pytest.mark.parametrize("objective, k", [("gan", 1), ("gan", 2), ("wgan", 3)])
def test_an_update_by_hand(objective, k):
    """k steps of D down its loss, each clipped for WGAN, then one of G down its own, through D."""
    nets = nets_of(classes=3, objective=objective)
    for net in nets.values():  # statistics of a batch would couple D's passes
        net.eval()
    G, D = copy.deepcopy(nets).values()
    x, y = torch.rand(k, 8, 1, 28, 28), torch.arange(8 * k).view(k, 8) % 3
    z, wgan = dcgan.draw_z(8 * k, 100).view(k, 8, 100), objective == "wgan"
    optimisers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets.values()]
    autocast = torch.autocast("cpu", enabled=False)
    losses = dcgan.update(*nets.values(), *optimisers, x, y, z, autocast, wgan)

    def descend(net, loss):
        weights = list(net.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights)):
            weight.data -= 0.1 * slope

    for i in range(k):
        fake = G(z[i], y[i]).detach()
        real, made = D(x[i], y[i]), D(fake, y[i])
        p_real, p_made = torch.sigmoid(real), torch.sigmoid(made)
        loss_D = made.mean() - real.mean() if wgan else -(p_real * (1 - p_made)).log().mean()
        descend(D, loss_D)
        if wgan:
            for weight in D.parameters():
                weight.data = weight.data.clip(-0.01, 0.01)
    score = D(G(z[-1], y[-1]), y[-1])
    loss_G = -score.mean() if wgan else -torch.sigmoid(score).log().mean()
    descend(G, loss_G)
    for net, by_hand in zip(nets.values(), (G, D)):
        torch.testing.assert_close(dict(net.named_parameters()), dict(by_hand.named_parameters()))
        assert all(weight.requires_grad for weight in net.parameters())
    shown = (real.mean(), made.mean()) if wgan else (p_real.mean(), p_made.mean())
    spread = fake.var(0).sum() / x[-1].var(0).sum()
    torch.testing.assert_close(losses, torch.stack([loss_D, loss_G, *shown, spread]).detach())


# ---- sampling and training -----------------------------------------------------------------------


def test_samples_of_a_class():
    nets = nets_of(classes=10)
    images = dcgan.sample(nets, 25, generator=seeded(), batch_size=10)  # 0, 1, ..., 9, 0, ...
    again = dcgan.sample(nets, 25, torch.arange(25) % 10, seeded(), batch_size=10)
    assert torch.equal(images, again) and nets["G"].training
    threes = dcgan.sample(nets, 25, torch.full((25,), 3), seeded(), batch_size=10)
    assert torch.equal(threes[[3, 13]], images[[3, 13]])  # whatever is drawn with it
    assert not torch.equal(threes[4], images[4])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """300 images of two classes: a bright square on the left or right of a dim image of 28 px."""
    folder, rng = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for i in range(300):
        image = rng.integers(0, 60, (28, 28), dtype=np.uint8)
        image[8:20, 16 * (i % 2) : 16 * (i % 2) + 12] += 180
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return folder


def train(folder, out, *flags, iters=4):
    dcgan.main(["--dataset", str(folder), "--data-dir", str(out.parent), "--device", "cpu",
                "--out", str(out), "--width", "4", "--batch-size", "32", "--no-amp",
                "--iters", str(iters), *flags])  # fmt: skip
    return metrics.load_checkpoint(out)


def test_a_run_of_wgan(pictures, tmp_path):
    """Five batches for one update of G, RMSprop, weights within 0.01; no D for the GAM.

    About 270 images: 8 batches and one update of G an epoch; rates fall over the last 2 of 4.
    """
    flags = ["--objective", "wgan", "--epochs", "4", "--decay", "0.5"]
    saved = train(pictures, tmp_path / "w", *flags, iters=4)
    assert set(saved["nets"]) == {"G", "critic", "ema"}
    for name, updates in (("G", 4), ("D", 20)):
        optimiser = saved["optimisers"][name]
        assert {float(state["step"]) for state in optimiser["state"].values()} == {updates}
        assert float(optimiser["param_groups"][0]["lr"]) == pytest.approx(2e-4 / 3)
        assert "square_avg" in optimiser["state"][0]
    run = metrics.load_run(tmp_path / "w")
    assert max(p.abs().max() for p in run.nets["critic"].parameters()) <= 0.01
    assert run.logits is None


def test_rates_and_width_follow_the_networks(pictures, tmp_path):
    """Below 64 px DCGAN learns four times as fast as in the paper; own photos: narrow networks."""
    conv, dense = (train(pictures, tmp_path / arch, "--arch", arch, iters=1)["args"]
                   for arch in ("conv", "dense"))
    assert conv["lr_g"] == conv["lr_d"] == 8e-4 and dense["lr_g"] == dense["lr_d"] == 2e-4
    widths = [dcgan.parse_args(["--dataset", name]).width for name in ("lsun-rooms", "photos")]
    assert widths == [None, 32]


@pytest.mark.parametrize("arch", ["conv", "dense"])
def test_the_average_of_g(arch, pictures, tmp_path, monkeypatch):
    """Weights and batch norm's averages: half of the last average and half of G, three times."""
    states, update = [], dcgan.update

    def follow(G, *args):
        states.append(copy.deepcopy(G.state_dict()))
        return update(G, *args)

    monkeypatch.setattr(dcgan, "update", follow)
    nets = train(pictures, tmp_path / "run", "--ema", "0.5", "--arch", arch, iters=3)["nets"]
    expected = states[0]
    for state in [*states[1:], nets["G"]]:
        expected = {name: (expected[name] + value) / 2 for name, value in state.items()}
    for name, value in nets["ema"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])
    run = metrics.load_run(tmp_path / "run")
    alone = {"G": run.nets["ema"]}
    torch.testing.assert_close(run.sample(4), dcgan.sample(alone, 4, generator=seeded()))
    assert "ema" not in train(pictures, tmp_path / "without", "--ema", "0", iters=1)["nets"]


# ---- explorations --------------------------------------------------------------------------------


def test_guided_gradient_of_a_small_discriminator():
    """By hand: back from the map's greatest place; at each leaky ReLU the gradient passes where it
    and the input are positive (Springenberg et al., Figure 1)."""
    D = nets_of(width=3)["D"].eval()
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        h1 = F.conv2d(2 * x - 1, D.downs[0].weight, D.downs[0].bias, stride=2, padding=2)
        norm = D.norms[1]
        h2 = norm(D.downs[1](F.leaky_relu(h1, 0.2)))
        place = h2[:, 4].flatten(1).argmax(1)
        down = torch.zeros_like(h2)
        down.flatten(2)[range(2), 4, place] = 1.0
        down *= h2 > 0
        down *= (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        back = {"stride": 2, "padding": 2, "output_padding": 1}
        down = F.conv_transpose2d(down, D.downs[1].weight, **back).clamp(min=0) * (h1 > 0)
        expected = 2 * F.conv_transpose2d(down, D.downs[0].weight, **back)
    assert (h2[range(2), 4].flatten(1).amax(1) > 0).all() and expected.abs().sum() > 0
    torch.testing.assert_close(dcgan.guided_gradient(D, x, 4), expected)


def test_the_svm_is_scikit_learns():
    from sklearn import svm

    torch.manual_seed(0)
    x, labels = torch.randn(90, 5, dtype=torch.float64), torch.arange(90) % 3
    x[range(90), labels] += 1
    y = 2 * F.one_hot(labels, 3).double() - 1
    w, b = dcgan.fit_linear(x, y, 0.5, lambda margin: (1 - margin).clamp(min=0) ** 2)
    theirs = svm.LinearSVC(C=0.5, tol=1e-8, max_iter=100_000, intercept_scaling=1e3)
    theirs.fit(x, labels)  # intercept_scaling: it regularises the bias, but hardly
    torch.testing.assert_close(w.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, torch.from_numpy(theirs.intercept_), atol=1e-3, rtol=1e-3)


def test_features_are_pooled_to_four_by_four():
    """16 x (256 + 512 + 1024) = 28672 for the paper's network; each the greatest of a cell."""
    D = nets_of(size=32, channels=3, width=8)["D"].eval()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found = dcgan.pooled_features(D, images)
    assert found.shape == (5, 16 * (8 + 16 + 32))
    maps = D.activations(images / 255)
    torch.testing.assert_close(found[:, : 16 * 8], F.max_pool2d(maps[0], 4).flatten(1))
    torch.testing.assert_close(found[:, -16 * 32 :], maps[2].flatten(1))  # 4x4 as they are


def test_balanced_subsets():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 500 + [1] * 40 + [2] * 200)[torch.randperm(740)]
    order = dcgan.balanced(labels)
    assert order.sort().values.tolist() == list(range(740))
    for n in (3, 30, 90, 120):
        assert labels[order[:n]].bincount().tolist() == [n // 3] * 3
    assert not torch.equal(dcgan.balanced(labels), order)


def test_an_untrained_and_the_trained_discriminator_read_averages(runs):
    """Batch norm with the plain mean of the means of 20 batches, and of their variances."""
    run = metrics.load_run(runs / "plain")
    images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8)
    untrained, trained = dcgan.discriminators(run, images)
    assert trained is run.nets["D"]
    assert not torch.equal(untrained.downs[0].weight, trained.downs[0].weight)
    for D in (untrained, trained):
        batches = itertools.islice(data.batches(images, 32, "cpu", 0), 20)
        h = [D.downs[1](F.leaky_relu(D.downs[0](2 * x - 1), 0.2)).detach() for x in batches]
        mean, variance = (torch.stack([f(part, (0, 2, 3)) for part in h]).mean(0)
                          for f in (torch.mean, torch.var))
        torch.testing.assert_close(D.norms[1].running_mean, mean)
        torch.testing.assert_close(D.norms[1].running_var, variance)
        assert not D.training and not D.norms[1].training


MOUTH, EYES = slice(20, 28), slice(8, 16)  # rows of a picture: bright if it smiles, wears glasses


def attributes(labels):
    """data.face_attributes of this world's 24 labels."""
    return {"smile": labels // 12, "glasses": labels // 6 % 2, "hair": labels // 3 % 2,
            "skin": labels % 3}  # fmt: skip


class FlatFaces(nn.Module):
    """z -> pictures whose mouth is as bright as z_0 says and whose eyes as z_1; linear in z.

    Of the four maps of the last hidden layer map 1 draws glasses, map 0 the mouth; map 2 is bright
    at the eyes of all pictures, but not seen, and map 3 is noise.
    """

    z_dim, classes = 4, 0

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleList([nn.ConvTranspose2d(4, 3, 4, stride=4, bias=False)])
        self.ups[0].weight.data.fill_(1)
        self.ups[0].weight.data[2:] = 0

    def forward(self, z):
        maps = torch.zeros(len(z), 4, 8, 8)
        maps[:, 0, 5:7] = (z[:, 0, None, None] + 1) / 2
        maps[:, 1, 2:4] = (z[:, 1, None, None] + 1) / 2
        maps[:, 2, 2:4] = 1
        maps[:, 3] = z[:, 2, None, None].abs()
        return self.ups[0](maps)


class Oracle:
    """What metrics.classifier_of gives: reads mouth and eyes; hair and skin are always 1."""

    test_error = 0.0

    def __call__(self, images):
        kinds = attributes(torch.arange(24))
        logits = torch.where((kinds["hair"] == 1) & (kinds["skin"] == 1), 0.0, -1e4)
        for name, rows in (("smile", MOUTH), ("glasses", EYES)):
            brightness = images[:, :, rows].mean((1, 2, 3)) - 0.5
            logits = logits + F.logsigmoid(20 * brightness[:, None] * (2 * kinds[name] - 1))
        return logits


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """(run, folder, training set) of that world."""
    monkeypatch.setattr(metrics, "classifier_of", lambda *args: Oracle())
    monkeypatch.setattr(data, "face_attributes", attributes)
    args = argparse.Namespace(dataset="faces", data_dir="data", size=32)
    run = argparse.Namespace(nets={"G": FlatFaces().eval()}, args=args, device=torch.device("cpu"))
    labels = torch.arange(24).repeat(8)
    images = torch.zeros(192, 3, 32, 32, dtype=torch.uint8)
    images[attributes(labels)["glasses"] == 1, :, EYES] = 250
    torch.manual_seed(0)
    return run, tmp_path, (images, labels)


def picture(path):
    return pil_to_tensor(Image.open(path)) / 255


def shares(path):
    """{title: {name: percent}} of what `report` wrote."""
    rows = {}
    for line in path.read_text().splitlines():
        title, parts = line.split(": ")
        pairs = [part.rstrip("%").rsplit(" ", 1) for part in parts.split(", ")]
        rows[title] = {name: float(share) for name, share in pairs}
    return rows


def test_arithmetic_where_pictures_are_linear_in_z(faces):
    run, folder, train = faces
    dcgan.arithmetic(run, folder, train, train, drawn=2000)
    found = shares(folder / "arithmetic.txt")
    assert found["G(c)"] == {"smile=1": 0, "glasses=1": 100, "hair=1": 100, "skin=1": 100}
    for title in ("G(a - b + c)", "sum of pixels"):  # means of three near 0.57: below 0 in 1 of 100
        assert min(found[title].values()) > 95
    board = picture(folder / "arithmetic.png")
    assert board.shape == (3, 4 * 130 + 2, 6 * 130 + 2)

    def tile(row, column):
        return board[:, row * 130 + 2 :: 4, column * 130 + 2 :: 4][:, :32, :32]

    a, b, c = (tile(3, column) for column in range(3))  # G of the means
    torch.testing.assert_close(tile(1, 4), a - b + c, atol=0.02, rtol=0)
    a, b, c = (tile(0, column) for column in range(3))  # the first example of each, and their sum
    torch.testing.assert_close(tile(3, 3), (a - b + c).clamp(0, 1), atol=0.02, rtol=0)
    bright = [tile[:, rows].mean() > 0.57 for tile in (a, b, c) for rows in (MOUTH, EYES)]
    assert bright == [True, False, False, False, False, True]


def test_forget_drops_the_map_that_draws_glasses(faces):
    run, folder, train = faces
    dcgan.forget(run, folder, train, train)
    drawn, dropped, _ = shares(folder / "forget.txt").items()
    same = {"smile as it was": 100, "hair as it was": 100, "skin as it was": 100}
    assert drawn == ("as drawn", same | {"glasses as it was": 100})
    assert dropped == ("1 of 4 maps dropped", same | {"glasses as it was": 0})
    board = picture(folder / "forget.png")
    assert board.shape == (3, 4 * 98 + 2, 12 * 98 + 2)
    marked, plain, without = (board[:, row * 98 + 2 :: 3, 2::3][:, :32, :32] for row in range(3))
    assert (marked != plain).any(0).any(1).nonzero().flatten().tolist() == list(range(8, 16))
    assert plain[:, EYES].mean() > 0.5 and without[:, EYES].max() == 0
    assert torch.equal(without[:, MOUTH], plain[:, MOUTH])


def test_samples_that_are_not_yet_clear(faces):
    run, folder, train = faces
    run.nets["G"].ups[0].weight.data *= 0.3  # no picture is read as with glasses
    for look in (dcgan.arithmetic, dcgan.forget):
        with pytest.raises(data.InputError, match="train longer"):
            look(run, folder, train, train, drawn=200)


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(pictures, folder / "plain", "--width", "8")
    train(pictures, folder / "given", "--conditional")
    train(pictures, folder / "dense", "--arch", "dense")
    return folder


def explore(run, look, *more):
    dcgan.main(["--resume", str(run), "--explore", look, "--data-dir", str(run.parent), *more])
    return run / "explore"


def test_walk(runs):
    """Straight lines in z between nine latents, back to the first at the end."""
    for run in ("plain", "dense", "given"):  # boards of 10 by 9 pictures, 2 pixels around each
        folder = explore(runs / run, "walk")
        assert Image.open(folder / "walk.png").size == (10 * 86 + 2, 9 * 86 + 2)
    board = picture(runs / "dense/explore/walk.png")[:1]
    nets = metrics.load_run(runs / "dense").nets
    torch.manual_seed(0)
    z = dcgan.draw_z(9, 100)
    for row, column, expected in ((0, 0, z[0]), (0, 9, z[1]), (1, 0, z[1]), (8, 9, z[0]),
                                  (4, 3, z[4] + (z[5] - z[4]) / 3)):
        tile = board[:, row * 86 + 2 :: 3, column * 86 + 2 :: 3][:, :28, :28]
        torch.testing.assert_close(tile[None], dcgan.draw(nets, expected[None]), atol=0.003, rtol=0)


def test_filters_features_and_nearest(runs):
    folder = explore(runs / "plain", "filters")
    assert Image.open(folder / "filters.png").size == (12 * 86 + 2, 12 * 86 + 2)
    explore(runs / "plain", "features")
    found = shares(folder / "features.txt")
    assert len(found) == 2 and "100 labels, class" in found
    for row in found.values():
        assert row == {"pixels": 100, "untrained D": 100, "trained D": 100}
    folder = explore(runs / "given", "nearest")
    (row,) = shares(folder / "nearest.txt").values()
    assert row["error with real"] == 0 and row["error with generated"] > 20  # 4 updates are no G
    assert Image.open(folder / "nearest.png").size == (10 * 86 + 2, 3 * 86 + 2)


def test_features_of_another_data_set(runs, monkeypatch):
    """Digits, read with the features of squares; sets that do not fit are refused."""
    grey, colour = (torch.zeros(20, channels, 28, 28, dtype=torch.uint8) for channels in (1, 3))
    sets = {"digits": data.draw("digits", 300, 0, 28), "one": (grey, [0] * 20),
            "colour": (colour, [0, 1] * 10)}

    def load(name, data_dir="data", split="train", size=None):
        return [torch.as_tensor(x).chunk(2)[split == "test"] for x in sets[name]]

    monkeypatch.setattr(data, "load", load)
    found = shares(explore(runs / "plain", "features", "--on", "digits") / "features.txt")
    assert list(found) == ["100 labels, class", "150 labels, class"]
    assert all(40 < share <= 100 for share in found["150 labels, class"].values())  # chance: 10
    for name, said in (("colour", "1 channels"), ("one", "two classes")):
        argv = "--resume", runs / "plain", "--explore", "features", "--on", name
        assert said in refused("dcgan", *argv)


@pytest.mark.parametrize("run, look, said", [
    ("dense", "filters", "convolutions"), ("plain", "nearest", "labels"),
    ("given", "features", "no labels"), ("plain", "arithmetic", "faces"),
])  # fmt: skip
def test_explorations_that_a_run_cannot_give(runs, run, look, said):
    error = refused("dcgan", "--resume", runs / run, "--explore", look)
    assert f"needs a run with {said}" in error


def test_what_was_explored_does_not_change_the_run(runs, capsys):
    """It is resumed as before, and its args do not name an exploration."""
    explore(runs / "plain", "walk", "--seed", "3")
    dcgan.main(["--resume", str(runs / "plain"), "--iters", "5"])
    assert capsys.readouterr().out.count("in place of") == 2  # --seed 3, and then --iters 5
    args = metrics.load_checkpoint(runs / "plain")["args"]
    assert args["seed"] == 0 and not {"explore", "on"} & args.keys()
