//! RDS's own events about snapshots, from EventBridge and from SNS.
//!
//! Source: Amazon RDS User Guide and Amazon Aurora User Guide, "Amazon RDS event categories and event messages".

use holdfast_shared::domain::rds::SnapshotArn;
use holdfast_shared::event::EventError;
use holdfast_shared::fault::Fault;
use jiff::Timestamp;
use serde_json::Value;

const SHAPE: &str = "RDS";
/// How messages about a task's progress begin.
const OF_A_TASK: &str = "export task ";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdsEvent {
    pub what: What,
    pub snapshot: SnapshotArn,
    pub at: Option<Timestamp>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    AutomatedCreated,
    ManualCreated,
    /// Done, failed or canceled: RDS is asked which.
    TaskEnded,
    TableFailed,
    /// A task has come so far, or a table of it takes long.
    TaskProgress,
    /// A snapshot that is begun or gone, and the like.
    Other,
}

/// The event of an `aws.rds` source; `None` where it is not about a snapshot.
///
/// # Errors
/// Where it is about a snapshot and does not say which.
pub fn read(detail_type: &str, detail: &Value) -> Result<Option<RdsEvent>, Fault> {
    let text = |names: [&str; 2]| names.iter().find_map(|name| detail.get(*name).and_then(Value::as_str));
    let source_type = text(["SourceType", "Event Source"]).unwrap_or_default().to_ascii_uppercase();
    let of_snapshot = detail_type.contains("Snapshot Event") || source_type.contains("SNAPSHOT");
    if !of_snapshot {
        return Ok(None);
    }
    let message = text(["Message", "Event Message"]).unwrap_or_default().to_owned();
    let id = text(["EventID", "Event ID"]).unwrap_or_default();
    let arn = text(["SourceArn", "Source ARN"]).ok_or(EventError::Incomplete { shape: SHAPE, field: "SourceArn" })?;
    let snapshot: SnapshotArn = arn.parse().map_err(|_| EventError::Unreadable {
        shape: SHAPE,
        field: "SourceArn",
        value: arn.chars().take(200).collect(),
    })?;
    let at = text(["Date", "Event Time"]).and_then(|time| time.parse().ok());
    Ok(Some(RdsEvent { what: what(id, &message), snapshot, at, message }))
}

/// By its id, which in SNS is a URL that ends with it; some events come without, and are told by their words.
fn what(id: &str, message: &str) -> What {
    let message = message.to_ascii_lowercase();
    match id.rsplit('-').next().unwrap_or_default() {
        "0091" | "0169" => What::AutomatedCreated,
        "0042" | "0075" => What::ManualCreated,
        "0159" | "0160" | "0161" | "0162" | "0163" | "0164" => What::TaskEnded,
        "0484" | "0489" => What::TableFailed,
        "0486" | "0487" | "0488" | "0491" | "0492" | "0493" => What::TaskProgress,
        "" => by_words(&message),
        // Documented without an id, or not yet.
        _ if message.starts_with(OF_A_TASK) => What::TaskProgress,
        _ => What::Other,
    }
}

fn by_words(message: &str) -> What {
    let says = |words: &[&str]| words.iter().all(|word| message.contains(word));
    if says(&["table extraction failed"]) {
        What::TableFailed
    } else if says(&["export task"]) && ["failed", "canceled", "completed"].iter().any(|end| says(&[end])) {
        What::TaskEnded
    } else if message.starts_with(OF_A_TASK) {
        What::TaskProgress
    } else if says(&["automated", "snapshot created"]) {
        What::AutomatedCreated
    } else if says(&["manual", "snapshot created"]) {
        What::ManualCreated
    } else {
        What::Other
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ARN: &str = "arn:aws:rds:eu-west-1:123456789012:snapshot:rds:shop-2025-06-21-02-00";

    fn event(id: &str, message: &str) -> Value {
        json!({"EventCategories": ["creation"], "SourceType": "SNAPSHOT", "SourceArn": ARN, "EventID": id,
               "Date": "2025-06-21T02:05:00.000Z", "SourceIdentifier": "rds:shop-2025-06-21-02-00", "Message": message})
    }

    #[test]
    fn events_are_told_by_id_and_without_one_by_words() {
        for (id, message, expected) in [
            ("RDS-EVENT-0091", "Automated snapshot created", What::AutomatedCreated),
            ("RDS-EVENT-0042", "Manual snapshot created", What::ManualCreated),
            ("RDS-EVENT-0169", "", What::AutomatedCreated),
            ("RDS-EVENT-0075", "", What::ManualCreated),
            ("RDS-EVENT-0161", "", What::TaskEnded),
            ("RDS-EVENT-0162", "", What::TaskEnded),
            ("RDS-EVENT-0484", "", What::TableFailed),
            (
                "RDS-EVENT-0487",
                "Export task x: Table a is in progress, and the exported size is 9 GB.",
                What::TaskProgress,
            ),
            ("RDS-EVENT-0493", "", What::TaskProgress),
            ("RDS-EVENT-9999", "Export task x: Export progress is at 40%", What::TaskProgress),
            ("RDS-EVENT-0090", "Creating automated snapshot", What::Other),
            ("RDS-EVENT-0041", "", What::Other),
            ("", "Automated snapshot created", What::AutomatedCreated),
            ("", "Manual cluster snapshot created", What::ManualCreated),
            ("", "Creating manual snapshot", What::Other),
            ("", "The snapshot export task completed.", What::TaskEnded),
            ("", "The cluster snapshot export task was canceled.", What::TaskEnded),
            ("", "Export task x: Table extraction failed for table shop.public.a due to b.", What::TableFailed),
            ("", "Export task x: Export progress is at 40% with 1 table(s) in-progress.", What::TaskProgress),
            ("", "Deleted user snapshot", What::Other),
        ] {
            let read = read("RDS DB Snapshot Event", &event(id, message)).unwrap().unwrap();
            assert_eq!((read.what, read.snapshot.to_string().as_str()), (expected, ARN), "{id} {message}");
            assert_eq!(read.at.unwrap().to_string(), "2025-06-21T02:05:00Z");
        }
    }

    #[test]
    fn sns_says_the_same_in_other_words() {
        let detail = json!({"Event Source": "db-cluster-snapshot", "Source ID": "manual-1", "Event Time": "2025-06-21 02:05:00.000",
            "Source ARN": "arn:aws:rds:eu-west-1:123456789012:cluster-snapshot:manual-1",
            "Event ID": "http://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_Events.html#RDS-EVENT-0075",
            "Event Message": "Manual cluster snapshot created"});
        let event = read("RDS notification", &detail).unwrap().unwrap();
        assert_eq!((event.what, event.snapshot.id()), (What::ManualCreated, "manual-1"));
    }

    #[test]
    fn what_is_not_about_a_snapshot_is_told_apart_and_a_snapshot_without_an_arn_refused() {
        let instance = json!({"SourceType": "DB_INSTANCE", "SourceArn": "arn:aws:rds:eu-west-1:123456789012:db:shop"});
        assert_eq!(read("RDS DB Instance Event", &instance).unwrap(), None);
        let mut incomplete = event("RDS-EVENT-0091", "");
        incomplete.as_object_mut().unwrap().remove("SourceArn");
        assert_eq!(read("RDS DB Snapshot Event", &incomplete).unwrap_err().code, "event-incomplete");
        let mut odd = event("RDS-EVENT-0091", "");
        odd["SourceArn"] = json!("arn:aws:s3:::someone-elses");
        assert_eq!(read("RDS DB Snapshot Event", &odd).unwrap_err().code, "event-unreadable");
    }
}
