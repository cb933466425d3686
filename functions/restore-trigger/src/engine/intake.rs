//! Data blocks as they come from the store: chunks, decompressed, and rows digested on their way through.

use std::io;

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use holdfast_shared::archive::toc::HeaderCompression;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::store::StoreError;
use holdfast_shared::store::read::RangeBody;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Text is handed on in runs of about this size.
const TEXT_BYTES: usize = 128 * 1024;
/// What ends a table's rows (`dumpTableData_copy`).
const END_OF_ROWS: &[u8] = b"\\.";

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it ends too early")]
    Truncated,
    #[error("it is not a data block: {what}")]
    Malformed { what: &'static str },
    #[error("it cannot be decompressed")]
    Compression(#[source] io::Error),
    #[error("data compressed with lz4 is not read yet")]
    Lz4,
}

impl IntakeError {
    pub fn fault(self, table: &str) -> Fault {
        match self {
            Self::Store(error) => Fault::from(error).with_context(&format!("reading the data of {table}")),
            Self::Lz4 => Fault::from_error("compression-unsupported", &self).with_context(table),
            error => Fault::from_error("backup-damaged", &error)
                .with_context(&format!("the stored data of {table} is damaged"))
                .hint("restore another backup; the object's versions may hold an undamaged one"),
        }
    }
}

/// The bytes of one range, taken piecemeal.
pub struct Intake {
    body: RangeBody,
    buffer: Bytes,
}

impl Intake {
    pub fn new(body: RangeBody) -> Self {
        Self { body, buffer: Bytes::new() }
    }

    /// Whether there is more.
    async fn more(&mut self) -> Result<bool, IntakeError> {
        while self.buffer.is_empty() {
            match self.body.next().await? {
                Some(piece) => self.buffer = piece,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn byte(&mut self) -> Result<u8, IntakeError> {
        if self.more().await? { Ok(self.buffer.get_u8()) } else { Err(IntakeError::Truncated) }
    }

    /// `ReadInt`: a sign byte and four bytes.
    pub async fn int(&mut self) -> Result<i64, IntakeError> {
        let negative = self.byte().await? != 0;
        let mut magnitude = 0;
        for shift in 0..4 {
            magnitude |= i64::from(self.byte().await?) << (8 * shift);
        }
        Ok(if negative { -magnitude } else { magnitude })
    }

    /// Type and dump id of the next block; `None` at the range's end.
    pub async fn block(&mut self) -> Result<Option<(u8, i64)>, IntakeError> {
        if !self.more().await? {
            return Ok(None);
        }
        let kind = self.byte().await?;
        Ok(Some((kind, self.int().await?)))
    }

    /// The length of the next chunk; `None` at the end of the run of chunks.
    pub async fn chunk(&mut self) -> Result<Option<u64>, IntakeError> {
        match self.int().await? {
            0 => Ok(None),
            len => u64::try_from(len).map(Some).map_err(|_| IntakeError::Malformed { what: "a negative length" }),
        }
    }

    /// Some bytes, at most `limit`.
    pub async fn some(&mut self, limit: u64) -> Result<Bytes, IntakeError> {
        if !self.more().await? {
            return Err(IntakeError::Truncated);
        }
        let len = self.buffer.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(self.buffer.split_to(len))
    }

    /// At the end of the range: for pieces, which have no end of their own.
    pub async fn is_over(&mut self) -> Result<bool, IntakeError> {
        Ok(!self.more().await?)
    }

    /// Skips a block of type 1.
    pub async fn skip_chunks(&mut self) -> Result<(), IntakeError> {
        while let Some(mut left) = self.chunk().await? {
            while left > 0 {
                left -= self.some(left).await?.len() as u64;
            }
        }
        Ok(())
    }
}

/// Undoes the compression of one stream.
pub enum Decoder {
    Plain,
    Inflate { inflate: Box<Decompress>, ended: bool },
    Zstd { frame: Box<ZstdDecoder<'static>>, between_frames: bool },
}

impl Decoder {
    /// `within`: the stream begins with a piece, not at its own beginning.
    pub fn new(compression: HeaderCompression, within: bool) -> Result<Self, IntakeError> {
        Ok(match compression {
            HeaderCompression::None => Self::Plain,
            HeaderCompression::Gzip => Self::Inflate { inflate: Box::new(Decompress::new(!within)), ended: false },
            HeaderCompression::Zstd => {
                let frame = ZstdDecoder::new().map_err(IntakeError::Compression)?;
                Self::Zstd { frame: Box::new(frame), between_frames: true }
            }
            HeaderCompression::Lz4 => return Err(IntakeError::Lz4),
        })
    }

    /// Appends what comes out of `input`, at most about [`TEXT_BYTES`]; `true` while there is more to come of it.
    pub fn decode(&mut self, input: &mut Bytes, out: &mut Vec<u8>) -> Result<bool, IntakeError> {
        out.reserve(TEXT_BYTES);
        match self {
            Self::Plain => {
                out.extend_from_slice(&input.split_to(input.len().min(TEXT_BYTES)));
                Ok(!input.is_empty())
            }
            Self::Inflate { inflate, ended } => {
                if *ended {
                    return if input.is_empty() {
                        Ok(false)
                    } else {
                        Err(IntakeError::Malformed { what: "bytes behind its compressed stream" })
                    };
                }
                let before = (inflate.total_in(), out.len());
                let status = inflate.decompress_vec(input, out, FlushDecompress::None);
                let status = status.map_err(|error| IntakeError::Compression(error.into()))?;
                let read = (inflate.total_in() - before.0) as usize;
                input.advance(read);
                *ended = status == Status::StreamEnd;
                if read == 0 && out.len() == before.1 && !input.is_empty() {
                    return Err(IntakeError::Malformed { what: "a compressed stream that does not go on" });
                }
                Ok(!input.is_empty() || (out.len() == out.capacity() && out.len() > before.1))
            }
            Self::Zstd { frame, between_frames } => {
                let mut from = InBuffer::around(input);
                let at = out.len();
                let mut to = OutBuffer::around_pos(out, at);
                let hint = frame.run(&mut from, &mut to).map_err(IntakeError::Compression)?;
                let read = from.pos;
                input.advance(read);
                *between_frames = hint == 0;
                Ok(!input.is_empty() || (hint != 0 && out.len() == out.capacity()))
            }
        }
    }

    /// Whether the stream may end here; `within`: after a piece.
    pub fn ended(&self, within: bool) -> bool {
        match self {
            Self::Plain => true,
            Self::Inflate { ended, .. } => *ended || within,
            Self::Zstd { between_frames, .. } => *between_frames,
        }
    }
}

/// Counts and hashes rows in text that comes in any cut, and finds where they end.
#[derive(Default)]
pub struct Rows {
    pub digest: TableDigest,
    /// The beginning of a row that the text so far has not ended.
    open: Option<RowHasher>,
    /// The first bytes of that row: it may turn out to be the end marker.
    beginning: Vec<u8>,
    pub ended: bool,
}

impl Rows {
    /// Takes in text; how much of it are rows. What could be the end marker is not, until it is known.
    pub fn take<'t>(&mut self, text: &'t [u8]) -> Result<RowText<'t>, IntakeError> {
        let mut rest = text;
        let mut held = Vec::new();
        let mut rows_end = 0;
        while !rest.is_empty() {
            if self.ended {
                if rest.iter().any(|&byte| byte != b'\n') {
                    return Err(IntakeError::Malformed { what: "bytes behind its rows" });
                }
                break;
            }
            let newline = rest.iter().position(|&byte| byte == b'\n');
            let line = &rest[..newline.unwrap_or(rest.len())];
            let continued = self.open.is_some() || !self.beginning.is_empty();
            if !continued && newline.is_some() {
                if line == END_OF_ROWS {
                    self.ended = true;
                } else {
                    self.digest.add_row(line);
                    rows_end = text.len() - rest.len() + line.len() + 1;
                }
            } else {
                self.take_part(line, newline.is_some(), &mut held);
                if self.open.is_some() || newline.is_some() && !self.ended {
                    rows_end = text.len() - rest.len() + line.len() + usize::from(newline.is_some());
                }
            }
            rest = &rest[newline.map_or(rest.len(), |at| at + 1)..];
        }
        Ok(RowText { held, text: &text[..rows_end] })
    }

    /// Part of a row. While all of it is a prefix of the end marker it is held back; `held` gets what was so held
    /// before and is a row after all.
    fn take_part(&mut self, part: &[u8], ends: bool, held: &mut Vec<u8>) {
        if self.open.is_none() {
            self.beginning.extend_from_slice(&part[..part.len().min(END_OF_ROWS.len() + 1)]);
            let could_be_end = END_OF_ROWS.starts_with(&self.beginning);
            if could_be_end && !ends {
                return;
            }
            if could_be_end && self.beginning == END_OF_ROWS {
                self.ended = true;
                self.beginning.clear();
                return;
            }
            let mut hasher = RowHasher::default();
            let before = self.beginning.len() - part.len().min(END_OF_ROWS.len() + 1);
            held.extend_from_slice(&self.beginning[..before]);
            hasher.update(&self.beginning[..before]);
            hasher.update(part);
            self.beginning.clear();
            self.open = Some(hasher);
        } else if let Some(hasher) = &mut self.open {
            hasher.update(part);
        }
        if ends && let Some(hasher) = self.open.take() {
            hasher.finish(&mut self.digest);
        }
    }

    /// Whether a row is cut off.
    pub fn in_row(&self) -> bool {
        self.open.is_some() || !self.beginning.is_empty()
    }
}

/// What to send on: first what was held back, then this much of the text.
pub struct RowText<'t> {
    pub held: Vec<u8>,
    pub text: &'t [u8],
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(text: &[u8], cuts: &[usize]) -> (Vec<u8>, Rows) {
        let (mut rows, mut sent) = (Rows::default(), Vec::new());
        let mut rest = text;
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            let out = rows.take(now).unwrap();
            sent.extend_from_slice(&out.held);
            sent.extend_from_slice(out.text);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        (sent, rows)
    }

    proptest! {
        #[test]
        fn rows_pass_whatever_the_cut(lines in proptest::collection::vec("[a\\\\.]{0,6}", 0..12), cuts in proptest::collection::vec(1usize..9, 1..6)) {
            let lines: Vec<&String> = lines.iter().filter(|line| *line != "\\.").collect();
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (sent, rows) = through(format!("{text}\\.\n\n\n").as_bytes(), &cuts);
            prop_assert_eq!(String::from_utf8(sent).unwrap(), text);
            let mut expected = TableDigest::default();
            lines.iter().for_each(|line| expected.add_row(line.as_bytes()));
            prop_assert_eq!(rows.digest, expected);
            prop_assert!(rows.ended && !rows.in_row());
        }
    }

    #[test]
    fn nothing_may_follow_the_end_of_the_rows() {
        assert!(Rows::default().take(b"a\n\\.\n\nb\n").is_err());
    }
}
