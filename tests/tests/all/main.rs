//! Flows across functions, on a real PostgreSQL, an S3 server over HTTP and the real function binaries.
//!
//! Stock tools are the judges: what an export wrote is restored with `pg_restore` and compared by `pg_dump` and `psql`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where something is not as expected")]

mod bed;
mod concurrency;
mod connections;
mod contracts;
mod engine;
mod events;
mod extremes;
mod guarded;
mod hostile;
mod imports;
mod matrix;
mod notify;
mod pieces;
mod rds_client;
mod rds_moto;
mod rds_rig;
mod restore;
mod restore_apps;
mod restore_binary;
mod restore_calls;
mod restore_faults;
mod restore_guard;
mod restore_kills;
mod restore_passkey;
mod restore_races;
mod restore_rds;
mod restore_roles;
mod restore_tables;
mod restore_thaw;
mod retention;
mod retention_databases;
mod retention_kill;
mod retention_last;
mod retention_rds;
mod retention_rig;
mod retention_sweep;
mod rights;
mod runs;
mod scene;
mod schema;
mod selection;
mod smoke;
mod snapshot_export;
mod snapshot_export_faults;
mod store_faults;
