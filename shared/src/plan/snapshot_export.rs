//! What an RDS snapshot export does next: its run and what RDS says in, one step out. Pure.

pub mod failure;
pub mod manifest;
pub mod only;
pub mod report;
pub mod run;
#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

use crate::domain::export_task::{ExportTask, TaskStatus};
use crate::domain::rds::{ServerId, Snapshot, SnapshotArn, SnapshotType};
use crate::plan::snapshot_export::failure::Failure;
use crate::plan::snapshot_export::run::{Run, RunState};

/// Tasks of an account and region that may be under way at a time.
/// Source: Amazon RDS User Guide, "Considerations for DB snapshot exports".
pub const TASK_QUOTA: usize = 5;
/// For so long what has just been asked for may not be described yet.
const FIRST_SIGHT: SignedDuration = SignedDuration::from_mins(15);

/// What may be exported, and how long is long.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    pub sources: &'a [ServerId],
    /// The function's own.
    pub account: &'a str,
    pub region: &'a str,
    pub require_encrypted: bool,
    pub starting_limit: SignedDuration,
    pub wait_limit: SignedDuration,
    /// Where the run's task writes.
    pub bucket: &'a str,
    pub prefix: &'a str,
}

/// What RDS says about a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed<'a> {
    /// Looked for until a task is started.
    pub snapshot: Option<&'a Snapshot>,
    /// Of the run's identifier, whoever's it is.
    pub task: Option<&'a ExportTask>,
    /// Of the whole account; looked for until a task is started.
    pub under_way: &'a [ExportTask],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    TakeSnapshot,
    Wait {
        state: RunState,
        reason: String,
    },
    Start,
    /// The task is under way.
    Follow {
        status: TaskStatus,
        percent: u8,
        /// It has been starting for so long that somebody should know.
        stalled: bool,
    },
    /// The task is done: what it wrote becomes a backup.
    Commit,
    Fail(Failure),
}

/// Decides what is next for a run that has not ended.
pub fn next_step(run: &Run, observed: Observed<'_>, rules: &Rules<'_>, now: Timestamp) -> Step {
    match (&run.task, observed.task) {
        (_, Some(task)) if !is_own(run, task, rules) => Step::Fail(Failure::TaskIdTaken { id: task.id.clone() }),
        (_, Some(task)) => follow(run, task, rules, now),
        (Some(known), None) if now.duration_since(known.started) < FIRST_SIGHT => {
            Step::Follow { status: known.status.clone(), percent: known.percent, stalled: false }
        }
        (Some(_), None) => Step::Fail(Failure::TaskLost { id: run.task_id() }),
        (None, None) => before_start(run, observed, rules, now),
    }
}

fn is_own(run: &Run, task: &ExportTask, rules: &Rules<'_>) -> bool {
    let source = run.snapshot.as_ref().is_none_or(|snapshot| task.source_arn == snapshot.arn.to_string());
    source && task.bucket == rules.bucket && task.prefix.trim_end_matches('/') == rules.prefix
}

fn follow(run: &Run, task: &ExportTask, rules: &Rules<'_>, now: Timestamp) -> Step {
    match &task.status {
        TaskStatus::Complete => Step::Commit,
        TaskStatus::Failed => Step::Fail(Failure::TaskFailed {
            cause: task.failure_cause.clone().unwrap_or_else(|| "RDS gives no reason".to_owned()),
        }),
        TaskStatus::Canceled => Step::Fail(Failure::TaskCanceled { cause: task.failure_cause.clone() }),
        status => {
            let started = run.task.as_ref().map_or(now, |known| known.started);
            let stalled = *status == TaskStatus::Starting
                && !run.stall_told
                && now.duration_since(started) > rules.starting_limit;
            Step::Follow { status: status.clone(), percent: task.percent, stalled }
        }
    }
}

