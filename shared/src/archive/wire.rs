//! Integers and strings as the archive stores them (`ReadInt`/`WriteInt`, `ReadStr`/`WriteStr`).

use std::io::{self, Read};

/// The longest string a table of contents may hold; PostgreSQL itself cannot make a longer one.
const MAX_STRING_BYTES: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the archive ends in the middle of its table of contents")]
    Truncated,
    #[error("a string of {len} bytes in the table of contents is not plausible")]
    StringTooLong { len: u64 },
    #[error("integers of {size} bytes are not supported")]
    IntSize { size: u8 },
    #[error("reading the archive failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// Reads the archive's primitives; `int_size` is what the header declares.
pub struct WireReader<R> {
    inner: R,
    pub int_size: u8,
    consumed: u64,
}

impl<R: Read> WireReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, int_size: 4, consumed: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.consumed
    }

    /// So many bytes as they stand.
    ///
    /// # Errors
    /// [`WireError::Truncated`] where there are fewer, [`WireError::Io`].
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut buffer = [0; N];
        self.inner.read_exact(&mut buffer)?;
        self.consumed += N as u64;
        Ok(buffer)
    }

    /// The same of one byte.
    pub fn byte(&mut self) -> Result<u8, WireError> {
        Ok(self.bytes::<1>()?[0])
    }

    /// A sign byte and `int_size` bytes, little-endian.
    pub fn int(&mut self) -> Result<i64, WireError> {
        if !(1..=8).contains(&self.int_size) {
            return Err(WireError::IntSize { size: self.int_size });
        }
        let negative = self.byte()? != 0;
        let mut magnitude: u64 = 0;
        for shift in 0..self.int_size {
            magnitude |= u64::from(self.byte()?) << (8 * u32::from(shift));
        }
        let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
        Ok(if negative { -magnitude } else { magnitude })
    }

    /// A length and so many bytes; a negative length is null.
    pub fn string(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Ok(len) = u64::try_from(self.int()?) else { return Ok(None) };
        if len > MAX_STRING_BYTES {
            return Err(WireError::StringTooLong { len });
        }
        // Grows as bytes arrive: a forged length alone allocates nothing.
        let mut text = Vec::new();
        let read = (&mut self.inner).take(len).read_to_end(&mut text)? as u64;
        self.consumed += read;
        if read < len { Err(WireError::Truncated) } else { Ok(Some(text)) }
    }
}

/// A sign byte and four bytes, little-endian.
pub fn put_int(out: &mut Vec<u8>, value: i32) {
    out.push(u8::from(value < 0));
    out.extend_from_slice(&value.unsigned_abs().to_le_bytes());
}

/// A length and the bytes; null is the length -1.
pub fn put_string(out: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        None => put_int(out, -1),
        Some(text) => {
            put_int(out, i32::try_from(text.len()).unwrap_or(i32::MAX));
            out.extend_from_slice(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn primitives_come_back(int in (i32::MIN + 1)..i32::MAX, text in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50))) {
            let mut out = Vec::new();
            put_int(&mut out, int);
            put_string(&mut out, text.as_deref());
            let mut reader = WireReader::new(out.as_slice());
            prop_assert_eq!(reader.int().unwrap(), i64::from(int));
            prop_assert_eq!(reader.string().unwrap(), text);
            prop_assert_eq!(reader.position(), out.len() as u64);
        }
    }

    #[test]
    fn a_forged_length_is_an_error_not_an_allocation() {
        let mut out = Vec::new();
        put_int(&mut out, i32::MAX);
        assert!(matches!(WireReader::new(out.as_slice()).string(), Err(WireError::StringTooLong { .. })));
        let mut out = Vec::new();
        put_int(&mut out, 1 << 20);
        assert!(matches!(WireReader::new(out.as_slice()).string(), Err(WireError::Truncated)));
    }
}
