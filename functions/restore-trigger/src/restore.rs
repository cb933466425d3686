//! One restore: judge the passkey, find, lease, pin, clear; then the engine, or the wait for an archived dump.

use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::clearance::thaw::{APPROVAL_LASTS, Approval, approve};
use holdfast_shared::plan::clearance::{
    Clearance, Passkey, Refusal, Restore, Source, clear, passkey_refusal, refusals,
};
use holdfast_shared::postgres::connect::Target;
use holdfast_shared::secret::Secret;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Acquired, Lease};
use holdfast_shared::store::thaw::Stored;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tracing::field::display;

use crate::audit::{Audit, RecordState, Wait};
use crate::carry_out::{Context, Ended, carry_out};
use crate::failure::{Failure, deadline_fault, not_to_be_had};
use crate::guard::{Guard, Seen, refused, restore_of};
use crate::handler::{Answer, CLEANUP_LIMIT, Function, Invocation};
use crate::pins::{self, HeldPin};
use crate::rds;
use crate::request::RestoreRequest;
use crate::select::{self, Dump, Found};
use crate::waiting;

/// How long RDS takes for a server, as a rule at most.
const RDS_TAKES: SignedDuration = SignedDuration::from_hours(2);
/// How long a pin outlives the invocation that may have died with it.
const PIN_GRACE: SignedDuration = SignedDuration::from_mins(10);

/// One restore that is to be done now.
pub struct Job<'a> {
    pub request: &'a RestoreRequest,
    pub ground: Ground<'a>,
    /// The restore's own, which is another than the invocation's where it had to wait.
    pub request_id: &'a str,
    pub attempt: u32,
    /// Names what has no backup's id.
    pub id: BackupId,
    pub invocation: &'a Invocation,
}

