//! The restore against stock `pg_restore`: from a local file, from a pipe, and of one giant table; the proof against a bare
//! COPY out. One target server with default settings, contestants in turn.

mod outcome;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_local::lambda::{FunctionSpec, LambdaOptions, LambdaServer};
use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use holdfast_local::s3::S3Options;
use holdfast_local::secrets::SecretsServer;
use serde_json::{Value, json};

use crate::database::{Content, Server};
use crate::error::{BenchError, chain};
use crate::export::{Exporter, export_to};
use crate::measure::{Measured, tree_cpu_seconds, watch_memory};
use crate::sink::{BUCKET, Sink};

pub use outcome::render;

const FUNCTION: &str = "restore-trigger";
const PASSKEY: &str = "correct horse battery";
const PASSKEY_SECRET: &str = "arn:passkey";
/// The defaults of PostgreSQL where the local stack's clusters have others.
const DEFAULTS: [(&str, &str); 4] =
    [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on"), ("wal_keep_size", "0")];
const CONTESTANTS: [&str; 6] = ["file", "pipe", "restore", "copy", "giant-file", "giant-restore"];

pub struct Choice {
    /// Empty: all.
    pub only: Vec<String>,
    pub gigabytes: f64,
    pub runs: usize,
}

pub struct Arena<'a> {
    pub client: &'a Installation,
    pub exporter: &'a Exporter,
    pub aws: PathBuf,
    pub scratch: &'a Path,
}

/// What one run took.
#[derive(Debug, Clone, Default)]
struct Sample {
    wall_seconds: f64,
    client_cpu_seconds: f64,
    server_cpu_seconds: f64,
    peak_bytes: Option<u64>,
    /// Of the restore: loading alone, and the proof.
    data_seconds: Option<f64>,
    proof_seconds: Option<f64>,
}

pub struct Results {
    entries: Vec<(&'static str, Vec<Sample>)>,
    pub failures: Vec<String>,
}

/// What was exported: an object in the bucket, and the same as a local file.
struct Exported {
    id: String,
    key: String,
    file: PathBuf,
}

struct Ring<'a> {
    arena: &'a Arena<'a>,
    cluster: Cluster,
    sink: Sink,
    secrets: SecretsServer,
    system_identifier: String,
}

pub async fn race(choice: &Choice, arena: &Arena<'_>, source: Server) -> Result<Results, BenchError> {
    let wanted = |name: &str| choice.only.is_empty() || choice.only.iter().any(|only| only == name);
    if let Some(unknown) = choice.only.iter().find(|only| !CONTESTANTS.contains(&only.as_str())) {
        return Err(BenchError::UnknownContestant { name: unknown.clone(), known: CONTESTANTS.join(", ") });
    }
    let directory = tempfile::tempdir_in(arena.scratch).map_err(BenchError::io("cannot make a directory"))?;
    let sink = Sink::start()?;
    let major = source.major();
    let mut exported = Vec::new();
    for content in [Content::Mixed(choice.gigabytes), Content::Half(choice.gigabytes)] {
        source.prepare(content).await?;
        let receipt = export_to(arena.exporter, &source.url(content), &sink.endpoint).await?;
        exported.push(Exported::fetch(&receipt, arena, &sink, directory.path())?);
    }
    // Its cache and its memory are the target's now.
    source.stop().await?;
    let target = Ring::start(major, arena, sink).await?;
    let (mixed, giant) = (&exported[0], &exported[1]);
    let entries = CONTESTANTS.iter().filter(|name| wanted(name)).map(|name| (*name, Vec::new())).collect();
    let mut results = Results { entries, failures: Vec::new() };
    for run in 1..=choice.runs {
        for index in 0..results.entries.len() {
            let name = results.entries[index].0;
            let outcome = match name {
                "file" => target.pg_restore(mixed).await,
                "pipe" => target.pipe(mixed).await,
                "restore" => target.restore(mixed).await,
                "copy" => target.copy(mixed).await,
                "giant-file" => target.giant_pg_restore(giant).await,
                _ => target.restore(giant).await,
            };
            match outcome {
                Ok(sample) => {
                    eprintln!("run {run} {name}: {sample:?}");
                    results.entries[index].1.push(sample);
                }
                Err(error) => results.failures.push(format!("{name}: {}", chain(&error))),
            }
        }
    }
    Ok(results)
}

impl Exported {
    fn fetch(receipt: &Value, arena: &Arena<'_>, sink: &Sink, directory: &Path) -> Result<Self, BenchError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, key) = (text(&receipt["id"]), text(&receipt["artifacts"]["dump"]["key"]));
        let file = directory.join(format!("{id}.dump"));
        let status = aws_copy(arena, sink, &key).arg(&file).stdout(Stdio::null()).status();
        let status = status.map_err(BenchError::io("cannot run the AWS CLI"))?;
        if !status.success() {
            return Err(BenchError::Program { program: arena.aws.display().to_string(), status });
        }
        // Two exports of one second would have one id.
        std::thread::sleep(Duration::from_millis(1100));
        Ok(Self { id, key, file })
    }
}

