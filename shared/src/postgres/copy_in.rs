//! Rows into a table by COPY: text goes out in large messages as it is, whole rows or not.

use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::postgres::copy::{CopyError, RawSession, ServerError, parse_error};

/// Text collects to this before a message goes out; the server takes messages of up to 1 GiB.
const MESSAGE_BYTES: usize = 128 * 1024;
const HEADER_BYTES: usize = 5;

/// A `COPY … FROM STDIN` under way. Dropped unfinished, it leaves the session unusable, and the server aborts.
pub struct CopyIn<'s> {
    session: &'s mut RawSession,
    /// A `CopyData` message that is being filled; its length is set as it goes out.
    message: Vec<u8>,
    rows: Option<u64>,
    error: Option<ServerError>,
    ready: bool,
}

impl RawSession {
    /// Begins a query that holds one `COPY … FROM STDIN`; other statements may stand around it.
    ///
    /// # Errors
    /// [`CopyError::Server`] where the server refuses the statement; the session can be used on.
    pub async fn copy_in(&mut self, sql: impl AsRef<[u8]>) -> Result<CopyIn<'_>, CopyError> {
        let mut copy = CopyIn { session: self, message: Vec::new(), rows: None, error: None, ready: true };
        copy.begin(sql.as_ref()).await?;
        Ok(copy)
    }
}

impl CopyIn<'_> {
    async fn begin(&mut self, sql: &[u8]) -> Result<(), CopyError> {
        self.session.send_query(sql).await?;
        self.ready = false;
        self.rows = None;
        self.clear();
        loop {
            while let Some(kind) = self.next_message()? {
                if kind == b'G' {
                    return Ok(());
                }
            }
            if self.ready {
                return Err(match self.error.take() {
                    Some(error) => CopyError::Server(error),
                    None => CopyError::Protocol { what: "a COPY FROM STDIN that asks for no data" },
                });
            }
            self.session.fill().await?;
        }
    }

    /// Ends the data, and goes on with another statement in its place; the number of rows the server took so far.
    ///
    /// # Errors
    /// As [`CopyIn::finish`] and [`RawSession::copy_in`].
    pub async fn go_on_with(&mut self, sql: impl AsRef<[u8]>) -> Result<u64, CopyError> {
        let rows = self.complete().await?;
        self.begin(sql.as_ref()).await?;
        Ok(rows)
    }

    /// Sends text, any cut of it.
    ///
    /// # Errors
    /// [`CopyError::Server`] as soon as the server has refused a row.
    pub async fn send(&mut self, mut text: &[u8]) -> Result<(), CopyError> {
        while !text.is_empty() {
            let room = MESSAGE_BYTES - (self.message.len() - HEADER_BYTES);
            let (now, later) = text.split_at(text.len().min(room));
            self.message.extend_from_slice(now);
            text = later;
            if self.message.len() - HEADER_BYTES == MESSAGE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Ends the data; the number of rows the server took.
    pub async fn finish(mut self) -> Result<u64, CopyError> {
        self.complete().await
    }

    async fn complete(&mut self) -> Result<u64, CopyError> {
        self.flush().await?;
        self.end(b"c\0\0\0\x04").await?;
        match self.error.take() {
            Some(error) => Err(CopyError::Server(error)),
            None => self.rows.ok_or(CopyError::Protocol { what: "a COPY without its row count" }),
        }
    }

    /// Gives up: nothing of what was sent stays, and the session can be used on.
    pub async fn abort(mut self) -> Result<(), CopyError> {
        // CopyFail with an empty reason; what has not gone out is not sent.
        self.end(b"f\0\0\0\x05\0").await
    }

    async fn end(&mut self, message: &[u8]) -> Result<(), CopyError> {
        // After an error the server is out of COPY, and drops what belongs to it.
        if !self.ready {
            self.session.stream.write_all(message).await.map_err(CopyError::Io)?;
            self.session.stream.flush().await.map_err(CopyError::Io)?;
        }
        loop {
            while self.next_message()?.is_some() {}
            if self.ready {
                return Ok(());
            }
            self.session.fill().await?;
        }
    }

    fn clear(&mut self) {
        self.message.clear();
        self.message.extend_from_slice(&[b'd', 0, 0, 0, 0]);
    }

    async fn flush(&mut self) -> Result<(), CopyError> {
        if self.message.len() > HEADER_BYTES {
            let len = (self.message.len() - 1) as u32;
            self.message[1..HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
            self.write().await?;
            self.clear();
        }
        while self.next_message()?.is_some() {}
        match &self.error {
            Some(_) if !self.ready => {
                // The message that ends the failed statement follows at once.
                while !self.ready {
                    self.session.fill().await?;
                    while self.next_message()?.is_some() {}
                }
                Err(self.failure())
            }
            Some(_) => Err(self.failure()),
            None => Ok(()),
        }
    }

    fn failure(&mut self) -> CopyError {
        match self.error.take() {
            Some(error) => CopyError::Server(error),
            None => CopyError::Protocol { what: "a COPY that ended by itself" },
        }
    }

    /// Writes the message, and reads what the server says meanwhile: with neither side reading, both would wait.
    async fn write(&mut self) -> Result<(), CopyError> {
        let Self { session, message, .. } = self;
        let RawSession { stream, buffer, .. } = &mut **session;
        let mut written = 0;
        std::future::poll_fn(|cx| {
            loop {
                let mut chunk = [0; 4096];
                let mut read = ReadBuf::new(&mut chunk);
                match Pin::new(&mut *stream).poll_read(cx, &mut read) {
                    Poll::Ready(Ok(())) if read.filled().is_empty() => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(Ok(())) => {
                        buffer.extend_from_slice(read.filled());
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
                if written == message.len() {
                    return Pin::new(&mut *stream).poll_flush(cx);
                }
                match Pin::new(&mut *stream).poll_write(cx, &message[written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => written += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
        .map_err(CopyError::Io)
    }

    /// Takes the next whole message from the buffer; its kind.
    fn next_message(&mut self) -> Result<Option<u8>, CopyError> {
        let session = &mut *self.session;
        let unread = &session.buffer[session.at..];
        let Some((&[kind, a, b, c, d], rest)) = unread.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let len = (u32::from_be_bytes([a, b, c, d]) as usize)
            .checked_sub(4)
            .ok_or(CopyError::Protocol { what: "a message shorter than its length" })?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        match kind {
            b'E' if self.error.is_none() => self.error = Some(parse_error(body)),
            b'C' => {
                let tag = body.strip_prefix(b"COPY ").and_then(|tail| tail.strip_suffix(&[0]));
                if let Some(rows) = tag.and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()) {
                    self.rows = Some(rows);
                }
            }
            b'Z' => self.ready = true,
            b'E' | b'G' | b'N' | b'S' | b'A' | b'T' | b'D' | b'I' => {}
            _ => return Err(CopyError::Protocol { what: "an unexpected message" }),
        }
        session.at += HEADER_BYTES + len;
        Ok(Some(kind))
    }
}
