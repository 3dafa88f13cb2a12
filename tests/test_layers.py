"""Who may know whom: imports point down the tiers, never up and never to a sibling.

The sources are read with `ast`, not run, so that an import inside a function counts as well.
"""

import ast
import configparser
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bids_synthseg"

# From the ground up. A room (module or folder of the package) may import rooms of lower tiers only;
# "version" stands for bids_synthseg/__init__.py.
TIERS = (
    {"version", "errors"},
    {"storage", "resources", "toml", "fields"},
    {"reading"},
    {"tsv"},
    {"anatomy", "claims", "cluster_file", "console"},
    {"nifti", "phantom"},
    {"synthesis", "models"},
    {"segmentation", "learning", "bids"},
    {"spaces", "arguments", "progress"},
    {"pipeline"},
    {"execution", "edits", "demo", "evaluation", "figure", "painting"},
    {"scorecard", "work"},
    {"trials", "plausibility", "accuracy_report", "processes", "dask_cluster"},
    {"accuracy", "levels", "submission"},
    {"cli", "workbench"},
    {"__main__"},
)
TIER_OF = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
# Importing any of these must not load torch, neither itself nor through another module.
WITHOUT_TORCH = {
    "version", "errors", "storage", "claims", "console", "toml", "fields", "reading", "tsv",
    "arguments", "anatomy", "nifti", "phantom", "bids", "resources", "progress", "execution",
    "processes", "cluster_file", "dask_cluster", "demo", "evaluation", "figure", "scorecard",
    "levels",
    "submission", "cli", "workbench", "__main__",
}  # fmt: skip


def sources(package: Path) -> dict[str, ast.Module]:
    """Dotted module name -> syntax tree, for every file of the package."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imported(module: str, statement: ast.AST, modules: set[str]) -> list[str]:
    """Full names that an import statement brings in; [] for any other statement."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if not isinstance(statement, ast.ImportFrom):
        return []
    assert statement.level == 0, f"{module}: write imports in full, not relative"
    base = statement.module or ""
    # "from a.b import c" means the module a.b.c where there is one, else a name out of a.b.
    full = [f"{base}.{alias.name}" for alias in statement.names]
    return [name if name in modules else base for name in full]


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            child = ast.Module(child.orelse, [])
        yield child
        yield from at_import(child)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "version"


def breaches(package: Path) -> list[str]:
    """One line for every import that goes up, sideways, or to nibabel outside nifti.py."""
    trees = sources(package)
    found = []
    for module, tree in trees.items():
        here = room(module)
        if here not in TIER_OF:
            found.append(f"{module}: give this room a place in TIERS")
            continue
        for statement in ast.walk(tree):
            for name in imported(module, statement, set(trees)):
                line = f"{module}:{getattr(statement, 'lineno', 0)} imports {name}"
                if name.split(".")[0] == "nibabel" and here != "nifti":
                    found.append(f"{line}, which is for nifti.py alone")
                if name.split(".")[0] != package.name or room(name) == here:
                    continue
                if TIER_OF.get(room(name), len(TIERS)) >= TIER_OF[here]:
                    found.append(f"{line}, which is not below it")
    return found


def torch_loaders(package: Path) -> set[str]:
    """Modules whose import loads torch, by themselves or through modules they import."""
    trees = sources(package)
    needs: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = {n for s in at_import(tree) for n in imported(module, s, set(trees))}
        # Importing a.b.c runs a and a.b first.
        needs[module] = names | {
            ".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 1)
        }
    loaders = {module for module, names in needs.items() if "torch" in names}
    while True:
        more = {module for module, names in needs.items() if names & loaders} - loaders
        if not more:
            return loaders
        loaders |= more


def test_imports_point_down():
    assert breaches(PACKAGE) == []


def test_torch_is_loaded_by_commands_only():
    loaders = torch_loaders(PACKAGE)
    assert sorted(module for module in loaders if room(module) in WITHOUT_TORCH) == []
    assert loaders, "no module imports torch: this test has lost its subject"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, and a function that appends a line to one of its modules."""
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "data"))

    def append(module: str, line: str) -> Path:
        with (package / module).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")
        return package

    return append


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("anatomy/labels.py", "from bids_synthseg.bids import query", "not below it"),
        ("anatomy/labels.py", "import bids_synthseg.execution", "not below it"),
        ("bids/__init__.py", "from bids_synthseg import segmentation", "not below it"),
        ("segmentation/__init__.py", "from bids_synthseg.learning import x", "not below it"),
        ("models/__init__.py", "def f():\n    import bids_synthseg.pipeline", "not below it"),
        ("errors.py", "from bids_synthseg.anatomy.labels import LabelTable", "not below it"),
        ("bids/__init__.py", "import nibabel as nib", "nifti.py alone"),
        ("anatomy/labels.py", "from nibabel.affines import voxel_sizes", "nifti.py alone"),
        ("attic.py", "import os", "place in TIERS"),
    ],
)
def test_a_breach_is_found(copy, module, line, complaint):
    found = breaches(copy(module, line))
    assert len(found) == 1 and complaint in found[0] and module.split("/")[0][:5] in found[0]


@pytest.mark.parametrize(
    ("module", "line", "loads"),
    [
        ("cli.py", "import torch", True),
        ("cli.py", "if 1 > 0:\n    from torch import nn", True),
        ("cli.py", "from bids_synthseg import drawn", True),  # drawn.py imports torch, see below
        ("cli.py", "def f():\n    import torch", False),
        ("cli.py", "class A:\n    def f(self):\n        import torch", False),
        ("cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_torch_on_import_is_found(copy, module, line, loads):
    copy("drawn.py", "import torch.nn")
    assert ("bids_synthseg.cli" in torch_loaders(copy(module, line))) is loads


def test_every_package_folder_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")
    }
    assert listed == folders | {"bids_synthseg.weights"}
    assert (ROOT / "weights" / "__init__.py").is_file()
