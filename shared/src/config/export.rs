//! Settings of `scheduled-export`.

use std::path::PathBuf;
use std::time::Duration;

use crate::archive::codec::Compression;
use crate::config::common::{
    DatabaseConfig, Deployment, NotifyConfig, StoreConfig, database_config, default_workers, deployment, memory_mb,
};
use crate::config::reader::{ConfigError, Reader};
use crate::config::settings;
use crate::domain::Environment;
use crate::domain::manifest::Selection;
use crate::plan::export::{MIB, MIN_PART_SIZE_BYTES};

settings! { EXPORT_SETTINGS {
    PG_DUMP = "PG_DUMP", "pg_dump", "The pg_dump to run; its major version has to be the server's or later.";
    LOCK_TIMEOUT_MS = "LOCK_TIMEOUT_MS", "10000", "Longest wait for a table lock, in milliseconds.";
    WORKERS = "WORKERS", "0", "Parallel COPY streams, 1 to 32; 0: two for each vCPU the function has, at most 8.";
    PART_SIZE_BYTES = "PART_SIZE_BYTES", "8388608", "Size at which an upload part is cut; at least 5 MiB.";
    COMPRESSION = "COMPRESSION", "auto", "zstd:LEVEL, gzip:LEVEL, none, or auto: zstd for servers from 16 on, gzip before.";
    INCLUDE_TABLES = "INCLUDE_TABLES", "", "Comma-separated patterns schema.table with *: only these tables.";
    EXCLUDE_TABLES = "EXCLUDE_TABLES", "", "Patterns of tables to leave out.";
    EXCLUDE_TABLE_DATA = "EXCLUDE_TABLE_DATA", "", "Patterns of tables whose definition is exported without rows.";
    DEADLINE_MARGIN_SECONDS = "DEADLINE_MARGIN_SECONDS", "20", "How long before the function's timeout an unfinished export is given up.";
}}

#[derive(Debug, Clone)]
pub struct ExportConfig {
    pub environment: Environment,
    pub app_name: String,
    pub store: StoreConfig,
    pub database: DatabaseConfig,
    pub pg_dump: PathBuf,
    pub lock_timeout: Duration,
    pub workers: usize,
    pub part_size_bytes: u64,
    /// What the buffers may hold, all workers together.
    pub buffer_memory_bytes: u64,
    /// `None`: chosen by the server's version.
    pub compression: Option<Compression>,
    pub selection: Selection,
    pub notify: NotifyConfig,
    pub deadline_margin: Duration,
}

impl ExportConfig {
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { lookup, problems: Vec::new() };
        let Deployment { environment, app_name, store, notify } = deployment(&mut reader);
        let memory_mb = memory_mb(&reader);
        let database = database_config(&mut reader);
        let compression = match reader.optional(COMPRESSION).as_deref() {
            None | Some("auto") => None,
            Some(text) => reader.parse(COMPRESSION, text),
        };
        let workers = match reader.number(WORKERS, 0..=32) as usize {
            0 => default_workers(memory_mb),
            workers => workers,
        };
        let part_size_bytes = reader.number(PART_SIZE_BYTES, MIN_PART_SIZE_BYTES..=1024 * MIB);
        let config = Self {
            app_name,
            pg_dump: PathBuf::from(reader.required(PG_DUMP)),
            lock_timeout: Duration::from_millis(reader.number(LOCK_TIMEOUT_MS, 1..=3_600_000)),
            workers,
            part_size_bytes,
            // Enough to keep the uploads busy; the rest of the function's memory is the runtime's, the codecs'
            // and pg_dump's.
            buffer_memory_bytes: (memory_mb * MIB / 2).min(workers as u64 * 6 * part_size_bytes),
            compression,
            selection: Selection {
                include: reader.patterns(INCLUDE_TABLES),
                exclude: reader.patterns(EXCLUDE_TABLES),
                exclude_data: reader.patterns(EXCLUDE_TABLE_DATA),
            },
            notify,
            deadline_margin: Duration::from_secs(reader.number(DEADLINE_MARGIN_SECONDS, 1..=600)),
            environment: match environment {
                Some(environment) if reader.problems.is_empty() => environment,
                _ => return Err(ConfigError { problems: reader.problems }),
            },
            store,
            database,
        };
        if reader.problems.is_empty() { Ok(config) } else { Err(ConfigError { problems: reader.problems }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ObjectChecksum;

    fn config(pairs: &[(&str, &str)]) -> Result<ExportConfig, ConfigError> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ExportConfig::from_lookup(&move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    const MINIMAL: [(&str, &str); 3] =
        [("BUCKET", "b"), ("ENVIRONMENT", "production"), ("DATABASE_URL", "postgres://u@h/d")];

    #[test]
    fn three_settings_are_enough() {
        let config = config(&MINIMAL).unwrap();
        assert_eq!((config.workers, config.compression, config.part_size_bytes), (2, None, 8 * MIB));
        assert_eq!(config.store.checksum, ObjectChecksum::Crc64Nvme);
        assert!(config.store.unsigned_payload());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error = config(&[
            ("ENVIRONMENT", "Prod"),
            ("WORKERS", "99"),
            ("COMPRESSION", "lz77"),
            ("S3_ENDPOINT_URL", "minio:9000"),
            ("INCLUDE_TABLES", "public.*,.x"),
            ("LOCK_TIMEOUT_MS", "soon"),
            ("NOTIFY_ON_SUCCESS", "yes"),
            ("LOG_LEVEL", "loud"),
        ])
        .unwrap_err();
        for name in [
            "ENVIRONMENT",
            "WORKERS",
            "COMPRESSION",
            "S3_ENDPOINT_URL",
            "INCLUDE_TABLES",
            "LOCK_TIMEOUT_MS",
            "NOTIFY_ON_SUCCESS",
            "LOG_LEVEL",
            "BUCKET",
            "DATABASE_URL",
        ] {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name} in {error}");
        }
    }

    #[test]
    fn empty_means_not_set_and_sources_exclude_each_other() {
        let with = |more: &[(&str, &str)]| config(&[&MINIMAL[..], more].concat());
        assert!(with(&[("DATABASE_SECRET_ARN", ""), ("COMPRESSION", "")]).is_ok());
        assert!(with(&[("DATABASE_SECRET_ARN", "arn:x")]).unwrap_err().to_string().contains("only one of"));
        let iam = config(&[("BUCKET", "b"), ("ENVIRONMENT", "e"), ("DATABASE_AUTH", "iam")]).unwrap_err();
        assert!(iam.to_string().contains("DATABASE_HOST"));
    }

    #[test]
    fn payloads_are_signed_on_plain_http_to_other_machines() {
        let endpoint =
            |url| config(&[&MINIMAL[..], &[("S3_ENDPOINT_URL", url)]].concat()).unwrap().store.unsigned_payload();
        assert!(!endpoint("http://minio.internal:9000"));
        assert!(endpoint("http://127.0.0.1:9000") && endpoint("https://minio.internal"));
    }

    #[test]
    fn the_url_is_not_printed() {
        let config =
            config(&[("BUCKET", "b"), ("ENVIRONMENT", "e"), ("DATABASE_URL", "postgres://u:hunter2@h/d")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
