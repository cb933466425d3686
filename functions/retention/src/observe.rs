//! Everything a run has to know, from the bucket alone.

use std::collections::{BTreeSet, HashMap};

use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use holdfast_shared::config::RetentionConfig;
use holdfast_shared::domain::{ArtifactKind, BackupId, KeyPrefix, ObjectKey, Pin};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::retention::catalog::Catalog;
use holdfast_shared::plan::retention::record::{Record, Unreadable};
use holdfast_shared::plan::retention::sweep::{Found, LeaseFacts, PendingUpload};
use holdfast_shared::plan::snapshot_export::run::Run;
use holdfast_shared::store::lease::{LeaseRecord, LeaseState};
use holdfast_shared::store::{Store, StoreError};
use jiff::{SignedDuration, Timestamp};

use crate::state::Loaded;

const METADATA: &str = "postgres-exports/metadata/";
const PINS: &str = "pins/";
const EXPORT_RUNS: &str = "runs/rds-exports/";
/// No run stays as it is for longer.
const RUNS_LAST: SignedDuration = SignedDuration::from_hours(30 * 24);
const LEASES: [&str; 2] = ["runs/leases/", "restores/leases/"];
const WAITING: &str = "restores/waiting/";
/// Longer than a listing takes and two clocks differ by.
const JUST_MADE: SignedDuration = SignedDuration::from_hours(1);
/// Of what a warning is about, so many are named.
const NAMED: usize = 5;
/// `20250621-143000`
const ID_LENGTH: usize = 15;

pub struct Observed {
    pub catalog: Catalog,
    /// Every backup that has a manifest, readable or not.
    pub manifests: BTreeSet<BackupId>,
    /// How many of them are not understood, or could not be read.
    pub unreadable: usize,
    /// Why the run fails although all else is done: manifests that may not be read.
    pub refused: Option<String>,
    pub pins: Vec<PinObject>,
    pub leases: Vec<LeaseFacts>,
    pub working: Working,
    /// Of restores that wait, or did.
    pub entries: Vec<Found>,
    pub uploads: Vec<PendingUpload>,
    /// What lies in the folders of artifacts.
    pub found: Vec<Found>,
    pub last: Loaded,
    pub warnings: Vec<String>,
}

/// Exports of RDS snapshots that have not ended.
#[derive(Debug, Default)]
pub struct Working {
    pub ids: BTreeSet<BackupId>,
    pub snapshots: BTreeSet<String>,
    /// One cannot be read, and may be of any snapshot.
    pub unreadable: bool,
}

#[derive(Debug, Clone)]
pub struct PinObject {
    pub key: String,
    pub etag: String,
    pub pin: Pin,
    /// As good as a pin that never ends.
    pub unreadable: bool,
}

impl Observed {
    pub fn pins(&self) -> Vec<Pin> {
        self.pins.iter().map(|object| object.pin.clone()).collect()
    }
}

