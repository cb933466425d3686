//! Finds what is to be restored: a manifest by its id, or the newest that will do; an import by its name.
//!
//! There is no catalogue beside the manifests, so that the newest is found by listing, day by day from the end.

mod newest;

use holdfast_shared::domain::manifest::{ManifestError, State, is_of_chosen_tables};
use holdfast_shared::domain::{BackupId, Environment, ImportName, Manifest, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::clearance::{SafetyBackup, Source};
use holdfast_shared::store::Store;
use holdfast_shared::store::thaw::Stored;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};

use self::newest::Newest;
use crate::request::{BackupChoice, Which};

/// A manifest of ten thousand tables and a hundred thousand pieces is half of this.
const MAX_MANIFEST_BYTES: u64 = 32 << 20;
/// The longest an export takes: how far an id may lie before its completion.
const LONGEST_EXPORT: SignedDuration = SignedDuration::from_hours(2);

/// What is restored, and from where.
pub struct Found {
    pub source: Source,
    /// The bucket from the prefix of the source's environment.
    pub store: Store,
    pub warnings: Vec<String>,
}

/// The object that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    pub key: String,
    pub version_id: Option<String>,
}

impl Found {
    /// `None` where nothing that is stored is read.
    pub fn dump(&self) -> Option<Dump> {
        match &self.source {
            Source::Backup(manifest) => {
                let artifact = manifest.artifacts.get("dump")?;
                Some(Dump { key: artifact.key.clone(), version_id: artifact.version_id.clone() })
            }
            Source::Import { name, version_id, .. } => {
                let key = self.store.key(&ObjectKey::Import(name.clone()));
                Some(Dump { key, version_id: version_id.clone() })
            }
            Source::Previous | Source::Rds(_) => None,
        }
    }

    /// How the dump is stored; `None` where it is not there, which the engine tells.
    pub async fn stored(&self, dump: &Dump) -> Result<Option<Stored>, Fault> {
        Ok(self.store.stored(&dump.key, dump.version_id.as_deref()).await?)
    }
}

/// Finds a backup.
///
/// # Errors
/// `backup-not-found`, `backup-expired`, `manifest-unreadable`.
pub async fn backup(
    own: &Store,
    environment: &Environment,
    live_database: &str,
    choice: &BackupChoice,
) -> Result<Found, Fault> {
    let of = choice.environment.as_ref().unwrap_or(environment);
    let store = own.at_prefix(own.config().prefix.of_environment(environment, of));
    match choice.which {
        Which::Id(id) => {
            let manifest = by_id(&store, id).await?;
            let fits = choice.environment.as_ref().is_none_or(|of| manifest.environment == *of)
                && choice.database.as_ref().is_none_or(|database| manifest.source.database == *database);
            if !fits {
                let message = format!("{id} is of {} in {}", manifest.source.database, manifest.environment);
                return Err(Fault::new("backup-not-found", message).hint("check environment and source_database"));
            }
            Ok(Found { source: Source::Backup(Box::new(manifest)), store, warnings: Vec::new() })
        }
        Which::Latest { before } => {
            let database = choice.database.as_deref().unwrap_or(live_database);
            let mut newest = Newest::new(&store, before).await?;
            let mut others: Vec<(String, Option<Environment>)> = Vec::new();
            while let Some(manifest) = newest.next().await? {
                if manifest.environment != *of || manifest.source.database != database {
                    let environment = (manifest.environment != *of).then(|| manifest.environment.clone());
                    let other = (manifest.source.database.clone(), environment);
                    if !others.contains(&other) {
                        others.push(other);
                    }
                    continue;
                }
                if manifest.verified.is_some() && !is_partial(&manifest) {
                    let warnings = newest.warnings;
                    return Ok(Found { source: Source::Backup(Box::new(manifest)), store, warnings });
                }
            }
            let asked = Asked { database, environment: of, before, bucket: &store.config().bucket };
            Err(asked.none_found(newest.gave_up_at, others))
        }
    }
}

/// What was looked for.
struct Asked<'a> {
    database: &'a str,
    environment: &'a Environment,
    before: Option<Timestamp>,
    bucket: &'a str,
}

impl Asked<'_> {
    /// `others`: databases that there are backups of, with their environment where it is another.
    fn none_found(&self, gave_up_at: Option<Date>, others: Vec<(String, Option<Environment>)>) -> Fault {
        let Self { database, environment, before, bucket } = self;
        let when = before.map_or_else(String::new, |before| format!(" before {before}"));
        let what = format!("complete and verified backup of {database} in {environment}{when}");
        let mut hints = Vec::new();
        let mut fault = Fault::new("backup-not-found", format!("there is no {what} under {bucket}"));
        if let Some(day) = gave_up_at {
            fault.message = format!("no {what} was found under {bucket} back to {day}, where the search was given up");
            let from = day.tomorrow().unwrap_or(day);
            hints.push(format!("ask by the backup's id, or with a \"before\" nearer to it, such as {from}T00:00:00Z"));
        }
        let asked_for = |(other, environment): (String, Option<Environment>)| {
            let named = if other == *database { String::new() } else { format!("\"source_database\":{other:?}") };
            let latest = environment.map(|environment| format!("\"backup\":\"latest@{environment}\""));
            let fields: Vec<String> = latest.into_iter().chain(Some(named).filter(|n| !n.is_empty())).collect();
            fields.join(" with ")
        };
        let others: Vec<String> = others.into_iter().map(asked_for).collect();
        if !others.is_empty() {
            hints.push(format!("there are others, to be asked for with {}", others.join(", or with ")));
        }
        if hints.is_empty() { fault } else { fault.hint(hints.join("; ")) }
    }
}

