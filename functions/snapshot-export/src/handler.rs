//! One invocation: understand, begin what is asked for, go on with it as far as it goes, report.

use std::time::{Duration, Instant, SystemTime};

use holdfast_shared::config::SnapshotExportConfig;
use holdfast_shared::domain::rds::{ServerId, SnapshotArn};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::snapshot_export::{Rules, is_ours};
use holdfast_shared::rds::Rds;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::telemetry::Unit;
use jiff::Timestamp;
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;

use crate::advance::answer;
use crate::begin::Begun;
use crate::request::{Asked, Customs, Request, understand};
use crate::runs::{self, Tracked};

/// A run may take so long: the rounds in which RDS throttles, and a report of thousands of tables.
const RUN_TIME: Duration = Duration::from_secs(30);

pub struct Function {
    pub config: SnapshotExportConfig,
    pub store: Store,
    pub reporter: Reporter,
    pub rds: Rds,
}

pub struct Invocation {
    pub request_id: String,
    /// The function's own account and region, which is where its snapshots are.
    account: String,
    region: String,
    give_up_at: Instant,
}

impl Function {
    /// # Errors
    /// [`Fault`]: every failure is one; it is logged, counted and notified here, once.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<Value, Fault> {
        let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        let function: Vec<&str> = event.context.invoked_function_arn.split(':').collect();
        let part = |index: usize| function.get(index).copied().unwrap_or_default().to_owned();
        let invocation = Invocation {
            request_id: event.context.request_id.clone(),
            account: part(4),
            region: part(3),
            give_up_at: Instant::now() + remaining.saturating_sub(RUN_TIME),
        };
        let span = tracing::error_span!("snapshot_export", request_id = invocation.request_id);
        let handled = async {
            let customs = Customs { export_on: self.config.export_on, scheduled: self.config.scheduled_snapshot };
            let result = match understand(&event.payload, &invocation.request_id, Timestamp::now(), customs) {
                Ok(request) => Box::pin(self.respond(request, &invocation)).await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = &result {
                self.reporter.fault("SnapshotExportFailed", "snapshot export failed", fault).await;
            }
            result
        };
        handled.instrument(span).await
    }

    async fn respond(&self, request: Request, invocation: &Invocation) -> Result<Value, Fault> {
        match request {
            Request::Snapshot { wanted, asked } => {
                let begun = self.begin_snapshot(&wanted, &asked, invocation).await?;
                self.go_on(begun, invocation).await
            }
            Request::Newest { asked } => {
                self.each(&self.config.sources, async |server| self.newest(server, &asked, invocation).await).await
            }
            Request::Take { server, asked } => {
                let servers = server.map_or_else(|| self.config.sources.clone(), |server| vec![server]);
                self.each(&servers, async |server| self.take(server, &asked, invocation).await).await
            }
            Request::Task { snapshot, message, table_failed } => {
                self.task_event(&snapshot, &message, table_failed, invocation).await
            }
            Request::Poll => self.poll(invocation).await,
            Request::Nothing { reason } => Ok(ignored(&reason)),
        }
    }

    async fn newest(&self, server: &ServerId, asked: &Asked, invocation: &Invocation) -> Result<Value, Fault> {
        let begun = self.begin_newest(server, asked, invocation).await?;
        self.go_on(begun, invocation).await
    }

    async fn take(&self, server: &ServerId, asked: &Asked, invocation: &Invocation) -> Result<Value, Fault> {
        let begun = self.begin_take(server, asked, invocation).await?;
        self.go_on(begun, invocation).await
    }

    async fn go_on(&self, begun: Begun, invocation: &Invocation) -> Result<Value, Fault> {
        match begun {
            Begun::Run(tracked) => self.advance(*tracked, invocation).await,
            Begun::Before(tracked) => {
                let mut answer = answer(&tracked);
                answer["state"] = answer["status"].take();
                answer["status"] = json!("duplicate");
                Ok(answer)
            }
            Begun::NotOurs(reason) => Ok(ignored(&reason)),
        }
    }

    /// The same for several: what can be done is done, and then what failed is told.
    async fn each(
        &self,
        servers: &[ServerId],
        work: impl AsyncFn(&ServerId) -> Result<Value, Fault>,
    ) -> Result<Value, Fault> {
        let (mut answers, mut faults) = (Vec::new(), Vec::new());
        for server in servers {
            match work(server).await {
                Ok(answer) => answers.push(answer),
                Err(fault) => faults.push(fault.with_context(&server.to_string())),
            }
        }
        all_or_what_failed(faults, servers.len())?;
        Ok(one_or_several(answers))
    }

