//! What retention needs of a manifest, and what it does not dare to touch.
//!
//! Read more leniently than [`Manifest`](crate::domain::Manifest): a manifest of another function may lack what only
//! a dump has. Whatever cannot be understood is kept.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::domain::manifest::{LargeObjects, MANIFEST_VERSION, State, Verified, is_as_configured, is_of_chosen_tables};
use crate::domain::{ArtifactKey, ArtifactKind, BackupId, Environment, KeyPrefix};

/// One backup, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: BackupId,
    pub environment: Environment,
    pub database: String,
    pub purpose: String,
    pub state: State,
    pub hold: bool,
    pub verified: bool,
    /// Not an export that no server can be made of.
    pub restorable: bool,
    /// Of the whole database: no tables were chosen or left out.
    pub whole: bool,
    /// Of tables that the deployment's configuration chooses, whichever these are.
    pub as_configured: bool,
    /// Of chosen tables only, and not by configuration.
    pub of_chosen_tables: bool,
    /// Listed, and not there as they were written. The manifest does not know: who looks at the bucket sets it.
    pub missing: Vec<ArtifactKind>,
    /// What is there.
    pub artifacts: Vec<Artifact>,
    /// What a run has expired without having been able to say that it is gone.
    pub unfinished: Vec<Artifact>,
    /// An unfinished one was deleted by hand, against the guard.
    pub forced: bool,
    /// Why nothing of this backup may be deleted, although the manifest can be read.
    pub problem: Option<String>,
    /// The ETag that the manifest was read with: what is written over it is written over exactly this.
    pub etag: String,
    pub measure: Measure,
}

/// One artifact of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub kind: ArtifactKind,
    /// The object, or a folder that ends with a slash.
    pub key: String,
    pub size_bytes: u64,
}

/// What one backup is compared with another by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measure {
    pub rows: u64,
    pub bytes: u64,
    /// `schema.table`, sorted. `None`: the manifest says nothing of tables.
    pub tables: Option<Vec<String>>,
    /// The patterns that chose the tables: backups with other patterns are not compared.
    pub selection: String,
}

/// A manifest that is kept because it cannot be read, or is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub key: String,
    pub problem: String,
}

#[derive(Deserialize)]
struct Document {
    manifest_version: Value,
    timestamp: BackupId,
    state: State,
    environment: Environment,
    source: DocumentSource,
    purpose: String,
    event_key: Option<String>,
    #[serde(default)]
    hold: bool,
    restorable: Option<bool>,
    verified: Option<Verified>,
    #[serde(default)]
    artifacts: BTreeMap<String, DocumentArtifact>,
    #[serde(default)]
    expired_artifacts: BTreeMap<String, DocumentArtifact>,
    tables: Option<Vec<DocumentTable>>,
    large_objects: Option<LargeObjects>,
    #[serde(default)]
    selection: Value,
}

#[derive(Deserialize)]
struct DocumentSource {
    database: Option<String>,
    instance: Option<String>,
}

#[derive(Deserialize)]
struct DocumentArtifact {
    key: String,
    #[serde(default)]
    size_bytes: u64,
    expired: Option<DocumentExpiry>,
}

