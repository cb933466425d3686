//! What can be against a restore.

use jiff::Timestamp;

use super::InVain;
use crate::domain::{BackupId, Environment};

/// Why a restore may not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no restore passkey is configured, so that no restore is allowed")]
    PasskeyNotConfigured,
    #[error("the request has no passkey")]
    PasskeyMissing,
    #[error("the passkey is wrong")]
    PasskeyRejected,
    #[error("too many wrong passkeys: restores are locked until {until}")]
    LockedOut { until: Timestamp },
    #[error("the approval of this restore has expired at {until}")]
    ApprovalExpired { until: Timestamp },
    #[error("{mode} cannot be made of this source")]
    SourceUnfit { mode: &'static str },
    #[error("backup {id} is expired: its data is gone")]
    BackupExpired { id: BackupId },
    #[error("backup {id} is not verified")]
    BackupNotVerified { id: BackupId },
    #[error("backup {id} has no dump")]
    BackupWithoutDump { id: BackupId },
    #[error("backup {id} is of chosen tables only ({tables}): the live database would lose all others")]
    BackupOfChosenTables { id: BackupId, tables: String },
    #[error("backup {id} leaves tables or rows out ({left_out}), which the live database would lose")]
    BackupPartial { id: BackupId, left_out: String },
    #[error("the target server was not reached")]
    TargetUnknown,
    #[error("no system identifier of the target server is configured; this one is {}", shown(found))]
    ServerNotConfigured { found: Option<String> },
    #[error("the target server does not tell its system identifier")]
    ServerUnidentified,
    #[error("the target server is {found}, and {configured} is configured")]
    WrongServer { found: String, configured: String },
    #[error("the target server belongs to {found}, and this function is of {function}: {reason}")]
    WrongEnvironment { found: String, function: Environment, reason: &'static str },
    #[error("the target server is a standby")]
    TargetStandby,
    #[error("{name:?} cannot be the name of what is to be made: {problem}")]
    NameInvalid { name: String, problem: &'static str },
    #[error("database {name:?} belongs to the server")]
    TargetReserved { name: String },
    #[error("database {name:?} exists")]
    TargetExists {
        name: String,
        /// The request may choose another; else it follows from the backup.
        chosen: bool,
    },
    #[error("database {name:?} does not exist")]
    TargetMissing { name: String },
    #[error("no swap has put a database {database:?} aside{}", without_note(unmarked))]
    NothingToUndo {
        database: String,
        /// One that has the name, and not the note of a swap.
        unmarked: Option<String>,
    },
    #[error(
        "{mode} changes database {database:?}, and no verified backup of it is younger than {minutes} min: {newest}"
    )]
    SafetyBackupMissing {
        mode: &'static str,
        database: String,
        minutes: i64,
        newest: String,
        /// Why none is to be taken; `None`: one can be.
        in_vain: Option<InVain>,
    },
    #[error(
        "the dump is archived: the restore goes on hours later, when no backup of database {database:?} is recent any more"
    )]
    ThawWithoutSafetyBackup {
        database: String,
        /// Why none is to be taken then; `None`: one can be.
        in_vain: Option<InVain>,
    },
    #[error("a dump in DEEP_ARCHIVE cannot be thawed by tier expedited")]
    TierUnavailable,
    #[error("no RDS instance or cluster is configured as a source")]
    RdsNotConfigured,
    #[error("RDS source {of} does not exist")]
    RdsSourceMissing { of: String },
    #[error("an RDS server {name:?} exists")]
    RdsTargetExists { name: String },
    #[error("there is no snapshot {snapshot:?} of {of}")]
    RdsSnapshotUnknown { snapshot: String, of: String },
    #[error("snapshot {snapshot:?} is of another server, account or region")]
    RdsSnapshotForeign { snapshot: String },
    #[error("snapshot {snapshot:?} is {status}")]
    RdsSnapshotNotAvailable { snapshot: String, status: String },
    #[error("the source cluster has no instance whose class a new one could take after")]
    RdsClassUnknown,
    #[error("the source can be restored as of {} to {}", moment(from), moment(until))]
    RdsMomentOutside { from: Option<Timestamp>, until: Option<Timestamp> },
}

fn moment(moment: &Option<Timestamp>) -> String {
    moment.map_or_else(|| "a moment that RDS does not tell".to_owned(), |moment| moment.to_string())
}

