//! Carries a restore out: an archive in the store becomes a database, proved equal to its manifest, or none.

mod database;
mod definitions;
mod drill;
mod exchange;
mod fill;
mod in_place;
mod inserts;
mod intake;
mod live_tables;
mod load;
mod objects;
mod peculiar;
mod proof;
mod receipt;
mod rows;
mod source;
mod stopped;
mod surroundings;
mod tables;
mod unfinished;

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_shared::archive::script;
use holdfast_shared::domain::put_aside::Exchange as By;
use holdfast_shared::domain::{BackupId, Manifest, ObjectKey, PutAside};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::{Clearance, Restore, Source, left_out};
use holdfast_shared::postgres::catalog;
use holdfast_shared::postgres::connect::{Connector, Session, Target};
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::postgres::session::{copy_fault, query_fault, session_settings};
use holdfast_shared::store::Store;
use holdfast_shared::store::read::ArchiveSource;
use jiff::{SignedDuration, Timestamp};

use crate::engine::exchange::Exchange;
pub use crate::engine::receipt::{Receipt, Seconds};
use crate::engine::source::Backup;
use crate::engine::unfinished::Unfinished;
pub use crate::engine::unfinished::{held, sweep};

const APPLICATION_NAME: &str = "holdfast-restore";

/// What every restore works with.
pub struct Engine {
    /// From the prefix that the dump lies under.
    pub store: Store,
    /// From the function's own prefix.
    pub own_store: Store,
    /// The target server; its database is the one that others are created and renamed from.
    pub target: Target,
    /// Sessions at most.
    pub workers: usize,
    pub lock_timeout: Duration,
    /// What sorting for an index may take, at least.
    pub maintenance_work_mem_mb: u64,
    /// When an unfinished restore is given up.
    pub deadline: Instant,
}

/// Where the archive lies.
struct Origin {
    store: Store,
    key: String,
    version_id: Option<String>,
    size_bytes: u64,
    /// `None`: an archive of unknown origin, proved by its row counts only.
    manifest: Option<Manifest>,
}

#[derive(Debug, Clone, Copy)]
struct Options {
    no_owner: bool,
    /// What fails is told in the receipt, and the rest is restored.
    continue_on_error: bool,
    copy_as_text: bool,
    analyze: bool,
    /// What is filled is a database that nobody else uses yet.
    own_database: bool,
}

/// A database that is proved, and still marked as unfinished.
struct Made {
    receipt: Receipt,
    database: Unfinished,
}

