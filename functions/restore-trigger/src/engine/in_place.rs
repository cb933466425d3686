//! Chosen tables in the place of their rows: one transaction, that others see nothing of until it is proved that what
//! comes is the backup.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_shared::archive::extract::Chosen;
use holdfast_shared::archive::script;
use holdfast_shared::domain::TablePattern;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::connect::Connector;
use holdfast_shared::postgres::copy::{CopyError, RawSession};
use holdfast_shared::postgres::session::{Client, query_fault};

use crate::engine::database::rows;
use crate::engine::live_tables::{LiveTables, place_fault};
use crate::engine::peculiar::Peculiar;
use crate::engine::source::Backup;
use crate::engine::{Engine, Options, Origin, Receipt, load, proof, tables, unfinished};

/// So that the server notices within a minute that a function is gone whose connection nobody closed: until then the
/// tables are locked. The last is there from PostgreSQL 14 on.
const WATCHED: [(&str, &str); 5] = [
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
    ("client_connection_check_interval", "5000"),
];

/// What a commit may take: it may wait for a standby.
const COMMIT_LIMIT: Duration = Duration::from_secs(4);
const STATUS_ROUNDS: u32 = 10;
const STATUS_PAUSE: Duration = Duration::from_millis(100);

/// What a transaction is known by to others.
struct Transaction {
    pid: i32,
    id: i64,
}

impl Engine {
    /// Empties the chosen tables and loads their rows of the backup.
    pub(super) async fn tables_in_place(
        &self,
        origin: &Origin,
        database: &str,
        patterns: &[TablePattern],
        options: Options,
    ) -> Result<Receipt, Fault> {
        let started = Instant::now();
        let mut backup = self.read(origin).await?;
        let chosen = tables::choose(&backup, patterns)?;
        if let Some(&first) = chosen.without_data.first() {
            let label = backup.archive.toc.entries[first].label();
            return Err(Fault::new("restore-table-without-rows", format!("the backup has no rows of {label}"))
                .hint("they were left out of it: nothing could be put in the place of the live ones"));
        }
        backup.narrow(&chosen.data.iter().copied().collect());
        let backup = Arc::new(backup);
        let connector = self.connector(database)?;
        let watching = connector.session().await?;
        unfinished::end_own_sessions(&watching.client).await?;
        let settings = script::session_settings(&backup.archive.toc)
            .map_err(|error| Fault::from_error("archive-unexpected", &error))?;
        let mut session = self.session(&connector, &settings).await?;
        let transaction = begin(&mut session).await.map_err(|error| place_fault("the transaction", &error))?;
        let exchanging = self.exchange_rows(&backup, &chosen, session, options);
        let exchanged = self.in_time("the exchange of rows", exchanging).await;
        let ended = match exchanged {
            Ok((receipt, session)) => transaction.commit(session, &watching.client, &connector).await.map(|()| receipt),
            Err(fault) => Err(fault),
        };
        let mut receipt = match ended {
            Ok(receipt) => receipt,
            Err(fault) => {
                // Its locks are not to outlive it.
                transaction.end(&watching.client).await;
                return Err(fault);
            }
        };
        // The rows are there: that the planner knows less of them is no failure.
        let phase = Instant::now();
        for relation in tables::relations(&backup) {
            let analyze = format!("ANALYZE {relation}");
            let problem = if Instant::now() >= self.deadline {
                Some("no time was left".to_owned())
            } else {
                let analyzing = watching.client.batch_execute(&analyze);
                match tokio::time::timeout_at(self.deadline.into(), analyzing).await {
                    Ok(done) => done.err().map(|error| error.to_string()),
                    Err(_) => Some("no time was left".to_owned()),
                }
            };
            receipt.notes.extend(problem.map(|problem| format!("{relation} was not analyzed: {problem}")));
        }
        receipt.seconds.after += phase.elapsed().as_secs_f64();
        database.clone_into(&mut receipt.database);
        receipt.seconds.total = started.elapsed().as_secs_f64();
        Ok(receipt)
    }

