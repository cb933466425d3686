//! Chosen tables of an archive: which entries they are, and their definitions moved into a schema of their own.
//!
//! A definition is rewritten only where its grammar, as `pg_dump` writes it, has the name of a relation that moves: the
//! schema in front of that name changes. What stands in expressions, types and functions above all, means what it meant.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::script::{dependencies, described};
use crate::archive::sql;
use crate::archive::toc::{Entry, Offset, Toc};
use crate::domain::{QualifiedName, TablePattern};

/// Entries that act on a table beside its rows: in a copy they would act on live tables, or have no use.
const LEFT_OUT: [&[u8]; 5] = [b"TRIGGER", b"RULE", b"POLICY", b"ROW SECURITY", b"STATISTICS"];
/// `relkind` of a partitioned table; archives before 1.16 do not have it.
const PARTITIONED: i32 = b'p' as i32;

/// Schema and name, in the archive's encoding.
pub type Name = (Vec<u8>, Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExtractError {
    #[error("the backup has no tables {}", patterns.join(", "))]
    NoSuchTables { patterns: Vec<String> },
    #[error("{first} and {second} would have one name in one schema")]
    Collision { first: String, second: String },
    #[error("the definition of {entry} is not one that pg_dump writes: it begins with {beginning:?}")]
    Unexpected { entry: String, beginning: String },
}

/// Tables that patterns choose; numbers of entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// In the archive's order; with a partitioned table come its partitions.
    pub tables: Vec<usize>,
    /// Their rows.
    pub data: Vec<usize>,
    /// Those whose rows the backup does not have.
    pub without_data: Vec<usize>,
}

/// The entries that make the chosen tables in another schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    pub entries: BTreeSet<usize>,
    /// What belongs to the tables and does not come with them.
    pub left_out: Vec<String>,
}

/// The tables that patterns choose.
///
/// # Errors
/// [`ExtractError::NoSuchTables`] with every pattern that chooses none.
pub fn choose(toc: &Toc, patterns: &[TablePattern]) -> Result<Chosen, ExtractError> {
    let tables: BTreeSet<Name> = of_kind(toc, b"TABLE").map(|(_, entry)| name_of(entry)).collect();
    let chooses = |pattern: &TablePattern, name: &Name| pattern.matches(&readable(name));
    let unmatched = patterns.iter().filter(|pattern| !tables.iter().any(|name| chooses(pattern, name)));
    let unmatched: Vec<String> = unmatched.map(ToString::to_string).collect();
    if !unmatched.is_empty() {
        return Err(ExtractError::NoSuchTables { patterns: unmatched });
    }
    let mut names: BTreeSet<Name> =
        tables.iter().filter(|name| patterns.iter().any(|pattern| chooses(pattern, name))).cloned().collect();
    let links: Vec<(Name, Name)> = of_kind(toc, b"TABLE ATTACH").filter_map(|(_, entry)| attached(entry)).collect();
    loop {
        let partitions = links.iter().filter(|(parent, child)| names.contains(parent) && tables.contains(child));
        let more: Vec<Name> =
            partitions.map(|(_, child)| child).filter(|child| !names.contains(child)).cloned().collect();
        if more.is_empty() {
            break;
        }
        names.extend(more);
    }
    let rows: BTreeMap<Name, usize> = of_kind(toc, b"TABLE DATA")
        .filter(|(_, entry)| entry.offset != Offset::NoData)
        .map(|(index, entry)| (name_of(entry), index))
        .collect();
    let mut chosen = Chosen::default();
    for (index, entry) in of_kind(toc, b"TABLE").filter(|(_, entry)| names.contains(&name_of(entry))) {
        chosen.tables.push(index);
        match rows.get(&name_of(entry)) {
            Some(&data) => chosen.data.push(data),
            None if is_partitioned(entry) => {}
            None => chosen.without_data.push(index),
        }
    }
    Ok(chosen)
}

