//! New servers: out of a snapshot, or of a point in time.

use std::collections::BTreeMap;

use aws_sdk_rds::types::{ServerlessV2ScalingConfiguration, ServerlessV2ScalingConfigurationInfo, Tag};
use jiff::Timestamp;

use crate::domain::rds::{Scaling, ServerId, ServerKind, ServerSettings, Snapshot};
use crate::rds::client::moment;
use crate::rds::{Rds, RdsError, RdsErrorKind};

/// What a new server is to be. What is not set is RDS's default, not the source's: RDS carries over neither subnet
/// group nor security groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewServer {
    pub id: String,
    pub settings: ServerSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Latest,
    At(Timestamp),
}

/// An instance or a cluster as RDS describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub server: ServerId,
    pub arn: String,
    /// `creating`, `available`, …
    pub status: String,
    pub endpoint: Option<String>,
    pub engine: String,
    pub engine_version: String,
    pub settings: ServerSettings,
    /// The points in time that it can be restored to; a cluster tells both ends, an instance the latest.
    pub earliest_restorable: Option<Timestamp>,
    pub latest_restorable: Option<Timestamp>,
    /// A cluster's instances.
    pub members: Vec<String>,
    /// The cluster that an instance is in.
    pub cluster: Option<String>,
}

impl Server {
    pub fn is_available(&self) -> bool {
        self.status.eq_ignore_ascii_case("available")
    }
}

impl Rds {
    /// One server; `None` where there is none.
    pub async fn server(&self, server: &ServerId) -> Result<Option<Server>, RdsError> {
        let found = match server.kind {
            ServerKind::Instance => {
                let request = self.client.describe_db_instances().db_instance_identifier(&server.id);
                let output = self.call("DescribeDBInstances", &server.id, || request.clone().send()).await;
                output.map(|output| output.db_instances().first().map(instance))
            }
            ServerKind::Cluster => {
                let request = self.client.describe_db_clusters().db_cluster_identifier(&server.id);
                let output = self.call("DescribeDBClusters", &server.id, || request.clone().send()).await;
                output.map(|output| output.db_clusters().first().map(cluster))
            }
        };
        match found {
            Err(error) if error.kind == RdsErrorKind::NotFound => Ok(None),
            result => result,
        }
    }

    /// Begins a server out of a snapshot: an instance of an instance's, a cluster, without instances yet, of a cluster's.
    pub async fn restore_snapshot(&self, snapshot: &Snapshot, new: &NewServer) -> Result<(), RdsError> {
        let settings = &new.settings;
        let (groups, tags) = (groups(settings), tags(&settings.tags));
        match snapshot.server.kind {
            ServerKind::Instance => {
                let request = self
                    .client
                    .restore_db_instance_from_db_snapshot()
                    .db_instance_identifier(&new.id)
                    .db_snapshot_identifier(snapshot.id())
                    .publicly_accessible(false)
                    .deletion_protection(settings.deletion_protection)
                    .enable_iam_database_authentication(settings.iam_auth)
                    .copy_tags_to_snapshot(true)
                    .set_db_instance_class(settings.instance_class.clone())
                    .set_db_subnet_group_name(settings.subnet_group.clone())
                    .set_db_parameter_group_name(settings.parameter_group.clone())
                    .set_port(settings.port.map(i32::from))
                    .set_vpc_security_group_ids(groups)
                    .set_tags(tags);
                self.call("RestoreDBInstanceFromDBSnapshot", &new.id, || request.clone().send()).await.map(|_| ())
            }
            ServerKind::Cluster => {
                let request = self
                    .client
                    .restore_db_cluster_from_snapshot()
                    .db_cluster_identifier(&new.id)
                    .snapshot_identifier(snapshot.id())
                    .engine(&snapshot.engine)
                    .engine_version(&snapshot.engine_version)
                    .deletion_protection(settings.deletion_protection)
                    .enable_iam_database_authentication(settings.iam_auth)
                    .copy_tags_to_snapshot(true)
                    .set_db_subnet_group_name(settings.subnet_group.clone())
                    .set_db_cluster_parameter_group_name(settings.parameter_group.clone())
                    .set_serverless_v2_scaling_configuration(settings.scaling.map(scaling))
                    .set_port(settings.port.map(i32::from))
                    .set_vpc_security_group_ids(groups)
                    .set_tags(tags);
                self.call("RestoreDBClusterFromSnapshot", &new.id, || request.clone().send()).await.map(|_| ())
            }
        }
    }

