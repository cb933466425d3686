//! Locks on what is read, and who stands in their way.

use std::collections::BTreeMap;

use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::postgres::catalog::{self, Blocker, RelationFacts};
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::session::{Client, LOCK_NOT_AVAILABLE, QueryError, query_fault};

use super::setback::Setback;

/// Tables named in one LOCK statement.
const LOCK_BATCH: usize = 500;
const UNDEFINED_TABLE: &str = "42P01";

/// `otherwise`: what is told where nobody is seen to hold a lock.
pub fn lock_fault(blockers: &[Blocker], otherwise: &str) -> Fault {
    let described: Vec<String> =
        blockers.iter().map(|blocker| format!("{}: {}", blocker.table, blocker.description)).collect();
    let message = if described.is_empty() { otherwise.to_owned() } else { described.join("; ") };
    Fault::new("table-locked", format!("a table stayed locked longer than the lock timeout: {message}"))
        .hint("end that session, or raise LOCK_TIMEOUT_MS")
}

/// Says who holds the lock that a session met while it read; asked by a session of its own, because that one's
/// transaction is over.
pub async fn name_blockers(connector: &Connector, fault: Fault) -> Fault {
    if fault.code != "table-locked" {
        return fault;
    }
    let Ok(session) = connector.session().await else { return fault };
    let blockers = catalog::blockers(&session.client).await.unwrap_or_default();
    if blockers.is_empty() { fault } else { lock_fault(&blockers, "").with_context(&fault.message) }
}

/// Runs what may meet a lock, in a savepoint, so that the session can still be asked who holds it.
pub async fn or_locked<T>(client: &Client, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, Setback> {
    client.batch_execute("SAVEPOINT locks").await.map_err(query_fault)?;
    match work.await {
        Ok(result) => {
            client.batch_execute("RELEASE SAVEPOINT locks").await.map_err(query_fault)?;
            Ok(result)
        }
        Err(error) => {
            let state = |code| error.code().is_some_and(|state| state.code() == code);
            if state(LOCK_NOT_AVAILABLE) {
                let _ = client.batch_execute("ROLLBACK TO SAVEPOINT locks").await;
                let blockers = catalog::blockers(client).await.unwrap_or_default();
                let fault = lock_fault(&blockers, &chain(&error));
                // `pg_dump` has these locks: who still waits for one waits for us.
                let queued = blockers.iter().all(|blocker| !blocker.holds);
                return Err(if queued { Setback::Overtaken(fault) } else { Setback::Fault(fault) });
            }
            // Gone before `pg_dump` could lock it.
            let gone = state(UNDEFINED_TABLE);
            let fault = query_fault(error);
            Err(if gone { Setback::Overtaken(fault) } else { Setback::Fault(fault) })
        }
    }
}

/// Our own locks, taken while `pg_dump` still holds its own.
pub async fn lock_tables(client: &Client, relations: &BTreeMap<u32, RelationFacts>) -> Result<(), Setback> {
    let (exact, inexact): (Vec<_>, Vec<_>) = relations
        .iter()
        .filter(|(_, relation)| matches!(relation.kind, 'r' | 'p'))
        .partition(|(_, relation)| relation.name_is_exact);
    for batch in exact.chunks(LOCK_BATCH) {
        let names: Vec<String> = batch.iter().map(|(_, relation)| format!("ONLY {}", relation.name.quoted())).collect();
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        or_locked(client, client.batch_execute(&sql)).await?;
    }
    for (oid, _) in inexact {
        let sql = format!(
            "DO $lock$ BEGIN EXECUTE pg_catalog.format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', {oid}::pg_catalog.regclass); END $lock$"
        );
        or_locked(client, client.batch_execute(&sql)).await?;
    }
    Ok(())
}
