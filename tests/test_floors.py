"""Imports only go down: the layers of the design."""

import ast
from pathlib import Path

import mrcnn_lightning

PACKAGE = Path(mrcnn_lightning.__file__).parent
FLOORS = {
    "structures": 0,
    "ops": 1,
    "models": 2,
    "data": 2,
    "evaluation": 2,
    "visualization": 2,
    "training": 3,
    "inference": 3,
    "summary": 3,
    "ranks": 2,
    "log": 3,
    "values": 3,
    "errors": 4,
    "run_folder": 4,
    "phases": 4,
    "run": 4,
    "stopping": 4,
    "cli": 4,
    "__main__": 5,
}
FORBIDDEN = {
    "structures": {"lightning", "hydra", "omegaconf"},
    "ops": {"lightning", "hydra", "omegaconf"},
    "models": {"lightning", "hydra", "omegaconf"},
    "data": {"hydra", "omegaconf"},
    "evaluation": {"lightning", "hydra", "omegaconf"},
    "training": {"hydra", "omegaconf"},
}


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str:
    """The part of the package that a module's full name belongs to."""
    return name.split(".")[1]


def test_imports_go_down() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file == PACKAGE / "__init__.py":
            continue
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imports(file):
            if not name.startswith("mrcnn_lightning"):
                assert name.split(".")[0] not in FORBIDDEN.get(own, set()), f"{file} imports {name}"
                continue
            if name == "mrcnn_lightning.__version__":
                continue
            other = part(name)
            assert other == own or FLOORS[other] < FLOORS[own] or FLOORS[own] == 4, (
                f"{file} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"
            )


def test_ops_have_no_modules_with_state() -> None:
    for file in (PACKAGE / "ops").glob("*.py"):
        assert "torch.nn.Module" not in imports(file)
        assert not any(name.endswith(".nn") for name in imports(file)), file


def test_only_one_file_knows_the_ap_library() -> None:
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(name.startswith("faster_coco_eval") for name in imports(file))
    }
    assert users == {"evaluation/coco.py"}
