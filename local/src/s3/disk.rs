//! The store under a data directory: content files, and one JSON file for each bucket and each object version.
//!
//! A version's file is written before the version becomes visible, so a restart finds all that was acknowledged. Uploads in
//! progress are not kept: their content files are swept at the next start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::blob::{Blob, Content, Segment};
use super::checksum::ObjectChecksum;
use super::model::{Attributes, Bucket, BucketSettings, Thaw, Version};

#[derive(Debug, thiserror::Error)]
#[error("cannot use {path} of the data directory")]
pub struct DiskError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    /// Set when the server goes: from then on dropping an object in memory leaves its file.
    closing: Arc<AtomicBool>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    key: String,
    id: String,
    sequence: u64,
    last_modified: Timestamp,
    delete_marker: bool,
    etag: String,
    segments: Vec<StoredSegment>,
    part_sizes: Vec<u64>,
    checksum: Option<ObjectChecksum>,
    attributes: Attributes,
    thaw: Option<Thaw>,
}

#[derive(Serialize, Deserialize)]
struct StoredSegment {
    file: String,
    offset: u64,
    size_bytes: u64,
}

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, DiskError> {
        for name in ["buckets", "content"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        Ok(Self { root: root.to_owned(), closing: Arc::default() })
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(super) fn new_content(&self) -> (PathBuf, Arc<AtomicBool>) {
        let name = uuid::Uuid::new_v4().simple().to_string();
        (self.root.join("content").join(name), Arc::clone(&self.closing))
    }

    pub(super) fn save_bucket(&self, name: &str, settings: &BucketSettings) -> Result<(), DiskError> {
        let versions = self.versions(name);
        fs::create_dir_all(&versions).map_err(at(&versions))?;
        write_json(&self.bucket(name).join("bucket.json"), settings)
    }

    pub(super) fn remove_bucket(&self, name: &str) -> Result<(), DiskError> {
        let path = self.bucket(name);
        fs::remove_dir_all(&path).map_err(at(&path))
    }

    pub(super) fn save_version(&self, bucket: &str, key: &str, version: &Version) -> Result<(), DiskError> {
        let stored = StoredVersion {
            key: key.to_owned(),
            id: version.id.clone(),
            sequence: version.sequence,
            last_modified: version.last_modified,
            delete_marker: version.delete_marker,
            etag: version.etag.clone(),
            segments: version.content.segments.iter().filter_map(StoredSegment::of).collect(),
            part_sizes: version.part_sizes.clone(),
            checksum: version.checksum.clone(),
            attributes: version.attributes.clone(),
            thaw: version.thaw,
        };
        write_json(&self.version(bucket, version.sequence), &stored)
    }

    pub(super) fn remove_version(&self, bucket: &str, sequence: u64) -> Result<(), DiskError> {
        let path = self.version(bucket, sequence);
        fs::remove_file(&path).map_err(at(&path))
    }

    /// Reads everything back, sweeps content that no version refers to, and tells the highest sequence in use.
    pub(super) fn load(&self) -> Result<(BTreeMap<String, Bucket>, u64), DiskError> {
        let mut buckets = BTreeMap::new();
        let mut blobs = HashMap::new();
        let mut highest = 0;
        for name in names(&self.root.join("buckets"))? {
            let mut bucket = Bucket::new(read_json(&self.bucket(&name).join("bucket.json"))?);
            let mut versions = Vec::new();
            for file in names(&self.versions(&name))?.into_iter().filter(|file| file.ends_with(".json")) {
                versions.push(read_json::<StoredVersion>(&self.versions(&name).join(file))?);
            }
            versions.sort_by_key(|version| version.sequence);
            for stored in versions {
                highest = highest.max(stored.sequence);
                let (key, version) = self.revive(stored, &mut blobs)?;
                let held = bucket.objects.entry(key).or_default();
                // A crash between writing a null version and removing the one it replaces leaves both.
                held.retain(|older: &Arc<Version>| older.id != version.id);
                held.push(Arc::new(version));
            }
            buckets.insert(name, bucket);
        }
        let content = self.root.join("content");
        let used: HashSet<&String> = blobs.keys().collect();
        for orphan in names(&content)?.iter().filter(|name| !used.contains(name)) {
            let path = content.join(orphan);
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok((buckets, highest))
    }

    fn revive(
        &self,
        stored: StoredVersion,
        blobs: &mut HashMap<String, Arc<Blob>>,
    ) -> Result<(String, Version), DiskError> {
        let mut segments = Vec::new();
        for segment in stored.segments {
            let blob = match blobs.get(&segment.file) {
                Some(blob) => Arc::clone(blob),
                None => {
                    let path = self.root.join("content").join(&segment.file);
                    let size_bytes = fs::metadata(&path).map_err(at(&path))?.len();
                    let blob = Arc::new(Blob::from_file(path, size_bytes, Arc::clone(&self.closing)));
                    blobs.insert(segment.file, Arc::clone(&blob));
                    blob
                }
            };
            segments.push(Segment { blob, offset: segment.offset, size_bytes: segment.size_bytes });
        }
        let content = Content { segments };
        let version = Version {
            id: stored.id,
            sequence: stored.sequence,
            last_modified: stored.last_modified,
            delete_marker: stored.delete_marker,
            etag: stored.etag,
            size_bytes: content.size_bytes(),
            content,
            part_sizes: stored.part_sizes,
            checksum: stored.checksum,
            attributes: stored.attributes,
            thaw: stored.thaw,
        };
        Ok((stored.key, version))
    }

    fn bucket(&self, name: &str) -> PathBuf {
        self.root.join("buckets").join(name)
    }

    fn versions(&self, bucket: &str) -> PathBuf {
        self.bucket(bucket).join("versions")
    }

    fn version(&self, bucket: &str, sequence: u64) -> PathBuf {
        self.versions(bucket).join(format!("{sequence:016}.json"))
    }
}

impl StoredSegment {
    fn of(segment: &Segment) -> Option<Self> {
        let file = segment.blob.file_name()?;
        Some(Self { file, offset: segment.offset, size_bytes: segment.size_bytes })
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError { path, source }
}

fn names(directory: &Path) -> Result<Vec<String>, DiskError> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(at(directory))?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Through a temporary file: a crash leaves the old file or the new one.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DiskError> {
    let bytes = serde_json::to_vec(value).map_err(|e| at(path)(e.into()))?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, DiskError> {
    let bytes = fs::read(path).map_err(at(path))?;
    serde_json::from_slice(&bytes).map_err(|e| at(path)(e.into()))
}