/// `aws s3 cp` from the bucket; where to is for the caller to add.
fn aws_copy(arena: &Arena<'_>, sink: &Sink, key: &str) -> Command {
    let server = S3Options::default();
    let mut command = Command::new(&arena.aws);
    command.args(["--endpoint-url", &sink.endpoint, "s3", "cp", "--quiet"]).arg(format!("s3://{BUCKET}/{key}"));
    command.env("AWS_ACCESS_KEY_ID", server.access_key).env("AWS_SECRET_ACCESS_KEY", server.secret_key);
    command.env("AWS_DEFAULT_REGION", server.region).env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

impl<'a> Ring<'a> {
    async fn start(major: u16, arena: &'a Arena<'a>, sink: Sink) -> Result<Self, BenchError> {
        let mut options = ClusterOptions::major(major);
        for (name, value) in DEFAULTS {
            options = options.setting(name, value);
        }
        let cluster = Cluster::start(options).await?;
        let client = cluster.connect("postgres").await?;
        let row = client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await?;
        let secrets = SecretsServer::start().await.map_err(BenchError::io("cannot start Secrets Manager"))?;
        secrets.set(PASSKEY_SECRET, passkey_hash(&restore_binary()?)?);
        Ok(Self { arena, cluster, sink, secrets, system_identifier: row.get(0) })
    }

    /// As if nothing had been before.
    async fn fresh(&self, database: &str) -> Result<(), BenchError> {
        let postgres = self.cluster.connect("postgres").await?;
        postgres.batch_execute(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await?;
        postgres.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    fn postmaster_cpu(&self) -> Result<f64, BenchError> {
        let path = self.cluster.data_directory().join("postmaster.pid");
        let text = std::fs::read_to_string(path).map_err(BenchError::io("cannot read postmaster.pid"))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        Ok(tree_cpu_seconds(pid.ok_or_else(|| BenchError::Missing { what: "the server's process".to_owned() })?))
    }

    fn tool(&self, options: &[&str], database: &str) -> Command {
        let mut command = self.arena.client.command("pg_restore");
        command.args(options).args(["--exit-on-error", "--dbname", &self.cluster.url(database)]);
        command
    }

    async fn pg_restore(&self, exported: &Exported) -> Result<Sample, BenchError> {
        self.fresh("stock").await?;
        let before = self.postmaster_cpu()?;
        let began = Instant::now();
        self.cluster.create_database("stock").await?;
        let cost = Measured::spawn(self.tool(&["-j", "2"], "stock").arg(&exported.file))?.finish().await?;
        let sample = Sample {
            wall_seconds: (cost.ended - began).as_secs_f64(),
            client_cpu_seconds: cost.cpu_seconds,
            server_cpu_seconds: self.postmaster_cpu()? - before,
            peak_bytes: Some(cost.peak_bytes),
            ..Sample::default()
        };
        self.fresh("stock").await?;
        Ok(sample)
    }

    async fn pipe(&self, exported: &Exported) -> Result<Sample, BenchError> {
        self.fresh("stock").await?;
        let before = self.postmaster_cpu()?;
        let began = Instant::now();
        self.cluster.create_database("stock").await?;
        let mut aws = aws_copy(self.arena, &self.sink, &exported.key);
        let mut aws = Measured::spawn(aws.arg("-").stdout(Stdio::piped()))?;
        let dump = aws.child().stdout.take().map_or_else(Stdio::null, Stdio::from);
        let restore = Measured::spawn(self.tool(&[], "stock").stdin(dump))?;
        let (aws, restore) = tokio::try_join!(aws.finish(), restore.finish())?;
        let sample = Sample {
            wall_seconds: (restore.ended.max(aws.ended) - began).as_secs_f64(),
            client_cpu_seconds: restore.cpu_seconds + aws.cpu_seconds,
            server_cpu_seconds: self.postmaster_cpu()? - before,
            peak_bytes: Some(restore.peak_bytes + aws.peak_bytes),
            ..Sample::default()
        };
        self.fresh("stock").await?;
        Ok(sample)
    }

    /// Loading alone: what comes before the data is there already.
    async fn giant_pg_restore(&self, exported: &Exported) -> Result<Sample, BenchError> {
        self.fresh("stock").await?;
        self.cluster.create_database("stock").await?;
        Measured::spawn(self.tool(&["--section=pre-data"], "stock").arg(&exported.file))?.finish().await?;
        let before = self.postmaster_cpu()?;
        let began = Instant::now();
        let load = Measured::spawn(self.tool(&["-j", "2", "--section=data"], "stock").arg(&exported.file))?;
        let cost = load.finish().await?;
        let sample = Sample {
            wall_seconds: (cost.ended - began).as_secs_f64(),
            client_cpu_seconds: cost.cpu_seconds,
            server_cpu_seconds: self.postmaster_cpu()? - before,
            data_seconds: Some((cost.ended - began).as_secs_f64()),
            ..Sample::default()
        };
        self.fresh("stock").await?;
        Ok(sample)
    }

    /// Every row of what our restore has made, out over one connection.
    async fn copy(&self, exported: &Exported) -> Result<Sample, BenchError> {
        if self.cluster.connect("ours").await.is_err() {
            self.restore(exported).await?;
        }
        let client = self.cluster.connect("ours").await?;
        let tables =
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
        let mut psql = self.arena.client.command("psql");
        psql.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", &self.cluster.url("ours")]);
        for row in client.query(tables, &[]).await? {
            psql.arg("--command").arg(format!("COPY {} TO STDOUT", row.get::<_, String>(0)));
        }
        let before = self.postmaster_cpu()?;
        let began = Instant::now();
        let cost = Measured::spawn(psql.stdin(Stdio::null()).stdout(Stdio::null()))?.finish().await?;
        Ok(Sample {
            wall_seconds: (cost.ended - began).as_secs_f64(),
            client_cpu_seconds: cost.cpu_seconds,
            server_cpu_seconds: self.postmaster_cpu()? - before,
            ..Sample::default()
        })
    }

    /// A cold start of the function, one restore, and the end. The wall time is without the proof and `ANALYZE`, which
    /// the others do not do.
    async fn restore(&self, exported: &Exported) -> Result<Sample, BenchError> {
        self.fresh("ours").await?;
        let lambda = LambdaServer::start(LambdaOptions::default()).await?;
        lambda.register(self.spec()?);
        let instance = || lambda.instances(FUNCTION).first().copied();
        let before = self.postmaster_cpu()?;
        let began = Instant::now();
        let asked = json!({"backup": exported.id, "passkey": PASSKEY, "target_database": "ours"});
        let (outcome, mut peak) = watch_memory(instance, lambda.invoke(FUNCTION, asked)).await;
        let wall = began.elapsed().as_secs_f64();
        let outcome = outcome?;
        let receipt = outcome.payload.clone();
        if outcome.is_error() {
            return Err(BenchError::Restore { answer: format!("{receipt} {}", outcome.log.join("\n")) });
        }
        let pid = instance().ok_or_else(|| BenchError::Missing { what: "the function's instance".to_owned() })?;
        peak.sample(pid);
        let client_cpu_seconds = tree_cpu_seconds(pid);
        let server_cpu_seconds = self.postmaster_cpu()? - before;
        lambda.stop().await;
        let seconds = |name: &str| find(&receipt, "seconds").and_then(|seconds| seconds[name].as_f64()).unwrap_or(0.0);
        let building = seconds("before") + seconds("data") + seconds("after");
        Ok(Sample {
            wall_seconds: wall - (seconds("total") - building),
            client_cpu_seconds,
            server_cpu_seconds,
            peak_bytes: Some(peak.bytes.max(outcome.max_rss_kb * 1024)),
            data_seconds: Some(seconds("data")),
            proof_seconds: Some(seconds("proof")),
        })
    }

    fn spec(&self) -> Result<FunctionSpec, BenchError> {
        let server = S3Options::default();
        let mut spec = FunctionSpec::new(FUNCTION, restore_binary()?)
            .env("BUCKET", BUCKET)
            .env("ENVIRONMENT", "benchmark")
            .env("DATABASE_URL", self.cluster.url("postgres"))
            .env("S3_ENDPOINT_URL", &self.sink.endpoint)
            .env("S3_FORCE_PATH_STYLE", "true")
            .env("AWS_ACCESS_KEY_ID", server.access_key)
            .env("AWS_SECRET_ACCESS_KEY", server.secret_key)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", self.secrets.endpoint())
            .env("RESTORE_PASSKEY_SECRET_ARN", PASSKEY_SECRET)
            .env("TARGET_SYSTEM_IDENTIFIER", &self.system_identifier);
        spec.timeout = Duration::from_secs(3600);
        // Two workers.
        spec.memory_mb = 1769;
        Ok(spec)
    }
}

/// A field wherever in the answer it stands.
fn find<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let fields = value.as_object()?;
    fields.get(name).or_else(|| fields.values().find_map(|inner| find(inner, name)))
}

/// It lies beside this program.
fn restore_binary() -> Result<PathBuf, BenchError> {
    let program = std::env::current_exe().map_err(BenchError::io("cannot tell where this program is"))?;
    let directory = program.parent().unwrap_or(Path::new("."));
    let binary = directory.join(FUNCTION);
    if binary.is_file() {
        return Ok(binary);
    }
    Err(BenchError::NotBuilt { name: FUNCTION.to_owned(), directory: directory.to_owned() })
}

fn passkey_hash(binary: &Path) -> Result<String, BenchError> {
    let failed = "cannot hash the passkey";
    let child = Command::new(binary).arg("hash-passkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(BenchError::io(failed))?;
    if let Some(mut input) = child.stdin.take() {
        writeln!(input, "{PASSKEY}").map_err(BenchError::io(failed))?;
    }
    let output = child.wait_with_output().map_err(BenchError::io(failed))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
