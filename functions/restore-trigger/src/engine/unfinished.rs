//! Databases and schemas in the making. They are marked from their first moment until they are proved, so that what a
//! run leaves that was killed is known for what it is, and dropped by the next one.

use std::time::{Duration, Instant};

use holdfast_shared::domain::Environment;
use holdfast_shared::domain::table::{quote_identifier, quote_literal};
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::connect::{Connector, Target};
use holdfast_shared::postgres::session::{Client, QueryError, query_fault, sql_state};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::engine::{APPLICATION_NAME, Engine};

/// A connection limit is part of `CREATE DATABASE`, and a comment is not: this one, plus the minute since 1970 until
/// which its run may be alive, is the mark. Nobody else sets such a limit, and it limits nothing.
const MARK: i32 = 1_000_000_000;
const LAST_MARK: i32 = MARK + 100_000_000;
/// What PostgreSQL sets where a `DROP DATABASE` was interrupted.
const INVALID: i32 = -2;
/// Clocks of two functions differ, and a server works on for a moment.
const GRACE: SignedDuration = SignedDuration::from_mins(2);

/// A database in the making: this one, and not another that has got its name since.
#[derive(Debug, Clone)]
pub struct Unfinished {
    pub name: String,
    pub oid: u32,
}

/// What lies on a server that has a mark.
#[derive(Debug)]
struct Found {
    name: String,
    limit: i32,
    comment: Option<String>,
}

impl Engine {
    /// When this run is over, whatever becomes of it.
    fn until(&self) -> Timestamp {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Timestamp::now() + SignedDuration::try_from(left).unwrap_or(SignedDuration::from_mins(15)) + GRACE
    }

    /// What stands behind `CREATE DATABASE`.
    pub(super) fn mark(&self) -> String {
        format!(" CONNECTION LIMIT = {}", i64::from(MARK) + self.until().as_second() / 60)
    }

    /// Says about a database in the making what its mark cannot, and finds out which one it is.
    pub(super) async fn describe(&self, client: &Client, name: &str, held: &str) -> Result<Unfinished, Fault> {
        let row = client.query_one("SELECT oid FROM pg_catalog.pg_database WHERE datname = $1", &[&name]).await;
        let oid = row.map_err(query_fault)?.get(0);
        let sql = format!("COMMENT ON DATABASE {} IS {}", quote_identifier(name), quote_literal(&self.note(held)));
        client.batch_execute(&sql).await.map_err(query_fault)?;
        Ok(Unfinished { name: name.to_owned(), oid })
    }

    /// `held` is what this run has the lease on.
    fn note(&self, held: &str) -> String {
        json!({"holdfast": "unfinished", "target": held, "until": self.until()}).to_string()
    }

    /// Takes the mark off: from now on it is a database like any other.
    pub(super) async fn finish(&self, made: &Unfinished) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let name = quote_identifier(&made.name);
        let sql = format!("BEGIN; ALTER DATABASE {name} CONNECTION LIMIT -1; COMMENT ON DATABASE {name} IS NULL");
        session.client.batch_execute(&sql).await.map_err(query_fault)?;
        made.check(&session.client, &made.name).await?;
        session.client.batch_execute("COMMIT").await.map_err(query_fault)
    }

    /// Drops a database in the making, with every session in it; one that is finished, or another run's, stays.
    pub(super) async fn discard(&self, made: &Unfinished) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let sql = "SELECT FROM pg_catalog.pg_database
                    WHERE oid = $1 AND datname = $2 AND datconnlimit BETWEEN $3 AND $4";
        let there = session.client.query_opt(sql, &[&made.oid, &made.name, &MARK, &LAST_MARK]).await;
        match there.map_err(query_fault)? {
            Some(_) => drop_database(&session.client, &self.target, &made.name).await,
            None => Ok(()),
        }
    }

    /// Makes a schema that is marked from its beginning. One that a dead run has left is dropped first.
    pub(super) async fn create_schema(&self, database: &str, schema: &str) -> Result<(), Fault> {
        let session = self.connector(database)?.session().await?;
        let client = &session.client;
        let sql =
            "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = $1";
        let found = client.query_opt(sql, &[&schema]).await.map_err(query_fault)?;
        if let Some(row) = found {
            let comment: Option<String> = row.get(0);
            // The lease on this database is ours, so that its run is dead.
            if unfinished(comment.as_deref()).is_none() {
                return Err(Fault::new("restore-schema-exists", format!("there is a schema {schema} in {database}"))
                    .hint("drop it, or rename it, if it is to be made again"));
            }
            tracing::info!(database, schema, "dropping what an earlier run has left");
            drop_schema(client, schema).await?;
        }
        let (quoted, note) = (quote_identifier(schema), quote_literal(&self.note(database)));
        let sql = format!("BEGIN; CREATE SCHEMA {quoted}; COMMENT ON SCHEMA {quoted} IS {note}; COMMIT");
        client.batch_execute(&sql).await.map_err(not_permitted("GRANT CREATE ON DATABASE … TO the restoring role"))
    }

    pub(super) async fn finish_schema(&self, database: &str, schema: &str, comment: &str) -> Result<(), Fault> {
        let session = self.connector(database)?.session().await?;
        let sql = format!("COMMENT ON SCHEMA {} IS {}", quote_identifier(schema), quote_literal(comment));
        session.client.batch_execute(&sql).await.map_err(query_fault)
    }

    pub(super) async fn discard_schema(&self, database: &str, schema: &str) -> Result<(), Fault> {
        let session = self.connector(database)?.session().await?;
        end_own_sessions(&session.client).await?;
        drop_schema(&session.client, schema).await
    }
}

