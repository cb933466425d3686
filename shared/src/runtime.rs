//! Serves one function to the Lambda runtime.

use std::sync::Arc;

use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

use crate::fault::Fault;

/// Answers invocations until the instance ends.
///
/// A function that could not be wired is served, too: each invocation tells the reason, as an error with a code,
/// where a function that never starts would only be seen to be missing.
pub async fn serve<F, H, R>(function: Result<F, Fault>, handle: H) -> Result<(), lambda_runtime::Error>
where
    F: Send + Sync + 'static,
    H: Fn(Arc<F>, LambdaEvent<Value>) -> R,
    R: Future<Output = Result<Value, Fault>>,
{
    let function = function.map(Arc::new);
    lambda_runtime::run(service_fn(|event: LambdaEvent<Value>| {
        let handled =
            function.as_ref().map(|function| Box::pin(handle(Arc::clone(function), event))).map_err(Fault::clone);
        async move {
            match handled {
                Ok(handled) => handled.await,
                Err(fault) => {
                    tracing::error!(code = fault.code, error = %fault, "the function is not configured");
                    Err(fault)
                }
            }
        }
    }))
    .await
}