    /// Begins a server as the source was at a moment.
    pub async fn restore_point_in_time(&self, source: &ServerId, at: Moment, new: &NewServer) -> Result<(), RdsError> {
        let settings = &new.settings;
        let (groups, tags) = (groups(settings), tags(&settings.tags));
        let time = match at {
            Moment::Latest => None,
            Moment::At(time) => Some(aws_sdk_rds::primitives::DateTime::from_secs(time.as_second())),
        };
        let latest = (at == Moment::Latest).then_some(true);
        match source.kind {
            ServerKind::Instance => {
                let request = self
                    .client
                    .restore_db_instance_to_point_in_time()
                    .source_db_instance_identifier(&source.id)
                    .target_db_instance_identifier(&new.id)
                    .set_restore_time(time)
                    .set_use_latest_restorable_time(latest)
                    .publicly_accessible(false)
                    .deletion_protection(settings.deletion_protection)
                    .enable_iam_database_authentication(settings.iam_auth)
                    .copy_tags_to_snapshot(true)
                    .set_db_instance_class(settings.instance_class.clone())
                    .set_db_subnet_group_name(settings.subnet_group.clone())
                    .set_db_parameter_group_name(settings.parameter_group.clone())
                    .set_port(settings.port.map(i32::from))
                    .set_vpc_security_group_ids(groups)
                    .set_tags(tags);
                self.call("RestoreDBInstanceToPointInTime", &new.id, || request.clone().send()).await.map(|_| ())
            }
            ServerKind::Cluster => {
                let request = self
                    .client
                    .restore_db_cluster_to_point_in_time()
                    .source_db_cluster_identifier(&source.id)
                    .db_cluster_identifier(&new.id)
                    .set_restore_to_time(time)
                    .set_use_latest_restorable_time(latest)
                    .deletion_protection(settings.deletion_protection)
                    .enable_iam_database_authentication(settings.iam_auth)
                    .copy_tags_to_snapshot(true)
                    .set_db_subnet_group_name(settings.subnet_group.clone())
                    .set_db_cluster_parameter_group_name(settings.parameter_group.clone())
                    .set_serverless_v2_scaling_configuration(settings.scaling.map(scaling))
                    .set_port(settings.port.map(i32::from))
                    .set_vpc_security_group_ids(groups)
                    .set_tags(tags);
                self.call("RestoreDBClusterToPointInTime", &new.id, || request.clone().send()).await.map(|_| ())
            }
        }
    }

    /// Begins an instance in a restored cluster: without one nothing answers at its endpoint.
    pub async fn create_instance_in_cluster(
        &self,
        cluster: &str,
        instance: &str,
        class: &str,
        engine: &str,
        server_tags: &BTreeMap<String, String>,
    ) -> Result<(), RdsError> {
        let request = self
            .client
            .create_db_instance()
            .db_cluster_identifier(cluster)
            .db_instance_identifier(instance)
            .db_instance_class(class)
            .engine(engine)
            .publicly_accessible(false)
            .set_tags(tags(server_tags));
        self.call("CreateDBInstance", instance, || request.clone().send()).await.map(|_| ())
    }
}

fn groups(settings: &ServerSettings) -> Option<Vec<String>> {
    (!settings.security_groups.is_empty()).then(|| settings.security_groups.clone())
}

fn tags(tags: &BTreeMap<String, String>) -> Option<Vec<Tag>> {
    let tags: Vec<Tag> = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
    (!tags.is_empty()).then_some(tags)
}

