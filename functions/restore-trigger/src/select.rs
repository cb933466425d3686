//! Finds what is to be restored: a manifest by its id, or the newest that will do; an import by its name.
//!
//! There is no catalogue beside the manifests, so that the newest is found by listing, day by day from the end.

use holdfast_shared::domain::manifest::{ManifestError, State};
use holdfast_shared::domain::{BackupId, Environment, ImportName, Manifest, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::clearance::{SafetyBackup, Source};
use holdfast_shared::store::Store;
use holdfast_shared::store::list::Listed;
use holdfast_shared::store::thaw::Stored;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::request::{BackupChoice, Which};

const METADATA: &str = "postgres-exports/metadata/";
/// A manifest of ten thousand tables and a hundred thousand pieces is half of this.
const MAX_MANIFEST_BYTES: u64 = 32 << 20;
/// So many manifests are read in search of the newest that will do.
const MAX_LOOKS: usize = 400;
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
                if manifest.state == State::Complete && manifest.verified.is_some() && !is_of_chosen_tables(&manifest) {
                    let warnings = newest.warnings;
                    return Ok(Found { source: Source::Backup(Box::new(manifest)), store, warnings });
                }
            }
            let when = before.map_or_else(String::new, |before| format!(" before {before}"));
            let fault = Fault::new(
                "backup-not-found",
                format!(
                    "there is no complete and verified backup of {database} in {of}{when} under {}",
                    store.config().bucket
                ),
            );
            let asked_for = |(other, environment): (String, Option<Environment>)| {
                let named = if other == database { String::new() } else { format!("\"source_database\":{other:?}") };
                let latest = environment.map(|environment| format!("\"backup\":\"latest@{environment}\""));
                let fields: Vec<String> = latest.into_iter().chain(Some(named).filter(|n| !n.is_empty())).collect();
                fields.join(" with ")
            };
            let others: Vec<String> = others.into_iter().map(asked_for).collect();
            Err(if others.is_empty() {
                fault
            } else {
                fault.hint(format!("there are others, to be asked for with {}", others.join(", or with ")))
            })
        }
    }
}

/// A backup of chosen tables is not what anybody means by the latest one, unless they are all that the deployment
/// backs up: what a schedule or an alarm starts takes its tables from the configuration.
fn is_of_chosen_tables(manifest: &Manifest) -> bool {
    let of = format!("{}/{} ", manifest.environment, manifest.source.database);
    let event = manifest.event_key.strip_prefix(&of).unwrap_or_default();
    !manifest.selection.include.is_empty() && !event.starts_with("schedule:") && !event.starts_with("alarm:")
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
            let serves = backup.verified && backup.whole;
            (serves, backup.completed >= now - window, backup.left_out.is_empty(), backup.completed)
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

/// Manifests from the newest to the oldest. Those that are not what they should be are told and passed over.
struct Newest<'a> {
    store: &'a Store,
    before: Option<Timestamp>,
    /// Days that have not been listed, the last one next.
    days: Vec<Date>,
    /// Of the day that is being read, the last one next.
    ids: Vec<BackupId>,
    looks: usize,
    warnings: Vec<String>,
}

impl<'a> Newest<'a> {
    async fn new(store: &'a Store, before: Option<Timestamp>) -> Result<Self, Fault> {
        let folders = store.list_level(METADATA).await?.folders;
        let last_day = before.map(|before| before.to_zoned(TimeZone::UTC).date());
        let day = |folder: &String| folder.strip_suffix('/')?.rsplit('/').next()?.parse::<Date>().ok();
        let mut days: Vec<Date> = folders.iter().filter_map(day).collect();
        days.retain(|day| last_day.is_none_or(|last| *day <= last));
        days.sort_unstable();
        Ok(Self { store, before, days, ids: Vec::new(), looks: 0, warnings: Vec::new() })
    }

    async fn next(&mut self) -> Result<Option<Manifest>, Fault> {
        loop {
            while self.ids.is_empty() {
                let Some(day) = self.days.pop() else { return Ok(None) };
                let listed = self.store.list_level(&format!("{METADATA}{day}/")).await?.objects;
                for object in &listed {
                    match self.id_of(object) {
                        Some(id) => self.ids.push(id),
                        None => self.warn(format!("{} is passed over: it is no manifest", object.key)),
                    }
                }
                self.ids.sort_unstable();
            }
            let Some(id) = self.ids.pop() else { continue };
            if self.before.is_some_and(|before| id.timestamp() >= before) {
                continue;
            }
            if self.looks == MAX_LOOKS {
                self.warn(format!("the search ended after {MAX_LOOKS} manifests"));
                return Ok(None);
            }
            self.looks += 1;
            // Gone between listing and reading: manifests are never deleted, and so it is nobody's backup.
            let key = ObjectKey::Manifest(id);
            let Some((json, _)) = self.store.get_present(&key).await? else { continue };
            match checked(self.store, id, &json) {
                Ok(manifest) => return Ok(Some(manifest)),
                // Nothing is wrong with it: it is just no backup for this.
                Err(Unfit::NotRestorable) => {}
                Err(Unfit::Problem(problem)) => self.warn(format!("{key} is passed over: {problem}")),
            }
        }
    }

    fn id_of(&self, object: &Listed) -> Option<BackupId> {
        let name = object.key.rsplit('/').next()?.strip_suffix(".json")?;
        let id: BackupId = name.parse().ok()?;
        let is_its_own = object.key == self.store.key(&ObjectKey::Manifest(id));
        (is_its_own && object.size_bytes <= MAX_MANIFEST_BYTES).then_some(id)
    }

    fn warn(&mut self, warning: String) {
        tracing::warn!(warning, "while looking for the newest backup");
        self.warnings.push(warning);
    }
}
