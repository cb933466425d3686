//! The records of runs: written under conditions, so that of two invocations that advance one run, one does.

use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::snapshot_export::run::Run;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::{SignedDuration, Timestamp};

const FOLDER: &str = "runs/rds-exports/";
/// No run stays as it is for longer: waiting has a limit of a week, and RDS ends a task long before.
const OPEN_AT_MOST: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A run as it was read.
#[derive(Debug, Clone)]
pub struct Tracked {
    pub run: Run,
    etag: String,
}

pub async fn load(store: &Store, id: BackupId) -> Result<Option<Tracked>, Fault> {
    let key = ObjectKey::RdsExportRun(id);
    let Some((json, etag)) = store.get(&key).await? else { return Ok(None) };
    parse(&key, &json).map(|run| Some(Tracked { run, etag }))
}

/// Writes a new run down, unless there is one: then that one.
pub async fn create(store: &Store, mut run: Run, request_id: &str) -> Result<Tracked, Fault> {
    let key = ObjectKey::RdsExportRun(run.backup_id);
    request_id.clone_into(&mut run.written_by);
    match store.put_if(&key, body(&run)?.into(), Condition::Absent).await? {
        PutOutcome::Written { etag } => Ok(Tracked { run, etag }),
        PutOutcome::Refused => load(store, run.backup_id).await?.ok_or_else(|| lost(&key)),
    }
}

impl Tracked {
    /// Writes the run as it is now. `false`: another invocation has changed it, and this one reads what that has made
    /// of it.
    pub async fn save(&mut self, store: &Store, request_id: &str) -> Result<bool, Fault> {
        let key = ObjectKey::RdsExportRun(self.run.backup_id);
        request_id.clone_into(&mut self.run.written_by);
        self.run.revision += 1;
        match store.put_if(&key, body(&self.run)?.into(), Condition::Etag(&self.etag)).await? {
            PutOutcome::Written { etag } => {
                self.etag = etag;
                Ok(true)
            }
            PutOutcome::Refused => {
                *self = load(store, self.run.backup_id).await?.ok_or_else(|| lost(&key))?;
                tracing::info!("another invocation has just gone on with this run");
                Ok(false)
            }
        }
    }
}

/// Every run that has not ended, the oldest first, and what is wrong with those that cannot be read.
pub async fn open(store: &Store, now: Timestamp) -> Result<(Vec<Tracked>, Vec<Fault>), Fault> {
    let (mut open, mut unreadable) = (Vec::new(), Vec::new());
    let folder = format!("{}{FOLDER}", store.config().prefix.as_str());
    for object in store.inventory(&folder).await? {
        let name = object.key.rsplit('/').next().and_then(|name| name.strip_suffix(".json"));
        let Some(id) = name.and_then(|name| name.parse::<BackupId>().ok()) else { continue };
        // Not by its id: what is exported may be old, or asked for late.
        if now.duration_since(object.last_modified) > OPEN_AT_MOST {
            continue;
        }
        match load(store, id).await {
            Ok(tracked) => open.extend(tracked.filter(|tracked| tracked.run.state.is_open())),
            // The others are followed all the same.
            Err(fault) if fault.code == "snapshot-export-run-unreadable" => unreadable.push(fault),
            Err(fault) => return Err(fault),
        }
    }
    open.sort_by_key(|tracked| tracked.run.backup_id);
    Ok((open, unreadable))
}

fn body(run: &Run) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec_pretty(run).map_err(|error| Fault::from_error("internal", &error))
}

fn parse(key: &ObjectKey, json: &[u8]) -> Result<Run, Fault> {
    serde_json::from_slice(json).map_err(|error| {
        Fault::from_error("snapshot-export-run-unreadable", &error)
            .with_context(&key.to_string())
            .hint("it was written by another release or by hand; delete it, and ask for the export again")
    })
}

fn lost(key: &ObjectKey) -> Fault {
    Fault::new("event-record-lost", format!("{key} was there and is gone"))
}
