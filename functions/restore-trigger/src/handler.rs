//! One invocation: understand, write down, judge the passkey, find, pin, clear; then the engine.

use std::time::{Duration, Instant, SystemTime};

use holdfast_shared::config::RestoreConfig;
use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::notify::Notifier;
use holdfast_shared::plan::clearance::{Clearance, Passkey, Refusal, Source, clear, passkey_refusal, refusals};
use holdfast_shared::postgres::connect::Target;
use holdfast_shared::secret::Secret;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Acquired, Lease};
use holdfast_shared::telemetry::{Unit, emit_metrics};
use jiff::{SignedDuration, Timestamp};
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;
use tracing::field::{Empty, display};

use crate::audit::{self, Audit, Opened, Problem, Record, RecordState};
use crate::carry_out::{Context, Ended, carry_out};
use crate::guard::{Guard, refused, restore_of};
use crate::pins::{self, HeldPin};
use crate::preview::preview;
use crate::request::{Asked, RestoreRequest, understand};
use crate::select::{self, Found};

/// How long lease, pin and record may take at a run's end: together less than the margin.
const CLEANUP_LIMIT: Duration = Duration::from_secs(4);
/// How long a pin outlives the invocation that may have died with it.
const PIN_GRACE: SignedDuration = SignedDuration::from_mins(10);
/// Refusals that may be somebody guessing: counted apart.
const PASSKEY_CODES: [&str; 2] = ["restore-passkey-rejected", "restore-locked-out"];

pub struct Function {
    pub config: RestoreConfig,
    pub aws: aws_config::SdkConfig,
    pub store: Store,
    pub notifier: Notifier,
}

/// What a run knows of its invocation.
struct Invocation {
    request_id: String,
    now: Timestamp,
    started: Instant,
    give_up_at: Instant,
    /// When Lambda ends it, whatever it does.
    ends: Timestamp,
}

/// Why an invocation ends without a restore.
enum Failure {
    /// A rule is against it. Nothing was begun.
    Refused(Fault),
    Failed(Fault),
    /// Nothing was done, and it has been counted before.
    Repeated(Fault),
}

impl Failure {
    fn fault(&self) -> &Fault {
        match self {
            Self::Refused(fault) | Self::Failed(fault) | Self::Repeated(fault) => fault,
        }
    }
}

