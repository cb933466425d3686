//! The SQL of one entry of the table of contents, as `pg_restore` would run it, and when.
//!
//! Source: `_printTocEntry`, `_getObjectDescription`, `_tocEntryRestorePass`, `IssueACLPerBlob` in PostgreSQL's
//! `pg_backup_archiver.c` (13–18).

mod large_objects;

use std::collections::BTreeSet;

use crate::archive::lexer::{self, Dialect};
use crate::archive::toc::{Entry, RELKIND_PARTITIONED_TABLE, Toc};
use crate::archive::{admit, older, sql};
use crate::plan::rebuild::{Kind, Phase};

pub use large_objects::large_objects;
use large_objects::{object_ids, objects_of};

/// Large objects named in one statement.
const OBJECT_BATCH: usize = 500;
/// Types that are named by schema and tag in `ALTER … OWNER TO`.
const PLAINLY_NAMED: [&[u8]; 20] = [
    b"COLLATION",
    b"CONVERSION",
    b"DOMAIN",
    b"FOREIGN TABLE",
    b"MATERIALIZED VIEW",
    b"SEQUENCE",
    b"STATISTICS",
    b"TABLE",
    b"TEXT SEARCH DICTIONARY",
    b"TEXT SEARCH CONFIGURATION",
    b"TYPE",
    b"VIEW",
    b"DATABASE",
    b"PROCEDURAL LANGUAGE",
    b"SCHEMA",
    b"EVENT TRIGGER",
    b"FOREIGN DATA WRAPPER",
    b"SERVER",
    b"PUBLICATION",
    b"SUBSCRIPTION",
];
/// Types that are named as their `DROP` names them.
const NAMED_BY_DROP: [&[u8]; 6] =
    [b"AGGREGATE", b"FUNCTION", b"OPERATOR", b"OPERATOR CLASS", b"OPERATOR FAMILY", b"PROCEDURE"];

/// Objects, by the beginnings of their tags, whose comments a role without superuser may not be able to make.
const OF_SUPERUSERS: [&[u8]; 11] = [
    b"EXTENSION ",
    b"EVENT TRIGGER ",
    b"LANGUAGE ",
    b"PROCEDURAL LANGUAGE ",
    b"SCHEMA ",
    b"CAST ",
    b"TRANSFORM ",
    b"FOREIGN DATA WRAPPER ",
    b"ACCESS METHOD ",
    b"PUBLICATION ",
    b"SUBSCRIPTION ",
];

