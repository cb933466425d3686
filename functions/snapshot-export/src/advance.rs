//! One run: what RDS says of it, what is next, and doing that.

use std::collections::BTreeMap;

use holdfast_shared::domain::export_task::{ExportTask, TaskStatus};
use holdfast_shared::domain::rds::Snapshot;
use holdfast_shared::domain::{KeyPrefix, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::retention::snapshots::{TAG_BACKUP, TAG_ENVIRONMENT, TAG_PURPOSE};
use holdfast_shared::plan::snapshot_export::failure::Failure;
use holdfast_shared::plan::snapshot_export::run::{RunState, SnapshotFacts, TaskFacts};
use holdfast_shared::plan::snapshot_export::{Observed, Step, next_step};
use holdfast_shared::rds::{NewExport, RdsError, RdsErrorKind};
use holdfast_shared::telemetry::Unit;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::handler::{Function, Invocation};
use crate::runs::Tracked;

/// A step may call for one other: a task that was found to be there is followed.
const STEPS: usize = 3;

#[derive(Default)]
struct Seen {
    snapshot: Option<Snapshot>,
    task: Option<ExportTask>,
    under_way: Vec<ExportTask>,
}

impl Function {
    /// Does all that can be done for a run now, and says where it is.
    ///
    /// # Errors
    /// [`Fault`] where the run has failed, and where it could not be gone on with: then it stays open.
    pub async fn advance(&self, mut tracked: Tracked, invocation: &Invocation) -> Result<Value, Fault> {
        for _ in 0..STEPS {
            if !tracked.run.state.is_open() {
                break;
            }
            let seen = self.look(&tracked).await?;
            let prefix = self.task_prefix(&tracked);
            let observed =
                Observed { snapshot: seen.snapshot.as_ref(), task: seen.task.as_ref(), under_way: &seen.under_way };
            let step = next_step(&tracked.run, observed, &self.rules(invocation, &prefix), Timestamp::now());
            tracing::info!(backup_id = %tracked.run.backup_id, snapshot = tracked.run.snapshot_id, ?step, "next");
            match step {
                Step::TakeSnapshot => return self.take_snapshot(&mut tracked, invocation).await,
                Step::Wait { state, reason } => return self.wait(&mut tracked, state, reason, invocation).await,
                Step::Start => {
                    if let Some(answer) = self.start(&mut tracked, &seen, &prefix, invocation).await? {
                        return Ok(answer);
                    }
                }
                Step::Follow { status, percent, stalled } => {
                    return self.follow(&mut tracked, status, percent, stalled, invocation).await;
                }
                Step::Commit => {
                    let Some(task) = seen.task else { break };
                    return self.conclude(&mut tracked, &task, invocation).await;
                }
                Step::Fail(failure) => return Err(self.fail(&mut tracked, failure.into(), invocation).await?),
            }
        }
        Ok(answer(&tracked))
    }

    async fn look(&self, tracked: &Tracked) -> Result<Seen, Fault> {
        let run = &tracked.run;
        let task = self.rds.export_task(&run.task_id()).await?;
        if task.is_some() || run.task.is_some() {
            return Ok(Seen { task, ..Seen::default() });
        }
        Ok(Seen {
            snapshot: self.rds.snapshot(run.server.kind, &run.snapshot_id).await?,
            task,
            under_way: self.rds.export_tasks_under_way().await?,
        })
    }

    fn task_prefix(&self, tracked: &Tracked) -> String {
        ObjectKey::rds_exports_of(tracked.run.backup_id, self.key_prefix())
    }

    fn key_prefix(&self) -> &KeyPrefix {
        &self.config.store.prefix
    }

    async fn take_snapshot(&self, tracked: &mut Tracked, invocation: &Invocation) -> Result<Value, Fault> {
        let run = &tracked.run;
        let tags = BTreeMap::from([
            (TAG_ENVIRONMENT.to_owned(), run.environment.to_string()),
            (TAG_BACKUP.to_owned(), run.backup_id.to_string()),
            (TAG_PURPOSE.to_owned(), run.purpose.clone()),
        ]);
        match self.rds.create_snapshot(&run.server, &run.snapshot_id, &tags).await {
            Ok(snapshot) => {
                tracked.run.snapshot = Some(SnapshotFacts::from(&snapshot));
                let reason = format!("snapshot {} is being created", snapshot.id());
                self.wait(tracked, RunState::Waiting, reason, invocation).await
            }
            // The instance is being backed up or modified: that passes.
            Err(error) if error.kind == RdsErrorKind::InvalidState => {
                let reason = Fault::from(error).message;
                self.wait_within_limit(tracked, RunState::Waiting, reason, invocation).await
            }
            Err(error) => Err(self.refused(tracked, error, invocation).await?),
        }
    }

    async fn wait(
        &self,
        tracked: &mut Tracked,
        state: RunState,
        reason: String,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        let is_news = tracked.run.state != state || tracked.run.reason.as_ref() != Some(&reason);
        tracked.run.state = state;
        tracked.run.reason = Some(reason);
        if is_news {
            tracked.save(&self.store, &invocation.request_id).await?;
        }
        Ok(answer(tracked))
    }

    /// The same for what only a call has told.
    async fn wait_within_limit(
        &self,
        tracked: &mut Tracked,
        state: RunState,
        reason: String,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        if Timestamp::now().duration_since(tracked.run.begun) > self.config.wait_limit {
            let failure = Failure::WaitedTooLong { hours: self.config.wait_limit.as_hours(), reason };
            return Err(self.fail(tracked, failure.into(), invocation).await?);
        }
        self.wait(tracked, state, reason, invocation).await
    }

    /// `None`: the task was there already, and is to be looked at.
    async fn start(
        &self,
        tracked: &mut Tracked,
        seen: &Seen,
        prefix: &str,
        invocation: &Invocation,
    ) -> Result<Option<Value>, Fault> {
        let Some(snapshot) = &seen.snapshot else { return Ok(None) };
        let (id, only) = (tracked.run.task_id(), tracked.run.only.clone());
        tracked.run.snapshot = Some(SnapshotFacts::from(snapshot));
        let export = NewExport {
            id: &id,
            source: &snapshot.arn,
            bucket: &self.config.store.bucket,
            prefix,
            role_arn: &self.config.export_role_arn,
            kms_key_id: &self.config.export_kms_key_arn,
            only: &only,
        };
        let error = match self.rds.start_export(&export).await {
            Ok(task) => {
                let started = Timestamp::now();
                tracked.run.state = RunState::Exporting;
                tracked.run.reason = None;
                tracked.run.task = Some(TaskFacts { id, started, status: task.status, percent: 0, completed: None });
                tracked.save(&self.store, &invocation.request_id).await?;
                tracing::info!(task = task.id, "the export task is started");
                return Ok(Some(answer(tracked)));
            }
            Err(error) => error,
        };
        let queue = match error.kind {
            RdsErrorKind::AlreadyExists if self.rds.export_task(&id).await?.is_some() => {
                tracked.save(&self.store, &invocation.request_id).await?;
                return Ok(None);
            }
            // Of another task: there is room for one a snapshot.
            RdsErrorKind::AlreadyExists | RdsErrorKind::Quota => true,
            RdsErrorKind::InvalidState => {
                let source = snapshot.arn.to_string();
                self.rds.export_tasks_under_way().await?.iter().any(|task| task.source_arn == source)
            }
            _ => false,
        };
        if queue {
            let reason = Fault::from(error).message;
            return self.wait_within_limit(tracked, RunState::Queued, reason, invocation).await.map(Some);
        }
        Err(self.refused(tracked, error, invocation).await?)
    }

    async fn follow(
        &self,
        tracked: &mut Tracked,
        status: TaskStatus,
        percent: u8,
        stalled: bool,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        let run = &mut tracked.run;
        let started = run.task.as_ref().map_or_else(Timestamp::now, |task| task.started);
        let facts = TaskFacts { id: run.task_id(), started, status, percent, completed: None };
        let is_news = run.task.as_ref() != Some(&facts) || run.state != RunState::Exporting || stalled;
        tracing::info!(task = facts.id, status = facts.status.as_str(), percent, "the export task is under way");
        run.task = Some(facts);
        run.state = RunState::Exporting;
        run.reason = None;
        run.stall_told |= stalled;
        let saved = !is_news || tracked.save(&self.store, &invocation.request_id).await?;
        if stalled && saved {
            let minutes = self.config.starting_limit.as_mins();
            let message = format!(
                "export task {} of snapshot {} has been STARTING for more than {minutes} minutes: RDS restores the \
                 snapshot first, which takes its time; STARTING_LIMIT_MINUTES is the limit of this warning",
                tracked.run.task_id(),
                tracked.run.snapshot_id
            );
            self.warn(&format!("snapshot export is slow to start ({})", tracked.run.backup_id), &message).await;
        }
        Ok(answer(tracked))
    }

    async fn conclude(
        &self,
        tracked: &mut Tracked,
        task: &ExportTask,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        let now = Timestamp::now();
        let known = tracked.run.task.clone();
        let completed = known.as_ref().and_then(|task| task.completed).unwrap_or(now);
        let started = known.map_or(now, |task| task.started);
        let status = TaskStatus::Complete;
        let facts = TaskFacts { id: task.id.clone(), started, status, percent: 100, completed: Some(completed) };
        if tracked.run.task.as_ref() != Some(&facts) {
            tracked.run.task = Some(facts);
            tracked.run.state = RunState::Exporting;
            // Written down before the manifest: how long its files are waited for counts from here.
            if !tracked.save(&self.store, &invocation.request_id).await? && !tracked.run.state.is_open() {
                return Ok(answer(tracked));
            }
        }
        let committed = match self.commit(&tracked.run, task, now).await {
            Ok(committed) => committed,
            Err(fault) if now.duration_since(completed) > self.config.wait_limit => {
                return Err(self.fail(tracked, fault, invocation).await?);
            }
            Err(fault) => return Err(fault.with_context(&format!("backup {}", tracked.run.backup_id))),
        };
        tracked.run.state = RunState::Complete;
        tracked.run.reason = None;
        let saved = tracked.save(&self.store, &invocation.request_id).await?;
        if saved || committed.written {
            self.tell_success(tracked, &committed, now.duration_since(started).as_secs_f64()).await;
        }
        let mut answer = answer(tracked);
        answer["manifest"] = json!(self.store.uri(&ObjectKey::Manifest(tracked.run.backup_id)));
        answer["size_bytes"] = json!(committed.size_bytes);
        answer["tables"] = json!(committed.tables);
        answer["warnings"] = json!(committed.warnings);
        Ok(answer)
    }

    async fn tell_success(&self, tracked: &Tracked, committed: &crate::commit::Committed, seconds: f64) {
        let run = &tracked.run;
        self.reporter.measure(
            &[
                ("SnapshotExportSucceeded", Unit::Count, 1.0),
                ("SnapshotExportBytes", Unit::Bytes, committed.size_bytes as f64),
                ("SnapshotExportSeconds", Unit::Seconds, seconds),
            ],
            &[("backup_id", json!(run.backup_id)), ("snapshot", json!(run.snapshot_id))],
        );
        if committed.warnings.is_empty() {
            self.reporter.success("snapshot exported", &format!("{} as {}", run.snapshot_id, run.backup_id)).await;
        } else {
            let what = format!("snapshot export has warnings ({})", run.backup_id);
            self.warn(&what, &committed.warnings.join("\n")).await;
        }
    }

    /// What RDS has refused. What may pass leaves the run open; what will not ends it.
    async fn refused(&self, tracked: &mut Tracked, error: RdsError, invocation: &Invocation) -> Result<Fault, Fault> {
        let passes = matches!(
            error.kind,
            RdsErrorKind::Throttled
                | RdsErrorKind::Unavailable
                | RdsErrorKind::Credentials
                | RdsErrorKind::AccessDenied
                | RdsErrorKind::Quota
        );
        let fault = Fault::from(error).with_context(&format!("backup {}", tracked.run.backup_id));
        let in_time = Timestamp::now().duration_since(tracked.run.begun) <= self.config.wait_limit;
        if passes && in_time {
            let (state, reason) = (tracked.run.state, fault.message.clone());
            self.wait(tracked, state, reason, invocation).await?;
            return Ok(fault);
        }
        self.fail(tracked, fault, invocation).await
    }

    /// Ends the run as failed; the fault to answer with.
    async fn fail(&self, tracked: &mut Tracked, fault: Fault, invocation: &Invocation) -> Result<Fault, Fault> {
        loop {
            tracked.run.state = RunState::Failed;
            tracked.run.reason = Some(format!("{}: {}", fault.code, fault.message));
            if tracked.save(&self.store, &invocation.request_id).await? || !tracked.run.state.is_open() {
                let run = &tracked.run;
                return Ok(fault.with_context(&format!("backup {} of snapshot {}", run.backup_id, run.snapshot_id)));
            }
        }
    }
}

/// Where a run is.
pub fn answer(tracked: &Tracked) -> Value {
    let run = &tracked.run;
    json!({
        "status": run.state.as_str(),
        "id": run.backup_id,
        "server": run.server.to_string(),
        "snapshot": run.snapshot_id,
        "task": run.task.as_ref().map(|task| json!({
            "id": task.id, "status": task.status.as_str(), "percent": task.percent,
        })),
        "reason": run.reason,
    })
}
