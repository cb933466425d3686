//! The lines that a function's instances print.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Bounds the memory of a stack that is left running for days.
const KEPT_LINES: usize = 100_000;

/// Locks even after a panic elsewhere: what the emulator guards is never left half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All lines of one function, oldest first.
#[derive(Debug, Default)]
pub(super) struct LogBook {
    lines: Mutex<VecDeque<String>>,
    pub(super) echo: bool,
}

impl LogBook {
    pub(super) fn new(echo: bool) -> Self {
        LogBook { lines: Mutex::default(), echo }
    }

    pub(super) fn push(&self, function: &str, line: String) {
        if self.echo {
            eprintln!("[{function}] {line}");
        }
        let mut lines = lock(&self.lines);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(super) fn lines(&self) -> Vec<String> {
        lock(&self.lines).iter().cloned().collect()
    }

    pub(super) fn take(&self) -> Vec<String> {
        lock(&self.lines).drain(..).collect()
    }
}

/// What one instance printed since its last invocation ended, and a way to know that all of it has been read.
#[derive(Debug)]
pub(super) struct InstanceLog {
    current: Arc<Mutex<Vec<String>>>,
    pumps: Vec<mpsc::Sender<oneshot::Sender<()>>>,
}

impl InstanceLog {
    pub(super) fn new() -> Self {
        InstanceLog { current: Arc::default(), pumps: Vec::new() }
    }

    /// Reads `stream` line by line until it ends. Bytes that are not UTF-8 are replaced.
    pub(super) fn follow(
        &mut self,
        function: &str,
        book: &Arc<LogBook>,
        stream: impl AsyncRead + Unpin + Send + 'static,
    ) {
        let (flush, mut flushes) = mpsc::channel::<oneshot::Sender<()>>(1);
        self.pumps.push(flush);
        let (current, book, function) = (Arc::clone(&self.current), Arc::clone(book), function.to_owned());
        tokio::spawn(async move {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            loop {
                tokio::select! {
                    // Lines first: a flush is answered once nothing is left to read.
                    biased;
                    read = reader.read_until(b'\n', &mut line) => {
                        if !matches!(read, Ok(1..)) {
                            break;
                        }
                        let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                        line.clear();
                        lock(&current).push(text.clone());
                        book.push(&function, text);
                    }
                    Some(done) = flushes.recv() => {
                        let _ = done.send(());
                    }
                }
            }
        });
    }

    /// Takes the lines of the invocation that has just ended.
    pub(super) async fn take(&self) -> Vec<String> {
        for pump in &self.pumps {
            let (done, flushed) = oneshot::channel();
            if pump.send(done).await.is_err() {
                // It has ended, and has read everything.
                continue;
            }
            // A channel that is closed just now may keep the question for as long as there are senders, and never answer it.
            tokio::select! {
                _ = flushed => {}
                () = pump.closed() => {}
            }
        }
        std::mem::take(&mut *lock(&self.current))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{InstanceLog, LogBook};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_lines_of_a_process_that_ends_right_now_are_taken() {
        let book = Arc::new(LogBook::default());
        for round in 0..20_000 {
            let mut log = InstanceLog::new();
            let (end, stream) = tokio::io::duplex(16);
            log.follow("f", &book, stream);
            let ending = tokio::spawn(async move { drop(end) });
            let taken = tokio::time::timeout(Duration::from_secs(5), log.take()).await;
            assert!(taken.is_ok(), "round {round}");
            ending.await.unwrap();
        }
    }
}
