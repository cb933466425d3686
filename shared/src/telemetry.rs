//! Structured logs on standard output, and metrics in CloudWatch's embedded metric format.

use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// The metric namespace; alarms in the templates name it.
pub const NAMESPACE: &str = "Holdfast";

/// Logs as JSON lines. A span's fields, the backup id among them, stand under `span` on each line.
///
/// `function`: the binary's crate name, whose own lines are logged from `level` on.
pub fn init(function: &str, level: tracing::Level) {
    // The SDKs' own lines matter only when they warn. The runtime's panic layer logs every error a handler returns,
    // which has been logged where it was handled.
    let filter = format!("warn,lambda_runtime::layers::panic=off,holdfast_shared={level},{function}={level}");
    let filter = EnvFilter::new(filter);
    let lines =
        fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false).with_target(false);
    // A second initialisation, in tests, keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// A metric's unit, in CloudWatch's words.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Count,
    Seconds,
    Bytes,
    None,
}

impl Unit {
    fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Seconds => "Seconds",
            Self::Bytes => "Bytes",
            Self::None => "None",
        }
    }
}

/// One line of embedded metrics.
/// Source: Amazon CloudWatch User Guide, "Specification: Embedded metric format".
pub fn emf_line(dimensions: &[(&str, &str)], metrics: &[(&str, Unit, f64)], properties: &[(&str, Value)]) -> String {
    let names: Vec<&str> = dimensions.iter().map(|(name, _)| *name).collect();
    let definitions: Vec<Value> =
        metrics.iter().map(|(name, unit, _)| json!({"Name": name, "Unit": unit.as_str()})).collect();
    let mut line = json!({
        "_aws": {
            "Timestamp": jiff::Timestamp::now().as_millisecond(),
            "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [names], "Metrics": definitions}],
        }
    });
    for (name, value) in dimensions {
        line[*name] = json!(value);
    }
    for (name, _, value) in metrics {
        line[*name] = json!(value);
    }
    for (name, value) in properties {
        line[*name] = value.clone();
    }
    line.to_string()
}

/// Writes metrics where Lambda forwards them to CloudWatch.
pub(crate) fn emit_metrics(dimensions: &[(&str, &str)], metrics: &[(&str, Unit, f64)], properties: &[(&str, Value)]) {
    println!("{}", emf_line(dimensions, metrics, properties));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_line_names_its_dimensions_and_units() {
        let line = emf_line(
            &[("Environment", "production"), ("Database", "shop")],
            &[("BackupSucceeded", Unit::Count, 1.0), ("BackupBytes", Unit::Bytes, 1e6)],
            &[("backup_id", json!("20250621-143000"))],
        );
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([["Environment", "Database"]]));
        assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Metrics"][1], json!({"Name": "BackupBytes", "Unit": "Bytes"}));
        assert_eq!((&line["Environment"], &line["BackupSucceeded"]), (&json!("production"), &json!(1.0)));
    }
}
