//! One export from its event to its manifest, as it is written down between invocations.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::export_task::TaskStatus;
use crate::domain::rds::{ServerId, Snapshot, SnapshotArn};
use crate::domain::{BackupId, Environment};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// For its snapshot.
    Waiting,
    /// For other tasks to end.
    Queued,
    Exporting,
    Complete,
    Failed,
}

impl RunState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Exporting => "exporting",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    pub fn is_open(self) -> bool {
        !matches!(self, Self::Complete | Self::Failed)
    }
}

/// What lies at `runs/rds-exports/{id}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub backup_id: BackupId,
    /// The same for every delivery of what asked for it.
    pub event_key: String,
    pub environment: Environment,
    pub server: ServerId,
    pub snapshot_id: String,
    /// The run takes the snapshot itself.
    #[serde(default)]
    pub takes_snapshot: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    pub purpose: String,
    pub created_by: String,
    pub begun: Timestamp,
    pub state: RunState,
    /// Why it waits, or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From when it has been seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotFacts>,
    /// From when it has been started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskFacts>,
    #[serde(default)]
    pub stall_told: bool,
    /// What RDS has said of single tables in events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub table_failures: Vec<String>,
    /// Request id and count: no two writes are the same.
    pub written_by: String,
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    pub arn: SnapshotArn,
    pub created: Option<Timestamp>,
    pub engine: String,
    pub engine_version: String,
    pub encrypted: bool,
}

impl From<&Snapshot> for SnapshotFacts {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            arn: snapshot.arn.clone(),
            created: snapshot.created,
            engine: snapshot.engine.clone(),
            engine_version: snapshot.engine_version.clone(),
            encrypted: snapshot.encrypted,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFacts {
    pub id: String,
    pub started: Timestamp,
    pub status: TaskStatus,
    pub percent: u8,
    /// When it was first seen to be complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
}

impl Run {
    /// The task's identifier, which is the name of the folder that RDS makes below the prefix.
    pub fn task_id(&self) -> String {
        format!("export-{}", self.backup_id)
    }
}
