import json

import pytest

from slim_core.errors import SlimError
from slim_core.report import LatencyRow, Report, read_report, write_report


def test_a_report_survives_its_file(report, tmp_path):
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json").to_json() == report.to_json()
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 1


def test_reading_gives_the_same_values(report):
    again = Report.from_json(report.to_json())
    assert again.latency == report.latency
    assert again.steps == report.steps
    assert again.original == report.original


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "no schema_version"), ('{"schema_version": 99}', "layout 99"),
     ('{"schema_version": 1}', "damaged"), ("[" * 100_000, "cannot be read")],
)  # fmt: skip
def test_a_file_that_is_no_report_gives_one_error(tmp_path, content, message):
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(SlimError, match=message) as caught:
        read_report(file)
    assert caught.value.where == str(file)


def test_a_missing_report_says_what_writes_one(tmp_path):
    with pytest.raises(SlimError, match="there is no report") as caught:
        read_report(tmp_path / "report.json")
    assert "slim run" in caught.value.hint


@pytest.mark.parametrize("drop", ["device", "steps", "original", "latency", "title"])
def test_a_report_that_lacks_a_part_is_damaged(report, drop):
    data = report.to_json()
    del data[drop]
    with pytest.raises(SlimError, match="damaged"):
        Report.from_json(data)


@pytest.mark.parametrize(
    ("speedup", "low", "high", "verdict"),
    [(2.0, 1.8, 2.2, "faster"), (0.5, 0.4, 0.6, "slower"), (1.02, 0.98, 1.06, "even"), (0.98, 0.94, 1.02, "even"),
     (1.5, None, None, "faster"), (0.9, None, None, "slower")],
)  # fmt: skip
def test_a_latency_is_faster_or_slower_only_when_its_interval_says_so(speedup, low, high, verdict):
    assert LatencyRow("b", "b", 1, 1, speedup, 0, 1.0, 0, speedup, low, high).verdict == verdict
