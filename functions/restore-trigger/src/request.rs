//! What one invocation is asked to restore, and from where it may be asked.

mod mode;

use holdfast_shared::domain::object_key::ImportNameError;
use holdfast_shared::domain::{BackupId, Environment, ImportName, TablePattern};
use holdfast_shared::event::{Trigger, parse};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::rds::Wanted;
use holdfast_shared::plan::clearance::{Options, Tier};
use holdfast_shared::request::{malformed, read_known};
use holdfast_shared::secret::Secret;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use self::mode::Mode;

const WHO_LIMIT: usize = 200;
const KEEP_DAYS_LIMIT: u32 = 3_650;
/// What a schedule's own event says beside the request.
const SCHEDULE_FIELDS: [&str; 3] = ["source", "schedule_arn", "scheduled_time"];
/// What every mode takes.
const COMMON_FIELDS: [&str; 3] = ["mode", "passkey", "requested_by"];

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupChoice {
    pub which: Which,
    /// Whose; `None`: an id's whosever it is, else the function's own.
    pub environment: Option<Environment>,
    /// Of which database; `None`: an id's whatever it is, else the configured one.
    pub database: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Id(BackupId),
    /// The newest; where a moment is given, of those before it.
    Latest {
        before: Option<Timestamp>,
    },
}

/// What is to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceChoice {
    Backup(BackupChoice),
    Import(ImportName),
    Previous,
    /// `None`: the newest.
    RdsSnapshot(Option<String>),
    /// `None`: the latest that can be restored.
    RdsMoment(Option<Timestamp>),
}

/// Where chosen tables go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    #[default]
    Schema,
    Original,
}

/// One request, with its passkey taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    pub mode: Mode,
    /// Nothing is done: the answer says what would be.
    pub plan_only: bool,
    pub source: SourceChoice,
    pub target_database: Option<String>,
    pub tables: Vec<TablePattern>,
    pub into: Place,
    /// Name of the new RDS instance.
    pub instance: Option<String>,
    /// What the new one is to have otherwise than its source.
    pub wanted: Wanted,
    pub options: Options,
    /// What a swap may leave in the database that it puts aside.
    pub accepts_left_out: Vec<TablePattern>,
    pub take_safety_backup: bool,
    pub requested_by: String,
    /// The same for every delivery of a schedule's event, each of which is an invocation of its own; `None` for others.
    pub event_key: Option<String>,
    /// As it came, without the passkey: for the record.
    pub asked: Value,
}

impl RestoreRequest {
    /// Touches nothing that exists, and is run by a schedule as a rule.
    pub fn is_drill(&self) -> bool {
        self.mode == Mode::Verify && !self.plan_only
    }

    /// Whether doing it twice is doing it once: names that are taken stop a second swap or new database, and nothing
    /// stops a second undo, to what was before, or rows from being replaced that have been written since.
    pub fn may_run_again(&self) -> bool {
        self.mode != Mode::Undo && !(self.mode == Mode::Tables && self.into == Place::Original)
    }
}

/// The request's fields, as JSON has them; `passkey` is not among them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    backup: Option<String>,
    before: Option<String>,
    source_database: Option<String>,
    import: Option<String>,
    target_database: Option<String>,
    tables: Vec<TablePattern>,
    into: Place,
    snapshot: Option<String>,
    moment: Option<String>,
    instance: Option<String>,
    #[serde(flatten)]
    wanted: Wanted,
    no_owner: bool,
    continue_on_error: bool,
    copy_as_text: bool,
    take_safety_backup: bool,
    accept_left_out: Vec<TablePattern>,
    keep_previous_days: Option<u32>,
    tier: Tier,
    requested_by: Option<String>,
}

/// A request and the passkey that came with it.
pub type Asked = (RestoreRequest, Option<Secret>);

