"""DE-GAN against its equations, Tables II to IV, and a DCGAN update written by hand; about 20 s."""

import argparse
import contextlib
import copy
import csv
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import nn
from torchvision.ops import Permute
from torchvision.transforms.functional import pil_to_tensor

import data
import de_gan
import metrics

NO_AUTOCAST = contextlib.nullcontext()


def namespace(**changed):
    values = {"channels": 1, "size": 28, "z_dim": 128, "classes": 0, "noise": "decoder-encoder", "posterior": "sample"}
    return argparse.Namespace(**values | changed)


def count(net):
    return sum(p.numel() for p in net.parameters())


def conv(k_in, k_out, side=5):
    return side * side * k_in * k_out + k_out


def up(k_in, k_out, side=5):
    return side * side * k_in * k_out  # batch norm follows: no bias


def norm(*kernels):
    return 2 * sum(kernels)


def shapes(net, *inputs, of=(nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
    """What the layers of these kinds give, in the order in which they run, without the batch."""
    seen = []
    hooks = [layer.register_forward_hook(lambda layer, x, y: seen.append(tuple(y.shape[1:])))
             for layer in net.modules() if isinstance(layer, of)]
    net(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("classes", [0, 10])
def test_table_2(classes):
    """MNIST: kernels and sides as printed; 11 = 1 + 10 and 74 = 64 + 10; 6272 = 128 x 7 x 7."""
    L = classes
    with torch.device("meta"):
        nets = de_gan.build(namespace(classes=L))
        x, z, y = torch.zeros(5, 1, 28, 28), torch.zeros(5, 128), torch.zeros(5, dtype=torch.int64)
        assert shapes(nets["vae"].decoder, z) == [(128, 3, 3), (64, 7, 7), (32, 14, 14), (1, 28, 28)]
        assert shapes(nets["vae"].encoder, x) == [(32, 14, 14), (64, 7, 7), (128, 3, 3), (256,)]
        assert shapes(nets["G"], z, y) == [(1024,), (6272,), (128, 14, 14), (1, 28, 28)]
        assert shapes(nets["D"], x, y) == [(11, 14, 14), (74, 7, 7), (1024,), (1,)]
    assert count(nets["vae"].decoder) == (up(128, 128, 3) + up(128, 64) + up(64, 32) + conv(32, 1) + norm(128, 64, 32))
    assert count(nets["vae"].encoder) == (conv(1, 32) + conv(32, 64) + conv(64, 128) + norm(32, 64, 128)
                                          + 1152 * 256 + 256)
    assert count(nets["G"]) == ((128 + L) * 1024 + 1024 + (1024 + L) * 6272 + 6272 + up(128 + L, 128) + conv(128 + L, 1)
                                + norm(1024, 6272, 128))
    assert count(nets["D"]) == (conv(1 + L, 11) + conv(11 + L, 74) + (74 * 49 + L) * 1024 + 1024 + 1024 + L + 1
                                + norm(74, 1024))


@pytest.mark.parametrize("size, base", [(64, 4), (32, 2)])
def test_tables_3_and_4(size, base):
    """CelebA and CIFAR-10, as chained in the docstring."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(channels=3, size=size))
        x, z = torch.zeros(5, 3, size, size), torch.zeros(5, 128)
        last = [(16, 32, 32)] if size == 64 else []
        assert shapes(nets["vae"].decoder, z) == [(128, 4, 4), (64, 8, 8), (32, 16, 16), *last, (3, size, size)]
        sides = [size // 2, size // 4, size // 8]
        assert shapes(nets["vae"].encoder, x) == [*((k, s, s) for k, s in zip((32, 64, 128), sides)), (256,)]
        sides = [base * 2, base * 4, base * 8]
        assert shapes(nets["G"], z) == [(1024,), (512 * base**2,), *((k, s, s) for k, s in zip((256, 128, 64), sides)),
                                        (3, size, size)]
        assert shapes(nets["D"], x) == [*((k, s, s) for k, s in zip((64, 128, 256), sides[::-1])), (512, base, base), (1,)]
    decoder = up(128, 128, 4) + up(128, 64) + up(64, 32) + norm(128, 64, 32)
    decoder += up(32, 16) + norm(16) + conv(16, 3) if size == 64 else conv(32, 3)
    assert count(nets["vae"].decoder) == decoder
    assert count(nets["vae"].encoder) == (conv(3, 32) + conv(32, 64) + conv(64, 128) + norm(32, 64, 128)
                                          + 128 * (size // 8) ** 2 * 256 + 256)
    flat = 512 * base**2
    assert count(nets["G"]) == (128 * 1024 + 1024 + 1024 * flat + flat + norm(1024, flat, 256, 128, 64)
                                + up(512, 256) + up(256, 128) + up(128, 64) + conv(64, 3))
    assert count(nets["D"]) == (conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512) + norm(128, 256, 512)
                                + flat + 1)


def test_width():
    """The same chain of kernels from another start; Table II, of 28 px, is as printed."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(channels=3, size=32, width=10))
        assert shapes(nets["G"], torch.zeros(5, 128)) == [(1024,), (80 * 4,), (40, 4, 4), (20, 8, 8), (10, 16, 16), (3, 32, 32)]
        assert shapes(nets["D"], torch.zeros(5, 3, 32, 32)) == [(10, 16, 16), (20, 8, 8), (40, 4, 4), (80, 2, 2), (1,)]
    with pytest.raises(data.InputError, match="--width"):
        de_gan.build(namespace(width=10))


def test_other_sizes_are_refused():
    with pytest.raises(data.InputError, match="--size"):
        de_gan.build(namespace(size=48))


def test_plain_noise_needs_no_vae():
    assert set(de_gan.build(namespace(noise="plain"))) == {"G", "D"}


def test_labels_are_joined_at_every_layer():
    """Conditional G and D beside torch's functions on hand-made joined inputs."""
    torch.manual_seed(0)
    nets = de_gan.build(namespace(classes=3))
    G, D = nets["G"], nets["D"]
    z, x, labels = torch.randn(6, 128), torch.rand(6, 1, 28, 28), torch.tensor([2, 0, 1, 1, 2, 0])
    y = torch.eye(3)[labels]
    maps = lambda side: y.reshape(6, 3, 1, 1).repeat(1, 1, side, side)
    bn = lambda a: (a - a.mean([0, *range(2, a.dim())], keepdim=True)) / (
        a.var([0, *range(2, a.dim())], keepdim=True, unbiased=False) + 1e-5).sqrt()  # fmt: skip

    h = F.relu(bn(F.linear(torch.cat([z, y], 1), G.dense[0].weight, G.dense[0].bias)))
    h = F.relu(bn(F.linear(torch.cat([h, y], 1), G.dense[1].weight, G.dense[1].bias))).reshape(6, 7, 7, 128).permute(0, 3, 1, 2)
    h = torch.cat([h, maps(7)], 1)
    h = F.relu(bn(F.conv_transpose2d(h, G.ups[0].weight, G.ups[0].bias, 2, 2, 1)))
    h = F.conv_transpose2d(torch.cat([h, maps(14)], 1), G.ups[1].weight, G.ups[1].bias, 2, 2, 1)
    torch.testing.assert_close(G(z, labels), 1 / (1 + torch.exp(-h)), rtol=1e-4, atol=1e-5)

    h = F.leaky_relu(F.conv2d(torch.cat([x, maps(28)], 1), D.downs[0].weight, D.downs[0].bias, 2, 2), 0.2)
    h = F.leaky_relu(bn(F.conv2d(torch.cat([h, maps(14)], 1), D.downs[1].weight, D.downs[1].bias, 2, 2)), 0.2)
    expected = h
    h = F.leaky_relu(bn(F.linear(torch.cat([h.permute(0, 2, 3, 1).flatten(1), y], 1), D.dense[0].weight, D.dense[0].bias)), 0.2)
    logits, hidden = D(x, labels, with_hidden=True)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, (torch.cat([h, y], 1) @ D.out.weight.T + D.out.bias)[:, 0], rtol=1e-4, atol=1e-5)


def test_hidden_loss():
    """Eq. 12: a distance, not its square, and a mean over images, not over activations."""
    a, b = torch.randn(7, 3, 4, 4), torch.randn(7, 3, 4, 4)
    assert de_gan.hidden_loss(a, a) == 0
    assert de_gan.hidden_loss(torch.full((5, 2, 3, 3), 2.0), torch.full((5, 2, 3, 3), -1.0)) == pytest.approx(3 * math.sqrt(18))
    torch.testing.assert_close(de_gan.hidden_loss(a, b), sum((p - q).norm() for p, q in zip(a, b)) / 7)
    torch.testing.assert_close(de_gan.hidden_loss(3 * a, 3 * b), 3 * de_gan.hidden_loss(a, b))


def test_vae_loss():
    """Eq. 4: 784 log 2 for a coin a pixel; both terms as torch.distributions has them."""
    x, zeros = torch.rand(4, 1, 28, 28), torch.zeros(4, 128)
    loss, kl = de_gan.vae_loss(torch.zeros(4, 1, 28, 28), x, zeros, zeros)
    assert loss.item() == pytest.approx(784 * math.log(2)) and kl == 0
    logits, mu, logvar, x = torch.randn(4, 1, 28, 28), torch.randn(4, 128), torch.randn(4, 128), x.round()
    loss, kl = de_gan.vae_loss(logits, x, mu, logvar)
    q, p = torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p).sum(1).mean())
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss, kl - likelihood)


