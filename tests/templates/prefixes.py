"""Who owns what lies below each prefix: one group of lifecycle rules, and at most one function that deletes."""

# By prefix: the group whose days hold, and whether retention deletes there.
PREFIXES = {
    "postgres-exports/dumps/": ("raw", True),
    "postgres-exports/sql/": ("raw", True),
    "postgres-exports/raw/": ("raw", True),
    "postgres-exports/sanitized/": ("raw", True),
    "postgres-exports/rds-exports/": ("raw", True),
    "postgres-exports/transformed/": ("transformed", True),
    "mongodb-dumps/": ("transformed", True),
    "postgres-exports/metadata/": ("kept", False),
    "comparison-reports/": ("kept", False),
    "restores/": ("kept", False),
    "restores/leases/": ("kept", True),
    "restores/waiting/": ("kept", True),
    "imports/": ("kept", False),
    "pins/": ("kept", True),
    "runs/leases/": ("kept", True),
    "runs/retention/": ("kept", False),
    "runs/rds-exports/": ("kept", False),
    "runs/ids/": ("claims", False),
    "runs/events/": ("claims", False),
}

# By group: days until STANDARD_IA, GLACIER and deletion.
CLAIMS, KEPT = (None, None, 30), (None, None, None)
DEFAULTS = {"raw": (30, 90, 730), "transformed": (30, 30, 365), "claims": CLAIMS, "kept": KEPT}
DOCUMENTED = {"raw": (30, 90, 730), "transformed": (7, 30, 365), "claims": CLAIMS, "kept": KEPT}
ENDLESS = {"raw": (30, 90, None), "transformed": (30, 30, None), "claims": CLAIMS, "kept": KEPT}
