//! The whole local stack in one value: S3 with a bucket, PostgreSQL with a database, a secret, an RDS that only knows of
//! snapshots, Lambda with every function.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use uuid::Uuid;

use crate::lambda::{FunctionSpec, LambdaError, LambdaOptions, LambdaServer};
use crate::postgres::{Cluster, ClusterOptions, Installation, PostgresError};
use crate::rds::{ACCOUNT_ID, ExportTarget, REGION, RdsServer, RdsServerError, Server, Snapshot};
use crate::s3::{BucketOptions, DiskError, S3Error, S3Options, S3Server};
use crate::secrets::SecretsServer;

/// The bucket that every stack has, with versioning.
pub const BUCKET: &str = "holdfast-backups";
/// Where the hash of the stack's passkey is.
const PASSKEY_SECRET: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:holdfast-restore-passkey";
const RESTORE: &str = "restore-trigger";
/// The database of a stack's own PostgreSQL.
pub const DATABASE: &str = "media_tool";
/// The instance that the scripted RDS knows, with an automated snapshot. Its data is made up.
const RDS_INSTANCE: &str = "media-tool";

#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error("the functions {names} are not built in {directory}; `cargo build --workspace` builds them")]
    NotBuilt { names: String, directory: PathBuf },
    #[error("cannot tell where the function binaries are")]
    NoProfileDirectory {
        #[source]
        source: std::io::Error,
    },
    #[error("the S3 server did not start")]
    S3 {
        #[from]
        source: S3Error,
    },
    #[error("cannot create the bucket")]
    Bucket {
        #[from]
        source: DiskError,
    },
    #[error("the Lambda endpoint did not start")]
    Lambda {
        #[from]
        source: LambdaError,
    },
    #[error("the scripted RDS did not start")]
    Rds {
        #[from]
        source: RdsServerError,
    },
    #[error("Secrets Manager did not start")]
    Secrets {
        #[source]
        source: std::io::Error,
    },
    #[error("the passkey could not be hashed by {program}")]
    Passkey {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("PostgreSQL did not start")]
    Postgres {
        #[from]
        source: PostgresError,
    },
}

#[derive(Debug, Clone, Default)]
pub struct StackOptions {
    /// An existing database to export; without it the stack starts a PostgreSQL of its own.
    pub database_url: Option<String>,
    /// Keeps the bucket's content over restarts.
    pub data_dir: Option<PathBuf>,
    /// 0 takes a free port.
    pub s3_port: u16,
    pub lambda_port: u16,
    /// Major and settings of the stack's own PostgreSQL.
    pub cluster: ClusterOptions,
    /// Where the function binaries are; without it, the build profile's directory that this program is in.
    pub binaries: Option<PathBuf>,
    /// Writes the functions' log lines to standard error as well.
    pub echo_logs: bool,
    /// Added to every function's environment, over what the stack sets.
    pub environment: BTreeMap<String, String>,
}

/// What a caller needs to use the stack. As JSON it is the line that `local up` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    pub s3: String,
    pub lambda: String,
    pub rds: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
    pub region: String,
    pub database_url: String,
    /// What restores ask for; another one at each start.
    pub passkey: String,
}

/// What functions are told of the stack.
struct Surroundings {
    description: Description,
    client: Installation,
    secrets: String,
    /// Empty where the database could not be asked: restores are refused, and say why.
    system_identifier: String,
}

