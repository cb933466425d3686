//! `snapshot-export`: RDS snapshots as Parquet files in the bucket, started, followed to the end, and listed.

mod advance;
mod begin;
mod commit;
mod handler;
mod rds_event;
mod request;
mod runs;

use std::sync::Arc;

use holdfast_shared::config::{SnapshotExportConfig, log_level};
use holdfast_shared::fault::Fault;
use holdfast_shared::rds::Rds;
use holdfast_shared::report::Reporter;
use holdfast_shared::store::Store;
use holdfast_shared::{runtime, telemetry};

use crate::handler::Function;

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    telemetry::init(env!("CARGO_CRATE_NAME"), log_level());
    runtime::serve(wire().await, async |function: Arc<Function>, event| function.handle(event).await).await
}

async fn wire() -> Result<Function, Fault> {
    let config = SnapshotExportConfig::from_env()?;
    let aws = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let store = Store::connect(&aws, config.store.clone()).await?;
    let reporter = Reporter::new(&aws, config.notify.clone(), &config.app_name, config.environment.clone());
    Ok(Function { config, store, reporter, rds: Rds::new(&aws) })
}
