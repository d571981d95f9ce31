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
    channels = 1 if size == 28 else 3
    sizes = kernels, channels, size
    with torch.device("meta"):
        G, D = dcgan.Generator(*sizes), dcgan.Discriminator(*sizes)
        images = G(dcgan.draw_z(5, 100))
        assert images.shape == (5, channels, size, size)
        assert D(images).shape == (5,)
        expected = [(k, size >> i, size >> i) for i, k in enumerate(kernels[::-1], 1)]
        assert [maps.shape[1:] for maps in D.activations(images)] == expected
    base = kernels[0] * (size >> len(kernels)) ** 2
    pairs = list(itertools.pairwise([*kernels, channels]))

    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert count(G) == 101 * base + 2 * sum(kernels) + sum(25 * a * b for a, b in pairs) + channels
    norms = 2 * sum(kernels[:-1])  # none on D's first layer
    assert count(D) == base + 1 + norms + sum(25 * a * b + a for a, b in pairs)


@pytest.mark.parametrize("size", [3, 4, 30, 36, 7])
def test_a_size_that_does_not_halve_is_refused(size):
    with pytest.raises(data.InputError, match="--size"):
        dcgan.kernels_for(size, 8)


def test_the_rules_of_dcgan():
    """No pooling; batch norm on all but D's first and G's last layer; strides of 2; N(0, 0.02)."""
    G, D = nets_of(size=64, channels=3, width=32).values()
    layers = [layer for net in (G, D) for layer in net.modules()]
    assert not any("Pool" in type(layer).__name__ for layer in layers)
    assert [isinstance(norm, nn.BatchNorm2d) for norm in D.norms] == [False, True, True, True]
    assert len(G.norms) == len(G.ups) == 4  # one before each convolution, none after the last
    convs = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    assert {(layer.kernel_size, layer.stride) for layer in convs} == {((5, 5), (2, 2))}
    for layer in [*convs[1:-1], G.dense]:
        n = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))
        assert abs(layer.weight.mean().item()) < 5 * 0.02 / math.sqrt(n)
        assert layer.bias is None or layer.bias.eq(0).all()


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
    assert z.min() >= -1 and z.max() <= 1
    assert z.mean().abs() < 5 * math.sqrt(1 / 3 / z.numel())
    assert z.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("arch", ["conv", "dense"])
def test_labels_enter_every_layer(arch):
    """Weights of labels that are there get a gradient in each layer, the others get none."""
    G, D = nets_of(width=64, classes=10, arch=arch).values()
    if arch == "conv":  # DE-GAN, Table II
        assert [layer.weight.shape[1] for layer in D.downs] == [11, 74]
        assert [layer.weight.shape[0] for layer in G.ups] == [138, 74]
        assert G.dense.weight.shape == (6272, 110) and D.dense.weight.shape == (1, 6282)
    else:
        assert [layer.weight.shape[1] for layer in G.layers] == [110, 1210, 1210]
        assert [layer.weight.shape[1] for layer in [*D.layers, D.last]] == [794, 250, 250]
        D.eval()
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    images = G(dcgan.draw_z(6, 100), labels)
    (D(images, labels) * torch.randn(6)).sum().backward()
    for layer in itertools.chain(G.modules(), D.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            grad = layer.weight.grad
            inputs = grad if isinstance(layer, nn.ConvTranspose2d) else grad.transpose(0, 1)
            met = inputs[-10:].flatten(1).abs().amax(1) > 0
            assert met.nonzero().flatten().tolist() == [1, 3, 4, 5, 9]
    if arch == "conv":  # the first layer by hand: a label is a map of ones
        maps = torch.zeros(6, 10, 28, 28)
        maps[range(6), labels] = 1
        expected = F.leaky_relu(D.downs[0](torch.cat([2 * images - 1, maps], 1)), 0.2)
        torch.testing.assert_close(D.activations(images, labels)[0], expected)


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


def test_clipping():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5, -0.003], [-7.0, 0.01]]))
    dcgan.clip_weights(net)
    expected = torch.tensor([[0.01, -0.003], [-0.01, 0.01]])
    torch.testing.assert_close(net[0].weight.data, expected)
    assert net[1].weight.tolist() == pytest.approx([0.01, 0.01])  # as in the authors' code


