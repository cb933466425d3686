//! The byte stream under a connection: TCP, Unix socket or TLS; and a handle that lets the stream be taken back
//! from `tokio-postgres` once the session is set up.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! delegate {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// What the server sends before the first `ReadyForQuery` is a few hundred bytes.
const GREETING_LIMIT: usize = 16 * 1024;

struct Lent {
    stream: Option<Stream>,
    /// The first bytes from the server, for [`StreamHandle::backend_pid`].
    greeting: Vec<u8>,
}

/// A stream that is lent to `tokio-postgres`, and can be taken back.
#[derive(Clone)]
pub struct StreamHandle(Arc<Mutex<Lent>>);

impl StreamHandle {
    pub fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Lent { stream: Some(stream), greeting: Vec::new() })))
    }

    /// Takes the stream; whoever still polls the handle sees the connection closed.
    pub fn take_back(&self) -> Option<Stream> {
        self.lock().stream.take()
    }

    /// The process id in the server's `BackendKeyData`; a pooler in between sends one of its own.
    /// Source: PostgreSQL documentation, "Message Formats".
    pub fn backend_pid(&self) -> Option<i32> {
        let lent = self.lock();
        let mut rest = lent.greeting.as_slice();
        while let [kind, a, b, c, d, tail @ ..] = rest {
            let body_len = (u32::from_be_bytes([*a, *b, *c, *d]) as usize).checked_sub(4)?;
            let body = tail.get(..body_len)?;
            if *kind == b'K' {
                return Some(i32::from_be_bytes(body.get(..4)?.try_into().ok()?));
            }
            rest = &tail[body_len..];
        }
        None
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.lock().stream.as_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for StreamHandle {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = self.with(|stream| stream.poll_read(cx, buf));
        let mut lent = self.lock();
        if lent.greeting.len() < GREETING_LIMIT {
            let fresh = &buf.filled()[before..];
            let room = GREETING_LIMIT - lent.greeting.len();
            lent.greeting.extend_from_slice(&fresh[..fresh.len().min(room)]);
        }
        result
    }
}

impl AsyncWrite for StreamHandle {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
