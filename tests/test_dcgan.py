"""DCGAN, GAN and WGAN against their equations, and every exploration against its definition; about 15 s."""

import argparse
import itertools
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.ops import Permute

import data
import dcgan
import metrics


def nets_of(size=28, channels=1, width=4, classes=0, arch="conv", objective="gan"):
    torch.manual_seed(0)
    args = argparse.Namespace(arch=arch, objective=objective, channels=channels, size=size, width=width, classes=classes)
    return dcgan.build(args)


# Networks


@pytest.mark.parametrize("size, width, kernels", [
    (64, 128, [1024, 512, 256, 128]),  # Radford et al., Figure 1
    (28, 64, [128, 64]),               # DE-GAN, Table II: 6272 = 128 x 7 x 7
    (32, 128, [512, 256, 128]),
])  # fmt: skip
def test_the_papers_sizes(size, width, kernels):
    assert dcgan.kernels_for(size, width) == kernels
    channels = 1 if size == 28 else 3
    with torch.device("meta"):
        G, D = dcgan.Generator(kernels, channels, size), dcgan.Discriminator(kernels, channels, size)
        z = dcgan.draw_z(5, 100)
        assert G(z).shape == (5, channels, size, size)
        assert D(G(z)).shape == (5,)
        assert [m.shape[1:] for m in D.activations(G(z))] == [(k, size >> i, size >> i) for i, k in enumerate(kernels[::-1], 1)]
    base = kernels[0] * (size >> len(kernels)) ** 2
    pairs = list(itertools.pairwise([*kernels, channels]))
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert count(G) == 101 * base + 2 * sum(kernels) + sum(25 * a * b for a, b in pairs) + channels  # a bias at the image only
    assert count(D) == base + 1 + 2 * sum(kernels[:-1]) + sum(25 * a * b + a for a, b in pairs)


@pytest.mark.parametrize("size", [3, 4, 30, 36, 7])
def test_a_size_that_does_not_halve_is_refused(size):
    with pytest.raises(data.InputError, match="--size"):
        dcgan.kernels_for(size, 8)


def test_the_rules_of_dcgan():
    """No pooling, batch norm everywhere but in D's first and G's last layer, strides of 2, N(0, 0.02)."""
    G, D = nets_of(size=64, channels=3, width=32).values()
    assert not any("Pool" in type(layer).__name__ for net in (G, D) for layer in net.modules())
    assert [isinstance(norm, nn.BatchNorm2d) for norm in D.norms] == [False, True, True, True]
    assert len(G.norms) == len(G.ups) == 4  # one before each up-convolution, none behind the last
    convs = [layer for net in (G, D) for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    assert {(layer.kernel_size, layer.stride) for layer in convs} == {((5, 5), (2, 2))}
    for layer in [*convs[1:-1], G.dense]:
        n = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))  # sd of sd: s / sqrt(2n)
        assert abs(layer.weight.mean().item()) < 5 * 0.02 / math.sqrt(n)
        assert layer.bias is None or layer.bias.eq(0).all()


def test_generator_and_discriminator_written_out():
    G, D = nets_of(size=28, width=4).values()
    z = dcgan.draw_z(6, 100)
    ups, norms = G.ups, G.norms
    plain = nn.Sequential(
        G.dense, nn.Unflatten(1, (7, 7, 8)), Permute([0, 3, 1, 2]), norms[0], nn.ReLU(), ups[0], norms[1], nn.ReLU(), ups[1], nn.Tanh()
    )
    images = G(z)
    torch.testing.assert_close(2 * images - 1, plain(z))
    assert images.min() >= 0 and images.max() <= 1
    plain = nn.Sequential(
        D.downs[0], nn.LeakyReLU(0.2), D.downs[1], D.norms[1], nn.LeakyReLU(0.2), Permute([0, 2, 3, 1]), nn.Flatten(), D.dense
    )
    torch.testing.assert_close(D(images), plain(2 * images - 1)[:, 0])


