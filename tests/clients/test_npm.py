"""The npm package `openai`, by Node's own test runner."""

import json
import subprocess
from pathlib import Path

from endpoints import Endpoint, Faulty
from environments import npm

TESTS = Path(__file__).parent / "npm/openai.test.mjs"


def test_the_npm_package(endpoint: Endpoint, faulty: Faulty) -> None:
    folder = npm()
    # Node looks for packages beside the file.
    test = folder / TESTS.name
    test.write_bytes(TESTS.read_bytes())
    environment = endpoint.environment | {
        "MODEL": endpoint.model,
        "TOOLS": "yes" if endpoint.tools else "",
        "FAULTY_URL": faulty.url,
        "FAULTY_KEYS": json.dumps(faulty.keys),
    }
    done = subprocess.run(
        ["node", "--test", str(test)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout
