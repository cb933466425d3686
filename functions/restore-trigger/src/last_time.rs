//! How long the last whole restore of a database took: what a plan says of the next one; and when a drill last proved one.

use holdfast_shared::domain::{BackupId, Environment, Manifest, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::clearance::Restore;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use restore_trigger::engine::{Receipt, Seconds};
use serde::{Deserialize, Serialize};

use crate::request::Mode;

const CONTEST_ROUNDS: usize = 3;

/// What lies at `restores/timings/{environment}/{database}.json`; the environment is the one restored to, the database
/// the one that was backed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastTime {
    pub at: Timestamp,
    pub mode: String,
    pub backup_id: BackupId,
    pub rows: u64,
    /// Of row text, as manifests count it.
    pub bytes: u64,
    pub seconds: Seconds,
    /// When a drill last proved a backup. Later restores of other modes leave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drilled: Option<Timestamp>,
}

impl LastTime {
    /// What the next one may take, if time goes with bytes.
    pub fn scaled_to(&self, bytes: u64) -> f64 {
        let ratio = if self.bytes == 0 { 1.0 } else { bytes as f64 / self.bytes as f64 };
        self.seconds.total * ratio
    }
}

/// Whether a restore says how long the next one takes: those of chosen tables do not.
pub fn is_whole(restore: &Restore) -> bool {
    matches!(restore, Restore::NewDatabase { .. } | Restore::Swap { .. } | Restore::Verify { .. })
}

/// Writes it down; a restore that cannot is complete all the same.
pub async fn remember(store: &Store, environment: &Environment, mode: &str, manifest: &Manifest, receipt: &Receipt) {
    let at = Timestamp::now();
    let last = LastTime {
        at,
        mode: mode.to_owned(),
        backup_id: manifest.timestamp,
        rows: receipt.rows,
        bytes: receipt.bytes,
        seconds: receipt.seconds,
        drilled: (mode == Mode::Verify.as_str()).then_some(at),
    };
    if let Err(fault) = write(store, &key(environment, &manifest.source.database), last).await {
        tracing::warn!(problem = chain(&fault), "how long this restore took is not written down");
    }
}

async fn write(store: &Store, key: &ObjectKey, mut last: LastTime) -> Result<(), Fault> {
    for _ in 0..CONTEST_ROUNDS {
        let present = store.get(key).await?;
        last.drilled = last.drilled.or_else(|| present.as_ref().and_then(|(body, _)| read(body)?.drilled));
        let body = serde_json::to_vec_pretty(&last).map_err(|error| Fault::from_error("internal", &error))?;
        let condition = present.as_ref().map_or(Condition::Absent, |(_, etag)| Condition::Etag(etag));
        if let PutOutcome::Written { .. } = store.put_if(key, body.into(), condition).await? {
            return Ok(());
        }
    }
    Err(Fault::new("restore-record-contended", format!("{key} is being written by others again and again")))
}

/// `None`: there was none, or it was written by a release that writes something else.
///
/// # Errors
/// The store does not answer.
pub async fn of(store: &Store, environment: &Environment, manifest: &Manifest) -> Result<Option<LastTime>, Fault> {
    of_database(store, environment, &manifest.source.database).await
}

/// The same by the database's name.
///
/// # Errors
/// The store does not answer.
pub async fn of_database(store: &Store, environment: &Environment, database: &str) -> Result<Option<LastTime>, Fault> {
    let Some((body, _)) = store.get(&key(environment, database)).await? else { return Ok(None) };
    Ok(read(&body))
}

fn read(body: &[u8]) -> Option<LastTime> {
    serde_json::from_slice(body).ok()
}

fn key(environment: &Environment, database: &str) -> ObjectKey {
    ObjectKey::RestoreTimings { environment: environment.clone(), database: database.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_with_bytes() {
        let last = |bytes, total| LastTime {
            at: Timestamp::UNIX_EPOCH,
            mode: "verify".to_owned(),
            backup_id: "20250621-143000".parse().unwrap(),
            rows: 1,
            bytes,
            seconds: Seconds { total, ..Seconds::default() },
            drilled: None,
        };
        assert_eq!(last(1_000, 10.0).scaled_to(3_000), 30.0);
        assert_eq!(last(0, 10.0).scaled_to(3_000), 10.0);
    }
}
