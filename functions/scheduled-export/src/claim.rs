//! Makes an event that is delivered many times one run: its id, its lease, or the receipt of the run it duplicates.

use std::time::{Duration, Instant};

use holdfast_shared::domain::{BackupId, Manifest, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::lease::{Acquired, Lease, LeaseRecord, UploadRecord};
use holdfast_shared::store::{PutOutcome, Store};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::request::ExportRequest;

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Ids that may be taken by other databases' runs of the same second.
const MAX_ID_STEPS: usize = 120;

#[derive(Debug, Serialize, Deserialize)]
struct ClaimRecord {
    event_key: String,
    backup_id: BackupId,
}

pub enum Claim {
    Run(Box<Run>),
    /// Another delivery of the same event has made this backup.
    Duplicate(Box<Manifest>),
}

/// The right to make one backup.
pub struct Run {
    pub id: BackupId,
    pub lease: Lease,
    /// Whether an earlier attempt at the same id may have left an object behind.
    pub resumed: bool,
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
    let (id, resumed) = claim_id(store, request).await?;
    if resumed && let Some(manifest) = read_manifest(store, id).await? {
        return Ok(Claim::Duplicate(Box::new(manifest)));
    }
    loop {
        match store.acquire_lease(lease_key.clone(), id, &request.event_key, request_id).await? {
            Acquired::Lease { lease, left_over } => {
                // The run that held it may have ended well in between.
                if resumed && let Some(manifest) = read_manifest(store, id).await? {
                    lease.release(store).await?;
                    return Ok(Claim::Duplicate(Box::new(manifest)));
                }
                return Ok(Claim::Run(Box::new(Run { id, lease, resumed, left_over })));
            }
            Acquired::HeldBy(holder) if holder.event_key == request.event_key => {
                if Instant::now() + POLL_INTERVAL >= give_up_at {
                    return Err(in_progress(&holder));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
                if let Some(manifest) = read_manifest(store, id).await? {
                    return Ok(Claim::Duplicate(Box::new(manifest)));
                }
            }
            Acquired::HeldBy(holder) => return Err(held(&holder)),
        }
    }
}

/// The id of the event's backup, and whether it had been claimed before.
async fn claim_id(store: &Store, request: &ExportRequest) -> Result<(BackupId, bool), Fault> {
    let event = ObjectKey::Event(hex::encode(&Sha256::digest(request.event_key.as_bytes())[..16]));
    // An id of the clock differs between deliveries: what the first one chose is written down.
    if request.from_clock
        && let Some((json, _)) = store.get(&event).await?
    {
        return Ok((parse(&event, &json)?.backup_id, true));
    }
    let (id, seen) = walk_ids(store, request).await?;
    if !request.from_clock {
        return Ok((id, seen));
    }
    match store.put_if(&event, record(request, id), Condition::Absent).await? {
        PutOutcome::Written { .. } => Ok((id, seen)),
        PutOutcome::Refused => match store.get(&event).await? {
            Some((json, _)) => Ok((parse(&event, &json)?.backup_id, true)),
            None => Err(Fault::new("event-record-lost", format!("{event} was there and is gone"))),
        },
    }
}

/// The first id from the proposed one on that is free, or already this event's.
async fn walk_ids(store: &Store, request: &ExportRequest) -> Result<(BackupId, bool), Fault> {
    let mut id = request.proposed_id;
    for _ in 0..MAX_ID_STEPS {
        let key = ObjectKey::Claim(id);
        if let PutOutcome::Written { .. } = store.put_if(&key, record(request, id), Condition::Absent).await? {
            return Ok((id, false));
        }
        if let Some((json, _)) = store.get(&key).await?
            && parse(&key, &json)?.event_key == request.event_key
        {
            return Ok((id, true));
        }
        id = id.next();
    }
    Err(Fault::new("backup-id-taken", format!("{} and the {MAX_ID_STEPS} ids after it are taken", request.proposed_id)))
}

fn record(request: &ExportRequest, id: BackupId) -> bytes::Bytes {
    let record = ClaimRecord { event_key: request.event_key.clone(), backup_id: id };
    serde_json::to_vec(&record).unwrap_or_default().into()
}

fn parse(key: &ObjectKey, json: &[u8]) -> Result<ClaimRecord, Fault> {
    serde_json::from_slice(json)
        .map_err(|error| Fault::from_error("claim-unreadable", &error).with_context(&key.to_string()))
}

async fn read_manifest(store: &Store, id: BackupId) -> Result<Option<Manifest>, Fault> {
    let key = ObjectKey::Manifest(id);
    match store.get(&key).await? {
        None => Ok(None),
        Some((json, _)) => Manifest::parse(&json)
            .map(Some)
            .map_err(|error| Fault::from_error("manifest-unreadable", &error).with_context(&key.to_string())),
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
