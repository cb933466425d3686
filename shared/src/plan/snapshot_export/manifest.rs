//! The manifest of an RDS snapshot export.
//!
//! It has the fields that every manifest has, `"restorable": false`, and none of those that only a dump has: Parquet
//! files cannot be made an instance again, and so nothing that looks for a backup to restore reads this as one.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::domain::ArtifactKind;
use crate::domain::export_task::ExportTask;
use crate::domain::manifest::MANIFEST_VERSION;
use crate::plan::retention::sweep::Found;
use crate::plan::snapshot_export::report::{ExportInfo, TableReport};
use crate::plan::snapshot_export::run::Run;

/// What has been gathered of a finished export.
#[derive(Debug, Clone)]
pub struct Finished<'a> {
    pub run: &'a Run,
    pub task: &'a ExportTask,
    pub info: &'a ExportInfo,
    pub tables: &'a [TableReport],
    /// Every object of the export.
    pub files: &'a [Found],
    /// The folder's key, with a slash at its end.
    pub folder: &'a str,
    pub bucket: &'a str,
    pub now: Timestamp,
}

/// Everything about an export that somebody should read: the task's warning, tables that failed or were skipped.
pub fn warnings(finished: &Finished<'_>) -> Vec<String> {
    let mut warnings: Vec<String> = finished.task.warning.iter().cloned().collect();
    warnings.extend(finished.tables.iter().filter_map(TableReport::trouble));
    let told = finished.run.table_failures.iter().filter(|told| !warnings.contains(told)).cloned();
    let told: Vec<String> = told.collect();
    warnings.extend(told);
    warnings
}

/// The manifest's JSON, with a final newline.
pub fn render(finished: &Finished<'_>) -> String {
    let Finished { run, task, info, tables, files, folder, bucket, now } = finished;
    let size_bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
    let started = run.task.as_ref().map_or(run.begun, |task| task.started);
    let seconds = now.duration_since(started).as_secs().unsigned_abs();
    let warnings = warnings(finished);
    let exported = tables.iter().filter(|table| table.is_complete()).count();
    let snapshot = run.snapshot.as_ref();
    let described: Vec<Value> =
        tables.iter().filter(|table| !table.name.is_empty()).map(|t| table(t, files, folder)).collect();
    let notes = (!warnings.is_empty()).then(|| format!("the export has warnings: {}", warnings.join("; ")));
    let kind = ArtifactKind::RdsExport.as_str();
    let manifest = json!({
        "timestamp": run.backup_id,
        "export_date": run.backup_id.date(),
        "source": {
            "type": "rds", "instance": run.server.id, "kind": run.server.kind, "snapshot_id": run.snapshot_id,
            "snapshot_arn": snapshot.map(|snapshot| &snapshot.arn),
            "snapshot_created": snapshot.and_then(|snapshot| snapshot.created),
        },
        "exports": {kind: {
            "path": format!("s3://{bucket}/{folder}"), "size_mb": size_bytes.div_ceil(1 << 20), "tables_exported": exported,
        }},
        "databases_created": {},
        "export_duration_minutes": seconds.div_ceil(60),
        "export_complete": now,
        "manifest_version": MANIFEST_VERSION,
        "state": "complete",
        "restorable": false,
        "environment": run.environment,
        "purpose": run.purpose,
        "notes": notes,
        "created_by": run.created_by,
        "event_key": run.event_key,
        "server": {
            "engine": snapshot.map(|snapshot| &snapshot.engine),
            "version": snapshot.map(|snapshot| &snapshot.engine_version),
        },
        "artifacts": {kind: {
            "key": folder, "size_bytes": size_bytes, "objects": files.len(), "compression": "gzip", "format": "parquet",
        }},
        "task": {
            "id": task.id, "status": task.status, "total_exported_gb": info.total_gb,
            "started": info.task_start_time, "ended": info.task_end_time, "snapshot_time": info.snapshot_time,
            "only": run.only,
        },
        "tables": described,
        "durations_seconds": {"total": seconds},
        "warnings": warnings,
    });
    let mut text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
    text.push('\n');
    text
}

/// `bytes` are those of the table's files; `size_gb` is what RDS says of it. RDS counts no rows.
fn table(table: &TableReport, files: &[Found], folder: &str) -> Value {
    let own = format!("{folder}{}", table.folder());
    let files: Vec<&Found> = files.iter().filter(|file| file.key.starts_with(&own)).collect();
    let bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
    json!({
        "database": table.database, "schema": table.schema, "name": table.name, "status": table.status,
        "size_gb": table.size_gb, "bytes": bytes, "objects": files.len(), "columns": table.columns,
        "warning": table.warning,
    })
}
