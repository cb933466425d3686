//! Failures that a test programs at a chosen call: errors, cut connections, delays, spoiled bodies.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultAction {
    /// Answers with this status and error code; the operation is not executed.
    Status { status: u16, code: String },
    /// Cuts the connection; the operation is not executed.
    ResetBefore,
    /// Executes the operation and cuts the connection before the response: a lost response.
    ResetAfter,
    /// Waits, then cuts the connection; the operation is not executed.
    Hang(Duration),
    /// Waits, then goes on as if nothing had happened.
    Delay(Duration),
    /// HTTP 200 with an `<Error>` body, as CompleteMultipartUpload and CopyObject can answer; the operation is not executed.
    ErrorIn200 { code: String },
    /// Flips one bit of the response body.
    CorruptBody,
    /// Sends half of the response body and cuts the connection.
    Truncate,
}

#[derive(Debug, Clone)]
pub struct Fault {
    /// The S3 operation's name, such as `UploadPart`.
    pub operation: &'static str,
    /// The first matching call to hit, counted from now; the next call is 1.
    pub nth: u64,
    /// How many matching calls to hit in a row.
    pub times: u64,
    pub key_contains: Option<String>,
    pub action: FaultAction,
}

impl Fault {
    /// Hits the next call of `operation`.
    pub fn next(operation: &'static str, action: FaultAction) -> Self {
        Self { operation, nth: 1, times: 1, key_contains: None, action }
    }

    /// Hits only the `nth` call of `operation` from now.
    pub fn nth(operation: &'static str, nth: u64, action: FaultAction) -> Self {
        Self { nth, ..Self::next(operation, action) }
    }

    fn matches(&self, operation: &str, key: Option<&str>) -> bool {
        self.operation == operation
            && self.key_contains.as_ref().is_none_or(|part| key.is_some_and(|key| key.contains(part.as_str())))
    }
}

/// The programmed failures. Each keeps its own count of matching calls.
#[derive(Debug, Default)]
pub struct Faults {
    programmed: Mutex<Vec<Programmed>>,
}

#[derive(Debug)]
struct Programmed {
    fault: Fault,
    seen: u64,
}

impl Faults {
    pub fn push(&self, fault: Fault) {
        self.lock().push(Programmed { fault, seen: 0 });
    }

    /// Hits every call of `operation` until cleared.
    pub fn always(&self, operation: &'static str, action: FaultAction) {
        self.push(Fault { times: u64::MAX, ..Fault::next(operation, action) });
    }

    /// Answers every call of `operation` with AccessDenied until cleared.
    pub fn deny(&self, operation: &'static str) {
        self.always(operation, FaultAction::Status { status: 403, code: "AccessDenied".into() });
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Faults that have not hit as often as they were asked to: a test that programmed one can prove that it was met.
    pub fn pending(&self) -> usize {
        self.lock().iter().filter(|p| p.seen < p.fault.nth.saturating_add(p.fault.times).saturating_sub(1)).count()
    }

    /// Counts one call, and says what befalls it. Every matching fault counts it; the first that hits decides.
    pub(super) fn strike(&self, operation: &str, key: Option<&str>) -> Option<FaultAction> {
        let mut hit = None;
        for programmed in self.lock().iter_mut().filter(|p| p.fault.matches(operation, key)) {
            programmed.seen += 1;
            let fault = &programmed.fault;
            if programmed.seen >= fault.nth && programmed.seen - fault.nth < fault.times && hit.is_none() {
                hit = Some(fault.action.clone());
            }
        }
        hit
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Programmed>> {
        self.programmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
