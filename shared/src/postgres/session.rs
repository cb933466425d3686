//! What every session of a backup has in common: its settings, and what its errors mean to the operator.

use std::time::Duration;

pub use tokio_postgres::{Client, Error as QueryError};

use crate::fault::Fault;
use crate::postgres::copy::CopyError;

/// SQLSTATE `lock_not_available`.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";

const ROW_TOO_LARGE_HINT: &str = "the server cannot put a row of more than 1 GB into text: make it smaller, or leave the rows out by EXCLUDE_TABLE_DATA";

/// The settings that the text of a row depends on, as `pg_dump` has them (`setup_connection` in `pg_dump.c`), and a
/// fixed time zone and byte format, so that a fingerprint means the same on every server.
pub fn session_settings(server_major: u32, lock_timeout: Duration) -> String {
    let mut settings = format!(
        "SET search_path = ''; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3;
         SET bytea_output = 'hex'; SET timezone = 'UTC'; SET synchronize_seqscans = off; SET row_security = off;
         SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = {};
         SET standard_conforming_strings = on; SET xmloption = 'content'; SET quote_all_identifiers = off;
         SET jit = off; SET max_parallel_workers_per_gather = 0;",
        lock_timeout.as_millis()
    );
    if server_major >= 14 {
        // Without TID range scans each piece would read the whole table.
        settings.push_str("SET idle_session_timeout = 0; SET enable_tidscan = on;");
    }
    if server_major >= 17 {
        settings.push_str("SET transaction_timeout = 0;");
    }
    settings
}

/// The SQLSTATE of a failed query, where the server sent one.
pub fn sql_state(error: &QueryError) -> Option<&str> {
    error.code().map(tokio_postgres::error::SqlState::code)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
/// What a failed query means to the operator.
pub fn query_fault(error: QueryError) -> Fault {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("57P01" | "57P02" | "57P03") => Fault::from_error("database-connection-lost", &error)
            .hint("the server was stopped; the next run starts afresh"),
        None => Fault::from_error("database-connection-lost", &error).hint("the next run starts afresh"),
        Some(_) => Fault::from_error("database-query-failed", &error),
    }
}

/// What a failed COPY means to the operator.
pub fn copy_fault(error: &CopyError, table: &str) -> Fault {
    let (code, hint) = match (error, error.code()) {
        (_, Some(LOCK_NOT_AVAILABLE)) => {
            ("table-locked", Some("raise LOCK_TIMEOUT_MS, or end the session that holds the lock"))
        }
        (_, Some("57P01" | "57P02" | "57P03")) => {
            ("database-connection-lost", Some("the server was stopped; the next run starts afresh"))
        }
        (_, Some("40001" | "57014")) => (
            "database-query-cancelled",
            Some("on a standby: raise max_standby_streaming_delay or set hot_standby_feedback"),
        ),
        (_, Some("42501")) => ("table-not-readable", Some("grant SELECT on it to the exporting role")),
        (_, Some("54000" | "53200")) => ("row-too-large", Some(ROW_TOO_LARGE_HINT)),
        (CopyError::Server(error), _) if error.message.starts_with("invalid memory alloc request size") => {
            ("row-too-large", Some(ROW_TOO_LARGE_HINT))
        }
        (CopyError::Server(_), _) => ("database-query-failed", None),
        (CopyError::Io(_), _) => ("database-connection-lost", Some("the next run starts afresh")),
        (CopyError::Protocol { .. } | CopyError::RowCount { .. }, _) => ("database-protocol", None),
    };
    let fault = Fault::from_error(code, error).with_context(&format!("reading {table}"));
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}
