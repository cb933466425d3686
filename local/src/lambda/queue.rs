//! Asynchronous (`Event`) invocations: accepted at once, delivered again under the same request id when they fail.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::LambdaError;
use super::function::Function;
use super::logs::lock;
use super::spec::InvokeOutcome;

/// How long a throttled event waits for its next try. Throttling uses up no retry.
const THROTTLE_DELAY: Duration = Duration::from_millis(50);

/// What AWS would send to the failure destination of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct AsyncFailure {
    pub function: String,
    pub request_id: String,
    pub payload: Value,
    /// Deliveries, the first one included.
    pub attempts: u32,
    /// The error object of the last attempt.
    pub response: Value,
}

/// Shared by all functions of a server.
pub(super) struct EventQueue {
    failures: Mutex<Vec<AsyncFailure>>,
    pending: watch::Sender<usize>,
}

/// Counts an event as pending until it is dropped, also when its task is aborted.
struct Pending(Arc<EventQueue>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.send_modify(|pending| *pending -= 1);
    }
}

impl EventQueue {
    pub(super) fn new() -> Self {
        EventQueue { failures: Mutex::default(), pending: watch::Sender::new(0) }
    }

    /// Takes the event in and delivers it in the background.
    pub(super) fn accept(
        self: &Arc<Self>,
        function: Arc<Function>,
        payload: Bytes,
        request_id: String,
        timeout: Option<Duration>,
    ) {
        self.pending.send_modify(|pending| *pending += 1);
        let pending = Pending(Arc::clone(self));
        tokio::spawn(async move {
            let queue = &pending.0;
            if let Some(failure) = deliver(&function, payload, request_id, timeout).await {
                lock(&queue.failures).push(failure);
            }
        });
    }

    pub(super) fn failures(&self) -> Vec<AsyncFailure> {
        lock(&self.failures).clone()
    }

    /// Resolves when every accepted event has succeeded or used up its retries.
    pub(super) async fn idle(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.pending.subscribe().wait_for(|pending| *pending == 0).await;
    }
}

async fn deliver(
    function: &Function,
    payload: Bytes,
    request_id: String,
    timeout: Option<Duration>,
) -> Option<AsyncFailure> {
    let allowed = u32::from(function.spec.asynchronous_retries) + 1;
    let mut attempts = 0;
    let response = loop {
        let outcome = function.invoke(payload.clone(), request_id.clone(), timeout).await;
        let response = match outcome.map(InvokeOutcome::from) {
            Ok(outcome) if outcome.is_error() => outcome.payload,
            Ok(_) => return None,
            Err(LambdaError::TooManyRequests { .. }) => {
                tokio::time::sleep(THROTTLE_DELAY).await;
                continue;
            }
            Err(error) => Value::String(error.to_string()),
        };
        attempts += 1;
        if attempts == allowed {
            break response;
        }
        tokio::time::sleep(function.spec.retry_delay).await;
    };
    let payload = serde_json::from_slice(&payload).unwrap_or(Value::Null);
    Some(AsyncFailure { function: function.spec.name.clone(), request_id, payload, attempts, response })
}