/// Moves the chosen tables, and what is part of them, into `schema`, which is plain ASCII.
///
/// # Errors
/// [`ExtractError::Collision`] where two relations would have one name.
pub fn move_to(toc: &mut Toc, chosen: &Chosen, schema: &str) -> Result<Moved, ExtractError> {
    let mut moving = Moving::new(toc, chosen, schema)?;
    let mut definitions = Vec::new();
    for (index, entry) in toc.entries.iter().enumerate() {
        if let Some(definition) = moving.definition(entry)? {
            definitions.push((index, definition));
        }
    }
    let Moving { mut moved, schema: quoted, .. } = moving;
    for (index, definition) in definitions {
        toc.entries[index].defn = Some(definition);
        moved.entries.insert(index);
    }
    for &index in &chosen.data {
        let entry = &mut toc.entries[index];
        // COPY schema.table …
        entry.copy_stmt = entry.copy_stmt.as_deref().map(|copy| replaced(copy, &[1], &quoted));
        moved.entries.insert(index);
    }
    for &index in &moved.entries {
        let entry = &mut toc.entries[index];
        // They belong to the role that restores: the schema is for whoever asked for it.
        (entry.owner, entry.drop_stmt) = (None, None);
        entry.namespace = Some(schema.as_bytes().to_vec());
    }
    Ok(moved)
}

struct Moving {
    /// Quoted.
    schema: Vec<u8>,
    tables: BTreeSet<Name>,
    /// The tables' dump ids.
    ids: BTreeSet<i32>,
    /// Tables whose rows come along, or those of their partitions.
    with_rows: BTreeSet<Name>,
    sequences: BTreeSet<Name>,
    /// Those of keys, too.
    indexes: BTreeSet<Name>,
    moved: Moved,
}

impl Moving {
    fn new(toc: &Toc, chosen: &Chosen, schema: &str) -> Result<Self, ExtractError> {
        let entries = |indexes: &[usize]| indexes.iter().map(|&index| &toc.entries[index]).collect::<Vec<&Entry>>();
        let mut moved = Moved::default();
        let mut tables: BTreeSet<Name> = BTreeSet::new();
        let by_name: BTreeMap<Name, &Entry> =
            of_kind(toc, b"TABLE").map(|(_, entry)| (name_of(entry), entry)).collect();
        let asked: BTreeSet<Name> = entries(&chosen.tables).into_iter().map(name_of).collect();
        let mut waiting: Vec<Name> = asked.iter().cloned().collect();
        while let Some(name) = waiting.pop() {
            // The columns that a table inherits stand in its parents' definitions only.
            let parents = by_name.get(&name).map(|entry| parents(entry)).unwrap_or_default();
            if tables.insert(name.clone()) && !asked.contains(&name) {
                moved.left_out.push(format!("the rows of {}: only its columns are needed", readable(&name)));
            }
            waiting
                .extend(parents.into_iter().filter(|parent| !tables.contains(parent) && by_name.contains_key(parent)));
        }
        for entry in entries(&chosen.without_data) {
            moved.left_out.push(format!("the rows of {}: the backup does not have them", entry.label()));
        }
        let mut with_rows: BTreeSet<Name> = entries(&chosen.data).into_iter().map(name_of).collect();
        with_rows.extend(entries(&chosen.tables).into_iter().filter(|entry| is_partitioned(entry)).map(name_of));
        let ids = tables.iter().filter_map(|name| Some(by_name.get(name)?.dump_id)).collect();
        let (mut sequences, mut indexes) = (BTreeSet::new(), BTreeSet::new());
        let mut relations: Vec<Name> = tables.iter().cloned().collect();
        for entry in &toc.entries {
            let words = sql::words(entry.defn.as_deref().unwrap_or_default());
            let part = match entry.desc() {
                b"SEQUENCE" if words.get(1) == Some(&b"TABLE".as_slice()) => {
                    Some((altered(&words), name_of(entry), &mut sequences))
                }
                b"SEQUENCE OWNED BY" => {
                    let by = behind(&words, &[b"OWNED", b"BY"]);
                    relation(&words, 2)
                        .map(|sequence| (by.and_then(|at| relation(&words, at)), sequence, &mut sequences))
                }
                b"INDEX" => Some((indexed(&words), name_of(entry), &mut indexes)),
                b"CONSTRAINT" => behind(&words, &[b"ADD", b"CONSTRAINT"]).and_then(|at| words.get(at)).map(|name| {
                    let table = altered(&words);
                    let schema = table.clone().unwrap_or_default().0;
                    (table, (schema, sql::unquoted(name)), &mut indexes)
                }),
                _ => None,
            };
            if let Some((Some(table), name, parts)) = part
                && tables.contains(&table)
            {
                parts.insert(name.clone());
                relations.push(name);
            }
        }
        refuse_collisions(&relations)?;
        Ok(Self { schema: sql::identifier(schema.as_bytes()), tables, ids, with_rows, sequences, indexes, moved })
    }

