//! What one invocation is asked to do.

use holdfast_shared::config::snapshot_export::{ExportOn, ScheduledSnapshot};
use holdfast_shared::domain::rds::{ServerId, SnapshotArn, is_snapshot_id};
use holdfast_shared::event::{Trigger, parse};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::snapshot_export::only;
use holdfast_shared::request::{self, checked_purpose, malformed};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::rds_event::{self, RdsEvent, What};

const FUNCTION: &str = "snapshot-export";
/// The input of the schedule that polls.
const POLL: &str = "poll";

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Snapshot {
        wanted: Wanted,
        asked: Asked,
    },
    /// The newest automated snapshot of each server.
    Newest {
        asked: Asked,
    },
    /// A snapshot that is taken first: of one server, or of each.
    Take {
        server: Option<ServerId>,
        asked: Asked,
    },
    /// Something has happened to a task of this snapshot.
    Task {
        snapshot: SnapshotArn,
        message: String,
        table_failed: bool,
    },
    Poll,
    /// Understood, and nothing to do.
    Nothing {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Arn(SnapshotArn),
    Id(String),
}

/// How an export is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub origin: Origin,
    /// The time that names the backup.
    pub at: Timestamp,
    /// The same for every delivery, where no snapshot is there yet to tell deliveries by.
    pub identity: String,
    pub only: Vec<String>,
    pub purpose: String,
    pub created_by: String,
    /// Although the same has been exported before.
    pub again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Of RDS: about a snapshot that was just created.
    Event,
    Schedule,
    Direct,
}

/// The direct request. docs/events.md.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Direct {
    mode: Option<String>,
    snapshot: Option<String>,
    take_snapshot: bool,
    server: Option<String>,
    tables: Vec<String>,
    purpose: Option<String>,
    requested_by: Option<String>,
    again: bool,
}

const DIRECT_FIELDS: [&str; 8] =
    ["mode", "snapshot", "take_snapshot", "server", "tables", "purpose", "requested_by", "again"];

/// Of a schedule's Input.
const SCHEDULE_FIELDS: [&str; 1] = ["mode"];

/// What the configuration decides about requests.
#[derive(Debug, Clone, Copy)]
pub struct Customs {
    pub export_on: ExportOn,
    pub scheduled: ScheduledSnapshot,
}

pub fn understand(event: &Value, request_id: &str, now: Timestamp, customs: Customs) -> Result<Request, Fault> {
    let trigger = parse(event)?;
    match trigger {
        Trigger::Schedule { arn, scheduled_time, purpose, input } => {
            if polls(&request::read(input, &SCHEDULE_FIELDS)?)? {
                return Ok(Request::Poll);
            }
            let asked = Asked {
                origin: Origin::Schedule,
                at: scheduled_time,
                identity: format!("schedule:{arn}:{scheduled_time}"),
                only: Vec::new(),
                purpose: self::purpose(purpose)?,
                created_by: "schedule".to_owned(),
                again: false,
            };
            Ok(scheduled(customs, asked))
        }
        Trigger::Direct(fields) => {
            request::refuse_message(FUNCTION, event)?;
            direct(fields, request_id, now, customs)
        }
        Trigger::Aws { ref source, ref detail_type, ref detail } if source == "aws.rds" => {
            match rds_event::read(detail_type, detail)? {
                Some(event) => rds(event, now, customs),
                None => Err(request::not_for(FUNCTION, &trigger)),
            }
        }
        other => Err(request::not_for(FUNCTION, &other)),
    }
}

fn polls(input: &Direct) -> Result<bool, Fault> {
    match input.mode.as_deref() {
        None => Ok(false),
        Some(POLL) => Ok(true),
        Some(mode) => Err(no_mode(mode)),
    }
}

fn no_mode(mode: &str) -> Fault {
    malformed(format!("there is no mode {mode:?}: the only one is poll"))
}

fn scheduled(customs: Customs, asked: Asked) -> Request {
    match customs.scheduled {
        ScheduledSnapshot::NewestAutomated => Request::Newest { asked },
        ScheduledSnapshot::TakeManual => Request::Take { server: None, asked },
    }
}

