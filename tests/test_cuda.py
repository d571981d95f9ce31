"""The scripts on CUDA: on a card where there is one; elsewhere on tensors that say they are on one, and obey torch's rules for it.

What is seen without a card is what no run on a CPU shows: two devices that meet in an operation, a CPU's generator that draws for
CUDA, numpy that reads what is not on the CPU, and what CUDA's autocast, which has rules of its own, leaves in bfloat16. The values
are computed on the CPU, so a run must end with the same weights as one there. What a card's kernels compute is not seen.
"""

import contextlib
import functools
import importlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

import data
import dcgan
import de_gan
import metrics


class PretendCuda(TorchFunctionMode):
    """Each operation that touches CUDA is done twice: on fake tensors, for the rules, and on CPU tensors, for the values."""

    def __init__(self):
        super().__init__()
        self.rules, self.values = FakeTensorMode(allow_non_fake_inputs=True), WeakTensorKeyDictionary()  # {fake: the CPU's}
        self.types = set()  # of all that was computed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if not any(isinstance(x, FakeTensor) or is_cuda(x) for x in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        args_here, kwargs_here = tree_map(self.here, (args, kwargs))
        if name in ("tolist", "item", "__bool__", "__int__", "__index__", "__float__", "__format__"):
            return func(*args_here, **kwargs_here)
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert a tensor on {args[0].device} to numpy")  # as torch says
        if name == "__iter__":
            return iter(self.__torch_function__(torch.Tensor.unbind, types, args))
        if name == "backward":  # on fake ones autograd would ask the driver for a stream
            args_here[0].backward()
            return self.give_gradients(args[0])
        if name == "grad":  # GuidedReLU, a Function, is nothing that this class hears of: its values have no history
            return tuple(self.pair(self.there(x), torch.zeros_like(x)) for x in tree_leaves(args_here[1]))
        try:
            with self.rules:
                out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = None
        out_here = func(*args_here, **kwargs_here)
        if out is None:
            out = tree_map(self.there, out_here)
        if kwargs.get("generator") is not None:
            assert out.device.type == kwargs["generator"].device.type, f"{name} on {out.device} by a CPU's generator"
        return tree_map(self.pair, out, out_here)

    def here(self, x):
        """What stands on the CPU for x."""
        return self.values[x] if isinstance(x, FakeTensor) else "cpu" if is_cuda(x) else x

    def there(self, x):
        """A fake tensor on CUDA for the CPU's x."""
        if not isinstance(x, torch.Tensor):
            return x
        with self.rules:
            return torch.empty_like(x, device="cuda")

    def pair(self, fake, value):
        if not isinstance(fake, FakeTensor):
            return fake
        if fake.device.type == "cpu":
            return value
        assert fake.shape == value.shape
        self.types.add(fake.dtype)
        self.values[fake] = value
        return fake

    def give_gradients(self, loss):
        """Pairs the gradient of each parameter below the loss, which is itself no bfloat16."""
        assert (loss.dtype, loss.device.type) == (torch.float32, "cuda")
        nodes, seen = [loss.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [below for below, _ in node.next_functions]
                if hasattr(node, "variable"):
                    gradient = self.values[node.variable].grad
                    node.variable.grad = self.pair(self.there(gradient), gradient)


def is_cuda(x):
    return isinstance(x, (str, torch.device)) and str(x).startswith("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """The context to run a script with --device cuda in."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **options: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
    mode, save, apply = PretendCuda(), torch.save, torch.nn.Module._apply
    moved = lambda net: any(isinstance(weight, FakeTensor) for weight in net.parameters())  # and once there, torch cannot move it again
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda net, *args, **options: net if moved(net) else apply(net, *args, **options))
    monkeypatch.setattr(torch, "save", lambda content, file: save(tree_map(mode.here, content), file))
    return mode


FLAGS = ["gran --steps 2", "gran --steps 2 --noise per-step", "draw_gan --steps 2", "draw_gan --steps 2 --objective draw-gan",
         "dcrw --steps 2", "dcrw --steps 2 --read none", "de_gan --vae-iters 1 --conditional", "de_gan --noise plain",
         "dcgan --conditional", "dcgan --arch dense", "dcgan --objective wgan", "vae --arch conv", "vae --objective dvae",
         "vae --objective info --conditional", "vae --objective aae --conditional"]


@pytest.fixture
def noise(monkeypatch):
    """In place of every data set sixty images of noise, in two classes; what takes thousands of images takes fewer."""
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    found = torch.from_numpy(images), torch.arange(60) % 2
    monkeypatch.setattr(data, "load", lambda *args, **options: found)
    monkeypatch.setattr(metrics, "train_classifier", functools.partial(metrics.train_classifier, least=2))
    for name in ("legible", "draw_plane"):
        monkeypatch.setattr(de_gan, name, functools.partial(getattr(de_gan, name), n=100))


def train(flags, out, *more):
    """Three updates, and one more as it is taken up again -> the run's folder."""
    script, *flags = flags.split()
    main, common = importlib.import_module(script).main, ["--data-dir", str(out.parent), *more]
    main([*flags, "--out", str(out), "--iters", "3", "--batch-size", "20", *common])
    main(["--resume", str(out), "--iters", "4", *common])
    return str(out)


@pytest.mark.parametrize("flags", FLAGS)
def test_a_run_on_cuda_ends_as_on_the_cpu_draws_and_judges(flags, cuda, noise, tmp_path):
    here = train(flags, tmp_path / "here", "--no-amp", "--device", "cpu")
    with cuda:
        there = train(flags, tmp_path / "there", "--no-amp", "--device", "cuda")
        run = metrics.load_run(there, "cuda")
        labels = torch.arange(30) % 2 if run.conditional else None
        drawn = run.sample(30, labels=labels)
        assert run.step == 4 and (drawn.device.type, drawn.dtype, drawn.shape) == ("cuda", torch.float32, (30, 1, 28, 28))
        assert run.logits is None or run.logits(drawn, labels).shape == (30,)
    if isinstance(cuda, PretendCuda):
        weights = [metrics.load_checkpoint(folder)["nets"] for folder in (here, there)]
        assert all(map(torch.equal, *map(tree_leaves, weights)))
        assert torch.bfloat16 not in cuda.types


@pytest.mark.parametrize("flags", FLAGS)
def test_under_autocast_on_cuda_losses_and_samples_stay_float32(flags, cuda, noise, tmp_path):
    with cuda:
        run = metrics.load_run(train(flags, tmp_path / "run", "--amp", "--device", "cuda"), "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            drawn = run.sample(30, labels=torch.arange(30) % 2 if run.conditional else None)
        assert drawn.dtype == torch.float32
    if isinstance(cuda, PretendCuda):
        assert torch.bfloat16 in cuda.types


@pytest.mark.parametrize("look", ["walk", "arithmetic", "filters", "features", "nearest"])
def test_explorations_on_cuda(look, cuda, noise, tmp_path):
    run = train("dcgan --width 8" + " --conditional" * (look == "nearest"), tmp_path / "run", "--device", "cpu")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(9, 100)))
    more = ["--latents", str(tmp_path / "z.npy")] * (look == "arithmetic")
    with cuda:
        dcgan.main(["--resume", run, "--explore", look, "--device", "cuda", *more])
    assert list((tmp_path / "run/explore").glob(f"{look}.*"))


def test_measures_on_cuda(cuda, noise, tmp_path):
    runs = [train(flags, tmp_path / name, "--device", "cpu") for name, flags in (("a", "gran --steps 2"), ("b", "dcgan"), ("c", "vae"))]
    for name in ("generated", "real"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).random((40, 1, 8, 8), dtype=np.float32))
    common = ["--dataset", "digits", "--n", "60", "--data-dir", str(tmp_path), "--device", "cuda"]
    with cuda:
        metrics.main(["eval", *runs, "--k", "3", *common])
        metrics.main(["gam", *runs, *common])
        metrics.main(["dim", "--dataset", "digits", "--k", "5", "--device", "cuda", "--out", str(tmp_path / "dim.png")])
        metrics.main(["folders", *(str(tmp_path / f"{name}.npy") for name in ("generated", "real")), "--device", "cuda"])
    assert (tmp_path / "dim.png").exists()
