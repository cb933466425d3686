//! One invocation: understand, write down, restore or plan or go on with what waits, and tell what became of it.

use std::time::{Duration, Instant, SystemTime};

use holdfast_shared::config::RestoreConfig;
use holdfast_shared::domain::BackupId;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::credentials;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::store::claim::event_digest;
use holdfast_shared::telemetry::Unit;
use jiff::Timestamp;
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;
use tracing::field::Empty;

use crate::audit::{self, Audit, Opened, Problem, Record, RecordState};
use crate::failure::{Failure, answered, deadline_fault, in_progress, interrupted};
use crate::guard::Guard;
use crate::last_time;
use crate::preview::preview;
use crate::request::{Asked, RestoreRequest, understand};
use crate::restore::{Ground, Job};
use crate::resume;

/// Refusals that may be somebody guessing: counted apart.
const PASSKEY_CODES: [&str; 2] = ["restore-passkey-rejected", "restore-locked-out"];
/// How long lease, pin and record may take at a run's end: together less than the margin.
pub const CLEANUP_LIMIT: Duration = Duration::from_secs(4);

pub struct Function {
    pub config: RestoreConfig,
    pub aws: aws_config::SdkConfig,
    pub store: Store,
    pub reporter: Reporter,
}

/// What a run knows of its invocation.
pub struct Invocation {
    pub request_id: String,
    pub now: Timestamp,
    pub started: Instant,
    pub give_up_at: Instant,
    /// When Lambda ends it, whatever it does.
    pub ends: Timestamp,
}

impl Invocation {
    pub fn is_half_over(&self) -> bool {
        self.started.elapsed() > self.give_up_at.saturating_duration_since(Instant::now())
    }
}

/// What a restore came to, for now or for good.
pub type Answer = (Value, RecordState);