/// One function of the project, as it is deployed here.
struct Deployment {
    name: &'static str,
    timeout: Duration,
    memory_mb: u32,
    max_concurrency: Option<u32>,
    environment: fn(&Surroundings) -> Vec<(&'static str, String)>,
}

/// Every function with what it needs besides the settings that all of them get.
const FUNCTIONS: &[Deployment] = &[
    Deployment {
        name: "scheduled-export",
        timeout: Duration::from_secs(900),
        memory_mb: 1769,
        max_concurrency: None,
        environment: |around| {
            vec![
                ("DATABASE_URL", around.description.database_url.clone()),
                ("PG_DUMP", around.client.tool("pg_dump").display().to_string()),
            ]
        },
    },
    Deployment {
        name: RESTORE,
        timeout: Duration::from_secs(900),
        memory_mb: 1769,
        max_concurrency: None,
        environment: |around| {
            vec![
                ("DATABASE_URL", around.description.database_url.clone()),
                ("TARGET_SYSTEM_IDENTIFIER", around.system_identifier.clone()),
                ("RESTORE_PASSKEY_SECRET_ARN", PASSKEY_SECRET.to_owned()),
                ("EXPORT_FUNCTION_NAME", "scheduled-export".to_owned()),
                ("AWS_ENDPOINT_URL_SECRETS_MANAGER", around.secrets.clone()),
                ("AWS_ENDPOINT_URL_LAMBDA", around.description.lambda.clone()),
                ("RDS_SOURCE", RDS_INSTANCE.to_owned()),
                ("AWS_ENDPOINT_URL_RDS", around.description.rds.clone()),
            ]
        },
    },
    Deployment {
        name: "retention",
        timeout: Duration::from_secs(900),
        memory_mb: 512,
        max_concurrency: None,
        environment: |_| Vec::new(),
    },
    Deployment {
        name: "snapshot-export",
        timeout: Duration::from_secs(900),
        memory_mb: 512,
        max_concurrency: None,
        environment: |around| {
            vec![
                ("RDS_SOURCES", RDS_INSTANCE.to_owned()),
                ("EXPORT_ROLE_ARN", format!("arn:aws:iam::{ACCOUNT_ID}:role/holdfast-rds-export")),
                ("EXPORT_KMS_KEY_ARN", format!("arn:aws:kms:{REGION}:{ACCOUNT_ID}:key/holdfast-exports")),
                ("AWS_ENDPOINT_URL_RDS", around.description.rds.clone()),
            ]
        },
    },
];

/// A running stack. Dropping it stops everything.
pub struct Stack {
    pub lambda: LambdaServer,
    pub s3: S3Server,
    pub secrets: SecretsServer,
    pub rds: RdsServer,
    /// `None` where the caller brought a database.
    pub postgres: Option<Cluster>,
    /// The `pg_dump`, `pg_restore` and `psql` that go with the database.
    pub client: Installation,
    pub description: Description,
    /// Why the database could not be asked from here, where it could not.
    pub unreachable: Option<String>,
}

impl Stack {
    pub async fn start(options: StackOptions) -> Result<Stack, StackError> {
        let binaries = match &options.binaries {
            Some(binaries) => binaries.clone(),
            None => profile_directory()?,
        };
        check_built(&binaries)?;

        let s3_options =
            S3Options { data_dir: options.data_dir, listen: loopback(options.s3_port), ..S3Options::default() };
        let (access_key, secret_key) = (s3_options.access_key.clone(), s3_options.secret_key.clone());
        let region = s3_options.region.clone();
        let s3 = S3Server::start(s3_options).await?;
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, ..BucketOptions::default() })?;
        let lambda = LambdaServer::start(LambdaOptions {
            listen: loopback(options.lambda_port),
            region: region.clone(),
            echo_logs: options.echo_logs,
            ..LambdaOptions::default()
        })
        .await?;

        let (postgres, database_url) = match options.database_url {
            Some(url) => (None, url),
            None => {
                let cluster = Cluster::start(options.cluster).await?;
                cluster.create_database(DATABASE).await?;
                let url = cluster.url(DATABASE);
                (Some(cluster), url)
            }
        };
        let server = server_facts(&database_url).await;
        let client = match &server {
            Ok(server) => Installation::client_at_least(server.major)?,
            Err(_) => Installation::newest_client()?,
        };
        let (server, unreachable) = server.map_or_else(|problem| (None, Some(problem)), |server| (Some(server), None));
        let passkey = Uuid::new_v4().simple().to_string();
        let secrets = SecretsServer::start().await.map_err(|source| StackError::Secrets { source })?;
        let restore = binaries.join(RESTORE);
        let hash = hashed(&restore, &passkey).await;
        secrets.set(PASSKEY_SECRET, hash.map_err(|source| StackError::Passkey { program: restore, source })?);

