//! Every environment variable, declared once: name, meaning, default, parser.
//!
//! An empty variable counts as not set. A bad configuration reports all its problems at once, at cold start.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::archive::codec::Compression;
use crate::domain::manifest::Selection;
use crate::domain::{Environment, KeyPrefix, TablePattern};
use crate::plan::export::{MIB, MIN_PART_SIZE_BYTES};
use crate::postgres::connect::{SslMode, is_loopback};
use crate::secret::Secret;

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    /// What stands in the template where nothing else is wanted; empty means not set.
    pub default: &'static str,
    pub meaning: &'static str,
}

macro_rules! settings {
    ($($constant:ident = $name:literal, $default:literal, $meaning:literal;)*) => {
        $(const $constant: Setting = Setting { name: $name, default: $default, meaning: $meaning };)*
        /// All of them, in the order of docs/configuration.md.
        pub const EXPORT_SETTINGS: &[Setting] = &[$($constant),*];
    };
}

settings! {
    BUCKET = "BUCKET", "", "Bucket that backups are written to. Required.";
    KEY_PREFIX = "KEY_PREFIX", "", "What every key begins with: empty, or a path that ends with a slash.";
    ENVIRONMENT = "ENVIRONMENT", "", "Deployment stage this function belongs to, such as production. Required.";
    APP_NAME = "APP_NAME", "holdfast", "Application the backups are of; it names downloads and notifications.";
    DATABASE_URL = "DATABASE_URL", "", "postgres:// URL. One of DATABASE_URL, DATABASE_SECRET_ARN or DATABASE_AUTH=iam is required.";
    DATABASE_SECRET_ARN = "DATABASE_SECRET_ARN", "", "Secrets Manager secret in the JSON form that RDS writes.";
    DATABASE_AUTH = "DATABASE_AUTH", "", "iam: log in with an IAM database token as DATABASE_USER.";
    DATABASE_HOST = "DATABASE_HOST", "", "Host name; overrides the secret's.";
    DATABASE_PORT = "DATABASE_PORT", "", "Port; overrides the secret's.";
    DATABASE_NAME = "DATABASE_NAME", "", "Database; overrides the secret's.";
    DATABASE_USER = "DATABASE_USER", "", "Role for IAM authentication.";
    DATABASE_INSTANCE = "DATABASE_INSTANCE", "", "RDS instance or cluster identifier, for the manifest.";
    PG_DUMP = "PG_DUMP", "pg_dump", "The pg_dump to run; its major version has to be the server's or later.";
    PG_CA_BUNDLE = "PG_CA_BUNDLE", "", "PEM file of the authorities that sslmode verify-full trusts.";
    PG_SSLMODE = "PG_SSLMODE", "", "disable, require or verify-full; without it verify-full, on loopback disable.";
    LOCK_TIMEOUT_MS = "LOCK_TIMEOUT_MS", "10000", "Longest wait for a table lock, in milliseconds.";
    WORKERS = "WORKERS", "0", "Parallel COPY streams, 1 to 32; 0: two for each vCPU the function has, at most 8.";
    PART_SIZE_BYTES = "PART_SIZE_BYTES", "8388608", "Size at which an upload part is cut; at least 5 MiB.";
    COMPRESSION = "COMPRESSION", "auto", "zstd:LEVEL, gzip:LEVEL, none, or auto: zstd for servers from 16 on, gzip before.";
    INCLUDE_TABLES = "INCLUDE_TABLES", "", "Comma-separated patterns schema.table with *: only these tables.";
    EXCLUDE_TABLES = "EXCLUDE_TABLES", "", "Patterns of tables to leave out.";
    EXCLUDE_TABLE_DATA = "EXCLUDE_TABLE_DATA", "", "Patterns of tables whose definition is exported without rows.";
    NOTIFY_TOPIC_ARN = "NOTIFY_TOPIC_ARN", "", "SNS topic that is told of failures.";
    NOTIFY_ON_SUCCESS = "NOTIFY_ON_SUCCESS", "false", "true: the topic is told of successes, too.";
    S3_ENDPOINT_URL = "S3_ENDPOINT_URL", "", "Endpoint of an S3-compatible store; not set: AWS.";
    S3_REGION = "S3_REGION", "", "Region of the bucket, where it is not the function's; auto for Cloudflare R2.";
    S3_FORCE_PATH_STYLE = "S3_FORCE_PATH_STYLE", "false", "true: the bucket goes into the path, not the host name.";
    S3_CHECKSUM = "S3_CHECKSUM", "crc64nvme", "crc64nvme, crc32, or none for stores that know no object checksums.";
    S3_CREDENTIALS_SECRET_ARN = "S3_CREDENTIALS_SECRET_ARN", "", "Secret with access_key_id and secret_access_key for a store other than AWS; not set: the function's role.";
    S3_KMS_KEY_ID = "S3_KMS_KEY_ID", "", "KMS key for server-side encryption; not set: the bucket's default.";
    S3_STORAGE_CLASS = "S3_STORAGE_CLASS", "", "Storage class of dumps; not set: STANDARD.";
    DEADLINE_MARGIN_SECONDS = "DEADLINE_MARGIN_SECONDS", "20", "How long before the function's timeout an unfinished export is given up.";
    LOG_LEVEL = "LOG_LEVEL", "info", "error, warn, info, debug or trace.";
}

