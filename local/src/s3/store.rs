//! The state behind the server, and the view that tests have of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use s3s::{S3Result, s3_error};

use super::S3Options;
use super::access::{Keys, Permissions};
use super::blob::Sink;
use super::disk::{Disk, DiskError};
use super::faults::Faults;
use super::model::{Bucket, BucketSettings, NULL_VERSION, Version, Versioning};

/// Older records go: a server that runs for days does not grow by its log.
const KEPT_REQUESTS: usize = 200_000;

pub struct Store {
    state: Mutex<BTreeMap<String, Bucket>>,
    pub(super) keys: Mutex<Keys>,
    pub(super) no_list: AtomicBool,
    pub(super) region: String,
    faults: Faults,
    requests: Mutex<VecDeque<RequestRecord>>,
    thaw_delay: Mutex<Duration>,
    sequence: AtomicU64,
    disk: Option<Disk>,
    discard_parts: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct BucketOptions {
    pub versioning: bool,
    /// Implies versioning.
    pub object_lock: bool,
}

/// One request that the server has answered, or has cut off.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Such as `UploadPart`; empty where the request was refused before it was understood.
    pub operation: String,
    pub bucket: Option<String>,
    pub key: Option<String>,
    /// Zero where the connection was cut instead of a response.
    pub status: u16,
    pub at: Timestamp,
    /// Bytes of the request body, with its chunk framing where it had one.
    pub request_bytes: u64,
    /// The response's Content-Length.
    pub response_bytes: u64,
    /// The raw query string, which has the part number and the upload id.
    pub query: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    pub key: String,
    pub upload_id: String,
    pub parts: usize,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSummary {
    pub key: String,
    pub size: u64,
    pub version_id: String,
    pub is_latest: bool,
    pub delete_marker: bool,
    pub storage_class: String,
    pub last_modified: Timestamp,
}

impl Store {
    pub(super) fn open(options: &S3Options) -> Result<Self, DiskError> {
        let disk = options.data_dir.as_deref().map(Disk::open).transpose()?;
        let (buckets, sequence) = disk.as_ref().map(Disk::load).transpose()?.unwrap_or_default();
        let mut keys = Keys::default();
        keys.add(&options.access_key, &options.secret_key, None);
        Ok(Self {
            state: Mutex::new(buckets),
            keys: Mutex::new(keys),
            no_list: AtomicBool::new(false),
            region: options.region.clone(),
            faults: Faults::default(),
            requests: Mutex::default(),
            thaw_delay: Mutex::new(Duration::from_secs(1)),
            sequence: AtomicU64::new(sequence),
            disk,
            discard_parts: options.discard_parts,
        })
    }

    /// Creates the bucket, or leaves the one that exists as it is.
    pub fn create_bucket(&self, name: &str, options: BucketOptions) -> Result<(), DiskError> {
        let mut state = self.lock();
        if state.contains_key(name) {
            return Ok(());
        }
        let versioned = options.versioning || options.object_lock;
        let settings = BucketSettings {
            created: now(),
            versioning: if versioned { Versioning::Enabled } else { Versioning::Off },
            object_lock: options.object_lock,
            default_retention: None,
            lifecycle: None,
            lifecycle_minimum_size: None,
        };
        if let Some(disk) = &self.disk {
            disk.save_bucket(name, &settings)?;
        }
        state.insert(name.to_owned(), Bucket::new(settings));
        Ok(())
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    pub fn requests(&self) -> Vec<RequestRecord> {
        self.log().iter().cloned().collect()
    }

    pub fn clear_requests(&self) {
        self.log().clear();
    }

    /// Uploads that were neither completed nor aborted.
    pub fn pending_uploads(&self, bucket: &str) -> Vec<PendingUpload> {
        let state = self.lock();
        let uploads = state.get(bucket).map(|bucket| &bucket.uploads).into_iter().flatten();
        uploads
            .map(|((key, upload_id), upload)| PendingUpload {
                key: key.clone(),
                upload_id: upload_id.clone(),
                parts: upload.parts.len(),
                bytes: upload.parts.values().map(|part| part.size_bytes).sum(),
            })
            .collect()
    }

    /// Every version and delete marker, by key, the latest first.
    pub fn objects(&self, bucket: &str) -> Vec<ObjectSummary> {
        let state = self.lock();
        let objects = state.get(bucket).map(|bucket| &bucket.objects).into_iter().flatten();
        objects
            .flat_map(|(key, versions)| {
                versions.iter().rev().enumerate().map(|(age, version)| ObjectSummary {
                    key: key.clone(),
                    size: version.size_bytes,
                    version_id: version.id.clone(),
                    is_latest: age == 0,
                    delete_marker: version.delete_marker,
                    storage_class: version.attributes.storage_class.clone(),
                    last_modified: version.last_modified,
                })
            })
            .collect()
    }

    /// Adds a key pair; without permissions it may do everything.
    pub fn add_key(&self, access_key: &str, secret_key: &str, permissions: Option<Permissions>) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).add(access_key, secret_key, permissions);
    }

