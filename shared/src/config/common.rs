//! What all functions share: where backups lie, how the database is reached, who is told.

use std::path::PathBuf;
use std::str::FromStr;

use crate::config::reader::Reader;
use crate::config::settings;
use crate::domain::{Environment, KeyPrefix};
use crate::postgres::connect::{SslMode, is_loopback};
use crate::secret::Secret;

settings! { COMMON_SETTINGS {
    BUCKET = "BUCKET", "", "Bucket that backups are written to. Required.";
    KEY_PREFIX = "KEY_PREFIX", "", "What every key begins with: empty, or a path that ends with a slash.";
    ENVIRONMENT = "ENVIRONMENT", "", "Deployment stage this function belongs to, such as production. Required.";
    APP_NAME = "APP_NAME", "holdfast", "Application the backups are of; it names downloads and notifications.";
    NOTIFY_TOPIC_ARN = "NOTIFY_TOPIC_ARN", "", "SNS topic that is told of failures.";
    NOTIFY_ON_SUCCESS = "NOTIFY_ON_SUCCESS", "false", "true: the topic is told of successes, too.";
    S3_ENDPOINT_URL = "S3_ENDPOINT_URL", "", "Endpoint of an S3-compatible store; not set: AWS.";
    S3_REGION = "S3_REGION", "", "Region of the bucket, where it is not the function's; auto for Cloudflare R2.";
    S3_FORCE_PATH_STYLE = "S3_FORCE_PATH_STYLE", "false", "true: the bucket goes into the path, not the host name.";
    S3_CHECKSUM = "S3_CHECKSUM", "crc64nvme", "crc64nvme, crc32, or none for stores that know no object checksums.";
    S3_CREDENTIALS_SECRET_ARN = "S3_CREDENTIALS_SECRET_ARN", "", "Secret with access_key_id and secret_access_key for a store other than AWS; not set: the function's role.";
    S3_KMS_KEY_ID = "S3_KMS_KEY_ID", "", "KMS key for server-side encryption; not set: the bucket's default.";
    S3_STORAGE_CLASS = "S3_STORAGE_CLASS", "", "Storage class of dumps; not set: STANDARD.";
    LOG_LEVEL = "LOG_LEVEL", "info", "error, warn, info, debug or trace.";
}}

settings! { DATABASE_SETTINGS {
    DATABASE_URL = "DATABASE_URL", "", "postgres:// URL. One of DATABASE_URL, DATABASE_SECRET_ARN or DATABASE_AUTH=iam is required.";
    DATABASE_SECRET_ARN = "DATABASE_SECRET_ARN", "", "Secrets Manager secret in the JSON form that RDS writes.";
    DATABASE_AUTH = "DATABASE_AUTH", "", "iam: log in with an IAM database token as DATABASE_USER.";
    DATABASE_HOST = "DATABASE_HOST", "", "Host name; overrides the secret's.";
    DATABASE_PORT = "DATABASE_PORT", "", "Port; overrides the secret's.";
    DATABASE_NAME = "DATABASE_NAME", "", "Database; overrides the secret's.";
    DATABASE_USER = "DATABASE_USER", "", "Role for IAM authentication.";
    DATABASE_INSTANCE = "DATABASE_INSTANCE", "", "RDS instance or cluster identifier, for the manifest.";
    PG_CA_BUNDLE = "PG_CA_BUNDLE", "", "PEM file of the authorities that sslmode verify-full trusts.";
    PG_SSLMODE = "PG_SSLMODE", "", "disable, require or verify-full; without it verify-full, on loopback disable.";
}}

/// With so much memory a function has one vCPU.
/// Source: AWS Lambda Developer Guide, "Configure Lambda function memory".
const MB_PER_VCPU: u64 = 1_769;

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

/// What every function is told of its deployment.
pub(super) struct Deployment {
    /// `None`, and a problem, where it is not one.
    pub(super) environment: Option<Environment>,
    pub(super) app_name: String,
    pub(super) store: StoreConfig,
    pub(super) notify: NotifyConfig,
}

pub(super) fn deployment(reader: &mut Reader<'_>) -> Deployment {
    let name = reader.required(ENVIRONMENT);
    // Logging has begun by then, at the default where this is no level.
    let _level: Option<tracing::Level> = reader.parsed(LOG_LEVEL);
    Deployment {
        environment: if name.is_empty() { None } else { reader.parse(ENVIRONMENT, &name) },
        app_name: reader.required(APP_NAME),
        store: store_config(reader),
        notify: notify_config(reader),
    }
}

/// What Lambda gives the function; elsewhere that of one vCPU.
pub(super) fn memory_mb(reader: &Reader<'_>) -> u64 {
    (reader.lookup)("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").and_then(|mb| mb.parse().ok()).unwrap_or(MB_PER_VCPU)
}

/// Two for each vCPU, which wait for the network in turn.
pub(super) fn default_workers(memory_mb: u64) -> usize {
    (2 * memory_mb.div_ceil(MB_PER_VCPU) as usize).clamp(2, 8)
}

/// Where backups lie.
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

/// How the database is reached, where one is configured.
pub(super) fn optional_database_config(reader: &mut Reader<'_>) -> Option<DatabaseConfig> {
    let configured = [DATABASE_URL, DATABASE_SECRET_ARN, DATABASE_AUTH];
    let configured = configured.into_iter().any(|setting| reader.optional(setting).is_some());
    configured.then(|| database_config(reader))
}

/// How the database is reached.
pub(super) fn database_config(reader: &mut Reader<'_>) -> DatabaseConfig {
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

/// Who is told of what.
fn notify_config(reader: &mut Reader<'_>) -> NotifyConfig {
    NotifyConfig { topic_arn: reader.optional(NOTIFY_TOPIC_ARN), on_success: reader.flag(NOTIFY_ON_SUCCESS) }
}

/// The level to log at; readable before, and whatever is wrong with, the rest.
pub fn log_level() -> tracing::Level {
    std::env::var(LOG_LEVEL.name).ok().and_then(|text| text.parse().ok()).unwrap_or(tracing::Level::INFO)
}
