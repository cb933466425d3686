//! Settings of `snapshot-export`, and those of RDS snapshots that `retention` shares.

use jiff::SignedDuration;

use crate::config::common::{Deployment, NotifyConfig, StoreConfig, deployment};
use crate::config::reader::{ConfigError, Reader};
use crate::config::settings;
use crate::domain::Environment;
use crate::domain::rds::{ServerId, is_server_id};

settings! { SNAPSHOT_SETTINGS {
    RDS_SOURCES = "RDS_SOURCES", "", "Comma-separated instances, and clusters as cluster:…, whose snapshots these are.";
    SNAPSHOT_NAME_PREFIX = "SNAPSHOT_NAME_PREFIX", "manual-export-", "What the names of manual snapshots begin with that Holdfast takes; the backup id follows.";
}}

settings! { SNAPSHOT_EXPORT_SETTINGS {
    EXPORT_ROLE_ARN = "EXPORT_ROLE_ARN", "", "Role that RDS writes the export with; export.rds.amazonaws.com assumes it. Required.";
    EXPORT_KMS_KEY_ARN = "EXPORT_KMS_KEY_ARN", "", "KMS key that RDS encrypts the exported files with. Required.";
    EXPORT_ON = "EXPORT_ON", "automated", "Snapshots whose events start an export: automated, manual, both or none.";
    SCHEDULED_SNAPSHOT = "SCHEDULED_SNAPSHOT", "newest", "What a schedule exports: newest, the newest automated snapshot; or manual, one that is taken first.";
    MAX_SNAPSHOT_AGE_HOURS = "MAX_SNAPSHOT_AGE_HOURS", "48", "How old the newest automated snapshot may be, once it has been exported, before a schedule that finds no newer one fails.";
    REQUIRE_ENCRYPTED_SNAPSHOT = "REQUIRE_ENCRYPTED_SNAPSHOT", "true", "false: a snapshot whose storage is not encrypted is exported as well; RDS encrypts the export in any case.";
    STARTING_LIMIT_MINUTES = "STARTING_LIMIT_MINUTES", "240", "How long a task may be STARTING before it is warned of, once.";
    WAIT_LIMIT_HOURS = "WAIT_LIMIT_HOURS", "24", "How long an export may wait for its snapshot, for the quota of tasks or for the export's files before it has failed.";
}}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportOn {
    pub automated: bool,
    pub manual: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduledSnapshot {
    NewestAutomated,
    TakeManual,
}

#[derive(Debug, Clone)]
pub struct SnapshotExportConfig {
    pub environment: Environment,
    pub app_name: String,
    pub store: StoreConfig,
    pub notify: NotifyConfig,
    pub sources: Vec<ServerId>,
    pub snapshot_name_prefix: String,
    pub export_role_arn: String,
    pub export_kms_key_arn: String,
    pub export_on: ExportOn,
    pub scheduled_snapshot: ScheduledSnapshot,
    pub max_snapshot_age: SignedDuration,
    pub require_encrypted: bool,
    pub starting_limit: SignedDuration,
    pub wait_limit: SignedDuration,
}

impl SnapshotExportConfig {
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, problems: Vec::new() };
        let Deployment { environment, app_name, store, notify } = deployment(&mut reader);
        let sources = rds_sources(&mut reader);
        if sources.is_empty() {
            reader.problems.push(format!("{} is not set", RDS_SOURCES.name));
        }
        let snapshot_name_prefix = snapshot_name_prefix(&mut reader);
        let export_role_arn = arn(&mut reader, EXPORT_ROLE_ARN, "iam");
        let export_kms_key_arn = arn(&mut reader, EXPORT_KMS_KEY_ARN, "kms");
        let export_on = match reader.optional(EXPORT_ON).as_deref() {
            Some("automated") => ExportOn { automated: true, manual: false },
            Some("manual") => ExportOn { automated: false, manual: true },
            Some("both") => ExportOn { automated: true, manual: true },
            Some("none") => ExportOn { automated: false, manual: false },
            other => {
                let other = other.unwrap_or_default();
                reader.problems.push(format!("{}: {other:?} is not automated, manual, both or none", EXPORT_ON.name));
                ExportOn { automated: false, manual: false }
            }
        };
        let scheduled_snapshot = match reader.optional(SCHEDULED_SNAPSHOT).as_deref() {
            Some("manual") => ScheduledSnapshot::TakeManual,
            Some("newest") => ScheduledSnapshot::NewestAutomated,
            other => {
                let other = other.unwrap_or_default();
                reader.problems.push(format!("{}: {other:?} is not newest or manual", SCHEDULED_SNAPSHOT.name));
                ScheduledSnapshot::NewestAutomated
            }
        };
        let max_age_hours = reader.number(MAX_SNAPSHOT_AGE_HOURS, 1..=8_760);
        let require_encrypted = reader.flag(REQUIRE_ENCRYPTED_SNAPSHOT);
        let starting_minutes = reader.number(STARTING_LIMIT_MINUTES, 1..=10_080);
        let wait_hours = reader.number(WAIT_LIMIT_HOURS, 1..=168);
        match environment {
            Some(environment) if reader.problems.is_empty() => Ok(Self {
                environment,
                app_name,
                store,
                notify,
                sources,
                snapshot_name_prefix,
                export_role_arn,
                export_kms_key_arn,
                export_on,
                scheduled_snapshot,
                max_snapshot_age: SignedDuration::from_hours(max_age_hours as i64),
                require_encrypted,
                starting_limit: SignedDuration::from_mins(starting_minutes as i64),
                wait_limit: SignedDuration::from_hours(wait_hours as i64),
            }),
            _ => Err(ConfigError { problems: reader.problems }),
        }
    }
}

