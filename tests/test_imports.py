"""The package's shape: what an import costs, which way imports point, which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import untaxed

PACKAGE = Path(untaxed.__file__).parent

# Imports point upwards in this list only, towards the mathematics.
LAYERS = [
    "errors",
    "values",
    "strict_yaml",
    "validation",
    "checks",
    "sites",
    "method",
    "together",
    "counter",
    "largest",
    "freed",
    "sparsify",
    "consensus",
    "weights",
    "divergence",
    "checkpoints",
    "rows",
    "templates",
    "merging",
    "optim",
    "objectives",
    "decoding",
    "measuring",
    "projections",
    "callbacks",
    "frontier",
    "methods",
    "training",
    "pocket",
    "studies",
    "comparison",
    "reporting",
    "cli",
    "__main__",
]
HEAVY = ("transformers", "trl", "datasets", "accelerate", "peft", "matplotlib", "jinja2", "sklearn", "pandas")


def imported_layers(path: Path) -> set[str]:
    """The top-level rooms of `untaxed` that a file imports, at any depth and also inside functions."""
    package = ("untaxed", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                full = (*module, alias.name)
                if full[0] == "untaxed" and len(full) > 1:
                    found.add(full[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("untaxed.")}
    return found & set(LAYERS)


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_towards_the_mathematics(path: Path) -> None:
    assert layer(path) in LAYERS, f"{path.name} stands in no layer; add it to LAYERS where it belongs"
    below = [name for name in imported_layers(path) if LAYERS.index(name) > LAYERS.index(layer(path))]
    assert not below, f"{path} imports {below}, which stand below it"


def test_every_layer_exists() -> None:
    assert {layer(path) for path in sources()} == set(LAYERS)


@pytest.mark.parametrize(
    "statement", ["import untaxed", "import untaxed.measuring", "import untaxed.pocket", "import untaxed.cli"]
)
def test_import_loads_torch_and_nothing_heavier(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_load_and_unknown_ones_do_not() -> None:
    for name in untaxed.__all__:
        assert getattr(untaxed, name) is not None
    assert set(untaxed.__all__) <= set(dir(untaxed))
    with pytest.raises(AttributeError, match="no attribute 'Elastic'"):
        untaxed.Elastic  # noqa: B018
