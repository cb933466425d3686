//! Goes on with restores that were approved and had to wait: on the event that a dump has thawed, and on a poll.
//!
//! What is done is in the records alone. An event only says when to look; of its fields none says what is restored.

use holdfast_shared::domain::BackupId;
use holdfast_shared::event::{Trigger, parse};
use holdfast_shared::fault::Fault;
use holdfast_shared::rds::Rds;
use holdfast_shared::store::thaw::Readiness;
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::field::display;

use crate::audit::{self, Audit, Present, Problem, Record, RecordState, Wait};
use crate::failure::{Failure, interrupted};
use crate::handler::{Answer, Function, Invocation};
use crate::pins;
use crate::rds::{self, Progress};
use crate::request::{self, BackupChoice, Mode, Which};
use crate::restore::{Approved, Ground, Job};
use crate::waiting::{self, Entry};

const RESUME: &str = "resume";
/// How often a restore is begun again that failed before anything was changed.
const ATTEMPTS: u32 = 5;

/// What has the function look after the restores that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Poll,
    /// S3 says that an object has thawed.
    Thawed {
        key: String,
        version_id: Option<String>,
    },
}

/// Tells a call to go on from everything else, which is `None`.
///
/// # Errors
/// `event-of-another-bucket`, `event-incomplete`, `request-unknown-fields`.
pub fn called(event: &Value, bucket: &str) -> Result<Option<Call>, Fault> {
    if request::is_message(event) {
        return Ok(None);
    }
    let wants_poll = event.get("mode").and_then(Value::as_str) == Some(RESUME);
    match parse(event) {
        Ok(Trigger::Schedule { .. }) if wants_poll => Ok(Some(Call::Poll)),
        Ok(Trigger::Direct(fields)) if wants_poll => match fields.keys().find(|name| *name != "mode") {
            Some(name) => Err(Fault::new("request-unknown-fields", format!("mode {RESUME} has no field {name}"))
                .hint("it goes on with what was approved; what that is stands in the records")),
            None => Ok(Some(Call::Poll)),
        },
        Ok(Trigger::Aws { source, detail_type, detail })
            if source == "aws.s3" && detail_type == "Object Restore Completed" =>
        {
            let text = |pointer: &str| detail.pointer(pointer).and_then(Value::as_str);
            match (text("/bucket/name"), text("/object/key")) {
                (Some(name), Some(_)) if name != bucket => Err(Fault::new(
                    "event-of-another-bucket",
                    format!("the event is of bucket {name}, and this function's is {bucket}"),
                )),
                (Some(_), Some(key)) => {
                    let version_id = text("/object/version-id").map(str::to_owned);
                    Ok(Some(Call::Thawed { key: key.to_owned(), version_id }))
                }
                _ => Err(Fault::new("event-incomplete", "the S3 event lacks detail.bucket.name or detail.object.key")),
            }
        }
        _ => Ok(None),
    }
}

impl Call {
    /// Whether it is about what a restore waits for.
    fn is_about(&self, wait: &Wait) -> bool {
        match (self, &wait.archived) {
            (Self::Poll, _) => true,
            (Self::Thawed { key, version_id }, Some(archived)) => {
                let other_version = matches!((version_id, &archived.version_id), (Some(a), Some(b)) if a != b);
                *key == archived.key && !other_version
            }
            (Self::Thawed { .. }, None) => false,
        }
    }
}

/// What became of one restore that waited.
enum Step {
    /// It waits for something that the call is not about.
    NotMeant,
    StillWaits(String),
    /// Another invocation works on it.
    Running,
    /// It was done before.
    Over,
    Done(Value),
}

