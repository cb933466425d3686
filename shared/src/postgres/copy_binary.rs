//! COPY text of a table made into COPY's binary format, so that the server has no numbers and dates to parse.
//!
//! Only types whose text, as `pg_dump` has it written (`DateStyle` ISO, shortest floats), says all that their binary form
//! does ("File Formats" in the manual's page on COPY; the `…recv` functions of the server's `utils/adt`). What is not as
//! expected is not converted: it goes to the server as text.

/// What a binary COPY begins with: signature, no flags, no extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub const TRAILER: &[u8] = b"\xff\xff";
const NULL: &[u8] = b"\\N";
/// From 1970-01-01, the epoch of the civil calendar here, to 2000-01-01, the server's.
const EPOCH_DAYS: i64 = 10_957;
const DAY_MICROSECONDS: i64 = 86_400_000_000;
/// Longer numbers than this are left to the server.
const NUMERIC_BYTES: usize = 1000;

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
                let plain = if text.contains(&b'\\') { unescaped(text, scratch)? } else { text };
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

/// What COPY has escaped; `None` for escapes that it does not write.
fn unescaped<'s>(text: &[u8], scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
    scratch.clear();
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        scratch.extend_from_slice(&rest[..at]);
        scratch.push(match rest.get(at + 1)? {
            b'\\' => b'\\',
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            _ => return None,
        });
        rest = &rest[at + 2..];
    }
    scratch.extend_from_slice(rest);
    Some(scratch)
}

fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = signed(text);
    let value = digits_value(digits)?;
    Some(if negative { -value } else { value })
}

fn signed(text: &[u8]) -> (bool, &[u8]) {
    text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits))
}

/// Of up to 18 digits; longer ones are rare enough for the server.
fn digits_value(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// Groups of four digits, the weight of the first, the sign, and how many decimals are shown.
fn numeric(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const NEGATIVE: u16 = 0x4000;
    const NAN: u16 = 0xC000;
    if text == b"NaN" {
        out.extend_from_slice(&8i32.to_be_bytes());
        [0, 0, NAN, 0].iter().for_each(|part: &u16| out.extend_from_slice(&part.to_be_bytes()));
        return Some(());
    }
    let (negative, digits) = signed(text);
    let point = digits.iter().position(|&byte| byte == b'.');
    let (whole, decimals) = point.map_or((digits, [].as_slice()), |at| (&digits[..at], &digits[at + 1..]));
    let all_digits = whole.iter().chain(decimals).all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits || digits.len() > NUMERIC_BYTES || (point.is_some() && decimals.is_empty()) {
        return None;
    }
    let start = out.len();
    out.extend_from_slice(&[0; 12]);
    let group = |digits: &[u8]| digits.iter().fold(0u16, |value, byte| value * 10 + u16::from(byte - b'0'));
    let (mut weight, mut count, mut last) = (whole.len().div_ceil(4) as i16 - 1, 0u16, 0u16);
    let mut push = |value: u16| {
        if count == 0 && value == 0 {
            weight -= 1;
            return;
        }
        out.extend_from_slice(&value.to_be_bytes());
        count += 1;
        if value != 0 {
            last = count;
        }
    };
    let (first, others) = whole.split_at(whole.len() % 4);
    if !first.is_empty() {
        push(group(first));
    }
    others.chunks(4).for_each(|four| push(group(four)));
    for four in decimals.chunks(4) {
        push(group(four) * 10u16.pow(4 - four.len() as u32));
    }
    if last == 0 {
        weight = 0;
    }
    out.truncate(start + 12 + 2 * usize::from(last));
    let sign = if negative && last > 0 { NEGATIVE } else { 0 };
    let parts = [last, weight as u16, sign, decimals.len() as u16];
    out[start..start + 4].copy_from_slice(&(8 + 2 * i32::from(last)).to_be_bytes());
    for (slot, part) in out[start + 4..start + 12].chunks_mut(2).zip(parts) {
        slot.copy_from_slice(&part.to_be_bytes());
    }
    Some(())
}

/// `\\x6162`: the backslash is escaped.
fn bytea(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digits = text.strip_prefix(b"\\\\x")?;
    if digits.len() % 2 == 1 {
        return None;
    }
    out.extend_from_slice(&i32::try_from(digits.len() / 2).ok()?.to_be_bytes());
    for pair in digits.chunks_exact(2) {
        out.push(hex(pair)?);
    }
    Some(())
}

fn hex(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    if text.len() != 36 || HYPHENS.iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let (mut value, mut at) = ([0; 16], 0);
    for byte in &mut value {
        at += usize::from(HYPHENS.contains(&at));
        *byte = hex(&text[at..at + 2])?;
        at += 2;
    }
    Some(value)
}

/// Days since 2000-01-01, and what follows. Infinity and years before Christ are left to the server.
fn date(text: &[u8]) -> Option<(i64, &[u8])> {
    let year_end = text.iter().position(|&byte| byte == b'-').filter(|&at| (4..=7).contains(&at))?;
    let (year, rest) = (digits_value(&text[..year_end])?, &text[year_end..]);
    let (&[b'-', m1, m2, b'-', d1, d2], rest) = rest.split_first_chunk::<6>()? else { return None };
    let (month, day) = (digits_value(&[m1, m2])?, digits_value(&[d1, d2])?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // The year begins in March, so that its last day is the one that may not be there.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468 - EPOCH_DAYS, rest))
}

/// Microseconds since midnight, and what follows.
fn time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (&[h1, h2, b':', m1, m2, b':', s1, s2], mut rest) = text.split_first_chunk::<8>()? else { return None };
    let (hours, minutes, seconds) = (digits_value(&[h1, h2])?, digits_value(&[m1, m2])?, digits_value(&[s1, s2])?);
    let mut microseconds = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 6 {
            return None;
        }
        microseconds += digits_value(&fraction[..digits])? * 10i64.pow(6 - digits as u32);
        rest = &fraction[digits..];
    }
    Some((microseconds, rest))
}

