//! Where the statements of an archive's SQL end: at semicolons outside of quotes, comments, parentheses (of rules) and
//! the bodies of functions written with `BEGIN ATOMIC … END`. So `psql` finds it, but for functions called `begin`.
//!
//! Source: `psqlscan.l` and `scan.l` of PostgreSQL 13–18. Who is wrong about an end runs nothing: statements go to the
//! server one by one, and it refuses text that holds two.

use crate::archive::toc::Toc;

/// What the end of a literal depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dialect {
    /// `standard_conforming_strings` is off: a backslash takes the next character along, in plain literals, too.
    backslashes: bool,
    /// First bytes of characters whose second byte may look like ASCII; only in encodings that no server has.
    lead: Option<fn(u8) -> bool>,
}

impl Dialect {
    /// As the archive says: its STDSTRINGS and ENCODING entries.
    pub fn of(toc: &Toc) -> Self {
        let settings = toc.entries.iter().find(|entry| entry.desc() == b"STDSTRINGS");
        let defn = settings.and_then(|entry| entry.defn.as_deref()).unwrap_or_default();
        let lead: Option<fn(u8) -> bool> = match toc.encoding().as_deref() {
            Some("SJIS" | "SHIFT_JIS_2004") => Some(|byte| matches!(byte, 0x81..=0x9f | 0xe0..=0xfc)),
            Some("BIG5" | "GBK" | "UHC" | "GB18030" | "JOHAB") => Some(|byte| byte >= 0x81),
            _ => None,
        };
        Self { backslashes: defn.split(|&byte| byte == b'\'').nth(1) == Some(b"off"), lead }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Plain,
    Literal {
        escapes: bool,
    },
    Escaped,
    Name,
    LineComment,
    BlockComment {
        depth: u32,
    },
    /// Behind a `$` that may begin a quote.
    Tag,
    Dollar {
        matched: usize,
    },
}

/// Finds ends of statements in text that comes in any cut.
#[derive(Debug)]
pub struct Splitter {
    dialect: Dialect,
    mode: Mode,
    previous: u8,
    /// The second byte of a character comes.
    skip: bool,
    /// `$tag$`.
    tag: Vec<u8>,
    /// Beginning of the word that is being read, in lower case.
    word: Vec<u8>,
    /// Whether the literal that was closed last had escapes, for as long as another one would continue it.
    closed: Option<bool>,
    newline: bool,
    blank: bool,
    parentheses: u32,
    /// First letters of the words that could begin the definition of a function, and how many words there were.
    beginning: [u8; 4],
    words: usize,
    /// The word before was `BEGIN`, which is a name where no `ATOMIC` follows.
    begins: bool,
    bodies: u32,
}

impl Splitter {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            mode: Mode::Plain,
            previous: 0,
            skip: false,
            tag: Vec::new(),
            word: Vec::new(),
            closed: None,
            newline: false,
            blank: true,
            parentheses: 0,
            beginning: [0; 4],
            words: 0,
            begins: false,
            bodies: 0,
        }
    }

    /// Whether nothing but white space and comments has come since the last statement.
    pub fn is_blank(&self) -> bool {
        self.blank
    }

    /// Takes in text up to and with the next semicolon that ends a statement; how much that was. `None`: all of it,
    /// and there was none.
    pub fn end(&mut self, text: &[u8]) -> Option<usize> {
        for (at, &byte) in text.iter().enumerate() {
            if self.take(byte) {
                *self = Self::new(self.dialect);
                return Some(at + 1);
            }
        }
        None
    }

    /// True where a statement ends.
    fn take(&mut self, byte: u8) -> bool {
        if std::mem::take(&mut self.skip) {
            self.previous = 0;
            return false;
        }
        self.skip = self.dialect.lead.is_some_and(|is_lead| is_lead(byte));
        match self.mode {
            Mode::Plain => return self.plain(byte),
            Mode::Literal { escapes } => match byte {
                b'\'' => {
                    (self.mode, self.closed, self.newline) = (Mode::Plain, Some(escapes), false);
                    self.previous = b'\'';
                    return false;
                }
                b'\\' if escapes => self.mode = Mode::Escaped,
                _ => {}
            },
            Mode::Escaped => self.mode = Mode::Literal { escapes: true },
            Mode::Name if byte == b'"' => self.mode = Mode::Plain,
            Mode::LineComment if byte == b'\n' => (self.mode, self.newline) = (Mode::Plain, true),
            Mode::Name | Mode::LineComment => {}
            Mode::BlockComment { depth } => match (self.previous, byte) {
                (b'*', b'/') if depth == 1 => self.mode = Mode::Plain,
                (b'*', b'/') => self.mode = Mode::BlockComment { depth: depth - 1 },
                (b'/', b'*') => self.mode = Mode::BlockComment { depth: depth + 1 },
                _ => {
                    self.previous = byte;
                    return false;
                }
            },
            Mode::Tag => return self.dollar_tag(byte),
            Mode::Dollar { matched } => {
                let matched =
                    if self.tag.get(matched) == Some(&byte) { matched + 1 } else { usize::from(byte == b'$') };
                self.mode = if matched == self.tag.len() { Mode::Plain } else { Mode::Dollar { matched } };
            }
        }
        self.previous = 0;
        false
    }

    fn plain(&mut self, byte: u8) -> bool {
        let (previous, in_word) = (self.previous, !self.word.is_empty());
        let word_goes_on = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80;
        let begins_word = byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80;
        if in_word && !word_goes_on && byte != b'\'' {
            self.end_word();
        }
        self.previous = byte;
        match byte {
            b'\'' => {
                let escapes = self.begins_escapes(previous == b'\'');
                self.word.clear();
                (self.mode, self.blank) = (Mode::Literal { escapes }, false);
                return false;
            }
            b'-' if previous == b'-' => {
                (self.mode, self.previous) = (Mode::LineComment, 0);
                return false;
            }
            b'*' if previous == b'/' => {
                (self.mode, self.previous) = (Mode::BlockComment { depth: 1 }, 0);
                return false;
            }
            // What they begin is known with the next byte.
            b'-' | b'/' => return false,
            b'\n' => self.newline = true,
            b' ' | b'\t' | b'\r' | 0x0b | 0x0c => {}
            b';' => return self.parentheses == 0 && self.bodies == 0,
            _ => (self.blank, self.closed) = (false, None),
        }
        match byte {
            b'"' => self.mode = Mode::Name,
            b'(' => self.parentheses = self.parentheses.saturating_add(1),
            b')' => self.parentheses = self.parentheses.saturating_sub(1),
            b'$' if !in_word => {
                self.mode = Mode::Tag;
                self.tag = vec![b'$'];
            }
            // No word that matters is longer.
            _ if (begins_word || in_word && word_goes_on) && self.word.len() < 16 => {
                self.word.push(byte.to_ascii_lowercase());
            }
            _ => {}
        }
        false
    }

    /// Whether the literal that begins now has escapes.
    fn begins_escapes(&self, doubled: bool) -> bool {
        match (self.closed, self.word.as_slice()) {
            // Doubled, or continued on another line (`quotecontinue`).
            (Some(escapes), _) if doubled || self.newline => escapes,
            (_, b"e") => true,
            (_, b"b" | b"x") => false,
            _ => self.dialect.backslashes,
        }
    }

    fn dollar_tag(&mut self, byte: u8) -> bool {
        let first = self.tag.len() == 1;
        let goes_on = byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 || byte.is_ascii_digit() && !first;
        if byte == b'$' || goes_on {
            self.tag.push(byte);
            if byte == b'$' {
                self.mode = Mode::Dollar { matched: 0 };
            }
            self.previous = 0;
            return false;
        }
        self.mode = Mode::Plain;
        self.previous = 0;
        self.plain(byte)
    }

    fn end_word(&mut self) {
        let word = std::mem::take(&mut self.word);
        if self.words < self.beginning.len()
            && matches!(word.as_slice(), b"create" | b"function" | b"procedure" | b"or" | b"replace")
        {
            self.beginning[self.words] = word[0];
        }
        self.words += 1;
        let begins = std::mem::replace(&mut self.begins, word == b"begin");
        let of_function = matches!(self.beginning, [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if of_function && self.parentheses == 0 {
            match word.as_slice() {
                b"atomic" if begins => self.bodies += 1,
                b"case" if self.bodies > 0 => self.bodies += 1,
                b"end" => self.bodies = self.bodies.saturating_sub(1),
                _ => {}
            }
        }
    }
}

/// The statements of a text that is there as a whole, without their semicolons; empty ones are left out.
pub fn statements(text: &[u8], dialect: Dialect) -> Vec<&[u8]> {
    let mut splitter = Splitter::new(dialect);
    let mut rest = text;
    let mut statements = Vec::new();
    while let Some(end) = splitter.end(rest) {
        statements.push(without_comments(&rest[..end - 1]));
        rest = &rest[end..];
    }
    if !splitter.is_blank() {
        statements.push(without_comments(rest));
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

/// Without the white space around a statement and the line comments before it.
pub fn without_comments(statement: &[u8]) -> &[u8] {
    let mut rest = statement.trim_ascii();
    while rest.starts_with(b"--") {
        let end = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1);
        rest = rest[end..].trim_ascii_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let found = statements(text.as_bytes(), Dialect::default());
        found.into_iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    #[test]
    fn statements_end_where_psql_says() {
        for (text, expected) in [
            ("", vec![]),
            ("-- *not* creating schema; initdb does\n", vec![]),
            ("a; b;\n c", vec!["a", "b", "c"]),
            (";;a;;", vec!["a"]),
            ("GRANT x ON \"a;\"\"b\" TO c;\nREVOKE 'd;''e;';", vec!["GRANT x ON \"a;\"\"b\" TO c", "REVOKE 'd;''e;'"]),
            ("a 'x\\'; b", vec!["a 'x\\'", "b"]),
            ("a E'x\\'; b'; c", vec!["a E'x\\'; b'", "c"]),
            ("a E'x'\n '\\'; b'; c", vec!["a E'x'\n '\\'; b'", "c"]),
            ("a E'x''\\'; b'; c", vec!["a E'x''\\'; b'", "c"]),
            ("a $$x;$$; b $t$ ; $$ ; $ta$ ; $t$; c$t$; d", vec!["a $$x;$$", "b $t$ ; $$ ; $ta$ ; $t$", "c$t$", "d"]),
            ("a $1; b", vec!["a $1", "b"]),
            ("a /* ; /* ; */ ; */; b -- ; c\n; d", vec!["a /* ; /* ; */ ; */", "b -- ; c", "d"]),
            ("CREATE RULE r AS ON x DO (a; b); c", vec!["CREATE RULE r AS ON x DO (a; b)", "c"]),
            (
                "CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE a WHEN 1 THEN 2 END; SELECT 1; END;\nx",
                vec!["CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE a WHEN 1 THEN 2 END; SELECT 1; END", "x"],
            ),
            (
                "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC a; END; b",
                vec!["CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC a; END", "b"],
            ),
            (
                "CREATE FUNCTION s.begin() AS 'x'; b; CREATE FUNCTION begin(atomic int) BEGIN ATOMIC SELECT begin, 1; END; c",
                vec![
                    "CREATE FUNCTION s.begin() AS 'x'",
                    "b",
                    "CREATE FUNCTION begin(atomic int) BEGIN ATOMIC SELECT begin, 1; END",
                    "c",
                ],
            ),
            ("CREATE TABLE begin (a); b", vec!["CREATE TABLE begin (a)", "b"]),
        ] {
            assert_eq!(split(text), expected, "{text}");
            // In whatever cut it comes.
            let mut splitter = Splitter::new(Dialect::default());
            let ends = text.bytes().filter(|byte| splitter.end(&[*byte]).is_some()).count();
            let mut whole = Splitter::new(Dialect::default());
            let (mut rest, mut found) = (text.as_bytes(), 0);
            while let Some(end) = whole.end(rest) {
                (rest, found) = (&rest[end..], found + 1);
            }
            assert_eq!(ends, found, "{text}");
        }
    }

    #[test]
    fn backslashes_and_double_bytes_count_where_they_do() {
        let off = Dialect { backslashes: true, lead: None };
        assert_eq!(statements(b"a 'x\\'; b'; c", off).len(), 2);
        assert_eq!(statements(b"a B'x\\'; b", off).len(), 2);
        // The second byte of a character of SJIS is a backslash.
        let sjis = Dialect { backslashes: true, lead: Some(|byte| byte == 0x83) };
        assert_eq!(statements(b"a '\x83\\'; b", sjis).len(), 2);
    }
}
