//! Where each object lies in the bucket: the public contract, one variant a kind of object.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;

use crate::domain::{BackupId, Environment};

/// What stands before every key: nothing, or `{environment}/`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPrefix(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a key prefix (empty, or letters, digits, - and _ in segments that end with /)")]
pub struct KeyPrefixError {
    pub text: String,
}

impl FromStr for KeyPrefix {
    type Err = KeyPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let segment = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let valid = text.is_empty() || text.strip_suffix('/').is_some_and(|path| path.split('/').all(segment));
        if valid { Ok(Self(text.to_owned())) } else { Err(KeyPrefixError { text: text.to_owned() }) }
    }
}

impl KeyPrefix {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where `other`'s backups lie, as seen from `own`'s prefix: beside it where the prefix ends with the environment,
    /// under the same one where it does not.
    #[must_use]
    pub fn of_environment(&self, own: &Environment, other: &Environment) -> Self {
        let path = self.0.strip_suffix('/').unwrap_or_default();
        match path.strip_suffix(own.as_str()) {
            Some(parent) if parent.is_empty() || parent.ends_with('/') => Self(format!("{parent}{other}/")),
            _ => self.clone(),
        }
    }
}

/// The name of a dump that people put under `imports/`: a path of plain segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportName(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not the name of an import (a path below imports/ without empty, . or .. segments)")]
pub struct ImportNameError {
    pub text: String,
}

impl FromStr for ImportName {
    type Err = ImportNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let segment = |s: &str| !matches!(s, "" | "." | "..") && !s.contains(|c: char| c.is_control() || c == '\\');
        let valid = text.len() <= 512 && text.split('/').all(segment);
        if valid { Ok(Self(text.to_owned())) } else { Err(ImportNameError { text: text.chars().take(80).collect() }) }
    }
}

impl fmt::Display for ImportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Every object this project writes, and those it reads for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKey {
    /// The `pg_dump` custom-format archive.
    Dump(BackupId),
    /// The manifest; its presence is what makes a backup exist.
    Manifest(BackupId),
    /// The claim of a backup id by one run.
    Claim(BackupId),
    /// What became of one event, by the digest of its identity.
    Event(String),
    /// The lease under which one run at a time works on one database.
    Lease { environment: Environment, database: String },
    /// Says that a request is using a backup.
    Pin { backup_id: BackupId, request_id: String },
    /// The lease under which one retention run at a time works on a prefix.
    RetentionLease,
    /// What one retention run tells the next.
    RetentionState,
    /// The folder of Parquet files that RDS makes of a snapshot.
    RdsExport(BackupId),
    /// How far the export of an RDS snapshot is.
    RdsExportRun(BackupId),
    /// The record of one restore request, whatever became of it.
    RestoreRecord { date: Date, request_id: String },
    /// The lease under which one restore at a time works on one target.
    RestoreLease { environment: Environment, target: String },
    /// How long the last whole restore of a database took, in an environment.
    RestoreTimings { environment: Environment, database: String },
    /// Says that a restore waits; empty once it waits no longer.
    RestoreWaiting { environment: Environment, request_id: String },
    /// Failed passkeys of an environment's restores.
    Lockout { environment: Environment },
    /// A `pg_dump` archive from elsewhere: read, never written.
    Import(ImportName),
}

impl ObjectKey {
    /// The key in the bucket.
    pub fn render(&self, prefix: &KeyPrefix) -> String {
        let root = prefix.as_str();
        match self {
            Self::Dump(id) => format!("{root}postgres-exports/dumps/{}/{id}.dump", id.date()),
            Self::Manifest(id) => format!("{root}postgres-exports/metadata/{}/{id}.json", id.date()),
            Self::RdsExport(id) => format!("{}/export-{id}/", Self::rds_exports_of(*id, prefix)),
            Self::RdsExportRun(id) => format!("{root}runs/rds-exports/{id}.json"),
            Self::Claim(id) => format!("{root}runs/ids/{id}.json"),
            Self::Event(digest) => format!("{root}runs/events/{digest}.json"),
            Self::Lease { environment, database } => {
                format!("{root}runs/leases/{environment}/{}.json", encode_segment(database))
            }
            Self::RestoreRecord { date, request_id } => {
                format!("{root}restores/{date}/{}.json", encode_segment(request_id))
            }
            Self::RestoreLease { environment, target } => {
                format!("{root}restores/leases/{environment}/{}.json", encode_segment(target))
            }
            Self::RestoreTimings { environment, database } => {
                format!("{root}restores/timings/{environment}/{}.json", encode_segment(database))
            }
            Self::RestoreWaiting { environment, request_id } => {
                format!("{}{}.json", Self::waiting_of(environment, prefix), encode_segment(request_id))
            }
            Self::Lockout { environment } => format!("{root}restores/lockout/{environment}.json"),
            Self::Import(name) => format!("{root}imports/{name}"),
            Self::Pin { backup_id, request_id } => {
                format!("{}{}.json", Self::pins_of(*backup_id, prefix), encode_segment(request_id))
            }
            Self::RetentionLease => format!("{root}runs/retention/lease.json"),
            Self::RetentionState => format!("{root}runs/retention/state.json"),
        }
    }

