//! The data section of an archive: blocks, large objects and chunks, parsed from fragments of any size.
//!
//! Source: `_readBlockHeader`, `_PrintTocData`, `_LoadLOs`, `_skipData` and `_CustomReadFunc` in PostgreSQL's
//! `pg_backup_custom.c`. Nothing is held but an int that arrives in fragments: chunk bytes are passed on as they
//! come, whatever length their chunk claims.

use crate::archive::wire::{WireError, WireReader};

/// The longest chunk that is believed. `pg_dump` before 16 writes an uncompressed row as one chunk, and COPY's
/// buffers end at 1 GiB (`MaxAllocSize`).
pub const MAX_CHUNK_BYTES: i64 = 1 << 30;

/// Where the head of an archive says how many bytes an int has (`WriteHead`: after `PGDMP` and the version).
const INT_SIZE_AT: usize = 8;
const MAX_INT_BYTES: u8 = 8;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    #[error("integers of {size} bytes are not supported")]
    IntSize { size: u8 },
    #[error("the archive ends at byte {offset}, in the middle of {inside}")]
    Truncated { inside: &'static str, offset: u64 },
    #[error("block type {found} at byte {offset} is neither table data nor large objects")]
    UnknownType { found: u8, offset: u64 },
    #[error("{what} of {value} before byte {offset} is not plausible")]
    Implausible { what: &'static str, value: i64, offset: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// One table's rows (`BLK_DATA`).
    TableData,
    /// Large objects, one after the other (`BLK_BLOBS`).
    LargeObjects,
}

/// What a [`BlockReader`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockEvent<'x> {
    /// A block begins at this offset. A dump id that no entry of the table of contents has is padding.
    Begin { kind: BlockKind, dump_id: i32, offset: u64 },
    /// A large object begins.
    LargeObject { oid: u32 },
    /// Stored bytes of the table's or the large object's stream; never empty. A chunk may come in several.
    Bytes(&'x [u8]),
    /// The table's or the large object's stream is complete.
    StreamEnd,
    /// The block is complete; what follows it begins at this offset.
    End { offset: u64 },
}

/// How many bytes an int has in the archive that begins with `head`; `None` where `head` is shorter than 9 bytes.
pub fn int_size(head: &[u8]) -> Option<u8> {
    head.get(INT_SIZE_AT).copied()
}

/// Collects an int from fragments.
#[derive(Debug)]
struct IntReader {
    int_size: u8,
    bytes: [u8; 1 + MAX_INT_BYTES as usize],
    filled: usize,
}

impl IntReader {
    fn new(int_size: u8) -> Result<Self, BlockError> {
        if !(1..=MAX_INT_BYTES).contains(&int_size) {
            return Err(BlockError::IntSize { size: int_size });
        }
        Ok(Self { int_size, bytes: [0; 1 + MAX_INT_BYTES as usize], filled: 0 })
    }

    /// `None` where the input ends before the int does.
    fn take(&mut self, input: &mut &[u8], offset: &mut u64) -> Result<Option<i64>, BlockError> {
        let wanted = 1 + usize::from(self.int_size);
        let taken = take(input, wanted - self.filled, offset);
        self.bytes[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        if self.filled < wanted {
            return Ok(None);
        }
        self.filled = 0;
        let mut reader = WireReader::new(&self.bytes[..wanted]);
        reader.int_size = self.int_size;
        match reader.int() {
            Ok(value) => Ok(Some(value)),
            Err(WireError::IntSize { size }) => Err(BlockError::IntSize { size }),
            Err(_) => Err(BlockError::Truncated { inside: "an integer", offset: *offset }),
        }
    }

    fn is_idle(&self) -> bool {
        self.filled == 0
    }
}

fn take<'x>(input: &mut &'x [u8], at_most: usize, offset: &mut u64) -> &'x [u8] {
    let (head, tail) = input.split_at(input.len().min(at_most));
    *input = tail;
    *offset = offset.saturating_add(head.len() as u64);
    head
}

/// What comes next in a run of chunks.
pub(super) enum Chunk<'x> {
    /// Bytes that lie in the input, not yet taken from it; never empty.
    Fragment(&'x [u8]),
    /// The zero length that ends a stream.
    End,
}

/// A run of chunks, each an int length and so many bytes.
#[derive(Debug)]
pub(super) struct ChunkReader {
    length: IntReader,
    left: u64,
    offset: u64,
}

