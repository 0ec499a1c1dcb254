"""The plan of the package: which part imports which, and what hosts get."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/bedplate_traffic"
# Each part imports only from itself and from the parts before it.
LAYERS = ("__init__", "errors", "arguments", "report", "load", "fake_engine", "commands", "cli", "__main__")


def imported_parts(source: Path) -> set[str]:
    """The parts of the package that a file imports."""
    modules = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are absolute"
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    own = [module.split(".") for module in modules if module.split(".")[0] == PACKAGE.name]
    return {path[1] if len(path) > 1 else "__init__" for path in own}


def test_no_part_imports_upward() -> None:
    sources = list(PACKAGE.rglob("*.py"))
    assert len(sources) > 30
    for source in sources:
        part = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = LAYERS[: LAYERS.index(part) + 1]
        assert imported_parts(source) <= set(allowed), source


def test_the_wheel_that_hosts_get_has_no_fake_engine() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    excluded = settings["tool"]["uv"]["build-backend"]["wheel-exclude"]
    assert excluded == ["src/bedplate_traffic/fake_engine"]
    assert all((ROOT / folder).is_dir() for folder in excluded)
