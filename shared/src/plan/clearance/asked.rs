//! What a restore is asked to do, and every name it uses.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rds::RdsSource;
use crate::domain::put_aside::Exchange;
use crate::domain::{BackupId, ImportName, Manifest, PutAside, TablePattern};

/// PostgreSQL cuts longer names (`NAMEDATALEN` - 1), and then two of them can be one.
pub const MAX_NAME_BYTES: usize = 63;

/// What is to be done, with every name that will be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Restore {
    /// A database that does not exist yet.
    NewDatabase { database: String },
    /// Restore beside, prove, then rename both.
    Swap {
        database: String,
        /// Where it is restored and proved.
        shadow: String,
        /// What the replaced database is called afterwards.
        previous: String,
    },
    /// Chosen tables, into a schema that does not exist yet.
    TablesIntoSchema { database: String, schema: String, tables: Vec<TablePattern> },
    /// Chosen tables, in the place of their rows.
    TablesInPlace { database: String, tables: Vec<TablePattern> },
    /// The database that a swap replaced comes back.
    Undo {
        database: String,
        /// The one that a swap has put aside last; `None` where there is none.
        previous: Option<String>,
        /// Since when it is.
        put_aside: Option<Timestamp>,
        /// What the database is called afterwards that the swap had put in place.
        aside: String,
    },
    /// Restore to a scratch database, prove, drop.
    Verify { scratch: String },
    /// A new RDS instance or cluster from a snapshot; `None`: the newest.
    RdsSnapshot { snapshot: Option<String>, instance: String },
    /// A new RDS instance or cluster as of a moment; `None`: the latest that can be restored.
    RdsPointInTime { moment: Option<Timestamp>, instance: String },
}

/// The default name of a new database.
pub fn new_database_name(database: &str, id: BackupId) -> String {
    format!("{database}_{id}")
}

/// What a swap restores into, until it takes the name of `database`.
pub fn shadow_name(database: &str, id: BackupId) -> String {
    format!("{database}_restore_{id}")
}

/// What a swap puts aside.
pub fn previous_name(database: &str, id: BackupId) -> String {
    format!("{database}_before_{id}")
}

/// What an undo puts aside.
pub fn aside_name(database: &str, id: BackupId) -> String {
    format!("{database}_undone_{id}")
}

/// What a drill restores into, and drops.
pub fn scratch_name(database: &str, id: BackupId) -> String {
    format!("{database}_drill_{id}")
}

/// The schema of chosen tables.
pub fn schema_name(id: BackupId) -> String {
    format!("restore_{id}")
}

/// A database that a swap has put aside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Previous {
    pub at: Timestamp,
    /// Of the backup that took its place.
    pub id: BackupId,
    pub name: String,
}

/// The database that a swap of `database` has put aside last. That is what the notes say: the id in a name is that of the
/// backup that came in, and later swaps may bring in older backups.
pub fn last_previous(database: &str, notes: &BTreeMap<String, PutAside>) -> Option<Previous> {
    let replaced = notes.iter().filter(|(_, note)| note.by == Exchange::Replaced);
    let previous = |(name, note): (&String, &PutAside)| {
        Some(Previous { at: note.at, id: id_of_previous(database, name)?, name: name.clone() })
    };
    replaced.filter_map(previous).max()
}

/// What takes the place of `database` in a swap is in the name of what it replaces.
pub(super) fn id_of_previous(database: &str, name: &str) -> Option<BackupId> {
    name.strip_prefix(&format!("{database}_before_"))?.parse().ok()
}

impl Restore {
    pub fn mode(&self) -> &'static str {
        match self {
            Self::NewDatabase { .. } => "new_database",
            Self::Swap { .. } => "swap",
            Self::TablesIntoSchema { .. } | Self::TablesInPlace { .. } => "tables",
            Self::Undo { .. } => "undo",
            Self::Verify { .. } => "verify",
            Self::RdsSnapshot { .. } => "rds_snapshot",
            Self::RdsPointInTime { .. } => "rds_point_in_time",
        }
    }

    /// A drill touches nothing that exists and nobody connects to what it makes: a schedule may start it.
    pub fn needs_passkey(&self) -> bool {
        !matches!(self, Self::Verify { .. })
    }

    /// Whether data that is in use can be other than before.
    pub fn changes_existing_data(&self) -> bool {
        matches!(self, Self::Swap { .. } | Self::TablesInPlace { .. } | Self::Undo { .. })
    }

    /// Writes to the configured server; else it makes a server of its own.
    pub fn writes_to_the_server(&self) -> bool {
        !matches!(self, Self::RdsSnapshot { .. } | Self::RdsPointInTime { .. })
    }

    /// What one restore at a time may work on.
    pub fn target(&self) -> &str {
        match self {
            Self::NewDatabase { database }
            | Self::Swap { database, .. }
            | Self::TablesIntoSchema { database, .. }
            | Self::TablesInPlace { database, .. }
            | Self::Undo { database, .. } => database,
            Self::Verify { scratch } => scratch,
            Self::RdsSnapshot { instance, .. } | Self::RdsPointInTime { instance, .. } => instance,
        }
    }

    /// The database that has to be there.
    pub(super) fn existing(&self) -> Option<&str> {
        match self {
            Self::Swap { database, .. }
            | Self::TablesIntoSchema { database, .. }
            | Self::TablesInPlace { database, .. }
            | Self::Undo { database, .. } => Some(database),
            _ => None,
        }
    }

    /// Databases that are made or renamed to, and must not be there.
    pub fn created(&self) -> Vec<&str> {
        match self {
            Self::NewDatabase { database } => vec![database],
            Self::Swap { shadow, previous, .. } => vec![shadow, previous],
            Self::Undo { aside, .. } => vec![aside],
            Self::Verify { scratch } => vec![scratch],
            _ => Vec::new(),
        }
    }

    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = self.created();
        names.push(self.target());
        if let Self::TablesIntoSchema { schema, .. } = self {
            names.push(schema);
        }
        names
    }
}

/// How it is done, where that is left to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Options {
    /// Objects belong to the role that restores; privileges are granted all the same, as by `pg_restore --no-owner`.
    pub no_owner: bool,
    /// Objects that cannot be made are collected instead of ending the restore.
    pub continue_on_error: bool,
    /// Rows go to the server as text, as `pg_restore` sends them, never in COPY's binary format.
    pub copy_as_text: bool,
    /// How fast an archived dump is to be thawed.
    pub tier: Tier,
    /// When retention may drop what a swap has replaced; `None`: when someone does it by hand.
    pub keep_previous_days: Option<u32>,
}

/// S3's retrieval tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Expedited,
    #[default]
    Standard,
    Bulk,
}

/// What is restored.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Backup(Box<Manifest>),
    /// A `pg_dump` archive from elsewhere.
    Import {
        name: ImportName,
        size_bytes: u64,
        version_id: Option<String>,
    },
    /// The database that a swap replaced.
    Previous,
    /// RDS's own snapshots and logs.
    Rds(Box<RdsSource>),
}

impl Source {
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Backup(manifest) => Some(manifest),
            _ => None,
        }
    }
}
