//! What there is behind the endpoint, and what is scripted about it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::files::ExportTarget;
use super::server::{ACCOUNT_ID, REGION};

/// Tasks of an account that may be under way at a time.
pub(super) const TASK_QUOTA: usize = 5;

/// A snapshot of an instance or of a cluster.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: String,
    /// The instance or cluster it is of.
    pub server: String,
    pub is_cluster: bool,
    pub automated: bool,
    pub created: String,
    pub engine: String,
    pub engine_version: String,
    /// Of a cluster's: `provisioned`, or `serverless` for Aurora Serverless v1.
    pub engine_mode: String,
    pub encrypted: bool,
    pub kms_key_id: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// Looks for which it is still `creating`.
    pub creating: u32,
    /// Instead of `available`.
    pub status: Option<String>,
}

impl Snapshot {
    pub fn manual(id: &str, server: &str, created: &str) -> Self {
        Self {
            id: id.into(),
            server: server.into(),
            is_cluster: false,
            automated: false,
            created: created.into(),
            engine: "postgres".into(),
            engine_version: "16.4".into(),
            engine_mode: "provisioned".into(),
            encrypted: true,
            kms_key_id: Some(format!("arn:aws:kms:{REGION}:{ACCOUNT_ID}:key/storage")),
            tags: BTreeMap::new(),
            creating: 0,
            status: None,
        }
    }

    pub fn automated(id: &str, server: &str, created: &str) -> Self {
        Self { automated: true, ..Self::manual(id, server, created) }
    }

    pub(super) fn snapshot_type(&self) -> &'static str {
        match self.id.starts_with("awsbackup:") {
            true => "awsbackup",
            false if self.automated => "automated",
            false => "manual",
        }
    }

    /// The same of an Aurora cluster.
    #[must_use]
    pub fn of_cluster(mut self) -> Self {
        self.is_cluster = true;
        self.engine = "aurora-postgresql".into();
        self
    }

    pub fn arn(&self) -> String {
        let resource = if self.is_cluster { "cluster-snapshot" } else { "snapshot" };
        format!("arn:aws:rds:{REGION}:{ACCOUNT_ID}:{resource}:{}", self.id)
    }

    pub(super) fn status(&self) -> &str {
        if self.creating > 0 { "creating" } else { self.status.as_deref().unwrap_or("available") }
    }
}

/// An instance or a cluster.
#[derive(Debug, Clone)]
pub struct Server {
    pub id: String,
    pub is_cluster: bool,
    pub engine: String,
    pub engine_version: String,
    pub class: String,
    /// Of an instance: the cluster it is in.
    pub cluster: Option<String>,
    pub subnet_group: Option<String>,
    pub parameter_group: Option<String>,
    pub iam_auth: bool,
    /// Of a cluster of Aurora Serverless v2: the fewest and the most ACUs, as they were written.
    pub acus: Option<(String, String)>,
    pub security_groups: Vec<String>,
    pub tags: BTreeMap<String, String>,
    pub earliest_restorable: String,
    pub latest_restorable: String,
    /// Looks for which it is still `creating`.
    pub creating: u32,
    /// Instead of `available`.
    pub status: Option<String>,
    pub host: String,
    pub port: u16,
}

impl Server {
    pub fn instance(id: &str) -> Self {
        Self {
            id: id.into(),
            is_cluster: false,
            engine: "postgres".into(),
            engine_version: "16.4".into(),
            class: "db.t4g.medium".into(),
            cluster: None,
            subnet_group: Some("default".into()),
            parameter_group: None,
            iam_auth: false,
            acus: None,
            security_groups: vec!["sg-1".into()],
            tags: BTreeMap::new(),
            earliest_restorable: "2025-06-14T02:00:00Z".into(),
            latest_restorable: "2025-06-21T14:25:00Z".into(),
            creating: 0,
            status: None,
            host: format!("{id}.abc.{REGION}.rds.amazonaws.com"),
            port: 5432,
        }
    }

    pub fn cluster(id: &str) -> Self {
        Self { is_cluster: true, engine: "aurora-postgresql".into(), ..Self::instance(id) }
    }

