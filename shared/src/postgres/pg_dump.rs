//! Gets a complete table of contents from `pg_dump` on our snapshot, and stops it before it dumps data.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::archive::toc::{Toc, TocError};
use crate::domain::manifest::Selection;
use crate::fault::Fault;
use crate::postgres::connect::{SslMode, Target};

/// What is kept of `pg_dump`'s own messages.
const STDERR_LIMIT: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum PgDumpError {
    #[error("{program:?} cannot be started")]
    NotFound {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{program:?} does not tell its version: {output:?}")]
    NoVersion { program: PathBuf, output: String },
    #[error(
        "pg_dump {pg_dump} cannot dump a server of version {server}: it has to be of the same or a later major version"
    )]
    TooOld { pg_dump: String, server: String },
    #[error("pg_dump failed: {message}")]
    Failed { message: String },
    #[error("pg_dump's table of contents cannot be read")]
    Toc(#[source] TocError),
    #[error("reading from pg_dump failed")]
    Io(#[source] std::io::Error),
}

/// A `pg_dump` and its version.
#[derive(Debug, Clone)]
pub struct PgDump {
    program: PathBuf,
    /// Such as `18.4`.
    pub version: String,
    pub major: u32,
}

impl PgDump {
    /// Asks a program for its version (`pg_dump (PostgreSQL) 15.18 (Debian …)`).
    pub async fn find(program: &Path) -> Result<Self, PgDumpError> {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| PgDumpError::NotFound { program: program.to_owned(), source })?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = text.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(major) if output.status.success() => Ok(Self { program: program.to_owned(), version, major }),
            _ => Err(PgDumpError::NoVersion { program: program.to_owned(), output: text }),
        }
    }

    /// # Errors
    /// [`PgDumpError::TooOld`] for a server of a later major version.
    pub fn check_server(&self, server_major: u32, server_version: &str) -> Result<(), PgDumpError> {
        if self.major >= server_major {
            Ok(())
        } else {
            Err(PgDumpError::TooOld { pg_dump: self.version.clone(), server: server_version.to_owned() })
        }
    }

    /// Starts a dump on an exported snapshot and reads its head.
    ///
    /// In custom format to a pipe the table of contents comes first and is complete. The process holds its locks
    /// until [`RunningDump::stop`].
    pub async fn table_of_contents(
        &self,
        target: &Target,
        snapshot: &str,
        selection: &Selection,
        lock_timeout_ms: u64,
    ) -> Result<(Toc, RunningDump), PgDumpError> {
        let mut command = Command::new(&self.program);
        command
            .args(["--format=custom", "--compress=0", "--no-password"])
            .arg(format!("--snapshot={snapshot}"))
            .arg(format!("--lock-wait-timeout={lock_timeout_ms}"));
        for pattern in &selection.include {
            command.arg(format!("--table={}", pattern.for_pg_dump()));
        }
        for pattern in &selection.exclude {
            command.arg(format!("--exclude-table={}", pattern.for_pg_dump()));
        }
        for pattern in &selection.exclude_data {
            command.arg(format!("--exclude-table-data={}", pattern.for_pg_dump()));
        }
        connection_environment(&mut command, target);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);

        let not_found = |source| PgDumpError::NotFound { program: self.program.clone(), source };
        let mut child = command.spawn().map_err(not_found)?;
        let stdout = child.stdout.take().ok_or_else(|| PgDumpError::Io(std::io::ErrorKind::BrokenPipe.into()))?;
        let stdout = stdout.into_owned_fd().map_err(PgDumpError::Io)?;
        let stderr = child.stderr.take();
        let messages = tokio::spawn(async move {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                let _ = stderr.take(STDERR_LIMIT).read_to_end(&mut text).await;
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        let reader = std::fs::File::from(stdout);
        let (head, reader) = tokio::task::spawn_blocking(move || {
            let mut reader = BufReader::with_capacity(64 * 1024, reader);
            (Toc::read(&mut reader), reader)
        })
        .await
        .map_err(|panic| PgDumpError::Io(std::io::Error::other(panic)))?;
        match head {
            Ok((toc, _)) => Ok((toc, RunningDump { child, _stdout: reader })),
            // It ended before the head was whole: its own words say why.
            Err(error) if error.is_truncated() => {
                let status = child.wait().await.map_err(PgDumpError::Io)?;
                let message = messages.await.unwrap_or_default();
                let message = if message.is_empty() { format!("it ended with {status}") } else { message };
                Err(PgDumpError::Failed { message })
            }
            Err(error) => Err(PgDumpError::Toc(error)),
        }
    }
}

/// A `pg_dump` that has written its table of contents and waits on a full pipe, or dumps into the void.
pub struct RunningDump {
    child: Child,
    /// Kept open: closed, it would make `pg_dump` fail while its locks are still wanted.
    _stdout: BufReader<std::fs::File>,
}

impl RunningDump {
    /// Ends the process; its server process ends when it finds the connection closed.
    pub async fn stop(mut self) {
        // It may be through already, with a small database.
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }
}

/// The connection by libpq's environment variables: a password on the command line is seen by all.
fn connection_environment(command: &mut Command, target: &Target) {
    for variable in [
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGOPTIONS",
        "PGCLIENTENCODING",
        "PGHOSTADDR",
        "PGSSLMODE",
        "PGSSLROOTCERT",
        "PGPASSFILE",
        "PGPASSWORD",
        "PGDATABASE",
    ] {
        command.env_remove(variable);
    }
    command
        .env("PGHOST", &target.host)
        .env("PGPORT", target.port.to_string())
        .env("PGUSER", &target.user)
        .env("PGDATABASE", &target.database)
        .env("PGAPPNAME", "holdfast pg_dump")
        .env("PGCONNECT_TIMEOUT", "10");
    if let Some(password) = &target.password {
        command.env("PGPASSWORD", password.expose());
    }
    if !target.host.starts_with('/') {
        command.env("PGSSLMODE", target.ssl_mode.as_str());
    }
    if let (SslMode::VerifyFull, Some(path)) = (target.ssl_mode, &target.ca_bundle) {
        command.env("PGSSLROOTCERT", path);
    }
}

impl From<PgDumpError> for Fault {
    fn from(error: PgDumpError) -> Self {
        let fault = |code| Self::from_error(code, &error);
        match &error {
            PgDumpError::NotFound { .. } | PgDumpError::NoVersion { .. } => fault("pg-dump-missing")
                .hint("set PG_DUMP to a pg_dump, in Lambda the pg-client layer's /opt/bin/pg_dump"),
            PgDumpError::TooOld { .. } => {
                fault("pg-dump-too-old").hint("build the pg-client layer for the server's major version or a later one")
            }
            PgDumpError::Failed { .. } => fault("pg-dump-failed"),
            PgDumpError::Toc(_) | PgDumpError::Io(_) => fault("pg-dump-unreadable"),
        }
    }
}
