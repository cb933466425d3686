//! One invocation: understand, take the lease, observe, plan, carry out, sweep, report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use holdfast_shared::config::RetentionConfig;
use holdfast_shared::domain::{BackupId, Environment, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::retention::sweep::Orphan;
use holdfast_shared::plan::retention::{BlockKind, Circumstances, Expiry, Plan, Refusal, plan, plan_deletion};
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::Acquired;
use holdfast_shared::telemetry::Unit;
use jiff::Timestamp;
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;

use crate::carry_out::{Executor, Outcome};
use crate::databases::{self, Looked};
use crate::observe::{Observed, observe};
use crate::receipt::{done_json, durations_json, expiry_json, plan_json};
use crate::request::{Deletion, Request, understand};
use crate::snapshots::{self, Snapshots};
use crate::state::State;
use crate::sweep::{Sweep, plan_sweep};

const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// So many orphans are named in a notification.
const TOLD: usize = 20;

pub struct Function {
    pub config: RetentionConfig,
    pub aws: aws_config::SdkConfig,
    pub store: Store,
    pub reporter: Reporter,
}

struct Invocation {
    request_id: String,
    started: Instant,
    give_up_at: Instant,
}

impl Function {
    /// # Errors
    /// [`Fault`]: every failure is one; it is logged, counted and notified here, once.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<Value, Fault> {
        let started = Instant::now();
        let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        let invocation = Invocation {
            request_id: event.context.request_id.clone(),
            started,
            give_up_at: started + remaining.saturating_sub(self.config.deadline_margin),
        };
        let span = tracing::error_span!("retention", request_id = invocation.request_id);
        let handled = async {
            let result = match understand(&event.payload) {
                Ok(request) => Box::pin(self.respond(request, &invocation)).await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = &result {
                self.reporter.fault("RetentionFailed", "retention failed", fault).await;
            }
            result
        };
        handled.instrument(span).await
    }

    async fn respond(&self, request: Request, invocation: &Invocation) -> Result<Value, Fault> {
        if request.dry_run {
            return self.within_deadline(self.run(request, invocation), invocation).await;
        }
        let id = BackupId::from_timestamp(Timestamp::now());
        let event_key = format!("retention:{}", invocation.request_id);
        let acquired =
            self.store.acquire_lease(ObjectKey::RetentionLease, id, &event_key, &invocation.request_id).await?;
        let mut lease = match acquired {
            Acquired::Lease { lease, .. } => lease,
            // It does what this one would do.
            Acquired::HeldBy(holder) if request.scheduled => {
                let reason = format!("request {} has been running retention since {}", holder.request_id, holder.since);
                tracing::info!(reason, "nothing to do");
                return Ok(json!({"status": "ignored", "reason": reason}));
            }
            Acquired::HeldBy(holder) => {
                let message = format!("retention is running: request {}, since {}", holder.request_id, holder.since);
                let hint = format!("wait for it; if it is dead its lease expires at {}", holder.expires);
                return Err(Fault::new("retention-lease-held", message).hint(hint));
            }
        };
        let result = tokio::select! {
            result = self.within_deadline(self.run(request, invocation), invocation) => result,
            fault = lease.keep(&self.store) => Err(fault),
        };
        let released = tokio::time::timeout(RELEASE_LIMIT, lease.release(&self.store)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::info!("the lease was not given back, and will expire");
        }
        result
    }

    /// The executor begins nothing that is too late; this is for what hangs.
    async fn within_deadline(
        &self,
        work: impl Future<Output = Result<Value, Fault>>,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        let hard = invocation.give_up_at + self.config.deadline_margin / 2;
        match tokio::time::timeout_at(hard.into(), Box::pin(work)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::new("deadline-reached", "retention was not done before the function's timeout").hint(
                "raise the function's Timeout or RETENTION_CONCURRENCY; the next run goes on where this one stopped",
            )),
        }
    }

    async fn run(&self, request: Request, invocation: &Invocation) -> Result<Value, Fault> {
        let observed = Box::pin(observe(&self.config, &self.store)).await?;
        // After the listing: a backup that was made meanwhile is not of the future.
        let now = Timestamp::now();
        let (pins, acknowledged) = (observed.pins(), observed.last.state.acknowledged());
        let circumstances = Circumstances {
            environments: &self.config.environments,
            pins: &pins,
            acknowledged: &acknowledged,
            override_anomaly: request.override_anomaly,
            now,
        };
        let executor = Executor {
            store: &self.store,
            request_id: &invocation.request_id,
            concurrency: self.config.concurrency,
            give_up_at: invocation.give_up_at,
        };
        if let Some(deletion) = request.delete {
            return self.delete(deletion, request.dry_run, &observed, &circumstances, &executor).await;
        }
        let plan = plan(&observed.catalog, &self.config.policy, &circumstances);
        let sweep = plan_sweep(&self.config, &observed, now, request.override_anomaly);
        let looked = databases::look(self.config.cleanup.as_ref(), &self.aws, now).await;
        let snapshots = snapshots::look(&self.config, &self.aws, &observed, &plan, &pins, now).await;
        let planned = invocation.started.elapsed();
        tracing::info!(
            manifests = observed.manifests.len(),
            expire = plan.expire.len(),
            resume = plan.resume.len(),
            keep = plan.keep.len(),
            blocks = plan.blocks.len(),
            seconds = planned.as_secs_f64(),
            dry_run = request.dry_run,
            "planned"
        );
        let mut outcome = Outcome::default();
        if !request.dry_run {
            outcome.failures.extend(observed.refused.clone());
            executor.carry_out(&plan.resume, true, &mut outcome).await;
            executor.carry_out(&plan.expire, false, &mut outcome).await;
            executor.sweep(&sweep, &mut outcome).await;
            match &looked {
                Looked::Seen(cleanup) => executor.clean_up(cleanup, &mut outcome).await,
                Looked::Failed(fault) => outcome.failures.push(format!("the database: {}: {fault}", fault.code)),
                Looked::Skipped(reason) => tracing::warn!(reason, "nothing is cleaned up in the database"),
                Looked::NotConfigured => {}
            }
            match &snapshots {
                Snapshots::Seen { rds, plan } => executor.prune(rds, plan, &mut outcome).await,
                Snapshots::Failed(fault) => outcome.failures.push(format!("RDS: {}: {fault}", fault.code)),
                Snapshots::NotConfigured => {}
            }
            self.remember(&observed, &plan, &sweep, &outcome, request.override_anomaly, now).await?;
            self.report(&observed, &plan, &sweep, &outcome).await;
            failed(&outcome)?;
        }
        Ok(json!({
            "status": if plan.blocks.is_empty() { "complete" } else { "blocked" },
            "dry_run": request.dry_run,
            "environments": self.config.environments,
            "plan": plan_json(&plan, &sweep, &looked, &snapshots, &observed),
            "done": done_json(&outcome),
            "durations_seconds": durations_json(planned, invocation.started.elapsed()),
        }))
    }

    async fn delete(
        &self,
        deletion: Deletion,
        dry_run: bool,
        observed: &Observed,
        circumstances: &Circumstances<'_>,
        executor: &Executor<'_>,
    ) -> Result<Value, Fault> {
        let unreadable = observed.manifests.contains(&deletion.id)
            && !observed.catalog.records().iter().any(|record| record.id == deletion.id);
        if unreadable {
            let key = ObjectKey::Manifest(deletion.id);
            return Err(Fault::new("manifest-unreadable", format!("{key} is not a manifest this release reads"))
                .hint("what is not understood is not deleted"));
        }
        let cleared =
            plan_deletion(&observed.catalog, circumstances, deletion.id, deletion.forced).map_err(|e| refused(&e))?;
        let expiries: Vec<Expiry> = cleared.into_iter().collect();
        let mut outcome = Outcome::default();
        if !dry_run {
            executor.carry_out(&expiries, false, &mut outcome).await;
            failed(&outcome)?;
        }
        Ok(json!({
            "status": if outcome.postponed.is_empty() { "complete" } else { "postponed" },
            "dry_run": dry_run,
            "plan": {"expire": expiries.iter().map(expiry_json).collect::<Vec<_>>()},
            "done": done_json(&outcome),
        }))
    }

    async fn remember(
        &self,
        observed: &Observed,
        plan: &Plan,
        sweep: &Sweep,
        outcome: &Outcome,
        override_anomaly: bool,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let mut state: State = observed.last.state.clone();
        state.remember(&sweep.orphans, &outcome.orphans_removed, now);
        if override_anomaly {
            state.acknowledge(&plan.anomalies);
        }
        observed.last.replace(&self.store, &state).await
    }

    async fn report(&self, observed: &Observed, plan: &Plan, sweep: &Sweep, outcome: &Outcome) {
        for warning in observed.warnings.iter().chain(&plan.warnings) {
            tracing::warn!(warning, "noticed");
        }
        for orphan in &sweep.orphans.report {
            tracing::warn!(key = orphan.key, bytes = orphan.size_bytes, "an artifact has no manifest");
        }
        #[derive(Default)]
        struct Counts {
            expired: usize,
            kept: usize,
            blocked: usize,
        }
        let mut counts: BTreeMap<(&Environment, &str), Counts> = BTreeMap::new();
        for expiry in plan.resume.iter().chain(&plan.expire).filter(|e| outcome.expired.binary_search(&e.id).is_ok()) {
            counts.entry((&expiry.environment, expiry.database.as_str())).or_default().expired += 1;
        }
        for kept in &plan.keep {
            counts.entry((&kept.environment, kept.database.as_str())).or_default().kept += 1;
        }
        for block in &plan.blocks {
            tracing::warn!(
                environment = %block.environment,
                database = block.database,
                reason = block.kind.as_str(),
                detail = block.detail,
                "nothing of this database expires"
            );
            counts.entry((&block.environment, block.database.as_str())).or_default().blocked = 1;
        }
        for ((environment, database), counts) in counts {
            self.reporter.measure_database(
                environment,
                database,
                &[
                    ("RetentionExpired", Unit::Count, counts.expired as f64),
                    ("RetentionKept", Unit::Count, counts.kept as f64),
                    ("RetentionBlocked", Unit::Count, counts.blocked as f64),
                ],
                &[],
            );
        }
        if !sweep.orphans.report.is_empty() {
            self.reporter.alert("artifacts without a manifest", &found(&sweep.orphans.report)).await;
        }
        let refused = sweep.orphans.refused.as_deref();
        let anomalies = plan.blocks.iter().filter(|block| block.kind == BlockKind::Anomaly).count();
        self.reporter.measure(
            &[
                ("RetentionSucceeded", Unit::Count, f64::from(u8::from(failed(outcome).is_ok()))),
                ("RetentionBlocked", Unit::Count, (plan.blocks.len() + usize::from(refused.is_some())) as f64),
                ("BackupAnomalies", Unit::Count, anomalies as f64),
                ("RetentionUnreadableManifests", Unit::Count, observed.unreadable as f64),
                ("RetentionOrphans", Unit::Count, sweep.orphans.report.len() as f64),
            ],
            &[],
        );
        let mut blocks: Vec<String> = plan
            .blocks
            .iter()
            .map(|b| format!("{} {}: {} ({})", b.environment, b.database, b.detail, b.kind.as_str()))
            .collect();
        blocks.extend(refused.map(str::to_owned));
        if blocks.is_empty() && failed(outcome).is_ok() {
            let what = format!("{} backups expired", outcome.expired.len());
            self.reporter.success(&what, &format!("{:#}", done_json(outcome))).await;
        } else if !blocks.is_empty() {
            self.reporter.alert("retention blocked", &blocks.join("\n")).await;
        }
    }
}

