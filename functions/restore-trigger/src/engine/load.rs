//! Data from the store into tables created for it, in several streams; every row is digested on its way.

mod streams;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_shared::archive::blocks::{BlockEvent, BlockKind, BlockReader};
use holdfast_shared::archive::codec::PADDING_DUMP_ID;
use holdfast_shared::archive::decode::{Decoder, MAX_WINDOW_LOG, USUAL_WINDOW_LOG, zstd_window_log};
use holdfast_shared::archive::toc::HeaderCompression;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::rebuild::{Content, DataTask};
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::store::read::ArchiveSource;
use tokio::task::JoinSet;

use crate::engine::intake::{Event, Intake, IntakeError, ListedObjects, Run};
use crate::engine::peculiar::Peculiar;
use crate::engine::rows::{Destination, binary_rows};
use crate::engine::source::Backup;

/// Below this a new file for the table costs more than marking its rows.
const FREEZE_BYTES: u64 = 1 << 20;
/// Below this asking for the columns' types costs more than it gains.
const BINARY_BYTES: u64 = 1 << 20;
/// Where the first frame of an archive has begun for sure, unless the archive begins with empty large objects.
const FIRST_FRAME_BYTES: u64 = 4096;

/// One archive on its way into a database: what all streams share.
pub struct Work {
    backup: Arc<Backup>,
    /// What was loaded of each block; the rows that pieces' tasks load are added up.
    loaded: Mutex<Vec<TableDigest>>,
    objects: ListedObjects,
    max_window_log: u32,
    peculiar: Arc<Peculiar>,
    /// The tables were made for this, and nobody else sees them.
    fresh: bool,
    as_text: bool,
}

/// Loads into tables that are there already, and within whatever transaction is open. The sessions are given back; the
/// digests are one a block.
pub async fn load(
    backup: &Arc<Backup>,
    tasks: Vec<DataTask>,
    sessions: Vec<RawSession>,
    as_text: bool,
) -> Result<(Vec<RawSession>, Vec<TableDigest>), Fault> {
    let work = Arc::new(Work::begin(backup, &Arc::default(), false, as_text).await?);
    let tasks = Arc::new(Mutex::new(VecDeque::from(tasks)));
    let (mut streams, mut idle) = (JoinSet::new(), Vec::new());
    for (index, mut session) in sessions.into_iter().enumerate() {
        if index >= work.at_once() {
            idle.push(session);
            continue;
        }
        let (work, tasks) = (Arc::clone(&work), Arc::clone(&tasks));
        streams.spawn(async move {
            loop {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(task) = task else { return Ok::<_, Fault>(session) };
                work.run(&mut session, &task).await?;
            }
        });
    }
    while let Some(done) = streams.join_next().await {
        // The other streams are aborted as the set is dropped.
        idle.push(done.map_err(|panic| Fault::from_error("internal", &panic))??);
    }
    Ok((idle, work.finish()?))
}

/// The window that the archive's frames may have: all of them are made with the same settings as the first.
async fn window_log(archive: &ArchiveSource) -> Result<u32, IntakeError> {
    if archive.toc.header.compression != HeaderCompression::Zstd {
        return Ok(USUAL_WINDOW_LOG);
    }
    let length = archive.size_bytes.saturating_sub(archive.data_start).min(FIRST_FRAME_BYTES);
    let mut body = archive.stream(archive.data_start, length);
    let mut blocks = BlockReader::section(archive.int_size, archive.data_start)?;
    let mut frame = Vec::new();
    while let Some(piece) = body.next().await? {
        let mut input: &[u8] = &piece;
        while let Some(event) = blocks.next(&mut input)? {
            match event {
                BlockEvent::Bytes(bytes) => frame.extend_from_slice(bytes),
                // Padding has no frame.
                BlockEvent::StreamEnd if zstd_window_log(&frame).is_none() => frame.clear(),
                _ => {}
            }
        }
    }
    Ok(zstd_window_log(&frame).unwrap_or_default().clamp(USUAL_WINDOW_LOG, MAX_WINDOW_LOG))
}

impl Work {
    /// `fresh`: into empty tables of this restore's own, of which nobody knows. `as_text`: the server converts everything.
    pub async fn begin(
        backup: &Arc<Backup>,
        peculiar: &Arc<Peculiar>,
        fresh: bool,
        as_text: bool,
    ) -> Result<Self, Fault> {
        let max_window_log = window_log(&backup.archive).await.map_err(|error| error.fault("the first table"))?;
        Ok(Self {
            backup: Arc::clone(backup),
            loaded: Mutex::new(vec![TableDigest::default(); backup.blocks.len()]),
            objects: ListedObjects::new(backup.listed_objects.iter().copied()),
            max_window_log,
            peculiar: Arc::clone(peculiar),
            fresh,
            as_text,
        })
    }

    pub fn peculiar(&self) -> &Peculiar {
        &self.peculiar
    }

    /// How many tasks may run side by side: of windows of up to 128 MiB memory holds one.
    pub fn at_once(&self) -> usize {
        if self.max_window_log > USUAL_WINDOW_LOG { 1 } else { usize::MAX }
    }