    /// Everything but the commit.
    async fn exchange_rows(
        &self,
        backup: &Arc<Backup>,
        chosen: &Chosen,
        mut session: RawSession,
        options: Options,
    ) -> Result<(Receipt, RawSession), Fault> {
        let entries = &backup.archive.toc.entries;
        let mut receipt = Receipt { proved_by: backup.proved_by(), ..Receipt::default() };
        let phase = Instant::now();
        let live = LiveTables::lock(&mut session, backup, chosen.tables.iter().map(|&index| &entries[index])).await?;
        live.check_columns(&mut session, backup).await?;
        let before = live.take_off(&mut session).await?;
        live.empty(&mut session).await?;
        receipt.seconds.before = phase.elapsed().as_secs_f64();

        let phase = Instant::now();
        // Others' sessions do not see the emptied tables: one stream.
        let plan = backup.plan(1)?;
        let (sessions, loaded) = load::load(backup, plan.data, vec![session], options.copy_as_text).await?;
        let usual = Peculiar::default();
        proof::check_loaded(backup, &usual, &loaded)?;
        receipt.count(backup, &usual, &loaded);
        receipt.seconds.data = phase.elapsed().as_secs_f64();

        let phase = Instant::now();
        let mut sessions = proof::prove(backup, &usual, &loaded, sessions).await?;
        receipt.seconds.proof = phase.elapsed().as_secs_f64();
        let Some(mut session) = sessions.pop() else { return Err(Fault::new("internal", "the session is gone")) };

        let phase = Instant::now();
        receipt.notes.extend(live.set_sequences(&mut session, entries).await?);
        receipt.notes.extend(live.put_back(&mut session, before).await?);
        receipt.notes.extend(live.notes(&mut session).await?);
        receipt.seconds.after = phase.elapsed().as_secs_f64();
        Ok((receipt, session))
    }
}

async fn begin(session: &mut RawSession) -> Result<Transaction, CopyError> {
    let watched: Vec<String> = WATCHED.map(|(name, value)| format!("('{name}', '{value}')")).to_vec();
    let watched = watched.join(", ");
    session.execute("BEGIN; SET LOCAL standard_conforming_strings = on").await?;
    let sql = format!(
        "SELECT pg_catalog.set_config(v.name, v.value, true) FROM (VALUES {watched}) v(name, value)
          WHERE v.name IN (SELECT s.name FROM pg_catalog.pg_settings s)"
    );
    session.execute(sql).await?;
    let sql = "COPY (SELECT pg_catalog.pg_backend_pid(), pg_catalog.txid_current()) TO STDOUT";
    let found = rows(session, sql).await?;
    let number = |at: usize| -> Option<i64> { std::str::from_utf8(found.first()?.get(at)?).ok()?.parse().ok() };
    match (number(0).and_then(|pid| i32::try_from(pid).ok()), number(1)) {
        (Some(pid), Some(id)) => Ok(Transaction { pid, id }),
        _ => Err(CopyError::Protocol { what: "a transaction without a number" }),
    }
}

impl Transaction {
    /// Behind it there is no doubt: where no answer comes the server is asked what became of it.
    async fn commit(&self, mut session: RawSession, watching: &Client, connector: &Connector) -> Result<(), Fault> {
        match tokio::time::timeout(COMMIT_LIMIT, session.execute("COMMIT")).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(CopyError::Io(_))) => {}
            Ok(Err(error)) => return Err(place_fault("the commit", &error)),
            Err(_) => self.end(watching).await,
        }
        for _ in 0..STATUS_ROUNDS {
            let session = connector.session().await?;
            let status = session.client.query_one("SELECT pg_catalog.txid_status($1)", &[&self.id]).await;
            match status.map_err(query_fault)?.get::<_, Option<String>>(0).as_deref() {
                Some("in progress") => tokio::time::sleep(STATUS_PAUSE).await,
                Some("committed") => return Ok(()),
                _ => break,
            }
        }
        Err(Fault::new("database-connection-lost", "the commit was not answered, and did not happen")
            .hint("the rows are as they were; restore again"))
    }

    async fn end(&self, watching: &Client) {
        let _ = watching.query("SELECT pg_catalog.pg_terminate_backend($1)", &[&self.pid]).await;
    }
}
