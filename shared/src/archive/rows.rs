//! Splits the COPY text of a table into rows: counts and digests them, finds the end marker, and passes the text on
//! in batches that end with a row.
//!
//! `pg_dump` ends a table's rows by the line `\.` and empty lines (`dumpTableData_copy` in `pg_dump.c`), and
//! leaves it to the server to find it. `COPY … TO` never writes such a row: it doubles every backslash of a value.

use std::io::BufRead;

use crate::domain::TableDigest;
use crate::domain::fingerprint::RowHasher;

/// How much of a row is held until its end has come; a longer one is passed on in fragments.
pub const MAX_HELD_BYTES: usize = 256 * 1024;
const MARKER: &[u8] = b"\\.";

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RowsError {
    #[error("the data ends after {rows} rows without the end marker")]
    NoEnd { rows: u64 },
    #[error("there is an end marker after {rows} rows, in the midst of the data")]
    EarlyEnd { rows: u64 },
    #[error("something follows the end marker, after {rows} rows")]
    AfterEnd { rows: u64 },
    #[error("the data ends in the middle of row {row}")]
    UnfinishedRow { row: u64 },
}

/// COPY text to pass on: whole rows with their newlines, or a fragment of a giant one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Never empty.
    pub text: &'a [u8],
    /// Whether it ends with a row.
    pub ends_row: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The end marker has to come.
    Marked,
    /// It may not come.
    Bare,
    /// It has come.
    Seen,
}

/// Push text in fragments of any size, take batches out.
pub struct RowReader {
    digest: TableDigest,
    ending: Ending,
    /// The beginning of a row, or, for as long as a batch refers to it, a row that has been passed on.
    held: Vec<u8>,
    passed_on: bool,
    giant: Option<Box<RowHasher>>,
}

impl RowReader {
    /// For a whole table's data, end marker included.
    pub fn table() -> Self {
        Self { digest: TableDigest::default(), ending: Ending::Marked, held: Vec::new(), passed_on: false, giant: None }
    }

    /// For a piece: rows only.
    pub fn piece() -> Self {
        Self { ending: Ending::Bare, ..Self::table() }
    }

    /// What has been seen so far.
    pub fn digest(&self) -> &TableDigest {
        &self.digest
    }

    /// Bytes held in buffers.
    pub fn buffered_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// The next batch; `None` where the input is used up. Text is not copied but for rows that lie across
    /// fragments; no batch is longer than its fragment and [`MAX_HELD_BYTES`].
    ///
    /// # Errors
    /// Any [`RowsError`] but `NoEnd` and `UnfinishedRow`.
    pub fn next<'a, 'x: 'a>(&'a mut self, input: &mut &'x [u8]) -> Result<Option<Batch<'a>>, RowsError> {
        if std::mem::take(&mut self.passed_on) {
            self.held.clear();
        }
        if self.giant.is_some() && !input.is_empty() {
            return Ok(Some(self.giant_fragment(input)));
        }
        if !self.held.is_empty() && !input.is_empty() && self.complete_held(input)? {
            return Ok(Some(Batch { text: &self.held, ends_row: self.giant.is_none() }));
        }
        if self.ending == Ending::Seen {
            return self.after_end(input).map(|()| None);
        }
        let (text, marker) = self.whole_rows(input)?;
        if marker {
            self.ending = Ending::Seen;
            *input = &input[text.len() + MARKER.len() + 1..];
        } else {
            *input = &input[text.len()..];
        }
        if !text.is_empty() {
            return Ok(Some(Batch { text, ends_row: true }));
        }
        if marker {
            return self.after_end(input).map(|()| None);
        }
        let beginning = std::mem::take(input);
        if beginning.len() > MAX_HELD_BYTES {
            self.giant.get_or_insert_default().update(beginning);
            return Ok(Some(Batch { text: beginning, ends_row: false }));
        }
        self.held.extend_from_slice(beginning);
        Ok(None)
    }

