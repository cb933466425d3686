//! Databases as a whole: created like their source, dropped.

use holdfast_shared::archive::toc::Toc;
use holdfast_shared::domain::table::quote_identifier;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::catalog;
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession};
use holdfast_shared::postgres::session::{query_fault, sql_state};

use crate::engine::Engine;
use crate::engine::source::Backup;

/// What of `CREATE DATABASE` decides how text is stored and compared; the rest is the target's.
const LOCALE_OPTIONS: [&str; 8] =
    ["ENCODING", "LOCALE_PROVIDER", "LOCALE", "LC_COLLATE", "LC_CTYPE", "ICU_LOCALE", "ICU_RULES", "BUILTIN_LOCALE"];

impl Engine {
    /// Creates a database with the encoding and locale of the source.
    pub(super) async fn create_database(&self, name: &str, backup: &Backup) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
        let options = locale_options(&backup.archive.toc, facts.major());
        let sql = format!("CREATE DATABASE {} WITH TEMPLATE = template0{options}", quote_identifier(name));
        session.client.batch_execute(&sql).await.map_err(|error| match sql_state(&error) {
            Some("42P04") => Fault::from_error("restore-target-exists", &error).hint("choose another name"),
            Some("42501") => Fault::from_error("restore-not-permitted", &error).hint("ALTER ROLE … CREATEDB"),
            Some("22023" | "42704" | "0A000") => Fault::from_error("restore-locale-missing", &error)
                .hint("the server has to know the source's encoding and locale"),
            _ => query_fault(error),
        })
    }

    /// Ends every session in it, and drops it.
    pub(super) async fn drop_database(&self, name: &str) -> Result<(), Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(name));
        match session.client.batch_execute(&sql).await {
            // Subscriptions keep a database, and `FORCE` does not end them.
            Err(error) if sql_state(&error) == Some("55006") => {
                self.drop_subscriptions(name).await?;
                session.client.batch_execute(&sql).await.map_err(query_fault)
            }
            dropped => dropped.map_err(query_fault),
        }
    }

    /// Without a word to their publishers: as restored they have no slot there.
    async fn drop_subscriptions(&self, database: &str) -> Result<(), Fault> {
        let session = self.connector(database)?.session().await?;
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
}

/// The options of the archive's `CREATE DATABASE`, each with a literal or a plain word behind it.
fn locale_options(toc: &Toc, target_major: u32) -> String {
    let entry = toc.entries.iter().find(|entry| entry.desc() == b"DATABASE");
    let defn = entry.and_then(|entry| std::str::from_utf8(entry.defn.as_deref()?).ok()).unwrap_or_default();
    let Some((_, options)) = defn.rsplit_once(" WITH TEMPLATE = template0") else { return String::new() };
    let mut rest = options.trim().trim_end_matches(';');
    let mut rendered = String::new();
    while let Some((key, tail)) = rest.split_once('=') {
        let tail = tail.trim_start();
        let value_len = match tail.strip_prefix('\'') {
            Some(inner) => inner.find('\'').map_or(tail.len(), |end| end + 2),
            None => tail.find(char::is_whitespace).unwrap_or(tail.len()),
        };
        let value = &tail[..value_len];
        let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || " '_-.@=&<,".contains(c));
        // Before 15 there was but one provider, and no word for it.
        let known = target_major >= 15 || key.trim() != "LOCALE_PROVIDER" || value != "libc";
        if LOCALE_OPTIONS.contains(&key.trim()) && plain && known {
            rendered.push_str(&format!(" {} = {value}", key.trim()));
        }
        rest = tail[value_len..].trim_start();
    }
    rendered
}

/// The first column of a `COPY … TO STDOUT`, its escapes undone.
pub async fn first_column(session: &mut RawSession, sql: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, Fault> {
    let failed = |error: CopyError| Fault::from_error("database-query-failed", &error);
    let mut copy = session.copy_out(sql).await.map_err(failed)?;
    let mut text = Vec::new();
    loop {
        while let Some(item) = copy.next_item().map_err(failed)? {
            match item {
                Item::Row(bytes) | Item::Fragment { bytes, .. } => text.extend_from_slice(bytes),
            }
        }
        if !copy.fill().await.map_err(failed)? {
            break;
        }
    }
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| unescaped(line.split(|&byte| byte == b'\t').next().unwrap_or_default())).collect())
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        text.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(&other) => other,
                None => byte,
            },
            _ => byte,
        });
    }
    text
}