impl Engine {
    /// Does what was allowed.
    ///
    /// # Errors
    /// Every failure; what existed is then as it was, and nothing unfinished stays.
    pub async fn carry_out(&self, clearance: Clearance) -> Result<Receipt, Fault> {
        let asked = clearance.options();
        let options = Options {
            no_owner: asked.no_owner,
            continue_on_error: asked.continue_on_error,
            copy_as_text: asked.copy_as_text,
            analyze: true,
            own_database: true,
        };
        self.check_server(&clearance).await?;
        let held = held(clearance.environment(), clearance.restore().target());
        match clearance.restore() {
            Restore::NewDatabase { database } => {
                let made =
                    self.new_database(&self.origin(clearance.source())?, (database, None), &held, options).await?;
                self.kept(self.finish(&made.database).await, made).await
            }
            Restore::Verify { scratch } => {
                // A drill that leaves anything out proves nothing.
                let options = Options { continue_on_error: false, analyze: false, ..options };
                let origin = self.origin(clearance.source())?;
                let made = Box::pin(self.new_database(&origin, (scratch, None), &held, options)).await;
                if let Ok(made) = &made {
                    self.discard(&made.database).await?;
                }
                if let Some(manifest) = &origin.manifest {
                    let found = made.as_ref().map(|_| ());
                    let recorded = drill::record(&self.store, manifest.timestamp, found, Timestamp::now());
                    match (&made, Box::pin(recorded).await) {
                        // What is told is why the drill failed.
                        (Err(_), Err(fault)) => tracing::warn!(error = %fault, "the drill's result is not recorded"),
                        (_, recorded) => recorded?,
                    }
                }
                made.map(|made| made.receipt)
            }
            Restore::Swap { database, shadow, previous } => {
                self.check_may_rename(database).await?;
                let origin = self.origin(clearance.source())?;
                let mut made = self.new_database(&origin, (shadow, Some(database)), &held, options).await?;
                let id = origin.manifest.as_ref().map(|manifest| manifest.timestamp);
                let note = note(By::Replaced, id, asked.keep_previous_days);
                let swapped = async {
                    made.receipt.left_out.extend(self.carry_over(database, shadow).await?);
                    let incoming = Some(&made.database);
                    self.exchange(Exchange {
                        live: database,
                        aside: previous,
                        incoming: shadow,
                        note: &note,
                        made: incoming,
                    })
                    .await
                };
                let swapped = swapped.await;
                let mut receipt = self.kept(swapped, made).await?;
                (receipt.database, receipt.previous) = (database.clone(), Some(previous.clone()));
                let missing = origin.manifest.iter().flat_map(left_out);
                receipt
                    .notes
                    .extend(missing.map(|pattern| format!("{pattern} was left out of the backup: see {previous}")));
                Ok(receipt)
            }
            Restore::Undo { database, previous: Some(previous), aside, .. } => {
                for name in [database, previous] {
                    self.check_may_rename(name).await?;
                }
                let note = note(By::Undone, None, asked.keep_previous_days);
                self.exchange(Exchange { live: database, aside, incoming: previous, note: &note, made: None }).await?;
                Ok(Receipt { database: database.clone(), previous: Some(aside.clone()), ..Receipt::default() })
            }
            Restore::TablesIntoSchema { database, schema, tables } => {
                self.tables_into_schema(&self.origin(clearance.source())?, (database, schema), tables, options).await
            }
            Restore::TablesInPlace { database, tables } => {
                self.tables_in_place(&self.origin(clearance.source())?, database, tables, options).await
            }
            // Others are not cleared, or are RDS's to do.
            Restore::Undo { .. } | Restore::RdsSnapshot { .. } | Restore::RdsPointInTime { .. } => {
                let mode = clearance.restore().mode();
                Err(Fault::new("internal", format!("mode {mode} is not the engine's")))
            }
        }
    }

