//! Manual RDS snapshots that exports have taken: looked at where it is configured, and deleted as planned.

use std::collections::BTreeMap;

use holdfast_shared::config::RetentionConfig;
use holdfast_shared::domain::rds::{Snapshot, SnapshotType};
use holdfast_shared::domain::{BackupId, Pin};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::retention::Plan;
use holdfast_shared::plan::retention::snapshots::{Customs, Decided, SnapshotPlan, held, plan_snapshots};
use holdfast_shared::rds::Rds;
use jiff::Timestamp;

use crate::carry_out::{Executor, Outcome};
use crate::observe::Observed;

/// What was seen in RDS.
pub enum Snapshots {
    NotConfigured,
    Seen { rds: Rds, plan: SnapshotPlan },
    Failed(Fault),
}

pub async fn look(
    config: &RetentionConfig,
    aws: &aws_config::SdkConfig,
    observed: &Observed,
    plan: &Plan,
    pins: &[Pin],
    now: Timestamp,
) -> Snapshots {
    let Some(pruning) = &config.snapshots else { return Snapshots::NotConfigured };
    let rds = Rds::new(aws);
    let mut found: Vec<Snapshot> = Vec::new();
    for server in &pruning.sources {
        match rds.snapshots(server, SnapshotType::Manual).await {
            Ok(snapshots) => found.extend(snapshots),
            Err(error) => return Snapshots::Failed(error.into()),
        }
    }
    let active = pins.iter().filter(|pin| pin.is_active(now));
    let pinned: BTreeMap<BackupId, String> = active.map(|pin| (pin.backup_id, pin.request_id.clone())).collect();
    let held = held(&observed.manifests, &observed.catalog);
    let block = plan.blocks.iter().find(|block| block.environment == config.environment);
    let unknown = observed.working.unreadable.then_some("the record of an export cannot be read");
    let customs = Customs {
        environment: &config.environment,
        sources: &pruning.sources,
        name_prefix: &pruning.name_prefix,
        pinned: &pinned,
        held: &held,
        working: &observed.working.ids,
        exported: &observed.working.snapshots,
        blocked: block.map(|block| block.kind.as_str()).or(unknown),
        now,
    };
    Snapshots::Seen { plan: plan_snapshots(&found, &config.policy, &customs), rds }
}

impl Executor<'_> {
    pub async fn prune(&self, rds: &Rds, plan: &SnapshotPlan, outcome: &mut Outcome) {
        for decided in &plan.delete {
            if self.is_late() {
                outcome.not_begun += 1;
                continue;
            }
            let id = decided.snapshot.id();
            match self.prune_one(rds, decided).await {
                Ok(None) => {
                    tracing::info!(snapshot = id, reason = decided.reason, "the snapshot is deleted");
                    outcome.snapshots_deleted.push(id.to_owned());
                }
                Ok(Some(why)) => outcome.postponed.push(format!("snapshot {id}: {why}")),
                Err(problem) => outcome.failures.push(format!("snapshot {id}: {problem}")),
            }
        }
    }

    /// `Some`: why it was left alone after all.
    async fn prune_one(&self, rds: &Rds, decided: &Decided) -> Result<Option<String>, String> {
        if let Some(by) = self.pinned(decided.id).await.map_err(|error| chain(&error))? {
            return Ok(Some(format!("it is pinned by {by}")));
        }
        let arn = &decided.snapshot.arn;
        // A snapshot of the same name may have taken the place of the one that was decided on.
        match rds.snapshot(arn.kind(), arn.id()).await.map_err(|error| chain(&error))? {
            None => return Ok(None),
            Some(present) if present != decided.snapshot => {
                return Ok(Some("it has changed since it was looked at".to_owned()));
            }
            Some(_) => {}
        }
        rds.delete_snapshot(arn).await.map_err(|error| chain(&error)).map(|()| None)
    }
}
