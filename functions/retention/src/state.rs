//! What one run tells the next. Nothing is lost with it: orphans are reported once more, anomalies block once more.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_shared::domain::{BackupId, Environment, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::retention::catalog::Anomaly;
use holdfast_shared::plan::retention::sweep::{OrphanPlan, Reported};
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Orphans that have been reported, and when they had last been changed.
    pub orphans: BTreeMap<String, Timestamp>,
    /// When they were reported. Releases before did not say.
    pub reported: BTreeMap<String, Timestamp>,
    /// Those of them that were seen when the manifests may have been what was missing.
    pub doubted: BTreeSet<String>,
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
    pub fn reported(&self, now: Timestamp) -> BTreeMap<String, Reported> {
        let known = |(key, &last_modified): (&String, &Timestamp)| {
            let at = self.reported.get(key).copied().unwrap_or(now);
            (key.clone(), Reported { last_modified, at, doubted: self.doubted.contains(key) })
        };
        self.orphans.iter().map(known).collect()
    }

    /// Remembers the orphans that are left, and since when people know of them.
    pub fn remember(&mut self, plan: &OrphanPlan, removed: &[String], now: Timestamp) {
        let known = self.reported(now);
        *self = Self { acknowledged: std::mem::take(&mut self.acknowledged), ..Self::default() };
        // One that could not be removed is tried again, not reported again.
        let left = plan.report.iter().chain(&plan.wait).chain(&plan.remove);
        for orphan in left.filter(|orphan| !removed.contains(&orphan.key)) {
            let before = known.get(&orphan.key).filter(|known| known.last_modified == orphan.last_modified);
            self.orphans.insert(orphan.key.clone(), orphan.last_modified);
            self.reported.insert(orphan.key.clone(), before.map_or(now, |known| known.at));
            if plan.refused.is_some() {
                self.doubted.insert(orphan.key.clone());
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::KeyPrefix;
    use holdfast_shared::plan::retention::sweep::{Found, Surroundings, plan_orphans};

    use super::*;

    const DUMP: &str = "postgres-exports/dumps/2025-06-21/20250621-143000.dump";

    fn plan(state: &State, manifests: &BTreeSet<BackupId>, now: Timestamp) -> OrphanPlan {
        let last_modified = "2025-06-21T14:31:00Z".parse().unwrap();
        let found = Found { key: DUMP.into(), size_bytes: 1, etag: "e".into(), last_modified };
        let surroundings = Surroundings {
            prefix: &KeyPrefix::default(),
            manifests,
            pins: &[],
            working: &BTreeSet::new(),
            reported: &state.reported(now),
            now,
            age: jiff::SignedDuration::from_hours(24),
            override_anomaly: false,
        };
        plan_orphans(&[found], &surroundings)
    }

    #[test]
    fn what_an_older_release_has_reported_is_reported_from_now() {
        let json = format!(r#"{{"orphans":{{"{DUMP}":"2025-06-21T14:31:00Z"}},"acknowledged":[]}}"#);
        let mut state: State = serde_json::from_str(&json).unwrap();
        let manifests = (1..=5).map(|n| format!("2025060{n}-020000").parse().unwrap()).collect();
        for (now, waits) in [("2025-06-23T03:00:00Z", 1), ("2025-06-23T03:02:00Z", 1), ("2025-06-24T03:00:00Z", 0)] {
            let now = now.parse().unwrap();
            let plan = plan(&state, &manifests, now);
            assert_eq!((plan.report.len(), plan.wait.len(), plan.remove.len()), (0, waits, 1 - waits), "{now}");
            state.remember(&plan, &[], now);
        }
        let now = "2025-06-25T03:00:00Z".parse().unwrap();
        let last = plan(&state, &manifests, now);
        state.remember(&last, &[DUMP.to_owned()], now);
        assert_eq!(state, State::default());
    }

    #[test]
    fn doubt_is_remembered() {
        let mut state = State::default();
        let mut manifests = BTreeSet::new();
        for day in 23..=29 {
            let now = format!("2025-06-{day}T03:00:00Z").parse().unwrap();
            let plan = plan(&state, &manifests, now);
            assert!(plan.refused.is_some() && plan.remove.is_empty(), "{day}");
            state.remember(&plan, &[], now);
            manifests.insert(format!("202506{day}-020000").parse().unwrap());
        }
    }
}
