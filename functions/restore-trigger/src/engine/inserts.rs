//! The data of archives that were dumped with `--inserts`: statements instead of rows.

use holdfast_shared::archive::lexer::{Dialect, Splitter, without_comments};
use holdfast_shared::domain::TableDigest;
use holdfast_shared::postgres::copy::{CopyError, RawSession};

use crate::engine::intake::IntakeError;
use crate::engine::stopped::Stopped;

/// Text of statements that goes out at once, and how many of them.
const INSERTS_BYTES: usize = 128 * 1024;
const INSERTS: usize = 500;
const MAX_INSERT_BYTES: usize = 32 << 20;

/// `INSERT` statements, collected to one message.
pub struct Inserts {
    splitter: Splitter,
    /// The beginning of a statement.
    open: Vec<u8>,
    batch: Vec<Vec<u8>>,
    batch_bytes: usize,
    digest: TableDigest,
}

impl Inserts {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            splitter: Splitter::new(dialect),
            open: Vec::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            digest: TableDigest::default(),
        }
    }

    pub async fn take(&mut self, mut text: &[u8], session: &mut RawSession) -> Result<(), Stopped> {
        self.digest.bytes += text.len() as u64;
        while let Some(end) = self.splitter.end(text) {
            self.open.extend_from_slice(&text[..end - 1]);
            text = &text[end..];
            let statement = without_comments(&self.open);
            if !statement.starts_with(b"INSERT INTO ") {
                return Err(not_inserts(statement).into());
            }
            self.batch_bytes += statement.len();
            self.batch.push(statement.to_vec());
            self.open.clear();
            if self.batch_bytes >= INSERTS_BYTES || self.batch.len() == INSERTS {
                self.send(session).await?;
            }
        }
        if self.open.len() + text.len() > MAX_INSERT_BYTES {
            return Err(IntakeError::LongStatement { limit_mib: MAX_INSERT_BYTES >> 20 }.into());
        }
        self.open.extend_from_slice(text);
        Ok(())
    }

    async fn send(&mut self, session: &mut RawSession) -> Result<(), CopyError> {
        self.digest.rows += session.execute_each(&self.batch).await?;
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }

    pub async fn finish(mut self, session: &mut RawSession) -> Result<TableDigest, Stopped> {
        if !self.splitter.is_blank() {
            return Err(not_inserts(&self.open).into());
        }
        self.send(session).await?;
        Ok(self.digest)
    }
}

fn not_inserts(statement: &[u8]) -> IntakeError {
    let beginning = String::from_utf8_lossy(&statement[..statement.len().min(60)]).into_owned();
    IntakeError::NotInserts { beginning }
}