def test_latents_are_uniform():
    z = dcgan.draw_z(2000, 100, torch.Generator().manual_seed(0))
    assert z.min() >= -1 and z.max() <= 1
    assert z.mean().abs() < 5 * math.sqrt(1 / 3 / z.numel())
    assert z.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("arch", ["conv", "dense"])
def test_labels_enter_every_layer(arch):
    """In each layer the weights of labels that are there get a gradient, those of labels that are not get none."""
    G, D = nets_of(width=64, classes=10, arch=arch).values()
    if arch == "conv":  # DE-GAN, Table II
        assert [layer.weight.shape[1] for layer in D.downs] == [11, 74]
        assert [layer.weight.shape[0] for layer in G.ups] == [138, 74]
        assert G.dense.weight.shape == (6272, 110) and D.dense.weight.shape == (1, 6282)
    else:
        assert [layer.weight.shape[1] for layer in G.layers] == [110, 1210, 1210]
        assert [layer.weight.shape[1] for layer in [*D.layers, D.last]] == [794, 250, 250]
        D.eval()
    z, labels = dcgan.draw_z(6, 100), torch.tensor([3, 1, 4, 1, 5, 9])
    images = G(z, labels)
    (D(images, labels) * torch.randn(6)).sum().backward()
    for layer in (m for net in (G, D) for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))):
        inputs = layer.weight.grad if isinstance(layer, nn.ConvTranspose2d) else layer.weight.grad.transpose(0, 1)
        assert (inputs[-10:].flatten(1).abs().amax(1) > 0).nonzero().flatten().tolist() == [1, 3, 4, 5, 9]
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
        pieces = torch.stack([F.linear(h, layer.weight[k::5], layer.bias[k::5]) for k in range(5)])
        assert pieces.shape == (5, 3, 240)
        h = pieces.max(0).values
    torch.testing.assert_close(D(x), D.last(h)[:, 0])
    assert not torch.equal(D.train()(x), D(x))  # dropout
    critic = nets_of(arch="dense", objective="wgan")["critic"]
    assert torch.equal(critic(x), critic(x))


# Losses


def test_gan_losses():
    zero = torch.zeros(9)
    assert dcgan.d_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert dcgan.g_loss(zero).item() == pytest.approx(math.log(2))
    real, fake = torch.randn(50) * 5, torch.randn(50) * 5
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(dcgan.d_loss(real, fake), bce(real, torch.ones(50)) + bce(fake, torch.zeros(50)))
    torch.testing.assert_close(dcgan.g_loss(fake), bce(fake, torch.ones(50)))
    assert dcgan.d_loss(torch.tensor([-1e4]), torch.tensor([1e4])) == 2e4  # no overflow where log(sigmoid) is -inf


def test_the_best_critic_of_two_points_measures_their_distance():
    """f(x) = w x with |w| <= 1 is 1-Lipschitz; the best of them gives Wasserstein's |2.5 - 1|, for points at 2.5 and 1."""
    real, fake = torch.full((4,), 2.5), torch.full((6,), 1.0)
    losses = {w: dcgan.critic_loss(w * real, w * fake).item() for w in (-1, -0.5, 0, 0.5, 1)}
    assert min(losses.values()) == losses[1] == -1.5
    assert dcgan.critic_g_loss(torch.tensor([1.0, 4.0])).item() == -2.5


def test_clipping():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5, -0.003], [-7.0, 0.01]]))
    dcgan.clip_weights(net)
    torch.testing.assert_close(net[0].weight.data, torch.tensor([[0.01, -0.003], [-0.01, 0.01]]))
    assert all(p.abs().max() <= 0.01 for p in net.parameters())  # batch norm's gain of 1 as well, as in the authors' code


