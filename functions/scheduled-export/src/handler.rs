//! One invocation: understand, claim, observe, plan, carry out, commit.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures::future::{Either, select};
use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::{BackupId, Manifest, ObjectKey};
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::credentials;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Lease, UploadRecord};
use holdfast_shared::store::upload::Upload;
use holdfast_shared::telemetry::Unit;
use jiff::Timestamp;
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;
use tracing::field::Empty;

use crate::carry_out::{carry_out, plan};
use crate::claim::{Claim, Run, claim};
use crate::commit::Committing;
use crate::keeper::{Ledger, keep, ledger};
use crate::observe::observe;
use crate::request::{ExportRequest, Request, understand};

const APPLICATION_NAME: &str = "holdfast export";
/// How long a run's end may wait to abort its upload, and again to let go of its lease: less than the margin.
const CLEANUP_LIMIT: Duration = Duration::from_secs(8);

pub struct Function {
    pub config: ExportConfig,
    pub aws: aws_config::SdkConfig,
    pub store: Store,
    pub reporter: Reporter,
}

/// What a run knows of its invocation.
struct Invocation {
    request_id: String,
    started: Instant,
    give_up_at: Instant,
    margin: Duration,
}

impl Function {
    /// # Errors
    /// [`Fault`]: every failure is one; it is logged, counted and notified here, once.
    pub async fn handle(&self, event: LambdaEvent<Value>) -> Result<Value, Fault> {
        let started = Instant::now();
        let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        let invocation = Invocation {
            request_id: event.context.request_id.clone(),
            started,
            give_up_at: started + remaining.saturating_sub(self.config.deadline_margin),
            margin: self.config.deadline_margin,
        };
        // At error level, so that it is there whatever level is logged.
        let span = tracing::error_span!("export", backup_id = Empty, request_id = invocation.request_id);
        let handled = async {
            let result = Box::pin(self.respond(&event.payload, &invocation)).await;
            if let Err(fault) = &result {
                self.reporter.fault("BackupFailed", "backup failed", fault).await;
            }
            result
        };
        handled.instrument(span).await
    }

    async fn respond(&self, event: &Value, invocation: &Invocation) -> Result<Value, Fault> {
        match understand(event, &invocation.request_id, Timestamp::now(), &self.config.selection)? {
            Request::Nothing { reason } => {
                tracing::info!(reason, "nothing to do");
                Ok(json!({"status": "ignored", "reason": reason}))
            }
            Request::Export(request) => self.export(request, invocation).await,
        }
    }

    async fn export(&self, request: ExportRequest, invocation: &Invocation) -> Result<Value, Fault> {
        let claiming = async {
            let target = credentials::resolve(&self.config.database, &self.aws).await?;
            let environment = self.config.environment.clone();
            let request = request.of_database(&environment, &target.database);
            let lease_key = ObjectKey::Lease { environment, database: target.database.clone() };
            let connector = Connector::new(target, APPLICATION_NAME)?;
            let claiming = claim(&self.store, &request, &lease_key, &invocation.request_id, invocation.give_up_at);
            let claim = Box::pin(claiming).await?;
            Ok::<_, Fault>((request, connector, claim))
        };
        let claimed = tokio::time::timeout_at(invocation.give_up_at.into(), claiming).await;
        let (request, connector, claim) = claimed.map_err(|_| deadline_fault(invocation, None))??;
        match claim {
            Claim::Duplicate(manifest) => {
                tracing::Span::current().record("backup_id", tracing::field::display(manifest.timestamp));
                tracing::info!("this event's backup exists already");
                Ok(receipt(&manifest, true))
            }
            Claim::Run(run) => {
                tracing::Span::current().record("backup_id", tracing::field::display(run.id));
                Box::pin(self.run(&request, invocation, &connector, *run)).await
            }
        }
    }

    async fn run(
        &self,
        request: &ExportRequest,
        invocation: &Invocation,
        connector: &Connector,
        run: Run,
    ) -> Result<Value, Fault> {
        let mut lease = run.lease;
        tracing::info!(purpose = request.purpose, created_by = request.created_by, "export begins");
        let attempt = self.attempt(request, invocation, connector, &mut lease, run.id, run.left_over).await;
        // The lease goes last: whoever waits for it may start at once.
        let released = tokio::time::timeout(CLEANUP_LIMIT, lease.release(&self.store)).await;
        if !matches!(released, Ok(Ok(()))) {
            let reason = match released {
                Ok(Err(error)) => chain(&error),
                _ => "no answer in time".to_owned(),
            };
            tracing::info!(reason, "the lease was not given back, and will expire");
        }
        let manifest = attempt?;
        self.report_success(&manifest, request.selection == self.config.selection).await;
        Ok(receipt(&manifest, false))
    }

    /// Makes the backup, or leaves nothing behind: what it cannot abort stands in the lease.
    async fn attempt(
        &self,
        request: &ExportRequest,
        invocation: &Invocation,
        connector: &Connector,
        lease: &mut Lease,
        id: BackupId,
        left_over: Option<UploadRecord>,
    ) -> Result<Manifest, Fault> {
        let upload_slot = OnceLock::new();
        let result = {
            let (ledger, mut entries) = ledger();
            let export = async {
                if let Some(upload) = left_over {
                    match self.store.abort_upload(&upload.key, &upload.upload_id).await {
                        Ok(()) => tracing::info!(key = upload.key, "aborted the upload of a run that died"),
                        // A backup is worth more than the sweep, which the bucket's lifecycle does as well.
                        Err(error) => {
                            tracing::warn!(key = upload.key, error = chain(&error), "a dead run's upload stays");
                        }
                    }
                }
                self.produce(request, invocation, connector, id, &upload_slot, &ledger).await
            };
            tokio::select! {
                result = export => result,
                fault = keep(lease, &self.store, &mut entries) => Err(fault),
                () = tokio::time::sleep_until(invocation.give_up_at.into()) => {
                    Err(deadline_fault(invocation, upload_slot.get()))
                }
            }
        };
        if result.is_err()
            && let Some(upload) = upload_slot.get()
        {
            match tokio::time::timeout(CLEANUP_LIMIT, upload.abort()).await {
                Ok(Ok(())) => lease.forget_upload(),
                _ => tracing::info!(key = upload.key(), "the upload could not be aborted; the next run will"),
            }
        }
        result
    }

