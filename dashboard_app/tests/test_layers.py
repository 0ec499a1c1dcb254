"""The package's folders import each other in one direction only: sources <- health <- web."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src/bedplate_dashboard"
NAME = "bedplate_dashboard"
BELOW: dict[str, set[str]] = {
    "settings": set(),
    "sources": {"settings"},
    "health": {"settings", "sources"},
    "web": {"settings", "sources", "health"},
    "gunicorn_conf": {"settings", "web"},
    "wsgi": {"settings", "health", "web"},
}


def list_imports(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a file imports, with dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            if node.module == NAME:
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith(f"{NAME}."):
                module = (node.module or "").removeprefix(f"{NAME}.")
                folder = PACKAGE / module.replace(".", "/")
                yield from (
                    [f"{module}.{alias.name}" for alias in node.names] if folder.is_dir() else [module]
                )


def module_of(path: Path) -> str:
    """Return the module of a file, without the package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_no_folder_imports_one_above_it() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert {module_of(path).split(".")[0] for path in files} == BELOW.keys()
    for path in files:
        own = module_of(path).split(".")[0]
        imported = {module.split(".")[0] for module in list_imports(path)}
        assert imported <= {own, *BELOW[own]}, path.name


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_of(path): set(list_imports(path)) for path in PACKAGE.rglob("*.py")}
    while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert graph == {}