def test_the_best_discriminator():
    """Goodfellow's Proposition 1 and Theorem 1 on five atoms: D* = p / (p + q), with value 2 log 2 - 2 JSD(p, q)."""
    p, q = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.1, 0.3, 0.4])
    atoms = torch.arange(5)
    real, fake = atoms.repeat_interleave((1000 * p).long()), atoms.repeat_interleave((1000 * q).long())
    logits = torch.zeros(5, requires_grad=True)  # a discriminator that can be any function
    optimiser = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = dcgan.d_loss(logits[real], logits[fake])
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(logits.sigmoid().detach(), p / (p + q), atol=1e-4, rtol=0)
    m = (p + q) / 2
    jsd = (p * (p / m).log() + q * (q / m).log()).sum() / 2
    torch.testing.assert_close(dcgan.d_loss(logits[real], logits[fake]).detach(), 2 * math.log(2) - 2 * jsd)


def test_a_trained_network_nears_the_best_discriminator():
    """One-dimensional toy: p_data = 2x, p_g = 2 (1 - x) on [0, 1], so D*(x) = p_data / (p_data + p_g) = x."""
    torch.manual_seed(0)
    D = dcgan.DenseDiscriminator(channels=1, size=1, hidden=16, dropout=0.0)
    optimiser = torch.optim.Adam(D.parameters(), lr=0.01)
    for _ in range(400):
        u = torch.rand(2, 512, 1, 1, 1)
        loss = dcgan.d_loss(D(u[0].sqrt()), D(1 - u[1].sqrt()))  # the inverses of the distribution functions x^2 and 1 - (1 - x)^2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.linspace(0.05, 0.95, 19)
    assert (D(x.view(-1, 1, 1, 1)).sigmoid() - x).abs().max() < 0.06


# Sampling and training


def test_sampling():
    nets = nets_of(classes=10)
    seeded = lambda: torch.Generator().manual_seed(3)
    labels = torch.arange(25) % 10
    images = dcgan.sample(nets, 25, generator=seeded(), batch_size=10)
    assert images.shape == (25, 1, 28, 28)
    assert torch.equal(images, dcgan.sample(nets, 25, labels=labels, generator=seeded(), batch_size=10))
    assert torch.equal(images[:6], dcgan.sample(nets, 6, generator=seeded(), batch_size=10))
    threes = dcgan.sample(nets, 25, labels=torch.full((25,), 3), generator=seeded(), batch_size=10)
    assert torch.equal(threes[3], images[3]) and torch.equal(threes[13], images[13])  # whatever is drawn beside it
    assert not torch.equal(threes[4], images[4])
    assert nets["G"].training