impl<E: Into<Fault>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a cleared restore holds while it runs.
struct Held {
    clearance: Clearance,
    source_store: Store,
    target: Option<Target>,
    pin: Option<HeldPin>,
}

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
            mode = Empty,
            backup_id = Empty,
            target = Empty
        );
        let handled = async {
            let result = Box::pin(self.respond(&event.payload, &invocation)).await;
            if let Err(failure) = &result {
                self.report_failure(failure).await;
            }
            result.map_err(|failure| failure.fault().clone())
        };
        handled.instrument(span).await
    }

    async fn respond(&self, event: &Value, invocation: &Invocation) -> Result<Value, Failure> {
        let understood = understand(event);
        let mut record = Record::new(&invocation.request_id, &self.config.environment, invocation.now, invocation.ends);
        if let Ok((request, _)) = &understood {
            record.of_request(request);
            tracing::Span::current().record("mode", record.mode.as_deref().unwrap_or_default());
        }
        let mut audit = match audit::open(&self.store, record).await? {
            Opened::Mine(audit) => audit,
            Opened::Running(record) => return Err(Failure::Repeated(in_progress(&record))),
            Opened::Answered(record) => return answered(*record),
        };
        let drill = understood.as_ref().is_ok_and(|(request, _)| request.is_drill());
        let result = match understood {
            Err(fault) => Err(Failure::Refused(fault)),
            Ok(asked) => self.answer(asked, invocation, &mut audit).await,
        };
        if drill && result.is_err() {
            self.count(&[("RestoreDrillFailed", Unit::Count, 1.0)], &[]);
        }
        self.write_down(&mut audit, &result).await;
        result.map(|(answer, _)| answer)
    }

    async fn answer(
        &self,
        (request, passkey): Asked,
        invocation: &Invocation,
        audit: &mut Audit,
    ) -> Result<(Value, RecordState), Failure> {
        tracing::info!(requested_by = request.requested_by, asked = %request.asked, "a restore is asked for");
        let guard = Guard {
            config: &self.config,
            aws: &self.aws,
            store: &self.store,
            request_id: &invocation.request_id,
            give_up_at: invocation.give_up_at,
        };
        if request.plan_only {
            let looking = preview(&guard, &request, BackupId::from_timestamp(invocation.now));
            let preview = tokio::time::timeout_at(invocation.give_up_at.into(), Box::pin(looking));
            let preview = preview.await.map_err(|_| Failure::Failed(deadline_fault("before the plan was made")))?;
            audit.record.problems = preview.problems;
            return Ok((preview.answer, RecordState::Planned));
        }
        if !request.is_drill() {
            self.count(&[("RestoreAttempted", Unit::Count, 1.0)], &[("mode", json!(request.mode.as_str()))]);
        }
        let mut lease = None;
        let preparing = Box::pin(self.prepare(&guard, &request, passkey.as_ref(), invocation, audit, &mut lease));
        let prepared = tokio::time::timeout_at(invocation.give_up_at.into(), preparing).await;
        let prepared = prepared.unwrap_or_else(|_| Err(Failure::Failed(deadline_fault("before it began"))));
        let result = match (prepared, &mut lease) {
            (Ok(held), Some(lease)) => self.run(held, lease, invocation, audit).await,
            (Ok(_), None) => Err(Failure::Failed(Fault::new("internal", "cleared without a lease"))),
            (Err(failure), _) => Err(failure),
        };
        if let Some(lease) = lease {
            let released = tokio::time::timeout(CLEANUP_LIMIT, lease.release(&self.store)).await;
            if !matches!(released, Ok(Ok(()))) {
                tracing::info!("the lease was not given back, and will expire");
            }
        }
        result
    }

    /// Everything before the engine: on return nothing but control objects has been written.
    async fn prepare(
        &self,
        guard: &Guard<'_>,
        request: &RestoreRequest,
        given: Option<&Secret>,
        invocation: &Invocation,
        audit: &mut Audit,
        lease: &mut Option<Lease>,
    ) -> Result<Held, Failure> {
        let id = BackupId::from_timestamp(invocation.now);
        // Judged first: to who does not have it nothing else is said.
        let named = restore_of(request, &Source::Previous, "", None, id);
        let passkey = if named.needs_passkey() { guard.passkey(given).await? } else { Passkey::Missing };
        if let Some(refusal) = passkey_refusal(&named, passkey) {
            return Err(Failure::Refused(refused(&[refusal])));
        }
        let target = if named.writes_to_the_server() { Some(guard.target().await?) } else { None };
        let live_database = target.as_ref().map(|target| target.database.clone()).unwrap_or_default();
        let found = guard.source(request, &live_database).await.map_err(not_to_be_had)?;
        let backup = found.source.manifest().map(|manifest| (manifest.timestamp, manifest.environment.clone()));
        let restore = restore_of(request, &found.source, &live_database, None, id);
        audit.record.target = Some(restore.target().to_owned());
        if let Some((id, environment)) = &backup {
            tracing::Span::current().record("backup_id", display(id));
            audit.record.backup_id = Some(*id);
            audit.record.backup_environment = Some(environment.clone());
        }
        tracing::Span::current().record("target", restore.target());

        let held_id = backup.as_ref().map_or(id, |(id, _)| *id);
        *lease = Some(self.lease(restore.target(), held_id, invocation).await?);
        // From here on nobody else changes what is looked at.
        let server = match &target {
            Some(target) => Some(guard.observe(target, restore.target()).await?),
            None => None,
        };
        let (source, pin) = self.pin(&found, restore.mode(), invocation).await?;
        let restore = restore_of(request, &source, &live_database, server.as_ref(), id);
        let decide = async || -> Result<Clearance, Failure> {
            let safety = guard.safety_backup(&restore).await?;
            let facts = guard.facts(request, restore.clone(), source.clone(), passkey, server.clone(), safety);
            let missing = |refusal: &Refusal| matches!(refusal, Refusal::SafetyBackupMissing { .. });
            let against = refusals(&facts);
            if !request.take_safety_backup || against.is_empty() || !against.iter().all(missing) {
                return clear(facts).map_err(|refusals| Failure::Refused(refused(&refusals)));
            }
            // Nothing else is against it: worth a backup.
            let taken = guard.take_safety_backup().await?;
            tracing::info!(safety_backup = %taken, "a safety backup was taken");
            let safety = guard.safety_backup(&restore).await?;
            let facts = guard.facts(request, restore.clone(), source.clone(), passkey, server.clone(), safety);
            clear(facts).map_err(|refusals| Failure::Refused(refused(&refusals)))
        };
        match Box::pin(decide()).await {
            Ok(clearance) => Ok(Held { clearance, source_store: found.store, target, pin }),
            Err(failure) => {
                unpin(pin).await;
                Err(failure)
            }
        }
    }

    async fn lease(&self, target: &str, backup_id: BackupId, invocation: &Invocation) -> Result<Lease, Failure> {
        let key = ObjectKey::RestoreLease { environment: self.config.environment.clone(), target: target.to_owned() };
        let event_key = format!("restore:{}", invocation.request_id);
        match self.store.acquire_lease(key, backup_id, &event_key, &invocation.request_id).await? {
            Acquired::Lease { lease, .. } => Ok(lease),
            Acquired::HeldBy(holder) => Err(Failure::Refused(
                Fault::new(
                    "restore-target-busy",
                    format!("another restore works on {target}: request {}, since {}", holder.request_id, holder.since),
                )
                .hint(format!("wait for it; if it is dead its lease expires at {}", holder.expires)),
            )),
        }
    }

    /// Pins a backup and reads its manifest again: what retention wrote before it saw the pin is seen here.
    async fn pin(
        &self,
        found: &Found,
        mode: &str,
        invocation: &Invocation,
    ) -> Result<(Source, Option<HeldPin>), Failure> {
        let Some(manifest) = found.source.manifest() else { return Ok((found.source.clone(), None)) };
        let expires = invocation.ends + PIN_GRACE;
        let purpose = format!("restore {mode}");
        let pin = pins::put(&found.store, manifest.timestamp, &invocation.request_id, &purpose, expires).await?;
        match select::by_id(&found.store, manifest.timestamp).await {
            Ok(manifest) => Ok((Source::Backup(Box::new(manifest)), Some(pin))),
            Err(fault) => {
                unpin(Some(pin)).await;
                Err(not_to_be_had(fault))
            }
        }
    }

    async fn run(
        &self,
        held: Held,
        lease: &mut Lease,
        invocation: &Invocation,
        audit: &mut Audit,
    ) -> Result<(Value, RecordState), Failure> {
        let Held { clearance, source_store, target, mut pin } = held;
        let cleared = json!({
            "restore": clearance.restore(),
            "options": clearance.options(),
            "safety_backup": clearance.safety_backup(),
            "granted_at": clearance.granted_at(),
        });
        tracing::info!(%cleared, "the restore is allowed");
        // Written before anything is changed: what was done to a database can be found out.
        let written = audit.write(|record| record.cleared = Some(cleared)).await;
        let attempt = audit.record.attempt;
        let result = match written {
            Err(fault) => Err(fault),
            Ok(()) => {
                let context = Context {
                    config: &self.config,
                    aws: &self.aws,
                    store: &self.store,
                    source_store: &source_store,
                    target: target.as_ref(),
                    pin: pin.as_mut(),
                    request_id: &invocation.request_id,
                    attempt,
                    started: invocation.started,
                    give_up_at: invocation.give_up_at,
                };
                tokio::select! {
                    result = Box::pin(carry_out(context, clearance)) => result,
                    fault = lease.keep(&self.store) => Err(fault),
                    () = tokio::time::sleep_until(invocation.give_up_at.into()) => {
                        Err(deadline_fault("and what it had begun is not in use"))
                    }
                }
            }
        };
        match result {
            Ok(Ended::Succeeded(receipt)) => {
                unpin(pin).await;
                self.report_success(&receipt).await;
                Ok((receipt, RecordState::Succeeded))
            }
            // The pin stays: it was extended to the moment that is waited for.
            Ok(Ended::Waiting { receipt, until }) => {
                tracing::info!(%until, "waiting for an archived dump");
                Ok((receipt, RecordState::Waiting))
            }
            Err(fault) => {
                unpin(pin).await;
                Err(Failure::Failed(fault))
            }
        }
    }

    /// The record's end. What was done is done: a record that cannot be written is told, and changes no outcome.
    async fn write_down(&self, audit: &mut Audit, result: &Result<(Value, RecordState), Failure>) {
        let writing = audit.write(|record| match result {
            Ok((answer, state)) => {
                record.state = *state;
                record.outcome = Some(answer.clone());
            }
            Err(failure) => {
                record.state =
                    if matches!(failure, Failure::Refused(_)) { RecordState::Refused } else { RecordState::Failed };
                record.problems = vec![Problem::from(failure.fault())];
            }
        });
        match tokio::time::timeout(CLEANUP_LIMIT, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => tracing::error!(error = %fault, "the record of this restore has no end"),
            Err(_) => tracing::error!("the record of this restore has no end: no answer in time"),
        }
    }

    fn count(&self, metrics: &[(&str, Unit, f64)], properties: &[(&str, Value)]) {
        emit_metrics(&[("Environment", self.config.environment.as_str())], metrics, properties);
    }

    async fn report_success(&self, receipt: &Value) {
        self.count(&[("RestoreSucceeded", Unit::Count, 1.0)], &[]);
        tracing::info!(%receipt, "the restore is complete");
        let subject = format!("{} {}: restore complete", self.config.app_name, self.config.environment);
        self.notifier.success(&subject, &format!("{receipt:#}")).await;
    }

    async fn report_failure(&self, failure: &Failure) {
        let fault = failure.fault();
        let code = [("code", json!(fault.code))];
        let what = match failure {
            Failure::Refused(_) => {
                self.count(&[("RestoreRefused", Unit::Count, 1.0)], &code);
                "refused"
            }
            Failure::Failed(_) => {
                self.count(&[("RestoreFailed", Unit::Count, 1.0)], &code);
                "failed"
            }
            Failure::Repeated(_) => {
                tracing::warn!(code = fault.code, error = %fault, "a repeated request");
                return;
            }
        };
        if PASSKEY_CODES.contains(&fault.code) {
            self.count(&[("RestorePasskeyRejected", Unit::Count, 1.0)], &code);
        }
        tracing::error!(code = fault.code, error = %fault, "the restore was {what}");
        let subject = format!("{} {}: restore {what} ({})", self.config.app_name, self.config.environment, fault.code);
        self.notifier.failure(&subject, &fault.to_string()).await;
    }
}

