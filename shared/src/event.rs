//! The events a function may be sent, told apart by shape (docs/events.md).
//!
//! Reading is tolerant of unknown fields in AWS's own events, strict about what an event *is*: anything not
//! recognised is an error, never a default action.

use jiff::Timestamp;
use serde_json::Value;

use crate::fault::Fault;

/// What asks a function to act.
#[derive(Debug, Clone, PartialEq)]
pub enum Trigger {
    /// EventBridge rule or Scheduler, with the time it was scheduled for.
    Schedule {
        arn: String,
        scheduled_time: Timestamp,
        purpose: Option<String>,
        /// What else our own schedules' Input holds: each function knows which fields it takes.
        input: serde_json::Map<String, Value>,
    },
    /// A request of our own, from `aws lambda invoke` or another function.
    Direct(serde_json::Map<String, Value>),
    Alarm(Alarm),
    /// RDS, S3 and other AWS events that only some functions act on.
    Aws {
        source: String,
        detail_type: String,
        detail: Value,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    pub name: String,
    pub arn: String,
    pub state: AlarmState,
    /// When it came into that state, as the event says it.
    pub since: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmState {
    Ok,
    Alarm,
    InsufficientData,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the event is not a JSON object")]
    NotAnObject,
    #[error("the {shape} event lacks {field}")]
    Incomplete { shape: &'static str, field: &'static str },
    #[error("the {shape} event's {field} {value:?} cannot be read")]
    Unreadable { shape: &'static str, field: &'static str, value: String },
    #[error("the batch holds {count} messages, and one at a time is supported")]
    Batch { count: usize },
    #[error("messages are wrapped in one another more than {limit} deep")]
    TooDeep { limit: usize },
    #[error("records from {source_name:?} are not understood")]
    UnknownRecords { source_name: String },
}

impl From<EventError> for Fault {
    fn from(error: EventError) -> Self {
        let code = match error {
            EventError::NotAnObject => "event-not-an-object",
            EventError::Incomplete { .. } => "event-incomplete",
            EventError::Unreadable { .. } => "event-unreadable",
            EventError::Batch { .. } => "event-batch",
            EventError::TooDeep { .. } => "event-too-deep",
            EventError::UnknownRecords { .. } => "event-unknown-records",
        };
        Self::from_error(code, &error)
    }
}

/// SQS may carry SNS, which carries an EventBridge event.
const MAX_WRAPPING: usize = 4;

/// Fields of every schedule's Input.
const SCHEDULE_FIELDS: [&str; 4] = ["source", "schedule_arn", "scheduled_time", "purpose"];

/// Tells what an event is, unwrapping SNS and SQS.
pub fn parse(event: &Value) -> Result<Trigger, EventError> {
    parse_wrapped(event, 0)
}

fn parse_wrapped(event: &Value, depth: usize) -> Result<Trigger, EventError> {
    if depth > MAX_WRAPPING {
        return Err(EventError::TooDeep { limit: MAX_WRAPPING });
    }
    let fields = event.as_object().ok_or(EventError::NotAnObject)?;
    if let Some(records) = fields.get("Records").and_then(Value::as_array) {
        return parse_records(records, depth);
    }
    // SNS through SQS without raw delivery: the notification's own envelope.
    if fields.get("Type").and_then(Value::as_str) == Some("Notification") && fields.contains_key("Message") {
        return parse_text(fields.get("Message"), "SNS", "Message", depth);
    }
    if fields.contains_key("alarmData") {
        return alarm_action(event).map(Trigger::Alarm);
    }
    if fields.contains_key("AlarmName") && fields.contains_key("NewStateValue") {
        return alarm_notification(event).map(Trigger::Alarm);
    }
    if fields.contains_key("Event Source") && fields.contains_key("Event ID") {
        return Ok(Trigger::Aws {
            source: "aws.rds".into(),
            detail_type: "RDS notification".into(),
            detail: event.clone(),
        });
    }
    match (text(event, "/source"), text(event, "/detail-type")) {
        (Some("holdfast.schedule"), _) => scheduler_input(event),
        (Some("aws.events" | "aws.scheduler"), Some("Scheduled Event")) => scheduled_event(event),
        (Some("aws.cloudwatch"), Some("CloudWatch Alarm State Change")) => {
            alarm_state_change(event).map(Trigger::Alarm)
        }
        (Some(source), Some(detail_type)) => Ok(Trigger::Aws {
            source: source.to_owned(),
            detail_type: detail_type.to_owned(),
            detail: event.get("detail").cloned().unwrap_or_default(),
        }),
        _ => Ok(Trigger::Direct(fields.clone())),
    }
}

fn parse_records(records: &[Value], depth: usize) -> Result<Trigger, EventError> {
    let [record] = records else { return Err(EventError::Batch { count: records.len() }) };
    let source = text(record, "/EventSource").or_else(|| text(record, "/eventSource")).unwrap_or_default();
    match source {
        "aws:sns" => parse_text(record.pointer("/Sns/Message"), "SNS", "Message", depth),
        "aws:sqs" => parse_text(record.get("body"), "SQS", "body", depth),
        other => Err(EventError::UnknownRecords { source_name: other.to_owned() }),
    }
}

fn parse_text(
    message: Option<&Value>,
    shape: &'static str,
    field: &'static str,
    depth: usize,
) -> Result<Trigger, EventError> {
    let message = message.and_then(Value::as_str).ok_or(EventError::Incomplete { shape, field })?;
    let inner: Value = serde_json::from_str(message).map_err(|_| EventError::Unreadable {
        shape,
        field,
        value: message.chars().take(80).collect(),
    })?;
    parse_wrapped(&inner, depth + 1)
}

fn scheduler_input(event: &Value) -> Result<Trigger, EventError> {
    const SHAPE: &str = "schedule";
    let mut input = event.as_object().cloned().unwrap_or_default();
    input.retain(|name, _| !SCHEDULE_FIELDS.contains(&name.as_str()));
    Ok(Trigger::Schedule {
        arn: required(event, "/schedule_arn", SHAPE, "schedule_arn")?.to_owned(),
        scheduled_time: time(required(event, "/scheduled_time", SHAPE, "scheduled_time")?, SHAPE, "scheduled_time")?,
        purpose: text(event, "/purpose").map(str::to_owned),
        input,
    })
}

fn scheduled_event(event: &Value) -> Result<Trigger, EventError> {
    const SHAPE: &str = "scheduled";
    Ok(Trigger::Schedule {
        arn: required(event, "/resources/0", SHAPE, "resources")?.to_owned(),
        scheduled_time: time(required(event, "/time", SHAPE, "time")?, SHAPE, "time")?,
        purpose: None,
        input: serde_json::Map::new(),
    })
}

fn alarm_action(event: &Value) -> Result<Alarm, EventError> {
    const SHAPE: &str = "alarm action";
    Ok(Alarm {
        name: required(event, "/alarmData/alarmName", SHAPE, "alarmData.alarmName")?.to_owned(),
        arn: required(event, "/alarmArn", SHAPE, "alarmArn")?.to_owned(),
        state: state(required(event, "/alarmData/state/value", SHAPE, "alarmData.state.value")?, SHAPE)?,
        since: text(event, "/alarmData/state/timestamp")
            .or_else(|| text(event, "/time"))
            .ok_or(EventError::Incomplete { shape: SHAPE, field: "time" })?
            .to_owned(),
    })
}

fn alarm_state_change(event: &Value) -> Result<Alarm, EventError> {
    const SHAPE: &str = "alarm state change";
    Ok(Alarm {
        name: required(event, "/detail/alarmName", SHAPE, "detail.alarmName")?.to_owned(),
        arn: required(event, "/resources/0", SHAPE, "resources")?.to_owned(),
        state: state(required(event, "/detail/state/value", SHAPE, "detail.state.value")?, SHAPE)?,
        since: text(event, "/detail/state/timestamp").or_else(|| text(event, "/time")).unwrap_or_default().to_owned(),
    })
}

fn alarm_notification(event: &Value) -> Result<Alarm, EventError> {
    const SHAPE: &str = "alarm notification";
    Ok(Alarm {
        name: required(event, "/AlarmName", SHAPE, "AlarmName")?.to_owned(),
        arn: required(event, "/AlarmArn", SHAPE, "AlarmArn")?.to_owned(),
        state: state(required(event, "/NewStateValue", SHAPE, "NewStateValue")?, SHAPE)?,
        since: required(event, "/StateChangeTime", SHAPE, "StateChangeTime")?.to_owned(),
    })
}

fn text<'a>(event: &'a Value, pointer: &str) -> Option<&'a str> {
    event.pointer(pointer).and_then(Value::as_str)
}