def squares(folder, n):
    """n images of two classes: a bright square on the left or on the right of a dim image of 28 px."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = rng.integers(0, 60, (28, 28), dtype=np.uint8)
        image[8:20, 16 * (i % 2) : 16 * (i % 2) + 12] += 180
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(i % 2) / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"), 300)


def train(folder, out, *flags, iters=4):
    dcgan.main(["--dataset", str(folder), "--device", "cpu", "--out", str(out), "--width", "4", "--batch-size", "32",
                "--iters", str(iters), "--no-amp", *flags])  # fmt: skip
    return metrics.load_checkpoint(out)


def test_an_update_of_wgan(pictures, tmp_path):
    """Five batches for one update of G, RMSProp at 5e-5, weights within 0.01; and no D for the GAM to read logits of."""
    checkpoint = train(pictures, tmp_path / "w", "--objective", "wgan", iters=2)
    assert set(checkpoint["nets"]) == {"G", "critic"}
    G, D = checkpoint["optimisers"]["G"], checkpoint["optimisers"]["D"]
    assert {float(s["step"]) for s in G["state"].values()} == {2} and {float(s["step"]) for s in D["state"].values()} == {10}
    assert G["param_groups"][0]["lr"] == D["param_groups"][0]["lr"] == 5e-5 and "square_avg" in D["state"][0]
    critic = metrics.load_run(tmp_path / "w").nets["critic"]
    assert max(p.abs().max() for p in critic.parameters()) <= 0.01
    assert metrics.load_run(tmp_path / "w").logits is None


def test_the_spread_of_images_that_are_all_the_same(tmp_path):
    """It is that of the samples over next to nothing, and finite: the run goes on."""
    for i in range(10):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("L", (28, 28), 100).save(tmp_path / f"data/{i}.png")
    assert train(tmp_path / "data", tmp_path / "run", "--batch-size", "4", iters=2)["step"] == 2


@pytest.mark.parametrize("argv, said", [
    (["--explore", "walk"], "--resume RUN"),
    (["--explore", "sideways"], "invalid choice"),
    (["--latents", "z.npy"], "--latents does not go"),
    (["--explore", "filters", "--resume", "x", "--concepts", "a=1"], "--concepts does not go"),
    (["--explore", "arithmetic", "--resume", "x", "--latents", "z.npy", "--attributes", "a.csv"], "leave --concepts and --attributes out"),
])  # fmt: skip
def test_flags_that_do_not_go_together(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        dcgan.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


# Explorations: the parts


def test_guided_backpropagation_by_hand():
    """Springenberg et al., Figure 1: the gradient that comes down passes where it and the input are both positive."""
    x = torch.tensor([[-2.0, 3.0, 1.0, -1.0]], requires_grad=True)
    gradient = torch.tensor([[5.0, -7.0, 4.0, -3.0]])
    (grad,) = torch.autograd.grad(dcgan.GuidedReLU.apply(x), x, gradient)
    assert grad.tolist() == [[0, 0, 4, 0]]
    torch.testing.assert_close(dcgan.GuidedReLU.apply(x), F.leaky_relu(x, 0.2))


def test_guided_gradient_of_a_small_discriminator():
    """Two layers by hand: the greatest place of the map, back through transposed convolutions, cut at each layer."""
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
        down = F.conv_transpose2d(down, D.downs[1].weight, stride=2, padding=2, output_padding=1).clamp(min=0) * (h1 > 0)
        expected = 2 * F.conv_transpose2d(down, D.downs[0].weight, stride=2, padding=2, output_padding=1)
    assert (h2[range(2), 4].flatten(1).amax(1) > 0).all() and expected.abs().sum() > 0
    torch.testing.assert_close(dcgan.guided_gradient(D, x, 4), expected)


def test_svm_in_closed_form():
    """n pairs x = +-1, y = +-1: min w^2 / 2 + 2 n C (1 - w)^2 has w = 4nC / (1 + 4nC); shifting x moves only the bias."""
    x, y = torch.tensor([[1.0], [-1.0]] * 3), torch.tensor([[1.0], [-1.0]] * 3)
    for shift in (0.0, 5.0):
        w, b = dcgan.fit_linear(x + shift, y, C=0.1)
        assert w.item() == pytest.approx(1.2 / 2.2, abs=1e-4)
        assert b.item() == pytest.approx(-shift * w.item(), abs=1e-3)


def test_svm_and_logistic_against_scikit_learn():
    from sklearn import linear_model as linear
    from sklearn import svm

    torch.manual_seed(0)
    x, labels = torch.randn(90, 5, dtype=torch.float64), torch.arange(90) % 3
    x[range(90), labels] += 1
    y = 2 * F.one_hot(labels, 3).double() - 1
    w, b = dcgan.fit_linear(x, y, C=0.5)
    theirs = svm.LinearSVC(C=0.5, tol=1e-8, max_iter=100_000, intercept_scaling=1e3).fit(x, labels)  # 1e3: hardly regularised
    torch.testing.assert_close(w.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, torch.from_numpy(theirs.intercept_), atol=1e-3, rtol=1e-3)
    w, b = dcgan.fit_linear(x, y[:, :1], C=0.5, loss="logistic")
    theirs = linear.LogisticRegression(C=0.5, tol=1e-8).fit(x, y[:, 0])
    torch.testing.assert_close(w.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, torch.from_numpy(theirs.intercept_), atol=1e-3, rtol=1e-3)


def test_svm_accuracy_of_separable_and_of_meaningless_labels():
    torch.manual_seed(0)
    x, labels = torch.randn(400, 8), torch.arange(400) % 4
    assert dcgan.svm_accuracy(x[:200], labels[:200], x[200:], labels[200:]) < 0.45  # chance is 0.25
    x[range(400), labels] += 6
    assert dcgan.svm_accuracy(x[:200], labels[:200], x[200:], labels[200:]) > 0.98


def test_features_are_pooled_to_four_by_four():
    """28672 = 16 x (256 + 512 + 1024) numbers for the paper's 32 px network; each the greatest of its cell."""
    D = nets_of(size=32, channels=3, width=8)["D"].eval()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found = dcgan.pooled_features(D, images)
    assert found.shape == (5, 16 * (8 + 16 + 32))
    maps = D.activations(images / 255)
    first = F.max_pool2d(maps[0], 4).flatten(1)  # 16x16 maps
    last = maps[2].flatten(1)                    # 4x4 maps as they are
    torch.testing.assert_close(found[:, : 16 * 8], first)
    torch.testing.assert_close(found[:, -16 * 32 :], last)


