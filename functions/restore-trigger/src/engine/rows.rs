//! Rows on their way into a table: in COPY's binary format for as long as they can be converted, else as text.

use holdfast_shared::archive::rows::RowReader;
use holdfast_shared::archive::sql;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::{CopyError, RawSession};
use holdfast_shared::postgres::copy_binary::{BinaryRows, HEADER, TRAILER};
use holdfast_shared::postgres::copy_in::CopyIn;

use crate::engine::database::first_column;
use crate::engine::intake::IntakeError;
use crate::engine::stopped::Stopped;

/// Where rows go, and how.
pub struct Destination {
    /// `COPY … FROM STDIN`.
    pub copy: Vec<u8>,
    /// The relation, where it is emptied first and its rows are written as if they had always been there.
    pub frozen: Option<Vec<u8>>,
    /// `None`: as text.
    pub binary: Option<BinaryRows>,
    /// The server hears of it with the first row: who may not write to the table may still load none into it.
    pub lazily: bool,
}

impl Destination {
    fn statement(&self) -> Vec<u8> {
        let options: &[u8] = match (&self.frozen, &self.binary) {
            (None, None) => b"",
            (Some(_), None) => b" WITH (FREEZE)",
            (None, Some(_)) => b" WITH (FORMAT binary)",
            (Some(_), Some(_)) => b" WITH (FORMAT binary, FREEZE)",
        };
        let empty = self.frozen.iter().flat_map(|relation| [b"TRUNCATE ONLY ", relation.as_slice(), b"; "].concat());
        empty.chain(self.copy.iter().copied()).chain(options.iter().copied()).collect()
    }
}

/// What converts rows of these columns; `None` where the server has to.
pub async fn binary_rows(
    session: &mut RawSession,
    relation: &[u8],
    columns: &[u8],
) -> Result<Option<BinaryRows>, Fault> {
    let words = sql::words(columns);
    let names: Vec<Vec<u8>> =
        words.iter().filter(|word| **word != b",").map(|word| sql::literal(&sql::unquoted(word))).collect();
    let query = [
        b"COPY (SELECT CASE t.typtype WHEN 'e' THEN 25 WHEN 'd' THEN t.typbasetype WHEN 'b' THEN t.oid ELSE 0 END
                  FROM pg_catalog.unnest(ARRAY["
            .as_slice(),
        &names.join(b",".as_slice()),
        b"]::pg_catalog.name[]) WITH ORDINALITY AS c(name, at)
                  LEFT JOIN pg_catalog.pg_attribute a ON a.attname = c.name AND NOT a.attisdropped AND a.attrelid = ",
        &sql::literal(relation),
        b"::pg_catalog.regclass LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid ORDER BY c.at) TO STDOUT",
    ]
    .concat();
    let types = first_column(session, &query).await?;
    let oids: Option<Vec<u32>> = types.iter().map(|oid| std::str::from_utf8(oid).ok()?.parse().ok()).collect();
    Ok(oids.filter(|oids| oids.len() == names.len()).and_then(|oids| BinaryRows::new(&oids)))
}

/// A COPY under way. Dropped unfinished, it leaves the session unusable, and the server aborts.
pub struct Rows<'s> {
    state: State<'s>,
    binary: Option<BinaryRows>,
    converted: Vec<u8>,
    /// What takes the rest as text.
    as_text: Vec<u8>,
    taken: u64,
}

enum State<'s> {
    Waits {
        session: &'s mut RawSession,
        statement: Vec<u8>,
    },
    Begun(CopyIn<'s>),
    /// Beginning has failed.
    Broken,
}

impl<'s> Rows<'s> {
    pub async fn begin(session: &'s mut RawSession, to: Destination) -> Result<Self, CopyError> {
        let state = State::Waits { session, statement: to.statement() };
        let mut rows = Self { state, binary: to.binary, converted: Vec::new(), as_text: to.copy, taken: 0 };
        if !to.lazily {
            rows.begun().await?;
        }
        Ok(rows)
    }

    async fn begun(&mut self) -> Result<&mut CopyIn<'s>, CopyError> {
        if let State::Waits { .. } = self.state
            && let State::Waits { session, statement } = std::mem::replace(&mut self.state, State::Broken)
        {
            let mut copy = session.copy_in(statement).await?;
            if self.binary.is_some() {
                copy.send(HEADER).await?;
            }
            self.state = State::Begun(copy);
        }
        match &mut self.state {
            State::Begun(copy) => Ok(copy),
            _ => Err(CopyError::Protocol { what: "rows for a COPY that has not begun" }),
        }
    }

    pub async fn pass_on(&mut self, rows: &mut RowReader, mut text: &[u8]) -> Result<(), Stopped> {
        while let Some(batch) = rows.next(&mut text).map_err(IntakeError::from)? {
            let mut left = batch.text;
            self.begun().await?;
            if let (Some(binary), State::Begun(copy)) = (&mut self.binary, &mut self.state) {
                self.converted.clear();
                // A giant row comes in fragments, and is not held.
                let done = if batch.ends_row { binary.append(left, &mut self.converted) } else { 0 };
                copy.send(&self.converted).await?;
                left = &left[done..];
                if !left.is_empty() {
                    copy.send(TRAILER).await?;
                    self.taken += copy.go_on_with(&self.as_text).await?;
                    self.binary = None;
                }
            }
            self.begun().await?.send(left).await?;
        }
        Ok(())
    }

    /// The number of rows that the server took.
    pub async fn finish(self) -> Result<u64, CopyError> {
        match self.state {
            State::Begun(mut copy) => {
                if self.binary.is_some() {
                    copy.send(TRAILER).await?;
                }
                Ok(self.taken + copy.finish().await?)
            }
            _ => Ok(0),
        }
    }
}
