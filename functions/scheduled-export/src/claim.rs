//! Makes an event that is delivered many times one run: its id, its lease, or the receipt of the run it duplicates.

use std::time::{Duration, Instant};

use holdfast_shared::domain::{BackupId, Manifest, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::store::claim::{ClaimRecord, MAX_ID_STEPS, event_object};
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::lease::{Acquired, Lease, LeaseRecord, UploadRecord};
use holdfast_shared::store::{PutOutcome, Store};

use crate::request::ExportRequest;

const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub enum Claim {
    Run(Box<Run>),
    /// Another delivery of the same event has made this backup.
    Duplicate(Box<Manifest>),
}

/// The right to make one backup.
pub struct Run {
    pub id: BackupId,
    pub lease: Lease,
    /// What a run that died left behind.
    pub left_over: Option<UploadRecord>,
}

/// Claims the backup for this invocation, or waits for the delivery that has it.
///
/// # Errors
/// `export-lease-held` where another run works on the database, `export-in-progress` where the same event's run
/// has not ended by `give_up_at`.
pub async fn claim(
    store: &Store,
    request: &ExportRequest,
    lease_key: &ObjectKey,
    request_id: &str,
    give_up_at: Instant,
) -> Result<Claim, Fault> {
    let (id, seen) = claim_id(store, request, request_id).await?;
    if seen && let Some(manifest) = own_manifest(store, request, id).await? {
        return Ok(Claim::Duplicate(manifest));
    }
    loop {
        match store.acquire_lease(lease_key.clone(), id, &request.event_key, request_id).await? {
            Acquired::Lease { lease, left_over } => {
                // Another delivery's run may have ended well in between, even where this one made the claim.
                let ended = own_manifest(store, request, id).await;
                if let Ok(None) = ended {
                    return Ok(Claim::Run(Box::new(Run { id, lease, left_over })));
                }
                if let Err(error) = lease.release(store).await {
                    tracing::info!(reason = chain(&error), "the lease was not given back, and will expire");
                }
                if let Some(manifest) = ended? {
                    return Ok(Claim::Duplicate(manifest));
                }
            }
            Acquired::HeldBy(holder) if holder.event_key == request.event_key => {
                if Instant::now() + POLL_INTERVAL >= give_up_at {
                    return Err(in_progress(&holder));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
                if let Some(manifest) = own_manifest(store, request, id).await? {
                    return Ok(Claim::Duplicate(manifest));
                }
            }
            Acquired::HeldBy(holder) => return Err(held(&holder)),
        }
    }
}

/// The id of the event's backup, and whether it had been claimed before.
async fn claim_id(store: &Store, request: &ExportRequest, request_id: &str) -> Result<(BackupId, bool), Fault> {
    let event = event_object(&request.event_key);
    // An id of the clock differs between deliveries: what the first one chose is written down.
    if request.from_clock
        && let Some((json, _)) = store.get(&event).await?
    {
        return Ok((ClaimRecord::parse(&event, &json)?.backup_id, true));
    }
    let (id, seen) = walk_ids(store, request, request_id).await?;
    if !request.from_clock {
        return Ok((id, seen));
    }
    match store.put_if(&event, ClaimRecord::new(&request.event_key, id, request_id).render(), Condition::Absent).await?
    {
        PutOutcome::Written { .. } => Ok((id, seen)),
        PutOutcome::Refused => match store.get(&event).await? {
            Some((json, _)) => Ok((ClaimRecord::parse(&event, &json)?.backup_id, true)),
            None => Err(Fault::new("event-record-lost", format!("{event} was there and is gone"))),
        },
    }
}

/// The first id from the proposed one on that is free, or already this event's.
async fn walk_ids(store: &Store, request: &ExportRequest, request_id: &str) -> Result<(BackupId, bool), Fault> {
    let mut id = request.proposed_id;
    for _ in 0..MAX_ID_STEPS {
        let key = ObjectKey::Claim(id);
        if let PutOutcome::Written { .. } =
            store.put_if(&key, ClaimRecord::new(&request.event_key, id, request_id).render(), Condition::Absent).await?
        {
            return Ok((id, false));
        }
        if let Some((json, _)) = store.get(&key).await?
            && ClaimRecord::parse(&key, &json)?.event_key == request.event_key
        {
            return Ok((id, true));
        }
        id = id.next();
    }
    Err(Fault::new("backup-id-taken", format!("{} and the {MAX_ID_STEPS} ids after it are taken", request.proposed_id)))
}

/// The manifest of this event's backup, if it is there.
///
/// # Errors
/// `backup-already-exists` where the id is another event's: its dump is not to be touched.
async fn own_manifest(store: &Store, request: &ExportRequest, id: BackupId) -> Result<Option<Box<Manifest>>, Fault> {
    let key = ObjectKey::Manifest(id);
    let Some((json, _)) = store.get(&key).await? else { return Ok(None) };
    let manifest = Manifest::parse(&json)
        .map_err(|error| Fault::from_error("manifest-unreadable", &error).with_context(&key.to_string()))?;
    if manifest.event_key == request.event_key {
        Ok(Some(Box::new(manifest)))
    } else {
        Err(Fault::new("backup-already-exists", format!("{key} is another event's: {}", manifest.event_key)))
    }
}

fn held(holder: &LeaseRecord) -> Fault {
    Fault::new(
        "export-lease-held",
        format!(
            "another export of this database is running: backup {}, request {}, since {}",
            holder.backup_id, holder.request_id, holder.since
        ),
    )
    .hint(format!("wait for it; if it is dead its lease expires at {}", holder.expires))
}

fn in_progress(holder: &LeaseRecord) -> Fault {
    Fault::new(
        "export-in-progress",
        format!("this event's export is still running: backup {}, request {}", holder.backup_id, holder.request_id),
    )
    .hint("its result is in the manifest once it ends")
}
