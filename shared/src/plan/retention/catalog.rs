//! All manifests of a bucket, taken in newest first, and what is odd about them.
//!
//! A bucket may hold tens of thousands of manifests with thousands of tables each: a table's name is kept only until
//! the backup before it has been compared.

use std::collections::{HashMap, VecDeque};

use crate::domain::{BackupId, Environment};
use crate::plan::retention::record::{Measure, Record, Unreadable};

/// When the difference between two backups is an anomaly. Zero per cent: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub rows_percent: u64,
    pub bytes_percent: u64,
    pub vanished_tables: bool,
}

/// A backup holds so much less than the one before it that the one before may be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    pub environment: Environment,
    pub database: String,
    pub purpose: String,
    pub before: BackupId,
    pub after: BackupId,
    pub findings: Vec<String>,
}

/// So many backups that have been deleted are remembered until one is found that is there.
const DELETED: usize = 8;
/// How many vanished tables a finding names.
const NAMED: usize = 5;

#[derive(Debug)]
pub struct Catalog {
    thresholds: Thresholds,
    records: Vec<Record>,
    unreadable: Vec<Unreadable>,
    anomalies: Vec<Anomaly>,
    /// The oldest backups so far of each series, still to be compared with the one before them: one that is there, and
    /// what has been deleted before it. Oldest first.
    later: HashMap<Series, VecDeque<Later>>,
}

/// Backups that are alike enough to be compared: environment, database, purpose, selection.
type Series = (Environment, String, String, String);

#[derive(Debug)]
struct Later {
    id: BackupId,
    live: bool,
    measure: Measure,
}

impl Catalog {
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, records: Vec::new(), unreadable: Vec::new(), anomalies: Vec::new(), later: HashMap::new() }
    }

    /// Takes in the next older backup.
    pub fn add(&mut self, mut record: Record) {
        let measure = std::mem::take(&mut record.measure);
        // An export that cannot be restored counts other things than a dump does.
        if record.verified && record.restorable && measure.tables.is_some() {
            let selection = measure.selection.clone();
            let series = (record.environment.clone(), record.database.clone(), record.purpose.clone(), selection);
            let live = record.is_live();
            let later = self.later.entry(series).or_default();
            // Where the one before is gone already, there is nothing to hold on to.
            if let Some(first) = later.front().filter(|_| live) {
                let findings = compare(&measure, &first.measure, self.thresholds);
                // One that has been deleted is forgotten only if those after it hold again what it lacked.
                let fallen = |later: &&Later| !compare(&measure, &later.measure, self.thresholds).is_empty();
                if later.iter().take_while(fallen).any(|later| later.live) {
                    self.anomalies.push(Anomaly {
                        environment: record.environment.clone(),
                        database: record.database.clone(),
                        purpose: record.purpose.clone(),
                        before: record.id,
                        after: first.id,
                        findings,
                    });
                }
            }
            if live {
                later.clear();
            }
            later.push_front(Later { id: record.id, live, measure });
            later.truncate(DELETED);
        }
        self.records.push(record);
    }

    pub fn add_unreadable(&mut self, unreadable: Unreadable) {
        self.unreadable.push(unreadable);
    }

    /// Newest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Newest first.
    pub fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }
}

fn compare(before: &Measure, after: &Measure, thresholds: Thresholds) -> Vec<String> {
    let mut findings = Vec::new();
    if let (true, Some(before), Some(after)) = (thresholds.vanished_tables, &before.tables, &after.tables) {
        let gone: Vec<&str> =
            before.iter().filter(|name| after.binary_search(name).is_err()).map(String::as_str).collect();
        if !gone.is_empty() {
            let more = if gone.len() > NAMED { ", …" } else { "" };
            let named = gone[..gone.len().min(NAMED)].join(", ");
            findings.push(format!("{} of {} tables vanished: {named}{more}", gone.len(), before.len()));
        }
    }
    for (what, before, after, percent) in [
        ("rows", before.rows, after.rows, thresholds.rows_percent),
        ("bytes", before.bytes, after.bytes, thresholds.bytes_percent),
    ] {
        let lost = before.saturating_sub(after);
        if percent > 0 && lost > 0 && u128::from(lost) * 100 >= u128::from(before) * u128::from(percent) {
            findings.push(format!("{what} fell from {before} to {after}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rows_percent: 30, bytes_percent: 50, vanished_tables: true };

    fn measure(rows: u64, bytes: u64, tables: &[&str]) -> Measure {
        let tables = Some(tables.iter().map(|&name| name.to_owned()).collect());
        Measure { rows, bytes, tables, selection: String::new() }
    }

    #[test]
    fn each_threshold_is_met_from_its_edge_on() {
        let before = measure(1000, 1000, &["a", "b"]);
        for (after, findings) in [
            (measure(1000, 1000, &["a", "b"]), vec![]),
            (measure(5000, 9000, &["a", "b", "c"]), vec![]),
            (measure(701, 501, &["a", "b"]), vec![]),
            (measure(700, 501, &["a", "b"]), vec!["rows fell from 1000 to 700"]),
            (measure(701, 500, &["a", "b"]), vec!["bytes fell from 1000 to 500"]),
            (measure(1000, 1000, &["b"]), vec!["1 of 2 tables vanished: a"]),
            (
                measure(0, 0, &[]),
                vec!["2 of 2 tables vanished: a, b", "rows fell from 1000 to 0", "bytes fell from 1000 to 0"],
            ),
        ] {
            assert_eq!(compare(&before, &after, THRESHOLDS), findings);
        }
        let off = Thresholds { rows_percent: 0, bytes_percent: 0, vanished_tables: false };
        assert!(compare(&before, &measure(0, 0, &[]), off).is_empty());
        assert!(compare(&measure(0, 0, &["a"]), &measure(0, 0, &["a"]), THRESHOLDS).is_empty());
        let huge = measure(u64::MAX, u64::MAX, &["a"]);
        assert_eq!(compare(&huge, &measure(1, 1, &["a"]), THRESHOLDS).len(), 2);
    }

    #[test]
    fn the_names_of_many_vanished_tables_are_cut_short() {
        let names: Vec<String> = (0..100).map(|n| format!("t{n:03}")).collect();
        let before = measure(0, 0, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let found = compare(&before, &measure(0, 0, &[]), THRESHOLDS);
        assert_eq!(found, ["100 of 100 tables vanished: t000, t001, t002, t003, t004, …"]);
    }
}