/// What is wrong with what was asked for is a refusal; a store that does not answer is a failure.
fn not_to_be_had(fault: Fault) -> Failure {
    const REFUSED: [&str; 4] = ["backup-not-found", "backup-expired", "manifest-unreadable", "import-not-found"];
    if REFUSED.contains(&fault.code) { Failure::Refused(fault) } else { Failure::Failed(fault) }
}

async fn unpin(pin: Option<HeldPin>) {
    let Some(pin) = pin else { return };
    let problem = match tokio::time::timeout(CLEANUP_LIMIT, pin.release()).await {
        Ok(Ok(())) => return,
        Ok(Err(fault)) => chain(&fault),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::info!(problem, "the pin was not released, and will expire");
}

fn deadline_fault(how_far: &str) -> Fault {
    Fault::new("deadline-reached", format!("the restore was not done before the function's timeout, {how_far}"))
        .hint("raise the function's Timeout or MemorySize, or restore fewer tables")
}

fn in_progress(record: &Record) -> Fault {
    let message = format!("this request has been running since {}", record.started);
    Fault::new("restore-in-progress", message)
        .hint(format!("its outcome is in its record once it ends, at the latest at {}", record.running_until))
}

/// What a request is answered with that has been answered before: the same again, and nothing is done.
fn answered(record: Record) -> Result<Value, Failure> {
    if let Some(mut outcome) = record.outcome {
        tracing::info!("this request has been answered already");
        outcome["duplicate"] = json!(true);
        return Ok(outcome);
    }
    let problem = record.problems.first();
    let what = problem
        .map_or_else(|| "no reason was kept".to_owned(), |problem| format!("{}: {}", problem.code, problem.message));
    let state = if record.state == RecordState::Refused { "refused" } else { "ended in a failure" };
    let message = format!("this request was {state} at {}: {what}", record.updated);
    Err(Failure::Repeated(
        Fault::new("restore-already-answered", message).hint("a request is run once; ask again with a new invocation"),
    ))
}
