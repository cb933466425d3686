//! Rows by COPY, straight off the wire.
//!
//! Once `tokio-postgres` has logged in, the stream is taken over: a row is handed on as it lies in the read
//! buffer, without a message object or a channel per row, and a row larger than the buffer comes in fragments,
//! so that no row is ever held whole.

use std::collections::BTreeMap;
use std::io;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::postgres::stream::Stream;

const BUFFER_BYTES: usize = 256 * 1024;
const MESSAGE_HEADER_BYTES: usize = 5;

/// An `ErrorResponse` (PostgreSQL documentation, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        self.detail.iter().try_for_each(|detail| write!(f, "; {detail}"))
    }
}

impl std::error::Error for ServerError {}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the server answered with an error")]
    Server(#[source] ServerError),
    #[error("the connection to the server broke")]
    Io(#[source] io::Error),
    #[error("the server's answer does not follow the protocol: {what}")]
    Protocol { what: &'static str },
    #[error("{read} rows arrived, and the server says it sent {sent}")]
    RowCount { read: u64, sent: u64 },
}

impl CopyError {
    /// The SQLSTATE, where the server sent one.
    pub fn code(&self) -> Option<&str> {
        if let Self::Server(error) = self { Some(&error.code) } else { None }
    }
}

/// A session in which only simple queries and COPY are spoken.
pub struct RawSession {
    pub(super) stream: Stream,
    pub(super) buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    pub(super) at: usize,
    ungranted: Vec<ServerError>,
}

/// `WARNING_PRIVILEGE_NOT_REVOKED`, `WARNING_PRIVILEGE_NOT_GRANTED`.
const UNGRANTED: [&str; 2] = ["01006", "01007"];

/// What COPY yields.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// One whole `CopyData` message: in text format one row with its newline.
    Row(&'a [u8]),
    /// Part of a message that is larger than the buffer.
    Fragment { bytes: &'a [u8], ends_row: bool },
}

impl RawSession {
    pub fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::with_capacity(BUFFER_BYTES), at: 0, ungranted: Vec::new() }
    }

    /// Warnings since the last call that a `GRANT` or `REVOKE` succeeded and did nothing, or not all.
    pub fn take_ungranted(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.ungranted)
    }

    /// Runs statements whose rows, if any, do not matter.
    ///
    /// # Errors
    /// [`CopyError::Server`] with the first error; the statements after it were not run.
    pub async fn execute(&mut self, sql: impl AsRef<[u8]>) -> Result<(), CopyError> {
        let mut copy = self.start(sql.as_ref()).await?;
        loop {
            while copy.next_item()?.is_some() {}
            if !copy.fill().await? {
                return Ok(());
            }
        }
    }

    /// Runs a query that holds one `COPY … TO STDOUT` (other statements may stand around it).
    pub async fn copy_out(&mut self, sql: impl AsRef<[u8]>) -> Result<CopyOut<'_>, CopyError> {
        self.start(sql.as_ref()).await
    }

    async fn start(&mut self, sql: &[u8]) -> Result<CopyOut<'_>, CopyError> {
        self.send_query(sql).await?;
        Ok(self.answer())
    }

    pub(super) fn answer(&mut self) -> CopyOut<'_> {
        CopyOut { session: self, remaining: 0, rows: 0, sent: None, inserted: 0, error: None, ready: false }
    }

    pub(super) async fn send_query(&mut self, sql: &[u8]) -> Result<(), CopyError> {
        let mut message = BytesMut::new();
        // `frontend::query` takes UTF-8 only, and SQL is in the database's encoding here.
        if sql.contains(&0) {
            return Err(CopyError::Protocol { what: "a statement with a zero byte" });
        }
        message.extend_from_slice(b"Q");
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql);
        message.extend_from_slice(&[0]);
        self.stream.write_all(&message).await.map_err(CopyError::Io)?;
        self.stream.flush().await.map_err(CopyError::Io)
    }

    /// Says goodbye; the server rolls back what is open.
    pub async fn close(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        // The server notices a closed socket as well.
        let _ = self.stream.write_all(&message).await;
        let _ = self.stream.shutdown().await;
    }

    /// Reads more into the buffer, moving what is unread to its front.
    pub(super) async fn fill(&mut self) -> Result<(), CopyError> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        if self.buffer.capacity() - self.buffer.len() < BUFFER_BYTES / 4 {
            self.buffer.reserve(BUFFER_BYTES);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = (&mut self.stream).take(room as u64).read_buf(&mut self.buffer).await.map_err(CopyError::Io)?;
        if read == 0 { Err(CopyError::Io(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }
}

/// A COPY under way.
pub struct CopyOut<'s> {
    session: &'s mut RawSession,
    /// Bytes of the current oversized message that have not been handed on.
    remaining: usize,
    rows: u64,
    sent: Option<u64>,
    inserted: u64,
    error: Option<ServerError>,
    ready: bool,
}

impl CopyOut<'_> {
    /// Waits for more from the server; `false` when the query is over and succeeded.
    ///
    /// # Errors
    /// [`CopyError::Server`] once the server is ready again (the session can be used on), else a broken session.
    pub async fn fill(&mut self) -> Result<bool, CopyError> {
        if self.ready {
            if let Some(error) = self.error.take() {
                return Err(CopyError::Server(error));
            }
            return Ok(false);
        }
        self.session.fill().await?;
        Ok(true)
    }

    /// Compares the rows handed on with what the server says it sent; for COPY in text format, when it is over.
    ///
    /// # Errors
    /// [`CopyError::RowCount`].
    pub fn check_rows(&self) -> Result<(), CopyError> {
        match self.sent {
            Some(sent) if sent == self.rows => Ok(()),
            Some(sent) => Err(CopyError::RowCount { read: self.rows, sent }),
            None => Err(CopyError::Protocol { what: "a COPY without its row count" }),
        }
    }

    /// Rows that `INSERT`s have inserted so far.
    pub(super) fn inserted(&self) -> u64 {
        self.inserted
    }

    /// The next item in the buffer; `None` means [`Self::fill`] is needed.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, CopyError> {
        loop {
            let unread_from = self.session.at;
            let unread_len = self.session.buffer.len() - unread_from;
            if self.remaining > 0 {
                let len = unread_len.min(self.remaining);
                if len == 0 {
                    return Ok(None);
                }
                self.remaining -= len;
                self.session.at += len;
                let ends_row = self.remaining == 0;
                self.rows += u64::from(ends_row);
                let bytes = &self.session.buffer[unread_from..unread_from + len];
                return Ok(Some(Item::Fragment { bytes, ends_row }));
            }
            if self.ready || unread_len < MESSAGE_HEADER_BYTES {
                return Ok(None);
            }
            let header = &self.session.buffer[unread_from..unread_from + MESSAGE_HEADER_BYTES];
            let kind = header[0];
            let declared = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            let body_len =
                declared.checked_sub(4).ok_or(CopyError::Protocol { what: "a message shorter than its length" })?;
            let whole = unread_len - MESSAGE_HEADER_BYTES >= body_len;
            if kind == b'd' && !whole && body_len > BUFFER_BYTES / 2 {
                self.session.at += MESSAGE_HEADER_BYTES;
                self.remaining = body_len;
                continue;
            }
            if !whole {
                return Ok(None);
            }
            let body = unread_from + MESSAGE_HEADER_BYTES..unread_from + MESSAGE_HEADER_BYTES + body_len;
            self.session.at = body.end;
            if kind == b'd' {
                self.rows += 1;
                return Ok(Some(Item::Row(&self.session.buffer[body])));
            }
            self.message(kind, body)?;
        }
    }

    fn message(&mut self, kind: u8, body: std::ops::Range<usize>) -> Result<(), CopyError> {
        let body = &self.session.buffer[body];
        match kind {
            b'C' => {
                if let Some(count) =
                    body.strip_prefix(b"COPY ").and_then(|tail| tail.split_last()).map(|(_, text)| text)
                {
                    self.sent = std::str::from_utf8(count).ok().and_then(|text| text.parse().ok());
                }
                let tag = body.strip_prefix(b"INSERT 0 ").and_then(|tail| tail.strip_suffix(&[0]));
                let rows = tag.and_then(|count| std::str::from_utf8(count).ok()?.parse::<u64>().ok());
                self.inserted += rows.unwrap_or_default();
            }
            b'E' if self.error.is_none() => self.error = Some(parse_error(body)),
            b'Z' => self.ready = true,
            b'N' => {
                let notice = parse_error(body);
                if UNGRANTED.contains(&notice.code.as_str()) {
                    self.session.ungranted.push(notice);
                }
            }
            // Of statements sent one by one: parsed, bound, without rows. CopyOutResponse, CopyDone, rows of other statements, settings, notifications.
            b'1' | b'2' | b'n' | b'E' | b'H' | b'c' | b'T' | b'D' | b'I' | b'S' | b'A' => {}
            _ => return Err(CopyError::Protocol { what: "an unexpected message" }),
        }
        Ok(())
    }
}

