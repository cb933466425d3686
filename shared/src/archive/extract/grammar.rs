//! Where the statements that `pg_dump` writes for a table have names of relations.

use super::Name;
use crate::archive::sql;
use crate::archive::toc::Entry;

/// Where a statement has names of relations; `None`: it is none that belongs to a table.
pub(super) fn names_in(words: &[&[u8]]) -> Option<Vec<usize>> {
    let plain: Vec<&[u8]> = words.iter().take(8).copied().collect();
    let mut names = Vec::new();
    match plain.as_slice() {
        [b"CREATE", b"TABLE" | b"SEQUENCE", ..] => names.push(2),
        [b"CREATE", b"UNLOGGED", b"TABLE" | b"SEQUENCE", ..] => names.push(3),
        [b"CREATE", b"INDEX", ..] | [b"CREATE", b"UNIQUE", b"INDEX", ..] => {
            names.push(after_only(words, behind(words, &[b"ON"])?));
        }
        [b"ALTER", b"TABLE", ..] => names.push(after_only(words, 2)),
        [b"ALTER", b"INDEX" | b"SEQUENCE", ..] => names.push(2),
        [b"COMMENT", b"ON", b"CONSTRAINT", _, b"ON", ..] => names.push(5),
        [b"COMMENT", b"ON", b"TABLE" | b"COLUMN" | b"INDEX" | b"SEQUENCE", ..] => return Some(vec![3]),
        _ => return None,
    }
    if plain.starts_with(&[b"CREATE"]) && !plain.contains(&b"INDEX".as_slice()) {
        names.extend(inherited(words));
    }
    if plain.starts_with(&[b"ALTER"]) {
        let rest = names[0] + 3;
        names.extend(match words.get(rest) {
            Some(&b"ATTACH") => Some(rest + 2),
            Some(&b"OWNED") => Some(rest + 2),
            Some(&b"ADD") => behind(words, &[b"REFERENCES"]),
            Some(&b"ALTER") => behind(words, &[b"SEQUENCE", b"NAME"]),
            _ => None,
        });
    }
    Some(names)
}

/// The tables in `INHERITS (…)`.
fn inherited(words: &[&[u8]]) -> Vec<usize> {
    let Some(first) = behind(words, &[b"INHERITS", b"("]) else { return Vec::new() };
    let list = words[first..].iter().position(|word| *word == b")").unwrap_or(0);
    (first..first + list).filter(|&at| at == first || words[at - 1] == b",").collect()
}

/// The tables that a table inherits from.
pub(super) fn parents(entry: &Entry) -> Vec<Name> {
    let words = sql::words(entry.defn.as_deref().unwrap_or_default());
    inherited(&words).into_iter().filter_map(|at| relation(&words, at)).collect()
}

/// Parent and partition of `ALTER TABLE ONLY parent ATTACH PARTITION child …`.
pub(super) fn attached(entry: &Entry) -> Option<(Name, Name)> {
    let words = sql::words(entry.defn.as_deref()?);
    Some((altered(&words)?, relation(&words, behind(&words, &[b"ATTACH", b"PARTITION"])?)?))
}

/// The table of `ALTER TABLE [ONLY] table …`.
pub(super) fn altered(words: &[&[u8]]) -> Option<Name> {
    words.starts_with(&[b"ALTER", b"TABLE"]).then(|| relation(words, after_only(words, 2))).flatten()
}

/// The table of `CREATE INDEX … ON [ONLY] table`.
pub(super) fn indexed(words: &[&[u8]]) -> Option<Name> {
    relation(words, after_only(words, behind(words, &[b"ON"])?))
}

/// The table that a foreign key points to.
pub(super) fn referenced(words: &[&[u8]]) -> Option<Name> {
    relation(words, behind(words, &[b"REFERENCES"])?)
}

/// What `COMMENT ON` is about: a relation, or that of a column or constraint.
pub(super) fn commented(words: &[&[u8]]) -> Option<Name> {
    relation(words, *names_in(words)?.first()?)
}

/// Behind the first occurrence of some words.
pub(super) fn behind(words: &[&[u8]], sought: &[&[u8]]) -> Option<usize> {
    words.windows(sought.len()).position(|window| window == sought).map(|at| at + sought.len())
}

/// Behind `ONLY`, if that stands there.
fn after_only(words: &[&[u8]], at: usize) -> usize {
    if words.get(at) == Some(&b"ONLY".as_slice()) { at + 1 } else { at }
}

/// `schema.name` at a word.
pub(super) fn relation(words: &[&[u8]], at: usize) -> Option<Name> {
    match words.get(at..at + 3)? {
        [schema, b".", name] => Some((sql::unquoted(schema), sql::unquoted(name))),
        _ => None,
    }
}

/// Where a column's default ends: what the server prints there is one term, so that nothing follows but a constraint.
pub(super) fn expression_end(words: &[&[u8]], from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, word) in words.iter().enumerate().skip(from) {
        match *word {
            b"(" | b"[" => depth += 1,
            b")" | b"," | b"NOT" | b"CONSTRAINT" if depth == 0 => return at,
            b")" | b"]" => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    words.len()
}