/// Where credentials come from.
#[derive(Debug, Clone)]
pub enum DatabaseAuth {
    Url(Secret),
    Secret { arn: String },
    Iam { user: String },
}

#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub auth: DatabaseAuth,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub name: Option<String>,
    pub instance: Option<String>,
    pub ssl_mode: Option<SslMode>,
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectChecksum {
    Crc64Nvme,
    Crc32,
    None,
}

impl FromStr for ObjectChecksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "crc64nvme" => Ok(Self::Crc64Nvme),
            "crc32" => Ok(Self::Crc32),
            "none" => Ok(Self::None),
            _ => Err(format!("{text:?} is not crc64nvme, crc32 or none")),
        }
    }
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub bucket: String,
    pub prefix: KeyPrefix,
    pub endpoint_url: Option<String>,
    pub region: Option<String>,
    pub force_path_style: bool,
    pub checksum: ObjectChecksum,
    pub credentials_secret_arn: Option<String>,
    pub kms_key_id: Option<String>,
    pub storage_class: Option<String>,
}

impl StoreConfig {
    /// Whether a body's SHA-256 is left out of the signature: TLS or loopback protects it on the way, and the
    /// object's own checksum at rest.
    pub fn unsigned_payload(&self) -> bool {
        match self.endpoint_url.as_deref().and_then(|url| url.strip_prefix("http://")) {
            None => true,
            Some(authority) => is_loopback(authority.split(['/', ':']).next().unwrap_or_default()),
        }
    }
}

#[derive(Debug, Clone)]
pub struct NotifyConfig {
    pub topic_arn: Option<String>,
    pub on_success: bool,
}

#[derive(Debug, Clone)]
pub struct ExportConfig {
    pub environment: Environment,
    pub app_name: String,
    pub store: StoreConfig,
    pub database: DatabaseConfig,
    pub pg_dump: PathBuf,
    pub lock_timeout: Duration,
    pub workers: usize,
    pub part_size_bytes: u64,
    /// What the buffers may hold, all workers together.
    pub buffer_memory_bytes: u64,
    /// `None`: chosen by the server's version.
    pub compression: Option<Compression>,
    pub selection: Selection,
    pub notify: NotifyConfig,
    pub deadline_margin: Duration,
}

/// All that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problems.join("; "))
    }
}

/// Reads settings through a lookup, collecting problems.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn optional(&self, setting: Setting) -> Option<String> {
        let own = (self.lookup)(setting.name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        own.or_else(|| Some(setting.default.to_owned()).filter(|text| !text.is_empty()))
    }

    fn required(&mut self, setting: Setting) -> String {
        self.optional(setting).unwrap_or_else(|| {
            self.problems.push(format!("{} is not set", setting.name));
            String::new()
        })
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, setting: Setting, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.problems.push(format!("{}: {error}", setting.name))).ok()
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, setting: Setting) -> Option<T> {
        let text = self.optional(setting)?;
        self.parse(setting, &text)
    }

    fn number(&mut self, setting: Setting, range: std::ops::RangeInclusive<u64>) -> u64 {
        let value = self.parsed(setting).unwrap_or(*range.start());
        if !range.contains(&value) {
            let (low, high) = range.into_inner();
            self.problems.push(format!("{}: {value} is not between {low} and {high}", setting.name));
        }
        value
    }

    fn flag(&mut self, setting: Setting) -> bool {
        match self.optional(setting).as_deref() {
            Some("true" | "1") => true,
            None | Some("false" | "0") => false,
            Some(other) => {
                self.problems.push(format!("{}: {other:?} is not true or false", setting.name));
                false
            }
        }
    }

    fn patterns(&mut self, setting: Setting) -> Vec<TablePattern> {
        let text = self.optional(setting).unwrap_or_default();
        text.split(',').map(str::trim).filter(|p| !p.is_empty()).filter_map(|p| self.parse(setting, p)).collect()
    }
}

