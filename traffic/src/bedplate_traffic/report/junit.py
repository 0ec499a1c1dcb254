"""The report as JUnit XML: a suite for the run, a test case for each threshold."""

import re
import xml.etree.ElementTree as ET

from bedplate_traffic.report.model import Report

# XML 1.0 allows no other control characters, not even escaped.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report) -> str:
    """Return the XML; a threshold that was not met is a failure, an interrupted run an error."""
    failures = sum(not judgement.ok for judgement in report.thresholds)
    suite = ET.Element(
        "testsuite",
        name=f"traffic {report.profile}",
        tests=str(len(report.thresholds) + report.interrupted),
        failures=str(failures),
        errors=str(int(report.interrupted)),
        skipped="0",
        time=f"{report.seconds:.3f}",
        timestamp=report.at.removesuffix("Z"),
    )
    properties = ET.SubElement(suite, "properties")
    for name in ("url", "seed", "traffic_version"):
        ET.SubElement(properties, "property", name=name, value=_make_writable(getattr(report, name)))
    for judgement in report.thresholds:
        case = ET.SubElement(
            suite, "testcase", classname=f"traffic.{report.profile}", name=_make_writable(judgement.threshold)
        )
        if not judgement.ok:
            value = "no value" if judgement.seen is None else f"{judgement.seen:g}"
            ET.SubElement(case, "failure", message=f"measured: {value}")
    if report.interrupted:
        case = ET.SubElement(suite, "testcase", classname=f"traffic.{report.profile}", name="ran to its end")
        ET.SubElement(case, "error", message="interrupted")
    lines = [
        f"{class_report.name}: {count} x {error}"
        for class_report in report.classes
        for error, count in class_report.errors.items()
    ]
    ET.SubElement(suite, "system-out").text = _make_writable("\n".join(lines))
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _make_writable(value: object) -> str:
    return UNWRITABLE.sub("?", str(value))
