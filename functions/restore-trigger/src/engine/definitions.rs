//! Everything that is no data: run entry by entry, or side by side where nothing forbids it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use holdfast_shared::archive::script::{self, ScriptError, Step, Surroundings};
use holdfast_shared::domain::TableDigest;
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::plan::rebuild::{DataTask, Graph, Job, Kind, Next, Phase, Schedule};
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
    /// Dump ids of what was not made, because the role may not.
    pub refused: BTreeSet<i32>,
    /// Refused steps that privileges may allow which come later.
    pub postponed: Vec<(Arc<str>, Step)>,
}

/// Looks at all that the archive would run, before anything is made for it.
///
/// # Errors
/// `archive-unexpected`: something that no `pg_dump` writes; `archive-without-definitions`: data only.
pub fn check(backup: &Backup) -> Result<(), Fault> {
    let toc = &backup.archive.toc;
    let around = Surroundings { major: u32::MAX, no_owner: true, ..Surroundings::default() };
    script::session_settings(toc).map_err(|error| unexpected(&error))?;
    for (entry, item) in toc.entries.iter().zip(&backup.items) {
        if !matches!(item.phase, Phase::Never | Phase::Data) {
            script::script(toc, entry, &around).map_err(|error| unexpected(&error))?;
        }
    }
    let defined = backup.items.iter().any(|item| item.phase == Phase::Before);
    let on_tables = backup.items.iter().any(|item| matches!(item.kind, Kind::Index | Kind::Key));
    if !defined && (on_tables || !backup.blocks.is_empty()) {
        return Err(Fault::new(
            "archive-without-definitions",
            "the archive holds data or indexes, and not the tables they belong to",
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
    /// The entry's; `None`: a task's.
    index: Option<usize>,
    /// Its object was not made.
    refused: bool,
    left_out: Vec<String>,
    postponed: Vec<(Arc<str>, Step)>,
    result: Result<(), Fault>,
}

impl Outcome {
    fn of(index: Option<usize>, result: Result<(), Fault>) -> Self {
        Self { index, refused: false, left_out: Vec::new(), postponed: Vec::new(), result }
    }
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
            let outcome = run(session, index, &name, &statements).await;
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
                            let outcome = Outcome::of(None, result);
                            (step, session, outcome)
                        });
                    }
                    (Job::Entry(index), _) => {
                        let (name, steps) = self.script(index)?;
                        running.spawn(async move {
                            let outcome = run(&mut session, index, &name, &steps).await;
                            (step, session, outcome)
                        });
                    }
                    (Job::Loaded | Job::Data(_), _) => {
                        if let Some(loading) = &loading {
                            loaded = Loaded { digests: loading.work.finish()?, at: Instant::now() };
                            proof::check_loaded(self.backup, loading.work.peculiar(), &loaded.digests)?;
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
        let (entry, item) = (&self.backup.archive.toc.entries[index], &self.backup.items[index]);
        let name: Arc<str> = script::described(entry).into();
        let missing = self.not_made(index);
        if script::hangs_on_others(entry) && !missing.is_empty() {
            self.receipt.left_out.push(format!("{name}: {} is not there", missing.join(", ")));
            self.refused.insert(item.id);
            return Ok((name, Vec::new()));
        }
        let script =
            script::script(&self.backup.archive.toc, entry, self.around).map_err(|error| unexpected(&error))?;
        self.receipt.left_out.extend(script.left_out);
        Ok((name, script.steps))
    }

    /// What an entry depends on, and was not made.
    fn not_made(&self, index: usize) -> Vec<String> {
        let gone = self.backup.items[index].dependencies.iter().filter(|id| self.refused.contains(id));
        gone.filter_map(|id| self.backup.items.iter().position(|item| item.id == *id))
            .map(|at| script::described(&self.backup.archive.toc.entries[at]))
            .collect()
    }

    /// Tries again what was refused before all privileges were there.
    pub async fn try_again(&mut self, session: &mut RawSession) -> Result<(), Fault> {
        for (name, step) in std::mem::take(&mut self.postponed) {
            match (session.execute_each(&step.statements).await, &step.if_refused) {
                (Ok(_), _) => {}
                (Err(error), Some(told)) if error.code() == Some("42501") => {
                    self.receipt.left_out.push(format!("{told}: {}", chain(&error)));
                }
                (Err(error), _) => return Err(fault(&name, &error)),
            }
        }
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) -> Result<(), Fault> {
        self.receipt.left_out.extend(outcome.left_out);
        self.postponed.extend(outcome.postponed);
        let Some(index) = outcome.index else { return outcome.result };
        if outcome.refused {
            self.refused.insert(self.backup.items[index].id);
        }
        let Err(fault) = outcome.result else { return Ok(()) };
        let of_object = matches!(fault.code, "restore-object-failed" | "restore-extension-missing");
        if of_object && self.options.continue_on_error {
            self.receipt.errors.push(fault.message);
            return Ok(());
        }
        let missing = self.not_made(index);
        if of_object && !missing.is_empty() {
            return Err(fault.hint(format!("it needs what this role may not make: {}", missing.join(", "))));
        }
        Err(fault)
    }
}

async fn run(session: &mut RawSession, index: usize, name: &str, steps: &[Step]) -> Outcome {
    let mut outcome = Outcome::of(Some(index), Ok(()));
    for step in steps {
        match (session.execute_each(&step.statements).await, &step.if_refused) {
            (Ok(_), told) => {
                let told = told.iter().flat_map(|told| session.take_ungranted().into_iter().map(move |w| (told, w)));
                outcome.left_out.extend(told.map(|(told, warning)| format!("{told}: {}", warning.message)));
            }
            (Err(error), Some(_)) if step.postponable && error.code() == Some("42501") => {
                outcome.postponed.push((name.into(), step.clone()));
            }
            // Not permitted; or about an object or a language that was not.
            (Err(error), Some(told)) if matches!(error.code(), Some("42501" | "42704")) => {
                outcome.left_out.push(format!("{told}: {}", chain(&error)));
                if step.defines {
                    outcome.refused = true;
                    break;
                }
            }
            (Err(error), _) => {
                outcome.result = Err(fault(name, &error));
                break;
            }
        }
    }
    outcome
}

fn fault(name: &str, error: &CopyError) -> Fault {
    let failed = |code| Fault::from_error(code, error).with_context(name);
    match (error, error.code()) {
        (_, Some("53100")) => failed("target-disk-full"),
        (_, Some("57P01" | "57P02" | "57P03")) | (CopyError::Io(_), _) => failed("database-connection-lost"),
        // Not available, or its control file is not there.
        (_, Some("0A000" | "58P01")) if name.starts_with("EXTENSION ") => failed("restore-extension-missing")
            .hint("install it on the target server; continue_on_error restores what does not need it"),
        _ => failed("restore-object-failed"),
    }
}