def test_box_and_map_weights_find_the_map_that_draws_the_thing():
    """Map 1 is bright in the box of pictures that show the thing, map 2 in the same box of all pictures (as eyes under
    glasses), map 0 outside of it: only map 1 is to go."""
    torch.manual_seed(0)
    images = torch.rand(40, 3, 16, 16) * 0.1
    shows = torch.arange(40) % 2 == 0
    images[shows, :, 4:8, 2:14] += 0.8
    box = dcgan.find_box(images[shows], images[~shows])
    assert box == (4, 8, 2, 14)
    maps = torch.rand(40, 4, 8, 8) * 0.1
    maps[:, 0] += 1
    maps[:, 0, 2:4, 1:7] -= 0.9
    maps[shows, 1, 2:4, 1:7] += 1
    maps[:, 2, 2:4, 1:7] += 1
    weights = dcgan.map_weights(maps, shows, ~shows, box, size=16)
    assert weights.argmax() == 1 and weights[1] > 0 and weights[0] < 0
    assert weights[1] > 2 * weights[[0, 2, 3]].abs().max()


def test_dropping_a_map_is_a_generator_without_its_kernels():
    run = argparse.Namespace(nets=nets_of(size=32, channels=3), device=torch.device("cpu"))
    run.nets["G"].eval()
    z, keep = dcgan.draw_z(3, 100), torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
    seen = []
    assert torch.equal(dcgan.draw(run, z, layer=1, edit=seen.append), dcgan.draw(run, z))
    assert seen[0].shape == (3, 8, 8, 8) and seen[0].min() >= 0
    dropped = dcgan.draw(run, z, layer=1, edit=lambda maps: maps * keep[:, None, None])
    assert not torch.allclose(dropped, dcgan.draw(run, z))
    with torch.no_grad():
        run.nets["G"].ups[1].weight *= keep[:, None, None, None]  # (K_in, K_out, 5, 5)
    torch.testing.assert_close(dropped, dcgan.draw(run, z))


def test_concepts():
    parse = lambda texts, dataset="celeba", defaults=("smile=1", "smile=0"): dcgan.parse_concepts(
        argparse.Namespace(concepts=texts, dataset=dataset, attributes=None, explore="arithmetic"), {"smile": 2, "hair": 4}, defaults)
    assert parse(["smile=1,hair=3", "hair=0"]) == [{"smile": 1, "hair": 3}, {"hair": 0}]
    assert parse(None, "faces") == [{"smile": 1}, {"smile": 0}]
    for wrong in (["smile=2", "hair=0"], ["beard=1", "hair=0"], ["smile", "hair=0"], ["smile=x", "hair=0"], ["smile=1"], None):
        with pytest.raises(data.InputError, match="smile=0..1, hair=0..3"):
            parse(wrong)
    read = {"smile": torch.tensor([[0.1, 0.9]]), "hair": torch.tensor([[0.5, 0.2, 0.2, 0.1]])}
    assert dcgan.certainty(read, {"smile": 1, "hair": 0}).item() == pytest.approx(0.45)


