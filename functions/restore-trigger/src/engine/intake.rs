//! Data blocks and pieces as they come from the store.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::{Buf, Bytes};
use holdfast_shared::archive::blocks::{BlockError, BlockEvent, BlockKind, BlockReader};
use holdfast_shared::archive::decode::{DecodeError, PieceError};
use holdfast_shared::archive::rows::RowsError;
use holdfast_shared::fault::Fault;
use holdfast_shared::store::StoreError;
use holdfast_shared::store::read::{ArchiveSource, RangeBody};

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Piece(#[from] PieceError),
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error("the archive ends in the middle of it")]
    Truncated,
    #[error("there is no such data in the archive")]
    Missing,
    #[error("the block at byte {offset} is a second one of entry {dump_id}, or not where it should lie")]
    SecondBlock { dump_id: i32, offset: u64 },
    #[error("the block at byte {offset} is of entry {dump_id}, which has no such data by the table of contents")]
    UnlistedBlock { dump_id: i32, offset: u64 },
    #[error("large object {oid} comes twice, or is in no list of the table of contents")]
    UnexpectedObject { oid: u32 },
    #[error("{missing} of the large objects that the table of contents lists are not there")]
    MissingObjects { missing: usize },
    #[error("it holds {found} rows where {expected} are said to be")]
    RowCount { expected: u64, found: u64 },
    #[error("its {found} rows are not the {expected} that the manifest was written for")]
    OtherRows { expected: u64, found: u64 },
    #[error("the data of tables that were dumped with --inserts is not INSERT statements only: {beginning:?}")]
    NotInserts { beginning: String },
    #[error("a statement is longer than {limit_mib} MiB")]
    LongStatement { limit_mib: usize },
}

impl IntakeError {
    pub fn fault(self, table: &str) -> Fault {
        match self {
            Self::Store(error) => Fault::from(error).with_context(&format!("reading the data of {table}")),
            Self::Decode(DecodeError::Window { .. }) => Fault::from_error("archive-window-too-large", &self)
                .with_context(&format!("reading the data of {table}"))
                .hint("dump again with --compress=zstd:19 or less, or restore it with pg_restore"),
            Self::NotInserts { .. } | Self::LongStatement { .. } => Fault::from_error("archive-unexpected", &self)
                .with_context(&format!("reading the data of {table}"))
                .hint("pg_restore can say whether it takes the archive"),
            error => Fault::from_error("backup-damaged", &error)
                .with_context(&format!("the stored data of {table} is damaged"))
                .hint("restore another backup; the object's versions may hold an undamaged one"),
        }
    }
}

/// What a range of the archive holds next; [`BlockEvent`] with bytes of its own.
#[derive(Debug)]
pub enum Event {
    Begin { kind: BlockKind, dump_id: i32, offset: u64 },
    LargeObject { oid: u32 },
    Bytes(Bytes),
    StreamEnd,
    End,
}

/// A range of whole blocks.
pub struct Intake {
    body: RangeBody,
    unread: Bytes,
    blocks: BlockReader,
}

impl Intake {
    pub fn new(archive: &ArchiveSource, offset: u64, length: u64) -> Result<Self, IntakeError> {
        let blocks = BlockReader::section(archive.int_size, offset)?;
        Ok(Self { body: archive.stream(offset, length), unread: Bytes::new(), blocks })
    }

    /// `None` at the range's end, which has to be the end of a block.
    pub async fn next(&mut self) -> Result<Option<Event>, IntakeError> {
        loop {
            let mut input: &[u8] = &self.unread;
            let event = match self.blocks.next(&mut input)? {
                None => None,
                Some(BlockEvent::Begin { kind, dump_id, offset }) => Some(Event::Begin { kind, dump_id, offset }),
                Some(BlockEvent::LargeObject { oid }) => Some(Event::LargeObject { oid }),
                Some(BlockEvent::Bytes(bytes)) => Some(Event::Bytes(self.unread.slice_ref(bytes))),
                Some(BlockEvent::StreamEnd) => Some(Event::StreamEnd),
                Some(BlockEvent::End { .. }) => Some(Event::End),
            };
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            if event.is_some() {
                return Ok(event);
            }
            match self.body.next().await? {
                Some(piece) => self.unread = piece,
                None => {
                    self.blocks.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// The next bytes of the stream that has begun; `None` at its end.
    pub async fn stream(&mut self) -> Result<Option<Bytes>, IntakeError> {
        match self.next().await? {
            Some(Event::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Event::StreamEnd) => Ok(None),
            Some(_) | None => Err(IntakeError::Truncated),
        }
    }

    /// Passes over the block that has begun.
    pub async fn skip(&mut self) -> Result<(), IntakeError> {
        loop {
            match self.next().await? {
                Some(Event::End) => return Ok(()),
                Some(_) => {}
                None => return Err(IntakeError::Truncated),
            }
        }
    }
}

/// The bytes of pieces that lie one behind the other.
pub struct Run {
    body: RangeBody,
    unread: Bytes,
}

impl Run {
    pub fn new(archive: &ArchiveSource, offset: u64, length: u64) -> Self {
        Self { body: archive.stream(offset, length), unread: Bytes::new() }
    }

    /// Some bytes, at most `limit`.
    pub async fn some(&mut self, limit: u64) -> Result<Bytes, IntakeError> {
        while self.unread.is_empty() {
            self.unread = self.body.next().await?.ok_or(IntakeError::Truncated)?;
        }
        let len = self.unread.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(self.unread.split_to(len))
    }
}

/// The large objects that the table of contents lists; each may come once.
pub struct ListedObjects {
    awaited: Mutex<BTreeSet<u32>>,
}

impl ListedObjects {
    pub fn new(oids: impl IntoIterator<Item = u32>) -> Self {
        Self { awaited: Mutex::new(oids.into_iter().collect()) }
    }

    pub fn take(&self, oid: u32) -> Result<(), IntakeError> {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&oid);
        if awaited { Ok(()) } else { Err(IntakeError::UnexpectedObject { oid }) }
    }

    /// Tells that all blocks of large objects have been read.
    pub fn finish(&self) -> Result<(), IntakeError> {
        match self.awaited.lock().unwrap_or_else(PoisonError::into_inner).len() {
            0 => Ok(()),
            missing => Err(IntakeError::MissingObjects { missing }),
        }
    }
}