impl Function {
    /// Looks at every restore that waits, and does one of those whose time has come: each needs the invocation's time
    /// for itself. The others have their own event, and the next poll.
    pub async fn resume(&self, call: &Call, invocation: &Invocation) -> Result<Value, Failure> {
        if *call == Call::Poll {
            self.report_last_drill(invocation.now).await;
        }
        let (mut done, mut waiting, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for entry in waiting::list(&self.store, &self.config.environment).await? {
            let id = entry.request_id.clone();
            let busy = !done.is_empty() || invocation.is_half_over();
            match Box::pin(self.look_at(&entry, call, invocation, busy)).await {
                Ok(Step::NotMeant | Step::Over) => {}
                Ok(Step::Running) => {
                    waiting.push(json!({"request_id": id, "reason": "another invocation works on it"}));
                }
                Ok(Step::StillWaits(reason)) => waiting.push(json!({"request_id": id, "reason": reason})),
                Ok(Step::Done(receipt)) => done.push(json!({"request_id": id, "answer": receipt})),
                Err(failure) => {
                    self.report_failure(&failure).await;
                    failed.push((id, failure.fault().clone()));
                }
            }
        }
        match failed.as_slice() {
            [] if done.is_empty() && waiting.is_empty() => {
                let reason = match call {
                    Call::Poll => "no restore waits".to_owned(),
                    Call::Thawed { key, .. } => format!("no restore waits for {key}"),
                };
                tracing::info!(reason, "nothing to go on with");
                Ok(json!({"status": "ignored", "reason": reason}))
            }
            [] => Ok(json!({"status": "polled", "resumed": done, "waiting": waiting})),
            [(_, fault)] => Err(Failure::Told(fault.clone())),
            several => {
                let told: Vec<String> =
                    several.iter().map(|(id, fault)| format!("{id}: {}: {fault}", fault.code)).collect();
                Err(Failure::Told(Fault::new("restore-resume-failed", told.join("; "))))
            }
        }
    }

    async fn look_at(&self, entry: &Entry, call: &Call, invocation: &Invocation, busy: bool) -> Result<Step, Failure> {
        let found = audit::find(&self.store, entry.date, &entry.request_id).await?;
        let now = Timestamp::now();
        let Some(present) = found.filter(|present| !present.record.has_ended()) else {
            waiting::leave(&self.store, &self.config.environment, &entry.request_id).await;
            return Ok(Step::Over);
        };
        if present.record.may_be_alive(now) {
            return Ok(Step::Running);
        }
        let Some(wait) = present.record.waits_for.clone() else { return self.bury(present, invocation).await };
        if !call.is_about(&wait) {
            return Ok(Step::NotMeant);
        }
        if let Some(making) = &wait.rds {
            let progress = rds::step(&Rds::new(&self.aws), making, &present.record.request_id).await;
            // It has been answered that RDS is at it. One that RDS refused to begin waits to be begun.
            let begun = present.record.outcome.is_some();
            let ended = match progress {
                Ok(Progress::Coming(status)) if now < wait.approval_expires => {
                    return Ok(Step::StillWaits(format!("{} is {status}", making.server)));
                }
                Ok(Progress::Available(receipt)) => Some(Ok((receipt, RecordState::Succeeded))),
                // It died before RDS was asked.
                Ok(Progress::Absent) if !begun => None,
                Ok(Progress::Absent) => Some(Err(rds::failed(making, "is gone"))),
                Ok(Progress::Coming(status)) => Some(Err(rds::failed(making, &format!("is still {status}")))),
                Err(fault) => Some(Err(fault)),
            };
            if let Some(ended) = ended {
                return self.end(present, ended.map_err(Failure::Failed), invocation).await;
            }
        }
        if let Some(archived) = &wait.archived {
            let stored = self.store.stored(&archived.key, archived.version_id.as_deref()).await?;
            let thawing = stored.is_some_and(|stored| matches!(stored.readiness, Readiness::Thawing(_)));
            if thawing && now < wait.approval_expires {
                return Ok(Step::StillWaits(format!("{} is being thawed", archived.key)));
            }
        }
        if busy {
            return Ok(Step::StillWaits("this invocation's time belongs to another restore".to_owned()));
        }
        let Some(mut audit) = audit::take(&self.store, present, invocation.ends).await? else {
            return Ok(Step::Running);
        };
        Box::pin(self.go_on_with(&mut audit, wait, invocation)).await
    }

    async fn go_on_with(&self, audit: &mut Audit, wait: Wait, invocation: &Invocation) -> Result<Step, Failure> {
        let record = audit.record.clone();
        let span = tracing::Span::current();
        span.record("continues", display(&record.request_id));
        span.record("mode", record.mode.as_deref().unwrap_or_default());
        tracing::info!(attempt = record.attempt, approved = %wait.approved, "going on with a restore that waited");
        let result = match approved_job(&record) {
            Err(fault) => Err(Failure::Failed(fault)),
            Ok((request, restore)) => {
                let approved = Approved { wait, restore };
                let job = Job {
                    request: &request,
                    ground: Ground::Approved(&approved),
                    request_id: &record.request_id,
                    attempt: record.attempt,
                    id: BackupId::from_timestamp(record.started),
                    invocation,
                };
                self.restore(&job, audit).await
            }
        };
        match (verdict(&result, audit.record.waits_for.is_some(), record.attempt), result) {
            (Verdict::Busy, Err(failure)) => {
                // Nothing was tried.
                audit.record.attempt -= 1;
                self.wait_on(audit, None).await?;
                Ok(Step::StillWaits(failure.fault().message.clone()))
            }
            (Verdict::TryAgain, Err(failure)) => {
                self.wait_on(audit, Some(failure.fault())).await?;
                Err(failure)
            }
            (_, result) => {
                if result.is_err() && record.mode.as_deref() == Some(Mode::Verify.as_str()) {
                    self.reporter.count("RestoreDrillFailed", &[]);
                }
                self.write_down(audit, &result).await;
                let waits = matches!(result, Ok((_, RecordState::Thawing | RecordState::Waiting)));
                if !waits {
                    self.has_ended(&record).await;
                }
                result.map(|(receipt, _)| Step::Done(receipt))
            }
        }
    }

    /// The restore waits as before.
    async fn wait_on(&self, audit: &mut Audit, fault: Option<&Fault>) -> Result<(), Fault> {
        let changed = audit.write(|record| {
            let rds = record.waits_for.as_ref().is_some_and(|wait| wait.rds.is_some());
            record.state = if rds { RecordState::Waiting } else { RecordState::Thawing };
            record.problems = fault.map(Problem::from).into_iter().collect();
        });
        changed.await
    }

    /// One that had begun, and whose invocation died: it is not begun again by itself, and is told.
    async fn bury(&self, present: Present, invocation: &Invocation) -> Result<Step, Failure> {
        let failure = Failure::Failed(interrupted(&present.record.request_id));
        self.end(present, Err(failure), invocation).await
    }

    /// What became of a restore that has ended while nobody carried it out.
    async fn end(
        &self,
        present: Present,
        result: Result<Answer, Failure>,
        invocation: &Invocation,
    ) -> Result<Step, Failure> {
        let Some(mut audit) = audit::take(&self.store, present, invocation.ends).await? else {
            return Ok(Step::Running);
        };
        self.write_down(&mut audit, &result).await;
        if let Ok((receipt, _)) = &result {
            self.report_success(receipt).await;
        }
        self.has_ended(&audit.record).await;
        result.map(|(receipt, _)| Step::Done(receipt))
    }

    /// It waits no longer, and holds nothing any more. What it came to is written down, and does not change with this.
    async fn has_ended(&self, record: &Record) {
        if let (Some(id), Some(environment)) = (record.backup_id, &record.backup_environment) {
            let prefix = self.config.store.prefix.of_environment(&self.config.environment, environment);
            if let Err(fault) = pins::release(&self.store.at_prefix(prefix), id, &record.request_id).await {
                tracing::info!(error = %fault, "the pin was not released, and will expire");
            }
        }
        waiting::leave(&self.store, &self.config.environment, &record.request_id).await;
    }
}

/// What follows from how it went.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Another restore works on its target.
    Busy,
    TryAgain,
    Over,
}

