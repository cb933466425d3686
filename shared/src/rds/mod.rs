//! Amazon RDS: snapshots, export tasks, and servers made of snapshots.

mod client;
mod error;
mod export_task;
mod restore;
mod snapshot;

pub use client::Rds;
pub use error::{RdsError, RdsErrorKind};
pub use export_task::NewExport;
pub use restore::{Moment, NewServer, Server};