def test_the_best_discriminator():
    """Goodfellow, Proposition 1 and Theorem 1: D* = p / (p + q), of value 2 log 2 - 2 JSD(p, q)."""
    p, q = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.1, 0.3, 0.4])
    real, fake = (torch.arange(5).repeat_interleave((1000 * share).long()) for share in (p, q))
    logits = torch.zeros(5, requires_grad=True)  # a discriminator that can be any function
    optimiser = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-9,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = dcgan.d_loss(logits[real], logits[fake])
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(logits.sigmoid().detach(), p / (p + q), atol=1e-4, rtol=0)
    m = (p + q) / 2
    jsd = (p * (p / m).log() + q * (q / m).log()).sum() / 2
    found = dcgan.d_loss(logits[real], logits[fake]).detach()
    torch.testing.assert_close(found, 2 * math.log(2) - 2 * jsd)


def test_a_trained_network_nears_the_best_discriminator():
    """p_data = 2x, p_g = 2 (1 - x) on [0, 1]: D*(x) = p_data / (p_data + p_g) = x."""
    torch.manual_seed(0)
    D = dcgan.DenseDiscriminator(channels=1, size=1, hidden=16, dropout=0.0)
    optimiser = torch.optim.Adam(D.parameters(), lr=0.01)
    for _ in range(400):
        u = torch.rand(2, 512, 1, 1, 1)  # through the inverses of x^2 and 1 - (1 - x)^2
        loss = dcgan.d_loss(D(u[0].sqrt()), D(1 - u[1].sqrt()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.linspace(0.05, 0.95, 19)
    assert (D(x.view(-1, 1, 1, 1)).sigmoid() - x).abs().max() < 0.06


@pytest.mark.parametrize("objective, k", [("gan", 1), ("gan", 2), ("wgan", 3)])
def test_an_update_by_hand(objective, k):
    """k steps of D down its loss, each clipped for WGAN, then one of G down its own, through D."""
    G, D = nets_of(classes=3, objective=objective).values()
    for net in (G, D):  # statistics of a batch would couple D's passes: the same function for both
        net.eval()
    G_2, D_2 = copy.deepcopy(G), copy.deepcopy(D)
    x, y = torch.rand(k, 8, 1, 28, 28), torch.arange(8 * k).view(k, 8) % 3
    z = dcgan.draw_z(8 * k, 100).view(k, 8, 100)
    optimisers = [torch.optim.SGD(net.parameters(), 0.1) for net in (G, D)]
    wgan = objective == "wgan"
    losses = dcgan.update(G, D, *optimisers, x, y, z, torch.autocast("cpu", enabled=False), wgan)

    def descend(net, loss):
        weights = list(net.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights)):
            weight.data -= 0.1 * slope

    for i in range(k):
        fake = G_2(z[i], y[i]).detach()
        real, made = D_2(x[i], y[i]), D_2(fake, y[i])
        probabilities = torch.sigmoid(real), torch.sigmoid(made)
        loss_D = -probabilities[0].log().mean() - (1 - probabilities[1]).log().mean()
        loss_D = made.mean() - real.mean() if wgan else loss_D
        descend(D_2, loss_D)
        if wgan:
            for weight in D_2.parameters():
                weight.data = weight.data.clip(-0.01, 0.01)
    score = D_2(G_2(z[-1], y[-1]), y[-1])
    loss_G = -score.mean() if wgan else -torch.sigmoid(score).log().mean()
    descend(G_2, loss_G)
    torch.testing.assert_close(dict(D.named_parameters()), dict(D_2.named_parameters()))
    torch.testing.assert_close(dict(G.named_parameters()), dict(G_2.named_parameters()))
    shown = (real.mean(), made.mean()) if wgan else [p.mean() for p in probabilities]
    ratio = fake.var(0).sum() / x[-1].var(0).sum()
    torch.testing.assert_close(losses, torch.stack([loss_D, loss_G, *shown, ratio]).detach())
    assert all(weight.requires_grad for weight in D.parameters())


# ---- sampling and training -----------------------------------------------------------------------


def test_sampling():
    nets = nets_of(classes=10)
    labels = torch.arange(25) % 10
    images = dcgan.sample(nets, 25, generator=seeded(3), batch_size=10)
    assert images.shape == (25, 1, 28, 28)
    again = dcgan.sample(nets, 25, labels, seeded(3), batch_size=10)
    assert torch.equal(images, again)
    torch.testing.assert_close(images[:6], dcgan.sample(nets, 6, generator=seeded(3)))
    threes = dcgan.sample(nets, 25, torch.full((25,), 3), seeded(3), batch_size=10)
    assert torch.equal(threes[[3, 13]], images[[3, 13]])  # whatever is drawn with it
    assert not torch.equal(threes[4], images[4])
    assert nets["G"].training
    nets["ema"] = copy.deepcopy(nets["G"])
    nets["ema"].dense.bias.data += 1
    assert not torch.equal(dcgan.sample(nets, 25, generator=seeded(3), batch_size=10), images)


def squares(folder, n, colour=False, names="ab"):
    """n images of two classes: a bright square on the left or right of a dim image of 28 px."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = rng.integers(0, 60, (28, 28, 3) if colour else (28, 28), dtype=np.uint8)
        image[8:20, 16 * (i % 2) : 16 * (i % 2) + 12] += 180
        place = folder / names[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("data") / "squares", 300)


def train(folder, out, *flags, iters=4):
    dcgan.main(["--dataset", str(folder), "--data-dir", str(out.parent), "--device", "cpu",
                "--out", str(out), "--width", "4", "--batch-size", "32", "--no-amp",
                "--iters", str(iters), *flags])  # fmt: skip
    return metrics.load_checkpoint(out)


def test_a_run_of_wgan(pictures, tmp_path):
    """Five batches for one update of G, RMSprop at 5e-5, weights within 0.01; no D for the GAM."""
    saved = train(pictures, tmp_path / "w", "--objective", "wgan", iters=2)
    assert set(saved["nets"]) == {"G", "critic", "ema"}
    G, D = saved["optimisers"]["G"], saved["optimisers"]["D"]
    assert {float(state["step"]) for state in G["state"].values()} == {2}
    assert {float(state["step"]) for state in D["state"].values()} == {10}
    for optimiser in (G, D):
        assert float(optimiser["param_groups"][0]["lr"]) == pytest.approx(5e-5)
        assert "square_avg" in optimiser["state"][0]
    run = metrics.load_run(tmp_path / "w")
    assert max(p.abs().max() for p in run.nets["critic"].parameters()) <= 0.01
    assert run.logits is None


def test_wgan_takes_the_papers_batches_and_counts_updates_of_g(tmp_path, monkeypatch):
    """1,000 images: 3 updates of five batches of 64 an epoch, and at least 3,000 updates."""
    totals, images = [], torch.zeros(1000, 1, 28, 28, dtype=torch.uint8)

    def open_log(folder, args, nets, start, total, columns):
        totals.append((args.batch_size, total))
        raise data.InputError("seen")

    monkeypatch.setattr(metrics, "open_log", open_log)
    monkeypatch.setattr(data, "load", lambda *args, **options: (images, torch.arange(1000) % 10))
    for i, more in enumerate(([], ["--epochs", "100"], ["--epochs", "100", "--batch-size", "50"])):
        with pytest.raises(SystemExit):
            dcgan.main(["--dataset", "mnist", "--device", "cpu", "--out", str(tmp_path / str(i)),
                        "--objective", "wgan", *more])
    assert totals == [(64, 3000), (64, 300), (50, 400)]


@pytest.mark.parametrize("arch", ["conv", "dense"])
def test_the_average_of_g(arch, pictures, tmp_path, monkeypatch):
    """Weights and batch norm's averages: half of the last average and half of G, three times."""
    expected, update = {}, dcgan.update

    def follow(G, *args):
        if not expected:
            expected.update({name: value.clone() for name, value in G.state_dict().items()})
        losses = update(G, *args)
        for name, value in G.state_dict().items():
            expected[name] = (expected[name] + value) / 2
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(dcgan, "update", follow)
        nets = train(pictures, tmp_path / "run", "--ema", "0.5", "--arch", arch, iters=3)["nets"]
    found = {k: v for k, v in nets["ema"].items() if v.is_floating_point()}
    assert len(found) == len([value for value in nets["G"].values() if value.is_floating_point()])
    torch.testing.assert_close(found, {name: expected[name] for name in found})
    assert "ema" not in train(pictures, tmp_path / "without", "--ema", "0", iters=1)["nets"]


def test_rates_fall_to_0_at_the_end(pictures, tmp_path):
    saved = train(pictures, tmp_path / "run", "--epochs", "1", "--decay", "0.5", iters=16)
    falling = 8  # of 16 updates: the last one with a ninth of the rate
    for name in "GD":
        rate = float(saved["optimisers"][name]["param_groups"][0]["lr"])
        assert rate == pytest.approx(2e-4 / (falling + 1))


def test_images_that_are_all_the_same(tmp_path):
    """Their variance is 0: spread stays finite and the run goes on."""
    (tmp_path / "data").mkdir()
    for i in range(10):
        Image.new("L", (28, 28), 100).save(tmp_path / f"data/{i}.png")
    assert train(tmp_path / "data", tmp_path / "run", "--batch-size", "4", iters=2)["step"] == 2


# ---- explorations: the parts ---------------------------------------------------------------------


def test_guided_gradient_of_a_small_discriminator():
    """Two layers by hand: the greatest place of the map, back through transposed convolutions; at
    each leaky ReLU the gradient passes where it and the input are positive (Springenberg et al.,
    Figure 1)."""
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


def hinge(margin):
    return (1 - margin).clamp(min=0) ** 2


def test_svm_in_closed_form():
    """n pairs x = +-1, y = +-1: min w^2 / 2 + 2 n C (1 - w)^2 is at w = 4nC / (1 + 4nC)."""
    x, y = torch.tensor([[1.0], [-1.0]] * 3), torch.tensor([[1.0], [-1.0]] * 3)
    for shift in (0.0, 5.0):  # which only moves the bias
        w, b = dcgan.fit_linear(x + shift, y, 0.1, hinge)
        assert w.item() == pytest.approx(1.2 / 2.2, abs=1e-4)
        assert b.item() == pytest.approx(-shift * w.item(), abs=1e-3)


def test_svm_and_logistic_against_scikit_learn():
    from sklearn import linear_model as linear
    from sklearn import svm

    torch.manual_seed(0)
    x, labels = torch.randn(90, 5, dtype=torch.float64), torch.arange(90) % 3
    x[range(90), labels] += 1
    y = 2 * F.one_hot(labels, 3).double() - 1
    w, b = dcgan.fit_linear(x, y, 0.5, hinge)
    theirs = svm.LinearSVC(C=0.5, tol=1e-8, max_iter=100_000, intercept_scaling=1e3)
    theirs.fit(x, labels)  # intercept_scaling: it regularises the bias, but hardly
    torch.testing.assert_close(w.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, torch.from_numpy(theirs.intercept_), atol=1e-3, rtol=1e-3)
    w, b = dcgan.fit_linear(x, y[:, :1], 0.5, lambda margin: F.softplus(-margin))
    theirs = linear.LogisticRegression(C=0.5, tol=1e-8).fit(x, y[:, 0])
    torch.testing.assert_close(w.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, torch.from_numpy(theirs.intercept_), atol=1e-3, rtol=1e-3)


def test_svm_accuracy_of_separable_and_of_meaningless_labels():
    torch.manual_seed(0)
    x, labels = torch.randn(400, 8), torch.arange(400) % 4
    assert dcgan.svm_accuracy(x[:200], labels[:200], x[200:], labels[200:]) < 0.45  # chance: 0.25
    x[range(400), labels] += 6
    assert dcgan.svm_accuracy(x[:200], labels[:200], x[200:], labels[200:]) > 0.98


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
    assert len({tuple(labels[dcgan.balanced(labels)[:3]].tolist()) for _ in range(20)}) > 1


def test_an_untrained_and_the_trained_discriminator_read_averages():
    """Batch norm with the plain mean of the means of 20 batches, and of their variances."""
    nets = nets_of(width=4)
    args = argparse.Namespace(arch="conv", objective="gan", channels=1, size=28, width=4, classes=0,
                              batch_size=16, ema=0)
    images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8)
    run = argparse.Namespace(nets=nets, args=args, device=torch.device("cpu"))
    nets["D"].norms[1].track_running_stats = False  # as load_run leaves it
    untrained, trained = dcgan.discriminators(run, images)
    assert trained is nets["D"]
    assert not torch.equal(untrained.downs[0].weight, trained.downs[0].weight)
    for D in (untrained, trained):
        batches = itertools.islice(data.batches(images, 16, "cpu", 0), 20)
        h = [D.downs[1](F.leaky_relu(D.downs[0](2 * x - 1), 0.2)).detach() for x in batches]
        norm, dims = D.norms[1], (0, 2, 3)
        mean = torch.stack([part.mean(dims) for part in h]).mean(0)
        variance = torch.stack([part.var(dims) for part in h]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        assert not D.training and not norm.training


# ---- explorations: a world where the answer is known ---------------------------------------------

MOUTH, EYES = slice(20, 28), slice(8, 16)  # rows of a picture: bright if it smiles, wears glasses


class FlatFaces(nn.Module):
    """z -> pictures whose mouth is as bright as z_0 says and whose eyes as z_1; linear in z.

    Of the four maps of the last hidden layer map 1 draws glasses, map 0 the mouth; map 2 is bright
    at the eyes of all pictures, but not seen, and map 3 is noise.
    """

    z_dim, classes = 4, 0

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleList([nn.Identity(), nn.ConvTranspose2d(4, 3, 4, stride=4, bias=False)])
        self.ups[1].weight.data.fill_(1)
        self.ups[1].weight.data[2:] = 0

    def forward(self, z):
        maps = torch.zeros(len(z), 4, 8, 8)
        maps[:, 0, 5:7] = (z[:, 0, None, None] + 1) / 2
        maps[:, 1, 2:4] = (z[:, 1, None, None] + 1) / 2
        maps[:, 2, 2:4] = 1
        maps[:, 3] = z[:, 2, None, None].abs()
        return self.ups[1](self.ups[0](maps))


class Oracle:
    """What metrics.classifier_of gives: reads mouth and eyes; hair and skin are always 2 and 1."""

    test_error = 0.0

    def __call__(self, images):
        smile, glasses = (20 * (images[:, :, rows].mean((1, 2, 3)) - 0.5) for rows in (MOUTH, EYES))
        logits = torch.full((len(images), 48), -1e4)
        kinds = data.face_attributes(torch.arange(48))
        for label in range(48):
            if kinds["hair"][label] == 2 and kinds["skin"][label] == 1:
                signs = (2 * kinds[name][label] - 1 for name in ("smile", "glasses"))
                a, b = (sign * logit for sign, logit in zip(signs, (smile, glasses)))
                logits[:, label] = F.logsigmoid(a) + F.logsigmoid(b)
        return logits


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """(run, folder, training set) of that world."""
    monkeypatch.setattr(metrics, "classifier_of", lambda *args: Oracle())
    args = argparse.Namespace(dataset="faces", data_dir="data", size=32)
    run = argparse.Namespace(nets={"G": FlatFaces().eval()}, args=args, device=torch.device("cpu"))
    labels = torch.arange(48).repeat(4)
    images = torch.zeros(192, 3, 32, 32, dtype=torch.uint8)
    images[data.face_attributes(labels)["glasses"] == 1, :, EYES] = 250
    torch.manual_seed(0)
    return run, tmp_path, (images, labels)


def picture(path):
    return pil_to_tensor(Image.open(path)) / 255


def shares(path):
    """{title: {name: percent}} of what `report` wrote."""
    rows = {}
    for line in path.read_text().splitlines():
        title, parts = line.split(": ")
        rows[title] = {part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1].rstrip("%"))
                       for part in parts.split(", ")}
    return rows