def test_latents_files(tmp_path):
    z = np.random.default_rng(0).normal(size=(4, 5))
    np.save(tmp_path / "z.npy", z)
    assert torch.equal(dcgan.read_latents(tmp_path / "z.npy", 3, 5), torch.from_numpy(z[:3]).float())
    np.savez(tmp_path / "z.npz", z)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "z.npz").read_bytes()[:50])
    np.save(tmp_path / "named.npy", np.zeros(3, dtype=[("a", float), ("b", float)]))
    (tmp_path / "empty.npy").touch()
    for wrong in ("z.npz", "broken.npz", "named.npy", "empty.npy", "missing.npy"):
        with pytest.raises(data.InputError, match=f"{wrong} cannot be read as a .npy file"):
            dcgan.read_latents(tmp_path / wrong, 3, 5)
    for rows, z_dim in ((5, 5), (3, 4)):
        with pytest.raises(data.InputError, match="not at least"):
            dcgan.read_latents(tmp_path / "z.npy", rows, z_dim)


def test_attribute_files(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("smile,hair\n1,0\n-1,3\n")
    found = dcgan.read_attributes(file, 2)
    assert {name: value.tolist() for name, value in found.items()} == {"smile": [1, 0], "hair": [0, 3]}
    with pytest.raises(data.InputError, match="3 training images"):
        dcgan.read_attributes(file, 3)
    file.write_text("smile\nyes\n")
    with pytest.raises(data.InputError, match="no table of integers"):
        dcgan.read_attributes(file, 1)
    with pytest.raises(data.InputError, match="no table of integers"):
        dcgan.read_attributes(tmp_path / "missing.csv", 1)


# Explorations: from end to end


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(pictures, folder / "plain", "--width", "8", "--lr-g", "1e-3", "--lr-d", "5e-4", iters=200)
    train(pictures, folder / "given", "--conditional")
    train(pictures, folder / "dense", "--arch", "dense")
    return folder


def size_of(path):
    return Image.open(path).size


def tiles(across, down, scale):
    """Size of a board of 28 px pictures: save_image leaves 2 pixels around each."""
    return across * (28 * scale + 2) + 2, down * (28 * scale + 2) + 2


def test_walk(runs, capsys):
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "walk"])
    assert size_of(runs / "plain/explore/walk.png") == tiles(10, 9, 3)
    points = dcgan.draw_z(3, 100)
    np.save(runs / "z.npy", points.numpy())
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "walk", "--latents", str(runs / "z.npy")])
    assert size_of(runs / "plain/explore/walk.png") == tiles(10, 3, 3)
    first, last = dcgan.draw(metrics.load_run(runs / "plain"), points[[0, 1]])
    printed = capsys.readouterr().out.splitlines()[-4:-1]
    assert float(printed[0].split()[1]) == pytest.approx((first - last).norm().item(), abs=0.006)
    assert all(11 <= int(line.split()[-1].rstrip("%")) <= 100 for line in printed)  # 9 steps: one of them has a ninth at least
    dcgan.main(["--resume", str(runs / "dense"), "--explore", "walk"])
    dcgan.main(["--resume", str(runs / "given"), "--explore", "walk"])


