//! An approved restore whose dump is archived: S3 is asked for a copy, and the record says what is waited for.

use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::thaw::{Approval, COPY_DAYS};
use holdfast_shared::store::Store;
use holdfast_shared::store::thaw::Stored;
use jiff::{SignedDuration, SignedDurationRound, Timestamp, Unit};
use serde_json::{Value, json};

use crate::audit::{Archived, Audit, Wait};
use crate::handler::Function;
use crate::pins::HeldPin;
use crate::restore::{Ground, Job};
use crate::select::Dump;
use crate::waiting;

impl Function {
    /// Written down first, then asked for: whoever finds the record can go on from any moment of it.
    #[expect(clippy::too_many_arguments, reason = "what a restore holds, each used once")]
    pub async fn thaw(
        &self,
        approval: &Approval,
        dump: &Dump,
        stored: &Stored,
        job: &Job<'_>,
        audit: &mut Audit,
        pin: Option<&mut HeldPin>,
        source_store: &Store,
    ) -> Result<Value, Fault> {
        // A dump that has to be thawed again is no new approval.
        let (approved, approval_expires) = match &job.ground {
            Ground::Approved(before) => (before.wait.approved, before.wait.approval_expires),
            Ground::Passkey(_) => (approval.granted_at(), approval.expires()),
        };
        let wait = Wait {
            approved,
            approval_expires,
            expected_by: Timestamp::now() + approval.expected(),
            archived: Some(Archived {
                key: dump.key.clone(),
                version_id: dump.version_id.clone(),
                storage_class: stored.storage_class.clone(),
            }),
            rds: None,
        };
        let cleared = json!({
            "restore": approval.restore(),
            "options": approval.options(),
            "approved_at": approved,
        });
        tracing::info!(%cleared, "the restore is approved, and its dump is archived");
        if let Some(pin) = pin {
            pin.extend(approval_expires).await?;
        }
        audit
            .write(|record| {
                record.cleared = Some(cleared);
                record.waits_for = Some(wait.clone());
            })
            .await?;
        waiting::enter(&self.store, &audit.record).await?;
        let asked = source_store.thaw(approval, stored, &dump.key, dump.version_id.as_deref()).await;
        if let Err(error) = asked {
            job.waits_no_longer(self).await;
            return Err(error.into());
        }
        Ok(json!({
            "status": "thawing",
            "request_id": job.request_id,
            "mode": approval.restore().mode(),
            "target": approval.restore().target(),
            "backup_id": approval.source().manifest().map(|manifest| manifest.timestamp),
            "dump": {"key": dump.key, "version_id": dump.version_id, "storage_class": stored.storage_class},
            "tier": approval.options().tier,
            "thaws_within": in_words(approval.expected()),
            "expected_by": wait.expected_by,
            "approval_expires": approval_expires,
            "copy_kept_days": COPY_DAYS,
            "continues": "by itself, when S3 says that the dump has thawed, or at the next poll after that",
        }))
    }
}

impl Job<'_> {
    /// Its first invocation is over, and it waits for nothing. One that had waited may be tried again at the next poll,
    /// which finds it by its entry: whoever ends it empties that.
    pub async fn waits_no_longer(&self, function: &Function) {
        if matches!(self.ground, Ground::Passkey(_)) {
            waiting::leave(&function.store, &function.config.environment, self.request_id).await;
        }
    }
}

/// `5 hours`, `5 minutes`.
pub fn in_words(duration: SignedDuration) -> String {
    if duration < SignedDuration::from_hours(1) {
        return format!("{} minutes", duration.as_mins());
    }
    let rounded = duration.round(SignedDurationRound::new().smallest(Unit::Hour)).unwrap_or(duration);
    format!("{} hours", rounded.as_hours())
}
