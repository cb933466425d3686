//! Serves the store over HTTP: connections, the record of requests, and faults that act on the wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::access::Gate;
use super::exchange::{Exchange, RequestBody, SpoiledBody};
use super::faults::FaultAction;
use super::service::Service;
use super::store::{RequestRecord, Store};
use super::{S3Error, S3Options};

/// A running server. Dropping it ends it as well.
pub struct S3Server {
    address: SocketAddr,
    store: Arc<Store>,
    stopping: Arc<Notify>,
    accepting: JoinHandle<()>,
}

impl S3Server {
    pub async fn start(options: S3Options) -> Result<Self, S3Error> {
        let store = Arc::new(Store::open(&options)?);
        let on_listen = |source| S3Error::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(on_listen)?;
        let address = listener.local_addr().map_err(on_listen)?;

        let mut builder = S3ServiceBuilder::new(Service { store: Arc::clone(&store) });
        builder.set_auth(Gate { store: Arc::clone(&store) });
        builder.set_access(Gate { store: Arc::clone(&store) });
        let stopping = Arc::new(Notify::new());
        let accepting = accept(listener, builder.build(), Arc::clone(&store), Arc::clone(&stopping));
        Ok(Self { address, store, stopping, accepting: tokio::spawn(accepting) })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Ends the server and its connections. Once this returns, another can be started on the same data directory.
    pub async fn stop(mut self) {
        self.stopping.notify_one();
        let _ = (&mut self.accepting).await;
        self.store.close();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, store: Arc<Store>, stopping: Arc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, service.clone(), Arc::clone(&store)));
                }
                // Out of descriptors, or the client went away: the next one may do better.
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopping.notified() => return connections.shutdown().await,
        }
    }
}

async fn connection(stream: TcpStream, service: S3Service, store: Arc<Store>) {
    let _ = stream.set_nodelay(true);
    let serve = service_fn(|request| exchange(request, &service, &store));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    if let Err(error) = http.serve_connection(TokioIo::new(stream), serve).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// What makes hyper drop a connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("connection cut by a programmed failure")]
struct Cut;

async fn exchange(
    request: Request<Incoming>,
    service: &S3Service,
    store: &Store,
) -> Result<Response<SpoiledBody>, s3s::StdError> {
    static REQUEST_IDS: AtomicU64 = AtomicU64::new(1);
    let exchange = Arc::new(Exchange::default());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let at = Timestamp::now();
    let mut request = request.map(|body| s3s::Body::http_body(RequestBody::new(body, Arc::clone(&exchange))));
    request.extensions_mut().insert(Arc::clone(&exchange));

    // The library logs every refusal, even a 404, as an error; here a refusal is an answer like any other.
    let mut result = service.call(request).with_subscriber(NoSubscriber::default()).await;
    // Nor does it pass on a status that an operation chooses, unless as an extension.
    if let Ok(response) = &mut result
        && let Some(status) = response.extensions().get::<StatusCode>().copied()
    {
        *response.status_mut() = status;
    }

    let fault = exchange.fault();
    let cut = matches!(fault, Some(FaultAction::ResetBefore | FaultAction::ResetAfter | FaultAction::Hang(_)));
    let status = match &result {
        Ok(response) if !cut => response.status().as_u16(),
        _ => 0,
    };
    let response_bytes = result.as_ref().ok().and_then(content_length).unwrap_or(0);
    let named = exchange.named();
    let operation = named.as_ref().map(|named| named.operation.clone()).unwrap_or_default();
    tracing::debug!(operation, key = named.as_ref().and_then(|named| named.key.as_deref()), status, "s3");
    if !cut {
        exchange.drain().await;
    }
    let (bucket, key) = named.map(|named| (named.bucket, named.key)).unwrap_or_default();
    let request_bytes = exchange.received_bytes.load(Ordering::Relaxed);
    store.record(RequestRecord { operation, bucket, key, status, at, request_bytes, response_bytes, query });

    if cut {
        return Err(Box::new(Cut));
    }
    let mut response = result.map_err(s3s::StdError::from)?;
    let id = format!("{:016X}", REQUEST_IDS.fetch_add(1, Ordering::Relaxed));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    Ok(response.map(|body| SpoiledBody::new(body, fault.as_ref(), response_bytes)))
}

fn content_length(response: &Response<s3s::Body>) -> Option<u64> {
    let header = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    header.or_else(|| hyper::body::Body::size_hint(response.body()).exact())
}
