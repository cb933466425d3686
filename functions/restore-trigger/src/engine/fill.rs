//! An empty database becomes the backup's: definitions, data, indexes and constraints, privileges, proof.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use holdfast_shared::archive::script;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::postgres::session::copy_fault;

use crate::engine::definitions::{Crew, Loading};
use crate::engine::load::Work;
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
        let mut first = self.session(&connector, &settings).await?;
        let around = surroundings::surroundings(&mut first, options).await?;
        let mut refused = BTreeSet::new();
        let mut crew = Crew { backup, around: &around, options, receipt: &mut receipt, refused: &mut refused };

        crew.in_order(&mut first, plan.before.iter().chain(&plan.with_data)).await?;
        crew.receipt.seconds.before = started.elapsed().as_secs_f64();
        tracing::info!(database = name, seconds = crew.receipt.seconds.before, "definitions are there");

        let phase = Instant::now();
        let streams = self.workers.min(plan.build.steps.len().max(backup.blocks.len())).max(1);
        let mut sessions = self.streams(first, streams, &connector, &settings).await?;
        let work = Arc::new(Work::begin(backup, true, options.copy_as_text).await?);
        let loading = Loading { work, tasks: Arc::new(plan.data) };
        let loaded;
        (sessions, loaded) = crew.side_by_side(sessions, plan.build, Some(loading)).await?;
        crew.receipt.seconds.data = loaded.at.duration_since(phase).as_secs_f64();
        crew.receipt.count(backup, &loaded.digests);
        let rows = crew.receipt.rows;
        tracing::info!(database = name, rows, seconds = crew.receipt.seconds.data, "data is loaded");

        let mut forced = Vec::new();
        if let Some(session) = sessions.first_mut() {
            crew.in_order(session, plan.privileges.iter()).await?;
            forced = surroundings::lift_row_security(session).await?;
        }
        (sessions, _) = crew.side_by_side(sessions, plan.last, None).await?;
        receipt.seconds.after = loaded.at.elapsed().as_secs_f64();
        tracing::info!(database = name, seconds = receipt.seconds.after, "indexes and constraints are there");

        let phase = Instant::now();
        sessions = proof::prove(backup, &loaded.digests, sessions).await?;
        receipt.proved_by = backup.proved_by();
        receipt.seconds.proof = phase.elapsed().as_secs_f64();
        if let Some(session) = sessions.first_mut() {
            for table in forced {
                let sql = [b"ALTER TABLE ".as_slice(), &table, b" FORCE ROW LEVEL SECURITY"].concat();
                session.execute(sql).await.map_err(|error| copy_fault(&error, "row security"))?;
            }
        }
        // Statistics without rows are there for their own sake.
        let brings_statistics = toc.entries.iter().any(|entry| entry.desc() == b"STATISTICS DATA");
        if options.analyze
            && !(brings_statistics && backup.blocks.is_empty())
            && let Some(session) = sessions.first_mut()
        {
            // Its commits reach the disk, and with them everything before: what is reported done survives a crash.
            for sql in ["SET synchronous_commit = on", "ANALYZE"] {
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
    ) -> Result<Vec<RawSession>, Fault> {
        let mut sessions = vec![first];
        for _ in 1..streams {
            match self.session(connector, settings).await {
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
