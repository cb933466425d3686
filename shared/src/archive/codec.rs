//! Compresses COPY text into an archive's chunks, so that runs of rows can be compressed apart and joined.
//!
//! A chunk is an int length and so many bytes. zstd: each segment is whole frames, and a frame's end is a chunk's
//! end (a reader drops what follows a frame within its chunk). gzip: the segments of one table are one zlib
//! stream: header, deflate blocks each flushed to a byte boundary and without references backwards, a final
//! block, and the Adler-32 of everything, combined from the segments'.

use std::fmt;
use std::str::FromStr;

use flate2::{Compress, FlushCompress};
use serde::{Deserialize, Serialize};
use zstd::stream::raw::{Encoder as ZstdEncoder, InBuffer, Operation, OutBuffer};

use crate::archive::toc::{ArchiveVersion, HeaderCompression};

/// What a chunk length takes: `WriteInt`'s sign byte and four bytes.
pub const CHUNK_HEADER_BYTES: usize = 5;
/// A chunk is closed when it has grown to this; readers hold a whole chunk.
const CHUNK_BYTES: usize = 256 * 1024;
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// What ends a table's rows in the archive (`dumpTableData_copy`).
pub const ROWS_END: &[u8] = b"\\.\n\n\n";

/// Algorithm and level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Compression {
    None,
    Gzip { level: u32 },
    Zstd { level: i32 },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a compression (zstd:1 to zstd:19, gzip:1 to gzip:9, or none)")]
pub struct CompressionError {
    pub text: String,
}

impl Compression {
    /// Chosen by measurement: docs/performance.md.
    pub const DEFAULT_ZSTD: Self = Self::Zstd { level: 1 };
    pub const DEFAULT_GZIP: Self = Self::Gzip { level: 1 };

    /// The default for a server: zstd from 16 on, whose `pg_restore` reads it; gzip before.
    pub fn default_for(server_major: u32, archive: ArchiveVersion) -> Self {
        if server_major >= 16 && Self::DEFAULT_ZSTD.fits(archive) { Self::DEFAULT_ZSTD } else { Self::DEFAULT_GZIP }
    }

    /// Whether an archive of this version can say that it is compressed so.
    pub fn fits(self, archive: ArchiveVersion) -> bool {
        !matches!(self, Self::Zstd { .. }) || archive >= ArchiveVersion::V1_15
    }

