//! One COPY stream: takes pieces from the plan, reads them on the shared snapshot, hands rows to a writer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_shared::archive::codec::Compression;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::{Content, ExportPlan, Piece};
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession};
use holdfast_shared::postgres::session::{LOCK_NOT_AVAILABLE, copy_fault};
use tokio::sync::mpsc;

use crate::assembly::Assembly;
use crate::read::{Source, TableSource};
use crate::writer::{Block, BlockKind, Writer};

/// Large objects that one query asks for the beginnings of.
const OBJECT_BATCH: usize = 100;
/// What one call of `lo_get` returns at most; a row of a COPY.
const OBJECT_SLICE_BYTES: usize = 256 * 1024;

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
struct Job {
    unit: usize,
    task: Task,
}

enum Task {
    Piece(usize),
    /// A bundle from its `from`-th entry on, with what an earlier worker has written of it.
    Bundle {
        from: usize,
        writer: Option<Box<Writer>>,
    },
}

/// What a worker learned of each entry.
pub type Digests = Vec<TableDigest>;

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

    fn note_first_row(&self) {
        if self.first_row.load(Ordering::Relaxed) == 0 {
            let micros = self.started.elapsed().as_micros() as u64;
            let _ = self.first_row.compare_exchange(0, micros.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The next piece, of the unit the worker is in if that has any left.
    fn take(&self, current: Option<usize>) -> Option<Job> {
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

    fn block(&self, entry: usize) -> Block {
        let kind = match self.sources[entry] {
            Source::Table(_) => BlockKind::Table,
            Source::LargeObjects { .. } => BlockKind::LargeObjects,
        };
        Block { entry, dump_id: self.dump_ids[entry], kind }
    }

    fn name(&self, entry: usize) -> String {
        match &self.sources[entry] {
            Source::Table(table) => table.name.to_string(),
            Source::LargeObjects { .. } => "large objects".to_owned(),
        }
    }
}

/// Jobs that met a lock: only the session that holds the snapshot, and with it a lock on every table, can do them
/// without waiting behind a session that waits for exactly that lock.
pub struct Deferred {
    sender: mpsc::UnboundedSender<Job>,
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
    receiver: mpsc::UnboundedReceiver<Job>,
}

/// Where a worker's locks stand.
pub enum Role {
    /// Has a lock on every table; also does what others could not.
    Holder(DeferredJobs),
    Helper(Deferred),
}

/// A session, and how long it may wait for a table's lock before it leaves the table to the holder.
struct Reader {
    session: RawSession,
    brief_lock: Option<LockTimeouts>,
}

/// A helper does not wait long for a table that the holder has locked already; once it has the lock, it waits for
/// indexes and what is stored out of line as long as anyone.
#[derive(Debug, Clone, Copy)]
pub struct LockTimeouts {
    pub table: Duration,
    pub beyond: Duration,
}

/// Works until nothing is left. Returns the digests of what it read, by entry.
pub async fn work(work: Arc<Work>, session: RawSession, mut role: Role) -> Result<(Digests, RawSession), Fault> {
    let brief_lock = matches!(role, Role::Helper(_)).then_some(work.lock_timeouts);
    let mut reader = Reader { session, brief_lock };
    let mut digests = vec![TableDigest::default(); work.sources.len()];
    let mut writer: Option<Writer> = None;
    loop {
        let current = writer.as_ref().map(Writer::unit);
        let job = match &mut role {
            Role::Holder(jobs) => match jobs.receiver.try_recv().ok().or_else(|| work.take(current)) {
                Some(job) => Some(job),
                None => {
                    // Whatever is held here may be what a helper waits for: leave before waiting.
                    if let Some(writer) = writer.take() {
                        writer.leave(&work.assembly).await?;
                    }
                    jobs.receiver.recv().await
                }
            },
            Role::Helper(_) => work.take(current),
        };
        if let Some(previous) = writer.take_if(|writer| job.as_ref().is_none_or(|job| job.unit != writer.unit())) {
            previous.leave(&work.assembly).await?;
        }
        let Some(job) = job else { return Ok((digests, reader.session)) };
        let met_lock = match job.task {
            Task::Piece(index) => read_piece(&work, &mut reader, job.unit, index, &mut writer, &mut digests).await?,
            Task::Bundle { from, writer } => {
                read_bundle(&work, &mut reader, job.unit, from, writer, &mut digests).await?
            }
        };
        if let Some((job, fault)) = met_lock {
            match &role {
                // The holder meets no lock it does not have; if it does, that is the failure.
                Role::Holder(_) => return Err(fault),
                Role::Helper(deferred) => {
                    tracing::info!(
                        unit = job.unit,
                        "a table is locked for this session: left to the one that holds it"
                    );
                    deferred.sender.send(job).map_err(|_| fault)?;
                }
            }
        }
    }
}

type MetLock = Option<(Job, Fault)>;

async fn read_piece(
    work: &Work,
    reader: &mut Reader,
    unit: usize,
    index: usize,
    writer: &mut Option<Writer>,
    digests: &mut Digests,
) -> Result<MetLock, Fault> {
    let Content::Split { entry, pieces } = &work.plan.units[unit].content else {
        return Err(Fault::new("internal", "a piece of a unit that has none"));
    };
    let writer = match writer {
        Some(writer) => writer,
        None => writer.insert(Writer::new(unit, work.compression, &work.assembly, Some(work.block(*entry)))?),
    };
    match &work.sources[*entry] {
        Source::Table(table) => {
            if let Some(fault) =
                copy_table(work, reader, *entry, table, &pieces[index], writer, &mut digests[*entry]).await?
            {
                return Ok(Some((Job { unit, task: Task::Piece(index) }, fault)));
            }
        }
        Source::LargeObjects { oids } => {
            let range = match &pieces[index] {
                Piece::LargeObjects(range) => range.clone(),
                _ => 0..oids.len(),
            };
            copy_large_objects(work, &mut reader.session, &oids[range], writer, &mut digests[*entry]).await?;
        }
    }
    writer.piece_done();
    Ok(None)
}

async fn read_bundle(
    work: &Work,
    reader: &mut Reader,
    unit: usize,
    from: usize,
    writer: Option<Box<Writer>>,
    digests: &mut Digests,
) -> Result<MetLock, Fault> {
    let Content::Bundle(entries) = &work.plan.units[unit].content else {
        return Err(Fault::new("internal", "a bundle of a unit that is none"));
    };
    let mut writer = match writer {
        Some(writer) => *writer,
        None => Writer::new(unit, work.compression, &work.assembly, None)?,
    };
    for (position, &entry) in entries.iter().enumerate().skip(from) {
        match &work.sources[entry] {
            Source::Table(table) => {
                writer.begin_block(work.block(entry));
                if let Some(fault) =
                    copy_table(work, reader, entry, table, &Piece::Whole, &mut writer, &mut digests[entry]).await?
                {
                    writer.take_back_block();
                    let task = Task::Bundle { from: position, writer: Some(Box::new(writer)) };
                    return Ok(Some((Job { unit, task }, fault)));
                }
                writer.end_table_block(entry)?;
            }
            Source::LargeObjects { oids } => {
                writer.begin_block(work.block(entry));
                copy_large_objects(work, &mut reader.session, oids, &mut writer, &mut digests[entry]).await?;
                writer.end_large_objects_block(entry);
            }
        }
        if writer.wants_cut(false) {
            writer.cut(&work.assembly, false).await?;
        }
    }
    writer.close(&work.assembly).await?;
    Ok(None)
}

/// Reads one piece of a table. `Some` fault: the table is locked, and nothing has been written.
async fn copy_table(
    work: &Work,
    reader: &mut Reader,
    entry: usize,
    table: &TableSource,
    piece: &Piece,
    writer: &mut Writer,
    digest: &mut TableDigest,
) -> Result<Option<Fault>, Fault> {
    let mut sql = b"SAVEPOINT piece; ".to_vec();
    if let Some(LockTimeouts { table: brief, beyond }) = reader.brief_lock {
        sql.extend_from_slice(format!("SET LOCAL lock_timeout = {}; ", brief.as_millis()).as_bytes());
        sql.extend_from_slice(&table.lock_sql());
        sql.extend_from_slice(format!("; SET LOCAL lock_timeout = {}; ", beyond.as_millis()).as_bytes());
    }
    sql.extend_from_slice(&table.copy_sql(piece));
    sql.extend_from_slice(b"; RELEASE SAVEPOINT piece");
    let result = copy_rows(work, &mut reader.session, &sql, entry, writer, digest).await;
    match result {
        Ok(()) => Ok(None),
        Err(ReadError::Fault(fault)) => Err(fault),
        Err(ReadError::Copy { error, rows }) => {
            let fault = copy_fault(&error, &work.name(entry));
            if error.code() == Some(LOCK_NOT_AVAILABLE) && rows == 0 {
                reader
                    .session
                    .execute("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")
                    .await
                    .map_err(|error| copy_fault(&error, &work.name(entry)))?;
                return Ok(Some(fault));
            }
            Err(fault)
        }
    }
}

enum ReadError {
    Fault(Fault),
    Copy { error: CopyError, rows: u64 },
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

async fn copy_rows(
    work: &Work,
    session: &mut RawSession,
    sql: &[u8],
    entry: usize,
    writer: &mut Writer,
    digest: &mut TableDigest,
) -> Result<(), ReadError> {
    let before = *digest;
    let failed = |rows: u64| move |error| ReadError::Copy { error, rows };
    let mut copy = session.copy_out(sql).await.map_err(failed(0))?;
    let mut oversized: Option<RowHasher> = None;
    let mut reported = (digest.rows, digest.bytes);
    loop {
        let rows = digest.rows - before.rows;
        while let Some(item) = copy.next_item().map_err(failed(rows))? {
            match item {
                Item::Row(bytes) => {
                    let Some((b'\n', row)) = bytes.split_last() else {
                        return Err(failed(rows)(CopyError::Protocol { what: "a row that does not end in a newline" }));
                    };
                    digest.add_row(row);
                    writer.row(entry, bytes)?;
                    if writer.wants_cut(false) {
                        writer.cut(&work.assembly, false).await?;
                    }
                }
                Item::Fragment { bytes, ends_row } => {
                    let hasher = oversized.get_or_insert_default();
                    hasher.update(if ends_row { &bytes[..bytes.len() - 1] } else { bytes });
                    writer.text(entry, bytes, ends_row)?;
                    if ends_row && let Some(hasher) = oversized.take() {
                        hasher.finish(digest);
                    }
                    if writer.wants_cut(!ends_row) {
                        writer.cut(&work.assembly, !ends_row).await?;
                    }
                }
            }
        }
        if digest.rows > before.rows {
            work.note_first_row();
        }
        work.assembly.progress.rows.fetch_add(digest.rows - reported.0, Ordering::Relaxed);
        work.assembly.progress.text_bytes.fetch_add(digest.bytes - reported.1, Ordering::Relaxed);
        reported = (digest.rows, digest.bytes);
        if !copy.fill().await.map_err(failed(digest.rows - before.rows))? {
            return copy.check_rows().map_err(failed(digest.rows - before.rows));
        }
    }
}

/// Reads large objects in batches: the beginnings of many in one query, and what is longer slice by slice.
async fn copy_large_objects(
    work: &Work,
    session: &mut RawSession,
    oids: &[u32],
    writer: &mut Writer,
    digest: &mut TableDigest,
) -> Result<(), Fault> {
    for batch in oids.chunks(OBJECT_BATCH) {
        let list = batch.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "COPY (SELECT pg_catalog.lo_get(o, 0, {OBJECT_SLICE_BYTES})
                     FROM pg_catalog.unnest('{{{list}}}'::pg_catalog.oid[]) WITH ORDINALITY AS u(o, n) ORDER BY n)
             TO STDOUT (FORMAT binary)"
        );
        let beginnings = binary_values(session, &sql).await.map_err(|error| copy_fault(&error, "large objects"))?;
        if beginnings.len() != batch.len() {
            return Err(Fault::new("large-objects-unreadable", "not every large object was returned"));
        }
        work.note_first_row();
        for (&oid, beginning) in batch.iter().zip(beginnings) {
            let mut hasher = RowHasher::default();
            let mut size = 0;
            writer.begin_large_object(oid);
            let mut slice = beginning;
            loop {
                writer.large_object_data(&slice)?;
                hasher.update(&slice);
                size += slice.len() as u64;
                work.assembly.progress.text_bytes.fetch_add(slice.len() as u64, Ordering::Relaxed);
                if writer.wants_cut(true) {
                    writer.cut(&work.assembly, true).await?;
                }
                if slice.len() < OBJECT_SLICE_BYTES {
                    break;
                }
                let sql = format!(
                    "COPY (SELECT pg_catalog.lo_get({oid}::pg_catalog.oid, {size}, {OBJECT_SLICE_BYTES})) TO STDOUT (FORMAT binary)"
                );
                let next = binary_values(session, &sql).await.map_err(|error| copy_fault(&error, "large objects"))?;
                slice = next.into_iter().next().unwrap_or_default();
            }
            writer.end_large_object()?;
            let row = format!("{oid}\t{:032x}", hasher.digest());
            digest.add_row(row.as_bytes());
            digest.bytes = digest.bytes + size - (row.len() as u64 + 1);
            if writer.wants_cut(false) {
                writer.cut(&work.assembly, false).await?;
            }
        }
    }
    Ok(())
}

/// The one `bytea` of each row of a COPY in binary format (PostgreSQL documentation, "COPY", "Binary Format").
async fn binary_values(session: &mut RawSession, sql: &str) -> Result<Vec<Vec<u8>>, CopyError> {
    const HEADER_BYTES: usize = 19;
    const MALFORMED: CopyError = CopyError::Protocol { what: "binary COPY data that is not as documented" };
    let mut copy = session.copy_out(sql).await?;
    let mut data = Vec::new();
    loop {
        while let Some(item) = copy.next_item()? {
            match item {
                Item::Row(bytes) | Item::Fragment { bytes, .. } => data.extend_from_slice(bytes),
            }
        }
        if !copy.fill().await? {
            break;
        }
    }
    let mut rest = data.get(HEADER_BYTES..).ok_or(MALFORMED)?;
    let mut values = Vec::new();
    loop {
        let (fields, tail) = rest.split_first_chunk::<2>().ok_or(MALFORMED)?;
        if i16::from_be_bytes(*fields) == -1 {
            return Ok(values);
        }
        let (len, tail) = tail.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        values.push(tail.get(..len).ok_or(MALFORMED)?.to_vec());
        rest = &tail[len..];
    }
}
