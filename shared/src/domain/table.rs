//! Table names as PostgreSQL has them, and the patterns that choose tables.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Quotes an identifier for SQL, whatever characters it has.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes text as an SQL literal, independent of `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if escaped.contains('\\') { format!(" E'{}'", escaped.replace('\\', "\\\\")) } else { format!("'{escaped}'") }
}

/// A table's schema and name, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QualifiedName {
    pub schema: String,
    pub name: String,
}

impl QualifiedName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// `"schema"."name"`, safe in SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// `schema.table` with `*` for any run of characters; without a dot, a table of any schema.
///
/// Names are matched as they are stored, upper and lower case apart. The first dot separates schema and table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TablePattern {
    schema: String,
    name: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a table pattern (schema.table, with * as wildcard)")]
pub struct TablePatternError {
    pub text: String,
}

impl TablePattern {
    /// Whether it chooses the table. Upper and lower case are told apart.
    pub fn matches(&self, table: &QualifiedName) -> bool {
        wildcard_match(self.schema.as_bytes(), table.schema.as_bytes())
            && wildcard_match(self.name.as_bytes(), table.name.as_bytes())
    }

    /// The same pattern in `pg_dump`'s grammar: literal runs quoted, so that nothing else in them is special.
    /// Source: `processSQLNamePattern` in PostgreSQL's `string_utils.c`.
    pub fn for_pg_dump(&self) -> String {
        format!("{}.{}", pg_dump_part(&self.schema), pg_dump_part(&self.name))
    }
}

fn pg_dump_part(part: &str) -> String {
    part.split('*')
        .map(|literal| if literal.is_empty() { String::new() } else { quote_identifier(literal) })
        .collect::<Vec<_>>()
        .join("*")
}

/// Whether `text` matches `pattern`, in which `*` stands for any run; linear in both but for one backtrack point.
fn wildcard_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((after_star, matched)) = retry {
            retry = Some((after_star, matched + 1));
            p = after_star;
            t = matched + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

impl FromStr for TablePattern {
    type Err = TablePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (schema, name) = text.split_once('.').unwrap_or(("*", text));
        if schema.is_empty() || name.is_empty() || text.contains('\0') {
            return Err(TablePatternError { text: text.to_owned() });
        }
        Ok(Self { schema: schema.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl From<TablePattern> for String {
    fn from(pattern: TablePattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for TablePattern {
    type Error = TablePatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let table = |s: &str| {
            let (a, b) = s.split_once('.').unwrap();
            QualifiedName::new(a, b)
        };
        for (pattern, name, expected) in [
            ("public.users", "public.users", true),
            ("public.users", "public.users2", false),
            ("public.*", "public.users", true),
            ("public.*", "audit.users", false),
            ("users", "audit.users", true),
            ("*.log_*", "audit.log_2025", true),
            ("*.log_*", "audit.mylog_2025", false),
            ("a*.b*c*", "audit.bxxcyycz", true),
            ("public.Users", "public.users", false),
            ("*", "any.thing", true),
        ] {
            assert_eq!(pattern.parse::<TablePattern>().unwrap().matches(&table(name)), expected, "{pattern} {name}");
        }
        for bad in ["", ".", "a.", ".b"] {
            assert!(bad.parse::<TablePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pg_dump_sees_only_our_wildcards() {
        let pattern: TablePattern = "pub*.we\"ird[1]?|*".parse().unwrap();
        assert_eq!(pattern.for_pg_dump(), "\"pub\"*.\"we\"\"ird[1]?|\"*");
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal("a\\b"), " E'a\\\\b'");
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
    }

    proptest! {
        #[test]
        fn parsing_is_the_inverse_of_rendering(text in "[a-z*\"]{1,6}(\\.[a-z*. \"]{1,8})?") {
            let pattern: TablePattern = text.parse().unwrap();
            prop_assert_eq!(pattern.to_string().parse::<TablePattern>().unwrap(), pattern);
        }

        #[test]
        fn a_wildcard_matches_as_a_naive_matcher_does(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            fn naive(p: &[u8], t: &[u8]) -> bool {
                match (p.first(), t.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => naive(&p[1..], t) || (!t.is_empty() && naive(p, &t[1..])),
                    (Some(a), Some(b)) if a == b => naive(&p[1..], &t[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(wildcard_match(pattern.as_bytes(), text.as_bytes()), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