    /// Restricts a key pair that exists.
    pub fn restrict(&self, access_key: &str, permissions: Permissions) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).restrict(access_key, permissions);
    }

    /// Takes the list permissions from every key pair: listings are refused, and a missing key is a 403.
    pub fn set_no_list_permission(&self, on: bool) {
        self.no_list.store(on, Ordering::Relaxed);
    }

    /// How long a RestoreObject takes from now on; one second unless set.
    pub fn set_thaw_delay(&self, delay: Duration) {
        *self.thaw_delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Ends the thaw of every object that is being thawed.
    pub fn finish_thaws(&self) {
        let now = Timestamp::now();
        self.amend_all(|_, version| {
            if let Some(thaw) = version.thaw.as_mut().filter(|thaw| thaw.ready_at > now) {
                thaw.ready_at = now;
            }
        });
    }

    /// Moves a key's versions to a storage class, as a lifecycle rule does.
    pub fn transition(&self, key: &str, storage_class: &str) {
        self.amend_all(|path, version| {
            if path == key && !version.delete_marker {
                version.attributes.storage_class = storage_class.to_owned();
                version.thaw = None;
            }
        });
    }

    /// In memory only.
    fn amend_all(&self, change: impl Fn(&str, &mut Version)) {
        for bucket in self.lock().values_mut() {
            for (key, versions) in &mut bucket.objects {
                versions.iter_mut().for_each(|version| change(key, Arc::make_mut(version)));
            }
        }
    }

    /// Makes every object as old as if it had been written so long before. In memory only.
    pub fn age_objects(&self, by: Duration) {
        self.amend_all(|_, version| {
            version.last_modified = version.last_modified.checked_sub(by).unwrap_or(Timestamp::MIN);
        });
    }

    /// Makes every upload in progress as old as if it had been begun so long before.
    pub fn age_uploads(&self, by: Duration) {
        for bucket in self.lock().values_mut() {
            for upload in bucket.uploads.values_mut() {
                upload.initiated = upload.initiated.checked_sub(by).unwrap_or(Timestamp::MIN);
            }
        }
    }

    pub(super) fn thaw_delay(&self) -> Duration {
        *self.thaw_delay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&self, record: RequestRecord) {
        let mut log = self.log();
        if log.len() == KEPT_REQUESTS {
            log.pop_front();
        }
        log.push_back(record);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, VecDeque<RequestRecord>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// From now on the files stay, whatever becomes of the objects in memory.
    pub(super) fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }

    pub(super) fn discards(&self) -> bool {
        self.discard_parts
    }

    pub(super) fn kept_sink(&self) -> Sink {
        match &self.disk {
            None => Sink::Memory,
            Some(disk) => {
                let (path, closing) = disk.new_content();
                Sink::File { path, closing }
            }
        }
    }

    /// Makes the version the latest of its key, as the bucket's versioning has it. Returns the version id to show, if any.
    ///
    /// The disk is written under the lock: what a reader sees is what a restart brings back.
    pub(super) fn insert(
        &self,
        name: &str,
        bucket: &mut Bucket,
        key: &str,
        mut version: Version,
    ) -> S3Result<Option<String>> {
        version.sequence = self.next_sequence();
        let versioning = bucket.settings.versioning;
        version.id = match versioning {
            Versioning::Enabled => uuid::Uuid::new_v4().simple().to_string(),
            Versioning::Off | Versioning::Suspended => NULL_VERSION.to_owned(),
        };
        if let Some(disk) = &self.disk {
            disk.save_version(name, key, &version).map_err(internal)?;
        }
        if versioning != Versioning::Enabled {
            self.remove(name, bucket, key, NULL_VERSION)?;
        }
        let id = version.id.clone();
        bucket.objects.entry(key.to_owned()).or_default().push(Arc::new(version));
        Ok((versioning != Versioning::Off).then_some(id))
    }

    /// Removes one version for good.
    pub(super) fn remove(
        &self,
        name: &str,
        bucket: &mut Bucket,
        key: &str,
        id: &str,
    ) -> S3Result<Option<Arc<Version>>> {
        let Some(versions) = bucket.objects.get_mut(key) else { return Ok(None) };
        let Some(position) = versions.iter().position(|version| version.id == id) else { return Ok(None) };
        if let Some(disk) = &self.disk {
            disk.remove_version(name, versions[position].sequence).map_err(internal)?;
        }
        let removed = versions.remove(position);
        if versions.is_empty() {
            bucket.objects.remove(key);
        }
        Ok(Some(removed))
    }

    /// Changes a version's metadata in place.
    pub(super) fn amend(
        &self,
        name: &str,
        bucket: &mut Bucket,
        key: &str,
        id: &str,
        change: impl FnOnce(&mut Version),
    ) -> S3Result<()> {
        let found =
            bucket.objects.get_mut(key).and_then(|versions| versions.iter_mut().find(|version| version.id == id));
        let Some(version) = found else { return Err(s3_error!(NoSuchVersion)) };
        let mut changed = Version::clone(version);
        change(&mut changed);
        if let Some(disk) = &self.disk {
            disk.save_version(name, key, &changed).map_err(internal)?;
        }
        *version = Arc::new(changed);
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn internal(source: impl std::error::Error + Send + Sync + 'static) -> s3s::S3Error {
    s3s::S3Error::internal_error(source)
}

pub(super) fn bucket<'a>(state: &'a BTreeMap<String, Bucket>, name: &str) -> S3Result<&'a Bucket> {
    state.get(name).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
}

pub(super) fn bucket_mut<'a>(state: &'a mut BTreeMap<String, Bucket>, name: &str) -> S3Result<&'a mut Bucket> {
    state.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
}

/// The time in whole seconds, which is all that S3 shows.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
