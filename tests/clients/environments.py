"""The separate environments of clients that conflict with the tests' own, each made from its lock."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.support import servers

HERE = Path(__file__).parent


def npm(name: str = "npm") -> Path:
    """Return a folder with the packages of the package-lock.json in npm or agents."""
    lock = HERE / name / "package-lock.json"
    folder = servers.CACHE / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in ("package.json", lock.name):
            shutil.copy(HERE / name / file, folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True)
        (folder / "complete").touch()
    return folder


def aider() -> Path:
    """Return aider's command."""
    return servers.environment("aider").parent / "aider"
