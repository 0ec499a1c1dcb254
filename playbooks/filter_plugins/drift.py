# SPDX-License-Identifier: Apache-2.0
"""Filters for what is expected of a host, and for the report of its differences (module_utils/drift.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

REPORT_SCHEMA = 1
MODEL_SETTINGS = ("name", "pull", "digest", "gguf", "checksum", "parameters", "template")
MAX_NAMED = 5
"""How many differences of a host verify names in its check."""


def role_expectations(
    declarations: Sequence[Mapping[str, Any]],
    roles: Sequence[str],
    *,
    active: Iterable[str],
    enabled: Iterable[str],
    openings: Iterable[Mapping[str, Any]],
    packages: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Return what each role of a host leads to there.

    `active` are the units that run, `enabled` those that only start at boot, `openings` the ports
    (filter service_openings), `packages` the Debian packages that are needed.
    """
    states = {**dict.fromkeys(enabled, "enabled"), **dict.fromkeys(active, "active")}
    return {
        role: {
            "declaration": declaration,
            "services": {
                unit: state
                for unit, state in states.items()
                if re.sub(r"@[^.]*\.", "@.", unit) in declaration.get("units", [])
            },
            "openings": [
                {name: opening[name] for name in ("port", "unit", "address")}
                for opening in openings
                if f"{opening['unit']}.service" in declaration.get("units", [])
            ],
            "packages": [name for name in declaration.get("packages", []) if name in packages],
        }
        for role, declaration in zip(roles, declarations, strict=True)
    }


def with_models(
    expectations: Mapping[str, Mapping[str, Any]], models: Iterable[Mapping[str, Any]], folder: str
) -> dict[str, Any]:
    """Return the expectations with the models that Ollama has to have in a folder."""
    kept = [{name: model[name] for name in MODEL_SETTINGS if name in model} for model in models]
    return {
        role: {**expectation, "models": {folder: kept}} if role == "ollama" else expectation
        for role, expectation in expectations.items()
    }


def with_tables(expectations: Mapping[str, Mapping[str, Any]], needed: bool) -> dict[str, Any]:
    """Return the expectations with the firewall tables that the roles declare, where they are needed."""
    return {
        role: {**expectation, "tables": expectation["declaration"].get("tables", []) if needed else []}
        for role, expectation in expectations.items()
    }


def roles_that_ran(roles: Iterable[str], run_tags: Collection[str], skip_tags: Collection[str]) -> list[str]:
    """Return those of a host's roles that a run with these tags deploys."""
    return [role for role in roles if ("all" in run_tags or role in run_tags) and role not in skip_tags]


def drift_check(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of verify's report for the result of the module host_drift.

    Without ports and services that do not run: verify has checks of its own for them.
    """
    compared = [
        entry
        for entry in result.get("differences", [])
        if entry["kind"] != "listener" and (entry["kind"], entry["expected"]) != ("service", "active")
    ]
    wrong = [entry for entry in compared if not entry["known"]]
    known = len(compared) - len(wrong)
    name = "the host is as the inventory declares"
    if "differences" not in result:
        seen, next_command = str(result.get("msg", "no answer in time")), "make drift"
        return {"name": name, "ok": False, "seen": seen.strip(), "next": next_command}
    named = [
        f"{entry['what']}: {entry['seen']} instead of {entry['expected']}" for entry in wrong[:MAX_NAMED]
    ]
    more = len(wrong) - len(named)
    seen = "; ".join([*named, *([f"and {more} more"] if more else [])]) or "no difference"
    seen += f"; {known} known" if known else ""
    return {
        "name": name,
        "ok": not wrong,
        "seen": seen,
        "next": wrong[0]["remedy"] if wrong else "make drift",
    }


def drift_report(hosts: Iterable[str], results: Mapping[str, Mapping[str, Any]], at: str) -> dict[str, Any]:
    """Return the report of make drift; `at` is its time in ISO 8601.

    A host without a result gave no answer.
    """
    differences: list[dict[str, Any]] = []
    states = {}
    for host in hosts:
        result = results.get(host, {})
        found = result.get("differences")
        if found is None:
            states[host] = "unknown"
            why = str(
                result.get("msg") or "the host was unreachable, or an earlier task failed on it"
            ).strip()
            lost = {
                "kind": "host",
                "what": host,
                "expected": "an answer",
                "seen": why,
                "remedy": f"ansible -m ping {host}",
                "known": False,
            }
            differences.append({"host": host, **lost})
            continue
        states[host] = "differs" if any(not entry["known"] for entry in found) else "as declared"
        differences += [{"host": host, **entry} for entry in found]
    ok = all(state == "as declared" for state in states.values())
    return {"schema": REPORT_SCHEMA, "ok": ok, "at": at, "hosts": states, "differences": differences}


def drift_sentences(report: Mapping[str, Any]) -> list[str]:
    """Return what a person reads: one sentence for each host, then one for each difference."""
    lines = []
    for host, state in report["hosts"].items():
        mine = [entry for entry in report["differences"] if entry["host"] == host]
        known = sum(entry["known"] for entry in mine)
        wrong = len(mine) - known
        words = {
            "as declared": "is as the inventory declares",
            "differs": f"differs from the inventory in {wrong} thing{'s' * (wrong != 1)}",
            "unknown": "was not compared",
        }
        lines.append(f"{host} {words[state]}" + (f" ({known} known)" if known else "") + ".")
        for entry in mine:
            name = f"{'known: ' if entry['known'] else ''}{entry['kind']} {entry['what']}"
            lines.append(f"  {name}: {entry['seen']} instead of {entry['expected']}. Next: {entry['remedy']}")
    return lines


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                role_expectations,
                with_models,
                with_tables,
                roles_that_ran,
                drift_check,
                drift_report,
                drift_sentences,
            )
        }