    fn moves(&self, name: &Name) -> bool {
        self.tables.contains(name) || self.sequences.contains(name) || self.indexes.contains(name)
    }

    /// The definition of an entry that comes along.
    fn definition(&mut self, entry: &Entry) -> Result<Option<Vec<u8>>, ExtractError> {
        let defn = entry.defn.as_deref().unwrap_or_default();
        let words = sql::words(defn);
        let name = name_of(entry);
        let of_tables = |name: Option<Name>| name.is_some_and(|name| self.tables.contains(&name));
        let wanted = match entry.desc() {
            b"TABLE" => self.tables.contains(&name),
            b"SEQUENCE" | b"SEQUENCE SET" => self.sequences.contains(&name),
            b"SEQUENCE OWNED BY" => relation(&words, 2).is_some_and(|name| self.sequences.contains(&name)),
            b"INDEX" => of_tables(indexed(&words)),
            b"CONSTRAINT" | b"CHECK CONSTRAINT" => of_tables(altered(&words)),
            b"COMMENT" => commented(&words).is_some_and(|name| self.moves(&name)),
            b"INDEX ATTACH" => {
                let child = behind(&words, &[b"PARTITION"]).and_then(|at| relation(&words, at));
                [relation(&words, 2), child]
                    .into_iter()
                    .all(|name| name.is_some_and(|name| self.indexes.contains(&name)))
            }
            b"TABLE ATTACH" => match attached(entry) {
                Some((parent, child)) if self.tables.contains(&child) => {
                    let both = self.tables.contains(&parent);
                    if !both {
                        self.leave_out(entry);
                    }
                    both
                }
                _ => false,
            },
            b"FK CONSTRAINT" if of_tables(altered(&words)) => {
                // One to a live table would hold rows fast there.
                let both = [altered(&words), referenced(&words)];
                let within = both.into_iter().all(|name| name.is_some_and(|name| self.with_rows.contains(&name)));
                if !within {
                    self.leave_out(entry);
                }
                within
            }
            b"DEFAULT" if of_tables(altered(&words)) => {
                let own = self.counters(defn).all(|own| own);
                if !own {
                    self.leave_out(entry);
                }
                own
            }
            desc if LEFT_OUT.contains(&desc) && dependencies(entry).iter().any(|id| self.ids.contains(id)) => {
                self.leave_out(entry);
                false
            }
            _ => false,
        };
        if !wanted {
            return Ok(None);
        }
        match entry.desc() {
            b"SEQUENCE SET" => Ok(Some(self.with_counters(defn))),
            b"DEFAULT" => self.statements(entry, &self.with_counters(defn)).map(Some),
            b"TABLE" => {
                let defn = self.without_others_counters(entry, defn);
                self.statements(entry, &self.with_counters(&defn)).map(Some)
            }
            _ => self.statements(entry, defn).map(Some),
        }
    }

    fn leave_out(&mut self, entry: &Entry) {
        self.moved.left_out.push(described(entry));
    }

    /// The same statements on the relations' new names.
    fn statements(&self, entry: &Entry, defn: &[u8]) -> Result<Vec<u8>, ExtractError> {
        let words = sql::words(defn);
        let mut names = Vec::new();
        let mut from = 0;
        for statement in words.split(|word| *word == b";") {
            if !statement.is_empty() {
                let found = names_in(statement).ok_or_else(|| unexpected(entry, defn))?;
                names.extend(found.into_iter().map(|at| from + at));
            }
            from += statement.len() + 1;
        }
        names.retain(|&at| relation(&words, at).is_some_and(|name| self.moves(&name)));
        Ok(replaced(defn, &names, &self.schema))
    }

