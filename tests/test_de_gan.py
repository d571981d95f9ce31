"""DE-GAN against its equations, Tables II to IV, and a DCGAN update written by hand."""

import argparse
import contextlib
import copy
import csv
import itertools
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_scripts import same

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


def shapes(net, *inputs):
    """Output shapes (without the batch) of the layers with weights, in the order they run.

    A convolution's also has its side: (maps, side, side, kernel).
    """
    seen = []

    def look(layer, x, y):
        seen.append((*y.shape[1:], *getattr(layer, "kernel_size", ())[:1]))

    for layer in net.modules():
        if isinstance(layer, de_gan.WEIGHTED):
            layer.register_forward_hook(look)
    net(*inputs)
    return seen


@pytest.mark.parametrize("L", [0, 10])
def test_table_2(L):
    """MNIST: kernels and sides as printed; 11 = 1 + 10, 74 = 64 + 10, 6272 = 128 x 7 x 7."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(classes=L))
        x, z, y = torch.zeros(5, 1, 28, 28), torch.zeros(5, 128), torch.zeros(5, dtype=torch.long)
        decoder = shapes(nets["vae"].decoder, z)
        assert decoder == [(128, 3, 3, 3), (64, 7, 7, 5), (32, 14, 14, 5), (1, 28, 28, 5)]
        encoder = shapes(nets["vae"].encoder, x)
        assert encoder == [(32, 14, 14, 5), (64, 7, 7, 5), (128, 3, 3, 5), (256,)]
        assert shapes(nets["G"], z, y) == [(1024,), (6272,), (128, 14, 14, 5), (1, 28, 28, 5)]
        assert shapes(nets["D"], x, y) == [(11, 14, 14, 5), (74, 7, 7, 5), (1024,), (1,)]


@pytest.mark.parametrize("size, K", [(64, [8, 4, 2, 1]), (32, [4, 2, 1])])
@pytest.mark.parametrize("width, k", [(None, 32), (64, 64)])
def test_tables_3_and_4(size, K, width, k):
    """CelebA and CIFAR-10, as chained in the docstring; by default half of the width."""
    with torch.device("meta"):
        nets = de_gan.build(namespace(channels=3, size=size, width=width))
        x, z = torch.zeros(5, 3, size, size), torch.zeros(5, 128)
        last = [(16, 32, 32, 5)] if size == 64 else []
        decoder = shapes(nets["vae"].decoder, z)
        first = [(128, 4, 4, 4), (64, 8, 8, 5), (32, 16, 16, 5)]
        assert decoder == [*first, *last, (3, size, size, 5)]
        maps = [(n, size // s, size // s, 5) for n, s in ((32, 2), (64, 4), (128, 8))]
        assert shapes(nets["vae"].encoder, x) == [*maps, (256,)]
        first, *maps = [(n * k, 4 << i, 4 << i, 5) for i, n in enumerate(K)]  # from 4 x 4 up
        dense = [(1024,), (16 * K[0] * k,)]
        assert shapes(nets["G"], z) == [*dense, *maps, (3, size, size, 5)]
        assert shapes(nets["D"], x) == [*maps[::-1], first, (1,)]


def test_d_reads_the_range_of_a_tanh_where_the_paper_has_one():
    """Tables III and IV: a D of 2x - 1; Table II: of x."""
    for size, channels in ((32, 3), (28, 1)):
        D, x = built(size=size, channels=channels)["D"].eval(), torch.rand(4, channels, size, size)
        _, h = D(x, with_hidden=True)
        torch.testing.assert_close(h, D.downs(2 * x - 1 if size == 32 else x))


def test_nets_of_a_run():
    """The VAE only where it is used, and the average of G, which starts as G, only with --ema."""
    assert set(de_gan.build(namespace(noise="plain"))) == {"G", "D"}
    nets = de_gan.build(namespace(ema=0.9))
    assert set(nets) == {"G", "D", "vae", "ema"} and nets["ema"] is not nets["G"]
    pairs = zip(nets["ema"].parameters(), nets["G"].parameters(), strict=True)
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)


def norm(a, weight, bias):
    return F.batch_norm(a, None, None, weight, bias, training=True)


def weights_of(net):
    """(weight, bias) of each layer, batch norm's too."""
    return [(layer.weight, layer.bias) for layer in net.modules() if hasattr(layer, "weight")]


