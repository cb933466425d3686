//! What one invocation is asked to do. Chosen backups are deleted by a direct request only.

use holdfast_shared::domain::BackupId;
use holdfast_shared::event::{Trigger, parse};
use holdfast_shared::fault::Fault;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// By a schedule; else by hand.
    pub scheduled: bool,
    pub dry_run: bool,
    pub override_anomaly: bool,
    /// Instead of the policy.
    pub delete: Option<Deletion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    pub id: BackupId,
    /// The request repeats the id: the last verified backup may go, too.
    pub forced: bool,
}

/// The direct request. docs/events.md.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Direct {
    dry_run: bool,
    override_anomaly: bool,
    delete: Option<BackupId>,
    force: Option<BackupId>,
}

const DIRECT_FIELDS: [&str; 4] = ["dry_run", "override_anomaly", "delete", "force"];

pub fn understand(event: &Value) -> Result<Request, Fault> {
    match parse(event)? {
        Trigger::Schedule { .. } => {
            Ok(Request { scheduled: true, dry_run: false, override_anomaly: false, delete: None })
        }
        // A message may be delivered twice, or have been sent by whatever writes to the topic.
        Trigger::Direct(_) if event.get("Records").is_some() || event.get("Type").is_some() => Err(Fault::new(
            "request-not-direct",
            "a request to retention came in a message, and is taken only from a direct invocation",
        )
        .hint("aws lambda invoke")),
        Trigger::Direct(fields) => direct(fields),
        Trigger::Alarm(alarm) => Err(not_for_us(&format!("alarm {:?}", alarm.name))),
        Trigger::Aws { source, detail_type, .. } => Err(not_for_us(&format!("{detail_type:?} from {source}"))),
    }
}

fn not_for_us(what: &str) -> Fault {
    Fault::new("event-not-for-this-function", format!("retention does not act on {what}"))
        .hint("docs/events.md lists the events each function acts on")
}

fn direct(fields: serde_json::Map<String, Value>) -> Result<Request, Fault> {
    let unknown: Vec<&str> = fields.keys().map(String::as_str).filter(|name| !DIRECT_FIELDS.contains(name)).collect();
    if !unknown.is_empty() {
        return Err(Fault::new(
            "request-unknown-fields",
            format!("the request has unknown fields: {}", unknown.join(", ")),
        )
        .hint(format!("known fields: {}", DIRECT_FIELDS.join(", "))));
    }
    let direct: Direct = serde_json::from_value(Value::Object(fields))
        .map_err(|error| Fault::from_error("request-malformed", &error).hint("docs/events.md shows the request"))?;
    if direct.force.is_some() && direct.force != direct.delete {
        return Err(Fault::new("request-malformed", "force does not repeat the id that delete names"));
    }
    let delete = direct.delete.map(|id| Deletion { id, forced: direct.force.is_some() });
    Ok(Request { scheduled: false, dry_run: direct.dry_run, override_anomaly: direct.override_anomaly, delete })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schedule_runs_the_policy() {
        let event = json!({"source":"aws.scheduler","detail-type":"Scheduled Event","time":"2025-06-21T02:00:00Z","resources":["arn:rule"],"detail":"{}"});
        let expected = Request { scheduled: true, dry_run: false, override_anomaly: false, delete: None };
        assert_eq!(understand(&event).unwrap(), expected);
    }

    #[test]
    fn a_direct_request_says_what_it_wants() {
        let request =
            understand(&json!({"delete":"20250621-020000","force":"20250621-020000","dry_run":true})).unwrap();
        let id = "20250621-020000".parse().unwrap();
        assert_eq!(request.delete, Some(Deletion { id, forced: true }));
        assert!(request.dry_run && !request.override_anomaly && !request.scheduled);
        assert_eq!(understand(&json!({})).unwrap().delete, None);
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_own_error() {
        let message =
            |request: Value| json!({"Records":[{"EventSource":"aws:sns","Sns":{"Message":request.to_string()}}]});
        for (event, code) in [
            (json!({"bucket":"someone-elses","role":"x"}), "request-unknown-fields"),
            (json!({"snapshot":"arn:aws:rds:eu-west-1:999999999999:snapshot:x"}), "request-unknown-fields"),
            (json!({"delete":"../../20250621-020000"}), "request-malformed"),
            (json!({"delete":["20250621-020000"]}), "request-malformed"),
            (json!({"delete":"20250621-020000","force":true}), "request-malformed"),
            (json!({"delete":"20250621-020000","force":"20250621-020001"}), "request-malformed"),
            (json!({"force":"20250621-020000"}), "request-malformed"),
            (json!({"dry_run":"yes"}), "request-malformed"),
            (message(json!({"delete":"20250621-020000"})), "request-not-direct"),
            (message(json!({"override_anomaly":true})), "request-not-direct"),
            (json!({"Type":"Notification","Message":"{\"delete\":\"20250621-020000\"}"}), "request-not-direct"),
            (
                json!({"source":"aws.s3","detail-type":"Object Created","detail":{"bucket":{"name":"other"}}}),
                "event-not-for-this-function",
            ),
            (
                json!({"alarmArn":"arn:a","time":"t","alarmData":{"alarmName":"BackupMissing","state":{"value":"ALARM","timestamp":"t"}}}),
                "event-not-for-this-function",
            ),
            (json!(7), "event-not-an-object"),
        ] {
            assert_eq!(understand(&event).unwrap_err().code, code, "{event}");
        }
    }
}
