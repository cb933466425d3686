//! One request and its response on the wire: what the connection has to know beside what the S3 library sees.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::faults::FaultAction;

const FLUSH_TIME: Duration = Duration::from_millis(50);

/// Shared by the connection, the access check and the request body.
#[derive(Default)]
pub(super) struct Exchange {
    named: Mutex<Option<Named>>,
    fault: Mutex<Option<FaultAction>>,
    pub(super) received_bytes: AtomicU64,
    /// The body that the operation did not read to its end.
    unread: Mutex<Option<Incoming>>,
}

#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) operation: String,
    pub(super) bucket: Option<String>,
    pub(super) key: Option<String>,
}

impl Exchange {
    pub(super) fn name(&self, operation: &str, bucket: Option<String>, key: Option<String>) {
        *lock(&self.named) = Some(Named { operation: operation.to_owned(), bucket, key });
    }

    pub(super) fn named(&self) -> Option<Named> {
        lock(&self.named).clone()
    }

    pub(super) fn set_fault(&self, action: FaultAction) {
        *lock(&self.fault) = Some(action);
    }

    pub(super) fn fault(&self) -> Option<FaultAction> {
        lock(&self.fault).clone()
    }

    /// Reads the rest of the request. A client that is answered while it still sends sees a broken pipe instead of the answer.
    pub(super) async fn drain(&self) {
        let unread = lock(&self.unread).take();
        if let Some(mut body) = unread {
            while let Some(Ok(_)) = body.frame().await {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The request body: counted, and handed back when dropped.
pub(super) struct RequestBody {
    inner: Option<Incoming>,
    exchange: Arc<Exchange>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, exchange: Arc<Exchange>) -> Self {
        Self { inner: Some(inner), exchange }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) {
            *lock(&self.exchange.unread) = Some(inner);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.exchange.received_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A response body that a fault spoils on its way.
pub(super) struct SpoiledBody {
    inner: s3s::Body,
    corrupt: bool,
    /// Bytes until the connection is cut.
    left: Option<u64>,
    /// An error drops what is not yet flushed: without a pause the client would not even see the status.
    pause: Option<Pin<Box<Sleep>>>,
}

impl SpoiledBody {
    pub(super) fn new(inner: s3s::Body, action: Option<&FaultAction>, size_bytes: u64) -> Self {
        let left = matches!(action, Some(FaultAction::Truncate)).then_some(size_bytes / 2);
        let corrupt = matches!(action, Some(FaultAction::CorruptBody));
        Self { inner, corrupt, left, pause: None }
    }
}

impl Body for SpoiledBody {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        if self.left == Some(0) {
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH_TIME)));
            ready!(pause.as_mut().poll(context));
            return Poll::Ready(Some(Err("response cut short".into())));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            },
            end => return Poll::Ready(end),
        };
        let data = if self.corrupt && !data.is_empty() {
            self.corrupt = false;
            let mut spoiled = data.to_vec();
            let middle = spoiled.len() / 2;
            spoiled[middle] ^= 1;
            Bytes::from(spoiled)
        } else {
            data
        };
        let data = match &mut self.left {
            None => data,
            Some(left) => {
                let kept = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= kept as u64;
                data.slice(..kept)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