fn rds(event: RdsEvent, now: Timestamp, customs: Customs) -> Result<Request, Fault> {
    let snapshot = event.snapshot;
    // Whether a manual one is exported is known once its name has been looked at: it may be one of our own taking.
    let starts = match event.what {
        What::AutomatedCreated => customs.export_on.automated,
        What::ManualCreated => true,
        What::TaskEnded | What::TaskProgress | What::TableFailed => {
            let table_failed = event.what == What::TableFailed;
            return Ok(Request::Task { snapshot, message: event.message, table_failed });
        }
        What::Other => false,
    };
    if !starts {
        let reason = format!("{:?} about {} starts no export", event.message, snapshot.id());
        return Ok(Request::Nothing { reason });
    }
    let asked = Asked {
        origin: Origin::Event,
        at: event.at.unwrap_or(now),
        identity: snapshot.to_string(),
        only: Vec::new(),
        purpose: purpose(None)?,
        created_by: format!("RDS event: {}", event.message),
        again: false,
    };
    Ok(Request::Snapshot { wanted: Wanted::Arn(snapshot), asked })
}

fn direct(
    fields: serde_json::Map<String, Value>,
    request_id: &str,
    now: Timestamp,
    customs: Customs,
) -> Result<Request, Fault> {
    let alone = fields.len() == 1;
    let direct: Direct = request::read(fields, &DIRECT_FIELDS)?;
    if let Some(mode) = &direct.mode {
        return match (mode.as_str(), alone) {
            (POLL, true) => Ok(Request::Poll),
            (POLL, false) => Err(malformed("mode poll takes no other field")),
            (mode, _) => Err(no_mode(mode)),
        };
    }
    only::check(&direct.tables).map_err(|error| {
        Fault::from_error("request-malformed", &error).hint("tables lists database.schema.table, schemas or databases")
    })?;
    let asked = Asked {
        origin: Origin::Direct,
        at: now,
        identity: format!("request:{request_id}"),
        only: direct.tables,
        purpose: purpose(direct.purpose)?,
        created_by: direct.requested_by.unwrap_or_else(|| "invoke".to_owned()),
        again: direct.again,
    };
    let server: Option<ServerId> =
        direct.server.map(|server| server.parse().map_err(|problem: String| malformed(problem))).transpose()?;
    match (direct.snapshot, direct.take_snapshot) {
        (Some(_), true) => Err(malformed("snapshot and take_snapshot exclude each other")),
        (Some(_), false) if server.is_some() => Err(malformed("server goes with take_snapshot")),
        (Some(snapshot), false) => Ok(Request::Snapshot { wanted: wanted(&snapshot)?, asked }),
        (None, true) => Ok(Request::Take { server, asked }),
        (None, false) if server.is_some() => Err(malformed("server goes with take_snapshot")),
        (None, false) => Ok(scheduled(customs, asked)),
    }
}

fn wanted(snapshot: &str) -> Result<Wanted, Fault> {
    if let Ok(arn) = snapshot.parse() {
        return Ok(Wanted::Arn(arn));
    }
    if is_snapshot_id(snapshot) {
        return Ok(Wanted::Id(snapshot.to_owned()));
    }
    let shown: String = snapshot.chars().take(200).collect();
    Err(malformed(format!("{shown:?} is neither an RDS snapshot's identifier nor its ARN")))
}