def test_arithmetic_with_latents_of_the_users(runs):
    """The middle of the nine is G(a - b + c), and the sum of the pictures stands to the right."""
    np.save(runs / "z9.npy", dcgan.draw_z(9, 100, torch.Generator().manual_seed(1)).numpy())
    (runs / "plain/explore").mkdir(exist_ok=True)
    (runs / "plain/explore/arithmetic.txt").write_text("of an earlier picture")
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "arithmetic", "--latents", str(runs / "z9.npy")])
    assert not (runs / "plain/explore/arithmetic.txt").exists()
    assert size_of(runs / "plain/explore/arithmetic.png") == tiles(9, 4, 4)
    board = torch.from_numpy(np.asarray(Image.open(runs / "plain/explore/arithmetic.png").convert("L")) / 255).float()[None]
    tile = lambda row, column: board[:, row * 114 + 2 : row * 114 + 114 : 4, column * 114 + 2 : column * 114 + 114 : 4]
    z = torch.from_numpy(np.load(runs / "z9.npy")).view(3, 3, 100)
    run = metrics.load_run(runs / "plain")
    torch.testing.assert_close(tile(1, 5)[None], dcgan.draw(run, (z[0].mean(0) - z[1].mean(0) + z[2].mean(0))[None]), atol=0.003, rtol=0)
    a, b, c = dcgan.draw(run, z[:, 1])
    torch.testing.assert_close(tile(1, 8), (a - b + c).clamp(0, 1), atol=0.003, rtol=0)


def test_arithmetic_and_forget_by_the_reader(runs, capsys):
    """On squares to the left or right the reader is always right, and the sum right - left + left means right."""
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "arithmetic", "--concepts", "class=1", "class=0", "class=0"])
    assert "class 100.0%" in capsys.readouterr().out
    assert (runs / "plain/explore/arithmetic.txt").read_text().count("\n") == 4
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "forget", "--concepts", "class=1"])
    header, drawn, *_ = (runs / "plain/explore/forget.txt").read_text().splitlines()
    assert header.split()[1:] == ["of", "8", "maps", "class=1"] and drawn.split()[-1] == "100%"
    assert size_of(runs / "plain/explore/forget.png") == tiles(12, 4, 3)
    with pytest.raises(SystemExit):
        dcgan.main(["--resume", str(runs / "plain"), "--explore", "forget"])
    assert "class=0..1" in capsys.readouterr().err


def test_forget_drops_no_more_maps_than_it_takes():
    """Maps 0 and 2 draw the thing together; map 3 has nothing to do with it, and map 1 would be the next to go."""
    weights = torch.tensor([3.0, 1.0, 2.0, -1.0])
    assert dcgan.fewest(weights, lambda drop: 0.1 if drop[0] and drop[2] else 0.5).tolist() == [True, False, True, False]
    assert dcgan.fewest(weights, lambda drop: 0.5).tolist() == [True, True, True, False]  # never one of negative weight


def test_filters_features_and_nearest(runs, capsys):
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "filters"])
    assert size_of(runs / "plain/explore/filters.png") == tiles(14, 12, 3)
    dcgan.main(["--resume", str(runs / "plain"), "--explore", "features"])
    header, line, *_ = (runs / "plain/explore/features.txt").read_text().splitlines()
    assert "raw pixels (784)" in header and "trained D (384)" in header  # 16 x (8 + 16)
    assert line.split()[-3:] == ["100.0%"] * 3
    dcgan.main(["--resume", str(runs / "given"), "--explore", "nearest"])
    *_, line = (runs / "given/explore/nearest.txt").read_text().splitlines()
    assert line.split()[0] == "270" and line.split()[-1] == "0.00%"


@pytest.mark.parametrize("run, exploration, said", [
    ("dense", "filters", "dense network"), ("plain", "nearest", "--conditional"), ("given", "features", "without --conditional"),
])  # fmt: skip
def test_explorations_that_a_run_cannot_give(runs, run, exploration, said, capsys):
    with pytest.raises(SystemExit) as stop:
        dcgan.main(["--resume", str(runs / run), "--explore", exploration])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


