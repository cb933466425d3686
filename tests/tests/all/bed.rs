//! The test bed: one PostgreSQL server, an S3 bucket, and the functions with their own, least, rights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use holdfast_local::lambda::{FunctionSpec, InvokeOptions, InvokeOutcome, LambdaOptions, LambdaServer};
use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use holdfast_local::s3::{BucketOptions, Permissions, S3Options, S3Server, Store};
use holdfast_shared::config::{ObjectChecksum, StoreConfig};
use holdfast_shared::domain::{KeyPrefix, Manifest};
use serde_json::Value;
use tempfile::TempDir;

pub const BUCKET: &str = "backups";
pub const EXPORT: &str = "scheduled-export";
const FUNCTION_KEY: (&str, &str) = ("export-role", "export-role-secret");

pub struct Bed {
    pub cluster: Cluster,
    pub s3: S3Server,
    pub lambda: LambdaServer,
    pub directory: TempDir,
}

/// A function binary, built beside the test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace` first", path.display());
    path
}

/// What the template gives a function's role (tests/rights.json), and no more. `own`: key prefixes of its environment,
/// `any`: those of all; `*` is the bucket.
pub fn rights(function: &str, own: &[&str], any: &[&str]) -> Permissions {
    let table: serde_json::Value = serde_json::from_str(include_str!("../../rights.json")).unwrap();
    let mut allow = Vec::new();
    for (action, prefixes) in table[function].as_object().unwrap() {
        for prefix in prefixes.as_array().unwrap() {
            let prefix = prefix.as_str().unwrap();
            if prefix == "*" {
                allow.push((action.clone(), String::new()));
                continue;
            }
            let (roots, path) = match prefix.strip_prefix("{own}") {
                Some(path) => (own, path),
                None => (any, prefix.strip_prefix("{any}").unwrap()),
            };
            allow.extend(roots.iter().map(|root| (action.clone(), format!("{root}{path}"))));
        }
    }
    Permissions { allow }
}

/// The same of RDS (tests/rds-rights.json).
pub fn rds_rights(function: &str) -> Vec<String> {
    let table: serde_json::Value = serde_json::from_str(include_str!("../../rds-rights.json")).unwrap();
    serde_json::from_value(table[function].clone()).unwrap()
}

/// What the functions make of such a server, with every right.
pub async fn connected(s3: &S3Server) -> holdfast_shared::store::Store {
    let options = S3Options::default();
    let credentials = Credentials::new(options.access_key, options.secret_key, None, None, "tests");
    let aws = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let config = StoreConfig {
        bucket: BUCKET.to_owned(),
        prefix: KeyPrefix::default(),
        endpoint_url: Some(s3.endpoint()),
        region: Some(options.region),
        force_path_style: true,
        checksum: ObjectChecksum::Crc64Nvme,
        credentials_secret_arn: None,
        kms_key_id: None,
        storage_class: None,
    };
    holdfast_shared::store::Store::connect(&aws, config).await.unwrap()
}

/// A function that uses this server with its role's key.
pub fn function(name: &str, s3: &S3Server, key: (&str, &str), settings: &[(&str, &str)]) -> FunctionSpec {
    let mut spec = FunctionSpec::new(name, binary(name))
        .env("BUCKET", BUCKET)
        .env("S3_ENDPOINT_URL", s3.endpoint())
        .env("S3_FORCE_PATH_STYLE", "true")
        .env("AWS_ACCESS_KEY_ID", key.0)
        .env("AWS_SECRET_ACCESS_KEY", key.1)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    for (name, value) in settings {
        spec = spec.env(*name, *value);
    }
    spec
}

impl Bed {
    pub async fn start(major: u16) -> Self {
        Self::with_cluster(Cluster::start(ClusterOptions::major(major)).await.unwrap()).await
    }

