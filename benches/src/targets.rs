//! The ratios that are to be reached, and whether they are.

use crate::contestants::Sample;
use crate::measure::median;
use crate::race::{MemoryRuns, Results};

/// Shared by client and server.
const CORES: f64 = 2.0;
const MEMORY_LIMIT_BYTES: f64 = 192e6;
/// "The same at 1 GB and at 10 GB": what two runs may differ by.
const MEMORY_GROWTH: f64 = 1.10;

/// One line of the table. `met` is `None` where only the number is of interest.
pub struct Target {
    pub against: String,
    pub reach: String,
    pub measured: String,
    pub met: Option<bool>,
}

impl Target {
    pub fn at_most(against: impl Into<String>, what: &str, limit: f64, value: f64) -> Target {
        Target {
            against: against.into(),
            reach: format!("{what} ≤ {limit:.2} ×"),
            measured: format!("{value:.3} ×"),
            met: Some(value <= limit),
        }
    }

    pub fn for_information(against: impl Into<String>, what: &str, value: f64) -> Target {
        let (against, reach) = (against.into(), format!("{what} (for information)"));
        Target { against, reach, measured: format!("{value:.3} ×"), met: None }
    }
}

/// The middle of each measure.
pub fn middle(samples: &[Sample]) -> Option<Sample> {
    let of = |measure: fn(&Sample) -> f64| median(samples.iter().map(measure)).unwrap_or_default();
    let of_some = |measure: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(measure));
    (!samples.is_empty()).then(|| Sample {
        wall_seconds: of(|sample| sample.wall_seconds),
        client_cpu_seconds: of(|sample| sample.client_cpu_seconds),
        uploader_cpu_seconds: of_some(|sample| sample.uploader_cpu_seconds),
        server_cpu_seconds: of(|sample| sample.server_cpu_seconds),
        s3_cpu_seconds: of_some(|sample| sample.s3_cpu_seconds),
        peak_bytes: of(|sample| sample.peak_bytes as f64) as u64,
        stored_bytes: of_some(|sample| sample.stored_bytes.map(|bytes| bytes as f64)).map(|bytes| bytes as u64),
        text_bytes: of_some(|sample| sample.text_bytes.map(|bytes| bytes as f64)).map(|bytes| bytes as u64),
    })
}

pub fn targets(results: &Results) -> Vec<Target> {
    let of = |name: &str| results.race.iter().find(|entry| entry.name == name).and_then(|entry| middle(&entry.samples));
    let mut targets = Vec::new();
    let (ours, gzip) = (of("export-zstd:1"), of("export-gzip:1"));
    if let Some(theirs) = of("pg_dump-gzip") {
        let against = "`pg_dump -Fc` (its default gzip) piped to S3";
        for (export, what, limit) in [(&ours, "wall, zstd:1", 0.20), (&gzip, "wall, gzip:1", 0.25)] {
            let ratio = export.as_ref().map(|export| export.wall_seconds / theirs.wall_seconds);
            targets.extend(ratio.map(|ratio| Target::at_most(against, what, limit, ratio)));
        }
    }
    for (level, limits) in [("zstd:1", true), ("zstd:3", false)] {
        let (Some(export), Some(theirs)) = (of(&format!("export-{level}")), of(&format!("pg_dump-{level}"))) else {
            continue;
        };
        targets.extend(same_codec(level, limits, &export, &theirs));
    }
    for level in ["zstd:1", "gzip:1", "zstd:3"] {
        if let Some(export) = of(&format!("export-{level}")) {
            let ours = export.client_cpu_seconds + export.server_cpu_seconds;
            let against = format!("the CPU limit, (client + server CPU) / 2, {level}");
            targets.push(Target::at_most(against.as_str(), "wall", 1.10, export.wall_seconds / (ours / CORES)));
            // S3 is on the same two cores here, as it will not be elsewhere.
            let all = ours + export.s3_cpu_seconds.unwrap_or_default();
            let with_s3 = export.wall_seconds / (all / CORES);
            targets.push(Target::for_information(against, "wall, with the S3 server's CPU", with_s3));
        }
    }
    if let (Some(export), Some(zstd), Some(copy)) = (&ours, of("zstd"), of("copy")) {
        let bound = zstd.client_cpu_seconds + copy.client_cpu_seconds;
        let against = "the codec's limit, `zstd -1` alone + the bare COPY's client";
        targets.push(Target::at_most(against, "client CPU", 1.20, export.client_cpu_seconds / bound));
        let bare = "the bare COPY on 2 connections";
        targets.push(Target::for_information(bare, "wall, zstd:1", export.wall_seconds / copy.wall_seconds));
    }
    targets.extend(parallel(results));
    targets.extend(memory(results, ours.as_ref()));
    targets.extend(start(results));
    targets
}

