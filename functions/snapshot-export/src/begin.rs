//! From what is asked for to a run: one for one snapshot and choice of tables, however often it is asked for.

use holdfast_shared::domain::rds::{ServerId, ServerKind, Snapshot, SnapshotType};
use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::snapshot_export::failure::Failure;
use holdfast_shared::plan::snapshot_export::run::{Run, RunState};
use holdfast_shared::plan::snapshot_export::{admit, can_be_handed, is_ours, newest};
use holdfast_shared::store::PutOutcome;
use holdfast_shared::store::claim::{ClaimRecord, MAX_ID_STEPS, event_object};
use holdfast_shared::store::client::Condition;
use jiff::Timestamp;

use crate::handler::{Function, Invocation};
use crate::request::{Asked, Origin, Wanted};
use crate::runs::{self, Tracked};

const CONTEST_ROUNDS: usize = 5;

/// A run to go on with, or why there is none.
pub enum Begun {
    Run(Box<Tracked>),
    /// It has been exported, or RDS has failed to.
    Before(Box<Tracked>),
    /// An event about somebody else's.
    NotOurs(String),
}

/// What a run is to export.
struct Subject {
    server: ServerId,
    snapshot_id: Option<String>,
    event_key: String,
}

impl Function {
    pub async fn begin_snapshot(
        &self,
        wanted: &Wanted,
        asked: &Asked,
        invocation: &Invocation,
    ) -> Result<Begun, Fault> {
        let Some(snapshot) = self.find(wanted, invocation).await? else {
            let id = match wanted {
                Wanted::Arn(arn) => arn.id().to_owned(),
                Wanted::Id(id) => id.clone(),
            };
            // Whose it was is not known: one that would not have been exported may come and go.
            let manual = !id.starts_with("rds:");
            let own = id.starts_with(&self.config.snapshot_name_prefix);
            if asked.origin == Origin::Event && manual && !own && !self.config.export_on.manual {
                return Ok(Begun::NotOurs(format!("snapshot {id} is gone, and EXPORT_ON names no manual ones")));
            }
            return Err(Failure::SnapshotNotFound { id }.into());
        };
        if asked.origin == Origin::Event {
            // RDS tells of every snapshot in the account.
            if !self.config.sources.contains(&snapshot.server) {
                return Ok(Begun::NotOurs(format!("snapshot {} is of {}", snapshot.id(), snapshot.server)));
            }
            if snapshot.snapshot_type == SnapshotType::Other {
                let what = "neither an automated nor a manual one";
                return Ok(Begun::NotOurs(format!("snapshot {} is {what}", snapshot.id())));
            }
            if snapshot.snapshot_type == SnapshotType::Manual {
                if let Some(tracked) = self.taken_by_us(&snapshot).await? {
                    return Ok(if tracked.run.state.is_open() {
                        Begun::Run(Box::new(tracked))
                    } else {
                        Begun::Before(Box::new(tracked))
                    });
                }
                if !self.config.export_on.manual {
                    return Ok(Begun::NotOurs(format!(
                        "{} is a manual snapshot, and EXPORT_ON names none",
                        snapshot.id()
                    )));
                }
            }
        }
        self.begin(&snapshot, asked, invocation).await
    }

    pub async fn begin_newest(
        &self,
        server: &ServerId,
        asked: &Asked,
        invocation: &Invocation,
    ) -> Result<Begun, Fault> {
        let snapshots = self.rds.snapshots(server, SnapshotType::Automated).await?;
        let Some(snapshot) = newest(&snapshots) else {
            let message = format!("{server} has no automated snapshot");
            return Err(Fault::new("snapshot-not-found", message).hint(
                "automated backups are off where the retention period is 0; SCHEDULED_SNAPSHOT=manual takes one",
            ));
        };
        let begun = self.begin(snapshot, asked, invocation).await?;
        let created = snapshot.created.unwrap_or(asked.at);
        if matches!(begun, Begun::Before(_)) && asked.at.duration_since(created) > self.config.max_snapshot_age {
            return Err(Failure::SnapshotStale { id: snapshot.id().to_owned(), created }.into());
        }
        Ok(begun)
    }

    /// A run that takes its snapshot itself.
    pub async fn begin_take(&self, server: &ServerId, asked: &Asked, invocation: &Invocation) -> Result<Begun, Fault> {
        if !self.config.sources.contains(server) {
            return Err(Failure::NotOurs { what: format!("a snapshot of {server} was asked for") }.into());
        }
        let event_key = format!("rds-take:{}:{server} {}", self.config.environment, asked.identity);
        self.claim(Subject { server: server.clone(), snapshot_id: None, event_key }, asked, invocation).await
    }

    async fn begin(&self, snapshot: &Snapshot, asked: &Asked, invocation: &Invocation) -> Result<Begun, Fault> {
        admit(snapshot, &self.rules(invocation, ""))?;
        let mut only = asked.only.clone();
        only.sort_unstable();
        let event_key = format!("rds-snapshot:{}:{} {}", self.config.environment, snapshot.arn, only.join(","));
        let (server, snapshot_id) = (snapshot.server.clone(), Some(snapshot.id().to_owned()));
        self.claim(Subject { server, snapshot_id, event_key }, asked, invocation).await
    }