def test_adversarial_losses():
    """Eq. 11 by torch's cross-entropy: real is 1."""
    real, fake = torch.randn(50) * 5, torch.randn(50) * 5
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(de_gan.d_loss(real, fake), bce(real, torch.ones(50)) + bce(fake, torch.zeros(50)))
    torch.testing.assert_close(de_gan.g_loss(fake), bce(fake, torch.ones(50)))
    assert de_gan.d_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_decoder_and_encoder_are_swapped():
    """Eqs. 8 and 9: z_n -> x^ -> z' ~ N(mu(x^), sigma(x^)^2)."""
    torch.manual_seed(0)
    vae = de_gan.VAE(1, 28, 128).freeze()
    z, eps = torch.randn(6, 128), torch.randn(6, 128)
    out = vae.encoder(torch.sigmoid(vae.decoder(z)))
    mu, std = out[:, :128], torch.exp(0.5 * out[:, 128:])
    torch.testing.assert_close(vae.swapped(z, eps), mu + std * eps)
    vae.posterior = "mean"
    torch.testing.assert_close(vae.swapped(z, eps), mu)


def test_the_vae_decodes_what_it_draws_from_its_posterior():
    """Eqs. 5 and 6: z = mu + sigma eps, one eps for each number."""
    torch.manual_seed(0)
    vae, x = de_gan.VAE(1, 28, 128).eval(), torch.rand(6, 1, 28, 28)
    rng = torch.get_rng_state()
    logits, mu, logvar = vae(x)
    torch.set_rng_state(rng)
    eps = torch.randn(6, 128)
    torch.testing.assert_close(torch.cat([mu, logvar], 1), vae.encoder(x))
    torch.testing.assert_close(logits, vae.decoder(mu + torch.exp(0.5 * logvar) * eps))


