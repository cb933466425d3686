//! LZ4 frames from fragments.
//!
//! `pg_dump` writes one frame of the LZ4 frame format a stream, by `LZ4F_compressUpdate`: linked blocks of 64 KiB,
//! no checksums (`WriteDataToArchiveLZ4`). [`FrameDecoder`] pulls, and takes an input that ends between two blocks
//! for a complete one; so it is shown whole blocks only, and where a frame ends is followed here.

use std::io::{self, BufRead, Cursor, Read};

use lz4_flex::frame::FrameDecoder;

const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Magic number, flags, block descriptor.
const FRAME_START_BYTES: usize = 6;
const BLOCK_LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;
const STORED_AS_IT_IS: u32 = 1 << 31;

/// Flags of a frame's descriptor (LZ4 frame format, "FLG byte").
const BLOCK_CHECKSUMS: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const DICTIONARY: u8 = 1;

pub(super) struct Lz4Frames {
    decoder: FrameDecoder<Cursor<Vec<u8>>>,
    step: Step,
    /// How long the held input has to be for the next step.
    wanted: usize,
    flags: u8,
    max_block_bytes: usize,
    /// Text of the last block that has not been given out.
    ready: usize,
    frames: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    FrameStart,
    BlockLength,
    Block,
    FrameEnd,
}

impl Default for Lz4Frames {
    fn default() -> Self {
        Self {
            decoder: FrameDecoder::new(Cursor::default()),
            step: Step::FrameStart,
            wanted: FRAME_START_BYTES,
            flags: 0,
            max_block_bytes: 0,
            ready: 0,
            frames: 0,
        }
    }
}

impl Lz4Frames {
    /// Fills `output` with the next text; 0 where the input is used up.
    pub(super) fn advance(&mut self, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.ready > 0 {
                let room = self.ready.min(output.len());
                let given = self.decoder.read(&mut output[..room])?;
                self.ready -= given;
                return Ok(given);
            }
            let held = self.decoder.get_mut().get_mut();
            let (taken, rest) = input.split_at(input.len().min(self.wanted - held.len()));
            held.extend_from_slice(taken);
            *input = rest;
            if held.len() < self.wanted {
                return Ok(0);
            }
            match self.step {
                Step::FrameStart => self.frame_start()?,
                Step::BlockLength => self.block_length()?,
                Step::Block => {
                    self.show()?;
                    self.step = Step::BlockLength;
                    self.wanted = BLOCK_LENGTH_BYTES;
                }
                Step::FrameEnd => {
                    self.show()?;
                    // A decoder's buffers fit the frame it began with.
                    *self = Self { frames: self.frames + 1, ..Self::default() };
                }
            }
        }
    }

    /// Whether the last frame has ended, and there was one.
    pub(super) fn is_complete(&self) -> bool {
        self.frames > 0 && self.step == Step::FrameStart && self.held().is_empty()
    }

    /// The held block, and the decoder's copy of it with two blocks and a window of text.
    pub(super) fn buffered_bytes(&self) -> usize {
        const WINDOW_BYTES: usize = 64 * 1024;
        self.decoder.get_ref().get_ref().capacity() + 3 * self.max_block_bytes + WINDOW_BYTES
    }

    fn held(&self) -> &[u8] {
        self.decoder.get_ref().get_ref()
    }

    fn frame_start(&mut self) -> io::Result<()> {
        let held = self.held();
        if held[..4] != MAGIC {
            return Err(damaged("no lz4 frame begins here"));
        }
        let (flags, descriptor) = (held[4], held[5]);
        self.flags = flags;
        self.max_block_bytes = match (descriptor >> 4) & 7 {
            code @ 4..=7 => 1 << (8 + 2 * code),
            _ => return Err(damaged("an lz4 frame's block size is not one that exists")),
        };
        let content_size = if flags & CONTENT_SIZE == 0 { 0 } else { 8 };
        let dictionary = if flags & DICTIONARY == 0 { 0 } else { 4 };
        // One byte of checksum ends the descriptor.
        self.wanted += content_size + dictionary + 1 + BLOCK_LENGTH_BYTES;
        self.step = Step::BlockLength;
        Ok(())
    }

    fn block_length(&mut self) -> io::Result<()> {
        let mut length = [0; BLOCK_LENGTH_BYTES];
        length.copy_from_slice(&self.held()[self.wanted - BLOCK_LENGTH_BYTES..]);
        let length = u32::from_le_bytes(length);
        let checksum = |flag| if self.flags & flag == 0 { 0 } else { CHECKSUM_BYTES };
        if length == 0 {
            self.wanted += checksum(CONTENT_CHECKSUM);
            self.step = Step::FrameEnd;
            return Ok(());
        }
        let bytes = (length & !STORED_AS_IT_IS) as usize;
        if bytes > self.max_block_bytes {
            return Err(damaged("an lz4 block is longer than its frame allows"));
        }
        self.wanted += bytes + checksum(BLOCK_CHECKSUMS);
        self.step = Step::Block;
        Ok(())
    }

    /// Lets the decoder take what is held: one block or an end mark, with the frame's descriptor before the first.
    fn show(&mut self) -> io::Result<()> {
        self.ready = self.decoder.fill_buf()?.len();
        let input = self.decoder.get_mut();
        if input.position() != input.get_ref().len() as u64 {
            return Err(damaged("an lz4 block does not end where it says"));
        }
        input.get_mut().clear();
        input.set_position(0);
        Ok(())
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
