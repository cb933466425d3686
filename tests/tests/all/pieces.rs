//! Reads a dump by its manifest alone, with the codecs' own crates: what the manifest says of each piece is true.

use std::io::{BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};
use holdfast_shared::domain::manifest::{Piece, Table};
use holdfast_shared::domain::{Manifest, TableDigest};

const INT_BYTES: usize = 5;

/// Checks every table's block, pieces, rows, bytes and fingerprint.
pub fn check(dump: &[u8], manifest: &Manifest) {
    let artifact = &manifest.artifacts["dump"];
    assert_eq!(dump.len() as u64, artifact.size_bytes);
    let codec = artifact.compression.split(':').next().unwrap();
    manifest.tables.iter().for_each(|table| check_table(dump, table, codec));
}

fn check_table(dump: &[u8], table: &Table, codec: &str) {
    let name = format!("{}.{}", table.schema, table.name);
    let block = slice(dump, table.offset, table.length);
    assert_eq!(block[0], 1, "{name}: a data block begins with 1");
    let mut chunks = Vec::new();
    let mut rest = &block[1 + INT_BYTES..];
    loop {
        let (chunk, tail) = next_chunk(rest);
        rest = tail;
        if chunk.is_empty() {
            break;
        }
        chunks.push(chunk);
    }
    assert!(rest.is_empty(), "{name}: the block ends with its zero chunk");

    let mut digest = TableDigest::default();
    let mut end_of_last = table.offset;
    for piece in &table.pieces {
        assert!(piece.offset >= end_of_last, "{name}: pieces lie one after the other");
        end_of_last = piece.offset + piece.length;
        assert!(end_of_last <= table.offset + table.length, "{name}: a piece lies in its table's block");
        let text = text_of(dump, piece, codec);
        assert_eq!(text.len() as u64, piece.bytes, "{name}: bytes of a piece");
        assert_eq!(text.last(), Some(&b'\n'), "{name}: a piece is whole rows");
        let before = digest.rows;
        let (mut rest, mut row) = (text.as_slice(), Vec::new());
        while rest.read_until(b'\n', &mut row).unwrap() > 0 {
            digest.add_row(&row[..row.len() - 1]);
            row.clear();
        }
        assert_eq!(digest.rows - before, piece.rows, "{name}: rows of a piece");
    }
    assert_eq!((digest.rows, digest.bytes), (table.rows, table.bytes), "{name}");
    assert_eq!(digest.fingerprint, table.fingerprint, "{name}");

    // The block as a whole, as a restore reads it.
    let whole = match codec {
        "none" => chunks.concat(),
        "gzip" => {
            let (bytes, mut text) = (chunks.concat(), Vec::new());
            let mut decoder = flate2::read::ZlibDecoder::new(bytes.as_slice());
            decoder.read_to_end(&mut text).unwrap();
            assert_eq!(decoder.total_in(), bytes.len() as u64, "{name}: one zlib stream and nothing behind it");
            text
        }
        _ => zstd::decode_all(chunks.concat().as_slice()).unwrap(),
    };
    assert_eq!(whole.len() as u64, table.bytes + 5, "{name}: rows and their end");
    assert!(whole.ends_with(b"\\.\n\n\n"), "{name}");
}

fn text_of(dump: &[u8], piece: &Piece, codec: &str) -> Vec<u8> {
    let mut rest = slice(dump, piece.offset, piece.length);
    let mut stored = Vec::new();
    while !rest.is_empty() {
        let (chunk, tail) = next_chunk(rest);
        assert!(!chunk.is_empty(), "a piece holds no end of a block");
        stored.extend_from_slice(chunk);
        rest = tail;
    }
    match codec {
        "none" => stored,
        "gzip" => inflate_segment(&stored, piece.bytes as usize),
        _ => zstd::decode_all(stored.as_slice()).unwrap(),
    }
}

/// Deflate blocks up to a flush: no end of stream.
fn inflate_segment(stored: &[u8], len: usize) -> Vec<u8> {
    let mut inflate = Decompress::new(false);
    let mut text = Vec::with_capacity(len + 64);
    while inflate.total_in() < stored.len() as u64 {
        let status =
            inflate.decompress_vec(&stored[inflate.total_in() as usize..], &mut text, FlushDecompress::Sync).unwrap();
        assert_ne!(status, Status::StreamEnd, "a piece does not end the table's stream");
        assert!(text.len() < text.capacity(), "more text than the manifest says");
    }
    text
}

fn next_chunk(bytes: &[u8]) -> (&[u8], &[u8]) {
    assert_eq!(bytes[0], 0, "lengths are positive");
    let len = u32::from_le_bytes(bytes[1..INT_BYTES].try_into().unwrap()) as usize;
    (&bytes[INT_BYTES..INT_BYTES + len], &bytes[INT_BYTES + len..])
}

fn slice(dump: &[u8], offset: u64, length: u64) -> &[u8] {
    &dump[offset as usize..(offset + length) as usize]
}
