//! Values without I/O: what a backup is called, where it lies, what it holds.

pub mod artifact;
pub mod backup_id;
pub mod environment;
pub mod export_task;
pub mod fingerprint;
pub mod manifest;
pub mod object_key;
pub mod pin;
pub mod put_aside;
pub mod rds;
pub mod table;
pub mod tombstone;

pub use artifact::{ArtifactKey, ArtifactKind};
pub use backup_id::BackupId;
pub use environment::Environment;
pub use fingerprint::{Fingerprint, TableDigest};
pub use manifest::Manifest;
pub use object_key::{ImportName, KeyPrefix, ObjectKey};
pub use pin::Pin;
pub use put_aside::PutAside;
pub use table::{QualifiedName, TablePattern};
