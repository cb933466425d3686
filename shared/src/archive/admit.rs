//! Which statements an archive may bring: those that `pg_dump` writes, by their first words.
//!
//! An archive's SQL runs with the rights of the role that restores. That a definition does not reach out of the
//! database it is restored into can be seen from its beginning; what the functions in it do when they are called
//! cannot (docs/restore.md, "Archives of others").
//!
//! Source: `dumpDumpableObject` and what it calls, in PostgreSQL's `pg_dump.c` (13–18).

use crate::archive::lexer::without_comments;
use crate::archive::sql;

/// What may follow `CREATE`, once `OR REPLACE` is passed over.
const CREATED: &[&[&[u8]]] = &[
    &[b"ACCESS", b"METHOD"],
    &[b"AGGREGATE"],
    &[b"CAST"],
    &[b"COLLATION"],
    &[b"CONSTRAINT", b"TRIGGER"],
    &[b"CONVERSION"],
    &[b"DEFAULT", b"CONVERSION"],
    &[b"DOMAIN"],
    &[b"EVENT", b"TRIGGER"],
    &[b"EXTENSION"],
    &[b"FOREIGN", b"DATA", b"WRAPPER"],
    &[b"FOREIGN", b"TABLE"],
    &[b"FUNCTION"],
    &[b"INDEX"],
    &[b"LANGUAGE"],
    &[b"MATERIALIZED", b"VIEW"],
    &[b"OPERATOR"],
    &[b"POLICY"],
    &[b"PROCEDURAL", b"LANGUAGE"],
    &[b"PROCEDURE"],
    &[b"PUBLICATION"],
    &[b"RULE"],
    &[b"SCHEMA"],
    &[b"SEQUENCE"],
    &[b"SERVER"],
    &[b"STATISTICS"],
    &[b"SUBSCRIPTION"],
    &[b"TABLE"],
    &[b"TEXT", b"SEARCH"],
    &[b"TRANSFORM"],
    &[b"TRIGGER"],
    &[b"TRUSTED", b"LANGUAGE"],
    &[b"TRUSTED", b"PROCEDURAL", b"LANGUAGE"],
    &[b"TYPE"],
    &[b"UNIQUE", b"INDEX"],
    &[b"UNLOGGED", b"SEQUENCE"],
    &[b"UNLOGGED", b"TABLE"],
    &[b"USER", b"MAPPING"],
    &[b"VIEW"],
];

/// What may follow `ALTER`.
const ALTERED: &[&[&[u8]]] = &[
    &[b"AGGREGATE"],
    &[b"COLLATION"],
    &[b"CONVERSION"],
    &[b"DOMAIN"],
    &[b"EVENT", b"TRIGGER"],
    &[b"FOREIGN", b"DATA", b"WRAPPER"],
    &[b"FOREIGN", b"TABLE"],
    &[b"FUNCTION"],
    &[b"INDEX"],
    &[b"LANGUAGE"],
    &[b"MATERIALIZED", b"VIEW"],
    &[b"OPERATOR"],
    &[b"POLICY"],
    &[b"PROCEDURE"],
    &[b"PUBLICATION"],
    &[b"RULE"],
    &[b"SCHEMA"],
    &[b"SEQUENCE"],
    &[b"SERVER"],
    &[b"STATISTICS"],
    &[b"SUBSCRIPTION"],
    &[b"TABLE"],
    &[b"TEXT", b"SEARCH"],
    &[b"TRIGGER"],
    &[b"TYPE"],
    &[b"VIEW"],
];

/// Functions that are called, and of which types of entry.
const CALLED: [(&[u8], &[&[u8]]); 5] = [
    (b"SEQUENCE SET", &[b"SELECT", b"pg_catalog", b".", b"setval"]),
    (b"BLOB", &[b"SELECT", b"pg_catalog", b".", b"lo_create"]),
    (b"STATISTICS DATA", &[b"SELECT", b"*", b"FROM", b"pg_catalog", b".", b"pg_restore_relation_stats"]),
    (b"STATISTICS DATA", &[b"SELECT", b"*", b"FROM", b"pg_catalog", b".", b"pg_restore_attribute_stats"]),
    (b"STATISTICS DATA", &[b"SELECT", b"*", b"FROM", b"pg_catalog", b".", b"pg_clear_relation_stats"]),
];

/// Objects of the server rather than of the database.
const OF_SERVER: [&[u8]; 4] = [b"DATABASE", b"ROLE", b"TABLESPACE", b"PARAMETER"];

/// Whether `pg_dump` could have written the statement for an entry of type `desc`.
pub fn is_expected(desc: &[u8], statement: &[u8]) -> bool {
    let statement = without_comments(statement);
    let words = sql::leading_words(statement, 12);
    let Some((&verb, rest)) = words.split_first() else { return false };
    let any = |lists: &[&[&[u8]]], words: &[&[u8]]| lists.iter().any(|list| words.starts_with(list));
    match verb {
        b"CREATE" => {
            let rest = rest.strip_prefix(&[b"OR".as_slice(), b"REPLACE"]).unwrap_or(rest);
            any(CREATED, rest) && (rest[0] != b"SUBSCRIPTION" || does_not_connect(statement))
        }
        b"ALTER" => any(ALTERED, rest),
        b"COMMENT" => rest.first() == Some(&b"ON".as_slice()) && !of_server(&rest[1..]),
        b"SECURITY" => {
            let words = sql::words(statement);
            let on = words.iter().position(|word| *word == b"ON");
            rest.first() == Some(&b"LABEL".as_slice()) && on.is_some_and(|at| !of_server(&words[at + 1..]))
        }
        b"REFRESH" => desc == b"MATERIALIZED VIEW DATA" && rest.starts_with(&[b"MATERIALIZED", b"VIEW"]),
        b"SELECT" => {
            let called = CALLED.iter().any(|(of, beginning)| *of == desc && words.starts_with(beginning));
            called && calls_nothing_else(statement)
        }
        _ => false,
    }
}