#[derive(Deserialize)]
struct DocumentExpiry {
    #[serde(default)]
    forced: bool,
    done: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct DocumentTable {
    schema: String,
    name: String,
    /// RDS counts none of what it exports.
    #[serde(default)]
    rows: u64,
    bytes: u64,
}

#[derive(Deserialize)]
struct VersionOnly {
    manifest_version: Option<Value>,
}

impl Record {
    /// Reads the manifest of backup `id`.
    ///
    /// # Errors
    /// What is wrong with it, for the report.
    pub fn read(id: BackupId, etag: String, json: &[u8], prefix: &KeyPrefix) -> Result<Self, String> {
        let document: Document = match serde_json::from_slice(json) {
            Ok(document) => document,
            Err(error) => {
                let version = serde_json::from_slice::<VersionOnly>(json).ok().and_then(|only| only.manifest_version);
                return Err(match version {
                    Some(version) if version != MANIFEST_VERSION => unknown_version(&version),
                    _ => format!("it is not a manifest of version {MANIFEST_VERSION}: {error}"),
                });
            }
        };
        if document.manifest_version != MANIFEST_VERSION {
            return Err(unknown_version(&document.manifest_version));
        }
        if document.timestamp != id {
            return Err(format!("it says that it is the manifest of {}", document.timestamp));
        }
        let database = document.source.database.or(document.source.instance);
        let Some(database) = database.filter(|name| !name.is_empty()) else {
            return Err("it names no database".to_owned());
        };

        let forced = document.expired_artifacts.values().any(|a| a.expired.as_ref().is_some_and(|e| e.forced));
        let unfinished = document.expired_artifacts.into_iter();
        let unfinished = unfinished.filter(|(_, a)| a.expired.as_ref().is_none_or(|expired| expired.done.is_none()));
        let mut problem = None;
        let unfinished = own_artifacts(id, unfinished, prefix, &mut problem);
        let artifacts = own_artifacts(id, document.artifacts.into_iter(), prefix, &mut problem);

        let stored: u64 = artifacts.iter().map(|artifact| artifact.size_bytes).sum();
        let listed = document.tables.as_deref().unwrap_or_default();
        let text: u64 = listed.iter().map(|table| table.bytes).sum();
        let tables = document.tables.as_ref().map(|tables| {
            let mut names: Vec<String> =
                tables.iter().map(|table| format!("{}.{}", table.schema, table.name)).collect();
            names.sort_unstable();
            names
        });
        let measure = Measure {
            rows: listed.iter().map(|table| table.rows).sum(),
            bytes: if tables.is_none() { stored } else { text + document.large_objects.map_or(0, |o| o.bytes) },
            tables,
            selection: document.selection.to_string(),
        };
        let event = document.event_key.unwrap_or_default();
        let chooses = !has_only(&document.selection, &["exclude", "exclude_data"]);
        Ok(Self {
            id,
            as_configured: is_as_configured(&event, &document.environment, &database),
            of_chosen_tables: is_of_chosen_tables(chooses, &event, &document.environment, &database),
            environment: document.environment,
            database,
            purpose: document.purpose,
            state: document.state,
            hold: document.hold,
            verified: document.verified.is_some(),
            restorable: document.restorable.unwrap_or(true),
            whole: has_only(&document.selection, &[]),
            missing: Vec::new(),
            artifacts,
            unfinished,
            forced,
            problem,
            etag,
            measure,
        })
    }

    /// It has data that may expire.
    pub fn is_live(&self) -> bool {
        self.state == State::Complete && !self.artifacts.is_empty()
    }

    /// A database can be made of it again.
    pub fn is_restorable(&self) -> bool {
        self.restorable && self.is_live() && self.artifacts.iter().any(|artifact| artifact.kind.is_restorable())
    }

    /// What a run has expired and not deleted is something that a database could be made of.
    pub fn could_be_restored(&self) -> bool {
        self.restorable && self.unfinished.iter().any(|artifact| artifact.kind.is_restorable())
    }

