//! From a clearance to the engine. What may be done has been decided: it is in the [`Clearance`].

use std::time::Instant;

use holdfast_shared::config::RestoreConfig;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::Clearance;
use holdfast_shared::postgres::connect::Target;
use holdfast_shared::store::Store;
use jiff::Timestamp;
use serde_json::Value;

use crate::pins::HeldPin;

/// What a restore is given besides its clearance.
#[expect(dead_code, reason = "read by the modes that are not there yet")]
pub struct Context<'a> {
    pub config: &'a RestoreConfig,
    pub aws: &'a aws_config::SdkConfig,
    /// From the function's own prefix: records and imports.
    pub store: &'a Store,
    /// From the prefix of the source's environment: the dump.
    pub source_store: &'a Store,
    /// The server that was looked at, with the live database; `None` for modes that make a server of their own.
    pub target: Option<&'a Target>,
    /// Holds the backup; `None` where the source is none.
    pub pin: Option<&'a mut HeldPin>,
    pub request_id: &'a str,
    /// More than 1 where an earlier attempt at this request died, wherever it was.
    pub attempt: u32,
    pub started: Instant,
    /// When the future is dropped, finished or not. It is dropped as well when the lease on the target is lost.
    pub give_up_at: Instant,
}

/// How a restore ended.
#[expect(dead_code, reason = "built by the modes that are not there yet")]
pub enum Ended {
    /// Done and proved; the receipt goes to the caller and into the record.
    Succeeded(Value),
    /// Allowed, and waiting for an archived dump. The pin stays until then.
    Waiting { receipt: Value, until: Timestamp },
}

/// Does what was allowed.
///
/// # Errors
/// Every failure; live data is then as it was.
pub async fn carry_out(_context: Context<'_>, clearance: Clearance) -> Result<Ended, Fault> {
    let mode = clearance.restore().mode();
    Err(Fault::new("restore-mode-not-available", format!("this release does not do mode {mode} yet"))
        .hint("mode plan says what it would do; pg_restore reads the dump"))
}