impl ExportConfig {
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, problems: Vec::new() };
        let memory_bytes =
            lookup("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").and_then(|mb| mb.parse::<u64>().ok()).unwrap_or(1_769) * MIB;

        let environment_text = reader.required(ENVIRONMENT);
        let environment: Option<Environment> =
            if environment_text.is_empty() { None } else { reader.parse(ENVIRONMENT, &environment_text) };
        let store = store_config(&mut reader);
        let database = database_config(&mut reader);
        let compression = match reader.optional(COMPRESSION).as_deref() {
            None | Some("auto") => None,
            Some(text) => reader.parse(COMPRESSION, text),
        };
        let workers = match reader.number(WORKERS, 0..=32) as usize {
            0 => (2 * memory_bytes.div_ceil(1_769 * MIB) as usize).clamp(2, 8),
            workers => workers,
        };
        let log_level: Option<tracing::Level> = reader.parsed(LOG_LEVEL);
        let part_size_bytes = reader.number(PART_SIZE_BYTES, MIN_PART_SIZE_BYTES..=1024 * MIB);
        let config = Self {
            app_name: reader.required(APP_NAME),
            pg_dump: PathBuf::from(reader.required(PG_DUMP)),
            lock_timeout: Duration::from_millis(reader.number(LOCK_TIMEOUT_MS, 1..=3_600_000)),
            workers,
            part_size_bytes,
            // Enough to keep the uploads busy; the rest of the function's memory is the runtime's, the codecs'
            // and pg_dump's.
            buffer_memory_bytes: (memory_bytes / 2).min(workers as u64 * 6 * part_size_bytes),
            compression,
            selection: Selection {
                include: reader.patterns(INCLUDE_TABLES),
                exclude: reader.patterns(EXCLUDE_TABLES),
                exclude_data: reader.patterns(EXCLUDE_TABLE_DATA),
            },
            notify: NotifyConfig {
                topic_arn: reader.optional(NOTIFY_TOPIC_ARN),
                on_success: reader.flag(NOTIFY_ON_SUCCESS),
            },
            deadline_margin: Duration::from_secs(reader.number(DEADLINE_MARGIN_SECONDS, 1..=600)),
            environment: match environment {
                Some(environment) if log_level.is_some() && reader.problems.is_empty() => environment,
                _ => return Err(ConfigError { problems: reader.problems }),
            },
            store,
            database,
        };
        if reader.problems.is_empty() { Ok(config) } else { Err(ConfigError { problems: reader.problems }) }
    }
}

fn store_config(reader: &mut Reader<'_>) -> StoreConfig {
    let endpoint_url = reader.optional(S3_ENDPOINT_URL);
    if let Some(url) = &endpoint_url {
        let valid = url.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !valid {
            reader.problems.push(format!("{}: {url:?} is not an http:// or https:// URL", S3_ENDPOINT_URL.name));
        }
    }
    StoreConfig {
        bucket: reader.required(BUCKET),
        prefix: reader.parsed(KEY_PREFIX).unwrap_or_default(),
        endpoint_url,
        region: reader.optional(S3_REGION),
        force_path_style: reader.flag(S3_FORCE_PATH_STYLE),
        checksum: reader.parsed(S3_CHECKSUM).unwrap_or(ObjectChecksum::Crc64Nvme),
        credentials_secret_arn: reader.optional(S3_CREDENTIALS_SECRET_ARN),
        kms_key_id: reader.optional(S3_KMS_KEY_ID),
        storage_class: reader.optional(S3_STORAGE_CLASS),
    }
}