def optimisers_of(nets):
    return {name: torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for name, net in nets.items()}


def test_the_frozen_vae_stays_as_it_was():
    """No gradient reaches it, and neither weights nor running averages move while G and D play."""
    torch.manual_seed(0)
    nets = de_gan.build(namespace())
    nets["vae"].freeze()
    before = copy.deepcopy({name: net.state_dict() for name, net in nets.items()})
    optimisers = optimisers_of(nets)
    for _ in range(2):
        de_gan.play(nets, optimisers, torch.rand(8, 1, 28, 28), None, 0.1, NO_AUTOCAST)
    moved = {name: any(not torch.equal(value, before[name][key]) for key, value in net.state_dict().items())
             for name, net in nets.items()}
    assert moved == {"G": True, "D": True, "vae": False}
    assert all(p.grad is None and not p.requires_grad for p in nets["vae"].parameters())
    assert all(p.requires_grad for p in nets["D"].parameters())  # thawed again for its own update


def by_hand(nets):
    """The same G and D as nn.Sequential, by Table II."""
    G, D = nets["G"], nets["D"]
    generator = nn.Sequential(
        nn.Linear(128, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 6272), nn.BatchNorm1d(6272), nn.ReLU(),
        nn.Unflatten(1, (7, 7, 128)), Permute([0, 3, 1, 2]),
        nn.ConvTranspose2d(128, 128, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 1, 5, 2, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 11, 5, 2, 2), nn.LeakyReLU(0.2), nn.Conv2d(11, 74, 5, 2, 2), nn.BatchNorm2d(74), nn.LeakyReLU(0.2),
        Permute([0, 2, 3, 1]), nn.Flatten(), nn.Linear(3626, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1),
    )  # fmt: skip
    for net, places, layers in (
        (generator, (0, 3, 8, 11), [*G.dense, *G.ups]), (discriminator, (0, 2, 7, 10), [*D.downs, *D.dense, D.out]),
    ):  # fmt: skip
        for place, layer in zip(places, layers):
            net[place].load_state_dict(layer.state_dict())
    return generator, discriminator