pub async fn observe(config: &RetentionConfig, store: &Store) -> Result<Observed, Fault> {
    let prefix = &config.store.prefix;
    let root = prefix.as_str();
    let at = |folder: &str| format!("{root}{folder}");
    // Artifacts before manifests: a backup that is finished in between has its manifest seen.
    let folders = ArtifactKind::ALL.map(|kind| at(kind.folder()));
    let found = try_join_all(folders.iter().map(|folder| store.inventory(folder)));
    let uploads = try_join_all(folders.iter().map(|folder| store.pending_uploads(folder)));
    let began = Timestamp::now();
    let (found, uploads) = tokio::try_join!(found, uploads)?;
    let found = found.concat();
    let sizes: HashMap<&str, u64> = found.iter().map(|object| (object.key.as_str(), object.size_bytes)).collect();

    let (metadata, waiting, lease_folders) = (at(METADATA), at(WAITING), LEASES.map(at));
    let (listed, entries, pins, leases) = tokio::try_join!(
        store.inventory(&metadata),
        store.inventory(&waiting),
        all_pins(store, prefix),
        leases(store, &lease_folders)
    )?;
    let (leases, mut warnings) = leases;
    let working = working(store, &at(EXPORT_RUNS)).await?;
    let last = Loaded::read(store).await?;
    let mut catalog = Catalog::new(config.thresholds);
    let mut manifests = BTreeSet::new();
    let mut newest_first: Vec<(BackupId, Found)> = Vec::new();
    for object in listed {
        match manifest_id(&object.key, prefix) {
            Some(id) => newest_first.push((id, object)),
            None if object.key.ends_with('/') => {}
            None => {
                manifests.extend(named_in(&object.key));
                let problem = "it does not lie where a manifest lies".to_owned();
                catalog.add_unreadable(Unreadable { key: object.key, problem });
            }
        }
    }
    newest_first.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
    manifests.extend(newest_first.iter().map(|(id, _)| *id));

    let sizes = &sizes;
    let reading = newest_first.into_iter().map(|(id, object)| async move {
        let mut refused = false;
        let mut record = match store.read_listed(&object.key).await {
            Ok(None) => Err("it has just vanished".to_owned()),
            Ok(Some((json, etag))) => Record::read(id, etag, &json, prefix),
            Err(error) if error.is_refused() => {
                refused = true;
                Err(chain(&error))
            }
            Err(error) => return Err(error),
        };
        // The artifacts were listed before: those of a backup that has just been made may be younger than the list.
        let settled = began.duration_since(object.last_modified) > JUST_MADE;
        if let (Ok(record), true) = (&mut record, settled) {
            record.missing = missing(record, sizes);
        }
        Ok((object.key, record, refused))
    });
    // In order, because that is how the catalog takes them.
    let mut reading = futures::stream::iter(reading).buffered(config.concurrency);
    let (mut unreadable, mut refused) = (0, Vec::new());
    while let Some((key, record, is_refused)) = reading.try_next().await? {
        match record {
            Ok(record) => catalog.add(record),
            Err(problem) => {
                unreadable += 1;
                if is_refused {
                    refused.push((key.clone(), problem.clone()));
                }
                catalog.add_unreadable(Unreadable { key, problem });
            }
        }
    }
    drop(reading);
    warnings.extend(told_missing(&catalog));
    warnings.extend(
        pins.iter().filter(|pin| pin.unreadable).map(|pin| format!("{} is not readable, and pins for ever", pin.key)),
    );
    Ok(Observed {
        catalog,
        manifests,
        unreadable,
        refused: told_refused(&refused),
        pins,
        leases,
        working,
        entries,
        uploads: uploads.concat(),
        found,
        last,
        warnings,
    })
}

/// The runs of RDS snapshot exports that have not ended; one that cannot be read may not have.
async fn working(store: &Store, folder: &str) -> Result<Working, StoreError> {
    let mut working = Working::default();
    let recent = Timestamp::now() - RUNS_LAST;
    for object in store.inventory(folder).await?.into_iter().filter(|object| object.last_modified > recent) {
        let name = object.key.strip_prefix(folder).and_then(|name| name.strip_suffix(".json"));
        let Some(id) = name.and_then(|name| name.parse::<BackupId>().ok()) else { continue };
        let Some((json, _)) = store.read_listed(&object.key).await? else { continue };
        match serde_json::from_slice::<Run>(&json) {
            Ok(run) if !run.state.is_open() => continue,
            Ok(run) => drop(working.snapshots.insert(run.snapshot_id)),
            Err(_) => working.unreadable = true,
        }
        working.ids.insert(id);
    }
    Ok(working)
}

/// What a manifest lists and can be restored from, and what is not there as it was written.
fn missing(record: &Record, sizes: &HashMap<&str, u64>) -> Vec<ArtifactKind> {
    let missing = record.artifacts.iter().filter(|artifact| {
        let size = sizes.get(artifact.key.as_str());
        // Older manifests do not say how large an artifact is.
        let whole = size.is_some_and(|size| *size == artifact.size_bytes || artifact.size_bytes == 0);
        artifact.kind.is_restorable() && !whole
    });
    missing.map(|artifact| artifact.kind).collect()
}

