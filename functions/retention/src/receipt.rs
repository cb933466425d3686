//! The function's result: the plan with its reasons, the same for a dry run and a real one, and what became of it.

use std::time::Duration;

use holdfast_shared::plan::retention::snapshots::Decided;
use holdfast_shared::plan::retention::sweep::Orphan;
use holdfast_shared::plan::retention::{Expiry, Plan};
use serde_json::{Value, json};

use crate::carry_out::Outcome;
use crate::databases::Looked;
use crate::observe::Observed;
use crate::snapshots::Snapshots;
use crate::sweep::Sweep;

/// Lists are cut here: a function's answer has at most 6 MB (AWS Lambda Developer Guide, quotas). Counts are whole.
const LISTED: usize = 5_000;

pub fn plan_json(plan: &Plan, sweep: &Sweep, looked: &Looked, snapshots: &Snapshots, observed: &Observed) -> Value {
    let warnings: Vec<&String> = observed.warnings.iter().chain(&plan.warnings).collect();
    json!({
        "expire": list(&plan.expire, expiry_json),
        "resume": list(&plan.resume, expiry_json),
        "keep": list(&plan.keep, |kept| json!({
            "id": kept.id, "environment": kept.environment, "database": kept.database, "purpose": kept.purpose,
            "reasons": kept.reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        "blocks": list(&plan.blocks, |block| json!({
            "environment": block.environment, "database": block.database, "reason": block.kind.as_str(),
            "detail": block.detail,
        })),
        "sweep": {
            "orphans_reported": list(&sweep.orphans.report, orphan_json),
            "orphans_waiting": list(&sweep.orphans.wait, orphan_json),
            "orphans_removed": list(&sweep.orphans.remove, orphan_json),
            "orphans_refused": sweep.orphans.refused,
            "unknown_objects": list(&sweep.orphans.strangers, |key| json!(key)),
            "uploads": list(&sweep.uploads, |upload| json!({"key": upload.key, "initiated": upload.initiated})),
            "pins": list(&sweep.pins, |pin| json!(pin.key)),
            "leases": list(&sweep.leases, |lease| json!(lease.key)),
            "entries": list(&sweep.entries, |entry| json!(entry.key)),
        },
        "database": database_json(looked),
        "snapshots": snapshots_json(snapshots),
        "counts": {
            "manifests": observed.manifests.len(), "expire": plan.expire.len(), "resume": plan.resume.len(),
            "keep": plan.keep.len(), "tombstones": plan.tombstones, "other_environments": plan.others,
            "unreadable": observed.catalog.unreadable().len(),
        },
        "warnings": list(&warnings, |warning| json!(warning)),
    })
}

fn snapshots_json(snapshots: &Snapshots) -> Value {
    let decided = |decided: &Decided| {
        let snapshot = &decided.snapshot;
        json!({"snapshot": snapshot.id(), "server": snapshot.server.to_string(), "id": decided.id, "reason": decided.reason})
    };
    match snapshots {
        Snapshots::NotConfigured => Value::Null,
        Snapshots::Failed(fault) => json!({"problem": {"code": fault.code, "message": fault.to_string()}}),
        Snapshots::Seen { plan, .. } => json!({
            "delete": list(&plan.delete, decided), "keep": list(&plan.keep, decided), "others": plan.others,
        }),
    }
}

fn database_json(looked: &Looked) -> Value {
    match looked {
        Looked::NotConfigured => Value::Null,
        Looked::Skipped(reason) => json!({"skipped": reason}),
        Looked::Failed(fault) => json!({"problem": {"code": fault.code, "message": fault.to_string()}}),
        Looked::Seen(cleanup) => json!({
            "drop": list(&cleanup.plan.drop, |doomed| json!({"name": doomed.name, "kept_until": doomed.keep_until})),
            "keep": list(&cleanup.plan.keep, |kept| json!({"name": kept.name, "reason": kept.reason})),
            "rows": list(&cleanup.rows, |old| json!({"table": old.table.to_string(), "rows": old.rows})),
        }),
    }
}

pub fn expiry_json(expiry: &Expiry) -> Value {
    json!({
        "id": expiry.id, "environment": expiry.environment, "database": expiry.database, "purpose": expiry.purpose,
        "artifacts": expiry.artifacts.iter().map(|artifact| artifact.kind.as_str()).collect::<Vec<_>>(),
        "whole": expiry.whole, "reason": expiry.reason,
    })
}

fn orphan_json(orphan: &Orphan) -> Value {
    json!({"key": orphan.key, "objects": orphan.objects, "size_bytes": orphan.size_bytes, "last_modified": orphan.last_modified})
}

fn list<T>(items: &[T], show: impl Fn(&T) -> Value) -> Vec<Value> {
    items.iter().take(LISTED).map(show).collect()
}

pub fn done_json(outcome: &Outcome) -> Value {
    json!({
        "expired": outcome.expired.len(), "artifacts": outcome.artifacts, "bytes": outcome.bytes,
        "orphans_removed": outcome.orphans_removed.len(), "uploads_aborted": outcome.uploads_aborted,
        "pins_removed": outcome.pins_removed, "leases_removed": outcome.leases_removed,
        "entries_removed": outcome.entries_removed, "databases_dropped": outcome.databases_dropped,
        "rows_deleted": outcome.rows_deleted, "snapshots_deleted": outcome.snapshots_deleted,
        "postponed": outcome.postponed,
    })
}

pub fn durations_json(observed: Duration, total: Duration) -> Value {
    json!({"observe_and_plan": observed.as_secs_f64(), "total": total.as_secs_f64()})
}