def in_order(net, layers, norms):
    """The gradients of our net in nn.Sequential's order: every layer, then its norm if it has one."""
    return [p.grad for layer, norm in zip(layers, norms) for p in (*layer.parameters(), *norm.parameters())]


@pytest.mark.parametrize("lambda_hidden", [0.0, 0.3])
def test_one_update_by_hand(lambda_hidden):
    """Plain noise without the hidden term is DCGAN's update: the gradients by hand; with the term, eq. 13 for G and
    nothing new for D."""
    torch.manual_seed(0)
    nets = de_gan.build(namespace(noise="plain"))
    G, D = by_hand(nets)
    x, bce = torch.rand(16, 1, 28, 28), F.binary_cross_entropy_with_logits
    rng = torch.get_rng_state()
    losses = de_gan.play(nets, optimisers_of(nets), x, None, lambda_hidden, NO_AUTOCAST)

    torch.set_rng_state(rng)
    fake = G(torch.randn(16, 128))
    loss_D = bce(D(x), torch.ones(16, 1)) + bce(D(fake.detach()), torch.zeros(16, 1))
    loss_D.backward()
    grad_D = [p.grad.clone() for p in D.parameters()]
    torch.optim.Adam(D.parameters(), 2e-4, betas=(0.5, 0.999)).step()
    loss_G = bce(D(fake), torch.ones(16, 1))
    loss = loss_G + lambda_hidden * (D[:5](x).detach() - D[:5](fake)).flatten(1).norm(dim=1).mean()
    loss.backward()

    ours, none = nets["G"], nn.Identity()
    grads = in_order(ours, [*ours.dense, *ours.ups], [*ours.dense_norms, *ours.norms, none])
    for grad, p in zip(grads, G.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=5e-6)
    ours = nets["D"]
    grads = in_order(ours, [*ours.downs, *ours.dense, ours.out], [*ours.norms, *ours.dense_norms, none])
    for grad, expected in zip(grads, grad_D, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=5e-6)
    torch.testing.assert_close(losses[:2], torch.stack([loss_D, loss_G]).detach())


