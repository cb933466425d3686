//! From a clearance to the engine. What may be done has been decided: it is in the [`Clearance`].

use std::time::{Duration, Instant};

use holdfast_shared::config::RestoreConfig;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::{Clearance, Restore};
use holdfast_shared::postgres::connect::Target;
use holdfast_shared::rds::Rds;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::telemetry::Unit;
use restore_trigger::engine::Engine;
use serde_json::{Value, json};

use crate::answer::About;
use crate::last_time;
use crate::rds::{self, Making, Progress};

/// What dropping an unfinished database may take, of the time before the future is dropped.
const CLEANING_UP: Duration = Duration::from_secs(8);
/// Longest wait for a lock: in a database that nobody else uses, or in a table that applications do.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const MAINTENANCE_WORK_MEM_MB: u64 = 256;

/// What a restore is given besides its clearance.
pub struct Context<'a> {
    pub config: &'a RestoreConfig,
    pub aws: &'a aws_config::SdkConfig,
    pub reporter: &'a Reporter,
    /// From the function's own prefix: records and imports.
    pub store: &'a Store,
    /// From the prefix of the source's environment: the dump.
    pub source_store: &'a Store,
    /// The server that was looked at, with the live database; `None` for modes that make a server of their own.
    pub target: Option<&'a Target>,
    pub request_id: &'a str,
    /// When the future is dropped, finished or not. It is dropped as well when the lease on the target is lost.
    pub give_up_at: Instant,
}

/// How a restore ended.
pub enum Ended {
    /// Done and proved; the receipt goes to the caller and into the record.
    Succeeded(Value),
    /// Begun, and not there yet.
    Waiting(Value),
}

/// Does what was allowed.
///
/// # Errors
/// Every failure; live data is then as it was.
pub async fn carry_out(context: Context<'_>, clearance: Clearance) -> Result<Ended, Fault> {
    if let Some(making) = rds::making(&clearance) {
        return make(&context, &clearance, &making).await;
    }
    let Some(target) = context.target else { return Err(Fault::new("internal", "a restore without a server")) };
    let engine = Engine {
        store: context.source_store.clone(),
        own_store: context.store.clone(),
        target: Target { database: context.config.maintenance_database.clone(), ..target.clone() },
        workers: context.config.workers,
        lock_timeout: LOCK_TIMEOUT,
        maintenance_work_mem_mb: MAINTENANCE_WORK_MEM_MB,
        deadline: context.give_up_at.checked_sub(CLEANING_UP).unwrap_or(context.give_up_at),
    };
    let mode = clearance.restore().mode();
    let whole = clearance.source().manifest().filter(|_| last_time::is_whole(clearance.restore())).cloned();
    let is_drill = matches!(clearance.restore(), Restore::Verify { .. });
    let about = About::of(&clearance);
    let receipt = engine.carry_out(clearance).await?;
    if let Some(manifest) = &whole {
        last_time::remember(context.store, &context.config.environment, mode, manifest, &receipt).await;
    }
    if let Some(database) = whole.filter(|_| is_drill).map(|manifest| manifest.source.database) {
        context.reporter.measure_database(
            &context.config.environment,
            &database,
            &[
                ("RestoreDrillSucceeded", Unit::Count, 1.0),
                ("RestoreDrillSeconds", Unit::Seconds, receipt.seconds.total),
            ],
            &[("request_id", json!(context.request_id))],
        );
    }
    about.answer(&receipt).map(Ended::Succeeded)
}

/// Has RDS make a server and follows it for as long as there is time; what it is not done with then is waited for.
async fn make(context: &Context<'_>, clearance: &Clearance, making: &Making) -> Result<Ended, Fault> {
    let client = Rds::new(context.aws);
    rds::begin(&client, making, clearance, context.request_id).await?;
    tracing::info!(server = %making.server, "RDS makes the server");
    let until = context.give_up_at.checked_sub(CLEANING_UP).unwrap_or(context.give_up_at);
    match rds::follow(&client, making, context.request_id, until).await? {
        Progress::Available(receipt) => Ok(Ended::Succeeded(receipt)),
        Progress::Coming(status) => Ok(Ended::Waiting(rds::waits(making, context.request_id, &status))),
        // RDS shows a new server a moment later.
        Progress::Absent => Ok(Ended::Waiting(rds::waits(making, context.request_id, "begun"))),
    }
}