def test_features_need_two_classes(tmp_path, capsys):
    """All images in one folder: any reading of their class would be right."""
    folder = squares(tmp_path / "squares", 40)
    (folder / "0").rename(tmp_path / "flat")
    train(tmp_path / "flat", tmp_path / "run", "--batch-size", "9", iters=1)
    with pytest.raises(SystemExit) as stop:
        dcgan.main(["--resume", str(tmp_path / "run"), "--explore", "features"])
    assert stop.value.code == 2 and "all of one class" in capsys.readouterr().err


def test_test_images_of_a_class_that_was_not_trained(tmp_path, capsys):
    """The filters are shown the others; a battle says what is wrong."""
    for split in ("train", "test"):
        squares(tmp_path / "data" / split, 30)
    (tmp_path / "data/test/2").mkdir()
    for i in range(5):
        Image.new("L", (28, 28), 50 * i).save(tmp_path / f"data/test/2/{i}.png")
    run = tmp_path / "run"
    train(tmp_path / "data", run, "--conditional", "--batch-size", "9", iters=2)
    dcgan.main(["--resume", str(run), "--explore", "filters"])
    assert size_of(run / "explore/filters.png") == tiles(14, 12, 3)
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            metrics.main(["gam", str(run), str(run), "--data-dir", str(tmp_path), "--n", "30"])
        assert stop.value.code == 2 and "run was trained on 2 classes, the test images have 3" in capsys.readouterr().err
        for name in "01":  # the second time the new class alone
            shutil.rmtree(tmp_path / "data/test" / name, ignore_errors=True)


@pytest.mark.parametrize("attributes", ["1", "0,2"])
def test_forget_needs_pictures_with_and_without_the_thing(runs, tmp_path, attributes, capsys):
    """All training images have it, or none has."""
    numbers = itertools.cycle(attributes.split(","))
    (tmp_path / "a.csv").write_text("hat\n" + "".join(f"{next(numbers)}\n" for _ in range(270)))
    with pytest.raises(SystemExit) as stop:
        dcgan.main(["--resume", str(runs / "plain"), "--explore", "forget", "--concepts", "hat=1", "--attributes", str(tmp_path / "a.csv")])
    assert stop.value.code == 2 and "of 270 training images have hat=1" in capsys.readouterr().err


def test_explorations_of_few_images_and_of_data_that_changed(tmp_path, monkeypatch, capsys):
    """Three test images; then a third class, which the networks have no input for."""

    def mirrored(nets, n, labels, **more):
        """The square is where the other class has it, so that every test image is mislabelled."""
        images = torch.full((n, 1, 28, 28), 0.1)
        for image, label in zip(images, labels):
            image[:, 8:20, 16 * (1 - label) : 16 * (1 - label) + 12] += 0.7
        return images

    folder, run = squares(tmp_path / "few", 30), tmp_path / "run"
    train(folder, run, "--conditional", "--batch-size", "9", iters=2)
    dcgan.main(["--resume", str(run), "--explore", "filters"])
    assert size_of(run / "explore/filters.png") == tiles(8, 12, 3)
    monkeypatch.setattr(dcgan, "sample", mirrored)
    dcgan.main(["--resume", str(run), "--explore", "nearest"])
    assert size_of(run / "explore/nearest.png") == tiles(3 + 1 + 3, 3, 3)  # all three, a gap, and all three mislabelled
    left, _ = tiles(3, 0, 3)
    assert np.asarray(Image.open(run / "explore/nearest.png"))[:, left : left + 84].min() == 255

    (folder / "2").mkdir()
    for i in range(5):
        Image.new("L", (28, 28), 50 * i).save(folder / f"2/{i}.png")
    for more in (["--iters", "3"], ["--explore", "filters"], ["--explore", "nearest"]):
        with pytest.raises(SystemExit) as stop:
            dcgan.main(["--resume", str(run), *more])
        assert stop.value.code == 2 and f"3 classes, the run {run} (1, 28, 28) and 2" in capsys.readouterr().err
