//! What every Holdfast function shares: values (`domain`), decisions (`plan`), and the engines that carry plans out.

pub mod archive;
pub mod config;
pub mod domain;
pub mod event;
pub mod fault;
pub mod notify;
pub mod plan;
pub mod postgres;
#[cfg(feature = "rds")]
pub mod rds;
pub mod report;
pub mod request;
pub mod runtime;
pub mod secret;
pub mod store;
pub mod telemetry;
