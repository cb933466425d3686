//! `holdfast-benches export` times the export against `pg_dump`, against the bare COPY and against the codec alone, in one
//! run on one machine. Build with `--release`, and leave the machine alone while it runs. The targets are set for two cores: on
//! a machine with more, begin the command with `taskset -c 0,1`, which holds for every process that it starts.

mod contestants;
mod data;
mod database;
mod error;
mod export;
mod measure;
mod race;
mod report;
mod restore;
mod sink;
mod targets;
mod uploader;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use holdfast_local::postgres::Installation;
use serde_json::json;

use crate::contestants::Contestant;
use crate::database::Server;
use crate::error::{BenchError, chain};
use crate::export::Exporter;
use crate::race::{Choice, race};

#[derive(Parser)]
#[command(name = "holdfast-benches", about = "How fast the export is, and what it costs")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Runs the benchmark and prints its tables. Fails only if a contestant failed, whatever the numbers are.
    Export(Export),
    /// Restores what an export made, and what stock tools make of it, and prints the tables.
    Restore(Restore),
    /// Uploads standard input to an S3 endpoint.
    #[command(hide = true)]
    PipeToS3 { endpoint: String },
    /// Serves S3 from memory until standard input ends.
    #[command(hide = true)]
    S3Sink,
}

/// What both races take.
#[derive(Args)]
struct Race {
    /// GB (10^9 bytes) of row text.
    #[arg(long, default_value_t = 3.3)]
    scale: f64,
    /// Runs of each contestant.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Keep the generated databases here for the next call.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Of the servers.
    #[arg(long, default_value_t = 17)]
    major: u16,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl Race {
    /// Where what is needed only meanwhile goes.
    fn scratch(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }

    fn tell(&self, text: &str) -> Result<(), BenchError> {
        print!("{text}");
        match &self.markdown {
            Some(path) => std::fs::write(path, text).map_err(BenchError::io("cannot write the Markdown file")),
            None => Ok(()),
        }
    }
}

#[derive(Args)]
struct Export {
    #[command(flatten)]
    race: Race,
    /// Only these, separated by commas: contestants by name (export-zstd:9 and the like too), parallel, memory, start.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure the memory at 10 GB, too: 13 GB of disk and some minutes more.
    #[arg(long)]
    ten_gb: bool,
    /// Write every single measurement to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Restore {
    #[command(flatten)]
    race: Race,
    /// Only these, separated by commas: file, pipe, restore, copy, giant-file, giant-restore.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The AWS CLI.
    #[arg(long, default_value = ".venv/bin/aws")]
    aws: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Export(options) => Box::pin(run(options)).await,
        Role::Restore(options) => Box::pin(restore(options)).await,
        Role::PipeToS3 { endpoint } => Box::pin(uploader::upload_standard_input(&endpoint)).await.map(|()| true),
        Role::S3Sink => sink::serve().await.map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether every contestant finished.
async fn run(options: Export) -> Result<bool, BenchError> {
    let choice = choose(&options)?;
    let client = client(options.race.major)?;
    let exporter = Exporter::find(client.tool("pg_dump"))?;
    let server = Server::start(options.race.major, options.race.data.as_deref()).await?;
    let scratch = options.race.scratch();

    let results = race(&choice, &server, &client, &exporter, &scratch).await?;
    let machine = report::machine(&server, &client, choice.gigabytes, choice.runs);
    server.stop().await?;
    let text = report::render(&machine, &results);
    options.race.tell(&text)?;
    if let Some(path) = &options.json {
        let all = json!({"machine": machine, "gigabytes": choice.gigabytes, "results": results});
        std::fs::write(path, format!("{all:#}\n")).map_err(BenchError::io("cannot write the JSON file"))?;
    }
    Ok(results.failures.is_empty())
}

async fn restore(options: Restore) -> Result<bool, BenchError> {
    let client = client(options.race.major)?;
    let exporter = Exporter::find(client.tool("pg_dump"))?;
    let scratch = options.race.scratch();
    let choice = restore::Choice { only: options.only, gigabytes: options.race.scale, runs: options.race.runs.into() };
    let arena = restore::Arena { client: &client, exporter: &exporter, aws: options.aws, scratch: &scratch };
    let server = Server::start(options.race.major, options.race.data.as_deref()).await?;
    let machine = report::machine(&server, &client, choice.gigabytes, choice.runs);
    let results = restore::race(&choice, &arena, server).await?;
    let text = restore::render(&machine, &results);
    options.race.tell(&text)?;
    Ok(results.failures.is_empty())
}

fn choose(options: &Export) -> Result<Choice, BenchError> {
    const OTHERS: [&str; 3] = ["parallel", "memory", "start"];
    let all = options.only.is_empty();
    let asked = |name: &str| all || options.only.iter().any(|only| only == name);
    let mut contestants = if all { Contestant::usual() } else { Vec::new() };
    for name in options.only.iter().filter(|name| !OTHERS.contains(&name.as_str())) {
        contestants.push(Contestant::parse(name).ok_or_else(|| unknown(name, &OTHERS))?);
    }
    Ok(Choice {
        contestants,
        parallel: asked("parallel"),
        memory: asked("memory"),
        start: asked("start"),
        gigabytes: options.race.scale,
        ten_gb: options.ten_gb,
        runs: usize::from(options.race.runs),
    })
}

fn unknown(name: &str, others: &[&str]) -> BenchError {
    let usual = Contestant::usual().iter().map(Contestant::name).collect::<Vec<_>>().join(", ");
    BenchError::UnknownContestant { name: name.to_owned(), known: format!("{usual}, {}", others.join(", ")) }
}

/// One client for `pg_dump` and for the export, as for a release: 17 if it will do, else the oldest that does.
fn client(server_major: u16) -> Result<Installation, BenchError> {
    let preferred = Installation::client(17).ok().filter(|client| client.major >= server_major);
    Ok(preferred.map_or_else(|| Installation::client_at_least(server_major), Ok)?)
}
