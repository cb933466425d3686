//! Whether a restore may be done: everything that is known about it in, a [`Clearance`] or all [`Refusal`]s out.
//!
//! A clearance is the only way into the restore engine, and [`clear`] is the only way to a clearance.

pub mod asked;
pub mod rds;
mod refusal;
mod safety;
#[cfg(test)]
mod tests;
pub mod thaw;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use self::asked::{MAX_NAME_BYTES, id_of_previous};
pub use self::asked::{Options, Restore, Source, Tier};
pub use self::refusal::Refusal;
use self::safety::safety_refusal;
pub use self::safety::{InVain, SafetyBackup, export_in_vain, left_out};
use crate::domain::manifest::State;
use crate::domain::put_aside::Exchange;
use crate::domain::{BackupId, Environment, PutAside, TablePattern};

/// Databases of the server itself: nothing is put in their place or into them.
const RESERVED_DATABASES: [&str; 4] = ["postgres", "template0", "template1", "rdsadmin"];

/// What became of the passkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passkey {
    Accepted,
    NotConfigured,
    /// None was given, so that none was looked at.
    Missing,
    Rejected,
    /// Not looked at: too many have been wrong.
    LockedOut {
        until: Timestamp,
    },
    /// The restore was approved before, and had to wait.
    Approved {
        until: Timestamp,
    },
}

/// What the server that would be written to says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetServer {
    pub version: String,
    pub major: u32,
    /// `None` where the role may not ask.
    pub system_identifier: Option<String>,
    /// What the setting `holdfast.environment` says, of the live database or of the server.
    pub environment: Option<String>,
    pub in_recovery: bool,
    pub databases: BTreeSet<String>,
    /// Of the databases that restores have put aside.
    pub notes: BTreeMap<String, PutAside>,
}

impl TargetServer {
    /// A database that has the name of one that a swap of `database` has put aside, and not the note.
    fn unmarked(&self, database: &str) -> Option<&String> {
        let marked = |name: &str| self.notes.get(name).is_some_and(|note| note.by == Exchange::Replaced);
        self.databases.iter().rfind(|name| id_of_previous(database, name).is_some() && !marked(name))
    }
}

/// What an undo does not bring back, though it has such a name: whoever wants that one should know.
pub fn passed_over(restore: &Restore, server: &TargetServer) -> Option<String> {
    let Restore::Undo { database, previous: Some(_), .. } = restore else { return None };
    let name = server.unmarked(database)?;
    Some(format!("{name} does not come back: its comment does not say that a swap has put it aside"))
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub restore: Restore,
    pub options: Options,
    pub source: Source,
    pub passkey: Passkey,
    /// The environment the function is deployed for, which is the only one it writes to.
    pub environment: Environment,
    /// `None` where it was not reached, or is not written to.
    pub target: Option<TargetServer>,
    pub configured_system_identifier: Option<String>,
    /// The configured database, of which a safety backup is taken on request.
    pub live_database: String,
    /// Whether there is a function to take it.
    pub export_function: bool,
    pub safety_backup: Option<SafetyBackup>,
    /// How old it may be.
    pub safety_window: SignedDuration,
    /// What the request knows to be left out: a swap leaves it in the database that it puts aside.
    pub accepts_left_out: Vec<TablePattern>,
    pub now: Timestamp,
}

/// The right to do one restore, as it was asked and looked at.
///
/// There is no other way to make one than [`clear`]: no field can be set from outside, and it cannot be copied.
#[derive(Debug)]
#[must_use = "a restore was allowed and is not done"]
pub struct Clearance {
    restore: Restore,
    options: Options,
    source: Source,
    environment: Environment,
    target: Option<TargetServer>,
    safety_backup: Option<BackupId>,
    granted_at: Timestamp,
}

impl Clearance {
    pub fn restore(&self) -> &Restore {
        &self.restore
    }

    pub fn options(&self) -> Options {
        self.options
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The server that was looked at: whoever connects again has to find the same system identifier.
    pub fn target(&self) -> Option<&TargetServer> {
        self.target.as_ref()
    }

    /// The backup of the target that was seen, where the mode demands one.
    pub fn safety_backup(&self) -> Option<BackupId> {
        self.safety_backup
    }

    pub fn granted_at(&self) -> Timestamp {
        self.granted_at
    }
}

/// Allows a restore, or says everything that is against it.
///
/// # Errors
/// All refusals, the weightiest first.
pub fn clear(facts: Facts) -> Result<Clearance, Vec<Refusal>> {
    let refusals = refusals(&facts);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let safety_backup = facts.safety_backup.filter(|_| facts.restore.changes_existing_data()).map(|backup| backup.id);
    Ok(Clearance {
        restore: facts.restore,
        options: facts.options,
        source: facts.source,
        environment: facts.environment,
        target: facts.target,
        safety_backup,
        granted_at: facts.now,
    })
}

/// What is against a restore; empty where it may be done.
pub fn refusals(facts: &Facts) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = passkey_refusal(&facts.restore, facts.passkey).into_iter().collect();
    if let Passkey::Approved { until } = facts.passkey
        && until < facts.now
    {
        refusals.push(Refusal::ApprovalExpired { until });
    }
    refusals.extend(source_refusals(facts));
    refusals.extend(name_refusals(&facts.restore));
    if facts.restore.writes_to_the_server() {
        match &facts.target {
            None => refusals.push(Refusal::TargetUnknown),
            Some(server) => {
                refusals.extend(server_refusals(facts, server));
                refusals.extend(database_refusals(&facts.restore, server));
                refusals.extend(safety_refusal(facts, server));
            }
        }
    }
    refusals
}

