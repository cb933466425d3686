//! What one run tells the next. Nothing is lost with it: orphans are reported once more, anomalies block once more.

use std::collections::BTreeMap;

use holdfast_shared::domain::{BackupId, Environment, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::retention::catalog::Anomaly;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Orphans that have been reported, and when they had last been changed.
    pub orphans: BTreeMap<String, Timestamp>,
    pub acknowledged: Vec<Acknowledgement>,
}

/// Anomalies of this database up to this backup have been looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub environment: Environment,
    pub database: String,
    pub backup_id: BackupId,
}

/// The state as it was read.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    pub state: State,
    etag: Option<String>,
}

impl Loaded {
    pub async fn read(store: &Store) -> Result<Self, Fault> {
        let Some((json, etag)) = store.get(&ObjectKey::RetentionState).await? else { return Ok(Self::default()) };
        let state = serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::warn!(%error, "the state of the last run is not readable, and is begun afresh");
            State::default()
        });
        Ok(Self { state, etag: Some(etag) })
    }

    /// Writes the new state, if it is another one.
    pub async fn replace(&self, store: &Store, state: &State) -> Result<(), Fault> {
        if *state == self.state {
            return Ok(());
        }
        let body = serde_json::to_vec_pretty(state).unwrap_or_default();
        let condition = self.etag.as_deref().map_or(Condition::Absent, Condition::Etag);
        match store.put_if(&ObjectKey::RetentionState, body.into(), condition).await? {
            PutOutcome::Written { .. } => Ok(()),
            PutOutcome::Refused => Err(Fault::new("lease-lost", "another run has written the state of retention")),
        }
    }
}

impl State {
    pub fn acknowledged(&self) -> BTreeMap<(Environment, String), BackupId> {
        let entries = self.acknowledged.iter();
        entries.map(|entry| ((entry.environment.clone(), entry.database.clone()), entry.backup_id)).collect()
    }

    /// Remembers that these anomalies have been looked at.
    pub fn acknowledge(&mut self, anomalies: &[Anomaly]) {
        let mut acknowledged = self.acknowledged();
        for anomaly in anomalies {
            let up_to =
                acknowledged.entry((anomaly.environment.clone(), anomaly.database.clone())).or_insert(anomaly.after);
            *up_to = anomaly.after.max(*up_to);
        }
        let entries = acknowledged.into_iter();
        self.acknowledged = entries
            .map(|((environment, database), backup_id)| Acknowledgement { environment, database, backup_id })
            .collect();
    }
}