def test_arithmetic_where_pictures_are_linear_in_z(faces):
    run, folder, train = faces
    dcgan.arithmetic(run, folder, train, train, drawn=2000)
    found = shares(folder / "arithmetic.txt")
    assert found["G(c)"] == {"smile=1": 0, "glasses=1": 100, "hair=2": 100, "skin=1": 100}
    for title in ("G(a - b + c)", "sum of pixels"):  # means of three near 0.57: below 0 in 1 of 100
        assert min(found[title].values()) > 95
    board = picture(folder / "arithmetic.png")
    assert board.shape == (3, 4 * 130 + 2, 6 * 130 + 2)

    def tile(row, column):
        return board[:, row * 130 + 2 :: 4, column * 130 + 2 :: 4][:, :32, :32]

    a, b, c = (tile(3, column) for column in range(3))  # G of the means
    torch.testing.assert_close(tile(1, 4), a - b + c, atol=0.02, rtol=0)
    for row in range(3):  # and of the examples: sums of pixels
        a, b, c = (tile(row, column) for column in range(3))
        torch.testing.assert_close(tile(3, 3 + row), (a - b + c).clamp(0, 1), atol=0.02, rtol=0)
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
    run.nets["G"].ups[1].weight.data *= 0.3  # no picture is read as with glasses
    for look in (dcgan.arithmetic, dcgan.forget):
        with pytest.raises(data.InputError, match="train longer"):
            look(run, folder, train, train, drawn=200)


