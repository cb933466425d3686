//! What one invocation is asked to do, and the identity under which a redelivery is recognised.

use holdfast_shared::domain::manifest::Selection;
use holdfast_shared::domain::{BackupId, Environment, TablePattern};
use holdfast_shared::event::{Alarm, AlarmState, Trigger, parse};
use holdfast_shared::fault::Fault;
use holdfast_shared::request::{self, checked_purpose, malformed};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// The alarm this function follows up; the template's name ends with it.
const MISSED_BACKUP_ALARM: &str = "BackupMissing";
const NOTES_LIMIT: usize = 2_000;

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Export(ExportRequest),
    /// Understood, and nothing to do.
    Nothing {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExportRequest {
    /// The same for every delivery of one event.
    pub event_key: String,
    /// The first id to try. Of a scheduled time it is the event's own; of the clock any later one is as good.
    pub proposed_id: BackupId,
    pub from_clock: bool,
    pub purpose: String,
    pub notes: Option<String>,
    pub created_by: String,
    pub selection: Selection,
}

impl ExportRequest {
    /// One event may start exports of several databases into one bucket: each has an identity of its own.
    #[must_use]
    pub fn of_database(mut self, environment: &Environment, database: &str) -> Self {
        self.event_key = format!("{environment}/{database} {}", self.event_key);
        self
    }
}

/// The direct request. docs/events.md.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Direct {
    purpose: Option<String>,
    notes: Option<String>,
    tables: Option<Vec<TablePattern>>,
    exclude_tables: Vec<TablePattern>,
    exclude_data: Vec<TablePattern>,
    requested_by: Option<String>,
    idempotency_key: Option<String>,
}

const DIRECT_FIELDS: [&str; 7] =
    ["purpose", "notes", "tables", "exclude_tables", "exclude_data", "requested_by", "idempotency_key"];

/// Understands an event. `configured` is the selection that the request narrows.
pub fn understand(event: &Value, request_id: &str, now: Timestamp, configured: &Selection) -> Result<Request, Fault> {
    match parse(event)? {
        Trigger::Schedule { arn, scheduled_time, purpose, input } => {
            request::read::<Direct>(input, &[])?;
            Ok(Request::Export(ExportRequest {
                event_key: format!("schedule:{arn}:{scheduled_time}"),
                proposed_id: BackupId::from_timestamp(scheduled_time),
                from_clock: false,
                purpose: checked_purpose(purpose.unwrap_or_else(|| "daily_backup".to_owned()))?,
                notes: None,
                created_by: "schedule".to_owned(),
                selection: configured.clone(),
            }))
        }
        Trigger::Alarm(alarm) => follow_up(&alarm, now, configured),
        Trigger::Direct(fields) => direct(fields, request_id, now, configured).map(Request::Export),
        other @ Trigger::Aws { .. } => Err(request::not_for("scheduled-export", &other)),
    }
}

fn follow_up(alarm: &Alarm, now: Timestamp, configured: &Selection) -> Result<Request, Fault> {
    if !alarm.name.ends_with(MISSED_BACKUP_ALARM) {
        return Err(Fault::new(
            "event-alarm-not-followed-up",
            format!("alarm {:?} is not one that an export follows up", alarm.name),
        )
        .hint(format!("only an alarm whose name ends with {MISSED_BACKUP_ALARM} starts an export")));
    }
    let reason = match alarm.state {
        AlarmState::Alarm => {
            return Ok(Request::Export(ExportRequest {
                event_key: format!("alarm:{}:{}", alarm.arn, alarm.since),
                proposed_id: BackupId::from_timestamp(now),
                from_clock: true,
                purpose: "alarm_followup".to_owned(),
                notes: Some(format!("follows up alarm {} of {}", alarm.name, alarm.since)),
                created_by: format!("alarm {}", alarm.name),
                selection: configured.clone(),
            }));
        }
        AlarmState::Ok => "is OK",
        AlarmState::InsufficientData => "has insufficient data",
    };
    Ok(Request::Nothing { reason: format!("alarm {} {reason}: nothing to do", alarm.name) })
}

