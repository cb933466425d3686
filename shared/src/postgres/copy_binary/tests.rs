use super::values::{DAY_MICROSECONDS, NUMERIC_BYTES};
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
