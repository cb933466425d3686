#!/usr/bin/env python3
"""What a deployment costs a month, worked out from the price table in docs/costs.md.

    scripts/costs.py [--backup-gb 1] [--database-gb 4] [--backups-a-day 1] [--policy lifecycle|retention] …

Prints the table that docs/costs.md holds for the default figures. Change the prices there to those of your region.
"""

import argparse
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "costs.md"
DAYS, HOURS = 30, 730  # AWS bills storage by a month of 730 hours
MB_A_GB = 1024


def prices(document: str) -> dict[str, float]:
    rows = re.findall(r"^\| `([\w ]+)` \| ([\d.]+) \| [^|]+ \|$", document, re.MULTILINE)
    return {name: float(price) for name, price in rows}


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backup-gb", type=float, default=1, help="size of one dump in the bucket")
    parser.add_argument("--database-gb", type=float, default=4, help="size of an RDS snapshot, for its export")
    parser.add_argument("--backups-a-day", type=float, default=1)
    parser.add_argument("--policy", choices=["lifecycle", "retention"], default="lifecycle", help="who deletes: the lifecycle at its end, or retention after --keep-days")
    parser.add_argument("--keep-days", type=int, default=30, help="what retention keeps")
    parser.add_argument("--infrequent-access-days", type=int, default=30)
    parser.add_argument("--archive-days", type=int, default=90)
    parser.add_argument("--expiration-days", type=int, default=730)
    parser.add_argument("--undelete-days", type=int, default=30)
    parser.add_argument("--memory-mb", type=int, default=1769)
    parser.add_argument("--export-seconds", type=float, default=60)
    parser.add_argument("--drill-seconds", type=float, default=120)
    parser.add_argument("--drills-a-month", type=float, default=4.35)
    parser.add_argument("--retention-seconds", type=float, default=5)
    parser.add_argument("--poll-seconds", type=float, default=0.2)
    parser.add_argument("--part-mb", type=int, default=8)
    parser.add_argument("--alarms", type=int, default=18)
    parser.add_argument("--metrics", type=int, default=25)
    parser.add_argument("--rds-exports-a-month", type=float, default=0)
    return parser.parse_args(words)


def storage_days(a):
    """Days that a dump spends in each class; what was deleted stays in its class until it cannot be brought back."""
    end = a.expiration_days if a.policy == "lifecycle" else a.keep_days
    standard = min(a.infrequent_access_days, end)
    infrequent = max(0, min(a.archive_days, end) - a.infrequent_access_days)
    archived = max(0, end - a.archive_days)
    last = "archived" if archived else "infrequent" if infrequent else "standard"
    days = {"standard": standard, "infrequent": infrequent, "archived": archived}
    days[last] += a.undelete_days
    return days


def bill(a):
    """(what, quantity, name of the price, quantity as it is priced)."""
    a_day, days = a.backups_a_day, storage_days(a)
    a_month = a_day * DAYS
    end = a.expiration_days if a.policy == "lifecycle" else a.keep_days
    yield "dumps in STANDARD, GB", days["standard"] * a_day * a.backup_gb, "STANDARD"
    yield "dumps in STANDARD_IA, GB", days["infrequent"] * a_day * a.backup_gb, "STANDARD_IA"
    yield "dumps in GLACIER, GB", days["archived"] * a_day * a.backup_gb, "GLACIER"
    moves = [a_month if end > day else 0 for day in (a.infrequent_access_days, a.archive_days)]
    yield "moved to STANDARD_IA, objects", moves[0], "transition to STANDARD_IA"
    yield "moved to GLACIER, objects", moves[1], "transition to GLACIER"
    # An upload's begin and end, its parts, and about 60 manifests, claims, leases and records a run.
    parts = a.backup_gb * MB_A_GB / a.part_mb
    yield "requests that write or list", a_month * (parts + 62) + DAYS * 50 + a.drills_a_month * 60, "PUT"
    yield "requests that read", a_month * 20 + DAYS * end * a_day + a.drills_a_month * parts * 2, "GET"
    polls = DAYS * 24 * 4
    seconds = (
        a_month * a.export_seconds + DAYS * a.retention_seconds + a.drills_a_month * a.drill_seconds + polls * a.poll_seconds
    )
    yield "Lambda, GB-seconds", seconds * a.memory_mb / MB_A_GB, "Lambda arm64"
    yield "Lambda, invocations", a_month + DAYS + a.drills_a_month + polls, "Lambda request"
    yield "alarms", a.alarms, "alarm"
    yield "metrics of its own", a.metrics, "metric"
    yield "secrets (passkey)", 1, "secret"
    if a.rds_exports_a_month:
        yield "RDS snapshot exports, GB", a.rds_exports_a_month * a.database_gb, "RDS snapshot export"


def table(a, price):
    lines, total = ["| what | quantity | price | USD a month |", "| --- | --- | --- | --- |"], 0.0
    for what, quantity, name in bill(a):
        amount = quantity * price[name]
        total += amount
        lines.append(f"| {what} | {quantity:,.0f} | `{name}` | {amount:.3f} |")
    return "\n".join([*lines, f"| **together** | | | **{total:.2f}** |"])


if __name__ == "__main__":
    print(table(arguments(sys.argv[1:]), prices(DOCUMENT.read_text())))
