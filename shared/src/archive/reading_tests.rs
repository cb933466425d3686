//! The reading side as a whole: archives of stock `pg_dump`s, archives of our own writer, and damaged ones.

mod damage;

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::blocks::{BlockError, BlockEvent, BlockKind, BlockReader, int_size};
use crate::archive::codec::{Adler, Compression, Encoder, padding_block, put_large_objects_block, put_table_block};
use crate::archive::decode::{DecodeError, Decoder, OUTPUT_BYTES};
use crate::archive::rows::{MAX_HELD_BYTES, RowReader, RowsError};
use crate::archive::toc::{ArchiveVersion, Entry, Header, Offset, Toc, TocError};
use crate::archive::wire::put_int;
use crate::domain::TableDigest;
use crate::domain::manifest::Piece;

/// More text than this makes no test archive, damaged or not; kept apart so that the tests stay small too.
const MAX_TEXT_BYTES: usize = 8 << 20;
/// All that a reader may hold in its own buffers: those of the largest lz4 frame.
const MAX_BUFFERED_BYTES: usize = 20 << 20;

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Toc(#[from] TocError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error("{0}")]
    Other(&'static str),
}

#[derive(Debug, Default, PartialEq)]
struct Contents {
    /// COPY text and digest by dump id.
    tables: BTreeMap<i32, (Vec<u8>, TableDigest)>,
    objects: BTreeMap<u32, Vec<u8>>,
    labels: BTreeMap<String, i32>,
}

/// Reads all data of an archive that arrives in fragments.
fn read(archive: &[u8], fragment: usize) -> Result<Contents, Refused> {
    let (toc, at) = Toc::read(archive)?;
    let of_entry = |dump_id| toc.entries.iter().find(|entry| entry.dump_id == dump_id);
    let mut contents = Contents::default();
    let mut blocks = BlockReader::section(int_size(archive).unwrap_or(0), at)?;
    let mut decoder = Decoder::new(toc.header.compression)?;
    let mut open: Option<(i32, RowReader, Vec<u8>)> = None;
    let mut object: Option<(u32, Vec<u8>)> = None;
    let mut seen = BTreeSet::new();
    let section = archive.get(at as usize..).unwrap_or_default();
    for mut input in section.chunks(fragment) {
        while let Some(event) = blocks.next(&mut input)? {
            match event {
                BlockEvent::Begin { kind, dump_id, .. } => {
                    if !seen.insert(dump_id) {
                        return Err(Refused::Other("a second block of one entry"));
                    }
                    if let Some(entry) = of_entry(dump_id) {
                        let fits = match kind {
                            BlockKind::TableData => entry.is_table_data(),
                            BlockKind::LargeObjects => entry.is_large_objects(),
                        };
                        if !fits {
                            return Err(Refused::Other("a block of another kind than its entry"));
                        }
                        if kind == BlockKind::TableData {
                            decoder.reset()?;
                            open = Some((dump_id, RowReader::table(), Vec::new()));
                            contents.labels.insert(entry.label(), dump_id);
                        }
                    }
                }
                BlockEvent::LargeObject { oid } => {
                    decoder.reset()?;
                    object = Some((oid, Vec::new()));
                }
                BlockEvent::Bytes(mut stored) => {
                    if open.is_none() && object.is_none() {
                        continue;
                    }
                    while let Some(mut text) = decoder.decode(&mut stored)? {
                        assert!(text.len() <= OUTPUT_BYTES);
                        let out = match (&mut open, &mut object) {
                            (Some((_, rows, out)), _) => {
                                while let Some(batch) = rows.next(&mut text)? {
                                    out.extend_from_slice(batch.text);
                                }
                                assert!(rows.buffered_bytes() <= 2 * MAX_HELD_BYTES);
                                out
                            }
                            (None, Some((_, out))) => {
                                out.extend_from_slice(text);
                                out
                            }
                            (None, None) => unreachable!(),
                        };
                        if out.len() > MAX_TEXT_BYTES {
                            return Err(Refused::Other("much more text than was written"));
                        }
                    }
                    assert!(decoder.buffered_bytes() <= MAX_BUFFERED_BYTES);
                }
                BlockEvent::StreamEnd => {
                    if let Some((dump_id, rows, out)) = open.take() {
                        decoder.finish()?;
                        contents.tables.insert(dump_id, (out, rows.finish()?));
                    }
                    if let Some((oid, out)) = object.take() {
                        decoder.finish()?;
                        contents.objects.insert(oid, out);
                    }
                }
                BlockEvent::End { .. } => {}
            }
        }
        assert!(input.is_empty());
    }
    blocks.finish()?;
    let has_data =
        |entry: &&Entry| (entry.is_table_data() || entry.is_large_objects()) && entry.offset != Offset::NoData;
    if toc.entries.iter().filter(has_data).any(|entry| !seen.contains(&entry.dump_id)) {
        return Err(Refused::Other("an entry without its block"));
    }
    Ok(contents)
}

fn rows_of(text: &[u8]) -> Vec<&[u8]> {
    let mut rows: Vec<_> = text.split(|&byte| byte == b'\n').collect();
    assert!(rows.pop().is_none_or(<[u8]>::is_empty), "whole rows");
    rows
}

macro_rules! data {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../tests-data/archives/", $name)).as_slice())
    };
}

