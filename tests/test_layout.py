"""The architecture, enforced: which module may import which, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import captioner

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("captioner", "service")
    for path in (ROOT / folder).rglob("*.py")
)

# A module of captioner imports only from those before it; a folder's modules count as the folder.
ORDER = [
    "errors",
    "options",
    "caption",
    "coco",
    "content",
    "calibration",
    "hedge",
    "image",
    "tokenizer",
    "linear",
    "kernels",
    "convolution",
    "memory",
    "quiet",
    "vision",
    "decoder",
    "regions",
    "question",
    "model",
    "logits",
    "search",
    "generation",
    "recording",
    "attention",
    "checkpoint",
    "hub",
    "convert",
    "runners",
    "compose",
    "captioner",
    "load",
    "figure",
    "heatmap",
    "report",
    "commandline",
    "model_commands",
    "compare",
    "batch",
    "evaluation",
    "training",
    "serve",
    "__init__",
    "cli",
    "__main__",
]
NOT_IN_THE_LIBRARY = {"fastapi", "pydantic", "pydantic_settings", "service", "starlette"}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
RUNS_DATA = {"eval", "exec", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load"}


def layer(file: str) -> str:
    """``captioner/training/data.py`` and ``captioner/training/__init__.py`` are both "training"."""
    return PurePosixPath(file).parts[1].removesuffix(".py")


def dotted(node: ast.AST) -> str:
    """``torch.load`` for the expression that says so; what is no such name has a ``?`` in it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports, wherever in it: ``package.module`` or ``package.module.name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def breaches(file: str, source: str) -> list[str]:
    """What in the source of ``captioner/x.py`` or ``service/x.py`` is against the rules."""
    tree = ast.parse(source)
    found = []
    module_is_named = file.startswith("service/") and "captioner" in imported(tree)  # not a variable's name
    for name in imported(tree):
        package, _, rest = name.partition(".")
        if package == "":
            found.append(f"{name}: imports are absolute")
        elif package in PICKLES:
            found.append(f"{name}: data is never pickled")
        elif file.startswith("captioner/") and package in NOT_IN_THE_LIBRARY:
            found.append(f"{name}: the library knows nothing of the service")
        elif package == "captioner" and not may_import(file, rest):
            found.append(f"{name}: is not to be imported here")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in RUNS_DATA and not reads_tensors(file, node):
            found.append(f"line {node.lineno}: {dotted(node.func)} can run what it reads")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "trust_remote_code"
            and ast.unparse(node.value) != "False"
        ):
            found.append(f"line {node.lineno}: code from a hub is never trusted")
        if module_is_named and isinstance(node, ast.Attribute) and dotted(node.value) == "captioner":
            found += [] if node.attr in captioner.__all__ else [f"captioner.{node.attr} is not public"]
    return found


def reads_tensors(file: str, call: ast.Call) -> bool:
    """Whether a call is the one way in which a pickle may be opened, in the one module that may."""
    safe = any(each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in call.keywords)
    return file == "captioner/hub/pickles.py" and dotted(call.func) == "torch.load" and safe


def may_import(file: str, name: str) -> bool:
    """Whether a file may import ``captioner.<name>``."""
    public = name in captioner.__all__ or name == ""
    if file.startswith("service/"):
        return public
    own, target = layer(file), name.split(".")[0]
    if own == "cli" and public:
        return True
    return own in ORDER and (target == own or target in ORDER[: ORDER.index(own)])


def test_every_module_has_its_place():
    layers = {layer(file) for file in MODULES if file.startswith("captioner/")}
    assert layers <= set(ORDER), "give a new module its place in ORDER"


@pytest.mark.parametrize("file", MODULES)
def test_module_keeps_the_rules(file: str):
    assert breaches(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("captioner/image.py", "from captioner.model import CaptionModel"),
        ("captioner/image.py", "def f():\n    import captioner.cli"),
        ("captioner/image.py", "from captioner import load"),
        ("captioner/image.py", "from .errors import ImageError"),
        ("captioner/evaluation/metrics.py", "from captioner.training.data import Batch"),
        ("captioner/cli.py", "from service.app import create_app"),
        ("captioner/cli.py", "import fastapi"),
        ("captioner/cli.py", "import pydantic.dataclasses"),
        ("captioner/load.py", "import pickle"),
        ("captioner/load.py", "from joblib import load"),
        ("captioner/load.py", "weights = torch.load(path, weights_only=True)"),
        ("captioner/hub/pickles.py", "weights = torch.load(path)"),
        ("captioner/hub/pickles.py", "weights = torch.load(path, weights_only=False)"),
        ("captioner/hub/fetch.py", "weights = torch.load(path, weights_only=True)"),
        ("captioner/load.py", "eval('1')"),
        ("captioner/convert.py", "AutoModel.from_pretrained(name, trust_remote_code=True)"),
        ("captioner/convert.py", "AutoModel.from_pretrained(name, trust_remote_code=trusted)"),
        ("service/app.py", "from captioner.model import CaptionModel"),
        ("service/app.py", "import captioner.model"),
        ("service/app.py", "import captioner\ncaptioner.model.CaptionModel"),
        ("service/app.py", "from captioner import decode_image_somehow"),
    ],
)
def test_breaches_are_found(file: str, source: str):
    assert len(breaches(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("captioner/image.py", "from captioner.errors import ImageError\nimport torch, json"),
        ("captioner/training/scst.py", "from captioner.training.data import Batch"),
        ("captioner/cli.py", "from captioner import load\nfrom captioner.training.train import fit"),
        ("captioner/model.py", "model.eval()\ntorch.compile(model)"),
        ("captioner/hub/pickles.py", "weights = torch.load(path, weights_only=True, mmap=True)"),
        ("captioner/convert.py", "AutoModel.from_pretrained(name, trust_remote_code=False)"),
        (
            "service/app.py",
            "import captioner\nfrom captioner import Captioner\nimport fastapi\ncaptioner.load",
        ),
        ("service/app.py", "from service.engine import Engine"),
        ("service/app.py", "from captioner import load\ncaptioner = load()\ncaptioner.default_options"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str):
    assert breaches(file, source) == []


def test_the_public_names_are_sorted_and_exist():
    assert captioner.__all__ == sorted(captioner.__all__)
    assert [name for name in captioner.__all__ if not hasattr(captioner, name)] == []
