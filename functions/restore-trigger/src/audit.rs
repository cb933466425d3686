//! The record of every request, refused ones too. It is also the claim: who creates it runs the request.

use holdfast_shared::domain::{BackupId, Environment, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rds::Making;
use crate::request::RestoreRequest;

const RECORD_VERSION: u32 = 1;
/// How often the record is tried to be created or taken over that others get in the way of.
const CONTEST_ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    Running,
    /// Allowed, and waiting until an archived dump can be read.
    Thawing,
    /// Begun, and waiting until RDS has made what was asked for.
    Waiting,
    Planned,
    Succeeded,
    Refused,
    Failed,
}

/// What lies at `restores/{date}/{request id}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub record_version: u32,
    /// Lambda's of the request's first invocation; for what a schedule asks, the digest of its event's identity.
    pub request_id: String,
    /// Lambda's request id, where the record has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
    pub environment: Environment,
    pub state: RecordState,
    /// More than 1 where an earlier attempt died.
    pub attempt: u32,
    pub started: Timestamp,
    pub updated: Timestamp,
    /// Until when a running one may be alive.
    pub running_until: Timestamp,
    /// Who says to have asked. Who invoked is in CloudTrail, under the request id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The request as it came, without its passkey; `None` where it could not be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<BackupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_environment: Option<Environment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What was allowed, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<Value>,
    /// What an allowed restore waits for; `None` once what it waited for was there and it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<Wait>,
    /// Everything that was against it, or the failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// The answer that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Value>,
}

/// An approval, and what has to happen before it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    pub approved: Timestamp,
    pub approval_expires: Timestamp,
    pub expected_by: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived: Option<Archived>,
    /// The server that RDS makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rds: Option<Making>,
}

/// The dump that is thawed: the very object that was approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    pub key: String,
    pub version_id: Option<String>,
    pub storage_class: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        Self { code: fault.code.to_owned(), message: fault.message.clone(), hint: fault.hint.clone() }
    }
}

impl Record {
    pub fn new(request_id: &str, environment: &Environment, now: Timestamp, running_until: Timestamp) -> Self {
        Self {
            record_version: RECORD_VERSION,
            request_id: request_id.to_owned(),
            invocation: None,
            environment: environment.clone(),
            state: RecordState::Running,
            attempt: 1,
            started: now,
            updated: now,
            running_until,
            requested_by: None,
            mode: None,
            asked: None,
            backup_id: None,
            backup_environment: None,
            target: None,
            cleared: None,
            waits_for: None,
            problems: Vec::new(),
            outcome: None,
        }
    }

    pub fn of_request(&mut self, request: &RestoreRequest) {
        self.requested_by = Some(request.requested_by.clone());
        self.mode = Some(if request.plan_only { "plan" } else { request.mode.as_str() }.to_owned());
        self.asked = Some(request.asked.clone());
    }

    pub fn date(&self) -> Date {
        self.started.to_zoned(TimeZone::UTC).date()
    }

    /// Whether an invocation may be working on it.
    pub fn may_be_alive(&self, now: Timestamp) -> bool {
        self.state == RecordState::Running && self.running_until > now
    }

    pub fn has_ended(&self) -> bool {
        !matches!(self.state, RecordState::Running | RecordState::Thawing | RecordState::Waiting)
    }
}

/// What the record says to this delivery.
pub enum Opened {
    /// The request is this invocation's to run.
    Mine(Box<Audit>),
    /// Another delivery is running it.
    Running(Box<Record>),
    /// It has been answered, or waits.
    Answered(Box<Record>),
}

/// A record that was read.
pub struct Present {
    key: ObjectKey,
    etag: String,
    pub record: Record,
}

/// A record that this invocation writes.
pub struct Audit {
    store: Store,
    key: ObjectKey,
    etag: String,
    pub record: Record,
}

