//! Settings of `retention`.

use std::time::Duration;

use jiff::SignedDuration;

use crate::config::common::{
    DatabaseConfig, Deployment, NotifyConfig, StoreConfig, deployment, optional_database_config,
};
use crate::config::reader::{ConfigError, Reader};
use crate::config::restore::system_identifier;
use crate::config::settings;
use crate::config::snapshot_export::{rds_sources, snapshot_name_prefix};
use crate::domain::rds::ServerId;
use crate::domain::{Environment, TablePattern};
use crate::plan::retention::catalog::Thresholds;
use crate::plan::retention::policy::Policy;

settings! { RETENTION_SETTINGS {
    RETENTION_POLICY = "RETENTION_POLICY", r#"{"rules":[{"purposes":["testing"],"keep_within_days":7},{"keep_last":30}]}"#, "What is kept, as JSON (docs/retention.md).";
    RETENTION_ENVIRONMENTS = "RETENTION_ENVIRONMENTS", "", "Comma-separated environments whose backups this function looks after, * for all in the bucket; not set: its own.";
    ANOMALY_ROWS_PERCENT = "ANOMALY_ROWS_PERCENT", "30", "A backup with so many per cent fewer rows than the one before it blocks expiry; 0: never.";
    ANOMALY_BYTES_PERCENT = "ANOMALY_BYTES_PERCENT", "50", "The same for bytes.";
    ANOMALY_VANISHED_TABLES = "ANOMALY_VANISHED_TABLES", "true", "true: so does a table that is no longer there.";
    SWEEP_AFTER_HOURS = "SWEEP_AFTER_HOURS", "24", "How old, at least, leftovers are that are swept: artifacts without a manifest, uploads, leases.";
    PRUNE_RDS_SNAPSHOTS = "PRUNE_RDS_SNAPSHOTS", "false", "true: manual RDS snapshots that Holdfast has taken of RDS_SOURCES expire by the same policy.";
    TARGET_SYSTEM_IDENTIFIER = "TARGET_SYSTEM_IDENTIFIER", "", "System identifier of the server whose databases are cleaned up, as for restores; not set: nothing on it is dropped.";
    MAINTENANCE_DATABASE = "MAINTENANCE_DATABASE", "postgres", "Database on that server from which others are dropped.";
    BACKUP_ROWS_KEEP_DAYS = "BACKUP_ROWS_KEEP_DAYS", "", "How long rows stay, in days, that table loads have put aside; not set: for ever.";
    BACKUP_ROWS_TABLES = "BACKUP_ROWS_TABLES", "*_backup", "Patterns of the tables that hold such rows; those without a column backup_timestamp are left alone.";
    RETENTION_CONCURRENCY = "RETENTION_CONCURRENCY", "32", "Requests to the store at a time, 1 to 256.";
    DEADLINE_MARGIN_SECONDS = "DEADLINE_MARGIN_SECONDS", "20", "How long before the function's timeout nothing new is begun.";
}}

/// What `RETENTION_ENVIRONMENTS` may say for all.
const ALL: &str = "*";

/// What restores and table loads have put aside in the database.
#[derive(Debug, Clone)]
pub struct CleanupConfig {
    /// Its database is the live one.
    pub database: DatabaseConfig,
    pub system_identifier: Option<String>,
    pub maintenance_database: String,
    /// `None`: rows stay.
    pub rows_kept: Option<SignedDuration>,
    pub rows_tables: Vec<TablePattern>,
}

#[derive(Debug, Clone)]
pub struct RetentionConfig {
    pub environment: Environment,
    pub app_name: String,
    pub store: StoreConfig,
    pub notify: NotifyConfig,
    pub policy: Policy,
    /// Empty: all.
    pub environments: Vec<Environment>,
    pub thresholds: Thresholds,
    pub sweep_after: SignedDuration,
    /// Not set: no RDS snapshot is looked at, and no right to is needed.
    pub snapshots: Option<SnapshotPruning>,
    /// `None`: no database is configured.
    pub cleanup: Option<CleanupConfig>,
    pub concurrency: usize,
    pub deadline_margin: Duration,
}

/// Which manual RDS snapshots are retention's to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPruning {
    pub sources: Vec<ServerId>,
    pub name_prefix: String,
}