/// Whether a `GRANT` or `REVOKE` is about an object of this database.
pub fn is_expected_privilege(words: &[&[u8]]) -> bool {
    match words {
        [b"GRANT" | b"REVOKE", ..] => {
            let on = words.iter().position(|word| *word == b"ON");
            on.is_some_and(|at| !of_server(&words[at + 1..]))
        }
        [b"ALTER", b"DEFAULT", b"PRIVILEGES", ..] => true,
        _ => false,
    }
}

fn of_server(words: &[&[u8]]) -> bool {
    words.first().is_none_or(|word| OF_SERVER.contains(word))
}

/// A subscription that would speak to its publisher at once is none of `pg_dump`'s.
fn does_not_connect(statement: &[u8]) -> bool {
    let words = sql::words(statement);
    words.windows(5).any(|window| window == [b"WITH".as_slice(), b"(", b"connect", b"=", b"false"])
        && words.iter().filter(|word| **word == b"connect").count() == 1
}

/// One call whose arguments call nothing.
fn calls_nothing_else(statement: &[u8]) -> bool {
    let words = sql::words(statement);
    let count = |parenthesis: &[u8]| words.iter().filter(|word| **word == parenthesis).count();
    count(b"(") == 1 && count(b")") == 1 && words.last() == Some(&b")".as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_dump_writes_is_expected() {
        for (desc, statement) in [
            ("TABLE", "CREATE UNLOGGED TABLE app.t (a integer)"),
            ("TABLE", "-- see the view\nALTER TABLE ONLY app.t ALTER COLUMN a SET STATISTICS 5"),
            ("VIEW", "CREATE OR REPLACE VIEW app.v AS SELECT 1"),
            ("SEQUENCE SET", "SELECT pg_catalog.setval('app.\"s(1)\"', -17, true)"),
            ("BLOB", "SELECT pg_catalog.lo_create('16500')"),
            ("MATERIALIZED VIEW DATA", "REFRESH MATERIALIZED VIEW app.m"),
            ("COMMENT", "COMMENT ON COLUMN app.t.a IS 'ON DATABASE x'"),
            ("SECURITY LABEL", "SECURITY LABEL FOR \"selinux\" ON TABLE app.t IS 'x'"),
            ("PROCEDURAL LANGUAGE", "CREATE OR REPLACE TRUSTED PROCEDURAL LANGUAGE plperl"),
            (
                "SUBSCRIPTION",
                "CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p WITH (connect = false, slot_name = 's')",
            ),
            (
                "STATISTICS DATA",
                "SELECT * FROM pg_catalog.pg_restore_attribute_stats(\n\t'version', '180004'::integer,\n\t'null_frac', '0.5'::real,\n\t'histogram_bounds', '{a,b}'::text,\n\t'most_common_freqs', '{0.1}'::real[]\n)",
            ),
        ] {
            assert!(is_expected(desc.as_bytes(), statement.as_bytes()), "{statement}");
        }
    }

    #[test]
    fn what_reaches_beyond_the_database_is_not() {
        for (desc, statement) in [
            ("TABLE", "DROP DATABASE live"),
            ("TABLE", "drop table app.t"),
            ("TABLE", "CREATE DATABASE x"),
            ("TABLE", "CREATE ROLE x SUPERUSER"),
            ("TABLE", "CREATE USER x"),
            ("TABLE", "CREATE/**/DATABASE x"),
            ("TABLE", "/* */ DROP DATABASE x"),
            ("TABLE", "ALTER SYSTEM SET archive_command = 'x'"),
            ("TABLE", "ALTER DATABASE live RENAME TO x"),
            ("TABLE", "ALTER ROLE x SUPERUSER"),
            ("TABLE", "COPY app.t FROM PROGRAM 'sh'"),
            ("TABLE", "DO $$ BEGIN END $$"),
            ("TABLE", "SELECT pg_catalog.setval('x', 1)"),
            ("TABLE", "\\connect live"),
            ("TABLE", "BEGIN"),
            ("TABLE", "SET SESSION AUTHORIZATION other"),
            ("SEQUENCE SET", "SELECT pg_catalog.setval('x', (SELECT app.evil()))"),
            ("SEQUENCE SET", "SELECT pg_catalog.setval('x', 1), app.evil()"),
            ("SEQUENCE SET", "SELECT pg_catalog.setval('x', 1) FROM app.evil"),
            ("SEQUENCE SET", "SELECT pg_catalog.set_config('x', 'y', false)"),
            ("MATERIALIZED VIEW", "REFRESH MATERIALIZED VIEW app.m"),
            ("COMMENT", "COMMENT ON DATABASE live IS 'x'"),
            ("SECURITY LABEL", "SECURITY LABEL FOR x ON ROLE y IS 'x'"),
            ("SUBSCRIPTION", "CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p"),
            ("SUBSCRIPTION", "CREATE SUBSCRIPTION s CONNECTION 'connect = false' PUBLICATION p WITH (connect = true)"),
        ] {
            assert!(!is_expected(desc.as_bytes(), statement.as_bytes()), "{statement}");
        }
        for (statement, expected) in [
            ("GRANT SELECT ON TABLE app.t TO x", true),
            ("GRANT ALL ON DATABASE live TO x", false),
            ("GRANT admin TO x", false),
            ("REVOKE CREATE ON TABLESPACE t FROM x", false),
        ] {
            assert_eq!(is_expected_privilege(&sql::words(statement.as_bytes())), expected, "{statement}");
        }
    }
}
