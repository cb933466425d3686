//! What the restore's measurements come to: a table of contestants, and what was to be reached.

use super::{Results, Sample};
use crate::measure::median;
use crate::report;
use crate::targets::Target;

const MEMORY_LIMIT_BYTES: f64 = 192e6;

pub fn render(machine: &[String], results: &Results) -> String {
    let mut text: String = machine.iter().map(|line| format!("- {line}\n")).collect();
    let middle = |samples: &[Sample], of: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(of));
    let wall = |sample: &Sample| Some(sample.wall_seconds);
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    let rows: Vec<Vec<String>> = results
        .entries
        .iter()
        .map(|(name, samples)| {
            let walls = || samples.iter().map(|sample| sample.wall_seconds);
            vec![
                (*name).to_owned(),
                shown(middle(samples, wall)),
                format!("{:.2}–{:.2}", walls().fold(f64::INFINITY, f64::min), walls().fold(0.0, f64::max)),
                shown(middle(samples, |sample| sample.data_seconds)),
                shown(middle(samples, |sample| sample.proof_seconds)),
                shown(middle(samples, |sample| Some(sample.client_cpu_seconds))),
                shown(middle(samples, |sample| Some(sample.server_cpu_seconds))),
                shown(middle(samples, |sample| sample.peak_bytes.map(|bytes| bytes as f64 / 1e6))),
            ]
        })
        .collect();
    let head = ["contestant", "wall s", "(least–most)", "data s", "proof s", "client CPU s", "server CPU s", "peak MB"];
    text.push('\n');
    text.push_str(&report::table(&head, &rows));
    text.push('\n');
    let targets: Vec<Vec<String>> = targets(results).iter().map(report::target_row).collect();
    text.push_str(&report::table(&["against", "reach", "measured", "ok?"], &targets));
    for failure in &results.failures {
        text.push_str(&format!("\nFAILED: {failure}\n"));
    }
    text
}

fn targets(results: &Results) -> Vec<Target> {
    let of = |name: &str, of: fn(&Sample) -> Option<f64>| {
        let (_, samples) = results.entries.iter().find(|(entry, _)| *entry == name)?;
        median(samples.iter().filter_map(of))
    };
    let wall = |sample: &Sample| Some(sample.wall_seconds);
    let mut targets = Vec::new();
    let mut compare = |against: &str, what: &str, limit: f64, ours: Option<f64>, theirs: Option<f64>| {
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            targets.push(Target::at_most(against, what, limit, ours / theirs));
        }
    };
    compare("`pg_restore -j 2` from a local file", "wall", 0.9, of("restore", wall), of("file", wall));
    compare("`aws s3 cp - \\| pg_restore`", "wall", 0.6, of("restore", wall), of("pipe", wall));
    let data = |sample: &Sample| sample.data_seconds;
    let giant = "one giant table, `pg_restore -j 2` from a local file";
    compare(giant, "load only", 0.65, of("giant-restore", data), of("giant-file", data));
    let proof = of("restore", |sample| sample.proof_seconds);
    compare("a bare COPY out on one connection", "proof", 0.5, proof, of("copy", wall));
    for name in ["restore", "giant-restore"] {
        if let Some(bytes) = of(name, |sample| sample.peak_bytes.map(|bytes| bytes as f64)) {
            targets.push(Target {
                against: format!("memory, 2 workers, {name}"),
                reach: "peak ≤ 192 MB".to_owned(),
                measured: format!("{:.0} MB", bytes / 1e6),
                met: Some(bytes <= MEMORY_LIMIT_BYTES),
            });
        }
    }
    targets
}
