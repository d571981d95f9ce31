"""Shape comments, `x = f(z)  # (B, 2Z, S / 4, S / 4)`, against the shapes that tiny runs meet.

Each script is compiled with a check around the value of every line that ends in a shape. A letter
is one number within a call, of those allowed below. A shape that no run reaches fails too.
"""

import ast
import itertools
import re
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import data

SHAPE = re.compile(r"(?:^|:) ?\(((?:[\w ,*/^+\[\]-]|\([\w /^+*-]*\))*)\)( each)?")
COMMON = {"B": [9], "C": [3], "H": [11], "S": [8], "T": [4], "Z": [7]}
OWN = {
    "gran": {"L": [2], "kernels": [(6, 5)]},
    "draw_gan": {"B": [1, 9], "N": [2, 5], "M": [5], "n": [9], "zoom": [3]},
    "dcrw": {"B": [9, 10, 36, 40], "N": [5, 6], "features": [256]},
    "de_gan": {"S": [32], "L": [5], "K": [8], "s": [4]},
    "vae": {"widths": [(3, 6, 5), (5, 6, 3)], "side": [2]},
    "dcgan": {"B": range(1, 500), "S": [32], "Z": [100], "K": [8], "L": [3], "k": [2], "s": [16],
              "n": [96, 480], "trials": [3]},
}


def checked(name, text, letters):
    """-> the script as a module whose shapes are checked, and the lines with shapes not yet met."""
    module, tree, shapes = types.ModuleType(name), ast.parse(text), {}
    for line, row in enumerate(text.splitlines(), 1):
        if comment := re.search(r"\S +# (.*(?<!\w)\((?:[^()]|\([^()]*\))*,.*)", row):
            shape, place = SHAPE.search(comment[1]), f"{name}.py:{line}"
            assert shape, f"{place}: no shape can be read in: {comment[1]}"
            sides = re.sub(r"(?<=\w) (?=\w)|(?<=\d)(?=[A-Za-z])", "*", shape[1]).replace("^", "**")
            shapes[line] = compile(f"[{sides}]", place, "eval"), shape[2]
    missing = set(shapes)

    def check_(line, value, bound):
        code, each = shapes[line]
        for shape in [list(v.shape) for v in (value if each else [value]) if v is not None]:
            new = [word for word in code.co_names if word not in bound]
            choices = itertools.product(*(letters.get(word, []) for word in new))
            fits = [known for known in (bound | dict(zip(new, chosen)) for chosen in choices)
                    if eval(code, dict(known)) == shape]
            assert fits, f"{code.co_filename}: the shape is {shape}, with {bound}"
            bound.update(fits[0])
            missing.discard(line)
        return value

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body.insert(0, ast.parse("letters_ = {}").body[0])  # those of one call
        field = "iter" if isinstance(node, ast.For) else "value"
        line = getattr(getattr(node, field, None), "end_lineno", None)
        if isinstance(node, (ast.Assign, ast.Return, ast.For)) and line in shapes:
            call = ast.parse(f"check_({line}, 0, letters_)", mode="eval").body
            call.args[1] = getattr(node, field)
            setattr(node, field, call)
    module.check_ = check_
    exec(compile(ast.fix_missing_locations(tree), f"{name}.py", "exec"), vars(module))  # noqa: S102
    return module, missing


@pytest.mark.parametrize("name", OWN)
def test_shape_comments(name, tmp_path):
    text = (Path(__file__).resolve().parent.parent / f"{name}.py").read_text(encoding="utf-8")
    m, missing = checked(name, text, COMMON | OWN[name])
    args = Namespace(channels=3, size=32, z_dim=7, classes=5 * (name == "de_gan"), width=2, seed=0,
                     noise="", objective="gan", conditional=0, batch_size=9, graph=0, compile=0)
    x, sizes = torch.rand(9, 3, 8, 8), (3, 8, 7)
    (tmp_path / "samples").mkdir()
    if name == "gran":
        m.Discriminator([6, 5], 3, 8)(x)
        m.draw_pictures({"G": m.Generator([6, 5], *sizes, 4)}, args, tmp_path, 0)
    elif name == "draw_gan":
        m.Discriminator(3, 8)(x)
        m.draw_pictures({"G": m.Draw(*sizes, 11, 4)}, args, tmp_path, 0, x)
    elif name == "dcrw":
        for net in (m.DCRW(*sizes, 4, read, 5, 11) for read in (6, None)):
            m.draw_pictures({"DCRW": net}, args, (255 * x).byte(), tmp_path, 0)
    elif name == "de_gan":
        nets = m.build(args)
        nets["D"](nets["G"](m.draw_noise(nets, 9)), torch.arange(9) % 5)
    elif name == "vae":
        m.Decoder([6, 5], *sizes)(m.Encoder([6, 5], *sizes)(x)[0])
        m.mmd_to_normal(torch.rand(9, 7), 1.0)
    elif name == "dcgan":
        faces = torch.randint(256, (96, 3, 32, 32), dtype=torch.uint8), torch.arange(96)
        for args.arch in ("dense", "conv"):
            nets = m.build(args)
            opts = {k: torch.optim.SGD(net.parameters(), 0.0) for k, net in nets.items()}
            next(m.run_updates(args, *nets.values(), None, opts, *faces, 0, 2, torch.enable_grad()))
        p, kinds = torch.eye(96).double().repeat(5, 1), torch.arange(480) % 96
        m.reader = lambda _: lambda x: (p[: len(x)], data.face_attributes(kinds[: len(x)]))
        trained = Namespace(nets=nets, args=args, device="cpu"), tmp_path, faces, faces
        m.arithmetic(*trained, drawn=480, trials=3)
        m.forget(*trained, drawn=480)
        m.filters(*trained)
    assert not missing, f"{name}.py: no run meets the shapes in lines {missing}"


@pytest.mark.parametrize("comment", ["(B, 3C)", "(B, 2Q)", "(C, 2C)", "as (B, 2C)", "(B, 2 C's)"])
def test_a_wrong_comment_fails(comment):
    with pytest.raises(AssertionError, match="toy.py:2"):
        checked("toy", f"def f(x):\n    return x  # {comment}\n", COMMON)[0].f(torch.rand(9, 6))
