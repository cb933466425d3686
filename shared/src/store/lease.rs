//! Who works on a database: a lease object that is renewed while its run lives, and expires when it does not.
//!
//! The holder writes down its upload, so that whoever takes over from a dead run can abort it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{BackupId, ObjectKey};
use crate::fault::{Fault, chain};
use crate::store::client::Condition;
use crate::store::{PutOutcome, Store, StoreError};

/// How long a lease holds without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(60);
/// How often it is renewed.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);
/// How often a write is tried that others get in the way of.
const CONTEST_ROUNDS: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    pub state: LeaseState,
    pub backup_id: BackupId,
    /// Identity of the event the run is for.
    pub event_key: String,
    /// Lambda's request id of the invocation that holds it.
    pub request_id: String,
    pub since: Timestamp,
    pub expires: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    Held,
    Released,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    pub key: String,
    pub upload_id: String,
}

#[derive(Debug)]
pub enum Acquired {
    Lease {
        lease: Lease,
        /// What a run that died left behind.
        left_over: Option<UploadRecord>,
    },
    HeldBy(LeaseRecord),
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the lease {key} was taken over by another run")]
    Lost { key: String },
    #[error("other runs were quicker to take the lease {key}, again and again")]
    Contested { key: String },
    #[error("the lease {key} is not readable")]
    Malformed {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

/// A lease this run holds.
#[derive(Debug)]
pub struct Lease {
    key: ObjectKey,
    record: LeaseRecord,
    etag: String,
    /// As the last write says that is known to have succeeded.
    held_until: Timestamp,
}

impl LeaseRecord {
    fn is_held_by(&self, run: &LeaseRecord) -> bool {
        self.state == LeaseState::Held
            && (self.backup_id, &self.request_id, self.since) == (run.backup_id, &run.request_id, run.since)
    }
}

fn body(record: &LeaseRecord) -> bytes::Bytes {
    serde_json::to_vec(record).unwrap_or_default().into()
}

fn parse(key: &ObjectKey, json: &[u8]) -> Result<LeaseRecord, LeaseError> {
    serde_json::from_slice(json).map_err(|source| LeaseError::Malformed { key: key.to_string(), source })
}

impl Store {
    /// Takes the lease, if it is free, released or expired. With it comes what the run before left behind.
    pub async fn acquire_lease(
        &self,
        key: ObjectKey,
        backup_id: BackupId,
        event_key: &str,
        request_id: &str,
    ) -> Result<Acquired, LeaseError> {
        for _ in 0..CONTEST_ROUNDS {
            let now = Timestamp::now();
            let present = match self.get(&key).await? {
                None => None,
                Some((json, etag)) => Some((parse(&key, &json)?, etag)),
            };
            let (condition, left_over) = match &present {
                None => (Condition::Absent, None),
                Some((record, _)) if record.state == LeaseState::Held && record.expires > now => {
                    return Ok(Acquired::HeldBy(record.clone()));
                }
                Some((record, etag)) => (Condition::Etag(etag), record.upload.clone()),
            };
            let record = LeaseRecord {
                state: LeaseState::Held,
                backup_id,
                event_key: event_key.to_owned(),
                request_id: request_id.to_owned(),
                since: now,
                expires: now + LEASE_DURATION,
                // Until it is aborted a successor of this run has to know of it as well.
                upload: left_over.clone(),
            };
            if let PutOutcome::Written { etag } = self.put_if(&key, body(&record), condition).await? {
                let held_until = record.expires;
                return Ok(Acquired::Lease { lease: Lease { key, record, etag, held_until }, left_over });
            }
            // Another run was quicker: what it wrote decides.
        }
        Err(LeaseError::Contested { key: key.to_string() })
    }
}

impl Lease {
    /// Holds it for another [`LEASE_DURATION`].
    ///
    /// # Errors
    /// [`LeaseError::Lost`] where another run has taken it: this run has to stop.
    pub async fn renew(&mut self, store: &Store) -> Result<(), LeaseError> {
        self.record.expires = Timestamp::now() + LEASE_DURATION;
        self.write(store).await
    }

    /// How long it certainly is this run's.
    pub fn remaining(&self) -> Duration {
        Timestamp::now().duration_until(self.held_until).try_into().unwrap_or_default()
    }

    /// Writes down (or takes back) what a successor would have to abort.
    pub async fn set_upload(&mut self, store: &Store, upload: Option<UploadRecord>) -> Result<(), LeaseError> {
        self.record.upload = upload;
        self.renew(store).await
    }

    /// The upload that is written down is gone; the next write says so.
    pub fn forget_upload(&mut self) {
        self.record.upload = None;
    }

    /// Gives the lease back, so that the next run need not wait until it expires.
    ///
    /// # Errors
    /// [`LeaseError`]: it is another's by now, or S3 does not answer.
    pub async fn release(mut self, store: &Store) -> Result<(), LeaseError> {
        self.record.state = LeaseState::Released;
        self.write(store).await
    }

    async fn write(&mut self, store: &Store) -> Result<(), LeaseError> {
        for _ in 0..CONTEST_ROUNDS {
            match store.put_if(&self.key, body(&self.record), Condition::Etag(&self.etag)).await? {
                PutOutcome::Written { etag } => {
                    self.etag = etag;
                    self.held_until = self.record.expires;
                    return Ok(());
                }
                PutOutcome::Refused => {
                    // This run's own, where it did not wait for the answer to its last write.
                    let Some((json, etag)) = store.get_present(&self.key).await? else { break };
                    if !parse(&self.key, &json)?.is_held_by(&self.record) {
                        break;
                    }
                    self.etag = etag;
                }
            }
        }
        Err(LeaseError::Lost { key: self.key.to_string() })
    }

    /// One renewal of a lease that is being kept. A store that fails for a moment loses no lease: it is renewed
    /// at the next interval.
    ///
    /// # Errors
    /// The reason for which the run has to stop.
    pub async fn keep_once(&mut self, store: &Store) -> Result<(), Fault> {
        let problem = match tokio::time::timeout(RENEWAL_INTERVAL, self.renew(store)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(LeaseError::Store(error))) if self.remaining() > RENEWAL_INTERVAL => chain(&error),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) if self.remaining() > RENEWAL_INTERVAL => {
                format!("no answer within {} s", RENEWAL_INTERVAL.as_secs())
            }
            Err(_) => return Err(Fault::new("lease-lost", "the lease could not be renewed in time")),
        };
        tracing::warn!(error = problem, "the lease was not renewed, and is tried again");
        Ok(())
    }

    /// Renews the lease until it is lost; ends with the reason.
    pub async fn keep(&mut self, store: &Store) -> Fault {
        let mut interval = renewals().await;
        loop {
            interval.tick().await;
            if let Err(fault) = self.keep_once(store).await {
                return fault;
            }
        }
    }
}

/// Ticks when a lease is due to be renewed; the first time one interval from now.
pub async fn renewals() -> tokio::time::Interval {
    let mut interval = tokio::time::interval(RENEWAL_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval.tick().await;
    interval
}

impl From<LeaseError> for Fault {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => error.into(),
            LeaseError::Lost { .. } => Self::from_error("lease-lost", &error),
            LeaseError::Contested { .. } => Self::from_error("lease-contested", &error),
            LeaseError::Malformed { .. } => {
                Self::from_error("lease-unreadable", &error).hint("delete the object when no export runs")
            }
        }
    }
}
