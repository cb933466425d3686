//! PostgreSQL: connections, one snapshot shared by many sessions, rows by COPY, and what the catalog knows.

pub mod catalog;
pub mod connect;
pub mod copy;
pub mod copy_binary;
pub mod copy_in;
pub mod credentials;
pub mod one_by_one;
pub mod pg_dump;
pub mod session;
pub mod stream;
mod tls;
