//! This export as a contestant: the function's binary under the local Lambda endpoint, measured for itself alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_local::lambda::{FunctionSpec, InvokeOutcome, LambdaOptions, LambdaServer};
use holdfast_local::s3::S3Options;
use serde::Serialize;
use serde_json::{Value, json};

use crate::contestants::Sample;
use crate::error::BenchError;
use crate::measure::{MemoryPeak, tree_cpu_seconds, watch_memory};
use crate::sink::{BUCKET, Sink};

const FUNCTION: &str = "scheduled-export";

/// What does not change from run to run.
pub struct Exporter {
    binary: PathBuf,
    pg_dump: PathBuf,
}

impl Exporter {
    /// The function's binary lies beside this program.
    pub fn find(pg_dump: PathBuf) -> Result<Exporter, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::io("cannot tell where this program is"))?;
        let directory = program.parent().unwrap_or(Path::new("."));
        let binary = directory.join(FUNCTION);
        if !binary.is_file() {
            return Err(BenchError::NotBuilt { name: FUNCTION.to_owned(), directory: directory.to_owned() });
        }
        Ok(Exporter { binary, pg_dump })
    }

    fn spec(&self, database_url: &str, s3: &str, settings: &[(&str, &str)]) -> FunctionSpec {
        let server = S3Options::default();
        let mut spec = FunctionSpec::new(FUNCTION, &self.binary)
            .env("BUCKET", BUCKET)
            .env("ENVIRONMENT", "benchmark")
            .env("DATABASE_URL", database_url)
            .env("PG_DUMP", self.pg_dump.display().to_string())
            .env("S3_ENDPOINT_URL", s3)
            .env("S3_FORCE_PATH_STYLE", "true")
            .env("AWS_ACCESS_KEY_ID", server.access_key)
            .env("AWS_SECRET_ACCESS_KEY", server.secret_key)
            .env("AWS_EC2_METADATA_DISABLED", "true");
        spec.timeout = Duration::from_secs(3600);
        spec.memory_mb = 1769;
        for (name, value) in settings {
            spec = spec.env(*name, *value);
        }
        spec
    }
}

/// One export by an instance.
pub struct ExportRun {
    pub wall_seconds: f64,
    /// Of the instance and its `pg_dump`, its start included.
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
    pub receipt: Value,
    pub s3_cpu_seconds: f64,
    pub stored_bytes: u64,
}

impl ExportRun {
    pub fn sample(&self) -> Sample {
        Sample {
            wall_seconds: self.wall_seconds,
            client_cpu_seconds: self.cpu_seconds,
            s3_cpu_seconds: Some(self.s3_cpu_seconds),
            peak_bytes: self.peak_bytes,
            stored_bytes: Some(self.stored_bytes),
            text_bytes: self.receipt["bytes"].as_u64(),
            ..Sample::default()
        }
    }
}

/// A cold start, one export, and the end.
pub async fn run(exporter: &Exporter, database_url: &str, settings: &[(&str, &str)]) -> Result<ExportRun, BenchError> {
    let sink = Sink::start()?;
    let lambda = LambdaServer::start(LambdaOptions::default()).await?;
    lambda.register(exporter.spec(database_url, &sink.endpoint, settings));
    let began = Instant::now();
    let (outcome, mut peak) = watch_memory(|| instance(&lambda), invoke(&lambda)).await;
    let wall_seconds = began.elapsed().as_secs_f64();
    let outcome = outcome?;
    // It is idle now, and still there.
    let pid = instance(&lambda).ok_or_else(|| BenchError::Missing { what: "the function's instance".to_owned() })?;
    let cpu_seconds = tree_cpu_seconds(pid);
    peak.sample(pid);
    let peak = MemoryPeak { bytes: peak.bytes.max(outcome.max_rss_kb * 1024) };
    lambda.stop().await;
    let stored = sink.finish().await?;
    Ok(ExportRun {
        wall_seconds,
        cpu_seconds,
        peak_bytes: peak.bytes,
        receipt: outcome.payload,
        s3_cpu_seconds: stored.cost.cpu_seconds,
        stored_bytes: stored.largest_object_bytes,
    })
}

/// One export into an S3 server that stays; the receipt.
pub async fn export_to(exporter: &Exporter, database_url: &str, endpoint: &str) -> Result<Value, BenchError> {
    let lambda = LambdaServer::start(LambdaOptions::default()).await?;
    lambda.register(exporter.spec(database_url, endpoint, &[("WORKERS", "2"), ("COMPRESSION", "zstd:1")]));
    let outcome = invoke(&lambda).await;
    lambda.stop().await;
    Ok(outcome?.payload)
}

/// From one invocation to its first row and to its answer; the start of a cold instance counts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Start {
    pub first_row_seconds: f64,
    pub answer_seconds: f64,
}

/// The same instance's first invocation, and its second.
pub async fn cold_and_warm(exporter: &Exporter, database_url: &str) -> Result<[Start; 2], BenchError> {
    let sink = Sink::start()?;
    let lambda = LambdaServer::start(LambdaOptions::default()).await?;
    lambda.register(exporter.spec(database_url, &sink.endpoint, &[("WORKERS", "2")]));
    let mut starts = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        let outcome = invoke(&lambda).await?;
        let answer_seconds = began.elapsed().as_secs_f64();
        let first_row = outcome.payload["durations_seconds"]["to_first_row"].as_f64();
        let missing = || BenchError::Missing { what: "the time to the first row".to_owned() };
        // The manifest counts from the handler's begin.
        let before_the_handler = (answer_seconds - outcome.billed.as_secs_f64()).max(0.0);
        starts.push(Start { first_row_seconds: before_the_handler + first_row.ok_or_else(missing)?, answer_seconds });
    }
    lambda.stop().await;
    sink.finish().await?;
    Ok([starts[0], starts[1]])
}

fn instance(lambda: &LambdaServer) -> Option<u32> {
    lambda.instances(FUNCTION).first().copied()
}

async fn invoke(lambda: &LambdaServer) -> Result<InvokeOutcome, BenchError> {
    let outcome = lambda.invoke(FUNCTION, json!({"purpose": "benchmark"})).await?;
    if outcome.is_error() {
        return Err(BenchError::Export { answer: format!("{} {}", outcome.payload, outcome.log.join("\n")) });
    }
    Ok(outcome)
}