    /// Words that name a sequence in `nextval('…')` and `setval('…'`, and the sequence.
    fn counted(words: &[&[u8]]) -> Vec<(usize, Option<Name>)> {
        let counts = |word: &[u8]| matches!(word, b"nextval" | b"setval");
        let at = (0..words.len().saturating_sub(2)).filter(|&at| counts(words[at]) && words[at + 1] == b"(");
        let named = |literal: &[u8]| {
            let inner = literal.strip_prefix(b"'")?.strip_suffix(b"'")?;
            let plain =
                inner.split(|&byte| byte == b'\'').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'\'');
            let words = sql::words(&plain);
            relation(&words, 0).filter(|_| words.len() == 3)
        };
        at.map(|at| (at + 2, named(words[at + 2]))).collect()
    }

    /// Whether each sequence that is counted on comes along.
    fn counters(&self, defn: &[u8]) -> impl Iterator<Item = bool> {
        let counted = Self::counted(&sql::words(defn));
        counted.into_iter().map(|(_, name)| name.is_some_and(|name| self.sequences.contains(&name)))
    }

    /// Counts on the sequences that come along.
    fn with_counters(&self, defn: &[u8]) -> Vec<u8> {
        let spans = sql::spans(defn, usize::MAX);
        let mut text = defn.to_vec();
        for (at, name) in Self::counted(&sql::words(defn)).into_iter().rev() {
            if let Some((_, sequence)) = name.filter(|name| self.sequences.contains(name)) {
                let quoted = [self.schema.as_slice(), b".", &sql::identifier(&sequence)].concat();
                text.splice(spans[at].clone(), literal(&quoted));
            }
        }
        text
    }

    /// A table's definition without defaults that count on sequences of others.
    fn without_others_counters(&mut self, entry: &Entry, defn: &[u8]) -> Vec<u8> {
        let (spans, words) = (sql::spans(defn, usize::MAX), sql::words(defn));
        let mut cuts = Vec::new();
        let (mut depth, mut column): (usize, &[u8]) = (0, b"");
        let mut at = 0;
        while at < words.len() {
            match words[at] {
                b"(" => depth += 1,
                b")" => depth = depth.saturating_sub(1),
                b"DEFAULT" if depth == 1 => {
                    let end = expression_end(&words, at + 1);
                    let expression = &defn[spans[at].start..spans[end - 1].end];
                    if !self.counters(expression).all(|own| own) {
                        cuts.push(spans[at].start..spans[end - 1].end);
                        let column = String::from_utf8_lossy(&sql::unquoted(column)).into_owned();
                        self.moved.left_out.push(format!("the default of {}.{column}", entry.label()));
                    }
                    at = end;
                    continue;
                }
                _ => {}
            }
            if depth == 1 && matches!(words[at], b"(" | b",") {
                column = words.get(at + 1).copied().unwrap_or_default();
            }
            at += 1;
        }
        let mut text = defn.to_vec();
        for cut in cuts.into_iter().rev() {
            text.drain(cut);
        }
        text
    }
}

fn refuse_collisions(relations: &[Name]) -> Result<(), ExtractError> {
    let mut taken: BTreeMap<&[u8], &Name> = BTreeMap::new();
    for name in relations {
        if let Some(first) = taken.insert(&name.1, name) {
            let [first, second] = [first, name].map(|name| readable(name).to_string());
            return Err(ExtractError::Collision { first, second });
        }
    }
    Ok(())
}

