//! What RDS calls things: ARNs, and a snapshot as it is described.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What is backed up, and what its snapshots are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    Instance,
    /// Aurora, or a Multi-AZ cluster.
    Cluster,
}

impl ServerKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Cluster => "cluster",
        }
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const OF_INSTANCE: &str = "snapshot";
const OF_CLUSTER: &str = "cluster-snapshot";

/// The ARN of an instance's or a cluster's snapshot.
/// Source: Amazon RDS User Guide, "Amazon Resource Names (ARNs) in Amazon RDS".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SnapshotArn {
    partition: String,
    region: String,
    account: String,
    kind: ServerKind,
    id: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is not the ARN of an RDS snapshot (arn:aws:rds:{{region}}:{{account}}:snapshot:… or …:cluster-snapshot:…)"
)]
pub struct SnapshotArnError {
    pub text: String,
}

impl SnapshotArn {
    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn account(&self) -> &str {
        &self.account
    }

    pub fn kind(&self) -> ServerKind {
        self.kind
    }

    /// The identifier; an automated snapshot's begins with `rds:`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for SnapshotArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = match self.kind {
            ServerKind::Instance => OF_INSTANCE,
            ServerKind::Cluster => OF_CLUSTER,
        };
        write!(f, "arn:{}:rds:{}:{}:{resource}:{}", self.partition, self.region, self.account, self.id)
    }
}

impl FromStr for SnapshotArn {
    type Err = SnapshotArnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SnapshotArnError { text: text.chars().take(200).collect() };
        // The identifier may hold a colon itself.
        let parts: Vec<&str> = text.splitn(7, ':').collect();
        let [arn, partition, service, region, account, resource, id] = parts[..] else { return Err(error()) };
        let kind = match resource {
            OF_INSTANCE => ServerKind::Instance,
            OF_CLUSTER => ServerKind::Cluster,
            _ => return Err(error()),
        };
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let account_valid = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let valid = arn == "arn" && service == "rds" && word(partition) && word(region) && account_valid;
        if !valid || !is_snapshot_id(id) {
            return Err(error());
        }
        let [partition, region, account, id] = [partition, region, account, id].map(str::to_owned);
        Ok(Self { partition, region, account, kind, id })
    }
}

impl From<SnapshotArn> for String {
    fn from(arn: SnapshotArn) -> Self {
        arn.to_string()
    }
}

impl TryFrom<String> for SnapshotArn {
    type Error = SnapshotArnError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A snapshot's identifier: letters, digits and hyphens, after `rds:` or `awsbackup:` for those taken by the services.
pub fn is_snapshot_id(text: &str) -> bool {
    let name = text.strip_prefix("rds:").or_else(|| text.strip_prefix("awsbackup:")).unwrap_or(text);
    is_rds_id(name, 255)
}

/// An instance's or a cluster's identifier.
pub fn is_server_id(text: &str) -> bool {
    is_rds_id(text, 63)
}

/// Source: Amazon RDS API Reference, CreateDBSnapshot and CreateDBInstance.
fn is_rds_id(text: &str, longest: usize) -> bool {
    text.len() <= longest
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.ends_with('-')
        && !text.contains("--")
}

/// A server that is configured: `shop-production`, or `cluster:shop-aurora`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId {
    pub kind: ServerKind,
    pub id: String,
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ServerKind::Instance => f.write_str(&self.id),
            ServerKind::Cluster => write!(f, "cluster:{}", self.id),
        }
    }
}

impl FromStr for ServerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, id) = match text.strip_prefix("cluster:") {
            Some(id) => (ServerKind::Cluster, id),
            None => (ServerKind::Instance, text),
        };
        if !is_server_id(id) {
            return Err(format!("{text:?} is not an RDS instance, or cluster:… for a cluster"));
        }
        Ok(Self { kind, id: id.to_ascii_lowercase() })
    }
}

/// Between how much a cluster of Aurora Serverless v2 scales, in halves of an ACU, the unit's smallest step.
/// Source: Amazon RDS API Reference, ServerlessV2ScalingConfiguration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scaling {
    pub min_half_acus: u16,
    pub max_half_acus: u16,
}