const STOCK: [(&str, &[u8]); 6] = [
    data!("15-gzip.dump"),
    data!("15-gzip-pipe.dump"),
    data!("15-none.dump"),
    data!("17-gzip.dump"),
    data!("17-lz4.dump"),
    data!("17-zstd.dump"),
];

#[test]
fn rows_of_stock_archives_come_back() {
    let tables = [
        data!("people.copy"),
        data!("notes.copy"),
        data!("marker.copy"),
        data!("columnless.copy"),
        data!("nothing.copy"),
    ];
    for (name, archive) in STOCK {
        for fragment in [1, 13, 1000, archive.len()] {
            let contents = read(archive, fragment).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(contents.tables.len(), tables.len(), "{name}");
            for (table, expected) in tables {
                let dump_id = contents.labels[&format!("public.{}", table.trim_end_matches(".copy"))];
                let (text, digest) = &contents.tables[&dump_id];
                assert!(text == expected, "{name}: {table}");
                let mut by_row = TableDigest::default();
                rows_of(expected).into_iter().for_each(|row| by_row.add_row(row));
                assert_eq!(*digest, by_row, "{name}: {table}");
            }
            let object = "large object ".repeat(120).into_bytes();
            let expected = [(16_500, object), (16_501, vec![]), (3_000_000_001, vec![0, 255, 10, 92, 46, 10])];
            assert_eq!(contents.objects, expected.into(), "{name}");
        }
    }
}

/// The offsets that `pg_dump` set lead to the same rows, block by block.
#[test]
fn blocks_are_found_by_their_offsets() {
    for (name, archive) in STOCK {
        let whole = read(archive, 1000).unwrap();
        let (toc, _) = Toc::read(archive).unwrap();
        let mut found = 0;
        for entry in toc.entries.iter().filter(|entry| entry.is_table_data()) {
            let Offset::Set(offset) = entry.offset else { continue };
            let mut blocks = BlockReader::section(int_size(archive).unwrap(), offset).unwrap();
            let mut decoder = Decoder::new(toc.header.compression).unwrap();
            let mut rows = RowReader::table();
            'block: for mut input in archive[offset as usize..].chunks(100) {
                while let Some(event) = blocks.next(&mut input).unwrap() {
                    let mut stored = match event {
                        BlockEvent::Begin { dump_id, .. } => {
                            assert_eq!(dump_id, entry.dump_id);
                            continue;
                        }
                        BlockEvent::Bytes(stored) => stored,
                        BlockEvent::End { .. } => break 'block,
                        _ => continue,
                    };
                    while let Some(mut text) = decoder.decode(&mut stored).unwrap() {
                        while rows.next(&mut text).unwrap().is_some() {}
                    }
                }
            }
            decoder.finish().unwrap();
            assert_eq!(rows.finish().unwrap(), whole.tables[&entry.dump_id].1, "{name}: {}", entry.label());
            found += 1;
        }
        assert_eq!(found, if name.contains("pipe") { 0 } else { 5 }, "{name}");
    }
}