/// It is not what anybody means by the latest one.
fn is_partial(manifest: &Manifest) -> bool {
    let chooses = !manifest.selection.include.is_empty();
    is_of_chosen_tables(chooses, &manifest.event_key, &manifest.environment, &manifest.source.database)
}

/// One manifest, by its id.
///
/// # Errors
/// `backup-not-found`; `backup-expired` for a tombstone; `manifest-unreadable`, also for another version.
pub async fn by_id(store: &Store, id: BackupId) -> Result<Manifest, Fault> {
    let key = ObjectKey::Manifest(id);
    let absent = || {
        Fault::new("backup-not-found", format!("there is no backup {id}: no object {}", store.uri(&key)))
            .hint("ids are UTC, as in the manifests' names; another environment's is named id@environment")
    };
    let facts = store.head(&store.key(&key)).await?.ok_or_else(absent)?;
    let unreadable = |problem: String| Fault::new("manifest-unreadable", format!("{}: {problem}", store.uri(&key)));
    if facts.size_bytes > MAX_MANIFEST_BYTES {
        return Err(unreadable(format!("it is larger than {MAX_MANIFEST_BYTES} bytes")));
    }
    let (json, _) = store.get_present(&key).await?.ok_or_else(absent)?;
    let manifest = match checked(store, id, &json) {
        Ok(manifest) => manifest,
        Err(Unfit::NotRestorable) => {
            let message = format!("backup {id} cannot be restored to a server: its files are for analysis");
            return Err(Fault::new("backup-not-restorable", message)
                .hint("choose a backup with a dump; an RDS snapshot is restored by mode rds_snapshot"));
        }
        Err(Unfit::Problem(problem)) => return Err(unreadable(problem)),
    };
    if manifest.state == State::Expired {
        let message = format!("backup {id} is expired: its manifest is kept, its data is gone");
        return Err(Fault::new("backup-expired", message).hint("choose another backup"));
    }
    Ok(manifest)
}

/// Why a manifest is not one to restore from.
enum Unfit {
    NotRestorable,
    Problem(String),
}

/// A manifest that is what its key says, and whose dump is its own: no manifest points elsewhere.
fn checked(store: &Store, id: BackupId, json: &[u8]) -> Result<Manifest, Unfit> {
    let manifest = Manifest::parse(json).map_err(|error| match error {
        ManifestError::NotRestorable => Unfit::NotRestorable,
        error => Unfit::Problem(chain(&error)),
    })?;
    if manifest.timestamp != id {
        return Err(Unfit::Problem(format!("it says that it is {}", manifest.timestamp)));
    }
    let dump = store.key(&ObjectKey::Dump(id));
    match manifest.artifacts.get("dump") {
        Some(artifact) if artifact.key != dump => Err(Unfit::Problem(format!("its dump is not at {dump}"))),
        _ => Ok(manifest),
    }
}

/// The newest backup of the live database that could serve as a way back; the newest of those that would not, else.
pub async fn safety_backup(
    own: &Store,
    environment: &Environment,
    database: &str,
    now: Timestamp,
    window: SignedDuration,
) -> Result<Option<SafetyBackup>, Fault> {
    let oldest = now - window - LONGEST_EXPORT;
    let mut newest = Newest::new(own, None).await?;
    let mut second_best: Option<SafetyBackup> = None;
    while let Some(manifest) = newest.next().await? {
        if manifest.timestamp.timestamp() < oldest && second_best.is_some() {
            break;
        }
        if manifest.environment != *environment || manifest.source.database != database {
            continue;
        }
        let backup = SafetyBackup::of(&manifest);
        let rank = |backup: &SafetyBackup| {
            (backup.serves(), backup.completed >= now - window, backup.left_out.is_empty(), backup.completed)
        };
        let better = |than: &SafetyBackup| rank(&backup) > rank(than);
        if second_best.as_ref().is_none_or(better) {
            second_best = Some(backup);
        }
        if manifest.timestamp.timestamp() < oldest {
            break;
        }
    }
    Ok(second_best)
}

/// An archive that people have put under `imports/`.
pub async fn import(own: &Store, name: &ImportName) -> Result<Found, Fault> {
    let key = ObjectKey::Import(name.clone());
    let Some(facts) = own.head(&own.key(&key)).await? else {
        let message = format!("there is no object {}", own.uri(&key));
        return Err(Fault::new("import-not-found", message).hint("import is the path below imports/"));
    };
    let source = Source::Import { name: name.clone(), size_bytes: facts.size_bytes, version_id: facts.version_id };
    Ok(Found { source, store: own.clone(), warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_that_was_given_up_does_not_say_that_there_is_nothing() {
        let environment: Environment = "test".parse().unwrap();
        let before = Some("2024-01-30T00:00:00Z".parse().unwrap());
        let asked = Asked { database: "shop", environment: &environment, before, bucket: "backups" };
        let none = asked.none_found(None, vec![("crm".to_owned(), None)]);
        assert!(none.message.starts_with("there is no complete"), "{none}");
        assert!(none.hint.as_deref().unwrap().contains("\"source_database\":\"crm\""), "{none:?}");
        let given_up = asked.none_found(Some("2023-11-30".parse().unwrap()), Vec::new());
        assert!(
            given_up.message.contains("back to 2023-11-30") && !given_up.message.contains("there is no"),
            "{given_up}"
        );
        assert!(given_up.hint.as_deref().unwrap().contains("such as 2023-12-01T00:00:00Z"), "{given_up:?}");
    }
}
