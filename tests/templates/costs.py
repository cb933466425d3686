"""docs/costs.md held against scripts/costs.py, and the figures of both against the templates."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from model import Finding
from render import rendered

REPOSITORY = Path(__file__).resolve().parents[2]


def calculator():
    spec = importlib.util.spec_from_file_location("costs_calculator", REPOSITORY / "scripts" / "costs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def the_costs_are_worked_out(project):
    costs, document = calculator(), project.costs_doc
    price = costs.prices(document)
    for policy in ("lifecycle", "retention"):
        wanted = costs.table(costs.arguments(["--policy", policy]), price)
        if wanted not in document:
            yield Finding("costs", "docs/costs.md", f"does not hold the table for {policy}:\n{wanted}")
    rows = re.findall(r"\| ([\d.]+) × `([^`]+)` \| ([\d.]+) \|", document)
    if not rows:
        yield Finding("costs", "docs/costs.md", "has no rows that are worked out")
    for quantity, name, amount in rows:
        if name not in price or f"{float(quantity) * price[name]:.2f}" != f"{float(amount):.2f}":
            yield Finding("costs", "docs/costs.md", f"{quantity} × {name} is not {amount}")
    yield from _figures(project, costs.arguments([]))


def _figures(project, figures):
    """What the calculator takes for granted is what the templates deploy."""
    deployed = rendered(project, {"MinimumBackupBytes": "1", "TargetSystemIdentifier": "1", "RestoreDatabaseUser": "r"})
    alarms = sum(resource["Type"] == "AWS::CloudWatch::Alarm" for resource in deployed["infra/alarms.yaml"].values())
    defaults = {name: parameter.get("Default") for name, parameter in project.templates["template.yaml"]["Parameters"].items()}
    for what, taken, real in (
        ("alarms", figures.alarms, alarms),
        # Exports of RDS snapshots are an option.
        ("metrics", figures.metrics, sum(len(sets) for name, sets in project.metrics.items() if not name.startswith("SnapshotExport"))),
        ("memory", figures.memory_mb, defaults["MemorySize"]),
        ("days until STANDARD_IA", figures.infrequent_access_days, defaults["RawInfrequentAccessDays"]),
        ("days until GLACIER", figures.archive_days, defaults["RawArchiveDays"]),
        ("days until deletion", figures.expiration_days, defaults["RawExpirationDays"]),
        ("days until gone", figures.undelete_days, defaults["UndeleteDays"]),
    ):
        if taken != real:
            yield Finding("costs", "scripts/costs.py", f"{what}: it takes {taken}, the templates have {real}")
