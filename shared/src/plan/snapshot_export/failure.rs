//! Why a snapshot is not exported, or its export has failed.

use jiff::Timestamp;

use crate::fault::Fault;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{what}, which is none that RDS_SOURCES names in this account and region")]
    NotOurs { what: String },
    #[error("there is no snapshot {id}")]
    SnapshotNotFound { id: String },
    #[error("nothing newer than {id} of {created} is there to export, and that has been exported")]
    SnapshotStale { id: String, created: Timestamp },
    #[error("snapshot {id} is of {engine}, and not of PostgreSQL")]
    EngineUnsupported { id: String, engine: String },
    #[error("snapshot {id} is not encrypted")]
    NotEncrypted { id: String },
    #[error("snapshot {id} is of Aurora Serverless v1, which RDS does not export")]
    ServerlessV1 { id: String },
    #[error("snapshot {id} is {status}")]
    NotAvailable { id: String, status: String },
    #[error("the role {arn} is of another account, and RDS is handed none of those")]
    RoleNotOurs { arn: String },
    #[error("the key {arn} is not in {region}, where the snapshots are")]
    KeyElsewhere { arn: String, region: String },
    #[error("it has waited for {hours} hours: {reason}")]
    WaitedTooLong { hours: i64, reason: String },
    #[error("RDS failed the export: {cause}")]
    TaskFailed { cause: String },
    #[error("the export task was canceled{}", cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default())]
    TaskCanceled { cause: Option<String> },
    #[error("RDS does not know the export task {id}, which had been started")]
    TaskLost { id: String },
    #[error("the export task {id} is another deployment's")]
    TaskIdTaken { id: String },
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        let (code, hint) = match &failure {
            Failure::NotOurs { .. } => {
                ("snapshot-not-ours", "RDS_SOURCES names the instances and clusters that are exported")
            }
            Failure::SnapshotNotFound { .. } => {
                ("snapshot-not-found", "check its name and region; an automated one's begins with rds:")
            }
            Failure::SnapshotStale { .. } => (
                "snapshot-stale",
                "automated backups seem to have stopped: check the server's backup retention period and its events; MAX_SNAPSHOT_AGE_HOURS is the limit",
            ),
            Failure::EngineUnsupported { .. } => {
                ("snapshot-engine-unsupported", "postgres and aurora-postgresql are exported")
            }
            Failure::NotEncrypted { .. } => (
                "snapshot-not-encrypted",
                "copy it with a KMS key and export the copy, or set REQUIRE_ENCRYPTED_SNAPSHOT=false: RDS encrypts the export in any case",
            ),
            Failure::ServerlessV1 { .. } => (
                "snapshot-serverless-v1",
                "restore it to a provisioned cluster and export a snapshot of that, or use scheduled-export",
            ),
            Failure::NotAvailable { .. } => ("snapshot-not-available", "choose another snapshot"),
            Failure::RoleNotOurs { .. } => {
                ("snapshot-export-role-not-ours", "EXPORT_ROLE_ARN has to name a role of the function's account")
            }
            Failure::KeyElsewhere { .. } => (
                "snapshot-export-key-elsewhere",
                "EXPORT_KMS_KEY_ARN has to name a key of the function's region; a multi-region key has an ARN in each",
            ),
            Failure::WaitedTooLong { .. } => {
                ("snapshot-export-waited-too-long", "WAIT_LIMIT_HOURS is the limit; ask for it again by hand")
            }
            Failure::TaskFailed { .. } => (
                "snapshot-export-failed",
                "docs/snapshot-export.md says what RDS's reasons mean; ask for it again by hand",
            ),
            Failure::TaskCanceled { .. } => ("snapshot-export-canceled", "ask for it again by hand"),
            Failure::TaskLost { .. } => ("snapshot-export-lost", "ask for it again by hand"),
            Failure::TaskIdTaken { .. } => {
                ("snapshot-export-id-taken", "ask for it again by hand: it takes another id")
            }
        };
        Self::from_error(code, &failure).hint(hint)
    }
}
