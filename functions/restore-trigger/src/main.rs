//! `restore-trigger`: restores backups, once passkey, environment, server and safety backup have been seen.

mod audit;
mod carry_out;

mod guard;
mod handler;
mod lockout;
mod passkey;
mod pins;
mod preview;
mod request;
mod select;

use std::sync::Arc;

use holdfast_shared::config::{RestoreConfig, log_level};
use holdfast_shared::fault::Fault;
use holdfast_shared::notify::Notifier;
use holdfast_shared::store::Store;
use holdfast_shared::telemetry;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

use crate::handler::Function;

const HASH_COMMAND: &str = "hash-passkey";

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    if std::env::args().nth(1).as_deref() == Some(HASH_COMMAND) {
        println!("{}", passkey::hash_standard_input()?);
        return Ok(());
    }
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
    let config = RestoreConfig::from_env().map_err(|error| {
        Fault::from_error("configuration", &error).hint("docs/configuration.md lists every setting")
    })?;
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let store = Store::connect(&aws, config.store.clone()).await?;
    let notifier = Notifier::new(&aws, config.notify.clone());
    Ok(Function { config, aws, store, notifier })
}
