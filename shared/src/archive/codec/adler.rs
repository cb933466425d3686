//! Checksums of zlib streams that are compressed in segments.

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

    pub(super) fn update(&mut self, text: &[u8]) {
        let mut running = simd_adler32::Adler32::from_checksum(self.sum);
        running.write(text);
        self.sum = running.finish();
        self.len += text.len() as u64;
    }

    pub(super) fn sum(self) -> u32 {
        self.sum
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