/// The passkey's rule alone: it is judged before anything else is looked at.
pub fn passkey_refusal(restore: &Restore, passkey: Passkey) -> Option<Refusal> {
    if !restore.needs_passkey() {
        return None;
    }
    match passkey {
        Passkey::Accepted | Passkey::Approved { .. } => None,
        Passkey::NotConfigured => Some(Refusal::PasskeyNotConfigured),
        Passkey::Missing => Some(Refusal::PasskeyMissing),
        Passkey::Rejected => Some(Refusal::PasskeyRejected),
        Passkey::LockedOut { until } => Some(Refusal::LockedOut { until }),
    }
}

fn source_refusals(facts: &Facts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let fits = match (&facts.restore, &facts.source) {
        (Restore::Undo { .. }, source) => *source == Source::Previous,
        (Restore::RdsSnapshot { .. } | Restore::RdsPointInTime { .. }, source) => matches!(source, Source::Rds(_)),
        // A drill proves a backup against its manifest.
        (Restore::Verify { .. }, source) => matches!(source, Source::Backup(_)),
        (_, source) => matches!(source, Source::Backup(_) | Source::Import { .. }),
    };
    if !fits {
        refusals.push(Refusal::SourceUnfit { mode: facts.restore.mode() });
    }
    if let Source::Rds(source) = &facts.source {
        refusals.extend(rds::rds_refusals(&facts.restore, source));
    }
    let Some(manifest) = facts.source.manifest() else { return refusals };
    let id = manifest.timestamp;
    if manifest.state != State::Complete {
        refusals.push(Refusal::BackupExpired { id });
    } else if manifest.verified.is_none() && !matches!(facts.restore, Restore::Verify { .. }) {
        refusals.push(Refusal::BackupNotVerified { id });
    }
    if !manifest.artifacts.contains_key("dump") {
        refusals.push(Refusal::BackupWithoutDump { id });
    }
    if matches!(facts.restore, Restore::Swap { .. }) {
        let selection = &manifest.selection;
        let listed =
            |patterns: &[TablePattern]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !selection.include.is_empty() {
            refusals.push(Refusal::BackupOfChosenTables { id, tables: listed(&selection.include) });
        }
        if left_out(manifest).any(|pattern| !facts.accepts_left_out.contains(pattern)) {
            let lists = [("not", &selection.exclude), ("no rows of", &selection.exclude_data)];
            let told = lists.into_iter().filter(|(_, patterns)| !patterns.is_empty());
            let told: Vec<String> = told.map(|(word, patterns)| format!("{word} {}", listed(patterns))).collect();
            refusals.push(Refusal::BackupPartial { id, left_out: told.join("; ") });
        }
    }
    refusals
}

fn name_refusals(restore: &Restore) -> Vec<Refusal> {
    let problem = |name: &str| {
        if name.is_empty() {
            Some("it is empty")
        } else if name.len() > MAX_NAME_BYTES {
            Some("it is longer than 63 bytes")
        } else if name.chars().any(char::is_control) {
            Some("it has control characters")
        } else {
            None
        }
    };
    let names = restore.names();
    let invalid = names.iter().filter_map(|name| problem(name).map(|problem| ((*name).to_owned(), problem)));
    let unique: BTreeSet<(String, &str)> = invalid.collect();
    unique.into_iter().map(|(name, problem)| Refusal::NameInvalid { name, problem }).collect()
}

fn server_refusals(facts: &Facts, server: &TargetServer) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    match (&facts.configured_system_identifier, &server.system_identifier) {
        (None, found) => refusals.push(Refusal::ServerNotConfigured { found: found.clone() }),
        (Some(_), None) => refusals.push(Refusal::ServerUnidentified),
        (Some(configured), Some(found)) if configured != found => {
            refusals.push(Refusal::WrongServer { found: found.clone(), configured: configured.clone() });
        }
        (Some(_), Some(_)) => {}
    }
    let function = &facts.environment;
    match (&server.environment, facts.source.manifest()) {
        (Some(found), _) if found != function.as_str() => refusals.push(Refusal::WrongEnvironment {
            found: found.clone(),
            function: function.clone(),
            reason: "its setting holdfast.environment says so",
        }),
        (None, Some(manifest))
            if manifest.environment != *function
                && server.system_identifier.is_some()
                && manifest.server.system_identifier == server.system_identifier =>
        {
            refusals.push(Refusal::WrongEnvironment {
                found: manifest.environment.to_string(),
                function: function.clone(),
                reason: "the backup was taken from this very server",
            });
        }
        _ => {}
    }
    if server.in_recovery {
        refusals.push(Refusal::TargetStandby);
    }
    refusals
}

fn database_refusals(restore: &Restore, server: &TargetServer) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if let Some(name) = restore.existing() {
        if RESERVED_DATABASES.contains(&name) {
            refusals.push(Refusal::TargetReserved { name: name.to_owned() });
        } else if !server.databases.contains(name) {
            refusals.push(Refusal::TargetMissing { name: name.to_owned() });
        }
    }
    let chosen = matches!(restore, Restore::NewDatabase { .. });
    let exist = restore.created().into_iter().filter(|name| server.databases.contains(*name));
    refusals.extend(exist.map(|name| Refusal::TargetExists { name: name.to_owned(), chosen }));
    if let Restore::Undo { database, previous, .. } = restore
        && previous.as_ref().is_none_or(|previous| !server.databases.contains(previous))
    {
        let unmarked = server.unmarked(database).cloned();
        refusals.push(Refusal::NothingToUndo { database: database.clone(), unmarked });
    }
    refusals
}