/// On what ground a restore may be allowed.
pub enum Ground<'a> {
    Passkey(Option<&'a Secret>),
    /// It was allowed before, and had to wait.
    Approved(&'a Approved),
}

/// What was allowed, as the record has it.
pub struct Approved {
    pub wait: Wait,
    /// The restore, with every name.
    pub restore: Value,
}

/// What has been looked at, and may be done.
enum Prepared {
    Cleared(Clearance),
    /// Not to be read yet.
    Cold {
        approval: Approval,
        dump: Dump,
        stored: Stored,
    },
}

/// What is asked for, and found.
struct Wanted {
    passkey: Passkey,
    target: Option<Target>,
    live_database: String,
    found: Found,
    /// Its names are those that follow without a look at the server.
    restore: Restore,
}

/// What a restore holds while it runs.
struct Held {
    prepared: Prepared,
    source_store: Store,
    target: Option<Target>,
    pin: Option<HeldPin>,
}

impl Function {
    /// Everything from the request to its end, or to where it has to wait.
    pub async fn restore(&self, job: &Job<'_>, audit: &mut Audit) -> Result<Answer, Failure> {
        let (wanted, mut lease) = job.in_time(self.find(job, audit)).await?;
        let result = Box::pin(self.with_lease(wanted, &mut lease, job, audit)).await;
        let released = tokio::time::timeout(CLEANUP_LIMIT, lease.release(&self.store)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::info!("the lease was not given back, and will expire");
        }
        result
    }

    /// Judges the passkey, finds what is to be restored, and takes the target.
    async fn find(&self, job: &Job<'_>, audit: &mut Audit) -> Result<(Wanted, Lease), Failure> {
        let Job { request, id, .. } = *job;
        let guard = self.guard(job.invocation, job.attempt);
        // Judged first: to who does not have it nothing else is said.
        let named = restore_of(request, &Source::Previous, "", None, id);
        let passkey = match &job.ground {
            Ground::Approved(approved) => Passkey::Approved { until: approved.wait.approval_expires },
            Ground::Passkey(given) if named.needs_passkey() => guard.passkey(*given).await?,
            Ground::Passkey(_) => Passkey::Missing,
        };
        if let Some(refusal) = passkey_refusal(&named, passkey) {
            return Err(Failure::Refused(refused(&[refusal])));
        }
        let target = if named.writes_to_the_server() { Some(guard.target().await?) } else { None };
        let live_database = target.as_ref().map(|target| target.database.clone()).unwrap_or_default();
        let found = guard.source(request, &live_database).await.map_err(not_to_be_had)?;
        let backup = found.source.manifest().map(|manifest| (manifest.timestamp, manifest.environment.clone()));
        let restore = restore_of(request, &found.source, &live_database, None, id);
        if let Ground::Approved(approved) = &job.ground {
            approved.is_of(&restore, found.dump().as_ref()).map_err(Failure::Refused)?;
        }
        audit.record.target = Some(restore.target().to_owned());
        if let Some((id, environment)) = &backup {
            tracing::Span::current().record("backup_id", display(id));
            audit.record.backup_id = Some(*id);
            audit.record.backup_environment = Some(environment.clone());
        }
        tracing::Span::current().record("target", restore.target());
        let held_id = backup.as_ref().map_or(id, |(id, _)| *id);
        let lease = self.lease(restore.target(), held_id, job).await?;
        Ok((Wanted { passkey, target, live_database, found, restore }, lease))
    }

    /// What only who has the target may do. It is kept from here on: a safety backup alone may outlast a lease.
    async fn with_lease(
        &self,
        wanted: Wanted,
        lease: &mut Lease,
        job: &Job<'_>,
        audit: &mut Audit,
    ) -> Result<Answer, Failure> {
        let mut pin = None;
        let looked = tokio::select! {
            looked = job.in_time(self.look(&wanted, &mut pin, job)) => looked,
            fault = lease.keep(&self.store) => Err(Failure::Failed(fault)),
        };
        let prepared = match looked {
            // Before anything is changed: what was seen is as it was only where the lease was not lost meanwhile.
            Ok(prepared) => lease.keep_once(&self.store).await.map(|()| prepared).map_err(Failure::Failed),
            Err(failure) => Err(failure),
        };
        match prepared {
            Ok(prepared) => {
                let held = Held { prepared, source_store: wanted.found.store, target: wanted.target, pin };
                self.go_on(held, lease, job, audit).await
            }
            Err(failure) => {
                job.let_go(pin).await;
                Err(failure)
            }
        }
    }

    /// Looks at what nobody else changes now: on return nothing but control objects has been written.
    async fn look(&self, wanted: &Wanted, pin: &mut Option<HeldPin>, job: &Job<'_>) -> Result<Prepared, Failure> {
        let Wanted { found, live_database, restore, .. } = wanted;
        let guard = self.guard(job.invocation, job.attempt);
        let server = match &wanted.target {
            Some(target) => {
                let mut server = guard.observe(target, restore.target()).await?;
                guard.clear_away(target, restore, &mut server).await?;
                Some(server)
            }
            None => None,
        };
        let source = self.pin(found, restore.mode(), pin, job).await?;
        let restore = restore_of(job.request, &source, live_database, server.as_ref(), job.id);
        let live_database = live_database.clone();
        let seen = Seen { restore, source, passkey: wanted.passkey, server, live_database };
        self.decide(&guard, job.request, found, seen).await
    }

    async fn decide(
        &self,
        guard: &Guard<'_>,
        request: &RestoreRequest,
        found: &Found,
        seen: Seen,
    ) -> Result<Prepared, Failure> {
        let dump = found.dump();
        let stored = match &dump {
            Some(dump) => found.stored(dump).await?,
            None => None,
        };
        let facts = guard.facts(request, &seen, guard.safety_backup(&seen.restore).await?);
        if let (Some(dump), Some(stored)) = (dump, stored)
            && let Some(archive) = stored.archive()
        {
            let approval = approve(facts, archive, request.take_safety_backup);
            let approval = approval.map_err(|refusals| Failure::Refused(refused(&refusals)))?;
            return Ok(Prepared::Cold { approval, dump, stored });
        }
        let against = refusals(&facts);
        let worth_a_backup = !against.is_empty() && against.iter().all(Refusal::is_cured_by_export);
        let cleared = if request.take_safety_backup && worth_a_backup {
            let taken = guard.take_safety_backup().await?;
            tracing::info!(safety_backup = %taken, "a safety backup was taken");
            let facts = guard.facts(request, &seen, guard.safety_backup(&seen.restore).await?);
            clear(facts).map_err(|refusals| refusals.into_iter().map(Refusal::after_export).collect())
        } else {
            clear(facts)
        };
        cleared.map(Prepared::Cleared).map_err(|refusals: Vec<Refusal>| Failure::Refused(refused(&refusals)))
    }

    async fn lease(&self, target: &str, backup_id: BackupId, job: &Job<'_>) -> Result<Lease, Failure> {
        let key = ObjectKey::RestoreLease { environment: self.config.environment.clone(), target: target.to_owned() };
        let event_key = format!("restore:{}", job.request_id);
        match self.store.acquire_lease(key, backup_id, &event_key, &job.invocation.request_id).await? {
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
        pin: &mut Option<HeldPin>,
        job: &Job<'_>,
    ) -> Result<Source, Failure> {
        let Some(manifest) = found.source.manifest() else { return Ok(found.source.clone()) };
        let expires = match &job.ground {
            Ground::Passkey(_) => job.invocation.ends + PIN_GRACE,
            // It may have to wait again.
            Ground::Approved(approved) => approved.wait.approval_expires.max(job.invocation.ends + PIN_GRACE),
        };
        let purpose = format!("restore {mode}");
        *pin = Some(pins::put(&found.store, manifest.timestamp, job.request_id, &purpose, expires).await?);
        let manifest = select::by_id(&found.store, manifest.timestamp).await.map_err(not_to_be_had)?;
        Ok(Source::Backup(Box::new(manifest)))
    }

    async fn go_on(&self, held: Held, lease: &mut Lease, job: &Job<'_>, audit: &mut Audit) -> Result<Answer, Failure> {
        let Held { prepared, source_store, target, mut pin } = held;
        let clearance = match prepared {
            Prepared::Cleared(clearance) => clearance,
            Prepared::Cold { approval, dump, stored } => {
                let thawing = self.thaw(&approval, &dump, &stored, job, audit, pin.as_mut(), &source_store);
                let thawing = tokio::time::timeout_at(job.invocation.give_up_at.into(), Box::pin(thawing)).await;
                let thawed = thawing.unwrap_or_else(|_| Err(deadline_fault("before the dump was being thawed")));
                if thawed.is_err() {
                    job.let_go(pin).await;
                }
                let receipt = thawed?;
                self.report_waiting(&receipt).await;
                return Ok((receipt, RecordState::Thawing));
            }
        };
        let cleared = json!({
            "restore": clearance.restore(),
            "options": clearance.options(),
            "safety_backup": clearance.safety_backup(),
            "granted_at": clearance.granted_at(),
        });
        tracing::info!(%cleared, "the restore is allowed");
        let making = job.making(&clearance);
        let is_rds = making.is_some();
        let result = match self.enter(cleared, making, audit).await {
            Err(fault) => Err(fault),
            Ok(()) => {
                let context = Context {
                    config: &self.config,
                    aws: &self.aws,
                    reporter: &self.reporter,
                    store: &self.store,
                    source_store: &source_store,
                    target: target.as_ref(),
                    request_id: job.request_id,
                    give_up_at: job.invocation.give_up_at,
                };
                tokio::select! {
                    result = Box::pin(carry_out(context, clearance)) => result,
                    // What RDS makes it makes whoever holds the name.
                    fault = lease.keep(&self.store), if !is_rds => Err(fault),
                    () = tokio::time::sleep_until(job.invocation.give_up_at.into()) => {
                        Err(deadline_fault("and what it had begun is not in use"))
                    }
                }
            }
        };
        unpin(pin).await;
        let ended = match result {
            Ok(Ended::Succeeded(receipt)) => {
                self.report_success(&receipt).await;
                Ok((receipt, RecordState::Succeeded))
            }
            Ok(Ended::Waiting(receipt)) => {
                self.report_waiting(&receipt).await;
                return Ok((receipt, RecordState::Waiting));
            }
            Err(fault) => Err(not_to_be_had(fault)),
        };
        if is_rds {
            job.waits_no_longer(self).await;
        }
        ended
    }

    /// Written before anything is changed: what was done to a database can be found out, and what RDS makes followed.
    async fn enter(&self, cleared: Value, making: Option<Wait>, audit: &mut Audit) -> Result<(), Fault> {
        let waits = making.is_some();
        let written = audit.write(|record| {
            record.cleared = Some(cleared);
            record.waits_for = making;
        });
        written.await?;
        if waits { waiting::enter(&self.store, &audit.record).await } else { Ok(()) }
    }
}

impl Job<'_> {
    /// Ends with the invocation's time, before anything has begun.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let work = tokio::time::timeout_at(self.invocation.give_up_at.into(), Box::pin(work)).await;
        work.unwrap_or_else(|_| Err(Failure::Failed(deadline_fault("before it began"))))
    }

    /// What is waited for where RDS makes a server; `None` for all else.
    fn making(&self, clearance: &Clearance) -> Option<Wait> {
        let making = rds::making(clearance)?;
        let (approved, approval_expires) = match &self.ground {
            Ground::Approved(before) => (before.wait.approved, before.wait.approval_expires),
            Ground::Passkey(_) => (clearance.granted_at(), clearance.granted_at() + APPROVAL_LASTS),
        };
        let expected_by = clearance.granted_at() + RDS_TAKES;
        Some(Wait { approved, approval_expires, expected_by, archived: None, rds: Some(making) })
    }

    /// What is not begun needs its pin no longer, unless it goes on waiting: then whoever ends that releases it.
    async fn let_go(&self, pin: Option<HeldPin>) {
        if matches!(self.ground, Ground::Passkey(_)) {
            unpin(pin).await;
        }
    }
}

impl Approved {
    /// What would be done now is what was approved: the same dump, into the same names.
    fn is_of(&self, restore: &Restore, dump: Option<&Dump>) -> Result<(), Fault> {
        let now = serde_json::to_value(restore).map_err(|error| Fault::from_error("internal", &error))?;
        let archived = self.wait.archived.as_ref();
        let same_dump = archived.map(|archived| (&archived.key, &archived.version_id))
            == dump.map(|dump| (&dump.key, &dump.version_id));
        if now == self.restore && same_dump {
            return Ok(());
        }
        Err(Fault::new("restore-not-as-approved", "what would be restored now is not what was approved")
            .hint("the dump or the function's settings have changed since: ask again"))
    }
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