    /// The server is the one that the clearance was given for.
    async fn check_server(&self, clearance: &Clearance) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
        let cleared = clearance.target().and_then(|server| server.system_identifier.clone());
        if cleared.is_some() && cleared == facts.system_identifier && !facts.in_recovery {
            return Ok(());
        }
        Err(Fault::new("restore-wrong-server", "another server answers than the one that was looked at")
            .hint("a failover may have just happened; ask again"))
    }

    fn origin(&self, source: &Source) -> Result<Origin, Fault> {
        match source {
            Source::Backup(manifest) => {
                let artifact = manifest.artifacts.get("dump").ok_or_else(|| {
                    Fault::new("restore-backup-without-dump", format!("{} holds no dump", manifest.timestamp))
                })?;
                Ok(Origin {
                    store: self.store.clone(),
                    key: artifact.key.clone(),
                    version_id: artifact.version_id.clone(),
                    size_bytes: artifact.size_bytes,
                    manifest: Some(manifest.as_ref().clone()),
                })
            }
            Source::Import { name, size_bytes, version_id } => Ok(Origin {
                store: self.own_store.clone(),
                key: self.own_store.key(&ObjectKey::Import(name.clone())),
                version_id: version_id.clone(),
                size_bytes: *size_bytes,
                manifest: None,
            }),
            Source::Previous | Source::Rds(_) => Err(Fault::new("internal", "a restore of nothing that is stored")),
        }
    }

    /// Restores into a database that does not exist yet, and proves it. Where anything fails, there is no such
    /// database afterwards. It belongs to whom the one belongs that it is to replace, or else to whom the backup says.
    /// `held` is what this run has the lease on.
    async fn new_database(
        &self,
        origin: &Origin,
        (name, replaced): (&str, Option<&str>),
        held: &str,
        options: Options,
    ) -> Result<Made, Fault> {
        let started = Instant::now();
        let backup = Arc::new(self.read(origin).await?);
        definitions::check(&backup)?;
        let database = self.create_database(name, held, &backup).await?;
        let work = async {
            let kept = self.give(name, replaced, &backup, options).await?;
            let mut receipt = self.fill(&backup, name, options, started).await?;
            receipt.left_out.splice(0..0, kept);
            let about = backup.archive.toc.entries.iter().filter(|entry| script::is_about_the_database(entry));
            let about: Vec<String> = about.map(script::described).collect();
            // A swap brings over what the live database has.
            if replaced.is_none() && !about.is_empty() {
                receipt.notes.push(format!("not restored, being about the database as a whole: {}", about.join(", ")));
            }
            Ok(receipt)
        };
        match self.in_time(name, work).await {
            Ok(receipt) => Ok(Made { receipt, database }),
            Err(fault) => {
                self.drop_unfinished(&database, &fault).await;
                Err(fault)
            }
        }
    }

    /// The receipt of what was made, if what came after the proof succeeded; else it is dropped.
    async fn kept(&self, result: Result<(), Fault>, made: Made) -> Result<Receipt, Fault> {
        if let Err(fault) = &result {
            self.drop_unfinished(&made.database, fault).await;
        }
        result.map(|()| made.receipt)
    }

    async fn drop_unfinished(&self, database: &Unfinished, fault: &Fault) {
        tracing::info!(database = database.name, code = fault.code, "dropping the unfinished database");
        if let Err(left) = self.discard(database).await {
            tracing::warn!(database = database.name, error = %left, "the unfinished database could not be dropped");
        }
    }

    async fn read(&self, origin: &Origin) -> Result<Backup, Fault> {
        let size = Some(origin.size_bytes);
        let archive = ArchiveSource::open(&origin.store, &origin.key, origin.version_id.as_deref(), size).await;
        let archive = archive.map_err(|error| match &origin.manifest {
            Some(_) => error.into(),
            None => error.of_import(),
        })?;
        Backup::read(archive, origin.manifest.as_ref())
    }

    fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> impl Future<Output = Result<T, Fault>> {
        let work = tokio::time::timeout_at(self.deadline.into(), Box::pin(work));
        async move { work.await.unwrap_or_else(|_| Err(Self::too_late(what))) }
    }

    fn too_late(what: &str) -> Fault {
        Fault::new("restore-deadline", format!("{what} was not complete when the function's time was nearly over"))
            .hint("give the function a longer timeout or more memory; nothing that is unfinished stays")
    }

    fn connector(&self, database: &str) -> Result<Connector, Fault> {
        let target = Target { database: database.to_owned(), ..self.target.clone() };
        Ok(Connector::new(target, APPLICATION_NAME)?)
    }

    /// A session with the settings of `pg_dump` and of the archive, for a database that others may be using.
    async fn session(&self, connector: &Connector, settings: &[u8]) -> Result<RawSession, Fault> {
        self.session_of(connector, settings, self.lock_timeout).await
    }

    /// `lock_timeout`: zero waits for as long as it takes.
    async fn session_of(
        &self,
        connector: &Connector,
        settings: &[u8],
        lock_timeout: Duration,
    ) -> Result<RawSession, Fault> {
        let session: Session = connector.session().await?;
        let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
        let mut raw = session.into_raw().await?;
        let mb = self.maintenance_work_mem_mb;
        let memory = format!(
            "SELECT pg_catalog.set_config('maintenance_work_mem', '{mb}MB', false)
              WHERE pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')) < {mb}::bigint << 20"
        );
        for sql in [session_settings(facts.major(), lock_timeout).into_bytes(), settings.to_vec(), memory.into()] {
            raw.execute(sql).await.map_err(|error| copy_fault(&error, "the session's settings"))?;
        }
        Ok(raw)
    }
}

/// What retention and people read on a database that was put aside.
fn note(by: By, by_backup: Option<BackupId>, keep_days: Option<u32>) -> String {
    let at = Timestamp::now();
    let keep_until = keep_days.and_then(|days| at.checked_add(SignedDuration::from_hours(24 * i64::from(days))).ok());
    PutAside { by, by_backup, at, keep_until }.render()
}