fn database_config(reader: &mut Reader<'_>) -> DatabaseConfig {
    let (url, arn) = (reader.optional(DATABASE_URL), reader.optional(DATABASE_SECRET_ARN));
    let (auth, user) = (reader.optional(DATABASE_AUTH), reader.optional(DATABASE_USER));
    let host = reader.optional(DATABASE_HOST);
    let auth = match (url, arn, auth.as_deref()) {
        (Some(url), None, None) => DatabaseAuth::Url(Secret::new(url)),
        (None, Some(arn), None) => DatabaseAuth::Secret { arn },
        (None, None, Some("iam")) => {
            if host.is_none() || user.is_none() {
                reader.problems.push("DATABASE_AUTH=iam needs DATABASE_HOST and DATABASE_USER".to_owned());
            }
            DatabaseAuth::Iam { user: user.unwrap_or_default() }
        }
        (None, None, Some(other)) => {
            reader.problems.push(format!("DATABASE_AUTH: {other:?} is not iam"));
            DatabaseAuth::Iam { user: String::new() }
        }
        (None, None, None) => {
            reader
                .problems
                .push("one of DATABASE_URL, DATABASE_SECRET_ARN or DATABASE_AUTH=iam has to be set".to_owned());
            DatabaseAuth::Iam { user: String::new() }
        }
        _ => {
            reader
                .problems
                .push("only one of DATABASE_URL, DATABASE_SECRET_ARN and DATABASE_AUTH may be set".to_owned());
            DatabaseAuth::Iam { user: String::new() }
        }
    };
    DatabaseConfig {
        auth,
        host,
        port: reader.parsed(DATABASE_PORT),
        name: reader.optional(DATABASE_NAME),
        instance: reader.optional(DATABASE_INSTANCE),
        ssl_mode: reader.parsed(PG_SSLMODE),
        ca_bundle: reader.optional(PG_CA_BUNDLE).map(PathBuf::from),
    }
}

/// The level to log at; readable before, and whatever is wrong with, the rest.
pub fn log_level() -> tracing::Level {
    std::env::var(LOG_LEVEL.name).ok().and_then(|text| text.parse().ok()).unwrap_or(tracing::Level::INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<ExportConfig, ConfigError> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ExportConfig::from_lookup(&move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    const MINIMAL: [(&str, &str); 3] =
        [("BUCKET", "b"), ("ENVIRONMENT", "production"), ("DATABASE_URL", "postgres://u@h/d")];

    #[test]
    fn three_settings_are_enough() {
        let config = config(&MINIMAL).unwrap();
        assert_eq!((config.workers, config.compression, config.part_size_bytes), (2, None, 8 * MIB));
        assert_eq!(config.store.checksum, ObjectChecksum::Crc64Nvme);
        assert!(config.store.unsigned_payload());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error = config(&[
            ("ENVIRONMENT", "Prod"),
            ("WORKERS", "99"),
            ("COMPRESSION", "lz77"),
            ("S3_ENDPOINT_URL", "minio:9000"),
            ("INCLUDE_TABLES", "public.*,.x"),
            ("LOCK_TIMEOUT_MS", "soon"),
            ("NOTIFY_ON_SUCCESS", "yes"),
            ("LOG_LEVEL", "loud"),
        ])
        .unwrap_err();
        for name in [
            "ENVIRONMENT",
            "WORKERS",
            "COMPRESSION",
            "S3_ENDPOINT_URL",
            "INCLUDE_TABLES",
            "LOCK_TIMEOUT_MS",
            "NOTIFY_ON_SUCCESS",
            "LOG_LEVEL",
            "BUCKET",
            "DATABASE_URL",
        ] {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name} in {error}");
        }
    }

    #[test]
    fn empty_means_not_set_and_sources_exclude_each_other() {
        let with = |more: &[(&str, &str)]| config(&[&MINIMAL[..], more].concat());
        assert!(with(&[("DATABASE_SECRET_ARN", ""), ("COMPRESSION", "")]).is_ok());
        assert!(with(&[("DATABASE_SECRET_ARN", "arn:x")]).unwrap_err().to_string().contains("only one of"));
        let iam = config(&[("BUCKET", "b"), ("ENVIRONMENT", "e"), ("DATABASE_AUTH", "iam")]).unwrap_err();
        assert!(iam.to_string().contains("DATABASE_HOST"));
    }

    #[test]
    fn payloads_are_signed_on_plain_http_to_other_machines() {
        let endpoint =
            |url| config(&[&MINIMAL[..], &[("S3_ENDPOINT_URL", url)]].concat()).unwrap().store.unsigned_payload();
        assert!(!endpoint("http://minio.internal:9000"));
        assert!(endpoint("http://127.0.0.1:9000") && endpoint("https://minio.internal"));
    }

    #[test]
    fn the_url_is_not_printed() {
        let config =
            config(&[("BUCKET", "b"), ("ENVIRONMENT", "e"), ("DATABASE_URL", "postgres://u:hunter2@h/d")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
