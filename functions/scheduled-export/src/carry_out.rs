//! Carries a plan out: sessions on the shared snapshot, workers until nothing is left, then the layout.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::table::quote_literal;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::{ExportPlan, Limits, plan_export};
use holdfast_shared::postgres::connect::{Connector, Session};
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::postgres::session::{copy_fault, query_fault, session_settings};
use holdfast_shared::store::upload::Upload;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::assembly::Assembly;
use crate::observe::{Observed, name_blockers};
use crate::queue::{LockTimeouts, Work, deferred};
use crate::worker::{Role, work};

const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// A helper does not wait long for a lock: the holder has it already.
const HELPER_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// All data is on its way; only the head is missing.
pub struct Carried {
    pub work: Arc<Work>,
    pub digests: Vec<TableDigest>,
}

pub fn plan(config: &ExportConfig, observed: &Observed) -> ExportPlan {
    plan_export(
        &observed.entries,
        &Limits {
            workers: config.workers,
            part_size_bytes: config.part_size_bytes,
            memory_bytes: config.buffer_memory_bytes,
        },
    )
}

/// Reads everything. The sessions are closed when it returns, whether it succeeds or not.
pub async fn carry_out(
    config: &ExportConfig,
    connector: &Connector,
    observed: &mut Observed,
    holder: Session,
    plan: ExportPlan,
    upload: Arc<Upload>,
    started: Instant,
) -> Result<Carried, Fault> {
    let wanted = plan.workers.min(plan.units.iter().map(|unit| unit.content.pieces()).sum::<usize>().max(1));
    let helpers = open_helpers(config, connector, observed, wanted - 1).await?;
    let mut sessions = Vec::with_capacity(wanted);
    let raw = holder.into_raw().await.map_err(Fault::from)?;
    sessions.push(raw);
    sessions.extend(helpers);
    for session in &mut sessions {
        let encoding = format!("SET client_encoding = {}", quote_literal(&observed.encoding));
        session.execute(encoding).await.map_err(|error| copy_fault(&error, "the session's settings"))?;
    }
    tracing::info!(workers = sessions.len(), "reading");

    let dump_ids = observed.entries.iter().map(|entry| observed.toc.entries[entry.toc_index].dump_id).collect();
    let assembly = Assembly::new(&plan, upload);
    let sources = observed.sources.clone();
    let lock_timeouts =
        LockTimeouts { table: HELPER_LOCK_TIMEOUT.min(config.lock_timeout), beyond: config.lock_timeout };
    let shared = Arc::new(Work::new(plan, sources, dump_ids, observed.compression, assembly, lock_timeouts, started));
    let mut digests = vec![TableDigest::default(); shared.sources.len()];

    let (handoff, jobs) = deferred();
    let mut jobs = Some(jobs);
    let mut tasks = JoinSet::new();
    for session in sessions {
        let role = jobs.take().map_or_else(|| Role::Helper(handoff.clone()), Role::Holder);
        tasks.spawn(work(Arc::clone(&shared), session, role).in_current_span());
    }
    // The holder waits for jobs until the last helper is through.
    drop(handoff);

    let progress = report_progress(Arc::clone(&shared));
    tokio::pin!(progress);
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                None => break,
                Some(Ok(Ok((learned, session)))) => {
                    digests.iter_mut().zip(&learned).for_each(|(digest, more)| digest.merge(more));
                    session.close().await;
                }
                // The other workers are aborted as the set is dropped.
                Some(Ok(Err(fault))) => return Err(name_blockers(connector, fault).await),
                Some(Err(panic)) => return Err(Fault::from_error("internal", &panic)),
            },
            () = &mut progress => {}
        }
    }
    Ok(Carried { work: shared, digests })
}

/// Sessions beside the holder's, on its snapshot. Where the server has no room for all, the export is slower, not
/// impossible.
async fn open_helpers(
    config: &ExportConfig,
    connector: &Connector,
    observed: &mut Observed,
    count: usize,
) -> Result<Vec<RawSession>, Fault> {
    let opened = futures::future::join_all(
        (0..count).map(|_| open_helper(connector, observed.facts.major(), &observed.snapshot, config.lock_timeout)),
    )
    .await;
    let mut helpers = Vec::with_capacity(count);
    for session in opened {
        match session {
            Ok(session) => helpers.push(session),
            Err(fault) if fault.code == "database-too-many-connections" => {
                observed.warnings.push(format!("fewer workers than planned: {}", fault.message));
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(helpers)
}

async fn open_helper(
    connector: &Connector,
    server_major: u32,
    snapshot: &str,
    lock_timeout: Duration,
) -> Result<RawSession, Fault> {
    let session = connector.session().await?;
    let sql = format!(
        "{} BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}",
        session_settings(server_major, lock_timeout),
        quote_literal(snapshot)
    );
    session.client.batch_execute(&sql).await.map_err(query_fault)?;
    Ok(session.into_raw().await?)
}

/// A line every few seconds; never ends.
async fn report_progress(work: Arc<Work>) {
    let total: u64 = work.plan.units.iter().map(|unit| unit.estimated_bytes).sum();
    let mut interval = tokio::time::interval(PROGRESS_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        let progress = &work.assembly.progress;
        tracing::info!(
            rows = progress.rows.load(Ordering::Relaxed),
            text_bytes = progress.text_bytes.load(Ordering::Relaxed),
            stored_bytes = progress.stored_bytes.load(Ordering::Relaxed),
            estimated_bytes = total,
            "exporting"
        );
    }
}
