//! What the catalog says: the server, what the role may not read, how large tables are, who holds locks.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error, Row};

use crate::domain::QualifiedName;

/// A name as UTF-8 bytes, or as it is stored where the server does not know its encoding (`SQL_ASCII`): there it
/// would refuse to send a name that is not UTF-8.
fn name_sql(expression: &str) -> String {
    format!(
        "pg_catalog.convert_to({expression}::text,
            CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
    )
}

fn name(row: &Row, index: usize) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(row.try_get(index)?).into_owned())
}

fn qualified_name(row: &Row, index: usize) -> Result<QualifiedName, Error> {
    Ok(QualifiedName::new(name(row, index)?, name(row, index + 1)?))
}

/// Text in the database's encoding, as UTF-8.
pub async fn decode_text(client: &Client, text: &[u8], encoding: &str) -> Result<String, Error> {
    client.query_one("SELECT pg_catalog.convert_from($1, $2::text::name)", &[&text, &encoding]).await?.try_get(0)
}

/// Facts about the server, fixed for the run.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Such as `16.4`.
    pub version: String,
    pub version_num: i32,
    pub in_recovery: bool,
    pub encoding: String,
    pub database: String,
    pub role: String,
    pub block_size: u64,
    pub system_identifier: Option<String>,
    pub wal_lsn: Option<String>,
}

impl ServerFacts {
    pub fn major(&self) -> u32 {
        (self.version_num / 10_000).unsigned_abs()
    }
}

/// Reads them outside a transaction, because what the role may not ask is left out.
pub async fn server_facts(client: &Client) -> Result<ServerFacts, Error> {
    let facts = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version'), pg_catalog.current_setting('server_version_num')::int,
                    pg_catalog.pg_is_in_recovery(), pg_catalog.pg_encoding_to_char(d.encoding)::text, d.datname::text,
                    current_user::text, pg_catalog.current_setting('block_size')::int8
               FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
            &[],
        )
        .await?;
    let in_recovery: bool = facts.try_get(2)?;
    let lsn = if in_recovery { "pg_last_wal_replay_lsn" } else { "pg_current_wal_lsn" };
    let optional = async |sql: String| -> Option<String> {
        client.query_one(&sql, &[]).await.ok().and_then(|row| row.try_get::<_, Option<String>>(0).ok().flatten())
    };
    let version: String = facts.try_get(0)?;
    Ok(ServerFacts {
        version: version.split(' ').next().unwrap_or_default().to_owned(),
        version_num: facts.try_get(1)?,
        in_recovery,
        encoding: facts.try_get(3)?,
        database: facts.try_get(4)?,
        role: facts.try_get(5)?,
        block_size: facts.try_get::<_, i64>(6)?.unsigned_abs(),
        system_identifier: optional("SELECT system_identifier::text FROM pg_catalog.pg_control_system()".to_owned())
            .await,
        wal_lsn: optional(format!("SELECT pg_catalog.{lsn}()::text")).await,
    })
}

/// Something the role may not read, and the statement that would let it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub name: QualifiedName,
    pub problem: String,
    pub remedy: String,
}

