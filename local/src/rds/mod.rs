//! An RDS endpoint for the tests: the Query protocol over a script of what is there and what becomes of it.
//!
//! Nothing runs behind it. Snapshots and servers that are made are `creating` for a scripted number of looks and then
//! `available`; an export task takes one step of its course each time it is described by its identifier, and on
//! `COMPLETE` writes what RDS writes into the bucket. Requests are refused as AWS refuses them as far as the API reference
//! says how; signatures are not looked at, and rights where a test names them. What RDS answers to a second task of one
//! snapshot is nowhere documented: here it is `ExportTaskAlreadyExists`.

mod actions;
mod files;
mod model;
mod query;
mod restore;
mod server;
mod xml;

pub use files::ExportTarget;
pub use model::{Call, Course, ExportedTable, Server, Snapshot, Step, Task};
pub use server::{ACCOUNT_ID, REGION, RdsServer, RdsServerError};
