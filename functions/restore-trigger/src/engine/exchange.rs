//! Two databases change names in one transaction: whoever connects meets the old one or the new one.

use std::time::Duration;

use holdfast_shared::domain::table::{quote_identifier, quote_literal};
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::session::{Client, query_fault, sql_state};

use crate::engine::Engine;

/// `ALTER DATABASE … RENAME` waits 5 s for sessions to end (`CountOtherDBBackends`), and new ones wait for it.
const ATTEMPTS: u32 = 3;
const TERMINATION_INTERVAL: Duration = Duration::from_millis(100);
/// Settings whose value is a list, stored as it is written (`variable_is_guc_list_quote`).
const LISTS: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

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
}

impl Engine {
    /// Ends the sessions of both, and renames both or none.
    pub(super) async fn exchange(&self, exchange: Exchange<'_>) -> Result<(), Fault> {
        let connector = self.connector(&self.target.database)?;
        let (renaming, ending) = (connector.session().await?, connector.session().await?);
        let Exchange { live, aside, incoming, note } = exchange;
        let [live_q, aside_q, incoming_q] = [live, aside, incoming].map(quote_identifier);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '10s';
             ALTER DATABASE {live_q} RENAME TO {aside_q};
             ALTER DATABASE {incoming_q} RENAME TO {live_q};
             COMMENT ON DATABASE {aside_q} IS {};
             COMMIT",
            quote_literal(note)
        );
        let mut attempt = 1;
        loop {
            // The rename holds new sessions off; those there are ended while it waits.
            let done = tokio::select! {
                done = renaming.client.batch_execute(&sql) => done,
                () = end_sessions(&ending.client, [live, incoming]) => continue,
            };
            let Err(error) = done else { return Ok(()) };
            renaming.client.batch_execute("ROLLBACK").await.map_err(query_fault)?;
            let busy = matches!(sql_state(&error), Some("55006" | "55P03"));
            if !busy || attempt == ATTEMPTS {
                return Err(match sql_state(&error) {
                    Some("55006" | "55P03") => Fault::from_error("restore-database-busy", &error)
                        .hint("a session in the database cannot be ended by this role; grant it pg_signal_backend"),
                    Some("42501") => Fault::from_error("restore-not-permitted", &error)
                        .hint("the role has to own the database and to have CREATEDB"),
                    _ => query_fault(error),
                });
            }
            attempt += 1;
        }
    }

    /// What belongs to the database as a whole and is in no dump of it: owner, privileges, settings, limits.
    pub(super) async fn carry_over(&self, from: &str, to: &str) -> Result<Vec<String>, Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let client = &session.client;
        let mut statements = Vec::new();
        let to_q = quote_identifier(to);
        let facts = client
            .query_one(
                "SELECT pg_catalog.pg_get_userbyid(datdba)::text, datconnlimit, datacl IS NOT NULL
                   FROM pg_catalog.pg_database WHERE datname = $1",
                &[&from],
            )
            .await
            .map_err(query_fault)?;
        let (owner, limit, has_privileges): (String, i32, bool) = (facts.get(0), facts.get(1), facts.get(2));
        statements.push(format!("ALTER DATABASE {to_q} OWNER TO {}", quote_identifier(&owner)));
        if limit != -1 {
            statements.push(format!("ALTER DATABASE {to_q} WITH CONNECTION LIMIT {limit}"));
        }
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