/// Where a statement has names of relations; `None`: it is none that belongs to a table.
fn names_in(words: &[&[u8]]) -> Option<Vec<usize>> {
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

fn parents(entry: &Entry) -> Vec<Name> {
    let words = sql::words(entry.defn.as_deref().unwrap_or_default());
    inherited(&words).into_iter().filter_map(|at| relation(&words, at)).collect()
}

/// Parent and partition of `ALTER TABLE ONLY parent ATTACH PARTITION child …`.
fn attached(entry: &Entry) -> Option<(Name, Name)> {
    let words = sql::words(entry.defn.as_deref()?);
    Some((altered(&words)?, relation(&words, behind(&words, &[b"ATTACH", b"PARTITION"])?)?))
}

/// The table of `ALTER TABLE [ONLY] table …`.
fn altered(words: &[&[u8]]) -> Option<Name> {
    words.starts_with(&[b"ALTER", b"TABLE"]).then(|| relation(words, after_only(words, 2))).flatten()
}

/// The table of `CREATE INDEX … ON [ONLY] table`.
fn indexed(words: &[&[u8]]) -> Option<Name> {
    relation(words, after_only(words, behind(words, &[b"ON"])?))
}

fn referenced(words: &[&[u8]]) -> Option<Name> {
    relation(words, behind(words, &[b"REFERENCES"])?)
}

/// What `COMMENT ON` is about: a relation, or that of a column or constraint.
fn commented(words: &[&[u8]]) -> Option<Name> {
    relation(words, *names_in(words)?.first()?)
}

/// Behind the first occurrence of some words.
fn behind(words: &[&[u8]], sought: &[&[u8]]) -> Option<usize> {
    words.windows(sought.len()).position(|window| window == sought).map(|at| at + sought.len())
}

fn after_only(words: &[&[u8]], at: usize) -> usize {
    if words.get(at) == Some(&b"ONLY".as_slice()) { at + 1 } else { at }
}

/// `schema.name` at a word.
fn relation(words: &[&[u8]], at: usize) -> Option<Name> {
    match words.get(at..at + 3)? {
        [schema, b".", name] => Some((sql::unquoted(schema), sql::unquoted(name))),
        _ => None,
    }
}

/// Where a column's default ends: what the server prints there is one term, so that nothing follows but a constraint.
fn expression_end(words: &[&[u8]], from: usize) -> usize {
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

/// The text with `schema` in place of some words.
fn replaced(text: &[u8], words: &[usize], schema: &[u8]) -> Vec<u8> {
    let spans = sql::spans(text, usize::MAX);
    let mut places: Vec<_> = words.iter().filter_map(|&at| spans.get(at).cloned()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.start));
    let mut text = text.to_vec();
    for place in places {
        text.splice(place, schema.iter().copied());
    }
    text
}

/// For archives, whose strings take backslashes as they are.
fn literal(text: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in text {
        quoted.extend(std::iter::repeat_n(byte, if byte == b'\'' { 2 } else { 1 }));
    }
    quoted.push(b'\'');
    quoted
}

fn of_kind<'a>(toc: &'a Toc, desc: &'static [u8]) -> impl Iterator<Item = (usize, &'a Entry)> {
    toc.entries.iter().enumerate().filter(move |(_, entry)| entry.desc() == desc)
}

fn name_of(entry: &Entry) -> Name {
    (entry.namespace.clone().unwrap_or_default(), entry.tag.clone().unwrap_or_default())
}

fn readable((schema, name): &Name) -> QualifiedName {
    QualifiedName::new(String::from_utf8_lossy(schema), String::from_utf8_lossy(name))
}

fn is_partitioned(entry: &Entry) -> bool {
    let words = || sql::words(entry.defn.as_deref().unwrap_or_default());
    entry.relkind == PARTITIONED || behind(&words(), &[b"PARTITION", b"BY"]).is_some()
}

