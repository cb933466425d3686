//! One piece of a table, as a manifest names it: decompressed on its own, and held to what the manifest says.

use crate::archive::blocks::{BlockError, Chunk, ChunkReader};
use crate::archive::decode::{DecodeError, Decoder, Text};
use crate::archive::toc::HeaderCompression;
use crate::domain::manifest::Piece;

/// The archives that manifests describe are this project's own, and `Toc::render` says 4.
const INT_BYTES: u8 = 4;
/// The window of zstd's level 19 (8 MiB), the highest that exports are made with.
const MAX_WINDOW_LOG: u32 = 23;
/// What a sync flush ends with: an empty stored block.
const FLUSHED: u32 = 0x0000_ffff;

#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error("the table's data ends within the piece, at byte {offset} of the archive")]
    EndOfData { offset: u64 },
    #[error("the piece is {found} stored bytes long, not {expected}")]
    StoredLength { expected: u64, found: u64 },
    #[error("the piece holds {found} bytes of text or more, not {expected}")]
    TooMuchText { expected: u64, found: u64 },
    #[error("the piece holds {found} bytes of text, not {expected}")]
    TooLittleText { expected: u64, found: u64 },
    #[error("the piece does not end where its deflate blocks were flushed")]
    NotFlushed,
}

/// Decompresses one [`Piece`]: a run of chunks that is, by compression, whole zstd (or lz4) frames, raw deflate
/// blocks flushed to a byte boundary in the midst of a zlib stream, or plain text. Never gives out more text than
/// the piece is said to have.
pub struct PieceDecoder {
    piece: Piece,
    chunks: ChunkReader,
    decoder: Decoder,
    compression: HeaderCompression,
    /// Text given out so far.
    text: u64,
    /// The last four stored bytes.
    tail: u32,
}

impl PieceDecoder {
    /// # Errors
    /// [`DecodeError::Setup`].
    pub fn new(compression: HeaderCompression, piece: Piece) -> Result<Self, PieceError> {
        let decoder = match compression {
            HeaderCompression::Gzip => Decoder::deflate_blocks(),
            other => Decoder::with_window_log(other, MAX_WINDOW_LOG)?,
        };
        let chunks = ChunkReader::new(INT_BYTES, piece.offset)?;
        Ok(Self { piece, chunks, decoder, compression, text: 0, tail: 0 })
    }

    /// Takes from the input, which is the piece's stored bytes in fragments of any size, what makes the next slice
    /// of text, at most [`super::OUTPUT_BYTES`] and never empty. `None`: the input is used up.
    ///
    /// # Errors
    /// Any [`PieceError`]; the decoder is of no use after one.
    pub fn decode<'a, 'x: 'a>(&'a mut self, input: &mut &'x [u8]) -> Result<Option<&'a [u8]>, PieceError> {
        let text = self.advance(input)?;
        self.text += text.len() as u64;
        if self.text > self.piece.bytes {
            return Err(PieceError::TooMuchText { expected: self.piece.bytes, found: self.text });
        }
        Ok(text.slice(&self.decoder.output))
    }

    fn advance<'x>(&mut self, input: &mut &'x [u8]) -> Result<Text<'x>, PieceError> {
        loop {
            // Nothing, where only what the decoder has still to say is left.
            let shown: &'x [u8] = match self.chunks.peek(input)? {
                None => &[],
                Some(Chunk::Fragment(bytes)) => bytes,
                Some(Chunk::End) => return Err(PieceError::EndOfData { offset: self.chunks.offset() }),
            };
            let mut rest = shown;
            let text = self.decoder.advance(&mut rest)?;
            let taken = &shown[..shown.len() - rest.len()];
            self.chunks.consume(taken.len(), input);
            for &byte in &taken[taken.len().saturating_sub(4)..] {
                self.tail = self.tail << 8 | u32::from(byte);
            }
            let found = self.chunks.offset() - self.piece.offset;
            if found > self.piece.length {
                return Err(PieceError::StoredLength { expected: self.piece.length, found });
            }
            if shown.is_empty() || text.len() > 0 {
                return Ok(text);
            }
        }
    }

    /// Tells that the piece's stored bytes have ended.
    ///
    /// # Errors
    /// Unless they were as many as the piece has, made exactly its text, and can be followed by the next piece's.
    pub fn finish(&self) -> Result<(), PieceError> {
        let stored = self.chunks.offset() - self.piece.offset;
        if stored != self.piece.length {
            return Err(PieceError::StoredLength { expected: self.piece.length, found: stored });
        }
        self.chunks.finish()?;
        if self.text != self.piece.bytes {
            return Err(PieceError::TooLittleText { expected: self.piece.bytes, found: self.text });
        }
        match self.compression {
            // No bytes, no stream.
            _ if stored == 0 => Ok(()),
            HeaderCompression::Gzip if self.decoder.finish().is_ok() || self.tail != FLUSHED => {
                Err(PieceError::NotFlushed)
            }
            HeaderCompression::Gzip => Ok(()),
            _ => Ok(self.decoder.finish()?),
        }
    }
}
