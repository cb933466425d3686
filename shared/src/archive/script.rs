//! The SQL of one entry of the table of contents, as `pg_restore` would run it, and when.
//!
//! Source: `_printTocEntry`, `_getObjectDescription`, `_tocEntryRestorePass`, `IssueACLPerBlob` in PostgreSQL's
//! `pg_backup_archiver.c` (13–18).

mod large_objects;
mod owners;
mod superusers;

use std::collections::BTreeSet;

use crate::archive::lexer::{self, Dialect};
use crate::archive::toc::{Entry, RELKIND_PARTITIONED_TABLE, Toc};
use crate::archive::{admit, older, sql};
use crate::plan::rebuild::{Kind, Phase};

pub use large_objects::large_objects;
use large_objects::{object_ids, objects_of};
pub use superusers::hangs_on_others;
use superusers::needs_superuser;

/// Large objects named in one statement.
const OBJECT_BATCH: usize = 500;
/// What the target server has, and what is wanted of it. Names are in the archive's encoding.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub major: u32,
    pub roles: BTreeSet<Vec<u8>>,
    pub tablespaces: BTreeSet<Vec<u8>>,
    pub superuser: bool,
    /// Roles whose rights the restoring role has: what belongs to another it could not load or read.
    pub inherited: BTreeSet<Vec<u8>>,
    pub no_owner: bool,
    pub no_privileges: bool,
}

/// Statements that take effect together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// To be sent so that the server takes each for one statement.
    pub statements: Vec<Vec<u8>>,
    /// What to tell where the role has not the right to do it; `None`: that is an error.
    pub if_refused: Option<String>,
    /// Whether it makes the object: without it there is nothing for the entry's other steps.
    pub defines: bool,
    /// Whether privileges that are granted later may be what it is refused for.
    pub postponable: bool,
}

/// What one entry comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    pub steps: Vec<Step>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScriptError {
    #[error("the definition of {entry} is not one that pg_dump writes: it begins with {beginning:?}")]
    Unexpected { entry: String, beginning: String },
    #[error("{entry} names large objects that the archive does not list")]
    LargeObjects { entry: String },
}

/// When an entry is restored, and what it is to others.
pub fn classify(entry: &Entry) -> (Phase, Kind) {
    let tag = entry.tag.as_deref().unwrap_or_default();
    let desc = entry.desc();
    let kind = match desc {
        b"TABLE" => Kind::Table,
        b"TABLE DATA" => Kind::TableData,
        // Behind a `CREATE INDEX` there may be an `ALTER TABLE … CLUSTER ON`, which wants the table for itself.
        b"INDEX" if !contains(entry.defn.as_deref().unwrap_or_default(), b"ALTER TABLE") => Kind::Index,
        b"CONSTRAINT" => Kind::Key,
        _ => Kind::Other,
    };
    let phase = match desc {
        b"ENCODING" | b"STDSTRINGS" | b"SEARCHPATH" | b"DATABASE" => Phase::Never,
        _ if is_about_the_database(entry) => Phase::Never,
        _ if entry.is_table_data() || entry.is_large_objects() => Phase::Data,
        b"ACL" | b"ACL LANGUAGE" | b"DEFAULT ACL" => Phase::Privileges,
        // Building an index counts the table's rows, also where they were left out and the statistics were not.
        b"MATERIALIZED VIEW DATA" | b"STATISTICS DATA" => Phase::Last,
        b"EVENT TRIGGER" => Phase::AfterProof,
        b"COMMENT" | b"SECURITY LABEL" if tag.starts_with(b"EVENT TRIGGER ") => Phase::AfterProof,
        _ => match entry.section {
            2 => Phase::Before,
            3 => Phase::WithData,
            4 => Phase::After,
            _ => Phase::WithItsObject,
        },
    };
    (phase, kind)
}

/// Settings, privileges, comment or label of the database as a whole, which `pg_restore` restores with `--create` only.
pub fn is_about_the_database(entry: &Entry) -> bool {
    let tag = entry.tag.as_deref().unwrap_or_default();
    match entry.desc() {
        b"DATABASE PROPERTIES" => true,
        b"ACL" | b"COMMENT" | b"SECURITY LABEL" => tag.starts_with(b"DATABASE "),
        _ => false,
    }
}

/// Dump ids an entry depends on; what is no number is dropped, as `pg_restore` drops ids it does not know.
pub fn dependencies(entry: &Entry) -> Vec<i32> {
    entry.dependencies.iter().filter_map(|id| std::str::from_utf8(id).ok()?.trim().parse().ok()).collect()
}