/// What a server is like beside its data, as far as another can be made like it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerSettings {
    /// Of an instance; of a cluster, of its first instance, where that is known.
    pub instance_class: Option<String>,
    pub subnet_group: Option<String>,
    pub security_groups: Vec<String>,
    /// An instance's parameter group, or a cluster's.
    pub parameter_group: Option<String>,
    pub port: Option<u16>,
    pub deletion_protection: bool,
    pub iam_auth: bool,
    /// Of a cluster with serverless instances: without it none can be made.
    pub scaling: Option<Scaling>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotType {
    Automated,
    Manual,
    /// Shared, public, or AWS Backup's.
    Other,
}

/// A snapshot as RDS describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub arn: SnapshotArn,
    pub server: ServerId,
    pub snapshot_type: SnapshotType,
    /// `available`, `creating`, …
    pub status: String,
    /// Not there while it is being created.
    pub created: Option<Timestamp>,
    pub engine: String,
    pub engine_version: String,
    /// Of a cluster's: `provisioned`, `serverless`, …
    pub engine_mode: Option<String>,
    pub encrypted: bool,
    pub kms_key_id: Option<String>,
    pub percent_progress: Option<u8>,
    pub tags: BTreeMap<String, String>,
}

impl Snapshot {
    pub fn id(&self) -> &str {
        self.arn.id()
    }

    pub fn is_available(&self) -> bool {
        self.status.eq_ignore_ascii_case("available")
    }
}

#[cfg(test)]
impl Snapshot {
    /// One of the instance `shop`, there whole.
    pub(crate) fn of_shop(id: &str, snapshot_type: SnapshotType) -> Self {
        Self {
            arn: format!("arn:aws:rds:eu-west-1:123456789012:snapshot:{id}").parse().unwrap(),
            server: ServerId { kind: ServerKind::Instance, id: "shop".to_owned() },
            snapshot_type,
            status: "available".to_owned(),
            created: None,
            engine: "postgres".to_owned(),
            engine_version: "16.4".to_owned(),
            engine_mode: None,
            encrypted: true,
            kms_key_id: None,
            percent_progress: Some(100),
            tags: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_are_read_and_rendered() {
        for (text, kind, id) in [
            (
                "arn:aws:rds:eu-west-1:123456789012:snapshot:rds:shop-2025-06-21-02-00",
                ServerKind::Instance,
                "rds:shop-2025-06-21-02-00",
            ),
            (
                "arn:aws-cn:rds:cn-north-1:123456789012:cluster-snapshot:manual-export-20250621-143000",
                ServerKind::Cluster,
                "manual-export-20250621-143000",
            ),
            ("arn:aws:rds:eu-west-1:123456789012:snapshot:awsbackup:job-1", ServerKind::Instance, "awsbackup:job-1"),
        ] {
            let arn: SnapshotArn = text.parse().unwrap();
            assert_eq!((arn.to_string().as_str(), arn.kind(), arn.id()), (text, kind, id));
        }
    }

    #[test]
    fn other_arns_and_hostile_names_are_refused() {
        for text in [
            "",
            "shop",
            "arn:aws:rds:eu-west-1:123456789012:db:shop",
            "arn:aws:rds:eu-west-1:123456789012:snapshot:",
            "arn:aws:rds:eu-west-1:12345678901:snapshot:x",
            "arn:aws:rds::123456789012:snapshot:x",
            "arn:aws:s3:eu-west-1:123456789012:snapshot:x",
            "arn:aws:rds:eu-west-1:123456789012:snapshot:../x",
            "arn:aws:rds:eu-west-1:123456789012:snapshot:a b",
            "arn:aws:rds:eu-west-1:123456789012:snapshot:a--b",
            "arn:aws:rds:eu-west-1:123456789012:snapshot:rds:rds:x",
        ] {
            assert!(text.parse::<SnapshotArn>().is_err(), "{text}");
        }
    }

    #[test]
    fn servers_are_instances_unless_they_are_called_clusters() {
        for (text, shown) in [("Shop-1", "shop-1"), ("cluster:shop", "cluster:shop")] {
            assert_eq!(text.parse::<ServerId>().unwrap().to_string(), shown);
        }
        for bad in ["", "cluster:", "1shop", "shop-", "a/b", "instance:shop", &"a".repeat(64)] {
            assert!(bad.parse::<ServerId>().is_err(), "{bad}");
        }
    }
}