    async fn task_event(
        &self,
        snapshot: &SnapshotArn,
        message: &str,
        table_failed: bool,
        invocation: &Invocation,
    ) -> Result<Value, Fault> {
        is_ours(snapshot, &self.rules(invocation, ""))?;
        // What is wrong with a record is told by the next poll.
        let (open, _) = runs::open(&self.store, Timestamp::now()).await?;
        let of_it =
            |tracked: &Tracked| tracked.run.snapshot_id == snapshot.id() && tracked.run.server.kind == snapshot.kind();
        // Several may be of one snapshot, with other tables each.
        let open: Vec<Tracked> = open.into_iter().filter(of_it).collect();
        if open.is_empty() {
            return Ok(ignored(&format!("no open export is of snapshot {}", snapshot.id())));
        }
        tracing::info!(message, snapshot = snapshot.id(), "RDS tells of an export");
        let named = open.iter().any(|tracked| message.contains(&tracked.run.task_id()));
        let (runs, mut answers, mut faults) = (open.len(), Vec::new(), Vec::new());
        for mut tracked in open {
            let meant = if named { message.contains(&tracked.run.task_id()) } else { tracked.run.task.is_some() };
            if table_failed && meant {
                tracing::warn!(message, backup_id = %tracked.run.backup_id, "a table could not be exported");
                while !tracked.run.table_failures.iter().any(|told| told == message) {
                    tracked.run.table_failures.push(message.to_owned());
                    tracked.save(&self.store, &invocation.request_id).await?;
                }
            }
            match self.advance(tracked, invocation).await {
                Ok(answer) => answers.push(answer),
                Err(fault) => faults.push(fault),
            }
        }
        all_or_what_failed(faults, runs)?;
        Ok(one_or_several(answers))
    }

    async fn poll(&self, invocation: &Invocation) -> Result<Value, Fault> {
        let (open, mut faults) = runs::open(&self.store, Timestamp::now()).await?;
        let (looked_at, mut answers) = (open.len() + faults.len(), Vec::new());
        for tracked in open {
            if Instant::now() > invocation.give_up_at {
                tracing::info!(backup_id = %tracked.run.backup_id, "left to the next poll for lack of time");
                continue;
            }
            match self.advance(tracked, invocation).await {
                Ok(answer) => answers.push(answer),
                Err(fault) => faults.push(fault),
            }
        }
        let still = answers.iter().filter(|answer| answer["status"] != "complete").count();
        self.reporter.measure(&[("SnapshotExportOpen", Unit::Count, still as f64)], &[]);
        all_or_what_failed(faults, looked_at)?;
        Ok(json!({"status": "polled", "exports": answers}))
    }

    pub fn rules<'a>(&'a self, invocation: &'a Invocation, prefix: &'a str) -> Rules<'a> {
        Rules {
            sources: &self.config.sources,
            account: &invocation.account,
            region: &invocation.region,
            require_encrypted: self.config.require_encrypted,
            starting_limit: self.config.starting_limit,
            wait_limit: self.config.wait_limit,
            bucket: &self.config.store.bucket,
            prefix,
        }
    }

    /// Something that somebody should look at, though nothing has failed.
    pub async fn warn(&self, what: &str, message: &str) {
        tracing::warn!(message, "{what}");
        self.reporter.count("SnapshotExportWarnings", &[]);
        self.reporter.alert(what, message).await;
    }
}

fn ignored(reason: &str) -> Value {
    tracing::info!(reason, "nothing to do");
    json!({"status": "ignored", "reason": reason})
}

fn one_or_several(mut answers: Vec<Value>) -> Value {
    match answers.pop() {
        Some(only) if answers.is_empty() => only,
        last => {
            answers.extend(last);
            json!({"status": "several", "exports": answers})
        }
    }
}

fn all_or_what_failed(mut faults: Vec<Fault>, of: usize) -> Result<(), Fault> {
    match faults.len() {
        0 => Ok(()),
        1 => Err(faults.remove(0)),
        count => {
            let told: Vec<String> = faults.iter().map(|fault| format!("{} ({})", fault.message, fault.code)).collect();
            let message = format!("{count} of {of} exports failed: {}", told.join("; "));
            Err(Fault::new("snapshot-exports-failed", message).hint("the others were gone on with"))
        }
    }
}