fn told_missing(catalog: &Catalog) -> Option<String> {
    let without: Vec<&Record> = catalog.records().iter().filter(|record| !record.missing.is_empty()).collect();
    let named: Vec<String> = without.iter().take(NAMED).map(|record| record.id.to_string()).collect();
    let more = if without.len() > NAMED { ", …" } else { "" };
    (!without.is_empty()).then(|| {
        let (count, named) = (without.len(), named.join(", "));
        format!("{count} backups are listed whose data is not in the bucket as it was written: {named}{more}")
    })
}

/// Their backups are kept and count for nothing: a run that says no more than that would be a success in which nothing expires.
fn told_refused(refused: &[(String, String)]) -> Option<String> {
    let (_, problem) = refused.first()?;
    let named: Vec<&str> = refused.iter().take(NAMED).map(|(key, _)| key.as_str()).collect();
    let more = if refused.len() > NAMED { ", …" } else { "" };
    Some(format!("{} manifests may not be read: {}{more}: {problem}", refused.len(), named.join(", ")))
}

/// The backup that a file among the manifests is about, wherever it lies: what is its is no orphan.
fn named_in(key: &str) -> Option<BackupId> {
    key.rsplit('/').next()?.get(..ID_LENGTH)?.parse().ok()
}

/// The backup whose manifest lies under a key.
fn manifest_id(key: &str, prefix: &KeyPrefix) -> Option<BackupId> {
    let name = key.rsplit('/').next()?.strip_suffix(".json")?;
    let id: BackupId = name.parse().ok()?;
    (ObjectKey::Manifest(id).render(prefix) == key).then_some(id)
}

async fn all_pins(store: &Store, prefix: &KeyPrefix) -> Result<Vec<PinObject>, StoreError> {
    pins_under(store, &format!("{}{PINS}", prefix.as_str()), prefix).await
}

/// A backup's pins as they are now.
pub async fn pins_of(store: &Store, id: BackupId) -> Result<Vec<PinObject>, StoreError> {
    let prefix = &store.config().prefix;
    pins_under(store, &ObjectKey::pins_of(id, prefix), prefix).await
}

async fn pins_under(store: &Store, folder: &str, prefix: &KeyPrefix) -> Result<Vec<PinObject>, StoreError> {
    let root = format!("{}{PINS}", prefix.as_str());
    let mut pins = Vec::new();
    for object in store.inventory(folder).await? {
        let backup_id = object.key.strip_prefix(&root).and_then(|path| path.split('/').next()?.parse().ok());
        // A key that names no backup pins none.
        let Some(backup_id) = backup_id else { continue };
        let json = match store.read_listed(&object.key).await {
            Ok(None) => continue,
            Ok(Some((json, _))) => Some(json),
            Err(error) if error.is_absent_or_hidden() => None,
            Err(error) => return Err(error),
        };
        let pin: Option<Pin> = json.and_then(|json| serde_json::from_slice(&json).ok());
        let readable = pin.filter(|pin| pin.backup_id == backup_id);
        let unreadable = readable.is_none();
        let pin = readable.unwrap_or_else(|| Pin {
            backup_id,
            request_id: object.key.clone(),
            purpose: "not readable".to_owned(),
            expires: None,
            released: false,
        });
        pins.push(PinObject { key: object.key, etag: object.etag, pin, unreadable });
    }
    Ok(pins)
}

/// Leases, and what is to be said of those that cannot be read.
async fn leases(store: &Store, folders: &[String]) -> Result<(Vec<LeaseFacts>, Vec<String>), StoreError> {
    let (mut leases, mut warnings) = (Vec::new(), Vec::new());
    let objects = try_join_all(folders.iter().map(|folder| store.inventory(folder))).await?;
    for object in objects.concat() {
        let Some((json, etag)) = store.read_listed(&object.key).await? else { continue };
        match serde_json::from_slice::<LeaseRecord>(&json) {
            Ok(lease) => leases.push(LeaseFacts {
                key: object.key,
                etag,
                released: lease.state == LeaseState::Released,
                expires: lease.expires,
                upload_id: lease.upload.map(|upload| upload.upload_id),
            }),
            Err(error) => warnings.push(format!("{} is not a lease that can be read: {error}", object.key)),
        }
    }
    Ok((leases, warnings))
}
