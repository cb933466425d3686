//! The demo: a sample database is exported by the real function, restored by stock `pg_restore`, and both are compared;
//! then a mistake is made, and undone by the real restore.

mod compare;
mod disaster;
mod invoke;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client as S3;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::DisplayErrorContext;
use holdfast_local::postgres::{Cluster, PostgresError};
use holdfast_local::sample;
use holdfast_local::stack::{DATABASE, Stack, StackError, StackOptions};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the stack did not start")]
    Stack {
        #[from]
        source: StackError,
    },
    #[error("cannot use the stack's database")]
    Database {
        #[from]
        source: PostgresError,
    },
    #[error("cannot fill or read the sample database")]
    Sql {
        #[from]
        source: tokio_postgres::Error,
    },
    #[error("the stack has no database of its own")]
    NoDatabase,
    #[error("the function could not be invoked")]
    Invoke {
        #[from]
        source: invoke::InvokeError,
    },
    #[error("the export failed: {payload}")]
    ExportFailed { payload: Value },
    #[error("the receipt names no dump: {receipt}")]
    NoDump { receipt: Value },
    #[error("{operation} failed: {message}")]
    S3 { operation: &'static str, message: String },
    #[error("cannot write the downloaded dump")]
    Download {
        #[source]
        source: io::Error,
    },
    #[error("cannot run {program}")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the swap failed: {payload}")]
    SwapFailed { payload: Value },
    #[error("pg_restore failed: {output}")]
    Restore { output: String },
}

/// Prints lines with the seconds since the demo began.
#[derive(Clone, Copy)]
struct Progress(Instant);

impl Progress {
    fn say(self, text: impl AsRef<str>) {
        println!("[{:5.1} s] {}", self.0.elapsed().as_secs_f64(), text.as_ref());
    }
}

