//! What restores and table loads have put aside on the server: databases whose time has passed, rows past their age.

use std::time::Duration;

use holdfast_shared::config::retention::CleanupConfig;
use holdfast_shared::domain::QualifiedName;
use holdfast_shared::domain::table::{quote_identifier, quote_literal};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::retention::databases::{DatabasePlan, Doomed, Found, plan_databases};
use holdfast_shared::postgres::connect::{Connector, Session, Target};
use holdfast_shared::postgres::session::{query_fault, sql_state};
use holdfast_shared::postgres::{catalog, credentials};
use jiff::Timestamp;

use crate::carry_out::{Executor, Outcome};

const APPLICATION_NAME: &str = "holdfast retention";
const OBSERVATION_LIMIT: Duration = Duration::from_secs(60);
/// Rows that one transaction deletes.
const BATCH: u32 = 10_000;
const SESSION_SETTINGS: &str = "SET search_path = ''; SET lock_timeout = '5s'; SET statement_timeout = '60s'";

/// What is to be cleaned up.
pub struct Cleanup {
    maintenance: Connector,
    live: Connector,
    pub plan: DatabasePlan,
    pub rows: Vec<OldRows>,
}

/// Rows of one table that are past their age.
pub struct OldRows {
    pub table: QualifiedName,
    pub rows: i64,
    /// What selects them.
    condition: String,
}

/// What was seen on the server.
pub enum Looked {
    NotConfigured,
    /// Nothing may be changed there, and why.
    Skipped(String),
    Seen(Box<Cleanup>),
    Failed(Fault),
}

pub async fn look(config: Option<&CleanupConfig>, aws: &aws_config::SdkConfig, now: Timestamp) -> Looked {
    let Some(config) = config else { return Looked::NotConfigured };
    match tokio::time::timeout(OBSERVATION_LIMIT, Box::pin(observe(config, aws, now))).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(fault)) => Looked::Failed(fault),
        Err(_) => {
            let message = format!("the server was not looked at within {} s", OBSERVATION_LIMIT.as_secs());
            Looked::Failed(Fault::new("database-unreachable", message))
        }
    }
}

async fn observe(config: &CleanupConfig, aws: &aws_config::SdkConfig, now: Timestamp) -> Result<Looked, Fault> {
    let target = credentials::resolve(&config.database, aws).await?;
    let live_database = target.database.clone();
    let maintenance = Target { database: config.maintenance_database.clone(), ..target.clone() };
    let maintenance = Connector::new(maintenance, APPLICATION_NAME)?;
    let session = session(&maintenance).await?;
    session.refuse_pooler().await?;
    let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
    match (&config.system_identifier, &facts.system_identifier) {
        (None, found) => {
            let found = found.as_deref().unwrap_or("not readable");
            return Ok(Looked::Skipped(format!("TARGET_SYSTEM_IDENTIFIER is not set; this server's is {found}")));
        }
        (Some(configured), found) if found.as_ref() != Some(configured) => {
            let found = found.as_deref().unwrap_or("one that does not tell its identifier");
            return Err(Fault::new(
                "retention-wrong-server",
                format!("the server is {found}, and {configured} is configured: nothing on it is touched"),
            )
            .hint("check the database settings; after a move or a major upgrade set TARGET_SYSTEM_IDENTIFIER anew"));
        }
        _ if facts.in_recovery => return Ok(Looked::Skipped("the server is a standby".to_owned())),
        _ => {}
    }
    let found = databases(&session).await?;
    let lives = found.iter().any(|database| database.name == live_database);
    let plan = plan_databases(&found, &live_database, now);
    let live = Connector::new(target, APPLICATION_NAME)?;
    let rows = if lives { old_rows(&live, config, now).await? } else { Vec::new() };
    Ok(Looked::Seen(Box::new(Cleanup { maintenance, live, plan, rows })))
}

async fn session(connector: &Connector) -> Result<Session, Fault> {
    let session = connector.session().await?;
    session.client.batch_execute(SESSION_SETTINGS).await.map_err(query_fault)?;
    Ok(session)
}

async fn databases(session: &Session) -> Result<Vec<Found>, Fault> {
    let sql = "SELECT d.datname::text, pg_catalog.shobj_description(d.oid, 'pg_database'),
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid),
                      pg_catalog.pg_has_role(d.datdba, 'USAGE')
                 FROM pg_catalog.pg_database d WHERE NOT d.datistemplate";
    let rows = session.client.query(sql, &[]).await.map_err(query_fault)?;
    let read = |row: &tokio_postgres::Row| -> Result<Found, tokio_postgres::Error> {
        Ok(Found { name: row.try_get(0)?, comment: row.try_get(1)?, sessions: row.try_get(2)?, ours: row.try_get(3)? })
    };
    rows.iter().map(|row| read(row).map_err(query_fault)).collect()
}