fn required<'a>(
    event: &'a Value,
    pointer: &str,
    shape: &'static str,
    field: &'static str,
) -> Result<&'a str, EventError> {
    text(event, pointer).filter(|text| !text.is_empty()).ok_or(EventError::Incomplete { shape, field })
}

fn time(text: &str, shape: &'static str, field: &'static str) -> Result<Timestamp, EventError> {
    text.parse().map_err(|_| EventError::Unreadable { shape, field, value: text.to_owned() })
}

fn state(text: &str, shape: &'static str) -> Result<AlarmState, EventError> {
    match text {
        "OK" => Ok(AlarmState::Ok),
        "ALARM" => Ok(AlarmState::Alarm),
        "INSUFFICIENT_DATA" => Ok(AlarmState::InsufficientData),
        other => Err(EventError::Unreadable { shape, field: "state", value: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schedule() -> Value {
        json!({"version":"0","id":"53dc4d37","detail-type":"Scheduled Event","source":"aws.events","account":"123456789012",
               "time":"2025-06-21T02:00:00Z","region":"eu-west-1","resources":["arn:aws:events:eu-west-1:123456789012:rule/nightly"],"detail":{}})
    }

    fn alarm_data(state: &str) -> Value {
        json!({"source":"aws.cloudwatch","alarmArn":"arn:aws:cloudwatch:eu-west-1:123456789012:alarm:prod-BackupMissing","accountId":"123456789012",
               "time":"2024-02-17T11:53:08.431+0000","region":"eu-west-1",
               "alarmData":{"alarmName":"prod-BackupMissing","state":{"value":state,"reason":"r","reasonData":"{}","timestamp":"2024-02-17T11:53:08.423+0000"},
                            "previousState":{"value":"OK"},"configuration":{"metrics":[{"id":"m","expression":"a+b","period":86400}]}}})
    }

    fn wrapped_sns(message: &Value) -> Value {
        json!({"Records":[{"EventSource":"aws:sns","Sns":{"Message":message.to_string()}}]})
    }

    fn wrapped_sqs(message: &Value) -> Value {
        json!({"Records":[{"eventSource":"aws:sqs","body":message.to_string()}]})
    }

    #[test]
    fn schedules_of_every_kind_carry_arn_and_time() {
        let arn = |trigger: Trigger| match trigger {
            Trigger::Schedule { arn, scheduled_time, .. } => (arn, scheduled_time.to_string()),
            other => panic!("{other:?}"),
        };
        let mut scheduler = schedule();
        scheduler["source"] = "aws.scheduler".into();
        scheduler["detail"] = "{}".into();
        let input = json!({"source":"holdfast.schedule","schedule_arn":"arn:aws:events:eu-west-1:123456789012:rule/nightly","scheduled_time":"2025-06-21T02:00:00Z"});
        for event in [schedule(), scheduler, input, wrapped_sns(&schedule()), wrapped_sqs(&wrapped_sns(&schedule()))] {
            let (arn, time) = arn(parse(&event).unwrap());
            assert_eq!(
                (arn.as_str(), time.as_str()),
                ("arn:aws:events:eu-west-1:123456789012:rule/nightly", "2025-06-21T02:00:00Z")
            );
        }
    }

    #[test]
    fn alarms_of_every_kind_carry_name_and_state() {
        let change = json!({"source":"aws.cloudwatch","detail-type":"CloudWatch Alarm State Change","time":"2024-02-17T11:53:08Z","resources":["arn:x"],
                            "detail":{"alarmName":"prod-BackupMissing","state":{"value":"ALARM","timestamp":"2024-02-17T11:53:08.423+0000"}}});
        let notification = json!({"AlarmName":"prod-BackupMissing","AlarmArn":"arn:x","NewStateValue":"ALARM","OldStateValue":"OK","StateChangeTime":"2024-02-17T11:53:08.423+0000","Trigger":{"Period":86400}});
        for event in [alarm_data("ALARM"), change, wrapped_sns(&notification), wrapped_sqs(&alarm_data("ALARM"))] {
            let Trigger::Alarm(alarm) = parse(&event).unwrap() else { panic!("{event}") };
            assert_eq!(
                (alarm.name.as_str(), alarm.state, alarm.since.as_str()),
                ("prod-BackupMissing", AlarmState::Alarm, "2024-02-17T11:53:08.423+0000")
            );
        }
        let Trigger::Alarm(alarm) = parse(&alarm_data("INSUFFICIENT_DATA")).unwrap() else { panic!() };
        assert_eq!(alarm.state, AlarmState::InsufficientData);
    }

    #[test]
    fn other_aws_events_keep_their_source() {
        for (source, detail_type) in
            [("aws.rds", "RDS DB Snapshot Event"), ("aws.s3", "Object Created"), ("aws.s3", "Object Restore Completed")]
        {
            let event = json!({"source":source,"detail-type":detail_type,"detail":{"x":1}});
            assert!(matches!(parse(&event).unwrap(), Trigger::Aws { source: s, .. } if s == source));
        }
        let rds = json!({"Event Source":"db-snapshot","Source ID":"x","Event ID":"http://docs#RDS-EVENT-0091"});
        assert!(matches!(parse(&wrapped_sns(&rds)).unwrap(), Trigger::Aws { .. }));
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let mut no_time = schedule();
        no_time["time"] = "yesterday".into();
        let mut no_arn = schedule();
        no_arn["resources"] = json!([]);
        let mut deep = schedule();
        for _ in 0..6 {
            deep = wrapped_sqs(&deep);
        }
        let errors = [
            parse(&json!([1])),
            parse(&json!("text")),
            parse(&no_time),
            parse(&no_arn),
            parse(&alarm_data("PURPLE")),
            parse(&deep),
            parse(&json!({"Records":[]})),
            parse(&json!({"Records":[{"eventSource":"aws:kinesis"}]})),
            parse(&json!({"Records":[{"eventSource":"aws:sqs","body":"not json"}]})),
            parse(&json!({"Records":[{"eventSource":"aws:sqs","body":"{}"},{"eventSource":"aws:sqs","body":"{}"}]})),
        ];
        for error in errors {
            assert!(error.is_err(), "{error:?}");
        }
    }

    #[test]
    fn anything_else_is_a_request_of_ours() {
        assert!(matches!(parse(&json!({})).unwrap(), Trigger::Direct(_)));
        assert!(matches!(parse(&json!({"purpose":"x"})).unwrap(), Trigger::Direct(_)));
    }
}
