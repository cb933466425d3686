//! What a role without superuser may lack the right for, and a restore can do without.

use super::Surroundings;
use crate::archive::toc::Entry;

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

/// What a role without superuser may lack the right for, and the data can do without. What depends on it fails, and
/// says on what.
pub(super) fn needs_superuser(entry: &Entry, around: &Surroundings) -> bool {
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
