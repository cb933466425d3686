//! Streaming hot standbys, made by PostgreSQL's low-level backup functions: an installation without `pg_basebackup` will do.

use std::fs;

use super::cluster::blocking;
use super::{Cluster, PostgresError, datadir};

impl Cluster {
    /// A hot standby that follows this server. Read-only queries work as soon as it is returned.
    pub async fn standby(&self) -> Result<Cluster, PostgresError> {
        let sql = |source| PostgresError::Sql { source };
        // 15 renamed the functions and dropped the exclusive mode.
        let (start, stop) = if self.major() >= 15 {
            ("select pg_backup_start('standby', true)::text", "select labelfile from pg_backup_stop(false)")
        } else {
            (
                "select pg_start_backup('standby', true, false)::text",
                "select labelfile from pg_stop_backup(false, false)",
            )
        };
        let mut standby = Cluster::empty(self.installation.clone(), self.password.clone())?;
        let client = self.connect("postgres").await?;
        client.query_one(start, &[]).await.map_err(sql)?;
        let (from, to, run_as) = (self.data_directory(), standby.data_directory(), standby.run_as.clone());
        blocking(move || {
            datadir::copy(&from, &to, &run_as, &|path| {
                path.file_name().is_some_and(|name| name == "postmaster.pid" || name == "postmaster.opts")
            })
        })
        .await?;
        let label: String = client.query_one(stop, &[]).await.map_err(sql)?.get(0);

        let data = standby.data_directory();
        for (name, text) in [("backup_label", label.as_str()), ("standby.signal", "")] {
            let path = data.join(name);
            fs::write(&path, text).map_err(PostgresError::files("write", &path))?;
            standby.run_as.own(&path)?;
        }
        let primary = format!("host=127.0.0.1 port={} user=postgres password={}", self.port(), self.password);
        let socket = standby.socket_directory().display().to_string();
        standby.add_settings([("primary_conninfo", primary.as_str()), ("unix_socket_directories", socket.as_str())])?;
        standby.launch().await?;
        Ok(standby)
    }

    /// Waits until a standby has replayed all that its primary has written so far.
    pub async fn catch_up_with(&self, primary: &Cluster) -> Result<(), PostgresError> {
        let sql = |source| PostgresError::Sql { source };
        let client = primary.connect("postgres").await?;
        // Earlier commits were asynchronous: a synchronous one behind them takes them to the log, and so to the standby.
        let flush = "set synchronous_commit = local; select pg_logical_emit_message(true, '', '')";
        client.batch_execute(flush).await.map_err(sql)?;
        let row = client.query_one("select pg_current_wal_flush_lsn()::text", &[]).await.map_err(sql)?;
        let position: String = row.get(0);
        let client = self.connect("postgres").await?;
        let query = "select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
        while !client.query_one(query, &[&position]).await.map_err(sql)?.get::<_, bool>(0) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
