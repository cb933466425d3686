//! Why an observation came to nothing, and what `pg_dump` meant.

use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::postgres::catalog::{self, ServerFacts};
use holdfast_shared::postgres::connect::ConnectError;
use holdfast_shared::postgres::pg_dump::PgDumpError;
use holdfast_shared::postgres::session::Client;

use super::locks::lock_fault;

pub enum Setback {
    Fault(Fault),
    /// Someone changed a definition between the snapshot and the lock: a new snapshot sees what came of it.
    Overtaken(Fault),
}

impl From<Fault> for Setback {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<PgDumpError> for Setback {
    fn from(error: PgDumpError) -> Self {
        Self::Fault(error.into())
    }
}

impl From<ConnectError> for Setback {
    fn from(error: ConnectError) -> Self {
        Self::Fault(error.into())
    }
}

/// What `pg_dump`'s own words mean. It waits for locks, too: whoever stands in the way is named.
pub async fn explain_pg_dump(client: &Client, facts: &ServerFacts, error: PgDumpError) -> Setback {
    let PgDumpError::Failed { message } = &error else { return error.into() };
    let says = |any: &[&str]| any.iter().any(|words| message.contains(words));
    let fault = |code| Fault::from_error(code, &error);
    // Up to 15 it waits for locks by a statement timeout; the server's words may be in any language.
    if says(&["lock timeout", "statement timeout", "could not obtain lock", "LOCK TABLE"]) && !says(&["does not exist"])
    {
        let blockers = catalog::blockers(client).await.unwrap_or_default();
        if !blockers.is_empty() || says(&["lock timeout", "statement timeout", "could not obtain lock"]) {
            return lock_fault(&blockers, &chain(&error)).into();
        }
    }
    if says(&["permission denied"]) {
        let hint = format!("grant SELECT on it to {}, and USAGE on its schema", facts.role);
        return fault("table-not-readable").hint(hint).into();
    }
    if says(&["too many connections", "connection slots are reserved", "too many clients"]) {
        return fault("database-too-many-connections")
            .hint("pg_dump needs a connection beside the workers': raise max_connections or the role's limit")
            .into();
    }
    if says(&["certificate"]) {
        return fault("database-tls-failed").into();
    }
    if says(&[
        "connection to server",
        "server closed the connection",
        "could not receive data",
        "terminating connection",
    ]) {
        return fault("database-connection-lost").hint("the next run starts afresh").into();
    }
    if says(&["does not exist", "cache lookup failed", "could not open relation"]) {
        return Setback::Overtaken(error.into());
    }
    error.into()
}
