//! What a restore tells when it is done.

use holdfast_shared::domain::TableDigest;
use serde::{Deserialize, Serialize};

use crate::engine::peculiar::Peculiar;
use crate::engine::source::Backup;

/// What was done, and how long it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Receipt {
    /// The database that was made; for an undo, the one that came back.
    pub database: String,
    /// What the database is called now that had that name before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The schema that chosen tables are in now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
    pub large_objects: u64,
    /// `fingerprints`, or `row counts` where there is no manifest.
    pub proved_by: &'static str,
    pub seconds: Seconds,
    /// Owners, privileges and tablespaces that this server does not have, and what needs a superuser.
    pub left_out: Vec<String>,
    /// What failed, with `continue_on_error`.
    pub errors: Vec<String>,
    /// What else is other than before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Until all that comes before data is there.
    pub before: f64,
    /// From then until the last row is loaded; indexes of tables that were loaded sooner are among it.
    pub data: f64,
    /// From then until everything is built.
    pub after: f64,
    pub proof: f64,
    pub total: f64,
}

impl Receipt {
    /// Adds what was loaded, one digest a block.
    pub(super) fn count(&mut self, backup: &Backup, peculiar: &Peculiar, loaded: &[TableDigest]) {
        for (block, digest) in loaded.iter().enumerate().filter(|(block, _)| !peculiar.missing.contains(block)) {
            if backup.entry(block).is_large_objects() {
                self.large_objects += digest.rows;
            } else {
                self.tables += 1;
                self.rows += digest.rows;
            }
            self.bytes += digest.bytes;
        }
    }
}
