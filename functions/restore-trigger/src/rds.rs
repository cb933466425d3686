//! New RDS servers, of a snapshot or of a moment: looked up, begun, followed until they answer.

use std::time::{Duration, Instant};

use holdfast_shared::config::RestoreConfig;
use holdfast_shared::domain::rds::{ServerId, ServerKind, ServerSettings, Snapshot, SnapshotArn, SnapshotType};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::rds::{RdsSource, SourceServer, instance_in};
use holdfast_shared::plan::clearance::{Clearance, Restore, Source};
use holdfast_shared::rds::{Moment, NewServer, Rds, RdsError, RdsErrorKind, Server};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::request::{RestoreRequest, SourceChoice};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Which request has made a server: what is followed is our own.
const REQUEST_TAG: &str = "holdfast:request";
/// From these a server does not become available (Amazon RDS User Guide, "Viewing DB instance status").
const FAILED: [&str; 10] = [
    "failed",
    "restore-error",
    "migration-failed",
    "insufficient-capacity",
    "incompatible-create",
    "incompatible-restore",
    "incompatible-network",
    "incompatible-parameters",
    "incompatible-option-group",
    "inaccessible-encryption-credentials",
];

/// A server that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    pub server: ServerId,
    /// What is put into a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InCluster>,
    /// For the receipt.
    pub mode: String,
    pub made_of: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InCluster {
    pub id: String,
    pub class: String,
}

/// How far it is.
pub enum Progress {
    Absent,
    /// What RDS says of it.
    Coming(String),
    Available(Value),
}

/// What the source and the new server's name are like now.
pub async fn look(
    config: &RestoreConfig,
    aws: &aws_config::SdkConfig,
    request: &RestoreRequest,
) -> Result<RdsSource, Fault> {
    let mut source = RdsSource { wanted: request.wanted.clone(), ..RdsSource::default() };
    let Some(configured) = &config.rds_source else { return Ok(source) };
    source.configured = Some(configured.clone());
    let rds = Rds::new(aws);
    if let Some(server) = rds.server(configured).await? {
        source.server = Some(described(&rds, server).await?);
    }
    if let SourceChoice::RdsSnapshot(named) = &request.source {
        match named.as_deref().map(|text| (text, text.parse::<SnapshotArn>())) {
            None => source.snapshot = newest(&rds, configured).await?,
            Some((id, Err(_))) => source.snapshot = rds.snapshot(configured.kind, id).await?,
            Some((text, Ok(arn))) => {
                source.snapshot = rds.snapshot(configured.kind, arn.id()).await?;
                if source.snapshot.as_ref().is_none_or(|found| found.arn != arn) {
                    source.foreign_arn = Some(text.to_owned());
                }
            }
        }
    }
    let id = request.instance.clone().unwrap_or_default().to_ascii_lowercase();
    let mut names = vec![ServerId { kind: configured.kind, id: id.clone() }];
    if configured.kind == ServerKind::Cluster {
        names.push(ServerId { kind: ServerKind::Instance, id: instance_in(&id) });
    }
    for name in names {
        if rds.server(&name).await?.is_some() {
            source.taken = Some(name.to_string());
        }
    }
    Ok(source)
}

async fn described(rds: &Rds, server: Server) -> Result<SourceServer, Fault> {
    let mut settings = server.settings;
    if let (None, Some(member)) = (&settings.instance_class, server.members.first()) {
        let member = ServerId { kind: ServerKind::Instance, id: member.clone() };
        settings.instance_class = rds.server(&member).await?.and_then(|member| member.settings.instance_class);
    }
    Ok(SourceServer {
        engine: server.engine,
        settings,
        earliest_restorable: server.earliest_restorable,
        latest_restorable: server.latest_restorable,
    })
}

/// Of those that are there whole, automated or not.
async fn newest(rds: &Rds, source: &ServerId) -> Result<Option<Snapshot>, RdsError> {
    let mut found = rds.snapshots(source, SnapshotType::Automated).await?;
    found.extend(rds.snapshots(source, SnapshotType::Manual).await?);
    Ok(found.into_iter().filter(Snapshot::is_available).max_by_key(|snapshot| snapshot.created))
}

/// What a clearance has RDS make; `None` for all that is not RDS's.
pub fn making(clearance: &Clearance) -> Option<Making> {
    let Source::Rds(source) = clearance.source() else { return None };
    let configured = source.configured.as_ref()?;
    let id = clearance.restore().target().to_ascii_lowercase();
    let instance = match configured.kind {
        ServerKind::Instance => None,
        ServerKind::Cluster => Some(InCluster { id: instance_in(&id), class: source.wanted().instance_class? }),
    };
    let made_of = match clearance.restore() {
        Restore::RdsPointInTime { moment, .. } => {
            let latest = source.server.as_ref().and_then(|server| server.latest_restorable);
            json!({"source": configured.to_string(), "moment": moment.or(latest)})
        }
        _ => json!({"source": configured.to_string(), "snapshot": source.snapshot.as_ref().map(Snapshot::id)}),
    };
    let server = ServerId { kind: configured.kind, id };
    Some(Making { server, instance, mode: clearance.restore().mode().to_owned(), made_of })
}

