//! Keeps the run's lease while the run works.

use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Lease, LeaseError, RENEWAL_INTERVAL};
use tokio::time::MissedTickBehavior;

/// Renews the lease until it is lost; ends with the reason. A store that fails for a moment loses no lease.
pub async fn keep(lease: &mut Lease, store: &Store) -> Fault {
    let mut interval = tokio::time::interval(RENEWAL_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.tick().await;
    loop {
        interval.tick().await;
        let problem = match tokio::time::timeout(RENEWAL_INTERVAL, lease.renew(store)).await {
            Ok(Ok(())) => continue,
            Ok(Err(LeaseError::Store(error))) if lease.remaining() > RENEWAL_INTERVAL => chain(&error),
            Ok(Err(error)) => return error.into(),
            Err(_) if lease.remaining() > RENEWAL_INTERVAL => {
                format!("no answer within {} s", RENEWAL_INTERVAL.as_secs())
            }
            Err(_) => return Fault::new("lease-lost", "the lease could not be renewed in time"),
        };
        tracing::warn!(error = problem, "the lease was not renewed, and is tried again");
    }
}
