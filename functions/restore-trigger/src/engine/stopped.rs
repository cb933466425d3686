//! Why loading ended early: the archive is damaged, or the server refuses it.

use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::CopyError;

use crate::engine::intake::IntakeError;

pub enum Stopped {
    Damaged(IntakeError),
    Refused(CopyError),
}

impl Stopped {
    pub fn fault(self, table: &str) -> Fault {
        match self {
            Self::Damaged(error) => error.fault(table),
            Self::Refused(error) => load_fault(&error, table),
        }
    }
}

impl From<IntakeError> for Stopped {
    fn from(error: IntakeError) -> Self {
        Self::Damaged(error)
    }
}

impl From<CopyError> for Stopped {
    fn from(error: CopyError) -> Self {
        Self::Refused(error)
    }
}

/// What a refusal means to the operator.
pub fn load_fault(error: &CopyError, table: &str) -> Fault {
    let (code, hint) = match (error, error.code()) {
        (_, Some("53100")) => ("target-disk-full", "give the target server more storage"),
        (_, Some("57P01" | "57P02" | "57P03")) | (CopyError::Io(_), _) => {
            ("database-connection-lost", "nothing of the unfinished database stays; restore again")
        }
        _ => {
            ("table-load-failed", "the server refuses what the backup holds; if that is damage, restore another backup")
        }
    };
    Fault::from_error(code, error).with_context(&format!("loading {table}")).hint(hint)
}
