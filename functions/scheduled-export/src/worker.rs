//! One COPY stream: takes pieces from the plan, reads them on the shared snapshot, hands rows to a writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::{Content, Piece};
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession};
use holdfast_shared::postgres::session::{LOCK_NOT_AVAILABLE, copy_fault};

use crate::large_objects::copy_large_objects;
use crate::queue::{Deferred, DeferredJobs, Job, LockTimeouts, Task, Work};
use crate::read::{Source, TableSource};
use crate::writer::Writer;

/// What a worker learned of each entry.
pub type Digests = Vec<TableDigest>;

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
