//! A finished task becomes a backup: its own reports are read, its files listed, and the manifest written, last.

use holdfast_shared::domain::ObjectKey;
use holdfast_shared::domain::export_task::ExportTask;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::retention::sweep::Found;
use holdfast_shared::plan::snapshot_export::manifest::{self, Finished};
use holdfast_shared::plan::snapshot_export::report::{TableReport, parse_info, parse_tables};
use holdfast_shared::plan::snapshot_export::run::Run;
use holdfast_shared::store::PutOutcome;
use holdfast_shared::store::client::Condition;
use jiff::Timestamp;
use serde_json::Value;

use crate::handler::Function;

pub struct Committed {
    /// By this invocation.
    pub written: bool,
    pub size_bytes: u64,
    pub tables: usize,
    pub warnings: Vec<String>,
}

impl Function {
    pub async fn commit(&self, run: &Run, task: &ExportTask, now: Timestamp) -> Result<Committed, Fault> {
        let folder = self.store.key(&ObjectKey::RdsExport(run.backup_id));
        let files = self.store.inventory(&folder).await?;
        let missing = |what: &str| {
            Fault::new("snapshot-export-files-missing", format!("the task is complete, and {what} under {folder}"))
                .hint("it is looked for again at the next poll; check that EXPORT_ROLE_ARN writes to this bucket")
        };
        if files.is_empty() {
            return Err(missing("there is nothing"));
        }
        let info_key = format!("{folder}export_info_{}.json", task.id);
        // Asked of the listing: a read of what is not there is refused to a role that may list prefixes only.
        if !files.iter().any(|file| file.key == info_key) {
            return Err(missing("there is no export_info"));
        }
        let info = self.report(&info_key).await?.ok_or_else(|| missing("the export_info has vanished"))?;
        let info = parse_info(&info).map_err(|error| unreadable(&info_key, &error))?;
        if info.export_task_identifier != task.id {
            let problem = format!("{info_key} is of task {}", info.export_task_identifier);
            return Err(Fault::new("snapshot-export-report-unreadable", problem));
        }
        let mut tables: Vec<TableReport> = Vec::new();
        let reports = format!("{folder}export_tables_info_{}", task.id);
        let (reports, data): (Vec<&Found>, Vec<&Found>) =
            files.iter().filter(|file| file.key != info_key).partition(|file| file.key.starts_with(&reports));
        if reports.is_empty() && !data.is_empty() {
            return Err(missing("there is no export_tables_info"));
        }
        for file in reports {
            let report = self.report(&file.key).await?.ok_or_else(|| missing("a report has vanished"))?;
            tables.extend(parse_tables(&report).map_err(|error| unreadable(&file.key, &error))?);
        }
        tables.sort_by_key(TableReport::target);

        let bucket = &self.config.store.bucket;
        let finished =
            Finished { run, task, info: &info, tables: &tables, files: &files, folder: &folder, bucket, now };
        let key = ObjectKey::Manifest(run.backup_id);
        let text = manifest::render(&finished);
        let written = match self.store.put_if(&key, text.into(), Condition::Absent).await? {
            PutOutcome::Written { .. } => true,
            PutOutcome::Refused => {
                self.check_own(&key, run).await?;
                false
            }
        };
        Ok(Committed {
            written,
            size_bytes: files.iter().map(|file| file.size_bytes).sum(),
            tables: tables.iter().filter(|table| table.is_complete()).count(),
            warnings: manifest::warnings(&finished),
        })
    }

    async fn report(&self, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.store.read_listed(key).await?.map(|(json, _)| json.to_vec()))
    }

    /// Another invocation has written the manifest; another run may not have.
    async fn check_own(&self, key: &ObjectKey, run: &Run) -> Result<(), Fault> {
        let present = self.store.get_present(key).await?;
        let present: Option<Value> = present.and_then(|(json, _)| serde_json::from_slice(&json).ok());
        let event_key = present.as_ref().and_then(|manifest| manifest["event_key"].as_str());
        if event_key == Some(run.event_key.as_str()) {
            return Ok(());
        }
        Err(Fault::new("backup-already-exists", format!("{key} is another event's")))
    }
}

fn unreadable(key: &str, error: &serde_json::Error) -> Fault {
    Fault::from_error("snapshot-export-report-unreadable", error)
        .with_context(key)
        .hint("RDS has changed the form of its reports, or something else wrote the object")
}