fn scaling(limits: Scaling) -> ServerlessV2ScalingConfiguration {
    let acus = |halves: u16| f64::from(halves) / 2.0;
    ServerlessV2ScalingConfiguration::builder()
        .min_capacity(acus(limits.min_half_acus))
        .max_capacity(acus(limits.max_half_acus))
        .build()
}

/// `None` where a limit is not told.
fn scaling_of(info: &ServerlessV2ScalingConfigurationInfo) -> Option<Scaling> {
    // Steps of a half, up to 256 (Amazon Aurora User Guide, "Setting the capacity range").
    let halves = |acus: f64| (acus * 2.0).round() as u16;
    Some(Scaling { min_half_acus: halves(info.min_capacity?), max_half_acus: halves(info.max_capacity?) })
}

fn described(tags: &[Tag]) -> BTreeMap<String, String> {
    let pairs = tags.iter().filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())));
    pairs.collect()
}

fn port(number: Option<i32>) -> Option<u16> {
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
}

fn instance(instance: &aws_sdk_rds::types::DbInstance) -> Server {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let endpoint = instance.endpoint();
    Server {
        server: ServerId {
            kind: ServerKind::Instance,
            id: text(instance.db_instance_identifier()).to_ascii_lowercase(),
        },
        arn: text(instance.db_instance_arn()),
        status: text(instance.db_instance_status()),
        endpoint: endpoint.and_then(|endpoint| endpoint.address()).map(str::to_owned),
        engine: text(instance.engine()),
        engine_version: text(instance.engine_version()),
        settings: ServerSettings {
            instance_class: instance.db_instance_class().map(str::to_owned),
            subnet_group: instance.db_subnet_group().and_then(|group| group.db_subnet_group_name()).map(str::to_owned),
            security_groups: security_groups(instance.vpc_security_groups()),
            parameter_group: instance
                .db_parameter_groups()
                .first()
                .and_then(|group| group.db_parameter_group_name())
                .map(str::to_owned),
            port: port(endpoint.and_then(aws_sdk_rds::types::Endpoint::port)),
            deletion_protection: instance.deletion_protection().unwrap_or_default(),
            iam_auth: instance.iam_database_authentication_enabled().unwrap_or_default(),
            scaling: None,
            tags: described(instance.tag_list()),
        },
        earliest_restorable: None,
        latest_restorable: moment(instance.latest_restorable_time()),
        members: Vec::new(),
        cluster: instance.db_cluster_identifier().map(str::to_owned),
    }
}

fn cluster(cluster: &aws_sdk_rds::types::DbCluster) -> Server {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let members = cluster.db_cluster_members().iter();
    Server {
        server: ServerId { kind: ServerKind::Cluster, id: text(cluster.db_cluster_identifier()).to_ascii_lowercase() },
        arn: text(cluster.db_cluster_arn()),
        status: text(cluster.status()),
        endpoint: cluster.endpoint().map(str::to_owned),
        engine: text(cluster.engine()),
        engine_version: text(cluster.engine_version()),
        settings: ServerSettings {
            instance_class: cluster.db_cluster_instance_class().map(str::to_owned),
            subnet_group: cluster.db_subnet_group().map(str::to_owned),
            security_groups: security_groups(cluster.vpc_security_groups()),
            parameter_group: cluster.db_cluster_parameter_group().map(str::to_owned),
            port: port(cluster.port()),
            deletion_protection: cluster.deletion_protection().unwrap_or_default(),
            iam_auth: cluster.iam_database_authentication_enabled().unwrap_or_default(),
            scaling: cluster.serverless_v2_scaling_configuration().and_then(scaling_of),
            tags: described(cluster.tag_list()),
        },
        earliest_restorable: moment(cluster.earliest_restorable_time()),
        latest_restorable: moment(cluster.latest_restorable_time()),
        members: members.filter_map(|member| member.db_instance_identifier().map(str::to_owned)).collect(),
        cluster: None,
    }
}

fn security_groups(groups: &[aws_sdk_rds::types::VpcSecurityGroupMembership]) -> Vec<String> {
    groups.iter().filter_map(|group| group.vpc_security_group_id().map(str::to_owned)).collect()
}