impl Function {
    /// # Errors
    /// [`Fault`]: every refusal and failure is one; it is logged, counted and notified here, once.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<Value, Fault> {
        let (started, now) = (Instant::now(), Timestamp::now());
        let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        let invocation = Invocation {
            request_id: event.context.request_id.clone(),
            now,
            started,
            give_up_at: started + remaining.saturating_sub(self.config.deadline_margin),
            ends: now + remaining,
        };
        // At error level, so that it is there whatever level is logged.
        let span = tracing::error_span!(
            "restore",
            request_id = invocation.request_id,
            continues = Empty,
            mode = Empty,
            backup_id = Empty,
            target = Empty
        );
        let handled = async {
            let result = match resume::called(&event.payload, &self.config.store.bucket) {
                Ok(Some(call)) => Box::pin(self.resume(&call, &invocation)).await,
                Ok(None) => Box::pin(self.respond(understand(&event.payload), &invocation)).await,
                Err(fault) => Box::pin(self.respond(Err(fault), &invocation)).await,
            };
            if let Err(failure) = &result {
                self.report_failure(failure).await;
            }
            result.map_err(|failure| failure.fault().clone())
        };
        handled.instrument(span).await
    }

    async fn respond(&self, understood: Result<Asked, Fault>, invocation: &Invocation) -> Result<Value, Failure> {
        let event_key = understood.as_ref().ok().and_then(|(request, _)| request.event_key.as_deref());
        let request_id = event_key.map_or_else(|| invocation.request_id.clone(), event_digest);
        let mut record = Record::new(&request_id, &self.config.environment, invocation.now, invocation.ends);
        record.invocation = event_key.map(|_| invocation.request_id.clone());
        if let Ok((request, _)) = &understood {
            record.of_request(request);
            tracing::Span::current().record("mode", record.mode.as_deref().unwrap_or_default());
        }
        let mut audit = match audit::open(&self.store, record).await? {
            Opened::Mine(audit) => audit,
            Opened::Running(record) => return in_progress(&record, &invocation.request_id),
            Opened::Answered(record) => return answered(*record),
        };
        let drill = understood.as_ref().is_ok_and(|(request, _)| request.is_drill());
        let result = match understood {
            Err(fault) => Err(Failure::Refused(fault)),
            Ok(asked) => self.answer(asked, invocation, &mut audit).await,
        };
        if drill && result.is_err() {
            self.reporter.count("RestoreDrillFailed", &[]);
        }
        self.write_down(&mut audit, &result).await;
        result.map(|(answer, _)| answer)
    }

    async fn answer(
        &self,
        (request, passkey): Asked,
        invocation: &Invocation,
        audit: &mut Audit,
    ) -> Result<Answer, Failure> {
        let request_id = audit.record.request_id.clone();
        let who = &request.requested_by;
        tracing::info!(record = request_id, requested_by = who, asked = %request.asked, "a restore is asked for");
        let id = BackupId::from_timestamp(audit.record.started);
        if request.plan_only {
            return self.plan(&request, id, invocation, audit).await;
        }
        if !request.is_drill() {
            self.reporter.count("RestoreAttempted", &[("mode", json!(request.mode.as_str()))]);
        }
        // An attempt that was allowed may have done it, and died before it could say so.
        if audit.record.cleared.is_some() && !request.may_run_again() {
            return Err(Failure::Failed(interrupted(&request_id)));
        }
        let ground = Ground::Passkey(passkey.as_ref());
        let job =
            Job { request: &request, ground, request_id: &request_id, attempt: audit.record.attempt, id, invocation };
        self.restore(&job, audit).await
    }

    async fn plan(
        &self,
        request: &RestoreRequest,
        id: BackupId,
        invocation: &Invocation,
        audit: &mut Audit,
    ) -> Result<Answer, Failure> {
        let guard = self.guard(invocation, audit.record.attempt);
        let looking = preview(&guard, request, id);
        let preview = tokio::time::timeout_at(invocation.give_up_at.into(), Box::pin(looking));
        let preview = preview.await.map_err(|_| Failure::Failed(deadline_fault("before the plan was made")))?;
        audit.record.problems = preview.problems;
        Ok((preview.answer, RecordState::Planned))
    }

    pub fn guard<'a>(&'a self, invocation: &'a Invocation, attempt: u32) -> Guard<'a> {
        Guard {
            config: &self.config,
            aws: &self.aws,
            store: &self.store,
            request_id: &invocation.request_id,
            attempt,
            give_up_at: invocation.give_up_at,
        }
    }

    /// The record's end. What was done is done: a record that cannot be written is told, and changes no outcome.
    pub async fn write_down(&self, audit: &mut Audit, result: &Result<Answer, Failure>) {
        let writing = audit.write(|record| match result {
            Ok((answer, state)) => {
                record.state = *state;
                record.outcome = Some(answer.clone());
            }
            Err(failure) => {
                record.state =
                    if matches!(failure, Failure::Refused(_)) { RecordState::Refused } else { RecordState::Failed };
                record.problems = vec![Problem::from(failure.fault())];
                // What a restore that had to wait was answered with before is no outcome.
                record.outcome = None;
            }
        });
        match tokio::time::timeout(CLEANUP_LIMIT, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => tracing::error!(error = %fault, "the record of this restore has no end"),
            Err(_) => tracing::error!("the record of this restore has no end: no answer in time"),
        }
    }

    pub async fn report_success(&self, receipt: &Value) {
        self.reporter.count("RestoreSucceeded", &[]);
        tracing::info!(%receipt, "the restore is complete");
        self.reporter.success("restore complete", &format!("{receipt:#}")).await;
    }

    pub async fn report_waiting(&self, receipt: &Value) {
        self.reporter.count("RestoreWaiting", &[]);
        tracing::info!(%receipt, "the restore is allowed, and waits");
        self.reporter.success("restore waits", &format!("{receipt:#}")).await;
    }

    /// How long ago a drill proved a backup, told by every poll: alarms look back for a week at most, within which a weekly drill
    /// that is a minute late, or an hour when clocks change, has not happened.
    pub async fn report_last_drill(&self, now: Timestamp) {
        let looking = async {
            let database = match &self.config.database.name {
                Some(name) => name.clone(),
                None => credentials::resolve(&self.config.database, &self.aws).await?.database,
            };
            let last = last_time::of_database(&self.store, &self.config.environment, &database).await?;
            Ok::<_, Fault>((database, last.and_then(|last| last.drilled)))
        };
        match looking.await {
            Ok((database, Some(drilled))) => self.reporter.measure_database(
                &self.config.environment,
                &database,
                &[("RestoreDrillAgeHours", Unit::None, now.duration_since(drilled).as_secs_f64() / 3_600.0)],
                &[],
            ),
            Ok((_, None)) => {}
            Err(fault) => tracing::warn!(code = fault.code, error = %fault, "when the last drill was is not known"),
        }
    }

    pub async fn report_failure(&self, failure: &Failure) {
        let fault = failure.fault();
        let (metric, what) = match failure {
            Failure::Refused(_) => ("RestoreRefused", "restore refused"),
            Failure::Failed(_) => ("RestoreFailed", "restore failed"),
            Failure::Told(_) => {
                tracing::warn!(code = fault.code, error = %fault, "counted before");
                return;
            }
        };
        if PASSKEY_CODES.contains(&fault.code) {
            self.reporter.count("RestorePasskeyRejected", &[("code", json!(fault.code))]);
        }
        self.reporter.fault(metric, what, fault).await;
    }
}