pub(super) fn rds_sources(reader: &mut Reader<'_>) -> Vec<ServerId> {
    let text = reader.optional(RDS_SOURCES).unwrap_or_default();
    let names: Vec<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    names.into_iter().filter_map(|name| reader.parse(RDS_SOURCES, name)).collect()
}

/// Lower case, as RDS stores it, and with room for the id.
pub(super) fn snapshot_name_prefix(reader: &mut Reader<'_>) -> String {
    let prefix = reader.required(SNAPSHOT_NAME_PREFIX);
    let with_id = format!("{prefix}20250621-143000");
    if !is_server_id(&with_id) || prefix.chars().any(|c| c.is_ascii_uppercase()) {
        let problem =
            "it is not lower-case letters, digits and single hyphens, of at most 48, that begin with a letter";
        reader.problems.push(format!("{}: {prefix:?}: {problem}", SNAPSHOT_NAME_PREFIX.name));
    }
    prefix
}

fn arn(reader: &mut Reader<'_>, setting: crate::config::Setting, service: &str) -> String {
    let text = reader.required(setting);
    let is_arn = text.starts_with("arn:") && text.split(':').nth(2) == Some(service);
    if !text.is_empty() && !is_arn {
        reader.problems.push(format!("{}: {text:?} is not an ARN of {service}", setting.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<SnapshotExportConfig, ConfigError> {
        let minimal = [
            ("BUCKET", "b"),
            ("ENVIRONMENT", "production"),
            ("RDS_SOURCES", "shop-production, cluster:shop-aurora"),
            ("EXPORT_ROLE_ARN", "arn:aws:iam::123456789012:role/export"),
            ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:eu-west-1:123456789012:key/1"),
        ];
        let all: Vec<(&str, &str)> = [&minimal[..], pairs].concat();
        let lookup = |name: &str| all.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        SnapshotExportConfig::from_lookup(&lookup)
    }

    #[test]
    fn automated_snapshots_are_exported_unless_told_otherwise() {
        let defaults = config(&[]).unwrap();
        assert_eq!(defaults.export_on, ExportOn { automated: true, manual: false });
        assert_eq!(
            defaults.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["shop-production", "cluster:shop-aurora"]
        );
        assert!(defaults.require_encrypted);
        assert_eq!(defaults.scheduled_snapshot, ScheduledSnapshot::NewestAutomated);
        let manual = config(&[("EXPORT_ON", "both"), ("SCHEDULED_SNAPSHOT", "manual")]).unwrap();
        assert!(manual.export_on.manual && manual.scheduled_snapshot == ScheduledSnapshot::TakeManual);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error = config(&[
            ("ENVIRONMENT", ""),
            ("RDS_SOURCES", "shop,../etc"),
            ("EXPORT_ROLE_ARN", "export"),
            ("EXPORT_KMS_KEY_ARN", ""),
            ("EXPORT_ON", "always"),
            ("SCHEDULED_SNAPSHOT", "oldest"),
            ("SNAPSHOT_NAME_PREFIX", "Export--"),
            ("REQUIRE_ENCRYPTED_SNAPSHOT", "perhaps"),
            ("MAX_SNAPSHOT_AGE_HOURS", "soon"),
            ("STARTING_LIMIT_MINUTES", "0"),
            ("WAIT_LIMIT_HOURS", "-1"),
        ])
        .unwrap_err();
        for name in [
            "ENVIRONMENT",
            "RDS_SOURCES",
            "EXPORT_ROLE_ARN",
            "EXPORT_KMS_KEY_ARN is not set",
            "EXPORT_ON",
            "SCHEDULED_SNAPSHOT",
            "SNAPSHOT_NAME_PREFIX",
            "REQUIRE_ENCRYPTED_SNAPSHOT",
            "MAX_SNAPSHOT_AGE_HOURS",
            "STARTING_LIMIT_MINUTES",
            "WAIT_LIMIT_HOURS",
        ] {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name} in {error}");
        }
    }
}