    /// Tells that the text has ended.
    ///
    /// # Errors
    /// [`RowsError::NoEnd`] for a table without its end marker, [`RowsError::UnfinishedRow`] for a piece that is not
    /// whole rows.
    pub fn finish(self) -> Result<TableDigest, RowsError> {
        let rows = self.digest.rows;
        let open = self.giant.is_some() || !(self.held.is_empty() || self.passed_on);
        match self.ending {
            Ending::Marked => Err(RowsError::NoEnd { rows }),
            Ending::Bare if open => Err(RowsError::UnfinishedRow { row: rows + 1 }),
            Ending::Bare | Ending::Seen => Ok(self.digest),
        }
    }

    fn giant_fragment<'x>(&mut self, input: &mut &'x [u8]) -> Batch<'x> {
        let (text, ends_row) = take_line(input);
        if let Some(mut giant) = self.giant.take() {
            giant.update(&text[..text.len() - usize::from(ends_row)]);
            if ends_row {
                giant.finish(&mut self.digest);
            } else {
                self.giant = Some(giant);
            }
        }
        Batch { text, ends_row }
    }

    /// Adds to the held beginning of a row; true where what is held is to be passed on.
    fn complete_held(&mut self, input: &mut &[u8]) -> Result<bool, RowsError> {
        let mut rest = *input;
        let (text, ends_row) = take_line(&mut rest);
        if self.held.len() + text.len() > MAX_HELD_BYTES {
            // The input stays: it is the giant row's next fragment.
            self.giant.get_or_insert_default().update(&self.held);
            self.passed_on = true;
            return Ok(true);
        }
        self.held.extend_from_slice(text);
        *input = rest;
        if !ends_row {
            return Ok(false);
        }
        let row = &self.held[..self.held.len() - 1];
        if row == MARKER {
            self.marker()?;
            self.ending = Ending::Seen;
            self.held.clear();
            return Ok(false);
        }
        self.digest.add_row(row);
        self.passed_on = true;
        Ok(true)
    }

    /// The whole rows that the input begins with, and whether the end marker follows them.
    fn whole_rows<'x>(&mut self, input: &mut &'x [u8]) -> Result<(&'x [u8], bool), RowsError> {
        let mut rest = *input;
        let mut rows_end = 0;
        loop {
            let (line, true) = take_line(&mut rest) else { return Ok((&input[..rows_end], false)) };
            let row = &line[..line.len() - 1];
            if row == MARKER {
                self.marker()?;
                return Ok((&input[..rows_end], true));
            }
            self.digest.add_row(row);
            rows_end += line.len();
        }
    }

    fn marker(&self) -> Result<(), RowsError> {
        let rows = self.digest.rows;
        if self.ending == Ending::Bare { Err(RowsError::EarlyEnd { rows }) } else { Ok(()) }
    }

    fn after_end(&self, input: &mut &[u8]) -> Result<(), RowsError> {
        let rest = std::mem::take(input);
        if rest.iter().all(|&byte| byte == b'\n') {
            Ok(())
        } else {
            Err(RowsError::AfterEnd { rows: self.digest.rows })
        }
    }
}

