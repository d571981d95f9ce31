"""DE-GAN against its equations, Tables II to IV, and a DCGAN update written by hand."""

import argparse
import contextlib
import copy
import csv
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.ops import Permute

import data
import de_gan
import metrics

NO_AUTOCAST = contextlib.nullcontext()


def namespace(**changed):
    values = {"channels": 1, "size": 28, "z_dim": 128, "classes": 0, "noise": "decoder-encoder"}
    return argparse.Namespace(**values | changed)


def built(**changed):
    torch.manual_seed(0)
    nets = de_gan.build(namespace(**changed))
    if "vae" in nets:
        nets["vae"].eval().requires_grad_(False)
    return nets


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


# ---- networks ------------------------------------------------------------------------------------


def count(net):
    return sum(p.numel() for p in net.parameters())


def conv(k_in, k_out, side=5):
    return side * side * k_in * k_out + k_out


def up(k_in, k_out, side=5):
    return side * side * k_in * k_out  # batch norm follows: no bias


def norm(*kernels):
    return 2 * sum(kernels)


def shapes(net, *inputs):
    """Output shapes, without the batch, of the layers with weights, in the order they run."""
    seen, kinds = [], (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for layer in net.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda layer, x, y: seen.append(tuple(y.shape[1:])))
    net(*inputs)
    return seen


