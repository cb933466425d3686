//! Compresses COPY text into an archive's chunks, so that runs of rows can be compressed apart and joined.
//!
//! A chunk is an int length and so many bytes. zstd: each segment is whole frames, and a frame's end is a chunk's
//! end (a reader drops what follows a frame within its chunk). gzip: the segments of one table are one zlib
//! stream: header, deflate blocks each flushed to a byte boundary and without references backwards, a final
//! block, and the Adler-32 of everything, combined from the segments'.

mod adler;
mod compression;
#[cfg(test)]
mod tests;

use flate2::{Compress, FlushCompress};
use zstd::stream::raw::{Encoder as ZstdEncoder, InBuffer, Operation, OutBuffer};

use crate::archive::wire::put_int;

pub use adler::Adler;
pub use compression::{Compression, CompressionError};

/// What a chunk length takes: `WriteInt`'s sign byte and four bytes.
pub const CHUNK_HEADER_BYTES: usize = 5;
/// A chunk is closed when it has grown to this; readers hold a whole chunk.
const CHUNK_BYTES: usize = 256 * 1024;
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// What ends a table's rows in the archive (`dumpTableData_copy`).
pub const ROWS_END: &[u8] = b"\\.\n\n\n";
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// `pg_dump` counts dump ids from 1 and keeps them in memory: it never gets here.
pub const PADDING_DUMP_ID: i32 = i32::MAX;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("zstd compression failed")]
    Zstd(#[source] std::io::Error),
    #[error("gzip compression failed")]
    Gzip(#[source] flate2::CompressError),
}

enum Engine {
    None,
    Gzip { deflate: Compress, adler: Adler },
    Zstd { frame: ZstdEncoder<'static> },
}

/// Turns text into chunks. One a worker: its tables are reused from segment to segment.
pub struct Encoder {
    engine: Engine,
    /// Where the length of the chunk that is being filled stands in the output.
    open_chunk: Option<usize>,
}

impl Encoder {
    /// # Errors
    /// [`CodecError::Zstd`] where the level is refused or memory is short.
    pub fn new(compression: Compression) -> Result<Self, CodecError> {
        let engine = match compression {
            Compression::None => Engine::None,
            Compression::Gzip { level } => {
                Engine::Gzip { deflate: Compress::new(flate2::Compression::new(level), false), adler: Adler::default() }
            }
            Compression::Zstd { level } => Engine::Zstd { frame: ZstdEncoder::new(level).map_err(CodecError::Zstd)? },
        };
        Ok(Self { engine, open_chunk: None })
    }

    /// What stands before the first segment of a table.
    pub fn begin_table(&self, out: &mut Vec<u8>) {
        if matches!(self.engine, Engine::Gzip { .. }) {
            put_chunk(out, &ZLIB_HEADER);
        }
    }

    /// Compresses text into the open segment; what comes out is appended to `out` in chunks.
    pub fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        match &mut self.engine {
            Engine::None => text.chunks(CHUNK_BYTES).for_each(|chunk| put_chunk(out, chunk)),
            Engine::Gzip { deflate, adler } => {
                adler.update(text);
                let mut rest = text;
                while !rest.is_empty() {
                    open_chunk(&mut self.open_chunk, out);
                    let before = deflate.total_in();
                    deflate.compress_vec(rest, out, FlushCompress::None).map_err(CodecError::Gzip)?;
                    rest = &rest[(deflate.total_in() - before) as usize..];
                    close_full_chunk(&mut self.open_chunk, out);
                }
            }
            Engine::Zstd { frame } => {
                let mut input = InBuffer::around(text);
                while input.pos < text.len() {
                    open_chunk(&mut self.open_chunk, out);
                    let at = out.len();
                    frame.run(&mut input, &mut OutBuffer::around_pos(out, at)).map_err(CodecError::Zstd)?;
                    close_full_chunk(&mut self.open_chunk, out);
                }
            }
        }
        Ok(())
    }

    /// Ends the chunk that is being filled, in the middle of a segment: the output up to here can be taken away.
    pub fn end_chunk(&mut self, out: &mut Vec<u8>) {
        close_chunk(&mut self.open_chunk, out);
    }

    /// Ends the segment: what was written so far can be decompressed without what follows.
    pub fn end_segment(&mut self, out: &mut Vec<u8>) -> Result<Adler, CodecError> {
        let adler = match &mut self.engine {
            Engine::None => Adler::default(),
            Engine::Gzip { deflate, adler } => {
                deflate_all(deflate, FlushCompress::Sync, &mut self.open_chunk, out)?;
                deflate.reset();
                std::mem::take(adler)
            }
            Engine::Zstd { frame } => {
                loop {
                    open_chunk(&mut self.open_chunk, out);
                    let at = out.len();
                    let left = frame.finish(&mut OutBuffer::around_pos(out, at), true).map_err(CodecError::Zstd)?;
                    if left == 0 {
                        break;
                    }
                    close_full_chunk(&mut self.open_chunk, out);
                }
                frame.reinit().map_err(CodecError::Zstd)?;
                Adler::default()
            }
        };
        close_chunk(&mut self.open_chunk, out);
        Ok(adler)
    }

    /// Ends the table's data: `ROWS_END`, what the codec needs at the end, and the zero length that ends the
    /// block. `rows` is the combined [`Adler`] of all segments in the order they lie in the archive.
    pub fn end_table(&mut self, rows: Adler, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.write(ROWS_END, out)?;
        self.end_stream(rows, out)
    }

    /// [`Self::end_table`] without `ROWS_END`: the end of one large object.
    pub fn end_stream(&mut self, before: Adler, out: &mut Vec<u8>) -> Result<(), CodecError> {
        if let Engine::Gzip { deflate, adler } = &mut self.engine {
            let whole = before.then(std::mem::take(adler));
            deflate_all(deflate, FlushCompress::Finish, &mut self.open_chunk, out)?;
            deflate.reset();
            close_chunk(&mut self.open_chunk, out);
            put_chunk(out, &whole.sum().to_be_bytes());
        } else {
            self.end_segment(out)?;
        }
        out.extend_from_slice(&[0; CHUNK_HEADER_BYTES]);
        Ok(())
    }
}

fn deflate_all(
    deflate: &mut Compress,
    flush: FlushCompress,
    open: &mut Option<usize>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    loop {
        open_chunk(open, out);
        let status = deflate.compress_vec(&[], out, flush).map_err(CodecError::Gzip)?;
        // Spare room left means that the flush is through; a finished stream says so itself.
        let through = out.len() < out.capacity() && flush != FlushCompress::Finish;
        if through || status == flate2::Status::StreamEnd {
            return Ok(());
        }
        close_full_chunk(open, out);
    }
}

/// Makes room in `out` and begins a chunk where none is open.
fn open_chunk(open: &mut Option<usize>, out: &mut Vec<u8>) {
    if open.is_none() {
        *open = Some(out.len());
        out.extend_from_slice(&[0; CHUNK_HEADER_BYTES]);
    }
    if out.capacity() - out.len() < 32 * 1024 {
        out.reserve(CHUNK_BYTES);
    }
}

fn close_full_chunk(open: &mut Option<usize>, out: &mut Vec<u8>) {
    if open.is_some_and(|start| out.len() - start >= CHUNK_BYTES) {
        close_chunk(open, out);
    }
}

/// Writes the chunk's length into the room left for it; an empty chunk would end the block, so it is taken back.
fn close_chunk(open: &mut Option<usize>, out: &mut Vec<u8>) {
    let Some(start) = open.take() else { return };
    let len = out.len() - start - CHUNK_HEADER_BYTES;
    if len == 0 {
        out.truncate(start);
    } else {
        out[start + 1..start + CHUNK_HEADER_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
    }
}

fn put_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(0);
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

/// The header of a table's data block.
pub fn put_table_block(out: &mut Vec<u8>, dump_id: i32) {
    out.push(BLOCK_DATA);
    put_int(out, dump_id);
}

/// The header of a block of large objects.
pub fn put_large_objects_block(out: &mut Vec<u8>, dump_id: i32) {
    out.push(BLOCK_LARGE_OBJECTS);
    put_int(out, dump_id);
}

/// A block of at least `min_bytes` that readers skip: no entry has its dump id.
pub fn padding_block(min_bytes: u64) -> Vec<u8> {
    const FRAME: usize = 1 + 3 * CHUNK_HEADER_BYTES;
    let mut out = Vec::new();
    put_table_block(&mut out, PADDING_DUMP_ID);
    put_chunk(&mut out, &vec![0; (min_bytes as usize).saturating_sub(FRAME).max(1)]);
    out.extend_from_slice(&[0; CHUNK_HEADER_BYTES]);
    out
}
