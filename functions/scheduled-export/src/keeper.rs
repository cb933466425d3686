//! Keeps the run's lease while the run works, and writes down in it what a successor would have to abort.

use holdfast_shared::fault::Fault;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Lease, UploadRecord, renewals};
use tokio::sync::{mpsc, oneshot};

/// Asks for one write of the lease.
struct Entry {
    upload: Option<UploadRecord>,
    written: oneshot::Sender<()>,
}

/// What the run holds of its lease.
pub struct Ledger {
    entries: mpsc::Sender<Entry>,
}

/// The other end, for [`keep`].
pub struct Entries(mpsc::Receiver<Entry>);

pub fn ledger() -> (Ledger, Entries) {
    let (entries, receiver) = mpsc::channel(1);
    (Ledger { entries }, Entries(receiver))
}

impl Ledger {
    /// Renews the lease with this upload in it, or with none. Returns once that is written: the lease is this run's
    /// then. Does not return where it cannot be written, as [`keep`] ends the run for that reason.
    pub async fn record(&self, upload: Option<UploadRecord>) {
        let (written, done) = oneshot::channel();
        if self.entries.send(Entry { upload, written }).await.is_err() || done.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Renews the lease until it is lost; ends with the reason.
pub async fn keep(lease: &mut Lease, store: &Store, entries: &mut Entries) -> Fault {
    let mut interval = renewals().await;
    loop {
        tokio::select! {
            _ = interval.tick() => {
                if let Err(fault) = lease.keep_once(store).await {
                    return fault;
                }
            }
            Some(entry) = entries.0.recv() => {
                match lease.set_upload(store, entry.upload).await {
                    Ok(()) => {
                        let _ = entry.written.send(());
                    }
                    Err(error) => return error.into(),
                }
            }
        }
    }
}