@pytest.mark.parametrize("L", [0, 10])
def test_table_2(L):
    """MNIST: kernels and sides as printed; 11 = 1 + 10, 74 = 64 + 10, 6272 = 128 x 7 x 7."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(classes=L))
        x, z, y = torch.zeros(5, 1, 28, 28), torch.zeros(5, 128), torch.zeros(5, dtype=torch.long)
        decoder = shapes(nets["vae"].decoder, z)
        assert decoder == [(128, 3, 3), (64, 7, 7), (32, 14, 14), (1, 28, 28)]
        encoder = shapes(nets["vae"].encoder, x)
        assert encoder == [(32, 14, 14), (64, 7, 7), (128, 3, 3), (256,)]
        assert shapes(nets["G"], z, y) == [(1024,), (6272,), (128, 14, 14), (1, 28, 28)]
        assert shapes(nets["D"], x, y) == [(11, 14, 14), (74, 7, 7), (1024,), (1,)]
    decoder = up(128, 128, 3) + up(128, 64) + up(64, 32) + conv(32, 1) + norm(128, 64, 32)
    assert count(nets["vae"].decoder) == decoder
    encoder = conv(1, 32) + conv(32, 64) + conv(64, 128) + norm(32, 64, 128) + 1152 * 256 + 256
    assert count(nets["vae"].encoder) == encoder
    dense = (128 + L) * 1024 + 1024 + (1024 + L) * 6272 + 6272 + norm(1024, 6272)
    assert count(nets["G"]) == dense + up(128 + L, 128) + norm(128) + conv(128 + L, 1)
    dense = (74 * 49 + L) * 1024 + 1024 + norm(1024) + 1024 + L + 1
    assert count(nets["D"]) == conv(1 + L, 11) + conv(11 + L, 74) + norm(74) + dense


@pytest.mark.parametrize("size, base", [(64, 4), (32, 2)])
def test_tables_3_and_4(size, base):
    """CelebA and CIFAR-10, as chained in the docstring, at the paper's width."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(channels=3, size=size, width=64))
        x, z = torch.zeros(5, 3, size, size), torch.zeros(5, 128)
        last = [(16, 32, 32)] if size == 64 else []
        decoder = shapes(nets["vae"].decoder, z)
        assert decoder == [(128, 4, 4), (64, 8, 8), (32, 16, 16), *last, (3, size, size)]
        maps = [(k, size // s, size // s) for k, s in ((32, 2), (64, 4), (128, 8))]
        assert shapes(nets["vae"].encoder, x) == [*maps, (256,)]
        maps = [(k, base * s, base * s) for k, s in ((256, 2), (128, 4), (64, 8))]
        assert shapes(nets["G"], z) == [(1024,), (512 * base**2,), *maps, (3, size, size)]
        assert shapes(nets["D"], x) == [*maps[::-1], (512, base, base), (1,)]
    decoder = up(128, 128, 4) + up(128, 64) + up(64, 32) + norm(128, 64, 32)
    decoder += up(32, 16) + norm(16) + conv(16, 3) if size == 64 else conv(32, 3)
    assert count(nets["vae"].decoder) == decoder
    encoder = conv(3, 32) + conv(32, 64) + conv(64, 128) + norm(32, 64, 128)
    assert count(nets["vae"].encoder) == encoder + 128 * (size // 8) ** 2 * 256 + 256
    flat = 512 * base**2
    dense = 128 * 1024 + 1024 + 1024 * flat + flat + norm(1024, flat)
    ups = up(512, 256) + up(256, 128) + up(128, 64) + norm(256, 128, 64) + conv(64, 3)
    assert count(nets["G"]) == dense + ups
    downs = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512) + norm(128, 256, 512)
    assert count(nets["D"]) == downs + flat + 1


@pytest.mark.parametrize("width, k", [(None, 16), (10, 10)])
def test_width(width, k):
    """A quarter of the paper's by default; Table II, for 28 px, is as printed."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(channels=3, size=32, width=width))
        maps = [(k, 16, 16), (2 * k, 8, 8), (4 * k, 4, 4), (8 * k, 2, 2)]
        assert shapes(nets["D"], torch.zeros(5, 3, 32, 32)) == [*maps, (1,)]
        ups = shapes(nets["G"], torch.zeros(5, 128))
        assert ups == [(1024,), (8 * k * 4,), *maps[2::-1], (3, 32, 32)]
    with pytest.raises(data.InputError, match="--width"):
        de_gan.build(namespace(width=10))


def test_other_sizes_are_refused():
    with pytest.raises(data.InputError, match="--size"):
        de_gan.build(namespace(size=48))


def test_nets_of_a_run():
    """The VAE only where it is used, and the average of G, which starts as G, only with --ema."""
    assert set(de_gan.build(namespace(noise="plain"))) == {"G", "D"}
    nets = de_gan.build(namespace(ema=0.9))
    assert set(nets) == {"G", "D", "vae", "ema"} and nets["ema"] is not nets["G"]
    pairs = zip(nets["ema"].parameters(), nets["G"].parameters(), strict=True)
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)


def test_labels_are_joined_at_every_layer():
    """Conditional G and D against torch's functions on inputs joined by hand."""
    nets = built(classes=3)
    z, x, labels = torch.randn(6, 128), torch.rand(6, 1, 28, 28), torch.tensor([2, 0, 1, 1, 2, 0])
    y = torch.eye(3)[labels]

    def maps(side):
        return y.reshape(6, 3, 1, 1).repeat(1, 1, side, side)

    def bn(a):
        axes = [0, *range(2, a.dim())]
        variance = a.var(axes, keepdim=True, unbiased=False)
        return (a - a.mean(axes, keepdim=True)) / (variance + 1e-5).sqrt()

    weighted = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    one, two, three, four = ((layer.weight, layer.bias) for layer in nets["G"].modules()
                             if isinstance(layer, weighted))
    h = F.relu(bn(F.linear(torch.cat([z, y], 1), *one)))
    h = F.relu(bn(F.linear(torch.cat([h, y], 1), *two))).reshape(6, 7, 7, 128).permute(0, 3, 1, 2)
    h = F.relu(bn(F.conv_transpose2d(torch.cat([h, maps(7)], 1), *three, 2, 2, 1)))
    h = F.conv_transpose2d(torch.cat([h, maps(14)], 1), *four, 2, 2, 1)
    expected = 1 / (1 + torch.exp(-h))
    torch.testing.assert_close(nets["G"](z, labels), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(nets["G"](z), nets["G"](z, torch.tensor([0, 1, 2, 0, 1, 2])))

    one, two, three, four = ((layer.weight, layer.bias) for layer in nets["D"].modules()
                             if isinstance(layer, weighted))
    h = F.leaky_relu(F.conv2d(torch.cat([x, maps(28)], 1), *one, 2, 2), 0.2)
    h = F.leaky_relu(bn(F.conv2d(torch.cat([h, maps(14)], 1), *two, 2, 2)), 0.2)
    flat = torch.cat([h.permute(0, 2, 3, 1).flatten(1), y], 1)
    expected = F.linear(torch.cat([F.leaky_relu(bn(F.linear(flat, *three)), 0.2), y], 1), *four)
    logits, hidden = nets["D"](x, labels, with_hidden=True)
    torch.testing.assert_close(hidden, h, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nets["D"](x, labels), logits)


def test_decoder_and_encoder_are_swapped():
    """Eqs. 8 and 9: z_n -> x^ -> z' ~ N(mu(x^), sigma(x^)^2)."""
    vae = built()["vae"]
    z, eps = torch.randn(6, 128), torch.randn(6, 128)
    out = vae.encoder(torch.sigmoid(vae.decoder(z)))
    torch.testing.assert_close(vae.swapped(z, eps), out[:, :128] + (out[:, 128:] / 2).exp() * eps)


def test_the_vae_decodes_a_draw_from_its_posterior():
    """Eqs. 5 and 6: z = mu + sigma eps, one eps for each number."""
    vae, x = built()["vae"], torch.rand(6, 1, 28, 28)
    rng = torch.get_rng_state()
    logits, mu, logvar = vae(x)
    torch.set_rng_state(rng)
    eps = torch.randn(6, 128)
    torch.testing.assert_close(torch.cat([mu, logvar], 1), vae.encoder(x))
    torch.testing.assert_close(logits, vae.decoder(mu + torch.exp(0.5 * logvar) * eps))


def test_noise_of_both_kinds():
    nets = built()
    z_n, eps = torch.randn(2, 500, 128, generator=seeded())
    expected = nets["vae"].swapped(z_n, eps)
    torch.testing.assert_close(de_gan.draw_noise(nets, 500, seeded()), expected)
    plain = de_gan.draw_noise(built(noise="plain"), 500, seeded())
    assert plain.shape == (500, 128)
    assert abs(plain.mean()) < 5 / math.sqrt(64000)            # N(0, 1 / 64000)
    assert abs(plain.var() - 1) < 5 * math.sqrt(2 / 64000)     # N(1, 2 / 64000)


# ---- losses --------------------------------------------------------------------------------------


def test_hidden_loss():
    """Eq. 12: a distance, not its square, and a mean over images, not over activations."""
    a, b = torch.randn(7, 3, 4, 4), torch.randn(7, 3, 4, 4)
    assert de_gan.hidden_loss(a, a) == 0
    twos, minus = torch.full((5, 2, 3, 3), 2.0), torch.full((5, 2, 3, 3), -1.0)
    assert de_gan.hidden_loss(twos, minus) == pytest.approx(3 * math.sqrt(18))
    expected = sum((p - q).norm() for p, q in zip(a, b)) / 7
    torch.testing.assert_close(de_gan.hidden_loss(a, b), expected)


def test_vae_loss():
    """Eq. 4: 784 log 2 for a fair coin a pixel; both terms as torch.distributions has them."""
    x, zeros = torch.rand(4, 1, 28, 28), torch.zeros(4, 128)
    loss, kl = de_gan.vae_loss(torch.zeros(4, 1, 28, 28), x, zeros, zeros)
    assert loss.item() == pytest.approx(784 * math.log(2)) and kl == 0
    logits, mu, logvar = torch.randn(4, 1, 28, 28), torch.randn(4, 128), torch.randn(4, 128)
    loss, kl = de_gan.vae_loss(logits, x.round(), mu, logvar)
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, divergence.sum(1).mean())
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(x.round())
    torch.testing.assert_close(loss, kl - likelihood.sum((1, 2, 3)).mean())


def test_adversarial_losses():
    """Eq. 11 by torch's cross-entropy: real is 1."""
    real, fake = torch.randn(50) * 5, torch.randn(50) * 5
    ones, zeros, bce = torch.ones(50), torch.zeros(50), F.binary_cross_entropy_with_logits
    torch.testing.assert_close(de_gan.d_loss(real, fake), bce(real, ones) + bce(fake, zeros))
    torch.testing.assert_close(de_gan.g_loss(fake), bce(fake, ones))
    assert de_gan.d_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))


