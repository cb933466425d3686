//! A drill's end: the manifest says that the backup has been restored and proved.

use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Others write into a manifest, too: what they wrote meanwhile is read again.
const ATTEMPTS: u32 = 4;

/// Records `verified` and leaves everything else as it is, also what this release does not know.
///
/// # Errors
/// `manifest-not-written`: the manifest is gone, or changes faster than it can be read.
pub async fn record_verified(store: &Store, id: BackupId, at: Timestamp) -> Result<(), Fault> {
    let key = ObjectKey::Manifest(id);
    for _ in 0..ATTEMPTS {
        let Some((body, etag)) = store.get_present(&key).await? else { break };
        let mut manifest: Value =
            serde_json::from_slice(&body).map_err(|error| Fault::from_error("manifest-not-written", &error))?;
        // A tombstone stays one.
        if manifest["state"] != "complete" {
            break;
        }
        manifest["verified"] = json!({"at": at, "by": "restore-drill"});
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
        if let PutOutcome::Written { .. } = store.put_if(&key, text.into(), Condition::Etag(&etag)).await? {
            return Ok(());
        }
    }
    Err(Fault::new("manifest-not-written", format!("the drill's result could not be recorded in {key}")))
}
