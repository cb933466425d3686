//! Kinds of artifacts, and which keys are theirs.

use std::fmt;
use std::str::FromStr;

use crate::domain::{BackupId, KeyPrefix};

const RDS_EXPORT: &str = "rds-export";

/// What an artifact is; its name in the manifest's `artifacts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArtifactKind {
    Dump,
    Sql,
    Raw,
    Transformed,
    Mongodb,
    Sanitized,
    /// A folder of Parquet files; it cannot be restored to a server.
    RdsExport,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a kind of artifact ({})", ArtifactKind::ALL.map(ArtifactKind::as_str).join(", "))]
pub struct ArtifactKindError {
    pub text: String,
}

/// Whose data lies under a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArtifactKey {
    pub kind: ArtifactKind,
    pub backup_id: BackupId,
    /// The object's key, or that of the folder it is in, which ends with a slash.
    pub key: String,
}

impl ArtifactKind {
    pub const ALL: [Self; 7] =
        [Self::Dump, Self::Sql, Self::Raw, Self::Transformed, Self::Mongodb, Self::Sanitized, Self::RdsExport];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Sql => "sql",
            Self::Raw => "raw",
            Self::Transformed => "transformed",
            Self::Mongodb => "mongodb",
            Self::Sanitized => "sanitized",
            Self::RdsExport => RDS_EXPORT,
        }
    }

    /// A database can be made of it again.
    pub fn is_restorable(self) -> bool {
        matches!(self, Self::Dump | Self::Sql)
    }

    /// The folder below the key prefix.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dump => "postgres-exports/dumps/",
            Self::Sql => "postgres-exports/sql/",
            Self::Raw => "postgres-exports/raw/",
            Self::Transformed => "postgres-exports/transformed/",
            Self::Mongodb => "mongodb-dumps/",
            Self::Sanitized => "postgres-exports/sanitized/",
            Self::RdsExport => "postgres-exports/rds-exports/",
        }
    }

    /// The backup that a key under the kind's folder and a date names, and where the artifact's own key ends.
    fn parse(self, date: &str, rest: &str) -> Option<(BackupId, usize)> {
        let (id, length) = match self {
            Self::Dump => (rest.strip_suffix(".dump")?, rest.len()),
            Self::Sql => (rest.strip_suffix(".sql.gz")?, rest.len()),
            Self::Raw => (rest.strip_suffix("-raw.tar.gz")?, rest.len()),
            Self::Transformed => (rest.strip_suffix("-transformed.tar.gz")?, rest.len()),
            Self::Sanitized => {
                let id = rest.strip_suffix("-sanitized.dump").or_else(|| rest.strip_suffix("-sanitized.tar.gz"))?;
                (id, rest.len())
            }
            Self::Mongodb => {
                let (database, id) = rest.strip_suffix(".tar.gz")?.rsplit_once('_')?;
                if database.is_empty() || database.contains('/') {
                    return None;
                }
                (id, rest.len())
            }
            Self::RdsExport => {
                let (folder, _) = rest.split_once('/')?;
                (folder.strip_prefix("export-")?, folder.len() + 1)
            }
        };
        let id: BackupId = id.parse().ok()?;
        (id.date() == date).then_some((id, length))
    }
}

impl ArtifactKey {
    /// Tells whose a key is; `None` for what no release of this project has written there.
    pub fn parse(key: &str, prefix: &KeyPrefix) -> Option<Self> {
        let path = key.strip_prefix(prefix.as_str())?;
        ArtifactKind::ALL.into_iter().find_map(|kind| {
            let (date, rest) = path.strip_prefix(kind.folder())?.split_once('/')?;
            let (backup_id, length) = kind.parse(date, rest)?;
            let end = key.len() - rest.len() + length;
            Some(Self { kind, backup_id, key: key[..end].to_owned() })
        })
    }

    pub fn is_folder(&self) -> bool {
        self.key.ends_with('/')
    }
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ArtifactKind {
    type Err = ArtifactKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| ArtifactKindError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_documented_key_is_its_backups() {
        let prefix: KeyPrefix = "production/".parse().unwrap();
        for (kind, path, own) in [
            ("dump", "postgres-exports/dumps/2025-06-21/20250621-143000.dump", ""),
            ("sql", "postgres-exports/sql/2025-06-21/20250621-143000.sql.gz", ""),
            ("raw", "postgres-exports/raw/2025-06-21/20250621-143000-raw.tar.gz", ""),
            ("transformed", "postgres-exports/transformed/2025-06-21/20250621-143000-transformed.tar.gz", ""),
            ("sanitized", "postgres-exports/sanitized/2025-06-21/20250621-143000-sanitized.dump", ""),
            ("sanitized", "postgres-exports/sanitized/2025-06-21/20250621-143000-sanitized.tar.gz", ""),
            ("mongodb", "mongodb-dumps/2025-06-21/media_tool_20250621-143000.tar.gz", ""),
            ("rds-export", "postgres-exports/rds-exports/2025-06-21/export-20250621-143000/", "shop/part-0.parquet"),
        ] {
            let found = ArtifactKey::parse(&format!("production/{path}{own}"), &prefix).unwrap();
            assert_eq!((found.kind.as_str(), found.key), (kind, format!("production/{path}")));
            assert_eq!(found.backup_id.to_string(), "20250621-143000");
            assert!(ArtifactKey::parse(path, &prefix).is_none(), "outside the prefix: {path}");
        }
    }

    #[test]
    fn other_keys_are_nobodys() {
        for key in [
            "postgres-exports/sql/latest.sql.gz",
            "postgres-exports/dumps/2025-06-22/20250621-143000.dump",
            "postgres-exports/dumps/2025-06-21/20250621-143000.dump.bak",
            "postgres-exports/dumps/2025-06-21/x/20250621-143000.dump",
            "postgres-exports/dumps/20250621-143000.dump",
            "postgres-exports/rds-exports/2025-06-21/export-20250621-143000",
            "postgres-exports/rds-exports/2025-06-21/notes.txt",
            "mongodb-dumps/2025-06-21/_20250621-143000.tar.gz",
            "postgres-exports/metadata/2025-06-21/20250621-143000.json",
            "files/20250621-143000.dump",
        ] {
            assert!(ArtifactKey::parse(key, &KeyPrefix::default()).is_none(), "{key}");
        }
    }
}