/// Kinds of objects that a role without superuser may not be able to make, or not all of them.
const FOR_SUPERUSERS: [&[u8]; 15] = [
    b"ACCESS METHOD",
    b"AGGREGATE",
    b"CAST",
    b"EVENT TRIGGER",
    b"EXTENSION",
    b"FOREIGN DATA WRAPPER",
    b"OPERATOR CLASS",
    b"OPERATOR FAMILY",
    b"PROCEDURAL LANGUAGE",
    b"PUBLICATION",
    b"PUBLICATION TABLE",
    b"PUBLICATION TABLES IN SCHEMA",
    b"SECURITY LABEL",
    b"SUBSCRIPTION",
    b"TRANSFORM",
];

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
    let of_database = matches!(desc, b"ACL" | b"COMMENT" | b"SECURITY LABEL") && tag.starts_with(b"DATABASE ");
    let phase = match desc {
        b"ENCODING" | b"STDSTRINGS" | b"SEARCHPATH" | b"DATABASE" | b"DATABASE PROPERTIES" => Phase::Never,
        _ if of_database => Phase::Never,
        _ if entry.is_table_data() || entry.is_large_objects() => Phase::Data,
        b"ACL" | b"ACL LANGUAGE" | b"DEFAULT ACL" => Phase::Privileges,
        // Building an index counts the table's rows, also where they were left out and the statistics were not.
        b"EVENT TRIGGER" | b"MATERIALIZED VIEW DATA" | b"STATISTICS DATA" => Phase::Last,
        b"COMMENT" if tag.starts_with(b"EVENT TRIGGER ") => Phase::Last,
        _ => match entry.section {
            2 => Phase::Before,
            3 => Phase::WithData,
            4 => Phase::After,
            _ => Phase::WithItsObject,
        },
    };
    (phase, kind)
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
                script.steps.push(Step { statements, if_refused, defines: true });
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
        self.steps.push(Step { statements: vec![sql.into()], if_refused: None, defines: false });
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

    fn add_owner(&mut self, entry: &Entry, around: &Surroundings) -> Result<(), ScriptError> {
        let (Some(owner), Some(drop_stmt)) = (entry.owner.as_deref(), entry.drop_stmt.as_deref()) else {
            return Ok(());
        };
        if around.no_owner || owner.is_empty() || drop_stmt.is_empty() {
            return Ok(());
        }
        let desc = entry.desc();
        let objects: Vec<Vec<u8>> = if desc == b"BLOB METADATA" {
            object_ids(entry)?.iter().map(|oid| format!("LARGE OBJECT {oid}").into_bytes()).collect()
        } else if desc == b"BLOB" {
            let oid = entry.oid().ok_or_else(|| ScriptError::LargeObjects { entry: described(entry) })?;
            vec![format!("LARGE OBJECT {oid}").into_bytes()]
        } else if PLAINLY_NAMED.contains(&desc) {
            vec![[desc, b" ", &qualified(entry)].concat()]
        } else if NAMED_BY_DROP.contains(&desc) {
            let named = drop_stmt.strip_prefix(b"DROP ").filter(|named| named.starts_with(desc));
            let named = named.ok_or_else(|| unexpected(entry, drop_stmt))?.trim_ascii_end();
            let named = named.strip_suffix(b";").unwrap_or(named);
            vec![named.to_vec()]
        } else {
            Vec::new()
        };
        if objects.is_empty() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(owner);
        if !around.roles.contains(owner) {
            self.left_out.push(format!("{} is not {name}'s: there is no such role", described(entry)));
            return Ok(());
        }
        if !around.superuser && !around.inherited.contains(owner) {
            let why = "the restoring role does not inherit from it";
            self.left_out.push(format!("{} cannot be given to {name}: {why}", described(entry)));
            return Ok(());
        }
        for batch in objects.chunks(OBJECT_BATCH) {
            let statements: Vec<Vec<u8>> = batch
                .iter()
                .map(|object| [b"ALTER ", object.as_slice(), b" OWNER TO ", &sql::identifier(owner)].concat())
                .collect();
            let if_refused = (!around.superuser).then(|| format!("{} cannot be given to {name}", described(entry)));
            self.steps.push(Step { statements, if_refused, defines: false });
        }
        Ok(())
    }

    /// `GRANT` and `REVOKE`, for each of `objects` where the entry stands for several large objects.
    fn add_privileges(
        &mut self,
        entry: &Entry,
        statements: &[&[u8]],
        objects: &[u32],
        around: &Surroundings,
    ) -> Result<(), ScriptError> {
        let mut acting_as: Option<Vec<u8>> = None;
        let mut unknown_actor = false;
        for &statement in statements {
            let words = sql::words(statement);
            if words.starts_with(&[b"SET", b"SESSION", b"AUTHORIZATION"]) {
                let actor = words.get(3).map(|word| sql::unquoted(word)).unwrap_or_default();
                unknown_actor = !around.roles.contains(&actor);
                acting_as = Some(actor);
                continue;
            }
            if words.starts_with(&[b"RESET", b"SESSION", b"AUTHORIZATION"]) {
                (acting_as, unknown_actor) = (None, false);
                continue;
            }
            if !admit::is_expected_privilege(&words) {
                return Err(unexpected(entry, statement));
            }
            let missing = sql::privilege_roles(&words).into_iter().find(|role| !around.roles.contains(role));
            if missing.is_some() || unknown_actor {
                let role = missing.or_else(|| acting_as.clone()).unwrap_or_default();
                self.left_out.push(format!(
                    "a privilege of {}: there is no role {}",
                    described(entry),
                    String::from_utf8_lossy(&role)
                ));
                continue;
            }
            let each: Vec<Vec<u8>> = if objects.is_empty() {
                vec![statement.to_vec()]
            } else {
                objects
                    .iter()
                    .map(|oid| sql::with_large_object(statement, *oid).ok_or_else(|| unexpected(entry, statement)))
                    .collect::<Result<_, _>>()?
            };
            for batch in each.chunks(OBJECT_BATCH) {
                let mut statements = batch.to_vec();
                if let Some(actor) = &acting_as {
                    statements.insert(0, [b"SET SESSION AUTHORIZATION ", sql::identifier(actor).as_slice()].concat());
                    statements.push(b"RESET SESSION AUTHORIZATION".to_vec());
                }
                let if_refused = (!around.superuser).then(|| format!("a privilege of {}", described(entry)));
                self.steps.push(Step { statements, if_refused, defines: false });
            }
        }
        Ok(())
    }
}

/// What a role without superuser may lack the right for, and the data can do without. What depends on it fails, and
/// says on what.
fn needs_superuser(entry: &Entry, around: &Surroundings) -> bool {
    let tag = entry.tag.as_deref().unwrap_or_default();
    let defn = entry.defn.as_deref().unwrap_or_default();
    let spared = match entry.desc() {
        b"COMMENT" => OF_SUPERUSERS.iter().any(|kind| tag.starts_with(kind)),
        b"FUNCTION" | b"PROCEDURE" => !matches!(language(defn), Some(b"sql" | b"plpgsql")),
        desc => FOR_SUPERUSERS.contains(&desc),
    };
    spared && !around.superuser
}

/// Whether an entry only says something about others, or puts them to use: without them it is left out as well.
pub fn hangs_on_others(entry: &Entry) -> bool {
    let desc = entry.desc();
    matches!(desc, b"COMMENT" | b"ACL" | b"ACL LANGUAGE") || (FOR_SUPERUSERS.contains(&desc) && desc != b"EXTENSION")
}

/// The language of a function, as `dumpFunc` in `pg_dump.c` writes it; that of an SQL body is before it, too.
fn language(defn: &[u8]) -> Option<&[u8]> {
    const WORD: &[u8] = b"\n    LANGUAGE ";
    let at = defn.windows(WORD.len()).position(|window| window == WORD)?;
    defn[at + WORD.len()..].split(u8::is_ascii_whitespace).next()
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
