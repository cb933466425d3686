//! `local up` leaves the local stack running; `local demo` shows a backup and its restore from end to end.

mod demo;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use holdfast_local::postgres::PostgresError;
use holdfast_local::sample;
use holdfast_local::stack::{DATABASE, Stack, StackError, StackOptions};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "local", about = "Holdfast's local stack: S3, Lambda and PostgreSQL on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the stack until Ctrl-C. Prints one line of JSON on standard output when it is ready.
    Up(Up),
    /// Fills a sample database, exports it, restores the dump with pg_restore and compares the two; empties a table and
    /// restores it by a swap.
    Demo,
}

#[derive(Args)]
struct Up {
    /// Export this database (postgres://…) instead of a PostgreSQL of the stack's own with sample data.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Keep the bucket's content in this directory. Otherwise it is in memory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Leave the stack's own database without sample data.
    #[arg(long)]
    empty: bool,
    #[arg(long, value_name = "PORT", default_value_t = 0, help = "Port of the S3 endpoint; 0 takes a free one")]
    s3_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 0, help = "Port of the Lambda endpoint; 0 takes a free one")]
    lambda_port: u16,
}

#[derive(Debug, thiserror::Error)]
enum UpError {
    #[error("--database-url is no URL like postgres://user:password@host:5432/database")]
    Url {
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("the stack did not start")]
    Stack {
        #[from]
        source: StackError,
    },
    #[error("cannot reach the stack's database")]
    Database {
        #[from]
        source: PostgresError,
    },
    #[error("cannot fill the sample database")]
    Sample {
        #[from]
        source: tokio_postgres::Error,
    },
    #[error("cannot write to standard output or wait for signals")]
    Io {
        #[from]
        source: std::io::Error,
    },
    #[error("cannot describe the stack")]
    Json {
        #[from]
        source: serde_json::Error,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    let result: Result<ExitCode, Box<dyn Error>> = match Cli::parse().command {
        Command::Up(options) => Box::pin(up(options)).await.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Demo => Box::pin(demo::run()).await.map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// An error and its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn up(options: Up) -> Result<(), UpError> {
    if let Some(url) = &options.database_url {
        url.parse::<tokio_postgres::Config>().map_err(|source| UpError::Url { source })?;
    }
    // Before anything is started, so that no signal finds it half way.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let starting = async {
        let stack = Stack::start(StackOptions {
            database_url: options.database_url,
            data_dir: options.data,
            s3_port: options.s3_port,
            lambda_port: options.lambda_port,
            echo_logs: true,
            ..StackOptions::default()
        })
        .await?;
        if let Some(cluster) = stack.postgres.as_ref().filter(|_| !options.empty) {
            let client = cluster.connect(DATABASE).await?;
            sample::fill(&client, |step| eprintln!("sample database: {step}")).await?;
        }
        Ok::<_, UpError>(stack)
    };
    let stack = tokio::select! {
        started = starting => started?,
        _ = interrupted.recv() => return Ok(()),
        _ = terminated.recv() => return Ok(()),
    };

    let mut output = std::io::stdout();
    writeln!(output, "{}", serde_json::to_string(&stack.description)?)?;
    output.flush()?;
    if let Some(problem) = &stack.unreachable {
        eprintln!(
            "warning: the database does not answer here ({problem}): exports fail and say why, restores are refused"
        );
    }
    let about = &stack.description;
    eprintln!("ready; Ctrl-C stops it. To try it in another terminal:");
    eprintln!(
        "  export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_REGION={} AWS_DEFAULT_REGION={}",
        about.access_key, about.secret_key, about.region, about.region
    );
    eprintln!(
        "  aws lambda invoke --endpoint-url {} --function-name scheduled-export --payload '{{}}' out.json",
        about.lambda
    );
    eprintln!(
        "  aws lambda invoke --endpoint-url {} --function-name restore-trigger --payload '{{\"backup\":\"latest\",\"passkey\":\"{}\"}}' out.json",
        about.lambda, about.passkey
    );
    for (function, payload) in
        [("retention", "{\"dry_run\":true}"), ("snapshot-export", "{}"), ("snapshot-export", "{\"mode\":\"poll\"}")]
    {
        eprintln!(
            "  aws lambda invoke --endpoint-url {} --function-name {function} --payload '{payload}' out.json",
            about.lambda
        );
    }
    eprintln!("  aws s3 ls --recursive --endpoint-url {} s3://{}/", about.s3, about.bucket);

    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    eprintln!("stopping");
    stack.stop().await;
    Ok(())
}