def test_pretraining_learns():
    """Forty updates on one batch bring the bound below that of the best picture without a code (every pixel's mean)."""
    torch.manual_seed(0)
    nets = de_gan.build(namespace())
    vae, x = nets["vae"], (torch.rand(8, 1, 28, 28) > 0.5).float()
    optimiser = torch.optim.Adam(vae.parameters(), 1e-3)
    losses = [de_gan.pretrain(vae, optimiser, x, NO_AUTOCAST)[0].item() for _ in range(40)]
    mean = x.mean(0)
    without_a_code = torch.nan_to_num(-(mean * mean.log() + (1 - mean) * (1 - mean).log())).sum().item()
    assert losses[0] > 500 and losses[-1] < without_a_code


@pytest.mark.parametrize("noise", ["decoder-encoder", "plain"])
def test_samples(noise):
    torch.manual_seed(0)
    nets = de_gan.build(namespace(noise=noise, classes=4))
    if noise != "plain":
        nets["vae"].freeze()
    seeded = lambda seed=3: torch.Generator().manual_seed(seed)
    state = copy.deepcopy(nets["G"].state_dict())
    six = de_gan.sample(nets, 6, generator=seeded(), batch_size=8)
    assert six.shape == (6, 1, 28, 28) and 0 <= six.min() and six.max() <= 1
    assert torch.equal(de_gan.sample(nets, 19, generator=seeded(), batch_size=8)[:6], six)
    assert torch.equal(de_gan.sample(nets, 6, torch.tensor([0, 1, 2, 3, 0, 1]), seeded(), 8), six)
    assert not torch.equal(de_gan.sample(nets, 6, generator=seeded(4), batch_size=8), six)
    other = de_gan.sample(nets, 6, torch.tensor([0, 1, 2, 3, 3, 3]), seeded(), 8)
    assert torch.equal(other[:4], six[:4]) and not torch.equal(other[4], six[4])  # labels beside it change nothing
    assert nets["G"].training and all(torch.equal(a, b) for a, b in zip(state.values(), nets["G"].state_dict().values()))


def test_plane():
    """The variances along the two axes are the two largest eigenvalues of the covariance; of one number, it and nought."""
    x = torch.randn(500, 6, dtype=torch.float64) * torch.tensor([1.0, 5, 2, 3, 1, 1]) + 10
    flat = de_gan.plane(x)
    expected = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)[:2]
    torch.testing.assert_close(torch.cov(flat.T), torch.diag(expected), atol=1e-9, rtol=1e-6)
    line = de_gan.plane(x[:, :1])
    torch.testing.assert_close(line.abs(), torch.cat([(x[:, :1] - x[:, :1].mean()).abs(), torch.zeros(500, 1)], 1))


class Halves(nn.Module):
    """A classifier for tests: 0 where the left half of a picture is the brighter one, else 1."""

    labels = torch.arange(2)

    def forward(self, x):
        return torch.stack([half.sum((1, 2, 3)) for half in x.tensor_split(2, 3)], 1)


