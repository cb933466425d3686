//! `restore-trigger`: restores backups, once passkey, environment, server and safety backup have been seen.

mod answer;
mod audit;
mod carry_out;
mod failure;
mod guard;
mod handler;
mod last_time;
mod lockout;
mod passkey;
mod pins;
mod preview;
mod rds;
mod request;
mod restore;
mod resume;
mod select;
mod thaw;
mod waiting;

use std::sync::Arc;

use holdfast_shared::config::{RestoreConfig, log_level};
use holdfast_shared::fault::Fault;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::{runtime, telemetry};

use crate::handler::Function;

const HASH_COMMAND: &str = "hash-passkey";

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    if std::env::args().nth(1).as_deref() == Some(HASH_COMMAND) {
        println!("{}", passkey::hash_standard_input()?);
        return Ok(());
    }
    telemetry::init(env!("CARGO_CRATE_NAME"), log_level());
    runtime::serve(wire().await, async |function: Arc<Function>, event| function.handle(event).await).await
}

async fn wire() -> Result<Function, Fault> {
    let config = RestoreConfig::from_env()?;
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let store = Store::connect(&aws, config.store.clone()).await?;
    let reporter = Reporter::new(&aws, config.notify.clone(), &config.app_name, config.environment.clone());
    Ok(Function { config, aws, store, reporter })
}
