//! What is to be read, and who reads what next.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_shared::archive::codec::Compression;
use holdfast_shared::plan::export::{Content, ExportPlan};
use tokio::sync::mpsc;

use crate::assembly::Assembly;
use crate::read::Source;
use crate::writer::{Block, BlockKind, Writer};

/// What all workers read from.
pub struct Work {
    pub plan: ExportPlan,
    pub sources: Vec<Source>,
    /// Dump id of each entry.
    pub dump_ids: Vec<i32>,
    pub compression: Compression,
    pub assembly: Assembly,
    pub lock_timeouts: LockTimeouts,
    queue: Mutex<Queue>,
    started: Instant,
    /// Microseconds from the invocation to the first row; 0: none yet.
    first_row: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Units that have pieces left, in processing order, and the next piece of each.
    open: VecDeque<(usize, usize)>,
}

/// One thing to do.
pub struct Job {
    pub unit: usize,
    pub task: Task,
}

pub enum Task {
    Piece(usize),
    /// A bundle from its `from`-th entry on, with what an earlier worker has written of it.
    Bundle {
        from: usize,
        writer: Option<Box<Writer>>,
    },
}

impl Work {
    pub fn new(
        plan: ExportPlan,
        sources: Vec<Source>,
        dump_ids: Vec<i32>,
        compression: Compression,
        assembly: Assembly,
        lock_timeouts: LockTimeouts,
        started: Instant,
    ) -> Self {
        let open = plan.order.iter().map(|&unit| (unit, 0)).collect();
        let queue = Mutex::new(Queue { open });
        Self {
            plan,
            sources,
            dump_ids,
            compression,
            assembly,
            lock_timeouts,
            queue,
            started,
            first_row: AtomicU64::new(0),
        }
    }

    /// Seconds from the invocation to the first row.
    pub fn seconds_to_first_row(&self) -> f64 {
        self.first_row.load(Ordering::Relaxed) as f64 / 1e6
    }

    pub fn note_first_row(&self) {
        if self.first_row.load(Ordering::Relaxed) == 0 {
            let micros = self.started.elapsed().as_micros() as u64;
            let _ = self.first_row.compare_exchange(0, micros.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The next piece, of the unit the worker is in if that has any left.
    pub fn take(&self, current: Option<usize>) -> Option<Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let at = current.and_then(|unit| queue.open.iter().position(|(open, _)| *open == unit)).unwrap_or(0);
        let (unit, piece) = queue.open.get_mut(at)?;
        let (unit, index) = (*unit, {
            *piece += 1;
            *piece - 1
        });
        let content = &self.plan.units[unit].content;
        if index + 1 >= content.pieces() {
            queue.open.remove(at);
        }
        let task = match content {
            Content::Bundle(_) => Task::Bundle { from: 0, writer: None },
            Content::Split { .. } => Task::Piece(index),
        };
        Some(Job { unit, task })
    }

    pub fn block(&self, entry: usize) -> Block {
        let kind = match self.sources[entry] {
            Source::Table(_) => BlockKind::Table,
            Source::LargeObjects { .. } => BlockKind::LargeObjects,
        };
        Block { entry, dump_id: self.dump_ids[entry], kind }
    }

    pub fn name(&self, entry: usize) -> String {
        match &self.sources[entry] {
            Source::Table(table) => table.name.to_string(),
            Source::LargeObjects { .. } => "large objects".to_owned(),
        }
    }
}

/// Jobs that met a lock: only the session that holds the snapshot, and with it a lock on every table, can do them
/// without waiting behind a session that waits for exactly that lock.
pub struct Deferred {
    pub sender: mpsc::UnboundedSender<Job>,
}

pub fn deferred() -> (Deferred, DeferredJobs) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Deferred { sender }, DeferredJobs { receiver })
}

impl Clone for Deferred {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

pub struct DeferredJobs {
    pub receiver: mpsc::UnboundedReceiver<Job>,
}

/// A helper does not wait long for a table that the holder has locked already; once it has the lock, it waits for
/// indexes and what is stored out of line as long as anyone.
#[derive(Debug, Clone, Copy)]
pub struct LockTimeouts {
    pub table: Duration,
    pub beyond: Duration,
}