/// What the input has up to and with the next newline, and whether there is one.
fn take_line<'x>(input: &mut &'x [u8]) -> (&'x [u8], bool) {
    let whole = *input;
    // The standard library's way to `memchr`; a slice does not fail to be read.
    let len = input.skip_until(b'\n').unwrap_or(0);
    let line = &whole[..len];
    (line, line.last() == Some(&b'\n'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All text and the digest; checks each batch.
    fn read(mut reader: RowReader, text: &[u8], fragment: usize) -> Result<(Vec<u8>, TableDigest), RowsError> {
        let mut out = Vec::new();
        for mut input in text.chunks(fragment) {
            while let Some(batch) = reader.next(&mut input)? {
                assert!(!batch.text.is_empty() && batch.text.len() <= fragment.max(MAX_HELD_BYTES));
                assert_eq!(batch.ends_row, batch.text.last() == Some(&b'\n'));
                out.extend_from_slice(batch.text);
                assert!(reader.buffered_bytes() <= 2 * MAX_HELD_BYTES);
            }
            assert!(input.is_empty());
        }
        reader.finish().map(|digest| (out, digest))
    }

    fn digest(rows: &[Vec<u8>]) -> TableDigest {
        let mut digest = TableDigest::default();
        rows.iter().for_each(|row| digest.add_row(row));
        digest
    }

    fn row() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            8 => "[ab\\\\.\t]{0,12}".prop_map(String::into_bytes),
            1 => (0usize..3).prop_map(|n| vec![b'x'; MAX_HELD_BYTES - 1 + n]),
        ]
        .prop_filter("an end marker is no row", |row| row != MARKER)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn rows_come_back_whatever_the_fragments(rows in proptest::collection::vec(row(), 0..12), size in 1usize..40, large in any::<bool>()) {
            let fragment = if large { size * 20_000 } else { size };
            let mut text = Vec::new();
            rows.iter().for_each(|row| { text.extend_from_slice(row); text.push(b'\n') });
            prop_assert_eq!(read(RowReader::piece(), &text, fragment).unwrap(), (text.clone(), digest(&rows)));
            let marked = [&text[..], b"\\.\n\n\n"].concat();
            prop_assert_eq!(read(RowReader::table(), &marked, fragment).unwrap(), (text, digest(&rows)));
        }
    }

    #[test]
    fn ends() {
        let rows = |rows: u64| digest(&vec![b"a".to_vec(); rows as usize]);
        let table: &[(&[u8], Result<u64, RowsError>)] = &[
            (b"\\.\n\n\n", Ok(0)),
            (b"a\n\\.\n\n\n", Ok(1)),
            (b"a\na\n\\.\n", Ok(2)),
            (b"", Err(RowsError::NoEnd { rows: 0 })),
            (b"a\na", Err(RowsError::NoEnd { rows: 1 })),
            (b"a\n", Err(RowsError::NoEnd { rows: 1 })),
            (b"a\n\\.", Err(RowsError::NoEnd { rows: 1 })),
            (b"a\n\\.\n\n\na\n", Err(RowsError::AfterEnd { rows: 1 })),
            (b"a\n\\.\n\\.\n", Err(RowsError::AfterEnd { rows: 1 })),
        ];
        let piece: &[(&[u8], Result<u64, RowsError>)] = &[
            (b"", Ok(0)),
            (b"a\na\n", Ok(2)),
            (b"a\na", Err(RowsError::UnfinishedRow { row: 2 })),
            (b"a\n\\.\n", Err(RowsError::EarlyEnd { rows: 1 })),
        ];
        for (reader, cases) in [(RowReader::table as fn() -> RowReader, table), (RowReader::piece, piece)] {
            for (text, expected) in cases {
                for fragment in [1, 2, 3, 100] {
                    let found = read(reader(), text, fragment).map(|(_, digest)| digest);
                    assert_eq!(found, expected.clone().map(rows), "{:?}", String::from_utf8_lossy(text));
                }
            }
        }
    }

    #[test]
    fn a_giant_row_is_passed_on_as_it_comes() {
        let giant = vec![b'g'; 3 * MAX_HELD_BYTES];
        let text = [b"a\n", giant.as_slice(), b"\nb\n\\.\n\n\n"].concat();
        let expected = digest(&[b"a".to_vec(), giant, b"b".to_vec()]);
        for fragment in [7_001, MAX_HELD_BYTES, text.len()] {
            let (out, found) = read(RowReader::table(), &text, fragment).unwrap();
            assert_eq!((out.len(), found), (text.len() - 5, expected));
        }
        assert_eq!(
            read(RowReader::piece(), &text[..MAX_HELD_BYTES * 2], 9_999),
            Err(RowsError::UnfinishedRow { row: 2 })
        );
    }
}
