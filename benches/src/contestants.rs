//! The contestants of the race: each reads the whole database once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use holdfast_local::postgres::Installation;
use serde::Serialize;

use crate::database::{Content, Relation, Server};
use crate::error::BenchError;
use crate::export::{self, Exporter};
use crate::measure::{Measured, tree_cpu_seconds};
use crate::sink::{Sink, own_command};

/// Tables smaller than this are not worth two streams.
const SPLIT_PAGES: u64 = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contestant {
    /// `pg_dump -Fc` piped to S3, with this `--compress`, or its default.
    PgDump { compress: Option<String> },
    /// `pg_dump -Fd -j 2` to a local directory.
    PgDumpDirectory,
    /// Every row over two connections, and nothing done with it.
    Copy,
    /// `zstd -1` on the COPY text: only its CPU time counts.
    Zstd,
    /// This export with two workers, with this COMPRESSION.
    Export { compression: String },
}

/// What one run cost.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    pub wall_seconds: f64,
    pub client_cpu_seconds: f64,
    /// Of the process that takes `pg_dump`'s output to S3.
    pub uploader_cpu_seconds: Option<f64>,
    pub server_cpu_seconds: f64,
    pub s3_cpu_seconds: Option<f64>,
    pub peak_bytes: u64,
    pub stored_bytes: Option<u64>,
    /// COPY text read, where the contestant tells.
    pub text_bytes: Option<u64>,
}

/// What all contestants run against.
pub struct Arena<'a> {
    pub server: &'a Server,
    pub content: Content,
    pub relations: Vec<Relation>,
    pub client: &'a Installation,
    pub exporter: &'a Exporter,
    pub scratch: &'a Path,
}

impl Contestant {
    /// In the order in which they run.
    pub fn usual() -> Vec<Contestant> {
        let pg_dump = |compress: &str| Contestant::PgDump { compress: Some(compress.to_owned()) };
        let export = |compression: &str| Contestant::Export { compression: compression.to_owned() };
        vec![
            Contestant::PgDump { compress: None },
            export("zstd:1"),
            pg_dump("zstd:1"),
            export("gzip:1"),
            Contestant::PgDumpDirectory,
            export("zstd:3"),
            pg_dump("zstd:3"),
            Contestant::Copy,
            Contestant::Zstd,
        ]
    }

    pub fn name(&self) -> String {
        match self {
            Contestant::PgDump { compress: None } => "pg_dump-gzip".to_owned(),
            Contestant::PgDump { compress: Some(compress) } => format!("pg_dump-{compress}"),
            Contestant::PgDumpDirectory => "pg_dump-directory".to_owned(),
            Contestant::Copy => "copy".to_owned(),
            Contestant::Zstd => "zstd".to_owned(),
            Contestant::Export { compression } => format!("export-{compression}"),
        }
    }

    /// One of the usual, or `pg_dump-` or `export-` with any compression.
    pub fn parse(name: &str) -> Option<Contestant> {
        if let Some(usual) = Self::usual().into_iter().find(|usual| usual.name() == name) {
            return Some(usual);
        }
        let compression = |text: &str| text == "none" || text.starts_with("gzip:") || text.starts_with("zstd:");
        if let Some(compress) = name.strip_prefix("pg_dump-").filter(|text| compression(text)) {
            return Some(Contestant::PgDump { compress: Some(compress.to_owned()) });
        }
        let own = name.strip_prefix("export-").filter(|text| compression(text))?;
        Some(Contestant::Export { compression: own.to_owned() })
    }

    pub async fn run(&self, arena: &Arena<'_>) -> Result<Sample, BenchError> {
        let postmaster = arena.server.postmaster()?;
        let before = tree_cpu_seconds(postmaster);
        let mut sample = match self {
            Contestant::PgDump { compress } => arena.pg_dump_to_s3(compress.as_deref()).await?,
            Contestant::PgDumpDirectory => arena.pg_dump_to_directory().await?,
            Contestant::Copy => arena.copy().await?,
            Contestant::Zstd => arena.zstd().await?,
            Contestant::Export { compression } => arena.export(compression).await?,
        };
        sample.server_cpu_seconds = tree_cpu_seconds(postmaster) - before;
        Ok(sample)
    }
}

