//! Direct requests, in what they share: fields that are known, and events that are not a function's own.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::event::Trigger;
use crate::fault::Fault;

/// Reads a request whose fields are among `known`.
///
/// # Errors
/// `request-unknown-fields`, `request-malformed`.
pub fn read<T: DeserializeOwned>(fields: Map<String, Value>, known: &[&str]) -> Result<T, Fault> {
    let unknown: Vec<&str> = fields.keys().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !unknown.is_empty() {
        let message = format!("the request has unknown fields: {}", unknown.join(", "));
        return Err(Fault::new("request-unknown-fields", message).hint(format!("known fields: {}", known.join(", "))));
    }
    read_known(fields)
}

/// Reads a request, all of whose fields are known and none of which is needed.
///
/// # Errors
/// `request-malformed`, which names the field.
pub fn read_known<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Fault> {
    // serde does not say which field it is: each is looked at alone.
    for (name, value) in &fields {
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
            let problem = error.to_string().replace("expected a sequence", "expected a list");
            return Err(malformed(format!("{name}: {problem}")));
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| malformed(crate::fault::chain(&error)))
}

/// A request whose fields do not say what they should.
pub fn malformed(problem: impl Into<String>) -> Fault {
    Fault::new("request-malformed", problem).hint("docs/events.md shows the request")
}

/// An event that others act on.
pub fn not_for(function: &str, trigger: &Trigger) -> Fault {
    let what = match trigger {
        Trigger::Alarm(alarm) => format!("alarm {:?}", alarm.name),
        Trigger::Aws { source, detail_type, .. } => format!("{detail_type:?} from {source}"),
        Trigger::Schedule { arn, .. } => format!("schedule {arn}"),
        Trigger::Direct(_) => "this request".to_owned(),
    };
    Fault::new("event-not-for-this-function", format!("{function} does not act on {what}"))
        .hint("docs/events.md lists the events each function acts on")
}

/// Refuses a request in a message, which may be delivered twice, or be sent by whatever writes to the topic.
///
/// # Errors
/// `request-not-direct`.
pub fn refuse_message(function: &str, event: &Value) -> Result<(), Fault> {
    if event.get("Records").is_none() && event.get("Type").is_none() {
        return Ok(());
    }
    let message = format!("a request to {function} came in a message, and is taken only from a direct invocation");
    Err(Fault::new("request-not-direct", message).hint("aws lambda invoke"))
}

/// A purpose goes into retention rules and metric dimensions: 1 to 64 of `a-z A-Z 0-9 _ -`.
///
/// # Errors
/// `request-malformed`.
pub fn checked_purpose(purpose: String) -> Result<String, Fault> {
    let valid = (1..=64).contains(&purpose.len())
        && purpose.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if valid {
        Ok(purpose)
    } else {
        Err(malformed(format!("purpose {purpose:?} is not 1 to 64 of a-z, A-Z, 0-9, _ and -")))
    }
}
