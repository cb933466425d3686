//! Bytes that are put together without being copied, and what is to be known of places in them.

use bytes::Bytes;

/// Bytes in several pieces, with marks at offsets that are translated to the object's when all is in place.
#[derive(Debug, Clone)]
pub struct Rope<M> {
    pub(super) chunks: Vec<Bytes>,
    pub(super) len: u64,
    /// Offsets in this rope.
    pub(super) marks: Vec<(u64, M)>,
}

impl<M> Default for Rope<M> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0, marks: Vec::new() }
    }
}

impl<M> Rope<M> {
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        if !bytes.is_empty() {
            self.chunks.push(bytes);
        }
    }

    /// Appends bytes with marks at offsets within them.
    pub fn push_marked(&mut self, bytes: Bytes, marks: Vec<(u64, M)>) {
        let shift = self.len;
        self.marks.extend(marks.into_iter().map(|(at, mark)| (at + shift, mark)));
        self.push(bytes);
    }

    /// Marks the current end.
    pub fn mark(&mut self, mark: M) {
        self.marks.push((self.len, mark));
    }

    /// Joins another rope to the end, its marks with it.
    pub fn append(&mut self, other: Self) {
        let shift = self.len;
        self.marks.extend(other.marks.into_iter().map(|(at, mark)| (at + shift, mark)));
        self.chunks.extend(other.chunks);
        self.len += other.len;
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }
}
