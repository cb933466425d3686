//! Which restores wait: a small object for each, so that they are found without listing every record.
//!
//! What a restore is, and that it was approved, is in its record alone. There is no right to delete: what waits no
//! longer is emptied, and retention sweeps it.

use holdfast_shared::domain::{Environment, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::audit::Record;

const CONTEST_ROUNDS: usize = 3;
/// What is larger was written by something else.
const MAX_BYTES: u64 = 4_096;

/// What lies at `restores/waiting/{environment}/{request id}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub request_id: String,
    /// The record's.
    pub date: Date,
    /// Of two attempts none may write the same.
    pub attempt: u32,
}

pub async fn enter(store: &Store, record: &Record) -> Result<(), Fault> {
    let entry = Entry { request_id: record.request_id.clone(), date: record.date(), attempt: record.attempt };
    write(store, key(&record.environment, &record.request_id), &entry).await
}

/// Empties the entry of a restore that waits no longer. One that stays is emptied by the next poll, which finds that its
/// record has ended: what became of the restore does not change with it.
pub async fn leave(store: &Store, environment: &Environment, request_id: &str) {
    if let Err(fault) = empty(store, &key(environment, request_id)).await {
        tracing::info!(error = %fault, "the entry of a restore that does not wait stays");
    }
}

async fn empty(store: &Store, key: &ObjectKey) -> Result<(), Fault> {
    for _ in 0..CONTEST_ROUNDS {
        let Some((body, etag)) = store.get(key).await? else { return Ok(()) };
        if body.is_empty() {
            return Ok(());
        }
        if let PutOutcome::Written { .. } = store.put_if(key, bytes::Bytes::new(), Condition::Etag(&etag)).await? {
            return Ok(());
        }
    }
    Err(contended(key))
}

/// Every restore of the environment that waits, in the order of their request ids.
pub async fn list(store: &Store, environment: &Environment) -> Result<Vec<Entry>, Fault> {
    let folder = ObjectKey::waiting_of(environment, &holdfast_shared::domain::KeyPrefix::default());
    let mut entries = Vec::new();
    for object in store.list_level(&folder).await?.objects {
        if object.size_bytes == 0 {
            continue;
        }
        let unreadable =
            |problem: String| tracing::warn!(key = object.key, problem, "not an entry of a restore that waits");
        if object.size_bytes > MAX_BYTES {
            unreadable(format!("it is larger than {MAX_BYTES} bytes"));
            continue;
        }
        let body = store.get_range(&object.key, None, 0, object.size_bytes).await?;
        match serde_json::from_slice::<Entry>(&body) {
            Ok(entry) if store.key(&key(environment, &entry.request_id)) == object.key => entries.push(entry),
            Ok(_) => unreadable("it names another request".to_owned()),
            Err(error) => unreadable(error.to_string()),
        }
    }
    Ok(entries)
}

fn key(environment: &Environment, request_id: &str) -> ObjectKey {
    ObjectKey::RestoreWaiting { environment: environment.clone(), request_id: request_id.to_owned() }
}

async fn write(store: &Store, key: ObjectKey, entry: &Entry) -> Result<(), Fault> {
    let body = serde_json::to_vec(entry).map_err(|error| Fault::from_error("internal", &error))?;
    for _ in 0..CONTEST_ROUNDS {
        let present = store.get(&key).await?;
        let condition = present.as_ref().map_or(Condition::Absent, |(_, etag)| Condition::Etag(etag));
        if let PutOutcome::Written { .. } = store.put_if(&key, body.clone().into(), condition).await? {
            return Ok(());
        }
    }
    Err(contended(&key))
}

fn contended(key: &ObjectKey) -> Fault {
    Fault::new("restore-record-contended", format!("{key} is being written by others again and again"))
}