/// Microseconds since 2000-01-01 00:00, and what follows: a zone, or nothing.
fn timestamp(text: &[u8]) -> Option<(i64, &[u8])> {
    let (days, rest) = date(text)?;
    let (microseconds, rest) = time(rest.strip_prefix(b" ")?)?;
    Some((days.checked_mul(DAY_MICROSECONDS)?.checked_add(microseconds)?, rest))
}

/// Of `+05`, `-03:30` or `+00:53:28`; all of it.
fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, rest) = zone.split_first()?;
    let parts = rest.split(|&byte| byte == b':').map(digits_value).collect::<Option<Vec<_>>>()?;
    let seconds = match parts[..] {
        [hours] => hours * 3600,
        [hours, minutes] => hours * 3600 + minutes * 60,
        [hours, minutes, seconds] => hours * 3600 + minutes * 60 + seconds,
        _ => return None,
    };
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(column: Column, text: &str) -> Option<Vec<u8>> {
        let mut rows = BinaryRows { columns: vec![column], scratch: Vec::new() };
        let mut out = Vec::new();
        let row = format!("{text}\n");
        (rows.append(row.as_bytes(), &mut out) == row.len()).then(|| out[6..].to_vec())
    }

    fn words(values: &[i16]) -> Option<Vec<u8>> {
        Some(values.iter().flat_map(|value| value.to_be_bytes()).collect())
    }

    #[test]
    fn numbers() {
        for (text, expected) in [
            ("0", [0, 0, 0, 0].as_slice()),
            ("0.00", &[0, 0, 0, 2]),
            ("1", &[1, 0, 0, 0, 1]),
            ("-1.5", &[2, 0, 0x4000, 1, 1, 5000]),
            ("10000", &[1, 1, 0, 0, 1]),
            ("123456.789", &[3, 1, 0, 3, 12, 3456, 7890]),
            ("0.00001", &[1, -2, 0, 5, 1000]),
            ("100000000.0", &[1, 2, 0, 1, 1]),
            ("NaN", &[0, 0, 0xC000u16 as i16, 0]),
        ] {
            assert_eq!(one(Column::Numeric, text), words(expected), "{text}");
        }
        for text in ["", "-", "1.", ".5", "1e5", "Infinity", "1 ", "--1", "+1", &"9".repeat(NUMERIC_BYTES + 1)] {
            assert_eq!(one(Column::Numeric, text), None, "{text}");
        }
        assert_eq!(one(Column::Int2, "-32768"), Some((-32768i16).to_be_bytes().to_vec()));
        for text in ["32768", "", "-", "1.0", "+1", " 1", "1a", "9999999999999999999"] {
            assert_eq!(one(Column::Int2, text), None, "{text}");
        }
    }

    #[test]
    fn moments() {
        let microseconds = |value: i64| Some(value.to_be_bytes().to_vec());
        for (column, text, expected) in [
            (Column::Timestamp, "2000-01-01 00:00:00", 0),
            (Column::Timestamp, "1999-12-31 23:59:59.999999", -1),
            (Column::Timestamp, "2000-03-01 00:00:00.5", 60 * DAY_MICROSECONDS + 500_000),
            (Column::TimestampTz, "2000-01-01 02:30:00+02:30", 0),
            (Column::TimestampTz, "1999-12-31 19:00:00-05", 0),
            (Column::TimestampTz, "1900-01-01 00:53:28+00:53:28", -36_524 * DAY_MICROSECONDS),
            (Column::Time, "24:00:00", DAY_MICROSECONDS),
            (Column::Time, "00:00:00.000001", 1),
        ] {
            assert_eq!(one(column, text), microseconds(expected), "{text}");
        }
        assert_eq!(one(Column::Date, "0001-01-01"), Some((-730_119i32).to_be_bytes().to_vec()));
        assert_eq!(one(Column::Date, "20000-02-29"), Some(6_574_424i32.to_be_bytes().to_vec()));
        for (column, text) in [
            (Column::Date, "infinity"),
            (Column::Date, "0044-03-15 BC"),
            (Column::Date, "2000-13-01"),
            (Column::Date, "01/02/2000"),
            (Column::Timestamp, "2000-01-01"),
            (Column::Timestamp, "2000-01-01 00:00:00 BC"),
            (Column::TimestampTz, "2000-01-01 00:00:00"),
            (Column::TimestampTz, "2000-01-01 00:00:00 UTC"),
            (Column::Time, "00:00"),
        ] {
            assert_eq!(one(column, text), None, "{text}");
        }
    }

    #[test]
    fn bytes() {
        assert_eq!(one(Column::Text, r"a\tb\\c\n"), Some(b"a\tb\\c\n".to_vec()));
        assert_eq!(one(Column::Text, r"a\"), None);
        assert_eq!(one(Column::Text, r"\101"), None);
        assert_eq!(one(Column::Bytea, r"\\x00ff"), Some(vec![0, 255]));
        assert_eq!(one(Column::Bytea, r"\\000"), None);
        assert_eq!(one(Column::Jsonb, r#"{"a": "\\n"}"#), Some(b"\x01{\"a\": \"\\n\"}".to_vec()));
        let id = "00112233-4455-6677-8899-aabbccddeeff";
        let expected: Vec<u8> = (0..16u8).map(|n| n << 4 | n).collect();
        assert_eq!(one(Column::Uuid, id), Some(expected));
        assert_eq!(one(Column::Uuid, &id.replace('-', "")), None);
        assert_eq!((one(Column::Bool, "t"), one(Column::Bool, "true")), (Some(vec![1]), None));
    }

    #[test]
    fn a_row_that_is_not_as_expected_ends_it() {
        let mut rows = BinaryRows::new(&[23, 25]).unwrap();
        let mut out = Vec::new();
        let text = b"1\ta\n\\N\t\\N\n3\n4\td\n";
        assert_eq!(rows.append(text, &mut out), 10);
        let null = (-1i32).to_be_bytes();
        let expected = [&[0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 2][..], &null, &null].concat();
        assert_eq!(out, expected);
        assert!(BinaryRows::new(&[25, 1043]).is_none() && BinaryRows::new(&[23, 869]).is_none());
    }
}