impl Unfinished {
    /// The database of this name is the one that was made.
    pub(super) async fn check(&self, client: &Client, name: &str) -> Result<(), Fault> {
        let sql = "SELECT FROM pg_catalog.pg_database WHERE oid = $1 AND datname = $2";
        match client.query_opt(sql, &[&self.oid, &name]).await.map_err(query_fault)? {
            Some(_) => Ok(()),
            None => Err(Fault::new("restore-target-busy", format!("{name} is not the database that this run made"))
                .hint("another restore has taken its place; its outcome is in its record")),
        }
    }
}

/// A failed statement, where the likeliest cause is a right that the role does not have.
pub(super) fn not_permitted(hint: &str) -> impl FnOnce(QueryError) -> Fault {
    let hint = hint.to_owned();
    move |error| match sql_state(&error) {
        Some("42501") => Fault::from_error("restore-not-permitted", &error).hint(hint),
        _ => query_fault(error),
    }
}

/// Ends other sessions of restores in this database: whoever has the lease on it knows that their runs are dead.
pub(super) async fn end_own_sessions(client: &Client) -> Result<(), Fault> {
    let sql = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                WHERE datname = pg_catalog.current_database() AND application_name = $1 AND usename = current_user
                  AND pid <> pg_catalog.pg_backend_pid()";
    client.query(sql, &[&APPLICATION_NAME]).await.map_err(query_fault).map(drop)
}

async fn drop_schema(client: &Client, schema: &str) -> Result<(), Fault> {
    let sql = format!("SET lock_timeout = '20s'; DROP SCHEMA IF EXISTS {} CASCADE", quote_identifier(schema));
    client.batch_execute(&sql).await.map_err(query_fault)
}

/// Ends every session in it, and drops it.
async fn drop_database(client: &Client, maintenance: &Target, name: &str) -> Result<(), Fault> {
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(name));
    match client.batch_execute(&sql).await {
        // Subscriptions keep a database, and `FORCE` does not end them.
        Err(error) if sql_state(&error) == Some("55006") => {
            drop_subscriptions(Target { database: name.to_owned(), ..maintenance.clone() }).await?;
            client.batch_execute(&sql).await.map_err(query_fault)
        }
        dropped => dropped.map_err(query_fault),
    }
}

/// Without a word to their publishers: as restored they have no slot there.
async fn drop_subscriptions(target: Target) -> Result<(), Fault> {
    let database = target.database.clone();
    let session = Connector::new(target, APPLICATION_NAME)?.session().await?;
    let sql = "SELECT subname::text FROM pg_catalog.pg_subscription s
                 JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = $1";
    for row in session.client.query(sql, &[&database]).await.map_err(query_fault)? {
        let name = quote_identifier(row.get(0));
        let sql = format!(
            "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE); DROP SUBSCRIPTION {name}"
        );
        session.client.batch_execute(&sql).await.map_err(query_fault)?;
    }
    Ok(())
}

/// The note on something unfinished; `None`: it is not ours, or not unfinished.
fn unfinished(comment: Option<&str>) -> Option<Value> {
    let note: Value = serde_json::from_str(comment?).ok()?;
    (note["holdfast"] == "unfinished").then_some(note)
}

