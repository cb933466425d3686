//! Everything that is no data: run entry by entry, or side by side where nothing forbids it.

use std::sync::Arc;
use std::time::Instant;

use holdfast_shared::archive::script::{self, ScriptError, Step, Surroundings};
use holdfast_shared::domain::TableDigest;
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::rebuild::{DataTask, Graph, Job, Next, Phase, Schedule};
use holdfast_shared::postgres::copy::{CopyError, RawSession};
use tokio::task::JoinSet;

use crate::engine::load::Work;
use crate::engine::proof;
use crate::engine::source::Backup;
use crate::engine::{Options, Receipt};

pub struct Crew<'a> {
    pub backup: &'a Backup,
    pub around: &'a Surroundings,
    pub options: Options,
    pub receipt: &'a mut Receipt,
}

/// Looks at all that the archive would run, before anything is made for it.
///
/// # Errors
/// `archive-unexpected`: something that no `pg_dump` writes; `archive-without-definitions`: data only.
pub fn check(backup: &Backup) -> Result<(), Fault> {
    let toc = &backup.archive.toc;
    let around = Surroundings { no_owner: true, ..Surroundings::default() };
    script::session_settings(toc).map_err(|error| unexpected(&error))?;
    for (entry, item) in toc.entries.iter().zip(&backup.items) {
        if !matches!(item.phase, Phase::Never | Phase::Data) {
            script::script(toc, entry, &around).map_err(|error| unexpected(&error))?;
        }
    }
    let defined = backup.items.iter().any(|item| item.phase == Phase::Before);
    if !defined && !backup.blocks.is_empty() {
        return Err(Fault::new(
            "archive-without-definitions",
            "the archive holds data, and not the tables it belongs to",
        )
        .hint("it was made with --data-only or --section; restore it with pg_restore into tables that are there"));
    }
    let unlisted = backup.archive.size_bytes > backup.archive.data_start;
    if !backup.manifested && backup.blocks.is_empty() && backup.unchosen.is_empty() && unlisted {
        return Err(Fault::new("backup-damaged", "the archive has data that its table of contents does not list"));
    }
    Ok(())
}

fn unexpected(error: &ScriptError) -> Fault {
    Fault::from_error("archive-unexpected", error)
        .hint("an archive that was not written by pg_dump is not restored; pg_restore -f shows what it would run")
}

/// Data to load beside what is built on it.
pub struct Loading {
    pub work: Arc<Work>,
    pub tasks: Arc<Vec<DataTask>>,
}

/// What was loaded, one a block, and when the last of it was.
pub struct Loaded {
    pub digests: Vec<TableDigest>,
    pub at: Instant,
}

/// What came of one entry or task.
struct Outcome {
    left_out: Vec<String>,
    result: Result<(), Fault>,
}

