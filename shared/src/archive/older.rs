//! What a newer `pg_dump` writes for a server that does not know it yet. Exports are made by the newest `pg_dump`,
//! whatever the server's major, and have to be restored into that server as well.
//!
//! Source: `dumpSequence`, `dumpSubscription`, `dumpRelationStats` in PostgreSQL's `pg_dump.c` (15–18).

use crate::archive::sql;

/// First major with the functions that statistics are set by.
const SETS_STATISTICS: u32 = 18;
/// First major with sequences that are not logged.
const UNLOGGED_SEQUENCES: u32 = 15;
/// Options of a subscription, the first major that has them, and the value that stands for what servers before did.
const SUBSCRIPTION_OPTIONS: [(&[u8], u32, &[u8]); 2] = [(b"run_as_owner", 16, b"true"), (b"streaming", 14, b"off")];

/// Whether a server of this major can have such an entry. Statistics come by `ANALYZE` as well.
pub fn is_known(desc: &[u8], major: u32) -> bool {
    desc != b"STATISTICS DATA" || major >= SETS_STATISTICS
}

/// The same statement without options that only say what a server of this major does anyway.
pub fn for_major(desc: &[u8], statement: &[u8], major: u32) -> Vec<u8> {
    if !matches!(desc, b"SEQUENCE" | b"SUBSCRIPTION") {
        return statement.to_vec();
    }
    let spans = sql::spans(statement, usize::MAX);
    let word = |at: usize| spans.get(at).map_or(b"".as_slice(), |span| &statement[span.clone()]);
    let mut kept = Vec::with_capacity(statement.len());
    let mut from = 0;
    for (at, span) in spans.iter().enumerate() {
        let said = |&(option, since, value): &(&[u8], u32, &[u8])| {
            major < since && [word(at + 1), word(at + 2), word(at + 3)] == [option, b"=", value]
        };
        let last = match (desc, word(at)) {
            // Of a column of an unlogged table. What is called so is in quotes.
            (b"SEQUENCE", b"LOGGED") if major < UNLOGGED_SEQUENCES => at,
            (b"SUBSCRIPTION", b",") if SUBSCRIPTION_OPTIONS.iter().any(said) => at + 3,
            _ => continue,
        };
        kept.extend_from_slice(&statement[from..span.start]);
        from = spans[last].end;
    }
    kept.extend_from_slice(&statement[from..]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_an_older_server_does_not_know_are_left_out_where_they_say_nothing() {
        let written = "CREATE SUBSCRIPTION s CONNECTION 'host=x, run_as_owner = true' PUBLICATION p \
            WITH (connect = false, slot_name = 's', streaming = off, run_as_owner = true)";
        for (major, expected) in [
            (18, written.to_owned()),
            (16, written.to_owned()),
            (15, written.replace(", run_as_owner = true)", ")")),
            (14, written.replace(", run_as_owner = true)", ")")),
            (13, written.replace(", streaming = off, run_as_owner = true)", ")")),
        ] {
            let adapted = for_major(b"SUBSCRIPTION", written.as_bytes(), major);
            assert_eq!(String::from_utf8(adapted).unwrap(), expected, "{major}");
        }
        let meant = b"CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (connect = false, streaming = on)";
        assert_eq!(for_major(b"SUBSCRIPTION", meant, 13), meant);
    }

    #[test]
    fn sequences_were_logged_before_they_could_be_otherwise() {
        let written = b"ALTER TABLE app.t ALTER COLUMN a ADD GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME app.\"LOGGED\" LOGGED START WITH 1)";
        let adapted = String::from_utf8(for_major(b"SEQUENCE", written, 14)).unwrap();
        assert!(adapted.ends_with("(SEQUENCE NAME app.\"LOGGED\"  START WITH 1)"), "{adapted}");
        assert_eq!(for_major(b"SEQUENCE", written, 15), written);
    }

    #[test]
    fn statistics_are_for_servers_that_can_set_them() {
        assert!(is_known(b"STATISTICS DATA", 18) && is_known(b"STATISTICS", 13));
        assert!(!is_known(b"STATISTICS DATA", 17));
    }
}