fn purpose(asked: Option<String>) -> Result<String, Fault> {
    checked_purpose(asked.unwrap_or_else(|| "rds_export".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CUSTOMS: Customs = Customs {
        export_on: ExportOn { automated: true, manual: false },
        scheduled: ScheduledSnapshot::NewestAutomated,
    };

    fn understood(event: &Value) -> Result<Request, Fault> {
        understand(event, "r-1", "2025-06-21T14:30:00Z".parse().unwrap(), CUSTOMS)
    }

    #[test]
    fn each_way_of_asking_is_understood() {
        let schedule =
            json!({"source":"holdfast.schedule","schedule_arn":"arn:s","scheduled_time":"2025-06-21T02:00:00Z"});
        let Request::Newest { asked } = understood(&schedule).unwrap() else { panic!() };
        assert_eq!((asked.at.to_string().as_str(), asked.purpose.as_str()), ("2025-06-21T02:00:00Z", "rds_export"));
        let mut poll = schedule;
        poll["mode"] = json!("poll");
        assert_eq!(understood(&poll).unwrap(), Request::Poll);
        let message = json!({"Records":[{"eventSource":"aws:sqs","body":poll.to_string()}]});
        assert_eq!(understood(&message).unwrap(), Request::Poll);
        assert_eq!(understood(&json!({"mode":"poll"})).unwrap(), Request::Poll);

        let Request::Snapshot { wanted, asked } =
            understood(&json!({"snapshot":"rds:shop-2025-06-21-02-00","tables":["shop.public.orders"],"again":true}))
                .unwrap()
        else {
            panic!()
        };
        assert_eq!(wanted, Wanted::Id("rds:shop-2025-06-21-02-00".into()));
        assert!(asked.again && asked.only == ["shop.public.orders"] && asked.origin == Origin::Direct);
        assert!(matches!(understood(&json!({})).unwrap(), Request::Newest { .. }));
        let take = understood(&json!({"take_snapshot":true,"server":"cluster:shop"})).unwrap();
        assert!(matches!(take, Request::Take { server: Some(server), .. } if server.to_string() == "cluster:shop"));
    }

    #[test]
    fn rds_events_start_follow_or_are_passed_over() {
        let event = |id: &str| {
            json!({"source":"aws.rds","detail-type":"RDS DB Snapshot Event","detail":{
                "SourceType":"SNAPSHOT","SourceArn":"arn:aws:rds:eu-west-1:123456789012:snapshot:rds:shop-1",
                "Date":"2025-06-21T02:05:00.000Z","EventID":id,"Message":"m"}})
        };
        assert!(matches!(understood(&event("RDS-EVENT-0091")).unwrap(), Request::Snapshot { asked, .. }
            if asked.at.to_string() == "2025-06-21T02:05:00Z"));
        assert!(matches!(understood(&event("RDS-EVENT-0161")).unwrap(), Request::Task { table_failed: false, .. }));
        assert!(matches!(understood(&event("RDS-EVENT-0487")).unwrap(), Request::Task { table_failed: false, .. }));
        assert!(matches!(understood(&event("RDS-EVENT-0484")).unwrap(), Request::Task { table_failed: true, .. }));
        assert!(matches!(understood(&event("RDS-EVENT-0090")).unwrap(), Request::Nothing { .. }));
        let off = Customs { export_on: ExportOn { automated: false, manual: false }, ..CUSTOMS };
        let off = understand(&event("RDS-EVENT-0091"), "r", Timestamp::UNIX_EPOCH, off).unwrap();
        assert!(matches!(off, Request::Nothing { .. }));
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_own_error() {
        let message =
            |request: Value| json!({"Records":[{"EventSource":"aws:sns","Sns":{"Message":request.to_string()}}]});
        let schedule = |mut input: Value| {
            input["source"] = json!("holdfast.schedule");
            input["schedule_arn"] = json!("arn:s");
            input["scheduled_time"] = json!("2025-06-21T02:00:00Z");
            input
        };
        for (event, code) in [
            (json!({"bucket":"someone-elses","snapshot":"x"}), "request-unknown-fields"),
            (json!({"role":"arn:aws:iam::999999999999:role/x"}), "request-unknown-fields"),
            (json!({"snapshot":"../x"}), "request-malformed"),
            (json!({"snapshot":7}), "request-malformed"),
            (json!({"snapshot":"arn:aws:rds:eu-west-1:123456789012:db:shop"}), "request-malformed"),
            (json!({"snapshot":"x","take_snapshot":true}), "request-malformed"),
            (json!({"snapshot":"x","server":"shop"}), "request-malformed"),
            (json!({"server":"shop"}), "request-malformed"),
            (json!({"take_snapshot":true,"server":"../shop"}), "request-malformed"),
            (json!({"snapshot":"x","tables":["a b"]}), "request-malformed"),
            (json!({"snapshot":"x","tables":"a"}), "request-malformed"),
            (json!({"snapshot":"x","purpose":"a b"}), "request-malformed"),
            (json!({"mode":"poll","snapshot":"x"}), "request-malformed"),
            (json!({"mode":"restore"}), "request-malformed"),
            (schedule(json!({"mode":"pol"})), "request-malformed"),
            (schedule(json!({"mode":"poll","tables":["a"]})), "request-unknown-fields"),
            (schedule(json!({"snapshot":"x"})), "request-unknown-fields"),
            (message(json!({"snapshot":"x"})), "request-not-direct"),
            (json!({"source":"aws.s3","detail-type":"Object Created","detail":{}}), "event-not-for-this-function"),
            (
                json!({"source":"aws.rds","detail-type":"RDS DB Instance Event","detail":{"SourceType":"DB_INSTANCE"}}),
                "event-not-for-this-function",
            ),
            (json!(7), "event-not-an-object"),
        ] {
            assert_eq!(understood(&event).unwrap_err().code, code, "{event}");
        }
    }
}