/// Every user table and sequence, and every schema in use, that the role may not read.
///
/// Members of extensions count only where the extension marks them as configuration, as for `pg_dump`.
pub async fn unreadable_relations(client: &Client, facts: &ServerFacts) -> Result<Vec<Unreadable>, Error> {
    let (schema, table) = (name_sql("n.nspname"), name_sql("c.relname"));
    let rows = client
        .query(
            &format!("SELECT {schema}, {table}, c.relkind::text,
                    pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
                    CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                                   ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END,
                    c.relkind = 'r' AND pg_catalog.row_security_active(c.oid)
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'
                AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                AND (NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
                     OR c.oid IN (SELECT pg_catalog.unnest(extconfig) FROM pg_catalog.pg_extension))
              ORDER BY n.nspname, c.relname"),
            &[],
        )
        .await?;
    let role = crate::domain::table::quote_identifier(&facts.role);
    let mut unreadable = Vec::new();
    for row in rows {
        let name = qualified_name(&row, 0)?;
        let kind = if row.try_get::<_, &str>(2)? == "S" { "SEQUENCE" } else { "TABLE" };
        let (usage, select, filtered): (bool, bool, bool) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        let (problem, remedy) = if !usage {
            let schema = crate::domain::table::quote_identifier(&name.schema);
            ("no USAGE on its schema", format!("GRANT USAGE ON SCHEMA {schema} TO {role}"))
        } else if !select {
            ("no SELECT on it", format!("GRANT SELECT ON {kind} {} TO {role}", name.quoted()))
        } else if filtered {
            ("row-level security would hide rows", format!("ALTER ROLE {role} BYPASSRLS"))
        } else {
            continue;
        };
        unreadable.push(Unreadable { name, problem: problem.to_owned(), remedy });
    }
    Ok(unreadable)
}

/// Large objects the role may not read, at most `limit`; empty for a superuser.
pub async fn unreadable_large_objects(client: &Client, limit: i64) -> Result<Vec<u32>, Error> {
    let rows = client
        .query(
            "SELECT m.oid FROM pg_catalog.pg_largeobject_metadata m
              WHERE pg_catalog.current_setting('is_superuser') <> 'on'
                AND pg_catalog.current_setting('lo_compat_privileges') <> 'on'
                AND NOT pg_catalog.pg_has_role(m.lomowner, 'USAGE')
                AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                                   AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
              LIMIT $1",
            &[&limit],
        )
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// A table whose rows are to be read.
#[derive(Debug, Clone)]
pub struct RelationFacts {
    pub name: QualifiedName,
    /// Whether the name is the table's own to the byte; not so where it is no UTF-8.
    pub name_is_exact: bool,
    /// `pg_class.relkind`.
    pub kind: char,
    pub access_method: Option<String>,
    /// Pages of the main fork.
    pub pages: u64,
    /// Main fork and TOAST.
    pub bytes: u64,
    /// The `WHERE …` of an extension's configuration table; empty means all rows.
    pub condition: Option<String>,
}

/// Facts about relations, by oid. A relation that is gone is missing from the answer.
pub async fn relation_facts(
    client: &Client,
    oids: &[u32],
    block_size: u64,
) -> Result<BTreeMap<u32, RelationFacts>, Error> {
    let (schema, table) = (name_sql("n.nspname"), name_sql("c.relname"));
    let rows = client
        .query(
            &format!("WITH config AS (SELECT u.oid, u.condition
                               FROM pg_catalog.pg_extension e,
                                    LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition)) AS u(oid, condition))
             SELECT c.oid, {schema}, {table}, c.relkind::text, a.amname::text,
                    COALESCE(pg_catalog.pg_relation_size(c.oid), 0),
                    COALESCE(pg_catalog.pg_relation_size(NULLIF(c.reltoastrelid, 0)), 0),
                    (SELECT config.condition FROM config WHERE config.oid = c.oid LIMIT 1)
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
              WHERE c.oid = ANY ($1)"),
            &[&oids],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (main, toast): (i64, i64) = (row.try_get(5)?, row.try_get(6)?);
            let facts = RelationFacts {
                name: qualified_name(row, 1)?,
                name_is_exact: [1, 2]
                    .iter()
                    .all(|&at| row.try_get(at).is_ok_and(|raw| std::str::from_utf8(raw).is_ok())),
                kind: row.try_get::<_, &str>(3)?.chars().next().unwrap_or(' '),
                access_method: row.try_get(4)?,
                pages: main.unsigned_abs() / block_size.max(1),
                bytes: main.unsigned_abs() + toast.unsigned_abs(),
                condition: row.try_get::<_, Option<String>>(7)?.filter(|condition| !condition.is_empty()),
            };
            Ok((row.try_get(0)?, facts))
        })
        .collect()
}

