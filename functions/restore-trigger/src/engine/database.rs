//! Databases as a whole, created like their source; and small queries.

use holdfast_shared::archive::sql;
use holdfast_shared::archive::toc::Toc;
use holdfast_shared::domain::table::quote_identifier;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::catalog;
use holdfast_shared::postgres::copy::{CopyError, Item, RawSession, unescape};
use holdfast_shared::postgres::session::{query_fault, sql_state};

use crate::engine::source::Backup;
use crate::engine::unfinished::Unfinished;
use crate::engine::{Engine, Options};

/// What of `CREATE DATABASE` decides how text is stored and compared; the rest is the target's.
const LOCALE_OPTIONS: [&str; 8] =
    ["ENCODING", "LOCALE_PROVIDER", "LOCALE", "LC_COLLATE", "LC_CTYPE", "ICU_LOCALE", "ICU_RULES", "BUILTIN_LOCALE"];

impl Engine {
    /// Creates a database with the encoding and locale of the source, marked as unfinished. `held` is what this run
    /// has the lease on.
    pub(super) async fn create_database(&self, name: &str, held: &str, backup: &Backup) -> Result<Unfinished, Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
        let options = locale_options(&backup.archive.toc, facts.major()) + &self.mark();
        let sql = format!("CREATE DATABASE {} WITH TEMPLATE = template0{options}", quote_identifier(name));
        // As the archive writes its literals: rules of ICU are full of backslashes.
        session.client.batch_execute("SET standard_conforming_strings = on").await.map_err(query_fault)?;
        session.client.batch_execute(&sql).await.map_err(|error| match sql_state(&error) {
            Some("42P04") => Fault::from_error("restore-target-exists", &error).hint("choose another name"),
            Some("42501") => Fault::from_error("restore-not-permitted", &error).hint("ALTER ROLE … CREATEDB"),
            Some("22023" | "42704" | "42809" | "0A000") => Fault::from_error("restore-locale-missing", &error)
                .hint("the server has to know the source's encoding and locale"),
            Some("53100") => Fault::from_error("target-disk-full", &error).hint("give the target server more storage"),
            _ => query_fault(error),
        })?;
        self.describe(&session.client, name, held).await
    }

    /// Gives a new database to its owner before anything is in it: who owns a database may make tables in its schema
    /// `public`, and only who may is given any. What to tell where it cannot be.
    pub(super) async fn give(
        &self,
        name: &str,
        replaced: Option<&str>,
        backup: &Backup,
        options: Options,
    ) -> Result<Option<String>, Fault> {
        let session = self.connector(&self.target.database)?.session().await?;
        let owner = match replaced {
            Some(replaced) => {
                let sql =
                    "SELECT pg_catalog.pg_get_userbyid(datdba)::text FROM pg_catalog.pg_database WHERE datname = $1";
                session.client.query_opt(sql, &[&replaced]).await.map_err(query_fault)?.map(|row| row.get(0))
            }
            None if options.no_owner => None,
            None => {
                let entry = backup.archive.toc.entries.iter().find(|entry| entry.desc() == b"DATABASE");
                entry.and_then(|entry| entry.owner.as_deref()).map(|owner| String::from_utf8_lossy(owner).into_owned())
            }
        };
        let Some(owner) = owner.filter(|owner: &String| !owner.is_empty()) else { return Ok(None) };
        let told = |why: &str| Ok(Some(format!("DATABASE {name} cannot be given to {owner}: {why}")));
        let sql = "SELECT pg_catalog.pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = $1::text::name";
        let role = session.client.query_opt(sql, &[&owner]).await.map_err(query_fault)?;
        match role.map(|row| row.get(0)) {
            None => return told("there is no such role"),
            // It could neither be filled nor dropped then.
            Some(false) => return told("the restoring role does not inherit from it"),
            Some(true) => {}
        }
        let sql = format!("ALTER DATABASE {} OWNER TO {}", quote_identifier(name), quote_identifier(&owner));
        match session.client.batch_execute(&sql).await {
            Err(error) if sql_state(&error) == Some("42501") => told(&query_fault(error).message),
            done => done.map(|()| None).map_err(query_fault),
        }
    }
}

/// The options of the archive's `CREATE DATABASE`, each with a literal or a plain word behind it.
fn locale_options(toc: &Toc, target_major: u32) -> String {
    const BEFORE: &[u8] = b" WITH TEMPLATE = template0";
    let entry = toc.entries.iter().find(|entry| entry.desc() == b"DATABASE");
    let defn = entry.and_then(|entry| entry.defn.as_deref()).unwrap_or_default();
    // The name before is in the database's encoding.
    let Some(at) = defn.windows(BEFORE.len()).rposition(|part| part == BEFORE) else { return String::new() };
    let words: Vec<&str> = sql::words(&defn[at + BEFORE.len()..])
        .into_iter()
        .map(|word| std::str::from_utf8(word).unwrap_or_default())
        .collect();
    let mut rendered = String::new();
    for option in words.windows(3).filter(|option| option[1] == "=") {
        let (key, value) = (option[0], option[2]);
        let literal = value.len() > 1 && value.starts_with('\'') && value.ends_with('\'');
        let word = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        // Before 15 there was but one provider, and no word for it.
        let known = target_major >= 15 || key != "LOCALE_PROVIDER" || value != "libc";
        if LOCALE_OPTIONS.contains(&key) && (literal || word) && known {
            rendered.push_str(&format!(" {key} = {value}"));
        }
    }
    rendered
}

/// The first column of a `COPY … TO STDOUT`, its escapes undone.
pub async fn first_column(session: &mut RawSession, sql: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, Fault> {
    let rows = rows(session, sql).await.map_err(|error| Fault::from_error("database-query-failed", &error))?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next()).filter(|field| !field.is_empty()).collect())
}

/// The fields of a `COPY … TO STDOUT`, their escapes undone; a null is empty.
pub async fn rows(session: &mut RawSession, sql: impl AsRef<[u8]>) -> Result<Vec<Vec<Vec<u8>>>, CopyError> {
    let mut copy = session.copy_out(sql).await?;
    let mut text = Vec::new();
    loop {
        while let Some(item) = copy.next_item()? {
            match item {
                Item::Row(bytes) | Item::Fragment { bytes, .. } => text.extend_from_slice(bytes),
            }
        }
        if !copy.fill().await? {
            break;
        }
    }
    let lines = text.strip_suffix(b"\n").map(|text| text.split(|&byte| byte == b'\n')).into_iter().flatten();
    Ok(lines.map(|line| line.split(|&byte| byte == b'\t').map(unescaped).collect()).collect())
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    if field == b"\\N" {
        return Vec::new();
    }
    let mut text = Vec::with_capacity(field.len());
    unescape(field, &mut text).map_or_else(|| field.to_vec(), |()| text)
}