    pub fn arn(&self) -> String {
        let resource = if self.is_cluster { "cluster" } else { "db" };
        format!("arn:aws:rds:{REGION}:{ACCOUNT_ID}:{resource}:{}", self.id)
    }

    pub(super) fn status(&self) -> &str {
        if self.creating > 0 { "creating" } else { self.status.as_deref().unwrap_or("available") }
    }
}

/// One answer to a look at an export task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub status: String,
    pub percent: u8,
    pub failure_cause: Option<String>,
    pub warning: Option<String>,
}

impl Step {
    pub fn new(status: &str, percent: u8) -> Self {
        Self { status: status.into(), percent, failure_cause: None, warning: None }
    }

    pub fn failed(cause: &str) -> Self {
        Self { failure_cause: Some(cause.into()), ..Self::new("FAILED", 0) }
    }

    #[must_use]
    pub fn warning(mut self, text: &str) -> Self {
        self.warning = Some(text.into());
        self
    }
}

/// What a finished export says of one table, and the files it writes.
#[derive(Debug, Clone)]
pub struct ExportedTable {
    /// `database.schema.table`.
    pub target: String,
    pub status: String,
    pub size_gb: f64,
    pub warning: Option<String>,
    /// Names below the table's folder, and their content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl ExportedTable {
    pub fn complete(target: &str, bytes: usize) -> Self {
        let file = ("1/part-00000-6ab7ad3a-8b5c-4f0c-9b2f-000000000000-c000.gz.parquet".to_owned(), vec![b'P'; bytes]);
        let files = vec![file, ("1/_SUCCESS".to_owned(), Vec::new())];
        Self { target: target.into(), status: "COMPLETE".into(), size_gb: bytes as f64 / 1e9, warning: None, files }
    }

    pub fn failed(target: &str, warning: &str) -> Self {
        Self { status: "FAILED".into(), warning: Some(warning.into()), files: Vec::new(), ..Self::complete(target, 0) }
    }
}

/// The looks at a task in their order; the last one stays.
#[derive(Debug, Clone)]
pub struct Course {
    pub steps: Vec<Step>,
    pub tables: Vec<ExportedTable>,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            steps: vec![Step::new("STARTING", 0), Step::new("IN_PROGRESS", 40), Step::new("COMPLETE", 100)],
            tables: vec![
                ExportedTable::complete("shop.public.orders", 3_000),
                ExportedTable::complete("shop.public.customers", 1_200),
            ],
        }
    }
}

#[derive(Debug, Clone)]
pub struct Task {
    pub id: String,
    pub source_arn: String,
    pub bucket: String,
    pub prefix: String,
    pub role_arn: String,
    pub kms_key_id: String,
    pub only: Vec<String>,
    pub course: Course,
    /// Looks so far.
    pub looks: usize,
    pub(super) written: bool,
}

impl Task {
    /// What the last look has shown.
    pub fn step(&self) -> &Step {
        let last = self.course.steps.len() - 1;
        &self.course.steps[self.looks.saturating_sub(1).min(last)]
    }

    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.step().status.to_ascii_uppercase().as_str(), "COMPLETE" | "FAILED" | "CANCELED")
    }
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub action: String,
    pub parameters: BTreeMap<String, String>,
}

/// An error that is answered instead, so many times.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub action: String,
    pub status: u16,
    pub code: String,
    pub message: String,
    pub times: u32,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub snapshots: Vec<Snapshot>,
    pub servers: Vec<Server>,
    pub tasks: Vec<Task>,
    /// Of the tasks to come, in their order; the default one after.
    pub courses: VecDeque<Course>,
    pub planned: Vec<Planned>,
    /// Every action, unless some are named.
    pub allowed: Option<BTreeSet<String>>,
    pub calls: Vec<Call>,
    /// Looks for which what is made is `creating`.
    pub creating: u32,
    pub page_size: Option<usize>,
    pub missing_roles: BTreeSet<String>,
    pub disabled_keys: BTreeSet<String>,
    pub target: Option<ExportTarget>,
    pub turn: std::sync::Arc<tokio::sync::Mutex<()>>,
}