/// Creates the request's record, takes over that of an attempt that died, or finds another's.
///
/// # Errors
/// Nothing is run that cannot be written down.
pub async fn open(store: &Store, mut record: Record) -> Result<Opened, Fault> {
    let (now, today) = (record.started, record.date());
    let key = |date: Date| ObjectKey::RestoreRecord { date, request_id: record.request_id.clone() };
    let (key, earlier) = (key(today), today.yesterday().ok().map(key));
    for _ in 0..CONTEST_ROUNDS {
        let mut found = store.get(&key).await?.map(|found| (key.clone(), found));
        // Lambda delivers an event again for up to six hours: over midnight, too.
        if let (None, Some(earlier)) = (&found, &earlier) {
            found = store.get(earlier).await?.map(|found| (earlier.clone(), found));
        }
        let (key, condition) = match &found {
            None => (key.clone(), Condition::Absent),
            Some((key, (json, etag))) => {
                let present = parse(key, json)?;
                if present.state != RecordState::Running {
                    return Ok(Opened::Answered(Box::new(present)));
                }
                if present.may_be_alive(now) {
                    return Ok(Opened::Running(Box::new(present)));
                }
                // The record lies under the day of the first attempt, and what has no backup's id is named by its time.
                record.started = present.started;
                record.attempt = present.attempt + 1;
                record.cleared = present.cleared;
                (key.clone(), Condition::Etag(etag))
            }
        };
        if let PutOutcome::Written { etag } = store.put_if(&key, body(&record)?, condition).await? {
            return Ok(Opened::Mine(Box::new(Audit { store: store.clone(), key, etag, record })));
        }
    }
    Err(Fault::new("restore-record-contended", format!("{key} is being written by others again and again")))
}

/// The record of a request that is known to have one.
pub async fn find(store: &Store, date: Date, request_id: &str) -> Result<Option<Present>, Fault> {
    let key = ObjectKey::RestoreRecord { date, request_id: request_id.to_owned() };
    let Some((json, etag)) = store.get(&key).await? else { return Ok(None) };
    let record = parse(&key, &json)?;
    Ok(Some(Present { key, etag, record }))
}

/// Makes a record that waits this invocation's to go on with. `None`: another invocation was quicker.
pub async fn take(store: &Store, present: Present, running_until: Timestamp) -> Result<Option<Audit>, Fault> {
    let Present { key, etag, mut record } = present;
    record.state = RecordState::Running;
    record.attempt += 1;
    record.running_until = running_until;
    record.updated = Timestamp::now();
    match store.put_if(&key, body(&record)?, Condition::Etag(&etag)).await? {
        PutOutcome::Written { etag } => Ok(Some(Audit { store: store.clone(), key, etag, record })),
        PutOutcome::Refused => Ok(None),
    }
}

fn parse(key: &ObjectKey, json: &[u8]) -> Result<Record, Fault> {
    let unreadable = |fault: Fault| fault.with_context(&key.to_string());
    let record: Record = serde_json::from_slice(json)
        .map_err(|error| unreadable(Fault::from_error("restore-record-unreadable", &error)))?;
    if record.record_version == RECORD_VERSION {
        Ok(record)
    } else {
        let message = format!("version {} is not one this release reads", record.record_version);
        Err(unreadable(Fault::new("restore-record-unreadable", message)))
    }
}

fn body(record: &Record) -> Result<bytes::Bytes, Fault> {
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| Fault::from_error("internal", &error))?;
    text.push(b'\n');
    Ok(text.into())
}

impl Audit {
    /// Changes the record and writes it.
    ///
    /// # Errors
    /// `restore-record-lost` where another invocation has taken the request over: this one has to stop.
    pub async fn write(&mut self, edit: impl FnOnce(&mut Record)) -> Result<(), Fault> {
        edit(&mut self.record);
        self.record.updated = Timestamp::now();
        match self.store.put_if(&self.key, body(&self.record)?, Condition::Etag(&self.etag)).await? {
            PutOutcome::Written { etag } => {
                self.etag = etag;
                Ok(())
            }
            PutOutcome::Refused => {
                Err(Fault::new("restore-record-lost", format!("{} is another invocation's", self.key)))
            }
        }
    }
}