def maps(y, side):
    return y[:, :, None, None].repeat(1, 1, side, side)


def G_by_hand(net, z, y):
    """Table II's G with one-hot labels y (B, L); L = 0: without."""
    w = weights_of(net)
    h = F.relu(norm(F.linear(torch.cat([z, y], 1), *w[0]), *w[1]))
    h = F.relu(norm(F.linear(torch.cat([h, y], 1), *w[2]), *w[3]))
    h = torch.cat([h.reshape(-1, 7, 7, 128).permute(0, 3, 1, 2), maps(y, 7)], 1)
    h = F.relu(norm(F.conv_transpose2d(h, *w[4], 2, 2, 1), *w[5]))
    return torch.sigmoid(F.conv_transpose2d(torch.cat([h, maps(y, 14)], 1), *w[6], 2, 2, 1))


def D_by_hand(net, x, y):
    """Table II's D -> logits, maps of the last convolution."""
    w = weights_of(net)
    h = F.leaky_relu(F.conv2d(torch.cat([x, maps(y, 28)], 1), *w[0], 2, 2), 0.2)
    h = F.conv2d(torch.cat([h, maps(y, 14)], 1), *w[1], 2, 2)
    h = F.leaky_relu(norm(h, *w[2]), 0.2)
    flat = torch.cat([h.permute(0, 2, 3, 1).flatten(1), y], 1)
    last = F.leaky_relu(norm(F.linear(flat, *w[3]), *w[4]), 0.2)
    return F.linear(torch.cat([last, y], 1), *w[5])[:, 0], h


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
    nets, plain = built(), built(noise="plain")
    z_n, eps = torch.randn(2, 500, 128, generator=seeded())
    torch.testing.assert_close(de_gan.draw_noise(plain, 500, seeded()), z_n)  # N(0, 1)
    expected = nets["vae"].swapped(z_n, eps)
    torch.testing.assert_close(de_gan.draw_noise(nets, 500, seeded()), expected)


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


@pytest.mark.parametrize("lambda_hidden, L", [(0.0, 0), (0.3, 0), (0.3, 3)])
def test_one_update_by_hand(lambda_hidden, L):
    """Plain noise without the hidden term is DCGAN's update; with it eq. 13 for G, not for D."""
    nets = built(noise="plain", classes=L)
    G, D = (copy.deepcopy(nets[name]) for name in "GD")
    labels, bce = torch.arange(16) % L if L else None, F.binary_cross_entropy_with_logits
    x, y = torch.rand(16, 1, 28, 28), F.one_hot(labels, L).float() if L else torch.zeros(16, 0)
    rng = torch.get_rng_state()
    optimisers = {name: data.optimiser(net, 2e-4, betas=(0.5, 0.999)) for name, net in nets.items()}
    losses = de_gan.update(nets, optimisers, x, labels, lambda_hidden, NO_AUTOCAST)
    assert not losses.requires_grad

    torch.set_rng_state(rng)
    fake, ones = G_by_hand(G, de_gan.draw_noise(nets, 16), y), torch.ones(16)
    real_logits, fake_logits = D_by_hand(D, x, y)[0], D_by_hand(D, fake.detach(), y)[0]
    loss_D = bce(real_logits, ones) + bce(fake_logits, 0 * ones)
    loss_D.backward()
    torch.optim.Adam(D.parameters(), 2e-4, betas=(0.5, 0.999)).step()
    grad_D = [p.grad.clone() for p in D.parameters()]
    logits, h = D_by_hand(D, fake, y)
    hidden = (D_by_hand(D, x, y)[1].detach() - h).flatten(1).norm(dim=1).mean()
    loss_G = bce(logits, ones)
    (loss_G + lambda_hidden * hidden).backward()
    for name, expected in (("G", [p.grad for p in G.parameters()]), ("D", grad_D)):
        found = [p.grad for p in nets[name].parameters()]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-6)
    expected = [loss_D, loss_G, hidden * (lambda_hidden > 0),
                real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)