fn shown(identifier: &Option<String>) -> &str {
    identifier.as_deref().unwrap_or("not readable")
}

fn without_note(unmarked: &Option<String>) -> String {
    unmarked.as_ref().map_or_else(String::new, |name| format!("; {name:?} has no note that says so"))
}

impl Refusal {
    /// Stable; docs/errors.md lists all.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PasskeyNotConfigured => "restore-passkey-not-configured",
            Self::PasskeyMissing => "restore-passkey-missing",
            Self::PasskeyRejected => "restore-passkey-rejected",
            Self::LockedOut { .. } => "restore-locked-out",
            Self::ApprovalExpired { .. } => "restore-approval-expired",
            Self::SourceUnfit { .. } => "restore-source-unfit",
            Self::BackupExpired { .. } => "backup-expired",
            Self::BackupNotVerified { .. } => "restore-backup-not-verified",
            Self::BackupWithoutDump { .. } => "restore-backup-without-dump",
            Self::BackupOfChosenTables { .. } | Self::BackupPartial { .. } => "restore-backup-partial",
            Self::TargetUnknown => "restore-target-unknown",
            Self::ServerNotConfigured { .. } => "restore-server-not-configured",
            Self::ServerUnidentified => "restore-server-unidentified",
            Self::WrongServer { .. } => "restore-wrong-server",
            Self::WrongEnvironment { .. } => "restore-wrong-environment",
            Self::TargetStandby => "restore-target-standby",
            Self::NameInvalid { .. } => "restore-name-invalid",
            Self::TargetReserved { .. } => "restore-target-reserved",
            Self::TargetExists { .. } => "restore-target-exists",
            Self::TargetMissing { .. } => "restore-target-missing",
            Self::NothingToUndo { .. } => "restore-nothing-to-undo",
            Self::SafetyBackupMissing { .. } => "restore-safety-backup-missing",
            Self::ThawWithoutSafetyBackup { .. } => "restore-thaw-without-safety-backup",
            Self::TierUnavailable => "restore-tier-unavailable",
            Self::RdsNotConfigured => "restore-rds-not-configured",
            Self::RdsSourceMissing { .. } => "restore-rds-source-missing",
            Self::RdsTargetExists { .. } => "restore-rds-target-exists",
            Self::RdsSnapshotUnknown { .. } => "restore-rds-snapshot-unknown",
            Self::RdsSnapshotForeign { .. } => "restore-rds-snapshot-foreign",
            Self::RdsSnapshotNotAvailable { .. } => "restore-rds-snapshot-not-available",
            Self::RdsClassUnknown => "restore-rds-class-unknown",
            Self::RdsMomentOutside { .. } => "restore-rds-moment-outside",
        }
    }

    /// Whether a backup taken now takes it away.
    pub fn is_cured_by_export(&self) -> bool {
        matches!(self, Self::SafetyBackupMissing { in_vain: None, .. })
    }

    /// The same when a backup has been taken: another is of no use.
    #[must_use]
    pub fn after_export(mut self) -> Self {
        if let Self::SafetyBackupMissing { in_vain, .. } = &mut self {
            in_vain.get_or_insert(InVain::Taken);
        }
        self
    }

    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::PasskeyNotConfigured => {
                "make a hash with `restore-trigger hash-passkey`, store it as a secret, and set RESTORE_PASSKEY_SECRET_ARN"
            }
            Self::PasskeyMissing => "give it as \"passkey\"; mode plan and drills need none",
            Self::PasskeyRejected => "five wrong ones within 15 minutes lock restores for 15 minutes",
            Self::LockedOut { .. } => "wait; if it was not you, look at the records under restores/ and at CloudTrail",
            Self::ApprovalExpired { .. } => "ask again",
            Self::SourceUnfit { .. } => "docs/restore.md says what each mode takes",
            Self::BackupExpired { .. } => "choose another backup",
            Self::BackupNotVerified { .. } => "choose a verified backup, or prove this one with mode verify",
            Self::BackupWithoutDump { .. } => "only a dump can be restored; choose another backup",
            Self::BackupOfChosenTables { .. } => "use mode tables or new_database, or a backup of all tables",
            Self::BackupPartial { .. } => {
                "name each of these patterns in accept_left_out: they stay in the database that is put aside; or use mode new_database or tables"
            }
            Self::TargetUnknown => "check the database settings and the network",
            Self::ServerNotConfigured { .. } => {
                "set TARGET_SYSTEM_IDENTIFIER once you are sure that this is the server that restores may write to"
            }
            Self::ServerUnidentified => "grant EXECUTE ON FUNCTION pg_control_system() to the restoring role",
            Self::WrongServer { .. } => {
                "check the database settings; after a move or a major upgrade set TARGET_SYSTEM_IDENTIFIER anew"
            }
            Self::WrongEnvironment { .. } => {
                "restores write to their own environment only; a server that two share says so by \
                 ALTER DATABASE … SET holdfast.environment"
            }
            Self::TargetStandby => "give the primary's host",
            Self::NameInvalid { .. } => "give another target_database, or for an RDS server another instance",
            Self::TargetReserved { .. } => "choose a database of your own",
            Self::TargetExists { chosen: true, .. } => {
                "give another target_database; to replace what is in an existing one is mode swap"
            }
            Self::TargetExists { chosen: false, .. } => {
                "an earlier restore has left it: rename it, or drop it if it is not needed any more"
            }
            Self::TargetMissing { .. } => "check target_database and DATABASE_NAME; mode new_database makes a new one",
            Self::NothingToUndo { unmarked: None, .. } => "mode undo takes back what mode swap did",
            Self::NothingToUndo { .. } => {
                "mode undo takes back what mode swap did, and goes by the comment that it leaves on the database; rename another one yourself"
            }
            Self::SafetyBackupMissing { in_vain: None, .. } => {
                "run scheduled-export first, or ask with \"take_safety_backup\": true"
            }
            Self::SafetyBackupMissing { in_vain: Some(InVain::OtherDatabase), .. } => {
                "have an export of this very database run first: take_safety_backup backs up the configured one"
            }
            Self::SafetyBackupMissing { in_vain: Some(InVain::NoExportFunction), .. } => {
                "run scheduled-export first, or set EXPORT_FUNCTION_NAME and ask with \"take_safety_backup\": true"
            }
            Self::ThawWithoutSafetyBackup { in_vain: None, .. } => {
                "ask with \"take_safety_backup\": true: it is then taken when the dump has thawed"
            }
            Self::ThawWithoutSafetyBackup { in_vain: Some(InVain::OtherDatabase), .. } => {
                "take_safety_backup backs up the configured database, and nothing else would be recent then: use mode new_database, or tables into a schema"
            }
            Self::ThawWithoutSafetyBackup { in_vain: Some(InVain::NoExportFunction), .. } => {
                "set EXPORT_FUNCTION_NAME and ask with \"take_safety_backup\": true: it is then taken when the dump has thawed"
            }
            Self::SafetyBackupMissing { in_vain: Some(InVain::LeavesOut), .. }
            | Self::ThawWithoutSafetyBackup { in_vain: Some(InVain::LeavesOut), .. } => {
                "back up without leaving it out; a swap may leave it in the database that is put aside, if accept_left_out names it; tables can go into a schema of their own"
            }
            Self::SafetyBackupMissing { in_vain: Some(InVain::Standby), .. }
            | Self::ThawWithoutSafetyBackup { in_vain: Some(InVain::Standby), .. } => {
                "have scheduled-export read from the primary, run it once, and ask again"
            }
            Self::SafetyBackupMissing { in_vain: Some(InVain::Taken), .. }
            | Self::ThawWithoutSafetyBackup { in_vain: Some(InVain::Taken), .. } => {
                "one was taken and is none: EXPORT_FUNCTION_NAME has to name an export of all tables of this very database"
            }
            Self::RdsNotConfigured => "set RDS_SOURCE to the instance, or cluster:… for a cluster",
            Self::RdsSourceMissing { .. } => {
                "check RDS_SOURCE; a snapshot of a server that is gone is restored with subnet_group, security_groups and for a cluster instance_class given"
            }
            Self::RdsTargetExists { .. } => "give another instance",
            Self::RdsSnapshotUnknown { .. } => "check the name, the account and the region; latest is the newest",
            Self::RdsSnapshotForeign { .. } => "only snapshots of RDS_SOURCE are restored",
            Self::RdsSnapshotNotAvailable { .. } => "wait until it is available, or choose another",
            Self::RdsClassUnknown => "give instance_class",
            Self::RdsMomentOutside { .. } => "choose a moment in that window; latest is its end",
            Self::TierUnavailable => "ask with tier standard or bulk",
        }
    }
}