/// Has RDS begin, with the source's network and parameters. A server that this request has begun before is gone on with.
pub async fn begin(rds: &Rds, making: &Making, clearance: &Clearance, request_id: &str) -> Result<(), Fault> {
    let Source::Rds(source) = clearance.source() else { return Err(Fault::new("internal", "no server of RDS")) };
    let (Some(configured), wanted) = (&source.configured, source.wanted()) else {
        return Err(Fault::new("internal", "cleared without a source"));
    };
    let mut settings = ServerSettings {
        instance_class: wanted.instance_class,
        subnet_group: wanted.subnet_group,
        security_groups: wanted.security_groups,
        parameter_group: wanted.parameter_group,
        ..source.server.clone().unwrap_or_default().settings
    };
    settings.tags.retain(|key, _| !key.starts_with("aws:"));
    settings.tags.insert("holdfast:environment".to_owned(), clearance.environment().to_string());
    settings.tags.insert("holdfast:restored-from".to_owned(), configured.to_string());
    settings.tags.insert(REQUEST_TAG.to_owned(), request_id.to_owned());
    let new = NewServer { id: making.server.id.clone(), settings };
    let begun = match (clearance.restore(), &source.snapshot) {
        (Restore::RdsSnapshot { .. }, Some(snapshot)) => rds.restore_snapshot(snapshot, &new).await,
        (Restore::RdsPointInTime { moment, .. }, _) => {
            let at = moment.map_or(Moment::Latest, Moment::At);
            rds.restore_point_in_time(configured, at, &new).await
        }
        _ => return Err(Fault::new("internal", "cleared without a snapshot")),
    };
    match begun {
        // The answer to an earlier attempt was lost: whose it is shows when it is looked at.
        Err(error) if error.kind == RdsErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Looks until the server is available, or the time is over.
pub async fn follow(rds: &Rds, making: &Making, request_id: &str, until: Instant) -> Result<Progress, Fault> {
    let mut pause = FIRST_PAUSE;
    loop {
        let progress = step(rds, making, request_id).await?;
        if matches!(progress, Progress::Available(_)) || Instant::now() + pause >= until {
            return Ok(progress);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One look; a cluster that is there gets its instance.
pub async fn step(rds: &Rds, making: &Making, request_id: &str) -> Result<Progress, Fault> {
    match attempt(rds, making, request_id).await {
        Ok(progress) => Ok(progress),
        Err(Problem::Final(fault)) => Err(fault),
        // What is being made is made, whether RDS answers now or not.
        Err(Problem::Rds(error)) if matches!(error.kind, RdsErrorKind::Throttled | RdsErrorKind::Unavailable) => {
            tracing::warn!(%error, "RDS does not say how far the server is");
            Ok(Progress::Coming("not told".to_owned()))
        }
        Err(Problem::Rds(error)) => Err(error.into()),
    }
}

enum Problem {
    Final(Fault),
    Rds(RdsError),
}

impl From<RdsError> for Problem {
    fn from(error: RdsError) -> Self {
        Self::Rds(error)
    }
}

async fn attempt(rds: &Rds, making: &Making, request_id: &str) -> Result<Progress, Problem> {
    let Some(server) = rds.server(&making.server).await? else { return Ok(Progress::Absent) };
    if server.settings.tags.get(REQUEST_TAG).map(String::as_str) != Some(request_id) {
        let message = format!("{} was not made by this request", making.server);
        return Err(Problem::Final(Fault::new("restore-rds-target-exists", message).hint("give another instance")));
    }
    if let Some(status) = coming(making, &making.server, &server)? {
        return Ok(Progress::Coming(status));
    }
    if let Some(instance) = &making.instance {
        let id = ServerId { kind: ServerKind::Instance, id: instance.id.clone() };
        let Some(found) = rds.server(&id).await? else {
            let (cluster, tags) = (&making.server.id, &server.settings.tags);
            let made =
                rds.create_instance_in_cluster(cluster, &instance.id, &instance.class, &server.engine, tags).await;
            return match made {
                Err(error) if error.kind != RdsErrorKind::AlreadyExists => Err(error.into()),
                _ => Ok(Progress::Coming("its instance is begun".to_owned())),
            };
        };
        if found.cluster.as_deref() != Some(making.server.id.as_str()) {
            let message = format!("{} is an instance of something else", instance.id);
            return Err(Problem::Final(Fault::new("restore-rds-target-exists", message).hint("give another instance")));
        }
        if let Some(status) = coming(making, &id, &found)? {
            return Ok(Progress::Coming(format!("its instance is {status}")));
        }
    }
    Ok(Progress::Available(json!({
        "status": "available",
        "mode": making.mode,
        "kind": making.server.kind,
        "id": making.server.id,
        "arn": server.arn,
        "endpoint": {"address": server.endpoint, "port": server.settings.port},
        "instance": making.instance.as_ref().map(|instance| &instance.id),
        "engine": server.engine,
        "engine_version": server.engine_version,
        "made_of": making.made_of,
        "next": "connect to the endpoint; nothing that existed was changed, and the server is yours to delete",
    })))
}

/// Its status while it is not available; an error where it will not be.
fn coming(making: &Making, id: &ServerId, server: &Server) -> Result<Option<String>, Problem> {
    if server.is_available() && server.endpoint.is_some() {
        return Ok(None);
    }
    if FAILED.contains(&server.status.as_str()) {
        return Err(Problem::Final(failed(making, &format!("is {}: {id} will not be available", server.status))));
    }
    Ok(Some(server.status.clone()))
}

pub fn failed(making: &Making, what: &str) -> Fault {
    Fault::new("restore-rds-failed", format!("{} {what}", making.server))
        .hint("the events of the server in RDS say why; delete it")
}

/// The answer while RDS is at it.
pub fn waits(making: &Making, request_id: &str, status: &str) -> Value {
    json!({
        "status": "waiting",
        "request_id": request_id,
        "mode": making.mode,
        "kind": making.server.kind,
        "id": making.server.id,
        "rds_status": status,
        "made_of": making.made_of,
        "continues": "by itself, at the next poll after RDS has made it available",
    })
}
