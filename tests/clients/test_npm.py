"""The npm package `openai`, tested with Node's own test runner."""

import json
import subprocess
from pathlib import Path

from tests.clients.endpoints import Endpoint, Faulty
from tests.clients.environments import npm

TESTS = Path(__file__).parent / "npm/openai.test.mjs"


def test_the_npm_package(endpoint: Endpoint, faulty: Faulty) -> None:
    folder = npm()
    # Node looks for packages in the folder of the file.
    test = folder / TESTS.name
    test.write_bytes(TESTS.read_bytes())
    environment = endpoint.environment | {
        "MODEL": endpoint.model,
        "TOOLS": "yes" if endpoint.tools else "",
        "FAULTY_URL": faulty.url,
        "FAULTY_KEYS": json.dumps(faulty.keys),
    }
    process = subprocess.run(
        ["node", "--test", str(test)], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    assert "# fail 0" in process.stdout