async fn old_rows(live: &Connector, config: &CleanupConfig, now: Timestamp) -> Result<Vec<OldRows>, Fault> {
    let Some(cutoff) = config.rows_kept.and_then(|kept| now.checked_sub(kept).ok()) else { return Ok(Vec::new()) };
    let session = session(live).await?;
    // Plain tables only: a row's place is unique within one.
    let sql = "SELECT n.nspname::text, c.relname::text, a.atttypid = 'pg_catalog.timestamptz'::regtype
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
                WHERE c.relkind = 'r' AND a.attname = 'backup_timestamp' AND a.attnum > 0 AND NOT a.attisdropped
                  AND a.atttypid IN ('pg_catalog.timestamptz'::regtype, 'pg_catalog.timestamp'::regtype)
                ORDER BY 1, 2";
    let mut old = Vec::new();
    for row in session.client.query(sql, &[]).await.map_err(query_fault)? {
        let (schema, name, zoned): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        let table = QualifiedName::new(schema, name);
        if !config.rows_tables.iter().any(|pattern| pattern.matches(&table)) {
            continue;
        }
        let moment = format!("{}::timestamptz", quote_literal(&cutoff.to_string()));
        let moment = if zoned { moment } else { format!("({moment} AT TIME ZONE 'UTC')") };
        let condition = format!("backup_timestamp < {moment}");
        let sql = format!("SELECT pg_catalog.count(*) FROM ONLY {} WHERE {condition}", table.quoted());
        let rows: i64 = session.client.query_one(&sql, &[]).await.map_err(query_fault)?.get(0);
        if rows > 0 {
            old.push(OldRows { table, rows, condition });
        }
    }
    Ok(old)
}

impl Executor<'_> {
    pub async fn clean_up(&self, cleanup: &Cleanup, outcome: &mut Outcome) {
        for doomed in &cleanup.plan.drop {
            if self.is_late() {
                outcome.not_begun += 1;
                continue;
            }
            match drop_database(&cleanup.maintenance, doomed).await {
                Ok(None) => {
                    tracing::info!(database = doomed.name, kept_until = %doomed.keep_until, "dropped");
                    outcome.databases_dropped.push(doomed.name.clone());
                }
                Ok(Some(why)) => outcome.postponed.push(format!("database {}: {why}", doomed.name)),
                Err(fault) => outcome.failures.push(format!("database {}: {fault}", doomed.name)),
            }
        }
        for old in &cleanup.rows {
            match self.delete_rows(&cleanup.live, old).await {
                Ok((deleted, finished)) => {
                    tracing::info!(table = %old.table, rows = deleted, "old rows deleted");
                    outcome.rows_deleted += deleted;
                    outcome.not_begun += usize::from(!finished);
                }
                Err(fault) => outcome.failures.push(format!("rows of {}: {fault}", old.table)),
            }
        }
    }

    /// How many, and whether all of them.
    async fn delete_rows(&self, live: &Connector, old: &OldRows) -> Result<(u64, bool), Fault> {
        let session = session(live).await?;
        let (table, condition) = (old.table.quoted(), &old.condition);
        let sql = format!(
            "DELETE FROM ONLY {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY {table} WHERE {condition} LIMIT {BATCH}))
                AND {condition}"
        );
        let mut deleted = 0;
        while !self.is_late() {
            let rows = session.client.execute(&sql, &[]).await.map_err(query_fault)?;
            deleted += rows;
            if rows == 0 {
                return Ok((deleted, true));
            }
        }
        Ok((deleted, false))
    }
}

/// `Some`: why it was left alone after all. Sessions in it are never ended.
async fn drop_database(maintenance: &Connector, doomed: &Doomed) -> Result<Option<String>, Fault> {
    let session = session(maintenance).await?;
    let sql = "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1::text::name";
    let present = session.client.query_opt(sql, &[&doomed.name]).await.map_err(query_fault)?;
    let comment: Option<String> = present.and_then(|row| row.get(0));
    if comment.as_deref() != Some(doomed.comment.as_str()) {
        return Ok(Some("it has changed since it was looked at".to_owned()));
    }
    match session.client.batch_execute(&format!("DROP DATABASE {}", quote_identifier(&doomed.name))).await {
        Ok(()) => Ok(None),
        Err(error) if sql_state(&error) == Some("55006") => Ok(Some("somebody is connected to it".to_owned())),
        Err(error) if sql_state(&error) == Some("3D000") => Ok(Some("it is gone".to_owned())),
        Err(error) => Err(query_fault(error)),
    }
}