impl Crew<'_> {
    /// One after the other, in one session.
    pub async fn in_order(
        &mut self,
        session: &mut RawSession,
        entries: impl Iterator<Item = &usize>,
    ) -> Result<(), Fault> {
        for &index in entries {
            let (name, statements) = self.script(index)?;
            let outcome = run(session, &name, &statements).await;
            self.note(outcome)?;
        }
        Ok(())
    }

    /// In all sessions at once, as the graph allows. `loading` has the tasks that load data; what was loaded is given
    /// back, and is what the manifest says.
    pub async fn side_by_side(
        &mut self,
        sessions: Vec<RawSession>,
        graph: Graph,
        loading: Option<Loading>,
    ) -> Result<(Vec<RawSession>, Loaded), Fault> {
        let mut schedule = Schedule::new(graph);
        let mut idle = sessions;
        let mut running: JoinSet<(usize, RawSession, Outcome)> = JoinSet::new();
        let (mut streams, mut loaded) = (0, Loaded { digests: Vec::new(), at: Instant::now() });
        loop {
            let may_load = loading.as_ref().is_some_and(|loading| streams < loading.work.at_once());
            let wanted = |job| match job {
                Job::Data(_) => may_load,
                Job::Loaded | Job::Entry(_) => true,
            };
            if !idle.is_empty()
                && let Next::Step(step) = schedule.take_of(wanted)
                && let Some(mut session) = idle.pop()
            {
                match (schedule.job(step), &loading) {
                    (Job::Data(task), Some(loading)) => {
                        let (work, tasks) = (Arc::clone(&loading.work), Arc::clone(&loading.tasks));
                        streams += 1;
                        running.spawn(async move {
                            let result = work.run(&mut session, &tasks[task]).await;
                            (step, session, Outcome { left_out: Vec::new(), result })
                        });
                    }
                    (Job::Entry(index), _) => {
                        let (name, steps) = self.script(index)?;
                        running.spawn(async move {
                            let outcome = run(&mut session, &name, &steps).await;
                            (step, session, outcome)
                        });
                    }
                    (Job::Loaded | Job::Data(_), _) => {
                        if let Some(loading) = &loading {
                            loaded = Loaded { digests: loading.work.finish()?, at: Instant::now() };
                            proof::check_loaded(self.backup, &loaded.digests)?;
                        }
                        idle.push(session);
                        schedule.finish(step);
                    }
                }
                continue;
            }
            // Others are aborted as the set is dropped.
            match running.join_next().await {
                None => return Ok((idle, loaded)),
                Some(done) => {
                    let (step, session, outcome) = done.map_err(|panic| Fault::from_error("internal", &panic))?;
                    self.note(outcome)?;
                    streams -= usize::from(matches!(schedule.job(step), Job::Data(_)));
                    schedule.finish(step);
                    idle.push(session);
                }
            }
        }
    }

    fn script(&mut self, index: usize) -> Result<(Arc<str>, Vec<Step>), Fault> {
        let entry = &self.backup.archive.toc.entries[index];
        let script =
            script::script(&self.backup.archive.toc, entry, self.around).map_err(|error| unexpected(&error))?;
        self.receipt.left_out.extend(script.left_out);
        Ok((script::described(entry).into(), script.steps))
    }

    fn note(&mut self, outcome: Outcome) -> Result<(), Fault> {
        self.receipt.left_out.extend(outcome.left_out);
        match outcome.result {
            Err(fault) if self.options.continue_on_error && fault.code == "restore-object-failed" => {
                self.receipt.errors.push(fault.message);
                Ok(())
            }
            Err(fault) if fault.code == "restore-object-failed" => {
                let extensions = self.receipt.left_out.iter().filter(|told| told.starts_with("EXTENSION "));
                let extensions: Vec<&str> = extensions.map(String::as_str).collect();
                if extensions.is_empty() {
                    return Err(fault);
                }
                Err(fault.hint(format!("it may need what could not be made: {}", extensions.join("; "))))
            }
            result => result,
        }
    }
}

async fn run(session: &mut RawSession, name: &str, steps: &[Step]) -> Outcome {
    let mut left_out = Vec::new();
    for step in steps {
        match (session.execute_each(&step.statements).await, &step.if_refused) {
            (Ok(_), _) => {}
            // Not permitted; or about an object that was not.
            (Err(error), Some(told)) if matches!(error.code(), Some("42501" | "42704")) => {
                left_out.push(format!("{told}: {}", chain(&error)));
            }
            (Err(error), _) => return Outcome { left_out, result: Err(fault(name, &error)) },
        }
    }
    Outcome { left_out, result: Ok(()) }
}

fn fault(name: &str, error: &CopyError) -> Fault {
    let code = match (error, error.code()) {
        (_, Some("53100")) => "target-disk-full",
        (_, Some("57P01" | "57P02" | "57P03")) | (CopyError::Io(_), _) => "database-connection-lost",
        _ => "restore-object-failed",
    };
    Fault::from_error(code, error).with_context(name)
}
