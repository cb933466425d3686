//! Decompresses the stored streams of an archive: bytes in, text out in slices, so that what a stream claims to
//! hold never decides how much memory it takes.
//!
//! Stricter than `pg_restore` (`compress_gzip.c`, `compress_lz4.c`, `compress_zstd.c`, 13–18), which lets a
//! truncated zstd or lz4 frame, and whatever follows a zstd frame within its chunk, pass in silence:
//! - a stream has to be complete: zlib's end and Adler-32, an lz4 frame's end mark, a zstd frame's last block;
//! - nothing may follow a zlib stream;
//! - frames of lz4 and zstd follow each other as they like, also within a chunk, and all are decoded.

mod lz4;
mod piece;

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use crate::archive::toc::HeaderCompression;
use lz4::Lz4Frames;
pub use piece::{PieceDecoder, PieceError};

/// No slice of text is longer.
pub const OUTPUT_BYTES: usize = 256 * 1024;

/// The largest zstd window that is allocated, as a power of two: 128 MiB, what level 22 and `long` need, and what
/// zstd, and with it `pg_restore`, reads by default (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
pub const MAX_WINDOW_LOG: u32 = 27;
/// The window of zstd's level 19 (8 MiB), the highest without `--ultra`.
pub const USUAL_WINDOW_LOG: u32 = 23;
/// `ZSTD_getErrorName` of the error that a larger window gives.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{codec} decompression cannot be set up")]
    Setup { codec: &'static str, source: io::Error },
    #[error("{codec} data is damaged within its first {stored} stored bytes")]
    Corrupt { codec: &'static str, stored: u64, source: io::Error },
    #[error("a zstd frame wants a window of more than {limit_mib} MiB")]
    Window { limit_mib: u64 },
    #[error("something follows the end of the {codec} stream, after {stored} stored bytes")]
    TrailingData { codec: &'static str, stored: u64 },
    #[error("{codec} data is not complete: {stored} stored bytes are not its whole stream")]
    Incomplete { codec: &'static str, stored: u64 },
}

/// Decompresses one stream: the bytes of one table, or of one large object, from first chunk to last.
pub struct Decoder {
    engine: Engine,
    /// Stored bytes taken in.
    stored: u64,
    output: Vec<u8>,
}

enum Engine {
    None,
    Gzip { inflate: Decompress, ended: bool },
    Lz4(Lz4Frames),
    Zstd { frames: ZstdDecoder<'static>, within: Within, pending: bool, max_window_log: u32 },
}

/// Where in its frames a zstd stream stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Nothing,
    Frame,
    EndOfFrame,
}

/// What one step has produced.
enum Text<'x> {
    /// A part of the input itself.
    Input(&'x [u8]),
    /// So many bytes of the output buffer.
    Output(usize),
}

impl<'x> Text<'x> {
    fn len(&self) -> usize {
        match self {
            Self::Input(text) => text.len(),
            Self::Output(len) => *len,
        }
    }

    /// `None` where nothing has been produced.
    fn slice<'a>(self, output: &'a [u8]) -> Option<&'a [u8]>
    where
        'x: 'a,
    {
        let text = match self {
            Self::Input(text) => text,
            Self::Output(len) => &output[..len],
        };
        (!text.is_empty()).then_some(text)
    }
}

impl Decoder {
    /// # Errors
    /// [`DecodeError::Setup`] where memory is short.
    pub fn new(compression: HeaderCompression) -> Result<Self, DecodeError> {
        Self::with_window_log(compression, MAX_WINDOW_LOG)
    }

    /// [`Self::new`] with another limit to the window of a zstd frame, as a power of two: `pg_dump` needs 23 up to
    /// level 19, 27 beyond and with `long`. A frame with a larger one is an error.
    ///
    /// # Errors
    /// [`DecodeError::Setup`] where memory is short or zstd refuses the limit (below 10 or above 31).
    pub fn with_window_log(compression: HeaderCompression, max_window_log: u32) -> Result<Self, DecodeError> {
        let engine = match compression {
            HeaderCompression::None => Engine::None,
            HeaderCompression::Gzip => Engine::Gzip { inflate: Decompress::new(true), ended: false },
            HeaderCompression::Lz4 => Engine::Lz4(Lz4Frames::default()),
            HeaderCompression::Zstd => {
                let mut frames = ZstdDecoder::new().map_err(setup_zstd)?;
                frames.set_parameter(DParameter::WindowLogMax(max_window_log)).map_err(setup_zstd)?;
                Engine::Zstd { frames, within: Within::Nothing, pending: false, max_window_log }
            }
        };
        Ok(Self::around(engine))
    }

    /// Deflate blocks without zlib's header and Adler-32.
    fn deflate_blocks() -> Self {
        Self::around(Engine::Gzip { inflate: Decompress::new(false), ended: false })
    }

    fn around(engine: Engine) -> Self {
        let output = if matches!(engine, Engine::None) { Vec::new() } else { vec![0; OUTPUT_BYTES] };
        Self { engine, stored: 0, output }
    }

    /// Stored bytes taken in so far.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Takes from the input what makes the next slice of text, at most [`OUTPUT_BYTES`] and never empty. `None`: the input
    /// is used up, and nothing is held back that it could have said.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`], [`DecodeError::TrailingData`]; the decoder is of no use after one.
    pub fn decode<'a, 'x: 'a>(&'a mut self, input: &mut &'x [u8]) -> Result<Option<&'a [u8]>, DecodeError> {
        Ok(self.advance(input)?.slice(&self.output))
    }

    /// Tells that the stream has ended.
    ///
    /// # Errors
    /// [`DecodeError::Incomplete`] unless it is complete; also where nothing came at all, unless nothing is
    /// compressed: every compressor writes an empty stream for no bytes.
    pub fn finish(&self) -> Result<(), DecodeError> {
        let complete = match &self.engine {
            Engine::None => true,
            Engine::Gzip { ended, .. } => *ended,
            Engine::Lz4(frames) => frames.is_complete(),
            Engine::Zstd { within, .. } => *within == Within::EndOfFrame,
        };
        if complete { Ok(()) } else { Err(DecodeError::Incomplete { codec: self.codec(), stored: self.stored }) }
    }

    /// Makes ready for another stream, without giving buffers back: large objects are many and mostly small.
    ///
    /// # Errors
    /// [`DecodeError::Setup`] where zstd cannot be reset.
    pub fn reset(&mut self) -> Result<(), DecodeError> {
        self.stored = 0;
        match &mut self.engine {
            Engine::None => {}
            Engine::Gzip { inflate, ended } => {
                inflate.reset(true);
                *ended = false;
            }
            Engine::Lz4(frames) => *frames = Lz4Frames::default(),
            Engine::Zstd { frames, within, pending, .. } => {
                frames.reinit().map_err(setup_zstd)?;
                (*within, *pending) = (Within::Nothing, false);
            }
        }
        Ok(())
    }

    /// Bytes held in buffers of our own; a zstd window (at most 2 to the power of its limit) comes on top.
    pub fn buffered_bytes(&self) -> usize {
        self.output.capacity() + if let Engine::Lz4(frames) = &self.engine { frames.buffered_bytes() } else { 0 }
    }

    fn codec(&self) -> &'static str {
        match self.engine {
            Engine::None => "uncompressed",
            Engine::Gzip { .. } => "zlib",
            Engine::Lz4(_) => "lz4",
            Engine::Zstd { .. } => "zstd",
        }
    }

    fn advance<'x>(&mut self, input: &mut &'x [u8]) -> Result<Text<'x>, DecodeError> {
        let before = input.len();
        let text = match &mut self.engine {
            Engine::None => {
                let (text, rest) = input.split_at(input.len().min(OUTPUT_BYTES));
                *input = rest;
                Ok(Text::Input(text))
            }
            Engine::Gzip { inflate, ended } => advance_gzip(inflate, ended, input, &mut self.output).map(Text::Output),
            Engine::Lz4(frames) => frames.advance(input, &mut self.output).map(Text::Output),
            Engine::Zstd { frames, within, pending, .. } => {
                advance_zstd(frames, within, pending, input, &mut self.output).map(Text::Output)
            }
        };
        self.stored += (before - input.len()) as u64;
        let text = text.map_err(|source| match self.engine {
            Engine::Zstd { max_window_log, .. } if source.to_string() == WINDOW_TOO_LARGE => {
                DecodeError::Window { limit_mib: (1 << max_window_log) >> 20 }
            }
            _ => DecodeError::Corrupt { codec: self.codec(), stored: self.stored, source },
        })?;
        let ended = matches!(self.engine, Engine::Gzip { ended: true, .. });
        if ended && matches!(text, Text::Output(0)) && !input.is_empty() {
            return Err(DecodeError::TrailingData { codec: self.codec(), stored: self.stored });
        }
        Ok(text)
    }
}