def test_diversity_is_of_all_classes_that_have_one(monkeypatch):
    """Images class by class, (n, 1, 1, 2), the spread of class c that of the samples times 1, 4, 9; the fourth has one image,
    the fifth twice the same."""
    per_class, y = 6000, torch.arange(2000) % 5
    coins = (torch.arange(per_class) % 2).byte()
    images = torch.cat([*(20 * (c + 1) * coins for c in range(3)), torch.tensor([9, 7, 7], dtype=torch.uint8)])
    images, labels = images.view(-1, 1, 1, 1).repeat(1, 1, 1, 2), torch.arange(3).repeat_interleave(per_class)
    labels = torch.cat([labels, torch.tensor([3, 4, 4])])
    drawn = (20 / 255) * (torch.arange(2000) // 5 % 2).float().view(-1, 1, 1, 1).repeat(1, 1, 1, 2)
    monkeypatch.setattr(de_gan, "sample", lambda *args: drawn)
    args, rng = namespace(classes=5, seed=0, batch_size=64), torch.get_rng_state()
    accuracy, rdd = de_gan.legible(None, args, Halves(), images, labels)
    assert rdd == pytest.approx((1 + 1 / 4 + 1 / 9) / 3, rel=0.01)
    assert accuracy == pytest.approx((y == 0).double().mean())           # halves are alike: all are read as 0
    assert de_gan.legible(None, args, Halves(), images, labels) == (accuracy, rdd) and torch.equal(rng, torch.get_rng_state())
    assert math.isnan(de_gan.legible(None, args, Halves(), images[-3:], labels[-3:])[1])
    many = namespace(classes=3000, seed=0, batch_size=64)                # more than there are samples: none of two
    assert math.isnan(de_gan.legible(None, many, Halves(), images[:6000], torch.arange(6000) % 3000)[1])
    drawn[7] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        de_gan.legible(None, args, Halves(), images, labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of noisy 28 px pictures, 30 in all."""
    root = tmp_path_factory.mktemp("images")
    pixels = torch.randint(0, 256, (30, 28, 28), generator=torch.Generator().manual_seed(0)).byte().numpy()
    for i, picture in enumerate(pixels):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / "ab"[i % 2] / f"{i}.png")
    return root


def run(folder, out, *flags):
    common = ["--dataset", str(folder), "--data-dir", str(folder.parent), "--out", str(out), "--device", "cpu"]
    de_gan.main([*common, "--batch-size", "8", "--sample-every", "10", *flags])


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.mark.parametrize("classes", [0, 2])
def test_the_last_column_is_the_training_image_nearest_to_the_one_before(tmp_path, classes):
    """The training images are the samples themselves, rounded to bytes, so each has itself as its nearest."""
    args = namespace(classes=classes, seed=0, batch_size=64)
    torch.manual_seed(0)
    nets = de_gan.build(args)
    nets["vae"].freeze()
    [to_image] = (layer for layer in nets["G"].modules() if isinstance(layer, de_gan.ToImage))
    nn.init.normal_(to_image.weight)                                                  # samples far apart
    labels = torch.arange(10).repeat_interleave(8) % 2 if classes else None           # a label to a row
    drawn = de_gan.sample(nets, 80, labels, torch.Generator().manual_seed(0)).mul(255).round().byte()
    de_gan.draw_nearest(nets, args, drawn.flip(0), tmp_path, most=17 * 784 + 1)       # in five parts
    grid = pil_to_tensor(Image.open(tmp_path / "nearest.png"))[0]
    rows = grid[:300, :270].unfold(0, 30, 30).unfold(1, 30, 30)[:, :, 2:, 2:]         # (10, 9, 28, 28), 2 px between
    drawn = drawn.view(10, 8, 28, 28)
    torch.testing.assert_close(rows[:, :8].int(), drawn.int(), rtol=0, atol=1)        # threads may add in another order
    assert torch.equal(rows[:, 8], drawn[:, 7])


def test_losses_are_drawn_from_the_log(tmp_path):
    """D from half of the largest to all of it, G from the largest to 0, after 10 and 20 updates; the VAE's row is left out."""
    (tmp_path / "log.csv").write_text("step,vae,kl,loss_d,loss_g\n5,90,9,,\n10,,,1,2\n20,,,2,0\n")
    de_gan.draw_losses(tmp_path)
    with Image.open(tmp_path / "losses.png") as image:
        for at, colour in {(330, 205): "navy", (600, 50): "navy", (330, 50): "firebrick", (600, 360): "firebrick"}.items():
            assert image.getpixel(at) == ImageColor.getrgb(colour)


@pytest.mark.parametrize("flags, drawn", [(["--vae-iters", "1", "--z-dim", "1"], True), (["--noise", "plain"], False)])
def test_the_plane_is_drawn_of_what_the_decoder_encoder_makes(folder, tmp_path, flags, drawn, capsys):
    """Also of a z of one number; without the decoder-encoder there is no before and after."""
    run(folder, tmp_path / "run", *flags, "--iters", "2")
    assert (tmp_path / "run/noise.png").exists() == ("noise, nearest" in capsys.readouterr().out) == drawn


@pytest.mark.parametrize("vae_iters", [9, 4, 2])
def test_exact_resume(folder, tmp_path, vae_iters):
    """6 updates = 4 + resume + 2: both parts the VAE's, the stop just before the game, and after it began."""
    run(folder, tmp_path / "whole", "--vae-iters", str(vae_iters), "--iters", "6")
    run(folder, tmp_path / "parts", "--vae-iters", str(vae_iters), "--iters", "4")
    de_gan.main(["--resume", str(tmp_path / "parts"), "--iters", "6"])
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for key in ("nets", "optimisers", "rng"):
        assert same(whole[key], parts[key]), key
    with open(tmp_path / "parts" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["vae"]) for row in rows] == [int(row["step"]) <= vae_iters for row in rows]
    assert all(bool(row["loss_d"]) != bool(row["vae"]) for row in rows)


def test_a_run_that_is_still_at_its_vae_cannot_be_sampled(folder, tmp_path, capsys):
    run(folder, tmp_path / "run", "--vae-iters", "3", "--iters", "2")
    with pytest.raises(SystemExit) as stop:
        de_gan.main(["--resume", str(tmp_path / "run"), "--sample", "4"])
    assert stop.value.code == 2 and "update 2 of its VAE's 3" in capsys.readouterr().err
    de_gan.main(["--resume", str(tmp_path / "run"), "--iters", "4"])
    de_gan.main(["--resume", str(tmp_path / "run"), "--sample", "4"])


@pytest.mark.parametrize("flags, said", [
    (["--size", "48"], "not 48"), (["--width", "32"], "no --width"), (["--batch-size", "31"], "batch size 31"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_a_classifier_is_taught(folder, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.setattr(metrics, "classifier_of", None)
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "run", "--conditional", *flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_conditional_run_counts_what_is_legible(folder, tmp_path, monkeypatch):
    """accuracy.csv every two updates of the game and at the end, as counted from the checkpoint; 6 updates = 3 + resume + 3,
    however often it counts."""
    monkeypatch.setattr(metrics, "classifier_of", lambda *args: Halves())
    monkeypatch.setattr(de_gan, "legible", functools.partial(de_gan.legible, n=200))
    flags = ["--conditional", "--vae-iters", "1", "--accuracy-every", "2", "--batch-size", "24", "--lr-g", "0.01"]
    run(folder, tmp_path / "whole", *flags, "--iters", "6")
    run(folder, tmp_path / "parts", *flags, "--iters", "3")
    de_gan.main(["--resume", str(tmp_path / "parts"), "--iters", "6", "--accuracy-every", "5"])
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(same(whole[key], parts[key]) for key in ("nets", "optimisers", "rng"))
    head, third, fifth, last = (tmp_path / "whole/accuracy.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in (head, third, fifth, last)] == [["step", "updates"], ["3", "2"], ["5", "4"], ["6", "5"]]
    assert (tmp_path / "parts/accuracy.csv").read_text().splitlines() == [head, third, last]

    y = torch.arange(200) % 2
    drawn = metrics.load_run(tmp_path / "whole").sample(200, labels=y, seed=1)
    right = (drawn[..., 14:].sum((1, 2, 3)) > drawn[..., :14].sum((1, 2, 3))).long() == y
    images, labels = data.load(str(folder), str(folder.parent))
    spread = lambda x: (x - x.mean(0)).square().sum((1, 2, 3)).mean().item()
    ratios = [spread(drawn[y == c].double()) / spread(images[labels == c] / 255.0) for c in range(2)]
    accuracy, rdd = map(float, last.split(",")[2:])
    assert accuracy == pytest.approx(right.double().mean().item(), abs=1e-4)
    assert rdd == pytest.approx(sum(ratios) / 2, abs=1e-4) and rdd > 0.01