fn unexpected(entry: &Entry, defn: &[u8]) -> ExtractError {
    let beginning = String::from_utf8_lossy(&defn[..defn.len().min(60)]).into_owned();
    ExtractError::Unexpected { entry: described(entry), beginning }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::toc::{ArchiveVersion, Header, HeaderCompression};

    fn entry(dump_id: i32, desc: &str, tag: &str, defn: &str) -> Entry {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        Entry {
            dump_id,
            had_dumper: desc == "TABLE DATA",
            catalog_oid: None,
            oid: None,
            tag: text(tag),
            desc: text(desc),
            section: 2,
            defn: text(defn),
            drop_stmt: text("DROP …"),
            copy_stmt: (desc == "TABLE DATA").then(|| defn.as_bytes().to_vec()),
            namespace: text("app"),
            tablespace: None,
            table_access_method: None,
            relkind: 0,
            owner: text("postgres"),
            with_oids: None,
            dependencies: Vec::new(),
            offset: if desc == "TABLE DATA" { Offset::Set(100) } else { Offset::NoData },
        }
    }

    fn toc(entries: &[(&str, &str, &str)]) -> Toc {
        let header = Header {
            version: ArchiveVersion::V1_16,
            compression: HeaderCompression::None,
            created: [0; 7],
            database: None,
            server_version: None,
            pg_dump_version: None,
        };
        let entries = entries.iter().zip(1..).map(|((desc, tag, defn), id)| entry(id, desc, tag, defn)).collect();
        Toc { header, entries }
    }

    fn moved(entries: &[(&str, &str, &str)], patterns: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut toc = toc(entries);
        let patterns: Vec<TablePattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let chosen = choose(&toc, &patterns).unwrap();
        let moved = move_to(&mut toc, &chosen, "r").unwrap();
        let text = |index: &usize| {
            let entry = &toc.entries[*index];
            let text = entry.copy_stmt.as_deref().or(entry.defn.as_deref()).unwrap();
            String::from_utf8(text.to_vec()).unwrap()
        };
        (moved.entries.iter().map(text).collect(), moved.left_out)
    }

    #[test]
    fn only_the_names_of_what_moves_change() {
        let table = "CREATE TABLE app.t (\n    id integer NOT NULL,\n    m app.t2 DEFAULT 'app.t'::app.t2,\n    n text DEFAULT (nextval('app.shared'::regclass))::text NOT NULL,\n    CONSTRAINT c CHECK ((app.t(id) > 0))\n);\nALTER TABLE ONLY app.t ALTER COLUMN m SET STATISTICS 5;\n";
        let (statements, left_out) = moved(
            &[
                ("TABLE", "t", table),
                ("SEQUENCE", "t_id_seq", "CREATE SEQUENCE app.t_id_seq\n    START WITH 1;\n"),
                ("SEQUENCE OWNED BY", "t_id_seq", "ALTER SEQUENCE app.t_id_seq OWNED BY app.t.id;\n"),
                ("SEQUENCE", "shared", "CREATE SEQUENCE app.shared;\n"),
                (
                    "DEFAULT",
                    "t id",
                    "ALTER TABLE ONLY app.t ALTER COLUMN id SET DEFAULT nextval('app.t_id_seq'::regclass);\n",
                ),
                ("TABLE DATA", "t", "COPY app.t (id, \"app.t\") FROM stdin;\n"),
                ("SEQUENCE SET", "t_id_seq", "SELECT pg_catalog.setval('app.t_id_seq', 7, true);\n"),
                ("SEQUENCE SET", "shared", "SELECT pg_catalog.setval('app.shared', 7, true);\n"),
                ("INDEX", "i", "CREATE UNIQUE INDEX i ON app.t USING btree (app.t(id));\n"),
                (
                    "FK CONSTRAINT",
                    "t f",
                    "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES app.other(id);\n",
                ),
                (
                    "FK CONSTRAINT",
                    "t g",
                    "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT g FOREIGN KEY (id) REFERENCES app.t(id);\n",
                ),
                ("COMMENT", "COLUMN t.id", "COMMENT ON COLUMN app.t.id IS 'app.t; app.t';\n"),
                ("COMMENT", "TABLE other", "COMMENT ON TABLE app.other IS 'x';\n"),
            ],
            &["app.t"],
        );
        let expected = [
            "CREATE TABLE \"r\".t (\n    id integer NOT NULL,\n    m app.t2 DEFAULT 'app.t'::app.t2,\n    n text  NOT NULL,\n    CONSTRAINT c CHECK ((app.t(id) > 0))\n);\nALTER TABLE ONLY \"r\".t ALTER COLUMN m SET STATISTICS 5;\n",
            "CREATE SEQUENCE \"r\".t_id_seq\n    START WITH 1;\n",
            "ALTER SEQUENCE \"r\".t_id_seq OWNED BY \"r\".t.id;\n",
            "ALTER TABLE ONLY \"r\".t ALTER COLUMN id SET DEFAULT nextval('\"r\".\"t_id_seq\"'::regclass);\n",
            "COPY \"r\".t (id, \"app.t\") FROM stdin;\n",
            "SELECT pg_catalog.setval('\"r\".\"t_id_seq\"', 7, true);\n",
            "CREATE UNIQUE INDEX i ON \"r\".t USING btree (app.t(id));\n",
            "ALTER TABLE ONLY \"r\".t\n    ADD CONSTRAINT g FOREIGN KEY (id) REFERENCES \"r\".t(id);\n",
            "COMMENT ON COLUMN \"r\".t.id IS 'app.t; app.t';\n",
        ];
        assert_eq!(statements, expected);
        assert_eq!(left_out, ["the default of app.t.n", "FK CONSTRAINT app.t f"]);
    }

    #[test]
    fn partitions_come_with_their_parent_and_parents_with_their_heirs() {
        let entries = [
            ("TABLE", "p", "CREATE TABLE app.p (\n    a integer\n)\nPARTITION BY RANGE (a);\n"),
            ("TABLE", "p1", "CREATE TABLE app.p1 (\n    a integer\n);\n"),
            ("TABLE", "base", "CREATE TABLE app.base (\n    a integer\n);\n"),
            ("TABLE", "heir", "CREATE TABLE app.heir (\n    b integer\n)\nINHERITS (app.base, other.base);\n"),
            ("TABLE ATTACH", "p1", "ALTER TABLE ONLY app.p ATTACH PARTITION app.p1 FOR VALUES FROM (1) TO (2);\n"),
            ("TABLE DATA", "p1", "COPY app.p1 (a) FROM stdin;\n"),
            ("TABLE DATA", "heir", "COPY app.heir (a, b) FROM stdin;\n"),
        ];
        let (statements, left_out) = moved(&entries, &["app.p"]);
        assert_eq!(statements.len(), 4);
        assert_eq!(statements[2], "ALTER TABLE ONLY \"r\".p ATTACH PARTITION \"r\".p1 FOR VALUES FROM (1) TO (2);\n");
        assert_eq!(left_out, Vec::<String>::new());
        let (statements, left_out) = moved(&entries, &["p1"]);
        assert_eq!((statements.len(), left_out.as_slice()), (2, ["TABLE ATTACH app.p1".to_owned()].as_slice()));
        let (statements, left_out) = moved(&entries, &["heir"]);
        assert_eq!(statements[1], "CREATE TABLE \"r\".heir (\n    b integer\n)\nINHERITS (\"r\".base, other.base);\n");
        assert_eq!(left_out, ["the rows of app.base: only its columns are needed"]);
    }

    #[test]
    fn what_cannot_be_is_told_before_anything_is_done() {
        let entries = [
            ("TABLE", "a", "CREATE TABLE app.a (\n    a integer\n);\n"),
            ("TABLE", "b", "CREATE TABLE app.b (\n    a integer\n);\n"),
            ("INDEX", "b", "CREATE INDEX b ON app.a USING btree (a);\n"),
        ];
        let archive = toc(&entries);
        let patterns = ["app.a", "app.x*", "y"].map(|pattern| pattern.parse().unwrap());
        let error = choose(&archive, &patterns).unwrap_err();
        assert_eq!(error, ExtractError::NoSuchTables { patterns: vec!["app.x*".into(), "*.y".into()] });
        let chosen = choose(&archive, &["app.*".parse().unwrap()]).unwrap();
        assert_eq!(chosen.without_data, [0, 1]);
        let error = move_to(&mut archive.clone(), &chosen, "r").unwrap_err();
        assert!(matches!(error, ExtractError::Collision { .. }), "{error}");
        let mut hostile = toc(&[("TABLE", "a", "CREATE TABLE app.a (); DROP TABLE app.b;")]);
        let chosen = choose(&hostile, &["app.a".parse().unwrap()]).unwrap();
        assert!(matches!(move_to(&mut hostile, &chosen, "r"), Err(ExtractError::Unexpected { .. })));
    }
}
