//! Who works on a database: a lease object that is renewed while its run lives, and expires when it does not.
//!
//! The holder writes down its upload, so that whoever takes over from a dead run can abort it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{BackupId, ObjectKey};
use crate::fault::Fault;
use crate::store::client::Condition;
use crate::store::{PutOutcome, Store, StoreError};

/// How long a lease holds without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(60);
/// How often it is renewed.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);

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
}

fn body(record: &LeaseRecord) -> bytes::Bytes {
    serde_json::to_vec(record).unwrap_or_default().into()
}

fn parse(key: &ObjectKey, json: &[u8]) -> Result<LeaseRecord, LeaseError> {
    serde_json::from_slice(json).map_err(|source| LeaseError::Malformed { key: key.to_string(), source })
}

impl Store {
    /// Takes the lease, if it is free, released or expired.
    pub async fn acquire_lease(
        &self,
        key: ObjectKey,
        backup_id: BackupId,
        event_key: &str,
        request_id: &str,
    ) -> Result<Acquired, LeaseError> {
        let now = Timestamp::now();
        let record = LeaseRecord {
            state: LeaseState::Held,
            backup_id,
            event_key: event_key.to_owned(),
            request_id: request_id.to_owned(),
            since: now,
            expires: now + LEASE_DURATION,
            upload: None,
        };
        // Creating it tells whether it exists without the right to list.
        if let PutOutcome::Written { etag } = self.put_if(&key, body(&record), Condition::Absent).await? {
            return Ok(Acquired::Lease { lease: Lease { key, record, etag }, left_over: None });
        }
        let Some((json, etag)) = self.get(&key).await? else { return Err(LeaseError::Lost { key: key.to_string() }) };
        let present = parse(&key, &json)?;
        if present.state == LeaseState::Held && present.expires > now {
            return Ok(Acquired::HeldBy(present));
        }
        match self.put_if(&key, body(&record), Condition::Etag(&etag)).await? {
            PutOutcome::Written { etag } => {
                Ok(Acquired::Lease { lease: Lease { key, record, etag }, left_over: present.upload })
            }
            PutOutcome::Refused => match self.get(&key).await? {
                Some((json, _)) => Ok(Acquired::HeldBy(parse(&key, &json)?)),
                None => Err(LeaseError::Lost { key: key.to_string() }),
            },
        }
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

    /// Writes down (or takes back) what a successor would have to abort.
    pub async fn set_upload(&mut self, store: &Store, upload: Option<UploadRecord>) -> Result<(), LeaseError> {
        self.record.upload = upload;
        self.renew(store).await
    }

    pub async fn release(mut self, store: &Store) -> Result<(), LeaseError> {
        self.record.state = LeaseState::Released;
        self.write(store).await
    }

    async fn write(&mut self, store: &Store) -> Result<(), LeaseError> {
        match store.put_if(&self.key, body(&self.record), Condition::Etag(&self.etag)).await? {
            PutOutcome::Written { etag } => {
                self.etag = etag;
                Ok(())
            }
            PutOutcome::Refused => Err(LeaseError::Lost { key: self.key.to_string() }),
        }
    }
}

impl From<LeaseError> for Fault {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => error.into(),
            LeaseError::Lost { .. } => Self::from_error("lease-lost", &error),
            LeaseError::Malformed { .. } => {
                Self::from_error("lease-unreadable", &error).hint("delete the object when no export runs")
            }
        }
    }
}
