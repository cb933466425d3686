//! The server under the benchmark and its databases, kept between calls where a directory is given.

use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_local::postgres::{Cluster, ClusterOptions, StopMode};

use crate::data::{DROP_FUNCTIONS, FUNCTIONS, GIANT, HALF, MIXED, TableData};
use crate::error::BenchError;

/// Defaults but for what lets the tables be made quickly, and for what would disturb a run.
const SETTINGS: [(&str, &str); 6] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    // CREATE TABLE AS writes no WAL at this level.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("autovacuum", "off"),
];

/// What a database is filled with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Content {
    /// So many GB of COPY text in four tables.
    Mixed(f64),
    /// One table of wide rows.
    Giant(f64),
    /// Of [`Content::Mixed`] the table with half of all rows.
    Half(f64),
    /// Twenty tables of a few rows.
    Small,
}

impl Content {
    pub fn database(self) -> String {
        match self {
            Content::Mixed(gigabytes) => format!("mixed_{gigabytes}"),
            Content::Giant(gigabytes) => format!("giant_{gigabytes}"),
            Content::Half(gigabytes) => format!("half_{gigabytes}"),
            Content::Small => "small".to_owned(),
        }
    }

    fn tables(self) -> (&'static [&'static [TableData]], f64) {
        match self {
            Content::Mixed(gigabytes) => (MIXED, gigabytes),
            Content::Giant(gigabytes) => (GIANT, gigabytes),
            Content::Half(gigabytes) => (HALF, gigabytes),
            Content::Small => (&[], 0.0),
        }
    }
}

pub struct Server {
    cluster: Cluster,
}

/// A table as it lies on disk.
pub struct Relation {
    pub name: String,
    pub pages: u64,
}

impl Server {
    /// With `kept`, the data directory is there, and what it holds from an earlier call is used again.
    pub async fn start(major: u16, kept: Option<&Path>) -> Result<Server, BenchError> {
        let mut options = ClusterOptions::major(major);
        for (name, value) in SETTINGS {
            options = options.setting(name, value);
        }
        let mut cluster = Cluster::start(options).await?;
        if let Some(directory) = kept {
            cluster.stop(StopMode::Fast).await?;
            keep_in(&mut cluster, &directory.join(format!("postgresql-{major}")))?;
            cluster.start_again().await?;
        }
        Ok(Server { cluster })
    }

    /// In order, so that a kept directory needs no recovery.
    pub async fn stop(mut self) -> Result<(), BenchError> {
        Ok(self.cluster.stop(StopMode::Fast).await?)
    }

    pub fn url(&self, content: Content) -> String {
        self.cluster.url(&content.database())
    }

    pub fn major(&self) -> u16 {
        self.cluster.major()
    }

    pub fn port(&self) -> u16 {
        self.cluster.port()
    }

    /// The first line of `postmaster.pid`.
    pub fn postmaster(&self) -> Result<u32, BenchError> {
        let path = self.cluster.data_directory().join("postmaster.pid");
        let text = std::fs::read_to_string(&path).map_err(BenchError::io("cannot read postmaster.pid"))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        pid.ok_or_else(|| BenchError::Missing { what: "the server's process number".to_owned() })
    }

    /// Makes the database unless it is there.
    pub async fn prepare(&self, content: Content) -> Result<(), BenchError> {
        let name = content.database();
        let postgres = self.cluster.connect("postgres").await?;
        if postgres.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name]).await?.is_some() {
            return Ok(());
        }
        eprintln!("making database {name}");
        // It gets its name when it is complete: a call that was broken off leaves only a draft.
        let draft = format!("draft_{name}");
        postgres.batch_execute(&format!("DROP DATABASE IF EXISTS \"{draft}\"")).await?;
        self.cluster.create_database(&draft).await?;
        self.fill(&draft, content).await?;
        postgres.batch_execute("CHECKPOINT").await?;
        postgres.batch_execute(&format!("ALTER DATABASE \"{draft}\" RENAME TO \"{name}\"")).await?;
        Ok(())
    }

    async fn fill(&self, database: &str, content: Content) -> Result<(), BenchError> {
        let first = self.cluster.connect(database).await?;
        first.batch_execute(FUNCTIONS).await?;
        let (groups, gigabytes) = content.tables();
        let mut sessions = tokio::task::JoinSet::new();
        for group in groups {
            let client = self.cluster.connect(database).await?;
            let mut statements = vec!["SELECT setseed(0.42)".to_owned()];
            for table in *group {
                statements.push(table.statement(gigabytes));
                statements.extend(table.key.map(|key| format!("ALTER TABLE {} ADD PRIMARY KEY ({key})", table.name)));
            }
            sessions.spawn(async move {
                for statement in statements {
                    client.batch_execute(&statement).await?;
                }
                Ok::<_, tokio_postgres::Error>(())
            });
        }
        while let Some(done) = sessions.join_next().await {
            done??;
        }
        if content == Content::Small {
            for number in 1..=20 {
                let sql = format!(
                    "CREATE TABLE small_{number} AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 100) i;
                     ALTER TABLE small_{number} ADD PRIMARY KEY (id)"
                );
                first.batch_execute(&sql).await?;
            }
        }
        first.batch_execute(DROP_FUNCTIONS).await?;
        // Without it the first contestant would set the hint bits, and write every page.
        first.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
        Ok(())
    }

    pub async fn relations(&self, content: Content) -> Result<Vec<Relation>, BenchError> {
        let client = self.cluster.connect(&content.database()).await?;
        let sql =
            "SELECT oid::regclass::text, pg_relation_size(oid) / current_setting('block_size')::bigint FROM pg_class
                    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 2 DESC";
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| Relation { name: row.get(0), pages: row.get::<_, i64>(1).unsigned_abs() }).collect())
    }
}

/// Puts a directory of ours in the place of the cluster's data directory. The cluster removes, at its end, only the link.
fn keep_in(cluster: &mut Cluster, kept: &Path) -> Result<(), BenchError> {
    let fresh = cluster.data_directory();
    if !kept.join("PG_VERSION").exists() {
        let parent = kept.parent().unwrap_or(kept);
        std::fs::create_dir_all(parent).map_err(BenchError::io("cannot create the directory for the database"))?;
        // With owner and rights: the server does not run as root.
        let copied = Command::new("cp").arg("-a").arg(&fresh).arg(kept).status();
        let status = copied.map_err(BenchError::io("cannot run cp"))?;
        if !status.success() {
            return Err(BenchError::Program { program: "cp".to_owned(), status });
        }
    }
    let failed = "cannot put the kept database in its place";
    let kept: PathBuf = kept.canonicalize().map_err(BenchError::io(failed))?;
    std::fs::remove_dir_all(&fresh).map_err(BenchError::io(failed))?;
    std::os::unix::fs::symlink(&kept, &fresh).map_err(BenchError::io(failed))?;
    let socket = cluster.socket_directory().display().to_string();
    cluster.add_settings([("unix_socket_directories", socket.as_str())])?;
    cluster.add_settings(SETTINGS)?;
    Ok(())
}
