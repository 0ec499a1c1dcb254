"""`traffic profiles`."""

import pytest
import yaml
from bedplate_traffic.cli import main


def test_profiles_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profiles"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\n") == 7
    with pytest.raises(SystemExit):
        main(["profiles", "smoke"])
    assert yaml.safe_load(capsys.readouterr().out)["classes"][0]["name"] == "smoke"
    with pytest.raises(SystemExit) as ended:
        main(["profiles", "smoky"])
    assert ended.value.code == 2
