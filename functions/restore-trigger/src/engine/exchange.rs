//! Two databases change names in one transaction: whoever connects meets the old one or the new one.

use std::time::{Duration, Instant};

use holdfast_shared::domain::table::{quote_identifier, quote_literal};
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::session::{Client, query_fault, sql_state};

use crate::engine::Engine;
use crate::engine::unfinished::Unfinished;

/// How long others' sessions are waited for that cannot be ended, such as those that `rdsadmin` has now and then.
/// `ALTER DATABASE … RENAME` waits 5 s (`CountOtherDBBackends`), and new sessions wait for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// In between new sessions get through.
const PAUSE: Duration = Duration::from_millis(500);
const TERMINATION_INTERVAL: Duration = Duration::from_millis(100);
/// Settings whose value is a list, stored as it is written (`variable_is_guc_list_quote`).
const LISTS: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

const MAY_RENAME: &str = "the role has to own the database, or inherit from its owner, and to have CREATEDB";

/// What becomes of what.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// The name that applications connect to.
    pub live: &'a str,
    /// What the database that has that name now is called afterwards.
    pub aside: &'a str,
    /// The database that gets the name.
    pub incoming: &'a str,
    /// A comment on the one that is put aside.
    pub note: &'a str,
    /// The incoming database, where this run made it; `None`: one that a swap had put aside.
    pub made: Option<&'a Unfinished>,
}

/// What is asked before the exchange, and goes with the live name.
struct Before {
    incoming_oid: u32,
    connection_limit: i32,
    comment: Option<String>,
}

impl Engine {
    /// Looks whether the role may rename them, before hours are spent on what is to be exchanged.
    pub(super) async fn check_may_rename(&self, database: &str) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let sql = "SELECT r.rolsuper OR (r.rolcreatedb AND pg_catalog.pg_has_role(d.datdba, 'USAGE'))
                     FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
                    WHERE d.datname = $1 AND r.rolname = current_user";
        let row = session.client.query_opt(sql, &[&database]).await.map_err(query_fault)?;
        if row.is_none_or(|row| row.get(0)) {
            return Ok(());
        }
        Err(Fault::new("restore-not-permitted", format!("the restoring role may not rename {database}"))
            .hint(MAY_RENAME))
    }

    /// Ends the sessions of both, and renames both or none.
    pub(super) async fn exchange(&self, exchange: Exchange<'_>) -> Result<(), Fault> {
        let connector = self.connector(&self.target.database)?;
        let (renaming, ending) = (connector.session().await?, connector.session().await?);
        let Exchange { live, aside, incoming, note, made } = exchange;
        let before = before(&renaming.client, live, incoming).await?;
        let incoming_is = Unfinished { name: incoming.to_owned(), oid: before.incoming_oid };
        let [live_q, aside_q, incoming_q] = [live, aside, incoming].map(quote_identifier);
        let comment = before.comment.as_deref().map_or_else(|| "NULL".to_owned(), quote_literal);
        let mut sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '10s';
             ALTER DATABASE {live_q} RENAME TO {aside_q};
             ALTER DATABASE {incoming_q} RENAME TO {live_q};
             COMMENT ON DATABASE {aside_q} IS {};
             COMMENT ON DATABASE {live_q} IS {comment}",
            quote_literal(note)
        );
        if let Some(made) = made {
            made.check(&renaming.client, incoming).await?;
            sql.push_str(&format!("; ALTER DATABASE {live_q} CONNECTION LIMIT {}", before.connection_limit));
        }
        let until = self.deadline.min(Instant::now() + PATIENCE);
        loop {
            // The rename holds new sessions off; those there are ended while it waits.
            let done = tokio::select! {
                done = renaming.client.batch_execute(&sql) => done,
                () = end_sessions(&ending.client, [live, incoming]) => continue,
            };
            let Err(error) = done else { break };
            renaming.client.batch_execute("ROLLBACK").await.map_err(query_fault)?;
            let busy = matches!(sql_state(&error), Some("55006" | "55P03"));
            if !busy || Instant::now() >= until {
                return Err(match sql_state(&error) {
                    Some("55006" | "55P03") => Fault::from_error("restore-database-busy", &error)
                        .with_context(&who_is_in(&ending.client, [live, incoming]).await)
                        .hint("end these sessions and ask again; grant the role pg_signal_backend if it may not"),
                    Some("42501") => Fault::from_error("restore-not-permitted", &error).hint(MAY_RENAME),
                    _ => query_fault(error),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
        // A run that was stopped for longer than its lease may meet the database of the one after it.
        if let Err(fault) = incoming_is.check(&renaming.client, live).await {
            renaming.client.batch_execute("ROLLBACK").await.map_err(query_fault)?;
            return Err(fault);
        }
        // Behind it there is time for the commit, and none for doubt.
        if Instant::now() >= self.deadline {
            renaming.client.batch_execute("ROLLBACK").await.map_err(query_fault)?;
            return Err(Engine::too_late("the exchange of names"));
        }
        match renaming.client.batch_execute("COMMIT").await {
            Err(error) if sql_state(&error).is_none() => {
                // The answer was lost, and the server knows what became of it.
                let session = connector.session().await?;
                incoming_is.check(&session.client, live).await.map_err(|_| query_fault(error))
            }
            done => done.map_err(query_fault),
        }
    }

    /// What belongs to the database as a whole and is in no dump of it: owner, privileges, settings.
    pub(super) async fn carry_over(&self, from: &str, to: &str) -> Result<Vec<String>, Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let client = &session.client;
        let mut statements = Vec::new();
        let to_q = quote_identifier(to);
        let facts = client
            .query_one(
                "SELECT pg_catalog.pg_get_userbyid(datdba)::text, datacl IS NOT NULL
                   FROM pg_catalog.pg_database WHERE datname = $1",
                &[&from],
            )
            .await
            .map_err(query_fault)?;
        let (owner, has_privileges): (String, bool) = (facts.get(0), facts.get(1));
        statements.push(format!("ALTER DATABASE {to_q} OWNER TO {}", quote_identifier(&owner)));
        if has_privileges {
            statements.push(format!("REVOKE ALL ON DATABASE {to_q} FROM PUBLIC"));
        }
        let grants = client
            .query(
                "SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END,
                        a.privilege_type, a.is_grantable
                   FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a WHERE d.datname = $1",
                &[&from],
            )
            .await
            .map_err(query_fault)?;
        for grant in grants {
            let (grantee, privilege, grantable): (Option<String>, String, bool) =
                (grant.get(0), grant.get(1), grant.get(2));
            let grantee = grantee.map_or_else(|| "PUBLIC".to_owned(), |role| quote_identifier(&role));
            let option = if grantable { " WITH GRANT OPTION" } else { "" };
            statements.push(format!("GRANT {privilege} ON DATABASE {to_q} TO {grantee}{option}"));
        }
        let settings = client
            .query(
                "SELECT CASE s.setrole WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole)::text END,
                        pg_catalog.unnest(s.setconfig)
                   FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
                  WHERE d.datname = $1",
                &[&from],
            )
            .await
            .map_err(query_fault)?;
        for setting in settings {
            let (role, text): (Option<String>, String) = (setting.get(0), setting.get(1));
            let Some((name, value)) = text.split_once('=') else { continue };
            let subject = match role {
                None => format!("DATABASE {to_q}"),
                Some(role) => format!("ROLE {} IN DATABASE {to_q}", quote_identifier(&role)),
            };
            let value = if LISTS.contains(&name) { value.to_owned() } else { quote_literal(value) };
            let name = name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".");
            statements.push(format!("ALTER {subject} SET {name} TO {value}"));
        }
        let mut left_out = Vec::new();
        for statement in statements {
            match client.batch_execute(&statement).await {
                Ok(()) => {}
                Err(error) if sql_state(&error) == Some("42501") => {
                    left_out.push(format!("not permitted: {statement}"));
                }
                Err(error) => return Err(query_fault(error)),
            }
        }
        Ok(left_out)
    }
}

