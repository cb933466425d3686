//! Large objects as statements, and what they add to a digest.

use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::postgres::copy::{CopyError, RawSession};

/// Content that one message carries, before it is written in hexadecimal.
const OBJECT_BYTES: usize = 256 * 1024;

/// What a large object adds to the fingerprint of all (docs/format.md).
pub fn object_digest(oid: u32, content: &RowHasher, size: u64) -> TableDigest {
    let mut digest = TableDigest::default();
    digest.add_row(format!("{oid}\t{:032x}", content.digest()).as_bytes());
    digest.bytes = size;
    digest
}

/// Statements that write into large objects, collected to one message.
#[derive(Default)]
pub struct ObjectBatch {
    sql: String,
    bytes: usize,
}

impl ObjectBatch {
    pub fn put(&mut self, oid: u32, offset: u64, content: &[u8]) {
        if content.is_empty() {
            return;
        }
        self.sql.push_str(&format!("SELECT pg_catalog.lo_put({oid}, {offset}, pg_catalog.decode('"));
        for byte in content {
            for digit in [byte >> 4, byte & 15] {
                self.sql.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        self.sql.push_str("', 'hex'));\n");
        self.bytes += content.len();
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= OBJECT_BYTES
    }

    pub async fn send(&mut self, session: &mut RawSession) -> Result<(), CopyError> {
        if self.bytes > 0 {
            session.execute(&self.sql).await?;
            *self = Self::default();
        }
        Ok(())
    }
}