    /// What it can be restored from is in the bucket, as far as anybody has looked.
    pub fn is_there(&self) -> bool {
        self.artifacts.iter().any(|artifact| artifact.kind.is_restorable() && !self.missing.contains(&artifact.kind))
    }
}

/// No other list of the selection names anything.
fn has_only(selection: &Value, lists: &[&str]) -> bool {
    match selection {
        Value::Null => true,
        Value::Object(all) => {
            all.iter().all(|(name, list)| lists.contains(&name.as_str()) || list.as_array().is_some_and(Vec::is_empty))
        }
        _ => false,
    }
}

fn unknown_version(version: &Value) -> String {
    format!("manifest version {version} is not one this release reads ({MANIFEST_VERSION})")
}

/// An artifact whose key is not its own backup's is nobody's to delete, and so is the backup.
fn own_artifacts(
    id: BackupId,
    artifacts: impl Iterator<Item = (String, DocumentArtifact)>,
    prefix: &KeyPrefix,
    problem: &mut Option<String>,
) -> Vec<Artifact> {
    let mut own = Vec::new();
    for (kind, artifact) in artifacts {
        let parsed: Result<ArtifactKind, _> = kind.parse();
        match (parsed, ArtifactKey::parse(&artifact.key, prefix)) {
            (Err(error), _) => *problem = Some(error.to_string()),
            (Ok(kind), Some(key)) if key.kind == kind && key.backup_id == id && key.key == artifact.key => {
                own.push(Artifact { kind, key: artifact.key, size_bytes: artifact.size_bytes });
            }
            (Ok(kind), _) => {
                *problem = Some(format!("the key of its {kind}, {:?}, is not this backup's", artifact.key));
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({
            "manifest_version": 1, "timestamp": "20250621-143000", "state": "complete", "environment": "production",
            "source": {"type": "postgresql", "database": "shop"}, "purpose": "daily_backup",
            "verified": {"at": "2025-06-21T14:31:00Z", "by": "read-back"},
            "artifacts": {"dump": {"key": "production/postgres-exports/dumps/2025-06-21/20250621-143000.dump", "size_bytes": 7}},
            "tables": [{"schema": "public", "name": "b", "rows": 3, "bytes": 30, "pieces": [{"offset": 1}]},
                       {"schema": "public", "name": "a", "rows": 4, "bytes": 40}],
        })
    }

    fn read(document: &Value) -> Result<Record, String> {
        let id = "20250621-143000".parse().unwrap();
        Record::read(id, "etag".into(), document.to_string().as_bytes(), &"production/".parse().unwrap())
    }

    #[test]
    fn a_manifest_is_read_for_what_retention_needs() {
        let record = read(&document()).unwrap();
        assert!(record.is_restorable() && record.verified && !record.hold && record.problem.is_none());
        assert_eq!((record.measure.rows, record.measure.bytes), (7, 70));
        assert_eq!(record.measure.tables.unwrap(), ["public.a", "public.b"]);
    }

    #[test]
    fn a_backup_of_no_tables_is_not_one_that_says_nothing_of_tables() {
        let tables = |value: Value| {
            let mut document = document();
            document["tables"] = value;
            read(&document).unwrap().measure.tables
        };
        assert_eq!((tables(json!([])), tables(Value::Null)), (Some(Vec::new()), None));
    }

    #[test]
    fn chosen_tables_are_not_the_whole_database() {
        for (selection, whole, chosen) in [
            (Value::Null, true, false),
            (json!({}), true, false),
            (json!({"include": [], "exclude": []}), true, false),
            (json!({"include": ["public.a"]}), false, true),
            (json!({"exclude_data": ["log_*"]}), false, false),
            (json!({"exclude": ["log_*"], "include": []}), false, false),
            (json!("public.a"), false, true),
            (json!({"sample": 0.1}), false, true),
        ] {
            for (event, configured) in [
                (json!("production/shop schedule:arn:2025-06-21T14:30:00Z"), true),
                (json!("production/shop alarm:arn:2025-06-21T14:30:00Z"), true),
                (json!("production/shop request:schedule:1"), false),
                (json!("staging/shop schedule:arn:2025-06-21T14:30:00Z"), false),
                (json!("schedule:"), false),
                (Value::Null, false),
            ] {
                let mut document = document();
                (document["selection"], document["event_key"]) = (selection.clone(), event.clone());
                let record = read(&document).unwrap();
                assert_eq!(
                    (record.whole, record.as_configured, record.of_chosen_tables),
                    (whole, configured, chosen && !configured),
                    "{selection} {event}"
                );
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_told_and_never_deletable() {
        let change = |change: fn(&mut Value)| {
            let mut document = document();
            change(&mut document);
            read(&document)
        };
        let refused = |result: Result<Record, String>, expected: &str| {
            let problem = result.unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        };
        refused(change(|d| d["manifest_version"] = json!(2)), "version 2 is not one");
        refused(
            change(|d| {
                d["manifest_version"] = json!(2);
                d["timestamp"] = json!(7);
            }),
            "version 2 is not one",
        );
        refused(change(|d| d["manifest_version"] = json!("1")), "version \"1\" is not one");
        refused(change(|d| d["state"] = json!("gone")), "not a manifest of version 1");
        refused(change(|d| d["environment"] = json!("../x")), "not a manifest of version 1");
        refused(change(|d| d["hold"] = json!("yes")), "not a manifest of version 1");
        refused(change(|d| d["timestamp"] = json!("20250621-143001")), "manifest of 20250621-143001");
        refused(change(|d| d["source"] = json!({})), "names no database");
        refused(read(&json!([1])), "not a manifest");

        for (kind, key) in [
            ("dump", "production/postgres-exports/dumps/2025-06-22/20250622-143000.dump"),
            ("dump", "staging/postgres-exports/dumps/2025-06-21/20250621-143000.dump"),
            ("raw", "production/postgres-exports/dumps/2025-06-21/20250621-143000.dump"),
            ("rds-export", "production/postgres-exports/rds-exports/2025-06-21/export-20250621-143000/x"),
            ("rds-export", "production/postgres-exports/rds-exports/"),
            ("dump", ""),
            ("parchment", "production/postgres-exports/dumps/2025-06-21/20250621-143000.dump"),
        ] {
            let mut document = document();
            document["artifacts"] = json!({kind: {"key": key}});
            assert!(read(&document).unwrap().problem.is_some(), "{kind} {key}");
        }
    }

    #[test]
    fn what_is_expired_and_not_done_is_unfinished() {
        let mut document = document();
        document["state"] = json!("expired");
        document["artifacts"] = json!({});
        let key = "production/postgres-exports/dumps/2025-06-21/20250621-143000.dump";
        document["expired_artifacts"] = json!({"dump": {"key": key, "expired": {"at": "2025-07-01T00:00:00Z"}}});
        assert_eq!(read(&document).unwrap().unfinished.len(), 1);
        document["expired_artifacts"]["dump"]["expired"]["done"] = json!("2025-07-01T00:00:01Z");
        let record = read(&document).unwrap();
        assert!(record.unfinished.is_empty() && !record.is_live());
    }
}