fn same_codec(level: &str, limits: bool, export: &Sample, theirs: &Sample) -> Vec<Target> {
    let against = format!("`pg_dump -Fc --compress={level}` piped to S3, ours at {level}");
    let wall = export.wall_seconds / theirs.wall_seconds;
    let cpu = export.client_cpu_seconds / theirs.client_cpu_seconds;
    let with_uploader = theirs.client_cpu_seconds + theirs.uploader_cpu_seconds.unwrap_or_default();
    let stored = export.stored_bytes.unwrap_or_default() as f64 / theirs.stored_bytes.unwrap_or_default() as f64;
    let uploader = "client CPU, with the uploader's on their side";
    let for_information = |what, value| Target::for_information(against.as_str(), what, value);
    let uploading = for_information(uploader, export.client_cpu_seconds / with_uploader);
    if !limits {
        return vec![
            for_information("wall", wall),
            for_information("client CPU", cpu),
            uploading,
            for_information("stored size", stored),
        ];
    }
    let at_most = |what, limit, value| Target::at_most(against.as_str(), what, limit, value);
    vec![at_most("wall", 0.95, wall), at_most("client CPU", 1.0, cpu), uploading, at_most("stored size", 1.02, stored)]
}

fn parallel(results: &Results) -> Option<Target> {
    let runs = results.parallel.as_ref()?;
    let one = median(runs.one_worker_seconds.iter().copied())?;
    let four = median(runs.four_workers_seconds.iter().copied())?;
    Some(Target {
        against: format!("one giant table of {:.2} GB, 4 workers, 40 MB/s a connection", runs.text_bytes as f64 / 1e9),
        reach: "≥ 3.6 × one worker".to_owned(),
        measured: format!("{:.2} × ({one:.1} s, {four:.1} s)", one / four),
        met: Some(one / four >= 3.6),
    })
}

fn memory(results: &Results, race: Option<&Sample>) -> Vec<Target> {
    let peak = |runs: &MemoryRuns| median(runs.peak_bytes.iter().map(|&bytes| bytes as f64));
    let in_race = race.map(|sample| ("the race's database".to_owned(), sample.peak_bytes as f64));
    let alone = results.memory.iter().filter_map(|runs| Some((format!("{} GB", runs.gigabytes), peak(runs)?)));
    let mut targets: Vec<Target> = in_race
        .into_iter()
        .chain(alone)
        .map(|(label, bytes)| Target {
            against: format!("memory, 2 workers, {label}"),
            reach: "peak ≤ 192 MB".to_owned(),
            measured: format!("{:.0} MB", bytes / 1e6),
            met: Some(bytes <= MEMORY_LIMIT_BYTES),
        })
        .collect();
    if let [small, .., large] = results.memory.as_slice()
        && let (Some(small), Some(large)) = (peak(small), peak(large))
    {
        targets.push(Target::at_most("memory, 10 GB against 1 GB", "peak", MEMORY_GROWTH, large / small));
    }
    targets
}

fn start(results: &Results) -> Vec<Target> {
    let starts = [("cold", &results.cold_starts), ("warm", &results.warm_starts)];
    let measured = starts.into_iter().filter_map(|(label, starts)| {
        let first_row = median(starts.iter().map(|start| start.first_row_seconds))?;
        let answer = median(starts.iter().map(|start| start.answer_seconds))?;
        Some(Target {
            against: format!("start, small schema, {label}"),
            reach: "first row read < 0.5 s after the invocation".to_owned(),
            measured: format!("{first_row:.3} s (answer after {answer:.3} s)"),
            met: Some(first_row < 0.5),
        })
    });
    measured.collect()
}
