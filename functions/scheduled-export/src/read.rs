//! The statement that reads a piece of a table, made from the archive's own COPY statement.

use holdfast_shared::archive::script;
use holdfast_shared::archive::toc::Entry;
use holdfast_shared::domain::QualifiedName;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::export::{Extent, Piece};
use holdfast_shared::postgres::catalog::RelationFacts;

/// How one data entry is read.
#[derive(Debug, Clone)]
pub enum Source {
    Table(TableSource),
    LargeObjects { oids: Vec<u32> },
}

#[derive(Debug, Clone)]
pub struct TableSource {
    pub name: QualifiedName,
    /// `schema.table`, quoted, in the database's encoding.
    relation: Vec<u8>,
    /// `a, b`, quoted; empty where the table has no column that can be copied.
    columns: Vec<u8>,
    column_names: Vec<String>,
    /// `WHERE …` of an extension's configuration table.
    pub condition: Option<String>,
}

impl TableSource {
    /// The columns, unquoted.
    pub fn column_names(&self) -> Vec<String> {
        self.column_names.clone()
    }

    /// `a, b`, quoted, in the database's encoding.
    pub fn columns(&self) -> &[u8] {
        &self.columns
    }

    /// Whether the column list can be taken for UTF-8. In `SQL_ASCII` nobody knows better.
    pub fn columns_are_utf8(&self, encoding: &str) -> bool {
        self.columns.is_ascii() || matches!(encoding, "UTF8" | "SQL_ASCII")
    }

    /// Takes the names from the list as it reads in UTF-8.
    pub fn name_columns(&mut self, columns: &str) {
        self.column_names = names_of(columns.as_bytes());
    }

    /// Takes the lock that reading needs.
    pub fn lock_sql(&self) -> Vec<u8> {
        [b"LOCK TABLE ONLY ", self.relation.as_slice(), b" IN ACCESS SHARE MODE"].concat()
    }

    /// `COPY … TO STDOUT` for a piece.
    pub fn copy_sql(&self, piece: &Piece) -> Vec<u8> {
        let conditions = match piece {
            Piece::Pages { from: 0, to: None } | Piece::Whole | Piece::LargeObjects(_) => None,
            Piece::Pages { from, to: None } => Some(format!("WHERE ctid >= '({from},0)'")),
            Piece::Pages { from, to: Some(to) } => Some(format!("WHERE ctid >= '({from},0)' AND ctid < '({to},0)'")),
        };
        let mut sql = b"COPY ".to_vec();
        match conditions.or_else(|| self.condition.clone()) {
            None => {
                sql.extend_from_slice(&self.relation);
                if !self.columns.is_empty() {
                    sql.extend_from_slice(b" (");
                    sql.extend_from_slice(&self.columns);
                    sql.push(b')');
                }
            }
            Some(condition) => {
                sql.extend_from_slice(b"(SELECT ");
                sql.extend_from_slice(&self.columns);
                sql.extend_from_slice(b" FROM ONLY ");
                sql.extend_from_slice(&self.relation);
                sql.push(b' ');
                sql.extend_from_slice(condition.as_bytes());
                sql.push(b')');
            }
        }
        sql.extend_from_slice(b" TO STDOUT");
        sql
    }
}

/// How a table is read, and whether it can be split.
pub fn table_source(entry: &Entry, relation: &RelationFacts, ranges: bool) -> Result<(Extent, TableSource), Fault> {
    let statement = entry.copy_stmt.as_deref().unwrap_or_default();
    let (_, columns) = parse_copy(statement).ok_or_else(|| {
        Fault::new(
            "archive-entry-unknown",
            format!(
                "the COPY statement of {} is not as expected: {}",
                entry.label(),
                String::from_utf8_lossy(statement)
            ),
        )
    })?;
    let splittable = ranges
        && relation.kind == 'r'
        && relation.access_method.as_deref() == Some("heap")
        && relation.condition.is_none()
        && !columns.is_empty();
    let extent = if splittable {
        Extent::Heap { pages: relation.pages, bytes: relation.bytes }
    } else {
        Extent::Whole { bytes: relation.bytes }
    };
    let source = TableSource {
        name: relation.name.clone(),
        // The statement may name the root of a partition tree, for rows that can be in other partitions elsewhere.
        relation: script::qualified(entry),
        column_names: names_of(&columns),
        columns,
        condition: relation.condition.clone(),
    };
    Ok((extent, source))
}

