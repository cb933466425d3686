//! COPY text of a table made into COPY's binary format, so that the server has no numbers and dates to parse.
//!
//! Only types whose text, as `pg_dump` has it written (`DateStyle` ISO, shortest floats), says all that their binary form
//! does ("File Formats" in the manual's page on COPY; the `…recv` functions of the server's `utils/adt`). What is not as
//! expected is not converted: it goes to the server as text.

#[cfg(test)]
mod tests;
mod values;

use crate::postgres::copy::unescape;
use values::{bytea, date, integer, numeric, offset_seconds, time, timestamp, uuid};

/// What a binary COPY begins with: signature, no flags, no extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub const TRAILER: &[u8] = b"\xff\xff";
const NULL: &[u8] = b"\\N";

/// How a column's text is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    /// The same bytes in both formats.
    Text,
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampTz,
}

impl Column {
    /// By the oid of a built-in type (`pg_type.dat`); enumerations are text.
    pub fn of_type(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            17 => Self::Bytea,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            26 => Self::Oid,
            // text, json, character, character varying
            25 | 114 | 1042 | 1043 => Self::Text,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// Appends the field's length and value; `None` where the text is not as expected.
    fn append(self, text: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Text | Self::Jsonb => {
                let plain = if text.contains(&b'\\') {
                    scratch.clear();
                    unescape(text, scratch)?;
                    scratch
                } else {
                    text
                };
                let version: &[u8] = if self == Self::Jsonb { &[1] } else { &[] };
                out.extend_from_slice(&i32::try_from(version.len() + plain.len()).ok()?.to_be_bytes());
                out.extend_from_slice(version);
                out.extend_from_slice(plain);
            }
            Self::Bool => match text {
                b"t" => field(out, [1]),
                b"f" => field(out, [0]),
                _ => return None,
            },
            Self::Int2 => field(out, i16::try_from(integer(text)?).ok()?.to_be_bytes()),
            Self::Int4 => field(out, i32::try_from(integer(text)?).ok()?.to_be_bytes()),
            Self::Int8 => field(out, integer(text)?.to_be_bytes()),
            Self::Oid => field(out, u32::try_from(integer(text)?).ok()?.to_be_bytes()),
            Self::Float4 => field(out, std::str::from_utf8(text).ok()?.parse::<f32>().ok()?.to_be_bytes()),
            Self::Float8 => field(out, std::str::from_utf8(text).ok()?.parse::<f64>().ok()?.to_be_bytes()),
            Self::Numeric => numeric(text, out)?,
            Self::Bytea => bytea(text, out)?,
            Self::Uuid => field(out, uuid(text)?),
            Self::Date => match date(text)? {
                (days, b"") => field(out, i32::try_from(days).ok()?.to_be_bytes()),
                _ => return None,
            },
            Self::Time => match time(text)? {
                (microseconds, b"") => field(out, microseconds.to_be_bytes()),
                _ => return None,
            },
            Self::Timestamp => match timestamp(text)? {
                (microseconds, b"") => field(out, microseconds.to_be_bytes()),
                _ => return None,
            },
            Self::TimestampTz => {
                let (local, zone) = timestamp(text)?;
                field(out, local.checked_sub(offset_seconds(zone)? * 1_000_000)?.to_be_bytes());
            }
        }
        Some(())
    }
}

/// Converts the rows of one table.
pub struct BinaryRows {
    columns: Vec<Column>,
    scratch: Vec<u8>,
}

impl BinaryRows {
    /// For columns of these types; `None` where one is not known, or nothing would be gained.
    pub fn new(types: &[u32]) -> Option<Self> {
        let columns = types.iter().map(|&oid| Column::of_type(oid)).collect::<Option<Vec<_>>>()?;
        let parsed = columns.iter().any(|column| *column != Column::Text);
        (parsed && i16::try_from(columns.len()).is_ok()).then(|| Self { columns, scratch: Vec::new() })
    }

    /// Appends whole rows of text to `out`; how many of their bytes were converted. Where that is not all, the row that
    /// follows is not as expected.
    pub fn append(&mut self, rows: &[u8], out: &mut Vec<u8>) -> usize {
        let mut done = 0;
        for row in rows.split_inclusive(|&byte| byte == b'\n') {
            let before = out.len();
            if self.row(row.strip_suffix(b"\n").unwrap_or(row), out).is_none() {
                out.truncate(before);
                return done;
            }
            done += row.len();
        }
        done
    }

    fn row(&mut self, row: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.extend_from_slice(&(self.columns.len() as i16).to_be_bytes());
        let mut fields = row.split(|&byte| byte == b'\t');
        for column in &self.columns {
            match fields.next()? {
                NULL => out.extend_from_slice(&(-1i32).to_be_bytes()),
                text => column.append(text, &mut self.scratch, out)?,
            }
        }
        fields.next().is_none().then_some(())
    }
}

fn field<const LEN: usize>(out: &mut Vec<u8>, value: [u8; LEN]) {
    out.extend_from_slice(&(LEN as i32).to_be_bytes());
    out.extend_from_slice(&value);
}
