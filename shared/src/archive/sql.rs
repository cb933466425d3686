//! As much of SQL's grammar as the archive's own statements need: quoting, and words outside of quotes. Where statements
//! end says `lexer`.
//!
//! Bytes, because an archive is in the database's encoding; every server encoding leaves ASCII bytes ASCII.

use std::ops::Range;

/// Quotes an identifier.
pub fn identifier(name: &[u8]) -> Vec<u8> {
    quoted(name, b'"')
}

/// Quotes a string for sessions with `standard_conforming_strings`, which archives set: backslashes are as they are.
pub fn literal(text: &[u8]) -> Vec<u8> {
    quoted(text, b'\'')
}

fn quoted(text: &[u8], quote: u8) -> Vec<u8> {
    let mut quoted = vec![quote];
    for &byte in text {
        quoted.extend(std::iter::repeat_n(byte, if byte == quote { 2 } else { 1 }));
    }
    quoted.push(quote);
    quoted
}

/// The name behind an identifier as `pg_dump` writes it: quoted, or in lower case.
pub fn unquoted(word: &[u8]) -> Vec<u8> {
    match word.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        None => word.to_vec(),
        Some(inner) => {
            let mut name = Vec::with_capacity(inner.len());
            let mut bytes = inner.iter().peekable();
            while let Some(&byte) = bytes.next() {
                if byte == b'"' && bytes.peek() == Some(&&b'"') {
                    bytes.next();
                }
                name.push(byte);
            }
            name
        }
    }
}

/// Words, quoted identifiers and single other characters.
pub fn words(statement: &[u8]) -> Vec<&[u8]> {
    leading_words(statement, usize::MAX)
}

/// The first of [`words`].
pub fn leading_words(statement: &[u8], at_most: usize) -> Vec<&[u8]> {
    spans(statement, at_most).into_iter().map(|span| &statement[span]).collect()
}

/// Where the first words are.
pub fn spans(statement: &[u8], at_most: usize) -> Vec<Range<usize>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80;
    let mut spans = Vec::new();
    let mut at = 0;
    while spans.len() < at_most
        && let Some(&first) = statement.get(at)
    {
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let rest = &statement[at..];
        let len = match first {
            b'"' | b'\'' => quoted_len(rest, first),
            _ if plain(first) => rest.iter().position(|&byte| !plain(byte)).unwrap_or(rest.len()),
            _ => 1,
        };
        spans.push(at..at + len);
        at += len;
    }
    spans
}

/// Length of a quoted run, doubled quotes in it included.
fn quoted_len(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        if text[at] == quote {
            if text.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    text.len()
}

/// The roles that a `GRANT`, `REVOKE` or `ALTER DEFAULT PRIVILEGES` names, but for `PUBLIC`.
pub fn privilege_roles(words: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut roles = Vec::new();
    if let Some(at) = words.windows(2).position(|pair| pair == [b"FOR".as_slice(), b"ROLE"]) {
        roles.extend(words.get(at + 2).map(|word| unquoted(word)));
    }
    // The grantee is what the last TO or FROM outside of quotes is followed by.
    if let Some(at) = words.iter().rposition(|word| matches!(*word, b"TO" | b"FROM")) {
        roles.extend(words.get(at + 1).filter(|word| **word != b"PUBLIC").map(|word| unquoted(word)));
    }
    roles
}

/// The same statement for another large object.
pub fn with_large_object(statement: &[u8], oid: u32) -> Option<Vec<u8>> {
    const MARK: &[u8] = b" ON LARGE OBJECT ";
    let at = statement.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = statement[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| [&statement[..at], oid.to_string().as_bytes(), &statement[at + digits..]].concat())
}

/// Relation and column list of `COPY schema.table (a, b) FROM stdin;`, both quoted as they stand; `None` where it is
/// anything else.
pub fn parse_copy(statement: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = statement.strip_prefix(b"COPY ")?.trim_ascii_end().strip_suffix(b"FROM stdin;")?.trim_ascii();
    let mut quoted = false;
    let open = body.iter().position(|&byte| {
        quoted ^= byte == b'"';
        byte == b'(' && !quoted
    });
    let (relation, columns) = match open {
        None => (body, [].as_slice()),
        Some(at) => (body[..at].trim_ascii_end(), body[at + 1..].strip_suffix(b")")?),
    };
    let name = |word: &&[u8]| {
        word.len() > 1 && word[0] == b'"' || word[0].is_ascii_alphanumeric() || word[0] == b'_' || word[0] >= 0x80
    };
    let is_relation = matches!(words(relation).as_slice(), [a, b".", b] if name(a) && name(b));
    let is_list =
        words(columns).iter().enumerate().all(|(at, word)| if at % 2 == 0 { name(word) } else { *word == b"," });
    (is_relation && is_list).then_some((relation, columns))
}

/// The relation of `-- load via partition root schema.table`, quoted as it stands: what `pg_dump` puts where another
/// definition would be (`dumpTableData`).
pub fn partition_root(defn: &[u8]) -> Option<&[u8]> {
    let relation = defn.strip_prefix(b"-- load via partition root ")?.trim_ascii_end();
    matches!(words(relation).as_slice(), [_, b".", _]).then_some(relation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &[&[u8]]) -> Vec<String> {
        words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    #[test]
    fn grantees_are_found_whatever_they_are_called() {
        for (statement, expected) in [
            ("GRANT SELECT ON TABLE app.t TO reporting", vec!["reporting"]),
            ("GRANT SELECT ON TABLE app.\" TO x\" TO \"We\"\"ird; one\" WITH GRANT OPTION", vec!["We\"ird; one"]),
            ("REVOKE ALL ON FUNCTION app.f(a integer, \"FROM\" text) FROM PUBLIC", vec![]),
            ("ALTER DEFAULT PRIVILEGES FOR ROLE \"A\" IN SCHEMA s GRANT SELECT ON TABLES TO b", vec!["A", "b"]),
        ] {
            let roles = privilege_roles(&words(statement.as_bytes()));
            assert_eq!(text(&roles.iter().map(Vec::as_slice).collect::<Vec<_>>()), expected, "{statement}");
        }
    }

    #[test]
    fn only_copy_from_stdin_of_a_table_passes() {
        let parsed = parse_copy(b"COPY app.\"T(1)\" (a, \"b \"\",\") FROM stdin;\n").unwrap();
        assert_eq!(parsed, (b"app.\"T(1)\"".as_slice(), b"a, \"b \"\",\"".as_slice()));
        assert_eq!(parse_copy(b"COPY app.none  FROM stdin;\n").unwrap(), (b"app.none".as_slice(), b"".as_slice()));
        for bad in [
            "COPY app.t FROM PROGRAM 'sh';",
            "COPY app.t (a) FROM '/etc/passwd'; COPY app.t FROM stdin;",
            "COPY (DELETE FROM app.t) FROM stdin;",
            "COPY app.t (a) TO PROGRAM 'x'; COPY app.t (a) FROM stdin;",
            "DROP TABLE app.t; COPY app.t FROM stdin;",
        ] {
            assert_eq!(parse_copy(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn privileges_of_large_objects_are_moved_to_others() {
        let moved = with_large_object(b"GRANT SELECT ON LARGE OBJECT 123 TO x", 9).unwrap();
        assert_eq!(moved, b"GRANT SELECT ON LARGE OBJECT 9 TO x");
    }
}