/// What a lease is on, as notes on unfinished databases have it.
pub fn held(environment: &Environment, target: &str) -> String {
    format!("{environment}/{target}")
}

/// Whether a database was left by a run that is dead.
fn is_left(found: &Found, held: &str, creating: &[&str], now: Timestamp) -> bool {
    let note = unfinished(found.comment.as_deref());
    // Whoever has the lease on a target is the only one who makes databases for it.
    let mine = match &note {
        Some(note) => note["target"] == held,
        None => creating.contains(&found.name.as_str()),
    };
    match found.limit {
        INVALID => note.is_some() && mine,
        MARK..=LAST_MARK => {
            let until = Timestamp::from_second(i64::from(found.limit - MARK) * 60).unwrap_or(Timestamp::MAX);
            // Where there is a comment it has to be ours, too.
            (found.comment.is_none() || note.is_some()) && (mine || until + GRACE < now)
        }
        _ => false,
    }
}

/// Drops the databases that dead runs have left, and says which. For who has the lease on the target `held` and is
/// going to make the databases `creating`.
///
/// # Errors
/// Where the server cannot be asked. What cannot be dropped is logged and stays.
pub async fn sweep(maintenance: Target, held: &str, creating: &[&str]) -> Result<Vec<String>, Fault> {
    let session = Connector::new(maintenance.clone(), APPLICATION_NAME)?.session().await?;
    let sql = "SELECT datname::text, datconnlimit, pg_catalog.shobj_description(oid, 'pg_database')
                 FROM pg_catalog.pg_database WHERE datconnlimit = $1 OR datconnlimit BETWEEN $2 AND $3";
    let rows = session.client.query(sql, &[&INVALID, &MARK, &LAST_MARK]).await.map_err(query_fault)?;
    let mut dropped = Vec::new();
    for row in rows {
        let found = Found { name: row.get(0), limit: row.get(1), comment: row.get(2) };
        if !is_left(&found, held, creating, Timestamp::now()) {
            continue;
        }
        let dropping =
            tokio::time::timeout(Duration::from_secs(60), drop_database(&session.client, &maintenance, &found.name));
        match dropping.await {
            Ok(Ok(())) => {
                tracing::info!(database = found.name, "dropped what an earlier run had left");
                dropped.push(found.name);
            }
            Ok(Err(fault)) => {
                tracing::warn!(database = found.name, error = %fault, "what an earlier run has left stays");
            }
            Err(_) => {
                tracing::warn!(database = found.name, "what an earlier run has left was not dropped in time");
                break;
            }
        }
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_databases_of_dead_runs_are_dropped() {
        let now: Timestamp = "2025-06-21T14:30:00Z".parse().unwrap();
        let mark = |minutes: i64| MARK + i32::try_from((now.as_second() / 60) + minutes).unwrap();
        let note = |target: &str| Some(json!({"holdfast": "unfinished", "target": target}).to_string());
        let other = || Some(json!({"holdfast": "replaced"}).to_string());
        for (limit, comment, name, expected, why) in [
            (mark(-10), note("other"), "x", true, "its run is long over"),
            (mark(-10), None, "x", true, "killed before the comment was there"),
            (mark(-1), note("other"), "x", false, "its run may be alive"),
            (mark(5), note("other"), "x", false, "its run may be alive"),
            (mark(5), note("shop"), "x", true, "its run lost the lease on shop"),
            (mark(5), None, "shop_restore_1", true, "only this run may make it"),
            (mark(5), note("other"), "shop_restore_1", false, "its run may be alive"),
            (mark(-10), other(), "x", false, "it was put aside"),
            (mark(-10), Some("ours".to_owned()), "x", false, "somebody says otherwise"),
            (-1, note("shop"), "shop_restore_1", false, "it has no mark"),
            (-1, None, "shop_restore_1", false, "it has no mark"),
            (100, note("shop"), "x", false, "it has a limit of its own"),
            (INVALID, note("shop"), "x", true, "half dropped, and known by its comment"),
            (INVALID, None, "shop_restore_1", false, "half dropped, and nobody knows whose"),
        ] {
            let found = Found { name: name.to_owned(), limit, comment };
            assert_eq!(is_left(&found, "shop", &["shop_restore_1"], now), expected, "{why}: {found:?}");
        }
    }
}