/// `not_begun`: nothing was changed yet. A server that is down for a moment then does not cost a thaw.
fn verdict(result: &Result<Answer, Failure>, not_begun: bool, attempt: u32) -> Verdict {
    match result {
        // The engine has the same code for a database that another run has taken from it: then it had begun.
        Err(failure) if not_begun && failure.fault().code == "restore-target-busy" => Verdict::Busy,
        Err(Failure::Failed(_)) if not_begun && attempt < ATTEMPTS => Verdict::TryAgain,
        _ => Verdict::Over,
    }
}

/// The request as it was approved, and the names that were.
fn approved_job(record: &Record) -> Result<(request::RestoreRequest, Value), Fault> {
    let unreadable = |what: &str| Fault::new("restore-record-unreadable", format!("the record has no {what}"));
    let asked = record.asked.as_ref().ok_or_else(|| unreadable("request"))?;
    let restore = record.cleared.as_ref().and_then(|cleared| cleared.get("restore"));
    let restore = restore.ok_or_else(|| unreadable("approval"))?.clone();
    let backup = record.backup_id.map(|id| BackupChoice {
        which: Which::Id(id),
        environment: record.backup_environment.clone(),
        database: None,
    });
    let by = record.requested_by.as_deref().unwrap_or("invoke");
    Ok((request::again(asked, by, backup)?, restore))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thawed(bucket: &str) -> Value {
        json!({"version": "0", "source": "aws.s3", "detail-type": "Object Restore Completed",
               "detail": {"bucket": {"name": bucket}, "object": {"key": "k.dump", "version-id": "v1", "size": 1},
                          "restore-expiry-time": "2025-06-24T00:00:00Z", "source-storage-class": "GLACIER"}})
    }

    fn wait(version_id: Option<&str>) -> Wait {
        let at: Timestamp = "2025-06-21T14:00:00Z".parse().unwrap();
        let version_id = version_id.map(str::to_owned);
        let archived = audit::Archived { key: "k.dump".into(), version_id, storage_class: "GLACIER".into() };
        Wait { approved: at, approval_expires: at, expected_by: at, archived: Some(archived), rds: None }
    }

    #[test]
    fn calls_to_go_on_are_told_from_requests() {
        let schedule = json!({"source": "holdfast.schedule", "schedule_arn": "arn:s", "scheduled_time": "2025-06-21T02:00:00Z",
                              "mode": "resume"});
        let poll = Some(Call::Poll);
        assert_eq!(called(&schedule, "b").unwrap(), poll);
        assert_eq!(called(&json!({"mode": "resume"}), "b").unwrap(), poll);
        assert_eq!(
            called(&json!({"mode": "resume", "backup": "latest"}), "b").unwrap_err().code,
            "request-unknown-fields"
        );
        let event = Call::Thawed { key: "k.dump".into(), version_id: Some("v1".into()) };
        assert_eq!(called(&thawed("b"), "b").unwrap(), Some(event));
        assert_eq!(called(&thawed("another"), "b").unwrap_err().code, "event-of-another-bucket");
        for other in [
            json!({"backup": "latest"}),
            json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": thawed("b").to_string()}}]}),
            json!({"source": "aws.s3", "detail-type": "Object Created", "detail": thawed("b")["detail"]}),
        ] {
            assert_eq!(called(&other, "b").unwrap(), None, "{other}");
        }
    }

    #[test]
    fn what_is_tried_again_has_changed_nothing_and_failed_not_too_often() {
        let fault = |code| Fault::new(code, "x");
        for (result, not_begun, attempt, expected) in [
            (Err(Failure::Refused(fault("restore-target-busy"))), true, ATTEMPTS, Verdict::Busy),
            (Err(Failure::Failed(fault("restore-target-busy"))), false, 2, Verdict::Over),
            (Err(Failure::Failed(fault("database-unreachable"))), true, ATTEMPTS - 1, Verdict::TryAgain),
            (Err(Failure::Failed(fault("database-unreachable"))), true, ATTEMPTS, Verdict::Over),
            (Err(Failure::Failed(fault("database-connection-lost"))), false, 2, Verdict::Over),
            (Err(Failure::Refused(fault("restore-target-exists"))), true, 2, Verdict::Over),
            (Ok((json!({}), RecordState::Thawing)), true, 2, Verdict::Over),
        ] {
            let found = verdict(&result, not_begun, attempt);
            assert_eq!(found, expected, "{:?}", result.map_err(|failure| failure.fault().clone()));
        }
    }

    #[test]
    fn an_event_is_about_the_version_that_was_approved() {
        let call = called(&thawed("b"), "b").unwrap().unwrap();
        assert!(call.is_about(&wait(Some("v1"))) && call.is_about(&wait(None)) && !call.is_about(&wait(Some("v0"))));
        assert!(Call::Poll.is_about(&wait(Some("v0"))));
    }
}
