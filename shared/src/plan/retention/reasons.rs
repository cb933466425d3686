//! Why a backup is kept, nothing of a database expires, or a deletion by hand is refused.

use std::fmt;

use crate::domain::{ArtifactKind, BackupId, Environment};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub id: BackupId,
    pub environment: Environment,
    pub database: String,
    pub purpose: String,
    pub reasons: Vec<Reason>,
}

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    NewestVerified,
    /// The newest of its kind where no backup can be restored anyway.
    NewestOfItsKind(ArtifactKind),
    Held,
    /// By the request, or an unreadable pin, that is named.
    Pinned(String),
    DatedInTheFuture,
    Blocked(BlockKind),
    NothingListed,
    NotUnderstood(String),
    NoRule,
    Forever,
    Last(u64),
    Within(u64),
    Daily(u64),
    Weekly(u64),
    Monthly(u64),
    Yearly(u64),
}

/// Nothing of a database expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub environment: Environment,
    pub database: String,
    pub kind: BlockKind,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockKind {
    NoVerifiedBackup,
    ClockBehindNewest,
    Anomaly,
}

impl BlockKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoVerifiedBackup => "no_verified_backup",
            Self::ClockBehindNewest => "clock_behind_newest",
            Self::Anomaly => "anomaly",
        }
    }
}

/// Why a backup is not deleted by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no backup {0}")]
    Unknown(BackupId),
    #[error("backup {id} is of environment {environment}, which this function does not look after")]
    OtherEnvironment { id: BackupId, environment: Environment },
    #[error("backup {id} is not understood: {problem}")]
    NotUnderstood { id: BackupId, problem: String },
    #[error("backup {id} is pinned by {by}")]
    Pinned { id: BackupId, by: String },
    #[error("backup {id} is on hold")]
    Held { id: BackupId },
    #[error("backup {id} is the newest verified one of {database} in {environment}")]
    LastVerified { id: BackupId, environment: Environment, database: String },
    #[error("no backup of {database} in {environment} is verified")]
    NoneVerified { environment: Environment, database: String },
    #[error("an anomaly blocks the deletion of backups of {database} in {environment}: {findings}")]
    Anomaly { environment: Environment, database: String, findings: String },
}

impl Reason {
    /// It keeps a backup as a whole, not one artifact by a rule.
    pub(super) fn keeps_whole(&self) -> bool {
        matches!(
            self,
            Self::NewestVerified
                | Self::NewestOfItsKind(_)
                | Self::Held
                | Self::Pinned(_)
                | Self::DatedInTheFuture
                | Self::Blocked(_)
                | Self::NotUnderstood(_)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewestVerified => f.write_str("newest verified"),
            Self::NewestOfItsKind(kind) => write!(f, "newest {kind}"),
            Self::Held => f.write_str("hold"),
            Self::Pinned(by) => write!(f, "pinned by {by}"),
            Self::DatedInTheFuture => f.write_str("dated in the future"),
            Self::Blocked(kind) => write!(f, "blocked: {}", kind.as_str()),
            Self::NothingListed => f.write_str("lists no artifact"),
            Self::NotUnderstood(problem) => write!(f, "not understood: {problem}"),
            Self::NoRule => f.write_str("no rule fits"),
            Self::Forever => f.write_str("forever"),
            Self::Last(count) => write!(f, "last {count}"),
            Self::Within(days) => write!(f, "within {days} days"),
            Self::Daily(count) => write!(f, "one of {count} daily"),
            Self::Weekly(count) => write!(f, "one of {count} weekly"),
            Self::Monthly(count) => write!(f, "one of {count} monthly"),
            Self::Yearly(count) => write!(f, "one of {count} yearly"),
        }
    }
}
