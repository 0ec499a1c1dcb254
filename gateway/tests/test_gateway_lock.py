import re
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements" / "litellm.txt"


def test_the_lock_holds_no_proprietary_part() -> None:
    names = re.findall(r"^([A-Za-z0-9._-]+)==", LOCK.read_text(), flags=re.MULTILINE)
    assert "litellm" in names
    assert not [name for name in names if re.sub(r"[._]", "-", name).lower() == "litellm-enterprise"]


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK.read_text()
