//! One registered function: its pool of instances and the course of an invocation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::LambdaError;
use super::instance::{Ending, Finished, Instance, Reply, Work, describe_exit};
use super::logs::{LogBook, lock};
use super::runtime_api::RESPONSE_LIMIT_BYTES;
use super::spec::{FunctionSpec, InvokeOutcome, LambdaOptions};

pub(super) struct Function {
    pub(super) spec: FunctionSpec,
    pub(super) arn: String,
    pub(super) book: Arc<LogBook>,
    options: LambdaOptions,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Arc<Instance>>,
    busy: HashMap<u32, Arc<Instance>>,
    /// Invocations in flight, those whose instance is still starting included.
    in_flight: u32,
}

/// The result of an invocation before its payload is read as JSON: a custom runtime may answer with any bytes.
pub(super) struct RawOutcome {
    pub(super) payload: Bytes,
    pub(super) failed: bool,
    pub(super) finished: Finished,
    pub(super) request_id: String,
}

/// Counts an invocation for as long as it lives.
struct Permit<'a>(&'a Function);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool).in_flight -= 1;
    }
}

/// Keeps an instance among the busy ones; when its invocation is dropped half way, the process dies with it.
struct Busy<'a> {
    function: &'a Function,
    instance: Arc<Instance>,
    reusable: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut pool = lock(&self.function.pool);
        pool.busy.remove(&self.instance.pid);
        if self.reusable {
            pool.idle.push(Arc::clone(&self.instance));
        } else {
            self.instance.kill();
        }
    }
}

impl Function {
    pub(super) fn new(spec: FunctionSpec, options: LambdaOptions) -> Self {
        let arn = format!("arn:aws:lambda:{}:{}:function:{}", options.region, options.account_id, spec.name);
        let book = Arc::new(LogBook::new(options.echo_logs));
        Function { spec, arn, book, options, pool: Mutex::default() }
    }

    /// Runs one invocation on a warm instance, or on a new one.
    pub(super) async fn invoke(
        &self,
        payload: Bytes,
        request_id: String,
        timeout: Option<Duration>,
    ) -> Result<RawOutcome, LambdaError> {
        let _permit = self.admit()?;
        let timeout = timeout.unwrap_or(self.spec.timeout);
        let arn = self.arn.clone();
        let work = Arc::new(Work { request_id: request_id.clone(), payload, timeout, arn });
        loop {
            let warm = self.take_idle();
            let was_warm = warm.is_some();
            let instance = match warm {
                Some(instance) => instance,
                None => Arc::new(Instance::start(&self.spec, &self.options, &self.book).await?),
            };
            lock(&self.pool).busy.insert(instance.pid, Arc::clone(&instance));
            let mut busy = Busy { function: self, instance, reusable: false };
            let finished = busy.instance.run(Arc::clone(&work)).await;
            if was_warm && matches!(finished.ending, Ending::NeverStarted(_)) {
                // It died while idle: AWS would not have chosen it.
                continue;
            }
            busy.reusable = matches!(finished.ending, Ending::Replied(Reply::Response(_) | Reply::Error(_)));
            let (payload, failed) = payload_of(&finished.ending, &request_id, timeout, busy.instance.init_error());
            return Ok(RawOutcome { payload, failed, finished, request_id });
        }
    }

    fn admit(&self) -> Result<Permit<'_>, LambdaError> {
        let mut pool = lock(&self.pool);
        if let Some(limit) = self.spec.max_concurrency
            && pool.in_flight >= limit
        {
            return Err(LambdaError::TooManyRequests { function: self.spec.name.clone(), limit });
        }
        pool.in_flight += 1;
        Ok(Permit(self))
    }

    fn take_idle(&self) -> Option<Arc<Instance>> {
        let mut pool = lock(&self.pool);
        while let Some(instance) = pool.idle.pop() {
            if instance.is_alive() {
                return Some(instance);
            }
        }
        None
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        let pool = lock(&self.pool);
        let alive = pool.idle.iter().chain(pool.busy.values()).filter(|instance| instance.is_alive());
        alive.map(|instance| instance.pid).collect()
    }

    pub(super) fn kill_instances(&self) {
        let mut pool = lock(&self.pool);
        for instance in pool.idle.drain(..) {
            instance.kill();
        }
        for instance in pool.busy.values() {
            instance.kill();
        }
    }
}

impl From<RawOutcome> for InvokeOutcome {
    fn from(raw: RawOutcome) -> Self {
        let text = || Value::String(String::from_utf8_lossy(&raw.payload).into_owned());
        InvokeOutcome {
            payload: serde_json::from_slice(&raw.payload).unwrap_or_else(|_| text()),
            function_error: raw.failed.then(|| "Unhandled".to_owned()),
            billed: billed(raw.finished.duration),
            log: raw.finished.log,
            request_id: raw.request_id,
            max_rss_kb: raw.finished.max_rss_kb,
        }
    }
}

/// AWS bills whole milliseconds.
pub(super) fn billed(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

/// The payload that AWS hands to the caller, and whether it comes with `X-Amz-Function-Error`.
fn payload_of(ending: &Ending, request_id: &str, timeout: Duration, init_error: Option<Bytes>) -> (Bytes, bool) {
    let exit_error = |how: Option<String>| match how {
        Some(how) => error_object("Runtime.ExitError", request_id, &format!("Runtime exited with error: {how}")),
        None => error_object("Runtime.ExitError", request_id, "Runtime exited without providing a reason"),
    };
    let failure = match ending {
        Ending::Replied(Reply::Response(payload)) => return (payload.clone(), false),
        Ending::Replied(Reply::Error(payload)) => payload.clone(),
        Ending::Replied(Reply::TooLarge) => json!({
            "errorType": "Function.ResponseSizeTooLarge",
            "errorMessage":
                format!("Response payload size exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes)."),
        })
        .to_string()
        .into(),
        Ending::NeverStarted(status) => init_error.unwrap_or_else(|| exit_error(describe_exit(*status))),
        Ending::Exited(status) => exit_error(describe_exit(*status)),
        Ending::OutOfMemory => exit_error(Some("signal: killed".into())),
        Ending::TimedOut => {
            let message = format!("Task timed out after {:.2} seconds", timeout.as_secs_f64());
            error_object("Sandbox.Timedout", request_id, &message)
        }
    };
    (failure, true)
}

fn error_object(error_type: &str, request_id: &str, message: &str) -> Bytes {
    let message = format!("RequestId: {request_id} Error: {message}");
    json!({ "errorType": error_type, "errorMessage": message }).to_string().into()
}
