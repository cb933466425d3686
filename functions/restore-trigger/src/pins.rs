//! The pin of the backup that is read: retention leaves its data alone while it holds.
//!
//! It is written before the manifest is read for good, as [`holdfast_shared::domain::pin`] says.

use holdfast_shared::domain::{BackupId, ObjectKey, Pin};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;

const CONTEST_ROUNDS: usize = 3;

/// A pin in force. Dropped without [`HeldPin::release`] it ends at its time.
pub struct HeldPin {
    /// Sees the bucket from the backup's own prefix, where its environment's retention looks.
    store: Store,
    key: ObjectKey,
    pin: Pin,
    etag: String,
}

/// Pins a backup. A pin of the same request, of an attempt that died, is renewed.
pub async fn put(
    store: &Store,
    backup_id: BackupId,
    request_id: &str,
    purpose: &str,
    expires: Timestamp,
) -> Result<HeldPin, Fault> {
    let key = ObjectKey::Pin { backup_id, request_id: request_id.to_owned() };
    let pin = Pin {
        backup_id,
        request_id: request_id.to_owned(),
        purpose: purpose.to_owned(),
        expires: Some(expires),
        released: false,
    };
    for _ in 0..CONTEST_ROUNDS {
        let present = store.get(&key).await?;
        let condition = present.as_ref().map_or(Condition::Absent, |(_, etag)| Condition::Etag(etag));
        if let PutOutcome::Written { etag } = store.put_if(&key, body(&pin), condition).await? {
            return Ok(HeldPin { store: store.clone(), key, pin, etag });
        }
    }
    Err(lost(&key))
}

/// Ends the pin of a request that has ended, whoever holds it.
pub async fn release(store: &Store, backup_id: BackupId, request_id: &str) -> Result<(), Fault> {
    let key = ObjectKey::Pin { backup_id, request_id: request_id.to_owned() };
    let Some((json, etag)) = store.get(&key).await? else { return Ok(()) };
    match serde_json::from_slice::<Pin>(&json) {
        Ok(pin) if !pin.released => HeldPin { store: store.clone(), key, pin, etag }.release().await,
        // Retention keeps what it cannot read.
        _ => Ok(()),
    }
}

impl HeldPin {
    /// Holds it until another time: while an archived dump thaws, days.
    pub async fn extend(&mut self, expires: Timestamp) -> Result<(), Fault> {
        self.pin.expires = Some(expires);
        self.write().await
    }

    /// Ends it. There is no right to delete: the object stays, and says that it is released.
    pub async fn release(mut self) -> Result<(), Fault> {
        self.pin.released = true;
        self.write().await
    }

    async fn write(&mut self) -> Result<(), Fault> {
        match self.store.put_if(&self.key, body(&self.pin), Condition::Etag(&self.etag)).await? {
            PutOutcome::Written { etag } => {
                self.etag = etag;
                Ok(())
            }
            PutOutcome::Refused => Err(lost(&self.key)),
        }
    }
}

fn body(pin: &Pin) -> bytes::Bytes {
    serde_json::to_vec(pin).unwrap_or_default().into()
}

fn lost(key: &ObjectKey) -> Fault {
    Fault::new("restore-pin-lost", format!("{key} is being written by something else"))
}