    async fn find(&self, wanted: &Wanted, invocation: &Invocation) -> Result<Option<Snapshot>, Fault> {
        match wanted {
            Wanted::Arn(arn) => {
                is_ours(arn, &self.rules(invocation, ""))?;
                Ok(self.rds.snapshot(arn.kind(), arn.id()).await?)
            }
            Wanted::Id(id) => match self.rds.snapshot(ServerKind::Instance, id).await? {
                Some(snapshot) => Ok(Some(snapshot)),
                None => Ok(self.rds.snapshot(ServerKind::Cluster, id).await?),
            },
        }
    }

    /// The run that has taken this snapshot, if one has.
    async fn taken_by_us(&self, snapshot: &Snapshot) -> Result<Option<Tracked>, Fault> {
        let id = snapshot.id().strip_prefix(&self.config.snapshot_name_prefix);
        let Some(id) = id.and_then(|id| id.parse::<BackupId>().ok()) else { return Ok(None) };
        let tracked = runs::load(&self.store, id).await?;
        Ok(tracked.filter(|tracked| tracked.run.takes_snapshot && tracked.run.server == snapshot.server))
    }

    /// The run of what is asked for: a new one, or the one that there is.
    async fn claim(&self, subject: Subject, asked: &Asked, invocation: &Invocation) -> Result<Begun, Fault> {
        let event = event_object(&subject.event_key);
        for _ in 0..CONTEST_ROUNDS {
            let found = self.store.get(&event).await?;
            let condition = match &found {
                None => Condition::Absent,
                Some((json, etag)) => {
                    let record = ClaimRecord::parse(&event, json)?;
                    let tracked = match runs::load(&self.store, record.backup_id).await? {
                        Some(tracked) => tracked,
                        // Whoever claimed it went no further.
                        None => self.create(record.backup_id, &subject, asked, invocation).await?,
                    };
                    if tracked.run.state.is_open() {
                        return Ok(Begun::Run(Box::new(tracked)));
                    }
                    if !begins_anew(&tracked.run, asked) {
                        return Ok(Begun::Before(Box::new(tracked)));
                    }
                    Condition::Etag(etag)
                }
            };
            can_be_handed(&self.config.export_role_arn, &self.config.export_kms_key_arn, &self.rules(invocation, ""))?;
            let id = self.free_id(&subject, asked, invocation).await?;
            let record = ClaimRecord::new(&subject.event_key, id, &invocation.request_id);
            if let PutOutcome::Written { .. } = self.store.put_if(&event, record.render(), condition).await? {
                return Ok(Begun::Run(Box::new(self.create(id, &subject, asked, invocation).await?)));
            }
            // Another delivery was quicker: its id is the one.
        }
        Err(Fault::new("event-record-lost", format!("{event} was written by others again and again")))
    }

    /// The first id from the asked time on that no run of the bucket has, and no task of the account.
    async fn free_id(&self, subject: &Subject, asked: &Asked, invocation: &Invocation) -> Result<BackupId, Fault> {
        let mut id = BackupId::from_timestamp(asked.at);
        for _ in 0..MAX_ID_STEPS {
            let record = ClaimRecord::new(&subject.event_key, id, &invocation.request_id);
            let claimed = self.store.put_if(&ObjectKey::Claim(id), record.render(), Condition::Absent).await?;
            // Deployments that share an account do not share a bucket.
            if matches!(claimed, PutOutcome::Written { .. })
                && self.rds.export_task(&format!("export-{id}")).await?.is_none()
            {
                return Ok(id);
            }
            id = id.next();
        }
        Err(Fault::new("backup-id-taken", format!("{MAX_ID_STEPS} ids from {} on are taken", asked.at)))
    }

    async fn create(
        &self,
        id: BackupId,
        subject: &Subject,
        asked: &Asked,
        invocation: &Invocation,
    ) -> Result<Tracked, Fault> {
        let taken = || format!("{}{id}", self.config.snapshot_name_prefix);
        let run = Run {
            backup_id: id,
            event_key: subject.event_key.clone(),
            environment: self.config.environment.clone(),
            server: subject.server.clone(),
            takes_snapshot: subject.snapshot_id.is_none(),
            snapshot_id: subject.snapshot_id.clone().unwrap_or_else(taken),
            only: asked.only.clone(),
            purpose: asked.purpose.clone(),
            created_by: asked.created_by.clone(),
            begun: Timestamp::now(),
            state: RunState::Waiting,
            reason: None,
            snapshot: None,
            task: None,
            stall_told: false,
            table_failures: Vec::new(),
            written_by: String::new(),
            revision: 0,
        };
        runs::create(&self.store, run, &invocation.request_id).await
    }
}

/// An event comes again by itself, and what RDS failed is not started by itself again; what never came to a task is.
fn begins_anew(ended: &Run, asked: &Asked) -> bool {
    match ended.state {
        RunState::Complete => asked.again,
        _ => asked.origin != Origin::Event || ended.task.is_none(),
    }
}
