//! A drill's end: the manifest says that the backup has been restored and proved, or that it cannot be.

use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Others write into a manifest, too: what they wrote meanwhile is read again.
const ATTEMPTS: u32 = 4;

/// Faults of the backup itself, whatever the target is like.
const OF_THE_BACKUP: [&str; 2] = ["backup-damaged", "backup-object-missing"];

/// Records what a drill has found, and leaves everything else as it is, also what this release does not know: `verified`, or,
/// where the backup is at fault, `drill_failed` in its place. A backup that is not verified is not "latest", no safety
/// backup, and not what retention counts on.
///
/// # Errors
/// `manifest-not-written`: the manifest is gone, or changes faster than it can be read.
pub async fn record(store: &Store, id: BackupId, found: Result<(), &Fault>, at: Timestamp) -> Result<(), Fault> {
    let failed = match found {
        Ok(()) => None,
        Err(fault) if OF_THE_BACKUP.contains(&fault.code) => Some(json!({"at": at, "code": fault.code})),
        Err(_) => return Ok(()),
    };
    let key = ObjectKey::Manifest(id);
    for _ in 0..ATTEMPTS {
        let Some((body, etag)) = store.get_present(&key).await? else { break };
        let mut manifest: Value =
            serde_json::from_slice(&body).map_err(|error| Fault::from_error("manifest-not-written", &error))?;
        // A tombstone stays one.
        if manifest["state"] != "complete" {
            break;
        }
        let Some(fields) = manifest.as_object_mut() else { break };
        match &failed {
            None => {
                fields.insert("verified".to_owned(), json!({"at": at, "by": "restore-drill"}));
                fields.remove("drill_failed");
            }
            Some(failed) => {
                fields.remove("verified");
                fields.insert("drill_failed".to_owned(), failed.clone());
            }
        }
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
        if let PutOutcome::Written { .. } = store.put_if(&key, text.into(), Condition::Etag(&etag)).await? {
            return Ok(());
        }
    }
    Err(Fault::new("manifest-not-written", format!("the drill's result could not be recorded in {key}")))
}
