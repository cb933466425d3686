//! A TCP proxy that is slow, silent or broken on demand, to stand in front of PostgreSQL or S3.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const CHUNK_BYTES: usize = 64 << 10;
/// Chunks under way in one direction: bounds memory, and is enough for 40 MB/s at 100 ms.
const CHUNKS_IN_FLIGHT: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
pub struct ProxyOptions {
    /// For each direction of each connection.
    pub bytes_per_second_per_connection: Option<u64>,
    /// Added to each direction. It delays bytes without limiting their rate.
    pub latency: Option<Duration>,
}

/// Resets connections whose server has sent so many bytes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    after_bytes: u64,
    once: bool,
}

/// Stops everything where a client says something.
#[derive(Debug, Clone)]
struct Stop {
    text: Vec<u8>,
    nth: usize,
    passes: bool,
}

/// The connection is to be reset, on both sides.
struct Reset;

/// A running proxy. Dropping it resets its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    target: SocketAddr,
    options: ProxyOptions,
    cut: Mutex<Option<Cut>>,
    stop: Mutex<Option<Stop>>,
    stopped: watch::Sender<bool>,
    refusing: watch::Sender<bool>,
    silent: watch::Sender<bool>,
    /// Counts up: connections older than its value are reset.
    generation: watch::Sender<u64>,
    accepted: AtomicUsize,
    bytes_to_client: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 for `target`.
    pub async fn start(target: SocketAddr, options: ProxyOptions) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let shared = Arc::new(Shared {
            address: listener.local_addr()?,
            target,
            options,
            cut: Mutex::new(None),
            stop: Mutex::new(None),
            stopped: watch::Sender::new(false),
            refusing: watch::Sender::new(false),
            silent: watch::Sender::new(false),
            generation: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
            bytes_to_client: AtomicU64::new(0),
        });
        let listening = tokio::spawn(Arc::clone(&shared).listen(listener));
        Ok(Proxy { shared, listening })
    }

    pub fn addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Resets the first connection on which the server has sent more than `bytes`, counted from that connection's start. Once.
    pub fn cut_after_bytes(&self, bytes: u64) {
        *self.shared.cut() = Some(Cut { after_bytes: bytes, once: true });
    }

    /// The same for every connection, until `heal`.
    pub fn cut_always_after_bytes(&self, bytes: u64) {
        *self.shared.cut() = Some(Cut { after_bytes: bytes, once: false });
    }

    /// Resets every open connection now.
    pub fn cut_all(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Whether new connections are refused, as where nothing listens. Open ones go on.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.send_replace(refusing);
    }

    /// Whether bytes are held back in both directions. Connections are still accepted; nothing is lost.
    pub fn blackhole(&self, silent: bool) {
        self.shared.silent.send_replace(silent);
    }

    /// Stops all connections where a client sends `text` for the n-th time, counted from 1: before it, or where it
    /// `passes`, once the server has answered and before the client hears of it. What is held back there never arrives; [`Proxy::cut_all`] ends it.
    pub fn stop_at(&self, text: &str, nth: usize, passes: bool) {
        self.shared.stopped.send_replace(false);
        *self.shared.stop() = Some(Stop { text: text.as_bytes().to_vec(), nth, passes });
    }

    /// Waits until it has stopped.
    pub async fn stopped(&self) {
        let mut stopped = self.shared.stopped.subscribe();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Ends every fault that is set.
    pub fn heal(&self) {
        *self.shared.cut() = None;
        *self.shared.stop() = None;
        self.refuse(false);
        self.blackhole(false);
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// What servers have sent through the proxy.
    pub fn bytes_to_client(&self) -> u64 {
        self.shared.bytes_to_client.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut_all();
    }
}

impl Shared {
    fn cut(&self) -> MutexGuard<'_, Option<Cut>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) -> MutexGuard<'_, Option<Stop>> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a client's chunk is what is waited for, and whether it is to pass. Statements come in one chunk.
    fn stops(&self, chunk: &[u8]) -> Option<bool> {
        let mut stop = self.stop();
        let wanted = stop.as_mut()?;
        if !chunk.windows(wanted.text.len()).any(|window| window == wanted.text) {
            return None;
        }
        wanted.nth = wanted.nth.saturating_sub(1);
        (wanted.nth == 0).then(|| stop.take()).flatten().map(|stop| stop.passes)
    }

    async fn listen(self: Arc<Self>, first: TcpListener) {
        let mut listener = Some(first);
        let mut refusing = self.refusing.subscribe();
        loop {
            if *refusing.borrow_and_update() {
                // Closed, so that the kernel answers with a refusal.
                listener = None;
                let _ = refusing.wait_for(|refusing| !refusing).await;
            }
            let open = match listener.take() {
                Some(open) => open,
                None => match TcpListener::bind(self.address).await {
                    Ok(bound) => bound,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    }
                },
            };
            tokio::select! {
                accepted = open.accept() => {
                    if let Ok((client, _)) = accepted {
                        self.accepted.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(Arc::clone(&self).serve(client));
                    }
                }
                _ = refusing.changed() => {}
            }
            listener = Some(open);
        }
    }

    async fn serve(self: Arc<Self>, client: TcpStream) {
        let mut generation = self.generation.subscribe();
        let own = *generation.borrow();
        let Ok(server) = TcpStream::connect(self.target).await else {
            let _ = client.set_zero_linger();
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let finished = {
            let answered = AtomicU64::new(0);
            let up = self.pump(from_client, &mut to_server, own, false, &answered);
            let down = self.pump(from_server, &mut to_client, own, true, &answered);
            tokio::select! {
                // Each direction ends on its own: a half-closed connection goes on.
                both = async { tokio::try_join!(up, down) } => both.is_ok(),
                _ = generation.changed() => false,
            }
        };
        if !finished {
            // Linger 0 makes the close a reset, on both sides.
            let _ = to_client.as_ref().set_zero_linger();
            let _ = to_server.as_ref().set_zero_linger();
            // `shutdown`, which dropping a write half does, would send an orderly end first.
            to_client.forget();
            to_server.forget();
        }
    }

    /// Passes one direction on until it ends. `answered` counts what the server has sent, passed on or not.
    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        generation: u64,
        to_client: bool,
        answered: &AtomicU64,
    ) -> Result<(), Reset> {
        let (chunks, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_IN_FLIGHT);
        let latency = self.options.latency.unwrap_or_default();
        let read = async move {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                match from.read(&mut buffer).await {
                    Ok(0) => return Ok(()),
                    Ok(length) => {
                        if to_client {
                            answered.fetch_add(length as u64, Ordering::Relaxed);
                        }
                        if chunks.send((Instant::now() + latency, buffer[..length].to_vec())).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(_) => return Err(Reset),
                }
            }
        };
        let write = async {
            let mut silent = self.silent.subscribe();
            let mut passed: u64 = 0;
            let mut free_at = Instant::now();
            while let Some((due, chunk)) = arriving.recv().await {
                tokio::time::sleep_until(due.max(free_at)).await;
                let _ = silent.wait_for(|silent| !silent).await;
                if *self.generation.borrow() != generation {
                    // Cut while it was silent: what was held back does not arrive now.
                    return Err(Reset);
                }
                if !to_client && let Some(passes) = self.stops(&chunk) {
                    self.silent.send_replace(true);
                    let before = answered.load(Ordering::Relaxed);
                    if passes && to.write_all(&chunk).await.is_err() {
                        return Err(Reset);
                    }
                    while passes && answered.load(Ordering::Relaxed) == before {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    self.stopped.send_replace(true);
                    std::future::pending::<()>().await;
                }
                let allowed = if to_client { self.allowed(passed, chunk.len()) } else { chunk.len() };
                if to.write_all(&chunk[..allowed]).await.is_err() || allowed < chunk.len() {
                    return Err(Reset);
                }
                passed += chunk.len() as u64;
                if to_client {
                    self.bytes_to_client.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
                if let Some(rate) = self.options.bytes_per_second_per_connection {
                    let took = Duration::from_secs_f64(chunk.len() as f64 / rate as f64);
                    free_at = free_at.max(due) + took;
                }
            }
            let _ = to.shutdown().await;
            Ok(())
        };
        tokio::try_join!(read, write).map(drop)
    }

    /// How much of a chunk may pass before the cut.
    fn allowed(&self, passed: u64, chunk: usize) -> usize {
        let mut cut = self.cut();
        let Some(Cut { after_bytes, once }) = *cut else { return chunk };
        if passed + chunk as u64 <= after_bytes {
            return chunk;
        }
        if once {
            *cut = None;
        }
        usize::try_from(after_bytes.saturating_sub(passed)).unwrap_or(chunk)
    }
}
