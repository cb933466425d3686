//! Data from the store into tables created for it, in several streams; every row is digested on its way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::rebuild::{Content, DataTask};
use holdfast_shared::postgres::copy::{CopyError, RawSession};
use tokio::task::JoinSet;

use crate::engine::intake::{Decoder, Intake, IntakeError, Rows};
use crate::engine::source::Backup;

const TABLE_BLOCK: u8 = 1;
const LARGE_OBJECTS_BLOCK: u8 = 3;
/// Content of large objects that one message carries, before it is written in hexadecimal.
const OBJECT_BYTES: usize = 256 * 1024;

struct Work {
    backup: Arc<Backup>,
    tasks: Mutex<VecDeque<DataTask>>,
    /// What was loaded of each block; the rows that pieces' tasks load are added up.
    loaded: Mutex<Vec<TableDigest>>,
}

/// Loads everything. The sessions are given back; the digests are one a block.
pub async fn load(
    backup: &Arc<Backup>,
    tasks: Vec<DataTask>,
    sessions: Vec<RawSession>,
) -> Result<(Vec<RawSession>, Vec<TableDigest>), Fault> {
    let work = Arc::new(Work {
        backup: Arc::clone(backup),
        tasks: Mutex::new(tasks.into()),
        loaded: Mutex::new(vec![TableDigest::default(); backup.blocks.len()]),
    });
    let mut streams = JoinSet::new();
    for session in sessions {
        streams.spawn(stream(Arc::clone(&work), session));
    }
    let mut idle = Vec::new();
    while let Some(done) = streams.join_next().await {
        // The other streams are aborted as the set is dropped.
        idle.push(done.map_err(|panic| Fault::from_error("internal", &panic))??);
    }
    let loaded = std::mem::take(&mut *work.loaded.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((idle, loaded))
}

async fn stream(work: Arc<Work>, mut session: RawSession) -> Result<RawSession, Fault> {
    loop {
        let task = work.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(task) = task else { return Ok(session) };
        let intake = Intake::new(work.backup.archive.stream(task.extent.offset, task.extent.length));
        match task.content {
            Content::Blocks(blocks) => work.blocks(&mut session, intake, &blocks).await?,
            Content::Pieces { block, pieces } => {
                let table = work.backup.tables[block].as_ref();
                let expected =
                    table.and_then(|table| table.pieces.get(pieces)).map(|pieces| pieces.iter().map(|p| p.rows).sum());
                work.table(&mut session, intake, block, Some(expected.unwrap_or_default())).await?;
            }
        }
    }
}

impl Work {
    fn learn(&self, block: usize, digest: &TableDigest) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)[block].merge(digest);
    }

    /// Whole blocks, in whatever order they lie; what no entry asks for is padding.
    async fn blocks(&self, session: &mut RawSession, mut intake: Intake, wanted: &[usize]) -> Result<(), Fault> {
        let mut left: Vec<usize> = wanted.to_vec();
        let first = left.first().map(|&block| self.backup.name(block)).unwrap_or_default();
        while !left.is_empty() {
            let at = left.first().map_or_else(|| first.clone(), |&block| self.backup.name(block));
            let Some((kind, dump_id)) = intake.block().await.map_err(|error| error.fault(&at))? else { break };
            let found = self.backup.block_of.get(&dump_id).and_then(|block| left.iter().position(|b| b == block));
            match (kind, found) {
                (TABLE_BLOCK, None) => intake.skip_chunks().await.map_err(|error| error.fault(&at))?,
                (TABLE_BLOCK, Some(found)) if self.backup.entry(left[found]).is_table_data() => {
                    intake = self.table(session, intake, left.remove(found), None).await?;
                }
                (LARGE_OBJECTS_BLOCK, Some(found)) if self.backup.entry(left[found]).is_large_objects() => {
                    self.large_objects(session, &mut intake, left.remove(found)).await?;
                }
                _ => return Err(IntakeError::Malformed { what: "its type is unknown" }.fault(&at)),
            }
        }
        match left.first() {
            None => Ok(()),
            Some(&missing) => Err(IntakeError::Truncated.fault(&self.backup.name(missing))),
        }
    }

    /// One block's rows, or with `piece_rows` some pieces of them.
    async fn table(
        &self,
        session: &mut RawSession,
        mut intake: Intake,
        block: usize,
        piece_rows: Option<u64>,
    ) -> Result<Intake, Fault> {
        let name = self.backup.name(block);
        let damaged = |error: IntakeError| error.fault(&name);
        let refused = |error: CopyError| load_fault(&error, &name);
        let within = piece_rows.is_some();
        let (relation, columns) = self.backup.relation(block)?;
        let mut sql = [b"COPY ", relation].concat();
        if !columns.is_empty() {
            sql.extend_from_slice(&[b" (", columns, b")"].concat());
        }
        sql.extend_from_slice(b" FROM STDIN");
        let mut copy = session.copy_in(sql).await.map_err(refused)?;
        let compression = self.backup.archive.toc.header.compression;
        let mut decoder = Decoder::new(compression, within).map_err(damaged)?;
        let mut rows = Rows::default();
        let mut text = Vec::new();
        loop {
            if within && intake.is_over().await.map_err(damaged)? {
                break;
            }
            let Some(mut left) = intake.chunk().await.map_err(damaged)? else {
                if within {
                    return Err(damaged(IntakeError::Malformed { what: "a piece that ends early" }));
                }
                break;
            };
            while left > 0 {
                let mut stored: Bytes = intake.some(left).await.map_err(damaged)?;
                left -= stored.len() as u64;
                loop {
                    text.clear();
                    let more = decoder.decode(&mut stored, &mut text).map_err(damaged)?;
                    let out = rows.take(&text).map_err(damaged)?;
                    copy.send(&out.held).await.map_err(refused)?;
                    copy.send(out.text).await.map_err(refused)?;
                    if !more {
                        break;
                    }
                }
            }
        }
        if !decoder.ended(within) || rows.ended == within || rows.in_row() {
            return Err(damaged(IntakeError::Truncated));
        }
        let taken = copy.finish().await.map_err(refused)?;
        if taken != rows.digest.rows || piece_rows.is_some_and(|expected| expected != taken) {
            let expected = piece_rows.unwrap_or(rows.digest.rows);
            return Err(Fault::new(
                "backup-damaged",
                format!("{name}: {expected} rows were expected, and {taken} arrived"),
            ));
        }
        self.learn(block, &rows.digest);
        Ok(intake)
    }

    /// One block of large objects, each a compressed stream of its own.
    async fn large_objects(&self, session: &mut RawSession, intake: &mut Intake, block: usize) -> Result<(), Fault> {
        let damaged = |error: IntakeError| error.fault("large objects");
        let refused = |error: CopyError| load_fault(&error, "large objects");
        let compression = self.backup.archive.toc.header.compression;
        let mut digest = TableDigest::default();
        let mut batch = ObjectBatch::default();
        loop {
            let oid = match intake.int().await.map_err(damaged)? {
                0 => break,
                oid => u32::try_from(oid)
                    .map_err(|_| damaged(IntakeError::Malformed { what: "the oid of a large object" }))?,
            };
            let mut decoder = Decoder::new(compression, false).map_err(damaged)?;
            let mut hasher = RowHasher::default();
            let (mut size, mut text, mut begun) = (0, Vec::new(), false);
            while let Some(mut left) = intake.chunk().await.map_err(damaged)? {
                begun = true;
                while left > 0 {
                    let mut stored = intake.some(left).await.map_err(damaged)?;
                    left -= stored.len() as u64;
                    loop {
                        text.clear();
                        let more = decoder.decode(&mut stored, &mut text).map_err(damaged)?;
                        hasher.update(&text);
                        batch.put(oid, size, &text);
                        size += text.len() as u64;
                        if batch.bytes >= OBJECT_BYTES {
                            batch.send(session).await.map_err(refused)?;
                        }
                        if !more {
                            break;
                        }
                    }
                }
            }
            if begun && !decoder.ended(false) {
                return Err(damaged(IntakeError::Truncated));
            }
            digest.merge(&object_digest(oid, &hasher, size));
        }
        batch.send(session).await.map_err(refused)?;
        self.learn(block, &digest);
        Ok(())
    }
}