impl ChunkReader {
    pub(super) fn new(int_size: u8, offset: u64) -> Result<Self, BlockError> {
        Ok(Self { length: IntReader::new(int_size)?, left: 0, offset })
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes lengths from the input and shows the bytes behind them; `None` where the input has no more.
    pub(super) fn peek<'x>(&mut self, input: &mut &'x [u8]) -> Result<Option<Chunk<'x>>, BlockError> {
        if self.left == 0 {
            match self.length.take(input, &mut self.offset)? {
                None => return Ok(None),
                Some(0) => return Ok(Some(Chunk::End)),
                Some(length @ 1..=MAX_CHUNK_BYTES) => self.left = length.unsigned_abs(),
                Some(value) => {
                    return Err(BlockError::Implausible { what: "a chunk length", value, offset: self.offset });
                }
            }
        }
        let in_chunk = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
        Ok((in_chunk > 0).then(|| Chunk::Fragment(&input[..in_chunk])))
    }

    /// Takes `len` bytes of the fragment that [`Self::peek`] has shown.
    pub(super) fn consume(&mut self, len: usize, input: &mut &[u8]) {
        self.left -= take(input, len, &mut self.offset).len() as u64;
    }

    /// # Errors
    /// [`BlockError::Truncated`] within a chunk or its length.
    pub(super) fn finish(&self) -> Result<(), BlockError> {
        if self.left > 0 {
            Err(BlockError::Truncated { inside: "a chunk", offset: self.offset })
        } else if !self.length.is_idle() {
            Err(BlockError::Truncated { inside: "a chunk's length", offset: self.offset })
        } else {
            Ok(())
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Type,
    DumpId {
        kind: BlockKind,
        begins: u64,
    },
    Oid,
    Stream(BlockKind),
    /// The stream's end has been told, the block's has not.
    TableEnd,
}

/// Parses blocks: push bytes in, take events out.
///
/// ```text
/// while let Some(event) = reader.next(&mut input)? { … }   // until the input is used up; then the next fragment
/// reader.finish()?;                                        // after the last
/// ```
#[derive(Debug)]
pub struct BlockReader {
    state: State,
    int: IntReader,
    chunks: ChunkReader,
}

impl BlockReader {
    /// For the data section from `offset` (bytes from the archive's beginning, for messages), to its end.
    /// `int_size` is the archive's: [`int_size`].
    ///
    /// # Errors
    /// [`BlockError::IntSize`] unless it is 1 to 8.
    pub fn section(int_size: u8, offset: u64) -> Result<Self, BlockError> {
        Ok(Self { state: State::Type, int: IntReader::new(int_size)?, chunks: ChunkReader::new(int_size, offset)? })
    }

    /// Bytes from the archive's beginning to what is read next.
    pub fn offset(&self) -> u64 {
        self.chunks.offset
    }

    /// The next event; `None` where the input is used up.
    ///
    /// # Errors
    /// Any [`BlockError`]; the reader is of no use after one.
    pub fn next<'x>(&mut self, input: &mut &'x [u8]) -> Result<Option<BlockEvent<'x>>, BlockError> {
        loop {
            match self.state {
                State::Type => {
                    let begins = self.offset();
                    let &[found] = take(input, 1, &mut self.chunks.offset) else { return Ok(None) };
                    let kind = match found {
                        1 => BlockKind::TableData,
                        3 => BlockKind::LargeObjects,
                        _ => return Err(BlockError::UnknownType { found, offset: begins }),
                    };
                    self.state = State::DumpId { kind, begins };
                }
                State::DumpId { kind, begins } => {
                    let Some(value) = self.int.take(input, &mut self.chunks.offset)? else { return Ok(None) };
                    return self.begin(kind, value, begins).map(Some);
                }
                State::Oid => {
                    let Some(value) = self.int.take(input, &mut self.chunks.offset)? else { return Ok(None) };
                    return self.large_object(value).map(Some);
                }
                State::Stream(kind) => match self.chunks.peek(input)? {
                    None => return Ok(None),
                    Some(Chunk::Fragment(bytes)) => {
                        self.chunks.consume(bytes.len(), input);
                        return Ok(Some(BlockEvent::Bytes(bytes)));
                    }
                    Some(Chunk::End) => {
                        self.state = match kind {
                            BlockKind::TableData => State::TableEnd,
                            BlockKind::LargeObjects => State::Oid,
                        };
                        return Ok(Some(BlockEvent::StreamEnd));
                    }
                },
                State::TableEnd => return Ok(Some(self.end())),
            }
        }
    }

    /// Tells that the archive, or the range that was asked for, has ended.
    ///
    /// # Errors
    /// [`BlockError::Truncated`] within a block.
    pub fn finish(&self) -> Result<(), BlockError> {
        let inside = match self.state {
            State::Type => return Ok(()),
            State::DumpId { .. } => "a block's header",
            State::Oid => "a list of large objects",
            State::Stream(_) => {
                self.chunks.finish()?;
                "a block, between two chunks"
            }
            // Told by the event that was not asked for.
            State::TableEnd => return Ok(()),
        };
        Err(BlockError::Truncated { inside, offset: self.offset() })
    }

    fn begin(&mut self, kind: BlockKind, value: i64, begins: u64) -> Result<BlockEvent<'static>, BlockError> {
        let dump_id = i32::try_from(value).ok().filter(|&id| id > 0).ok_or(BlockError::Implausible {
            what: "a dump id",
            value,
            offset: self.offset(),
        })?;
        self.state = match kind {
            BlockKind::TableData => State::Stream(kind),
            BlockKind::LargeObjects => State::Oid,
        };
        Ok(BlockEvent::Begin { kind, dump_id, offset: begins })
    }

    fn large_object(&mut self, value: i64) -> Result<BlockEvent<'static>, BlockError> {
        // `WriteInt` takes a C int: an oid from 2³¹ on is stored as the negative number with the same bits.
        let oid = u32::try_from(value).ok().or_else(|| i32::try_from(value).ok().map(|value| value as u32));
        match oid {
            None => Err(BlockError::Implausible { what: "an oid", value, offset: self.offset() }),
            Some(0) => Ok(self.end()),
            Some(oid) => {
                self.state = State::Stream(BlockKind::LargeObjects);
                Ok(BlockEvent::LargeObject { oid })
            }
        }
    }

    fn end(&mut self) -> BlockEvent<'static> {
        self.state = State::Type;
        BlockEvent::End { offset: self.offset() }
    }
}

#[cfg(test)]
mod tests;