/// What people are told of orphans, once: they have until the next night to look.
fn found(orphans: &[Orphan]) -> String {
    let named: Vec<String> =
        orphans.iter().take(TOLD).map(|orphan| format!("{} ({} bytes)", orphan.key, orphan.size_bytes)).collect();
    let more = if orphans.len() > TOLD { "\n…" } else { "" };
    format!(
        "{} artifacts have no manifest. Unless the manifests come back, a run that begins 20 hours from now or later removes them:\n{}{more}",
        orphans.len(),
        named.join("\n")
    )
}

/// What could be done has been done; what could not makes the run a failure that lists all of it.
fn failed(outcome: &Outcome) -> Result<(), Fault> {
    let late = (outcome.not_begun > 0).then(|| format!("{} were not begun for lack of time", outcome.not_begun));
    if outcome.failures.is_empty() {
        return late.map_or(Ok(()), |late| {
            Err(Fault::new("deadline-reached", format!("{} backups expired, and {late}", outcome.expired.len()))
                .hint("the next run goes on; raise the function's Timeout or RETENTION_CONCURRENCY"))
        });
    }
    let items: Vec<&str> = outcome.failures.iter().chain(&late).map(String::as_str).collect();
    let message = format!("{} failed, {} expired: {}", outcome.failures.len(), outcome.expired.len(), items.join("; "));
    Err(Fault::new("retention-incomplete", message).hint("the others are done; the next run tries these again"))
}

fn refused(refusal: &Refusal) -> Fault {
    let (code, hint) = match refusal {
        Refusal::Unknown(_) => {
            ("retention-backup-unknown", Some("an id is YYYYMMDD-HHMMSS in UTC; a dry run lists those there are"))
        }
        Refusal::OtherEnvironment { .. } => ("retention-other-environment", Some("RETENTION_ENVIRONMENTS names those")),
        Refusal::NotUnderstood { .. } => ("retention-not-understood", Some("what is not understood is not deleted")),
        Refusal::Pinned { .. } => ("retention-pinned", Some("wait for what uses it, or remove the pin")),
        Refusal::Held { .. } => ("retention-held", Some("take hold out of its manifest")),
        Refusal::LastVerified { .. } => {
            ("retention-last-verified", Some("\"force\" with the same id deletes it all the same"))
        }
        Refusal::NoneVerified { .. } => {
            ("retention-none-verified", Some("\"force\" with the same id deletes it all the same"))
        }
        Refusal::Anomaly { .. } => {
            ("retention-anomaly", Some("look at both backups; \"override_anomaly\": true deletes it all the same"))
        }
    };
    let fault = Fault::new(code, chain(refusal));
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}
