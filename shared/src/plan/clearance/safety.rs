//! The way back: a recent backup of what a restore would change.

use jiff::{SignedDuration, Timestamp};

use super::{Facts, Refusal, Restore, TargetServer};
use crate::domain::manifest::State;
use crate::domain::{BackupId, Environment, Manifest, TablePattern};

/// How far a backup may lie in the future: the clocks of two functions.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// What a manifest says of a server that is no standby.
const PRIMARY: &str = "primary";

/// The newest backup of the target that could serve as a way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetyBackup {
    pub id: BackupId,
    pub environment: Environment,
    pub database: String,
    pub system_identifier: Option<String>,
    /// Of a standby, which may be behind: what was committed last need not be in it.
    pub standby: bool,
    pub verified: bool,
    /// All tables were asked for.
    pub whole: bool,
    /// Tables that it has not, or not the rows of.
    pub left_out: Vec<TablePattern>,
    pub completed: Timestamp,
}

impl SafetyBackup {
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            id: manifest.timestamp,
            environment: manifest.environment.clone(),
            database: manifest.source.database.clone(),
            system_identifier: manifest.server.system_identifier.clone(),
            standby: manifest.server.role != PRIMARY,
            verified: manifest.state == State::Complete && manifest.verified.is_some(),
            whole: manifest.selection.include.is_empty(),
            left_out: left_out(manifest).cloned().collect(),
            completed: manifest.export_complete,
        }
    }

    /// Whether a restore could go by it, were it recent.
    pub fn serves(&self) -> bool {
        self.verified && self.whole && !self.standby
    }
}

/// Patterns of what a backup does not have, or not the rows of.
pub fn left_out(manifest: &Manifest) -> impl Iterator<Item = &TablePattern> {
    manifest.selection.exclude.iter().chain(&manifest.selection.exclude_data)
}

/// What the restore may overwrite and the safety backup does not have. What an undo replaces is put aside whole, and so
/// is what a swap does, which has to be told that nothing else has it.
fn lacks<'a>(facts: &Facts, backup: &'a SafetyBackup) -> Option<&'a TablePattern> {
    if matches!(facts.restore, Restore::Undo { .. }) {
        return None;
    }
    let mut spared: Vec<&TablePattern> = facts.source.manifest().into_iter().flat_map(left_out).collect();
    if matches!(facts.restore, Restore::Swap { .. }) {
        spared.extend(&facts.accepts_left_out);
    }
    backup.left_out.iter().find(|pattern| !spared.contains(pattern))
}

/// Why a backup taken now would not be one that a restore could go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InVain {
    /// The newest leaves out what would be replaced, and so will the next.
    LeavesOut,
    /// The newest is of a standby, and so will the next be.
    Standby,
    /// The export function backs up the configured database, and another one would be changed.
    OtherDatabase,
    NoExportFunction,
    /// One was taken, and is none.
    Taken,
}

/// Whether an export can be the way back that `facts.restore` needs, as far as can be seen before; `None`: it can.
pub fn export_in_vain(facts: &Facts) -> Option<InVain> {
    let newest = facts.safety_backup.as_ref();
    if newest.is_some_and(|backup| lacks(facts, backup).is_some()) {
        Some(InVain::LeavesOut)
    } else if newest.is_some_and(|backup| backup.standby) {
        Some(InVain::Standby)
    } else if facts.restore.target() != facts.live_database {
        Some(InVain::OtherDatabase)
    } else if !facts.export_function {
        Some(InVain::NoExportFunction)
    } else {
        None
    }
}

pub(super) fn safety_refusal(facts: &Facts, server: &TargetServer) -> Option<Refusal> {
    if !facts.restore.changes_existing_data() {
        return None;
    }
    let database = facts.restore.target();
    let newest = match &facts.safety_backup {
        None => "there is none".to_owned(),
        Some(backup) => {
            let age = backup.completed.duration_until(facts.now);
            if backup.environment != facts.environment || backup.database != database {
                format!("{} is of {} in {}", backup.id, backup.database, backup.environment)
            } else if server.system_identifier.is_none() || backup.system_identifier != server.system_identifier {
                format!("{} is of another server", backup.id)
            } else if backup.standby {
                format!("{} is of a standby, which may lag behind", backup.id)
            } else if !backup.verified {
                format!("{} is not verified", backup.id)
            } else if !backup.whole {
                format!("{} is of chosen tables only", backup.id)
            } else if let Some(pattern) = lacks(facts, backup) {
                format!(
                    "{} leaves out {pattern}, which would be replaced by what the restored backup has of it",
                    backup.id
                )
            } else if age < -CLOCK_TOLERANCE {
                format!("{} lies in the future", backup.id)
            } else if age > facts.safety_window {
                format!("the newest, {}, was complete {} min ago", backup.id, age.as_mins())
            } else {
                return None;
            }
        }
    };
    Some(Refusal::SafetyBackupMissing {
        mode: facts.restore.mode(),
        database: database.to_owned(),
        minutes: facts.safety_window.as_mins(),
        newest,
        in_vain: export_in_vain(facts),
    })
}