impl RetentionConfig {
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, problems: Vec::new() };
        let Deployment { environment, app_name, store, notify } = deployment(&mut reader);
        let policy: Option<Policy> = reader.parsed(RETENTION_POLICY);
        let environments = match reader.optional(RETENTION_ENVIRONMENTS).as_deref() {
            None => environment.iter().cloned().collect(),
            Some(ALL) => Vec::new(),
            Some(list) => {
                let names: Vec<&str> = list.split(',').map(str::trim).collect();
                names.into_iter().filter_map(|name| reader.parse(RETENTION_ENVIRONMENTS, name)).collect()
            }
        };
        let thresholds = Thresholds {
            rows_percent: reader.number(ANOMALY_ROWS_PERCENT, 0..=100),
            bytes_percent: reader.number(ANOMALY_BYTES_PERCENT, 0..=100),
            vanished_tables: reader.flag(ANOMALY_VANISHED_TABLES),
        };
        // An export ends within a quarter of an hour, and an export task of RDS within a day.
        let sweep_hours = reader.number(SWEEP_AFTER_HOURS, 24..=8_760);
        let (sources, name_prefix) = (rds_sources(&mut reader), snapshot_name_prefix(&mut reader));
        let prune = reader.flag(PRUNE_RDS_SNAPSHOTS);
        if prune && sources.is_empty() {
            reader.problems.push(format!("{} needs RDS_SOURCES", PRUNE_RDS_SNAPSHOTS.name));
        }
        let snapshots = prune.then_some(SnapshotPruning { sources, name_prefix });
        let cleanup = cleanup_config(&mut reader);
        let concurrency = reader.number(RETENTION_CONCURRENCY, 1..=256) as usize;
        let deadline_margin = Duration::from_secs(reader.number(DEADLINE_MARGIN_SECONDS, 1..=600));
        match (environment, policy) {
            (Some(environment), Some(policy)) if reader.problems.is_empty() => Ok(Self {
                environment,
                app_name,
                store,
                notify,
                policy,
                environments,
                thresholds,
                sweep_after: SignedDuration::from_hours(sweep_hours as i64),
                snapshots,
                cleanup,
                concurrency,
                deadline_margin,
            }),
            _ => Err(ConfigError { problems: reader.problems }),
        }
    }
}

fn cleanup_config(reader: &mut Reader<'_>) -> Option<CleanupConfig> {
    let system_identifier = system_identifier(reader);
    let maintenance_database = reader.required(MAINTENANCE_DATABASE);
    let days = reader.optional(BACKUP_ROWS_KEEP_DAYS).map(|_| reader.number(BACKUP_ROWS_KEEP_DAYS, 1..=3_650));
    let rows_tables = reader.patterns(BACKUP_ROWS_TABLES);
    let database = optional_database_config(reader)?;
    let rows_kept = days.map(|days| SignedDuration::from_hours(24 * days as i64));
    Some(CleanupConfig { database, system_identifier, maintenance_database, rows_kept, rows_tables })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::retention::policy::DEFAULT_POLICY;

    fn config(pairs: &[(&str, &str)]) -> Result<RetentionConfig, ConfigError> {
        let all: Vec<(&str, &str)> = [&[("BUCKET", "b"), ("ENVIRONMENT", "production")], pairs].concat();
        RetentionConfig::from_lookup(&|name| all.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn retention_needs_a_bucket_and_an_environment() {
        let config = config(&[]).unwrap();
        assert_eq!(config.policy, DEFAULT_POLICY.parse().unwrap());
        assert_eq!(config.environments, ["production".parse().unwrap()]);
        assert!(config.cleanup.is_none());
        assert_eq!(config.thresholds, Thresholds { rows_percent: 30, bytes_percent: 50, vanished_tables: true });
    }

    #[test]
    fn retention_looks_after_others_only_if_told() {
        assert!(config(&[("RETENTION_ENVIRONMENTS", "*")]).unwrap().environments.is_empty());
        assert_eq!(config(&[("RETENTION_ENVIRONMENTS", "staging, qa")]).unwrap().environments.len(), 2);
    }

    #[test]
    fn snapshots_are_pruned_only_if_told_and_only_of_named_servers() {
        assert_eq!(config(&[("RDS_SOURCES", "shop")]).unwrap().snapshots, None);
        let told = config(&[("RDS_SOURCES", "shop"), ("PRUNE_RDS_SNAPSHOTS", "true")]).unwrap().snapshots.unwrap();
        assert_eq!((told.sources, told.name_prefix.as_str()), (vec!["shop".parse().unwrap()], "manual-export-"));
        let error = config(&[("PRUNE_RDS_SNAPSHOTS", "true")]).unwrap_err();
        assert!(error.to_string().contains("PRUNE_RDS_SNAPSHOTS needs RDS_SOURCES"), "{error}");
    }

    #[test]
    fn every_problem_of_retention_is_reported_at_once() {
        let error = config(&[
            ("RETENTION_POLICY", r#"{"rules":[{"keep_last":-1}]}"#),
            ("RETENTION_ENVIRONMENTS", "staging,*"),
            ("ANOMALY_ROWS_PERCENT", "-30"),
            ("ANOMALY_BYTES_PERCENT", "101"),
            ("ANOMALY_VANISHED_TABLES", "maybe"),
            ("SWEEP_AFTER_HOURS", "1"),
            ("RETENTION_CONCURRENCY", "0"),
            ("BACKUP_ROWS_KEEP_DAYS", "0"),
            ("TARGET_SYSTEM_IDENTIFIER", "db-1"),
            ("DATABASE_AUTH", "password"),
        ])
        .unwrap_err();
        for name in [
            "RETENTION_POLICY: rule 1: keep_last: -1",
            "RETENTION_ENVIRONMENTS",
            "ANOMALY_ROWS_PERCENT",
            "ANOMALY_BYTES_PERCENT",
            "ANOMALY_VANISHED_TABLES",
            "SWEEP_AFTER_HOURS",
            "RETENTION_CONCURRENCY",
            "BACKUP_ROWS_KEEP_DAYS: 0",
            "TARGET_SYSTEM_IDENTIFIER",
            "DATABASE_AUTH",
        ] {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name} in {error}");
        }
    }
}
