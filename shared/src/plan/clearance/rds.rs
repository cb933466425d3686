//! New RDS servers: what is known of the source, and what is against making one of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Refusal, Restore};
use crate::domain::rds::{ServerId, ServerKind, ServerSettings, Snapshot, is_server_id};

/// What a request may want otherwise than the source has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Wanted {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_group: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter_group: Option<String>,
}

/// The source as it stands, as far as a copy takes after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceServer {
    /// As RDS names engine and version; a cluster's instance is made with it.
    pub engine: String,
    pub settings: ServerSettings,
    /// `None` where automated backups are off, or RDS does not tell.
    pub earliest_restorable: Option<Timestamp>,
    pub latest_restorable: Option<Timestamp>,
}

/// What a new server would be made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RdsSource {
    /// What is configured; `None`: no server is made.
    pub configured: Option<ServerId>,
    /// `None` where it is gone.
    pub server: Option<SourceServer>,
    /// The one that was asked for by name or ARN, or the newest.
    pub snapshot: Option<Snapshot>,
    /// An ARN was asked for, and this account's snapshot of that name has another.
    pub foreign_arn: Option<String>,
    pub wanted: Wanted,
    /// What has the new server's name already, or that of the instance in a new cluster.
    pub taken: Option<String>,
}

impl RdsSource {
    /// What the new server will be: the source's, where the request wants nothing else.
    pub fn wanted(&self) -> Wanted {
        let source = self.server.clone().unwrap_or_default().settings;
        let wanted = self.wanted.clone();
        Wanted {
            instance_class: wanted.instance_class.or(source.instance_class),
            subnet_group: wanted.subnet_group.or(source.subnet_group),
            security_groups: if wanted.security_groups.is_empty() {
                source.security_groups
            } else {
                wanted.security_groups
            },
            parameter_group: wanted.parameter_group.or(source.parameter_group),
        }
    }
}

/// The instance that is put into a restored cluster: without one nothing answers.
pub fn instance_in(cluster: &str) -> String {
    format!("{cluster}-1")
}

pub(super) fn rds_refusals(restore: &Restore, source: &RdsSource) -> Vec<Refusal> {
    let Some(configured) = &source.configured else { return vec![Refusal::RdsNotConfigured] };
    let mut refusals = Vec::new();
    let name = restore.target();
    if !is_server_id(name) || !is_server_id(&instance_in(name)) {
        refusals.push(Refusal::NameInvalid { name: name.to_owned(), problem: "it is no identifier of RDS" });
    }
    if let Some(taken) = &source.taken {
        refusals.push(Refusal::RdsTargetExists { name: taken.clone() });
    }
    match restore {
        Restore::RdsSnapshot { snapshot, .. } => match (&source.snapshot, &source.foreign_arn) {
            (_, Some(arn)) => refusals.push(Refusal::RdsSnapshotForeign { snapshot: arn.clone() }),
            (None, None) => {
                let snapshot = snapshot.clone().unwrap_or_else(|| "latest".to_owned());
                refusals.push(Refusal::RdsSnapshotUnknown { snapshot, of: configured.to_string() });
            }
            (Some(found), None) if found.server != *configured => {
                refusals.push(Refusal::RdsSnapshotForeign { snapshot: found.id().to_owned() });
            }
            (Some(found), None) if !found.is_available() => refusals.push(Refusal::RdsSnapshotNotAvailable {
                snapshot: found.id().to_owned(),
                status: found.status.clone(),
            }),
            (Some(_), None) => {}
        },
        Restore::RdsPointInTime { moment, .. } => {
            let from = source.server.as_ref().and_then(|server| server.earliest_restorable);
            let until = source.server.as_ref().and_then(|server| server.latest_restorable);
            let outside = match moment {
                None => until.is_none(),
                Some(moment) => until.is_none_or(|until| *moment > until) || from.is_some_and(|from| *moment < from),
            };
            if source.server.is_some() && outside {
                refusals.push(Refusal::RdsMomentOutside { from, until });
            }
        }
        _ => {}
    }
    // An instance of no class cannot be put into a cluster.
    if configured.kind == ServerKind::Cluster && source.server.is_some() && source.wanted().instance_class.is_none() {
        refusals.push(Refusal::RdsClassUnknown);
    }
    // A snapshot outlives its source, and then says nothing of networks; logs do not.
    let placed = source.wanted.subnet_group.is_some()
        && !source.wanted.security_groups.is_empty()
        && (configured.kind == ServerKind::Instance || source.wanted.instance_class.is_some());
    if source.server.is_none() && !(placed && matches!(restore, Restore::RdsSnapshot { .. })) {
        refusals.push(Refusal::RdsSourceMissing { of: configured.to_string() });
    }
    refusals
}
