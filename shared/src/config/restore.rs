//! Settings of `restore-trigger`.

use std::time::Duration;

use crate::config::common::{
    DatabaseConfig, Deployment, NotifyConfig, StoreConfig, database_config, default_workers, deployment, memory_mb,
};
use crate::config::reader::{ConfigError, Reader};
use crate::config::settings;
use crate::domain::Environment;
use crate::domain::rds::ServerId;

settings! { RESTORE_SETTINGS {
    RESTORE_PASSKEY_SECRET_ARN = "RESTORE_PASSKEY_SECRET_ARN", "", "Secret with the argon2 hash of the restore passkey; not set: every restore but a drill is refused.";
    TARGET_SYSTEM_IDENTIFIER = "TARGET_SYSTEM_IDENTIFIER", "", "System identifier of the server that restores may write to; not set: they are refused, and the refusal names the server's.";
    SAFETY_BACKUP_MINUTES = "SAFETY_BACKUP_MINUTES", "5", "How old, at most, the backup of the target may be that a restore into existing data demands.";
    EXPORT_FUNCTION_NAME = "EXPORT_FUNCTION_NAME", "", "scheduled-export's name or ARN, for take_safety_backup; not set: safety backups are taken by hand.";
    MAINTENANCE_DATABASE = "MAINTENANCE_DATABASE", "postgres", "Database on the target server from which others are created and renamed.";
    RDS_SOURCE = "RDS_SOURCE", "", "RDS instance, or cluster:… for a cluster, that rds_snapshot and rds_point_in_time make new ones of; not set: they are refused.";
    DEADLINE_MARGIN_SECONDS = "DEADLINE_MARGIN_SECONDS", "20", "How long before the function's timeout an unfinished restore is given up.";
}}

#[derive(Debug, Clone)]
pub struct RestoreConfig {
    pub environment: Environment,
    pub app_name: String,
    pub store: StoreConfig,
    /// The target server; its database is the live one.
    pub database: DatabaseConfig,
    pub passkey_secret_arn: Option<String>,
    pub target_system_identifier: Option<String>,
    pub safety_backup_window: Duration,
    pub export_function: Option<String>,
    pub maintenance_database: String,
    /// What new servers are made of.
    pub rds_source: Option<ServerId>,
    pub notify: NotifyConfig,
    pub deadline_margin: Duration,
    /// Sessions at most; by the function's memory, with which its vCPUs come.
    pub workers: usize,
}

impl RestoreConfig {
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, problems: Vec::new() };
        let Deployment { environment, app_name, store, notify } = deployment(&mut reader);
        let identifier = system_identifier(&mut reader);
        let database = database_config(&mut reader);
        let safety_minutes = reader.number(SAFETY_BACKUP_MINUTES, 1..=1_440);
        let maintenance_database = reader.required(MAINTENANCE_DATABASE);
        let rds_source = reader.parsed(RDS_SOURCE);
        let deadline_margin = Duration::from_secs(reader.number(DEADLINE_MARGIN_SECONDS, 1..=600));
        match environment {
            Some(environment) if reader.problems.is_empty() => Ok(Self {
                environment,
                app_name,
                store,
                database,
                passkey_secret_arn: reader.optional(RESTORE_PASSKEY_SECRET_ARN),
                target_system_identifier: identifier,
                safety_backup_window: Duration::from_secs(60 * safety_minutes),
                export_function: reader.optional(EXPORT_FUNCTION_NAME),
                maintenance_database,
                rds_source,
                notify,
                deadline_margin,
                workers: default_workers(memory_mb(&reader)),
            }),
            _ => Err(ConfigError { problems: reader.problems }),
        }
    }
}

/// Of the server that may be written to.
pub(super) fn system_identifier(reader: &mut Reader<'_>) -> Option<String> {
    let identifier = reader.optional(TARGET_SYSTEM_IDENTIFIER);
    if identifier.as_deref().is_some_and(|text| text.parse::<u64>().is_err()) {
        reader.problems.push(format!(
            "{}: it is not a system identifier, which is a number (pg_control_system())",
            TARGET_SYSTEM_IDENTIFIER.name
        ));
    }
    identifier
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<RestoreConfig, ConfigError> {
        RestoreConfig::from_lookup(&|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    const MINIMAL: [(&str, &str); 3] =
        [("BUCKET", "b"), ("ENVIRONMENT", "production"), ("DATABASE_URL", "postgres://u@h/d")];

    #[test]
    fn what_is_not_set_refuses_rather_than_allows() {
        let config = config(&MINIMAL).unwrap();
        assert_eq!(
            (config.passkey_secret_arn, config.target_system_identifier, config.export_function),
            (None, None, None)
        );
        assert_eq!(config.safety_backup_window, Duration::from_secs(300));
        assert_eq!(config.maintenance_database, "postgres");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error = config(&[
            ("ENVIRONMENT", "Prod"),
            ("TARGET_SYSTEM_IDENTIFIER", "db-1"),
            ("SAFETY_BACKUP_MINUTES", "0"),
            ("RDS_SOURCE", "arn:aws:rds:eu-west-1:999999999999:db:other"),
            ("LOG_LEVEL", "loud"),
        ])
        .unwrap_err();
        for name in [
            "RDS_SOURCE",
            "ENVIRONMENT",
            "TARGET_SYSTEM_IDENTIFIER",
            "SAFETY_BACKUP_MINUTES",
            "LOG_LEVEL",
            "BUCKET",
            "DATABASE_URL",
        ] {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name} in {error}");
        }
    }
}