    pub async fn run(&self, session: &mut RawSession, task: &DataTask) -> Result<(), Fault> {
        let (archive, extent) = (&self.backup.archive, task.extent);
        match &task.content {
            Content::Blocks(blocks) => {
                let first = blocks.first().map(|&block| self.backup.name(block)).unwrap_or_default();
                let intake = Intake::new(archive, extent.offset, extent.length).map_err(|error| error.fault(&first))?;
                let alone = blocks.len() == 1 && extent.length >= FREEZE_BYTES;
                self.blocks(session, intake, blocks, alone).await
            }
            Content::Pieces { block, .. } if self.peculiar.missing.contains(block) => Ok(()),
            Content::Pieces { block, pieces } => {
                let run = Run::new(archive, extent.offset, extent.length);
                self.pieces(session, run, *block, pieces.clone()).await
            }
        }
    }

    /// Tells that all tasks are done; the digests are one a block.
    pub fn finish(&self) -> Result<Vec<TableDigest>, Fault> {
        if (0..self.backup.blocks.len()).any(|block| self.backup.entry(block).is_large_objects()) {
            self.objects.finish().map_err(|error| error.fault("large objects"))?;
        }
        Ok(std::mem::take(&mut *self.loaded.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn learn(&self, block: usize, digest: &TableDigest) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)[block].merge(digest);
    }

    fn decoder(&self) -> Result<Decoder, IntakeError> {
        Ok(Decoder::with_window_log(self.backup.archive.toc.header.compression, self.max_window_log)?)
    }

    /// Whole blocks, in whatever order they lie; `alone`: one that is worth a new file for its table.
    async fn blocks(
        &self,
        session: &mut RawSession,
        mut intake: Intake,
        wanted: &[usize],
        alone: bool,
    ) -> Result<(), Fault> {
        let mut left: BTreeSet<usize> = wanted.iter().copied().collect();
        let mut at = wanted.first().map(|&block| self.backup.name(block)).unwrap_or_default();
        while let Some(event) = intake.next().await.map_err(|error| error.fault(&at))? {
            let Event::Begin { kind, dump_id, offset } = event else { continue };
            let Some(&block) = self.backup.block_of.get(&i64::from(dump_id)) else {
                self.check_unasked(kind, dump_id, offset).map_err(|error| error.fault(&at))?;
                intake.skip().await.map_err(|error| error.fault(&at))?;
                continue;
            };
            at = self.backup.name(block);
            if !left.remove(&block) {
                return Err(IntakeError::SecondBlock { dump_id, offset }.fault(&at));
            }
            if self.peculiar.missing.contains(&block) {
                intake.skip().await.map_err(|error| error.fault(&at))?;
                continue;
            }
            let entry = self.backup.entry(block);
            match kind {
                BlockKind::TableData if !entry.is_table_data() => {
                    return Err(IntakeError::UnlistedBlock { dump_id, offset }.fault(&at));
                }
                BlockKind::TableData if self.backup.is_inserts(block) => {
                    self.inserts(session, &mut intake, block).await?;
                }
                BlockKind::TableData => self.table(session, &mut intake, block, alone).await?,
                BlockKind::LargeObjects if entry.is_large_objects() => {
                    self.large_objects(session, &mut intake, block).await?;
                }
                BlockKind::LargeObjects => return Err(IntakeError::UnlistedBlock { dump_id, offset }.fault(&at)),
            }
        }
        match left.first() {
            None => Ok(()),
            Some(&missing) => Err(IntakeError::Missing.fault(&self.backup.name(missing))),
        }
    }

    /// A block that is not to be loaded is padding, or one of an entry that was not chosen.
    fn check_unasked(&self, kind: BlockKind, dump_id: i32, offset: u64) -> Result<(), IntakeError> {
        let padding = kind == BlockKind::TableData && dump_id == PADDING_DUMP_ID;
        if padding || self.backup.unchosen.contains(&dump_id) {
            return Ok(());
        }
        Err(IntakeError::UnlistedBlock { dump_id, offset })
    }

    /// How a table is loaded. Rows of one that a single stream fills `alone` are written as if they had always been
    /// there, in the transaction that empties it: no later reader has to mark them, and no vacuum to freeze them. A table that
    /// an extension made keeps what it has.
    async fn destination(&self, session: &mut RawSession, block: usize, alone: bool) -> Result<Destination, Fault> {
        let backup = &self.backup;
        let (relation, columns) = backup.relation(block)?;
        let lazily = !backup.is_created(block);
        let mut to = Destination { copy: backup.copy_in_sql(block)?, frozen: None, binary: None, lazily };
        if backup.via_root(block)? {
            return Ok(to);
        }
        // Of an archive from a pipe no sizes are known.
        let worth_it = alone || backup.blocks[block].offset.is_none();
        if self.fresh && worth_it && backup.is_created(block) {
            to.frozen = Some(relation.to_vec());
        }
        // What the proof compares with the manifest afterwards may be converted.
        let large = backup.tables[block].as_ref().is_some_and(|table| table.bytes >= BINARY_BYTES);
        if large && !self.as_text && !columns.is_empty() {
            let binary = binary_rows(session, &relation, columns).await;
            to.binary = binary?;
        }
        Ok(to)
    }
}