    async fn produce(
        &self,
        request: &ExportRequest,
        invocation: &Invocation,
        connector: &Connector,
        id: BackupId,
        upload_slot: &OnceLock<Arc<Upload>>,
        ledger: &Ledger,
    ) -> Result<Manifest, Fault> {
        let key = ObjectKey::Dump(id);
        // The id is this event's and has no manifest: what lies under its key is an earlier attempt's.
        let replaces = async { Ok(self.store.head(&self.store.key(&key)).await?.map(|facts| facts.etag)) };
        let begin = async {
            let upload = Arc::new(self.store.begin_upload(&key).await?);
            let _ = upload_slot.set(Arc::clone(&upload));
            // Before its first part: an upload that no lease names is empty.
            ledger.record(Some(UploadRecord { key: upload.key().to_owned(), upload_id: upload.id().to_owned() })).await;
            Ok::<_, Fault>(upload)
        };
        let observation = Box::pin(observe(&self.config, &request.selection, connector));
        let beginning = Box::pin(async { tokio::try_join!(begin, replaces) });
        let (observed, (upload, replaces)) = match select(observation, beginning).await {
            Either::Left((observed, beginning)) => {
                // Waited for also after a failure: an upload whose id never arrived could not be aborted.
                let begun = beginning.await;
                (observed?, begun?)
            }
            Either::Right((begun, observation)) => {
                let begun = begun?;
                (observation.await?, begun)
            }
        };
        let (mut observed, holder) = observed;

        let plan = plan(&self.config, &observed);
        tracing::info!(
            server = observed.facts.version,
            tables = observed.entries.len(),
            units = plan.units.len(),
            workers = plan.workers,
            part_size_bytes = plan.part_size_bytes,
            compression = %observed.compression,
            snapshot = observed.snapshot,
            "planned"
        );
        let data_began = Instant::now();
        let carried = Box::pin(carry_out(
            &self.config,
            connector,
            &mut observed,
            holder,
            plan,
            Arc::clone(&upload),
            invocation.started,
        ))
        .await?;
        let committing = Committing {
            config: &self.config,
            store: &self.store,
            connector,
            request,
            id,
            observed: &observed,
            started: invocation.started,
            data_began,
            replaces,
            ledger,
        };
        committing.commit(&carried, &upload).await
    }

    /// `whole`: the backup has what the deployment is there to back up. One of fewer tables is no answer to whether that is done, nor is
    /// its size to whether something is missing.
    async fn report_success(&self, manifest: &Manifest, whole: bool) {
        let (rows, bytes) = (manifest.rows(), manifest.bytes());
        let stored: u64 = manifest.artifacts.values().map(|artifact| artifact.size_bytes).sum();
        let seconds = manifest.durations_seconds.total;
        let (environment, database) = (&manifest.environment, &manifest.source.database);
        let properties = [("backup_id", json!(manifest.timestamp))];
        if whole {
            self.reporter.measure_database(
                environment,
                database,
                &[
                    ("BackupSucceeded", Unit::Count, 1.0),
                    ("BackupDurationSeconds", Unit::Seconds, seconds),
                    ("BackupBytes", Unit::Bytes, stored as f64),
                    ("BackupRows", Unit::Count, rows as f64),
                ],
                &properties,
            );
        } else {
            self.reporter.measure_database(
                environment,
                database,
                &[("BackupOfFewerTables", Unit::Count, 1.0)],
                &properties,
            );
        }
        tracing::info!(rows, text_bytes = bytes, stored_bytes = stored, seconds, "backup complete");
        let what = format!("backup {} complete", manifest.timestamp);
        self.reporter.success(&what, &format!("{:#}", receipt(manifest, false))).await;
    }
}

fn deadline_fault(invocation: &Invocation, upload: Option<&Arc<Upload>>) -> Fault {
    let stored = upload.map_or(0, |upload| upload.uploaded_bytes()) as f64 / 1e6;
    Fault::new(
        "deadline-reached",
        format!(
            "the export was not done {} s before the function's timeout; {stored:.1} MB had been stored after {:.0} s",
            invocation.margin.as_secs(),
            invocation.started.elapsed().as_secs_f64()
        ),
    )
    .hint("raise the function's Timeout, or its MemorySize and WORKERS; EXCLUDE_TABLE_DATA leaves rows out")
}

/// The function's result.
fn receipt(manifest: &Manifest, duplicate: bool) -> Value {
    json!({
        "id": manifest.timestamp,
        "status": manifest.state,
        "duplicate": duplicate,
        "environment": manifest.environment,
        "database": manifest.source.database,
        "purpose": manifest.purpose,
        "artifacts": manifest.artifacts,
        "tables": manifest.tables.len(),
        "rows": manifest.rows(),
        "bytes": manifest.bytes(),
        "durations_seconds": manifest.durations_seconds,
        "warnings": manifest.warnings,
    })
}