    pub async fn with_cluster(cluster: Cluster) -> Self {
        let s3 = S3Server::start(S3Options::default()).await.unwrap();
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, object_lock: false }).unwrap();
        s3.store().add_key(FUNCTION_KEY.0, FUNCTION_KEY.1, Some(rights(EXPORT, &[""], &[])));
        let lambda = LambdaServer::start(LambdaOptions::default()).await.unwrap();
        Self { cluster, s3, lambda, directory: tempfile::tempdir().unwrap() }
    }

    pub fn store(&self) -> &Store {
        self.s3.store()
    }

    /// The export function for a database of this bed, with settings over the usual ones.
    pub fn export_spec(&self, database: &str, settings: &[(&str, &str)]) -> FunctionSpec {
        let pg_dump = Installation::client_at_least(self.cluster.major()).unwrap().tool("pg_dump");
        let (url, pg_dump) = (self.cluster.url(database), pg_dump.display().to_string());
        let usual = [("ENVIRONMENT", "test"), ("DATABASE_URL", &url), ("PG_DUMP", &pg_dump), ("WORKERS", "3")];
        let mut spec = function(EXPORT, &self.s3, FUNCTION_KEY, &[&usual, settings].concat());
        spec.timeout = Duration::from_secs(120);
        spec.memory_mb = 1769;
        spec
    }

    pub fn register_export(&self, database: &str, settings: &[(&str, &str)]) {
        self.lambda.register(self.export_spec(database, settings));
    }

    pub async fn invoke(&self, payload: Value) -> InvokeOutcome {
        self.lambda.invoke(EXPORT, payload).await.unwrap()
    }

    pub async fn invoke_as(&self, request_id: &str, payload: Value) -> InvokeOutcome {
        let options = InvokeOptions { request_id: Some(request_id.to_owned()), ..InvokeOptions::default() };
        self.lambda.invoke_with(EXPORT, payload, options).await.unwrap()
    }

    /// Exports and expects success; the receipt.
    pub async fn export(&self, payload: Value) -> Value {
        let outcome = self.invoke(payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    /// Exports and expects failure; `errorType` and `errorMessage`.
    pub async fn export_fails(&self, payload: Value) -> (String, String) {
        let outcome = self.invoke(payload).await;
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        let text = |field: &str| outcome.payload[field].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }

    pub async fn client(&self) -> aws_sdk_s3::Client {
        s3_client(&self.s3)
    }

    pub async fn get(&self, key: &str) -> Vec<u8> {
        let object = self.client().await.get_object().bucket(BUCKET).key(key).send().await.unwrap();
        object.body.collect().await.unwrap().to_vec()
    }

    pub async fn manifest(&self, receipt: &Value) -> Manifest {
        let id: holdfast_shared::domain::BackupId = receipt["id"].as_str().unwrap().parse().unwrap();
        Manifest::parse(&self.get(&format!("postgres-exports/metadata/{}/{id}.json", id.date())).await).unwrap()
    }

    /// The dump of a receipt, as a file.
    pub async fn dump_file(&self, receipt: &Value) -> PathBuf {
        let key = receipt["artifacts"]["dump"]["key"].as_str().unwrap();
        let path = self.directory.path().join(format!("{}.dump", receipt["id"].as_str().unwrap()));
        std::fs::write(&path, self.get(key).await).unwrap();
        path
    }

    /// Every key that makes a backup listed.
    pub fn manifests(&self) -> Vec<String> {
        let objects = self.store().objects(BUCKET);
        objects.into_iter().map(|object| object.key).filter(|key| key.contains("/metadata/")).collect()
    }

    /// Restores a file into a new database with a stock `pg_restore`.
    pub async fn restore(&self, client: &Installation, file: &Path, database: &str, options: &[&str]) {
        self.cluster.create_database(database).await.unwrap();
        let url = self.cluster.url(database);
        run(client.command("pg_restore").args(["--exit-on-error", "--dbname", &url]).args(options).arg(file));
    }

    /// The schema as `pg_dump` prints it, without what differs between any two dumps.
    pub fn schema(&self, client: &Installation, database: &str) -> String {
        let url = self.cluster.url(database);
        comparable(&run(client.command("pg_dump").args(["--schema-only", "--dbname", &url])))
    }

    /// Rows and an order-independent digest of each table, sequence values, and large objects.
    pub async fn contents(&self, database: &str) -> BTreeMap<String, String> {
        contents(&self.cluster.connect(database).await.unwrap()).await
    }
}

/// A client with every right on the server.
pub fn s3_client(server: &S3Server) -> aws_sdk_s3::Client {
    let options = S3Options::default();
    let credentials = aws_sdk_s3::config::Credentials::new(options.access_key, options.secret_key, None, None, "tests");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .endpoint_url(server.endpoint())
        .region(aws_sdk_s3::config::Region::new(options.region))
        .credentials_provider(credentials)
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// Runs a program and expects success; its output.
/// A directory with one extension, for `extension_control_path` (PostgreSQL 18). Anybody may create it.
pub fn extension(name: &str, sql: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("extension");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join(format!("{name}.control")), "default_version = '1.0'\ntrusted = true\n").unwrap();
    std::fs::write(files.join(format!("{name}--1.0.sql")), sql).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn comparable(dump: &str) -> String {
    let differs = |line: &&str| {
        line.starts_with("\\restrict")
            || line.starts_with("\\unrestrict")
            || line.starts_with("-- Dumped")
            || line.starts_with("-- Started")
            || line.starts_with("-- Completed")
            || line.starts_with("SET transaction_timeout")
    };
    dump.lines().filter(|line| !differs(line)).collect::<Vec<_>>().join("\n")
}

/// What a database holds, by SQL alone: independent of everything under test.
pub async fn contents(client: &tokio_postgres::Client) -> BTreeMap<String, String> {
    let mut contents = BTreeMap::new();
    client.batch_execute("SET search_path = ''; SET timezone = 'UTC'; SET extra_float_digits = 3").await.unwrap();
    let relations = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind::text
                       FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.relkind IN ('r', 'm', 'S') AND (c.relkind <> 'm' OR c.relispopulated) AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    for row in client.query(relations, &[]).await.unwrap() {
        let (name, kind): (String, String) = (row.get(0), row.get(1));
        let sql = if kind == "S" {
            format!("SELECT pg_catalog.format('%s %s', last_value, is_called) FROM {name}")
        } else {
            format!(
                "SELECT pg_catalog.format('%s rows %s', pg_catalog.count(*),
                        COALESCE(pg_catalog.sum(('x' || pg_catalog.substr(pg_catalog.md5(t::text), 1, 15))::bit(60)::int8), 0))
                   FROM ONLY {name} t"
            )
        };
        contents.insert(name, client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    let objects = "SELECT oid::text, pg_catalog.md5(pg_catalog.lo_get(oid)) FROM pg_catalog.pg_largeobject_metadata";
    for row in client.query(objects, &[]).await.unwrap() {
        contents.insert(format!("large object {}", row.get::<_, String>(0)), row.get(1));
    }
    contents
}
