//! Sweeps what dead runs have left behind, as planned; what has changed since is left alone.

use futures::StreamExt;
use holdfast_shared::config::RetentionConfig;
use holdfast_shared::domain::ObjectKey;
use holdfast_shared::fault::chain;
use holdfast_shared::plan::retention::sweep::{
    Found, LeaseFacts, Orphan, OrphanPlan, PendingUpload, Surroundings, dead_leases, finished_entries, plan_orphans,
    stale_uploads,
};
use holdfast_shared::store::StoreError;
use holdfast_shared::store::remove::Removal;
use jiff::Timestamp;

use crate::carry_out::{Executor, Outcome};
use crate::observe::{Observed, PinObject};

pub struct Sweep {
    pub orphans: OrphanPlan,
    pub uploads: Vec<PendingUpload>,
    pub pins: Vec<PinObject>,
    pub leases: Vec<LeaseFacts>,
    pub entries: Vec<Found>,
}

pub fn plan_sweep(config: &RetentionConfig, observed: &Observed, now: Timestamp, override_anomaly: bool) -> Sweep {
    let (pins, reported) = (observed.pins(), observed.last.state.reported(now));
    let surroundings = Surroundings {
        prefix: &config.store.prefix,
        manifests: &observed.manifests,
        pins: &pins,
        working: &observed.working.ids,
        reported: &reported,
        now,
        age: config.sweep_after,
        override_anomaly,
    };
    Sweep {
        orphans: plan_orphans(&observed.found, &surroundings),
        uploads: stale_uploads(observed.uploads.clone(), &observed.leases, &surroundings),
        pins: observed.pins.iter().filter(|object| !object.pin.is_active(now)).cloned().collect(),
        leases: dead_leases(observed.leases.clone(), &surroundings),
        entries: finished_entries(observed.entries.clone(), &surroundings),
    }
}

/// One thing to be swept.
enum Item<'a> {
    Orphan(&'a Orphan),
    Upload(&'a PendingUpload),
    Pin(&'a PinObject),
    Lease(&'a LeaseFacts),
    Entry(&'a Found),
}

impl Item<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Orphan(orphan) => &orphan.key,
            Self::Upload(upload) => &upload.key,
            Self::Pin(pin) => &pin.key,
            Self::Lease(lease) => &lease.key,
            Self::Entry(entry) => &entry.key,
        }
    }
}

impl Executor<'_> {
    pub async fn sweep(&self, sweep: &Sweep, outcome: &mut Outcome) {
        let orphans = sweep.orphans.remove.iter().map(Item::Orphan);
        let uploads = sweep.uploads.iter().map(Item::Upload);
        let pins = sweep.pins.iter().map(Item::Pin);
        // Leases last: they name the uploads.
        let leases = sweep.leases.iter().map(Item::Lease);
        let items = orphans.chain(uploads).chain(pins).chain(sweep.entries.iter().map(Item::Entry)).chain(leases);
        let swept = futures::stream::iter(items.map(|item| async move {
            let result = if self.is_late() { None } else { Some(self.sweep_one(&item).await) };
            (item, result)
        }));
        let mut swept = swept.buffered(self.concurrency);
        while let Some((item, result)) = swept.next().await {
            match result {
                None => outcome.not_begun += 1,
                Some(Ok(None)) => {
                    tracing::info!(key = item.key(), "swept");
                    match item {
                        Item::Orphan(orphan) => outcome.orphans_removed.push(orphan.key.clone()),
                        Item::Upload(_) => outcome.uploads_aborted += 1,
                        Item::Pin(_) => outcome.pins_removed += 1,
                        Item::Lease(_) => outcome.leases_removed += 1,
                        Item::Entry(_) => outcome.entries_removed += 1,
                    }
                }
                Some(Ok(Some(why))) => outcome.postponed.push(format!("{}: {why}", item.key())),
                Some(Err(problem)) => outcome.failures.push(format!("{}: {problem}", item.key())),
            }
        }
    }

    /// `Some`: why it was left alone after all.
    async fn sweep_one(&self, item: &Item<'_>) -> Result<Option<String>, String> {
        let told = |error: StoreError| chain(&error);
        let removal = match item {
            Item::Orphan(orphan) => return self.sweep_orphan(orphan).await,
            Item::Upload(upload) => {
                self.store.abort_upload(&upload.key, &upload.upload_id).await.map_err(told)?;
                Removal::Removed
            }
            Item::Pin(pin) => self.store.remove(&pin.key, Some(&pin.etag)).await.map_err(told)?,
            Item::Lease(lease) => self.store.remove(&lease.key, Some(&lease.etag)).await.map_err(told)?,
            Item::Entry(entry) => self.store.remove(&entry.key, Some(&entry.etag)).await.map_err(told)?,
        };
        Ok((removal == Removal::Changed).then(|| "it has changed since it was looked at".to_owned()))
    }

    async fn sweep_orphan(&self, orphan: &Orphan) -> Result<Option<String>, String> {
        let told = |error: StoreError| chain(&error);
        if self.store.get(&ObjectKey::Manifest(orphan.backup_id)).await.map_err(told)?.is_some() {
            return Ok(Some("its manifest has appeared".to_owned()));
        }
        if let Some(by) = self.pinned(orphan.backup_id).await.map_err(told)? {
            return Ok(Some(format!("it is pinned by {by}")));
        }
        // Not by a condition on the ETag: that takes the right to read the dump.
        let present = self.store.inventory(&orphan.key).await.map_err(told)?;
        let unchanged = match &orphan.etag {
            Some(etag) => match present.iter().find(|object| object.key == orphan.key) {
                Some(object) => object.etag == *etag && object.last_modified == orphan.last_modified,
                None => return Ok(None),
            },
            None => present.iter().map(|object| object.last_modified).max() == Some(orphan.last_modified),
        };
        if !unchanged {
            return Ok(Some("it has changed since it was looked at".to_owned()));
        }
        self.delete(&orphan.key).await.map_err(told)?.map_or(Ok(None), Err)
    }
}
