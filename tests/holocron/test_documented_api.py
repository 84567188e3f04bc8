"""Every symbol that the reference documentation lists outside `holocron.models` is here, with the same signature.

The table in `tests/data/seed_signatures.json` holds, for each symbol, the facts of that documentation: where it is
imported from, its kind, its signature as printed, its bases, the exceptions it names, and the names of its parameters
where no signature is printed.
"""

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest

SYMBOLS = json.loads((Path(__file__).parents[1] / "data" / "seed_signatures.json").read_text())["symbols"]

FUNCTIONAL = [
    "hard_mish",
    "nl_relu",
    "focal_loss",
    "multilabel_cross_entropy",
    "complement_cross_entropy",
    "mutual_channel_loss",
    "dice_loss",
    "poly_loss",
    "norm_conv2d",
    "add2d",
    "dropblock2d",
    "concat_downsample2d",
    "z_pool",
]


def resolve(name):
    """Import the longest prefix that is a module, then follow the attributes."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def documented_parameters(signature):
    """(name, kind, default) of each parameter of a signature as printed; the default is an AST node, or None."""
    args = ast.parse(f"def {signature.split(' -> ')[0]}: ...").body[0].args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    found = [(arg.arg, "POSITIONAL_OR_KEYWORD", default) for arg, default in zip(positional, defaults, strict=True)]
    if args.vararg:
        found.append((args.vararg.arg, "VAR_POSITIONAL", None))
    found += [(a.arg, "KEYWORD_ONLY", d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append((args.kwarg.arg, "VAR_KEYWORD", None))
    return found


def actual_parameters(symbol, kind):
    parameters = list(inspect.signature(symbol).parameters.values())
    return parameters[1:] if kind == "method" else parameters


@pytest.mark.parametrize("entry", SYMBOLS, ids=[entry["name"] for entry in SYMBOLS])
def test_symbol_is_as_documented(entry):
    symbol = resolve(entry["name"])
    if entry["kind"] == "member":
        name, value = entry["signature"].split(" = ")
        assert symbol.name == name
        assert symbol.value == ast.literal_eval(value)
        return

    if entry["kind"] == "class":
        assert inspect.isclass(symbol)
        assert set(entry["bases"]) <= {base.__name__ for base in symbol.__mro__}
    else:
        assert callable(symbol)

    if entry["signature"] is None:
        if entry["parameters"]:
            assert [p.name for p in actual_parameters(symbol, "class")][: len(entry["parameters"])] == entry[
                "parameters"
            ]
        return
    documented = documented_parameters(entry["signature"])
    actual = actual_parameters(symbol, entry["kind"])
    assert [(p.name, p.kind.name) for p in actual] == [(name, kind) for name, kind, _ in documented]
    for parameter, (name, _, default) in zip(actual, documented, strict=True):
        if default is None:
            assert parameter.default is inspect.Parameter.empty, name
        elif isinstance(default, ast.Name):  # a member of an enumeration
            assert parameter.default.name == default.id, name
        else:
            expected = ast.literal_eval(default)
            assert parameter.default == expected, name
            assert isinstance(parameter.default, bool) == isinstance(expected, bool), name


@pytest.mark.parametrize("entry", SYMBOLS, ids=[entry["name"] for entry in SYMBOLS])
def test_symbol_is_explained(entry):
    if entry["kind"] != "member":
        symbol = resolve(entry["name"])
        documentation = symbol.__doc__ or ""
        assert documentation.strip()
        for exception in entry["raises"]:
            assert exception in documentation


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_form_exists(name):
    assert inspect.isfunction(resolve(f"holocron.nn.functional.{name}"))


@pytest.mark.parametrize("name", ["box_ciou", "iou_penalty", "aspect_ratio_consistency"])
def test_box_helper_exists(name):
    assert list(inspect.signature(resolve(f"holocron.ops.boxes.{name}")).parameters) == ["boxes1", "boxes2"]


def test_init_module_signature():
    parameters = inspect.signature(resolve("holocron.nn.init.init_module")).parameters
    assert [(p.name, p.default) for p in parameters.values()] == [
        ("m", inspect.Parameter.empty),
        ("nonlinearity", None),
    ]
