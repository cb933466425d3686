//! Real PostgreSQL servers for tests and the demo: found on the machine, started in a moment, gone afterwards.

mod cluster;
mod datadir;
mod error;
mod installation;
mod standby;
mod unprivileged;

pub use cluster::{Cluster, ClusterOptions, StopMode};
pub use error::PostgresError;
pub use installation::{CLIENT_TOOLS, Installation, SERVER_TOOLS};
