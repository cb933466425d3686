//! What can go wrong around a PostgreSQL server of our own.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no PostgreSQL {what} on this machine; looked in {looked_in:?}. `make setup` installs one, `scripts/setup-tests.sh` the others"
    )]
    NotInstalled { what: String, looked_in: Vec<PathBuf> },
    #[error("cannot {action} {path}")]
    Files {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {program}")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {output}")]
    Failed { program: PathBuf, output: String },
    #[error("PostgreSQL {major} did not become ready within {seconds} s; its log ends: {log}")]
    NotReady { major: u16, seconds: u64, log: String },
    #[error("PostgreSQL {major} did not start; its log ends: {log}")]
    DidNotStart { major: u16, log: String },
    #[error("the server is not running")]
    NotRunning,
    #[error("cannot signal the server")]
    Signal {
        #[source]
        source: io::Error,
    },
    #[error("cannot run SQL on the server")]
    Sql {
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`")]
    NoUnprivilegedUser,
    #[error("a worker thread ended early")]
    Interrupted,
}

impl PostgresError {
    /// For `map_err` on file operations.
    pub(super) fn files(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| PostgresError::Files { action, path, source }
    }
}