/// Understands an event.
///
/// # Errors
/// `restore-not-from-events` for everything but a request of our own and a scheduled drill.
pub fn understand(event: &Value) -> Result<Asked, Fault> {
    let Some(fields) = event.as_object() else {
        return Err(Fault::new("event-not-an-object", "the event is not a JSON object"));
    };
    if is_message(event) {
        return Err(not_from("a message"));
    }
    match parse(event) {
        Ok(Trigger::Direct(fields)) => read(fields, "invoke"),
        Ok(Trigger::Schedule { arn, scheduled_time, .. }) => {
            let mut fields = fields.clone();
            if fields.get("mode").and_then(Value::as_str) != Some("verify") {
                return Err(not_from("a schedule"));
            }
            fields.retain(|name, _| !SCHEDULE_FIELDS.contains(&name.as_str()));
            let (mut request, passkey) = read(fields, "schedule")?;
            request.event_key = Some(format!("schedule:{arn}:{scheduled_time}"));
            Ok((request, passkey))
        }
        Ok(Trigger::Alarm(_)) => Err(not_from("an alarm")),
        Ok(Trigger::Aws { source, .. }) => Err(not_from(&format!("an event of {source}"))),
        Err(error) => Err(not_from(&error.to_string())),
    }
}

/// The request of a record, which is that of an approved restore: whatever was newest then is named by its id.
///
/// # Errors
/// `restore-record-unreadable` where the record holds no such request.
pub fn again(asked: &Value, requested_by: &str, backup: Option<BackupChoice>) -> Result<RestoreRequest, Fault> {
    let unreadable = |problem: String| Fault::new("restore-record-unreadable", problem);
    let fields = asked.as_object().ok_or_else(|| unreadable("the record holds no request".to_owned()))?;
    let (mut request, _) = read(fields.clone(), requested_by).map_err(|fault| unreadable(fault.to_string()))?;
    if let (SourceChoice::Backup(choice), Some(backup)) = (&mut request.source, backup) {
        *choice = backup;
    }
    Ok(request)
}

/// A message may be anybody's who can publish: what is in it is not even looked at.
pub fn is_message(event: &Value) -> bool {
    event.get("Records").is_some() || event.get("Type").and_then(Value::as_str) == Some("Notification")
}

fn not_from(what: &str) -> Fault {
    Fault::new("restore-not-from-events", format!("a restore is never started by an event: {what}"))
        .hint("invoke the function with a request; only a drill (mode verify) may be scheduled")
}

fn read(mut fields: Map<String, Value>, by: &str) -> Result<Asked, Fault> {
    // Taken out before anything that could quote it looks at the rest.
    let passkey = match fields.remove("passkey") {
        None | Some(Value::Null) => None,
        // Of a variable that is not set. Nobody's guess.
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(Secret::new(text)),
        Some(_) => return Err(malformed("passkey is not text")),
    };
    let (mode, plan_only) = mode(&mut fields)?;
    let known = |name: &&str| COMMON_FIELDS.contains(name) || mode.fields().contains(name);
    let unknown: Vec<&str> = fields.keys().map(String::as_str).filter(|name| !known(name)).collect();
    if !unknown.is_empty() {
        let fields = if unknown.len() == 1 { "field" } else { "fields" };
        let message = format!("mode {} has no {fields} {}", mode.as_str(), unknown.join(", "));
        return Err(Fault::new("request-unknown-fields", message).hint(format!(
            "it takes {}, {}; docs/events.md has those of other modes",
            COMMON_FIELDS.join(", "),
            mode.fields().join(", ")
        )));
    }
    let mut asked = fields.clone();
    asked.insert("mode".into(), json!(if plan_only { "plan" } else { mode.as_str() }));
    if plan_only {
        asked.insert("plan_for".into(), json!(mode.as_str()));
    }
    let fields: Fields = read_known(fields)?;
    let requested_by = fields.requested_by.clone().unwrap_or_else(|| by.to_owned());
    if requested_by.is_empty() || requested_by.len() > WHO_LIMIT || requested_by.chars().any(char::is_control) {
        return Err(malformed(format!("requested_by is not 1 to {WHO_LIMIT} bytes of plain text")));
    }
    if fields.keep_previous_days.is_some_and(|days| !(1..=KEEP_DAYS_LIMIT).contains(&days)) {
        return Err(malformed(format!("keep_previous_days is not between 1 and {KEEP_DAYS_LIMIT}")));
    }
    if fields.keep_previous_days.is_some() && !fields.accept_left_out.is_empty() {
        return Err(malformed(
            "keep_previous_days does not go with accept_left_out: what is left out is nowhere but in the database put aside",
        ));
    }
    if (mode == Mode::Tables) == fields.tables.is_empty() {
        return Err(malformed("mode tables needs tables, such as [\"public.orders\"]"));
    }
    if fields.continue_on_error && mode == Mode::Tables && fields.into == Place::Original {
        return Err(malformed("continue_on_error has no use where all or nothing is done"));
    }
    if fields.take_safety_backup && mode == Mode::Tables && fields.into == Place::Schema {
        return Err(malformed("take_safety_backup has no use where nothing existing is changed"));
    }
    if matches!(mode, Mode::RdsSnapshot | Mode::RdsPointInTime) && fields.instance.is_none() {
        return Err(malformed(format!("mode {} needs instance, the name of the new one", mode.as_str())));
    }
    let source = source(mode, &fields)?;
    let request = RestoreRequest {
        mode,
        plan_only,
        source,
        target_database: fields.target_database,
        tables: fields.tables,
        into: fields.into,
        instance: fields.instance,
        wanted: fields.wanted,
        options: Options {
            no_owner: fields.no_owner,
            continue_on_error: fields.continue_on_error,
            copy_as_text: fields.copy_as_text,
            tier: fields.tier,
            keep_previous_days: fields.keep_previous_days,
        },
        accepts_left_out: fields.accept_left_out,
        take_safety_backup: fields.take_safety_backup,
        requested_by,
        event_key: None,
        asked: Value::Object(asked),
    };
    Ok((request, passkey))
}

