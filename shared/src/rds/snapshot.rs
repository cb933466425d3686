//! Snapshots: described, taken, deleted.

use std::collections::BTreeMap;

use aws_sdk_rds::types::{DbClusterSnapshot, DbSnapshot, Tag};

use crate::domain::rds::{ServerId, ServerKind, Snapshot, SnapshotArn, SnapshotType};
use crate::rds::client::{PAGE, moment};
use crate::rds::{Rds, RdsError, RdsErrorKind};

impl Rds {
    /// A server's snapshots of one type, in no order.
    ///
    /// # Errors
    /// [`RdsError`]; a server that does not exist has no snapshots.
    pub async fn snapshots(&self, server: &ServerId, snapshot_type: SnapshotType) -> Result<Vec<Snapshot>, RdsError> {
        let wanted = match snapshot_type {
            SnapshotType::Automated => Some("automated".to_owned()),
            SnapshotType::Manual => Some("manual".to_owned()),
            SnapshotType::Other => None,
        };
        let mut found = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let page = match server.kind {
                ServerKind::Instance => {
                    let request = self.client.describe_db_snapshots().db_instance_identifier(&server.id);
                    let request = request.set_snapshot_type(wanted.clone()).max_records(PAGE).set_marker(marker.take());
                    self.instance_snapshots(&server.id, request).await
                }
                ServerKind::Cluster => {
                    let request = self.client.describe_db_cluster_snapshots().db_cluster_identifier(&server.id);
                    let request = request.set_snapshot_type(wanted.clone()).max_records(PAGE).set_marker(marker.take());
                    self.cluster_snapshots(&server.id, request).await
                }
            };
            let (snapshots, next) = match page {
                Ok(page) => page,
                Err(error) if error.kind == RdsErrorKind::NotFound => return Ok(found),
                Err(error) => return Err(error),
            };
            found.extend(snapshots);
            match next {
                Some(next) => marker = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// One snapshot; `None` where there is none.
    pub async fn snapshot(&self, kind: ServerKind, id: &str) -> Result<Option<Snapshot>, RdsError> {
        let found = match kind {
            ServerKind::Instance => {
                self.instance_snapshots(id, self.client.describe_db_snapshots().db_snapshot_identifier(id)).await
            }
            ServerKind::Cluster => {
                let request = self.client.describe_db_cluster_snapshots().db_cluster_snapshot_identifier(id);
                self.cluster_snapshots(id, request).await
            }
        };
        match found {
            Ok((snapshots, _)) => Ok(snapshots.into_iter().find(|snapshot| snapshot.id().eq_ignore_ascii_case(id))),
            Err(error) if error.kind == RdsErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a manual snapshot. One of this identifier that is of the same server is the one that was asked for.
    pub async fn create_snapshot(
        &self,
        server: &ServerId,
        id: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Snapshot, RdsError> {
        let tags: Vec<Tag> = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let created = match server.kind {
            ServerKind::Instance => {
                const OPERATION: &str = "CreateDBSnapshot";
                let request = self.client.create_db_snapshot().db_instance_identifier(&server.id);
                let request = request.db_snapshot_identifier(id).set_tags(Some(tags));
                let output = self.call(OPERATION, id, || request.clone().send()).await;
                output.map(|output| output.db_snapshot.and_then(|snapshot| instance_snapshot(&snapshot)))
            }
            ServerKind::Cluster => {
                const OPERATION: &str = "CreateDBClusterSnapshot";
                let request = self.client.create_db_cluster_snapshot().db_cluster_identifier(&server.id);
                let request = request.db_cluster_snapshot_identifier(id).set_tags(Some(tags));
                let output = self.call(OPERATION, id, || request.clone().send()).await;
                output.map(|output| output.db_cluster_snapshot.and_then(|snapshot| cluster_snapshot(&snapshot)))
            }
        };
        match created {
            Ok(Some(snapshot)) => Ok(snapshot),
            Ok(None) => Err(RdsError::unexpected("CreateDBSnapshot", id, "the answer describes no snapshot")),
            Err(error) if error.kind == RdsErrorKind::AlreadyExists => match self.snapshot(server.kind, id).await? {
                Some(snapshot) if snapshot.server == *server => Ok(snapshot),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Deletes a manual snapshot; one that is gone is no error.
    pub async fn delete_snapshot(&self, arn: &SnapshotArn) -> Result<(), RdsError> {
        let deleted = match arn.kind() {
            ServerKind::Instance => {
                let request = self.client.delete_db_snapshot().db_snapshot_identifier(arn.id());
                self.call("DeleteDBSnapshot", arn.id(), || request.clone().send()).await.map(|_| ())
            }
            ServerKind::Cluster => {
                let request = self.client.delete_db_cluster_snapshot().db_cluster_snapshot_identifier(arn.id());
                self.call("DeleteDBClusterSnapshot", arn.id(), || request.clone().send()).await.map(|_| ())
            }
        };
        match deleted {
            Err(error) if error.kind == RdsErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    async fn instance_snapshots(
        &self,
        about: &str,
        request: aws_sdk_rds::operation::describe_db_snapshots::builders::DescribeDBSnapshotsFluentBuilder,
    ) -> Result<(Vec<Snapshot>, Option<String>), RdsError> {
        let page = self.call("DescribeDBSnapshots", about, || request.clone().send()).await?;
        Ok((page.db_snapshots().iter().filter_map(instance_snapshot).collect(), page.marker))
    }

    async fn cluster_snapshots(
        &self,
        about: &str,
        request: aws_sdk_rds::operation::describe_db_cluster_snapshots::builders::DescribeDBClusterSnapshotsFluentBuilder,
    ) -> Result<(Vec<Snapshot>, Option<String>), RdsError> {
        let page = self.call("DescribeDBClusterSnapshots", about, || request.clone().send()).await?;
        Ok((page.db_cluster_snapshots().iter().filter_map(cluster_snapshot).collect(), page.marker))
    }
}

/// `None` for what is described without an ARN or a server: it cannot be acted upon.
fn instance_snapshot(snapshot: &DbSnapshot) -> Option<Snapshot> {
    let server = ServerId { kind: ServerKind::Instance, id: snapshot.db_instance_identifier()?.to_ascii_lowercase() };
    Some(Snapshot {
        arn: snapshot.db_snapshot_arn()?.parse().ok()?,
        server,
        snapshot_type: snapshot_type(snapshot.snapshot_type()),
        status: snapshot.status().unwrap_or_default().to_owned(),
        created: moment(snapshot.snapshot_create_time()),
        engine: snapshot.engine().unwrap_or_default().to_owned(),
        engine_version: snapshot.engine_version().unwrap_or_default().to_owned(),
        engine_mode: None,
        encrypted: snapshot.encrypted().unwrap_or_default(),
        kms_key_id: snapshot.kms_key_id().map(str::to_owned),
        percent_progress: percent(snapshot.percent_progress()),
        tags: tags(snapshot.tag_list()),
    })
}

fn cluster_snapshot(snapshot: &DbClusterSnapshot) -> Option<Snapshot> {
    let server = ServerId { kind: ServerKind::Cluster, id: snapshot.db_cluster_identifier()?.to_ascii_lowercase() };
    Some(Snapshot {
        arn: snapshot.db_cluster_snapshot_arn()?.parse().ok()?,
        server,
        snapshot_type: snapshot_type(snapshot.snapshot_type()),
        status: snapshot.status().unwrap_or_default().to_owned(),
        created: moment(snapshot.snapshot_create_time()),
        engine: snapshot.engine().unwrap_or_default().to_owned(),
        engine_version: snapshot.engine_version().unwrap_or_default().to_owned(),
        engine_mode: snapshot.engine_mode().map(str::to_owned),
        encrypted: snapshot.storage_encrypted().unwrap_or_default(),
        kms_key_id: snapshot.kms_key_id().map(str::to_owned),
        percent_progress: percent(snapshot.percent_progress()),
        tags: tags(snapshot.tag_list()),
    })
}

fn snapshot_type(text: Option<&str>) -> SnapshotType {
    match text {
        Some("automated") => SnapshotType::Automated,
        Some("manual") => SnapshotType::Manual,
        _ => SnapshotType::Other,
    }
}

fn percent(number: Option<i32>) -> Option<u8> {
    number.map(|number| u8::try_from(number.clamp(0, 100)).unwrap_or_default())
}

fn tags(tags: &[Tag]) -> BTreeMap<String, String> {
    let pairs = tags.iter().filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())));
    pairs.collect()
}
