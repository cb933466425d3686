//! `scheduled-export`: exports a PostgreSQL database to S3 as one standard dump.

mod assembly;
mod buffers;
mod carry_out;
mod claim;
mod commit;
mod handler;
mod keeper;
mod large_objects;
mod observe;
mod queue;
mod read;
mod request;
mod worker;
mod writer;

use std::sync::Arc;

use holdfast_shared::config::{ExportConfig, log_level};
use holdfast_shared::fault::Fault;
use holdfast_shared::notify::Notifier;
use holdfast_shared::store::Store;
use holdfast_shared::telemetry;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

use crate::handler::Function;

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    telemetry::init(env!("CARGO_CRATE_NAME"), log_level());
    // A bad configuration is told by each invocation, as an error with a code, not by a function that never starts.
    let function = Arc::new(wire().await);
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| {
        let function = Arc::clone(&function);
        async move {
            match function.as_ref() {
                Ok(function) => function.handle(event).await,
                Err(fault) => {
                    tracing::error!(code = fault.code, error = %fault, "the function is not configured");
                    Err(fault.clone())
                }
            }
        }
    }))
    .await
}

async fn wire() -> Result<Function, Fault> {
    let config = ExportConfig::from_env().map_err(|error| {
        Fault::from_error("configuration", &error).hint("docs/configuration.md lists every setting")
    })?;
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let store = Store::connect(&aws, config.store.clone()).await?;
    let notifier = Notifier::new(&aws, config.notify.clone());
    Ok(Function { config, aws, store, notifier })
}