    pub fn header(self) -> HeaderCompression {
        match self {
            Self::None => HeaderCompression::None,
            Self::Gzip { .. } => HeaderCompression::Gzip,
            Self::Zstd { .. } => HeaderCompression::Zstd,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let level = level.map(str::parse::<u32>).transpose().ok();
        match (algorithm, level) {
            ("none", Some(None)) => Ok(Self::None),
            ("gzip", Some(None)) => Ok(Self::DEFAULT_GZIP),
            ("zstd", Some(None)) => Ok(Self::DEFAULT_ZSTD),
            ("gzip", Some(Some(level @ 1..=9))) => Ok(Self::Gzip { level }),
            ("zstd", Some(Some(level @ 1..=19))) => Ok(Self::Zstd { level: level as i32 }),
            _ => Err(CompressionError { text: text.to_owned() }),
        }
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

impl TryFrom<String> for Compression {
    type Error = CompressionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("zstd compression failed")]
    Zstd(#[source] std::io::Error),
    #[error("gzip compression failed")]
    Gzip(#[source] flate2::CompressError),
}

/// The Adler-32 and length of one segment's text; what joins gzip segments into one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adler {
    sum: u32,
    len: u64,
}

impl Default for Adler {
    fn default() -> Self {
        Self { sum: 1, len: 0 }
    }
}

impl Adler {
    const BASE: u64 = 65_521;

    fn update(&mut self, text: &[u8]) {
        let mut running = simd_adler32::Adler32::from_checksum(self.sum);
        running.write(text);
        self.sum = running.finish();
        self.len += text.len() as u64;
    }

    /// The Adler-32 of this text followed by `next` (zlib's `adler32_combine`).
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let (a1, b1) = (u64::from(self.sum & 0xffff), u64::from(self.sum >> 16));
        let (a2, b2) = (u64::from(next.sum & 0xffff), u64::from(next.sum >> 16));
        let a = (a1 + a2 + Self::BASE - 1) % Self::BASE;
        let shifted = (next.len % Self::BASE) * ((a1 + Self::BASE - 1) % Self::BASE);
        let b = (b1 + b2 + shifted) % Self::BASE;
        Self { sum: (b as u32) << 16 | a as u32, len: self.len + next.len }
    }
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
            put_chunk(out, &whole.sum.to_be_bytes());
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
    crate::archive::wire::put_int(out, dump_id);
}

/// The header of a block of large objects.
pub fn put_large_objects_block(out: &mut Vec<u8>, dump_id: i32) {
    out.push(BLOCK_LARGE_OBJECTS);
    crate::archive::wire::put_int(out, dump_id);
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

const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// `pg_dump` counts dump ids from 1 and keeps them in memory: it never gets here.
pub const PADDING_DUMP_ID: i32 = i32::MAX;

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    /// The chunks of a stream, up to the zero length.
    fn chunks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        loop {
            assert_eq!(bytes[0], 0, "lengths are positive");
            let len = u32::from_le_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if len == 0 {
                assert_eq!(bytes.len(), 5, "nothing follows the end");
                return chunks;
            }
            chunks.push(bytes[5..5 + len].to_vec());
            bytes = &bytes[5 + len..];
        }
    }

    /// Decompresses as `pg_restore` does: zstd chunk by chunk, dropping what follows a frame's end in a chunk.
    fn read_back(compression: Compression, stream: &[u8]) -> Vec<u8> {
        let chunks = chunks(stream);
        match compression {
            Compression::None => chunks.concat(),
            Compression::Gzip { .. } => {
                let mut out = Vec::new();
                let bytes = chunks.concat();
                let mut decoder = flate2::read::ZlibDecoder::new(bytes.as_slice());
                decoder.read_to_end(&mut out).unwrap();
                assert_eq!(decoder.total_in(), bytes.len() as u64, "one zlib stream and nothing behind it");
                out
            }
            Compression::Zstd { .. } => {
                let mut out = Vec::new();
                let mut decoder = zstd::stream::raw::Decoder::new().unwrap();
                for chunk in chunks {
                    let mut input = InBuffer::around(&chunk);
                    while input.pos < chunk.len() {
                        let mut piece = vec![0; 64 * 1024];
                        let mut output = OutBuffer::around(piece.as_mut_slice());
                        let left = decoder.run(&mut input, &mut output).unwrap();
                        let produced = output.pos();
                        out.extend_from_slice(&piece[..produced]);
                        if left == 0 {
                            assert_eq!(input.pos, chunk.len(), "a frame ends inside a chunk");
                            break;
                        }
                    }
                }
                out
            }
        }
    }

    fn compression() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::None),
            (1u32..10).prop_map(|level| Compression::Gzip { level }),
            (1i32..6).prop_map(|level| Compression::Zstd { level }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn segments_in_any_order_are_one_stream(
            compression in compression(),
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200_000), 0..5),
            repeat in 1usize..8,
        ) {
            let texts: Vec<Vec<u8>> = texts.into_iter().map(|text| text.repeat(repeat)).collect();
            let mut workers = [Encoder::new(compression).unwrap(), Encoder::new(compression).unwrap()];
            let mut segments: Vec<(Vec<u8>, Adler, Vec<u8>)> = texts.iter().enumerate().map(|(i, text)| {
                let mut out = Vec::new();
                text.chunks(70_000).for_each(|piece| workers[i % 2].write(piece, &mut out).unwrap());
                let adler = workers[i % 2].end_segment(&mut out).unwrap();
                (out, adler, text.clone())
            }).collect();
            segments.reverse();

            let mut stream = Vec::new();
            workers[0].begin_table(&mut stream);
            let mut expected = Vec::new();
            let mut rows = Adler::default();
            for (out, adler, text) in segments {
                stream.extend_from_slice(&out);
                expected.extend_from_slice(&text);
                rows = rows.then(adler);
            }
            workers[0].end_table(rows, &mut stream).unwrap();
            expected.extend_from_slice(ROWS_END);
            prop_assert!(read_back(compression, &stream) == expected);
        }

        #[test]
        fn adlers_combine(a in proptest::collection::vec(any::<u8>(), 0..20_000), b in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let adler = |text: &[u8]| { let mut adler = Adler::default(); adler.update(text); adler };
            prop_assert_eq!(adler(&a).then(adler(&b)), adler(&[a, b].concat()));
        }
    }

    #[test]
    fn names_and_levels() {
        for (text, expected) in [
            ("zstd:3", Compression::Zstd { level: 3 }),
            ("gzip:6", Compression::Gzip { level: 6 }),
            ("none", Compression::None),
        ] {
            assert_eq!(text.parse::<Compression>().unwrap(), expected);
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::DEFAULT_ZSTD);
        for bad in ["", "zstd:0", "zstd:23", "gzip:10", "lz4", "none:1", "zstd:", "zstd:x"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
        assert_eq!(Compression::default_for(15, ArchiveVersion::V1_16), Compression::DEFAULT_GZIP);
        assert_eq!(Compression::default_for(16, ArchiveVersion::V1_15), Compression::DEFAULT_ZSTD);
    }

    #[test]
    fn padding_is_at_least_as_long_as_asked() {
        for min in [0, 1, 16, 17, 5 << 20] {
            let block = padding_block(min);
            assert!(block.len() as u64 >= min && block.len() as u64 <= min.max(17));
        }
    }
}
