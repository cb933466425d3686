//! Definitions on their way into another schema: which come along, and what they say there.

use std::collections::{BTreeMap, BTreeSet};

use super::grammar::{
    altered, attached, behind, commented, expression_end, indexed, names_in, parents, referenced, relation,
};
use super::{Chosen, ExtractError, Moved, Name, is_partitioned, name_of, of_kind, readable};
use crate::archive::script::{dependencies, described};
use crate::archive::sql;
use crate::archive::toc::{Entry, Toc};

/// Entries that act on a table beside its rows: in a copy they would act on live tables, or have no use.
const LEFT_OUT: [&[u8]; 5] = [b"TRIGGER", b"RULE", b"POLICY", b"ROW SECURITY", b"STATISTICS"];

/// What moves, and what of it has been left out so far.
pub(super) struct Moving {
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
    pub(super) fn new(toc: &Toc, chosen: &Chosen, schema: &str) -> Result<Self, ExtractError> {
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

    /// What has been left out, and the schema, quoted.
    pub(super) fn end(self) -> (Moved, Vec<u8>) {
        (self.moved, self.schema)
    }

    fn moves(&self, name: &Name) -> bool {
        self.tables.contains(name) || self.sequences.contains(name) || self.indexes.contains(name)
    }

    /// The definition of an entry that comes along.
    pub(super) fn definition(&mut self, entry: &Entry) -> Result<Option<Vec<u8>>, ExtractError> {
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
        Ok(in_schema(defn, &names, &self.schema))
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
                text.splice(spans[at].clone(), sql::literal(&quoted));
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

/// The text with `schema`, quoted, in place of some words.
pub(super) fn in_schema(text: &[u8], words: &[usize], schema: &[u8]) -> Vec<u8> {
    let spans = sql::spans(text, usize::MAX);
    let mut places: Vec<_> = words.iter().filter_map(|&at| spans.get(at).cloned()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.start));
    let mut text = text.to_vec();
    for place in places {
        text.splice(place, schema.iter().copied());
    }
    text
}

fn unexpected(entry: &Entry, defn: &[u8]) -> ExtractError {
    let beginning = String::from_utf8_lossy(&defn[..defn.len().min(60)]).into_owned();
    ExtractError::Unexpected { entry: described(entry), beginning }
}
