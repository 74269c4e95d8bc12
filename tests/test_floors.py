"""Imports only go down: the layers of the design."""

import ast
from pathlib import Path

import mrcnn_lightning

PACKAGE = Path(mrcnn_lightning.__file__).parent
FLOORS = {
    "user_error": 0,
    "structures": 1,
    "ops": 2,
    "results": 3,
    "models": 4,
    "data": 4,
    "evaluation": 4,
    "weights": 5,
    "checkpoint": 6,
    "inference": 7,
    "training": 8,
    "app": 9,
    "__main__": 10,
}
FORBIDDEN = {
    "structures": {"lightning", "hydra", "omegaconf"},
    "ops": {"lightning", "hydra", "omegaconf"},
    "results": {"lightning", "hydra", "omegaconf"},
    "models": {"lightning", "hydra", "omegaconf"},
    "weights": {"lightning", "hydra", "omegaconf"},
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
            assert other == own or FLOORS[other] < FLOORS[own], (
                f"{file} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"
            )


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Circles within a floor; what only types need counts too."""
    modules = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }
    graph = {
        name: {
            other
            for full in imports(file)
            for other in modules
            if f"{full}.".startswith(f"{other}.")
        }
        for name, file in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_ops_have_no_modules_with_state() -> None:
    for file in (PACKAGE / "ops").glob("*.py"):
        assert "torch.nn.Module" not in imports(file)
        assert not any(name.endswith(".nn") for name in imports(file)), file


def test_only_one_file_knows_the_ap_library() -> None:
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(name.startswith("hotcoco") for name in imports(file))
    }
    assert users == {"evaluation/scoring.py"}