async fn before(client: &Client, live: &str, incoming: &str) -> Result<Before, Fault> {
    let sql = "SELECT (SELECT oid FROM pg_catalog.pg_database WHERE datname = $2), datconnlimit,
                      pg_catalog.shobj_description(oid, 'pg_database')
                 FROM pg_catalog.pg_database WHERE datname = $1";
    let row = client.query_opt(sql, &[&live, &incoming]).await.map_err(query_fault)?;
    let found = row.and_then(|row| Some((row.get::<_, Option<u32>>(0)?, row.get(1), row.get(2))));
    let Some((incoming_oid, connection_limit, comment)) = found else {
        return Err(Fault::new("restore-target-missing", format!("{live} or {incoming} is not there any more")));
    };
    Ok(Before { incoming_oid, connection_limit, comment })
}

/// Whose sessions keep the databases, for messages.
async fn who_is_in(client: &Client, databases: [&str; 2]) -> String {
    let sql = "SELECT pg_catalog.format('%s in %s (pid %s)', usename, datname, pid) FROM pg_catalog.pg_stat_activity
                WHERE datname = ANY ($1) AND pid <> pg_catalog.pg_backend_pid() ORDER BY 1 LIMIT 10";
    let rows = client.query(sql, &[&databases.as_slice()]).await.unwrap_or_default();
    let sessions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if sessions.is_empty() { "no session is to be seen".to_owned() } else { sessions.join(", ") }
}

/// Ends what can be ended, again and again; never returns while the rename is waited for.
async fn end_sessions(client: &Client, databases: [&str; 2]) {
    loop {
        let sql = "SELECT pid FROM pg_catalog.pg_stat_activity
                    WHERE datname = ANY ($1) AND pid <> pg_catalog.pg_backend_pid()";
        for row in client.query(sql, &[&databases.as_slice()]).await.unwrap_or_default() {
            // One of a superuser's, such as rdsadmin's, may not be ended by others: that is no reason to leave the rest.
            let _ = client.query("SELECT pg_catalog.pg_terminate_backend($1)", &[&row.get::<_, i32>(0)]).await;
        }
        tokio::time::sleep(TERMINATION_INTERVAL).await;
    }
}
