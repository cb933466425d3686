//! An RDS export task as it is described.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Source: Amazon RDS API Reference, ExportTask. Stand-ins answer in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum TaskStatus {
    Starting,
    InProgress,
    Complete,
    Failed,
    Canceling,
    Canceled,
    /// None that this release knows: taken for a task that goes on.
    Other(String),
}

impl TaskStatus {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Starting => "STARTING",
            Self::InProgress => "IN_PROGRESS",
            Self::Complete => "COMPLETE",
            Self::Failed => "FAILED",
            Self::Canceling => "CANCELING",
            Self::Canceled => "CANCELED",
            Self::Other(text) => text,
        }
    }

    /// It counts against the quota, and keeps its snapshot from being exported by another task.
    pub fn is_under_way(&self) -> bool {
        !matches!(self, Self::Complete | Self::Failed | Self::Canceled)
    }
}

impl FromStr for TaskStatus {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "STARTING" => Self::Starting,
            "IN_PROGRESS" => Self::InProgress,
            "COMPLETE" => Self::Complete,
            "FAILED" => Self::Failed,
            "CANCELING" => Self::Canceling,
            "CANCELED" | "CANCELLED" => Self::Canceled,
            _ => Self::Other(text.to_owned()),
        })
    }
}

impl From<String> for TaskStatus {
    fn from(text: String) -> Self {
        text.parse().unwrap_or(Self::Other(text))
    }
}

impl From<TaskStatus> for String {
    fn from(status: TaskStatus) -> Self {
        status.as_str().to_owned()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTask {
    pub id: String,
    /// The snapshot's, or the cluster's where a cluster is exported.
    pub source_arn: String,
    pub status: TaskStatus,
    pub percent: u8,
    pub extracted_gb: u64,
    pub failure_cause: Option<String>,
    pub warning: Option<String>,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub bucket: String,
    pub prefix: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_any_case() {
        for (text, status, under_way) in [
            ("STARTING", TaskStatus::Starting, true),
            ("in_progress", TaskStatus::InProgress, true),
            ("complete", TaskStatus::Complete, false),
            ("Failed", TaskStatus::Failed, false),
            ("CANCELING", TaskStatus::Canceling, true),
            ("canceled", TaskStatus::Canceled, false),
            ("PAUSED", TaskStatus::Other("PAUSED".into()), true),
        ] {
            let parsed: TaskStatus = text.parse().unwrap();
            assert_eq!((&parsed, parsed.is_under_way()), (&status, under_way));
        }
    }
}