fn names_of(columns: &[u8]) -> Vec<String> {
    split_list(columns).into_iter().map(|name| String::from_utf8_lossy(&unquote(name)).into_owned()).collect()
}

/// Relation and column list of `COPY schema.table (a, b) FROM stdin;`.
fn parse_copy(statement: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let body = statement.strip_prefix(b"COPY ")?.trim_ascii_end().strip_suffix(b"FROM stdin;")?.trim_ascii();
    match unquoted_position(body, b'(') {
        None => Some((body.to_vec(), Vec::new())),
        Some(at) => {
            let columns = body[at + 1..].strip_suffix(b")")?;
            Some((body[..at].trim_ascii_end().to_vec(), columns.to_vec()))
        }
    }
}

/// Where a byte stands outside double quotes. All server encodings are ASCII-safe: a byte of a multi-byte
/// character is never mistaken for a quote.
fn unquoted_position(text: &[u8], wanted: u8) -> Option<usize> {
    let mut quoted = false;
    text.iter().position(|&byte| {
        quoted ^= byte == b'"';
        !quoted && byte == wanted
    })
}

fn split_list(mut list: &[u8]) -> Vec<&[u8]> {
    let mut items = Vec::new();
    while let Some(at) = unquoted_position(list, b',') {
        items.push(list[..at].trim_ascii());
        list = &list[at + 1..];
    }
    if !list.trim_ascii().is_empty() {
        items.push(list.trim_ascii());
    }
    items
}

fn unquote(name: &[u8]) -> Vec<u8> {
    match name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")) {
        None => name.to_vec(),
        Some(inner) => {
            let mut out = Vec::with_capacity(inner.len());
            let mut bytes = inner.iter();
            while let Some(&byte) = bytes.next() {
                out.push(byte);
                if byte == b'"' {
                    bytes.next();
                }
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(statement: &str) -> TableSource {
        let (relation, columns) = parse_copy(statement.as_bytes()).unwrap();
        let column_names = names_of(&columns);
        TableSource { name: QualifiedName::new("s", "t"), relation, columns, column_names, condition: None }
    }

    fn sql(source: &TableSource, piece: &Piece) -> String {
        String::from_utf8(source.copy_sql(piece)).unwrap()
    }

    #[test]
    fn whole_tables_and_ranges() {
        let source = source("COPY public.users (id, \"Größe\") FROM stdin;\n");
        assert_eq!(sql(&source, &Piece::Whole), "COPY public.users (id, \"Größe\") TO STDOUT");
        assert_eq!(
            sql(&source, &Piece::Pages { from: 10, to: Some(20) }),
            "COPY (SELECT id, \"Größe\" FROM ONLY public.users WHERE ctid >= '(10,0)' AND ctid < '(20,0)') TO STDOUT"
        );
        assert!(sql(&source, &Piece::Pages { from: 20, to: None }).ends_with("WHERE ctid >= '(20,0)') TO STDOUT"));
        assert_eq!(sql(&source, &Piece::Pages { from: 0, to: None }), sql(&source, &Piece::Whole));
    }

    #[test]
    fn a_condition_selects_from_this_table_only() {
        let mut source = source("COPY ext.conf (k, v) FROM stdin;\n");
        source.condition = Some("WHERE NOT builtin".into());
        assert_eq!(sql(&source, &Piece::Whole), "COPY (SELECT k, v FROM ONLY ext.conf WHERE NOT builtin) TO STDOUT");
    }

    #[test]
    fn names_with_quotes_parentheses_commas_and_newlines() {
        let source = source("COPY \"we\"\"ird (s)\".\"a,b\nc\" (\"x,\"\"(y)\", z) FROM stdin;\n");
        assert_eq!(source.column_names(), ["x,\"(y)", "z"]);
        assert_eq!(sql(&source, &Piece::Whole), "COPY \"we\"\"ird (s)\".\"a,b\nc\" (\"x,\"\"(y)\", z) TO STDOUT");
    }

    #[test]
    fn a_table_without_columns_is_read_as_pg_dump_reads_it() {
        let source = source("COPY public.generated_only  FROM stdin;\n");
        assert!(source.column_names().is_empty());
        assert_eq!(sql(&source, &Piece::Whole), "COPY public.generated_only TO STDOUT");
        assert!(parse_copy(b"INSERT INTO x").is_none());
    }
}
