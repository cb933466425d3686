//! The manifest: the JSON document that makes a backup exist, and the single source of truth about it.
//!
//! Its field names are a public contract. Unknown fields are kept out of the way of old readers: a reader of
//! version 1 ignores what it does not know and refuses another `manifest_version`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{BackupId, Environment, Fingerprint, TablePattern};

pub const MANIFEST_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub timestamp: BackupId,
    pub export_date: String,
    pub source: Source,
    /// The older per-format summary that operators read; this project fills `artifacts`.
    #[serde(default)]
    pub exports: BTreeMap<String, Value>,
    #[serde(default)]
    pub databases_created: BTreeMap<String, String>,
    pub export_duration_minutes: u64,
    pub export_complete: Timestamp,

    pub manifest_version: u32,
    pub state: State,
    pub environment: Environment,
    pub purpose: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    pub created_by: String,
    /// The identity of the event that asked for this backup; a redelivery carries the same.
    pub event_key: String,
    pub server: Server,
    #[serde(default)]
    pub artifacts: BTreeMap<String, Artifact>,
    #[serde(default)]
    pub selection: Selection,
    #[serde(default)]
    pub tables: Vec<Table>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<LargeObjects>,
    pub schema_fingerprint: String,
    pub durations_seconds: Durations,
    #[serde(default)]
    pub warnings: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `postgresql` for a logical export, `rds` where an RDS instance is named by configuration.
    #[serde(rename = "type")]
    pub kind: String,
    pub instance: String,
    pub database: String,
    /// The exported PostgreSQL snapshot of a logical export, the RDS snapshot of an RDS export.
    pub snapshot_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Complete,
    /// A tombstone: the artifacts are gone, the record stays.
    Expired,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `server_version`, such as `16.4`.
    pub version: String,
    pub major: u32,
    pub system_identifier: Option<String>,
    pub wal_lsn: Option<String>,
    /// `primary` or `standby`.
    pub role: String,
    pub encoding: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    pub size_bytes: u64,
    /// `algorithm:hexadecimal` of the whole object, such as `crc64nvme:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// `sha256:hexadecimal` of what lies before the first data block: definitions, sequence values, offsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_checksum: Option<String>,
    /// `zstd:3`, `gzip:1` or `none`.
    pub compression: String,
    /// `1.14`, `1.15` or `1.16`.
    pub archive_version: String,
    /// The oldest `pg_restore` major that reads the artifact.
    pub pg_restore_major: u32,
    pub pg_dump_version: String,
}

/// Which tables the request chose; empty lists mean all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selection {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<TablePattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<TablePattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_data: Vec<TablePattern>,
}

/// What a schedule or an alarm starts takes its tables from the deployment's configuration.
pub fn is_as_configured(event_key: &str, environment: &Environment, database: &str) -> bool {
    let event = event_key.strip_prefix(&format!("{environment}/{database} ")).unwrap_or_default();
    event.starts_with("schedule:") || event.starts_with("alarm:")
}

/// A backup of chosen tables stands for no other, unless they are all that the deployment backs up.
pub fn is_of_chosen_tables(chooses: bool, event_key: &str, environment: &Environment, database: &str) -> bool {
    chooses && !is_as_configured(event_key, environment, database)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub rows: u64,
    /// COPY text, newlines included, before compression.
    pub bytes: u64,
    pub fingerprint: Fingerprint,
    /// The columns read, in order: what the fingerprint is taken over.
    pub columns: Vec<String>,
    /// The condition that chose the rows, where not all are read (extension configuration tables).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Where the table's data block lies in the dump, and how long it is.
    pub offset: u64,
    pub length: u64,
    /// Runs of whole rows that can be decompressed on their own, in the order they lie in the dump.
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Byte offset in the dump of the piece's first chunk.
    pub offset: u64,
    /// Stored bytes, chunk lengths included.
    pub length: u64,
    /// COPY text, before compression.
    pub bytes: u64,
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    pub count: u64,
    pub bytes: u64,
    /// Over one row a large object: its oid in decimal, a tab, and the XXH3-128 of its content in hexadecimal.
    pub fingerprint: Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// From the invocation to the first row read.
    pub to_first_row: f64,
    pub data: f64,
    pub commit: f64,
    pub total: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub at: Timestamp,
    /// What proved it: `read-back` (stored object's size, checksum and table of contents) or `restore-drill`.
    pub by: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is not valid JSON of version {MANIFEST_VERSION}")]
    Malformed(#[source] serde_json::Error),
    #[error("manifest version {found} is not one this release reads ({MANIFEST_VERSION})")]
    UnknownVersion { found: String },
    #[error("it is of an artifact that cannot be restored")]
    NotRestorable,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError::UnknownVersion`] for any other `manifest_version`, before anything else is looked at;
    /// [`ManifestError::NotRestorable`] for what says so of itself.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        match value.get("manifest_version") {
            Some(version) if version.as_u64() == Some(u64::from(MANIFEST_VERSION)) => {}
            other => {
                return Err(ManifestError::UnknownVersion {
                    found: other.map_or_else(|| "(none)".to_owned(), Value::to_string),
                });
            }
        }
        // Of an RDS export, say: whatever else it holds, it is no backup that somebody looks for to restore.
        if value.get("restorable") == Some(&Value::Bool(false)) {
            return Err(ManifestError::NotRestorable);
        }
        serde_json::from_value(value).map_err(ManifestError::Malformed)
    }

    /// Pretty-printed JSON with a final newline, for people and `jq`.
    pub fn render(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// COPY text of all tables and the content of large objects, before compression.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum::<u64>()
            + self.large_objects.as_ref().map_or(0, |objects| objects.bytes)
    }
}