/// What a random number decides; the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn entry(dump_id: i32, desc: &[u8]) -> Entry {
    let text = |text: &[u8]| Some(text.to_vec());
    Entry {
        dump_id,
        had_dumper: true,
        catalog_oid: text(b"0"),
        oid: text(b"0"),
        tag: text(format!("t{dump_id}").as_bytes()),
        desc: text(desc),
        section: 3,
        defn: None,
        drop_stmt: None,
        copy_stmt: text(b"COPY public.t (a) FROM stdin;\n"),
        namespace: text(b"public"),
        tablespace: None,
        table_access_method: None,
        relkind: 0,
        owner: text(b"me"),
        with_oids: text(b"false"),
        dependencies: vec![],
        offset: Offset::NotSet,
    }
}

fn own_rows(dice: &mut Dice, rows: usize) -> Vec<u8> {
    (0..rows)
        .flat_map(|i| format!("{i}\t{}\t\\N\t{:x}\n", "ab".repeat(dice.below(9)), dice.next() >> 40).into_bytes())
        .collect()
}

/// An archive of our own writer: two tables, one of several pieces, padding, and two large objects.
fn own(compression: Compression) -> (Vec<u8>, Contents, Vec<(Piece, TableDigest)>) {
    let mut dice = Dice(1);
    let header = Header {
        version: ArchiveVersion::V1_16,
        compression: compression.header(),
        created: [0; 7],
        database: None,
        server_version: None,
        pg_dump_version: None,
    };
    let entries = vec![entry(3, b"TABLE DATA"), entry(5, b"TABLE DATA"), entry(8, b"BLOBS")];
    let mut out = Toc { header, entries }.render();
    let mut contents = Contents::default();
    let mut pieces = Vec::new();
    let mut encoder = Encoder::new(compression).unwrap();
    for (dump_id, segments) in [(3, vec![0]), (5, vec![40, 1, 25])] {
        put_table_block(&mut out, dump_id);
        encoder.begin_table(&mut out);
        let mut adler = Adler::default();
        let (mut text, mut whole) = (Vec::new(), TableDigest::default());
        for rows in segments {
            let segment = own_rows(&mut dice, rows);
            let mut digest = TableDigest::default();
            rows_of(&segment).into_iter().for_each(|row| digest.add_row(row));
            let offset = out.len() as u64;
            encoder.write(&segment, &mut out).unwrap();
            adler = adler.then(encoder.end_segment(&mut out).unwrap());
            let length = out.len() as u64 - offset;
            pieces.push((Piece { offset, length, bytes: digest.bytes, rows: digest.rows }, digest));
            text.extend_from_slice(&segment);
            whole.merge(&digest);
        }
        encoder.end_table(adler, &mut out).unwrap();
        out.extend_from_slice(&padding_block(60)[..if dump_id == 3 { 60 } else { 0 }]);
        contents.tables.insert(dump_id, (text, whole));
        contents.labels.insert(format!("public.t{dump_id}"), dump_id);
    }
    put_large_objects_block(&mut out, 8);
    for (oid, content) in [(4_000_000_000_u32, own_rows(&mut dice, 30)), (12, vec![])] {
        put_int(&mut out, oid as i32);
        encoder.begin_table(&mut out);
        encoder.write(&content, &mut out).unwrap();
        encoder.end_stream(Adler::default(), &mut out).unwrap();
        contents.objects.insert(oid, content);
    }
    put_int(&mut out, 0);
    (out, contents, pieces)
}

const OWN: [Compression; 3] = [Compression::None, Compression::Gzip { level: 1 }, Compression::Zstd { level: 1 }];

#[test]
fn our_own_archives_come_back() {
    for compression in OWN {
        let (archive, contents, _) = own(compression);
        for fragment in [1, 2, 5, 6, 7, 100, archive.len()] {
            assert_eq!(read(&archive, fragment).unwrap(), contents, "{compression} {fragment}");
        }
    }
}