/// What sets up a session for the archive's SQL, beyond [`crate::postgres::session::session_settings`].
///
/// # Errors
/// [`ScriptError::Unexpected`] where the archive's settings are not `SET name = 'value'`.
pub fn session_settings(toc: &Toc) -> Result<Vec<u8>, ScriptError> {
    let mut settings = Vec::new();
    for entry in &toc.entries {
        let name: &[u8] = match entry.desc() {
            b"ENCODING" => b"client_encoding",
            b"STDSTRINGS" => b"standard_conforming_strings",
            _ => continue,
        };
        let defn = entry.defn.as_deref().unwrap_or_default();
        let value = defn
            .split(|&byte| byte == b'\'')
            .nth(1)
            .filter(|value| value.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
        let Some(value) = value else { return Err(unexpected(entry, defn)) };
        settings.extend_from_slice(b"SET ");
        settings.extend_from_slice(name);
        settings.extend_from_slice(b" = '");
        settings.extend_from_slice(value);
        settings.extend_from_slice(b"'; ");
    }
    settings.extend_from_slice(
        b"SET search_path = ''; SET check_function_bodies = off; SET xmloption = 'content'; SET client_min_messages = warning; \
          SET row_security = off; SET default_tablespace = ''; SET default_table_access_method = 'heap'",
    );
    Ok(settings)
}

/// The statements of an entry that is no table data.
///
/// # Errors
/// [`ScriptError`]: the archive is not one that `pg_dump` wrote.
pub fn script(toc: &Toc, entry: &Entry, around: &Surroundings) -> Result<Script, ScriptError> {
    let mut script = Script::default();
    let dialect = Dialect::of(toc);
    let tag = entry.tag.as_deref().unwrap_or_default();
    let defn = entry.defn.as_deref().unwrap_or_default();
    match entry.desc() {
        b"BLOB METADATA" => {
            for batch in object_ids(entry)?.chunks(OBJECT_BATCH) {
                let list = batch.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
                script.add(format!(
                    "SELECT pg_catalog.lo_create(o) FROM pg_catalog.unnest('{{{list}}}'::pg_catalog.oid[]) o"
                ));
            }
        }
        b"ACL" | b"ACL LANGUAGE" | b"DEFAULT ACL" => {
            if around.no_privileges {
                return Ok(script);
            }
            let each = if tag.starts_with(b"LARGE OBJECTS") { objects_of(toc, entry)? } else { Vec::new() };
            script.add_privileges(entry, &lexer::statements(defn, dialect), &each, around)?;
            return Ok(script);
        }
        // Every new database has it. A dump of chosen schemas would make it all the same.
        b"SCHEMA" if tag == b"public" => {}
        b"SCHEMA" if around.no_owner && !defn.starts_with(b"--") => {
            script.add([b"CREATE SCHEMA ".as_slice(), &sql::identifier(tag)].concat());
        }
        _ if !defn.trim_ascii().is_empty() => {
            let statements = lexer::statements(defn, dialect);
            if let Some(other) = statements.iter().find(|statement| !admit::is_expected(entry.desc(), statement)) {
                return Err(unexpected(entry, other));
            }
            if !older::is_known(entry.desc(), around.major) || script.lacks_mapped_role(entry, around) {
                return Ok(script);
            }
            let if_refused = needs_superuser(entry, around).then(|| format!("{} needs a superuser", described(entry)));
            if !statements.is_empty() {
                let statements = script.with_storage(entry, &statements, around);
                script.steps.push(Step { statements, if_refused, defines: true, postponable: false });
            }
        }
        _ => {}
    }
    script.add_owner(entry, around)?;
    if entry.relkind == RELKIND_PARTITIONED_TABLE
        && let Some(method) = entry.table_access_method.as_deref().filter(|m| !m.is_empty())
    {
        let name = qualified(entry);
        script.add([b"ALTER TABLE ", name.as_slice(), b" SET ACCESS METHOD ", &sql::identifier(method)].concat());
    }
    Ok(script)
}

impl Script {
    fn add(&mut self, sql: impl Into<Vec<u8>>) {
        self.steps.push(Step { statements: vec![sql.into()], if_refused: None, defines: false, postponable: false });
    }

    /// `CREATE USER MAPPING FOR role SERVER …`, and there is no such role.
    fn lacks_mapped_role(&mut self, entry: &Entry, around: &Surroundings) -> bool {
        if entry.desc() != b"USER MAPPING" {
            return false;
        }
        let words = sql::leading_words(entry.defn.as_deref().unwrap_or_default(), 5);
        let role = words.get(4).map(|word| sql::unquoted(word)).unwrap_or_default();
        let lacks = role != b"public" && !around.roles.contains(&role);
        if lacks {
            let name = String::from_utf8_lossy(&role);
            self.left_out.push(format!("{}: there is no role {name}", described(entry)));
        }
        lacks
    }

    /// The definition, between the settings that choose where a table is stored.
    fn with_storage(&mut self, entry: &Entry, definition: &[&[u8]], around: &Surroundings) -> Vec<Vec<u8>> {
        let (mut statements, mut after) = (Vec::new(), Vec::new());
        if let Some(tablespace) = entry.tablespace.as_deref().filter(|name| !name.is_empty()) {
            if around.tablespaces.contains(tablespace) {
                statements.push([b"SET default_tablespace = ".as_slice(), &sql::identifier(tablespace)].concat());
                after.push(b"SET default_tablespace = ''".to_vec());
            } else {
                let name = String::from_utf8_lossy(tablespace);
                self.left_out.push(format!("tablespace {name:?} of {} is not here", described(entry)));
            }
        }
        let method = entry.table_access_method.as_deref().filter(|&name| !name.is_empty() && name != b"heap");
        if let Some(method) = method.filter(|_| entry.relkind != RELKIND_PARTITIONED_TABLE) {
            statements.push([b"SET default_table_access_method = ".as_slice(), &sql::identifier(method)].concat());
            after.push(b"SET default_table_access_method = 'heap'".to_vec());
        }
        let desc = entry.desc();
        statements.extend(definition.iter().map(|statement| older::for_major(desc, statement, around.major)));
        statements.append(&mut after);
        statements
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn unexpected(entry: &Entry, text: &[u8]) -> ScriptError {
    let beginning = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
    ScriptError::Unexpected { entry: described(entry), beginning }
}

/// `INDEX app.orders_note`, for messages.
pub fn described(entry: &Entry) -> String {
    format!("{} {}", String::from_utf8_lossy(entry.desc()), entry.label())
}

/// `schema.tag`, quoted.
pub fn qualified(entry: &Entry) -> Vec<u8> {
    let tag = sql::identifier(entry.tag.as_deref().unwrap_or_default());
    match entry.namespace.as_deref() {
        None | Some(b"") => tag,
        Some(namespace) => [sql::identifier(namespace).as_slice(), b".", &tag].concat(),
    }
}
