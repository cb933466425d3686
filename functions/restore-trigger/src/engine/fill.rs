//! An empty database becomes the backup's: definitions, data, indexes and constraints, privileges, proof.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_shared::archive::script;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::postgres::session::copy_fault;

use crate::engine::definitions::{Crew, Loading};
use crate::engine::load::Work;
use crate::engine::peculiar::Peculiar;
use crate::engine::source::Backup;
use crate::engine::{Engine, Options, Receipt, proof, surroundings};

impl Engine {
    pub(super) async fn fill(
        &self,
        backup: &Arc<Backup>,
        name: &str,
        options: Options,
        started: Instant,
    ) -> Result<Receipt, Fault> {
        let toc = &backup.archive.toc;
        let mut receipt = Receipt { database: name.to_owned(), ..Receipt::default() };
        let plan = backup.plan(self.workers)?;

        let connector = self.connector(name)?;
        let settings =
            script::session_settings(toc).map_err(|error| Fault::from_error("archive-unexpected", &error))?;
        // Nobody but this restore holds a lock in a database of its own.
        let lock_timeout = if options.own_database { Duration::ZERO } else { self.lock_timeout };
        let mut first = self.session_of(&connector, &settings, lock_timeout).await?;
        let around = surroundings::surroundings(&mut first, options).await?;
        let mut crew = Crew {
            backup,
            around: &around,
            options,
            receipt: &mut receipt,
            refused: BTreeSet::new(),
            postponed: Vec::new(),
        };

        crew.in_order(&mut first, plan.before.iter().chain(&plan.with_data)).await?;
        crew.receipt.seconds.before = started.elapsed().as_secs_f64();
        tracing::info!(database = name, seconds = crew.receipt.seconds.before, "definitions are there");

        let failed = !crew.receipt.errors.is_empty();
        let peculiar = Arc::new(Peculiar::look(&mut first, backup, failed).await?);
        let without =
            peculiar.missing.iter().map(|&block| format!("rows of {}: the table is not there", backup.name(block)));
        crew.receipt.errors.extend(without);

        let phase = Instant::now();
        let streams = self.workers.min(plan.build.steps.len().max(backup.blocks.len())).max(1);
        let mut sessions = self.streams(first, streams, &connector, &settings, lock_timeout).await?;
        let work = Arc::new(Work::begin(backup, &peculiar, true, options.copy_as_text).await?);
        let loading = Loading { work, tasks: Arc::new(plan.data) };
        let loaded;
        (sessions, loaded) = crew.side_by_side(sessions, plan.build, Some(loading)).await?;
        crew.receipt.seconds.data = loaded.at.duration_since(phase).as_secs_f64();
        crew.receipt.count(backup, &peculiar, &loaded.digests);
        let rows = crew.receipt.rows;
        tracing::info!(database = name, rows, seconds = crew.receipt.seconds.data, "data is loaded");

        let mut forced = Vec::new();
        if let Some(session) = sessions.first_mut() {
            crew.in_order(session, plan.privileges.iter()).await?;
            crew.try_again(session).await?;
            if options.own_database {
                forced = surroundings::lift_row_security(session).await?;
            }
        }
        (sessions, _) = crew.side_by_side(sessions, plan.last, None).await?;
        crew.receipt.seconds.after = loaded.at.elapsed().as_secs_f64();
        tracing::info!(database = name, seconds = crew.receipt.seconds.after, "indexes and constraints are there");

        let phase = Instant::now();
        sessions = proof::prove(backup, &peculiar, &loaded.digests, sessions).await?;
        crew.receipt.proved_by = backup.proved_by();
        crew.receipt.seconds.proof = phase.elapsed().as_secs_f64();
        if let Some(session) = sessions.first_mut() {
            for table in forced {
                let sql = [b"ALTER TABLE ".as_slice(), &table, b" FORCE ROW LEVEL SECURITY"].concat();
                session.execute(sql).await.map_err(|error| copy_fault(&error, "row security"))?;
            }
            // Whatever else is defined would set them off, and what they write is no difference to the backup.
            crew.in_order(session, plan.after_proof.iter()).await?;
        }
        // Statistics without rows are there for their own sake.
        let brings_statistics = toc.entries.iter().any(|entry| entry.desc() == b"STATISTICS DATA");
        if options.analyze
            && !(brings_statistics && backup.blocks.is_empty())
            && let Some(session) = sessions.first_mut()
        {
            // Its commits reach the disk, and with them everything before: what is reported done survives a crash.
            let of_tables = (0..backup.blocks.len())
                .map(|block| backup.entry(block))
                .filter(|entry| entry.is_table_data() && !options.own_database)
                .map(|entry| [b"ANALYZE ".as_slice(), &script::qualified(entry)].concat());
            let whole = options.own_database.then(|| b"ANALYZE".to_vec());
            for sql in [b"SET synchronous_commit = on".to_vec()].into_iter().chain(of_tables).chain(whole) {
                session.execute(sql).await.map_err(|error| copy_fault(&error, "ANALYZE"))?;
            }
        }
        for session in sessions {
            session.close().await;
        }
        receipt.seconds.total = started.elapsed().as_secs_f64();
        Ok(receipt)
    }

    /// Sessions for so many streams, the first among them; fewer where the server has no more to give.
    async fn streams(
        &self,
        first: RawSession,
        streams: usize,
        connector: &Connector,
        settings: &[u8],
        lock_timeout: Duration,
    ) -> Result<Vec<RawSession>, Fault> {
        let mut sessions = vec![first];
        for _ in 1..streams {
            match self.session_of(connector, settings, lock_timeout).await {
                Ok(session) => sessions.push(session),
                Err(fault) if fault.code == "database-too-many-connections" => {
                    tracing::warn!(streams = sessions.len(), error = %fault, "fewer streams than workers");
                    break;
                }
                Err(fault) => return Err(fault),
            }
        }
        // What is not reported done yet may be lost in a crash.
        for session in &mut sessions {
            let set = session.execute("SET synchronous_commit = off").await;
            set.map_err(|error| copy_fault(&error, "the session's settings"))?;
        }
        Ok(sessions)
    }
}
