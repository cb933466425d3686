//! What the store knows about buckets, object versions and uploads in progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::blob::Content;
use super::checksum::{Algorithm, Kind, ObjectChecksum, Sum};

/// The version id of objects written while versioning is not enabled.
pub(super) const NULL_VERSION: &str = "null";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Versioning {
    #[default]
    Off,
    Enabled,
    Suspended,
}

/// A bucket's settings, as they are kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BucketSettings {
    pub(super) created: Timestamp,
    pub(super) versioning: Versioning,
    pub(super) object_lock: bool,
    pub(super) default_retention: Option<DefaultRetention>,
    /// The lifecycle configuration as XML. It is stored and shown, and nothing acts on it.
    pub(super) lifecycle: Option<String>,
    pub(super) lifecycle_minimum_size: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct DefaultRetention {
    pub(super) mode: LockMode,
    pub(super) days: Option<i32>,
    pub(super) years: Option<i32>,
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) settings: BucketSettings,
    /// Versions of each key, the latest last. A key without versions is not in the map.
    pub(super) objects: BTreeMap<String, Vec<Arc<Version>>>,
    /// By key and upload id.
    pub(super) uploads: BTreeMap<(String, String), Upload>,
}

impl Bucket {
    pub(super) fn new(settings: BucketSettings) -> Self {
        Self { settings, objects: BTreeMap::new(), uploads: BTreeMap::new() }
    }

    pub(super) fn latest(&self, key: &str) -> Option<&Arc<Version>> {
        self.objects.get(key)?.last()
    }

    /// The current version, unless that is a delete marker.
    pub(super) fn current(&self, key: &str) -> Option<&Arc<Version>> {
        self.latest(key).filter(|version| !version.delete_marker)
    }

    pub(super) fn version(&self, key: &str, id: &str) -> Option<&Arc<Version>> {
        self.objects.get(key)?.iter().find(|version| version.id == id)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) id: String,
    /// Rises with every write to the store; orders the versions of a key.
    pub(super) sequence: u64,
    pub(super) last_modified: Timestamp,
    pub(super) delete_marker: bool,
    pub(super) etag: String,
    pub(super) size_bytes: u64,
    pub(super) content: Content,
    /// Sizes of the parts in order; empty unless it was a multipart upload.
    pub(super) part_sizes: Vec<u64>,
    pub(super) checksum: Option<ObjectChecksum>,
    pub(super) attributes: Attributes,
    pub(super) thaw: Option<Thaw>,
}

impl Version {
    pub(super) fn is_archived(&self) -> bool {
        matches!(self.attributes.storage_class.as_str(), "GLACIER" | "DEEP_ARCHIVE")
    }

    /// Whether the bytes can be read now: archived objects only while a restored copy exists.
    pub(super) fn is_readable(&self, now: Timestamp) -> bool {
        !self.is_archived() || self.thaw.is_some_and(|thaw| thaw.ready_at <= now && now < thaw.expires_at)
    }
}

/// What the writer of an object says about it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Attributes {
    pub(super) content_type: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) storage_class: String,
    pub(super) encryption: Option<String>,
    pub(super) kms_key: Option<String>,
    pub(super) tags: Vec<(String, String)>,
    pub(super) retention: Option<Retention>,
    pub(super) legal_hold: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retention {
    pub(super) mode: LockMode,
    pub(super) until: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LockMode {
    Governance,
    Compliance,
}

impl LockMode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Governance, Self::Compliance].into_iter().find(|mode| mode.name() == name)
    }
}

/// A temporary copy of an archived object.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Thaw {
    pub(super) ready_at: Timestamp,
    pub(super) expires_at: Timestamp,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub(super) initiated: Timestamp,
    pub(super) attributes: Attributes,
    pub(super) checksum: Option<(Algorithm, Kind)>,
    pub(super) parts: BTreeMap<i32, Part>,
}

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) etag: String,
    pub(super) content: Content,
    pub(super) size_bytes: u64,
    pub(super) uploaded: Timestamp,
    /// In the upload's algorithm, or CRC64NVME. None only for a discarded part whose client claimed none.
    pub(super) sum: Option<Sum>,
}
