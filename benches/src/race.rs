//! Who runs when: the contestants in turn, then the questions that need databases of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use holdfast_local::postgres::Installation;
use holdfast_local::proxy::{Proxy, ProxyOptions};
use serde::Serialize;

use crate::contestants::{Arena, Contestant, Sample};
use crate::database::{Content, Server};
use crate::error::{BenchError, chain};
use crate::export::{self, Exporter, Start};

/// Of each connection through the proxy.
const BYTES_PER_SECOND: u64 = 40_000_000;
/// The giant table's share of the scale: long enough for the streams, short enough to wait for.
const GIANT_SHARE: f64 = 0.5;
const START_RUNS: usize = 5;

pub struct Choice {
    pub contestants: Vec<Contestant>,
    pub parallel: bool,
    pub memory: bool,
    pub start: bool,
    pub gigabytes: f64,
    pub ten_gb: bool,
    pub runs: usize,
}

/// All runs of one contestant.
#[derive(Serialize)]
pub struct Entry {
    pub name: String,
    pub samples: Vec<Sample>,
}

#[derive(Serialize)]
pub struct MemoryRuns {
    pub gigabytes: f64,
    pub peak_bytes: Vec<u64>,
}

/// One giant table through the proxy, by number of workers.
#[derive(Default, Serialize)]
pub struct Parallel {
    pub text_bytes: u64,
    pub one_worker_seconds: Vec<f64>,
    pub four_workers_seconds: Vec<f64>,
}

#[derive(Default, Serialize)]
pub struct Results {
    pub race: Vec<Entry>,
    pub parallel: Option<Parallel>,
    pub memory: Vec<MemoryRuns>,
    pub cold_starts: Vec<Start>,
    pub warm_starts: Vec<Start>,
    pub notes: Vec<String>,
    pub failures: Vec<String>,
}

pub async fn race(
    choice: &Choice,
    server: &Server,
    client: &Installation,
    exporter: &Exporter,
    scratch: &Path,
) -> Result<Results, BenchError> {
    let mut results = Results::default();
    if !choice.contestants.is_empty() {
        let content = Content::Mixed(choice.gigabytes);
        server.prepare(content).await?;
        let relations = server.relations(content).await?;
        let arena = Arena { server, content, relations, client, exporter, scratch };
        take_turns(choice, &arena, &mut results).await?;
    }
    if choice.parallel {
        let outcome = Box::pin(parallel(choice, server, exporter)).await;
        results.parallel = results.kept("parallel", outcome);
    }
    if choice.memory {
        for gigabytes in [1.0].into_iter().chain(choice.ten_gb.then_some(10.0)) {
            let outcome = Box::pin(memory(choice.runs, gigabytes, server, exporter)).await;
            let runs = results.kept("memory", outcome);
            results.memory.extend(runs);
        }
    }
    if choice.start {
        let outcome = start(server, exporter).await;
        for [cold, warm] in results.kept("start", outcome).unwrap_or_default() {
            results.cold_starts.push(cold);
            results.warm_starts.push(warm);
        }
    }
    Ok(results)
}

impl Results {
    /// One that fails does not keep the others from running.
    fn kept<T>(&mut self, name: &str, outcome: Result<T, BenchError>) -> Option<T> {
        outcome.map_err(|error| self.failures.push(format!("{name}: {}", chain(&error)))).ok()
    }
}

/// A B C A B C …: what disturbs the machine for a while disturbs all alike.
async fn take_turns(choice: &Choice, arena: &Arena<'_>, results: &mut Results) -> Result<(), BenchError> {
    let mut present = Vec::new();
    for contestant in &choice.contestants {
        if let Contestant::PgDump { compress: Some(compress) } = contestant
            && !can_compress(arena, compress)?
        {
            let major = arena.client.major;
            results.notes.push(format!("{} left out: pg_dump {major} here cannot", contestant.name()));
            continue;
        }
        present.push(contestant);
        results.race.push(Entry { name: contestant.name(), samples: Vec::new() });
    }
    eprintln!("warming up");
    Box::pin(Contestant::Copy.run(arena)).await?;
    for run in 1..=choice.runs {
        for (index, contestant) in present.iter().enumerate() {
            let name = contestant.name();
            let outcome = Box::pin(contestant.run(arena)).await;
            if let Some(sample) = results.kept(&name, outcome) {
                let (wall, client, server) =
                    (sample.wall_seconds, sample.client_cpu_seconds, sample.server_cpu_seconds);
                eprintln!(
                    "run {run} {name}: {wall:.2} s, client CPU {client:.2} s, server CPU {server:.2} s, {:.0} MB",
                    sample.peak_bytes as f64 / 1e6
                );
                results.race[index].samples.push(sample);
            }
        }
    }
    Ok(())
}

/// Whether this build of `pg_dump` has the codec.
fn can_compress(arena: &Arena<'_>, compress: &str) -> Result<bool, BenchError> {
    let mut command = arena.client.command("pg_dump");
    command.args(["-Fc", "--schema-only"]).arg(format!("--compress={compress}"));
    command.arg("--dbname").arg(arena.server.url(arena.content));
    Ok(command.output().map_err(BenchError::io("cannot run pg_dump"))?.status.success())
}

async fn parallel(choice: &Choice, server: &Server, exporter: &Exporter) -> Result<Parallel, BenchError> {
    let content = Content::Giant(choice.gigabytes * GIANT_SHARE);
    server.prepare(content).await?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let options = ProxyOptions { bytes_per_second_per_connection: Some(BYTES_PER_SECOND), ..ProxyOptions::default() };
    let proxy = Proxy::start(target, options).await.map_err(BenchError::io("cannot start the proxy"))?;
    let url = server.url(content).replace(&target.to_string(), &proxy.addr().to_string());
    let mut measured = Parallel::default();
    for run in 1..=choice.runs {
        for workers in ["1", "4"] {
            let exported = export::run(exporter, &url, &[("WORKERS", workers), ("COMPRESSION", "zstd:1")]).await?;
            let wall = exported.wall_seconds;
            eprintln!("run {run} giant table, {workers} workers: {wall:.2} s");
            measured.text_bytes = exported.receipt["bytes"].as_u64().unwrap_or_default();
            let list =
                if workers == "1" { &mut measured.one_worker_seconds } else { &mut measured.four_workers_seconds };
            list.push(wall);
        }
    }
    Ok(measured)
}

async fn memory(runs: usize, gigabytes: f64, server: &Server, exporter: &Exporter) -> Result<MemoryRuns, BenchError> {
    let content = Content::Mixed(gigabytes);
    server.prepare(content).await?;
    let mut measured = MemoryRuns { gigabytes, peak_bytes: Vec::new() };
    for run in 1..=runs {
        let settings = [("WORKERS", "2"), ("COMPRESSION", "zstd:1")];
        let exported = export::run(exporter, &server.url(content), &settings).await?;
        eprintln!("run {run} memory at {gigabytes} GB: {:.0} MB", exported.peak_bytes as f64 / 1e6);
        measured.peak_bytes.push(exported.peak_bytes);
    }
    Ok(measured)
}

async fn start(server: &Server, exporter: &Exporter) -> Result<Vec<[Start; 2]>, BenchError> {
    server.prepare(Content::Small).await?;
    let mut starts = Vec::new();
    for _ in 0..START_RUNS {
        starts.push(export::cold_and_warm(exporter, &server.url(Content::Small)).await?);
    }
    Ok(starts)
}