fn direct(
    fields: serde_json::Map<String, Value>,
    request_id: &str,
    now: Timestamp,
    configured: &Selection,
) -> Result<ExportRequest, Fault> {
    let direct: Direct = request::read(fields, &DIRECT_FIELDS)?;
    if direct.notes.as_ref().is_some_and(|notes| notes.len() > NOTES_LIMIT) {
        return Err(malformed(format!("notes are longer than {NOTES_LIMIT} bytes")));
    }
    // What a script's unset variable makes is not to be every table, or the backup of another day.
    if direct.tables.as_ref().is_some_and(Vec::is_empty) {
        return Err(malformed("tables is empty: leave it out for all tables"));
    }
    if direct.idempotency_key.as_ref().is_some_and(String::is_empty) {
        return Err(malformed("idempotency_key is empty"));
    }
    let identity = direct.idempotency_key.unwrap_or_else(|| request_id.to_owned());
    let merge = |configured: &[TablePattern], more: Vec<TablePattern>| [configured.to_vec(), more].concat();
    Ok(ExportRequest {
        event_key: format!("request:{identity}"),
        proposed_id: BackupId::from_timestamp(now),
        from_clock: true,
        purpose: checked_purpose(direct.purpose.unwrap_or_else(|| "on_demand".to_owned()))?,
        notes: direct.notes,
        created_by: direct.requested_by.unwrap_or_else(|| "invoke".to_owned()),
        selection: Selection {
            // A request may choose fewer tables than the configuration, never others.
            include: direct.tables.unwrap_or_else(|| configured.include.clone()),
            exclude: merge(&configured.exclude, direct.exclude_tables),
            exclude_data: merge(&configured.exclude_data, direct.exclude_data),
        },
    })
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "events are written where they are used")]
mod tests {
    use serde_json::json;

    use super::*;

    fn at() -> Timestamp {
        "2025-06-21T14:30:00Z".parse().unwrap()
    }

    fn export(event: Value) -> ExportRequest {
        match understand(&event, "req-1", at(), &Selection::default()).unwrap() {
            Request::Export(request) => request,
            Request::Nothing { reason } => panic!("{reason}"),
        }
    }

    fn refused(event: Value) -> Fault {
        understand(&event, "req-1", at(), &Selection::default()).unwrap_err()
    }

    #[test]
    fn a_schedule_is_identified_by_its_own_time() {
        let event = json!({"source":"aws.events","detail-type":"Scheduled Event","time":"2025-06-21T02:00:00Z","resources":["arn:rule"]});
        let request = export(event);
        assert_eq!(request.proposed_id.to_string(), "20250621-020000");
        assert_eq!(
            (request.event_key.as_str(), request.purpose.as_str(), request.from_clock),
            ("schedule:arn:rule:2025-06-21T02:00:00Z", "daily_backup", false)
        );
    }

    #[test]
    fn a_direct_request_is_identified_by_its_request_id_or_key() {
        let request = export(json!({"purpose":"before_migration","notes":"n","tables":["public.*"]}));
        assert_eq!(
            (request.event_key.as_str(), request.proposed_id.to_string().as_str()),
            ("request:req-1", "20250621-143000")
        );
        assert_eq!(request.selection.include, ["public.*".parse().unwrap()]);
        assert_eq!(export(json!({"idempotency_key":"k"})).event_key, "request:k");
    }

    #[test]
    fn the_missed_backup_alarm_runs_an_export_and_nothing_else_does() {
        let alarm = |name: &str, state: &str| json!({"alarmArn":"arn:a","time":"t","alarmData":{"alarmName":name,"state":{"value":state,"timestamp":"t"}}});
        assert_eq!(export(alarm("shop-production-BackupMissing", "ALARM")).purpose, "alarm_followup");
        for state in ["OK", "INSUFFICIENT_DATA"] {
            let request = understand(&alarm("BackupMissing", state), "r", at(), &Selection::default()).unwrap();
            assert!(matches!(request, Request::Nothing { .. }));
        }
        assert_eq!(refused(alarm("CpuHigh", "ALARM")).code, "event-alarm-not-followed-up");
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_own_error() {
        for (event, code) in [
            (json!({"purpose":"x","bucket":"evil"}), "request-unknown-fields"),
            (json!({"tables":"public.*"}), "request-malformed"),
            (json!({"tables":["."]}), "request-malformed"),
            (json!({"tables":[]}), "request-malformed"),
            (json!({"idempotency_key":""}), "request-malformed"),
            (json!({"purpose":"a b"}), "request-malformed"),
            (
                json!({"source":"holdfast.schedule","schedule_arn":"arn:s","scheduled_time":"2025-06-21T02:00:00Z","tables":["a"]}),
                "request-unknown-fields",
            ),
            (json!({"source":"aws.s3","detail-type":"Object Created","detail":{}}), "event-not-for-this-function"),
            (json!(7), "event-not-an-object"),
            (json!({"Records":[{"eventSource":"aws:kinesis"}]}), "event-unknown-records"),
        ] {
            let fault = refused(event.clone());
            assert_eq!(fault.code, code, "{event}");
        }
        assert!(refused(json!({"bucket":"evil","role":"x"})).message.contains("bucket, role"));
        assert!(refused(json!({"purpose":"x","notes":7})).message.starts_with("notes: "));
    }
}