    /// What RDS is given as the prefix: it adds the task's identifier. Without a slash at its end.
    pub fn rds_exports_of(backup_id: BackupId, prefix: &KeyPrefix) -> String {
        format!("{}postgres-exports/rds-exports/{}", prefix.as_str(), backup_id.date())
    }

    /// The folder that holds a backup's pins.
    pub fn pins_of(backup_id: BackupId, prefix: &KeyPrefix) -> String {
        format!("{}pins/{backup_id}/", prefix.as_str())
    }

    /// The folder that names an environment's waiting restores.
    pub fn waiting_of(environment: &Environment, prefix: &KeyPrefix) -> String {
        format!("{}restores/waiting/{environment}/", prefix.as_str())
    }

    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Dump(_) | Self::Import(_) => "application/octet-stream",
            _ => "application/json",
        }
    }
}

/// A name as one safe path segment: everything but `A-Z a-z 0-9 _ -` percent-encoded.
fn encode_segment(name: &str) -> String {
    const KEPT: percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'-');
    percent_encoding::utf8_percent_encode(name, &KEPT).to_string()
}

/// The object an event digest names cannot leave `runs/events/`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&KeyPrefix::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_documented_ones() {
        let id: BackupId = "20250621-143000".parse().unwrap();
        let production: KeyPrefix = "production/".parse().unwrap();
        let none = KeyPrefix::default();
        let lease = ObjectKey::Lease { environment: "production".parse().unwrap(), database: "a/../b é".into() };
        let pin = ObjectKey::Pin { backup_id: id, request_id: "../r".into() };
        for (key, prefix, expected) in [
            (ObjectKey::Dump(id), &none, "postgres-exports/dumps/2025-06-21/20250621-143000.dump"),
            (
                ObjectKey::Manifest(id),
                &production,
                "production/postgres-exports/metadata/2025-06-21/20250621-143000.json",
            ),
            (
                ObjectKey::RdsExport(id),
                &production,
                "production/postgres-exports/rds-exports/2025-06-21/export-20250621-143000/",
            ),
            (ObjectKey::RdsExportRun(id), &none, "runs/rds-exports/20250621-143000.json"),
            (ObjectKey::Claim(id), &none, "runs/ids/20250621-143000.json"),
            (ObjectKey::Event("0a1b".into()), &none, "runs/events/0a1b.json"),
            (pin, &production, "production/pins/20250621-143000/%2E%2E%2Fr.json"),
            (ObjectKey::RetentionLease, &none, "runs/retention/lease.json"),
            (ObjectKey::RetentionState, &none, "runs/retention/state.json"),
            (lease, &none, "runs/leases/production/a%2F%2E%2E%2Fb%20%C3%A9.json"),
            (
                ObjectKey::RestoreRecord { date: "2025-06-22".parse().unwrap(), request_id: "../x".into() },
                &none,
                "restores/2025-06-22/%2E%2E%2Fx.json",
            ),
            (
                ObjectKey::RestoreWaiting { environment: "staging".parse().unwrap(), request_id: "a/b".into() },
                &production,
                "production/restores/waiting/staging/a%2Fb.json",
            ),
            (
                ObjectKey::RestoreLease { environment: "staging".parse().unwrap(), target: "shop".into() },
                &none,
                "restores/leases/staging/shop.json",
            ),
            (
                ObjectKey::RestoreTimings { environment: "staging".parse().unwrap(), database: "a.b".into() },
                &none,
                "restores/timings/staging/a%2Eb.json",
            ),
            (
                ObjectKey::Lockout { environment: "staging".parse().unwrap() },
                &production,
                "production/restores/lockout/staging.json",
            ),
            (ObjectKey::Import("old/a b.dump".parse().unwrap()), &none, "imports/old/a b.dump"),
        ] {
            assert_eq!(key.render(prefix), expected);
        }
    }

    #[test]
    fn another_environment_lies_beside_or_in_the_same_place() {
        let (production, staging) = ("production".parse().unwrap(), "staging".parse().unwrap());
        for (own, other) in [
            ("", ""),
            ("production/", "staging/"),
            ("team/production/", "team/staging/"),
            ("team/", "team/"),
            ("pre-production/", "pre-production/"),
        ] {
            let own: KeyPrefix = own.parse().unwrap();
            assert_eq!(own.of_environment(&production, &staging).as_str(), other);
        }
    }

    #[test]
    fn imports_cannot_leave_their_prefix() {
        for bad in ["", "/x", "a//b", "../metadata/x", "a/..", "./a", "a\\b", "a\nb", &"x".repeat(513)] {
            assert!(bad.parse::<ImportName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_cannot_climb() {
        for good in ["", "production/", "team_a/production/"] {
            assert!(good.parse::<KeyPrefix>().is_ok(), "{good}");
        }
        for bad in ["production", "/", "../", "a//", "a b/", "/a/"] {
            assert!(bad.parse::<KeyPrefix>().is_err(), "{bad}");
        }
    }
}
