"""`traffic schema`."""

import json
from pathlib import Path

import pytest
from bedplate_traffic.cli import main
from bedplate_traffic.report.model import Report
from pydantic import TypeAdapter

from traffic.tests.traffic_fakes import engine
from traffic.tests.traffic_runs import Ran, burst, profile

SCHEMA = Path(__file__).parents[2] / "report.schema.json"


def test_the_schema_file_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schema"])
    assert SCHEMA.read_text() == capsys.readouterr().out, "update it: traffic schema"
    schema = json.loads(SCHEMA.read_text())
    with engine() as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst()))
    assert ran.report["schema"] == 2
    TypeAdapter(Report).validate_json(ran.file.read_text())
    assert set(schema["required"]) <= set(ran.report)
