//! What can go wrong with a benchmark.

use std::path::PathBuf;
use std::process::ExitStatus;

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("PostgreSQL")]
    Postgres {
        #[from]
        source: holdfast_local::postgres::PostgresError,
    },
    #[error("the database could not be filled or read")]
    Sql {
        #[from]
        source: tokio_postgres::Error,
    },
    #[error("the S3 server did not start")]
    S3 {
        #[from]
        source: holdfast_local::s3::S3Error,
    },
    #[error("the bucket could not be created")]
    Bucket {
        #[from]
        source: holdfast_local::s3::DiskError,
    },
    #[error("the Lambda endpoint")]
    Lambda {
        #[from]
        source: holdfast_local::lambda::LambdaError,
    },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the upload failed")]
    Upload {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{program} ended with {status}")]
    Program { program: String, status: ExitStatus },
    #[error("the export failed: {answer}")]
    Export { answer: String },
    #[error("the restore failed: {answer}")]
    Restore { answer: String },
    #[error("{name} is not in {directory}; `cargo build --release -p {name}` builds it")]
    NotBuilt { name: String, directory: PathBuf },
    #[error("no contestant is called {name}; there are {known}")]
    UnknownContestant { name: String, known: String },
    #[error("{what} is not there to be read")]
    Missing { what: String },
    #[error("a task of the benchmark panicked")]
    Task {
        #[from]
        source: tokio::task::JoinError,
    },
}

impl BenchError {
    /// For `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
        move |source| BenchError::Io { what: what.into(), source }
    }

    pub fn upload(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        BenchError::Upload { source: Box::new(source) }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
