//! Fills one unit's parts: text in, compressed segments of whole rows out, cut at the part size.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_shared::archive::codec::{
    Adler, CodecError, Compression, Encoder, put_large_objects_block, put_table_block,
};
use holdfast_shared::archive::spine::Rope;
use holdfast_shared::archive::wire::put_int;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::MIN_PART_SIZE_BYTES;

use crate::assembly::{Assembly, Mark, Place, Reserved};
use crate::buffers::Buffers;

/// Text is compressed in batches of this size: large enough for the codec, small enough for the cache.
const BATCH_BYTES: usize = 128 * 1024;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    Table,
    LargeObjects,
}

/// The block of one entry.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    pub entry: usize,
    pub dump_id: i32,
    pub kind: BlockKind,
}

#[derive(Default)]
struct Segment {
    start: u64,
    bytes: u64,
    rows: u64,
}

/// One worker's way through one unit.
pub struct Writer {
    unit: usize,
    encoder: Encoder,
    text: Vec<u8>,
    out: Vec<u8>,
    buffers: Arc<Buffers>,
    marks: Vec<(u64, Mark)>,
    /// Bytes that have left `out`.
    shipped: u64,
    segment: Option<(usize, Segment)>,
    /// Of a split unit: the segments since the last part.
    adlers: Vec<Adler>,
    /// Of a bundle: the segments of the current block.
    block_rows: Adler,
    /// Where the rest of a row goes whose beginning is in a part already.
    reserved: Option<Reserved>,
    part_size: u64,
    /// Of a split unit: what its first part begins with, put there by whoever is first.
    shared_block: Option<Block>,
    pieces_done: usize,
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn codec(error: CodecError) -> Fault {
    Fault::from_error("compression-failed", &error)
}

impl Writer {
    pub fn new(
        unit: usize,
        compression: Compression,
        assembly: &Assembly,
        shared_block: Option<Block>,
    ) -> Result<Self, Fault> {
        let part_size = assembly.part_size(unit);
        Ok(Self {
            unit,
            encoder: Encoder::new(compression).map_err(codec)?,
            text: Vec::with_capacity(BATCH_BYTES + 16 * 1024),
            out: Vec::new(),
            buffers: assembly.buffers(),
            marks: Vec::new(),
            shipped: 0,
            segment: None,
            adlers: Vec::new(),
            block_rows: Adler::default(),
            reserved: None,
            part_size,
            shared_block,
            pieces_done: 0,
        })
    }

    pub fn unit(&self) -> usize {
        self.unit
    }

    fn produced(&self) -> u64 {
        self.shipped + self.out.len() as u64
    }

    fn mark(&mut self, mark: Mark) {
        self.marks.push((self.out.len() as u64, mark));
    }

    /// Begins an entry's block within a bundle.
    pub fn begin_block(&mut self, block: Block) {
        self.need_buffer();
        self.mark(Mark::BlockStart { entry: block.entry });
        put_block_header(&mut self.out, block);
        if block.kind == BlockKind::Table {
            self.encoder.begin_table(&mut self.out);
        }
    }

    /// Undoes [`Self::begin_block`], after which nothing was written.
    pub fn take_back_block(&mut self) {
        if let Some((at, Mark::BlockStart { .. })) = self.marks.last() {
            self.out.truncate(*at as usize);
            self.marks.pop();
        }
    }

    /// Takes in one whole row, its newline included.
    #[inline]
    pub fn row(&mut self, entry: usize, row: &[u8]) -> Result<(), Fault> {
        self.text(entry, row, true)
    }

    /// Takes in part of a row.
    #[inline]
    pub fn text(&mut self, entry: usize, text: &[u8], ends_row: bool) -> Result<(), Fault> {
        if self.segment.is_none() {
            self.segment = Some((entry, Segment { start: self.produced(), ..Segment::default() }));
        }
        if let Some((_, segment)) = &mut self.segment {
            segment.bytes += text.len() as u64;
            segment.rows += u64::from(ends_row);
        }
        self.text.extend_from_slice(text);
        if self.text.len() >= BATCH_BYTES { self.compress() } else { Ok(()) }
    }