impl Arena<'_> {
    fn pg_dump(&self, options: &[&str]) -> Command {
        let mut command = self.client.command("pg_dump");
        command.args(options).arg("--dbname").arg(self.server.url(self.content)).stdin(Stdio::null());
        command
    }

    /// One `psql` that runs these statements and leaves their output where the caller has put it.
    fn psql(&self, statements: &[String]) -> Command {
        let mut command = self.client.command("psql");
        command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname"]);
        command.arg(self.server.url(self.content)).stdin(Stdio::null());
        for statement in statements {
            command.args(["--command", statement]);
        }
        command
    }

    async fn pg_dump_to_s3(&self, compress: Option<&str>) -> Result<Sample, BenchError> {
        let sink = Sink::start()?;
        let compress = compress.map(|compress| format!("--compress={compress}"));
        let mut options = vec!["-Fc"];
        options.extend(compress.as_deref());
        let began = Instant::now();
        let mut dump = Measured::spawn(self.pg_dump(&options).stdout(Stdio::piped()))?;
        let dumped = dump.child().stdout.take().map_or_else(Stdio::null, Stdio::from);
        let upload = Measured::spawn(own_command("pipe-to-s3")?.arg(&sink.endpoint).stdin(dumped))?;
        let (dump, upload) = tokio::try_join!(dump.finish(), upload.finish())?;
        let stored = sink.finish().await?;
        Ok(Sample {
            wall_seconds: (upload.ended.max(dump.ended) - began).as_secs_f64(),
            client_cpu_seconds: dump.cpu_seconds,
            uploader_cpu_seconds: Some(upload.cpu_seconds),
            s3_cpu_seconds: Some(stored.cost.cpu_seconds),
            peak_bytes: dump.peak_bytes,
            stored_bytes: Some(stored.largest_object_bytes),
            ..Sample::default()
        })
    }

    async fn pg_dump_to_directory(&self) -> Result<Sample, BenchError> {
        let failed = "cannot use the directory for pg_dump's output";
        let directory = tempfile::tempdir_in(self.scratch).map_err(BenchError::io(failed))?;
        let target: PathBuf = directory.path().join("dump");
        let began = Instant::now();
        let dump = Measured::spawn(self.pg_dump(&["-Fd", "-j", "2", "--no-sync"]).arg("--file").arg(&target))?;
        let dump = dump.finish().await?;
        let files = std::fs::read_dir(&target).map_err(BenchError::io(failed))?;
        let sizes = files.flatten().filter_map(|file| Some(file.metadata().ok()?.len()));
        Ok(Sample {
            wall_seconds: (dump.ended - began).as_secs_f64(),
            client_cpu_seconds: dump.cpu_seconds,
            peak_bytes: dump.peak_bytes,
            stored_bytes: Some(sizes.sum()),
            ..Sample::default()
        })
    }

    /// Each of the two streams reads one half of every table, so that they end together.
    async fn copy(&self) -> Result<Sample, BenchError> {
        let [first, second] = self.halves();
        let began = Instant::now();
        let first = Measured::spawn(self.psql(&first).stdout(Stdio::null()))?;
        let second = Measured::spawn(self.psql(&second).stdout(Stdio::null()))?;
        let (first, second) = tokio::try_join!(first.finish(), second.finish())?;
        Ok(Sample {
            wall_seconds: (first.ended.max(second.ended) - began).as_secs_f64(),
            client_cpu_seconds: first.cpu_seconds + second.cpu_seconds,
            peak_bytes: first.peak_bytes + second.peak_bytes,
            ..Sample::default()
        })
    }

    fn halves(&self) -> [Vec<String>; 2] {
        let [mut first, mut second] = [Vec::new(), Vec::new()];
        for Relation { name, pages } in &self.relations {
            if *pages < SPLIT_PAGES {
                first.push(format!("COPY {name} TO STDOUT"));
                continue;
            }
            let middle = pages / 2;
            first.push(format!("COPY (SELECT * FROM ONLY {name} WHERE ctid < '({middle},0)') TO STDOUT"));
            second.push(format!("COPY (SELECT * FROM ONLY {name} WHERE ctid >= '({middle},0)') TO STDOUT"));
        }
        [first, second]
    }

    async fn zstd(&self) -> Result<Sample, BenchError> {
        let statements: Vec<String> =
            self.relations.iter().map(|table| format!("COPY {} TO STDOUT", table.name)).collect();
        let began = Instant::now();
        let mut copy = Measured::spawn(self.psql(&statements).stdout(Stdio::piped()))?;
        let text = copy.child().stdout.take().map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new("zstd");
        let zstd = Measured::spawn(command.args(["-q", "-1", "-T1", "-c"]).stdin(text).stdout(Stdio::null()))?;
        let (_, zstd) = tokio::try_join!(copy.finish(), zstd.finish())?;
        Ok(Sample {
            wall_seconds: (zstd.ended - began).as_secs_f64(),
            client_cpu_seconds: zstd.cpu_seconds,
            peak_bytes: zstd.peak_bytes,
            ..Sample::default()
        })
    }

    async fn export(&self, compression: &str) -> Result<Sample, BenchError> {
        let settings = [("WORKERS", "2"), ("COMPRESSION", compression)];
        let run = export::run(self.exporter, &self.server.url(self.content), &settings).await?;
        Ok(run.sample())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_contestant() {
        for contestant in Contestant::usual() {
            assert_eq!(Contestant::parse(&contestant.name()), Some(contestant));
        }
        let none = Contestant::Export { compression: "none".to_owned() };
        assert_eq!(Contestant::parse("export-none"), Some(none));
        assert_eq!(Contestant::parse("export"), None);
    }
}