/// Success only if every table is equal on both sides.
pub async fn run() -> Result<ExitCode, DemoError> {
    let progress = Progress(Instant::now());
    progress.say("starting S3, Lambda and PostgreSQL on this machine");
    let stack = Stack::start(StackOptions::default()).await?;
    let cluster = stack.postgres.as_ref().ok_or(DemoError::NoDatabase)?;
    let about = &stack.description;
    progress.say(format!("PostgreSQL {} on port {}, S3 at {}", cluster.major(), cluster.port(), about.s3));

    let source = cluster.connect(DATABASE).await?;
    sample::fill(&source, |step| progress.say(format!("filling {DATABASE}: {step}"))).await?;

    progress.say(format!("aws lambda invoke --endpoint-url {} --function-name scheduled-export", about.lambda));
    let receipt = export(&stack, progress).await?;

    let s3 = s3_client(&stack);
    progress.say(format!("aws s3 ls --recursive s3://{}/", about.bucket));
    list(&s3, &about.bucket).await?;

    let key = receipt["artifacts"]["dump"]["key"].as_str();
    let key = key.ok_or_else(|| DemoError::NoDump { receipt: receipt.clone() })?;
    let folder = tempfile::tempdir().map_err(|source| DemoError::Download { source })?;
    let dump = folder.path().join("sample.dump");
    let bytes = download(&s3, &about.bucket, key, &dump).await?;
    progress.say(format!("downloaded {key}: {bytes} bytes"));

    let restored = format!("{DATABASE}_restored");
    restore(&stack, cluster, &dump, &restored, progress).await?;
    progress.say("comparing row counts and fingerprints, computed by SQL on both sides");
    let comparison = compare::compare(&source, &cluster.connect(&restored).await?).await?;
    print!("{}", comparison.render(DATABASE, &restored));
    let mut equal = verdict(&comparison, progress);
    drop(source);

    disaster::strike(cluster, progress).await?;
    let id = receipt["id"].as_str().ok_or_else(|| DemoError::NoDump { receipt: receipt.clone() })?;
    disaster::swap_back(&stack, id, progress).await?;
    progress.say(format!("comparing {DATABASE}, as applications see it now, with what pg_restore made"));
    let comparison = compare::compare(&cluster.connect(DATABASE).await?, &cluster.connect(&restored).await?).await?;
    equal &= verdict(&comparison, progress);
    stack.stop().await;
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(comparison: &compare::Comparison, progress: Progress) -> bool {
    let differences = comparison.differences();
    if differences == 0 {
        progress.say("every table, sequence and large object is equal");
    } else {
        progress.say(format!("{differences} DIFFER"));
    }
    differences == 0
}

async fn export(stack: &Stack, progress: Progress) -> Result<Value, DemoError> {
    let invoking = invoke::invoke(&stack.description.lambda, "scheduled-export", r#"{"purpose":"demo"}"#);
    tokio::pin!(invoking);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let answer = loop {
        tokio::select! {
            answer = &mut invoking => break answer?,
            _ = ticks.tick() => progress.say("exporting"),
        }
    };
    if answer.failed {
        for line in stack.lambda.logs("scheduled-export") {
            eprintln!("{line}");
        }
        return Err(DemoError::ExportFailed { payload: answer.payload });
    }
    let receipt = answer.payload;
    progress.say(format!(
        "exported: backup {}, {} tables, {} rows, {} bytes of row text",
        receipt["id"].as_str().unwrap_or("?"),
        receipt["tables"],
        receipt["rows"],
        receipt["bytes"]
    ));
    for warning in receipt["warnings"].as_array().into_iter().flatten() {
        progress.say(format!("warning: {warning}"));
    }
    Ok(receipt)
}

fn s3_client(stack: &Stack) -> S3 {
    let about = &stack.description;
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(&about.s3)
        .region(Region::new(about.region.clone()))
        .credentials_provider(Credentials::new(&about.access_key, &about.secret_key, None, None, "local stack"))
        .force_path_style(true)
        .build();
    S3::from_conf(config)
}

fn s3_error<E: std::error::Error>(operation: &'static str) -> impl FnOnce(E) -> DemoError {
    move |error| DemoError::S3 { operation, message: DisplayErrorContext(error).to_string() }
}

async fn list(s3: &S3, bucket: &str) -> Result<(), DemoError> {
    let mut pages = s3.list_objects_v2().bucket(bucket).into_paginator().send();
    while let Some(page) = pages.next().await {
        for object in page.map_err(s3_error("ListObjectsV2"))?.contents() {
            let modified = object.last_modified().map_or(0, aws_sdk_s3::primitives::DateTime::secs);
            let modified = jiff::Timestamp::from_second(modified).unwrap_or_default();
            let (size, key) = (object.size().unwrap_or_default(), object.key().unwrap_or_default());
            println!("          {} {size:>10} {key}", modified.strftime("%Y-%m-%d %H:%M:%S"));
        }
    }
    Ok(())
}

async fn download(s3: &S3, bucket: &str, key: &str, to: &Path) -> Result<u64, DemoError> {
    let object = s3.get_object().bucket(bucket).key(key).send().await.map_err(s3_error("GetObject"))?;
    let failed = |source| DemoError::Download { source };
    let mut file = tokio::fs::File::create(to).await.map_err(failed)?;
    let bytes = tokio::io::copy(&mut object.body.into_async_read(), &mut file).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    Ok(bytes)
}

async fn restore(
    stack: &Stack,
    cluster: &Cluster,
    dump: &Path,
    database: &str,
    progress: Progress,
) -> Result<(), DemoError> {
    cluster.create_database(database).await?;
    let program = stack.client.tool("pg_restore");
    progress.say(format!("{} --jobs 2 --exit-on-error --dbname {database}", program.display()));
    let port = cluster.port().to_string();
    let output = Command::new(&program)
        .args(["--jobs=2", "--exit-on-error", "--no-password", "--host=127.0.0.1", "--username=postgres"])
        .args(["--port", &port, "--dbname", database])
        .arg(dump)
        .env("PGPASSWORD", cluster.password())
        .output()
        .await
        .map_err(|source| DemoError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(DemoError::Restore { output: String::from_utf8_lossy(&output.stderr).into_owned() })
}