    fn compress(&mut self) -> Result<(), Fault> {
        self.need_buffer();
        self.encoder.write(&self.text, &mut self.out).map_err(codec)?;
        self.text.clear();
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Fault> {
        if let Some((entry, segment)) = self.segment.take() {
            self.compress()?;
            let adler = self.encoder.end_segment(&mut self.out).map_err(codec)?;
            if self.shared_block.is_some() {
                self.adlers.push(adler);
            } else {
                self.block_rows = self.block_rows.then(adler);
            }
            let length = self.produced() - segment.start;
            self.mark(Mark::SegmentEnd { entry, length, bytes: segment.bytes, rows: segment.rows });
        }
        Ok(())
    }

    /// Whether [`Self::cut`] has something to do. `in_row`: a row has begun and not ended.
    #[inline]
    pub fn wants_cut(&self, in_row: bool) -> bool {
        let limit = match (in_row, &self.reserved) {
            (true, _) => self.part_size + MIN_PART_SIZE_BYTES,
            // The other writers wait for the rest of the row: it goes as soon as it is whole.
            (false, Some(_)) => MIN_PART_SIZE_BYTES,
            (false, None) => self.part_size,
        };
        self.out.len() as u64 >= limit
    }

    /// Sends what has been filled. Between rows the segment ends with the part. Within a row, which may be longer
    /// than any part, only bytes are cut: the next part is kept for the rest, and enough stays behind to fill it.
    pub async fn cut(&mut self, assembly: &Assembly, in_row: bool) -> Result<(), Fault> {
        if in_row {
            self.encoder.end_chunk(&mut self.out);
            let at = self.part_size as usize;
            let rest = self.out.split_off(at);
            let rope = self.take_rope(rest);
            self.put(assembly, rope, true).await
        } else {
            self.end_segment()?;
            let rope = self.take_rope(Vec::new());
            self.put(assembly, rope, false).await
        }
    }

    fn take_rope(&mut self, rest: Vec<u8>) -> Rope<Mark> {
        let full = std::mem::replace(&mut self.out, rest);
        let len = full.len() as u64;
        self.shipped += len;
        // A beginning at the cut is of what follows it, an end of what stands before.
        let before = |(at, mark): &(u64, Mark)| *at < len || *at == len && !matches!(mark, Mark::BlockStart { .. });
        let (marks, later) = std::mem::take(&mut self.marks).into_iter().partition(before);
        self.marks = later;
        self.marks.iter_mut().for_each(|(at, _)| *at -= len);
        let mut rope = Rope::default();
        // What stays short may wait long for its neighbour: it does not keep a whole part's buffer.
        let bytes = if full.len() < full.capacity() / 2 {
            let short = Bytes::copy_from_slice(&full);
            drop(self.buffers.seal(full));
            short
        } else {
            self.buffers.seal(full)
        };
        rope.push_marked(bytes, marks);
        rope
    }

    fn need_buffer(&mut self) {
        if self.out.capacity() == 0 {
            self.out = self.buffers.take();
        }
    }

    async fn put(&mut self, assembly: &Assembly, rope: Rope<Mark>, continues: bool) -> Result<(), Fault> {
        if rope.is_empty() {
            return Ok(());
        }
        let place = self.reserved.take().map_or(Place::Next, Place::Reserved);
        let adlers = std::mem::take(&mut self.adlers);
        let prefix = prefix(self.shared_block, &self.encoder);
        self.reserved = assembly.put(self.unit, place, rope, adlers, prefix, continues).await?;
        self.part_size = assembly.part_size(self.unit);
        Ok(())
    }

    /// Ends an entry's block within a bundle.
    pub fn end_table_block(&mut self, entry: usize) -> Result<(), Fault> {
        self.end_segment()?;
        let rows = std::mem::take(&mut self.block_rows);
        self.encoder.end_table(rows, &mut self.out).map_err(codec)?;
        self.mark(Mark::BlockEnd { entry });
        Ok(())
    }

    pub fn end_large_objects_block(&mut self, entry: usize) {
        put_zero(&mut self.out);
        self.mark(Mark::BlockEnd { entry });
    }

    /// One large object: its oid, its content in chunks, and their end.
    pub fn begin_large_object(&mut self, oid: u32) {
        // Oids are unsigned, the archive's ints are not: as `WriteInt` has it, by value modulo 2³².
        self.need_buffer();
        put_int(&mut self.out, oid as i32);
        self.encoder.begin_table(&mut self.out);
    }

    pub fn large_object_data(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.encoder.write(data, &mut self.out).map_err(codec)
    }

    pub fn end_large_object(&mut self) -> Result<(), Fault> {
        self.encoder.end_stream(Adler::default(), &mut self.out).map_err(codec)
    }

    pub fn piece_done(&mut self) {
        self.pieces_done += 1;
    }

    /// Leaves a split unit; the last writer to leave closes it.
    pub async fn leave(mut self, assembly: &Assembly) -> Result<(), Fault> {
        self.end_segment()?;
        if self.reserved.is_some() {
            let rope = self.take_rope(Vec::new());
            self.put(assembly, rope, false).await?;
        }
        let end = self.take_rope(Vec::new());
        let adlers = std::mem::take(&mut self.adlers);
        let prefix = prefix(self.shared_block, &self.encoder);
        let closing = assembly.leave(self.unit, end, adlers, self.pieces_done, prefix).await?;
        let (Some((mut rest, rows)), Some(block)) = (closing, self.shared_block) else { return Ok(()) };
        let mut end = Vec::new();
        match block.kind {
            BlockKind::Table => self.encoder.end_table(rows, &mut end).map_err(codec)?,
            BlockKind::LargeObjects => put_zero(&mut end),
        }
        rest.push(Bytes::from(end));
        rest.mark(Mark::BlockEnd { entry: block.entry });
        assembly.finish(self.unit, rest).await
    }

    /// Closes a bundle.
    pub async fn close(mut self, assembly: &Assembly) -> Result<(), Fault> {
        let end = self.take_rope(Vec::new());
        assembly.finish(self.unit, end).await
    }
}

fn put_zero(out: &mut Vec<u8>) {
    put_int(out, 0);
}

fn put_block_header(out: &mut Vec<u8>, block: Block) {
    match block.kind {
        BlockKind::Table => put_table_block(out, block.dump_id),
        BlockKind::LargeObjects => put_large_objects_block(out, block.dump_id),
    }
}

/// What a split unit begins with.
fn prefix(block: Option<Block>, encoder: &Encoder) -> impl FnOnce() -> Rope<Mark> {
    move || {
        let mut rope = Rope::default();
        if let Some(block) = block {
            let mut out = Vec::new();
            put_block_header(&mut out, block);
            if block.kind == BlockKind::Table {
                encoder.begin_table(&mut out);
            }
            rope.mark(Mark::BlockStart { entry: block.entry });
            rope.push(Bytes::from(out));
        }
        rope
    }
}
