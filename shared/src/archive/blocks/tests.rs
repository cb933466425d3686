use super::*;
use crate::archive::codec::{padding_block, put_large_objects_block, put_table_block};
use crate::archive::wire::put_int;

/// What a block says, with its stored bytes joined.
#[derive(Debug, PartialEq)]
enum Told {
    Event(BlockEvent<'static>),
    Bytes(Vec<u8>),
}

fn read(mut reader: BlockReader, bytes: &[u8], fragment: usize) -> Result<Vec<Told>, BlockError> {
    let mut told = Vec::new();
    for mut input in bytes.chunks(fragment) {
        while let Some(event) = reader.next(&mut input)? {
            match event {
                BlockEvent::Bytes(bytes) => match told.last_mut() {
                    Some(Told::Bytes(before)) => before.extend_from_slice(bytes),
                    _ => told.push(Told::Bytes(bytes.to_vec())),
                },
                BlockEvent::Begin { kind, dump_id, offset } => {
                    told.push(Told::Event(BlockEvent::Begin { kind, dump_id, offset }));
                }
                BlockEvent::LargeObject { oid } => told.push(Told::Event(BlockEvent::LargeObject { oid })),
                BlockEvent::StreamEnd => told.push(Told::Event(BlockEvent::StreamEnd)),
                BlockEvent::End { offset } => told.push(Told::Event(BlockEvent::End { offset })),
            }
        }
        assert!(input.is_empty());
    }
    reader.finish().map(|()| told)
}

fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_int(out, bytes.len() as i32);
    out.extend_from_slice(bytes);
}

/// A table, padding, and three large objects, one of them empty and one with a high oid.
fn section() -> Vec<u8> {
    let mut out = Vec::new();
    put_table_block(&mut out, 7);
    chunk(&mut out, b"ab");
    chunk(&mut out, b"c");
    put_int(&mut out, 0);
    out.extend_from_slice(&padding_block(30));
    put_large_objects_block(&mut out, 9);
    for (oid, content) in [(16_500, &b"xyz"[..]), (1, b""), (3_000_000_001_u32, b"!")] {
        put_int(&mut out, oid as i32);
        if !content.is_empty() {
            chunk(&mut out, content);
        }
        put_int(&mut out, 0);
    }
    put_int(&mut out, 0);
    out
}

#[test]
fn events_whatever_the_fragments() {
    use BlockEvent::{Begin, End, LargeObject, StreamEnd};
    let bytes = section();
    let event = Told::Event;
    let table_ends = 100 + 6 + 7 + 6 + 5;
    let padding_ends = table_ends + 30;
    let expected = vec![
        event(Begin { kind: BlockKind::TableData, dump_id: 7, offset: 100 }),
        Told::Bytes(b"abc".to_vec()),
        event(StreamEnd),
        event(End { offset: table_ends }),
        event(Begin { kind: BlockKind::TableData, dump_id: i32::MAX, offset: table_ends }),
        Told::Bytes(vec![0; 14]),
        event(StreamEnd),
        event(End { offset: padding_ends }),
        event(Begin { kind: BlockKind::LargeObjects, dump_id: 9, offset: padding_ends }),
        event(LargeObject { oid: 16_500 }),
        Told::Bytes(b"xyz".to_vec()),
        event(StreamEnd),
        event(LargeObject { oid: 1 }),
        event(StreamEnd),
        event(LargeObject { oid: 3_000_000_001 }),
        Told::Bytes(b"!".to_vec()),
        event(StreamEnd),
        event(End { offset: 100 + bytes.len() as u64 }),
    ];
    for fragment in [1, 2, 3, 5, 6, 11, 1000] {
        assert_eq!(read(BlockReader::section(4, 100).unwrap(), &bytes, fragment).unwrap(), expected, "{fragment}");
    }
}

#[test]
fn a_cut_is_told_wherever_it_is() {
    let bytes = section();
    let ends = [0, 24, 54, bytes.len()];
    for cut in 0..bytes.len() {
        let read = read(BlockReader::section(4, 0).unwrap(), &bytes[..cut], 4);
        assert_eq!(read.is_ok(), ends.contains(&cut), "cut at {cut}");
        if let Err(error) = read {
            assert!(matches!(error, BlockError::Truncated { offset, .. } if offset == cut as u64), "{error}");
        }
    }
}

#[test]
fn ints_of_eight_bytes() {
    let mut bytes = vec![1];
    let mut int = |value: i64| {
        bytes.push(u8::from(value < 0));
        bytes.extend_from_slice(&value.unsigned_abs().to_le_bytes());
    };
    int(3);
    int(0);
    assert_eq!(read(BlockReader::section(8, 0).unwrap(), &bytes, 2).unwrap().len(), 3);
    assert!(matches!(BlockReader::section(9, 0), Err(BlockError::IntSize { size: 9 })));
    assert!(matches!(BlockReader::section(0, 0), Err(BlockError::IntSize { size: 0 })));
}

#[test]
fn nonsense_is_refused_by_what_and_where() {
    let table = |ints: &[i32]| {
        let mut out = vec![1];
        ints.iter().for_each(|&int| put_int(&mut out, int));
        out
    };
    let implausible = |what, value, offset| BlockError::Implausible { what, value, offset };
    for (bytes, error) in [
        (vec![2, 0, 0], BlockError::UnknownType { found: 2, offset: 0 }),
        (table(&[0]), implausible("a dump id", 0, 6)),
        (table(&[-1]), implausible("a dump id", -1, 6)),
        (table(&[1, -5]), implausible("a chunk length", -5, 11)),
        (table(&[1, (1 << 30) + 1]), implausible("a chunk length", (1 << 30) + 1, 11)),
        // A length that is believed costs nothing until its bytes come.
        (table(&[1, 1 << 30]), BlockError::Truncated { inside: "a chunk", offset: 11 }),
    ] {
        assert_eq!(read(BlockReader::section(4, 0).unwrap(), &bytes, 3), Err(error));
    }
}

#[test]
fn the_head_says_how_long_an_int_is() {
    assert_eq!(int_size(b"PGDMP\x01\x10\x00\x04\x08\x01"), Some(4));
    assert_eq!(int_size(b"PGDMP\x01\x10\x00"), None);
}
