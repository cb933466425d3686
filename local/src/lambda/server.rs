//! The emulator as its owner sees it: functions go in, invocations come out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::function::{Function, RawOutcome};
use super::logs::lock;
use super::queue::{AsyncFailure, EventQueue};
use super::spec::{FunctionSpec, InvokeOptions, InvokeOutcome, LambdaOptions};
use super::{LambdaError, invoke_api};

/// AWS's limits for the payload of a request.
const SYNCHRONOUS_LIMIT_BYTES: usize = 6_291_456;
const ASYNCHRONOUS_LIMIT_BYTES: usize = 1_048_576;

/// A running emulator. Dropping it kills its instances.
pub struct LambdaServer {
    address: SocketAddr,
    core: Arc<Core>,
    serving: JoinHandle<()>,
}

/// What the Invoke API and the owner share.
pub(super) struct Core {
    options: LambdaOptions,
    functions: Mutex<BTreeMap<String, Arc<Function>>>,
    events: Arc<EventQueue>,
}

impl LambdaServer {
    pub async fn start(options: LambdaOptions) -> Result<Self, LambdaError> {
        let failed = |source| LambdaError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let events = Arc::new(EventQueue::new());
        let core = Arc::new(Core { options, functions: Mutex::default(), events });
        let router = invoke_api::router(Arc::clone(&core));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(LambdaServer { address, core, serving })
    }

    /// What `--endpoint-url` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a function. One of the same name is replaced, and its idle instances end, as on a deployment.
    pub fn register(&self, spec: FunctionSpec) {
        let function = Arc::new(Function::new(spec, self.core.options.clone()));
        lock(&self.core.functions).insert(function.spec.name.clone(), function);
    }

    /// One synchronous invocation. A function that fails is an outcome with `function_error`, not an `Err`.
    pub async fn invoke(&self, name: &str, payload: Value) -> Result<InvokeOutcome, LambdaError> {
        self.invoke_with(name, payload, InvokeOptions::default()).await
    }

    pub async fn invoke_with(
        &self,
        name: &str,
        payload: Value,
        options: InvokeOptions,
    ) -> Result<InvokeOutcome, LambdaError> {
        let function = self.core.function(name)?;
        let payload = Bytes::from(payload.to_string());
        if options.asynchronous {
            let request_id = self.core.invoke_later(function, payload, options)?;
            return Ok(InvokeOutcome {
                payload: Value::Null,
                function_error: None,
                log: Vec::new(),
                request_id,
                billed: std::time::Duration::ZERO,
                max_rss_kb: 0,
            });
        }
        self.core.invoke_now(&function, payload, options).await.map(InvokeOutcome::from)
    }

    /// Every line the function's instances have printed; empty for an unknown function.
    pub fn logs(&self, name: &str) -> Vec<String> {
        self.core.function(name).map(|function| function.book.lines()).unwrap_or_default()
    }

    /// The same, and forgets them.
    pub fn take_logs(&self, name: &str) -> Vec<String> {
        self.core.function(name).map(|function| function.book.take()).unwrap_or_default()
    }

    /// SIGKILL to every instance, the busy ones too.
    pub fn kill_instances(&self, name: &str) {
        if let Ok(function) = self.core.function(name) {
            function.kill_instances();
        }
    }

    /// The pids of the function's live instances.
    pub fn instances(&self, name: &str) -> Vec<u32> {
        self.core.function(name).map(|function| function.pids()).unwrap_or_default()
    }

    /// Events that failed for good, oldest first.
    pub fn async_failures(&self) -> Vec<AsyncFailure> {
        self.core.events.failures()
    }

    /// Resolves when no asynchronous event is queued, running or waiting for a retry.
    pub async fn events_settled(&self) {
        self.core.events.idle().await;
    }

    pub async fn stop(self) {
        self.serving.abort();
        for function in self.core.all() {
            function.kill_instances();
        }
    }
}

impl Drop for LambdaServer {
    fn drop(&mut self) {
        self.serving.abort();
        for function in self.core.all() {
            function.kill_instances();
        }
    }
}

impl Core {
    /// By name, by full or partial ARN, with or without a version or an alias (which all mean the same code here).
    pub(super) fn function(&self, reference: &str) -> Result<Arc<Function>, LambdaError> {
        let name = function_name(reference);
        lock(&self.functions).get(name).cloned().ok_or_else(|| LambdaError::NotFound {
            arn: format!("arn:aws:lambda:{}:{}:function:{name}", self.options.region, self.options.account_id),
        })
    }

    pub(super) fn all(&self) -> Vec<Arc<Function>> {
        lock(&self.functions).values().cloned().collect()
    }

    pub(super) async fn invoke_now(
        &self,
        function: &Function,
        payload: Bytes,
        options: InvokeOptions,
    ) -> Result<RawOutcome, LambdaError> {
        check_size(&payload, SYNCHRONOUS_LIMIT_BYTES)?;
        let request_id = options.request_id.unwrap_or_else(new_request_id);
        // Boxed: the future of a whole invocation is large.
        Box::pin(function.invoke(payload, request_id, options.timeout)).await
    }

    /// The request id under which every delivery will run.
    pub(super) fn invoke_later(
        &self,
        function: Arc<Function>,
        payload: Bytes,
        options: InvokeOptions,
    ) -> Result<String, LambdaError> {
        check_size(&payload, ASYNCHRONOUS_LIMIT_BYTES)?;
        let request_id = options.request_id.unwrap_or_else(new_request_id);
        self.events.accept(function, payload, request_id.clone(), options.timeout);
        Ok(request_id)
    }
}

fn check_size(payload: &Bytes, limit_bytes: usize) -> Result<(), LambdaError> {
    let size_bytes = payload.len();
    if size_bytes > limit_bytes { Err(LambdaError::RequestTooLarge { size_bytes, limit_bytes }) } else { Ok(()) }
}

fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// `name`, `name:alias`, `account:function:name`, `arn:aws:lambda:region:account:function:name[:alias]`.
fn function_name(reference: &str) -> &str {
    let after = reference.split_once("function:").map_or(reference, |(_, name)| name);
    after.split(':').next().unwrap_or(after)
}

#[cfg(test)]
mod tests {
    use super::function_name;

    #[test]
    fn a_function_is_found_by_every_form_of_reference() {
        for reference in [
            "backup",
            "backup:live",
            "123456789012:function:backup",
            "arn:aws:lambda:us-east-1:123456789012:function:backup",
            "arn:aws:lambda:us-east-1:123456789012:function:backup:$LATEST",
        ] {
            assert_eq!(function_name(reference), "backup", "{reference}");
        }
    }
}