/// What a large object adds to the fingerprint of all (docs/format.md).
pub fn object_digest(oid: u32, content: &RowHasher, size: u64) -> TableDigest {
    let mut digest = TableDigest::default();
    digest.add_row(format!("{oid}\t{:032x}", content.digest()).as_bytes());
    digest.bytes = size;
    digest
}

/// Statements that write into large objects, collected to one message.
#[derive(Default)]
struct ObjectBatch {
    sql: String,
    bytes: usize,
}

impl ObjectBatch {
    fn put(&mut self, oid: u32, offset: u64, content: &[u8]) {
        if content.is_empty() {
            return;
        }
        self.sql.push_str(&format!("SELECT pg_catalog.lo_put({oid}, {offset}, '\\x"));
        for byte in content {
            for digit in [byte >> 4, byte & 15] {
                self.sql.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        self.sql.push_str("');\n");
        self.bytes += content.len();
    }

    async fn send(&mut self, session: &mut RawSession) -> Result<(), CopyError> {
        if self.bytes > 0 {
            session.execute(&self.sql).await?;
            *self = Self::default();
        }
        Ok(())
    }
}

pub fn load_fault(error: &CopyError, table: &str) -> Fault {
    let (code, hint) = match (error, error.code()) {
        (_, Some("53100")) => ("target-disk-full", "give the target server more storage"),
        (_, Some("57P01" | "57P02" | "57P03")) | (CopyError::Io(_), _) => {
            ("database-connection-lost", "nothing of the unfinished database stays; restore again")
        }
        _ => {
            ("table-load-failed", "the server refuses what the backup holds; if that is damage, restore another backup")
        }
    };
    Fault::from_error(code, error).with_context(&format!("loading {table}")).hint(hint)
}
