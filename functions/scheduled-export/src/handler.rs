//! One invocation: understand, claim, observe, plan, carry out, commit.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use holdfast_shared::config::ExportConfig;
use holdfast_shared::domain::{Manifest, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::notify::Notifier;
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::credentials;
use holdfast_shared::store::Store;
use holdfast_shared::store::lease::{Lease, RENEWAL_INTERVAL, UploadRecord};
use holdfast_shared::store::upload::Upload;
use holdfast_shared::telemetry::{Unit, emit_metrics};
use jiff::Timestamp;
use lambda_runtime::LambdaEvent;
use serde_json::{Value, json};
use tracing::Instrument;

use crate::carry_out::{carry_out, plan};
use crate::claim::{Claim, Run, claim};
use crate::commit::Committing;
use crate::observe::observe;
use crate::request::{ExportRequest, Request, understand};

const APPLICATION_NAME: &str = "holdfast export";
/// How long the end of a failed run may take to abort its upload and let go of its lease.
const CLEANUP_LIMIT: Duration = Duration::from_secs(10);

pub struct Function {
    pub config: ExportConfig,
    pub aws: aws_config::SdkConfig,
    pub store: Store,
    pub notifier: Notifier,
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
        let result = match understand(&event.payload, &invocation.request_id, Timestamp::now(), &self.config.selection)
        {
            Ok(Request::Nothing { reason }) => {
                tracing::info!(reason, "nothing to do");
                return Ok(json!({"status": "ignored", "reason": reason}));
            }
            Ok(Request::Export(request)) => self.export(&request, &invocation).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &result {
            self.report_failure(fault).await;
        }
        result
    }

    async fn export(&self, request: &ExportRequest, invocation: &Invocation) -> Result<Value, Fault> {
        let target = credentials::resolve(&self.config.database, &self.aws).await?;
        let lease_key =
            ObjectKey::Lease { environment: self.config.environment.clone(), database: target.database.clone() };
        let connector = Connector::new(target, APPLICATION_NAME)?;
        match claim(&self.store, request, &lease_key, &invocation.request_id, invocation.give_up_at).await? {
            Claim::Duplicate(manifest) => {
                tracing::info!(backup_id = %manifest.timestamp, "this event's backup exists already");
                Ok(receipt(&manifest, true))
            }
            Claim::Run(run) => {
                let span = tracing::info_span!("export", backup_id = %run.id, request_id = invocation.request_id);
                self.run(request, invocation, &connector, *run).instrument(span).await
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
        let attempt =
            self.attempt(request, invocation, connector, &mut lease, run.id, run.resumed, run.left_over).await;
        // The lease goes last: whoever waits for it may start at once.
        match attempt {
            Ok(manifest) => {
                if let Err(error) = lease.set_upload(&self.store, None).await {
                    tracing::warn!(
                        error = holdfast_shared::fault::chain(&error),
                        "the lease was not given back cleanly"
                    );
                } else if let Err(error) = lease.release(&self.store).await {
                    tracing::warn!(error = holdfast_shared::fault::chain(&error), "the lease was not given back");
                }
                self.report_success(&manifest).await;
                Ok(receipt(&manifest, false))
            }
            Err(fault) => {
                let released = tokio::time::timeout(CLEANUP_LIMIT, lease.release(&self.store)).await;
                if !matches!(released, Ok(Ok(()))) {
                    tracing::info!("the lease was not given back, and will expire");
                }
                Err(fault)
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a run, taken apart so that the lease outlives the attempt"
    )]
    async fn attempt(
        &self,
        request: &ExportRequest,
        invocation: &Invocation,
        connector: &Connector,
        lease: &mut Lease,
        id: holdfast_shared::domain::BackupId,
        resumed: bool,
        left_over: Option<UploadRecord>,
    ) -> Result<Manifest, Fault> {
        if let Some(upload) = left_over {
            self.store.abort_upload(&upload.key, &upload.upload_id).await?;
            tracing::info!(key = upload.key, "aborted the upload of a run that died");
            lease.set_upload(&self.store, None).await?;
        }
        let upload_slot: std::sync::OnceLock<Arc<Upload>> = std::sync::OnceLock::new();
        let (lease_commands, mut lease_requests) = tokio::sync::mpsc::channel::<LeaseCommand>(1);
        let export = self.produce(request, invocation, connector, id, resumed, &upload_slot, lease_commands);
        let guard = keep_lease(lease, &self.store, &mut lease_requests);
        let deadline = tokio::time::sleep_until(invocation.give_up_at.into());
        let result = tokio::select! {
            result = export => result,
            fault = guard => Err(fault),
            () = deadline => Err(deadline_fault(invocation, upload_slot.get())),
        };
        let Err(fault) = result else { return result };
        if let Some(upload) = upload_slot.get() {
            match tokio::time::timeout(CLEANUP_LIMIT, upload.abort()).await {
                Ok(Ok(())) => {
                    let _ = tokio::time::timeout(CLEANUP_LIMIT, lease.set_upload(&self.store, None)).await;
                }
                _ => tracing::info!(key = upload.key(), "the upload could not be aborted; the next run will"),
            }
        }
        Err(fault)
    }

    #[expect(clippy::too_many_arguments, reason = "see attempt")]
    async fn produce(
        &self,
        request: &ExportRequest,
        invocation: &Invocation,
        connector: &Connector,
        id: holdfast_shared::domain::BackupId,
        resumed: bool,
        upload_slot: &std::sync::OnceLock<Arc<Upload>>,
        lease_commands: tokio::sync::mpsc::Sender<LeaseCommand>,
    ) -> Result<Manifest, Fault> {
        let key = ObjectKey::Dump(id);
        // Without a backup of this id, what lies under its key is an earlier attempt's.
        let replaces = async {
            if resumed {
                Ok(self.store.head(&self.store.key(&key)).await?.map(|facts| facts.etag))
            } else {
                Ok::<_, Fault>(None)
            }
        };
        let begin = async {
            let upload = Arc::new(self.store.begin_upload(&key).await?);
            let _ = upload_slot.set(Arc::clone(&upload));
            let (done, written) = tokio::sync::oneshot::channel();
            let record = UploadRecord { key: upload.key().to_owned(), upload_id: upload.id().to_owned() };
            // If nobody answers, the lease is lost, and the run ends for that reason.
            let _ = lease_commands.send(LeaseCommand { upload: record, done }).await;
            let _ = written.await;
            Ok::<_, Fault>(upload)
        };
        let observation = observe(&self.config, &request.selection, connector);
        let (observed, upload, replaces) = tokio::try_join!(Box::pin(observation), begin, replaces)?;
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
        };
        committing.commit(&carried, &upload).await
    }

    async fn report_success(&self, manifest: &Manifest) {
        let (rows, bytes) = (manifest.rows(), manifest.bytes());
        let stored: u64 = manifest.artifacts.values().map(|artifact| artifact.size_bytes).sum();
        let seconds = manifest.durations_seconds.total;
        emit_metrics(
            &[("Environment", manifest.environment.as_str()), ("Database", &manifest.source.database)],
            &[
                ("BackupSucceeded", Unit::Count, 1.0),
                ("BackupDurationSeconds", Unit::Seconds, seconds),
                ("BackupBytes", Unit::Bytes, stored as f64),
                ("BackupRows", Unit::Count, rows as f64),
            ],
            &[("backup_id", json!(manifest.timestamp))],
        );
        tracing::info!(rows, text_bytes = bytes, stored_bytes = stored, seconds, "backup complete");
        let subject =
            format!("{} {}: backup {} complete", self.config.app_name, manifest.environment, manifest.timestamp);
        self.notifier.success(&subject, &format!("{:#}", receipt(manifest, false))).await;
    }

    async fn report_failure(&self, fault: &Fault) {
        tracing::error!(code = fault.code, error = %fault, "the export failed");
        emit_metrics(
            &[("Environment", self.config.environment.as_str())],
            &[("BackupFailed", Unit::Count, 1.0)],
            &[("code", json!(fault.code))],
        );
        let subject = format!("{} {}: backup failed ({})", self.config.app_name, self.config.environment, fault.code);
        self.notifier.failure(&subject, &fault.to_string()).await;
    }
}

/// Asks the lease's keeper to write the upload down.
struct LeaseCommand {
    upload: UploadRecord,
    done: tokio::sync::oneshot::Sender<()>,
}

/// Renews the lease until it is lost; ends with the reason.
async fn keep_lease(
    lease: &mut Lease,
    store: &Store,
    requests: &mut tokio::sync::mpsc::Receiver<LeaseCommand>,
) -> Fault {
    let mut interval = tokio::time::interval(RENEWAL_INTERVAL);
    interval.tick().await;
    loop {
        let result = tokio::select! {
            _ = interval.tick() => lease.renew(store).await,
            Some(command) = requests.recv() => {
                let result = lease.set_upload(store, Some(command.upload)).await;
                let _ = command.done.send(());
                result
            }
        };
        if let Err(error) = result {
            return error.into();
        }
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
        "status": "complete",
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