        let rds = scripted_rds(&s3, &access_key, &secret_key, &region).await?;
        let description = Description {
            s3: s3.endpoint(),
            lambda: lambda.endpoint(),
            rds: rds.endpoint(),
            access_key,
            secret_key,
            bucket: BUCKET.into(),
            region,
            database_url,
            passkey,
        };
        let around = Surroundings {
            description,
            client,
            secrets: secrets.endpoint().to_owned(),
            system_identifier: server.map(|server| server.system_identifier).unwrap_or_default(),
        };
        for deployment in FUNCTIONS {
            lambda.register(specification(deployment, &binaries, &around, &options.environment));
        }
        let Surroundings { description, client, .. } = around;
        Ok(Stack { lambda, s3, secrets, rds, postgres, client, description, unreachable })
    }

    /// Stops the parts in the order in which they depend on each other.
    pub async fn stop(self) {
        self.lambda.stop().await;
        self.s3.stop().await;
        drop(self.postgres);
    }
}

/// With an instance, and an automated snapshot of it that was taken just now.
async fn scripted_rds(
    s3: &S3Server,
    access_key: &str,
    secret_key: &str,
    region: &str,
) -> Result<RdsServer, RdsServerError> {
    let rds = RdsServer::start().await?;
    let [access_key, secret_key, region] = [access_key, secret_key, region].map(str::to_owned);
    rds.set_target(ExportTarget { endpoint: s3.endpoint(), access_key, secret_key, region });
    rds.add_server(Server::instance(RDS_INSTANCE));
    let now = jiff::Timestamp::now();
    let id = format!("rds:{RDS_INSTANCE}-{}", now.strftime("%Y-%m-%d-%H-%M"));
    rds.add_snapshot(Snapshot::automated(&id, RDS_INSTANCE, &now.to_string()));
    Ok(rds)
}

fn specification(
    deployment: &Deployment,
    binaries: &Path,
    around: &Surroundings,
    extra: &BTreeMap<String, String>,
) -> FunctionSpec {
    let mut spec = FunctionSpec::new(deployment.name, binaries.join(deployment.name));
    spec.timeout = deployment.timeout;
    spec.memory_mb = deployment.memory_mb;
    spec.max_concurrency = deployment.max_concurrency;
    let stack = &around.description;
    let common = [
        ("ENVIRONMENT", "development".to_owned()),
        ("BUCKET", stack.bucket.clone()),
        ("S3_ENDPOINT_URL", stack.s3.clone()),
        ("S3_FORCE_PATH_STYLE", "true".to_owned()),
        ("AWS_ENDPOINT_URL_S3", stack.s3.clone()),
        ("AWS_ACCESS_KEY_ID", stack.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", stack.secret_key.clone()),
    ];
    for (name, value) in common.into_iter().chain((deployment.environment)(around)) {
        spec = spec.env(name, value);
    }
    spec.environment.extend(extra.clone());
    spec
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// `target/<profile>`: this program's directory, or the one above for a test in `deps`.
fn profile_directory() -> Result<PathBuf, StackError> {
    let program = std::env::current_exe().map_err(|source| StackError::NoProfileDirectory { source })?;
    let directory = program.parent().unwrap_or(Path::new("."));
    let profile = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(profile.to_owned())
}

fn check_built(binaries: &Path) -> Result<(), StackError> {
    let missing: Vec<&str> =
        FUNCTIONS.iter().map(|deployment| deployment.name).filter(|name| !binaries.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(StackError::NotBuilt { names: missing.join(", "), directory: binaries.to_owned() })
}

/// What `restore-trigger hash-passkey` makes of a passkey.
async fn hashed(program: &Path, passkey: &str) -> std::io::Result<String> {
    let mut child = Command::new(program)
        .arg("hash-passkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(passkey.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

struct ServerFacts {
    major: u16,
    system_identifier: String,
}

/// An error where it cannot be reached from here without TLS: the function will say what is wrong, if anything is.
async fn server_facts(url: &str) -> Result<ServerFacts, String> {
    let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
    let connected = tokio::time::timeout(Duration::from_secs(5), connecting).await;
    let connected = connected.map_err(|_| "no answer within 5 s".to_owned())?;
    let (client, connection) = connected.map_err(|error| told(&error))?;
    tokio::spawn(connection);
    let sql =
        "SELECT current_setting('server_version_num')::int / 10000, system_identifier::text FROM pg_control_system()";
    let row = client.query_one(sql, &[]).await.map_err(|error| told(&error))?;
    let major = u16::try_from(row.get::<_, i32>(0)).map_err(|error| error.to_string())?;
    Ok(ServerFacts { major, system_identifier: row.get(1) })
}

fn told(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}