fn before_start(run: &Run, observed: Observed<'_>, rules: &Rules<'_>, now: Timestamp) -> Step {
    let wait = |state: RunState, reason: String| {
        if now.duration_since(run.begun) > rules.wait_limit {
            return Step::Fail(Failure::WaitedTooLong { hours: rules.wait_limit.as_hours(), reason });
        }
        Step::Wait { state, reason }
    };
    let Some(snapshot) = observed.snapshot else {
        return match (run.takes_snapshot, &run.snapshot) {
            (true, None) => Step::TakeSnapshot,
            (true, Some(taken)) if now.duration_since(run.begun) < FIRST_SIGHT => {
                wait(RunState::Waiting, format!("snapshot {} is being created", taken.arn.id()))
            }
            _ => Step::Fail(Failure::SnapshotNotFound { id: run.snapshot_id.clone() }),
        };
    };
    if let Err(failure) = admit(snapshot, rules) {
        return Step::Fail(failure);
    }
    if !snapshot.is_available() {
        let percent = snapshot.percent_progress.unwrap_or_default();
        return wait(RunState::Waiting, format!("snapshot {} is being created ({percent} %)", snapshot.id()));
    }
    let source = snapshot.arn.to_string();
    if let Some(other) = observed.under_way.iter().find(|task| task.source_arn == source) {
        return wait(RunState::Queued, format!("task {} exports the same snapshot, and one at a time may", other.id));
    }
    if observed.under_way.len() >= TASK_QUOTA {
        let count = observed.under_way.len();
        return wait(RunState::Queued, format!("{count} export tasks are under way, and {TASK_QUOTA} may be"));
    }
    Step::Start
}

/// Whether a snapshot is one that this deployment exports, and RDS can.
pub fn admit(snapshot: &Snapshot, rules: &Rules<'_>) -> Result<(), Failure> {
    is_ours(&snapshot.arn, rules)?;
    let id = snapshot.id().to_owned();
    if !rules.sources.contains(&snapshot.server) {
        return Err(Failure::NotOurs { what: format!("snapshot {id} is of {}", snapshot.server) });
    }
    if snapshot.snapshot_type == SnapshotType::Other {
        return Err(Failure::NotOurs { what: format!("snapshot {id} is neither an automated nor a manual one") });
    }
    if !matches!(snapshot.engine.as_str(), "postgres" | "aurora-postgresql") {
        return Err(Failure::EngineUnsupported { id, engine: snapshot.engine.clone() });
    }
    // Serverless v2 is an ordinary cluster with instances of a class of its own.
    if snapshot.engine_mode.as_deref() == Some("serverless") {
        return Err(Failure::ServerlessV1 { id });
    }
    if rules.require_encrypted && !snapshot.encrypted {
        return Err(Failure::NotEncrypted { id });
    }
    if !snapshot.is_available() && !snapshot.status.eq_ignore_ascii_case("creating") {
        return Err(Failure::NotAvailable { id, status: snapshot.status.clone() });
    }
    Ok(())
}

/// Whether an ARN is of this account and region at all.
pub fn is_ours(arn: &SnapshotArn, rules: &Rules<'_>) -> Result<(), Failure> {
    if arn.account() != rules.account || arn.region() != rules.region {
        return Err(Failure::NotOurs { what: format!("{arn} is of another account or region") });
    }
    Ok(())
}

/// Whether RDS could be handed a role and a key at all; whether it may use them is known to RDS alone.
pub fn can_be_handed(role_arn: &str, key_arn: &str, rules: &Rules<'_>) -> Result<(), Failure> {
    let part = |arn: &str, index: usize| arn.split(':').nth(index).unwrap_or_default().to_owned();
    if part(role_arn, 4) != rules.account {
        return Err(Failure::RoleNotOurs { arn: role_arn.to_owned() });
    }
    if part(key_arn, 3) != rules.region {
        return Err(Failure::KeyElsewhere { arn: key_arn.to_owned(), region: rules.region.to_owned() });
    }
    Ok(())
}

/// The newest snapshot that is there.
pub fn newest(snapshots: &[Snapshot]) -> Option<&Snapshot> {
    let there = snapshots.iter().filter(|snapshot| snapshot.is_available() && snapshot.created.is_some());
    there.max_by(|a, b| (a.created, a.id()).cmp(&(b.created, b.id())))
}
