"""The report as JUnit XML: a suite for the run, a case for each threshold."""

import re
import xml.etree.ElementTree as ET

from traffic.report import Report

# XML 1.0 has no place for other control characters, not even escaped.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """Return the XML; a threshold that was not kept is a failure, an interrupted run an error."""
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
        ET.SubElement(properties, "property", name=name, value=_text(getattr(report, name)))
    for judgement in report.thresholds:
        case = ET.SubElement(
            suite, "testcase", classname=f"traffic.{report.profile}", name=_text(judgement.threshold)
        )
        if not judgement.ok:
            seen = "nothing" if judgement.seen is None else f"{judgement.seen:g}"
            ET.SubElement(case, "failure", message=f"seen: {seen}")
    if report.interrupted:
        case = ET.SubElement(suite, "testcase", classname=f"traffic.{report.profile}", name="ran to its end")
        ET.SubElement(case, "error", message="stopped before its end")
    words = [
        f"{one.name}: {count} x {error}" for one in report.classes for error, count in one.errors.items()
    ]
    ET.SubElement(suite, "system-out").text = _text("\n".join(words))
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _text(value: object) -> str:
    return UNWRITABLE.sub("?", str(value))
