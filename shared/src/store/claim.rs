//! Who has a backup id, and which an event has: what lies under `runs/ids/` and `runs/events/`, as every function writes it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::{BackupId, ObjectKey};
use crate::fault::Fault;

/// Ids that may be taken by other runs of the same second.
pub const MAX_ID_STEPS: usize = 120;

#[derive(Debug, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// The same for every delivery of one event.
    pub event_key: String,
    pub backup_id: BackupId,
    /// Invocation and time: no two deliveries write the same, and so each knows its own write again.
    claimed_by: String,
    claimed_at: Timestamp,
}

impl ClaimRecord {
    /// `request_id`: Lambda's, of the invocation that claims.
    pub fn new(event_key: &str, backup_id: BackupId, request_id: &str) -> Self {
        let (event_key, claimed_by) = (event_key.to_owned(), request_id.to_owned());
        Self { event_key, backup_id, claimed_by, claimed_at: Timestamp::now() }
    }

    /// As it is stored: JSON.
    pub fn render(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// # Errors
    /// `claim-unreadable`, with the object's key.
    pub fn parse(key: &ObjectKey, json: &[u8]) -> Result<Self, Fault> {
        serde_json::from_slice(json)
            .map_err(|error| Fault::from_error("claim-unreadable", &error).with_context(&key.to_string()))
    }
}

/// Where the id of an event is written down.
pub fn event_object(event_key: &str) -> ObjectKey {
    ObjectKey::Event(event_digest(event_key))
}

/// What names an object that is about an event: an event key may be long, and hold anything.
pub fn event_digest(event_key: &str) -> String {
    hex::encode(&Sha256::digest(event_key.as_bytes())[..16])
}