# ---- explorations: from end to end ---------------------------------------------------------------


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


def tiles(across, down, scale=3):
    """Size of a board of 28 px pictures: save_image leaves 2 pixels around each."""
    return across * (28 * scale + 2) + 2, down * (28 * scale + 2) + 2


def test_walk(runs):
    """Straight lines in z between nine latents, back to the first at the end."""
    for run in ("plain", "dense", "given"):
        folder = explore(runs / run, "walk")
        assert Image.open(folder / "walk.png").size == tiles(10, 9)
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
    assert Image.open(folder / "filters.png").size == tiles(12, 12)
    explore(runs / "plain", "features")
    found = shares(folder / "features.txt")
    assert len(found) == 2 and "100 labels, class" in found
    for row in found.values():
        assert row == {"pixels": 100, "untrained D": 100, "trained D": 100}
    folder = explore(runs / "given", "nearest")
    (row,) = shares(folder / "nearest.txt").values()
    assert row["error with real"] == 0 and row["error with generated"] > 20  # 4 updates are no G
    assert Image.open(folder / "nearest.png").size == tiles(10, 3)


def test_features_of_another_data_set(runs, tmp_path, capsys):
    """Digits, read with the features of squares; sets that do not fit are refused."""
    grey, colour = (torch.zeros(20, channels, 28, 28, dtype=torch.uint8) for channels in (1, 3))
    sets = {"digits": data.draw_digits(300, 0), "one": (grey, [0] * 20),
            "colour": (colour, [0, 1] * 10)}

    def load(name, data_dir="data", split="train", size=None):
        assert size == 28
        return [torch.as_tensor(x).chunk(2)[split == "test"] for x in sets[name]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", load)
        found = shares(explore(runs / "plain", "features", "--on", "digits") / "features.txt")
        assert list(found) == ["100 labels, class", "150 labels, class"]
        assert all(40 < share <= 100 for share in found["150 labels, class"].values())  # chance: 10
        for name, said in (("colour", "1 channels"), ("one", "two classes")):
            with pytest.raises(SystemExit) as stop:
                explore(runs / "plain", "features", "--on", name)
            error = capsys.readouterr().err
            assert stop.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("run, look, said", [
    ("dense", "filters", "convolutions"), ("plain", "nearest", "labels"),
    ("given", "features", "no labels"), ("plain", "arithmetic", "faces"),
])  # fmt: skip
def test_explorations_that_a_run_cannot_give(runs, run, look, said, capsys):
    with pytest.raises(SystemExit) as stop:
        explore(runs / run, look)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"needs a run with {said}" in error and error.count("\n") == 1


@pytest.mark.parametrize("argv, said", [
    (["--explore", "walk"], "--resume RUN"), (["--explore", "sideways"], "invalid choice"),
    (["--on", "digits"], "--explore features"),
])  # fmt: skip
def test_flags_that_do_not_go_together(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        dcgan.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


def test_what_was_explored_does_not_change_the_run(runs, capsys):
    """It is resumed as before, and its args do not name an exploration."""
    explore(runs / "plain", "walk", "--seed", "3")
    dcgan.main(["--resume", str(runs / "plain"), "--iters", "5"])
    assert capsys.readouterr().out.count("in place of") == 2  # --seed 3, and then --iters 5
    args = metrics.load_checkpoint(runs / "plain")["args"]
    assert args["seed"] == 0 and not {"explore", "on"} & args.keys()