def test_the_vae_learns():
    """After 40 updates on one batch the bound is below that of the best picture without a code."""
    torch.manual_seed(0)
    vae, x = de_gan.VAE(1, 28, 128), (torch.rand(8, 1, 28, 28) > 0.5).float()
    optimiser = data.optimiser(vae, 1e-3)
    losses = [de_gan.update_vae(vae, optimiser, x, NO_AUTOCAST)[0].item() for _ in range(40)]
    mean = x.mean(0)  # of every pixel
    entropy = -torch.nan_to_num(mean * mean.log() + (1 - mean) * (1 - mean).log()).sum().item()
    assert losses[0] > 500 and losses[-1] < entropy


def test_samples_of_a_class_and_of_the_average():
    nets = built(classes=4, ema=0.9)
    state = copy.deepcopy(nets["ema"].state_dict())
    six = de_gan.sample(nets, 6, generator=seeded(), batch_size=8)  # of classes 0, 1, 2, 3, 0, 1
    assert torch.equal(de_gan.sample(nets, 6, torch.arange(6) % 4, seeded(), 8), six)
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


def test_iters_are_those_of_d_and_g(folder, tmp_path, monkeypatch):
    """A smoke run ends with a grid, a column per class; nothing trains a classifier."""
    monkeypatch.setattr(metrics, "train_classifier", None)
    kept = run(folder, tmp_path / "run", "--conditional", "--iters", "2", "--log-every", "1")
    assert kept["step"] == 4 and kept["args"]["vae_iters"] == 2 and kept["args"]["classes"] == 2
    with open(tmp_path / "run/log.csv", newline="") as file:
        phases = ["nats" if row["nats"] else "loss_d" for row in csv.DictReader(file)]
    assert phases == ["nats", "nats", "loss_d", "loss_d"]
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


@pytest.mark.parametrize("size, flags, rates", [
    (28, [], (2e-4, 2e-4)), (32, [], (8e-4, 8e-4)), (64, [], (2e-4, 2e-4)),
    (32, ["--lr-d", "1e-4"], (8e-4, 1e-4)),
])
def test_rates_of_the_sizes(size, flags, rates):
    args = de_gan.parse_args(["--batch-size", "64", "--size", str(size), *flags])
    args.train_images = 300
    de_gan.complete(args)
    assert (args.lr_g, args.lr_d) == rates


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_exact_resume(folder, tmp_path, monkeypatch, stop):
    """A stop in the VAE's updates, after the last of them, and after the first of D and G."""
    flags = ["--conditional", "--vae-iters", "3", "--iters", "2", "--epochs", "1", "--decay", "1"]
    whole = run(folder, tmp_path / "whole", *flags)
    captured, count = data.captured, itertools.count(2)

    def ctrl_c(*args):
        for sums in captured(*args):
            if next(count) == stop:  # in the update before
                signal.raise_signal(signal.SIGINT)
            yield sums

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(data, "captured", ctrl_c)
        run(folder, tmp_path / "parts", *flags)
    assert stopped.value.code == 130
    saved = metrics.load_checkpoint(tmp_path / "parts")
    assert saved["step"] == stop
    assert same(saved["nets"]["vae"], whole["nets"]["vae"]) == (stop >= 3)  # then it is frozen
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
    planned, lr = 2 * (images // 8), 8e-4
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