/// Bytes of all large objects and how many there are, estimated where the role may not look.
pub async fn large_object_facts(client: &Client) -> Result<(u64, u64), Error> {
    let row = client
        .query_one(
            "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata),
                    pg_catalog.pg_relation_size('pg_catalog.pg_largeobject'::pg_catalog.regclass)",
            &[],
        )
        .await?;
    Ok((row.try_get::<_, i64>(0)?.unsigned_abs(), row.try_get::<_, i64>(1)?.unsigned_abs()))
}

/// Tables of this database that match a pattern of the request.
pub async fn user_tables(client: &Client) -> Result<Vec<QualifiedName>, Error> {
    let (schema, table) = (name_sql("n.nspname"), name_sql("c.relname"));
    let rows = client
        .query(
            &format!("SELECT {schema}, {table}
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"),
            &[],
        )
        .await?;
    rows.iter().map(|row| qualified_name(row, 0)).collect()
}

/// Who stands in the way of reading a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub table: String,
    pub description: String,
    /// Has the lock; otherwise waits for it, and everyone else behind.
    pub holds: bool,
}

/// Sessions that hold, or wait for, a lock that conflicts with reading a table, its indexes or what is stored out
/// of line; holders first.
pub async fn blockers(client: &Client) -> Result<Vec<Blocker>, Error> {
    let (table, application) = (name_sql("n.nspname || '.' || c.relname"), name_sql("a.application_name"));
    let user = name_sql("a.usename");
    let rows = client
        .query(
            &format!("WITH locks AS (
               SELECT DISTINCT l.pid, l.granted,
                      COALESCE((SELECT m.oid FROM pg_catalog.pg_class m WHERE m.reltoastrelid = COALESCE(x.indrelid, l.relation)),
                               x.indrelid, l.relation) AS relation
                 FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = l.relation
                WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid <> pg_catalog.pg_backend_pid()
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
             SELECT {table}, l.granted, a.pid, {user}, {application}, a.state,
                    pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
               FROM locks l
               JOIN pg_catalog.pg_class c ON c.oid = l.relation
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
              WHERE c.relkind IN ('r', 'p', 'm', 'f', 'S') AND n.nspname !~ '^pg_'
              ORDER BY l.granted DESC, a.xact_start LIMIT 5"),
            &[],
        )
        .await?;
    rows.iter().map(describe_blocker).collect()
}

fn describe_blocker(row: &Row) -> Result<Blocker, Error> {
    let known = |text: String| if text.is_empty() { "?".to_owned() } else { text };
    let bytes = |index: usize| -> Result<String, Error> {
        let raw: Option<&[u8]> = row.try_get(index)?;
        Ok(known(String::from_utf8_lossy(raw.unwrap_or_default()).into_owned()))
    };
    let text = |index: usize| -> Result<String, Error> {
        Ok(known(row.try_get::<_, Option<String>>(index)?.unwrap_or_default()))
    };
    let holds = row.try_get(1)?;
    Ok(Blocker {
        table: bytes(0)?,
        description: format!(
            "process {} of {} ({}, {}, in a transaction since {}) {} ACCESS EXCLUSIVE on it",
            row.try_get::<_, i32>(2)?,
            bytes(3)?,
            bytes(4)?,
            text(5)?,
            text(6)?,
            if holds { "holds" } else { "waits for" },
        ),
        holds,
    })
}

/// Schemas and owners in the database's encoding, for the `SCHEMA` entries that `pg_dump` leaves out when tables are
/// chosen.
pub async fn schema_owners(client: &Client) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
    let rows = client
        .query(
            "SELECT pg_catalog.convert_to(nspname::text, pg_catalog.getdatabaseencoding()),
                    pg_catalog.convert_to(pg_catalog.pg_get_userbyid(nspowner)::text, pg_catalog.getdatabaseencoding())
               FROM pg_catalog.pg_namespace",
            &[],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
