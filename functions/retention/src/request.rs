//! What one invocation is asked to do. Chosen backups are deleted by a direct request only.

use holdfast_shared::domain::BackupId;
use holdfast_shared::event::{Trigger, parse};
use holdfast_shared::fault::Fault;
use holdfast_shared::request;
use serde::Deserialize;
use serde_json::Value;

const FUNCTION: &str = "retention";

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
/// Of a schedule's Input: what is chosen by hand is not among them.
const SCHEDULE_FIELDS: [&str; 1] = ["dry_run"];

pub fn understand(event: &Value) -> Result<Request, Fault> {
    match parse(event)? {
        Trigger::Schedule { input, .. } => {
            let Direct { dry_run, .. } = request::read(input, &SCHEDULE_FIELDS)?;
            Ok(Request { scheduled: true, dry_run, override_anomaly: false, delete: None })
        }
        Trigger::Direct(fields) => {
            request::refuse_message(FUNCTION, event)?;
            direct(fields)
        }
        other => Err(request::not_for(FUNCTION, &other)),
    }
}

fn direct(fields: serde_json::Map<String, Value>) -> Result<Request, Fault> {
    let direct: Direct = request::read(fields, &DIRECT_FIELDS)?;
    if direct.force.is_some() && direct.force != direct.delete {
        return Err(request::malformed("force does not repeat the id that delete names"));
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
        let mut input = json!({"source":"holdfast.schedule","schedule_arn":"arn:s","scheduled_time":"2025-06-21T02:00:00Z","dry_run":true});
        assert_eq!(understand(&input).unwrap(), Request { dry_run: true, ..expected });
        for (name, value) in
            [("delete", json!("20250621-020000")), ("override_anomaly", json!(true)), ("dryrun", json!(true))]
        {
            input[name] = value;
            assert_eq!(understand(&input).unwrap_err().code, "request-unknown-fields", "{name}");
            input.as_object_mut().unwrap().remove(name);
        }
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
