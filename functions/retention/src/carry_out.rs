//! Expires what the plan has cleared: tombstone, data, done. In this order, so that a crash leaves a backup whole, or
//! a tombstone whose data the next run deletes.

use std::time::Instant;

use futures::StreamExt;
use holdfast_shared::domain::tombstone::{Epitaph, TombstoneError, done, expire};
use holdfast_shared::domain::{ArtifactKind, BackupId, ObjectKey};
use holdfast_shared::fault::chain;
use holdfast_shared::plan::retention::Expiry;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store, StoreError};
use jiff::Timestamp;

use crate::observe::pins_of;

pub struct Executor<'a> {
    pub store: &'a Store,
    pub request_id: &'a str,
    pub concurrency: usize,
    pub give_up_at: Instant,
}

/// What became of everything.
#[derive(Debug, Default)]
pub struct Outcome {
    pub expired: Vec<BackupId>,
    pub artifacts: usize,
    pub bytes: u64,
    pub orphans_removed: Vec<String>,
    pub uploads_aborted: usize,
    pub pins_removed: usize,
    pub leases_removed: usize,
    /// Of restores that waited once.
    pub entries_removed: usize,
    pub databases_dropped: Vec<String>,
    pub rows_deleted: u64,
    pub snapshots_deleted: Vec<String>,
    /// Changed since they were looked at: the next run decides anew.
    pub postponed: Vec<String>,
    pub failures: Vec<String>,
    /// There was no time to begin these.
    pub not_begun: usize,
}

enum Fate {
    Expired,
    Postponed(String),
    Failed(String),
    NotBegun,
}

impl Executor<'_> {
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.give_up_at
    }

    /// `resuming`: the tombstones are written already.
    pub async fn carry_out(&self, expiries: &[Expiry], resuming: bool, outcome: &mut Outcome) {
        let fates = futures::stream::iter(expiries.iter().map(|expiry| async move {
            let fate = if self.is_late() { Fate::NotBegun } else { self.carry_out_one(expiry, resuming).await };
            (expiry, fate)
        }));
        let mut fates = fates.buffer_unordered(self.concurrency);
        while let Some((expiry, fate)) = fates.next().await {
            match fate {
                Fate::Expired => {
                    tracing::info!(backup_id = %expiry.id, reason = expiry.reason, "expired");
                    outcome.expired.push(expiry.id);
                    outcome.artifacts += expiry.artifacts.len();
                    outcome.bytes += expiry.artifacts.iter().map(|artifact| artifact.size_bytes).sum::<u64>();
                }
                Fate::Postponed(why) => outcome.postponed.push(format!("backup {}: {why}", expiry.id)),
                Fate::Failed(problem) => outcome.failures.push(format!("backup {}: {problem}", expiry.id)),
                Fate::NotBegun => outcome.not_begun += 1,
            }
        }
        outcome.expired.sort_unstable();
        outcome.postponed.sort_unstable();
        outcome.failures.sort_unstable();
    }

    async fn carry_out_one(&self, expiry: &Expiry, resuming: bool) -> Fate {
        match self.attempt(expiry, resuming).await {
            Ok(fate) => fate,
            Err(error) => Fate::Failed(chain(&error)),
        }
    }

    async fn attempt(&self, expiry: &Expiry, resuming: bool) -> Result<Fate, StoreError> {
        let key = ObjectKey::Manifest(expiry.id);
        let kinds: Vec<ArtifactKind> = expiry.artifacts.iter().map(|artifact| artifact.kind).collect();
        if let Some(by) = self.pinned(expiry.id).await? {
            return Ok(Fate::Failed(format!("it has been pinned by {by} since it was looked at")));
        }
        let Some((mut manifest, mut etag)) = self.store.get_present(&key).await? else {
            return Ok(Fate::Postponed("its manifest is gone".to_owned()));
        };
        let changed = || Fate::Postponed("its manifest has changed since it was looked at".to_owned());
        if etag != expiry.etag {
            return Ok(changed());
        }
        for artifact in expiry.artifacts.iter().filter(|artifact| !artifact.key.ends_with('/')) {
            if let Some(lock) = self.store.locked_by(&artifact.key).await? {
                return Ok(Fate::Failed(format!("its {} is locked by {lock}", artifact.kind)));
            }
        }
        if !resuming {
            let epitaph =
                Epitaph { reason: &expiry.reason, by: self.request_id, forced: expiry.forced, at: Timestamp::now() };
            match expire(&manifest, &kinds, epitaph) {
                Ok(tombstone) => manifest = tombstone.into(),
                Err(error) => return Ok(malformed(&error)),
            }
            match self.store.put_if(&key, manifest.clone(), Condition::Etag(&etag)).await? {
                PutOutcome::Written { etag: written } => etag = written,
                PutOutcome::Refused => return Ok(changed()),
            }
        }
        for artifact in &expiry.artifacts {
            // Again, just before: who pins first and reads the manifest after has seen the tombstone, or is seen here.
            if let Some(by) = self.pinned(expiry.id).await? {
                return Ok(Fate::Failed(format!("it is expired, and its data stays while it is pinned by {by}")));
            }
            if let Some(problem) = self.delete(&artifact.key).await? {
                return Ok(Fate::Failed(problem));
            }
        }
        match done(&manifest, &kinds, Timestamp::now()) {
            Ok(finished) => match self.store.put_if(&key, finished.into(), Condition::Etag(&etag)).await? {
                PutOutcome::Written { .. } => Ok(Fate::Expired),
                PutOutcome::Refused => Ok(changed()),
            },
            Err(error) => Ok(malformed(&error)),
        }
    }

    /// Who pins the backup now.
    pub async fn pinned(&self, id: BackupId) -> Result<Option<String>, StoreError> {
        let now = Timestamp::now();
        let pins = pins_of(self.store, id).await?;
        Ok(pins.into_iter().find(|object| object.pin.is_active(now)).map(|object| object.pin.request_id))
    }

    /// Deletes an object, or all that is in a folder. What stays and why, if anything does.
    pub async fn delete(&self, key: &str) -> Result<Option<String>, StoreError> {
        if !key.ends_with('/') {
            self.store.remove(key, None).await?;
            return Ok(None);
        }
        let keys: Vec<String> = self.store.inventory(key).await?.into_iter().map(|object| object.key).collect();
        let failed = self.store.remove_all(&keys).await?;
        let told: Vec<String> = failed.iter().map(|failed| format!("{} ({})", failed.key, failed.problem)).collect();
        Ok((!told.is_empty()).then(|| format!("could not be deleted: {}", told.join(", "))))
    }
}

fn malformed(error: &TombstoneError) -> Fate {
    Fate::Failed(chain(error))
}