# ---- updates -------------------------------------------------------------------------------------


def optimisers_of(nets):
    return {name: de_gan.adam(net, 2e-4, 0.5) for name, net in nets.items()}


def test_the_frozen_vae_does_not_move():
    """No gradient reaches it, and neither weights nor running averages move with G and D."""
    nets = built()
    before = copy.deepcopy({name: net.state_dict() for name, net in nets.items()})
    optimisers = optimisers_of(nets)
    for _ in range(2):
        de_gan.update(nets, optimisers, torch.rand(8, 1, 28, 28), None, 0.1, NO_AUTOCAST)
    moved = {name: any(not torch.equal(v, before[name][k]) for k, v in net.state_dict().items())
             for name, net in nets.items()}
    assert moved == {"G": True, "D": True, "vae": False}
    assert all(p.grad is None for p in nets["vae"].parameters())
    assert all(p.requires_grad for p in nets["D"].parameters())  # again, for its own next update


def by_hand(nets):
    """The same G and D as nn.Sequential, by Table II."""
    generator = nn.Sequential(
        nn.Linear(128, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
        nn.Linear(1024, 6272), nn.BatchNorm1d(6272), nn.ReLU(),
        nn.Unflatten(1, (7, 7, 128)), Permute([0, 3, 1, 2]),
        nn.ConvTranspose2d(128, 128, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 1, 5, 2, 2, 1), nn.Sigmoid(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 11, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Conv2d(11, 74, 5, 2, 2), nn.BatchNorm2d(74), nn.LeakyReLU(0.2),
        Permute([0, 2, 3, 1]), nn.Flatten(),
        nn.Linear(3626, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1),
    )
    with torch.no_grad():
        for net, ours in ((generator, nets["G"]), (discriminator, nets["D"])):
            for p, q in zip(net.parameters(), ours.parameters(), strict=True):
                p.copy_(q)
    return generator, discriminator


@pytest.mark.parametrize("lambda_hidden", [0.0, 0.3])
def test_one_update_by_hand(lambda_hidden):
    """Plain noise without the hidden term is DCGAN's update; with it eq. 13 for G, not for D."""
    nets = built(noise="plain")
    G, D = by_hand(nets)
    x, bce = torch.rand(16, 1, 28, 28), F.binary_cross_entropy_with_logits
    rng = torch.get_rng_state()
    losses = de_gan.update(nets, optimisers_of(nets), x, None, lambda_hidden, NO_AUTOCAST)
    assert losses.shape == (5,) and not losses.requires_grad

    torch.set_rng_state(rng)
    fake, ones = G(de_gan.draw_noise(nets, 16)), torch.ones(16, 1)
    real_logits, fake_logits = D(x), D(fake.detach())
    loss_D = bce(real_logits, ones) + bce(fake_logits, 0 * ones)
    loss_D.backward()
    grad_D = [p.grad.clone() for p in D.parameters()]
    torch.optim.Adam(D.parameters(), 2e-4, betas=(0.5, 0.999)).step()
    hidden = (D[:5](x).detach() - D[:5](fake)).flatten(1).norm(dim=1).mean()
    loss_G = bce(D(fake), ones)
    (loss_G + lambda_hidden * hidden).backward()

    for p, expected in zip(nets["G"].parameters(), (p.grad for p in G.parameters()), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=5e-6)
    for p, expected in zip(nets["D"].parameters(), grad_D, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=5e-6)
    expected = [loss_D, loss_G, hidden * (lambda_hidden > 0),
                real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)


def test_the_vae_learns():
    """After 40 updates on one batch the bound is below that of the best picture without a code."""
    torch.manual_seed(0)
    vae, x = de_gan.VAE(1, 28, 128), (torch.rand(8, 1, 28, 28) > 0.5).float()
    optimiser = de_gan.adam(vae, 1e-3, beta_1=0.9)
    losses = [de_gan.update_vae(vae, optimiser, x, NO_AUTOCAST)[0].item() for _ in range(40)]
    mean = x.mean(0)  # of every pixel
    entropy = -torch.nan_to_num(mean * mean.log() + (1 - mean) * (1 - mean).log()).sum().item()
    assert losses[0] > 500 and losses[-1] < entropy


@pytest.mark.parametrize("noise", ["decoder-encoder", "plain"])
def test_samples(noise):
    nets = built(noise=noise, classes=4, ema=0.9)
    state = copy.deepcopy(nets["ema"].state_dict())
    six = de_gan.sample(nets, 6, generator=seeded(), batch_size=8)
    assert six.shape == (6, 1, 28, 28) and 0 <= six.min() and six.max() <= 1
    assert torch.equal(de_gan.sample(nets, 19, generator=seeded(), batch_size=8)[:6], six)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(de_gan.sample(nets, 6, labels, seeded(), 8), six)
    assert not torch.equal(de_gan.sample(nets, 6, generator=seeded(4), batch_size=8), six)
    other = de_gan.sample(nets, 6, torch.tensor([0, 1, 2, 3, 3, 3]), seeded(), 8)
    assert torch.equal(other[:4], six[:4])  # labels next to it change nothing
    assert not torch.equal(other[4], six[4])
    assert nets["ema"].training
    assert all(map(torch.equal, state.values(), nets["ema"].state_dict().values()))
    with torch.no_grad():
        nets["G"].ups[-1].bias.fill_(5)  # the average draws, if there is one
    assert torch.equal(de_gan.sample(nets, 6, generator=seeded(), batch_size=8), six)
    del nets["ema"]
    assert not torch.equal(de_gan.sample(nets, 6, generator=seeded(), batch_size=8), six)


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of noisy 28 px pictures, 40 in all."""
    root = tmp_path_factory.mktemp("images")
    pixels = torch.randint(0, 256, (40, 28, 28), generator=seeded()).byte().numpy()
    for i, picture in enumerate(pixels):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / "ab"[i % 2] / f"{i}.png")
    return root


def run(folder, out, *flags):
    common = ["--dataset", str(folder), "--data-dir", str(folder.parent), "--out", str(out)]
    small = ["--size", "32", "--width", "4", "--z-dim", "8", "--batch-size", "8"]
    de_gan.main([*common, "--device", "cpu", *small, *flags])
    return metrics.load_checkpoint(out)


def rows(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_iters_are_those_of_d_and_g(folder, tmp_path, monkeypatch):
    """A smoke run ends with a grid, a column per class; nothing trains a classifier."""
    monkeypatch.setattr(metrics, "train_classifier", None)
    kept = run(folder, tmp_path / "run", "--conditional", "--iters", "2", "--log-every", "1")
    assert kept["step"] == 4 and kept["args"]["vae_iters"] == 2 and kept["args"]["classes"] == 2
    phases = [("vae" if row["nats"] else "") + ("game" if row["loss_d"] else "")
              for row in rows(tmp_path / "run")]
    assert phases == ["vae", "vae", "game", "game"]
    (picture,) = (tmp_path / "run/samples").iterdir()
    with Image.open(picture) as image:
        assert picture.name == "000004.png" and image.size == (2 * 34 + 2, 8 * 34 + 2)


@pytest.mark.parametrize("flags, images, expected", [
    ([], 60_000, 2811),                     # 3 x 937
    ([], 300, 1000),
    (["--iters", "20"], 60_000, 20),
    (["--iters", "20", "--vae-iters", "50"], 60_000, 50),
    (["--vae-iters", "0"], 60_000, 0),
    (["--noise", "plain"], 60_000, 0),
])
def test_updates_of_the_vae(flags, images, expected):
    args = de_gan.parse_args(["--batch-size", "64", *flags])
    args.train_images = images
    de_gan.complete(args)
    assert args.vae_iters == expected


class After:
    """A signal that comes during update n."""

    def __init__(self, n):
        self.left = n

    def __bool__(self):
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_exact_resume(folder, tmp_path, monkeypatch, stop):
    """A stop in the VAE's updates, after the last of them, and after the first of D and G."""
    flags = ["--conditional", "--vae-iters", "3", "--iters", "2", "--epochs", "1", "--decay", "1"]
    whole = run(folder, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(data, "stop_signals", lambda: After(stop))
        run(folder, tmp_path / "parts", *flags)
    assert stopped.value.code == 130
    assert metrics.load_checkpoint(tmp_path / "parts")["step"] == stop
    if stop <= 3:
        with pytest.raises(data.InputError, match="VAE"):
            metrics.load_run(tmp_path / "parts")
    de_gan.main(["--resume", str(tmp_path / "parts")])
    parts = metrics.load_checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 5
    for key in ("nets", "optimisers", "rng"):
        assert same(whole[key], parts[key]), key


def test_decay_and_average(folder, tmp_path):
    """Rates fall over the last updates planned; the average follows G's weights."""
    images = len(data.load(str(folder), str(folder.parent))[0])
    planned, lr = 2 * (images // 8), 2e-4
    flags = ["--vae-iters", "1", "--epochs", "2", "--decay", "0.5", "--ema", "0.75"]
    one = run(folder, tmp_path / "run", *flags, "--iters", str(planned - 1))
    de_gan.main(["--resume", str(tmp_path / "run"), "--iters", str(planned)])
    two = metrics.load_checkpoint(tmp_path / "run")
    rates = {name: float(opt["param_groups"][0]["lr"]) for name, opt in two["optimisers"].items()}
    last = pytest.approx(lr / (planned // 2 + 1))
    assert rates == {"G": last, "D": last, "vae": pytest.approx(1e-3)}
    assert same(two["D_snapshots"][-1], two["nets"]["D"])
    for name, mean in two["nets"]["ema"].items():
        if name.endswith(("weight", "bias")):
            expected = 0.75 * one["nets"]["ema"][name] + 0.25 * two["nets"]["G"][name]
            torch.testing.assert_close(mean, expected)


def test_batch_norm_of_the_average_is_measured_on_its_own_activations(folder, tmp_path):
    run(folder, tmp_path / "run", "--vae-iters", "1", "--iters", "3", "--lr-g", "0.01")
    nets = metrics.load_run(tmp_path / "run").nets
    linear, batch_norm = nets["ema"].dense[0], nets["ema"].dense[1]
    with torch.no_grad():
        x = linear(de_gan.draw_noise(nets, 1000, seeded()))
    error = (batch_norm.running_mean - x.mean(0)) / x.std(0) * math.sqrt(80)  # 10 batches of 8
    assert error.square().mean() < 4  # N(0, 1) each, in the 8 directions of z'
    assert 0.5 < batch_norm.running_var.mean() / x.var(0).mean() < 2


@pytest.mark.parametrize("flags, said", [
    (["--size", "48"], "--size 28, 32 or 64"), (["--size", "28"], "--width"),
    (["--batch-size", "1"], "--batch-size"), (["--batch-size", "90"], "batch size 90"),
])
def test_bad_input_is_one_line(folder, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "run", *flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_one_class_cannot_be_conditional(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(folder / "a", tmp_path / "run", "--conditional")
    assert stop.value.code == 2 and "--conditional" in capsys.readouterr().err