/// The mode, and whether it is only to be planned: `plan_for` then says which.
fn mode(fields: &mut Map<String, Value>) -> Result<(Mode, bool), Fault> {
    let plan_only = fields.get("mode").and_then(Value::as_str) == Some("plan");
    let named = if plan_only {
        fields.remove("mode");
        fields.remove("plan_for")
    } else {
        fields.remove("mode")
    };
    let mode = match &named {
        None => Some(Mode::NewDatabase),
        Some(named) => Mode::ALL.into_iter().find(|mode| named == mode.as_str()),
    };
    mode.map(|mode| (mode, plan_only)).ok_or_else(|| {
        let named = named.unwrap_or_default();
        let known = Mode::ALL.map(Mode::as_str).join(", ");
        malformed(if plan_only {
            format!("plan_for: there is no mode {named} to plan: it is one of {known}")
        } else {
            format!("there is no mode {named}: it is one of {known}, or plan, which changes nothing")
        })
    })
}

fn time(field: &str, text: &str) -> Result<Timestamp, Fault> {
    text.parse().map_err(|_| malformed(format!("{field}: {text:?} is not a time like 2025-06-21T14:00:00Z")))
}

fn source(mode: Mode, fields: &Fields) -> Result<SourceChoice, Fault> {
    match mode {
        Mode::Undo => return Ok(SourceChoice::Previous),
        Mode::RdsSnapshot => {
            let named = fields.snapshot.clone().filter(|name| name != "latest");
            return Ok(SourceChoice::RdsSnapshot(named));
        }
        Mode::RdsPointInTime => {
            let moment = match fields.moment.as_deref() {
                None => return Err(malformed("mode rds_point_in_time needs moment: a time, or latest")),
                Some("latest") => None,
                Some(text) => Some(time("moment", text)?),
            };
            return Ok(SourceChoice::RdsMoment(moment));
        }
        _ => {}
    }
    if let Some(name) = &fields.import {
        if fields.backup.is_some() || fields.before.is_some() || fields.source_database.is_some() {
            return Err(malformed("import goes with none of backup, before and source_database"));
        }
        let name = name.parse().map_err(|error: ImportNameError| malformed(error.to_string()))?;
        return Ok(SourceChoice::Import(name));
    }
    let before = fields.before.as_deref().map(|text| time("before", text)).transpose()?;
    let text = match (&fields.backup, before) {
        (Some(text), _) => text.as_str(),
        (None, Some(_)) => "latest",
        (None, None) if mode == Mode::Verify => "latest",
        (None, None) => return Err(malformed("the request names no backup: give an id, latest, before or import")),
    };
    let (which, environment) = match text.split_once('@') {
        None => (text, None),
        Some((which, environment)) => {
            let environment = environment.parse().map_err(|error| Fault::from_error("request-malformed", &error))?;
            (which, Some(environment))
        }
    };
    let which = match (which, before) {
        ("latest", before) => Which::Latest { before },
        (_, Some(_)) => return Err(malformed("before goes with latest, not with an id")),
        (id, None) => Which::Id(id.parse().map_err(|error| Fault::from_error("request-malformed", &error))?),
    };
    Ok(SourceChoice::Backup(BackupChoice { which, environment, database: fields.source_database.clone() }))
}

#[cfg(test)]
mod tests;
