//! The results as tables that read well in a terminal and as Markdown.

use std::fmt::Write;
use std::process::Command;

use holdfast_local::postgres::Installation;

use crate::database::Server;
use crate::race::{Entry, Results};
use crate::targets::{Target, middle, targets};

/// What the numbers hold for.
pub fn machine(server: &Server, client: &Installation, gigabytes: f64, runs: usize) -> Vec<String> {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let profile = if cfg!(debug_assertions) { "a DEBUG build: its numbers mean nothing" } else { "release build" };
    let pg_dump = first_line(client.command("pg_dump").arg("--version"));
    let zstd = first_line(Command::new("zstd").arg("--version"));
    vec![
        format!("{}, {profile}", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")),
        format!("{cores} × {}, {:.0} GB of memory", field("/proc/cpuinfo", "model name"), memory / 1e6),
        format!("PostgreSQL {} on the same machine; {pg_dump}; {zstd}", server.major()),
        format!("asked for {gigabytes} GB of row text; medians of {runs} runs, contestants in turn"),
    ]
}

fn first_line(command: &mut Command) -> String {
    let output =
        command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    output.lines().next().unwrap_or_default().trim_matches('*').trim().to_owned()
}

pub fn render(machine: &[String], results: &Results) -> String {
    let mut text = String::new();
    for line in machine.iter().chain(&results.notes) {
        let _ = writeln!(text, "- {line}");
    }
    if !results.race.is_empty() {
        let head = [
            "contestant",
            "wall s",
            "(least–most)",
            "client CPU s",
            "uploader CPU s",
            "server CPU s",
            "S3 CPU s",
            "peak MB",
            "stored MB",
            "text MB/s",
        ];
        text.push('\n');
        text.push_str(&table(&head, &results.race.iter().map(race_row).collect::<Vec<_>>()));
    }
    let targets = targets(results);
    if !targets.is_empty() {
        text.push('\n');
        let rows: Vec<Vec<String>> = targets.iter().map(target_row).collect();
        text.push_str(&table(&["against", "reach", "measured", "ok?"], &rows));
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nFAILED: {failure}");
    }
    text
}

fn race_row(entry: &Entry) -> Vec<String> {
    let seconds = |value: f64| format!("{value:.2}");
    let optional = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let Some(sample) = middle(&entry.samples) else { return vec![entry.name.clone(), "failed".to_owned()] };
    let walls = || entry.samples.iter().map(|sample| sample.wall_seconds);
    let (least, most) = (walls().fold(f64::INFINITY, f64::min), walls().fold(0.0, f64::max));
    vec![
        entry.name.clone(),
        seconds(sample.wall_seconds),
        format!("{least:.2}–{most:.2}"),
        seconds(sample.client_cpu_seconds),
        optional(sample.uploader_cpu_seconds.map(seconds)),
        seconds(sample.server_cpu_seconds),
        optional(sample.s3_cpu_seconds.map(seconds)),
        format!("{:.0}", sample.peak_bytes as f64 / 1e6),
        optional(sample.stored_bytes.map(|bytes| format!("{:.1}", bytes as f64 / 1e6))),
        optional(sample.text_bytes.map(|bytes| format!("{:.0}", bytes as f64 / 1e6 / sample.wall_seconds))),
    ]
}

pub fn target_row(target: &Target) -> Vec<String> {
    let met = match target.met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    vec![target.against.clone(), target.reach.clone(), target.measured.clone(), met.to_owned()]
}

/// A Markdown table with its columns aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().chain([&head]).map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String]| {
        let cells = widths.iter().enumerate().map(|(column, &width)| format!("{:width$}", cell(row, column)));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    [head, rule].iter().chain(rows).map(|row| line(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["ä".to_owned(), "1".to_owned()], vec!["bcd".to_owned()]];
        assert_eq!(table(&["a", "n"], &rows), "| a   | n |\n| --- | - |\n| ä   | 1 |\n| bcd |   |\n");
    }
}