/// Appends a field of COPY's text format without its escapes; `None` where it has one that no server writes.
pub fn unescape(field: &[u8], text: &mut Vec<u8>) -> Option<()> {
    let mut rest = field;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        text.extend_from_slice(&rest[..at]);
        text.push(match rest.get(at + 1)? {
            b'\\' => b'\\',
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            _ => return None,
        });
        rest = &rest[at + 2..];
    }
    text.extend_from_slice(rest);
    Some(())
}

pub(super) fn parse_error(body: &[u8]) -> ServerError {
    let mut fields: BTreeMap<u8, String> = BTreeMap::new();
    for field in body.split(|&byte| byte == 0) {
        if let Some((kind, text)) = field.split_first() {
            fields.insert(*kind, String::from_utf8_lossy(text).into_owned());
        }
    }
    ServerError {
        code: fields.remove(&b'C').unwrap_or_default(),
        message: fields.remove(&b'M').unwrap_or_default(),
        detail: fields.remove(&b'D'),
        hint: fields.remove(&b'H'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_fields_are_found() {
        let error = parse_error(b"SERROR\0VERROR\0C55P03\0Mcanceling statement due to lock timeout\0\0");
        assert_eq!(error.code, "55P03");
        assert_eq!(error.to_string(), "canceling statement due to lock timeout (SQLSTATE 55P03)");
    }
}