/// The window that the zstd frame which begins with these bytes wants, as a power of two, rounded up; `None` where they
/// are too few or no frame's beginning. Source: RFC 8878, 3.1.1.1.
pub fn zstd_window_log(frame: &[u8]) -> Option<u32> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let [descriptor, window, ..] = *frame.strip_prefix(&MAGIC)? else { return None };
    let log = 10 + u32::from(window >> 3) + u32::from(window & 7 != 0);
    // A frame of a single segment says the size of its content instead, which then is its window.
    (descriptor & SINGLE_SEGMENT == 0).then_some(log)
}

fn setup_zstd(source: io::Error) -> DecodeError {
    DecodeError::Setup { codec: "zstd", source }
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the decompressor takes no input and gives no output")
}

fn advance_gzip(inflate: &mut Decompress, ended: &mut bool, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
    while !*ended {
        let (taken, given) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(input, output, FlushDecompress::None).map_err(io::Error::from)?;
        let (taken, given) = ((inflate.total_in() - taken) as usize, (inflate.total_out() - given) as usize);
        *input = &input[taken..];
        *ended = status == Status::StreamEnd;
        if given > 0 {
            return Ok(given);
        }
        // Asked once more when the input is used up: what it said may have filled the last slice to the brim.
        if input.is_empty() {
            return Ok(0);
        }
        if taken == 0 && !*ended {
            return Err(stuck());
        }
    }
    Ok(0)
}

fn advance_zstd(
    frames: &mut ZstdDecoder<'static>,
    within: &mut Within,
    pending: &mut bool,
    input: &mut &[u8],
    output: &mut [u8],
) -> io::Result<usize> {
    while *pending || !input.is_empty() {
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(output);
        let hint = frames.run(&mut source, &mut target)?;
        let (taken, given, room) = (source.pos, target.pos(), target.capacity());
        *input = &input[taken..];
        // 0: the frame is decoded and given out to its end; what comes next is another frame.
        *within = if hint == 0 { Within::EndOfFrame } else { Within::Frame };
        *pending = given == room && hint != 0;
        if given > 0 {
            return Ok(given);
        }
        if taken == 0 && !input.is_empty() {
            return Err(stuck());
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
