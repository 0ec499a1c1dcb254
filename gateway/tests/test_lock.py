import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).parents[2] / "requirements"


@pytest.mark.parametrize("lock", ["gateway.txt", "bench.txt"])
def test_the_lock_holds_no_proprietary_part(lock: str) -> None:
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (LOCKS / lock).read_text(), flags=re.MULTILINE)
    assert "litellm" in names
    assert not [name for name in names if re.sub(r"[._]", "-", name).lower() == "litellm-enterprise"]


@pytest.mark.parametrize("lock", ["gateway.txt", "bench.txt"])
def test_the_lock_names_no_index(lock: str) -> None:
    assert "://" not in (LOCKS / lock).read_text()
